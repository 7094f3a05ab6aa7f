"""The hooks of datagram servers are called for each datagram, however many come as one batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import portico

from .packets import (
    EVERY,
    EVERY_WAY,
    ORDERED,
    answer,
    ask,
    echo,
    heard,
    made,
    peer,
    silent,
    waits_for,
)
from .waiting import until

ALL = [b"%d" % number for number in range(10)]
IN_HERE = tuple(way for way in EVERY if way != "forks")
"""Those whose handlers run in this process."""


# -- hooks

ORDER = ["get_request", "verify_request", "process_request", "finish_request", "shutdown_request", "close_request"]


def hooked(calls: list[str], names: Any, way: str) -> dict[str, Any]:
    """Overridden hooks, which do what they did before."""

    def overridden(name: str) -> Any:
        def hook(self: Any, *arguments: Any) -> Any:
            calls.append(name)
            return getattr(super(type(self), self), name)(*arguments)

        return hook

    return {name: overridden(name) for name in names}


@pytest.mark.parametrize("names", [*([name] for name in ORDER), ORDER], ids=lambda names: "+".join(names)[:20])
@pytest.mark.parametrize("way", IN_HERE)
def test_overridden_hooks_are_called_once_for_each_and_in_order(way: str, names: list[str]) -> None:
    calls: list[str] = []
    server = made(way, members=hooked(calls, names, way))
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            assert sorted(heard(client, 10)) == ALL
            assert until(lambda: server.stats().done == 10)
    tries = calls.count("get_request") - 10  # those that found nothing
    assert Counter(calls) == Counter({name: 10 + (tries if name == "get_request" else 0) for name in names})
    if way == "plain" and names == ORDER:
        assert calls[:60] == ORDER * 10


@pytest.mark.parametrize("when", ["before", "while it serves"])
@pytest.mark.parametrize("name", ["verify_request", "process_request", "finish_request", "get_request"])
@pytest.mark.parametrize("way", IN_HERE)
def test_hooks_set_on_the_instance_are_called(way: str, name: str, when: str) -> None:
    calls: list[str] = []
    server = made(way)
    original = getattr(server, name)

    def hook(*arguments: Any) -> Any:
        calls.append(name)
        return original(*arguments)

    if when == "before":
        setattr(server, name, hook)
    with peer() as client, server.background():
        assert ask(client, b"1", server.server_address) == b"1"
        setattr(server, name, hook)
        calls.clear()
        assert ask(client, b"2", server.server_address) == b"2"
        assert calls[:1] == [name]


@EVERY_WAY
def test_what_is_not_verified_is_not_handled_and_counted(way: str) -> None:
    members = {"verify_request": lambda self, request, client_address: request[0] != b"3"}
    server = made(way, members=members)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            assert sorted(heard(client, 9)) == [payload for payload in ALL if payload != b"3"]
            assert until(lambda: server.stats().refused == {"verify_request": 1})
            assert silent(client)


def test_service_actions_are_called_between_two() -> None:
    calls: list[Any] = []
    members = {"service_actions": lambda self: calls.append("service")}

    async def note(handler: Any) -> None:
        calls.append(handler.request[0])
        await echo(handler)

    server = made("plain", note, members=members)
    with peer() as client:
        waits_for(server, ALL[:3], client)
        with server.background():
            heard(client, 3)
    assert [call for call in calls[: calls.index(b"2")] if call != "service"] == [b"0", b"1"]
    assert calls[calls.index(b"0") + 1] == calls[calls.index(b"1") + 1] == "service"


@pytest.mark.parametrize("kind", ["function", "callable object", "with setup and finish", "with its own __init__"])
@pytest.mark.parametrize("way", [way for way in ORDERED if not way.startswith("async")])
def test_handlers_of_all_kinds(way: str, kind: str) -> None:
    class Echo(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.request[1].sendto(self.request[0], self.client_address)

    class Three(Echo):
        def setup(self) -> None:
            self.said = b"setup "

        def finish(self) -> None:
            self.request[1].sendto(self.said + b"finish", self.client_address)

    class Own:
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            request[1].sendto(request[0], client_address)

    class Callable:
        def __call__(self, request: Any, client_address: Any, server: Any) -> None:
            request[1].sendto(request[0], client_address)

    def function(request: Any, client_address: Any, server: Any) -> None:
        request[1].sendto(request[0], client_address)

    server = made(way)
    server.RequestHandlerClass = {
        "function": function,
        "callable object": Callable(),
        "with setup and finish": Three,
        "with its own __init__": Own,
    }[kind]
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            more = [b"setup finish"] * 10 if kind == "with setup and finish" else []
            assert sorted(heard(client, 10 + len(more))) == ALL + more


@pytest.mark.alerts
@EVERY_WAY
def test_a_handler_that_raises_ends_its_own_request_only(way: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(handler: Any) -> None:
        if int(handler.request[0]) % 3 == 0:
            await answer(handler, b"before")
            raise LookupError(handler.request[0])
        await echo(handler)

    server = made(way, fail)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            assert sorted(heard(client, 10)) == sorted([b"before"] * 4 + [b"1", b"2", b"4", b"5", b"7", b"8"])
            if way != "forks":
                assert until(lambda: (server.stats().failed, server.stats().done) == (4, 6))
                assert until(lambda: len([record for record in caplog.records if record.levelname == "ERROR"]) == 4)

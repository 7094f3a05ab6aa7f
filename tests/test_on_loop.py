"""A server's requests on a loop and how they come to their end; and what a request is turned into for the loop."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import portico
from portico._loop_requests import Requests

from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread
from .waiting import until


class Fake:
    """A server whose requests are no more than names, and what has been done to them."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.abandoned: list[int] = []
        self.ends_when_cancelled: set[str] = set()
        self.requests = Requests(asyncio.get_running_loop(), self)  # type: ignore[arg-type]

    def _portico_tell_of_abandoned(self, number: int) -> None:
        self.abandoned.append(number)

    def _portico_cancel(self, request: str) -> None:
        self.cancelled.append(request)
        if request in self.ends_when_cancelled:
            self.requests.discard(request)


def run(test: Callable[[Fake], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Fake()), 10)

    asyncio.run(main(), debug=True)


def test_it_is_over_when_no_more_will_come_and_the_last_has_ended() -> None:
    async def test(fake: Fake) -> None:
        for name in ("one", "two"):
            fake.requests.add(name)
        fake.requests.discard("one")
        waiting = asyncio.create_task(fake.requests.wait())
        fake.requests.close(at_once=False)
        await asyncio.sleep(0)
        assert not fake.requests.over
        assert not waiting.done()
        fake.requests.discard("two")
        assert fake.requests.over
        await waiting
        assert fake.cancelled == fake.abandoned == []

    run(test)


@pytest.mark.parametrize("at_once", [False, True])
def test_without_requests_it_is_over_at_once(at_once: bool) -> None:
    async def test(fake: Fake) -> None:
        fake.requests.close(at_once=at_once)
        assert fake.requests.over
        await fake.requests.wait()
        fake.requests.close(at_once=at_once)
        assert fake.abandoned == []

    run(test)


def test_a_pause_between_requests_is_not_the_end() -> None:
    async def test(fake: Fake) -> None:
        fake.requests.add("one")
        fake.requests.discard("one")
        assert not fake.requests.over

    run(test)


def test_those_that_end_when_told_are_told_once() -> None:
    async def test(fake: Fake) -> None:
        fake.ends_when_cancelled = {"one", "two"}
        for name in ("one", "two"):
            fake.requests.add(name)
        fake.requests.close(at_once=True)
        await fake.requests.wait()
        assert sorted(fake.cancelled) == ["one", "two"]
        assert fake.abandoned == []

    run(test)


def test_one_that_goes_on_is_told_again_and_then_left_behind() -> None:
    async def test(fake: Fake) -> None:
        fake.ends_when_cancelled = {"obedient"}
        for name in ("obedient", "stubborn"):
            fake.requests.add(name)
        fake.requests.close(at_once=True)
        await fake.requests.wait()
        assert fake.cancelled.count("obedient") == 1
        assert 1 < fake.cancelled.count("stubborn") < 100
        assert fake.abandoned == [1]
        fake.requests.discard("stubborn")  # it ends at last: nobody waits any more
        assert fake.abandoned == [1]

    run(test)


def test_two_that_end_them_at_once_leave_them_the_same_time() -> None:
    async def test(fake: Fake) -> None:
        fake.requests.add("one")
        for _ in range(3):
            fake.requests.close(at_once=True)
        assert fake.cancelled == ["one"]
        fake.requests.discard("one")
        await fake.requests.wait()

    run(test)


def test_closing_from_another_thread_waits_for_the_end() -> None:
    async def test(fake: Fake) -> None:
        fake.ends_when_cancelled = {"one"}
        fake.requests.add("one")
        ended: list[bool] = []

        def close() -> None:
            fake.requests.close_now()
            fake.requests.wait_in_thread(10)
            ended.append(fake.requests.over)

        closer = threading.Thread(target=close)
        closer.start()
        await fake.requests.wait()
        await asyncio.to_thread(closer.join, 10)
        assert ended == [True]
        assert fake.cancelled == ["one"]
        fake.requests.close_now()
        fake.requests.wait_in_thread(10)  # over: nothing to wait for

    run(test)


def test_the_loops_own_thread_waits_for_nothing() -> None:
    async def test(fake: Fake) -> None:
        fake.requests.add("one")
        fake.requests.close_now()
        fake.requests.wait_in_thread(1000)  # or nobody would ever end it
        assert not fake.requests.over
        fake.requests.discard("one")
        await fake.requests.wait()

    run(test)


def test_closing_when_the_loop_is_gone_is_no_fault() -> None:
    found: list[Requests] = []

    async def test(fake: Fake) -> None:
        found.append(fake.requests)
        fake.requests.close(at_once=True)

    run(test)
    found[0].close_now()
    found[0].wait_in_thread(10)


# -- what a request is turned into

WAYS: dict[str, tuple[Any, Any]] = {
    "green": (portico.GreenTCPServer, portico.GreenUDPServer),
    "async": (portico.AsyncTCPServer, portico.AsyncUDPServer),
}


def both(function: Callable[[Any], Any], way: str) -> Any:
    """A handler of either way that looks at its request and says nothing."""

    def handler(request: Any, *_: Any) -> None:
        function(request)

    async def handler_async(request: Any, *_: Any) -> None:
        function(request)

    return handler if way == "green" else handler_async


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_is_a_socket_that_does_not_block_the_loop(way: str, loop: str) -> None:
    seen: list[Any] = []

    def look(request: Any) -> None:
        seen.append((isinstance(request, socket.socket), os.get_blocking(request.fileno()), request.type))

    with WAYS[way][0](LOOPBACK, both(look, way), event_loop=loop).background() as serving:
        assert ask(serving) == b""
    assert seen == [(True, False, socket.SOCK_STREAM)]


def test_what_get_request_returns_instead_of_a_socket_stays_as_it_is(way: str) -> None:
    class Wrapped:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

    def get_request(self: Any) -> Any:
        sock, address = super(type(self), self).get_request()
        return Wrapped(sock), address

    def close_request(self: Any, request: Any) -> None:
        request.sock.close()

    seen: list[Any] = []
    hooks = {"get_request": get_request, "close_request": close_request, "shutdown_request": close_request}
    made = type("Mine", (WAYS[way][0],), hooks)
    with made(LOOPBACK, both(seen.append, way)).background() as serving:
        assert ask(serving) == b""
    assert [type(request) for request in seen] == [Wrapped]


def test_a_timeout_that_get_request_has_set_is_the_requests(way: str) -> None:
    def get_request(self: Any) -> Any:
        sock, address = super(type(self), self).get_request()
        sock.settimeout(7)
        return sock, address

    seen: list[Any] = []
    made = type("Mine", (WAYS[way][0],), {"get_request": get_request})
    with made(LOOPBACK, both(lambda request: seen.append(request.gettimeout()), way)).background() as serving:
        assert ask(serving) == b""
    assert seen == [7.0 if way == "green" else 0.0]  # an awaited socket's timeouts are asyncio's


@pytest.mark.parametrize("how", ["stdlib", "handle_request", "datagram", "get_request"])
def test_what_is_awaited_never_blocks_the_loop(how: str) -> None:
    def get_request(self: Any) -> Any:
        sock, address = super(type(self), self).get_request()
        sock.settimeout(5)
        return sock, address

    async def handler(request: Any, *_: Any) -> None:
        sock = request[1] if how == "datagram" else request
        seen.append(os.get_blocking(sock.fileno()))

    seen: list[bool] = []
    base = socketserver.TCPServer if how == "stdlib" else portico.TCPServer
    made: Any = type("Mine", (portico.AsyncMixIn, base), {"get_request": get_request} if how == "get_request" else {})
    with (portico.AsyncUDPServer if how == "datagram" else made)(LOOPBACK, handler) as serving:
        kind = serving.socket_type
        with socket.socket(type=kind) as client:
            client.connect(serving.server_address)
            client.send(b"x")
            if how == "handle_request":
                serving.handle_request()
            else:
                with in_a_thread(serving.serve_forever):
                    assert until(lambda: seen)
                    serving.shutdown()
    assert seen == [False]


@pytest.mark.parametrize("kind", [0, 1], ids=["tcp", "udp"])
def test_the_servers_own_socket_blocks_again_afterwards(way: str, kind: int) -> None:
    handled: list[Any] = []
    with WAYS[way][kind](LOOPBACK, both(handled.append, way)) as serving:
        for number in range(1, 3):
            with in_a_thread(serving.serve_forever):
                with socket.socket(type=socket.SOCK_STREAM if kind == 0 else socket.SOCK_DGRAM) as client:
                    client.connect(serving.server_address)
                    if kind:
                        client.send(b"x")
                    assert until(lambda number=number: len(handled) == number)
                serving.shutdown()
            assert os.get_blocking(serving.fileno())
            assert serving.socket.gettimeout() is None


def test_a_server_of_the_standard_librarys_is_treated_alike(way: str) -> None:
    mixin: Any = portico.GreenMixIn if way == "green" else portico.AsyncMixIn
    made = type("Mine", (mixin, socketserver.TCPServer), {})
    seen: list[Any] = []

    def look(request: Any) -> None:
        seen.append(type(request).__module__.partition(".")[0])

    with made(LOOPBACK, both(look, way)) as serving:
        with in_a_thread(serving.serve_forever):
            assert ask(serving) == b""
            serving.shutdown()
        with connected(serving):
            serving.handle_request()
    assert seen == ["portico", "portico"]


def test_requests_that_go_on_after_shutdown_are_ended_by_closing(way: str) -> None:
    steps: list[str] = []

    def wait(request: Any, *_: Any) -> None:
        steps.append("waits")
        try:
            request.recv(1)
        finally:
            steps.append("ended")

    async def wait_async(request: Any, *_: Any) -> None:
        steps.append("waits")
        try:
            await request.recv(1)
        finally:
            steps.append("ended")

    with (
        WAYS[way][0](LOOPBACK, wait if way == "green" else wait_async) as serving,
        connected(serving),
        in_a_thread(serving.serve_forever),
    ):
        assert until(lambda: steps)
        serving.shutdown()
        assert steps == ["waits"]
        serving.server_close()
        assert steps == ["waits", "ended"]


@pytest.mark.parametrize("event_loop", LOOPS)
def test_a_datagram_on_a_loop_of_its_own_is_answered_before_that_is_closed(event_loop: str) -> None:
    def answer(request: Any, client_address: Any, _: Any) -> None:
        request[1].sendto(b"yes", client_address)

    with (
        portico.GreenUDPServer(LOOPBACK, answer, event_loop=event_loop) as serving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(5)
        client.sendto(b"?", serving.server_address)
        serving.handle_request()
        assert client.recv(10) == b"yes"

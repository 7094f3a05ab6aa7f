"""Why a connection has ended, and what has gone over it: the same in every way to run, and whoever looks meanwhile."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import portico
from portico.lifecycle import ConnectionEnded

from .every_way import EVERY, Case, Peer, in_every_way, seconds_to_the_end, serving
from .loops import LOOPBACK, in_a_thread
from .waiting import until

ASIDE = [case for case in EVERY if not case.one_by_one]
"""Where what a handler raises does not reach the loop."""


class Odd(BaseException):
    """No `Exception`."""


async def _is_through(_: Peer) -> None:
    sys.exit()


async def _is_not(_: Peer) -> None:
    sys.exit(3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@in_every_way(ASIDE)
def test_a_handler_may_exit_and_says_whether_it_has_failed(case: Case) -> None:
    for body, reason in ((_is_through, "done"), (_is_not, "failed")):
        with serving(case, body) as served, served.connect() as client:
            seconds_to_the_end(client)
            assert until(served.ends)
            assert served.reasons() == [reason]


@pytest.mark.parametrize("hook", ["verify_request", "process_request", "finish_request"])
def test_what_is_no_exception_fails_its_connection_and_ends_the_loop(hook: str) -> None:
    def raises(*_: Any) -> None:
        raise Odd

    ended: list[Any] = []
    members = {hook: raises, "handle_event": lambda self, event: ended.append(event)}
    made = type("Mine", (portico.TCPServer,), members)
    with (
        made(LOOPBACK, portico.BaseRequestHandler) as server,
        socket.create_connection(server.server_address, 10),
        pytest.raises(Odd),
    ):
        server.serve_forever()
    assert [event.connection.reason.value for event in ended if isinstance(event, ConnectionEnded)] == ["failed"]


@in_every_way(ASIDE)
def test_a_hook_that_raises_at_the_end_fails_it_too(case: Case) -> None:
    def raises(*_: Any) -> None:
        raise LookupError("a bug in the hook")

    async def body(peer: Peer) -> None:
        await peer.recv(1)

    with serving(case, body, {"shutdown_request": raises}) as served, served.connect() as client:
        client.sendall(b"x")
        assert until(served.ends)
        assert served.reasons() == ["failed"]


@in_every_way(EVERY)
def test_a_handler_may_have_its_connection_closed(case: Case) -> None:
    async def body(peer: Peer) -> None:
        server = peer.handler.server
        (server._portico_connections.only or server.connections()[0]).close()
        await peer.recv(1)

    with serving(case, body) as served, served.connect() as client:
        seconds_to_the_end(client)
        assert until(served.ends)
        assert served.reasons() == ["closed"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", [portico.ThreadingUnixStreamServer, portico.GreenUnixStreamServer])
def test_figures_hold_whoever_looks_at_them_meanwhile(kind: Any, tmp_path: Path) -> None:
    """Looking must not put something older in the place of what was read at the end."""
    number, said = 500, b"fifteen letters"

    class Echo(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100))

    ends: list[Any] = []
    made = type("Mine", (kind,), {"handle_event": lambda self, event: ends.append(event)})
    over = threading.Event()

    def look(server: Any) -> None:
        while not over.is_set():
            server.stats()

    with ExitStack() as stack:
        server = stack.enter_context(made(str(tmp_path / "socket"), Echo).background())
        for _ in range(2):
            stack.enter_context(in_a_thread(look, server))
        stack.callback(over.set)
        for _ in range(number):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "socket"))
                client.sendall(said)
                assert client.recv(100) == said
        assert until(lambda: server.stats().done == number)
        connections = [event.connection for event in ends if isinstance(event, ConnectionEnded)]
        assert {(one.bytes_in, one.bytes_out) for one in connections} == {(15, 15)}
        assert (server.stats().bytes_in, server.stats().bytes_out) == (15 * number, 15 * number)

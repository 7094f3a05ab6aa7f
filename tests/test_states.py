"""A server's states as whoever listens is told of them: each step once and in order, whatever is asked meanwhile."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

import portico
from portico.lifecycle import ConnectionEnded, ConnectionStarted, Drained, State, StateChanged

from .contract.flavours import short_folder
from .every_way import TCP, Case, Peer, case_class, in_every_way, serving
from .waiting import until


def handler(request: Any, client_address: Any, server: Any) -> None:
    request.sendall(request.recv(100).upper())


class Listens(portico.ThreadingTCPServer):
    """Keeps the steps that it is told of."""

    def __init__(self) -> None:
        self.steps: list[tuple[State, State]] = []
        super().__init__(("127.0.0.1", 0), handler)

    def handle_event(self, event: Any) -> None:
        if isinstance(event, StateChanged):
            self.steps.append((event.before, event.after))


def follow_on(steps: list[tuple[State, State]]) -> bool:
    return all(one[1] is next_one[0] for one, next_one in pairwise(steps))


@pytest.mark.usefixtures("hurried")
def test_two_threads_that_suspend_and_resume() -> None:
    with Listens().background() as server:

        def ask() -> None:
            for _ in range(400):
                server.suspend()
                server.resume()

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert server.stats().state is State.SERVING
    assert server.steps[0] == (State.NEW, State.STARTING)
    assert follow_on(server.steps)
    assert server.steps[-1] == (State.CLOSING, State.CLOSED)


@pytest.mark.usefixtures("hurried")
def test_a_drain_as_the_server_starts() -> None:
    for _ in range(60):
        server = Listens()

        def serve(server: portico.TCPServer = server) -> None:
            with suppress(ValueError, RuntimeError):  # too late
                server.serve_forever()

        threads = [threading.Thread(target=serve), threading.Thread(target=server.drain, args=(1,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert server.steps[0][0] is State.NEW
        assert follow_on(server.steps)
        assert server.steps[-1] == (State.CLOSING, State.CLOSED)


async def echo(peer: Peer) -> None:
    await peer.sendall(await peer.recv(100))


@in_every_way(TCP)
def test_whoever_is_told_may_ask_for_anything(case: Case) -> None:
    """Nothing is lost or doubled when `handle_event` itself suspends, resumes, looks, and in the end drains."""
    seen: list[Any] = []

    def handle_event(self: Any, event: Any) -> None:
        self.stats()
        self.connections()
        if isinstance(event, ConnectionStarted):
            self.suspend()
        if isinstance(event, ConnectionEnded):
            if sum(isinstance(found, ConnectionEnded) for found in seen) == 2:
                self.request_drain()
            with suppress(RuntimeError):  # it drains
                self.resume()
        seen.append(event)

    with serving(case, echo, {"handle_event": handle_event}) as served:
        for _ in range(3):
            with served.connect() as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
                assert client.recv(100) == b""
        assert until(lambda: any(isinstance(event, StateChanged) and event.after is State.CLOSED for event in seen))
    steps = [(event.before, event.after) for event in seen if isinstance(event, StateChanged)]
    turns = [State.SUSPENDED, State.SERVING] * 2
    lives = [State.NEW, State.STARTING, State.SERVING, *turns, State.SUSPENDED, State.DRAINING, State.CLOSING]
    assert steps == list(pairwise([*lives, State.CLOSED])), seen
    started = [event.connection.id for event in seen if isinstance(event, ConnectionStarted)]
    ended = [event.connection.id for event in seen if isinstance(event, ConnectionEnded)]
    assert sorted(started) == sorted(ended) == [1, 2, 3]
    assert sum(isinstance(event, Drained) for event in seen) <= 1


@pytest.mark.parametrize("ask", ["drain", "suspend"])
def test_a_signal_handler_may_ask_in_the_middle_of_the_telling(ask: str) -> None:
    """In the same thread, while whoever listens is told of the first step."""

    class Interrupted(Listens):
        def handle_event(self, event: Any) -> None:
            super().handle_event(event)
            if isinstance(event, StateChanged) and event.after is State.STARTING:
                signal.raise_signal(signal.SIGUSR1)

    server = Interrupted()
    steps = {
        "drain": [State.DRAINING, State.CLOSING, State.CLOSED],
        "suspend": [State.SERVING, State.SUSPENDED, State.DRAINING, State.CLOSING, State.CLOSED],
    }[ask]
    before = signal.signal(signal.SIGUSR1, lambda *_: server.request_drain() if ask == "drain" else server.suspend())
    try:
        if ask == "suspend":
            stop = threading.Thread(
                target=lambda: until(lambda: server.stats().state is State.SUSPENDED) and server.request_drain()
            )
            stop.start()
        server.serve_forever()
        assert until(lambda: server.stats().state is State.CLOSED)
        server.server_close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    if ask == "suspend":
        stop.join(10)
    assert server.steps == list(pairwise([State.NEW, State.STARTING, *steps]))


@in_every_way(TCP)
def test_a_server_suspended_before_it_starts_takes_nobody_until_it_resumes(case: Case) -> None:
    events: list[Any] = []
    made = type("Server", (case_class(case),), {"handle_event": lambda _, event: events.append(event)})
    with short_folder() as folder:
        server = made(("127.0.0.1", 0), case.handler(echo, folder / "notes"))
        server.suspend()
        with server.background(), socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"hello")
            assert server.stats().state is State.SUSPENDED
            assert not server.connections()
            server.resume()
            assert client.recv(100) == b"hello"
    steps = [event.after for event in events if isinstance(event, StateChanged)]
    assert steps[:4] == [State.STARTING, State.SERVING, State.SUSPENDED, State.SERVING]

"""`handle_request`, for a program with a loop of its own: it returns when the server ends, and in its time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import portico
from portico.lifecycle import State

from .waiting import until

LOOPBACK = ("127.0.0.1", 0)
WAYS = ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "GreenTCPServer", "AsyncTCPServer", "UDPServer"]
SOON = 0.3


def handler(request: Any, client_address: Any, server: Any) -> None:
    if type(request) is tuple:
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(100).upper())


async def async_handler(request: Any, client_address: Any, server: Any) -> None:
    await request.sendall((await request.recv(100)).upper())


Make = Callable[..., Any]


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    servers: list[Any] = []

    def made(**members: Any) -> Any:
        timed_out: list[int] = []
        members = {"handle_timeout": lambda _: timed_out.append(1), "timed_out": timed_out} | members
        kind = type("Mine", (getattr(portico, request.param),), members)
        server = kind(LOOPBACK, async_handler if request.param.startswith("Async") else handler)
        servers.append(server)
        return server

    yield made
    for server in servers:
        server.server_close()


class Waiting:
    """A thread that is in `handle_request`, and waits there."""

    def __init__(self, server: Any) -> None:
        self.server = server
        before = len(server._portico_waits._all)
        self._thread = threading.Thread(target=server.handle_request, daemon=True)
        self._thread.start()
        assert until(lambda: len(server._portico_waits._all) > before)

    def has_returned(self, seconds: float = 10) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def answer(server: Any) -> bytes:
    with socket.socket(server.address_family, server.socket_type) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        client.sendall(b"hello")
        return client.recv(100)


ENDS: dict[str, Callable[[Any], object]] = {
    "server_close": lambda server: server.server_close(),
    "drain": lambda server: server.drain(5),
    "request_drain": lambda server: server.request_drain(5),
    "shutdown": lambda server: server.shutdown(),
    "the flag": lambda server: setattr(server, "_BaseServer__shutdown_request", True),
    "its socket": lambda server: server.socket.close(),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_returns_when_another_thread_ends_the_server(make: Make, end: str) -> None:
    server = make()
    waiting = [Waiting(server) for _ in range(2)]
    began = time.monotonic()
    ENDS[end](server)
    assert all(wait.has_returned() for wait in waiting)
    assert time.monotonic() - began < SOON
    assert not server.timed_out
    if end in ("shutdown", "the flag"):  # which is used up
        again = Waiting(server)
        assert answer(server) == b"HELLO"
        assert again.has_returned()
    elif end != "request_drain":
        with pytest.raises(ValueError, match="is closed"):
            server.handle_request()


def test_a_wish_to_stop_that_came_between_two_calls_is_heard_by_the_next(make: Make) -> None:
    server = make()
    server.shutdown()
    server.handle_request()
    assert not server.timed_out
    waiting = Waiting(server)
    assert answer(server) == b"HELLO"
    assert waiting.has_returned()


def test_shutdown_ends_it_also_after_a_loop(make: Make) -> None:
    server = make()
    begun = threading.Event()
    server._portico_lifecycle.on_start = begun.set
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert begun.wait(10)
    server.shutdown()
    thread.join(10)
    waiting = Waiting(server)
    server.shutdown()
    assert waiting.has_returned()


def test_it_ends_with_the_loop_that_runs_beside_it() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, handler) as server:
        begun = threading.Event()
        server._portico_lifecycle.on_start = begun.set
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert begun.wait(10)
        waiting = Waiting(server)
        server.shutdown()
        assert waiting.has_returned()
        thread.join(10)
        assert not thread.is_alive()
        waiting = Waiting(server)
        server.socket.close()
        assert waiting.has_returned()


def test_suspended_it_takes_nothing_until_it_resumes(make: Make) -> None:
    server = make()
    server.suspend()
    assert server.stats().state is State.NEW
    waiting = Waiting(server)
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(answer(server)))
    client.start()
    assert not waiting.has_returned(0.1)
    assert not answers
    server.resume()
    assert waiting.has_returned()
    client.join(10)
    assert answers == [b"HELLO"]


def test_suspended_while_it_waits(make: Make) -> None:
    server = make()
    waiting = Waiting(server)
    server.suspend()
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(answer(server)))
    client.start()
    assert not waiting.has_returned(0.1)
    server.resume()
    assert waiting.has_returned()
    client.join(10)
    assert answers == [b"HELLO"]


@pytest.mark.parametrize("timeout", [0, 0.1])
@pytest.mark.parametrize("why", ["idle", "suspended"])
def test_it_keeps_to_its_time(make: Make, timeout: float, why: str) -> None:
    server = make(timeout=timeout)
    if why == "suspended":
        server.suspend()
    with socket.socket(server.address_family, server.socket_type) as client:
        if why == "suspended":
            client.connect(server.server_address)
            client.sendall(b"hello")
        began = time.monotonic()
        server.handle_request()
        assert timeout <= time.monotonic() - began < timeout + SOON
    assert server.timed_out == [1]


@pytest.mark.parametrize("way", ["ThreadingTCPServer", "ForkingTCPServer"])
@pytest.mark.parametrize("full", ["max_connections", "max_threads", "max_children"])
def test_full_it_keeps_to_its_time(way: str, full: str) -> None:
    if (full == "max_threads") > way.startswith("Threading") or (full == "max_children") > way.startswith("Forking"):
        pytest.skip("others' setting")
    timed_out: list[int] = []
    kind = type("Mine", (getattr(portico, way),), {"handle_timeout": lambda _: timed_out.append(1)})
    made: Any = kind(LOOPBACK, handler, overload="wait", **{full: 1})
    with made as server, socket.create_connection(server.server_address) as first:
        server.handle_request()
        server.timeout = 0.1
        with socket.create_connection(server.server_address, 10) as second:
            second.sendall(b"hello")
            began = time.monotonic()
            server.handle_request()
            assert 0.1 <= time.monotonic() - began < 0.1 + SOON
            assert timed_out == [1]
            first.shutdown(socket.SHUT_WR)  # a child of this process has a copy of it
            server.timeout = 10
            server.handle_request()
            assert second.recv(100) == b"HELLO"


def test_children_are_collected_whatever_a_program_does_at_timeouts() -> None:
    kind = type("Mine", (portico.ForkingTCPServer,), {"handle_timeout": lambda _: None})
    with kind(LOOPBACK, handler) as server:
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"hello")
            server.handle_request()
            assert client.recv(100) == b"HELLO"
        (child,) = server.active_children
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        server.timeout = 0
        server.handle_request()
        assert not server.active_children
        assert server.stats().ended == {"done": 1}


def test_it_leaves_no_descriptor_and_needs_none_for_a_look(make: Make) -> None:
    server = make(timeout=0)
    server.handle_request()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        server.handle_request()
    server.timeout = 0.001
    server.handle_request()
    assert len(os.listdir("/proc/self/fd")) == before
    assert server.timed_out == [1] * 5


class Held:
    """A server whose first request is seen by somebody, who then is held up before he takes it."""

    def __init__(self, base: Any) -> None:
        self.seen, self.go = threading.Event(), threading.Event()

        def get_request(server: Any) -> Any:
            if not self.seen.is_set():
                self.seen.set()
                assert self.go.wait(10)
            return base.get_request(server)

        self.server: Any = type("Held", (base,), {"get_request": get_request})(LOOPBACK, handler)


@pytest.mark.parametrize("name", ["TCPServer", "UDPServer", "ThreadingTCPServer"])
@pytest.mark.parametrize("first", ["handle_request", "a loop"])
def test_nobody_waits_for_a_request_that_another_one_has_taken(name: str, first: str) -> None:
    held = Held(getattr(portico, name))
    with held.server as server:
        loops = first == "a loop"
        thread = threading.Thread(target=server.serve_forever if loops else server.handle_request, daemon=True)
        thread.start()
        answers: list[bytes] = []
        client = threading.Thread(target=lambda: answers.append(answer(server)))
        client.start()
        assert held.seen.wait(10)
        server.handle_request()
        client.join(10)
        assert answers == [b"HELLO"]
        held.go.set()
        if loops:
            server._BaseServer__shutdown_request = True
        thread.join(2)
        stuck = thread.is_alive()
        if stuck:
            answer(server)
    assert not stuck


def test_where_nobody_takes_any_more_a_program_may_wait_in_accept() -> None:
    with portico.TCPServer(LOOPBACK, handler) as server:
        client = threading.Thread(target=answer, args=(server,))
        client.start()
        server.handle_request()
        client.join(10)
        assert os.get_blocking(server.fileno())


def test_a_wish_to_stop_is_heard_by_each_thread_that_is_inside() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(request: Any, client_address: Any, server: Any) -> None:
        entered.set()
        release.wait(10)

    with portico.TCPServer(LOOPBACK, slow) as server:
        returned = threading.Event()

        def work() -> None:
            server.handle_request()
            server.handle_request()
            returned.set()

        busy = threading.Thread(target=work, daemon=True)
        busy.start()
        with socket.create_connection(server.server_address):
            assert entered.wait(10)
            waiting = Waiting(server)
            server.shutdown()
            assert waiting.has_returned(2)
            release.set()
            assert returned.wait(2)
        waiting = Waiting(server)  # all have heard of it
        assert not waiting.has_returned(0.05)
        server.shutdown()
        assert waiting.has_returned(2)


class Reads(portico.UDPServer):
    """Counts how often its settings are read."""

    reads = 0

    def _portico_refresh(self) -> None:
        self.reads += 1
        super()._portico_refresh()


def test_limits_are_read_for_the_first_request_and_by_configure() -> None:
    """Reading them takes longer than all the rest."""
    with Reads(LOOPBACK, handler) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        for deny, reads in ((None, 1), (["127.0.0.0/8"], 2), (["10.0.0.0/8"], 3)):
            if deny is not None:
                server.configure(deny=deny)
            for _ in range(2):
                client.send(b"x")
                server.handle_request()
                assert server.reads == reads
        assert server.stats().refused == {"deny": 2}
        assert [client.recv(10) for _ in range(4)] == [b"X"] * 4


@pytest.mark.parametrize("way", ["ThreadingTCPServer", "GreenTCPServer", "TCPServer"])
def test_limits_are_read_again_after_a_loop_and_for_another_socket(way: str) -> None:
    with getattr(portico, way)(LOOPBACK, handler) as server:
        for _ in range(2):
            with socket.create_connection(server.server_address, 10) as client:
                if server.idle_timeout is None:
                    client.sendall(b"hello")
                server.handle_request()
                assert client.recv(10) == (b"HELLO" if server.idle_timeout is None else b"")
            server.idle_timeout = 0.1
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert until(lambda: server.stats().state is State.SERVING)
            server.suspend()
            server.shutdown()
            thread.join(10)
        assert until(lambda: server.stats().ended == {"done": 1, "idle_timeout": 1})
        server.socket.close()
        server.socket = socket.create_server(LOOPBACK)
        server.server_address = server.socket.getsockname()
        server.deny = ["127.0.0.0/8"]
        with socket.create_connection(server.server_address, 10):
            server.handle_request()
        assert server.stats().refused == {"deny": 1}


def test_a_copied_loop_has_limits_read_once() -> None:
    """It calls this for each datagram, as `handle_request` does, which has read them a moment before."""
    with Reads(LOOPBACK, handler) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.server_address)
        for _ in range(2):
            client.send(b"x")
            server._handle_request_noblock()
        assert server.reads == 1

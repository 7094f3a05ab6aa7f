"""A process per request, also where there is no pidfd, no epoll, or no process to be had."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import portico
from portico._system import System
from portico.lifecycle import AcceptPaused, AcceptResumed, ConnectionEnded, EndReason, Event

from .waiting import until

LOOPBACK = ("127.0.0.1", 0)


class WithoutPidfd(System):
    def pidfd(self, pid: int) -> int | None:
        return None


class WithoutEpoll(System):
    def descriptor_set(self) -> select.epoll | None:
        return None


class WithoutEither(WithoutPidfd, WithoutEpoll):
    pass


class ShortOfProcesses(System):
    """Has none for the first so many requests."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def fork(self) -> int:
        self.failures -= 1
        if self.failures >= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return super().fork()


SYSTEMS = {"pidfd": System(), "no pidfd": WithoutPidfd(), "no epoll": WithoutEpoll(), "neither": WithoutEither()}


def obey(request: socket.socket, client_address: Any, server: Any) -> None:
    """Answer with the process's number, at once or when the client has said more."""
    if request.recv(10) == b"hold":
        request.sendall(b"held")
        request.recv(10)
    request.sendall(b"%d" % os.getpid())


def ask(server: Any) -> int:
    with socket.create_connection(server.server_address, 10) as client:
        client.sendall(b"x")
        return int(client.recv(100))


@contextmanager
def held(server: Any) -> Iterator[socket.socket]:
    """A request that runs inside the block."""
    with socket.create_connection(server.server_address, 10) as client:
        client.sendall(b"hold")
        assert client.recv(4) == b"held"
        try:
            yield client
        finally:
            client.sendall(b"go")
            assert int(client.recv(100)) != os.getpid()


@pytest.fixture(params=SYSTEMS)
def made(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return type("Mine", (portico.ForkingTCPServer,), {"_portico_system": SYSTEMS[request.param]})


def test_every_request_has_a_process_of_its_own_and_is_reaped_by_the_loop(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey).background(0.01) as server:
        pids = {ask(server) for _ in range(5)}
        assert os.getpid() not in pids
        assert len(pids) == 5
        assert until(lambda: not server.active_children)


def test_children_of_requests_at_once_are_all_reaped(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey).background(0.01) as server:
        with held(server), held(server), held(server):
            assert until(lambda: len(server.active_children) == 3)  # a child may run before the parent has noted it
        assert until(lambda: not server.active_children)


def test_a_child_left_by_an_earlier_run_is_reaped_by_the_next(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey) as server, socket.create_connection(server.server_address, 10) as client:
        client.sendall(b"hold")
        server.handle_request()
        assert client.recv(4) == b"held"
        (child,) = server.active_children
        with server.background(0.01):
            assert server.active_children == {child}
            client.sendall(b"go")
            assert int(client.recv(100)) == child
            assert until(lambda: not server.active_children)


def test_closing_waits_for_the_children(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey).background(0.01) as server, held(server):
        server.shutdown()
        closer = threading.Thread(target=server.server_close)
        closer.start()
        assert until(lambda: server.fileno() < 0)
        assert closer.is_alive()
    closer.join(10)
    assert not server.active_children


def test_closing_does_not_wait_if_told_not_to(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey, block_on_close=False) as server, held_in_turn(server) as child:
        server.server_close()
        assert server.active_children == {child}
    assert until(lambda: server.collect_children() or not server.active_children)


@contextmanager
def held_in_turn(server: Any) -> Iterator[int]:
    """`held`, by a server that handles one request by hand; the child's number."""
    with socket.create_connection(server.server_address, 10) as client:
        client.sendall(b"hold")
        server.handle_request()
        assert client.recv(4) == b"held"
        (child,) = server.active_children
        yield child
        client.sendall(b"go")
        assert int(client.recv(100)) == child


def test_at_max_children_clients_wait_in_the_backlog_and_are_served(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey, max_children=2).background(0.01) as server:
        with held(server), held(server), socket.create_connection(server.server_address, 10) as third:
            third.sendall(b"x")
            assert not server.ready_to_accept()
            assert len(server.active_children) == 2
            third.setblocking(False)
            with pytest.raises(BlockingIOError):
                third.recv(1)
        assert ask(server) != os.getpid()


def test_handle_request_at_max_children_waits_for_room(made: Callable[..., Any]) -> None:
    with made(LOOPBACK, obey, max_children=1) as server, socket.create_connection(server.server_address, 10) as client:
        client.sendall(b"x")
        server.handle_request()
        with socket.create_connection(server.server_address, 10) as second:
            second.sendall(b"x")
            server.handle_request()
            assert int(client.recv(100)) != int(second.recv(100))


def test_without_a_process_the_loop_pauses_says_so_once_and_goes_on() -> None:
    events: list[type[Event]] = []

    class Mine(portico.ForkingTCPServer):
        _portico_system = ShortOfProcesses(3)

        def handle_event(self, event: Event) -> None:
            events.append(type(event))

    with Mine(LOOPBACK, obey).background() as server:
        for _ in range(3):
            with socket.create_connection(server.server_address, 10) as refused:
                assert refused.recv(1) == b""
        assert ask(server) != os.getpid()
    assert [event for event in events if event in (AcceptPaused, AcceptResumed)] == [AcceptPaused, AcceptResumed]


def test_without_a_process_handle_request_closes_the_request_and_goes_on() -> None:
    Mine = type("Mine", (portico.ForkingTCPServer,), {"_portico_system": ShortOfProcesses(1)})
    with Mine(LOOPBACK, obey) as server, socket.create_connection(server.server_address, 10) as refused:
        server.handle_request()
        assert refused.recv(1) == b""
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"x")
            server.handle_request()
            assert int(client.recv(10)) != os.getpid()


def test_handle_timeout_and_service_actions_reap(made: Callable[..., Any]) -> None:
    for hook in ("handle_timeout", "service_actions"):
        with made(LOOPBACK, obey, timeout=0) as server:
            with socket.create_connection(server.server_address, 10) as client:
                client.sendall(b"x")
                server.handle_request()
                child = int(client.recv(10))
            assert until(lambda: Path(f"/proc/{child}/stat").read_text().split()[2] == "Z")  # noqa: B023
            getattr(server, hook)()
            assert not server.active_children


class Noting(System):
    """Keeps the exit statuses of children."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def exit_status(self, pid: int, *, block: bool = False) -> int | None:
        status = super().exit_status(pid, block=block)
        if status is not None:
            self.statuses.append(status)
        return status


class PeerHasLeft(BrokenPipeError):
    """Raised by a handler that has cut its own connection, so that the error is the connection's."""


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, 0, EndReason.DONE),
        (LookupError, 1, EndReason.FAILED),
        (SystemExit, 0, EndReason.DONE),
        (KeyboardInterrupt, 1, EndReason.FAILED),
        (PeerHasLeft, 3, EndReason.PEER_LEFT),
    ],
)
def test_a_childs_exit_status_says_how_its_request_has_ended(
    error: type[BaseException] | None, status: int, reason: EndReason, capfd: pytest.CaptureFixture[str]
) -> None:
    def handler(request: socket.socket, *_: object) -> None:
        if error is PeerHasLeft:
            request.shutdown(socket.SHUT_RDWR)
        if error is not None:
            raise error(0)

    system, events = Noting(), list[Event]()
    members = {"_portico_system": system, "handle_event": lambda self, event: events.append(event)}
    Mine = type("Mine", (portico.ForkingTCPServer,), members)
    with Mine(LOOPBACK, handler) as server, socket.create_connection(server.server_address, 10) as client:
        server.handle_request()
        assert client.recv(1) == b""
    assert system.statuses == [status]
    assert [event.connection.reason for event in events if isinstance(event, ConnectionEnded)] == [reason]


def test_a_child_runs_neither_atexit_nor_the_parents_with_blocks(tmp_path: Path) -> None:
    server = portico.ForkingTCPServer(LOOPBACK, lambda *_: None)
    client = socket.create_connection(server.server_address, 10)
    with server, client, (tmp_path / "buffered").open("w") as file:
        file.write("once ")
        server.handle_request()
        assert client.recv(1) == b""
    assert (tmp_path / "buffered").read_text() == "once "


@pytest.mark.alerts
def test_a_request_that_fails_in_the_parent_is_closed_there(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(portico.ForkingTCPServer):
        def close_request(self, request: Any) -> None:
            super().close_request(request)
            raise LookupError("in the parent")

    with Mine(LOOPBACK, obey).background() as server:
        assert ask(server) != os.getpid()
        assert ask(server) != os.getpid()


@pytest.mark.parametrize("running", [0, 1, 3])
def test_closing_from_another_thread_while_children_end_is_no_fault_of_the_loop(running: int) -> None:
    """The loop reaps in its own thread while `server_close()` waits in this one: neither may trip over the other."""
    for _ in range(30):
        with portico.ForkingTCPServer(LOOPBACK, obey).background() as server, ExitStack() as clients:
            assert ask(server) != os.getpid()
            for _ in range(running):
                clients.enter_context(held(server))
            assert until(lambda: len(server.active_children) == running)
            clients.close()
            server.server_close()
        assert not server.active_children


def test_a_server_that_never_forked_closes_like_any_other() -> None:
    server = portico.ForkingTCPServer(LOOPBACK, obey)
    server.collect_children()
    server.collect_children(blocking=True)
    server.server_close()
    assert server.active_children is None


def test_forking_leaves_one_filter_among_the_warnings_filters_however_often_it_is_done() -> None:
    def request() -> None:
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"x")
            server.handle_request()
            assert int(client.recv(100)) != os.getpid()

    with warnings.catch_warnings(), portico.ForkingTCPServer(LOOPBACK, obey) as server:
        request()
        before = len(warnings.filters)
        for _ in range(20):
            warnings.simplefilter("always")  # in front of ours, as a test's or a library's would be
            request()
        assert len(warnings.filters) == before + 1


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_what_goes_over_a_connection_that_the_child_alone_has_is_known_at_its_end() -> None:
    """And what is not known to be idle till then is not told to end: here in the middle of a line."""
    events: list[Event] = []
    Mine = type("Mine", (portico.ForkingTCPServer,), {"handle_event": lambda self, event: events.append(event)})
    with Mine(LOOPBACK, Upper).background() as server:
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"one\ntw")
            assert client.recv(10) == b"ONE\n"
            (connection,) = server.connections()
            assert (connection.bytes_in, connection.bytes_out, connection.idle) == (None, None, None)
            closing = threading.Thread(target=server.server_close)
            closing.start()
            assert until(server.is_draining)
            client.sendall(b"o\n")
            assert client.recv(10) == b"TWO\n"
            client.shutdown(socket.SHUT_WR)  # the child has a copy of this end, too
        closing.join(10)
        assert not closing.is_alive()
    assert [event.connection.reason for event in events if isinstance(event, ConnectionEnded)] == [EndReason.DONE]
    assert (server.stats().bytes_in, server.stats().bytes_out) == (8, 8)


@pytest.mark.parametrize("settings", [{}, {"access_log": "text"}], ids=str)
@pytest.mark.parametrize("how", ["close", "detach"])
def test_a_handler_that_lets_its_socket_go_has_told_what_went_over_it(how: str, settings: dict[str, Any]) -> None:
    class Hasty(portico.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())
            if how == "close":
                self.request.close()
            else:
                os.close(self.request.detach())

    ends: list[Any] = []
    members = {"handle_event": lambda self, event: ends.append(event)}
    with type("Mine", (portico.ForkingTCPServer,), members)(LOOPBACK, Hasty, **settings).background() as server:
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"hello\n")
            assert client.recv(10) == b"HELLO\n"
            assert client.recv(10) == b""
        assert until(lambda: server.stats().done == 1)
    (end,) = [event for event in ends if isinstance(event, ConnectionEnded)]
    assert (end.connection.bytes_in, end.connection.bytes_out) == (6, 6)


def test_a_unix_connection_that_is_busy_in_a_child_is_not_taken_for_idle(tmp_path: Path) -> None:
    """The kernel does not count there: the child does, in memory that its parent sees."""
    with (
        portico.ForkingUnixStreamServer(str(tmp_path / "socket"), Upper, idle_timeout=0.2).background(),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(10)
        client.connect(str(tmp_path / "socket"))
        until_then = time.monotonic() + 0.6
        while time.monotonic() < until_then:
            client.sendall(b"x\n")
            assert client.recv(10) == b"X\n"
        client.shutdown(socket.SHUT_WR)  # the child has a copy of this end, too

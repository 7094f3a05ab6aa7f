"""Every connection begins once and ends once, and all figures agree: with thousands of them, of which a tenth fault."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import portico
from portico._system import System
from portico.lifecycle import ConnectionEnded, ConnectionStarted, Refused

from .every_way import EVERY, Case, Peer, Served, serving
from .load import RESET
from .waiting import until

NUMBER = 2000
CLIENTS = 4
IDLE = 0.5
FAULTS = ("fail", "reset", "twice", "refused", "silent", "detach", "held", "kill")
EVERY_TENTH = 10
REASONS = {
    "fail": "failed", "reset": "peer_left", "twice": "done", "refused": "refused", "silent": "idle_timeout",
    "detach": "done", "held": "closed", "kill": "killed", "echo": "done",
}  # fmt: skip


async def _obeys(peer: Peer) -> None:
    said = await peer.recv(100)
    command = said.split(b" ")[0].decode()
    if command == "fail":
        raise LookupError("a bug in the handler")
    if command == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "detach":
        os.close(peer.request.detach())
        return
    if not said:  # a silent client was cut
        return
    await peer.sendall(said[::-1])
    if command == "twice":
        await peer.close()
        await peer.close()
        return
    await peer.recv(100)


def faults_of(case: Case) -> list[str]:
    """Those that there can be here."""
    impossible = {"reset" if case.way.own_process else "kill"}  # children have copies of the clients' sockets, too
    if case.streams:
        impossible.add("detach")
    if case.one_by_one:
        impossible.add("held")  # with it the server would be
    return [fault for fault in FAULTS if fault not in impossible]


class Crowd:
    """The clients: what each of them wanted, and what it has sent and got."""

    def __init__(self, case: Case, served: Served) -> None:
        self.case = case
        self.served = served
        self.faults = faults_of(case)
        self.wanted: Counter[str] = Counter()
        self.bytes: dict[Any, tuple[int, int]] = {}
        """Of those that are done: by address."""
        self.waiting: list[socket.socket] = []
        """Silent ones, and those that somebody else has to end."""
        self._lock = threading.Lock()
        self._silent = 2 if case.one_by_one else NUMBER

    def come(self, number: int) -> None:
        what = "echo"
        if number % EVERY_TENTH == 0:
            what = self.faults[number // EVERY_TENTH % len(self.faults)]
        if what == "silent" and self.wanted["silent"] >= self._silent:
            what = "echo"
        with self._lock:
            self.wanted[what] += 1
        client = self.served.connect(bound_to=self._name(what, number))
        if what in ("silent", "held"):
            with self._lock:
                self.waiting.append(client)
            if what == "held":
                client.sendall(b"held")
                assert client.recv(100) == b"dleh"
                self._cut(client.getsockname())
                assert client.recv(100) == b""
            elif self.case.one_by_one:
                assert client.recv(1) == b""
            return
        with client:
            self._say(client, what, b"%s %d" % (what.encode(), number))

    def _cut(self, name: Any) -> None:
        """As an operator would."""
        (connection,) = [one for one in self.served.server.connections() if one.client_address == name]
        connection.close()

    def _name(self, what: str, number: int) -> Any:
        if self.case.is_unix:
            return b"\0portico %d %d %s" % (os.getpid(), number, what.encode())
        return ("127.0.0.2" if what == "refused" else "127.0.0.1", 0)

    def _say(self, client: socket.socket, what: str, said: bytes) -> None:
        name = client.getsockname()
        with suppress(OSError):  # some are turned away
            client.sendall(said)
            got = 0
            if what == "reset":
                assert client.recv(1, socket.MSG_PEEK)  # left unread: a Unix socket tells of that as of a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            if what == "echo":
                while got < len(said) and (data := client.recv(100)):
                    got += len(data)
                with self._lock:
                    self.bytes[name] = len(said), got
                client.shutdown(socket.SHUT_WR)
            while client.recv(100):
                pass


@contextmanager
def crowded(case: Case, number: int) -> Iterator[tuple[Served, Crowd]]:
    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return not (client_address[0] == "127.0.0.2" or (case.is_unix and client_address.endswith(b" refused")))

    # Of a Unix socket a child has to have read what was sent before that is known: on a busy machine, after a while.
    idle = 4 * IDLE if case.way.own_process else IDLE
    limits: dict[str, Any] = {"idle_timeout": idle, "request_queue_size": 128}
    with serving(case, _obeys, {"verify_request": verify_request}, **limits) as served:
        crowd = Crowd(case, served)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(crowd.come, range(number)))
        try:
            yield served, crowd
        finally:
            for client in crowd.waiting:
                client.close()


def check_that_all_agree(served: Served, number: int) -> None:
    started = [event.connection.id for event in served.of_kind(ConnectionStarted)]
    ended = [event.connection.id for event in served.of_kind(ConnectionEnded)]
    assert sorted(started) == sorted(ended) == list(range(1, number + 1))
    began: set[int] = set()
    for event in list(served.events):
        if type(event) is ConnectionStarted:
            began.add(event.connection.id)
        elif type(event) is ConnectionEnded:
            assert event.connection.id in began
            assert event.connection.state == "ended"
    stats = served.server.stats()
    assert (stats.accepted, stats.active, stats.done + stats.failed) == (number, 0, number)
    assert sum(stats.ended.values()) == sum(count for _, count in stats.durations) == number
    assert stats.ended == Counter(connection.reason.value for connection in served.ends() if connection.reason)
    assert stats.failed == stats.ended.get("failed", 0) + stats.ended.get("killed", 0)
    assert stats.timed_out["idle_timeout"] == stats.ended.get("idle_timeout", 0)
    refused = [event.reason for event in served.of_kind(Refused)]
    assert stats.refused == Counter(refused)
    assert stats.bytes_in == sum(connection.bytes_in or 0 for connection in served.ends())
    assert stats.bytes_out == sum(connection.bytes_out or 0 for connection in served.ends())
    assert served.server.connections() == []


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_connection_begins_and_ends_once(case: Case) -> None:
    many = not (case.is_unix or case.one_by_one or case.way.own_process or case.way.name == "green-uvloop")
    number = NUMBER if many else NUMBER // 5
    with crowded(case, number) as (served, crowd):
        assert until(lambda: len(served.ends()) == number), (served.server.connections()[:5], crowd.wanted)
        check_that_all_agree(served, number)
        expected: Counter[str] = Counter()
        for what, count in crowd.wanted.items():
            expected[REASONS[what]] += count
        assert Counter(served.reasons(number)) == expected
        assert len(served.of_kind(Refused)) == crowd.wanted["refused"]
        used = Counter(connection.client_address for connection in served.ends())
        for connection in served.ends():
            known = crowd.bytes.get(connection.client_address)
            if known is not None and used[connection.client_address] == 1:  # ports are used again
                assert (connection.bytes_in, connection.bytes_out) == known


@pytest.mark.parametrize("streams", [False, True], ids=["socket", "streams"])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_bytes_are_those_that_were_sent_even_if_they_wait_to_be_read(streams: bool, size: int) -> None:
    async def answers(peer: Peer) -> None:
        await peer.recv(100)
        await peer.sendall(bytes(size))

    for case in EVERY:
        if case.way.own_process or case.streams != streams:
            continue
        with serving(case, answers) as served, served.connect() as client:
            client.sendall(b"12345")
            assert client.recv(1)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as rest:
                assert len(rest.read()) == size - 1
            assert served.reasons() == ["done"], case
            (connection,) = served.ends()
            assert (connection.bytes_in, connection.bytes_out) == (5, size), case
            stats = served.server.stats()
            assert (stats.bytes_in, stats.bytes_out) == (5, size)


# -- no thread, no process


class NoFork(System):
    def fork(self) -> int:
        raise BlockingIOError("no process to be had")


@contextmanager
def no_thread_can_start() -> Iterator[None]:
    """A stack that there is no room for: what starting a thread then says is what it says when there are too many."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("case", [case for case in EVERY if case.way.name == "thread"], ids=str)
def test_a_thread_that_cannot_be_started(case: Case, reuse: bool) -> None:
    with serving(case, _obeys, reuse_threads=reuse, accept_pause=0.01) as served:
        with no_thread_can_start(), served.connect() as client:
            with suppress(ConnectionError):
                assert client.recv(1) == b""
            assert served.reasons() == ["overloaded"]
        with served.connect() as client:
            client.sendall(b"echo")
            assert client.recv(10) == b"ohce"
        assert sorted(served.reasons(2)) == ["done", "overloaded"]
        check_that_all_agree(served, 2)
        assert served.server.stats().refused == {"overloaded": 1}


@pytest.mark.parametrize("case", [case for case in EVERY if case.way.own_process], ids=str)
def test_a_process_that_cannot_be_had(case: Case) -> None:
    with serving(case, _obeys, {"_portico_system": NoFork()}, accept_pause=0.01) as served:
        with served.connect() as client:
            with suppress(ConnectionError):
                assert client.recv(1) == b""
            assert served.reasons() == ["overloaded"]
        check_that_all_agree(served, 1)
        assert served.server.stats().refused == {"overloaded": 1}


@pytest.mark.parametrize("case", [case for case in EVERY if case.way.own_process], ids=str)
def test_a_child_that_is_killed(case: Case) -> None:
    """Over Unix sockets, too, of which nothing else is known."""
    with serving(case, _obeys) as served, served.connect() as client:
        client.sendall(b"kill")
        with suppress(ConnectionError):
            assert client.recv(1) == b""
        assert served.reasons() == ["killed"]
        check_that_all_agree(served, 1)
        assert served.server.stats().failed == 1


@pytest.mark.parametrize("hook", ["verify_request", "process_request", "finish_request"])
@pytest.mark.parametrize("case", [case for case in EVERY if case.way.name in ("plain", "thread", "async")], ids=str)
def test_a_hook_that_raises_fails_its_connection(case: Case, hook: str) -> None:
    def raises(*_: Any) -> Any:
        raise LookupError("a bug in a hook")

    with serving(case, _obeys, {hook: raises}) as served, served.connect() as client:
        with suppress(ConnectionError):
            assert client.recv(1) == b""
        assert served.reasons() == ["failed"]
        check_that_all_agree(served, 1)


def test_a_connection_whose_process_request_is_somebody_elses_ends_when_it_closes() -> None:
    kept: list[Any] = []
    events: list[Any] = []

    class Server(portico.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            kept.append(request)

        def handle_event(self, event: Any) -> None:
            events.append(event)

    with (
        Server(("127.0.0.1", 0), portico.BaseRequestHandler) as server,
        server.background(),
        socket.create_connection(server.server_address) as client,
    ):
        client.sendall(b"12345")
        assert until(lambda: kept)
        assert kept[0].recv(10) == b"12345"
        assert [connection.bytes_in for connection in server.connections()] == [5]
        assert not any(type(event) is ConnectionEnded for event in events)
        kept.pop().close()
        (ended,) = [event.connection for event in events if type(event) is ConnectionEnded]
        assert ended.reason.value == "done"
        assert server.stats().active == 0


@pytest.mark.parametrize("case", [case for case in EVERY if not case.is_unix], ids=str)
def test_a_handler_that_has_closed_its_socket_is_not_over_yet(case: Case) -> None:
    """It may fail after that; until then its connection is there, and counts."""

    async def closes_and_fails(peer: Peer) -> None:
        await peer.recv(100)
        await peer.close()
        if not case.way.own_process:
            (connection,) = peer.handler.server.connections()
            peer.note(f"{connection.state} {peer.handler.server.stats().active}")
        raise LookupError("a bug in the handler")

    with serving(case, closes_and_fails) as served, served.connect() as client:
        client.sendall(b"hello")
        assert client.recv(1) == b""
        assert served.reasons() == ["failed"]
        if not case.way.own_process:
            assert "open 1" in served.notes()
        check_that_all_agree(served, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_program_may_run_ours_in_a_thread_of_its_own(fails: bool) -> None:
    """Then the connection is over when that has returned, or raised, if its handler has closed the socket."""
    events: list[Any] = []
    threads: list[threading.Thread] = []

    class Server(portico.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            def run() -> None:
                with suppress(LookupError):
                    super(Server, self).process_request(request, client_address)

            threads.append(threading.Thread(target=run))
            threads[0].start()

        def handle_event(self, event: Any) -> None:
            events.append(event)

    def handler(request: Any, client_address: Any, server: Any) -> None:
        request.recv(10)
        request.close()
        (connection,) = server.connections()
        assert connection.state == "open"
        if fails:
            raise LookupError("a bug in the handler")

    with (
        Server(("127.0.0.1", 0), handler) as server,
        server.background(),
        socket.create_connection(server.server_address) as client,
    ):
        client.sendall(b"hello")
        assert client.recv(1) == b""
        assert until(lambda: any(type(event) is ConnectionEnded for event in events))
        (ended,) = [event.connection for event in events if type(event) is ConnectionEnded]
        assert ended.reason.value == ("failed" if fails else "done")
        threads[0].join(10)


def test_a_request_that_is_not_closed_when_its_handler_is_done_ends_when_it_closes() -> None:
    """As where a handler has given it to somebody else, and `shutdown_request` leaves it open for him."""
    kept: list[Any] = []

    class Server(portico.TCPServer):
        def shutdown_request(self, request: Any) -> None:
            kept.append(request)

    with (
        Server(("127.0.0.1", 0), portico.BaseRequestHandler) as server,
        server.background(),
        socket.create_connection(server.server_address) as client,
    ):
        assert until(lambda: kept)
        assert len(server.connections()) == 1
        kept[0].sendall(b"later")
        assert client.recv(10) == b"later"
        kept.pop().close()
        assert server.stats().done == 1

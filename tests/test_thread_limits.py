"""How many threads there are, and threads that serve one request after the other."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any

import pytest

import portico
from portico.lifecycle import HookFailed, State

from .contract.flavours import looping
from .crowds import EVERY_KIND, PATIENCE, Crowd, Door, Room, Scene, scene, server_class
from .loops import LOOPBACK, ask
from .waiting import until

BOTH = pytest.mark.parametrize("way", ["threads", "reused"])


class Named(Room):
    """Notes which thread serves it."""

    def handle(self) -> None:
        self.server.served.append(threading.get_ident())
        super().handle()


class Threads:
    """Members of a server that notes its threads' beginnings and ends."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.finished: list[int] = []
        self.served: list[int] = []

    def members(self, **more: Any) -> dict[str, Any]:
        return {
            "served": self.served,
            "thread_started": lambda server: self.started.append(threading.get_ident()),
            "thread_finished": lambda server: self.finished.append(threading.get_ident()),
            **more,
        }

    @property
    def running(self) -> int:
        return len(self.started) - len(self.finished)


@contextmanager
def threads_scene(way: str, kind: str = "tcp", **values: Any) -> Iterator[tuple[Scene, Threads]]:
    threads = Threads()
    more = values.pop("members", {})
    with scene(way, kind, handler=Named, members=threads.members(**more), **values) as s:
        yield s, threads
    assert until(lambda: not threads.running)


def one_after_the_other(s: Scene, number: int) -> None:
    """So many clients, each when the last one's thread is free again."""
    for _ in range(number):
        s.crowd.come()
        s.crowd.leave(s.crowd.inside(1))
        assert s.empty()
        workers = s.server._portico_workers
        assert until(lambda: not workers.busy)  # noqa: B023


# -- so many threads


@EVERY_KIND
@BOTH
def test_never_more_threads_than_that_and_clients_wait(way: str, kind: str) -> None:
    with threads_scene(way, kind, max_threads=4) as (s, threads):
        for _ in range(5):
            s.crowd.come(10)
            s.crowd.leave(s.crowd.inside(4))
            assert threads.running <= 4
            s.crowd.leave(s.crowd.inside(4))
            s.crowd.leave(s.crowd.inside(2))
        assert s.empty()
        assert s.door.peak() == 4
        assert s.server.stats().accepted == 50
        assert s.server.stats().refused == {}


@BOTH
def test_the_number_of_threads_changes_while_the_server_runs(way: str) -> None:
    with threads_scene(way) as (s, _):
        s.crowd.come(3)
        s.crowd.inside(3)
        s.server.configure(max_threads=3)
        s.crowd.come(4)
        s.crowd.leave(s.crowd.inside(3)[:1])
        s.crowd.inside(3)
        s.server.configure(max_threads=4)
        s.crowd.inside(4)
        assert s.door.peak() == 4
        s.server.configure(max_threads=None)
        s.crowd.inside(6)


@BOTH
def test_connections_and_threads_are_limited_together(way: str) -> None:
    with threads_scene(way, max_threads=4, max_connections=2) as (s, _):
        s.crowd.come(6)
        s.crowd.inside(2)
        s.server.configure(max_connections=5)
        s.crowd.inside(4)
        s.crowd.leave(s.crowd.inside(4))
        s.crowd.inside(2)
        assert s.door.peak() == 4


@BOTH
def test_a_thread_counts_until_its_last_hook_has_run(way: str) -> None:
    gate = threading.Event()
    events: list[str] = []

    def finished(server: Any) -> None:
        assert gate.wait(PATIENCE)
        events.append("finished")

    values: dict[str, Any] = {"requests_per_thread": 1} if way == "reused" else {}
    with scene(way, max_threads=1, members={"thread_finished": finished}, **values) as s:
        s.crowd.come(2)
        s.crowd.leave(s.crowd.inside(1))
        assert until(lambda: s.server.stats().active == 0)
        assert s.server.stats().accepted == 1
        assert s.door.steps() == [1, -1]
        gate.set()
        s.crowd.inside(1)
        assert events == ["finished"]


@pytest.mark.parametrize("daemon", [False, True])
@BOTH
def test_datagrams_and_daemons_count_as_well(way: str, daemon: bool) -> None:
    gate = threading.Semaphore(0)
    inside: list[int] = []
    peak: list[int] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        inside.append(1)
        peak.append(len(inside))
        assert gate.acquire(timeout=PATIENCE)
        inside.pop()
        request[1].sendto(request[0], client_address)

    made = server_class(way, "udp")
    with made(LOOPBACK, handle, max_threads=2, daemon_threads=daemon).background() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            for number in range(6):
                client.sendto(b"%d" % number, server.server_address)
            assert until(lambda: len(inside) == 2)
            answers = set()
            for _ in range(6):
                gate.release()
                answers.add(client.recv(10))
        assert answers == {b"%d" % number for number in range(6)}
        assert max(peak) == 2


@BOTH
def test_handle_request_waits_for_a_thread(way: str) -> None:
    door = Door()
    with server_class(way, door=door.theirs)(LOOPBACK, Room, max_threads=1, timeout=PATIENCE) as server:
        crowd = Crowd(server.server_address)
        crowd.come(2)
        server.handle_request()
        crowd.inside(1)[0].send(b"x")
        server.handle_request()
        crowd.inside(1)
        assert door.steps() == [1, -1, 1]
        crowd.leave()
    door.close()


# -- one request after the other


@EVERY_KIND
def test_the_same_threads_serve_many_requests(kind: str) -> None:
    with threads_scene("reused", kind) as (s, threads):
        one_after_the_other(s, 8)
        assert len(threads.served) == 8
        assert set(threads.served) == set(threads.started)
        assert len(threads.started) == 1
        assert not threads.finished
        s.crowd.come(3)
        s.crowd.inside(3)
        assert len(threads.started) == 3
        assert threads.started[0] in threads.served[8:]
    assert sorted(threads.started) == sorted(threads.finished)


def test_without_reuse_each_request_has_a_thread_and_its_hooks() -> None:
    with threads_scene("threads") as (s, threads):
        for number in range(1, 4):
            s.crowd.come()
            s.crowd.leave(s.crowd.inside(1))
            assert until(lambda: len(threads.finished) == number)  # noqa: B023
    assert len(threads.started) == len(threads.finished) == 3


def test_re_used_threads_are_named_as_all_request_threads() -> None:
    names: list[str] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        names.append(threading.current_thread().name)

    with server_class("reused")(LOOPBACK, handle).background() as server:
        assert ask(server) == b""
    assert names[0].startswith("Thread-")
    assert names[0].endswith(" (process_request_thread)")


def test_a_thread_ends_after_its_share_of_requests() -> None:
    with threads_scene("reused", requests_per_thread=3) as (s, threads):
        one_after_the_other(s, 9)
        assert until(lambda: len(threads.finished) == 3)
    assert [threads.served.count(thread) for thread in dict.fromkeys(threads.started)].count(0) == 0
    assert len(threads.started) == 3


def test_a_share_is_up_to_a_tenth_smaller_so_that_not_all_end_at_once() -> None:
    with threads_scene("reused", requests_per_thread=20) as (s, threads):
        one_after_the_other(s, 17)
        assert len(threads.started) == 1
        one_after_the_other(s, 4)
        assert len(threads.started) == 2


def test_threads_that_nobody_needs_end() -> None:
    with threads_scene("reused", thread_idle_timeout=0.05) as (s, threads):
        s.crowd.come(3)
        s.crowd.inside(3)
        began = monotonic()
        s.crowd.leave()
        assert until(lambda: len(threads.finished) == 3)
        assert monotonic() - began >= 0.05
        s.crowd.come(2)
        s.crowd.inside(2)
        assert len(threads.started) == 5


def test_threads_that_end_at_once_serve_all_the_same() -> None:
    """The next request comes just when a thread gives up waiting for it."""
    with threads_scene("reused", thread_idle_timeout=0, max_threads=2) as (s, threads):
        for _ in range(30):
            s.crowd.come(3)
            for number in (2, 1):
                s.crowd.leave(s.crowd.inside(number))
        assert s.empty()
        assert len(threads.served) == 90
        assert s.door.peak() == 2


@pytest.mark.parametrize("hook", ["thread_started", "thread_finished"])
@BOTH
def test_a_hook_that_raises_is_told_of_and_the_request_served(way: str, hook: str) -> None:
    def fail(server: Any) -> None:
        raise LookupError(hook)

    with scene(way, members={hook: fail}) as s:
        for _ in range(2):
            s.crowd.come()
            s.crowd.leave(s.crowd.inside(1))
            assert s.empty()
    told = [(event.hook, str(event.error)) for event in s.told(HookFailed)]
    assert told
    assert set(told) == {(hook, hook)}
    if way == "threads":
        assert len(told) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@BOTH
def test_a_handler_that_fails_or_exits_costs_no_thread(way: str) -> None:
    def handle(request: Any, client_address: Any, server: Any) -> None:
        raise {b"f": LookupError, b"e": SystemExit}[request.recv(1)]

    errors: list[Any] = []
    members = {"handle_error": lambda self, request, client_address: errors.append(client_address)}
    with scene(way, handler=handle, members=members, max_threads=2, max_connections=2) as s:
        for word in (b"f", b"e") * 4:
            (client,) = s.crowd.come()
            client.send(word)
            s.crowd.turned_away(1)
            s.crowd.leave()
        assert until(lambda: s.server.stats().active == 0)
        assert len(errors) == 4


def test_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    threads = Threads()
    server = server_class("reused", **threads.members())(LOOPBACK, lambda *_: None)
    with server.background():
        clients = [socket.create_connection(server.server_address, PATIENCE) for _ in range(5)]
        for client in clients:
            with client:
                assert client.recv(1) == b""
        assert threads.running > 0
        server.server_close()
        assert not threads.running
        assert not [t for t in threading.enumerate() if t not in before and "process_request" in t.name]


def test_a_request_may_close_its_server() -> None:
    def handle(request: Any, client_address: Any, server: Any) -> None:
        server.server_close()
        request.sendall(b"closed")

    with server_class("reused")(LOOPBACK, handle).background() as server:
        assert ask(server) == b"closed"
        assert until(lambda: server.stats().state is State.CLOSED)


def test_threads_that_wait_end_with_the_loop_so_that_the_process_may_end() -> None:
    threads = Threads()
    door = Door()
    with server_class("reused", door=door.theirs, **threads.members())(LOOPBACK, Named) as server:
        for _ in range(3):
            with looping(server):
                crowd = Crowd(server.server_address)
                crowd.come(2)
                crowd.inside(2)
                crowd.leave()
                assert until(lambda: not server._portico_workers.busy)
            assert until(lambda: not threads.running)
        assert len(threads.started) == 6
        assert len(threads.served) == 6
    assert not threads.running
    door.close()


def test_a_request_that_runs_when_serving_stops_comes_to_its_end() -> None:
    threads = Threads()
    door = Door()
    with server_class("reused", door=door.theirs, **threads.members())(LOOPBACK, Named) as server:
        crowd = Crowd(server.server_address)
        with looping(server):
            crowd.come(1)
            crowd.inside(1)
        assert door.steps() == [1]
        with looping(server):
            crowd.leave()
            assert until(lambda: door.steps() == [1, -1])
    door.close()


@pytest.mark.parametrize("daemon", [False, True])
def test_daemon_threads_says_what_re_used_threads_are(daemon: bool) -> None:
    found: list[bool] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        found.append(threading.current_thread().daemon)

    with portico.ThreadingTCPServer(LOOPBACK, handle, reuse_threads=True, daemon_threads=daemon).background() as server:
        assert ask(server) == b""
    assert found == [daemon]


def test_closing_does_not_wait_for_daemons_and_they_end_by_themselves() -> None:
    door = Door()
    made = server_class("reused", door=door.theirs)
    server = made(LOOPBACK, Room, daemon_threads=True)
    crowd = Crowd(server.server_address)
    with looping(server):
        crowd.come(1)
        crowd.inside(1)
        (connection,) = server.connections()
    thread = connection.runner
    assert isinstance(thread, threading.Thread)
    server.server_close()
    crowd.leave()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    door.close()


def test_a_request_sees_the_context_of_whoever_started_the_server_and_none_of_the_last_request() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        seen.append(user.get())
        user.set("the last one")

    user.set("the starter")
    with server_class("reused")(LOOPBACK, handle).background() as server:
        for _ in range(3):
            assert ask(server) == b""
            assert until(lambda: not server._portico_workers.busy)
    assert seen == ["the starter"] * 3


def test_what_is_thread_local_outlives_a_request() -> None:
    local = threading.local()
    seen: list[int] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        local.number = getattr(local, "number", 0) + 1
        seen.append(local.number)

    with server_class("reused")(LOOPBACK, handle).background() as server:
        for _ in range(3):
            assert ask(server) == b""
            assert until(lambda: not server._portico_workers.busy)
    assert seen == [1, 2, 3]


def test_requests_are_not_kept_alive_by_the_thread_that_served_them() -> None:
    kept: list[Any] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        kept.append(weakref.ref(request))

    with server_class("reused")(LOOPBACK, handle).background() as server:
        assert ask(server) == b""
        assert until(lambda: kept[0]() is None)
        assert len(server._portico_workers.threads) == 1

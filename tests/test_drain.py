"""The end of a server, for all ways to run: who is waited for, who is told, who is cut, when, and what is said."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from portico.lifecycle import (
    ConnectionEnded,
    ConnectionStarted,
    Drained,
    DrainWaiting,
    EndReason,
    HookFailed,
    State,
    StateChanged,
)

from .draining import MUCH, WAYS, Client, Draining, Way, clients, refuses, serving, settled
from .waiting import until

LATE = 0.15
"""Seconds that a busy machine may add to what is due at once, or at a deadline."""
CUT_IN = 0.05
"""Seconds between a cut and the report of it, at the most: the handlers' last words."""
STREAMS = ["tcp", "unix"]

by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
on_streams = pytest.mark.parametrize("stream", STREAMS)


def knows_idle(way: Way, stream: str, handler: str) -> bool:
    """Whether this server can tell who is idle. A parent only if it keeps its copy of the connection."""
    return not way.forks or handler.endswith(("Bye", "Fails", "Blocks"))


class Make:
    """`make(way, handler)`: a server that serves until the test is over."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def bound(self, way: Way, handler: str, stream: str = "tcp", **values: Any) -> Any:
        kind, folder = ("TCPServer", None) if stream == "tcp" else ("UnixStreamServer", self._folder)
        server = way.made(handler, kind, folder, **values)
        self._stack.callback(server.server_close)
        return server

    def __call__(self, way: Way, handler: str, stream: str = "tcp", **values: Any) -> Any:
        return self._stack.enter_context(serving(self.bound(way, handler, stream, **values)))

    def client(self, server: Any, **values: Any) -> Client:
        return self._stack.enter_context(Client(server, **values))

    def drain(self, server: Any, *timeout: float | None) -> Draining:
        return Draining(server, *timeout)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Make(stack, tmp_path)


def heard(server: Any, number: int) -> bool:
    """Whether so many bytes have come; where only the handler's process knows, one has to believe it."""
    every = [connection.bytes_in for connection in server.connections()]
    return bool(every) and all(known is None or known >= number for known in every)


def in_flight(make: Make, server: Any) -> Client:
    """A client whose request has begun: half of it has come, and nothing has been said to that."""
    number = len(server.connections())
    client = make.client(server)
    client.say(b"half")
    assert until(lambda: len(server.connections()) > number and heard(server, 4))
    return client


def with_deaf(make: Make, server: Any) -> Client:
    """A client whose handler has stopped listening, in the middle of a request."""
    client = make.client(server)
    assert client.line() == b"here\n"
    assert until(lambda: settled(server))
    client.say(b"x")
    return client


# -- who is waited for


@by_way
@on_streams
@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_request_in_flight_finishes(make: Make, way: Way, stream: str, timeout: float | None) -> None:
    server = make(way, "Echo", stream)
    client = in_flight(make, server)
    drain = make.drain(server, timeout)
    assert until(lambda: refuses(server), 0.1 + LATE)
    assert time.monotonic() - drain.began < 0.1 + LATE
    assert server.is_draining()
    client.say(b" and half\n")
    assert client.line() == b"HALF AND HALF\n"
    if way.forks:
        client.end()  # whether it is idle knows the child only
    assert client.rest() == b""
    report = drain.report()
    assert (report.goodbyes, report.cut, report.stuck, report.clean) == (0, [], [], True)
    assert report.finished == len(server.told(ConnectionEnded))  # a try to connect may have come in time
    assert 0 < report.seconds <= drain.lasted < 1
    assert server.connections() == []


@by_way
@on_streams
def test_an_answer_arrives_whole(make: Make, way: Way, stream: str) -> None:
    """Its writing has begun: the connection counts as idle, and may be told to end, under the writer's hands."""
    server = make(way, "Much", stream)
    with ExitStack() as stack:
        client = stack.enter_context(Client(server, receive_buffer=1 << 14))
        client.say(b"line\n")
        assert client.sock.recv(5) == b"LINE\n"
        drain = make.drain(server)
        assert until(lambda: refuses(server), 1)
        assert drain.is_alive()
        assert client.rest() == b"LINE\n" * (MUCH - 1)
        assert drain.report().clean


@by_way
@on_streams
@pytest.mark.parametrize("said", [b"", b"line\n"], ids=["new", "answered"])
def test_an_idle_connection_is_closed_at_once(make: Make, way: Way, stream: str, said: bytes) -> None:
    handler = "EchoBye" if way.forks else "Echo"
    if not knows_idle(way, stream, handler):
        pytest.skip("only the child knows")
    server = make(way, handler, stream)
    client = make.client(server)
    assert not said or client.ask(said) == said.upper()
    assert until(lambda: len(server.connections()) == 1)
    assert not said or until(lambda: settled(server))
    drain = make.drain(server)
    assert client.rest() == (b"bye\n" if way.forks else b"")
    assert client.ended - drain.began < LATE
    report = drain.report()
    assert (report.finished, report.goodbyes, report.clean) == (1, int(way.forks), True)
    assert drain.lasted < LATE * 2
    [ended] = server.told(ConnectionEnded)
    assert ended.connection.reason is EndReason.DRAINED


@by_way
def test_one_that_becomes_idle_is_closed_then(make: Make, way: Way) -> None:
    server = make(way, "EchoBye")
    client = in_flight(make, server)
    drain = make.drain(server)
    assert until(lambda: refuses(server), 1)
    assert drain.is_alive()
    client.say(b"\n")
    assert client.line() == b"HALF\n"
    answered = time.monotonic()
    assert client.rest() == b"bye\n"
    assert client.ended - answered < LATE * 2  # what it is, is looked at every 50 ms
    assert drain.report().goodbyes == 1


@by_way
@pytest.mark.parametrize("timeout", [0, 0.2])
def test_one_that_does_not_end_in_time_is_cut(make: Make, way: Way, timeout: float) -> None:
    server = make(way, "Echo")
    client = in_flight(make, server)
    [connection] = server.connections()
    drain = make.drain(server, timeout)
    assert client.rest() == b""
    assert timeout - 0.001 <= client.ended - drain.began < timeout + LATE
    report = drain.report()
    assert (report.finished, report.cut, report.stuck, report.clean) == (0, [connection], [], False)
    assert timeout - 0.001 <= report.seconds < timeout + CUT_IN + LATE
    assert connection.reason is EndReason.CUT
    assert server.stats().ended == {"cut": 1}


# -- goodbyes


@by_way
@on_streams
def test_goodbye_arrives_before_the_end(make: Make, way: Way, stream: str) -> None:
    if not knows_idle(way, stream, "EchoBye"):
        pytest.skip("only the child knows")
    server = make(way, "EchoBye", stream)
    number = 1 if not way.waits else 3
    with clients(server, number) as found:
        assert [client.ask(b"line\n") for client in found] == [b"LINE\n"] * number
        drain = make.drain(server)
        assert [client.rest() for client in found] == [b"bye\n"] * number
        report = drain.report()
    assert (report.finished, report.goodbyes, report.clean) == (number, number, True)
    assert drain.lasted < LATE * 3


@by_way
def test_a_goodbye_that_raises_is_told_of_and_is_the_end_all_the_same(make: Make, way: Way) -> None:
    server = make(way, "EchoFails")
    client = make.client(server)
    assert client.ask(b"line\n") == b"LINE\n"
    drain = make.drain(server)
    assert client.rest() == b""
    assert drain.report().clean
    if not way.forks:  # told in the child
        assert [(event.hook, type(event.error)) for event in server.told(HookFailed)] == [("goodbye", LookupError)]


@by_way
def test_a_goodbye_that_nobody_reads_holds_nobody_up(make: Make, way: Way) -> None:
    server = make(way, "EchoBlocks")
    client = make.client(server, receive_buffer=1 << 12)
    assert client.ask(b"line\n") == b"LINE\n"
    drain = make.drain(server, 0.3)
    report = drain.report()
    assert 0.3 <= drain.lasted < 0.3 + CUT_IN + LATE * 2
    assert (report.finished, len(report.cut), report.stuck) == (0, 1, [])
    assert set(client.rest()) <= set(b"bye\n")


@by_way
def test_goodbyes_wait_for_their_turn_but_not_for_ever(make: Make, way: Way) -> None:
    """One peer that does not read keeps no other one from its goodbye, whatever the deadline."""
    if not way.waits:
        pytest.skip("one connection at a time")
    server = make(way, "EchoBlocks")
    deaf = make.client(server, receive_buffer=1 << 12)
    assert deaf.ask(b"line\n") == b"LINE\n"
    polite = make.client(server)
    assert polite.ask(b"line\n") == b"LINE\n"
    drain = make.drain(server, 3.0)
    assert polite.rest() == b"bye\n" * MUCH
    assert polite.ended - drain.began < 2
    deaf.rest()
    drain.report()


# -- the deadline


def styles(way: Way) -> list[str]:
    return ["Sleeps", "Catches", "Holds"] if way.on_loop else ["Sleeps", "Catches"]


def deaf(ways: list[Way]) -> list[Any]:
    return [pytest.param(way, style, id=f"{way.name}-{style}") for way in ways for style in styles(way)]


DEAF = deaf(WAYS)


def stays(way: Way, style: str) -> bool:
    """Whether a cut does not end such a handler."""
    return not way.forks and not (way.on_loop and style == "Sleeps")


@pytest.mark.parametrize("timeout", [0, 0.2])
@pytest.mark.parametrize(("way", "style"), DEAF)
def test_at_the_deadline_clients_see_the_end(make: Make, way: Way, style: str, timeout: float) -> None:
    server = make(way, style)
    client = with_deaf(make, server)
    [connection] = server.connections()
    drain = make.drain(server, timeout)
    assert client.rest() == b""
    assert timeout - 0.001 <= client.ended - drain.began < timeout + LATE
    report = drain.report()
    assert timeout - 0.001 <= report.seconds < timeout + CUT_IN + LATE
    assert (report.finished, report.cut, report.clean) == (0, [connection], False)
    assert len(report.stuck) == stays(way, style)
    for stuck, stack in report.stuck:
        assert stuck is connection
        assert "in ignore_the_world" in stack
    assert connection.reason is EndReason.CUT


@by_way
@on_streams
def test_an_idle_one_that_does_not_listen_is_cut_at_the_deadline(make: Make, way: Way, stream: str) -> None:
    """It has been told to end, and did not."""
    server = make(way, "SleepsBye", stream)
    client = make.client(server)
    assert client.line() == b"here\n"
    [connection] = server.connections()
    drain = make.drain(server, 0.2)
    said = knows_idle(way, stream, "SleepsBye")
    assert client.rest() == b"bye\n" * said
    assert 0.2 <= client.ended - drain.began < 0.2 + LATE
    report = drain.report()
    assert (report.finished, report.goodbyes, report.cut) == (0, int(said), [connection])
    assert len(report.stuck) == stays(way, "Sleeps")
    assert connection.reason is EndReason.CUT


@by_way
def test_without_a_deadline_it_waits_and_says_for_whom(make: Make, way: Way) -> None:
    server = make(way, "Catches")
    client = with_deaf(make, server)
    [connection] = server.connections()
    drain = make.drain(server, None)
    assert until(lambda: server.told(DrainWaiting), 3)
    assert 1 <= time.monotonic() - drain.began < 1 + LATE * 2
    assert drain.is_alive()
    [event] = server.told(DrainWaiting)
    [(waiting, stack)] = event.waiting
    assert waiting is connection
    assert 1 <= event.seconds < 1 + LATE * 2
    assert ("process" if way.forks else "in ignore_the_world") in stack
    server.release.set()
    report = drain.report()
    assert report.finished == 1
    assert report.clean
    client.rest()


@by_way
def test_the_report_tells_who_finished_from_who_was_cut(make: Make, way: Way) -> None:
    if not way.waits:
        pytest.skip("one connection at a time")
    server = make(way, "EchoBye")
    with clients(server, 3) as found:
        assert [client.ask(b"line\n") for client in found] == [b"LINE\n"] * 3
        assert until(lambda: settled(server))
        busy = in_flight(make, server)
        drain = make.drain(server, 0.2)
        assert [client.rest() for client in found] == [b"bye\n"] * 3
        assert busy.rest() == b""
        report = drain.report()
    assert (report.finished, report.goodbyes, len(report.cut), report.stuck) == (3, 3, 1, [])
    assert [event.report for event in server.told(Drained)] == [report]


# -- spread, and clients that keep coming


@by_way
def test_idle_connections_are_closed_evenly(make: Make, way: Way) -> None:
    if not way.waits:
        pytest.skip("one connection at a time")
    number, spread = (20 if way.forks else 100), 0.5
    server = make(way, "EchoBye", drain_spread=spread, request_queue_size=128)
    ended: list[float] = []
    with clients(server, number) as found, selectors.DefaultSelector() as selector:
        assert [client.ask(b"line\n") for client in found] == [b"LINE\n"] * number
        assert until(lambda: settled(server))
        for client in found:
            selector.register(client.sock, selectors.EVENT_READ)
        drain = make.drain(server)
        while len(ended) < number and (ready := selector.select(5)):
            for key, _ in ready:
                ended.append(time.monotonic() - drain.began)
                selector.unregister(key.fileobj)
        assert [client.rest() for client in found] == [b"bye\n"] * number
        report = drain.report()
    assert (report.finished, report.goodbyes, report.clean) == (number, number, True)
    assert len(ended) == number
    assert spread * 0.7 < ended[-1] < spread + LATE
    for tenth in range(1, 10):
        due = number * tenth / 10
        closed = sum(at <= spread * tenth / 10 for at in ended)
        assert closed <= due + number * 0.1 + 1, tenth  # never many more than are due
        late = sum(at <= spread * tenth / 10 + LATE for at in ended)
        assert late >= due - number * 0.1, tenth  # nor many fewer


@by_way
def test_while_clients_keep_coming_each_is_served_or_refused(make: Make, way: Way) -> None:
    server = make(way, "Echo", request_queue_size=64)
    over = threading.Event()
    answers: list[bytes] = []

    def come() -> None:
        while not over.is_set():
            try:
                with Client(server) as client:
                    client.say(b"line\n")
                    client.end()
                    answers.append(client.rest())
            except OSError:  # refused, or reset in the backlog
                answers.append(b"")

    crowd = [threading.Thread(target=come) for _ in range(4)]
    for thread in crowd:
        thread.start()
    assert until(lambda: answers.count(b"LINE\n") >= 20)
    drain = make.drain(server)
    report = drain.report()
    open_after, state = server.connections(), server.stats().state
    over.set()
    for thread in crowd:
        thread.join(10)
    assert (open_after, state) == ([], State.CLOSED)
    assert report.clean
    assert drain.lasted < 1
    assert set(answers) <= {b"LINE\n", b""}
    assert refuses(server)
    assert len(server.told(ConnectionStarted)) == len(server.told(ConnectionEnded)) == server.stats().accepted


@by_way
@on_streams
def test_one_that_is_just_being_accepted_is_not_forgotten(make: Make, way: Way, stream: str) -> None:
    """The loop has taken it, and has yet to let it in."""
    server = make.bound(way, "Echo", stream)
    taken, go = threading.Event(), threading.Event()
    take = server.get_request

    def slowly() -> Any:
        request = take()
        taken.set()
        assert go.wait(10)
        return request

    server.get_request = slowly
    with serving(server):
        client = make.client(server)
        assert taken.wait(5)
        drain = make.drain(server)
        assert until(server.is_draining, 1)
        assert not until(lambda: not drain.is_alive(), LATE)
        client.say(b"line\n")
        client.end()
        go.set()
        report = drain.report()
        assert server.connections() == []
        assert client.rest() in (b"LINE\n", b"")  # as it had said nothing when it was let in, it may be told at once
        assert report.finished == len(server.told(ConnectionStarted)) == len(server.told(ConnectionEnded)) == 1


# -- who may call it, when, and how often


@by_way
def test_two_drains_at_once_are_one(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    client = in_flight(make, server)
    drains = [make.drain(server), make.drain(server)]
    assert until(lambda: refuses(server), 1)
    assert all(drain.is_alive() for drain in drains)
    client.say(b"\n")
    client.end()
    assert client.rest() == b"HALF\n"
    one, other = (drain.report() for drain in drains)
    assert one is other
    assert one.finished == 1
    assert server.drain(0) is one
    assert len(server.told(Drained)) == 1


@by_way
def test_the_loops_own_thread_must_not_wait_for_itself(make: Make, way: Way) -> None:
    if way.forks:
        pytest.skip("handlers have a loop of their own, which nobody runs")
    server = make(way, "Closes")
    client = make.client(server)
    client.say(b"drain\n")
    if way.on_loop or not way.waits:
        assert client.rest() == b"RuntimeError"
        assert not server.is_draining()
    else:  # a thread of its own may: it does not wait for itself
        assert client.rest() == b"at once"
        assert server.is_draining()


@by_way
def test_a_handler_may_request_a_drain(make: Make, way: Way) -> None:
    if way.forks:
        pytest.skip("a child has no say in its parent's life")
    server = make(way, "Closes")
    with Client(server) as client:
        client.say(b"request_drain\n")
        assert client.rest() == b"at once"
        report = server.drain()
        assert (report.finished, report.clean) == (1, True)
        assert until(lambda: refuses(server))
    assert server.stats().state is State.CLOSED


@by_way
def test_a_signal_handler_may_request_a_drain(make: Make, way: Way) -> None:
    server = make.bound(way, "Echo")
    answers: list[bytes] = []

    def visit() -> None:
        with Client(server) as client:
            client.say(b"half")
            assert until(lambda: heard(server, 4))
            os.kill(os.getpid(), signal.SIGUSR1)
            assert until(lambda: refuses(server), 2)
            client.say(b"\n")
            client.end()
            answers.append(client.rest())

    before = signal.signal(signal.SIGUSR1, lambda number, frame: server.request_drain(5))
    visitor = threading.Thread(target=visit)
    server._portico_lifecycle.on_start = visitor.start
    try:
        server.serve_forever()
        visitor.join(10)
        assert answers == [b"HALF\n"]
        assert server.drain().finished == len(server.told(ConnectionEnded)) >= 1
    finally:
        signal.signal(signal.SIGUSR1, before)


@by_way
def test_a_server_that_never_served(make: Make, way: Way) -> None:
    server = make.bound(way, "Echo")
    report = server.drain()
    assert (report.finished, report.clean, report.seconds < LATE) == (0, True, True)
    assert refuses(server)
    assert server.stats().state is State.CLOSED
    server.server_close()


@by_way
def test_a_server_that_is_suspended(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    client = in_flight(make, server)
    server.suspend()
    with Client(server) as waiting:
        drain = make.drain(server)
        assert waiting.rest() == b""
        assert drain.is_alive()
        client.say(b"\n")
        client.end()
        assert client.rest() == b"HALF\n"
        assert drain.report().finished == 1


@by_way
def test_a_server_that_is_closed_already(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    server.server_close()
    report = server.drain()
    assert (report.finished, report.clean, report.seconds < LATE) == (0, True, True)
    assert server.stats().state is State.CLOSED


@by_way
def test_closing_afterwards_has_nothing_left_to_do(make: Make, way: Way) -> None:
    server = make(way, "Catches")
    with_deaf(make, server)
    report = server.drain(0)
    began = time.monotonic()
    server.server_close()
    assert time.monotonic() - began < LATE
    assert server.drain() is report
    assert not report.clean


@by_way
def test_a_server_that_was_suspended_serves_anew(make: Make, way: Way) -> None:
    server = make.bound(way, "Echo")
    with serving_once(server):
        server.suspend()
    with serving_once(server), Client(server) as client:
        assert client.ask(b"line\n") == b"LINE\n"
        assert server.stats().state is State.SERVING


class serving_once:  # noqa: N801
    """Serves until the end of the block, and leaves the socket open."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever)

    def __enter__(self) -> None:
        ready = threading.Event()
        self._server._portico_lifecycle.on_start = ready.set
        self._thread.start()
        assert ready.wait(10)

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        assert not self._thread.is_alive()


# -- server_close


@pytest.mark.parametrize(("way", "style"), DEAF)
def test_closing_waits_no_longer_than_the_drain(make: Make, way: Way, style: str) -> None:
    server = make(way, style, drain_timeout=0.3)
    client = with_deaf(make, server)
    began = time.monotonic()
    server.server_close()
    assert 0.3 <= time.monotonic() - began < 0.3 + CUT_IN + LATE
    assert client.rest() == b""
    assert server.stats().ended.get("cut", 0) == (not stays(way, style))
    assert server.stats().state is State.CLOSED


@by_way
def test_closing_waits_for_a_request_in_flight(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    client = in_flight(make, server)
    closing = threading.Thread(target=server.server_close)
    closing.start()
    assert until(lambda: refuses(server), 1)
    assert closing.is_alive()
    client.say(b"\n")
    assert client.line() == b"HALF\n"
    client.end()
    assert client.rest() == b""
    closing.join(5)
    assert not closing.is_alive()


@by_way
def test_a_handler_may_close_its_server(make: Make, way: Way) -> None:
    server = make(way, "Closes")
    with Client(server) as client:
        client.say(b"server_close\n")
        assert client.rest() == b"at once"
    if not way.forks:  # it was its own copy that the child has closed
        assert until(lambda: server.stats().state is State.CLOSED)
        assert refuses(server)
    else:
        with Client(server) as client:
            client.say(b"is_draining\n")
            assert client.rest() == b"at once"


@by_way
def test_a_handler_that_closes_its_server_waits_for_the_others(make: Make, way: Way) -> None:
    if way.forks or not way.waits:
        pytest.skip("there are no others that it could wait for")
    server = make(way, "Closes")
    busy = in_flight(make, server)
    with Client(server) as client:
        client.say(b"server_close\n")
        assert until(lambda: refuses(server), 1)
        busy.say(b"\n")  # no method has that name
        assert busy.rest() == b"AttributeError"
        assert client.rest() == b"at once"
    assert until(lambda: server.stats().state is State.CLOSED)


NOT_WAITING = [
    pytest.param(way, values, id=f"{way.name}-{next(iter(values))}")
    for way in WAYS
    for values in [{"block_on_close": False}, {"daemon_threads": True}]
    if way.waits and not (way.forks and "daemon_threads" in values)
]


@pytest.mark.parametrize(("way", "values"), NOT_WAITING)
def test_closing_may_wait_for_nobody(make: Make, way: Way, values: dict[str, Any]) -> None:
    """What is idle is closed all the same; what runs, goes on."""
    server = make(way, "EchoBye" if way.forks else "Echo", **values)
    idle = make.client(server)
    assert idle.ask(b"line\n") == b"LINE\n"
    assert until(lambda: settled(server))
    busy = in_flight(make, server)
    began = time.monotonic()
    server.server_close()
    assert time.monotonic() - began < LATE
    assert idle.rest() == (b"bye\n" if way.forks else b"")
    assert idle.ended - began < LATE
    busy.say(b"\n")
    assert busy.line() == b"HALF\n"
    busy.end()
    assert busy.rest() == b""
    assert until(lambda: (way.forks and server.collect_children()) or not server.connections())


@by_way
def test_as_the_standard_library_it_tells_nobody_and_waits(make: Make, way: Way) -> None:
    server = make(way, "Echo", stdlib_compat=True, drain_timeout=None)
    client = make.client(server)
    assert client.ask(b"line\n") == b"LINE\n"
    closing = threading.Thread(target=server.server_close)
    closing.start()
    assert until(lambda: server.fileno() < 0)
    client.sock.settimeout(LATE)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)
    client.sock.settimeout(5)
    if way.waits:
        assert closing.is_alive()
    else:
        closing.join(1)
        assert not closing.is_alive()
    assert client.ask(b"more\n") == b"MORE\n"
    client.end()
    assert client.rest() == b""
    closing.join(5)
    assert not closing.is_alive()


# -- what is told


@by_way
def test_states_are_told_in_order(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    server.suspend()
    server.resume()
    assert server.stats().state is State.SERVING
    with Client(server) as client:
        assert client.ask(b"line\n") == b"LINE\n"
        client.end()
        client.rest()
    server.drain()
    assert until(lambda: server._portico_lifecycle.is_over)
    steps = [(event.before.value, event.after.value) for event in server.told(StateChanged)]
    states = ["new", "starting", "serving", "suspended", "serving", "draining", "closing", "closed"]
    assert steps == list(pairwise(states))


@by_way
def test_a_suspended_server_lets_clients_wait_and_keeps_its_connections(make: Make, way: Way) -> None:
    server = make(way, "Echo")
    client = make.client(server)
    assert client.ask(b"line\n") == b"LINE\n"
    assert until(lambda: settled(server))  # and the loop is not about to look for a second client
    server.suspend()
    assert until(lambda: server.stats().state is State.SUSPENDED)
    with Client(server) as waiting:
        waiting.say(b"wait\n")
        assert client.ask(b"still\n") == b"STILL\n"
        client.end()
        assert client.rest() == b""
        waiting.sock.settimeout(LATE)
        with pytest.raises(TimeoutError):
            waiting.line()
        waiting.sock.settimeout(5)
        server.resume()
        assert waiting.line() == b"WAIT\n"


@by_way
def test_a_handler_sees_that_its_server_drains(make: Make, way: Way) -> None:
    server = make(way, "Asks")
    client = make.client(server)
    assert client.ask(b"?\n") == b"False\n"
    client.say(b"half")
    assert until(lambda: heard(server, 6))
    drain = make.drain(server)
    assert until(lambda: refuses(server), 1)
    # A child has its own copy of the server, and was forked before.
    assert client.ask(b"\n") == (b"False\n" if way.forks else b"True\n")
    client.end()
    client.rest()
    assert drain.report().clean


# -- datagrams


@by_way
@pytest.mark.parametrize("close", ["drain", "server_close"])
def test_a_datagram_that_is_being_handled_finishes(make: Make, way: Way, close: str) -> None:
    server = way.made("Datagram", "UDPServer")
    with serving(server), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"datagram", server.server_address)
        assert client.recv(100) == b"here"
        ending = threading.Thread(target=getattr(server, close))
        ending.start()
        assert until(lambda: server.is_draining() or server.fileno() < 0)
        assert not until(lambda: not ending.is_alive(), LATE)
        server.release.set()
        ending.join(5)
        assert not ending.is_alive()
        if close == "drain" or way.prefix != "Threading":  # else what it would be said through is closed
            assert client.recv(100) == b"DATAGRAM"

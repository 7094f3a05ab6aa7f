"""The matrix of drains, each once: brutal, with a deadline and without, polite handlers and deaf ones, all ways to run.

How exactly deadlines are kept is `python -m reliability --only drains`'s to say, in processes of their own; here a busy
machine has a second to spare. What may never happen is that an end comes before it is due, or is not told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from portico.lifecycle import ConnectionEnded

from .draining import WAYS, Client, Draining, Way, refuses, serving, settled
from .waiting import until

DEADLINE = 0.5
LATE = 1.0
EARLY = 0.001

by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
by_timeout = pytest.mark.parametrize("timeout", [0, DEADLINE, None], ids=["brutal", "deadline", "infinite"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def of(stack: ExitStack, way: Way, handler: str) -> Any:
    return stack.enter_context(serving(way.made(handler)))


def begun(stack: ExitStack, server: Any) -> Client:
    """A client of whom half a request has come."""
    before = len(server.connections())
    client = stack.enter_context(Client(server))
    client.say(b"half")
    assert until(lambda: sum((one.bytes_in or 0) >= 4 for one in server.connections()) > before)
    return client


def idle(stack: ExitStack, server: Any) -> Client:
    """One who has been answered and says nothing more."""
    client = stack.enter_context(Client(server))
    assert client.ask(b"line\n") == b"LINE\n"
    assert until(lambda: settled(server))
    return client


def ends_in_time(drain: Draining, timeout: float) -> Any:
    report = drain.report()
    assert timeout - EARLY <= drain.lasted < timeout + LATE
    return report


@by_way
@by_timeout
def test_polite_ones(stack: ExitStack, way: Way, timeout: float | None) -> None:
    server = of(stack, way, "EchoBye")
    greeted = idle(stack, server) if way.waits else None  # a plain server has one client at a time
    busy = [begun(stack, server) for _ in range(3 if way.waits else 1)]
    drain = Draining(server, timeout)
    assert until(lambda: refuses(server), LATE)
    if greeted is not None:
        assert greeted.rest() == (b"" if timeout == 0 else b"bye\n")
    if timeout is None:
        assert drain.is_alive()
        for client in busy:
            client.say(b"\n")
            assert client.line() == b"HALF\n"
            client.end()
        ended = time.monotonic()
        assert drain.report().clean
        assert drain.ended - ended < LATE
    else:
        report = ends_in_time(drain, timeout)
        assert [client.rest() for client in busy] == [b""] * len(busy)
        assert len(report.cut) >= len(busy)  # brutally, the idle one may be cut, too
        assert {connection.reason.value for connection in report.cut} == {"cut"}  # of each, however many there are
    reasons = [event.connection.reason.value for event in server.told(ConnectionEnded)]
    assert sum(reason == "cut" for reason in reasons) == (0 if timeout is None else len(drain.report().cut))


@by_way
def test_a_plain_goodbye_is_said_within_any_deadline(stack: ExitStack, way: Way) -> None:
    """The only client there is, so that a plain server has one to say it to."""
    server = of(stack, way, "EchoBye")
    client = idle(stack, server)
    drain = Draining(server, DEADLINE)
    assert client.rest() == b"bye\n"
    report = ends_in_time(drain, 0)
    assert (report.goodbyes, report.clean) == (1, True)


@by_way
@by_timeout
def test_deaf_ones(stack: ExitStack, way: Way, timeout: float | None) -> None:
    server = of(stack, way, "Catches")
    client = stack.enter_context(Client(server))
    assert client.line() == b"here\n"
    client.say(b"x")
    assert until(lambda: all(one.bytes_in is None or one.bytes_in for one in server.connections()))
    drain = Draining(server, timeout)
    assert until(lambda: refuses(server), LATE)
    if timeout is None:
        assert not until(lambda: not drain.is_alive(), 0.2)
        server.release.set()
        ends_in_time(drain, 0.2)
    else:
        report = ends_in_time(drain, timeout)
        assert len(report.cut) == 1
        assert client.rest() == b""

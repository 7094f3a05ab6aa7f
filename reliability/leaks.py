"""Leaks: after rounds of everything, what a server holds is what it held before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from . import processes
from .conversations import FAULTS, Tally, asked, faulty, honest_once, one_of
from .crowd import Conversation, Crowd, connected, line_from, sent
from .results import Plan, Row, at_most, exactly, shown
from .ways import TCP, TLS, UNIX, Over, Way

__all__ = ["experiment", "mixed", "round_of"]

SETTINGS = {"max_connections": 300, "connection_rate_per_client": 10_000, "idle_timeout": 1.5, "send_timeout": 1.5}
GROWTH = 0.5
FORGOTTEN = 2.0
"""Seconds after which time limits keep nothing more of connections that have ended."""
_BIG = b"y" * 200_000 + b"\n"


def experiment(way: Way, plan: Plan) -> list[Row]:
    """Rounds of 400 connections (100 with forks, 200 with TLS) that are short, long, reset, half-closed, cut by the
    operator, or whose handlers raise, sleep or close twice, with limits and time limits set, over TCP, Unix sockets and
    TLS. After some rounds to warm up there must be no child, descriptor, thread, green thread or task more at the end
    than before, nor 700 objects of the garbage collector; the median of memory in the last rounds may be 0.5 MiB
    above that in the first. Before it is read, what is free is given back to the system;
    the C library has one arena."""
    return [_leaked(way, over, plan) for over in (TCP, UNIX, TLS)]


def _leaked(way: Way, over: Over, plan: Plan) -> Row:
    warm, rounds = plan.of(3 if over is UNIX else 6, 1), plan.of(24 if over is TCP else 9, 3)
    each = plan.of(400, 60)
    each //= 4 if way.forks else 2 if over.tls else 1
    sizes, failed = [], 0
    with processes.serving(way, over, settings=SETTINGS) as server:
        for count in range(warm + rounds):
            failed += processes.load("leaks", "mixed", 60, address=server.address, number=each)["failures"]
            server.ask("cut")
            server.settled()
            if count == warm - 1:
                time.sleep(FORGOTTEN)
                before = server.ask("leftovers")
            server.ask("tidy")
            sizes.append(processes.memory(server.pid))
        leaked = server.leaked(before, FORGOTTEN + 5)
    part = max(1, rounds // 3)
    first, last = statistics.median(sizes[warm : warm + part]), statistics.median(sizes[-part:])
    return Row(
        f"{way.name}, {over.name}",
        f"{rounds} rounds of {each} connections",
        [
            exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
            at_most("memory grown by", round(last - first, 3), GROWTH, "MiB"),
            exactly("clients failed", failed, 0),
            shown("memory", last, "MiB"),
            shown("held", ", ".join(f"{n} {what}" for what, n in before.items() if n and what != "objects")),
        ],
    )


def mixed(address: Any, number: int) -> dict[str, Any]:
    """In the clients' process: one round."""
    tally = Tally()
    Crowd().run(round_of(address, number, tally), 30, seconds=60)
    return {"connected": tally.connected, "failures": tally.failures, "first": tally.first_failure}


def round_of(address: Any, number: int, tally: Tally) -> Iterator[Conversation]:
    """So many clients of all kinds."""
    for count in range(number):
        match count % 8:
            case 0 | 1 | 2:
                which = honest_once(address, tally, count)
            case 3 | 4:
                which = faulty(address, tally, count, count // 8 % len(FAULTS))
            case 5:
                which = _orders(address, count, b"!twice\n", tally)
            case 6:
                which = _orders(address, count, b"!sleep 0.01\n", tally)
            case _:
                which = _sends_much(address, count, tally)
        yield one_of(which, tally)


def _orders(address: Any, number: int, line: bytes, tally: Tally) -> Conversation:
    sock = yield from connected(address, number)
    tally.connected += 1
    with sock:
        yield from asked(sock, line)


def _sends_much(address: Any, number: int, tally: Tally) -> Conversation:
    sock = yield from connected(address, number)
    tally.connected += 1
    with sock:
        yield from sent(sock, _BIG)
        yield from line_from(sock)

"""Counts: after many connections, of which some go wrong, all books agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import processes
from .conversations import FAULTS, Tally, faulty, honest_once, one_of
from .crowd import Conversation, Crowd
from .results import Plan, Row, exactly, shown
from .ways import Way

__all__ = ["experiment"]

AT_ONCE = 64
ADDRESSES = 500


def experiment(way: Way, plan: Plan) -> list[Row]:
    """100,000 connections, of which every tenth goes wrong: reset before a word or after one, half-closed, closed
    without a word or in the middle of one, a handler that raises. The events that a program gets (ConnectionStarted,
    ConnectionEnded), `stats()` and the clients' own count must not differ by one: started, ended, accepted, done and
    failed. A fifth of that for forks."""
    number = plan.of(100_000, 500)
    number //= 5 if way.forks else 1
    with processes.serving(way, events=True) as server:
        said = processes.load("counts", "come_and_go", 200, address=server.address, number=number)
        stats = server.settled()
    connected, raised, events = said["connected"], said["raised"], stats["events"]
    differences = {
        "started": events["started"] - connected,
        "ended": events["ended"] - connected,
        "accepted": stats["accepted"] - connected,
        "failed": stats["failed"] - raised,
        "done": stats["done"] - (connected - raised),
        "reasons": sum(stats["ended"].values()) - connected,
        "active": stats["active"],
    }
    wrong = {name: difference for name, difference in differences.items() if difference}
    return [
        Row(
            way.name,
            f"{number:,} connections",
            [
                exactly("not connected", number - connected, 0),
                exactly("differences", ", ".join(f"{n:+} {name}" for name, n in wrong.items()) or 0, 0),
                exactly("honest clients not answered", said["failures"] or said["unanswered"], 0),
                shown("ended by", ", ".join(f"{name} {n:,}" for name, n in sorted(stats["ended"].items()))),
                shown("connections a second", number / said["seconds"]),
            ],
        )
    ]


def come_and_go(address: Any, number: int) -> dict[str, Any]:
    """In the clients' process: so many connections, every tenth with a fault."""
    import time

    tally = Tally()

    def everybody() -> Iterator[Conversation]:
        for count in range(number):
            where = count % ADDRESSES
            if count % 10 == 9:
                yield one_of(faulty(address, tally, where, count // 10), tally)
            else:
                yield one_of(honest_once(address, tally, where), tally)

    began = time.monotonic()
    Crowd().run(everybody(), AT_ONCE, seconds=180)
    honest = number - number // 10
    return {
        "connected": tally.connected, "raised": tally.raised, "failures": tally.first_failure and tally.failures,
        "unanswered": honest - tally.answered, "seconds": time.monotonic() - began, "kinds": len(FAULTS),
    }  # fmt: skip

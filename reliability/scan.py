"""A port scan: connections that are reset as soon as they are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import processes
from .conversations import Tally, faulty, one_of
from .crowd import Conversation, Crowd
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

HONEST = 10
RATE = 8000
"""Connections a second; a scanner that is faster only fills the backlog."""
ADDRESSES = 500


def experiment(way: Way, plan: Plan) -> list[Row]:
    """50,000 connections are reset at once, some thousand a second. Ten honest clients, who were there before, must not
    be disturbed: no answer lost, the 99th percentile below 50 ms. Nothing may be left behind, and nothing logged above
    DEBUG. A fifth of that for forks; of a plain server only one client is served at a time, so that no honest ones
    look on."""
    number = plan.of(50_000, 400) // (5 if way.forks else 1)
    rate = 800 if way.forks else RATE
    with processes.serving(way) as server:
        processes.load("scan", "scan", 5, address=server.address, number=50, rate=rate)
        server.settled()
        before = server.ask("leftovers")
        if way.kind == "plain":
            said, found = _scan(server, number, rate), {"p99": 0.0, "lost": 0, "p50": 0.0, "answers": 0}
        else:
            with processes.clients("client", "honest", address=server.address, number=HONEST, pause=0.02) as honest:
                honest.ready()
                said = _scan(server, number, rate)
                found = honest.finished()
        stats = server.settled()
        leaked = server.leaked(before)
        records = server.records()
    return [
        Row(
            way.name,
            f"{number:,} connections",
            [
                exactly("not connected", number - said["connected"], 0),
                at_most("answers (p99)", found["p99"], 50.0, "ms"),
                exactly("honest lost", found["lost"], 0),
                exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
                exactly("log records above DEBUG", len(records), 0),
                shown("ended by", ", ".join(f"{name} {n:,}" for name, n in sorted(stats["ended"].items()))),
                shown("first record", records[0] if records else "none"),
            ],
        )
    ]


def _scan(server: processes.Server, number: int, rate: int) -> dict[str, Any]:
    return processes.load("scan", "scan", 120, address=server.address, number=number, rate=rate)


def scan(address: Any, number: int, rate: int) -> dict[str, Any]:
    """In the clients' process: so many connections, so many a second, each reset when it is there."""
    tally = Tally()
    at_once = 40

    def scanner(which: int) -> Conversation:
        """One of those that share the work, each resting as long as makes the rate."""
        for count in range(which, number, at_once):
            yield from one_of(faulty(address, tally, count % ADDRESSES, 0), tally)
            yield at_once / rate

    def scanners() -> Iterator[Conversation]:
        return (scanner(which) for which in range(at_once))

    Crowd().run(scanners(), at_once, seconds=100)
    return {"connected": tally.connected, "failures": tally.failures}

"""Many addresses: what is remembered of each client must not add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import processes
from .conversations import LINE, Tally, asked, one_of
from .crowd import Conversation, Crowd, connected
from .results import Plan, Row, at_most, exactly
from .ways import Way

__all__ = ["experiment"]

TRACKED = 10_000
BOUND = TRACKED * 220 / (1 << 20) + 8
SETTINGS = {
    "connection_rate_per_client": 0.001, "max_connections_per_client": 2, "max_tracked_clients": TRACKED,
    "overload": "close",
}  # fmt: skip


def experiment(way: Way, plan: Plan) -> list[Row]:
    """100,000 connections from 50,000 addresses, two from each, with `connection_rate_per_client`,
    `max_connections_per_client` and `max_tracked_clients=10000`. The second of each has to be refused. Memory may grow
    by 220 bytes for each client remembered (2.1 MiB) and 8 MiB more, and each connection has to be counted. A tenth of
    that for forks."""
    number = plan.of(50_000, 300) // (10 if way.forks else 1)
    with processes.serving(way, settings=SETTINGS) as server:
        processes.load("addresses", "twice_each", 30, address=server.address, first=0, number=100)
        server.settled()
        before = processes.memory(server.pid)
        said = processes.load("addresses", "twice_each", 200, address=server.address, first=1000, number=number)
        stats = server.settled()
        grown = processes.memory(server.pid) - before
    return [
        Row(
            way.name,
            f"{2 * number:,} connections from {number:,} addresses",
            [
                at_most("memory grown by", grown, BOUND, "MiB"),
                exactly("let in wrongly", number - said["refused"], 0),
                exactly("not counted", said["connected"] + 200 - stats["accepted"] - sum(stats["refused"].values()), 0),
                exactly("failed", said["failures"], 0),
            ],
        )
    ]


def twice_each(address: Any, first: int, number: int) -> dict[str, Any]:
    """In the clients' process: of so many addresses two connections each, one after the other."""
    tally = Tally()

    def everybody() -> Iterator[Conversation]:
        return (one_of(_twice(address, tally, first + count), tally) for count in range(number))

    Crowd().run(everybody(), 64, seconds=180)
    return {"connected": tally.connected, "refused": tally.ended_by_server, "failures": tally.failures}


def _twice(address: Any, tally: Tally, number: int) -> Conversation:
    for _ in range(2):
        sock = yield from connected(address, number)
        tally.connected += 1
        with sock:
            try:
                answer = yield from asked(sock, LINE)
            except ConnectionError:  # refused, over what was sent
                answer = b""
        tally.ended_by_server += answer != LINE

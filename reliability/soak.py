"""The soak: mixed load for long, and whether memory goes up with time. Not among the others: `--soak SECONDS`."""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from . import processes
from .conversations import Tally
from .crowd import Crowd
from .leaks import FORGOTTEN, SETTINGS, round_of
from .results import Plan, Row, at_most, exactly, shown
from .ways import TCP, TLS, UNIX, Over, Way

__all__ = ["experiment", "slope"]

LIMIT = 1.0
WARM = 0.3
"""Of the time, in which memory finds its level."""
ROUND, PAUSE = 80, 1.0


def experiment(way: Way, plan: Plan) -> list[Row]:
    """The mixed load of the leak test, 80 connections a second or so (20 with TLS), for as long as was asked for, on
    all ways to run, over TCP, Unix sockets and TLS, at the same time. Memory, of one arena, is read once a second, when
    what is free has been given back to the system; from 30 % of the time on, the slope (Theil-Sen, of the least values
    of 60 spans) must be below 1 MiB an hour. One more round must leave no child, descriptor, thread, green thread or
    task behind, nor 700 objects of the garbage collector."""
    overs = (TCP, UNIX, TLS)
    with ThreadPoolExecutor(len(overs)) as pool:
        return list(pool.map(partial(_soaked, way, plan), overs))


def _soaked(way: Way, plan: Plan, over: Over) -> Row:
    seconds = plan.soak
    samples: list[tuple[float, float]] = []
    before: dict[str, int] | None = None
    with processes.serving(way, over, settings=SETTINGS) as server:
        with processes.clients(
            "soak", "rounds", address=server.address, number=ROUND // 4 if over.tls else ROUND
        ) as client:
            client.ready()
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                if now > seconds * WARM:
                    server.ask("tidy")
                    samples.append((now / 3600, processes.memory(server.pid)))
                time.sleep(1)
            said = client.finished(120)
        server.settled()
        time.sleep(FORGOTTEN)
        before = server.ask("leftovers")
        stats = server.ask()
        records = [record for record in server.records() if not record.startswith("ERROR request from")]
        processes.load("leaks", "mixed", 60, address=server.address, number=100)
        server.settled()
        leaked = server.leaked(before, FORGOTTEN + 5)
    found = slope(_least(samples))
    return Row(
        f"{way.name}, {over.name}",
        f"{seconds:g} s, {said['connected']:,} connections",
        [
            at_most("memory an hour", found, LIMIT, "MiB"),
            exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
            exactly("clients failed", said["failures"], 0),
            exactly("not counted", stats["accepted"] - said["connected"], 0),
            exactly("log records not of a failure", len(records), 0),
            shown("memory", samples[-1][1] if samples else 0.0, "MiB"),
        ],
    )


def rounds(address: Any, number: int) -> dict[str, Any]:
    """In the clients' process: round after round, until it is told to end."""
    from .client import ready

    crowd, tally = Crowd(), Tally()
    ready()
    crowd.stop_when_readable(sys.stdin.fileno())
    while not crowd.stopped:
        began = time.monotonic()
        crowd.run(round_of(address, number, tally), 20, seconds=30)
        crowd.run([_rest(began + PAUSE)], 1)
    return {"connected": tally.connected, "failures": tally.failures, "first": tally.first_failure}


def _rest(until: float) -> Any:
    yield max(0.0, until - time.monotonic())


def _least(samples: list[tuple[float, float]], spans: int = 60) -> list[tuple[float, float]]:
    """The least of each span: between two rounds, when nothing is open."""
    size = max(1, len(samples) // spans)
    return [min(samples[at : at + size], key=lambda sample: sample[1]) for at in range(0, len(samples), size)]


def slope(samples: list[tuple[float, float]]) -> float:
    """The median of the slopes between any two samples; 0 of fewer than two."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, later in enumerate(samples)
        for earlier in samples[:number]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) if slopes else 0.0

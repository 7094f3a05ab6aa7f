"""Slow-loris: clients that trickle, to take all places from others."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from . import processes
from .client import ready
from .conversations import Tally
from .crowd import PATIENCE, Conversation, Crowd, Sock, connected, sent
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

PLACES = 500
HONEST = 50
SETTINGS = {"max_connections": PLACES, "overload": "close", "min_read_rate": 100, "read_grace": 1.0}


def experiment(way: Way, plan: Plan) -> list[Row]:
    """2,000 clients send a byte now and then and never end their line; who is cut or refused comes again in a second.
    The server has `max_connections=500`, `overload="close"`, `min_read_rate=100` and `read_grace=1`. The answers of 50
    honest clients, who were there before, must take less than 50 ms (99th percentile), none of them may be lost, and
    never may there be more than 500 connections, as the server's own events tell (ConnectionStarted, ConnectionEnded).
    Of a plain server a single loris takes the only place until it is cut: it is not meant for such clients."""
    number, seconds = plan.of(2000, 600), 2.0 if plan.quick else 8.0
    with processes.serving(way, settings=SETTINGS, events=True) as server:
        with processes.clients("client", "honest", address=server.address, number=HONEST, pause=0.05) as honest:
            honest.ready()
            with processes.clients("loris", "trickle", address=server.address, number=number) as loris:
                loris.ready()
                time.sleep(seconds)
                stats, found = server.ask(), honest.finished()
                came = loris.finished()
        return [
            Row(
                way.name,
                f"{number:,} loris, {HONEST} honest, {seconds:g} s",
                [
                    at_most("answers (p99)", found["p99"], 50.0, "ms"),
                    exactly("honest lost", found["lost"], 0),
                    at_most("most connections", stats["most"], PLACES),
                    shown("loris cut", stats["timed_out"]["min_read_rate"]),
                    shown("loris refused", stats["refused"].get("max_connections", 0)),
                    shown("answers (p50)", found["p50"], "ms"),
                    shown("came", came["came"]),
                ],
            )
        ]


def trickle(address: Any, number: int) -> dict[str, Any]:
    """In the clients' process, until it is told to end."""
    crowd, tally = Crowd(), Tally()
    crowd.stop_when_readable(sys.stdin.fileno())

    def first() -> Conversation:
        ready()
        yield 0.0

    everybody = [_loris(address, tally, count) for count in range(number)]
    crowd.run([first(), *everybody], number + 1, seconds=120)
    return {"came": tally.connected}


def _loris(address: Any, tally: Tally, number: int) -> Conversation:
    yield random.random()
    while True:
        try:
            sock = yield from connected(address, number)
            tally.connected += 1
            with sock:
                while not (yield from _gone(sock, 0.3 + random.random() * 0.4)):
                    yield from sent(sock, b"x")
        except OSError:
            pass
        yield 1.0


def _gone(sock: Sock, seconds: float) -> Any:
    """Whether the server ends the connection within so many seconds."""
    from .crowd import READ

    assert seconds < PATIENCE
    return (yield sock, READ, seconds)

"""Drains: how exactly a server comes to its end, however long it may take and whatever its handlers do."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from . import processes
from .handlers import GOODBYE
from .results import Figure, Plan, Row, at_most, exactly, percentile, shown
from .ways import Way

__all__ = ["experiment"]

LATE = 50.0
"""Milliseconds that the end may be before or after the deadline."""
AFTER = 100.0
"""Milliseconds in which a drain without a deadline ends when the last handler has."""
LAST = 0.3
"""Seconds that handlers go on, where they end by themselves."""
MOMENT = 0.3
"""Seconds in which a drain without a deadline has to show that it does not end by itself."""
NAMES = {0.0: "brutal", 0.5: "0.5 s", None: "infinite"}


@dataclass
class Times:
    """Milliseconds, and what else was seen, of several drains of one kind."""

    timeout: float | None
    deaf: bool
    refused: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    """From when it had to end to when it did."""
    statuses: set[int] = field(default_factory=set)
    polite: int = 0
    greeted: int = 0
    early: int = 0
    """How many without a deadline have left a deaf handler before they were told to."""

    def figures(self) -> list[Figure]:
        worst = max(map(abs, self.off))
        infinite = self.timeout is None
        return [
            at_most("port refuses (worst)", max(self.refused), 100.0, "ms"),
            at_most("after what ends it", worst, AFTER, "ms") if infinite else at_most("off", worst, LATE, "ms"),
            exactly("status", ", ".join(map(str, sorted(self.statuses))), "3" if self.deaf or not infinite else "0"),
            exactly("goodbyes lost", self.polite - self.greeted, 0),
            shown("goodbyes", self.greeted),
            exactly("ended too early", self.early, 0),
            shown("off (p50)", percentile([abs(value) for value in self.off], 0.5), "ms"),
        ]


def experiment(way: Way, plan: Plan) -> list[Row]:
    """SIGTERM to a server's `run()` with `drain_timeout` 0 (brutal), 0.5 and None (infinite), while five of its
    connections are idle and five have handlers that are busy. Polite ones wait for their client, or sleep for 0.3 s and
    answer where the drain is infinite; deaf ones ignore whatever is raised in them. Within 100 ms the port must refuse
    clients; `run()`, or the process with a deaf handler in it, must be gone at the deadline, 50 ms early or late at
    most; an infinite one within 100 ms of its last polite handler, and with deaf ones not by itself, but within 100 ms
    of a second signal. If there is time for it, idle clients get the goodbye of their handlers. A plain server has one
    client at a time, now an idle one, now a busy one. Of 8 drains the worst, of 3 with deaf handlers."""
    rows = []
    for timeout, name in NAMES.items():
        for deaf in (False, True):
            found = Times(timeout, deaf)
            times = plan.of(3 if deaf else 8, 1 if deaf else 2)
            _drains(way, found, times)
            rows.append(Row(way.name, f"{times} {name}, {'deaf' if deaf else 'polite'}", found.figures()))
    return rows


def _drains(way: Way, found: Times, times: int) -> None:
    """As many, each in a process of its own if it may take that with it."""
    settings = {"drain_timeout": found.timeout}
    for first in range(times) if found.deaf else (0,):
        each = 1 if found.deaf else times
        with processes.serving(way, settings=settings, times=each, goodbye=True) as server:
            for number in range(first, first + each):
                server.is_at(server.said()["address"])
                if way.kind == "plain":
                    idle = int(number % 2 and not found.deaf)
                    _drain(server, found, idle, 1 - idle)
                else:
                    _drain(server, found, 5, 5)


def _drain(server: processes.Server, found: Times, idle: int, busy: int) -> None:
    idlers = [_answered(server) for _ in range(idle)]
    others = [_answered(server) for _ in range(busy)]
    time.sleep(0.05)  # the kernel's clock is coarse: what is heard in the moment of an answer may count as answered
    ends_itself = found.timeout is None and not found.deaf
    for sock in others:
        sock.sendall(b"!deaf\n" if found.deaf else b"!sleep %g\n" % LAST if ends_itself else b"!hold\n")
    time.sleep(0.1)  # an idle connection is known as such after 20 ms
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    found.refused.append(_refuses(server.address, began))
    _say_farewell(found, idlers)
    due = _due(server, found, others, began)
    ended, status = _end(server)
    if busy or not found.timeout:
        found.off.append((ended - due) * 1000)
        found.statuses.add(status)
    for sock in (*idlers, *others):
        sock.close()


def _due(server: processes.Server, found: Times, others: list[socket.socket], began: float) -> float:
    """When it has to end."""
    if found.timeout is not None:
        return began + found.timeout
    if not found.deaf:
        for sock in others:
            _all_of(sock)
        return time.monotonic()
    found.early += processes.until(lambda: server.process.poll() is not None, MOMENT)
    os.kill(server.pid, signal.SIGTERM)
    return time.monotonic()


def _say_farewell(found: Times, idlers: list[socket.socket]) -> None:
    if found.timeout == 0:
        return
    for sock in idlers:
        found.polite += 1
        found.greeted += _all_of(sock) == GOODBYE


def _all_of(sock: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionError, TimeoutError):
        while data := sock.recv(100):
            got += data
    return got


def _answered(server: processes.Server) -> socket.socket:
    sock = processes.connect(server.address)
    sock.sendall(b"there?\n")
    assert sock.recv(100) == b"there?\n"
    return sock


def _refuses(address: Any, began: float) -> float:
    """Milliseconds until the port refuses.

    A try that meets the closing of the listener itself is lost in the kernel, which repeats it after a second: here
    another one is made before.
    """
    while True:
        try:
            socket.create_connection(tuple(address), 0.05).close()
        except ConnectionRefusedError:
            return (time.monotonic() - began) * 1000
        except OSError:  # lost, or reset: tried again
            pass
        if time.monotonic() - began > 5:
            return 5000.0
        time.sleep(0.002)


def _end(server: processes.Server) -> tuple[float, int]:
    """When the server was through, by its own word or by the end of its process, and with what status."""
    try:
        said = server.said(10)
    except EOFError:
        ended = time.monotonic()  # its standard output is closed by its end
        return ended, server.process.wait(10)
    return said["returned"], said["status"]

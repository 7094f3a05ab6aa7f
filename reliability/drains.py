"""Drains: how exactly a server comes to its end."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

from . import processes
from .results import Figure, Plan, Row, at_most, exactly, percentile, shown
from .ways import Way

__all__ = ["experiment"]

DEADLINE = 0.3
LATE = 50.0
"""Milliseconds that the end may be before or after the deadline."""


def experiment(way: Way, plan: Plan) -> list[Row]:
    """SIGTERM to a server's `run()` with `drain_timeout=0.3`, while five of its connections are idle and five wait for
    an answer (of a plain server: one waits). Within 100 ms the port must refuse clients; `run()` must return at the
    deadline, 50 ms early or late at most; idle clients are closed before. Of 20 drains the median and the worst. Then
    with a handler that ignores whatever is raised in it: it must be gone in time, too, if need be with its process."""
    times, deaf = plan.of(20, 2), plan.of(5, 1)
    settings = {"drain_timeout": DEADLINE}
    found = _Times()
    with processes.serving(way, settings=settings, times=times) as server:
        for _ in range(times):
            server.is_at(server.said()["address"])
            _drain(server, found, idle=0 if way.kind == "plain" else 5, busy=1 if way.kind == "plain" else 5)
    rows = [Row(way.name, f"{times} drains, busy handlers", found.figures(exit_status=3))]
    if way.kind == "plain":
        return rows
    found = _Times()
    for _ in range(deaf):
        with processes.serving(way, settings=settings, times=1) as server:
            server.is_at(server.said()["address"])
            _drain(server, found, idle=5, busy=5, order=b"!deaf\n")
    return [*rows, Row(way.name, f"{deaf} drains, deaf handlers", found.figures(exit_status=3))]


class _Times:
    """Milliseconds, and what else was seen, of several drains."""

    def __init__(self) -> None:
        self.refused: list[float] = []
        self.off: list[float] = []
        """From the deadline to the end."""
        self.idle: list[float] = []
        self.statuses: set[int] = set()

    def figures(self, exit_status: int) -> list[Figure]:
        off = [abs(value) for value in self.off]
        return [
            at_most("port refuses (worst)", max(self.refused), 100.0, "ms"),
            at_most("off the deadline (worst)", max(off), LATE, "ms"),
            shown("off the deadline (p50)", percentile(off, 0.5), "ms"),
            exactly("status", ", ".join(map(str, sorted(self.statuses))), str(exit_status)),
            shown("port refuses (p50)", percentile(self.refused, 0.5), "ms"),
            shown("idle ones closed (worst)", max(self.idle, default=0.0), "ms"),
        ]


def _drain(server: processes.Server, found: _Times, idle: int, busy: int, order: bytes = b"!hold\n") -> None:
    idlers: list[socket.socket] = []
    others: list[socket.socket] = []
    for number in range(idle + busy):
        sock = socket.create_connection(tuple(server.address), 5)
        sock.sendall(b"there?\n")
        assert sock.recv(100) == b"there?\n"
        (idlers if number < idle else others).append(sock)
    time.sleep(0.05)  # the kernel's clock is coarse: what is heard in the moment of an answer may count as answered
    for sock in others:
        sock.sendall(order)
    time.sleep(0.1)  # an idle connection is known as such after 20 ms
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    found.refused.append(_refuses(server.address, began))
    for sock in idlers:
        sock.settimeout(5)
        sock.recv(100)
        found.idle.append((time.monotonic() - began) * 1000)
    ended, status = _end(server)
    found.off.append((ended - began - DEADLINE) * 1000)
    found.statuses.add(status)
    for sock in (*idlers, *others):
        sock.close()


def _refuses(address: Any, began: float) -> float:
    while True:
        try:
            socket.create_connection(tuple(address), 5).close()
        except ConnectionRefusedError:
            return (time.monotonic() - began) * 1000
        except OSError:
            continue
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

"""A shortage: more clients than the server may have descriptors."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from . import processes
from .results import Plan, Row, at_most, exactly, percentile, shown
from .ways import TCP, UNIX, Over, Way

__all__ = ["experiment"]

DESCRIPTORS = 64
CLIENTS = 100
ASKED = 20
"""Of those that were served, so many go on asking, each as often."""
PAUSE = 0.004
"""Seconds between two of their questions, so that these last longer than any pause in accepting."""
_LINE = b"me, too\n"


def experiment(way: Way, plan: Plan) -> list[Row]:
    """A server that may have 64 descriptors has 100 clients, who stay. While it is short, for some seconds, it may use
    2 % of a processor and write one line a second to its log. Then, while it still is, those that were served ask
    again, twenty of them twenty times in turn: each has to be answered, within 50 ms, so that it is seen that only
    accepting pauses, and not the loop. When they leave, all others have to be served. Forking servers have a time limit
    here, as only then the parent keeps descriptors of connections. A plain server, with one client at a time, is never
    short."""
    return [_short(way, over, 1.0 if plan.quick else 4.0) for over in (TCP, UNIX)]


def _short(way: Way, over: Over, seconds: float) -> Row:
    settings = {"connection_timeout": 120} if way.forks else {}
    with processes.serving(way, over, descriptors=DESCRIPTORS, settings=settings) as server:
        clients = [_came(server) for _ in range(CLIENTS)]
        time.sleep(0.5)
        began, cpu, lines = time.monotonic(), processes.cpu_seconds(server.pid), server.log().count("\n")
        time.sleep(seconds)
        share = (processes.cpu_seconds(server.pid) - cpu) / (time.monotonic() - began) * 100
        written = server.log().count("\n") - lines
        at_first = _served(clients, 0)
        took = _ask_again(at_first)
        late = [sock for sock in clients if sock not in at_first]
        still = not _served(late, 0)  # else it was not short while they asked
        everybody = _all_are_served(at_first, late)
        return Row(
            f"{way.name}, {over.name}",
            f"{CLIENTS} clients, {DESCRIPTORS} descriptors, {seconds:g} s",
            [
                shown("served at first", len(at_first)),
                exactly("served in the end", everybody, CLIENTS),
                at_most("processor while short", share, 2.0, "%"),
                at_most("log lines a second while short", written / seconds, 1.0),
                exactly("old clients not answered", min(ASKED, len(at_first)) * ASKED - len(took), 0),
                at_most("their answers (worst)", max(took, default=0.0), 50.0, "ms"),
                shown("their answers (p50)", percentile(took, 0.5), "ms"),
                exactly("short to the end", still, True),
                shown("log lines in all", server.log().count("\n")),
            ],
        )


def _came(server: processes.Server) -> socket.socket:
    sock = processes.connect(server.address)
    sock.sendall(_LINE)
    sock.setblocking(False)
    return sock


def _ask_again(clients: list[socket.socket]) -> list[float]:
    """Milliseconds of the answers that came."""
    took = []
    for sock in clients[:ASKED] * ASKED:
        sock.settimeout(2)
        began = time.monotonic()
        with suppress(OSError):
            sock.sendall(_LINE)
            if sock.recv(100) == _LINE:
                took.append((time.monotonic() - began) * 1000)
        time.sleep(PAUSE)
    return took


def _all_are_served(at_first: list[socket.socket], late: list[socket.socket]) -> int:
    """How many, when those that have been leave one after the other."""
    everybody = len(at_first)
    for sock in at_first:
        sock.close()
    while late and (served := _served(late, 5)):
        everybody += len(served)
        late = [sock for sock in late if sock not in served]
        for sock in served:
            sock.close()
    for sock in late:
        sock.close()
    return everybody


def _served(clients: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Those that have their answer; waits until there is at least one, for so long."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for sock in clients:
            try:
                if sock.recv(100) == _LINE:
                    found.append(sock)
            except BlockingIOError:
                continue
        if found or time.monotonic() >= deadline:
            return found
        time.sleep(0.01)

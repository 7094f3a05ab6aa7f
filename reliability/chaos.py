"""Chaos: whatever runs a connection is struck down, one after the other, while others are served."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from . import processes
from .books import Page
from .crowd import who
from .results import Figure, Plan, Row, at_most, exactly, shown
from .ways import OVERS, Over, Way

__all__ = ["experiment"]

CONNECTIONS = 100
EVERY = 0.1
PATIENCE = 5.0
_LINE = b"still there?\n"


def experiment(way: Way, plan: Plan) -> list[Row]:
    """100 connections are open, over TCP and over a Unix socket, encrypted and not. Every 100 ms one is struck: with
    forks its child gets SIGKILL; else the operator's `close()` and a handler that raises take turns. Lost clients come
    back. Each time a new client has to be served within 1 s; the server must remain the same process. Each connection
    that was struck must have ended once, as killed, closed or failed, and each other one as done; the dead must not be
    among `server.connections()`, and in the end nothing may be left: no child, descriptor, thread, green thread or
    task."""
    with ThreadPoolExecutor(len(OVERS)) as pool:
        return list(pool.map(partial(_chaos, way, plan), OVERS.values()))


def _chaos(way: Way, plan: Plan, over: Over) -> Row:
    seconds = 1.0 if plan.quick else 10.0
    with processes.serving(way, over, events=True) as server:
        what = {"address": server.address, "control": server.control, "forks": way.forks}
        processes.load("chaos", "strike", 5, seconds=0, first=0, **what)
        server.settled()
        before, known = server.ask("leftovers"), len(server.ask("books"))
        found = processes.load("chaos", "strike", seconds, seconds=seconds, first=100_000, **what)
        server.settled()
        leaked = server.leaked(before)
        pages = server.ask("books")[known:]
        same = "the same" if server.process.poll() is None else "gone"
    return Row(
        f"{way.name}, {over.name}",
        f"{CONNECTIONS} connections, {len(found['struck'])} struck",
        [
            at_most("slowest new client", found["slowest"] * 1000, 1000, "ms"),
            exactly("new clients not served", found["unserved"], 0),
            exactly("server process", same, "the same"),
            *_ends(found["struck"], pages),
            exactly("dead in the registry", found["dead"], 0),
            exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
        ],
    )


def _ends(struck: dict[str, str], pages: list[Page]) -> list[Figure]:
    """Whether each has ended as it has to, once: whom nobody struck is done when it leaves."""
    wrong = [
        f"{page['reason']} for {struck.get(page['who'], 'done')}" if page["ends"] == 1 else f"{page['ends']} ends"
        for page in pages
        if page["ends"] != 1 or page["reason"] != struck.get(page["who"], "done")
    ]
    missing = set(struck) - {page["who"] for page in pages}
    ended = [page["reason"] for page in pages if page["who"] in struck]
    return [
        exactly("wrong ends", ", ".join(wrong[:3]) or len(missing), 0),
        shown("ended by that", ", ".join(f"{reason} {ended.count(reason)}" for reason in sorted(set(ended)))),
    ]


# -- in the clients' process


class _Clients:
    """Some that stay and can be told from one another."""

    def __init__(self, address: Any, control: str, first: int) -> None:
        self._address, self._control, self._next = address, control, first
        self.open = dict([self.connect() for _ in range(CONNECTIONS)])
        self.struck: dict[str, str] = {}

    def connect(self) -> tuple[str, socket.socket]:
        """One more, and what the server calls it; it has been served."""
        self._next += 1
        return who(self._address, self._next), _served(processes.connect(self._address, PATIENCE, self._next))

    def strike(self, how: str) -> None:
        chosen = random.choice(list(self.open))
        self.struck[chosen] = how
        if how == "failed":
            with suppress(OSError):
                self.open[chosen].sendall(b"!raise\n")
        elif how == "closed":
            processes.asked(self._control, f"cut {chosen}")
        else:
            os.kill(processes.asked(self._control, "live")[chosen], signal.SIGKILL)

    def come_back(self) -> None:
        """One for each that has been struck."""
        for name in self.struck:
            if name in self.open:
                _await_end(self.open.pop(name))
                self.open.update([self.connect()])

    def dead(self) -> int:
        """How many the server still has that are not there."""
        processes.until(lambda: len(processes.asked(self._control, "live")) <= len(self.open), PATIENCE)
        return len(set(processes.asked(self._control, "live")) - set(self.open))

    def close(self) -> None:
        for sock in self.open.values():
            sock.close()


def strike(address: Any, control: str, forks: bool, first: int, seconds: float) -> dict[str, Any]:
    """Keep connections, strike one after the other."""
    clients = _Clients(address, control, first)
    end = time.monotonic() + seconds
    unserved, slowest = 0, 0.0
    while (began := time.monotonic()) < end:
        clients.strike("killed" if forks else "closed" if len(clients.struck) % 2 else "failed")
        try:
            clients.connect()[1].close()
        except OSError:
            unserved += 1
        slowest = max(slowest, time.monotonic() - began)
        clients.come_back()
        time.sleep(max(0.0, began + EVERY - time.monotonic()))
    dead = clients.dead()
    clients.close()
    return {"struck": clients.struck, "unserved": unserved, "slowest": slowest, "dead": dead}


def _served(sock: socket.socket) -> socket.socket:
    try:
        sock.sendall(_LINE)
        if sock.recv(100) != _LINE:
            raise ConnectionError("not served")
    except BaseException:
        sock.close()
        raise
    return sock


def _await_end(sock: socket.socket) -> None:
    """Of one that has been struck; `TimeoutError` if its server does not end it."""
    with sock, suppress(ConnectionError):
        while sock.recv(100):
            pass

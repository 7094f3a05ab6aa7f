"""Chaos: whatever runs a connection is struck down, one after the other, while others are served."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from . import processes
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

CONNECTIONS = 100
EVERY = 0.1
_LINE = b"still there?\n"


def experiment(way: Way, plan: Plan) -> list[Row]:
    """100 connections are open, over TCP and over a Unix socket. Every 100 ms one is struck: with forks a random child
    gets SIGKILL; else `close()` of a random one of `server.connections()` and a handler that raises take turns.
    Lost clients come back. Each time a new client has to be served within 1 s; the server must remain the same process,
    and in the end nothing may be left: no child, descriptor, thread, green thread or task."""
    rows: list[Row] = []
    failures: list[BaseException] = []

    def one(unix: bool) -> None:
        try:
            rows.append(_chaos(way, plan, unix))
        except BaseException as error:
            failures.append(error)

    both = [threading.Thread(target=one, args=(unix,)) for unix in (False, True)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    if failures:
        raise failures[0]
    return sorted(rows, key=lambda row: row.way)


def _chaos(way: Way, plan: Plan, unix: bool) -> Row:
    seconds = 1.0 if plan.quick else 10.0
    with processes.serving(way, unix=unix) as server:
        processes.load("chaos", "strike", 5, address=server.address, control="", pid=0, seconds=0)
        server.settled()
        before = server.ask("leftovers")
        found = processes.load(
            "chaos", "strike", seconds,
            address=server.address, control=server.control, pid=server.pid if way.forks else 0, seconds=seconds,
        )  # fmt: skip
        stats = server.settled()
        leaked = server.leaked(before)
        struck = sum(stats["ended"].get(reason, 0) for reason in ("killed", "closed", "failed"))
        return Row(
            f"{way.name}, {'Unix' if unix else 'TCP'}",
            f"{CONNECTIONS} connections, {found['struck']} struck",
            [
                at_most("slowest new client", found["slowest"] * 1000, 1000, "ms"),
                exactly("new clients not served", found["unserved"], 0),
                exactly("server process", "the same" if server.process.poll() is None else "gone", "the same"),
                exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
                shown("ended by that", struck),
            ],
        )


def strike(address: Any, control: str, pid: int, seconds: float) -> dict[str, Any]:
    """In the clients' process: keep connections, strike one after the other. With a process id, its children."""
    open_ones = [_connect(address) for _ in range(CONNECTIONS)]
    end = time.monotonic() + seconds
    struck, unserved, slowest = 0, 0, 0.0
    while (began := time.monotonic()) < end:
        if pid:
            _kill_one(pid)
        elif struck % 2:
            _say(random.choice(open_ones), b"!raise\n")
        else:
            _ask_to_cut(control)
        struck += 1
        try:
            _connect(address).close()
        except OSError:
            unserved += 1
        slowest = max(slowest, time.monotonic() - began)
        open_ones = [sock if _is_open(sock) else _connect(address) for sock in open_ones]
        time.sleep(max(0.0, began + EVERY - time.monotonic()))
    for sock in open_ones:
        sock.close()
    return {"struck": struck, "unserved": unserved, "slowest": slowest}


def _connect(address: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        sock.settimeout(5)
        sock.connect(address if isinstance(address, str) else tuple(address))
        sock.sendall(_LINE)
        if sock.recv(100) != _LINE:
            raise ConnectionError("not served")
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _kill_one(pid: int) -> None:
    found = processes.children(pid)
    if found:
        with suppress(ProcessLookupError):
            os.kill(random.choice(found), signal.SIGKILL)


def _say(sock: socket.socket, line: bytes) -> None:
    with suppress(OSError):  # it has been struck a moment ago
        sock.sendall(line)


def _ask_to_cut(control: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(control)
        sock.sendall(b"cut\n")
        sock.recv(100)


def _is_open(sock: socket.socket) -> bool:
    try:
        if sock.recv(1, socket.MSG_PEEK):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    sock.close()
    return False

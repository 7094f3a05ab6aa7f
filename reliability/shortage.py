"""A shortage: more clients than the server may have descriptors."""

from __future__ import annotations

import socket
import time

from . import processes
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

DESCRIPTORS = 64
CLIENTS = 100
_LINE = b"me, too\n"


def experiment(way: Way, plan: Plan) -> list[Row]:
    """A server that may have 64 descriptors has 100 clients, who stay. While it is short, for some seconds, it may use
    2 % of a processor and write one line a second to its log. Then those that were served leave, and all others have to
    be served. Forking servers have a time limit here, as only then the parent keeps descriptors of connections."""
    seconds = 1.0 if plan.quick else 4.0
    with processes.serving(way, descriptors=DESCRIPTORS, settings={"idle_timeout": 120} if way.forks else {}) as server:
        clients = []
        for _ in range(CLIENTS):
            sock = socket.create_connection(tuple(server.address), 5)
            sock.sendall(_LINE)
            sock.setblocking(False)
            clients.append(sock)
        time.sleep(0.5)
        began, cpu, lines = time.monotonic(), processes.cpu_seconds(server.pid), server.log().count("\n")
        time.sleep(seconds)
        share = (processes.cpu_seconds(server.pid) - cpu) / (time.monotonic() - began) * 100
        written = server.log().count("\n") - lines
        at_first = _served(clients, 0)
        everybody = len(at_first)
        for sock in at_first:
            sock.close()
        late = [sock for sock in clients if sock not in at_first]
        while late and (served := _served(late, 5)):
            everybody += len(served)
            late = [sock for sock in late if sock not in served]
            for sock in served:
                sock.close()
        for sock in late:
            sock.close()
        return [
            Row(
                way.name,
                f"{CLIENTS} clients, {DESCRIPTORS} descriptors, {seconds:g} s",
                [
                    shown("served at first", len(at_first)),
                    exactly("served in the end", everybody, CLIENTS),
                    at_most("processor while short", share, 2.0, "%"),
                    at_most("log lines a second while short", written / seconds, 1.0),
                    shown("log lines in all", server.log().count("\n")),
                ],
            )
        ]


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

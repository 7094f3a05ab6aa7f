"""A peer that never reads, and a handler that writes to it all the same."""

from __future__ import annotations

import socket
import time

from . import processes
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

TIMEOUT = 1.0
BOUND = 32.0


def experiment(way: Way, plan: Plan) -> list[Row]:
    """A handler writes 1 GiB, in pieces of 1 MiB, to a peer that reads nothing, with `send_timeout=1`. The memory of
    the server (and of its child, with forks) may grow by 32 MiB, and the connection has to be cut: by that limit, and
    within two seconds."""
    with processes.serving(way, settings={"send_timeout": TIMEOUT}) as server:
        with socket.create_connection(tuple(server.address), 5) as sock:
            sock.sendall(b"there?\n")
            sock.recv(100)
        server.settled()
        before = processes.memory(server.pid)
        most = 0.0
        with socket.create_connection(tuple(server.address), 5) as sock:
            sock.sendall(b"!write 1024\n")
            began = time.monotonic()
            while time.monotonic() - began < 5 and not (cut := _is_cut(server)):
                for pid in (server.pid, *processes.children(server.pid)):
                    try:
                        most = max(most, processes.memory(pid) - before)
                    except (OSError, StopIteration):  # a child that has just ended
                        continue
                time.sleep(0.02)
            took = time.monotonic() - began
        most = max(most, processes.peak_memory(server.pid) - before)
        stats = server.settled()
    return [
        Row(
            way.name,
            f"1 GiB, send_timeout={TIMEOUT:g}",
            [
                at_most("memory grown by", most, BOUND, "MiB"),
                exactly("cut", stats["timed_out"]["send_timeout"], 1),
                at_most("after", took, 2.0, "s"),
                shown("sent", stats["bytes_out"] / (1 << 20), "MiB"),
                exactly("noticed", cut, True),
            ],
        )
    ]


def _is_cut(server: processes.Server) -> bool:
    stats = server.ask()
    return bool(stats["accepted"] > 1 and not stats["active"])

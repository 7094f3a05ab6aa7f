"""A peer that does not read, and a handler that writes to it all the same."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from . import processes
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

TIMEOUT = 1.0
PAUSE = 2.0
"""Seconds that a peer reads nothing, where it may."""
BOUND = 32.0
MIB = 1 << 20


def experiment(way: Way, plan: Plan) -> list[Row]:
    """A handler writes 1 GiB, in pieces of 1 MiB, to a peer that reads nothing, with `send_timeout=1`. The memory of
    the server (and of its child, with forks) may grow by 32 MiB, and the connection has to be cut: by that limit, and
    within two seconds. Then the same without that limit, to a peer that reads nothing for two seconds: memory may grow
    no more, the handler has to wait, and the peer has to get every byte when it reads after all."""
    return [_never_reads(way), _reads_late(way, plan.of(1024, 128))]


class _Memory:
    """The most that a server, or a child of it, has grown by, MiB."""

    def __init__(self, server: processes.Server) -> None:
        self._server = server
        with processes.connect(server.address) as sock:
            sock.sendall(b"there?\n")
            sock.recv(100)
        server.settled()
        self._before = processes.memory(server.pid)
        self.most = 0.0

    def look(self) -> None:
        for pid in processes.children(self._server.pid):
            try:
                self.most = max(self.most, processes.peak_memory(pid) - self._before)
            except (OSError, StopIteration):  # a child that has just ended
                continue
        self.most = max(self.most, processes.peak_memory(self._server.pid) - self._before)


def _never_reads(way: Way) -> Row:
    with processes.serving(way, settings={"send_timeout": TIMEOUT}) as server:
        memory = _Memory(server)
        with processes.connect(server.address) as sock:
            sock.sendall(b"!write 1024\n")
            began = time.monotonic()
            while time.monotonic() - began < 5 and not (cut := _is_cut(server)):
                memory.look()
                time.sleep(0.02)
            took = time.monotonic() - began
        memory.look()
        stats = server.settled()
    return Row(
        way.name,
        f"1 GiB, send_timeout={TIMEOUT:g}",
        [
            at_most("memory grown by", memory.most, BOUND, "MiB"),
            exactly("cut", stats["timed_out"]["send_timeout"], 1),
            at_most("after", took, 2.0, "s"),
            shown("sent", stats["bytes_out"] / MIB, "MiB"),
            exactly("noticed", cut, True),
        ],
    )


def _is_cut(server: processes.Server) -> bool:
    """A plain server says so only when it is through with it."""
    stats = server.ask()
    return bool(stats["accepted"] > 1 and not stats["active"])


def _reads_late(way: Way, mebibytes: int) -> Row:
    with processes.serving(way) as server:
        memory = _Memory(server)
        with processes.connect(server.address, 20) as sock:
            sock.sendall(b"!write %d\n" % mebibytes)
            end = time.monotonic() + PAUSE
            while time.monotonic() < end:
                memory.look()
                time.sleep(0.02)
            with suppress(OSError):  # it has been cut, which the bytes will show
                sock.shutdown(socket.SHUT_WR)
            got, first = _all_of(sock, memory)
        stats = server.settled()
    return Row(
        way.name,
        f"{mebibytes / 1024:g} GiB, read after {PAUSE:g} s",
        [
            at_most("memory grown by", memory.most, BOUND, "MiB"),
            shown("sent", stats["bytes_out"] / MIB, "MiB"),
            exactly("bytes lost", mebibytes * MIB - got, 0),
            exactly("ended as done", stats["ended"], {"done": 2}),
            shown("reading took", time.monotonic() - first, "s"),
        ],
    )


def _all_of(sock: socket.socket, memory: _Memory) -> tuple[int, float]:
    """How many bytes come to the end, and when the first was asked for."""
    buffer, got, began = bytearray(MIB), 0, time.monotonic()
    seen = 0
    with suppress(ConnectionError):
        while number := sock.recv_into(buffer):
            got += number
            if got - seen >= 64 * MIB:
                memory.look()
                seen = got
    return got, began

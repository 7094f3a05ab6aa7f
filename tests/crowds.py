"""Crowds of clients at the door of a server, for every way to run; and how many of them are inside at once.

A handler writes one byte to a pipe when it begins and one when it ends, wherever it runs: the pipe keeps the order,
across processes, too.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic
from typing import Any

import pytest

import portico
from portico.lifecycle import Event

from .contract.flavours import short_folder
from .loops import LOOPBACK, LOOPS
from .waiting import until

PATIENCE = 10.0
"""Seconds after which something hangs."""


@dataclass(frozen=True)
class Way:
    """A way to run requests, and the class variables that choose it."""

    prefix: str
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def is_async(self) -> bool:
        return self.prefix == "Async"

    @property
    def forks(self) -> bool:
        return self.prefix == "Forking"


WAYS = {
    "threads": Way("Threading"),
    "reused": Way("Threading", (("reuse_threads", True),)),
    "forks": Way("Forking"),
    **{f"{kind.lower()}-{loop}": Way(kind, (("event_loop", loop),)) for kind in ("Green", "Async") for loop in LOOPS},
}
PLAIN = Way("")
KINDS = ("tcp", "unix")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


class Room(portico.BaseRequestHandler):
    """Says that it is in, and stays until its client says something, or leaves."""

    def handle(self) -> None:
        os.write(self.server.door, b"+")
        try:
            self.request.sendall(b"in")
            self.request.recv(1)
        finally:
            os.write(self.server.door, b"-")


class AsyncRoom(portico.AsyncBaseRequestHandler):
    """The same in async."""

    async def handle(self) -> None:
        os.write(self.server.door, b"+")
        try:
            await self.request.sendall(b"in")
            await self.request.recv(1)
        finally:
            os.write(self.server.door, b"-")


class Door:
    """What the handlers have written."""

    def __init__(self) -> None:
        self.mine, self.theirs = os.pipe()
        os.set_blocking(self.mine, False)
        self._steps: list[int] = []

    def steps(self) -> list[int]:
        """+1 for everyone who came in, and -1 for everyone who left, in order."""
        while True:
            try:
                written = os.read(self.mine, 65536)
            except BlockingIOError:
                return self._steps
            self._steps += [1 if byte == ord("+") else -1 for byte in written]

    def inside(self) -> int:
        return sum(self.steps())

    def peak(self) -> int:
        return max(accumulate(self.steps()), default=0)

    def close(self) -> None:
        os.close(self.mine)
        os.close(self.theirs)


class Crowd:
    """Clients of one server."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.clients: list[socket.socket] = []
        self.said: dict[socket.socket, bytes] = {}
        """What each was told so far; with a b"." when the server has ended it, and "!" for a reset."""

    def come(self, number: int = 1, *, source: str | None = None) -> list[socket.socket]:
        """So many connect, from an address of their own if they have one."""
        new = []
        for _ in range(number):
            if isinstance(self.address, str):
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(PATIENCE)
                client.connect(self.address)
            else:
                client = socket.create_connection(self.address[:2], PATIENCE, (source, 0) if source else None)
            client.setblocking(False)
            self.clients.append(client)
            self.said[client] = b""
            new.append(client)
        return new

    def listen(self, seconds: float = 0.0) -> None:
        """Hear whatever the server says within that time, or at once."""
        open_ones = [client for client in self.clients if self.said[client][-1:] not in (b".", b"!")]
        poll = select.poll()
        by_number = {client.fileno(): client for client in open_ones}
        for number in by_number:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(seconds * 1000):
            client = by_number[number]
            try:
                self.said[client] += client.recv(65536) or b"."
            except ConnectionError:
                self.said[client] += b"!"

    def hear(self, client: socket.socket) -> bytes:
        """The first that this one is told."""
        deadline = monotonic() + PATIENCE
        while not self.said[client] and (left := deadline - monotonic()) > 0:
            self.listen(left)
        return self.said[client]

    def those(self, said: bytes) -> list[socket.socket]:
        return [client for client in self.clients if self.said[client] == said]

    def await_number(self, said: bytes, number: int, seconds: float = PATIENCE) -> list[socket.socket]:
        """Those that were told this, when they are so many."""
        deadline = monotonic() + seconds
        self.listen()
        while len(self.those(said)) != number and (left := deadline - monotonic()) > 0:
            self.listen(left)
            self.listen()  # what else there is: one more is one too many
        found = self.those(said)
        assert len(found) == number, f"{len(found)} and not {number} were told {said!r}: {list(self.said.values())}"
        return found

    def inside(self, number: int, seconds: float = PATIENCE) -> list[socket.socket]:
        """Those who are in, when they are so many, and not one more."""
        return self.await_number(b"in", number, seconds)

    def turned_away(self, number: int, answer: bytes = b"") -> list[socket.socket]:
        return self.await_number(answer + b".", number)

    def leave(self, clients: list[socket.socket] | None = None) -> None:
        for client in list(self.clients if clients is None else clients):
            with suppress(OSError):  # the server was first
                client.shutdown(socket.SHUT_RDWR)  # a forked handler has a copy, and closing would end only this one
            client.close()
            self.clients.remove(client)
            del self.said[client]


@dataclass
class Scene:
    """A server, its clients, and what it has told."""

    server: Any
    crowd: Crowd
    door: Door
    events: list[Event]

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def empty(self) -> bool:
        """Whether all slots are free in the end, and all handlers have ended."""
        return until(lambda: self.server.stats().active == 0) and until(lambda: not self.door.inside())


def server_class(way: str, kind: str = "tcp", **members: Any) -> Any:
    """The class for this way to run, with further members."""
    made = WAYS.get(way, PLAIN)
    suffix = {"tcp": "TCPServer", "unix": "UnixStreamServer", "udp": "UDPServer", "unix-dgram": "UnixDatagramServer"}
    return type("Mine", (getattr(portico, made.prefix + suffix[kind]),), {**dict(made.values), **members})


@contextmanager
def scene(
    way: str, kind: str = "tcp", *, members: Any = None, handler: Any = None, address: Any = None, **values: Any
) -> Iterator[Scene]:
    """A server that serves inside the block, whose settings are `values`; in the end all clients leave."""
    events: list[Event] = []
    door = Door()
    found = {"door": door.theirs, "handle_event": lambda self, event: events.append(event), **(members or {})}
    made = server_class(way, kind, **found)
    handler = handler or (AsyncRoom if WAYS.get(way, PLAIN).is_async else Room)
    with ExitStack() as stack:
        stack.callback(door.close)
        if address is None:
            address = LOOPBACK if kind == "tcp" else str(stack.enter_context(short_folder()) / "server.sock")
        server = stack.enter_context(made(address, handler, **values).background())
        crowd = Crowd(server.server_address)
        stack.callback(crowd.leave)
        yield Scene(server, crowd, door, events)

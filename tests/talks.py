"""Sessions for the tests of them: one body for all ways to run, servers that run it, and clients that talk to them.

A body is a coroutine over a `Talk`, whose calls block (or park) inside it where nothing is awaited; see `every_way`.
What it notes goes to a file, so that a forked child's notes are read like all others.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import portico
from portico import green
from portico.lifecycle import ConnectionEnded, ConnectionStarted

from .contract.flavours import short_folder
from .waiting import until

PATIENCE = 5.0


@dataclass(frozen=True)
class Way:
    """A way to run requests, and the settings that choose it."""

    prefix: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def is_async(self) -> bool:
        return self.prefix == "Async"

    @property
    def forks(self) -> bool:
        return self.prefix == "Forking"


WAYS = {
    "threads": Way("Threading"),
    "reused": Way("Threading", (("reuse_threads", True),)),
    "green-asyncio": Way("Green", (("event_loop", "asyncio"),)),
    "green-uvloop": Way("Green", (("event_loop", "uvloop"),)),
    "async-asyncio": Way("Async", (("event_loop", "asyncio"),)),
    "async-uvloop": Way("Async", (("event_loop", "uvloop"),)),
    "forks": Way("Forking"),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
NOT_FORKS = pytest.mark.parametrize("way", [way for way in WAYS if way != "forks"])
ONE_OF_EACH = pytest.mark.parametrize("way", ["threads", "green-uvloop", "async-asyncio", "forks"])


class Talk:
    """What a body has of its session."""

    def __init__(self, handler: Any) -> None:
        self.session = handler.request
        self.server = handler.server
        self.peer = handler.client_address

    def note(self, what: str) -> None:
        with self.server.notes.open("ab", buffering=0) as file:
            file.write(what.encode() + b"\n")

    async def recv(self, timeout: float | None = None) -> bytes:
        self.session.settimeout(timeout)
        data: bytes = self.session.recv()
        return data

    async def send(self, data: bytes) -> None:
        self.session.send(data)

    async def rest(self) -> list[bytes]:
        """All datagrams until the end."""
        return list(self.session)

    async def pause(self, seconds: float) -> None:
        (green.sleep if isinstance(self.server, portico.GreenMixIn) else time.sleep)(seconds)


class AsyncTalk(Talk):
    async def recv(self, timeout: float | None = None) -> bytes:
        async with asyncio.timeout(timeout):
            data: bytes = await self.session.recv()
            return data

    async def send(self, data: bytes) -> None:
        await self.session.send(data)

    async def rest(self) -> list[bytes]:
        return [data async for data in self.session]

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


Body = Callable[[Any], Coroutine[Any, Any, object]]


def handler_of(body: Body, *, is_async: bool, **members: Any) -> Any:
    """A handler class that runs this body."""
    if is_async:

        async def handle(self: Any) -> None:
            await body(AsyncTalk(self))

        async def finish(self: Any) -> None:
            Talk(self).note("finish")

        return type("Talks", (portico.AsyncBaseRequestHandler,), {"handle": handle, "finish": finish, **members})

    def handle_blocking(self: Any) -> None:
        try:
            body(Talk(self)).send(None)
        except StopIteration:
            return
        raise AssertionError("the body of a handler that blocks has been suspended")

    def finish_blocking(self: Any) -> None:
        Talk(self).note("finish")

    members = {"handle": handle_blocking, "finish": finish_blocking, **members}
    return type("Talks", (portico.BaseRequestHandler,), members)


class Served:
    """A server with sessions, its events, and what its handlers have noted."""

    def __init__(self, server: Any) -> None:
        self.server = server

    @property
    def notes(self) -> list[str]:
        path: Path = self.server.notes
        return path.read_text().splitlines() if path.exists() else []

    @property
    def refused(self) -> dict[str, int]:
        refused: dict[str, int] = self.server.stats().refused
        return refused

    def told(self, kind: type) -> list[Any]:
        return [event for event in list(self.server.events) if type(event) is kind]

    def reasons(self, number: int = 1) -> list[str]:
        """Why sessions have ended, when so many have. Each has begun and ended once."""
        assert until(lambda: len(self.told(ConnectionEnded)) >= number, PATIENCE), self.server.connections()
        ends = [event.connection for event in self.told(ConnectionEnded)]
        starts = [event.connection for event in self.told(ConnectionStarted)]
        assert len({id(connection) for connection in ends}) == len(ends) <= len(starts)
        return [connection.reason.value for connection in ends]

    def client(self, host: str | None = None) -> Client:
        return Client(self.server, host)


class Client:
    """One peer."""

    def __init__(self, server: Any, host: str | None = None) -> None:
        address = server.server_address
        self.sock = socket.socket(server.address_family, socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)
        if isinstance(address, tuple):
            own = address[0] if address[0] != "0.0.0.0" else "127.0.0.1"
            self.sock.connect((host or own, address[1]))

    def say(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.sock.send(data)

    def hear(self) -> bytes:
        return self.sock.recv(65536)

    def ask(self, data: bytes) -> bytes:
        self.say(data)
        return self.hear()

    def hears_nothing(self, seconds: float = 0.1) -> bool:
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(65536)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        return False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


def server_of(way: str, body: Body | None, *, members: Any = None, handler: Any = None, **settings: Any) -> Any:
    """A server for this body, bound, and not served yet."""
    made, kind = WAYS[way], settings.pop("kind", "UDPServer")
    address = settings.pop("address", ("127.0.0.1", 0))
    notes = settings.pop("notes")

    def handle_event(self: Any, event: Any) -> None:
        self.events.append(event)

    found = {"handle_event": handle_event, "notes": notes, "events": [], **dict(made.settings), **(members or {})}
    server_class = type("Sessions", (getattr(portico, made.prefix + kind),), found)
    if handler is None and body is not None:
        handler = handler_of(body, is_async=made.is_async)
    return server_class(address, handler, **{"sessions": True, "drain_timeout": 5.0, **settings})


@contextmanager
def serving(way: str, body: Body | None, **settings: Any) -> Iterator[Served]:
    """It serves in the background."""
    with short_folder() as folder:
        if settings.get("kind", "").startswith("Unix"):
            settings["address"] = str(folder / "server.sock")
        server = server_of(way, body, notes=folder / "notes", **settings)
        with server.background():
            yield Served(server)


async def echo(talk: Talk) -> None:
    """Numbers what it hears, until the end."""
    number = 0
    try:
        while True:
            data = await talk.recv()
            number += 1
            await talk.send(b"%d:%s" % (number, data))
            if data == b"bye":
                return
    except portico.SessionEnded:
        talk.note("end")
        raise

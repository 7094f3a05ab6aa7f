"""Every way to run times every kind of socket. A new way to run is one row of `WAYS`."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import portico

from ..waiting import until


@dataclass(frozen=True)
class Way:
    """A way to run requests."""

    name: str
    prefix: str
    """What its ready-made classes' names begin with."""
    own_process: bool = False
    """Requests run in a process of their own: what they do to objects is not seen in the test's."""
    own_thread: bool = False
    """Requests pass through `process_request_thread`."""
    own_tasks: bool = False
    """Requests are tasks, their handlers asynchronous; they pass through `process_request_task`."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Class variables that its servers have."""


@dataclass(frozen=True)
class Kind:
    """A kind of socket."""

    name: str
    suffix: str
    family: int
    type: int = socket.SOCK_STREAM

    def address(self, folder: Path) -> Any:
        """A free address to bind."""
        if self.family == socket.AF_UNIX:
            return str(folder / "server.sock")
        return ("::1" if self.family == socket.AF_INET6 else "127.0.0.1", 0)


WAYS = (
    Way("plain", ""),
    Way("thread", "Threading", own_thread=True),
    Way("fork", "Forking", own_process=True),
    Way("green", "Green", own_thread=True, settings=(("event_loop", "asyncio"),)),
    Way("green-uvloop", "Green", own_thread=True, settings=(("event_loop", "uvloop"),)),
    Way("async", "Async", own_tasks=True, settings=(("event_loop", "asyncio"),)),
    Way("async-uvloop", "Async", own_tasks=True, settings=(("event_loop", "uvloop"),)),
)
KINDS = (
    Kind("tcp4", "TCPServer", socket.AF_INET),
    Kind("tcp6", "TCPServer", socket.AF_INET6),
    Kind("unix", "UnixStreamServer", socket.AF_UNIX),
    Kind("udp", "UDPServer", socket.AF_INET, socket.SOCK_DGRAM),
    Kind("unix-dgram", "UnixDatagramServer", socket.AF_UNIX, socket.SOCK_DGRAM),
)


@dataclass(frozen=True)
class Flavour:
    """One way to run with one kind of socket."""

    way: Way
    kind: Kind

    def __str__(self) -> str:
        return f"{self.way.name}-{self.kind.name}"

    @property
    def server_class(self) -> Any:
        made = getattr(portico, self.way.prefix + self.kind.suffix)
        return type(made.__name__, (made,), dict(self.way.settings)) if self.way.settings else made

    def extended(self, **members: Any) -> Any:
        """A subclass, as a user would write one: `class Mine(ThreadingTCPServer): ...`."""
        return type("Mine", (self.server_class,), members)


ALL = [Flavour(way, kind) for way in WAYS for kind in KINDS]
STREAMS = [flavour for flavour in ALL if flavour.kind.type == socket.SOCK_STREAM]
DATAGRAMS = [flavour for flavour in ALL if flavour.kind.type == socket.SOCK_DGRAM]


class Obedient(portico.BaseRequestHandler):
    """Does what the first line of a connection says."""

    def handle(self) -> None:
        with self.request.makefile("rb") as lines:
            line = lines.readline()
            if line.endswith(b"\n"):  # else the client has left before it said what it wants
                command, *arguments = line.split()
                getattr(self, command.decode())(lines, *arguments)

    def echo(self, lines: Any) -> None:
        """All that comes, as it comes."""
        while data := lines.read1(65536):
            self.request.sendall(data)

    def afterwards(self, lines: Any) -> None:
        """All that came, once the client has ended its side."""
        self.request.sendall(lines.read()[::-1])

    def fill(self, lines: Any, size: bytes) -> None:
        """A lot, whether or not anybody takes it."""
        self.request.sendall(bytes(int(size)))

    def fail(self, lines: Any) -> None:
        raise LookupError("a bug in the handler")

    def hold(self, lines: Any) -> None:
        """Say that it runs, then wait for one more line."""
        self.request.sendall(b"running\n")
        self.request.sendall(lines.readline().upper())


class Backwards(portico.BaseRequestHandler):
    """Answers a datagram with its payload turned round, between brackets; one that says so fails."""

    def handle(self) -> None:
        if self.data == b"fail":
            raise LookupError("a bug in the handler")
        assert self.data == self.request[0]
        self.request[1].sendto(b"<" + self.data[::-1] + b">", self.client_address)


class AsyncObedient(portico.AsyncStreamRequestHandler):
    """The same in async."""

    async def handle(self) -> None:
        line = await self.rfile.readline()
        if line.endswith(b"\n"):
            command, *arguments = line.split()
            await getattr(self, command.decode())(*arguments)

    async def answer(self, data: bytes) -> None:
        self.wfile.write(data)
        await self.wfile.drain()

    async def echo(self) -> None:
        while data := await self.rfile.read(65536):
            await self.answer(data)

    async def afterwards(self) -> None:
        await self.answer((await self.rfile.read())[::-1])

    async def fill(self, size: bytes) -> None:
        await self.answer(bytes(int(size)))

    async def fail(self) -> None:
        raise LookupError("a bug in the handler")

    async def hold(self) -> None:
        await self.answer(b"running\n")
        await self.answer((await self.rfile.readline()).upper())


class AsyncBackwards(portico.AsyncBaseRequestHandler):
    """The same in async."""

    async def handle(self) -> None:
        if self.data == b"fail":
            raise LookupError("a bug in the handler")
        assert self.data == self.request[0]
        await self.request[1].sendto(b"<" + self.data[::-1] + b">", self.client_address)


def handler_for(flavour: Flavour) -> Any:
    stream = flavour.kind.type == socket.SOCK_STREAM
    if flavour.way.own_tasks:
        return AsyncObedient if stream else AsyncBackwards
    return Obedient if stream else Backwards


@contextmanager
def looping(server: Any) -> Iterator[Any]:
    """Serve in a thread inside the block; unlike `background()`, leave the server open for another start."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    # A `shutdown()` before a further loop has begun is too early: it changes nothing.
    assert until(lambda: not thread.is_alive() or server._portico_lifecycle.running)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a Unix socket's: 107 bytes are all there is."""
    with tempfile.TemporaryDirectory(prefix="portico-") as name:
        yield Path(name)

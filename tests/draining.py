"""Servers of every way to run for the tests of their end: handlers that end when they are asked, and some that do not.

The handlers come in pairs, `Name` and `AsyncName`; `Way.handler` knows which one a way needs.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import portico
from portico import green
from portico.lifecycle import Event

NAP = 0.01
FOR_EVER = 10.0
"""Seconds that a deaf handler goes on, should a test forget about it."""
MUCH = 1_000_000
"""Lines that are more than the buffers of a connection hold."""


@dataclass(frozen=True)
class Way:
    """A way to run requests."""

    name: str
    prefix: str
    values: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_async(self) -> bool:
        return self.prefix == "Async"

    @property
    def on_loop(self) -> bool:
        return self.prefix in ("Async", "Green")

    @property
    def forks(self) -> bool:
        return self.prefix == "Forking"

    @property
    def waits(self) -> bool:
        """Whether `server_close` waits for its requests."""
        return self.prefix != ""

    def handler(self, name: str) -> Any:
        return globals()["Async" * self.is_async + name]

    def made(self, name: str, kind: str = "TCPServer", folder: Path | None = None, **values: Any) -> Any:
        """A server, bound, whose handler is called `name`, and whose `events` are kept."""
        address: Any = ("127.0.0.1", 0) if folder is None else str(folder / "socket")
        base = getattr(portico, self.prefix + kind)
        server_class = type(f"Telling{base.__name__}", (Telling, base), {})
        return server_class(address, self.handler(name), **{"drain_timeout": 5.0, **self.values, **values})


WAYS = [
    Way("plain", ""),
    Way("threads", "Threading"),
    Way("reused", "Threading", {"reuse_threads": True}),
    Way("forks", "Forking"),
    Way("green-asyncio", "Green", {"event_loop": "asyncio"}),
    Way("green-uvloop", "Green", {"event_loop": "uvloop"}),
    Way("async-asyncio", "Async", {"event_loop": "asyncio"}),
    Way("async-uvloop", "Async", {"event_loop": "uvloop"}),
]


class Release:
    """An event that forked children see, too."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._shared[0] = 1

    def is_set(self) -> bool:
        return bool(self._shared[0])


class Telling:
    """A server that keeps what it has to tell, and can be asked to let its deaf handlers go."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        self.events: list[Event] = []
        self.release = Release()
        super().__init__(*arguments, **values)

    def handle_event(self, event: Event) -> None:
        self.events.append(event)

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in list(self.events) if type(event) is kind]


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Serves in a thread while the block lasts. Whatever has happened, nothing is left of it afterwards."""
    thread = threading.Thread(target=server.serve_forever, name="serving")
    ready = threading.Event()
    server._portico_lifecycle.on_start = ready.set
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        server.release.set()
        server.server_close()
        thread.join(10)
        assert not thread.is_alive()


class Draining(threading.Thread):
    """A drain in a thread of its own, and when it was over."""

    def __init__(self, server: Any, *timeout: float | None) -> None:
        super().__init__(name="test drain", daemon=True)
        self._server = server
        self._timeout = timeout
        self._report: Any = None
        self.error: BaseException | None = None
        self.ended = 0.0
        self.began = time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            self._report = self._server.drain(*self._timeout)
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    def report(self, seconds: float = 10) -> Any:
        self.join(seconds)
        assert not self.is_alive(), "the drain does not end"
        if self.error is not None:
            raise self.error
        return self._report

    @property
    def lasted(self) -> float:
        return self.ended - self.began


class Client:
    """A client, and when it saw the end."""

    def __init__(self, server: Any, *, receive_buffer: int | None = None) -> None:
        address = server.server_address
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(10)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self.ended = 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """For good: children forked by this process may have copies of the socket."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def end(self) -> None:
        """Say that nothing more will be said, unless the server has been first."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def say(self, said: bytes) -> None:
        self.sock.sendall(said)

    def line(self) -> bytes:
        got = b""
        while not got.endswith(b"\n"):
            more = self.sock.recv(1)
            if not more:
                break
            got += more
        return got

    def ask(self, line: bytes) -> bytes:
        self.say(line)
        return self.line()

    def rest(self) -> bytes:
        """All until the end; a reset is one, too."""
        got = bytearray()
        try:
            while more := self.sock.recv(1 << 16):
                got += more
        except ConnectionResetError:
            pass
        self.ended = time.monotonic()
        return bytes(got)


@contextmanager
def clients(server: Any, number: int) -> Iterator[list[Client]]:
    found: list[Client] = []
    try:
        for _ in range(number):
            found.append(Client(server))
        yield found
    finally:
        for client in found:
            client.leave()


def refuses(server: Any) -> bool:
    """Whether a client is refused that connects now.

    One that is not says that it goes: a child that is forked meanwhile has a copy of its socket, and would wait for it.
    """
    address = server.server_address
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(5)
        try:
            sock.connect(address)
        except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
            return True
        with suppress(OSError):  # reset already
            sock.shutdown(socket.SHUT_RDWR)
    return False


def settled(server: Any) -> bool:
    """Whether an answer that was sent in the same tick of the kernel's clock as what it answers is known for one."""
    every = [connection.idle for connection in server.connections()]
    return bool(every) and all(idle is None or idle > 0.27 for idle in every)


def nap(server: Any) -> None:
    if isinstance(server, portico.GreenMixIn):
        green.sleep(NAP)
    else:
        time.sleep(NAP)


def _goes_on(server: Any) -> Iterator[None]:
    end = time.monotonic() + FOR_EVER
    while not server.release.is_set() and time.monotonic() < end:
        yield


# -- polite


class Echo(portico.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class EchoBye(Echo):
    def goodbye(self) -> None:
        self.wfile.write(b"bye\n")


class EchoFails(Echo):
    def goodbye(self) -> None:
        raise LookupError("no goodbye")


class EchoBlocks(Echo):
    def goodbye(self) -> None:
        self.wfile.write(b"bye\n" * MUCH)


class Much(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper() * MUCH)


class Asks(portico.StreamRequestHandler):
    """Answers with what the server says of itself."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"%s\n" % str(self.server.is_draining()).encode())


class AsyncEcho(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            self.wfile.write(line.upper())
            await self.wfile.drain()


class AsyncEchoBye(AsyncEcho):
    async def goodbye(self) -> None:
        self.wfile.write(b"bye\n")
        await self.wfile.drain()


class AsyncEchoFails(AsyncEcho):
    async def goodbye(self) -> None:
        raise LookupError("no goodbye")


class AsyncEchoBlocks(AsyncEcho):
    async def goodbye(self) -> None:
        self.wfile.write(b"bye\n" * MUCH)
        await self.wfile.drain()


class AsyncMuch(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        self.wfile.write((await self.rfile.readline()).upper() * MUCH)
        await self.wfile.drain()


class AsyncAsks(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        async for _ in self.rfile:
            self.wfile.write(b"%s\n" % str(self.server.is_draining()).encode())
            await self.wfile.drain()


# -- deaf


class Sleeps(portico.StreamRequestHandler):
    """Does not look at its client any more."""

    def handle(self) -> None:
        self.wfile.write(b"here\n")
        self.ignore_the_world()

    def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            nap(self.server)


class SleepsBye(Sleeps):
    def goodbye(self) -> None:
        self.wfile.write(b"bye\n")


class Catches(Sleeps):
    """Nor lets anything end it."""

    def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            try:
                nap(self.server)
            except BaseException:
                continue


class Holds(Sleeps):
    """Nor lets anybody else run on its loop."""

    def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            time.sleep(NAP)


class AsyncSleeps(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        self.wfile.write(b"here\n")
        await self.wfile.drain()
        await self.ignore_the_world()

    async def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            await asyncio.sleep(NAP)


class AsyncSleepsBye(AsyncSleeps):
    async def goodbye(self) -> None:
        self.wfile.write(b"bye\n")
        await self.wfile.drain()


class AsyncCatches(AsyncSleeps):
    async def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            try:
                await asyncio.sleep(NAP)
            except BaseException:
                continue


class AsyncHolds(AsyncSleeps):
    async def ignore_the_world(self) -> None:
        for _ in _goes_on(self.server):
            time.sleep(NAP)


# -- those that do something to their server


class Closes(portico.StreamRequestHandler):
    """Calls the method of the server that its client names, and says what came of it."""

    def handle(self) -> None:
        name = self.rfile.readline().strip().decode()
        self.wfile.write(_called(self.server, name))


class AsyncCloses(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        name = (await self.rfile.readline()).strip().decode()
        self.wfile.write(_called(self.server, name))
        await self.wfile.drain()


def _called(server: Any, name: str) -> bytes:
    began = time.monotonic()
    try:
        getattr(server, name)()
    except Exception as error:
        return type(error).__name__.encode()
    return b"at once" if time.monotonic() - began < 1 else b"late"


# -- datagrams


class Datagram(portico.DatagramRequestHandler):
    """Answers when it is let go."""

    def handle(self) -> None:
        self.socket.sendto(b"here", self.client_address)
        for _ in _goes_on(self.server):
            nap(self.server)
        self.wfile.write(self.packet.upper())


class AsyncDatagram(portico.AsyncDatagramRequestHandler):
    async def handle(self) -> None:
        await self.socket.sendto(b"here", self.client_address)
        for _ in _goes_on(self.server):
            await asyncio.sleep(NAP)
        self.wfile.write(self.packet.upper())

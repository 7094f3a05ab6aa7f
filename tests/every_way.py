"""One handler for all ways to run: its body is written once, a coroutine over a `Peer`, and run as each way runs it.

Where nothing is awaited the peer's calls block (or park) inside the coroutine, which then never suspends. What a
handler sees it notes in a file, so that a forked child's notes are read like all others.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import portico
from portico import green

from .contract.flavours import KINDS, WAYS, Kind, Way, short_folder
from .waiting import until

PATIENCE = 10.0


class Peer:
    """What a body has of its connection."""

    def __init__(self, handler: Any, notes: Path) -> None:
        self.handler = handler
        self.request = handler.request
        self.client_address = handler.client_address
        self._notes = notes

    def note(self, what: str) -> None:
        with self._notes.open("ab", buffering=0) as file:
            file.write(what.encode() + b"\n")

    async def recv(self, size: int) -> bytes:
        data: bytes = self.request.recv(size)
        return data

    async def sendall(self, data: bytes) -> None:
        self.request.sendall(data)

    async def pause(self, seconds: float) -> None:
        """Do something else for so long."""
        (green.sleep if isinstance(self.handler.server, portico.GreenMixIn) else time.sleep)(seconds)

    async def close(self) -> None:
        self.request.close()

    async def wrap(self, context: ssl.SSLContext) -> None:
        """Go on in TLS."""
        self.request = context.wrap_socket(self.request, server_side=True)


class AsyncPeer(Peer):
    async def recv(self, size: int) -> bytes:
        data: bytes = await self.request.recv(size)
        return data

    async def sendall(self, data: bytes) -> None:
        await self.request.sendall(data)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class StreamPeer(AsyncPeer):
    async def recv(self, size: int) -> bytes:
        data: bytes = await self.handler.rfile.read(size)
        return data

    async def sendall(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        await self.handler.wfile.drain()

    async def close(self) -> None:
        self.handler.wfile.close()
        await self.handler.wfile.wait_closed()


Body = Callable[[Any], Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class Case:
    """One way to run with one kind of socket, and of the two kinds of async handlers one."""

    way: Way
    kind: Kind
    streams: bool = False

    def __str__(self) -> str:
        return f"{self.way.name}{'-streams' if self.streams else ''}-{self.kind.name}"

    @property
    def is_unix(self) -> bool:
        return self.kind.family == socket.AF_UNIX

    @property
    def one_by_one(self) -> bool:
        return self.way.name == "plain"

    def handler(self, body: Body, notes: Path) -> Any:
        if not self.way.own_tasks:
            return type("Handler", (_Handler,), {"body": staticmethod(body), "notes": notes})
        base = portico.AsyncStreamRequestHandler if self.streams else portico.AsyncBaseRequestHandler
        peer = StreamPeer if self.streams else AsyncPeer

        async def handle(self: Any) -> None:
            await body(peer(self, notes))

        async def finish(self: Any) -> None:
            await base.finish(self)
            Peer(self, notes).note("finish")

        return type("AsyncHandler", (base,), {"handle": handle, "finish": finish})


class _Handler(portico.BaseRequestHandler):
    body: Body
    notes: Path

    def handle(self) -> None:
        run = self.body(Peer(self, self.notes))
        try:
            run.send(None)
        except StopIteration:
            return
        raise AssertionError("the body of a handler that blocks has been suspended")

    def finish(self) -> None:
        Peer(self, self.notes).note("finish")


EVERY = [
    Case(way, kind, streams)
    for way in WAYS
    for kind in KINDS
    if kind.name in ("tcp4", "unix")
    for streams in ((False, True) if way.own_tasks else (False,))
]
TCP = [case for case in EVERY if not case.is_unix]


def in_every_way(cases: list[Case], *, at_once: bool = True) -> Callable[[Callable[[Case], None]], Callable[[], None]]:
    """One test of a test for each case. They run side by side, as they mostly wait, but for those that fork.

    A forked child would have copies of the others' connections, too, and keep them open. All failures are shown.
    """

    def mark(test: Callable[[Case], None]) -> Callable[[], None]:
        def run() -> None:
            failures: list[Exception] = []

            def run_one(case: Case) -> None:
                try:
                    test(case)
                except Exception as error:
                    error.add_note(f"in {case}")
                    failures.append(error)

            rest = [case for case in cases if at_once and not case.way.own_process]
            for case in cases:
                if case not in rest:
                    run_one(case)
            with ThreadPoolExecutor(len(EVERY)) as pool:
                list(pool.map(run_one, rest))
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(cases)} ways", failures)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run

    return mark


class Served:
    """A server that runs, its events, and what its handlers have noted."""

    def __init__(self, server: Any, events: list[Any], notes: Path) -> None:
        self.server = server
        self.events = events
        self._notes = notes

    def connect(self, *, bound_to: Any = None, buffer: int | None = None) -> socket.socket:
        """A client; with so many bytes of room for what it has not read."""
        client = socket.socket(self.server.address_family)
        try:
            client.settimeout(PATIENCE)
            if buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if bound_to is not None:
                client.bind(bound_to)
            client.connect(self.server.server_address)
        except BaseException:
            client.close()
            raise
        return client

    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def of_kind(self, kind: Any) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def ends(self) -> list[portico.Connection]:
        return [event.connection for event in self.of_kind(portico.lifecycle.ConnectionEnded)]

    def reasons(self, number: int = 1) -> list[str]:
        """Why connections have ended, when so many have."""
        assert until(lambda: len(self.ends()) >= number), (self.ends(), self.server.connections(), self.notes())
        return [str(connection.reason.value) for connection in self.ends() if connection.reason is not None]


@contextmanager
def serving(case: Case, body: Body, members: dict[str, Any] | None = None, **settings: Any) -> Iterator[Served]:
    """A server for this body, that serves in the background."""
    events: list[Any] = []

    def handle_event(self: Any, event: Any) -> None:
        events.append(event)

    made = type("Server", (case_class(case),), {"handle_event": handle_event, **(members or {})})
    with short_folder() as folder:
        notes = folder / "notes"
        server = made(case.kind.address(folder), case.handler(body, notes), drain_timeout=5.0, **settings)
        with server.background():
            yield Served(server, events, notes)


def case_class(case: Case) -> Any:
    """The ready-made class of this case."""
    made = getattr(portico, case.way.prefix + case.kind.suffix)
    return type(made.__name__, (made,), dict(case.way.settings))


async def until_the_end(peer: Peer) -> None:
    """A body that echoes, and notes how it has learned of the end."""
    try:
        while data := await peer.recv(65536):
            await peer.sendall(data)
        peer.note("end")
    except ConnectionError:
        peer.note("end")
        raise
    finally:
        peer.note("finally")


def seconds_to_the_end(client: socket.socket) -> float:
    """How long it takes until the server closes, or resets. Reads and forgets what comes before."""
    began = time.monotonic()
    with suppress(ConnectionError):
        while client.recv(65536):
            pass
    return time.monotonic() - began


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

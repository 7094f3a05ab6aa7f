"""Bytes in and out are exact, by whatever call they go: the kernel's count over TCP, the sockets' own over Unix."""

from __future__ import annotations

import asyncio
import inspect
import io
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import portico
from portico import green

from .contract.flavours import STREAMS, Flavour, short_folder
from .waiting import until

PATIENCE = 10.0
SIZES = (1, 1_000, 65_536, 65_537, 1_000_000)
BIG = 4_000_000
ROOM = 1_500_000
"""More than a Unix connection's buffers hold, and less than BIG."""
PIECE = 65_536
"""So much may be under way and not be counted yet."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not count")


@dataclass(frozen=True)
class Case:
    """A way to run, a kind of socket, and of the two kinds of async handlers one."""

    flavour: Flavour
    streams: bool = False

    def __str__(self) -> str:
        return f"{self.flavour}{'-streams' if self.streams else ''}"

    @property
    def is_unix(self) -> bool:
        return self.flavour.kind.family == socket.AF_UNIX


FLAVOURS = [flavour for flavour in STREAMS if flavour.kind.name in ("tcp4", "unix") and not flavour.way.own_process]
BLOCKING = [Case(flavour) for flavour in FLAVOURS if not flavour.way.own_tasks]
AWAITED = [Case(flavour) for flavour in FLAVOURS if flavour.way.own_tasks]
STREAMED = [Case(flavour, streams=True) for flavour in FLAVOURS if flavour.way.own_tasks]
FORKS = {flavour.kind.name: flavour for flavour in STREAMS if flavour.way.own_process}

Call = Callable[[Any, Any], Awaitable[None]]
Body = Callable[[Any, "Steps"], Awaitable[None]]


async def of(value: Any) -> Any:
    """What a call returned, whether or not it has to be awaited."""
    return await value if inspect.isawaitable(value) else value


class Steps:
    """A handler does a step, and goes on when the test has looked at what came of it."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self._done, self._go_on = threading.Semaphore(0), threading.Semaphore(0)

    async def done(self, handler: Any) -> None:
        self._done.release()
        if isinstance(handler.server, portico.AsyncMixIn):
            await asyncio.to_thread(self._go_on.acquire, True, PATIENCE)
        elif isinstance(handler.server, portico.GreenMixIn):
            green.in_thread(self._go_on.acquire, True, PATIENCE)
        else:
            assert self._go_on.acquire(timeout=PATIENCE)

    @contextmanager
    def looking(self) -> Iterator[None]:
        assert self._done.acquire(timeout=PATIENCE)
        yield
        self._go_on.release()


def handler_for(case: Case, body: Body, steps: Steps) -> Any:
    if case.flavour.way.own_tasks:
        base = portico.AsyncStreamRequestHandler if case.streams else portico.AsyncBaseRequestHandler

        async def handle(self: Any) -> None:
            await body(self, steps)

        return type("AsyncHandler", (base,), {"handle": handle, "limit": 2 * SIZES[-1]})  # of a line

    def run(self: Any) -> None:
        with pytest.raises(StopIteration):  # nothing in it is awaited
            body(self, steps).__await__().send(None)  # type: ignore[attr-defined]

    return type("Handler", (portico.StreamRequestHandler,), {"handle": run})


@contextmanager
def serving(case: Case, body: Body, **settings: Any) -> Iterator[tuple[Any, socket.socket, Steps]]:
    """A server, a client of it, and the steps of its handler."""
    steps = Steps()
    with short_folder() as folder:
        made = case.flavour.server_class(
            case.flavour.kind.address(folder), handler_for(case, body, steps), **{"drain_timeout": 0, **settings}
        )
        with made.background() as server, socket.socket(server.address_family) as client:
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            yield server, client, steps


def see(server: Any, *expected: int) -> None:
    """These are the live connection's bytes in and out, now or in a moment, and then no others."""
    [connection] = server.connections()
    until(lambda: (connection.bytes_in, connection.bytes_out) == expected, 5)
    assert (connection.bytes_in, connection.bytes_out) == expected
    stats = server.stats()
    assert (stats.bytes_in, stats.bytes_out) == expected


def see_at_the_end(server: Any, client: socket.socket, *expected: int) -> None:
    client.shutdown(socket.SHUT_WR)  # a forked child has a copy of the client, too
    client.close()
    assert until(lambda: sum(server.stats().ended.values()) == 1)
    stats = server.stats()
    assert (stats.bytes_in, stats.bytes_out) == expected
    assert stats.ended == {"done": 1}


def take(client: socket.socket, size: int) -> None:
    while size:
        piece = client.recv(min(size, 1 << 16))
        assert piece, f"{size} bytes are missing"
        size -= len(piece)


# -- calls that read, on whatever is awaited or not. Each reads so many bytes, of which the last ends a line


async def recv(handler: Any, size: int) -> None:
    while size:
        size -= len(await of(handler.request.recv(min(size, 4096))))


async def recv_into(handler: Any, size: int) -> None:
    while size:
        size -= await of(handler.request.recv_into(bytearray(min(size, 4096))))


async def recv_into_a_part(handler: Any, size: int) -> None:
    buffer = bytearray(4096)
    while size:
        size -= await of(handler.request.recv_into(buffer, min(size, 1000)))


async def recvfrom(handler: Any, size: int) -> None:
    while size:
        size -= len((await of(handler.request.recvfrom(min(size, 4096))))[0])


async def recvfrom_into(handler: Any, size: int) -> None:
    while size:
        size -= (await of(handler.request.recvfrom_into(bytearray(min(size, 4096)))))[0]


async def recvmsg(handler: Any, size: int) -> None:
    while size:
        size -= len((await of(handler.request.recvmsg(min(size, 4096))))[0])


async def recvmsg_into(handler: Any, size: int) -> None:
    while size:
        half = min(size, 4096) // 2
        buffers = [bytearray(half), bytearray(min(size, 4096) - half)]
        size -= (await of(handler.request.recvmsg_into(buffers)))[0]


# MSG_WAITALL is for sockets that block: there each of these is one call.


async def recv_all(handler: Any, size: int) -> None:
    assert len(handler.request.recv(size, socket.MSG_WAITALL)) == size


async def recv_all_into(handler: Any, size: int) -> None:
    assert handler.request.recv_into(bytearray(size), size, socket.MSG_WAITALL) == size


async def recv_all_from(handler: Any, size: int) -> None:
    assert len(handler.request.recvfrom(size, socket.MSG_WAITALL)[0]) == size


async def recv_all_of_a_message(handler: Any, size: int) -> None:
    assert len(handler.request.recvmsg(size, 0, socket.MSG_WAITALL)[0]) == size


async def file_read(handler: Any, size: int) -> None:
    with handler.request.makefile("rb") as file:
        assert len(file.read(size)) == size


async def file_readinto_unbuffered(handler: Any, size: int) -> None:
    with handler.request.makefile("rb", 0) as file:
        while size:
            size -= file.readinto(bytearray(min(size, 4096)))


async def rfile_read(handler: Any, size: int) -> None:
    assert len(await of(handler.rfile.read(size))) == size


async def rfile_readline(handler: Any, size: int) -> None:
    assert len(await of(handler.rfile.readline())) == size


async def stream_read(handler: Any, size: int) -> None:
    while size:
        size -= len(await handler.rfile.read(min(size, 4096)))


async def stream_readexactly(handler: Any, size: int) -> None:
    await handler.rfile.readexactly(size)


async def in_another_thread(handler: Any, size: int) -> None:
    while size:
        got = green.in_thread(handler.request.recv, min(size, 4096))
        size -= len(got)


SOCKET_READS = (recv, recv_into, recv_into_a_part, recvfrom, recvfrom_into, recvmsg, recvmsg_into)
BLOCKING_READS = (
    *SOCKET_READS, recv_all, recv_all_into, recv_all_from, recv_all_of_a_message, file_read, file_readinto_unbuffered,
    rfile_read, rfile_readline,
)  # fmt: skip
STREAM_READS = (stream_read, stream_readexactly, rfile_readline)


def pairs(**calls: Any) -> Any:
    """Parameters: each of these cases with each of its calls."""
    every = {"blocking": BLOCKING, "awaited": AWAITED, "streamed": STREAMED}
    found = [(case, call) for name in calls for case in every[name] for call in calls[name]]
    return pytest.mark.parametrize(("case", "call"), found, ids=lambda value: getattr(value, "__name__", str(value)))


def check_reads(case: Case, call: Call) -> None:
    async def body(handler: Any, steps: Steps) -> None:
        for size in SIZES:
            await call(handler, size)
            await steps.done(handler)

    with serving(case, body) as (server, client, steps):
        total = 0
        for size in SIZES:
            client.sendall(b"x" * (size - 1) + b"\n")
            total += size
            with steps.looking():
                see(server, total, 0)
        see_at_the_end(server, client, total, 0)


@pairs(blocking=BLOCKING_READS, awaited=SOCKET_READS, streamed=STREAM_READS)
def test_what_is_read_is_counted_once(case: Case, call: Call) -> None:
    check_reads(case, call)


@pytest.mark.parametrize("case", [case for case in BLOCKING if "green" in str(case)], ids=str)
def test_so_is_what_is_read_in_another_thread(case: Case) -> None:
    check_reads(case, in_another_thread)


@pytest.mark.parametrize("case", BLOCKING + AWAITED, ids=str)
def test_what_is_only_looked_at_is_not_counted(case: Case) -> None:
    """Over TCP the kernel counts what comes, whether or not it is read."""
    peek = socket.MSG_PEEK

    async def body(handler: Any, steps: Steps) -> None:
        sock = handler.request
        assert len(await of(sock.recv(10, peek))) == 10
        assert await of(sock.recv_into(bytearray(10), 10, peek)) == 10
        assert len((await of(sock.recvfrom(10, peek)))[0]) == 10
        assert (await of(sock.recvfrom_into(bytearray(10), 10, peek)))[0] == 10
        assert len((await of(sock.recvmsg(10, 0, peek)))[0]) == 10
        assert (await of(sock.recvmsg_into([bytearray(10)], 0, peek)))[0] == 10
        await steps.done(handler)
        assert len(await of(sock.recv(10))) == 10
        await steps.done(handler)

    with serving(case, body) as (server, client, steps):
        client.sendall(bytes(10))
        with steps.looking():
            see(server, 0 if case.is_unix else 10, 0)
        with steps.looking():
            see(server, 10, 0)
        see_at_the_end(server, client, 10, 0)


# -- calls that send


async def send(handler: Any, data: bytes) -> None:
    while data:
        data = data[await of(handler.request.send(data)) :]


async def sendall(handler: Any, data: bytes) -> None:
    await of(handler.request.sendall(data))


async def sendall_of_a_view(handler: Any, data: bytes) -> None:
    await of(handler.request.sendall(memoryview(bytearray(data))))


async def sendmsg(handler: Any, data: bytes) -> None:
    while data:
        middle = min(len(data), 100)
        data = data[await of(handler.request.sendmsg([data[:middle], data[middle:]])) :]


async def sendfile(handler: Any, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"head" + data + b"tail")
        file.flush()
        assert await of(handler.request.sendfile(file, 4, len(data))) == len(data)


async def sendfile_to_its_end(handler: Any, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        assert await of(handler.request.sendfile(file)) == len(data)


async def sendfile_of_no_real_file(handler: Any, data: bytes) -> None:
    assert await of(handler.request.sendfile(io.BytesIO(data))) == len(data)


async def with_a_timeout(handler: Any, data: bytes) -> None:
    handler.request.settimeout(PATIENCE)
    handler.request.sendall(data)
    handler.request.settimeout(None)


async def file_write(handler: Any, data: bytes) -> None:
    with handler.request.makefile("wb") as file:
        file.write(data)


async def wfile_write(handler: Any, data: bytes) -> None:
    handler.wfile.write(data)
    await of(handler.wfile.flush())


async def sendall_in_another_thread(handler: Any, data: bytes) -> None:
    green.in_thread(handler.request.sendall, data)


async def stream_write(handler: Any, data: bytes) -> None:
    handler.wfile.write(data)
    await handler.wfile.drain()


async def stream_writelines(handler: Any, data: bytes) -> None:
    handler.wfile.writelines([data[:10], data[10:]])
    await handler.wfile.drain()


SOCKET_SENDS = (
    send, sendall, sendall_of_a_view, sendmsg, sendfile, sendfile_to_its_end, sendfile_of_no_real_file
)  # fmt: skip
BLOCKING_SENDS = (*SOCKET_SENDS, with_a_timeout, file_write, wfile_write)
STREAM_SENDS = (stream_write, stream_writelines)


def check_sends(case: Case, call: Call) -> None:
    async def body(handler: Any, steps: Steps) -> None:
        for size in SIZES:
            await call(handler, bytes(size))
            await steps.done(handler)

    with serving(case, body) as (server, client, steps):
        total = 0
        for size in SIZES:
            take(client, size)
            total += size
            with steps.looking():
                see(server, 0, total)
        assert client.recv(1) == b""
        see_at_the_end(server, client, 0, total)


@pairs(blocking=BLOCKING_SENDS, awaited=SOCKET_SENDS, streamed=STREAM_SENDS)
def test_what_is_sent_is_counted_once(case: Case, call: Call) -> None:
    check_sends(case, call)


@pytest.mark.parametrize("case", [case for case in BLOCKING if "green" in str(case)], ids=str)
def test_so_is_what_is_sent_in_another_thread(case: Case) -> None:
    check_sends(case, sendall_in_another_thread)


UNIX = [case for case in BLOCKING + AWAITED + STREAMED if case.is_unix]
LONG: dict[str, Call] = {
    "sendall": sendall, "sendall with a timeout": with_a_timeout, "sendfile": sendfile, "stream": stream_write
}  # fmt: skip


def long_calls() -> list[Any]:
    """The calls that may last, of each kind of handler."""
    found = []
    for case in UNIX:
        blocks = not case.flavour.way.own_tasks
        names = ["stream"] if case.streams else ["sendall", "sendfile", *["sendall with a timeout"] * blocks]
        found += [pytest.param(case, LONG[name], id=f"{case}-{name}") for name in names]
    return found


@pytest.mark.parametrize(("case", "call"), long_calls())
def test_a_call_that_lasts_shows_how_far_it_has_come(case: Case, call: Call) -> None:
    """So that a slow reader is told from one that takes nothing."""

    async def body(handler: Any, steps: Steps) -> None:
        await call(handler, bytes(BIG))

    with serving(case, body) as (server, client, _):
        [connection] = server.connections() if until(server.connections) else [None]
        for taken in range(0, BIG - ROOM, 4 * PIECE):
            assert until(lambda taken=taken: connection.bytes_out >= taken - PIECE), (taken, connection.bytes_out)
            assert connection.bytes_out <= taken + ROOM
            take(client, 4 * PIECE)
        while client.recv(1 << 20):
            pass
        see_at_the_end(server, client, 0, BIG)


@pytest.mark.parametrize("case", [case for case in BLOCKING if case.is_unix], ids=str)
def test_what_a_timeout_ends_has_been_counted_so_far(case: Case) -> None:
    async def body(handler: Any, steps: Steps) -> None:
        handler.request.settimeout(0.05)
        with pytest.raises(TimeoutError):
            handler.request.sendall(bytes(BIG))
        await steps.done(handler)

    with serving(case, body) as (server, client, steps):
        with steps.looking():
            [connection] = server.connections()
            sent = connection.bytes_out
            assert 0 < sent < ROOM
        take(client, sent)
        assert client.recv(1) == b""
        see_at_the_end(server, client, 0, sent)


@pytest.mark.parametrize("case", [case for case in BLOCKING if case.is_unix], ids=str)
def test_a_timeout_is_for_the_whole_of_sendall(case: Case) -> None:
    """However steadily the client takes a little."""

    async def body(handler: Any, steps: Steps) -> None:
        handler.request.settimeout(0.2)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            handler.request.sendall(bytes(50 * BIG))
        steps.notes.append(time.monotonic() - began)
        await steps.done(handler)

    with serving(case, body) as (_, client, steps):
        assert until(lambda: steps.notes or not client.recv(100))
        with steps.looking():
            assert 0.2 <= steps.notes[0] < 1


# -- children's connections, which their parent looks at


class Echo(portico.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


@contextmanager
def forking(kind: str, **settings: Any) -> Iterator[tuple[Any, socket.socket]]:
    flavour = FORKS[kind]
    with short_folder() as folder:
        made = flavour.server_class(flavour.kind.address(folder), Echo, drain_timeout=0, **settings)
        with made.background() as server, socket.socket(server.address_family) as client:
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            yield server, client


@pytest.mark.parametrize(
    ("kind", "settings"), [("tcp4", {"idle_timeout": 60}), ("unix", {}), ("unix", {"idle_timeout": 60})], ids=str
)
def test_a_forked_childs_connection_is_counted_where_the_parent_keeps_it_or_shares_memory(
    kind: str, settings: dict[str, Any]
) -> None:
    with forking(kind, **settings) as (server, client):
        total = 0
        for size in SIZES[:-1]:
            client.sendall(bytes(size))
            take(client, size)
            total += size
            see(server, total, total)
        see_at_the_end(server, client, total, total)


def test_else_it_is_known_when_the_child_has_ended() -> None:
    with forking("tcp4") as (server, client):
        client.sendall(b"hello")
        take(client, 5)
        [connection] = server.connections()
        assert (connection.bytes_in, connection.bytes_out, connection.idle) == (None, None, None)
        see_at_the_end(server, client, 5, 5)

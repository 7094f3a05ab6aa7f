"""What green and async servers must not do: grow, spin, or break for what a handler does beside serving."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import gc
import os
import socket
import subprocess
import sys
import termios
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from greenlet import greenlet

import portico
from portico import green

from . import load
from .loops import LOOPBACK, LOOPS, ask, connected, rest_of
from .waiting import until

Make = Callable[..., Any]
WAYS = {"green": portico.GreenTCPServer, "async": portico.AsyncTCPServer}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, way: str) -> Make:
    """`server(green=..., async_=...)`: a TCP server with that way's handler."""

    def make(*, plain: Any, awaited: Any, **values: Any) -> Any:
        handler = plain if way == "green" else awaited
        return WAYS[way](LOOPBACK, handler, event_loop=request.param, **values)

    return make


# -- grow: 100,000 requests in all

CONNECTIONS = 2_500
DATAGRAMS = 10_000
SLACK = 50
"""Objects more than before that say nothing: greenlets are kept, as many as there were requests at once."""


def census() -> Counter[str]:
    """How many there are of what requests are made of."""
    gc.collect()
    kinds = {"greenlets": greenlet, "tasks": asyncio.Task, "contexts": contextvars.Context, "sockets": socket.socket}
    kinds |= {"futures": asyncio.Future, "frames": type(sys._getframe())}
    count = Counter(name for thing in gc.get_objects() for name, kind in kinds.items() if isinstance(thing, kind))
    count["descriptors"] = len(os.listdir("/proc/self/fd"))
    count["objects"] = len(gc.get_objects()) // 100  # in hundreds
    return count


def resident() -> float:
    """This process's memory, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def assert_nothing_grows(serving: Any, client: str, number: int) -> None:
    def grown() -> Counter[str]:
        return Counter({name: n - counts[0][name] for name, n in census().items() if n > counts[0][name] + SLACK})

    counts, memory = [], []
    for _ in range(2):
        assert load.finished(client, serving, number) == number
        counts.append(census())
        memory.append(resident())
    assert until(lambda: not grown(), 5), grown()
    assert counts[0]["greenlets"] < 100  # those that are used again
    assert memory[1] - memory[0] < 1, f"{memory} MiB"


def test_connections_leave_nothing_behind(server: Make) -> None:
    def plain(request: Any, *_: Any) -> None:
        while data := request.recv(1000):
            request.sendall(data)

    async def awaited(request: Any, *_: Any) -> None:
        while data := await request.recv(1000):
            await request.sendall(data)

    with server(plain=plain, awaited=awaited).background() as serving, ExitStack() as stack:
        # These wait all the while, beside numbers that are used again.
        neighbours = [stack.enter_context(connected(serving)) for _ in range(10)]
        for neighbour in neighbours:
            neighbour.sendall(b"x")
            assert neighbour.recv(1) == b"x"
        assert_nothing_grows(serving, "connect_echo_close", CONNECTIONS)
        for neighbour in neighbours:
            neighbour.sendall(b"still")
            assert neighbour.recv(10) == b"still"


def test_a_request_that_waits_keeps_nothing_of_others_that_have_ended(server: Make) -> None:
    known: list[weakref.ref[Any]] = []

    def plain(request: Any, *_: Any) -> None:
        known.append(weakref.ref(request))
        while data := request.recv(1000):
            request.sendall(data)

    async def awaited(request: Any, *_: Any) -> None:
        known.append(weakref.ref(request))
        while data := await request.recv(1000):
            await request.sendall(data)

    def together(serving: Any) -> list[socket.socket]:
        clients = [stack.enter_context(connected(serving)) for _ in range(10)]
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            assert client.recv(1) == b"x"
        return clients

    def alive() -> int:
        gc.collect()
        return sum(reference() is not None for reference in known)

    with server(plain=plain, awaited=awaited).background() as serving, ExitStack() as stack:
        waiting = together(serving)
        for _ in range(3):
            for client in together(serving):
                client.close()
        assert len(known) == 40
        assert until(lambda: alive() <= len(waiting) + 1, 2), f"{alive()} of {len(known)}"


@pytest.mark.parametrize("loop", LOOPS)
def test_datagrams_leave_nothing_behind(way: str, loop: str) -> None:
    def plain(request: Any, client_address: Any, server: Any) -> None:
        request[1].sendto(request[0], client_address)

    async def awaited(request: Any, client_address: Any, server: Any) -> None:
        await request[1].sendto(request[0], client_address)

    made: Any = portico.GreenUDPServer if way == "green" else portico.AsyncUDPServer
    with made(LOOPBACK, plain if way == "green" else awaited, event_loop=loop).background() as serving:
        assert_nothing_grows(serving, "datagrams", DATAGRAMS)


# -- spin


@pytest.mark.parametrize("reads", ["nothing", "the end"])
def test_a_peer_that_has_ended_its_side_costs_nothing_while_it_is_waited_for(server: Make, reads: str) -> None:
    """The descriptor stays readable all the time; nobody reads it, or the end of it has been read."""
    release: list[Any] = []
    waiting: list[str] = []

    async def wait() -> None:
        event = asyncio.Event()
        release.append((asyncio.get_running_loop(), event))
        waiting.append("waits")
        await event.wait()

    def plain(request: Any, *_: Any) -> None:
        while (said := request.recv(5)) != b"first":
            request.sendall(said)
        if reads == "the end":
            assert request.recv(1) == b""
        green.wait_for(wait())
        request.sendall(b"last")

    async def awaited(request: Any, *_: Any) -> None:
        while (said := await request.recv(5)) != b"first":
            await request.sendall(said)
        if reads == "the end":
            assert await request.recv(1) == b""
        await wait()
        await request.sendall(b"last")

    with server(plain=plain, awaited=awaited).background() as serving, connected(serving) as client:
        for _ in range(50):  # so that it has waited for this descriptor before
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        client.sendall(b"first")
        client.shutdown(socket.SHUT_WR)
        assert until(lambda: waiting)
        began, used = time.monotonic(), time.process_time()
        time.sleep(0.2)
        used, lasted = time.process_time() - used, time.monotonic() - began
        assert used < lasted / 4, f"{used:.3f} s of {lasted:.3f}"
        ((loop, event),) = release
        loop.call_soon_threadsafe(event.set)
        assert rest_of(client) == b"last"


def grows(client: socket.socket) -> bool:
    """Whether more arrives while others have a turn."""
    before, after = bytearray(4), bytearray(4)
    fcntl.ioctl(client, termios.FIONREAD, before)
    time.sleep(0.01)
    fcntl.ioctl(client, termios.FIONREAD, after)
    return before != after


def test_a_peer_that_has_ended_its_side_and_does_not_read_costs_nothing(server: Make) -> None:
    size = 30_000_000

    def plain(request: Any, *_: Any) -> None:
        assert request.recv(10) == b"go"
        request.sendall(bytes(size))

    async def awaited(request: Any, *_: Any) -> None:
        assert await request.recv(10) == b"go"
        await request.sendall(bytes(size))

    with server(plain=plain, awaited=awaited).background() as serving, connected(serving) as client:
        client.sendall(b"go")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"\0"
        assert until(lambda: not grows(client))  # the buffers are full
        began, used = time.monotonic(), time.process_time()
        time.sleep(0.2)
        used, lasted = time.process_time() - used, time.monotonic() - began
        assert used < lasted / 4, f"{used:.3f} s of {lasted:.3f}"
        assert len(rest_of(client)) == size - 1


# -- break

CHILD = [sys.executable, "-I", "-S", "-c", "import sys; print(sys.stdin.read().upper(), flush=True)"]


async def program(word: bytes) -> bytes:
    """A program of asyncio's, with connections of its own."""
    listener = await asyncio.start_server(lambda _, writer: writer.close(), *LOOPBACK)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    return word.upper()


def test_a_handler_may_run_a_program_of_asyncios_in_a_thread(server: Make) -> None:
    def plain(request: Any, *_: Any) -> None:
        request.sendall(green.in_thread(asyncio.run, program(request.recv(10))))

    async def awaited(request: Any, *_: Any) -> None:
        await request.sendall(await asyncio.to_thread(asyncio.run, program(await request.recv(10))))

    with server(plain=plain, awaited=awaited).background() as serving:
        assert [ask(serving, b"hello") for _ in range(3)] == [b"HELLO"] * 3


def test_a_handler_may_run_a_subprocess(server: Make) -> None:
    def run(said: bytes) -> bytes:
        return subprocess.run(CHILD, input=said, capture_output=True, check=True).stdout

    def plain(request: Any, *_: Any) -> None:
        data = request.recv(10)
        request.sendall(green.in_thread(run, data) + run(data))

    async def awaited(request: Any, *_: Any) -> None:
        data = await request.recv(10)
        await request.sendall(await asyncio.to_thread(run, data) + run(data))

    with server(plain=plain, awaited=awaited).background() as serving:
        assert ask(serving, b"hello") == b"HELLO\n" * 2
        assert ask(serving, b"again") == b"AGAIN\n" * 2


def test_a_subprocess_inherits_nothing_of_the_servers(server: Make) -> None:
    """Else a connection, or the listener, would be open for as long as it lives."""
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [*CHILD[:-1], "print('up', flush=True); input()"]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False))

    def plain(request: Any, *_: Any) -> None:
        start()
        request.sendall(b"started")

    async def awaited(request: Any, *_: Any) -> None:
        start()
        await request.sendall(b"started")

    try:
        with server(plain=plain, awaited=awaited).background() as serving:
            assert ask(serving) == b"started"
            assert children[0].stdout is not None
            assert children[0].stdout.readline() == b"up\n"
            held = [os.readlink(path) for path in Path(f"/proc/{children[0].pid}/fd").iterdir()]
            assert not [what for what in held if what.startswith(("socket:", "anon_inode:"))]
    finally:
        for child in children:
            child.communicate(b"\n")


@pytest.mark.alerts
def test_an_exception_in_finish_leaves_nothing_open(server: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Plain(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(10))

        def finish(self) -> None:
            raise LookupError("in finish")

    class Awaited(portico.AsyncBaseRequestHandler):
        async def handle(self) -> None:
            await self.request.sendall(await self.request.recv(10))

        async def finish(self) -> None:
            raise LookupError("in finish")

    with server(plain=Plain, awaited=Awaited).background() as serving:
        before = len(os.listdir("/proc/self/fd"))
        assert [ask(serving, b"x") for _ in range(20)] == [b"x"] * 20
        assert until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)
    assert caplog.text.count("LookupError: in finish") == 20

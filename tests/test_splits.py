"""T14: a stream may be cut anywhere on its way, and lines are the same: every split of each, in every way to run.

A split is one only if the first part has been read before the second one is sent. On Unix sockets the client can see
that (SIOCOUTQ counts what the peer has not read); over TCP the test looks at the server's end, which is in its process.
"""

from __future__ import annotations

import ast
import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import portico

from .contract.flavours import STREAMS, Flavour, short_folder
from .waiting import until

LIMIT = 8
FITS = b"x" * (LIMIT - 1) + b"\n"
LONG = b"y" * (3 * LIMIT) + b"\n"
CASES: dict[str, tuple[bytes, list[Any]]] = {
    "several": (b"a\nbb\n\nccc\n", [b"a\n", b"bb\n", b"\n", b"ccc\n"]),
    "the last without an end": (b"a\nbb", [b"a\n", b"bb"]),
    "with a carriage return": (b"GET /\r\n\r\na\rb\n\r", [b"GET /\r\n", b"\r\n", b"a\rb\n", b"\r"]),
    "as long as allowed": (FITS + FITS + b"z\n", [FITS, FITS, b"z\n"]),
    "too long": (FITS + LONG, [FITS, "too long"]),
    "too long and without an end": (b"a\n" + LONG[:-1], [b"a\n", "too long"]),
}
BLOCKING = {"too long and more": (LONG + b"a\n" + LONG + FITS, ["too long", b"a\n", "too long", FITS])}
"""What comes after a line that is too long; asyncio's streams leave open how much of it they have thrown away."""
FLAVOURS = [
    each for each in STREAMS if each.kind.name == "unix" or (each.kind.name == "tcp4" and not each.way.own_process)
]


class Lines(portico.StreamRequestHandler):
    """Tells at the end which lines it has read, and where one was too long."""

    max_line = LIMIT

    def handle(self) -> None:
        found: list[Any] = []
        while line := self.next_line(found):
            found.append(line)
        self.wfile.write(repr(found).encode())

    def next_line(self, found: list[Any]) -> bytes:
        while True:
            try:
                return bytes(self.rfile.readline())
            except portico.LineTooLong:
                found.append("too long")


class Iterates(Lines):
    """The same, by iteration, which goes another way through the file."""

    def next_line(self, found: list[Any]) -> bytes:
        while True:
            try:
                return bytes(next(iter(self.rfile), b""))
            except portico.LineTooLong:
                found.append("too long")


class Unbounded(Lines):
    """The standard library's file; none of its lines is too long."""

    max_line = None


class AsyncLines(portico.AsyncStreamRequestHandler):
    limit = LIMIT

    async def handle(self) -> None:
        found: list[Any] = []
        try:
            await self.read_into(found)
        except ValueError:
            found.append("too long")
            while await self.rfile.read(100):  # or the client could not send the second part
                pass
        self.wfile.write(repr(found).encode())

    async def read_into(self, found: list[Any]) -> None:
        while line := await self.rfile.readline():
            found.append(line)


class AsyncIterates(AsyncLines):
    async def read_into(self, found: list[Any]) -> None:
        async for line in self.rfile:
            found.append(line)


@contextmanager
def client_of(server: Any) -> Iterator[socket.socket]:
    with socket.socket(server.address_family) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        yield client


def unread(server: Any, client: socket.socket) -> int:
    """Bytes that have been sent, and not been read by the handler."""
    if client.family == socket.AF_UNIX:
        return _asked(client, termios.TIOCOUTQ)
    return sum(_asked(connection.current_socket(), termios.FIONREAD) for connection in server.connections())


def _asked(sock: socket.socket, what: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, what, bytes(4)))[0])


def arrived(server: Any, client: socket.socket, number: int) -> bool:
    if client.family == socket.AF_UNIX or not number:
        return bool(server.connections())
    return [connection.bytes_in for connection in server.connections()] == [number]


def told(server: Any, first: bytes, rest: bytes) -> list[Any]:
    """What the handler makes of these two parts of a stream."""
    with client_of(server) as client:
        client.sendall(first)
        assert until(lambda: arrived(server, client, len(first)) and not unread(server, client))
        client.sendall(rest)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert until(lambda: not server.connections())
    found: list[Any] = ast.literal_eval(answer.decode())
    return found


def check_every_split(flavour: Flavour, handler: Any, cases: dict[str, tuple[bytes, list[Any]]]) -> None:
    with short_folder() as folder:
        address = flavour.kind.address(Path(folder))
        with flavour.server_class(address, handler).background() as server:
            for name, (data, expected) in cases.items():
                for at in range(len(data) + 1):
                    assert told(server, data[:at], data[at:]) == expected, (name, at)


@pytest.mark.parametrize("handler", [Lines, Iterates])
@pytest.mark.parametrize("flavour", [each for each in FLAVOURS if not each.way.own_tasks], ids=str)
def test_lines_are_the_same_at_every_split(flavour: Flavour, handler: Any) -> None:
    check_every_split(flavour, handler, CASES | BLOCKING)


@pytest.mark.parametrize("flavour", [each for each in FLAVOURS if not each.way.own_tasks], ids=str)
def test_so_they_are_without_a_limit(flavour: Flavour) -> None:
    unbounded = {name: (data, data.splitlines(keepends=True)) for name, (data, _) in CASES.items() if b"\r" not in data}
    check_every_split(flavour, Unbounded, unbounded)


@pytest.mark.parametrize("handler", [AsyncLines, AsyncIterates])
@pytest.mark.parametrize("flavour", [each for each in FLAVOURS if each.way.own_tasks], ids=str)
def test_so_they_are_with_asyncios_streams(flavour: Flavour, handler: Any) -> None:
    check_every_split(flavour, handler, CASES)

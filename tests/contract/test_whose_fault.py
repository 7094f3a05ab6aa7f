"""Stream flavours: an error of another connection is the handler's fault, one of the client's own is nobody's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from ..waiting import until
from .flavours import STREAMS, AsyncObedient, Flavour, Obedient

Connect = Callable[..., Any]
Log = Callable[[], list[str]]

pytestmark = pytest.mark.parametrize("flavour", STREAMS, ids=str)
RESET = struct.pack("ii", 1, 0)


def broken(how: str) -> None:
    """Use a backend's connection that the backend has reset, or whose other end is closed."""
    here, there = socket.socketpair()
    with here, there:
        if how == "pipe":
            there.close()
            here.sendall(b"x")
        with socket.create_server(("127.0.0.1", 0)) as backend:
            mine = socket.create_connection(backend.getsockname(), 10)
            theirs, _ = backend.accept()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            theirs.close()
            with mine:
                mine.recv(1)


class Borrows(Obedient):
    """`borrow` uses a backend that fails; `last` does, when the client has told that it will say no more."""

    def borrow(self, lines: Any, how: bytes) -> None:
        broken(how.decode())

    def last(self, lines: Any, how: bytes) -> None:
        assert lines.read() == b""
        broken(how.decode())

    def suppressed(self, lines: Any, how: bytes) -> None:
        with suppress(ConnectionError):
            broken(how.decode())
        self.request.sendall(b"went on")


class AsyncBorrows(AsyncObedient):
    """The same in async."""

    async def borrow(self, how: bytes) -> None:
        broken(how.decode())

    async def last(self, how: bytes) -> None:
        assert await self.rfile.read() == b""
        broken(how.decode())

    async def suppressed(self, how: bytes) -> None:
        with suppress(ConnectionError):
            broken(how.decode())
        await self.answer(b"went on")


def borrowing(flavour: Flavour, address: Any) -> Any:
    return flavour.server_class(address, AsyncBorrows if flavour.way.own_tasks else Borrows).background()


def told(log: Log) -> list[str]:
    return [line for line in log() if line.startswith(("ERROR ", "DEBUG peer "))]


@pytest.mark.alerts("request from ")
@pytest.mark.parametrize("how", [b"reset", b"pipe"], ids=bytes.decode)
def test_a_backend_that_fails_is_an_error_while_the_client_is_there(
    flavour: Flavour, address: Any, connect: Connect, log: Log, how: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with borrowing(flavour, address) as server:
        peer = connect(server)
        peer.send(b"borrow " + how + b"\n")
        assert peer.receive_all() == b""
        assert until(lambda: told(log), 5)
    assert [line[:19] for line in told(log)] == ["ERROR request from "]
    if not flavour.way.own_process:
        kind, *_ = caplog.records[-1].exc_info or (None,)
        assert kind is (BrokenPipeError if how == b"pipe" else ConnectionResetError)


@pytest.mark.alerts("request from ")
def test_also_when_the_client_has_ended_its_side_and_waits(
    flavour: Flavour, address: Any, connect: Connect, log: Log
) -> None:
    with borrowing(flavour, address) as server:
        peer = connect(server)
        peer.send(b"last reset\n")
        peer.end_writing()
        assert peer.receive_all() == b""
        assert until(lambda: told(log), 5)
    assert [line[:19] for line in told(log)] == ["ERROR request from "]


def test_a_client_that_resets_is_none(flavour: Flavour, address: Any, connect: Connect, log: Log) -> None:
    with borrowing(flavour, address) as server:
        peer = connect(server)
        peer.send(b"fill 33554432\n")
        assert peer.receive(1000) == bytes(1000)
        peer.close(reset=True)
        assert until(lambda: told(log), 5)
    assert [line[:11] for line in told(log)] == ["DEBUG peer "]


def test_what_the_handler_has_caught_is_nobodys(flavour: Flavour, address: Any, connect: Connect, log: Log) -> None:
    with borrowing(flavour, address) as server:
        peer = connect(server)
        peer.send(b"suppressed reset\n")
        assert peer.receive_all() == b"went on"
    assert told(log) == []

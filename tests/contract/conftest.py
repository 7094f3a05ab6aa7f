"""What the contract suite shares: the process of clients, addresses, and a log that forked children write to, too."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import client
from .client import packed, unpacked
from .flavours import Flavour, short_folder


@pytest.fixture(autouse=True)
def asyncio_debugs(monkeypatch: pytest.MonkeyPatch, no_alerts: None) -> None:
    """Every loop that is made checks who calls it, from which thread; what it finds is logged, and fails the test."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


class ClientError(Exception):
    """What went wrong in the clients' process, as its text."""


class ClientProcess:
    """The test's end of the pipe to `client.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["answer"]


class Peer:
    """One client's socket, in the other process."""

    def __init__(self, process: ClientProcess, number: int) -> None:
        self._process = process
        self._number = number

    def send(self, data: bytes) -> None:
        self._process.do("send", number=self._number, data=packed(data))

    def receive(self, size: int) -> bytes:
        return unpacked(self._process.do("receive", number=self._number, size=size))

    def receive_all(self) -> bytes:
        return unpacked(self._process.do("receive_all", number=self._number))

    def end_writing(self) -> None:
        self._process.do("end_writing", number=self._number)

    def close(self, *, reset: bool = False) -> None:
        self._process.do("close", number=self._number, reset=reset)

    def exchange(self, pieces: list[bytes]) -> bytes:
        return unpacked(self._process.do("exchange", number=self._number, pieces=[packed(piece) for piece in pieces]))

    def ask(self, *payloads: bytes, window: int = 8) -> list[bytes]:
        sent = [packed(payload) for payload in payloads]
        return [unpacked(text) for text in self._process.do("ask", number=self._number, payloads=sent, window=window)]

    def left_over(self) -> list[bytes]:
        return [unpacked(text) for text in self._process.do("left_over", number=self._number)]


@pytest.fixture(scope="session")
def client_process() -> Iterator[ClientProcess]:
    with subprocess.Popen(
        [sys.executable, client.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield ClientProcess(process)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # a forked child that was left behind still holds the pipe
            process.kill()


@pytest.fixture
def connect(client_process: ClientProcess, folder: Path) -> Iterator[Callable[..., Peer]]:
    """`connect(server)`: a new client of it."""
    names = iter(range(1_000_000))

    def connect(server: Any) -> Peer:
        unix_datagram = server.socket_type == socket.SOCK_DGRAM and server.address_family == socket.AF_UNIX
        own = str(folder / f"client-{next(names)}.sock") if unix_datagram else None
        address = server.server_address
        return Peer(
            client_process,
            client_process.do(
                "connect", family=server.address_family, kind=server.socket_type, address=address, own=own
            ),
        )

    yield connect
    client_process.do("forget")


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def address(flavour: Flavour, folder: Path) -> Any:
    return flavour.kind.address(folder)


class _FileHandler(logging.Handler):
    """Appends each record in one write, so that forked children and threads may all do so."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with self._path.open("a") as file:
            file.write(f"{record.levelname} {record.getMessage()}\n")


@pytest.fixture
def log(folder: Path) -> Iterator[Callable[[], list[str]]]:
    """`log()`: the lines logged so far, "LEVEL message", by any process."""
    path, logger = folder / "log", logging.getLogger("portico")
    path.touch()
    handler, level = _FileHandler(path), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: path.read_text().splitlines()
    logger.setLevel(level)
    logger.removeHandler(handler)

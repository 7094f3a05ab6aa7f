"""Thousands of clients in one thread: conversations as generators, driven by one epoll set.

A conversation yields what it waits for: `(socket, event, seconds)` for an event of epoll, at most so long, which gives
back whether it has come, or a number of seconds to sleep. What it says is its own business (`conversations`).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any, TypeAlias

from .sealed import Sealed

__all__ = [
    "Conversation",
    "Crowd",
    "Sock",
    "Steps",
    "address_of",
    "bound",
    "connected",
    "line_from",
    "name_of",
    "raise_limit",
    "reset",
    "sent",
    "who",
]

Sock: TypeAlias = socket.socket | Sealed
Step: TypeAlias = tuple[Sock, int, float] | float
Conversation: TypeAlias = Generator[Step, Any, None]
Steps: TypeAlias = Generator[Step, Any, Any]
READ, WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
PATIENCE = 20.0
"""Seconds that any step of a client may take."""
_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_LINGER_RESET = struct.pack("ii", 1, 0)


def raise_limit() -> None:
    """As many descriptors as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Crowd:
    """Runs conversations, each until it ends, raises or is not wanted any more. What they raise leaves `run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[Conversation, int]] = {}
        self._asleep: dict[int, tuple[Conversation, int | None]] = {}
        self._heap: list[tuple[float, int]] = []
        self._numbers = count()
        self._running = 0
        self._stop_at: int | None = None
        self.stopped = False

    def stop_when_readable(self, descriptor: int) -> None:
        """From then on, end."""
        self._stop_at = descriptor
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLHUP)

    def run(self, conversations: Iterable[Conversation], at_once: int, seconds: float = float("inf")) -> None:
        """All of them, `at_once` at a time, for so many seconds at most; those that still run then are closed."""
        coming = iter(conversations)
        end = time.monotonic() + seconds
        more = True
        while not self.stopped and time.monotonic() < end:
            while more and self._running < at_once:
                batch = list(islice(coming, at_once - self._running))
                more = bool(batch)
                for conversation in batch:
                    self._running += 1
                    self._go_on(conversation, None)
            if not self._running:
                break
            self._wait(end)
        for conversation, _ in (*self._waiting.values(), *self._asleep.values()):
            conversation.close()

    def _wait(self, end: float) -> None:
        now = time.monotonic()
        due = min(end, self._heap[0][0] if self._heap else end, now + 1)
        for descriptor, _ in self._epoll.poll(max(0.0, due - now), 512):
            if descriptor == self._stop_at:
                self.stopped = True
                return
            conversation, number = self._waiting.pop(descriptor, (None, 0))
            if conversation is not None:
                self._asleep.pop(number, None)
                self._go_on(conversation, True)
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            conversation, waits_for = self._asleep.pop(heappop(self._heap)[1], (None, None))
            if conversation is not None:
                if waits_for is not None:
                    self._waiting.pop(waits_for, None)
                self._go_on(conversation, False)

    def _go_on(self, conversation: Conversation, happened: bool | None) -> None:
        try:
            step = conversation.send(happened)  # None to begin with
        except StopIteration:
            self._running -= 1
            return
        number = next(self._numbers)
        if isinstance(step, tuple):
            sock, event, seconds = step
            descriptor = sock.fileno()
            self._watch(descriptor, event | select.EPOLLONESHOT)
            self._waiting[descriptor] = conversation, number
            self._asleep[number] = conversation, descriptor
        else:
            seconds = step
            self._asleep[number] = conversation, None
        heappush(self._heap, (time.monotonic() + seconds, number))

    def _watch(self, descriptor: int, event: int) -> None:
        try:
            self._epoll.modify(descriptor, event)
        except FileNotFoundError:
            self._epoll.register(descriptor, event)


# -- what conversations are made of


def address_of(number: int) -> str:
    """One of 4 million addresses of this machine, each its own."""
    return f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def name_of(number: int) -> str:
    """An abstract Unix name of this process, each its own."""
    return f"\0portico {os.getpid()} {number}"


def who(address: Any, number: int) -> str:
    """What a server that is there calls the client of that number, which has bound its socket."""
    if isinstance(address, dict):
        address = address["address"]
    return name_of(number) if isinstance(address, str) else address_of(number)


def connected(address: Any, number: int | None = None, *, named: bool = False) -> Steps:
    """A connection, from the client address with that number, encrypted if that has an authority to believe.

    A Unix client has a name only if that is asked for. Raises `OSError`.
    """
    if isinstance(address, dict):
        bare = yield from connected(address["address"], number, named=named)
        return (yield from _encrypted(Sealed(bare, address["authority"])))
    while True:
        sock = bound(address, number, named)
        code = sock.connect_ex(address if isinstance(address, str) else tuple(address))
        if code == errno.EINPROGRESS:
            if not (yield sock, WRITE, PATIENCE):
                sock.close()
                raise TimeoutError("not connected in time")
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            return sock
        sock.close()
        if code != errno.EAGAIN:
            raise OSError(code, "cannot connect")
        yield 0.01  # a Unix socket's backlog is full


def bound(address: Any, number: int | None, named: bool) -> socket.socket:
    """A socket that will not wait, with the client address of that number; a Unix one, only if it is to have a name."""
    unix = isinstance(address, str)
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.setblocking(False)
    if number is not None and not unix:
        sock.setsockopt(socket.SOL_IP, _NO_PORT, 1)
        sock.bind((address_of(number), 0))
    elif number is not None and named:
        sock.bind(name_of(number))
    return sock


def _encrypted(sock: Sealed) -> Steps:
    while True:
        try:
            sock.handshake()
            return sock
        except BlockingIOError:
            if not (yield sock, READ, PATIENCE):
                sock.close()
                raise TimeoutError("no handshake in time") from None
        except OSError:
            sock.close()
            raise


def sent(sock: Sock, data: bytes) -> Steps:
    rest = memoryview(data)
    while rest or bool(getattr(sock, "pending", None)):
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            if not (yield sock, WRITE, PATIENCE):
                raise TimeoutError("the server does not read") from None


def line_from(sock: Sock, seconds: float = PATIENCE) -> Steps:
    """What comes until the end of a line, or of the connection. Raises `OSError`, `TimeoutError`."""
    got = b""
    while not got.endswith(b"\n"):
        try:
            data = sock.recv(1 << 18)
        except BlockingIOError:
            if not (yield sock, READ, seconds):
                raise TimeoutError("no answer in time") from None
            continue
        if not data:
            break
        got += data
    return got


def reset(sock: Sock) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()

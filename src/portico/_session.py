"""One peer's session on a datagram server: what its handler reads that peer's datagrams from, and answers him through.

A session is to a datagram server what a connection's socket is to a stream server, and has the methods of one as far as
they mean something. Here is the one whose calls block a thread; those of green threads, tasks and child processes are
in rooms of their own, and what all have in common is `_peer_session`'s. Who has one, and who gets one, is `_sessions`'.
"""

from __future__ import annotations

import errno
import os
import socket

# Not `threading.Lock`, which is the same.
from _thread import TIMEOUT_MAX, allocate_lock
from time import monotonic

from ._peer_session import PeerSession, SessionTally
from .errors import SessionEnded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Self

__all__ = ["GONE", "LONGEST", "PeerSession", "Session", "SessionTally", "cut_off", "put_into"]

LONGEST: Final = 65535
_DONT_WAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
# What a Unix socket says of a peer that has gone (unix(7)).
GONE: Final = (ConnectionRefusedError, FileNotFoundError)


def cut_off(datagram: bytes, size: int) -> bytes:
    """As much of it as was asked for; the rest is lost, as the kernel has it."""
    if size < 0:
        raise ValueError("negative buffersize in recv")
    return datagram if len(datagram) <= size else datagram[:size]


def put_into(datagram: bytes, buffer: Any, nbytes: int) -> int:
    """The same into a buffer; returns how many bytes."""
    with memoryview(buffer) as view, view.cast("B") as room:
        if nbytes < 0 or nbytes > len(room):
            raise ValueError("nbytes does not fit the buffer")
        datagram = datagram[: nbytes or len(room)]
        room[: len(datagram)] = datagram
    return len(datagram)


class Session(PeerSession):
    """A session whose calls block, as a socket's do: `for datagram in self.request: ...`.

    `recv` gives one datagram each time, b"" for an empty one; when the session has ended it raises `SessionEnded`, and
    iteration is over. A timeout is `recv`'s alone.
    """

    __slots__ = ("_timeout",)

    def __init__(self, server: Any, address: Any, payload: bytes) -> None:
        super().__init__(server, address, payload)
        self._timeout: float | None = socket.getdefaulttimeout()

    def recv(self, bufsize: int = LONGEST, flags: int = 0) -> bytes:
        """The next datagram, or as much of it as fits. Raises `SessionEnded`, or `TimeoutError` as a socket does."""
        found = self._take(flags)
        return cut_off(self._await(flags) if found is None else found, bufsize)

    def recvfrom(self, bufsize: int = LONGEST, flags: int = 0) -> tuple[bytes, Any]:
        """The same, and the peer's address."""
        return self.recv(bufsize, flags), self._address

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """The same into a buffer; returns how many bytes there are."""
        return put_into(self.recv(LONGEST, flags), buffer, nbytes)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send the peer a datagram, from the address that he has asked. Returns its length."""
        out, now = self._out(), monotonic()
        try:
            return self._sent(out.sendto(data, *((flags,) if flags else ()), self._address), now)
        except GONE as error:
            self.shutdown(socket.SHUT_RD)
            raise self._over() from error

    def sendall(self, data: Any, flags: int = 0) -> None:
        """The same: a datagram goes whole or not at all."""
        self.send(data, flags)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """Send a datagram to any address, through the server's socket."""
        out, now = self._out(), monotonic()
        *flags, address = flags_and_address
        return self._sent(out.sendto(data, *flags, self._known(address)), now)

    def settimeout(self, value: float | None) -> None:
        """How long `recv` waits, in seconds: None for ever, 0 not at all."""
        if value is not None and not value >= 0:
            raise ValueError("Timeout value out of range")
        self._timeout = value

    def gettimeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return self.recv()
        except SessionEnded:
            raise StopIteration from None

    # -- waiting

    def _await(self, flags: int) -> bytes:
        timeout = 0 if flags & _DONT_WAIT else self._timeout
        if timeout == 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            self._sleep(deadline)
            found = self._take(flags)
            if found is not None:
                return found
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError("timed out")

    def _sleep(self, deadline: float | None) -> None:
        """Block this thread until there is something to look at, or the deadline."""
        lock = allocate_lock()
        lock.acquire()
        wake = lock.release
        self._sleepers.append(wake)
        try:
            if not (self._waiting or self._told):
                lock.acquire(True, -1 if deadline is None else min(max(0.0, deadline - monotonic()), TIMEOUT_MAX))
        finally:
            self._leaves(wake)

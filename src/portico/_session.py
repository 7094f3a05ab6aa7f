"""One peer's session on a datagram server: what its handler reads that peer's datagrams from, and answers him through.

A session is to a datagram server what a connection's socket is to a stream server, and has the methods of one as far as
they mean something. Here is what all of them have in common, and the one whose calls block a thread; those of green
threads, tasks and child processes are in rooms of their own. Who has a session, and who gets one, is `_sessions`'.

The loop's thread feeds it, its handler reads; there is no lock between them. Who waits puts his waker down first, and
then looks once more; who feeds adds the datagram first, and then looks for wakers: one of the two sees the other.
"""

from __future__ import annotations

import errno
import os
import socket

# Not `threading.Lock`, which is the same.
from _thread import TIMEOUT_MAX, allocate_lock
from collections import deque
from contextlib import suppress
from time import monotonic

from ._meters import Counting, Tally
from .errors import SessionEnded
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Self

    from ._connection import Connection

__all__ = ["GONE", "LONGEST", "PeerSession", "Session", "cut_off", "put_into"]

LONGEST: Final = 65535
_PEEK: Final = int(socket.MSG_PEEK)
_DONT_WAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
_NEVER_RUN: Final = (EndReason.REFUSED, EndReason.OVERLOADED)
# What a Unix socket says of a peer that has gone (unix(7)).
GONE: Final = (ConnectionRefusedError, FileNotFoundError)


class SessionTally(Tally):
    """A peer who has been answered a moment ago may be about to go on: he is not idle yet.

    A stream's client who is told to end finds that out from the stream; here he would go on to wait for an answer.
    """

    __slots__ = ()
    patience = 0.5


class PeerSession(Counting):
    """What is the same for all: being fed, being told to end, addresses. Closed by the server, or by its handler."""

    __slots__ = (
        "__weakref__", "_address", "_closed", "_cut", "_entry", "_most", "_mute", "_server", "_sleepers", "_told",
        "_waiting", "connection", "tally", "through",
    )  # fmt: skip

    def __init__(self, server: Any, address: Any, payload: bytes) -> None:
        self._server = server
        self._address = address
        self._most: int = server.session_queue
        self._waiting = deque((payload,))
        self._sleepers: list[Callable[[], object]] = []  # mostly empty, which a deque is not in memory
        """Wakes those who wait for a datagram. To be called where it is fed; a wake-up is a hint."""
        self._told = self._cut = self._mute = self._closed = False
        self._entry: Connection | None = None
        self.connection: Any = None
        self.through: Any = None
        """What to answer through, where that is not the server's own socket."""
        self.tally: Any = SessionTally(monotonic())
        self.tally.received = len(payload)

    # -- for the server

    def entered(self, connection: Connection) -> None:
        """It has been let in. The connection keeps it, and closes it when it is over, whatever hooks do."""
        self._entry = connection
        connection.kept = self
        connection.tally = self.tally

    def feed(self, payload: bytes) -> bool:
        """A further datagram has come. In the hot path of each; in the loop's thread.

        False if this session is over, so that the datagram is for the next one; what it has no room for is dropped.
        """
        waiting = self._waiting
        if self._told or len(waiting) >= self._most:
            return self._cannot_take()
        waiting.append(payload)
        tally = self.tally
        tally.received += len(payload)
        tally.heard = monotonic()
        if self._sleepers:
            self._wake()
        if self._closed:  # a moment ago, by its handler
            self._drop_rest()
        return True

    def _cannot_take(self) -> bool:
        if self._closed:
            return False
        self._drop("session_ended" if self._told else "session_queue")
        return True

    @property
    def over(self) -> bool:
        """Whether its peer may have another one."""
        return self._closed

    def moved(self, address: Any) -> None:
        """The same peer, heard by another way; answers go back by that one from now on."""
        self._address = address

    @property
    def address(self) -> Any:
        """Whose it is, as last heard."""
        return self._address

    @property
    def was_connected(self) -> bool:
        """Whether its peer is there, for all that is known: then a connection error is some other connection's."""
        return not (self._told or self._closed)

    def _wake(self) -> None:
        try:
            wake = self._sleepers.pop(0)
        except IndexError:  # he has left
            return
        wake()

    def _wake_all(self) -> None:
        for _ in range(len(self._sleepers)):
            self._wake()

    def _wake_all_soon(self) -> None:
        """From any thread."""
        self._wake_all()

    def _drop(self, reason: str) -> None:
        self._server._portico_connections.refuse(self._server, reason, self._address)

    def _drop_rest(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft()
                self._drop("session_ended")

    def _take(self, flags: int) -> bytes | None:
        """The next datagram, None if there is none yet. Raises `SessionEnded` if there will be none."""
        if self._cut:
            raise self._over()
        if self._waiting:
            try:
                return self._waiting[0] if flags & _PEEK else self._waiting.popleft()
            except IndexError:  # somebody else was first
                pass
        if self._told:
            raise self._over()
        return None

    def _leaves(self, wake: Callable[[], object]) -> None:
        """Somebody waits no more. If it was not for what has come, that is for whoever waits, too."""
        sleepers = self._sleepers
        if sleepers:
            with suppress(ValueError):
                sleepers.remove(wake)
            if sleepers and self._waiting:
                self._wake()

    def _over(self) -> SessionEnded:
        return SessionEnded(f"the session with {self._address!r} has ended")

    def _out(self) -> Any:
        """What to send through. Raises if nothing may be sent any more."""
        if self._cut:
            raise self._over()
        if self._mute:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return self._server.socket if self.through is None else self.through

    def _known(self, address: Any) -> Any:
        """The peer's own address, put together by its handler, as that by which our own is known as well."""
        return self._address if address == self._address else address

    def _sent(self, count: int, now: float) -> int:
        """So much was sent. `now` is from before that: what has come since is younger, and has not been answered."""
        self.tally.sent += count
        self.tally.said = now
        return count

    # -- for handlers

    @property
    def family(self) -> int:
        return self._server.address_family  # type: ignore[no-any-return]

    @property
    def type(self) -> int:
        return self._server.socket_type  # type: ignore[no-any-return]

    @property
    def proto(self) -> int:
        return getattr(self._server.socket, "proto", 0)

    def fileno(self) -> int:
        """-1: the socket is the server's, and all its peers'."""
        return -1

    def getpeername(self) -> Any:
        """The peer's address."""
        return self._address

    def getsockname(self) -> Any:
        """Our address, which the peer has asked."""
        route = getattr(self._address, "route", None)
        return self._server.socket.getsockname() if route is None else route.local

    def shutdown(self, how: int) -> None:
        """With SHUT_RD no more is taken in, and what has come can still be read; with SHUT_RDWR it is over at once."""
        if how != socket.SHUT_RD:
            self._mute = True
        if how == socket.SHUT_WR:
            return
        if how == socket.SHUT_RDWR:
            self._cut = True
        self._told = True
        self._wake_all_soon()

    def close(self) -> None:
        """End it. Whatever comes from this peer later begins another one."""
        if self._closed:
            return
        self._closed = True
        self.shutdown(socket.SHUT_RDWR)
        entry, self._entry = self._entry, None
        if entry is None or entry.reason in _NEVER_RUN:
            self._waiting.clear()  # which has been counted as refused
        self._drop_rest()
        self._server._portico_reception.forget(self)
        connection = self.connection
        if connection is not None:
            connection.socket_closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._address!r}{', ended' if self._told else ''}>"


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

"""Sockets that others wait for on an asyncio loop: who waits, what is believed to be ready, and how that is learned.

`Watched` is the socket, a `Readiness` learns for it; the two there are live in `_event_sets`. A waiter is
anything with a `switch()`, a green thread (`_green_sockets`) or a future in disguise (`aio`). A wake-up is a hint and
no promise: whoever waits tries again, and waits again. So a reused descriptor, a second waiter or a late event can cost
a try, and never an answer.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from ._meters import Metered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["IN", "OUT", "PATIENCE", "FutureWaiter", "Readiness", "Waiter", "Watched"]

_Socket: Final = socket.SocketType
_get_ident: Final = threading.get_ident
IN: Final = getattr(select, "EPOLLIN", 1)
"""Reads are worth a try; in words of epoll, as all events are told."""
OUT: Final = getattr(select, "EPOLLOUT", 4)
"""So are writes."""
# Everything that says that reads no longer wait, now or ever: the peer's end, errors, and urgent data, which a recv()
# stops short at.
_LAST: Final = sum(getattr(select, name, 0) for name in ("EPOLLRDHUP", "EPOLLPRI", "EPOLLHUP", "EPOLLERR"))
_READ: Final = IN | _LAST
_WRITE: Final = OUT | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


PATIENCE: Final = 8
"""Calls that may follow without waiting before somebody looks at the clock."""
_TURN: Final = 0.002
"""Seconds that a connection which always has more may keep the others waiting."""


class Waiter(Protocol):
    """Who is woken: by a call, in the loop's thread, that may come without reason."""

    def switch(self) -> object:
        """Go on with it. True if that was only noted; a green thread runs, and somebody must switch back."""


class FutureWaiter:
    """A waiter for coroutines: `await waiter.future`."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    def switch(self) -> bool:
        if not self.future.done():
            self.future.set_result(None)
        return True


class Watched(Metered, socket.socket):
    """A non-blocking socket with a memory of what is ready, and of who waits for it.

    `_readable` and `_writable` say that a call is worth a try; they start out true. Only the loop's thread may make
    them false, after a call that found nothing (or less than asked for, the same news one call earlier), since events
    are told once, by the edge. After the stream's end, `_ended`, reads are always worth a try.
    """

    __slots__ = (
        "_edges", "_ended", "_patience", "_readable", "_readers", "_readiness", "_since", "_writable", "_writers",
        "connection",
    )  # fmt: skip

    _readiness: Readiness | None

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None,  # noqa: A002
        *, readiness: Readiness | None = None,
    ) -> None:  # fmt: skip
        if fileno is not None and family >= 0:
            # What socket.socket() would do, without turning numbers into enums: 0.5 us of a connection's 50.
            _Socket.__init__(self, family, type, proto, fileno)
            self._io_refs = 0
            self._closed = False
        else:
            super().__init__(family, type, proto, fileno)
        _Socket.setblocking(self, False)
        self.connection = None
        self._readiness = readiness
        self._readable = self._writable = True
        self._ended = False
        self._edges = 0
        self._readers: tuple[Waiter, ...] = ()
        self._writers: tuple[Waiter, ...] = ()
        self._patience = PATIENCE
        self._since = 0.0
        """When, since it last waited, patience ran out first."""

    def _await_read(self, waiter: Waiter) -> None:
        """Have `waiter` woken when a read is worth a try."""
        if waiter not in self._readers:
            self._readers = (*self._readers, waiter)
        if not self._edges & IN and self._readiness is not None:
            self._readiness.watch(self, IN)

    def _await_write(self, waiter: Waiter) -> None:
        if waiter not in self._writers:
            self._writers = (*self._writers, waiter)
        if not self._edges & OUT and self._readiness is not None:
            self._readiness.watch(self, OUT)

    def _told(self, bits: int) -> tuple[Waiter, ...]:
        """Believe what an event says, and return whom it concerns."""
        waiters: tuple[Waiter, ...] = ()
        if bits & _READ:
            self._readable = True
            if bits & _LAST:
                self._ended = True
            waiters, self._readers = self._readers, ()
        if bits & _WRITE:
            self._writable = True
            waiters, self._writers = waiters + self._writers, ()
        return waiters

    def _is_time(self) -> bool:
        """Patience has run out: is it time for the others to have their turn? If not, there is more of it."""
        self._patience = PATIENCE
        now = monotonic()
        if not self._since:
            self._since = now
        if now - self._since < _TURN:
            return False
        self._since = 0.0
        return True

    def _leave(self, waiter: Waiter) -> None:
        """Wake `waiter` no more."""
        self._readers = tuple(other for other in self._readers if other is not waiter)
        self._writers = tuple(other for other in self._writers if other is not waiter)

    def _wake(self) -> None:
        """Something has changed that no event tells: everybody tries again. From any thread.

        From another than the loop's it is always left to that: somebody may just be about to wait.
        """
        readiness = self._readiness
        if readiness is None:
            return
        if not readiness.is_here():
            readiness.soon(self._wake)
            return
        self._readable = self._writable = True
        if self._readers or self._writers:
            waiters, self._readers, self._writers = self._readers + self._writers, (), ()
            readiness.wake(waiters)

    def _forget(self) -> None:
        """Leave the set, before the descriptor's number may be somebody else's."""
        if self._edges and self._readiness is not None:
            self._edges = 0
            self._readiness.forget(self)

    def shutdown(self, how: int, /) -> None:
        _Socket.shutdown(self, how)
        if how != socket.SHUT_WR:
            self._ended = True
        self._changed()

    def _real_close(self, _ss: Any = None) -> None:
        connection = self.connection
        if connection is not None:
            connection.leaves_socket()
        if self._edges and self._readiness is not None:
            self._edges = 0
            self._readiness.close_socket(self)
        else:
            _Socket.close(self)
        self._changed()
        if connection is not None:
            connection.socket_closed()

    def _changed(self) -> None:
        """By our own doing, in whatever thread: wake whoever waits, or may be about to, seen from another thread."""
        readiness = self._readiness
        if self._readers or self._writers or (readiness is not None and _get_ident() != readiness.thread):
            self._wake()

    def detach(self) -> int:
        if self.connection is not None:
            self.connection.socket_detached(self)
        self._forget()
        descriptor = super().detach()
        self._wake()
        return descriptor


class Readiness:
    """What both ways to learn of readiness have in common: the loop, and how waiters are woken in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.thread = _get_ident()
        """The loop's own."""
        self.turns = 0
        """Goes up with every round of events, and whenever a green thread goes on for another reason: what tells a
        busy loop from a held one."""
        self.unwatched = False
        """The watchdog sleeps, and wants to be stirred by the next turn."""
        self.stir: Callable[[], object] = int

    def turn(self) -> None:
        """Something goes on."""
        self.turns += 1
        if self.unwatched:
            self.stir()

    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""
        return _get_ident() == self.thread

    def soon(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call made in the loop's thread; from any thread."""
        try:
            (self._loop.call_soon if self.is_here() else self._loop.call_soon_threadsafe)(call, *arguments)
        except RuntimeError:  # the loop is closed, and nobody can be waiting there any more
            return

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """Wake them soon, in the loop's thread; from any thread."""
        for waiter in waiters:
            self.soon(waiter.switch)

    def next(self) -> bool:
        """Wake whom an event concerns that is known already; False if there is none."""
        return False

    def watch(self, sock: Watched, edge: int) -> None:
        raise NotImplementedError

    def forget(self, sock: Watched) -> None:
        raise NotImplementedError

    def close_socket(self, sock: Watched) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

"""Sockets that others wait for on an asyncio loop: who waits, what is believed to be ready, and how that is learned.

`Watched` is the socket, `EpollSet` and `LoopSet` two ways to learn. What waiting means is not known here: a waiter is
anything with a `switch()`, a green thread (`_green_sockets`) or a future in disguise (`aio`). A wake-up is a hint and
no promise: whoever waits tries again, and waits again. So a reused descriptor, a second waiter or a late event can cost
a try, and never an answer.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["EpollSet", "FutureWaiter", "LoopSet", "Readiness", "Waiter", "Watched", "readiness"]

_Socket: Final = socket.SocketType
_EDGE: Final = getattr(select, "EPOLLET", 0)
_IN: Final = getattr(select, "EPOLLIN", 1)
_OUT: Final = getattr(select, "EPOLLOUT", 4)
# Everything that says that reads no longer wait, now or ever: the peer's end, errors, and urgent data, which a recv()
# stops short at.
_LAST: Final = sum(getattr(select, name, 0) for name in ("EPOLLRDHUP", "EPOLLPRI", "EPOLLHUP", "EPOLLERR"))
_READ: Final = _IN | _LAST
_WRITE: Final = _OUT | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)
_READ_EDGES: Final = _EDGE | _IN | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLPRI", 0)

# Events taken at once, and rounds before the rest of the loop has its turn. Measured: with one round a wake-up of 50
# connections' echo is 6 % slower, beyond 4 nothing is gained.
_EVENTS: Final = 1024
_ROUNDS: Final = 4


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


class Watched(socket.socket):
    """A non-blocking socket with a memory of what is ready, and of who waits for it.

    `_readable` and `_writable` say that a call is worth a try; they start out true. Only the loop's thread may make
    them false, after a call that found nothing (or less than asked for, the same news one call earlier), since events
    are told once, by the edge. After the stream's end, `_ended`, reads are always worth a try.
    """

    __slots__ = ("_edges", "_ended", "_readable", "_readers", "_readiness", "_writable", "_writers")

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
        self._readiness = readiness
        self._readable = self._writable = True
        self._ended = False
        self._edges = 0
        self._readers: tuple[Waiter, ...] = ()
        self._writers: tuple[Waiter, ...] = ()

    def _await_read(self, waiter: Waiter) -> None:
        """Have `waiter` woken when a read is worth a try."""
        if waiter not in self._readers:
            self._readers = (*self._readers, waiter)
        if not self._edges & _IN and self._readiness is not None:
            self._readiness.watch(self, _IN)

    def _await_write(self, waiter: Waiter) -> None:
        if waiter not in self._writers:
            self._writers = (*self._writers, waiter)
        if not self._edges & _OUT and self._readiness is not None:
            self._readiness.watch(self, _OUT)

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

    def _leave(self, waiter: Waiter) -> None:
        """Wake `waiter` no more."""
        self._readers = tuple(other for other in self._readers if other is not waiter)
        self._writers = tuple(other for other in self._writers if other is not waiter)

    def _wake(self) -> None:
        """Something has changed that no event tells: everybody tries again. From any thread."""
        self._readable = self._writable = True
        if self._readiness is not None and (self._readers or self._writers):
            waiters, self._readers, self._writers = self._readers + self._writers, (), ()
            self._readiness.wake(waiters)

    def _forget(self) -> None:
        """Leave the set, before the descriptor's number may be somebody else's."""
        if self._edges and self._readiness is not None:
            self._edges = 0
            self._readiness.forget(self)

    def shutdown(self, how: int, /) -> None:
        _Socket.shutdown(self, how)
        if how != socket.SHUT_WR:
            self._ended = True
        if self._readers or self._writers:
            self._wake()

    def _real_close(self, _ss: Any = None) -> None:
        if self._edges and self._readiness is not None:
            self._readiness.close_socket(self)
            self._edges = 0
        else:
            _Socket.close(self)
        if self._readers or self._writers:
            self._wake()

    def detach(self) -> int:
        self._forget()
        descriptor = super().detach()
        self._wake()
        return descriptor


class Readiness:
    """What both ways to learn of readiness have in common: the loop, and how waiters are woken in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
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

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """Wake them soon, in the loop's thread; from any thread."""
        soon = self._loop.call_soon if threading.get_ident() == self._thread else self._loop.call_soon_threadsafe
        for waiter in waiters:
            try:
                soon(waiter.switch)
            except RuntimeError:  # the loop is closed, and nobody can be waiting there any more
                return

    def next(self) -> bool:
        """Wake whom an event concerns that is known already; False if there is none."""
        return False

    def watch(self, sock: Watched, edge: int) -> None:
        raise NotImplementedError

    def forget(self, sock: Watched) -> None:
        raise NotImplementedError

    def close_socket(self, sock: Watched) -> None:
        """Forget it, then close it."""
        self.forget(sock)
        _Socket.close(sock)

    def close(self) -> None:
        raise NotImplementedError


class EpollSet(Readiness):
    """An edge-triggered epoll set of our own, whose descriptor is one reader of the asyncio loop.

    A socket enters the set when it is first waited for and stays until it is closed, so that a message costs no
    epoll_ctl(2) and none of the loop's bookkeeping (measured: 106 k echoes a second against 40 k of asyncio's streams).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._epoll = select.epoll()
        # Weak, so that a socket that its owner has dropped is closed, and leaves the kernel's set, by itself.
        self._sockets: dict[int, Callable[[], Watched | None]] = {}
        self._rest: Iterator[tuple[int, int]] = iter(())
        loop.add_reader(self._epoll.fileno(), self._take)

    def watch(self, sock: Watched, edge: int) -> None:
        descriptor, edges = sock.fileno(), sock._edges
        sock._edges = edges | edge
        self._sockets[descriptor] = weakref.ref(sock)
        mask = _READ_EDGES | (sock._edges & _OUT)
        try:
            # Both report at once what is ready already (epoll(7)), so nothing is lost between a call and this one.
            (self._epoll.modify if edges else self._epoll.register)(descriptor, mask)
        except FileExistsError:  # left by a closed copy of the same socket that had the same number
            self._epoll.modify(descriptor, mask)
        except (OSError, ValueError):  # closed meanwhile, or nothing that epoll takes: a try will say what is wrong
            sock._wake()

    def close_socket(self, sock: Watched) -> None:
        """The kernel takes it out of the set by itself. Where a copy of the descriptor lives on, in another process
        perhaps, it stays: then its events wake whoever has the number next, who tries in vain."""
        self._sockets.pop(sock.fileno(), None)
        _Socket.close(sock)

    def forget(self, sock: Watched) -> None:
        descriptor = sock.fileno()
        self._sockets.pop(descriptor, None)
        try:
            self._epoll.unregister(descriptor)
        except (OSError, ValueError):  # the set is closed already
            return

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for known in list(self._sockets.values()):
            sock = known()
            if sock is not None:
                sock._readiness = None
        self._sockets.clear()

    def _take(self) -> None:
        poll = self._epoll.poll
        try:
            for _ in range(_ROUNDS):
                while self.next():
                    pass
                if self._epoll.closed:
                    return
                events = poll(0, _EVENTS)
                if not events:
                    return
                self.turn()
                self._rest = iter(events)
            while self.next():
                pass
        except BaseException:  # Ctrl-C: the edges that are left are not told again
            self._loop.call_soon(self._take)
            raise

    def next(self) -> bool:
        """Wake whom the next event concerns. The hot path, with `recv`: one call a message.

        False if there is no event left. The loop calls it, and so does each green thread that parks, and thus switches
        straight to the next one (measured: 0.1 us of 5 less than by way of the loop, with two switches a message).
        """
        sockets = self._sockets
        for descriptor, bits in self._rest:
            known = sockets.get(descriptor)
            sock = None if known is None else known()
            if sock is None:
                continue
            if bits == _IN:
                sock._readable = True
                waiters, sock._readers = sock._readers, ()
            else:
                waiters = sock._told(bits)
            if len(waiters) > 1:
                self.wake(waiters[1:])
            if waiters and not waiters[0].switch():
                return True
        return False


class LoopSet(Readiness):
    """The same by the loop's own readers and writers, where there is no epoll. Level-triggered.

    A reader stays until an event finds nobody waiting, so that mostly it is not put in and taken out for each message.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._sockets: weakref.WeakSet[Watched] = weakref.WeakSet()

    def watch(self, sock: Watched, edge: int) -> None:
        self._sockets.add(sock)
        sock._edges |= edge
        descriptor = sock.fileno()
        known = weakref.ref(sock, lambda _: self._forget_number(descriptor))
        if edge == _IN:
            self._loop.add_reader(descriptor, self._may_read, known)
        else:
            self._loop.add_writer(descriptor, self._may_write, known)

    def forget(self, sock: Watched) -> None:
        descriptor = sock.fileno()
        self._sockets.discard(sock)
        if threading.get_ident() == self._thread:
            self._forget_number(descriptor)
        else:
            self._loop.call_soon_threadsafe(self._forget_number, descriptor)

    def close_socket(self, sock: Watched) -> None:
        """From another thread the loop does the closing, so that the number is not given out before it is forgotten."""
        descriptor = sock.fileno()
        self.forget(sock)
        if threading.get_ident() == self._thread:
            _Socket.close(sock)
        else:
            _Socket.detach(sock)
            self._loop.call_soon_threadsafe(os.close, descriptor)

    def _forget_number(self, descriptor: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def close(self) -> None:
        for sock in list(self._sockets):
            sock._forget()
            sock._readiness = None

    def _may_read(self, known: Callable[[], Watched | None]) -> None:
        sock = known()
        if sock is None:
            return
        self.turn()
        sock._readable = True
        readers, sock._readers = sock._readers, ()
        if not readers:
            sock._edges &= ~_IN
            self._loop.remove_reader(sock.fileno())
        for waiter in readers:
            waiter.switch()

    def _may_write(self, known: Callable[[], Watched | None]) -> None:
        sock = known()
        if sock is None:
            return
        self.turn()
        sock._writable = True
        writers, sock._writers = sock._writers, ()
        if not writers:
            sock._edges &= ~_OUT
            self._loop.remove_writer(sock.fileno())
        for waiter in writers:
            waiter.switch()


def readiness(loop: asyncio.AbstractEventLoop) -> Readiness:
    """The better way that this system has."""
    return EpollSet(loop) if hasattr(select, "epoll") else LoopSet(loop)

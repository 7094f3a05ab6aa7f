"""Two ways to learn of readiness on an asyncio loop: an epoll set of our own, and the loop's readers and writers.

What is learned, and who waits for it, is `_readiness`'s.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import weakref
from typing import TYPE_CHECKING, Final

from ._readiness import IN, OUT, Readiness, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EpollSet", "LoopSet", "readiness"]

_Socket: Final = socket.SocketType
_EDGE: Final = getattr(select, "EPOLLET", 0)
_READ_EDGES: Final = _EDGE | IN | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLPRI", 0)

# Events taken at once, and rounds before the rest of the loop has its turn. Measured: with one round a wake-up of 50
# connections' echo is 6 % slower, beyond 4 nothing is gained.
_EVENTS: Final = 1024
_ROUNDS: Final = 4


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
        mask = _READ_EDGES | (sock._edges & OUT)
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
        descriptor = _Socket.detach(sock)  # of two threads that close at once, one gets the number
        self._sockets.pop(descriptor, None)
        _close(descriptor)

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
            if bits == IN:
                sock._readable = True
                waiters, sock._readers = sock._readers, ()
            else:
                waiters = sock._told(bits)
            if waiters:
                if len(waiters) > 1:
                    self.wake(waiters[1:])
                switch = waiters[0].switch
                known = sock = None  # this frame may stay for long, and must not keep others' objects alive
                waiters = ()
                if not switch():
                    return True
        return False


class LoopSet(Readiness):
    """The same by the loop's own readers and writers, where there is no epoll.

    One is put in whenever somebody waits, and taken out by the event, which wakes by way of the loop: uvloop closes its
    handle after telling of a socket's error, and would drop a reader that was put in meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._sockets: weakref.WeakSet[Watched] = weakref.WeakSet()

    def watch(self, sock: Watched, edge: int) -> None:
        descriptor = sock.fileno()
        if descriptor < 0:  # closed meanwhile: a try will say so
            sock._wake()
            return
        self._sockets.add(sock)
        sock._edges |= edge
        known = weakref.ref(sock, lambda _: self.soon(self._forget_number, descriptor))
        if edge == IN:
            self._loop.add_reader(descriptor, self._may_read, known, descriptor)
        else:
            self._loop.add_writer(descriptor, self._may_write, known, descriptor)

    def forget(self, sock: Watched) -> None:
        descriptor = sock.fileno()
        self._sockets.discard(sock)
        if self.is_here():
            self._forget_number(descriptor)
        else:
            self.soon(self._forget_number, descriptor)

    def close_socket(self, sock: Watched) -> None:
        """From another thread the loop does the closing, so that the number is not given out before it is forgotten."""
        self._sockets.discard(sock)
        descriptor = _Socket.detach(sock)
        if self.is_here() or self._loop.is_closed():
            self._close_number(descriptor)
        else:
            self.soon(self._close_number, descriptor)

    def _forget_number(self, descriptor: int) -> None:
        if descriptor >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def _close_number(self, descriptor: int) -> None:
        self._forget_number(descriptor)
        _close(descriptor)

    def close(self) -> None:
        for sock in list(self._sockets):
            sock._forget()
            sock._readiness = None

    def _may_read(self, known: Callable[[], Watched | None], descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._tell(known(), descriptor, IN)

    def _may_write(self, known: Callable[[], Watched | None], descriptor: int) -> None:
        self._loop.remove_writer(descriptor)
        self._tell(known(), descriptor, OUT)

    def _tell(self, sock: Watched | None, descriptor: int, edge: int) -> None:
        if sock is not None and sock.fileno() == descriptor:
            self.turn()
            sock._edges &= ~edge
            self.wake(sock._told(edge))


def _close(descriptor: int) -> None:
    """close(2), for a number that is nobody else's any more; -1 is none."""
    if descriptor >= 0:
        try:
            os.close(descriptor)
        except ConnectionResetError:  # some systems tell here what nobody wants to know (Issue 32454)
            return


def readiness(loop: asyncio.AbstractEventLoop) -> Readiness:
    """The better way that this system has."""
    return EpollSet(loop) if hasattr(select, "epoll") else LoopSet(loop)

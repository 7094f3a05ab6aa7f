"""How a green thread waits for a socket: parked, with or without a deadline, and what its user sees of modes.

Which calls there are, and what they do with data, is `_green_sockets`'. Outside a green thread of the socket's own loop
(in another thread, in a hook that the loop itself calls) a call really blocks.
"""

from __future__ import annotations

import operator
import os
import select
import socket
import time
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenlet import getcurrent

from ._addresses import AF_UNIX
from ._hub import GreenThread, Hub
from ._readiness import IN, PATIENCE, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AGAIN", "DONT_WAIT", "READ", "WRITE", "ParkingSocket", "retried"]

READ, WRITE = True, False
AGAIN: Final = (BlockingIOError, InterruptedError)
# As plain numbers: `flags & MSG_DONTWAIT` of an enum's member costs 1 us.
DONT_WAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
_OTHER_QUEUES: Final = int(socket.MSG_OOB) | int(getattr(socket, "MSG_ERRQUEUE", 0))


class ParkingSocket(Watched):
    """A socket whose calls park the green thread that makes them. `GreenSocket` is what there is of it."""

    __slots__ = ("_home", "_hub", "_owner", "_timeout")

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None,  # noqa: A002
        *, hub: Hub | None = None,
    ) -> None:  # fmt: skip
        thread = getcurrent()
        if hub is None and isinstance(thread, GreenThread):
            hub = thread.hub
        super().__init__(family, type, proto, fileno, readiness=None if hub is None else hub.readiness)
        self._hub = hub
        self._timeout: float | None = socket.getdefaulttimeout()
        self._home = None if self._timeout == 0 else hub
        """The hub whose green threads may park here; None while the socket is non-blocking for its user, too."""
        self._owner: GreenThread | None = None
        """The green thread that need not ask before it reads: it is the hub's, the socket blocks, and nobody else waits
        to read. Whoever else waits takes that away."""

    def settimeout(self, value: float | None, /) -> None:
        if value is not None:
            value = float(value if isinstance(value, float) else operator.index(value))
            if not value >= 0:
                raise ValueError("Timeout value out of range")
        self._timeout = value
        self._home = None if value == 0 else self._hub
        self._owner = None

    def gettimeout(self) -> float | None:
        return self._timeout

    @property
    def timeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def detach(self) -> int:
        """Whoever gets the descriptor gets it in the mode that this socket showed."""
        blocking = self._timeout is None
        descriptor = super().detach()
        if descriptor >= 0:
            os.set_blocking(descriptor, blocking)
        return descriptor

    # -- waiting

    def _may_own(self) -> bool:
        """Make the thread that runs the owner, if it is one of the hub's and nobody else waits to read."""
        thread = getcurrent()
        if type(thread) is not GreenThread or thread.hub is not self._home or self._readers:
            return False
        self._owner = thread
        return True

    def _park_owner(self, thread: Any, deadline: float | None) -> float | None:
        """`_park` for the owner, without the questions that need not be asked."""
        owner: Any = self._owner
        if self._timeout is not None or not self._edges & IN or thread is not owner:
            return self._park(thread, READ, deadline)  # no owner any more: somebody else has come to wait, too
        self._readers = (thread,)
        self._patience = PATIENCE
        self._since = 0.0
        try:
            if not self._readiness.next():  # type: ignore[union-attr]
                thread.hub.to_loop()
        except BaseException:
            self._leave(thread)
            raise
        return None

    def _park(self, thread: GreenThread, read: bool, deadline: float | None) -> float | None:
        """Wait for a try to be worth while; returns the deadline, to be handed in again. `TimeoutError` past it."""
        if deadline is None and self._timeout is not None:
            deadline = monotonic() + self._timeout
        self._patience = PATIENCE
        self._since = 0.0
        if thread is not self._owner and read:
            self._owner = None
        (self._await_read if read else self._await_write)(thread)
        try:
            if deadline is None:
                thread.park()
            elif monotonic() < deadline:
                thread.park_until(deadline)
            else:
                raise TimeoutError("timed out")
        except BaseException:
            self._leave(thread)
            raise
        return deadline

    def _give_way(self) -> None:
        """So many calls without waiting: others have their turn, if it is time and this is a green thread."""
        thread = getcurrent()
        if self._is_time() and type(thread) is GreenThread and thread.hub is self._home:
            thread.give_way()

    def _call(
        self, read: bool, call: Callable[..., Any], *arguments: Any, flags: int = 0, deadline: float | None = None
    ) -> Any:
        """Make a call that a blocking socket would block in. `deadline` is for several calls with one timeout."""
        thread = getcurrent()
        if self._timeout == 0 or flags & DONT_WAIT:
            return call(self, *arguments)
        if deadline is None and self._timeout is not None:
            deadline = monotonic() + self._timeout
        if type(thread) is not GreenThread or thread.hub is not self._home:
            return self._call_blocking(read, call, arguments, deadline)
        untried = bool(flags)  # what urgent data and the like are about, no belief of ours knows
        while True:
            if untried or (self._readable if read else self._writable):
                untried = False
                try:
                    result = call(self, *arguments)
                except AGAIN:
                    if not read and self.family == AF_UNIX and self.type == socket.SOCK_DGRAM:
                        return retried(lambda: call(self, *arguments), deadline)
                    if not read:
                        self._writable = False
                    elif not flags & _OTHER_QUEUES:
                        self._readable = self._ended
                else:
                    if self._patience:
                        self._patience -= 1
                    else:
                        self._give_way()
                    return result
            deadline = self._park(thread, read, deadline)

    def _call_blocking(
        self, read: bool, call: Callable[..., Any], arguments: tuple[Any, ...], deadline: float | None
    ) -> Any:
        """The same outside a green thread: block this thread, and leave what is believed to the loop's own."""
        event = select.POLLIN if read else select.POLLOUT
        while True:
            try:
                return call(self, *arguments)
            except AGAIN:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("timed out") from None
            waiting = select.poll()
            descriptor = self.fileno()
            if descriptor < 0:
                continue  # closed meanwhile: the call will say so
            waiting.register(descriptor, event)
            waiting.poll(None if left is None else left * 1000)


def retried(attempt: Callable[[], Any], deadline: float | None) -> Any:
    """Try again and again, where no event tells when it is worth while: a full queue of a Unix peer (unix(7))."""
    pause = 0.001
    while True:
        try:
            return attempt()
        except AGAIN:
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError("timed out") from None
        thread = getcurrent()
        if type(thread) is GreenThread:
            thread.sleep_until(monotonic() + pause)
        else:
            time.sleep(pause)
        pause = min(pause * 2, 0.05)

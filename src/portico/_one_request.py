"""One request without a loop: `handle_request` waits here until one may be taken, or none is to be.

What would wake a loop wakes it, too: a limit that is lifted, `resume`, the wish to stop, the end of the listener.
Several may wait at once, each in a thread of its own, and next to a loop.
"""

from __future__ import annotations

import selectors
import threading
from _weakrefset import WeakSet
from contextlib import suppress

from ._loop import Waker, selector_class
from ._sockets import ServerSocket, wait_readable
from .lifecycle import STOP_FLAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["Waits"]

_FOR_EVER: Final = float("inf")
# Seconds between two looks for room.
_LOOK_AGAIN: Final = 0.02
# The same where nothing tells that the socket was closed, or there is no descriptor for a waker.
_LOOK: Final = 0.08


class Waits:
    """Those that wait for a server's next request, or are in it. It does not know the server, whose socket knows it.

    A wish to stop is heard once by each thread that is in here when it comes: one that waits gives up at once, one that
    is in a handler has its next call return.
    """

    def __init__(self) -> None:
        self._all: set[_Wait] = set()
        self._missed: WeakSet[threading.Thread] = WeakSet()
        self._lock = threading.Lock()
        self._takers: set[object] = set()

    def wake(self) -> None:
        """Have them look again. From any thread and from signal handlers, like `end`."""
        for wait in tuple(self._all):
            wait.wake()

    def end(self) -> None:
        """Have them give up."""
        for wait in tuple(self._all):
            wait.over = True
            wait.wake()

    def take(self, server: Any, seconds: float | None) -> bool | None:
        """Take one request, when one may be taken, and run it.

        Whether there was one; False if the time was up, None if the server is to stop, or has been closed.
        """
        sock = getattr(server, "socket", None)
        if isinstance(sock, ServerSocket) and sock.on_close is None:  # no loop has asked to be told
            sock.on_close = self.end
        server._portico_reap()  # a program's own `handle_timeout` may not do it
        wait = _Wait(server, seconds)
        self._all.add(wait)
        found: bool | None = False
        try:
            if self._has_missed():
                wait.over = True
            try:
                found = wait.run()
            finally:
                wait.close()
            if found:
                self._run_one(server, wait)
        finally:
            self._all.discard(wait)
            if found and wait.over:
                self._missed.add(threading.current_thread())
        if found is None:
            with server._portico_lifecycle.lock:
                if not server._portico_lifecycle.running:  # else the loop has to hear of it
                    server._BaseServer__shutdown_request = False
        return found

    def _run_one(self, server: Any, wait: object) -> None:
        self.begin_to_take(server, wait)
        try:
            server._handle_request_noblock()
        finally:
            self.end_taking(server, wait)

    def _has_missed(self) -> bool:
        """Whether a wish to stop came while this thread was in a handler. Asked once."""
        if not self._missed:
            return False
        me = threading.current_thread()
        found = me in self._missed
        self._missed.discard(me)
        return found

    def begin_to_take(self, server: Any, taker: object) -> None:
        """From now on a request that is not there any more must not be waited for: others may have taken it."""
        with self._lock:
            self._takers.add(taker)
            server._portico_wait_to_take(False)

    def end_taking(self, server: Any, taker: object) -> None:
        """It may be, if this was the last one of them."""
        with self._lock:
            self._takers.discard(taker)
            if not self._takers:
                server._portico_wait_to_take(True)


class _Wait:
    """One of them."""

    def __init__(self, server: Any, seconds: float | None) -> None:
        self.over = False
        self._server = server
        self._clock = server._portico_system.monotonic
        self._deadline = _FOR_EVER if seconds is None else self._clock() + seconds
        self._listener = -1
        self._selector: Any = None
        self._waker: Waker | None = None
        self._patience = 0.0  # at first: mostly there is somebody already, and no waker is needed

    def wake(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def close(self) -> None:
        if self._selector is not None:
            self._selector.close()
        waker, self._waker = self._waker, None
        if waker is not None:
            waker.close()

    def run(self) -> bool | None:
        server = self._server
        came, looked = False, False
        while not (self.over or vars(server).get(STOP_FLAG) or server.fileno() < 0):
            came = came or server._portico_left_over
            if came and server._portico_loop is None:
                server._portico_prepare_once()
            held = self._held(came)
            if came and held is None:
                return True
            left = self._deadline - self._clock()
            if looked and left <= 0:
                return False
            if looked and not self._patience:
                self._can_be_woken()
                continue  # whoever would have woken it has said so before
            came = self._look(held is None, min(left, self._patience, _FOR_EVER if held is None else held)) or came
            looked = True
        return None

    def _can_be_woken(self) -> None:
        self._selector = selector_class()()
        try:
            self._waker = Waker()
        except OSError:  # out of descriptors, which the request itself may be without, too
            self._patience = _LOOK
            return
        self._selector.register(self._waker, selectors.EVENT_READ)
        tells = isinstance(getattr(self._server, "socket", None), ServerSocket)
        self._patience = _FOR_EVER if tells else _LOOK

    def _held(self, came: bool) -> float | None:
        """None if a request may be taken, if one `came`, else the seconds until that is to be asked again."""
        server = self._server
        if server._portico_suspended and not server._portico_has_sessions:  # which refuse whoever is new
            return _FOR_EVER
        if not came:
            return None
        if server._portico_has_gate() and not server.ready_to_accept():
            return _LOOK_AGAIN
        if not (server._portico_limited or server._portico_bounded) or server._portico_hold() is None:
            return None
        server._portico_reap()
        return _LOOK_AGAIN

    def _look(self, listens: bool, seconds: float) -> bool:
        """Wait for so long at the most, unless woken; whether there is a request."""
        server, look = self._server, None
        if server._portico_loop is None and server._portico_look is not None:  # nobody else does, where no loop runs
            look = server._portico_look()
        if look is not None:
            seconds = min(seconds, look)
        descriptor = server.fileno() if listens else -1
        if self._selector is None:
            return descriptor >= 0 and wait_readable(descriptor, 0)
        self._listen(descriptor)
        ready = self._selector.select(None if seconds == _FOR_EVER else max(0.0, seconds))
        if self._waker is not None:
            self._waker.clear()
        return any(key.fd == self._listener for key, _ in ready)

    def _listen(self, descriptor: int) -> None:
        """Watch the listener, which has this descriptor now, or do not."""
        if descriptor != self._listener:
            if self._listener >= 0:
                self._selector.unregister(self._listener)
            self._listener = -1
            if descriptor >= 0:
                with suppress(OSError):  # closed a moment ago, as the next turn finds
                    self._listener = self._selector.register(descriptor, selectors.EVENT_READ).fd

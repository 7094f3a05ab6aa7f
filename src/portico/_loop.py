"""The blocking loop: waits until something is ready, or somebody wakes it. No policy of its own.

`_acceptor` decides what is watched and what readiness means; the green and async ways have loops of their own.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading

from ._system import System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

__all__ = ["Loop", "Waker", "selector_class"]

_ServerSelector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


def selector_class() -> Any:
    """`_ServerSelector` as the package shows it: programs patch that name on the module they imported."""
    return getattr(sys.modules.get(__package__ or ""), "_ServerSelector", _ServerSelector)


class Waker:
    """Makes a loop's wait return, from any thread and from signal handlers.

    A socket pair, not a pipe: on Windows only sockets can be polled. The lock keeps `wake` from writing to a
    descriptor number that `close` has just given back; it is re-entrant because a signal handler may wake the loop
    that its own thread is about to close.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def writer(self) -> int:
        """The descriptor to write to, for whoever wakes by a byte; non-blocking."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Make the wait return, now or when it begins. Does nothing once closed."""
        with self._lock:
            try:
                self._writer.send(b"\0")
            except OSError:  # full: it is awake already; closed: nobody waits any more
                return

    def clear(self) -> None:
        """Forget all that woke it so far."""
        try:
            while self._reader.recv(4096):
                pass
        except OSError:
            return

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()


class Loop:
    """Watches descriptors and says which are ready.

    Use as a context manager, in the thread that waits; `wake` alone may be called from elsewhere.
    """

    def __init__(self, selector_class: Callable[[], selectors.BaseSelector], system: System | None = None) -> None:
        self._selector = selector_class()
        self._system = system or System()
        self.wait = self._selector.select
        """Block until something watched is readable, `wake` is called, or the timeout (seconds, None: for ever) ends.

        The selector's own method: returns (key, events) pairs. `key.data` is the callback, for the caller to call.
        """
        self._waker = Waker()
        self.servers: list[Any] = []
        """Who is served; a forked child closes the sockets of all of them."""
        self.watch(self._waker, self._waker.clear)
        # The kernel may deliver a signal to any thread; Python runs its handler in the main thread, which would not
        # notice while it waits here. So each signal wakes the loop, unless somebody else is told of them already.
        self._woken_by_signals = self._system.tell_of_signals(self._waker.writer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def watch(self, fileobj: Any, callback: Callable[[], object]) -> int:
        """Have `wait` return `callback`, as a key's `data`, whenever `fileobj` is readable; returns its descriptor.

        Raises `ValueError` if it is closed.
        """
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self.unwatch(descriptor)  # a number may have been closed, and given out again, behind our back
        return self._selector.register(fileobj, selectors.EVENT_READ, callback).fd

    def unwatch(self, descriptor: int) -> None:
        """Stop watching. By number, since the object behind it may be closed already."""
        try:
            self._selector.unregister(descriptor)
        except (KeyError, RuntimeError):  # not watched, or the loop has ended
            return

    def wake(self) -> None:
        """Make `wait` return. From any thread and from signal handlers."""
        self._waker.wake()

    def release(self, server: Any) -> None:
        """A server has stopped: let it end, which lets its `shutdown` return."""
        server._portico_serving_ended(self)

    def close(self) -> None:
        """Free the loop's own descriptors; what was watched stays open."""
        if self._woken_by_signals:
            self._system.tell_of_signals(-1)
        self._waker.close()
        self._selector.close()

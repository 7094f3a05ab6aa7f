"""Child processes: whom each one serves, and their end seen without a thread and without a signal.

What their end means is `forks`' business.
"""

from __future__ import annotations

import os
import select
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._connection import Connection
    from ._loop import Loop
    from ._system import System

__all__ = ["ChildWatch", "Served", "close_kept"]

_close: Final = os.close
_detach: Final = socket.SocketType.detach


class Served:
    """What the parent knows of its children: whose connection each one serves, and which have been told to end."""

    def __init__(self) -> None:
        self.connections: dict[int, Connection] = {}
        self.terminated: set[int] = set()


_NONE_SERVED: Final = Served()


def close_kept(server: Any) -> None:
    """In a child: the parent's copies of what its siblings serve, which else would be open as long as this one runs."""
    served = getattr(server, "_portico_served", _NONE_SERVED).connections.values()
    kept = [connection.kept for connection in served if connection.kept is not None]
    for sock in (*kept, *(server._portico_lobby or ())):
        try:
            _close(_detach(getattr(sock, "pipe", sock)))  # of a session it is that
        except OSError:  # closed already
            continue


class ChildWatch:
    """Sees children end, by a pidfd each (pidfd_open(2)), and calls `ended` from the loop.

    All of them are in one epoll set, so that a child costs two system calls and none of the selector's bookkeeping.
    A forked child shares that set with its parent, and leaves it alone.
    """

    def __init__(self, loop: Loop | None, system: System, ended: Callable[[int], None]) -> None:
        self._loop = loop
        self._system = system
        self._owner = system.pid()
        self._ended = ended
        self._pids: dict[int, int] = {}
        self._descriptors: dict[int, int] = {}
        self._set = None if loop is None else system.descriptor_set()
        if loop is not None and self._set is not None:
            loop.watch(self._set, self._look)

    def add(self, pid: int) -> bool:
        """Watch a child; False if the loop will not be told of its end."""
        if pid in self._descriptors:
            return True
        descriptor = None if self._set is None else self._system.pidfd(pid)
        if descriptor is None or self._set is None:
            return False
        self._descriptors[pid] = descriptor
        self._pids[descriptor] = pid
        self._set.register(descriptor, select.EPOLLIN)
        return True

    def remove(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid, None)
        if descriptor is not None and self._set is not None and self._is_ours():
            del self._pids[descriptor]
            self._set.unregister(descriptor)  # closing would not: younger children hold copies (epoll(7), Q6)
            os.close(descriptor)

    def close(self) -> None:
        for pid in tuple(self._descriptors):
            self.remove(pid)
        if self._loop is not None and self._set is not None and self._is_ours():
            self._loop.unwatch(self._set.fileno())
            self._set.close()

    def _is_ours(self) -> bool:
        return self._system.pid() == self._owner

    def _look(self) -> None:
        if self._set is not None:
            for pid in [self._pids[descriptor] for descriptor, _ in self._set.poll(0)]:
                self._ended(pid)

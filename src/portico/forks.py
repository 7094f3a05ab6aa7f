"""A process per request. Says only how a request runs; works through the hooks alone, over any `socketserver` server.

Children are waited for one by one, by their own pid: those that the program started for itself are never touched.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from functools import partial

from . import logs, settings
from ._system import System
from .errors import Overloaded
from .lifecycle import STOP_FLAG, ForkedWithThreads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ._loop import Loop
    from .servers import BaseServer

    _Base = BaseServer[Any]
else:
    _Base = object

__all__ = ["ForkingMixIn"]

# Where a child's end cannot be seen coming (no pidfd, a foreign loop): seconds between two looks.
_LOOK_AGAIN = 0.05


class ForkingMixIn(_Base):
    """Mix-in that runs every request in a process of its own: `class Server(ForkingMixIn, TCPServer): pass`.

    With `max_children` of them running, clients wait in the backlog. Best served from the only thread of a process:
    what other threads have locked stays locked in a child, and a warning says so once.
    """

    timeout: float | None = 300
    active_children: set[int] | None = None
    max_children: int = settings.MAX_CHILDREN.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default

    _system = System()
    _child_watch: _ChildWatch | None = None
    _warned_of_threads = False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child for the request. Raises `Overloaded` if there is none to be had."""
        if not self.ready_to_accept():
            self._wait_for_room()
        self._warn_of_threads()
        try:
            pid = self._system.fork()
        except OSError as error:
            raise Overloaded(f"no process for a request ({error})") from error
        if pid == 0:
            self._run_child(request, client_address)
        if self.active_children is None:
            self.active_children = set()
        self.active_children.add(pid)
        self._watch().add(pid)
        self.close_request(request)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended; with `blocking`, wait for all of them. Never anybody else's."""
        for pid in tuple(self.active_children or ()):
            if self._system.reaped(pid, block=blocking):
                self._forget(pid)

    def ready_to_accept(self) -> bool:
        """Whether another child may be started (`max_children`)."""
        if len(self.active_children or ()) >= self.max_children:
            self.collect_children()
        return len(self.active_children or ()) < self.max_children

    def handle_timeout(self) -> None:
        """Reap, when `handle_request` has waited in vain."""
        self.collect_children()

    def service_actions(self) -> None:
        """Reap, after every turn of the loop."""
        self.collect_children()

    def service_interval(self, poll_interval: float | None) -> float | None:
        """None while the loop sees every child's end by itself, so that an idle server sleeps."""
        if self._overridden("service_actions") or (self.active_children and not self._watch().sees_all()):
            return poll_interval
        return None

    def server_close(self) -> None:
        """Close the server, then wait for its children (`block_on_close`), without a deadline."""
        super().server_close()
        self.collect_children(blocking=self.block_on_close)
        self._end_watch()

    # -- in the parent

    def _watch(self) -> _ChildWatch:
        """The watch over the children's ends, by the loop that runs now, if it is one of Portico's."""
        loop = getattr(self, "_loop", None)
        if self._child_watch is None or self._child_watch.loop is not loop:
            self._end_watch()
            self._child_watch = _ChildWatch(loop, self._system, self._child_ended)
            for pid in self.active_children or ():
                self._child_watch.add(pid)
        return self._child_watch

    def _end_watch(self) -> None:
        if self._child_watch is not None:
            self._child_watch.close()
            self._child_watch = None

    def _child_ended(self, pid: int) -> None:
        if self._system.reaped(pid):
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        if self.active_children is not None:
            self.active_children.discard(pid)
        if self._child_watch is not None:
            self._child_watch.remove(pid)

    def _wait_for_room(self) -> None:
        """Wait until a child may be started, where nobody asked `ready_to_accept` before taking the request.

        That is in `handle_request` and in the stdlib's loop; Portico's does not take what it cannot run. The wish to
        stop is looked at, so that `shutdown()` is not held up as by the stdlib's blocking wait.
        """
        while not self.ready_to_accept():
            if vars(self).get(STOP_FLAG):
                raise Overloaded(f"all {self.max_children} children are busy, and the server is stopping")
            self._watch().wait(_LOOK_AGAIN)

    def _warn_of_threads(self) -> None:
        others = threading.active_count() - 1
        if others and not self._warned_of_threads:
            self._warned_of_threads = True
            logs.emit(self, ForkedWithThreads(others))

    # -- in the child

    def _run_child(self, request: Any, client_address: Any) -> NoReturn:
        """Run the request and end the process: status 0, or 1 after any exception (the stdlib's rule)."""
        status = 1
        try:
            self._drop_inherited(request)
            self.finish_request(request, client_address)
            status = 0
        except Exception:
            self.handle_error(request, client_address)
        finally:
            try:
                self.shutdown_request(request)
            finally:
                self._system.exit_child(status)

    def _drop_inherited(self, request: Any) -> None:
        """Close what belongs to the parent: its loop, the listener, other servers' sockets.

        A child that kept the listener would hold the port, and the clients in its backlog, after the parent has ended.
        A datagram server's socket stays: it is part of the request.
        """
        if getattr(self, "stdlib_compat", False):
            return
        loop = getattr(self, "_loop", None)
        if loop is not None:
            loop.close()
        self._end_watch()
        parts = request if isinstance(request, tuple) else (request,)
        for server in (self,) if loop is None else loop.servers:
            sock = getattr(server, "socket", None)
            if isinstance(sock, socket.socket) and not any(sock is part for part in parts):
                sock.close()


class _ChildWatch:
    """Sees children end: a pidfd each, watched by the server's loop or waited on here."""

    def __init__(self, loop: Loop | None, system: System, ended: Callable[[int], None]) -> None:
        self.loop = loop
        self._system = system
        self._ended = ended
        self._descriptors: dict[int, int | None] = {}

    def add(self, pid: int) -> None:
        descriptor = self._descriptors[pid] = self._system.pidfd(pid)
        if descriptor is not None and self.loop is not None:
            self.loop.watch(descriptor, partial(self._ended, pid))

    def remove(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid, None)
        if descriptor is not None:
            if self.loop is not None:
                self.loop.unwatch(descriptor)
            os.close(descriptor)

    def sees_all(self) -> bool:
        """Whether the loop will be told of every child's end."""
        return self.loop is not None and None not in self._descriptors.values()

    def wait(self, timeout: float) -> None:
        """Wait until a child ends, for at most `timeout` seconds."""
        with selectors.DefaultSelector() as selector:
            for descriptor in self._descriptors.values():
                if descriptor is not None:
                    selector.register(descriptor, selectors.EVENT_READ)
            selector.select(timeout)

    def close(self) -> None:
        for pid in tuple(self._descriptors):
            self.remove(pid)

"""A process per request. Says only how a request runs; works through the hooks alone, over any `socketserver` server.

Children are waited for one by one, by their own pid: those that the program started for itself are never touched.
"""

from __future__ import annotations

import os
import select
import socket

from . import logs, settings
from ._base import BaseServer
from ._system import System
from .errors import Overloaded
from .lifecycle import STOP_FLAG, ForkedWithThreads, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from ._loop import Loop

    _Base = BaseServer[Any]
else:
    _Base = object

__all__ = ["ForkingMixIn"]

_close: Final = os.close
_detach: Final = socket.SocketType.detach
# Seconds between two looks for a free child, where no loop of ours can wait for one.
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

    _portico_system = System()
    _portico_child_watch: _ChildWatch | None = None
    _portico_looked_for_threads = False
    _portico_warned_of_threads = False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child for the request. Raises `Overloaded` if there is none to be had."""
        if self.active_children is not None and len(self.active_children) >= self.max_children:
            self._portico_wait_for_room()
        if not self._portico_looked_for_threads:
            self._portico_look_for_threads()
        try:
            pid = self._portico_system.fork()
        except OSError as error:
            raise Overloaded(f"no process for a request ({error})") from error
        if pid == 0:
            self._portico_run_child(request, client_address)
        if self.active_children is None:
            self.active_children = set()
        self.active_children.add(pid)
        self._portico_may_sleep = False
        self.close_request(request)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended; with `blocking`, wait for all of them. Never anybody else's."""
        for pid in tuple(self.active_children or ()):
            if self._portico_system.reaped(pid, block=blocking):
                self._portico_forget(pid)

    def ready_to_accept(self) -> bool:
        """Whether another child may be started (`max_children`)."""
        children = self.active_children
        if children is None or len(children) < self.max_children:
            return True
        self.collect_children()
        return len(children) < self.max_children

    def handle_timeout(self) -> None:
        """Reap, when `handle_request` has waited in vain."""
        self.collect_children()

    def service_actions(self) -> None:
        """Reap. Called by loops that do not see the children's ends themselves."""
        self.collect_children()

    def server_close(self) -> None:
        """Close the server, then wait for its children (`block_on_close`), without a deadline."""
        super().server_close()
        if getattr(self, "_portico_loop", None) is not None:
            # The loop reaps, too, and in its own thread: let it end first. Not by an override that closes as well.
            BaseServer.shutdown(self)
        self.collect_children(blocking=self.block_on_close)
        self._portico_end_watch()

    # -- in the parent

    def _portico_prepare_to_sleep(self) -> None:
        """Have the loop woken by children's ends. Not done at the fork: a busy server reaps without being woken."""
        self.collect_children()
        if self.active_children and not self._portico_watch(self.active_children):
            self._portico_ticks = True  # it will not see all of them end: let it look now and then
        self._portico_look_for_threads()
        super()._portico_prepare_to_sleep()

    def _portico_serving_begins(self, loop: Loop) -> None:
        super()._portico_serving_begins(loop)
        self._portico_may_sleep = not self.active_children  # an earlier loop may have left some

    def _portico_serving_ended(self, loop: Loop) -> None:
        try:
            if self._portico_loop is loop:
                self._portico_end_watch()
        finally:
            super()._portico_serving_ended(loop)  # whatever happens: `shutdown()` waits for it

    def _portico_watch(self, children: set[int]) -> bool:
        """Watch those children that are not watched yet; whether all of them are."""
        if self._portico_child_watch is None:
            self._portico_child_watch = _ChildWatch(
                getattr(self, "_portico_loop", None), self._portico_system, self._portico_reap
            )
        unseen = [pid for pid in children if not self._portico_child_watch.add(pid)]
        return not unseen

    def _portico_end_watch(self) -> None:
        if self._portico_child_watch is not None:
            self._portico_child_watch.close()
            self._portico_child_watch = None

    def _portico_reap(self, pid: int) -> None:
        if self._portico_system.reaped(pid):
            self._portico_forget(pid)

    def _portico_forget(self, pid: int) -> None:
        if self.active_children is not None:
            self.active_children.discard(pid)
        if self._portico_child_watch is not None:
            self._portico_child_watch.remove(pid)

    def _portico_wait_for_room(self) -> None:
        """Wait until a child may be started, where nobody asked `ready_to_accept` before taking the request.

        That is in `handle_request` and in the stdlib's loop; Portico's does not take what it cannot run. The wish to
        stop is looked at, so that `shutdown()` is not held up as by the stdlib's blocking wait.
        """
        while not self.ready_to_accept():
            if vars(self).get(STOP_FLAG):
                raise Overloaded(f"all {self.max_children} children are busy, and the server is stopping")
            self._portico_system.sleep(_LOOK_AGAIN)

    def _portico_look_for_threads(self) -> None:
        """At the first fork, and whenever the loop is idle: to look at every fork would cost 50 pages."""
        self._portico_looked_for_threads = True
        others = self._portico_system.threads() - 1
        if others > 0 and not self._portico_warned_of_threads:
            self._portico_warned_of_threads = True
            logs.emit(self, ForkedWithThreads(others))

    # -- in the child

    def _portico_run_child(self, request: Any, client_address: Any) -> NoReturn:
        """Close what is the parent's, run the request and end the process: status 0, or 1 after any exception.

        A child that kept a listener would hold the port, and the clients in its backlog, after the parent has ended. A
        datagram server's socket stays: it is part of the request. One function, few objects, and `detach` the C type's
        own: each page that a child writes to is a fault (measured: spread over more functions, 15 of 265 more).
        """
        status = 1
        try:
            if not getattr(self, "stdlib_compat", False):
                kept = request[-1] if type(request) is tuple else request
                loop: Loop | None = getattr(self, "_portico_loop", None)
                for server in (self,) if loop is None else loop.servers:
                    try:
                        if server.socket is not kept:
                            _close(_detach(server.socket))
                    except (AttributeError, TypeError, OSError):  # no socket, or closed already
                        continue
            self.finish_request(request, client_address)
            status = 0
        except Exception:
            self.handle_error(request, client_address)
        finally:
            try:
                self.shutdown_request(request)
            except Exception as error:
                logs.emit(self, HookFailed("shutdown_request", error))
            finally:
                self._portico_system.exit_at_once(status)


class _ChildWatch:
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

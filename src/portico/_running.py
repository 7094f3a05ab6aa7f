"""Servers as a program: serve until a signal, drain, and say with what status the process is to end.

The first SIGINT or SIGTERM begins a drain, the second cuts it short. Each server drains in a thread of its own, since
the main thread may be in a handler, or in the loop that the handlers need. These threads are there, asleep, before
anything is served: when a signal comes there may be none to be had. Not beside servers that fork, whose children would
inherit what a second thread holds: there it is tried at the signal, and else the main thread does it after the loop,
which children cannot hold up. What is stuck even after the cut, in a thread that nothing can end, would keep the
interpreter from ending: then the process is ended, with status 3.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

# Loaded here and now: a signal may come in the middle of loading them, and its handler needs them.
from . import _connections, _drain  # noqa: F401
from ._system import System
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any, Final

    from ._drain import Drain

__all__ = ["CUT", "StopsOnSignals"]

# Seconds that the main thread has for the end of its signal handler.
_BACK: Final = 0.01
# Seconds that the last words about what is stuck may take.
_WORDS: Final = 1.0
CUT: Final = 3
"""The exit status when connections had to be cut."""


class StopsOnSignals:
    """SIGINT and SIGTERM end the servers while the block lasts; the handlers before are put back after it.

    With `last` not if a signal has ended it: then the process is about to end, and a further signal must not find it
    half gone. With `reloads` SIGHUP has them load their certificates anew. Main thread only (Python's rule for signal
    handlers: `ValueError` elsewhere).
    """

    def __init__(
        self, servers: Sequence[Any], system: System | None = None, *, last: bool = False, reloads: bool = False
    ) -> None:
        self._servers = servers
        self._system = system or System()
        self._last = last
        self._reloads = reloads
        self._pid = self._system.pid()
        self._before: dict[int, Any] = {}
        self._drains: list[Drain] = []
        self._helpers: list[_Helper] = []
        self._leaving = threading.Lock()
        self._stopping = self._hurries = False
        self._serves = False
        self.status = 0

    def __enter__(self) -> StopsOnSignals:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signals come to the main thread only: call run() there, serve_forever() in others")
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = self._system.on_signal(number, self._told)
        if self._reloads:
            self._before[signal.SIGHUP] = self._system.on_signal(signal.SIGHUP, self._reload)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            if handler is None:  # it was not Python's, which therefore cannot put it back
                handler = signal.SIG_DFL
            self._system.on_signal(number, signal.SIG_IGN if self._last and self._stopping else handler)

    def serve(self, serve_together: Callable[[Sequence[Any]], None]) -> None:
        """Serve until all have ended, and been drained: by a signal, or by whoever else asked for it."""
        for server in self._servers:
            server._portico_is_program = True
        self._start_helpers()
        try:
            self._serves = True
            serve_together(self._servers)
        except (RuntimeError, ValueError):
            # A signal came first, or a drain that somebody asked for: then there is nothing left to be served.
            if not (self._stopping or all(server._portico_drain is not None for server in self._servers)):
                raise
        finally:
            self._serves = False
            helpers, self._helpers = self._helpers, []  # a signal that comes now is not to count on them
            for helper in helpers:
                helper.orders.put(None)
        self._finish()
        for helper in helpers:
            helper.thread.join()  # one that has found something stuck ends the process: nobody is to go on meanwhile

    def _finish(self) -> None:
        begun = [server._portico_drain for server in self._servers if server._portico_drain is not None]
        reports = [drain.finish() for drain in begun]
        if any(report.stuck for report in reports):
            self._end_at_once()
        if not all(report.clean for report in reports):
            self.status = CUT

    def _start_helpers(self) -> None:
        if any(hasattr(server, "max_children") for server in self._servers):
            return
        try:
            for _ in self._servers:
                self._helpers.append(_Helper(self._drain))
        except RuntimeError:  # there is none to be had even now
            return

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self._system.pid() != self._pid:
            self._in_child(number)
        elif self._stopping:
            self._hurries = True
            for drain in self._drains:
                drain.cut_now()
            if self._serves and any(drain.is_left_behind for drain in self._drains):
                self._cut_here()
        else:
            self._stopping = True
            waiting = list(self._helpers)
            for server in self._servers:
                drain, _ = server._portico_begin_drain(server.drain_timeout, grace=server.grace)
                self._drains.append(drain)
                if self._hurries:  # the second signal has come in the middle of the first
                    drain.cut_now()
                if not waiting:
                    drain.start()
                elif drain.claim():
                    waiting.pop().orders.put(drain)

    def _reload(self, number: int, frame: FrameType | None) -> None:
        """What comes of it is an event of each server."""
        if self._system.pid() == self._pid:
            found = [server.reload_tls() for server in self._servers if server.tls]
            if found and all(found):
                print("certificates loaded anew", flush=True)

    def _drain(self, drain: Drain) -> None:
        # The main thread goes back into the call that the signal has interrupted. Another one that comes on the way, as
        # from somebody who sees the listener closed, would be noticed when that call ends.
        self._system.sleep(_BACK)
        if drain.run().stuck:
            self._end_at_once()

    def _end_at_once(self) -> None:
        """Not before all other servers have drained; nobody else can end what is stuck."""
        for drain in self._drains:
            drain.finish()
        self._leaving.acquire(timeout=_WORDS)  # for good: others who have found something stuck wait here for the end
        for server in self._servers:
            for connection in list(server._portico_connections):  # their ends would be nobody's to tell
                server._portico_connections.end(connection, EndReason.CUT)
        self._leave()

    def _cut_here(self) -> None:
        """Nobody drains, and the main thread, which is this one, has been called away from its loop, or a handler.

        It may hold any lock; so this does without, and the process ends.
        """
        for server in self._servers:
            runners = [server._portico_connections.stand_in(server, runner) for runner in server._portico_runners()]
            for connection in [*server._portico_connections, *runners] * 2:  # of children the second time is SIGKILL
                connection.cut(EndReason.CUT)
        self._leave()

    def _leave(self) -> None:
        with suppress(RuntimeError):  # in a signal handler, which may have interrupted the same
            print("portico: what still ran after the deadline has been cut", file=sys.stderr, flush=True)
            sys.stdout.flush()
        self._system.exit_at_once(CUT)

    def _in_child(self, number: int) -> None:
        """A terminal and a service manager tell children, too, and their servers know what that is to mean.

        To a process that a handler has forked for itself SIGINT is nothing either, and SIGTERM its end.
        """
        forking = [server for server in self._servers if hasattr(server, "_portico_hear_signal")]
        own = [server for server in forking if server._portico_is_child]
        if forking:  # none of which is marked in the very first moment after a fork
            (own or forking)[0]._portico_hear_signal(number)
        elif number == signal.SIGTERM:
            self._system.exit_at_once(128 + number)


class _Helper:
    """A thread that sleeps until it is told what to drain, or that there is nothing. Raises `RuntimeError` without."""

    def __init__(self, drain: Callable[[Drain], None]) -> None:
        self.orders: SimpleQueue[Drain | None] = SimpleQueue()  # whose `put` signal handlers may call
        self._drain = drain
        self.thread = threading.Thread(target=self._run, name="portico drain")
        self.thread.start()

    def _run(self) -> None:
        order = self.orders.get()
        if order is not None:
            self._drain(order)

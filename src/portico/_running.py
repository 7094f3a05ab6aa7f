"""Servers as a program: serve until a signal, drain, and say with what status the process is to end.

The first SIGINT or SIGTERM begins a drain, the second cuts it short. Each server drains in a thread of its own, since
the main thread may be in a handler, or in the loop that the handlers need. What is stuck even after the cut, in a
thread that nothing can end, would keep the interpreter from ending: then the process is ended, with status 3.
"""

from __future__ import annotations

import signal
import sys
import threading

# Loaded here and now: a signal may come in the middle of loading them, and its handler needs them.
from . import _connections, _drain  # noqa: F401
from ._system import System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any, Final

    from ._drain import Drain

__all__ = ["CUT", "StopsOnSignals"]

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
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self.status = 0

    def __enter__(self) -> StopsOnSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = self._system.on_signal(number, self._told)
        if self._reloads:
            self._before[signal.SIGHUP] = self._system.on_signal(signal.SIGHUP, self._reload)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            self._system.on_signal(number, signal.SIG_IGN if self._last and self._stopping else handler)

    def serve(self, serve_together: Callable[[Sequence[Any]], None]) -> None:
        """Serve until all have ended, and been drained if it was a signal that ended them."""
        for server in self._servers:
            server._portico_is_program = True
        try:
            serve_together(self._servers)
        except (RuntimeError, ValueError):
            if not self._stopping:  # else a signal came first, and there is nothing left to be served
                raise
        for drain in self._drains:
            if not drain.wait().clean:
                self.status = CUT
        for thread in self._threads:
            thread.join()  # one that has found something stuck ends the process: nobody is to go on meanwhile

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self._system.pid() != self._pid:
            self._in_child(number)
        elif self._stopping:
            for drain in self._drains:
                drain.cut_now()
        else:
            self._stopping = True
            for server in self._servers:
                drain, is_new = server._portico_begin_drain(server.drain_timeout, grace=server.grace)
                self._drains.append(drain)
                if is_new:
                    self._threads.append(threading.Thread(target=self._drain, args=(drain,), name="portico drain"))
                    self._threads[-1].start()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        """What comes of it is an event of each server."""
        if self._system.pid() == self._pid:
            found = [server.reload_tls() for server in self._servers if server.tls]
            if found and all(found):
                print("certificates loaded anew", flush=True)

    def _drain(self, drain: Drain) -> None:
        if drain.run().stuck:
            self._end_at_once()

    def _end_at_once(self) -> None:
        """Not before all other servers have drained; nobody else can end what is stuck."""
        for drain in self._drains:
            drain.wait()
        print("portico: what still ran after the deadline has been cut", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._system.exit_at_once(CUT)

    def _in_child(self, number: int) -> None:
        """A terminal sends Ctrl-C to children, too: they may end their requests. SIGTERM is meant for the child."""
        if number == signal.SIGTERM:
            self._system.exit_at_once(128 + number)

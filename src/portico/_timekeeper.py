"""Enforces the time limits of a server's connections: one heap of times, and whoever looks when the next one is due.

What a look decides is `deadlines`'. Each connection is in the heap once, with the time at which one of its limits
could be reached at the earliest, so that a message costs nothing and a connection one look a timeout. Who looks
depends on the way to run: the loop itself where it must not have threads beside it (`forks`) or has timers of its own
(asyncio), and a thread, one for all, where the loop may be in a handler.
"""

from __future__ import annotations

import threading
from heapq import heapify, heappop, heappush
from random import random
from time import monotonic

from .deadlines import Marks, TimeLimits, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, Protocol

    from ._connection import Connection

    class Live(Protocol):
        """Connections that live."""

        def __len__(self) -> int: ...

        def numbered(self, number: int) -> Connection | None: ...


__all__ = ["LoopTimers", "Timekeeper", "TimerThread"]

# Looks in one go, so that a loop that looks itself comes to other things, too (1 ms).
_LOOKS: Final = 500
# Entries of connections that have ended meanwhile, in the heap for each that lives, before they are swept out.
_STALE: Final = 2
_FEW: Final = 1000
_NEVER: Final = float("inf")
# Seconds that the thread waits for something to look at, before it ends.
_LINGER: Final = 5.0


class Timekeeper:
    """The looks that are due.

    `on_sooner` is called when one is to be made sooner than any before: wake whoever looks.
    """

    def __init__(self, limits: TimeLimits, live: Live, on_sooner: Callable[[], object]) -> None:
        self.limits = limits
        self._live = live
        self._on_sooner = on_sooner
        self._heap: list[tuple[float, int]] = []
        """By number: one that has ended is not to be kept until its time would have come."""
        self.unattended = False
        """Whether nobody looks who should."""
        self._lock = threading.RLock()  # re-entrant: a signal handler may change limits in the middle of it

    def add(self, connection: Connection) -> None:
        """A connection has begun."""
        now = monotonic()
        connection.marks = marks = Marks(now, random())
        _, when = verdict(self.limits, marks, connection.look(), now, connection)
        self._push(when, connection)

    def change(self, limits: TimeLimits, connections: Iterable[Connection]) -> None:
        """Other limits hold from now on: look at everybody."""
        self.limits = limits
        with self._lock:
            self._heap.clear()
        if (limits.age, limits.idle, limits.rate, limits.send) == (None,) * 4:
            return
        for connection in connections:
            connection.marks = connection.marks or Marks(monotonic() - connection.age, random())
            self._push(0.0, connection)

    def look(self) -> float | None:
        """Cut those whose time is over; returns the seconds until the next look, None if there is none to be made."""
        now = monotonic()
        for _ in range(_LOOKS):
            with self._lock:
                if not self._heap:
                    return None
                when, number = self._heap[0]
                if when > now:
                    return when - now
                heappop(self._heap)
            connection = self._live.numbered(number)
            marks = None if connection is None else connection.marks
            if connection is None or marks is None or marks.due != when:
                continue  # it has ended, or is to be looked at another time
            reason, again = verdict(self.limits, marks, connection.look(), now, connection)
            if reason is not None:
                connection.cut(reason)
            elif again < _NEVER:
                self._push(max(again, now + 0.001), connection)
        return 0.0

    def look_at(self, connection: Connection) -> None:
        """At this one now, whenever it was to be looked at."""
        if connection.marks is not None:
            self._push(0.0, connection)

    def _push(self, when: float, connection: Connection) -> None:
        marks = connection.marks
        if when == _NEVER or marks is None:
            return
        marks.due = when
        with self._lock:
            heap = self._heap
            sooner = not heap or when < heap[0][0]
            heappush(heap, (when, connection.id))
            if len(heap) > _FEW and len(heap) > _STALE * len(self._live) + _FEW:
                self._heap = [entry for entry in heap if self._live.numbered(entry[1]) is not None]
                heapify(self._heap)
        if sooner or self.unattended:
            self._on_sooner()


class TimerThread:
    """Looks in a thread of its own while there is something to look at; started by whoever has something first."""

    def __init__(self, limits: TimeLimits, live: Live) -> None:
        self.keeper = Timekeeper(limits, live, self._sooner)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._look_again = False
        self._over = False

    def _sooner(self) -> None:
        with self._changed:
            if self._over:
                return
            self._look_again = True
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="portico time limits", daemon=True)
                self.keeper.unattended = True
                thread.start()  # there may be none to be had: then the next connection tries again
                self.keeper.unattended = False
                self._thread = thread
            self._changed.notify()

    def _run(self) -> None:
        while True:
            wait = self.keeper.look()
            with self._changed:
                if not self._look_again and not self._over:
                    self._changed.wait(_LINGER if wait is None else wait)
                if self._over or (wait is None and not self._look_again):
                    self._thread = None
                    return
                self._look_again = False

    def close(self) -> None:
        """No more looks; the thread has ended when this returns, unless it is this one."""
        with self._changed:
            self._over = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


class LoopTimers:
    """Looks when the loop asks, after every turn: nothing has to be woken."""

    def __init__(self, limits: TimeLimits, live: Live) -> None:
        self.keeper = Timekeeper(limits, live, _nothing)

    def close(self) -> None:
        """There is nothing to be freed."""


def _nothing() -> None:
    return None

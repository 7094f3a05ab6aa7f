"""Sees a handler that holds the event loop, while it does, and says where: the one fault that everybody shares.

A thread of its own that looks now and then while green threads run, and sleeps while none does, so that an idle server
stays idle.
"""

from __future__ import annotations

import threading
import traceback
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import logs
from ._hub import GreenThread, Hub
from ._system import frame_of
from .lifecycle import LoopHeld

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["Watchdog"]

_LOOKS = 4
"""How often it looks in the time that is allowed: a hold is seen at the latest a quarter of that time late."""
_AGAIN = 60.0
"""Seconds before the same place is reported again."""
_PLACES = 1000
"""So many are remembered."""


class Watchdog:
    """Watches one hub from `start` to `stop`, and tells the server of the request that holds it."""

    def __init__(self, hub: Hub, seconds: float) -> None:
        self._hub = hub
        self._activity = hub.readiness
        self._seconds = seconds
        self._stirred = threading.Event()
        self._stopped = False
        self._pause = threading.Event()
        """Set only to end a pause."""
        self._told: dict[tuple[CodeType, int], float] = {}
        self._thread = threading.Thread(target=self._watch, name="portico watchdog", daemon=True)

    def watch(self, seconds: float) -> None:
        """Look often enough for a server that allows so many seconds; the least of several counts."""
        self._seconds = min(self._seconds, seconds)

    def start(self) -> None:
        self._activity.stir = self._stirred.set
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that."""
        self._stopped = True
        self._pause.set()
        self._activity.unwatched = False
        self._stirred.set()
        self._thread.join()

    def _watch(self) -> None:
        activity, began, told = self._activity, 0.0, False
        seen: tuple[int, GreenThread | None] = (-1, None)
        while not self._stopped:
            thread, place = self._running()
            now = activity.turns, thread
            if thread is None and now == seen:
                self._sleep(activity.turns)
                continue
            if thread is None or now != seen:
                began, seen, told = monotonic(), now, False
            elif place is not None and not told:  # of one hold only once, wherever it goes on to
                told = self._look(thread, place, monotonic() - began)
            self._pause.wait(self._seconds / _LOOKS)

    def _sleep(self, turns: int) -> None:
        """Until a green thread runs again, or has begun to since `turns` was looked at."""
        self._stirred.clear()
        self._activity.unwatched = not self._stopped
        while self._activity.turns == turns and not (self._stopped or self._stirred.wait()):
            pass
        self._activity.unwatched = False

    def _running(self) -> tuple[GreenThread | None, FrameType | None]:
        """The green thread that has the loop's OS thread now, and the innermost frame in it."""
        frame = top = frame_of(self._hub.thread)
        while frame is not None:
            if frame.f_code is GreenThread._run_job.__code__:
                thread: Any = frame.f_locals.get("self")
                return thread, top
            frame = frame.f_back
        return None, None

    def _look(self, thread: GreenThread, place: FrameType, seconds: float) -> bool:
        """Tell of a thread that holds the loop for too long; whether it is told of, now or a little while ago."""
        function, *arguments = thread.job or (None,)
        server = getattr(thread.group, "server", None)
        allowed = getattr(server, "blocking_warning", self._seconds)
        if allowed is None or seconds < allowed:
            return False
        is_request = getattr(function, "__name__", "") == "process_request_thread"
        now, line = monotonic(), (place.f_code, place.f_lineno)
        if now - self._told.get(line, -_AGAIN) >= _AGAIN:
            if len(self._told) > _PLACES:
                self._told.clear()
            self._told[line] = now
            stack = "".join(traceback.format_stack(place))
            logs.emit(server, LoopHeld(arguments[1] if is_request else None, seconds, stack))
        return True

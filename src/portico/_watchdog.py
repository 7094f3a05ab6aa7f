"""Sees a handler that holds the event loop, while it does, and says where: the one fault that everybody shares.

A thread of its own that looks now and then while green threads run, and sleeps while none does, so that an idle server
stays idle.
"""

from __future__ import annotations

import sys
import threading
import traceback
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import logs
from ._hub import GreenThread, Hub
from .lifecycle import LoopHeld

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["Watchdog"]

_LOOKS = 4
"""How often it looks in the time that is allowed: a hold is seen at the latest a quarter of that time late."""
_AGAIN = 60.0
"""Seconds before the same place is reported again."""


class Watchdog:
    """Watches one hub from `start` to `stop`, and tells the server of the request that holds it."""

    def __init__(self, hub: Hub, seconds: float) -> None:
        self._hub = hub
        self._activity = hub.readiness
        self._seconds = seconds
        self._stirred = threading.Event()
        self._stopped = False
        self._told: dict[CodeType, float] = {}
        self._thread = threading.Thread(target=self._watch, name="portico watchdog", daemon=True)

    def start(self) -> None:
        self._activity.stir = self._stirred.set
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that: at most one look."""
        self._stopped = True
        self._activity.unwatched = False
        self._stirred.set()
        self._thread.join()

    def _watch(self) -> None:
        activity, began = self._activity, 0.0
        seen: tuple[int, GreenThread | None] = (-1, None)
        pause = threading.Event()
        while not self._stopped:
            thread, place = self._running()
            now = activity.turns, thread
            if thread is None and now == seen:
                self._sleep()
                continue
            if thread is None or now != seen:
                began, seen = monotonic(), now
            elif place is not None and monotonic() - began >= self._seconds:
                self._tell(thread, place, monotonic() - began)
            pause.wait(self._seconds / _LOOKS)

    def _sleep(self) -> None:
        """Until a green thread runs again. It may begin before `unwatched` says so: then this is told at the next."""
        self._stirred.clear()
        self._activity.unwatched = not self._stopped
        while not (self._stopped or self._stirred.wait()):
            pass
        self._activity.unwatched = False

    def _running(self) -> tuple[GreenThread | None, FrameType | None]:
        """The green thread that has the loop's OS thread now, and the innermost frame in it."""
        top: FrameType | None = sys._current_frames().get(self._hub.thread)
        frame = top
        while frame is not None:
            if frame.f_code is GreenThread._run_job.__code__:
                thread: Any = frame.f_locals.get("self")
                return thread, top
            frame = frame.f_back
        return None, None

    def _tell(self, thread: GreenThread, place: FrameType, seconds: float) -> None:
        now, code = monotonic(), place.f_code
        if now - self._told.get(code, -_AGAIN) < _AGAIN:
            return
        self._told[code] = now
        function, *arguments = thread.job or (None,)
        server = getattr(function, "__self__", None)
        client_address = arguments[1] if len(arguments) == 2 else None
        logs.emit(server, LoopHeld(client_address, seconds, "".join(traceback.format_stack(place))))

"""Sees a handler that holds the event loop, while it does, and says where: the one fault that everybody shares.

A thread of its own that looks now and then while something runs there, and sleeps while nothing does, so that an idle
server stays idle. What green threads do always stirs it; a task may go on for a reason that is only its loop's (a
timer, a connection of its own), so that while there are tasks it also looks once in `_NAP` seconds.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import logs
from ._system import frame_of
from .lifecycle import LoopHeld

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from ._engine import Share

__all__ = ["Watchdog"]

_LOOKS = 4
"""How often it looks in the time that is allowed: a hold is seen at the latest a quarter of that time late."""
_NAP = 1.0
_AGAIN = 60.0
"""Seconds before the same place is reported again."""
_PLACES = 1000
"""So many are remembered."""


class Watchdog:
    """Watches one loop from `start` to `stop`, and tells the server of the request that holds it."""

    def __init__(self, share: Share, loop: asyncio.AbstractEventLoop) -> None:
        self._share = share
        self._loop = loop
        self._activity = share.readiness
        self._seconds = float("inf")
        self._groups: list[Any] = []
        self._stirred = threading.Event()
        self._stopped = False
        self._pause = threading.Event()
        """Set only to end a pause."""
        self._told: dict[tuple[CodeType, int], float] = {}
        self._thread = threading.Thread(target=self._watch, name="portico watchdog", daemon=True)

    def watch(self, requests: Any, seconds: float) -> None:
        """Look often enough for a server that allows so many seconds; the least of several counts."""
        self._groups = [*(group for group in self._groups if not group.over), requests]
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
        seen: tuple[int, Any] = (-1, None)
        while not self._stopped:
            runner, place = self._running()
            now = activity.turns, runner
            if runner is None and now == seen:
                self._sleep(activity.turns)
                continue
            if runner is None or now != seen:
                began, seen, told = monotonic(), now, False
                if isinstance(runner, asyncio.Task):  # which shows by this that it has given way
                    with suppress(RuntimeError):  # the loop is closed
                        self._loop.call_soon_threadsafe(activity.turn)
            elif place is not None and not told:  # of one hold only once, wherever it goes on to
                told = self._look(runner, place, monotonic() - began)
            self._pause.wait(self._seconds / _LOOKS)

    def _sleep(self, turns: int) -> None:
        """Until something runs again, or has begun to since `turns` was looked at; or so long that it may have."""
        self._stirred.clear()
        self._activity.unwatched = not self._stopped
        if self._activity.turns == turns and not self._stopped:
            has_tasks = any(group.server._portico_handlers_are_async and len(group) for group in self._groups)
            self._stirred.wait(_NAP if has_tasks else None)
        self._activity.unwatched = False

    def _running(self) -> tuple[Any, FrameType | None]:
        """The green thread or task that has the loop's OS thread now, and the innermost frame in it."""
        frame = frame_of(self._activity.thread)
        hub = self._share.hub
        green_thread = None if hub is None else hub.running(frame)
        return (asyncio.current_task(self._loop) if green_thread is None else green_thread), frame

    def _look(self, runner: Any, place: FrameType, seconds: float) -> bool:
        """Tell of one that holds the loop for too long; whether it is told of, now or a little while ago."""
        server = self._server_of(runner)
        allowed = getattr(server, "blocking_warning", self._seconds)
        if allowed is None or seconds < allowed:
            return False
        now, line = monotonic(), (place.f_code, place.f_lineno)
        if now - self._told.get(line, -_AGAIN) >= _AGAIN:
            if len(self._told) > _PLACES:
                self._told.clear()
            self._told[line] = now
            held = (found.client_address for found in server._portico_connections if found.runner is runner)
            logs.emit(server, LoopHeld(next(held, None), seconds, "".join(traceback.format_stack(place))))
        return True

    def _server_of(self, runner: Any) -> Any:
        """Whose request it is; any server's, if a handler has started it."""
        for group in self._groups:
            its_own: bool = runner in group or getattr(runner, "group", None) is group
            if its_own:
                return group.server
        return self._groups[0].server

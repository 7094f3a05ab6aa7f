"""The requests of one server on one event loop, and how they come to an end.

What starts them, and says how one is raised at, is the server's (`_on_loop`).
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._on_loop import OnLoop

__all__ = ["Requests"]

# How often a request that is ended may catch that and wait again, before it is left where it is; and the seconds it has
# each time for what it still has to do, such as a last word to its peer.
_PATIENCE = 10
_LAST_WORDS = 0.2


class Requests:
    """The requests of one server on one loop, from the first to the end of the last.

    The server says how something is raised in one of them where it waits (`_portico_cancel`). A request that goes on
    waiting is told again, a few times, and then left behind, which the server is told (`_portico_tell_of_abandoned`).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, server: OnLoop) -> None:
        self.server = server
        self._loop = loop
        self.thread = threading.get_ident()
        self._running: set[Any] = set()
        self.goodbyes: WeakSet[Any] = WeakSet()
        """Those that only say goodbye for another one."""
        self._over = asyncio.Event()
        self._ended = threading.Event()
        self._last = False
        self._pressed = False

    def add(self, request: Any) -> None:
        self._running.add(request)

    def __contains__(self, request: Any) -> bool:
        return request in self._running

    def __len__(self) -> int:
        return len(self._running)

    def discard(self, request: Any) -> None:
        self._running.discard(request)
        if self._last and not self._running:
            self._end()

    def close(self, *, at_once: bool) -> None:
        """No more will come: wait for those that run, or end them `at_once`. In the loop's thread."""
        self._last = True
        if not self._running:
            self._end()
        elif at_once and not self._pressed:
            self._pressed = True
            self._press(_PATIENCE)

    def close_in(self, seconds: float) -> None:
        """No more will come: those that run have so many seconds."""
        self.close(at_once=False)
        self._loop.call_later(seconds, partial(self.close, at_once=True))

    @property
    def over(self) -> bool:
        """Whether all have ended, and no more will come."""
        return self._ended.is_set()

    def close_now(self) -> None:
        """End them at once, from any thread."""
        self.soon(partial(self.close, at_once=True))

    def soon(self, call: Callable[[], object]) -> None:
        """Have a call made in the loop's thread, from any."""
        with suppress(RuntimeError):  # the loop is closed, and has ended them
            self._loop.call_soon_threadsafe(call)

    def later(self, seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, call)

    def wait_in_thread(self, seconds: float) -> None:
        """Wait so long until all have ended, in another thread than the loop's; there, not at all."""
        if threading.get_ident() != self.thread:
            self._ended.wait(seconds)

    def need_here(self) -> bool:
        """Whether this is the thread in which some of them still have to run."""
        return not self.over and threading.get_ident() == self.thread

    def running(self) -> list[Any]:
        """Those that run now, goodbyes apart: they are part of a request."""
        return [request for request in tuple(self._running) if request not in self.goodbyes]

    async def wait(self) -> None:
        """Until all have ended."""
        await self._over.wait()

    def _press(self, times: int) -> None:
        if self._running and times:
            for request in tuple(self._running):
                self.server._portico_cancel(request)
            self._loop.call_later(_LAST_WORDS, self._press, times - 1)
        elif not self._ended.is_set():
            if self._running:
                self.server._portico_tell_of_abandoned(len(self._running))
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._ended.set()

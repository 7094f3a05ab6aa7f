"""Servers on an asyncio loop: the accept policy driven by the loop's callbacks, and the loop made, run and closed.

The counterpart of `_loop` for the ways to run that need an event loop. It knows when requests are taken, not how they
run: that is `green`'s and `aio`'s business.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ._acceptor import Acceptor, turn
from ._loop import Waker
from ._readiness import Readiness, readiness
from ._system import System
from .errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ._serving import Serving

__all__ = ["AsyncioLoop", "Requests", "run", "serve"]

# How often a request that is ended may catch that and wait again, before it is left where it is.
_PATIENCE = 10


class Requests:
    """The requests of one server on one loop, from the first to the end of the last.

    `cancel` raises something in one of them where it waits. A request that goes on waiting is told again, a few times,
    and then left behind: `abandoned` is called with how many were.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, cancel: Callable[[Any], object], abandoned: Callable[[int], object]
    ) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._cancel = cancel
        self._abandoned = abandoned
        self._running: set[Any] = set()
        self._over = asyncio.Event()
        self._ended = threading.Event()
        self._last = False

    def add(self, request: Any) -> None:
        self._running.add(request)

    def discard(self, request: Any) -> None:
        self._running.discard(request)
        if self._last and not self._running:
            self._end()

    def close(self, *, at_once: bool) -> None:
        """No more will come: wait for those that run, or end them `at_once`. In the loop's thread."""
        self._last = True
        if at_once:
            self._press(_PATIENCE)
        elif not self._running:
            self._end()

    @property
    def over(self) -> bool:
        """Whether all have ended, and no more will come."""
        return self._ended.is_set()

    def close_now(self, *, wait: bool) -> None:
        """End them at once, from any thread; `wait` for that, unless this is the loop's own."""
        with suppress(RuntimeError):  # the loop is closed, and has ended them
            self._loop.call_soon_threadsafe(partial(self.close, at_once=True))
        if wait and threading.get_ident() != self._thread:
            self._ended.wait()

    async def wait(self) -> None:
        """Until all have ended."""
        await self._over.wait()

    def _press(self, times: int) -> None:
        if self._running and times:
            for request in tuple(self._running):
                self._cancel(request)
            self._loop.call_soon(self._press, times - 1)
        elif not self._ended.is_set():
            if self._running:
                self._abandoned(len(self._running))
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._ended.set()


class AsyncioLoop:
    """What `_loop.Loop` is for blocking servers: watches listeners, is woken, lets servers go. One call of serving."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.readiness: Readiness = readiness(loop)
        self.servers: list[Any] = []
        self.requests: list[Requests] = []
        self.closing = ExitStack()
        """What is to be freed when all requests have ended."""
        self.hub: Any = None
        """What green servers on this loop share; theirs to set."""
        self.closing.callback(self.readiness.close)
        self._acceptors: list[Acceptor] = []
        self._turn_again: asyncio.Handle | None = None
        self._over: asyncio.Future[None] = loop.create_future()

    async def serve(self, servers: list[Any], poll_interval: float | None) -> None:
        """Serve until every one of them has been shut down or closed, and their requests have ended."""
        try:
            for server in servers:
                server._serving_begins(self)
                self.servers.append(server)
            self._acceptors = [Acceptor(server, self, poll_interval) for server in servers]
            self._turn()
            await self._over
            for requests in self.requests:
                await requests.wait()
        finally:
            for acceptor in tuple(self._acceptors):
                acceptor.end()
            for server in self.servers:
                server._serving_ended(self)
            if self._turn_again is not None:
                self._turn_again.cancel()
            await self.close()

    async def close(self) -> None:
        """End what still runs, and free everything."""
        with self.closing:
            for requests in self.requests:
                requests.close(at_once=True)
            for requests in self.requests:
                await requests.wait()

    # -- what an acceptor asks

    def watch(self, fileobj: Any, callback: Callable[[], object]) -> int:
        """Have `callback` called whenever `fileobj` is readable; returns its descriptor."""
        descriptor: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if descriptor < 0:
            raise ValueError(f"cannot watch {fileobj!r}: it is closed")
        self.loop.add_reader(descriptor, self._ready, callback)
        return descriptor

    def unwatch(self, descriptor: int) -> None:
        self.loop.remove_reader(descriptor)

    def wake(self) -> None:
        """Have another look at the servers. From any thread and from signal handlers."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._turn)

    def release(self, server: Any) -> None:
        """A server has stopped: let it go. Its requests are waited for at the end."""
        server._serving_ended(self)

    # -- turns

    def _ready(self, callback: Callable[[], object]) -> None:
        callback()
        self._turn()

    def _turn(self, idle: bool = False) -> None:
        if self._turn_again is not None:
            self._turn_again.cancel()
            self._turn_again = None
        if self._over.done():
            return
        try:
            timeout = turn(self._acceptors, idle)
        except Exception as error:  # with stdlib_compat a hook's exception ends the loop
            self._over.set_exception(error)
            return
        if not self._acceptors:
            self._over.set_result(None)
        elif timeout is not None:
            self._turn_again = self.loop.call_later(timeout, self._turn, True)


def serve(servers: list[Serving], poll_interval: float | None) -> None:
    """Serve on an event loop that is made here and closed again. Blocks."""
    kind = next((kind for kind in (getattr(server, "event_loop", None) for server in servers) if kind), "auto")
    run(_serve(servers, poll_interval), kind)


def run(main: Coroutine[Any, Any, None], kind: str) -> None:
    """Run a coroutine on an event loop of this kind (the setting `event_loop`), made here and closed again."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner(loop_factory=_loop_factory(kind)) as runner:
            runner.run(main)
    else:
        main.close()
        raise RuntimeError("this would block the event loop that runs here: await server.serve_async() instead")


async def _serve(servers: list[Serving], poll_interval: float | None) -> None:
    loop = asyncio.get_running_loop()
    waker = Waker()
    loop.add_reader(waker.fileno(), waker.clear)
    # Signals may be delivered to any thread, and this one sleeps: see `_loop`. uvloop has seen to it already.
    told = System().tell_of_signals(waker.writer())
    try:
        await AsyncioLoop(loop).serve(servers, poll_interval)
    finally:
        if told:
            System().tell_of_signals(-1)
        loop.remove_reader(waker.fileno())
        waker.close()


def _loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop where it is installed, unless the setting `event_loop` says which."""
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise UnavailableError("event_loop='uvloop' needs uvloop: pip install portico[fast]") from None
        else:
            return uvloop.new_event_loop
    # Windows' own loop has no add_reader.
    return asyncio.SelectorEventLoop if sys.platform == "win32" else asyncio.new_event_loop

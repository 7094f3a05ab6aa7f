"""Servers on an asyncio loop: the accept policy driven by the loop's callbacks, and the loop made, run and closed.

The counterpart of `_loop` for the ways to run that need an event loop. It knows when requests are taken, not how they
run: that is `green`'s and `aio`'s business.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ._acceptor import Acceptor, turn
from ._event_sets import readiness
from ._loop import Waker
from ._readiness import Readiness
from ._system import System
from .errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ._loop_requests import Requests
    from ._serving import Serving

__all__ = ["AsyncioLoop", "Share", "run", "serve"]


class Share:
    """What all servers on a loop share, so that a socket of one is at home in the handlers of another."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.users = 0
        self.readiness: Readiness = readiness(loop)
        self.hub: Any = None
        """Green threads; for green servers to set."""
        self.watchdog: Any = None
        """Whoever looks for what holds the loop, if anybody wants to know."""
        self.closing = ExitStack()
        """What is to be freed when the last server has left."""
        self.closing.callback(self.readiness.close)
        self._loop = loop
        _shares[loop] = self

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            _shares.pop(self._loop, None)
            self.closing.close()


_shares: WeakKeyDictionary[asyncio.AbstractEventLoop, Share] = WeakKeyDictionary()


class AsyncioLoop:
    """What `_loop.Loop` is for blocking servers: watches listeners, is woken, lets servers go. One call of serving."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.share = _shares.get(loop) or Share(loop)
        self.share.users += 1
        self.readiness = self.share.readiness
        self.servers: list[Any] = []
        self.requests: list[Requests] = []
        self.closing = ExitStack()
        """What is to be freed when all requests have ended."""
        self.closing.callback(self.share.leave)
        self._acceptors: list[Acceptor] = []
        self._turn_again: asyncio.Handle | None = None
        self._over: asyncio.Future[None] = loop.create_future()
        self._copies: dict[int, tuple[int, int]] = {}
        """The descriptors of listeners, and those that are watched in their place."""

    async def serve(self, servers: list[Any], poll_interval: float | None) -> None:
        """Serve until every one of them has been shut down or closed, and their requests have ended."""
        try:
            for server in servers:
                self.servers.append(server)
                server._portico_serving_begins(self)
            self._acceptors = [Acceptor(server, self, poll_interval) for server in servers]
            self._turn()
            await self._over
            for requests in self.requests:
                await requests.wait()
        finally:
            for acceptor in tuple(self._acceptors):
                acceptor.end()
            for server in self.servers:
                server._portico_serving_ended(self)
            if self._turn_again is not None:
                self._turn_again.cancel()
            await self.close()

    async def close(self) -> None:
        """End what still runs, and free everything; not before all has ended, however often this is cancelled."""
        cancelled: asyncio.CancelledError | None = None
        with self.closing:
            for requests in self.requests:
                requests.close(at_once=True)
            for requests in self.requests:
                while not requests.over:
                    try:
                        await requests.wait()
                    except asyncio.CancelledError as error:
                        cancelled = error
        if cancelled is not None:
            raise cancelled

    # -- what an acceptor asks

    def watch(self, fileobj: Any, callback: Callable[[], object]) -> int:
        """Have `callback` called whenever `fileobj` is readable; returns the descriptor that is watched.

        That is a copy, kept until the server is let go: the listener may be closed at any time and in any thread, and a
        loop must not have a reader of what is closed (libuv would abort the process).
        """
        descriptor = fileobj.fileno()
        original, copy = self._copies.get(id(fileobj), (-1, -1))
        if descriptor < 0:
            raise ValueError(f"cannot watch {fileobj!r}: it is closed")
        if descriptor != original:
            if copy >= 0:
                os.close(copy)
            try:
                copy = os.dup(descriptor)
            except OSError:
                if fileobj.fileno() >= 0:
                    raise
                raise ValueError(f"cannot watch {fileobj!r}: it has just been closed") from None
            self._copies[id(fileobj)] = descriptor, copy
        self.loop.add_reader(copy, self._ready, callback)
        return copy

    def unwatch(self, descriptor: int) -> None:
        self.loop.remove_reader(descriptor)

    def wake(self) -> None:
        """Have another look at the servers. From any thread and from signal handlers."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._turn)

    def release(self, server: Any) -> None:
        """A server has stopped: let it go. Its requests are waited for at the end."""
        _, copy = self._copies.pop(id(server), (-1, -1))
        if copy >= 0:
            os.close(copy)
        server._portico_serving_ended(self)

    # -- turns

    def _ready(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception as error:  # with stdlib_compat a hook's exception ends the loop
            self._fail(error)
        else:
            self._turn()

    def _fail(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _turn(self, idle: bool = False) -> None:
        if self._turn_again is not None:
            self._turn_again.cancel()
            self._turn_again = None
        if self._over.done():
            return
        try:
            timeout = turn(self._acceptors, idle)
        except Exception as error:
            self._fail(error)
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
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("this would block the event loop that runs here: await server.serve_async() instead")
        factory = _loop_factory(kind)
    except BaseException:
        main.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


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

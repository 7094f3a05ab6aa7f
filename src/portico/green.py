"""A green thread per request, on an asyncio loop; and what a handler in one may ask for.

Says only how a request runs; works through the hooks alone, over any `socketserver` server. The threads themselves are
`_hub`'s, their sockets `_green_sockets`', the loop is `_engine`'s.

Nothing is patched: what a handler does through its request, and through the functions here, lets others run; a
`time.sleep` or a blocking library holds all of them, and the watchdog says so. Locks, events and queues are asyncio's
own: `green.wait_for(lock.acquire())`.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit

from . import _engine, logs, settings
from ._green_sockets import GreenSocket
from ._hub import GreenThread, Hub, current
from ._serving import Serving, end_request, request_context
from ._sockets import ServerSocket
from ._watchdog import Watchdog
from .lifecycle import HookFailed, RequestsAbandoned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ._engine import AsyncioLoop

__all__ = ["GreenMixIn", "GreenSocket", "GreenThread", "connect", "in_thread", "sleep", "spawn", "timeout", "wait_for"]


class GreenMixIn(Serving):
    """Mix-in that runs every request in a green thread: `class Server(GreenMixIn, TCPServer): pass`.

    The handler is the one that runs under `ThreadingMixIn`. `serve_forever` makes an event loop and closes it;
    `serve_async` serves on the one that runs. Both return when the requests have ended, too: after `shutdown` they may
    come to their end, on `server_close` each is ended where it waits, by a `GreenletExit`, so that `finally` and
    `finish()` run. With `daemon_threads`, or without `block_on_close`, `shutdown` ends them as well.
    """

    daemon_threads: bool = settings.DAEMON_THREADS.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default
    event_loop: str = settings.EVENT_LOOP.default
    blocking_warning: float | None = settings.BLOCKING_WARNING.default

    _serve_in = staticmethod(_engine.serve)
    _serving_on: AsyncioLoop | None = None
    _requests: _engine.Requests
    _requests_so_far: tuple[_engine.Requests, ...] = ()
    """Of this loop, and of earlier ones whose requests have not all ended."""
    _answering: GreenSocket | None = None
    """What datagram handlers answer through: the server's own socket once more, under a descriptor that parks."""

    async def serve_async(self, poll_interval: float | None = 0.5) -> None:
        """Serve on the event loop that runs here until `shutdown`, `server_close` or cancellation."""
        await _engine.AsyncioLoop(asyncio.get_running_loop()).serve([self], poll_interval)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a green thread for the request. Without a loop of ours, as in `handle_request`, run it to its end."""
        if self._serving_on is None:
            _engine.run(self._run_alone(request, client_address), self.event_loop)
        else:
            self._start(self._serving_on.hub, request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the green thread runs: the request, its errors and its end."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            try:
                self.handle_error(request, client_address)
            except Exception as error:
                logs.emit(self, HookFailed("handle_error", error))
        finally:
            end_request(self, request)
            try:
                self.thread_finished()
            except Exception as error:
                logs.emit(self, HookFailed("thread_finished", error))

    def thread_finished(self) -> None:
        """Called once in every request's green thread, last of all, even after an error. To override."""

    def server_close(self) -> None:
        """Close the server, which ends its requests, and wait until they have ended (`block_on_close`)."""
        if self._loop is not None:
            self._stop()
        super().server_close()
        for requests in self._requests_so_far:
            requests.close_now(wait=self.block_on_close)

    # -- what the engine asks and tells

    def _start(self, hub: Hub, request: Any, client_address: Any) -> GreenThread:
        request = self._green(request, hub)
        thread = GreenThread(hub, self._requests, self.process_request_thread, (request, client_address))
        thread.gr_context = request_context(self)
        thread.start()
        return thread

    def _green(self, request: Any, hub: Hub) -> Any:
        """The request with a socket that parks. One that is not a plain socket (TLS, an object) stays what it is."""
        if type(request) is GreenSocket:
            return request
        if type(request) is socket.socket:
            return _adopted(request, hub)
        if isinstance(request, tuple) and len(request) == 2 and isinstance(request[1], socket.socket):
            if self._answering is None and self._serving_on is not None:
                self._answering = _adopted(request[1].dup(), hub)
                self._serving_on.closing.callback(self._answering.close)
            return request[0], self._answering
        return request

    async def _run_alone(self, request: Any, client_address: Any) -> None:
        """One request on a loop of its own."""
        engine = _engine.AsyncioLoop(asyncio.get_running_loop())
        try:
            await self._start(self._join(engine), request, client_address).ended()
        finally:
            self._leave()
            await engine.close()

    def _join(self, engine: AsyncioLoop) -> Hub:
        """Have requests run on this loop from now on."""
        if engine.hub is None:
            engine.hub = Hub(engine.loop, engine.readiness)
            if self.blocking_warning:
                watchdog = Watchdog(engine.hub, self.blocking_warning)
                watchdog.start()
                engine.closing.callback(watchdog.stop)
        hub: Hub = engine.hub
        self._serving_on = engine
        self._requests = _engine.Requests(engine.loop, cancel=_end, abandoned=self._tell_of_abandoned)
        engine.requests.append(self._requests)
        self._requests_so_far = (*(old for old in self._requests_so_far if not old.over), self._requests)
        return hub

    def _leave(self) -> None:
        """No further request will run there; those that do, go on."""
        self._serving_on = self._answering = None
        self._requests.close(at_once=self.daemon_threads or not self.block_on_close)

    def _serving_begins(self, loop: AsyncioLoop) -> None:
        super()._serving_begins(loop)
        hub = self._join(loop)
        if isinstance(self.socket, ServerSocket):
            self.socket.make_connection = partial(GreenSocket, hub=hub)

    def _serving_ended(self, loop: AsyncioLoop) -> None:
        if self._loop is loop:
            if isinstance(self.socket, ServerSocket):
                self.socket.make_connection = socket.socket
            self._leave()
        super()._serving_ended(loop)

    def _tell_of_abandoned(self, number: int) -> None:
        logs.emit(self, RequestsAbandoned(number))


def _end(thread: GreenThread) -> None:
    thread.interrupt(GreenletExit())


def _adopted(sock: socket.socket, hub: Hub) -> GreenSocket:
    timeout = sock.gettimeout()
    adopted = GreenSocket(int(sock.family), int(sock.type), sock.proto, sock.detach(), hub=hub)
    adopted.settimeout(timeout)
    return adopted


# -- for handlers


def sleep(seconds: float) -> None:
    """Let others run for so many seconds."""
    thread = current()
    if seconds > 0:
        thread.sleep_until(monotonic() + seconds)
    else:
        thread.give_way()


def connect(address: Any, timeout: float | None = None) -> GreenSocket:
    """A connection out: `address` is (host, port), or a Unix socket's path. Raises `OSError`. The caller closes it.

    `timeout`, in seconds, is the connection's from the start, as in `socket.create_connection`.
    """
    if not isinstance(address, tuple):
        return _connected(socket.AF_UNIX, address, timeout)
    found = in_thread(socket.getaddrinfo, *address[:2], 0, socket.SOCK_STREAM)
    for last, (family, *_, place) in enumerate(found, 1):
        try:
            return _connected(family, place, timeout)
        except OSError:
            if last == len(found):
                raise
    raise OSError(f"{address[0]!r} has no address")


def _connected(family: int, address: Any, timeout: float | None) -> GreenSocket:
    sock = GreenSocket(family, socket.SOCK_STREAM, hub=current().hub)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable of the asyncio world on this loop; returns its result or raises its exception."""
    return current().wait_for(awaitable)


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a blocking function in one of the loop's own pool of threads; returns its result or raises its exception."""
    return current().call_in_thread(function, *arguments)


def spawn(function: Callable[..., Any], *arguments: Any) -> GreenThread:
    """Start a further green thread, which `join()` waits for. It ends with its server as the request does."""
    me = current()
    thread = GreenThread(me.hub, me.group, function, arguments)
    thread.start(soon=True)
    return thread


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` where the block waits when it has lasted so many seconds. Blocks may be nested."""
    thread, error = current(), TimeoutError("timed out")
    alarm = thread.hub.loop.call_later(seconds, thread.interrupt, error)
    try:
        yield
    finally:
        alarm.cancel()
        thread.spare(error)

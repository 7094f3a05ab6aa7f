"""What the ways to run on an event loop have in common: a server's requests on a loop, and how they come to an end.

A way to run adds how one request starts (`_start`); siblings that never import each other (`green`, `aio`) share the
rest. The loop itself is `_engine`'s.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _engine, logs, settings
from ._datagram_queue import DatagramQueue
from ._datagrams import Answers
from ._goodbyes import PATIENCE
from ._loop_requests import Requests
from ._meters import CountedSocket, MeteredSocket
from ._sealed import kind_of
from ._serving import Serving
from ._sockets import ServerSocket, set_blocking_again
from ._timekeeper import Timekeeper
from ._watchdog import Watchdog
from .lifecycle import EndReason, HookFailed, RequestsAbandoned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._connection import Connection
    from ._connections import Connections
    from ._engine import AsyncioLoop

__all__ = ["OnLoop"]

_PLAIN = (socket.socket, MeteredSocket, CountedSocket)
# Seconds after which a loop that does not run any more, and is not closed either, is not waited for.
_LEFT_BEHIND = 2.5
# Seconds that requests nobody waits for have after `shutdown`, to end the answer they are at. As daemon threads they
# might go on until the process ends; here the loop has to end.
_DAEMON_GRACE = 0.5


class OnLoop(Serving):
    """A server whose requests run on an event loop: joins a loop, leaves it, and has its requests ended."""

    daemon_threads: bool = settings.DAEMON_THREADS.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default
    event_loop: str = settings.EVENT_LOOP.default
    blocking_warning: float | None = settings.BLOCKING_WARNING.default

    _portico_serve_in = staticmethod(_engine.serve)
    _portico_engine: AsyncioLoop | None = None
    _portico_requests: Requests
    _portico_requests_so_far: tuple[Requests, ...] = ()
    """Of this loop, and of earlier ones whose requests have not all ended."""
    _portico_waits_on_close = True
    _portico_answering: socket.socket | None = None
    """What datagram handlers answer through: the server's own socket once more, as one that does not block the loop."""
    _portico_queue: DatagramQueue | None = None
    _portico_runs_inline = False
    _portico_blocks = False
    _portico_steps: tuple[Any, Any, Any, Any]
    """What handlers' base does around `handle`, which need not be called where it is not overridden."""

    async def serve_async(self, poll_interval: float | None = 0.5) -> None:
        """Serve on the event loop that runs here until `shutdown`, `server_close` or cancellation."""
        await _engine.AsyncioLoop(asyncio.get_running_loop()).serve([self], poll_interval)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the request on the loop. Without a loop of ours, as in `handle_request`, run it to its end."""
        engine = self._portico_engine
        if engine is None:
            _engine.run(self._portico_run_alone(request, client_address), self.event_loop)
        elif type(request) is tuple and self._portico_queue is not None:
            if self._portico_bounded or self._portico_has_place(request, client_address):
                self._portico_queue.put(self._portico_suited(engine, request), client_address)
        else:
            self._portico_start(engine, self._portico_suited(engine, request), client_address)

    def server_close(self) -> None:
        """Close the server, then wait for its requests (`block_on_close`).

        They have `drain_timeout` seconds, idle ones none; then each is ended where it waits. In the loop's own thread
        nothing can be waited for: there it only begins.
        """
        super().server_close()
        if not self._portico_goes_on():
            self._portico_end_listener()
        waits = self.block_on_close and not self.daemon_threads
        if waits and self._portico_runs_here():
            self.request_drain()
            return
        self._portico_end_requests(wait=waits)
        drain = self._portico_drain
        if waits and (drain is None or not drain.report.stuck):
            for requests in self._portico_requests_so_far:
                requests.wait_in_thread(_LEFT_BEHIND)

    # -- for the ways to run to say

    def _portico_start(self, engine: AsyncioLoop, request: Any, client_address: Any) -> Awaitable[object]:
        """Start one request, add it to `_requests`, and return what waits for its end."""
        raise NotImplementedError

    def _portico_start_takers(self, queue: DatagramQueue, takers: int) -> bool:
        """Start so many that take datagrams from the queue, each until its handler waits; whether they have run."""
        raise NotImplementedError

    def _portico_cancel(self, request: Any) -> None:
        """Raise something in a request where it waits."""
        raise NotImplementedError

    def _portico_make_socket(
        self, engine: AsyncioLoop, family: int, kind: int, proto: int, descriptor: int
    ) -> socket.socket:
        """The socket that a handler gets, of a descriptor that is its own from here on."""
        raise NotImplementedError

    def _portico_start_goodbye(self, connection: Connection) -> None:
        """Have `connection.handler.goodbye()` run on the loop, and `connection.shut` after it. In the loop's thread."""
        raise NotImplementedError

    # -- limits and the end

    def _portico_limit_goodbye(self, goodbye: Any, connection: Connection) -> None:
        """Others are not to wait for one that takes longer than `PATIENCE`, nor is the drain. In the loop's thread."""
        requests = self._portico_requests  # those of this loop: the server may be on another one by then
        requests.later(PATIENCE, partial(self._portico_end_goodbye, requests, goodbye, connection))

    def _portico_end_goodbye(self, requests: Requests, goodbye: Any, connection: Connection) -> None:
        if goodbye in requests:
            logs.emit(self, HookFailed("goodbye", TimeoutError(f"it was not over after {PATIENCE:g} s")))
            connection.shut(socket.SHUT_RDWR)
            self._portico_cancel(goodbye)

    def _portico_runs_here(self) -> bool:
        return super()._portico_runs_here() or any(requests.need_here() for requests in self._portico_requests_so_far)

    def _portico_make_timers(self, found: Any, connections: Connections) -> Any:
        return _Timers(found, connections, self)

    @property
    def _portico_loop_thread(self) -> int | None:
        return self._portico_requests.thread if self._portico_requests_so_far else None

    def _portico_runners(self) -> list[Any]:
        return [runner for requests in self._portico_requests_so_far for runner in requests.running()]

    def _portico_cut(self, connection: Connection, reason: EndReason, *, again: bool) -> None:
        """Shut the connection down; where that is to end its request as well, that ends where it waits.

        In the other order: one that was reading would else find the end of the stream, and be ended while it cleans up.
        """
        shut = partial(super()._portico_cut, connection, reason, again=again)
        if reason is EndReason.CUT and not again:  # which is said to all of them
            for requests in self._portico_requests_so_far:
                requests.close_now()
        elif reason is EndReason.CLOSED and connection.runner is not None:
            self._portico_requests.soon(partial(self._portico_cancel_its_request, connection))
            self._portico_requests.soon(partial(self._portico_requests.soon, shut))  # when that has been raised
        else:
            shut()

    def _portico_cancel_its_request(self, connection: Connection) -> None:
        """In the loop's thread, where it is known whether that still runs: its green thread may have another by now."""
        if connection.state != "ended":
            self._portico_cancel(connection.runner)

    def _portico_in_flight(self) -> int:
        return 0 if self._portico_queue is None else self._portico_queue.in_flight

    def _portico_say_goodbye(self, connection: Connection) -> None:
        self._portico_requests.soon(partial(self._portico_start_goodbye, connection))

    # -- what the engine asks and tells

    def _portico_taker(self) -> Callable[[], bool | Exception | None]:
        reception = getattr(self, "_portico_reception", None)
        queue, engine = self._portico_queue, self._portico_engine
        if queue is None or engine is None or reception is None:
            return super()._portico_taker()
        if not (self._portico_bounded and reception.may_take(self)):
            queue.made = queue.handle = None
            return super()._portico_taker()
        sock = reception.batched
        queue.made = self.RequestHandlerClass
        queue.handle = reception.handle_of(queue.made, self._portico_steps)
        queue.answering = self._portico_answer_through(engine, sock)
        return partial(queue.take, reception, sock)

    def _portico_suited(self, engine: AsyncioLoop, request: Any) -> Any:
        """The request with a socket that leaves the loop alone. What is no plain socket (TLS, an object) stays."""
        kind = kind_of(request)
        if kind in _PLAIN or (issubclass(kind, MeteredSocket) and getattr(request, "secured", True) is False):
            return self._portico_taken_over(engine, request)
        if isinstance(request, tuple) and len(request) == 2 and isinstance(request[1], socket.socket):
            return request[0], self._portico_answer_through(engine, request[1])
        if self._portico_has_sessions and hasattr(request, "through"):
            request.through = self._portico_answer_through(engine, self.socket)
        return request

    def _portico_answer_through(self, engine: AsyncioLoop, sock: Any) -> socket.socket:
        if self._portico_answering is not None:
            return self._portico_answering
        answering = self._portico_answering = self._portico_taken_over(engine, sock.dup())
        engine.closing.callback(set_blocking_again, sock)  # the mode is the file's, which both share
        engine.closing.callback(answering.close)
        peers = getattr(sock, "peers", None)
        if peers is not None:
            answering.answers = answers = Answers(  # type: ignore[attr-defined]
                answering, peers, sock.answers.unsent, joined=sock.answers.joined
            )
            if self._portico_queue is not None:
                self._portico_queue.answers = answers
            answers.thread = threading.get_ident()
            sock.elsewhere = answers
            engine.closing.callback(setattr, sock, "elsewhere", None)
            answers.soon, answers.later = engine.loop.call_soon, engine.loop.call_later
            engine.closing.callback(answers.flush_at_last)  # before it is closed: the last one comes first here
        return answering

    def _portico_taken_over(self, engine: AsyncioLoop, sock: socket.socket) -> socket.socket:
        timeout = sock.gettimeout()
        connection = self._portico_connections.of(sock)
        if connection is not None:
            connection.runner = self  # its request will say which it is; one that nobody runs ends with its socket
        if isinstance(sock, MeteredSocket):
            sock.connection = None  # it goes on
        sock_on_loop = self._portico_make_socket(engine, int(sock.family), int(sock.type), sock.proto, sock.detach())
        sock_on_loop.settimeout(timeout)
        if connection is not None:
            connection.follow(sock_on_loop)
            self._portico_seal(sock_on_loop, connection)
        return sock_on_loop

    async def _portico_run_alone(self, request: Any, client_address: Any) -> None:
        """One request on a loop of its own."""
        self._portico_check_handler(self.RequestHandlerClass)
        engine = _engine.AsyncioLoop(asyncio.get_running_loop())
        self._portico_join(engine)
        if self._portico_has_sessions:
            request.shutdown(socket.SHUT_RD)  # nobody feeds it
        try:
            await self._portico_start(engine, self._portico_suited(engine, request), client_address)
        finally:
            self._portico_leave()
            await engine.close()

    def _portico_join(self, engine: AsyncioLoop) -> None:
        """Have requests run on this loop from now on."""
        self._portico_engine = engine
        self._portico_requests = Requests(engine.loop, self)
        engine.requests.append(self._portico_requests)
        self._portico_requests_so_far = (
            *(old for old in self._portico_requests_so_far if not old.over),
            self._portico_requests,
        )
        self._portico_queue = None
        if getattr(self, "socket_type", None) == socket.SOCK_DGRAM and not self._portico_has_sessions:
            self._portico_queue = DatagramQueue(self, engine.loop, self._portico_requests)
        if self._portico_timers is not None:  # a request may have been let in before, by `handle_request`
            self._portico_timers.look_soon()
        if self.blocking_warning:
            self._portico_have_watched(engine, self.blocking_warning)

    def _portico_have_watched(self, engine: AsyncioLoop, seconds: float) -> None:
        share = engine.share
        watchdog = share.watchdog or Watchdog(share, engine.loop)
        watchdog.watch(self._portico_requests, seconds)
        if share.watchdog is None:
            try:
                watchdog.start()
            except RuntimeError as error:  # there is no thread to be had: nobody watches
                logs.emit(self, HookFailed("blocking_warning", error))
                return
            share.watchdog = watchdog
            share.closing.callback(watchdog.stop)

    def _portico_leave(self) -> None:
        """No further request will run there; those that do, go on, unless nobody wants to wait for them."""
        self._portico_engine = self._portico_answering = None
        if self.daemon_threads or not self.block_on_close:
            self._portico_requests.close_in(_DAEMON_GRACE)
        else:
            self._portico_requests.close(at_once=False)

    def _portico_serving_begins(self, loop: AsyncioLoop) -> None:
        super()._portico_serving_begins(loop)
        self._portico_join(loop)
        sock = getattr(self, "socket", None)
        if isinstance(sock, ServerSocket):
            sock.make_connection = partial(self._portico_make_socket, loop)

    def _portico_serving_ended(self, loop: AsyncioLoop) -> None:
        if self._portico_loop is loop:
            sock = getattr(self, "socket", None)
            if isinstance(sock, ServerSocket):
                sock.make_connection = self._portico_connection_class(int(sock.family))
            if self._portico_engine is not None:
                self._portico_leave()
        super()._portico_serving_ended(loop)

    def _portico_tell_of_abandoned(self, number: int) -> None:
        logs.emit(self, RequestsAbandoned(number))


class _Timers:
    """Enforces time limits by the loop's own timers, as long as a request runs there."""

    def __init__(self, limits: Any, connections: Connections, server: OnLoop) -> None:
        self.keeper = Timekeeper(limits, connections, self.look_soon)
        self._server = server
        self._handle: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """No more looks. The loop would keep its timer, and the server with it, until that is due."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._server._portico_requests.soon(handle.cancel)

    def look_soon(self) -> None:
        """There is something to look at, sooner than before."""
        if self._server._portico_engine is not None:
            self._server._portico_requests.soon(self._look)

    def _look(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        wait = self.keeper.look()
        if wait is not None:
            self._handle = self._server._portico_requests.later(wait, self._look)

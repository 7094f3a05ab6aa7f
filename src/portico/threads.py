"""A thread per request. Says only how a request runs; works through the hooks alone, over any `socketserver` server."""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from functools import partial

from . import limits, logs, settings
from ._openable import NOT_OPENED
from ._own import Own
from ._requests import end_request, note_failure, request_context, request_failed
from ._serving import Serving
from .errors import Overloaded
from .handlers import STEPS
from .lifecycle import HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from typing import Any

    from ._connection import Connection
    from ._datagram_pool import DatagramPool
    from ._session import PeerSession
    from ._workers import Workers

__all__ = ["ThreadingMixIn"]

# Threads of a datagram server, where `max_threads` says nothing.
_DATAGRAM_THREADS = 128


class _Threads:
    """The request threads that `server_close` waits for.

    A thread reports its own end, and the next one to be added clears away what has ended: O(1) a request, where the
    stdlib looks through all of them. Not removed by the thread itself, which at that moment is still running.
    """

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()
        self._ended: deque[threading.Thread] = deque()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(self._running.copy())

    def append(self, thread: threading.Thread) -> None:
        with suppress(IndexError):  # asked of the deque itself: others may do the same, each in a `handle_request`
            while True:
                self._running.discard(self._ended.popleft())
        self._running.add(thread)

    def discard(self, thread: threading.Thread) -> None:
        """Forget a thread that never started."""
        self._running.discard(thread)

    def ended(self, thread: threading.Thread) -> None:
        """Called by the thread itself, as the last thing it does."""
        self._ended.append(thread)

    def join(self, but: Container[threading.Thread] = ()) -> None:
        """Wait for all of them, but for these; a request that closes its own server does not wait for itself."""
        for thread in self:
            if thread is not threading.current_thread() and thread not in but:
                thread.join()
                self._running.discard(thread)


class _NoThreads:
    """Stands in where no thread is waited for: with `daemon_threads`, or without `block_on_close`."""

    def __len__(self) -> int:
        return 0

    def append(self, thread: threading.Thread) -> None:
        return

    def discard(self, thread: threading.Thread) -> None:
        return

    def ended(self, thread: threading.Thread) -> None:
        return

    def join(self, but: Container[threading.Thread] = ()) -> None:
        return


class _RequestThread(threading.Thread):
    """Runs one request in the context it was given, and tells its server when it is done, whatever happens."""

    def __init__(self, server: ThreadingMixIn, threads: _Threads | _NoThreads, request: Any, address: Any) -> None:
        # The target gives the thread the name that socketserver's have: "Thread-1 (process_request_thread)".
        super().__init__(target=server.process_request_thread, args=(request, address), daemon=server.daemon_threads)
        self._server = server
        self._threads = threads
        self.connection: Connection | None = None
        self._run_in = request_context(server).run

    def run(self) -> None:
        server = self._server
        try:
            self._run_in(self._run_with_hooks)
        finally:
            self._threads.ended(self)
            server._portico_running.discard(self)
            if self.connection is not None:
                server._portico_connections.end_closed(self.connection)
            if server._portico_connections.is_full:
                server._portico_connections.make_room(server)

    def _run_with_hooks(self) -> None:
        hooked = self._server._portico_has_hooks()
        if hooked:
            _hook(self._server, "thread_started")
        try:
            super().run()
        finally:
            if hooked:
                _hook(self._server, "thread_finished")


def _hook(server: ThreadingMixIn, name: str) -> None:
    try:
        getattr(server, name)()
    except BaseException as error:  # SystemExit, too: the request is still to be run, or its thread to be given back
        logs.emit(server, HookFailed(name, error))


class ThreadingMixIn(Serving):
    """Mix-in that runs every request in a thread of its own: `class Server(ThreadingMixIn, TCPServer): pass`.

    Handlers see the context variables of whoever started the server. With `max_threads` running, clients wait in the
    backlog. With `reuse_threads` a thread serves one request after the other, so that what is thread-local outlives
    a request; `thread_started` and `thread_finished` are then called once a thread, not once a request.
    """

    daemon_threads: bool = settings.DAEMON_THREADS.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default
    max_threads: int | None = limits.MAX_THREADS.default
    reuse_threads: bool = limits.REUSE_THREADS.default
    thread_idle_timeout: float = limits.THREAD_IDLE_TIMEOUT.default
    requests_per_thread: int | None = limits.REQUESTS_PER_THREAD.default

    _threads: _Threads | _NoThreads = _NoThreads()
    _portico_runs_inline = False
    _portico_waits_on_close = True
    _portico_workers: Workers | None = None
    _portico_pool: DatagramPool | None = None
    """What datagrams wait in for a thread."""
    _portico_running: set[threading.Thread] = Own(set)  # type: ignore[assignment]
    """Threads that run a request each; with daemons, whom nobody waits for."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, or give it to one that waits.

        Raises `Overloaded` if there is none to be had. Datagrams are always given to one that waits, or wait for one
        that is done, if `max_threads` run: at most `max_datagrams` of them.
        """
        try:
            if self._portico_pools_datagrams():
                if self._portico_bounded or self._portico_has_place(request, client_address):
                    self._portico_ready_pool().put(request, client_address)
            elif self.reuse_threads:
                self._portico_give_to_worker(request, client_address)
            else:
                self._portico_start_thread(request, client_address)
        except RuntimeError as error:
            raise Overloaded(f"no thread for a request ({error})") from error

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the thread runs: the request, its errors and its end."""
        connection = self._portico_connections.of(request)
        if connection is not None and connection.runner is None:  # it is a program's own thread
            connection.runner = threading.current_thread()
        try:
            if self._portico_opens:
                client_address = self._portico_open_request(request, client_address)
            if client_address is not NOT_OPENED:
                self.finish_request(request, client_address)
        except Exception:
            request_failed(self, request, client_address)
        except BaseException:
            note_failure(self, request)
            raise
        finally:
            end_request(self, request)

    def thread_started(self) -> None:
        """Called once in every thread, first of all. To override."""

    def thread_finished(self) -> None:
        """Called once in every thread, last of all, even after an error. To override.

        The place to give back what belongs to the thread, such as a database connection.
        """

    def server_close(self) -> None:
        """Close the server, then wait for the requests that still run (`block_on_close`).

        They have `drain_timeout` seconds, idle ones none; then their connections are cut. A thread that goes on all the
        same is left behind and told of.
        """
        super().server_close()
        self._portico_end_requests(wait=self.block_on_close and not self.daemon_threads)
        if self._portico_workers is not None:
            self._portico_workers.close(wait=self.block_on_close and not self.daemon_threads)
        if self.block_on_close:
            self._threads.join(but=self._portico_running)

    # -- for the house

    def _portico_end_helpers(self) -> None:
        super()._portico_end_helpers()
        if self._portico_pool is not None:
            self._portico_pool.drop()
        if self._portico_workers is not None:
            self._portico_workers.close(wait=False)

    def _portico_has_hooks(self) -> bool:
        """Whether there is anything to be called at a thread's start or end."""
        mine, given = type(self), vars(self)
        plain = (
            mine.thread_started is ThreadingMixIn.thread_started
            and mine.thread_finished is ThreadingMixIn.thread_finished
        )
        return not plain or "thread_started" in given or "thread_finished" in given

    def _portico_start_thread(self, request: Any, client_address: Any) -> None:
        if self.block_on_close and not self.daemon_threads:
            threads = vars(self).setdefault("_threads", _Threads())
        else:
            threads = self._threads if self.block_on_close else _NoThreads()
        thread = _RequestThread(self, threads, request, client_address)
        if not thread.daemon:
            threads.append(thread)
        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.runner, thread.connection = thread, connection
        self._portico_running.add(thread)
        try:
            thread.start()
        except BaseException:
            threads.discard(thread)
            self._portico_running.discard(thread)
            raise

    def _portico_ready_workers(self) -> Workers:
        if self._portico_workers is None or self._portico_workers.over:
            from ._workers import Workers  # only where they are asked for

            self._portico_workers = Workers(self, self._portico_run_worker)
        return self._portico_workers

    def _portico_ready_pool(self) -> DatagramPool:
        workers = self._portico_ready_workers()
        if self._portico_pool is None:
            from ._datagram_pool import DatagramPool  # the same

            self._portico_pool = DatagramPool(self, workers)
            self._portico_look = self._portico_pool.look
        self._portico_pool.workers = workers
        self._portico_pool.most = self.max_threads or _DATAGRAM_THREADS
        return self._portico_pool

    def _portico_taker(self) -> Callable[[], bool | Exception | None]:
        reception = getattr(self, "_portico_reception", None)
        if not self._portico_pools_datagrams() or reception is None:
            return super()._portico_taker()
        pool = self._portico_ready_pool()
        made: Any = self.RequestHandlerClass if self._portico_bounded and reception.may_take(self) else None
        pool.made, pool.handle = made, None if made is None else reception.handle_of(made, STEPS)
        if made is None:
            return super()._portico_taker()
        return partial(pool.take, reception, reception.batched)

    def _portico_give_to_worker(self, request: Any, client_address: Any) -> None:
        workers = self._portico_ready_workers()
        context = request_context(self)

        def job() -> None:
            connection = self._portico_connections.of(request)
            if connection is not None:
                connection.runner = threading.current_thread()
            context.run(self.process_request_thread, request, client_address)

        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.runner = self  # a worker will say which it is
        workers.submit(job)

    def _portico_run_worker(self, work: Callable[[], None]) -> None:
        """The whole of a re-used thread."""
        workers = self._portico_workers
        try:
            _hook(self, "thread_started")
            work()
        finally:
            _hook(self, "thread_finished")
            if workers is not None:
                workers.ended()
            self._portico_connections.make_room(self)

    def _portico_serving_ended(self, loop: Any) -> None:
        super()._portico_serving_ended(loop)
        if self._portico_workers is not None and self._portico_loop is None:
            self._portico_workers.close(wait=False)  # else those that wait would keep the process from ending

    def _portico_pools_datagrams(self) -> bool:
        """Whether requests are datagrams: a thread for each would cost ten times what is done in it (measured)."""
        is_datagram = getattr(self, "socket_type", None) == socket.SOCK_DGRAM
        return is_datagram and not (self.stdlib_compat or self._portico_has_sessions)

    def _portico_in_flight(self) -> int:
        return 0 if self._portico_pool is None else self._portico_pool.in_flight

    def _portico_hold(self) -> float | None:
        if self.max_threads is not None and not self._portico_pools_datagrams():
            connections = self._portico_connections
            connections.is_full = True  # before it is looked, see `Connections.hold`
            if self._portico_busy() >= self.max_threads:
                return float("inf")
        return super()._portico_hold()

    def _portico_busy(self) -> int:
        """Threads that run a request."""
        workers = self._portico_workers
        return len(self._portico_running) + (0 if workers is None else workers.busy)

    def _portico_can_run_one_more(self) -> bool:
        has_room = self.max_threads is None or self._portico_busy() < self.max_threads
        return has_room and super()._portico_can_run_one_more()

    def _portico_make_session(self, address: Any, payload: bytes) -> PeerSession:
        from ._session import Session  # only where they are wanted

        return Session(self, address, payload)

    def _portico_goes_on(self) -> bool:
        """Datagrams are answered through the socket that they came by."""
        waits = self.block_on_close and not self.daemon_threads
        if waits and self._portico_in_flight():
            if self._portico_loop is not None:
                self._portico_stop()
            return True
        return super()._portico_goes_on()

    def _portico_runners(self) -> list[Any]:
        running = (
            list(self._portico_running) if self._portico_workers is None else list(self._portico_workers.running())
        )
        pool = self._portico_pool
        # Between its arrival and its thread a datagram is nobody's, and is to be waited for all the same.
        return running or ([pool] if pool is not None and pool.in_flight else [])

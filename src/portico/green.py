"""A green thread per request, on an asyncio loop; and what a handler in one may ask for.

Says only how a request runs; works through the hooks alone, over any `socketserver` server. The threads themselves are
`_hub`'s, their sockets `_green_sockets`', the loop is `_engine`'s.

Nothing is patched: what a handler does through its request, and through the functions here, lets others run; a
`time.sleep` or a blocking library holds all of them, and the watchdog says so. Locks, events and queues are asyncio's
own: `green.wait_for(lock.acquire())`.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from contextlib import contextmanager, suppress
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent

from . import logs
from ._goodbyes import goodbye_failed
from ._green_datagrams import GreenDatagramSocket
from ._green_sockets import CountedGreenSocket, GreenSocket
from ._hub import Expired, GreenThread, Hub, current
from ._meters import kernel_counts_family
from ._on_loop import OnLoop
from ._openable import NOT_OPENED
from ._parking import READ
from ._requests import end_request, note_cut, note_failure, request_context, request_failed
from .handlers import STEPS
from .lifecycle import HookFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ._connection import Connection
    from ._datagram_queue import DatagramQueue
    from ._engine import AsyncioLoop
    from ._opening import Opening
    from ._session import PeerSession

_NEW: Any = object.__new__

__all__ = ["GreenMixIn", "GreenSocket", "GreenThread", "connect", "in_thread", "sleep", "spawn", "timeout", "wait_for"]


@cache
def _tls_kind(family: int) -> Any:
    from ._green_tls import green_tls_class  # only where it is wanted, and once: an import takes 1 us each time

    return green_tls_class(family)


class GreenMixIn(OnLoop):
    """Mix-in that runs every request in a green thread: `class Server(GreenMixIn, TCPServer): pass`.

    The handler is the one that runs under `ThreadingMixIn`. `serve_forever` makes an event loop and closes it;
    `serve_async` serves on the one that runs. Both return when the requests have ended, too: after `shutdown` they may
    come to their end; on `server_close` those that have not after `drain_timeout` seconds are ended where they wait, by
    a `GreenletExit`, so that `finally` and `finish()` run. With `daemon_threads`, or without `block_on_close`, those
    that still run half a second after `shutdown` are ended as well.
    """

    _portico_requests_hub: Hub | None = None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the green thread runs: the request, its errors and its end."""
        try:
            if self._portico_opens:
                client_address = self._portico_open_request(request, client_address)
            if client_address is not NOT_OPENED:
                self.finish_request(request, client_address)
        except (Exception, asyncio.CancelledError):  # of something awaited, which is not this thread
            self._portico_tell_of_failure(request, client_address)
        except GreenletExit:
            note_cut(self, request)
            raise
        except BaseException:
            note_failure(self, request)
            raise
        finally:
            end_request(self, request)
            try:
                self.thread_finished()
            except Exception as error:
                logs.emit(self, HookFailed("thread_finished", error))

    def thread_finished(self) -> None:
        """Called once in every request's green thread, last of all, even after an error. To override."""

    def _portico_start(self, engine: AsyncioLoop, request: Any, client_address: Any) -> Awaitable[object]:
        job = self.process_request_thread, request, client_address
        thread: GreenThread = engine.share.hub.request(self._portico_requests, request_context(self), job)
        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.runner = thread
        thread.start()
        return thread

    def _portico_start_takers(self, queue: DatagramQueue, takers: int) -> bool:
        hub: Any = self._portico_requests_hub
        for _ in range(takers):
            if queue.waiting:
                context = request_context(self)
                job = self._portico_take, queue, context.copy()
                hub.request(self._portico_requests, context, job).start()
        return True

    def _portico_take(self, queue: DatagramQueue, context: contextvars.Context) -> None:
        """What a green thread runs that takes datagrams."""
        turn, made, handle, waiting = queue.turn, queue.made, queue.handle, queue.waiting
        copy, answering = contextvars.copy_context, queue.answering
        try:
            while waiting and queue.turn == turn and copy() == context:
                request, client_address = waiting.popleft()
                if type(request) is bytes:
                    request = request, answering
                try:
                    if handle is not None:
                        handler = _NEW(made)
                        handler.request, handler.client_address, handler.server = request, client_address, self
                        handle(handler)
                    elif made is not None:
                        made(request, client_address, self)
                    else:
                        self.process_request_thread(request, client_address)
                except (Exception, asyncio.CancelledError):  # not of the last one, which sees to it
                    self._portico_tell_of_failure(request, client_address)
                finally:
                    queue.ended += 1
        finally:
            queue.report()

    def _portico_tell_of_failure(self, request: Any, client_address: Any) -> None:
        try:
            request_failed(self, request, client_address)
        except Exception as error:
            logs.emit(self, HookFailed("handle_error", error))

    _portico_steps = STEPS

    def _portico_make_session(self, address: Any, payload: bytes) -> PeerSession:
        from ._green_session import GreenSession  # only where they are wanted

        return GreenSession(self, address, payload)

    def _portico_start_goodbye(self, connection: Connection) -> None:
        hub = self._portico_requests_hub
        if hub is None or connection.handler is None:
            return
        thread = GreenThread(hub)
        thread.prepare(self._portico_requests, request_context(self), (_say_goodbye, self, connection))
        self._portico_requests.goodbyes.add(thread)
        self._portico_limit_goodbye(thread, connection)
        thread.start(soon=True)

    def _portico_cancel(self, request: GreenThread) -> None:
        request.interrupt(GreenletExit())

    def _portico_make_socket(
        self, engine: AsyncioLoop, family: int, kind: int, proto: int, descriptor: int
    ) -> GreenSocket:
        kind_of_socket: Any = GreenSocket if kernel_counts_family(family) else CountedGreenSocket
        if kind == socket.SOCK_DGRAM:
            kind_of_socket = GreenDatagramSocket
        elif self._portico_keyring is not None:
            kind_of_socket = _tls_kind(family)
        made: GreenSocket = kind_of_socket(family, kind, proto, descriptor, hub=engine.share.hub)
        return made

    def _portico_open_at_once(self, request: Any, opening: Opening) -> bool:
        if opening.expects_header or not getattr(request, "can_open", bool)() or not self._portico_encrypts(request):
            return False
        heard = request.hear(opening.deadline)
        opening.heard = True
        self._portico_begin_tls(request)
        request.open(opening.deadline, heard)
        return True

    def _portico_wait_readable(self, request: Any, seconds: float) -> None:
        thread = getcurrent()
        if type(thread) is not GreenThread or not isinstance(request, GreenSocket):
            super()._portico_wait_readable(request, seconds)
            return
        request._readable = request._ended
        with suppress(TimeoutError):
            request._park(thread, READ, monotonic() + seconds)

    def _portico_pause(self, seconds: float) -> None:
        sleep(seconds)

    def _portico_join(self, engine: AsyncioLoop) -> None:
        super()._portico_join(engine)
        share = engine.share
        if share.hub is None:
            share.hub = Hub(engine.loop, engine.readiness)
            share.closing.callback(share.hub.close)
        self._portico_requests_hub = share.hub


def _say_goodbye(server: GreenMixIn, connection: Connection) -> None:
    handler = connection.handler
    try:
        if handler is not None:  # else its request has just ended
            handler.goodbye()
    except OSError:  # the peer has left
        pass
    except (Exception, SystemExit) as error:  # of which the latter would end the loop
        goodbye_failed(server, error)
    finally:
        connection.shut(socket.SHUT_RD)


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
    thread = GreenThread(me.hub)
    thread.prepare(me.group, contextvars.copy_context(), (function, *arguments))
    thread.start(soon=True)
    return thread


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` where the block waits when it has lasted so many seconds. Blocks may be nested."""
    thread = current()
    expired = Expired(thread.blocks)
    thread.blocks += 1
    alarm = thread.hub.loop.call_later(seconds, thread.interrupt, expired)
    try:
        yield
    except Expired as error:
        if error is not expired:
            raise
        raise TimeoutError("timed out") from None
    finally:
        thread.blocks -= 1
        alarm.cancel()
        thread.spare(expired)

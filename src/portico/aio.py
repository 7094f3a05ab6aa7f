"""A task per request, on an asyncio loop, for handlers whose methods are `async def`; and those handlers' bases.

Says only how a request runs; works through the hooks alone, over any `socketserver` server. The loop is `_engine`'s,
the sockets are `_async_sockets`'.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from . import logs
from ._async_sockets import AsyncDatagramSocket, AsyncSocket, CountedAsyncSocket
from ._async_streams import CountedReader, open_streams
from ._generics import Generic, RequestT, ServerT
from ._goodbyes import goodbye_failed
from ._meters import kernel_counts_family
from ._on_loop import OnLoop
from ._openable import NOT_OPENED
from ._opening import Undecided
from ._requests import end_request, note_cut, note_failure, request_context, request_failed
from ._sealed import open_late, unseal
from .errors import TLSError
from .handlers import BaseRequestHandler, DatagramRequestHandler, check_max_line
from .lifecycle import HookFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from ._connection import Connection
    from ._datagram_queue import DatagramQueue
    from ._engine import AsyncioLoop
    from ._loop_requests import Requests
    from ._opening import Opening
    from ._session import PeerSession
    from .client import Client, TLSInfo

__all__ = [
    "AsyncBaseRequestHandler",
    "AsyncDatagramRequestHandler",
    "AsyncMixIn",
    "AsyncSocket",
    "AsyncStreamRequestHandler",
]


_NEW: Any = object.__new__


class AsyncBaseRequestHandler(Generic[ServerT, RequestT]):
    """Base of all handlers of async servers. To override: `handle`, and where needed `setup` and `finish`.

    As `BaseRequestHandler`, but these three are coroutines, and `request` is an `AsyncSocket`, or
    `(payload, AsyncSocket)` on a datagram server. Making a handler runs nothing: the server awaits it.
    """

    request: RequestT
    client_address: Any
    server: ServerT
    if TYPE_CHECKING:
        data: Any
        client: Client
        tls: TLSInfo | None
    else:
        data, client, tls = (vars(BaseRequestHandler)[name] for name in ("data", "client", "tls"))

    def __init__(self, request: RequestT, client_address: Any, server: ServerT) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server

    def __await__(self) -> Generator[Any, Any, None]:
        return self._portico_run().__await__()

    async def _portico_run(self) -> None:
        await self.setup()
        if hasattr(self, "goodbye"):
            self.server._portico_note_handler(self.request, self)  # type: ignore[attr-defined]
        try:
            await self.handle()
        finally:
            await self.finish()

    async def setup(self) -> None:
        """Called before `handle`."""

    async def handle(self) -> None:
        """Do what the request asks for."""

    async def finish(self) -> None:
        """Called after `handle`, even if it raised; not if `setup` did."""

    async def start_tls(self) -> None:
        """As `BaseRequestHandler.start_tls`, awaited; the loop's own TLS."""
        await self.server._portico_start_tls_async(self.request, None)  # type: ignore[attr-defined]


_STEPS = (
    AsyncBaseRequestHandler.__init__, AsyncBaseRequestHandler.setup, AsyncBaseRequestHandler.finish,
    AsyncBaseRequestHandler.__await__,
)  # fmt: skip


class AsyncStreamRequestHandler(AsyncBaseRequestHandler[ServerT, Any]):
    """A handler with asyncio's streams: `rfile` is a `StreamReader`, `wfile` a `StreamWriter`.

    The streams own the connection from `setup` on, and close it in `finish`, when what was written has been sent.

    `max_line` is as `StreamRequestHandler`'s: at a longer line `readline()`, iteration and `readuntil()`, which counts
    up to the end of what it looks for, raise `LineTooLong`; the rest of it is skipped, never taken for a line.
    """

    limit: int = 65536
    """asyncio's own setting, in bytes: `rfile` reads ahead up to twice as much.

    Without `max_line` it is also how long a line may be, not counting its newline: asyncio raises `ValueError` then.
    """
    max_line: int | None = None

    rfile: asyncio.StreamReader
    wfile: asyncio.StreamWriter

    async def setup(self) -> None:
        check_max_line(self.max_line)
        request = self.request
        await open_late(request)
        if getattr(request, "secured", False):  # which has streams already
            self.rfile, self.wfile = request.reader, request.writer
            request.reader.max_line = self.max_line
            return
        loop = asyncio.get_running_loop()
        self.rfile = reader = CountedReader(limit=self.limit, loop=loop)
        reader.max_line = self.max_line
        self.wfile = await open_streams(request, reader, asyncio.StreamReaderProtocol(reader, loop=loop))

    async def start_tls(self) -> None:
        """As `BaseRequestHandler.start_tls`, awaited, with new streams: what `rfile` has read ahead is thrown away."""
        await self.server._portico_start_tls_async(self.request, (self.rfile, self.wfile))  # type: ignore[attr-defined]
        self.rfile, self.wfile = self.request.reader, self.request.writer

    async def finish(self) -> None:
        writer = self.wfile
        if getattr(self.request, "secured", False):
            await self.request.closed()
            return
        self.request.was_connected = not (writer.is_closing() or self.rfile.exception())
        try:
            try:
                if self.request.was_connected and self.request.connection is not None:
                    if writer.transport.get_write_buffer_size():
                        writer.transport.set_write_buffer_limits(0)
                        await writer.drain()
                    self.request.connection.measure()  # now: uvloop closes the descriptor before it says so
            finally:
                writer.close()
            await writer.wait_closed()
        except OSError:  # the peer has gone: there is nobody left to write to
            pass
        except BaseException:  # cancelled while the peer did not take the rest
            writer.transport.abort()
            raise


class AsyncDatagramRequestHandler(AsyncBaseRequestHandler[ServerT, Any]):
    """A handler over one datagram: read it from `rfile`, write the answer to `wfile`, both in memory.

    The answer is sent when `handle` is done; `send_empty_reply` as for `DatagramRequestHandler`.
    """

    send_empty_reply: bool = DatagramRequestHandler.send_empty_reply

    packet: bytes
    socket: AsyncSocket
    rfile: BytesIO
    wfile: BytesIO

    async def setup(self) -> None:
        self.packet, self.socket = self.request
        self.rfile, self.wfile = BytesIO(self.packet), BytesIO()

    async def finish(self) -> None:
        answer = self.wfile.getvalue()
        if (answer or self.send_empty_reply) and self.client_address:
            try:
                await self.socket.sendto(answer, self.client_address)
            except (ConnectionError, FileNotFoundError):
                return


class AsyncMixIn(OnLoop):
    """Mix-in that runs every request in an asyncio task: `class Server(AsyncMixIn, TCPServer): pass`.

    The handler is an `AsyncBaseRequestHandler`, or any callable that returns an awaitable. Serving and its end are as
    for `GreenMixIn`; a request that is ended where it waits sees `CancelledError`.
    """

    def finish_request(self, request: Any, client_address: Any) -> Any:
        """Call `RequestHandlerClass`, and return what has to be awaited to handle the request."""
        return self.RequestHandlerClass(request, client_address, self)

    async def process_request_task(self, request: Any, client_address: Any) -> None:
        """What the task runs: the request, its errors and its end."""
        try:
            if self._portico_opens:
                client_address = await self._portico_await_opening(request, client_address)
            if client_address is not NOT_OPENED:
                await self.finish_request(request, client_address)
        except SystemExit:  # ends its own request only, as in a thread
            note_failure(self, request)
        except Exception:
            self._portico_tell_of_failure(request, client_address)
        except BaseException as error:
            is_cut = isinstance(error, asyncio.CancelledError) and asyncio.current_task().cancelling()  # type: ignore[union-attr]
            (note_cut if is_cut else note_failure)(self, request)
            raise
        finally:
            try:
                if self._portico_keyring is not None and hasattr(request, "secured"):
                    await request.closed()
            finally:  # it may be cancelled there
                end_request(self, request)

    _portico_handlers_are_async = True

    async def _portico_await_opening(self, request: Any, client_address: Any) -> Any:
        """What `_portico_open_request` does where it may be waited for; TLS is the loop's own."""
        connection = self._portico_to_be_opened(request, client_address, None)
        opening = connection.opening
        if opening is not None and not opening.told:
            with self._portico_attempt(connection, request):
                await self._portico_await_async(partial(self._portico_step, connection, request), request, opening)
                if self._portico_encrypts(request):
                    await self._portico_secure_async(request, opening.left)
        return connection.client_address if connection.opening is None else NOT_OPENED

    async def _portico_open_late(self, request: Any) -> None:
        await self._portico_await_opening(request, None)

    async def _portico_await_async(self, step: Callable[[], None], request: Any, opening: Opening) -> None:
        try:
            async with asyncio.timeout(opening.left):
                while True:
                    try:
                        return step()
                    except Undecided as error:
                        await asyncio.sleep(error.pause)
                    except BlockingIOError:
                        await request.readable()
        except TimeoutError:
            raise TimeoutError("nothing, or not enough, came in time") from None  # asyncio's own has no words

    async def _portico_secure_async(self, request: Any, seconds: float, streams: Any = None) -> None:
        if not hasattr(request, "secure"):
            raise TLSError(f"{type(request).__name__} cannot be encrypted: get_request must return what accept() does")
        keyring: Any = self._portico_keyring
        unseal(request)
        request.suppress_ragged_eofs = self.suppress_ragged_eofs
        if streams is not None:
            await request.restart(keyring.context, seconds, streams)
        else:
            await request.secure(keyring.context, seconds, getattr(self.RequestHandlerClass, "limit", 1 << 16))

    async def _portico_start_tls_async(self, request: Any, streams: Any) -> None:
        self._portico_check_start(request)
        try:
            await self._portico_secure_async(request, self.handshake_timeout, streams)
        except OSError as error:
            raise self._portico_start_failed(request, error) from error

    def _portico_start(self, engine: AsyncioLoop, request: Any, client_address: Any) -> Awaitable[object]:
        run = self.process_request_task(request, client_address)
        task = engine.loop.create_task(run, context=request_context(self))
        self._portico_requests.add(task)
        engine.readiness.turn()
        task.add_done_callback(partial(_ended, self._portico_requests))
        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.runner = task
        return task

    def _portico_start_takers(self, queue: DatagramQueue, takers: int) -> bool:
        requests = self._portico_requests
        for _ in range(takers):
            context = request_context(self)
            task = asyncio.get_running_loop().create_task(self._portico_take(queue, context.copy()), context=context)
            requests.add(task)
            task.add_done_callback(partial(_ended, requests))
        return False

    async def _portico_take(self, queue: DatagramQueue, context: contextvars.Context) -> None:
        """What a task runs that takes datagrams."""
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
                        await handle(handler)
                    elif made is not None:
                        await made(request, client_address, self)
                    else:
                        await self.process_request_task(request, client_address)
                except SystemExit:  # not of the last one, which sees to it
                    pass
                except Exception:
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

    _portico_steps = _STEPS

    def _portico_make_session(self, address: Any, payload: bytes) -> PeerSession:
        from ._async_session import AsyncSession  # only where they are wanted

        return AsyncSession(self, address, payload)

    def _portico_start_goodbye(self, connection: Connection) -> None:
        run = self._portico_goodbye(connection)
        task = asyncio.get_running_loop().create_task(run, context=request_context(self))
        self._portico_requests.add(task)
        self._portico_requests.goodbyes.add(task)
        self._portico_limit_goodbye(task, connection)
        task.add_done_callback(partial(_ended, self._portico_requests))

    async def _portico_goodbye(self, connection: Connection) -> None:
        handler = connection.handler
        try:
            if handler is not None:  # else its request has just ended
                await handler.goodbye()
        except OSError:  # the peer has left
            pass
        except (Exception, SystemExit) as error:  # of which the latter would end the loop
            goodbye_failed(self, error)
        finally:
            connection.shut(socket.SHUT_RD)

    def _portico_cancel(self, request: asyncio.Task[None]) -> None:
        request.cancel()

    def _portico_make_socket(
        self, engine: AsyncioLoop, family: int, kind: int, proto: int, descriptor: int
    ) -> AsyncSocket:
        kind_of_socket: Any = AsyncSocket if kernel_counts_family(family) else CountedAsyncSocket
        if kind == socket.SOCK_DGRAM:
            kind_of_socket = AsyncDatagramSocket
        elif self._portico_keyring is not None:
            from ._async_tls import async_tls_class  # only where it is wanted

            kind_of_socket = async_tls_class(family)
        made: AsyncSocket = kind_of_socket(family, kind, proto, descriptor, engine=engine)
        return made


def _ended(requests: Requests, task: asyncio.Task[None]) -> None:
    requests.discard(task)
    if not task.cancelled():
        task.exception()  # a KeyboardInterrupt has left the loop already: asyncio need not tell of it, too

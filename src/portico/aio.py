"""A task per request, on an asyncio loop, for handlers whose methods are `async def`; and those handlers' bases.

Says only how a request runs; works through the hooks alone, over any `socketserver` server. The loop is `_engine`'s.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from . import logs
from ._generics import Generic, RequestT, ServerT
from ._on_loop import OnLoop
from ._readiness import PATIENCE, FutureWaiter, Watched
from ._serving import end_request, request_context
from .handlers import BaseRequestHandler, DatagramRequestHandler
from .lifecycle import HookFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from ._engine import AsyncioLoop
    from ._on_loop import Requests

__all__ = [
    "AsyncBaseRequestHandler",
    "AsyncDatagramRequestHandler",
    "AsyncMixIn",
    "AsyncSocket",
    "AsyncStreamRequestHandler",
]

_Socket: Any = socket.SocketType
_AGAIN: Final = (BlockingIOError, InterruptedError)
_recv: Final = _Socket.recv
_send: Final = _Socket.send
_READ, _WRITE = True, False
_PIECE: Final = 1 << 20


class AsyncSocket(Watched):
    """A socket whose calls are awaited: `await sock.recv(100)`. What does not wait is a `socket.socket`'s.

    Timeouts are asyncio's: `async with asyncio.timeout(5): ...`. A request's is closed by the server.
    """

    __slots__ = ("_engine", "was_connected")

    def __init__(self, family: int, kind: int, proto: int, descriptor: int, *, engine: AsyncioLoop) -> None:
        super().__init__(family, kind, proto, descriptor, readiness=engine.readiness)
        self._engine = engine
        self.was_connected: bool | None = None
        """Whether the connection stood at the end of its handler, where streams have taken it over; else None."""

    # -- the hot calls: no further coroutine where nothing has to be waited for

    async def recv(self, bufsize: int, flags: int = 0, /) -> bytes:  # type: ignore[override]
        """At most so many bytes, b"" at the end of the stream."""
        while True:
            if self._readable:
                try:
                    data: bytes = _recv(self, bufsize, flags)
                except _AGAIN:
                    self._readable = self._ended
                else:
                    if len(data) < bufsize and not flags:
                        self._readable = self._ended
                    elif self._patience:
                        self._patience -= 1
                    else:
                        await self._give_way()
                    return data
            if bufsize <= 0:
                return b""
            await self._wait(_READ)

    async def sendall(self, data: Any, flags: int = 0, /) -> None:  # type: ignore[override]
        """All of it."""
        if type(data) is bytes and self._writable:
            try:
                sent = _send(self, data, flags)
            except _AGAIN:
                sent = 0
            if sent == len(data):
                if self._patience:
                    self._patience -= 1
                else:
                    await self._give_way()
                return
            data = memoryview(data)[sent:]
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += await self._call(_WRITE, _send, rest[sent:], flags)

    # -- the others

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:  # type: ignore[override]
        """As `recv`, into a buffer; returns how many bytes."""
        return int(await self._call(_READ, _Socket.recv_into, buffer, nbytes, flags))

    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:  # type: ignore[override]
        """A datagram and its sender."""
        found: tuple[bytes, Any] = await self._call(_READ, _Socket.recvfrom, bufsize, flags)
        return found

    async def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> tuple[int, Any]:  # type: ignore[override]
        """As `recvfrom`, into a buffer."""
        found: tuple[int, Any] = await self._call(_READ, _Socket.recvfrom_into, buffer, nbytes, flags)
        return found

    async def send(self, data: Any, flags: int = 0, /) -> int:  # type: ignore[override]
        """What there is room for; returns how many bytes."""
        return int(await self._call(_WRITE, _send, data, flags))

    async def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:  # type: ignore[override]
        """As `socket.recvmsg`."""
        return await self._call(_READ, _Socket.recvmsg, bufsize, ancbufsize, flags)

    async def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:  # type: ignore[override]
        """As `socket.recvmsg_into`."""
        return await self._call(_READ, _Socket.recvmsg_into, buffers, ancbufsize, flags)

    async def sendmsg(self, buffers: Any, *ancdata_flags_and_address: Any) -> int:  # type: ignore[override]
        """As `socket.sendmsg`: what there is room for."""
        return int(await self._call(_WRITE, _Socket.sendmsg, buffers, *ancdata_flags_and_address))

    async def accept(self) -> tuple[AsyncSocket, Any]:  # type: ignore[override]
        """A connection to a listener of one's own, and its address. The caller closes it."""
        descriptor, address = await self._call(_READ, _Socket._accept)
        return AsyncSocket(int(self.family), int(self.type), self.proto, descriptor, engine=self._engine), address

    async def sendto(self, data: Any, *flags_and_address: Any) -> int:  # type: ignore[override]
        """One datagram."""
        return int(await self._call(_WRITE, _Socket.sendto, data, *flags_and_address))

    async def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:  # type: ignore[override]
        """A file to its end, or `count` bytes of it, read piece by piece; returns how many."""
        if hasattr(file, "seek"):
            file.seek(offset)  # as socket.sendfile does, wherever the file stood
        sent = 0
        while count is None or sent < count:
            piece = file.read(_PIECE if count is None else min(_PIECE, count - sent))
            if not piece:
                break
            await self.sendall(piece)
            sent += len(piece)
        return sent

    async def connect(self, address: Any, /) -> None:  # type: ignore[override]
        """Connect a socket of one's own; `address` is resolved already."""
        await self._engine.loop.sock_connect(self, address)

    # -- what a socket that is awaited cannot have

    def settimeout(self, value: float | None, /) -> None:
        """No effect: this socket never blocks, and timeouts are asyncio's (`async with asyncio.timeout(...)`).

        No error either, as a `get_request` for all ways to run may well set one.
        """

    def setblocking(self, flag: bool, /) -> None:
        """No effect: this socket never blocks."""

    def dup(self) -> AsyncSocket:
        """A second socket of the same connection. The caller closes it."""
        return AsyncSocket(int(self.family), int(self.type), self.proto, socket.dup(self.fileno()), engine=self._engine)

    def makefile(self, *arguments: Any, **keywords: Any) -> Any:
        """None can be had: `AsyncStreamRequestHandler` has asyncio's streams."""
        raise NotImplementedError("an AsyncSocket has no files: use AsyncStreamRequestHandler, which has streams")

    async def _call(self, read: bool, call: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            if self._readable if read else self._writable:
                try:
                    result = call(self, *arguments)
                except _AGAIN:
                    if read:
                        self._readable = self._ended
                    else:
                        self._writable = self.family == socket.AF_UNIX and self.type == socket.SOCK_DGRAM
                        if self._writable:  # a Unix peer's queue is full, and no event tells when it is not (unix(7))
                            await asyncio.sleep(0.001)
                            continue
                else:
                    if self._patience:
                        self._patience -= 1
                    else:
                        await self._give_way()
                    return result
            await self._wait(read)

    async def _give_way(self) -> None:
        """So many calls without waiting: a connection that always has more must not keep the others waiting."""
        if self._is_time():
            await asyncio.sleep(0)

    async def _wait(self, read: bool) -> None:
        """Until a try is worth while."""
        self._patience = PATIENCE
        self._since = 0.0
        waiter = FutureWaiter(self._engine.loop)
        (self._await_read if read else self._await_write)(waiter)
        try:
            await waiter.future
        except BaseException:
            self._leave(waiter)
            raise


class AsyncBaseRequestHandler(Generic[ServerT, RequestT]):
    """Base of all handlers of async servers. To override: `handle`, and where needed `setup` and `finish`.

    As `BaseRequestHandler`, but these three are coroutines, and `request` is an `AsyncSocket`, or
    `(payload, AsyncSocket)` on a datagram server. Making a handler runs nothing: the server awaits it.
    """

    request: RequestT
    client_address: Any
    server: ServerT
    data = BaseRequestHandler.data

    def __init__(self, request: RequestT, client_address: Any, server: ServerT) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server

    def __await__(self) -> Generator[Any, Any, None]:
        return self._portico_run().__await__()

    async def _portico_run(self) -> None:
        await self.setup()
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


class AsyncStreamRequestHandler(AsyncBaseRequestHandler[ServerT, Any]):
    """A handler with asyncio's streams: `rfile` is a `StreamReader`, `wfile` a `StreamWriter`.

    The streams own the connection from `setup` on, and close it in `finish`, when what was written has been sent.
    """

    limit: int = 65536
    """The longest line, in bytes, that `rfile.readline` takes (asyncio's own setting)."""

    rfile: asyncio.StreamReader
    wfile: asyncio.StreamWriter

    async def setup(self) -> None:
        loop = asyncio.get_running_loop()
        self.rfile = asyncio.StreamReader(limit=self.limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(self.rfile, loop=loop)
        request = self.request
        plain = socket.socket(int(request.family), int(request.type), request.proto, request.detach())
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, plain)
        except BaseException:
            plain.close()
            raise
        self.wfile = asyncio.StreamWriter(transport, protocol, self.rfile, loop)

    async def finish(self) -> None:
        self.request.was_connected = not (self.wfile.is_closing() or self.rfile.exception())
        self.wfile.close()
        try:
            await self.wfile.wait_closed()
        except OSError:  # the peer has gone: there is nobody left to write to
            pass
        except BaseException:  # cancelled while the peer did not take the rest
            self.wfile.transport.abort()
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
            await self.finish_request(request, client_address)
        except SystemExit:  # ends its own request only, as in a thread
            return
        except Exception:
            try:
                self.handle_error(request, client_address)
            except Exception as error:
                logs.emit(self, HookFailed("handle_error", error))
        finally:
            end_request(self, request)

    _portico_handlers_are_async = True

    def _portico_start(self, engine: AsyncioLoop, request: Any, client_address: Any) -> Awaitable[object]:
        run = self.process_request_task(request, client_address)
        task = engine.loop.create_task(run, context=request_context(self))
        self._portico_requests.add(task)
        task.add_done_callback(partial(_ended, self._portico_requests))
        return task

    def _portico_cancel(self, request: asyncio.Task[None]) -> None:
        request.cancel()

    def _portico_make_socket(
        self, engine: AsyncioLoop, family: int, kind: int, proto: int, descriptor: int
    ) -> AsyncSocket:
        return AsyncSocket(family, kind, proto, descriptor, engine=engine)


def _ended(requests: Requests, task: asyncio.Task[None]) -> None:
    requests.discard(task)
    if not task.cancelled():
        task.exception()  # a KeyboardInterrupt has left the loop already: asyncio need not tell of it, too

"""`AsyncSocket`: a socket whose calls are awaited; and what counts on it, where the kernel does not.

How it learns that a call is worth a try is `_readiness`'s; streams are `_async_streams'`.
"""

from __future__ import annotations

import asyncio
import socket
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from ._datagrams import LONGEST, MANY, Answers, addressed, flush_answers, send_now
from ._meters import Counting
from ._peers import PeerAddress
from ._readiness import PATIENCE, FutureWaiter, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._engine import AsyncioLoop

__all__ = ["AsyncDatagramSocket", "AsyncSocket", "CountedAsyncSocket"]

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

    @property
    def turn(self) -> Callable[[], None]:
        """To be called when something goes on that no event of ours tells of."""
        return self._engine.readiness.turn

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

    async def readable(self) -> None:
        """Until something more has come, or the end has. A hint: a call may find nothing all the same."""
        self._readable = self._ended
        await self._wait(_READ)

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


class AsyncDatagramSocket(AsyncSocket):
    """What async datagram handlers answer through: from the address that was asked, with others that answer now."""

    __slots__ = ("answers",)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.answers: Answers | None = None

    async def sendto(self, data: Any, address: Any, real_address: Any = None, /) -> int:  # type: ignore[override]
        answers = self.answers
        if answers is None:
            return await super().sendto(data, address, *(() if real_address is None else (real_address,)))
        if type(address) is PeerAddress and type(data) is bytes and get_ident() == answers.thread:
            waiting, route, size = answers.waiting, address.route, len(data)  # what `keep` does, without a call
            if waiting and route.peers is answers.peers and size <= LONGEST and len(waiting) < MANY:
                waiting.append((data, route))
                return size
        if real_address is None and answers.keep(data, address):
            return len(data)
        flags, address = (0, address) if real_address is None else (address, real_address)
        if answers.waiting:
            await self._call(_WRITE, flush_answers)  # in order
        way = answers.route(address)
        if way is None:
            return await super().sendto(data, flags, address)
        return int(await self._call(_WRITE, send_now, data, flags, way))

    async def sendmsg(  # type: ignore[override]
        self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        if self.answers is not None and self.answers.waiting:
            await self._call(_WRITE, flush_answers)  # in order
        return await super().sendmsg(buffers, *addressed(self.answers, ancdata, flags, address))

    def setsockopt(self, *arguments: Any) -> None:
        if self.answers is not None:
            self.answers.flush()  # what was sent before an option was set must not be changed by it
        super().setsockopt(*arguments)


class CountedAsyncSocket(Counting, AsyncSocket):
    """An `AsyncSocket` that counts what goes over it."""

    __slots__ = ()

    async def recv(self, bufsize: int, flags: int = 0, /) -> bytes:  # type: ignore[override]
        """In one frame, as in AsyncSocket: see `CountedSocket`."""
        while True:
            if self._readable:
                try:
                    data: bytes = _recv(self, bufsize, flags)
                except _AGAIN:
                    self._readable = self._ended
                else:
                    self._got(len(data), flags)
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

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:  # type: ignore[override]
        count = await AsyncSocket.recv_into(self, buffer, nbytes, flags)
        self._got(count, flags)
        return count

    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:  # type: ignore[override]
        answer = await AsyncSocket.recvfrom(self, bufsize, flags)
        self._got(len(answer[0]), flags)
        return answer

    async def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> Any:  # type: ignore[override]
        answer = await AsyncSocket.recvfrom_into(self, buffer, nbytes, flags)
        self._got(answer[0], flags)
        return answer

    async def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:  # type: ignore[override]
        answer = await AsyncSocket.recvmsg(self, bufsize, ancbufsize, flags)
        self._got(len(answer[0]), flags)
        return answer

    async def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:  # type: ignore[override]
        answer = await AsyncSocket.recvmsg_into(self, buffers, ancbufsize, flags)
        self._got(answer[0], flags)
        return answer

    async def sendall(self, data: Any, flags: int = 0, /) -> None:  # type: ignore[override]
        if type(data) is bytes and self._writable and self._patience:  # as in AsyncSocket
            try:
                sent = _send(self, data, flags)
            except _AGAIN:
                sent = 0
            self._gave(sent)
            if sent == len(data):
                self._patience -= 1
                return
            data = memoryview(data)[sent:]
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += await self._call(_WRITE, _send, rest[sent:], flags)

    async def _call(self, read: bool, call: Callable[..., Any], *arguments: Any) -> Any:
        """All that sends comes by here, each time that something is sent."""
        if read:
            return await super()._call(read, call, *arguments)

        def counted(sock: CountedAsyncSocket, *arguments: Any) -> int:
            count: int = call(sock, *arguments)
            sock._gave(count)
            return count

        return await super()._call(read, counted, *arguments)

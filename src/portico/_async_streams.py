"""asyncio's streams over a connection of ours, in plain text or with the loop's own TLS: what ties the two together.

The streams themselves are asyncio's; here they are opened on a connection that the server has let in, and counted where
the kernel does not count.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from ._encrypted import LONGEST_PARTING, PARTING
from ._meters import MeteredSocket, out_queue
from .errors import LineTooLong

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterable

    from ._async_sockets import AsyncSocket
    from ._meters import Tally

__all__ = ["CountedReader", "CountedWriter", "open_streams"]

_PIECE: Final = 1 << 16


class StreamSocket(MeteredSocket):
    """What carries a stream: asyncio closes it, uvloop detaches it and closes the number. Either is its end."""

    __slots__ = ("end_reading",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.end_reading: Callable[[], object] | None = None
        """Has its reader find the end, where the loop's TLS would end both ways with TCP's."""

    def portico_cut(self, how: int) -> None:
        """Shut TCP down, or only what is read from it, from any thread."""
        if how == socket.SHUT_RD and self.end_reading is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.end_reading()
        else:
            socket.SocketType.shutdown(self, how)

    def end_for(self, reader: asyncio.StreamReader) -> None:
        """It carries TLS, for this one."""
        self.end_reading = partial(asyncio.get_running_loop().call_soon_threadsafe, reader.feed_eof)

    def detach(self) -> int:
        if self.connection is not None:
            self.connection.has_lost_socket()
        return socket.socket.detach(self)


async def open_streams(
    request: AsyncSocket,
    reader: CountedReader,
    protocol: asyncio.StreamReaderProtocol,
    *,
    tls: ssl.SSLContext | None = None,
    seconds: float | None = None,
) -> CountedWriter:
    """Hand a connection over to asyncio's streams, encrypted if there is a context, within so many `seconds`.

    Returns what writes to it. The connection goes on in what carries the streams; whatever fails, that is closed.
    """
    loop = asyncio.get_running_loop()
    connection, request.connection = request.connection, None
    reader.turn = request.turn
    # By name: asyncio has TCP_NODELAY, as uvloop does in any case, only if TCP is named, which accept() does not.
    proto = socket.IPPROTO_TCP if request.family in (socket.AF_INET, socket.AF_INET6) else request.proto
    plain = StreamSocket(int(request.family), int(request.type), proto, request.detach())
    if connection is not None:
        connection.follow(plain)
        reader.tally = connection.tally
        connection.backlog = reader.backlog_of_a_handler()
        request.connection = connection  # which the server looks for there when the request has ended
    if tls is not None:
        plain.end_for(reader)
    options: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": LONGEST_PARTING}
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, plain, **options if tls is not None else {})
    except BaseException:
        plain.close()
        raise
    writer = CountedWriter(transport, protocol, reader, loop)
    if tls is not None:
        writer.is_encrypted(plain)
    if reader.tally is not None:
        writer.count_in(reader.tally)
    return writer


def _look_at(over: asyncio.Future[None]) -> None:
    """asyncio would tell of an error that nobody has asked for: that of a peer that has gone."""
    if not over.cancelled():
        over.exception()


class CountedReader(asyncio.StreamReader):
    """A `StreamReader` that counts what it is fed, and tells of it: whoever waits for that goes on.

    `max_line` bounds its lines, which asyncio's `limit` does not do to the byte; nor does that let who goes on reading
    begin with the next line.
    """

    tally: Tally | None = None
    turn: Callable[[], object] = int
    max_line: int | None = None
    """How long a line may be, with its end; a longer one is `LineTooLong`."""
    _eof: bool
    _buffer: bytearray
    _exception: Exception | None
    _waiter: asyncio.Future[None] | None
    _rest_up_to: tuple[bytes, ...] = ()
    """What ends the long line that we are in, if we are in one."""

    def feed_data(self, data: Any) -> None:
        if self._eof:  # it has been told to end; more may come all the same
            return
        self.turn()
        if self.tally is not None:
            self.tally.received += len(data)
            self.tally.heard = monotonic()
        super().feed_data(data)

    def held(self) -> int:
        """Bytes that it has been fed, and nobody has read."""
        return len(self._buffer)

    def backlog_of_a_handler(self) -> Callable[[], int]:
        """Tells how many bytes a handler leaves unread that does not wait for more of them."""
        known = ref(self)  # a connection may be remembered for longer than its streams

        def backlog() -> int:
            reader = known()
            return 0 if reader is None or reader._waiter is not None else reader.held()

        return backlog

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """As asyncio has it, but for lines that are too long. `readline` and iteration come by here."""
        ends = separator if isinstance(separator, tuple) else (separator,)
        if self.max_line is None or not ends or not all(ends):
            return await super().readuntil(separator)
        if self._exception is not None:
            raise self._exception
        while self._rest_up_to and not self._skip():
            await self._more()
        while not (end := self._end_of_line(ends)) and len(self._buffer) <= self.max_line and not self._eof:
            await self._more()
        if (end or len(self._buffer)) > self.max_line:
            self._give_up(end, ends, self.max_line + 1)
            raise LineTooLong(f"the peer has sent a line longer than max_line = {self.max_line} bytes")
        line = self._cut(end or len(self._buffer))
        if not end:
            raise asyncio.IncompleteReadError(line, None)
        return line

    def _end_of_line(self, ends: tuple[bytes, ...]) -> int:
        """Where the first line ends, and with it what ends it; 0 if that is not there yet."""
        return min((found + len(end) for end in ends if (found := self._buffer.find(end)) >= 0), default=0)

    def _give_up(self, end: int, ends: tuple[bytes, ...], size: int) -> None:
        """Take so much of a line that is too long, but no part of what ends it. The rest is to be skipped."""
        if end == size:
            self._cut(end)
        else:
            self._cut(max(0, size + 1 - max(map(len, ends))))
            self._rest_up_to = ends

    def _skip(self) -> bool:
        """Throw away the rest of a long line, as far as it is there; whether that was all of it."""
        end = self._end_of_line(self._rest_up_to)
        if end or self._eof:
            self._rest_up_to = ()
            self._cut(end or len(self._buffer))
            return True
        self._cut(max(0, len(self._buffer) + 1 - max(map(len, self._rest_up_to))))
        return False

    def _cut(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._maybe_resume_transport()  # type: ignore[attr-defined]
        return data

    async def _more(self) -> None:
        await self._wait_for_data("readuntil")  # type: ignore[attr-defined]

    def begin_anew(self) -> None:
        """Forget what has been read ahead, and let another transport feed it."""
        self._buffer.clear()
        self._rest_up_to = ()
        self._transport = None


class CountedWriter(asyncio.StreamWriter):
    """A `StreamWriter` that counts what it is given, less what waits for the peer to take something."""

    tally: Tally | None = None
    encrypted = False
    _carrier: Any = None

    def count_in(self, tally: Tally) -> None:
        known = ref(self)  # a connection may be remembered for longer than its streams

        def unsent() -> int:
            writer = known()
            return 0 if writer is None else writer.unsent()

        self.tally, tally.unsent = tally, unsent

    @property
    def protocol(self) -> Any:
        return self._protocol

    def go_on(self, transport: Any, protocol: asyncio.StreamReaderProtocol) -> None:
        """Write by another transport from here on, as asyncio's own `start_tls` has it."""
        self._transport, self._protocol = transport, protocol

    def is_encrypted(self, carrier: Any) -> None:
        """By the loop, over this socket."""
        self.encrypted, self._carrier = True, carrier

    def unsent(self) -> int:
        try:
            return self.transport.get_write_buffer_size()
        except AttributeError:  # asyncio's TLS is over
            return 0
        except RuntimeError:  # it adds up what changes in another thread just now
            return 0 if self.tally is None else self.tally.sent

    def write(self, data: Any) -> None:
        if self.encrypted and len(data) > _PIECE:  # which the loops' TLS would hand on as a whole, and forget
            with memoryview(data) as view, view.cast("B") as whole:
                for begin in range(0, len(whole), _PIECE):
                    super().write(bytes(whole[begin : begin + _PIECE]))
        else:
            super().write(data)
        if self.tally is not None:
            self.tally.sent += memoryview(data).nbytes
            self.tally.said = monotonic()

    async def wait_closed(self) -> None:
        """Until it is closed. An encrypted one is also when its peer has taken all, and does not answer."""
        if self.encrypted:
            await self.part(PARTING)
        else:
            await super().wait_closed()

    async def part(self, patience: float) -> None:
        """Until an encrypted one is closed, or its peer has taken nothing for so many seconds."""
        if not await self.while_taken(super().wait_closed(), patience, or_all_is=True):
            self.transport.abort()

    async def while_taken(self, step: Coroutine[Any, Any, None], patience: float, *, or_all_is: bool = False) -> bool:
        """Wait for it, but not when the peer has taken nothing for so many seconds; nor when it has taken all.

        Returns whether it has come.
        """
        now = monotonic()
        left, since, end = self._untaken(), now, now + LONGEST_PARTING
        over = asyncio.ensure_future(step)  # which comes to its end with the transport in any case
        over.add_done_callback(_look_at)
        pause = 0.002
        while not (await asyncio.wait([over], timeout=pause))[0]:
            pause, now, before = min(pause * 2, 0.05), monotonic(), left
            left = self._untaken()
            if left < before:
                since = now
            if now - since >= patience or (or_all_is and (not left or now >= end)):
                return False
        over.result()
        return True

    def _untaken(self) -> int:
        """Bytes on their way to the peer, as far as that is known."""
        return self.unsent() + (0 if self._carrier is None else out_queue(self._carrier))

    def writelines(self, data: Iterable[Any]) -> None:
        self.write(b"".join(data))

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
    """A `StreamReader` that counts what it is fed, and tells of it: whoever waits for that goes on."""

    tally: Tally | None = None
    turn: Callable[[], object] = int
    _eof: bool

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
        return len(self._buffer)  # type: ignore[attr-defined]

    def begin_anew(self) -> None:
        """Forget what has been read ahead, and let another transport feed it."""
        self._buffer.clear()  # type: ignore[attr-defined]
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

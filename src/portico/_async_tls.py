"""`AsyncTLSSocket`: an encrypted stream for handlers that are awaited, over the event loop's own TLS.

Up to `secure` it is an `AsyncSocket`; from then on the loop has the descriptor, and its calls go to asyncio's streams,
which `AsyncStreamRequestHandler` shows. Other than over a blocking socket both ways end together: asyncio's TLS knows
no half-close.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from ._async_sockets import AsyncSocket, CountedAsyncSocket
from ._async_streams import CountedReader, CountedWriter, StreamSocket, open_streams
from ._certificates import PeerCertificate
from ._encrypted import LONGEST_PARTING, PARTING
from ._encrypted import truncated as _truncated
from ._meters import in_queue, kernel_counts_family
from .events import EndReason

__all__ = ["AsyncTLSSocket", "CountedAsyncTLSSocket", "TLSProtocol", "async_tls_class"]

_LIMIT: Final = 1 << 16
# Ends for which nobody waits any more.
_CUT: Final = (EndReason.CUT, EndReason.CLOSED)


class TLSProtocol(asyncio.StreamReaderProtocol):
    """Knows a clean end, of which TLS tells (`eof_received`), from one that comes without a word."""

    def __init__(self, reader: asyncio.StreamReader, *, ragged: bool) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self.truncated: bool | None = None
        self.closing = False
        """Whether we have ended it."""
        self._ragged = ragged
        self._reading = reader
        self.tls: Any = None
        self.connection: Any = None
        """The server's `Connection`, of which has to be known what has gone over it before uvloop closes it."""

        self.version: str | None = None
        self.peer: PeerCertificate | None = None
        self.server_name: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done. What has been agreed on has to be read now: a broken stream does not know it."""
        self.tls = session = transport.get_extra_info("ssl_object")
        self.server_name = getattr(session, "portico_server_name", None)
        with suppress(ValueError):  # what came with the end of the handshake has broken it already
            self.version = session.version()
            self.peer = PeerCertificate.of(session) if session.context.verify_mode else None
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        if self.connection is not None:
            self.connection.measure()
        if self.truncated is None and not self.closing:
            self._end(truncated=not self._is_whole())
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.truncated is None and not self.closing:
            self._end(truncated=True, told=exc is not None)
        super().connection_lost(exc)

    def _is_whole(self) -> bool:
        """Whether a close_notify has come: asyncio says the same of TCP's end."""
        try:
            return not self.tls.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def _end(self, *, truncated: bool, told: bool = False) -> None:
        self.truncated = truncated
        if truncated and not self._ragged and not told:
            self._reading.set_exception(_truncated())


class AsyncTLSSocket(AsyncSocket):
    """An `AsyncSocket` that can be encrypted. Closed by the server, as every request."""

    suppress_ragged_eofs = True
    secured = False
    """Whether the handshake is done."""
    reader: CountedReader
    writer: CountedWriter
    _protocol: TLSProtocol | None = None
    portico_session: Any = None
    """What knows what has been agreed on, also when it is closed."""
    portico_version: str | None = None
    portico_peer: PeerCertificate | None = None
    """What it does not know any more when it is broken."""
    portico_server_name: str | None = None

    async def secure(self, context: ssl.SSLContext, seconds: float, limit: int = _LIMIT) -> None:
        """Encrypt from here on, within so many seconds. `limit` is the longest line of `reader`, in bytes.

        Raises `ssl.SSLError`, `TimeoutError` or another `OSError`.
        """
        reader = CountedReader(limit=limit, loop=asyncio.get_running_loop())
        self._protocol = TLSProtocol(reader, ragged=self.suppress_ragged_eofs)
        self.reader = reader
        try:
            self.writer = await open_streams(self, reader, self._protocol, tls=context, seconds=seconds)
        except ConnectionAbortedError as error:
            raise _too_late(error) from error
        self._agreed(self._protocol)

    async def restart(
        self, context: ssl.SSLContext, seconds: float, streams: tuple[CountedReader, CountedWriter]
    ) -> None:
        """The same for streams that are open already, in plain text: they go on, encrypted.

        What has been read ahead is thrown away: whoever can put words into the plain text would else have them taken
        for the client's (RFC 3207, 4.2).
        """
        self.reader, self.writer = reader, writer = streams
        await writer.drain()
        reader.begin_anew()
        plain, self._protocol = writer.protocol, TLSProtocol(reader, ragged=self.suppress_ragged_eofs)
        options: dict[str, Any] = {"ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": LONGEST_PARTING}
        try:
            loop = asyncio.get_running_loop()
            transport: Any = await loop.start_tls(
                writer.transport, self._protocol, context, server_side=True, **options
            )
        except BaseException as error:
            plain.connection_lost(None)  # nobody else will tell it
            if isinstance(error, ConnectionAbortedError):
                raise _too_late(error) from error
            raise
        self._protocol.connection_made(transport)
        carrier = None if self.connection is None else self.connection.current_socket()
        if isinstance(carrier, StreamSocket):
            carrier.end_for(reader)
        writer.go_on(transport, self._protocol)
        writer.is_encrypted(carrier)
        self._agreed(self._protocol)

    def _agreed(self, protocol: TLSProtocol) -> None:
        self.secured = True
        protocol.connection = self.connection
        self.portico_session, self.portico_server_name = protocol.tls, protocol.server_name
        self.portico_version, self.portico_peer = protocol.version, protocol.peer

    @property
    def truncated(self) -> bool | None:
        """Whether the peer's end came without a close_notify; None before an end."""
        return None if self._protocol is None else self._protocol.truncated

    @property
    def failure(self) -> BaseException | None:
        """What has broken it, which is its peer's doing, and nobody else's connection."""
        return self.reader.exception() if self.secured else None

    # -- what is known of it, as of an `ssl.SSLSocket`

    @property
    def ssl_object(self) -> Any:
        """asyncio's `ssl.SSLObject`; None in plain text."""
        return self.writer.get_extra_info("ssl_object") if self.secured else None

    def __getattr__(self, name: str) -> Any:
        if name in ("version", "cipher", "selected_alpn_protocol", "getpeercert") and self.secured:
            return getattr(self.ssl_object, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def fileno(self) -> int:
        return int(self._carrier().fileno()) if self.secured else super().fileno()

    def getpeername(self) -> Any:
        return self._carrier().getpeername() if self.secured else super().getpeername()

    def getsockname(self) -> Any:
        return self._carrier().getsockname() if self.secured else super().getsockname()

    def getsockopt(self, *arguments: Any) -> Any:
        return self._carrier().getsockopt(*arguments) if self.secured else super().getsockopt(*arguments)

    def setsockopt(self, *arguments: Any) -> None:
        if self.secured:
            self._carrier().setsockopt(*arguments)
        else:
            super().setsockopt(*arguments)

    def _carrier(self) -> Any:
        return self.writer.get_extra_info("socket")

    def unread(self) -> int:
        """Bytes that have come and were not read yet."""
        return self.reader.held() + in_queue(self._carrier())

    # -- calls

    async def recv(self, bufsize: int, flags: int = 0, /) -> bytes:  # type: ignore[override]
        if not self.secured:
            return await super().recv(bufsize, flags)
        _without(flags)
        return await self.reader.read(bufsize)

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:  # type: ignore[override]
        if not self.secured:
            return await super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer) as view, view.cast("B") as room:
            data = await self.recv(nbytes or len(room), flags)
            room[: len(data)] = data
            return len(data)

    async def sendall(self, data: Any, flags: int = 0, /) -> None:  # type: ignore[override]
        if not self.secured:
            await super().sendall(data, flags)
            return
        _without(flags)
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, data: Any, flags: int = 0, /) -> int:  # type: ignore[override]
        if not self.secured:
            return await super().send(data, flags)
        await self.sendall(data, flags)
        return memoryview(data).nbytes

    async def _call(self, read: bool, call: Any, *arguments: Any) -> Any:
        if self.secured:
            raise ValueError("an encrypted stream has recv, recv_into, send, sendall and sendfile")
        return await super()._call(read, call, *arguments)

    # -- the end

    def shutdown(self, how: int) -> None:
        if self.secured and how != socket.SHUT_RD:
            self._part()
        elif not self.secured:
            super().shutdown(how)

    def close(self) -> None:
        if self.secured:
            self._part()
        super().close()

    def _part(self) -> None:
        if self._protocol is not None:
            self._protocol.closing = True
        self.writer.close()

    async def closed(self) -> None:
        """Say close_notify when all that was written is sent. A peer that takes nothing for `PARTING` seconds is left.

        Not before half a minute as long as something of what was written is still here. asyncio waits for the peer's
        answer, too; here that is over as soon as it has taken all.
        """
        if not self.secured:
            return
        writer = self.writer
        cut = self.connection is not None and self.connection.reason in _CUT
        try:
            if not writer.is_closing():
                if self.connection is not None:
                    self.connection.measure()  # now: uvloop closes the descriptor before it says so
                self.was_connected = True
                if writer.unsent() and not cut:
                    writer.transport.set_write_buffer_limits(0)
                    if not await writer.while_taken(writer.drain(), LONGEST_PARTING):
                        raise TimeoutError("the peer does not read")
                self._part()
            await writer.part(0.0 if cut else PARTING)
        except OSError:  # the peer has gone
            writer.transport.abort()
        except BaseException:  # cancelled while the peer did not take the rest
            writer.transport.abort()
            raise


def _too_late(error: ConnectionAbortedError) -> TimeoutError:
    """asyncio's word for a handshake that takes too long would say that the peer has left."""
    return TimeoutError(str(error))


def _without(flags: int) -> None:
    if flags:
        raise ValueError("non-zero flags not allowed in calls on an encrypted stream")


class CountedAsyncTLSSocket(AsyncTLSSocket, CountedAsyncSocket):
    """An `AsyncTLSSocket` whose plain part counts; the streams do of themselves."""


def async_tls_class(family: int) -> type[AsyncTLSSocket]:
    """The class of a connection of this family."""
    return AsyncTLSSocket if kernel_counts_family(family) else CountedAsyncTLSSocket

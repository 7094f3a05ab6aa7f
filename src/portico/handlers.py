"""Request handlers: one object a request, with `setup`, `handle` and `finish`, as in `socketserver`.

A handler knows its request, its client's address and its server; it does not know how it is run.
"""

from __future__ import annotations

import socket as _socket
from io import BufferedIOBase, BytesIO

from ._generics import Datagram, Generic, RequestT, ServerT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import ReadableBuffer

__all__ = ["BaseRequestHandler", "DatagramRequestHandler", "StreamRequestHandler"]


class _Payload:
    """`self.data` of a handler on a datagram server: the payload as received.

    Not a data descriptor, so that `self.data = ...`, as in every TCP example there is, sets a plain attribute over it.
    """

    def __get__(self, handler: Any, owner: type) -> Any:
        if handler is None:
            return self
        request = handler.request
        if isinstance(request, tuple) and len(request) == 2 and isinstance(request[1], _socket.socket):
            return request[0]
        raise AttributeError(f"{owner.__name__!r} object has no attribute 'data': only datagram servers set it")


class BaseRequestHandler(Generic[ServerT, RequestT]):
    """Base of all handlers. To override: `handle`, and where needed `setup` and `finish`.

    `request` is the connection's socket, or `(payload, socket)` on a datagram server, where `data` is the payload,
    too. The server closes the request; a handler may close it earlier. `finish` runs whenever `setup` has not raised.
    """

    request: RequestT
    client_address: Any
    server: ServerT
    if TYPE_CHECKING:
        data: Any
    else:
        data = _Payload()

    def __init__(self, request: RequestT, client_address: Any, server: ServerT) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    def setup(self) -> None:
        """Called before `handle`."""

    def handle(self) -> None:
        """Do what the request asks for."""

    def finish(self) -> None:
        """Called after `handle`, even if it raised; not if `setup` did."""


class StreamRequestHandler(BaseRequestHandler[ServerT, _socket.socket]):
    """A handler with files to read from and write to: `rfile` and `wfile` over `connection`.

    `rbufsize` and `wbufsize` are buffer sizes in bytes: -1 the default size, 0 none. `timeout` is the connection's, in
    seconds, for each single operation; None for none. `disable_nagle_algorithm` sets TCP_NODELAY (RFC 896).
    """

    rbufsize: int = -1
    wbufsize: int = 0
    timeout: float | None = None
    disable_nagle_algorithm: bool = False

    connection: _socket.socket
    rfile: BufferedIOBase
    wfile: BufferedIOBase

    def setup(self) -> None:
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)  # type: ignore[assignment]
        if self.wbufsize == 0:
            self.wfile = _SocketWriter(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)  # type: ignore[assignment]

    def finish(self) -> None:
        """Write out what is buffered, if the peer still takes it, and close both files."""
        try:
            try:
                if not self.wfile.closed:
                    self.wfile.flush()
            finally:
                self.wfile.close()  # which tries once more to write what is left, and closes in any case
        except OSError:  # the peer has gone: there is nobody left to write to (bpo-14574)
            pass
        self.rfile.close()


class _SocketWriter(BufferedIOBase):
    """An unbuffered file over a socket whose `write` writes all or raises (bpo-26721)."""

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        self._sock.sendall(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        return self._sock.fileno()


class DatagramRequestHandler(BaseRequestHandler[ServerT, Datagram]):
    """A handler with files over one datagram: read it from `rfile`, write the answer to `wfile`.

    The answer is sent when `handle` is done, if anything was written, or with `send_empty_reply` in any case. A peer
    without an address, or one that is gone, gets none: there is nobody to tell.
    """

    send_empty_reply: bool = False

    packet: bytes
    socket: _socket.socket
    rfile: BytesIO
    wfile: BytesIO

    def setup(self) -> None:
        self.packet, self.socket = self.request
        self.rfile = BytesIO(self.packet)
        self.wfile = BytesIO()

    def finish(self) -> None:
        answer = self.wfile.getvalue()
        if not (answer or self.send_empty_reply or getattr(self.server, "stdlib_compat", False)):
            return
        if not self.client_address:
            return
        try:
            self.socket.sendto(answer, self.client_address)
        except (ConnectionError, FileNotFoundError):
            return

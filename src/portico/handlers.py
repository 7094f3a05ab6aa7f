"""Request handlers: one object a request, with `setup`, `handle` and `finish`, as in `socketserver`.

A handler knows its request, its client's address and its server; it does not know how it is run.
"""

from __future__ import annotations

import socket as _socket
import sys
from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, BufferedReader, BytesIO, RawIOBase

from ._generics import Datagram, Generic, RequestT, ServerT
from .errors import LineTooLong, SettingError, TLSError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import ReadableBuffer

    from .client import Client, TLSInfo

__all__ = [
    "STEPS",
    "BaseRequestHandler",
    "DatagramRequestHandler",
    "StreamRequestHandler",
    "check_max_line",
    "does_no_more",
]


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


class _Asked:
    """`self.client` and `self.tls`: put together when they are asked for. As `_Payload`, no data descriptor."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, handler: Any, owner: type) -> Any:
        if handler is None:
            return self
        ask = getattr(handler.server, f"_portico_{self._name}_of", None)
        if ask is None:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}: its server is another's")
        return ask(handler.request, handler.client_address)


class BaseRequestHandler(Generic[ServerT, RequestT]):
    """Base of all handlers. To override: `handle`, and where needed `setup` and `finish`.

    `request` is the connection's socket, or `(payload, socket)` on a datagram server, where `data` is the payload,
    too. The server closes the request; a handler may close it earlier. `finish` runs whenever `setup` has not raised.

    `client` is who has connected and whom a proxy has announced (`portico.Client`), `tls` what TLS has agreed on
    (`portico.TLSInfo`), None in plain text.
    """

    request: RequestT
    client_address: Any
    server: ServerT
    if TYPE_CHECKING:
        data: Any
        goodbye: Any
        client: Client
        tls: TLSInfo | None
    else:
        data = _Payload()
        client = _Asked("client")
        tls = _Asked("tls")
        goodbye = None  # a subclass that has one is called when its idle connection is about to be closed

    def __init__(self, request: RequestT, client_address: Any, server: ServerT) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        self.setup()
        if self.goodbye is not None:
            server._portico_note_handler(request, self)  # type: ignore[attr-defined]
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

    def start_tls(self) -> None:
        """Encrypt this connection from here on (STARTTLS), on a server with `starttls`, within `handshake_timeout`.

        To be called when the client has been told to begin. Raises `HandshakeError` if it does not speak TLS; uncaught,
        that is logged as the peer's fault.
        """
        self.server._portico_start_tls(self.request)  # type: ignore[attr-defined]


STEPS = BaseRequestHandler.__init__, BaseRequestHandler.setup, BaseRequestHandler.finish, None


def does_no_more(made: Any, steps: tuple[Any, Any, Any, Any]) -> bool:
    """Whether a handler class has all but `handle` from its base (`steps`), so that the rest need not be called.

    Measured: calling what does nothing takes as long as all else that is done to run a handler.
    """
    new: Any = object.__new__
    if type(made) is not type or made.__new__ is not new:
        return False
    handle = next((vars(cls)["handle"] for cls in made.__mro__ if "handle" in vars(cls)), None)
    found = tuple(getattr(made, name, None) for name in ("__init__", "setup", "finish", "__await__"))
    return type(handle) is type(does_no_more) and found == steps


class StreamRequestHandler(BaseRequestHandler[ServerT, _socket.socket]):
    """A handler with files to read from and write to: `rfile` and `wfile` over `connection`.

    `rbufsize` and `wbufsize` are buffer sizes in bytes: -1 the default size, 0 none. `timeout` is the connection's, in
    seconds, for each single operation; None for none. `disable_nagle_algorithm` sets TCP_NODELAY (RFC 896).

    `max_line` is how many bytes a line of `rfile` may have, with its newline; None for any number. At a longer one
    `readline()`, `readlines()` and iteration raise `LineTooLong`, when they have read at most a buffer more than that.
    It is logged as the peer's fault. Who goes on reading lines gets the next one: the rest of the long one is skipped,
    never taken for a line. `readline(size)` up to `max_line` and `read` are as ever. Then `rfile` is an
    `io.BufferedReader` with any `rbufsize`; with 0 it still reads nothing ahead. Raises `SettingError` in `setup`.
    """

    rbufsize: int = -1
    wbufsize: int = 0
    timeout: float | None = None
    max_line: int | None = None
    disable_nagle_algorithm: bool = False

    connection: _socket.socket
    rfile: BufferedIOBase
    wfile: BufferedIOBase

    def setup(self) -> None:
        check_max_line(self.max_line)
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, True)
        if self.max_line is None:
            self.rfile = self.connection.makefile("rb", self.rbufsize)  # type: ignore[assignment]
        else:
            self.rfile = _line_reader(self.connection, self.rbufsize, self.max_line)
        self._portico_rfile = self.rfile
        if self.wbufsize == 0:
            self.wfile = _SocketWriter(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)  # type: ignore[assignment]

    def start_tls(self) -> None:
        """As `BaseRequestHandler.start_tls`; `rfile` and `wfile` go on, encrypted.

        What `rfile` has read ahead is thrown away: whoever can put words into the plain text would else have them
        taken for the client's (RFC 3207, 4.2).
        """
        request: Any = self.request
        self.server._portico_check_start(request)  # type: ignore[attr-defined]
        if self.rfile is not self._portico_rfile:
            raise TLSError("start_tls() needs the rfile that setup() made: another one may have read ahead")
        self.wfile.flush()
        request.held = True
        try:
            while isinstance(self.rfile, BufferedReader) and self.rfile.read1(1 << 16):
                pass
        finally:
            request.held = False
        super().start_tls()

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


def check_max_line(value: Any) -> None:
    """Raises `SettingError` if it is no such limit."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise SettingError(f"max_line must be a whole number of bytes from 1 up, or None, not {value!r}")


def _line_reader(connection: _socket.socket, buffer_size: int, max_line: int) -> BufferedReader:
    """What `connection.makefile("rb", buffer_size)` returns, with bounded lines. It counts as one of its files, too."""
    raw: Any = connection.makefile("rb", 0)
    if buffer_size == 0:
        return _UnbufferedLineReader(raw, 1, max_line)
    return _LineReader(raw, DEFAULT_BUFFER_SIZE if buffer_size < 0 else buffer_size, max_line)


class _LineReader(BufferedReader):
    """A buffered reader whose lines are bounded. The C type's iteration and `readlines` call `readline`."""

    def __init__(self, raw: RawIOBase, buffer_size: int, max_line: int) -> None:
        super().__init__(raw, buffer_size)
        self._max_line = min(max_line, sys.maxsize - 1)
        self._in_long_line = False

    def readline(self, size: int | None = -1, /) -> bytes:
        limit = self._max_line
        if size is not None and 0 <= size <= limit:
            return self._piece(size)
        while self._in_long_line:
            self._piece(limit)
        line = super().readline(limit + 1)
        if len(line) > limit:
            self._in_long_line = not line.endswith(b"\n")
            raise LineTooLong(f"the peer has sent a line longer than max_line = {limit} bytes")
        return line

    def _piece(self, size: int) -> bytes:
        line = super().readline(size)
        if self._in_long_line and size:
            self._in_long_line = bool(line) and not line.endswith(b"\n")
        return line


class _UnbufferedLineReader(_LineReader):
    """With a buffer of one byte, which is never read ahead; reads what is there, as a socket's unbuffered file does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read() if size is None or size < 0 else self.read1(size)

    def readinto(self, buffer: Any, /) -> int:
        return self.readinto1(buffer)


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

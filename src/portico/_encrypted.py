"""`Encrypted`: what a TLS connection is to its handler, whatever carries it: an `ssl.SSLSocket` that a server has made.

Here is what all of them share: plain text until TLS begins, the half-close, the end and whether it was a whole one.
How bytes come and go is said by those who block (`_tls_sockets`) and those who park (`_green_tls`); which certificates
are shown is `_keyring`'s, when a handshake begins and how long it may take is `_opening`'s.
"""

from __future__ import annotations

import errno
import operator
import socket
import ssl
import threading
from time import monotonic
from typing import Any, Final

from ._certificates import PeerCertificate
from ._meters import in_queue

__all__ = ["LONGEST_PARTING", "PARTING", "Encrypted", "checked_timeout", "closed", "truncated"]

_Socket: Any = socket.SocketType
# Plain numbers, and the family as one: their enums cost 1 us each.
_family: Final = _Socket.family.__get__
_INTERNET: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_TCP, _NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)
PARTING: Final = 1.0
"""Seconds in which a peer has to take something, if our last word, the close_notify, waits for what came before."""
LONGEST_PARTING: Final = 30.0
"""Seconds after which it is not said any more, however busily the peer reads."""


class Encrypted(ssl.SSLSocket):
    """A stream that is plain at first, and encrypted from `begin` on. Closed by the server, as every request.

    A clean end (close_notify, RFC 8446 6.1) is b"" to who reads; so is a truncated one, as in `ssl`, unless
    `suppress_ragged_eofs` is off: then that raises `ssl.SSLEOFError`. `truncated` tells either way.
    """

    _sslobj: Any
    _context: Any

    def prepare(self) -> None:
        """What `ssl.SSLSocket` expects to find on itself. Its constructor is not for others to call."""
        self._sslobj = self._context = self._session = self.server_hostname = None
        self.server_side = self._connected = True
        self.do_handshake_on_connect = False
        self.suppress_ragged_eofs = True
        self.failure: ssl.SSLError | None = None
        """What has broken it, which is its peer's doing, and nobody else's connection."""
        self.secured = False
        """Whether the handshake is done."""
        self.truncated: bool | None = None
        """Whether the peer's end came without a close_notify, so that something may be missing; None before an end."""
        self.held = False
        """Whether nothing may be read from it just now; a file over it then shows what it has read ahead."""
        self.portico_server_name: str | None = None
        self.portico_session: Any = None
        """What knows what has been agreed on, also when it is closed."""
        self.portico_version: str | None = None
        self.portico_peer: PeerCertificate | None = None
        """What it does not know any more when it is broken."""
        self.ending = False
        """Whether its server ends it, so that nothing more is to be read."""
        self._ahead = b""
        """What has been read before it was wanted."""

    def begin(self, context: ssl.SSLContext) -> None:
        """Encrypt from here on. Nothing is sent before `do_handshake`."""
        self._lock = threading.Lock()
        """Held for each single operation of OpenSSL, of which two must not meet; never while anything is waited for."""
        self._sending = threading.Lock()
        """Held while something is sent, since records must not be mixed up."""
        self.failure = self.truncated = None  # of an earlier TLS, which has been unwrapped
        self._ahead = b""
        self._context = context
        if _family(self) in _INTERNET:
            # Else the first answer would wait 40 ms: it follows two tickets, each a small packet (RFC 896).
            _Socket.setsockopt(self, _TCP, _NODELAY, 1)
        self._encrypt(context)

    def _encrypt(self, context: Any) -> None:
        raise NotImplementedError

    def _deadline(self) -> float | None:
        timeout = self.gettimeout()
        return monotonic() + timeout if timeout else None

    # -- reading

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if self._sslobj is None or flags:
            if self._ahead and self._sslobj is None and not flags:
                return self._read_ahead(buflen, None)  # type: ignore[return-value]
            return super().recv(buflen, flags)
        return self.read(buflen)  # type: ignore[return-value]

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        if self.held:
            raise BlockingIOError(errno.EAGAIN, "held")
        if self._sslobj is None or flags:
            if self._ahead and self._sslobj is None and not flags:
                return self._read_ahead(nbytes or memoryview(buffer).nbytes, buffer)  # type: ignore[return-value]
            return super().recv_into(buffer, nbytes or 0, flags)
        return self.read(nbytes or 0, buffer)  # type: ignore[return-value]

    def read(self, len: int = 1024, buffer: Any = None) -> bytes | int:  # type: ignore[override]  # noqa: A002
        """`ssl.SSLSocket.read`: at most so many bytes, or their number if they are read into a buffer."""
        if self._sslobj is None:
            raise ValueError("Read on closed or unwrapped SSL socket.")
        if buffer is not None:
            room = memoryview(buffer).nbytes
            len = len if 0 < len < room else room  # noqa: A001
        elif len < 0:
            raise ValueError("size should not be negative")
        if not len:
            return b"" if buffer is None else 0
        if self.truncated is not None:
            return self._read_ahead(len, buffer)
        try:
            data: bytes | int = self._read(len, buffer)
        except ssl.SSLError as error:
            return self._met(error, b"" if buffer is None else 0)  # type: ignore[no-any-return]
        if not data:
            self.truncated = False
        return data

    def _met(self, error: ssl.SSLError, nothing: Any) -> Any:
        """What a read returns that has met this; or it is raised."""
        if isinstance(error, ssl.SSLZeroReturnError):
            self.truncated = False
            return nothing
        if isinstance(error, ssl.SSLEOFError):
            self.truncated = True
            if self.suppress_ragged_eofs:
                return nothing
        elif not isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
            self.failure = error
        raise error

    def _read(self, length: int, buffer: Any) -> bytes | int:
        """Wait for something to be read. An end is nothing, or raises `ssl.SSLEOFError` if it is a truncated one.

        What is `_ahead` comes first; that is looked for holding `_lock`, as another thread may have put it there.
        """
        raise NotImplementedError

    def _read_ahead(self, length: int, buffer: Any) -> bytes | int:
        """What was read before it was wanted, or the end that has been met."""
        if not self._ahead and self.truncated and not self.suppress_ragged_eofs:
            raise truncated()
        data, self._ahead = self._ahead[:length], self._ahead[length:]
        if buffer is None:
            return data
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)

    def pending(self) -> int:
        return len(self._ahead) + (0 if self._sslobj is None else int(self._sslobj.pending()))

    def unread(self) -> int:
        """Bytes that have come and were not read yet, encrypted."""
        return in_queue(self)

    # -- the handshake, and the end

    def do_handshake(self, block: bool = False) -> None:
        """TLS's handshake, within the socket's timeout. Raises `ssl.SSLError`, `TimeoutError` or another `OSError`."""
        self._do_handshake()
        self._agreed()

    def _agreed(self) -> None:
        self.portico_session = session = self._sslobj
        self.portico_version = session.version()
        self.portico_peer = PeerCertificate.of(session) if session.context.verify_mode else None
        self.secured = True

    def _do_handshake(self) -> None:
        raise NotImplementedError

    def shutdown(self, how: int) -> None:
        """Half-close: the peer is told that nothing more comes (close_notify), then TCP is. Reading goes on.

        `ssl.SSLSocket` says nothing to the peer, and forgets how to decrypt.
        """
        if self.secured and self._sslobj is not None and how != socket.SHUT_RD:
            try:
                self._say_close()
            except (OSError, ValueError):  # the peer was first, or does not read
                pass
        _Socket.shutdown(self, how)

    def _say_close(self) -> None:
        """Send a close_notify, and wait for no answer; for room, as long as the peer takes something.

        OpenSSL would look for the answer at once, and lose any data that it finds instead: it must not find any.
        """
        raise NotImplementedError

    def unwrap(self) -> Any:
        """End TLS on both sides, within the socket's timeout; then this socket goes on in plain text. Returns it."""
        if self._sslobj is None:
            raise ValueError("No SSL wrapper around " + str(self))
        self._unwrap()
        self._sslobj = self.portico_session = self.portico_version = None
        self.secured = False
        return self

    def _unwrap(self) -> None:
        raise NotImplementedError

    # -- what `ssl` refuses, and plain text has

    def dup(self) -> Any:
        return super().dup() if self._sslobj is not None else super(ssl.SSLSocket, self).dup()

    def recvmsg(self, *arguments: Any) -> Any:  # type: ignore[override]
        return self._plain_call("recvmsg")(*arguments)

    def recvmsg_into(self, *arguments: Any) -> Any:  # type: ignore[override]
        return self._plain_call("recvmsg_into")(*arguments)

    def sendmsg(self, *arguments: Any) -> int:  # type: ignore[override]
        return int(self._plain_call("sendmsg")(*arguments))

    def _plain_call(self, name: str) -> Any:
        return getattr(super() if self._sslobj is not None else super(ssl.SSLSocket, self), name)

    # -- sending

    def send(self, data: Any, flags: int = 0) -> int:
        if self._sslobj is None or flags:
            return super().send(data, flags)
        return self._write(data)

    def write(self, data: Any) -> int:
        """`ssl.SSLSocket.write`: a record of it at least; returns how many bytes."""
        if self._sslobj is None:
            raise ValueError("Write on closed or unwrapped SSL socket.")
        return self._write(data)

    def _write(self, data: Any) -> int:
        raise NotImplementedError


def checked_timeout(value: float | None) -> float | None:
    """What `settimeout` takes: seconds from 0 up, or None."""
    if value is None:
        return None
    seconds = float(value if isinstance(value, float) else operator.index(value))
    if not seconds >= 0:
        raise ValueError("Timeout value out of range")
    return seconds


def truncated() -> ssl.SSLEOFError:
    """An end without a close_notify, in the words of `ssl`."""
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


def closed() -> OSError:
    """What a call meets on a socket that is closed meanwhile."""
    return OSError(errno.EBADF, "Bad file descriptor")

"""A client's encrypted connection that never waits: what a socket that does not block is to conversations.

TLS is done in memory, so that it is known to the byte what has gone over the wire, either way.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from .certificates import NAME

__all__ = ["Sealed", "trust"]


@cache
def trust(authority: str) -> ssl.SSLContext:
    """A client's context that believes that authority."""
    return ssl.create_default_context(cafile=authority)


class Sealed:
    """Raises `BlockingIOError` where it would have to wait for the server."""

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self.sock = sock
        self.pending = b""
        """Encrypted, and not sent yet."""
        self.wire_in = self.wire_out = 0
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust(authority).wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    def handshake(self) -> None:
        self._patiently(self._tls.do_handshake)
        self.flush()

    def send(self, data: memoryview | bytes) -> int:
        self.flush()
        taken = self._tls.write(data[:16384]) if data else 0
        with suppress(BlockingIOError):
            self.flush()
        return taken

    def recv(self, size: int) -> bytes:
        """b"" at the end: the server's last word is one, as well as its going without any."""
        try:
            data: bytes = self._patiently(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return data

    def shutdown(self, how: int) -> None:
        """The last word, and the end of what is sent."""
        with suppress(ssl.SSLWantReadError, ssl.SSLEOFError):
            self._tls.unwrap()
        with suppress(BlockingIOError):
            self.flush()
        self.sock.shutdown(how)

    def drained(self) -> bool:
        """Read what is left on the wire, which nobody wants to know; whether the end has come."""
        data = self.sock.recv(1 << 18)
        self.wire_in += len(data)
        return not data

    def flush(self) -> None:
        self.pending += self._outgoing.read()
        while self.pending:
            sent = self.sock.send(self.pending)
            self.wire_out += sent
            self.pending = self.pending[sent:]

    def _patiently(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                with suppress(BlockingIOError):
                    self.flush()
                data = self.sock.recv(1 << 16)
                self.wire_in += len(data)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    def fileno(self) -> int:
        return self.sock.fileno()

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.sock.setsockopt(level, option, value)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Sealed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

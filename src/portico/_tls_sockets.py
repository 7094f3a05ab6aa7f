"""`TLSSocket`: an encrypted stream for handlers that block, on the socket itself, so that the kernel may encrypt.

OpenSSL never waits here: its descriptor does not block, and whoever has to wait does so in poll(2), holding no lock. So
one thread may send while another one waits to read, as over any other socket; `ssl.SSLSocket` lets the two meet inside
OpenSSL, or has one wait for the other. Measured with 64-byte echoes in threads: 13.6 us a message, 14.6 with its.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ._encrypted import PARTING, Encrypted, checked_timeout, closed
from ._meters import Counting, MeteredSocket, kernel_counts_family

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CountedTLSSocket", "TLSSocket", "tls_class"]

_Socket: Any = socket.SocketType
_recv: Final = _Socket.recv
_RECORD: Final = 1 << 14
_PEEK: Final = int(socket.MSG_PEEK)


class TLSSocket(Encrypted, MeteredSocket):
    """What a server's `accept` returns with `tls`: a `MeteredSocket` up to `begin`, and encrypted from then on."""

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None,  # noqa: A002
    ) -> None:  # fmt: skip
        MeteredSocket.__init__(self, family, type, proto, fileno)
        self.prepare()

    def _encrypt(self, context: Any) -> None:
        self._patience: float | None = _Socket.gettimeout(self)
        _Socket.settimeout(self, 0.0)
        self._sslobj = context._wrap_socket(self, True, None, owner=self, session=None)

    # -- modes, as its user sees them

    def settimeout(self, value: float | None) -> None:
        if self._sslobj is None:
            _Socket.settimeout(self, value)
        else:
            self._patience = checked_timeout(value)

    def gettimeout(self) -> float | None:
        found: float | None = _Socket.gettimeout(self) if self._sslobj is None else self._patience
        return found

    @property
    def timeout(self) -> float | None:
        return self.gettimeout()

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self.gettimeout() != 0

    def detach(self) -> int:
        """Whoever gets the descriptor gets it in the mode that this socket showed, and what comes as it comes."""
        encrypted, patience = self._sslobj is not None, self.gettimeout()
        descriptor = super().detach()
        self._sslobj = None
        if encrypted and descriptor >= 0:
            os.set_blocking(descriptor, patience is None)
        return descriptor

    # -- OpenSSL's operations, one at a time

    def _do(self, call: Callable[..., Any], *arguments: Any, deadline: float | None) -> Any:
        while True:
            try:
                with self._lock:
                    return call(*arguments)
            except ssl.SSLWantReadError:
                if self._patience == 0:
                    raise
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                if self._patience == 0:
                    raise
                event = select.POLLOUT
            self._wait(event, deadline)

    def _wait(self, event: int, deadline: float | None) -> None:
        waiting = select.poll()
        descriptor = self.fileno()
        if descriptor < 0:
            raise closed()
        waiting.register(descriptor, event)
        if deadline is None:
            waiting.poll()
        elif not waiting.poll(max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError("timed out")

    def _read(self, length: int, buffer: Any) -> bytes | int:
        sslobj, deadline = self._sslobj, self._deadline()
        if self._patience != 0 and length and not sslobj.pending():
            self._wait(select.POLLIN, deadline)  # first: to try in vain costs an exception, and one more call
        data: bytes | int
        if buffer is None:
            data = self._do(sslobj.read, length, deadline=deadline)
        else:
            data = self._do(sslobj.read, length, buffer, deadline=deadline)
        return data

    def _do_handshake(self) -> None:
        self._do(self._sslobj.do_handshake, deadline=self._deadline())

    def _say_close(self) -> None:
        try:
            with self._lock:
                self._sslobj.shutdown()
        except ssl.SSLWantWriteError:
            self._wait(select.POLLOUT, monotonic() + PARTING)
            with self._lock:
                self._sslobj.shutdown()

    def _unwrap(self) -> None:
        self._do(self._sslobj.shutdown, deadline=self._deadline())
        _Socket.settimeout(self, self._patience)

    def _write(self, data: Any) -> int:
        with self._sending:
            sent: int = self._do(self._sslobj.write, data, deadline=self._deadline())
        return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        """All of it, by one deadline for the whole."""
        if self._sslobj is None or flags:
            super().sendall(data, flags)
            return
        deadline, write = self._deadline(), self._sslobj.write
        with self._sending:
            if type(data) is bytes and data:
                sent = self._do(write, data, deadline=deadline)
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            with memoryview(data) as view, view.cast("B") as rest:
                sent = 0
                while sent < len(rest):
                    sent += self._do(write, rest[sent : sent + _RECORD], deadline=deadline)


class CountedTLSSocket(Counting, TLSSocket):
    """A `TLSSocket` that counts what goes over it before it is encrypted, where the kernel does not count at all."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        data = super().recv(buflen, flags)
        self._got(len(data), flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        count = super().recv_into(buffer, nbytes, flags)
        self._got(count, flags)
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        count = super().send(data, flags)
        self._gave(count)
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        with memoryview(data) as view, view.cast("B") as rest:
            for begin in range(0, len(rest), _RECORD):
                piece = rest[begin : begin + _RECORD]
                super().sendall(piece, flags)
                self._gave(len(piece))


def tls_class(family: int) -> type[TLSSocket]:
    """The class of a connection of this family."""
    return TLSSocket if kernel_counts_family(family) else CountedTLSSocket

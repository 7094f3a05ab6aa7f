"""What has gone over a connection, and when: read from the kernel where it keeps count, else counted by the sockets.

For TCP on Linux the kernel knows it all (TCP_INFO, tcp(7)), so nothing is done per message, and what a handler has
wrapped or handed on is counted, too. Unix sockets, and TCP elsewhere, get a `CountedSocket`. Whose connection it is,
and what follows, is `_connections`'.
"""

from __future__ import annotations

import socket
import sys
from struct import Struct
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = [
    "CountedSocket",
    "Counting",
    "Metered",
    "MeteredSocket",
    "Tally",
    "Traffic",
    "kernel_counts",
    "kernel_counts_family",
    "kernel_figures",
    "kernel_totals",
    "kernel_traffic",
]

_Socket: Any = socket.SocketType
_TCP: Final = int(socket.IPPROTO_TCP)
_TCP_INFO: Final = 11
# struct tcp_info of linux/tcp.h up to tcpi_bytes_retrans (Linux 4.19): state, segments unacknowledged, milliseconds
# since data was last sent and received, bytes received, bytes not sent yet, bytes sent, bytes sent again.
_INFO: Final = Struct("=B23xI16xI4xI72xQ8xI52xQQ")
_LENGTH: Final = _INFO.size
_unpack: Final = _INFO.unpack
_getsockopt: Final = _Socket.getsockopt
# States in which the peer's end has come, which the kernel counts as a byte received.
_ENDED: Final = (6, 8, 9, 11)
_LINUX: Final = sys.platform == "linux"
_PIECE: Final = 1 << 16
_INET: Final = (int(socket.AF_INET), int(socket.AF_INET6))


class Traffic:
    """What has gone over a connection: bytes both ways, and when, by `time.monotonic`."""

    __slots__ = ("heard", "received", "said", "sent", "taken", "waiting")

    def __init__(self, received: int, sent: int, *, taken: int, waiting: int, heard: float, said: float) -> None:
        self.received = received
        self.sent = sent
        self.taken = taken
        """Of what was sent, a number that grows with what the peer has taken."""
        self.waiting = waiting
        """Above 0 if something has been sent that the peer has not taken."""
        self.heard = heard
        """When bytes last came; when the connection began, if none has."""
        self.said = said


class Tally:
    """Counts what the kernel does not."""

    __slots__ = ("heard", "received", "said", "sent")

    def __init__(self, now: float) -> None:
        self.received = self.sent = 0
        self.heard = self.said = now

    def traffic(self, sock: Any) -> Traffic:
        waiting = _out_queue(sock)
        taken = self.sent - waiting
        return Traffic(self.received, self.sent, taken=taken, waiting=waiting, heard=self.heard, said=self.said)


def kernel_counts_family(family: int) -> bool:
    """Whether the kernel knows what goes over stream sockets of this family."""
    return _LINUX and family in _INET


def kernel_counts(sock: Any) -> bool:
    """Whether it does so for this socket."""
    return _LINUX and sock.family in _INET and sock.type == socket.SOCK_STREAM


def kernel_figures(sock: Any) -> bytes | None:
    """What the kernel knows of a TCP connection, for those below; None of a closed one. 0.4 us (measured)."""
    try:
        figures: bytes = _getsockopt(sock, _TCP, _TCP_INFO, _LENGTH)
    except OSError:
        return None
    return figures if len(figures) == _LENGTH else None


def kernel_totals(figures: bytes) -> tuple[int, int]:
    """Bytes in and out, as figures say."""
    state, _, _, _, received, _, sent, again = _unpack(figures)
    return received - (state in _ENDED), sent - again


def kernel_traffic(figures: bytes, now: float) -> Traffic:
    """What figures read at that time say."""
    _, unacked, said_ago, heard_ago, _, unsent, _, _ = _unpack(figures)
    received, sent = kernel_totals(figures)
    waiting = unacked + unsent
    heard, said = now - heard_ago / 1000, now - said_ago / 1000
    return Traffic(received, sent, taken=sent - waiting, waiting=waiting, heard=heard, said=said)


def _out_queue(sock: Any) -> int:
    """Memory that holds what the peer has not read yet (SIOCOUTQ, unix(7)); 0 where that cannot be known."""
    try:
        from array import array
        from fcntl import ioctl

        answer = array("i", [0])
        ioctl(sock.fileno(), 0x5411, answer)
        return answer[0]
    except (ImportError, OSError, ValueError):
        return 0


class Metered:
    """A socket that knows which connection it is, and tells it when it closes. Mix-in for socket classes with slots."""

    __slots__ = ()

    connection: Any
    """The `Connection`, also when the handler has closed or detached its socket: somebody still has to end it."""


class MeteredSocket(Metered, socket.socket):
    """What a stream server's `accept` returns: a `socket.socket` in all else."""

    __slots__ = ("connection",)

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None,  # noqa: A002
    ) -> None:  # fmt: skip
        if fileno is not None and family >= 0:
            _Socket.__init__(self, family, type, proto, fileno)  # what socket.socket() does, in one function less
            self._io_refs = 0
            self._closed = False
        else:
            super().__init__(family, type, proto, fileno)
        self.connection = None

    def _real_close(self, _ss: Any = None) -> None:
        connection = self.connection
        if connection is not None:
            connection.leaves_socket()
        _Socket.close(self)
        if connection is not None:
            connection.socket_closed()

    def detach(self) -> int:
        connection = self.connection
        if connection is not None:
            connection.socket_detached(self)
        return super().detach()


class Counting(Metered):
    """Counts what goes over a socket, where the kernel does not: mix-in for blocking and green sockets."""

    __slots__ = ()

    def _got(self, count: int) -> None:
        connection = self.connection
        if connection is not None and count:
            tally = connection.tally
            tally.received += count
            tally.heard = monotonic()

    def _gave(self, count: int) -> None:
        connection = self.connection
        if connection is not None and count:
            tally = connection.tally
            tally.sent += count
            tally.said = monotonic()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data: bytes = super().recv(bufsize, flags)  # type: ignore[misc]
        self._got(0 if flags & socket.MSG_PEEK else len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        count: int = super().recv_into(buffer, nbytes, flags)  # type: ignore[misc]
        self._got(0 if flags & socket.MSG_PEEK else count)
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> Any:
        answer = super().recvfrom(bufsize, flags)  # type: ignore[misc]
        self._got(0 if flags & socket.MSG_PEEK else len(answer[0]))
        return answer

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        answer = super().recvmsg(bufsize, ancbufsize, flags)  # type: ignore[misc]
        self._got(0 if flags & socket.MSG_PEEK else len(answer[0]))
        return answer

    def send(self, data: Any, flags: int = 0, /) -> int:
        count: int = super().send(data, flags)  # type: ignore[misc]
        self._gave(count)
        return count

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """In pieces, so that a slow peer is told from one that takes nothing; but a timeout is for the whole."""
        if (type(data) is bytes and len(data) <= _PIECE) or self.gettimeout() is not None:  # type: ignore[attr-defined]
            super().sendall(data, flags)  # type: ignore[misc]
            self._gave(memoryview(data).nbytes)
            return
        with memoryview(data) as view, view.cast("B") as rest:
            for start in range(0, len(rest), _PIECE):
                piece = rest[start : start + _PIECE]
                super().sendall(piece, flags)  # type: ignore[misc]
                self._gave(len(piece))

    def sendmsg(self, *arguments: Any) -> int:
        count: int = super().sendmsg(*arguments)  # type: ignore[misc]
        self._gave(count)
        return count

    def sendfile(self, *arguments: Any, **keywords: Any) -> int:
        before = self.connection.tally.sent if self.connection is not None else 0
        count: int = super().sendfile(*arguments, **keywords)  # type: ignore[misc]
        if self.connection is not None:  # it may have gone through send(), which has counted
            self._gave(before + count - self.connection.tally.sent)
        return count


class CountedSocket(Counting, MeteredSocket):
    """A `MeteredSocket` that counts."""

    __slots__ = ()

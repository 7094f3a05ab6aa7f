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
    from collections.abc import Callable
    from typing import Any, Final

__all__ = [
    "CountedSocket",
    "Counting",
    "CountingReads",
    "Metered",
    "MeteredSocket",
    "Tally",
    "Traffic",
    "in_queue",
    "kernel_counts",
    "kernel_counts_family",
    "kernel_figures",
    "kernel_totals",
    "kernel_traffic",
    "out_queue",
]

_Socket: Any = socket.SocketType
_TCP: Final = int(socket.IPPROTO_TCP)
_TCP_INFO: Final = 11
# struct tcp_info of linux/tcp.h up to tcpi_bytes_retrans (Linux 4.19): state, segments unacknowledged, milliseconds
# since data was last sent and received; and bytes: acknowledged (our end is one), received, unsent, sent, sent again.
_INFO: Final = Struct("=B23xI16xI4xI64xQQ8xI52xQQ")
_LENGTH: Final = _INFO.size
_unpack: Final = _INFO.unpack
_getsockopt: Final = _Socket.getsockopt
_recv: Final = _Socket.recv
_sendall: Final = _Socket.sendall
# States in which the peer's end has come, which the kernel counts as a byte received.
_ENDED: Final = (6, 8, 9, 11)
_CLOSED: Final = 7
_LINUX: Final = sys.platform == "linux"
_PIECE: Final = 1 << 16
_PEEK: Final = int(socket.MSG_PEEK)
_INET: Final = (int(socket.AF_INET), int(socket.AF_INET6))


class Traffic:
    """What has gone over a connection: bytes both ways, and when, by `time.monotonic`."""

    __slots__ = ("glimpsed", "gone", "heard", "received", "said", "sent", "taken", "waiting")

    def __init__(self, received: int, sent: int, *, taken: int, waiting: int, heard: float, said: float) -> None:
        self.received = received
        self.sent = sent
        self.gone = sent
        """A number that changes when something is sent that was not sent before."""
        self.taken = taken
        """A number that grows when the peer takes something, and at nothing else; where the kernel counts."""
        self.waiting = waiting
        """Above 0 if something has been sent that the peer has not taken."""
        self.heard = heard
        """When bytes last came; when the connection began, if none has."""
        self.said = said
        self.glimpsed = False
        """Whether it is only known that something has moved between one look and the next (`_glances`)."""


class Tally:
    """Counts what the kernel does not."""

    __slots__ = ("_told", "heard", "received", "said", "sent", "unsent")
    patience = 0.0
    """Seconds after an answer in which its peer is not believed to be idle."""
    blind = False
    """Whether what is counted elsewhere, for this one, is not counted any more."""

    def __init__(self, now: float) -> None:
        self.received = self.sent = self._told = 0
        self.heard = self.said = now
        self.unsent: Callable[[], int] | None = None
        """How much of `sent` still waits in this process, where something keeps it there."""

    def traffic(self, sock: Any) -> Traffic:
        sent, unsent = self.sent, 0  # in this order: never too much, if something is sent meanwhile
        if self.unsent is not None:
            unsent = self.unsent()
            sent = self._told = max(self._told, sent - unsent)
        waiting = unsent if sock is None else unsent + out_queue(sock)
        return Traffic(self.received, sent, taken=sent, waiting=waiting, heard=self.heard, said=self.said)


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
    """Bytes in and out, as figures say; what the kernel has taken and not sent yet is out.

    Of a connection that is closed on both sides a reset, after which no end comes, is told by our own end: that is
    counted as acknowledged when the peer has closed in peace.
    """
    state, _, _, _, acknowledged, received, unsent, sent, again = _unpack(figures)
    sent -= again
    if state in _ENDED or (state == _CLOSED and acknowledged > sent):
        received -= 1
    return received, sent + unsent


def kernel_traffic(figures: bytes, now: float) -> Traffic:
    """What figures read at that time say."""
    _, unacked, said_ago, heard_ago, acknowledged, _, unsent, gone, again = _unpack(figures)
    received, sent = kernel_totals(figures)
    heard, said = now - heard_ago / 1000, now - said_ago / 1000
    traffic = Traffic(received, sent, taken=acknowledged, waiting=unacked + unsent, heard=heard, said=said)
    traffic.gone = gone - again
    return traffic


def in_queue(sock: Any) -> int:
    """Bytes that have come and were not read yet (SIOCINQ, tcp(7)); 0 where that cannot be known."""
    return _queue(sock, 0x541B)


def out_queue(sock: Any) -> int:
    """Memory that holds what the peer has not read yet (SIOCOUTQ, unix(7)); 0 where that cannot be known."""
    return _queue(sock, 0x5411)


def _queue(sock: Any, which: int) -> int:
    try:
        from array import array
        from fcntl import ioctl

        answer = array("i", [0])
        ioctl(sock.fileno(), which, answer)
        return answer[0]
    except (ImportError, OSError, ValueError, AttributeError):  # not here; closed; none
        return 0


class Metered:
    """A socket that knows which connection it is, and tells it when it closes. Mix-in for socket classes with slots."""

    __slots__ = ()

    connection: Any
    """The `Connection`, also when the handler has closed or detached its socket: somebody still has to end it."""
    shutdown: Any


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
    """Counts what goes over a socket, where the kernel does not. Mix-in; the classes below and elsewhere say when.

    Calls that send several times (sendall, sendfile) are counted each time: a slow peer is told from one that takes
    nothing, and of what an error ends it is known how far it came.
    """

    __slots__ = ()

    def _got(self, count: int, flags: int = 0) -> None:
        tally = None if self.connection is None else self.connection.tally
        if tally is not None and count and not flags & _PEEK:
            tally.received += count
            tally.heard = monotonic()

    def _gave(self, count: int) -> None:
        tally = None if self.connection is None else self.connection.tally
        if tally is not None and count:
            tally.sent += count
            tally.said = monotonic()


class CountingReads(Counting):
    """Counts what is read by calls that block, or park."""

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data: bytes = super().recv(bufsize, flags)  # type: ignore[misc]
        self._got(len(data), flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        count: int = super().recv_into(buffer, nbytes, flags)  # type: ignore[misc]
        self._got(count, flags)
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> Any:
        answer = super().recvfrom(bufsize, flags)  # type: ignore[misc]
        self._got(len(answer[0]), flags)
        return answer

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        answer = super().recvfrom_into(buffer, nbytes, flags)  # type: ignore[misc]
        self._got(answer[0], flags)
        return answer

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        answer = super().recvmsg(bufsize, ancbufsize, flags)  # type: ignore[misc]
        self._got(len(answer[0]), flags)
        return answer

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        answer = super().recvmsg_into(buffers, ancbufsize, flags)  # type: ignore[misc]
        self._got(answer[0], flags)
        return answer


class CountedSocket(CountingReads, MeteredSocket):
    """A `MeteredSocket` that counts.

    Its hot calls are functions of one frame, with no method between them and the kernel, as are those of the other
    kinds: with `super()` and `_got` counting took 5 to 21 % of a message's processor time, so it takes 3 to 6.
    """

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data: bytes = _recv(self, bufsize, flags)
        if flags:
            self._got(len(data), flags)
            return data
        try:
            tally = self.connection.tally
            tally.received += len(data)
            tally.heard = monotonic()
        except AttributeError:  # nobody wants to know
            pass
        return data

    def send(self, data: Any, flags: int = 0, /) -> int:
        count: int = super().send(data, flags)
        self._gave(count)
        return count

    def sendto(self, *arguments: Any) -> int:
        count: int = super().sendto(*arguments)
        self._gave(count)
        return count

    def sendmsg(self, *arguments: Any) -> int:
        count: int = super().sendmsg(*arguments)
        self._gave(count)
        return count

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """By way of `send`, which tells what has gone; a timeout is for the whole, as ever."""
        timeout = self.gettimeout()
        if timeout is None and type(data) is bytes and len(data) <= _PIECE:  # which mostly goes at once
            _sendall(self, data, flags)
            try:
                tally = self.connection.tally
                tally.sent += len(data)
                tally.said = monotonic()
            except AttributeError:  # as above
                pass
            return
        deadline = monotonic() + timeout if timeout else None
        with memoryview(data) as view, view.cast("B") as rest:
            sent = self.send(rest[:_PIECE], flags)  # nothing is sent, too: that may fail
            while sent < len(rest):
                if deadline is not None and not _takes_more(self, deadline - monotonic()):
                    raise TimeoutError("timed out")
                sent += self.send(rest[sent : sent + _PIECE], flags)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """What `sendfile` comes to where the system can do it; else it comes to `send`, which counts."""
        sent = 0
        while count is None or sent < count:
            piece = _PIECE if count is None else min(_PIECE, count - sent)
            now: int = super()._sendfile_use_sendfile(file, offset + sent, piece)  # type: ignore[misc]
            self._gave(now)
            sent += now
            if now < piece:
                break
        return sent


def _takes_more(sock: Any, seconds: float) -> bool:
    """Wait until something can be sent; whether that was so in time."""
    import select

    if seconds <= 0:
        return False
    if not hasattr(select, "poll"):
        return bool(select.select((), (sock,), (), seconds)[1])
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    return bool(waiting.poll(seconds * 1000))

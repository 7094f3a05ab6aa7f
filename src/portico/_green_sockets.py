"""`GreenSocket`: a socket whose calls park the green thread where a blocking socket's would block the thread.

Everything else about it is a blocking socket's: timeouts, errors, files, half-close. Outside a green thread of its own
loop (in another thread, in a hook that the loop itself calls) its calls really block. How it waits is `_parking`'s, how
it is woken `_readiness`'s and `_hub`'s.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenlet import getcurrent

from ._addresses import AF_UNIX
from ._hub import GreenThread
from ._meters import CountingReads
from ._parking import AGAIN, DONT_WAIT, READ, WRITE, ParkingSocket, retried

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CountedGreenSocket", "GreenSocket"]

_Socket: Any = socket.SocketType
_recv: Final = _Socket.recv
_recv_into: Final = _Socket.recv_into
_send: Final = _Socket.send
# Plain numbers, as in `_parking`.
_WAIT_ALL: Final = int(getattr(socket, "MSG_WAITALL", 0))
_PEEK: Final = int(socket.MSG_PEEK)
_PROGRESS: Final = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN, errno.EALREADY}
_PIECE: Final = 1 << 20


class GreenSocket(ParkingSocket):
    """A `socket.socket` for green threads. Closed by whoever made it; a request's by the server."""

    __slots__ = ()

    # -- the hot calls: measured with 64-byte echoes, each check more than these costs about 1 %

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        thread = getcurrent()
        if flags or thread is not self._owner:
            return self._receive(bufsize, flags)
        deadline: float | None = None
        while True:
            if self._readable:
                try:
                    data: bytes = _recv(self, bufsize)
                except AGAIN:
                    self._readable = self._ended
                else:
                    if len(data) < bufsize:
                        self._readable = self._ended
                    elif self._patience:
                        self._patience -= 1
                    else:
                        self._give_way()
                    return data
            if bufsize <= 0:
                return _recv(self, bufsize)  # type: ignore[no-any-return]  # nothing that could be waited for
            deadline = self._park_owner(thread, deadline)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        thread = getcurrent()
        if flags or thread is not self._owner:
            return self._receive_into(buffer, nbytes, flags)
        deadline: float | None = None
        while True:
            if self._readable:
                try:
                    count: int = _recv_into(self, buffer, nbytes)
                except AGAIN:
                    self._readable = self._ended
                else:
                    if count < (nbytes or len(buffer)):
                        self._readable = self._ended
                    elif self._patience:
                        self._patience -= 1
                    else:
                        self._give_way()
                    return count
            if (nbytes or type(buffer) is not memoryview or buffer.readonly or not buffer) and not _has_room(
                buffer, nbytes
            ):
                return _recv_into(self, buffer, nbytes)  # type: ignore[no-any-return]  # 0, or what is wrong with it
            deadline = self._park_owner(thread, deadline)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if type(data) is bytes and self._writable and self._home is not None:
            try:
                sent = _send(self, data, flags)
            except AGAIN:
                sent = 0
            if sent == len(data):
                if self._patience:
                    self._patience -= 1
                else:
                    self._give_way()
                return
            data = memoryview(data)[sent:]
        self._send_rest(data, flags)

    # -- the other calls that a blocking socket would block in

    def send(self, data: Any, flags: int = 0, /) -> int:
        if self._sends_all(flags):
            return self._send_rest(data, flags, partly=True)
        return int(self._call(WRITE, _send, data, flags, flags=flags))

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        data, address = self._call(READ, _Socket.recvfrom, bufsize, flags, flags=flags)
        return self._filled(data, bufsize, flags), address

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> tuple[int, Any]:
        count, address = self._call(READ, _Socket.recvfrom_into, buffer, nbytes, flags, flags=flags)
        return self._filled_into([buffer], nbytes, count, flags), address

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        data, *rest = self._call(READ, _Socket.recvmsg, bufsize, ancbufsize, flags, flags=flags)
        return (self._filled(data, bufsize, flags), *rest)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        buffers = list(buffers)
        count, *rest = self._call(READ, _Socket.recvmsg_into, buffers, ancbufsize, flags, flags=flags)
        return (self._filled_into(buffers, 0, count, flags), *rest)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        flags = flags_and_address[0] if len(flags_and_address) > 1 else 0
        return int(self._call(WRITE, _Socket.sendto, data, *flags_and_address, flags=flags))

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        buffers = list(buffers)
        sent = int(self._call(WRITE, _Socket.sendmsg, buffers, ancdata, flags, address, flags=flags))
        if self._sends_all(flags) and sent < sum(memoryview(buffer).nbytes for buffer in buffers):
            sent += self._send_rest(memoryview(b"".join(buffers))[sent:], flags, partly=True)
        return sent

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file to its end, or `count` bytes of it; returns how many. Stream sockets only."""
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, OSError):  # no regular file
            return int(self._sendfile_use_send(file, offset, count))  # type: ignore[attr-defined]
        if not size or not hasattr(os, "sendfile"):
            return int(self._sendfile_use_send(file, offset, count))  # type: ignore[attr-defined]
        sent = 0
        try:
            while count is None or sent < count:
                piece = _PIECE if count is None else min(_PIECE, count - sent)
                now = self._call(WRITE, _sendfile, source, offset + sent, piece)
                if not now:
                    break
                sent += now
        finally:
            if sent and hasattr(file, "seek"):
                file.seek(offset + sent)
        return sent

    def accept(self) -> tuple[socket.socket, Any]:
        descriptor, address = self._call(READ, _Socket._accept)
        connection = GreenSocket(self.family, self.type, self.proto, descriptor, hub=self._hub)
        return connection, address

    def connect(self, address: Any, /) -> None:
        error = self._connect(address)
        if error:
            raise OSError(error, os.strerror(error))

    def connect_ex(self, address: Any, /) -> int:
        try:
            return self._connect(address)
        except TimeoutError:
            return errno.EAGAIN  # Python's answer at the deadline

    def _connect(self, address: Any) -> int:
        error: int = _Socket.connect_ex(self, self._resolved(address))
        if error not in _PROGRESS or self._timeout == 0:
            return error
        if self.family == AF_UNIX:  # the peer's backlog is full, and no event tells when it is not any more
            deadline = None if self._timeout is None else monotonic() + self._timeout
            return int(retried(lambda: _connected_at_once(self, address), deadline))
        self._writable = False
        self._call(WRITE, _connected)
        return self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def dup(self) -> GreenSocket:
        """A second socket of the same connection, as much at home on the loop as this one. The caller closes it."""
        copy = GreenSocket(self.family, self.type, self.proto, socket.dup(self.fileno()), hub=self._hub)
        copy.settimeout(self._timeout)
        return copy

    def _receive(self, bufsize: int, flags: int) -> bytes:
        if not flags and self._may_own():
            return GreenSocket.recv(self, bufsize)  # not a subclass's: that would count twice
        return self._filled(self._call(READ, _recv, bufsize, flags, flags=flags), bufsize, flags)

    def _receive_into(self, buffer: Any, nbytes: int, flags: int) -> int:
        if not flags and self._may_own():
            return GreenSocket.recv_into(self, buffer, nbytes)
        return self._filled_into(
            [buffer], nbytes, self._call(READ, _recv_into, buffer, nbytes, flags, flags=flags), flags
        )

    # MSG_WAITALL is the kernel's for blocking descriptors only, and this one never is. With a timeout a blocking
    # socket's is not either, so there it does nothing (Python's way).

    def _waits_for_all(self, flags: int) -> bool:
        return bool(flags & _WAIT_ALL) and self._timeout is None and self.type == socket.SOCK_STREAM

    def _filled(self, data: bytes, bufsize: int, flags: int) -> bytes:
        """What MSG_WAITALL asks for: `bufsize` bytes, unless the stream ends before."""
        if not self._waits_for_all(flags) or flags & _PEEK:
            return data
        rest = bytearray(bufsize - len(data))
        return data + rest[: self._filled_into([rest], 0, 0, flags)] if data else data

    def _filled_into(self, buffers: list[Any], nbytes: int, count: int, flags: int) -> int:
        if not self._waits_for_all(flags) or flags & _PEEK:
            return count
        skipped = 0
        for buffer in buffers:
            with memoryview(buffer) as whole, whole.cast("B") as bytes_:
                view = bytes_[: nbytes or len(bytes_)]
                while skipped <= count < skipped + len(view):
                    more = self._more_into(view[count - skipped :])
                    if not more:
                        return count
                    count += more
                skipped += len(view)
        return count

    def _more_into(self, view: memoryview) -> int:
        try:
            return GreenSocket.recv_into(self, view)
        except OSError:  # what has come is told first
            return 0

    def _sends_all(self, flags: int) -> bool:
        """Without a timeout a blocking socket sends everything, whatever send(2) promises; so does this one."""
        return self._timeout is None and self.type == socket.SOCK_STREAM and not flags & DONT_WAIT

    def _send_rest(self, data: Any, flags: int, *, partly: bool = False) -> int:
        """All of it, by one deadline for the whole (Python's rule for sendall); returns how many bytes.

        With `partly` an error after the first byte is left for the next call to raise, as the kernel does in send(2).
        """
        deadline = monotonic() + self._timeout if self._timeout else None
        sent = 0
        with memoryview(data) as view, view.cast("B") as rest:
            while sent < len(rest):
                try:
                    sent += self._call(WRITE, _send, rest[sent:], flags, flags=flags, deadline=deadline)
                except OSError:
                    if not (partly and sent):
                        raise
                    break
        return sent

    def _resolved(self, address: Any) -> Any:
        """An address whose host is no name: looking one up would hold the loop."""
        thread = getcurrent()
        if self.family == AF_UNIX or type(thread) is not GreenThread or not isinstance(address, tuple):
            return address
        try:
            socket.inet_pton(self.family, address[0])
        except (OSError, TypeError, ValueError):
            found = thread.call_in_thread(
                socket.getaddrinfo, address[0], address[1], self.family, self.type, self.proto
            )
            return found[0][4]
        return address


class CountedGreenSocket(CountingReads, GreenSocket):
    """A `GreenSocket` that counts what goes over it, where the kernel does not."""

    __slots__ = ()

    # In one frame, as in GreenSocket: see `CountedSocket`.

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        thread = getcurrent()
        if flags or thread is not self._owner:
            return super().recv(bufsize, flags)
        deadline: float | None = None
        while True:
            if self._readable:
                try:
                    data: bytes = _recv(self, bufsize)
                except AGAIN:
                    self._readable = self._ended
                else:
                    try:
                        tally = self.connection.tally
                        tally.received += len(data)
                        tally.heard = monotonic()
                    except AttributeError:  # nobody wants to know
                        pass
                    if len(data) < bufsize:
                        self._readable = self._ended
                    elif self._patience:
                        self._patience -= 1
                    else:
                        self._give_way()
                    return data
            if bufsize <= 0:
                return _recv(self, bufsize)  # type: ignore[no-any-return]
            deadline = self._park_owner(thread, deadline)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if type(data) is bytes and self._writable and self._home is not None and self._patience:
            try:
                sent = _send(self, data, flags)
                tally = self.connection.tally
                tally.sent += sent
                tally.said = monotonic()
            except AGAIN:
                sent = 0
            except AttributeError:
                pass
            if sent == len(data):
                self._patience -= 1
                return
            data = memoryview(data)[sent:]
        self._send_rest(data, flags)

    def _call(self, read: bool, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """All that sends comes by here, each time that something is sent."""
        if read or call is _connected:
            return super()._call(read, call, *arguments, **keywords)

        def counted(sock: CountedGreenSocket, *arguments: Any) -> int:
            count: int = call(sock, *arguments)
            sock._gave(count)
            return count

        return super()._call(read, counted, *arguments, **keywords)


def _has_room(buffer: Any, nbytes: int) -> bool:
    """Whether there is something to wait for: a buffer that can be written, of at least one byte and `nbytes`."""
    try:
        with memoryview(buffer) as view:
            return not view.readonly and 0 < (nbytes or view.nbytes) <= view.nbytes
    except TypeError:
        return False


def _sendfile(sock: GreenSocket, source: int, offset: int, count: int) -> int:
    return os.sendfile(sock.fileno(), source, offset, count)


def _connected_at_once(sock: GreenSocket, address: Any) -> int:
    error: int = _Socket.connect_ex(sock, address)
    if error in _PROGRESS:
        raise BlockingIOError
    return error


def _connected(sock: GreenSocket) -> None:
    """Whether a connection under way has come to something; BlockingIOError while it has not."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError

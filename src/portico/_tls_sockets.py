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
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ._encrypted import LONGEST_PARTING, PARTING, Encrypted, checked_timeout, closed, truncated
from ._meters import CountedSocket, MeteredSocket, kernel_counts_family, out_queue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CountedTLSSocket", "TLSSocket", "tls_class"]

_Socket: Any = socket.SocketType
_RECORD: Final = 1 << 14
_PEEK: Final = int(socket.MSG_PEEK)
# What poll() says of a connection whose peer has ended it.
_OVER: Final = int(getattr(select, "POLLRDHUP", 0)) | select.POLLHUP | select.POLLERR
# Where the kernel encrypts: its level of options, the option to ask, the kind of message that names a record's type.
_KERNEL_TLS: Final = 282
_SENDS, _RECORD_TYPE = 1, 1
_ALERT, _CLOSE_NOTIFY = b"\x15", b"\x01\x00"


class TLSSocket(Encrypted, MeteredSocket):
    """What a server's `accept` returns with `tls`: a `MeteredSocket` up to `begin`, and encrypted from then on."""

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None,  # noqa: A002
    ) -> None:  # fmt: skip
        MeteredSocket.__init__(self, family, type, proto, fileno)
        self.prepare()

    def _encrypt(self, context: Any) -> None:
        self._patience: float | None = _Socket.gettimeout(self)
        self._hides_mode = True
        _Socket.settimeout(self, 0.0)
        self._left: bytes | None = None
        """A record that OpenSSL has begun to send, and could not in time: to be sent before all else."""
        self._may_repeat = False
        """Whether whoever sent it may send it again, as nobody has told him that it is on its way."""
        self._sslobj = context._wrap_socket(self, True, None, owner=self, session=None)

    # -- modes, as its user sees them

    _hides_mode = False
    """Whether its descriptor does not block, whatever its user sees."""

    def settimeout(self, value: float | None) -> None:
        if self._hides_mode:
            self._patience = checked_timeout(value)
        else:
            _Socket.settimeout(self, value)

    def gettimeout(self) -> float | None:
        found: float | None = self._patience if self._hides_mode else _Socket.gettimeout(self)
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
        patience = self.gettimeout()
        descriptor = super().detach()
        self._sslobj = None
        if self._hides_mode and descriptor >= 0:
            os.set_blocking(descriptor, patience is None)
        return descriptor

    # -- OpenSSL's operations, one at a time

    def _do(self, call: Callable[..., Any], *arguments: Any, deadline: float | None) -> Any:
        while True:
            try:
                with self._lock:
                    return call(*arguments)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                self._wait_for(error, deadline)

    def _wait_for(self, error: ssl.SSLError, deadline: float | None) -> int:
        if self._patience == 0:
            raise error
        return self._wait(select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT, deadline)

    def _wait(self, event: int, deadline: float | None) -> int:
        """What poll() says when it may go on."""
        waiting = select.poll()
        descriptor = self.fileno()
        if descriptor < 0:
            raise closed()
        # Who waits to send is not to be woken by a peer that says nothing more: that would be so for ever.
        waiting.register(descriptor, event | _OVER if event == select.POLLIN else event)
        found = waiting.poll(None if deadline is None else max(0.0, deadline - monotonic()) * 1000)
        if not found:
            raise TimeoutError("timed out")
        return found[0][1]

    def _read(self, length: int, buffer: Any) -> bytes | int:
        sslobj, deadline, lock, seen = self._sslobj, self._deadline(), self._lock, 0
        if self._patience != 0 and not self._ahead and not sslobj.pending():
            seen = self._wait(select.POLLIN, deadline)  # first: to try in vain costs an exception, and one more call
        while True:
            if seen & _OVER:
                self._look_for_end()
            try:
                with lock:
                    if self._ahead:
                        return self._read_ahead(length, buffer)
                    return sslobj.read(length) if buffer is None else sslobj.read(length, buffer)  # type: ignore[no-any-return]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                seen = self._wait_for(error, deadline)

    def _look_for_end(self) -> None:
        """Raise what TCP's end is, if it is there: OpenSSL would send nothing more once it has seen it."""
        try:
            if _Socket.recv(self, 1, _PEEK):
                return
        except ConnectionError:
            raise
        except OSError:  # nothing has come yet; or the kernel decrypts, and has something to say that is no data
            return
        raise truncated()

    def _do_handshake(self) -> None:
        self._do(self._sslobj.do_handshake, deadline=self._deadline())

    def _say_close(self) -> None:
        end = monotonic() + LONGEST_PARTING
        if not self._sending.acquire(timeout=PARTING):  # somebody sends, and the peer does not read
            return
        try:
            while self._left:
                try:
                    with self._lock:
                        self._sslobj.write(self._left)
                    self._left = None
                except ssl.SSLWantWriteError:
                    self._wait_for_room(end)
            word = b"" if self.ending and self._shut_down(end) else self._last_word()
            while word:
                try:
                    word = word[_Socket.send(self, word) :]
                except BlockingIOError:
                    self._wait_for_room(end)
        finally:
            self._sending.release()

    def _shut_down(self, end: float) -> bool:
        """Have OpenSSL say it: what it reads from then on is lost, so only where nothing more is to be read."""
        while True:
            try:
                with self._lock:
                    if self._sslobj is not None:
                        self._sslobj.shutdown()
                return True
            except ssl.SSLWantWriteError:
                self._wait_for_room(end)
            except (OSError, ValueError):  # no answer yet, or the peer's own last words
                return True

    def _wait_for_room(self, end: float) -> None:
        """As long as the peer takes something."""
        waiting = out_queue(self)
        while True:
            try:
                self._wait(select.POLLOUT, min(end, monotonic() + PARTING))
                return
            except TimeoutError:
                before, waiting = waiting, out_queue(self)
                if waiting >= before or monotonic() >= end:
                    raise

    def _last_word(self) -> bytes:
        """A close_notify, encrypted; nothing if the kernel encrypts, and has been told to.

        OpenSSL writes it into one end of a pair, from which nothing can be read, that takes the connection's place for
        so long. Whoever waits there meanwhile wakes when the pair is closed; who cuts or closes waits for `_lock`.
        """
        with self._lock:
            sslobj, number = self._sslobj, self.fileno()
            if sslobj is None or number < 0:
                return b""
            if self._kernel_encrypts():
                _Socket.sendmsg(self, [_CLOSE_NOTIFY], [(_KERNEL_TLS, _RECORD_TYPE, _ALERT)])
                return b""
            while waiting := sslobj.pending():  # of a record that is read in part, the rest would be lost
                self._ahead += sslobj.read(waiting)
            try:
                near, far = socket.socketpair()
            except OSError:  # no descriptor is left
                with suppress(OSError):
                    sslobj.shutdown()
                return b""
            with near, far:
                near.setblocking(False)
                far.setblocking(False)
                connection = os.dup(number)
                try:
                    os.dup2(near.fileno(), number, inheritable=False)
                    try:
                        sslobj.shutdown()
                    except (ssl.SSLWantReadError, ssl.SSLEOFError):  # no answer from the pair
                        pass
                    finally:
                        os.dup2(connection, number, inheritable=False)
                finally:
                    os.close(connection)
                with suppress(BlockingIOError):  # the peer was first
                    return far.recv(_RECORD)
                return b""

    def _kernel_encrypts(self) -> bool:
        try:
            return bool(_Socket.getsockopt(self, _KERNEL_TLS, _SENDS, 4))
        except OSError:
            return False

    def portico_cut(self, how: int) -> None:
        """Shut TCP down, from any thread, whatever is under way."""
        self._alone(_Socket.shutdown, self, how)

    def _real_close(self, _ss: Any = None) -> None:
        if self._sslobj is not None:
            self._alone(self._forget)
        super()._real_close()

    def _forget(self) -> None:
        self._sslobj = None

    def _alone(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Not while another's number stands for it: see `_last_word`."""
        lock: Any = getattr(self, "_lock", None)
        locked = lock is not None and lock.acquire(timeout=PARTING)  # which a signal handler may find locked for good
        try:
            call(*arguments)
        finally:
            if locked:
                lock.release()

    def _unwrap(self) -> None:
        deadline = self._deadline()
        self._take_turn(deadline)
        try:
            self._send_left(deadline)
            self._do(self._sslobj.shutdown, deadline=deadline)
        finally:
            self._sending.release()
        self._hides_mode = False
        _Socket.settimeout(self, self._patience)

    # -- sending

    def _take_turn(self, deadline: float | None) -> None:
        """Of those who send at once, one after the other. To be released."""
        if self._sending.acquire(blocking=False):
            return
        if self._patience == 0:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
        if not self._sending.acquire(timeout=-1 if deadline is None else max(0.0, deadline - monotonic())):
            raise TimeoutError("timed out")

    def _put(self, piece: Any, deadline: float | None, *, may_repeat: bool = False) -> int:
        """Send no more than a record holds; returns how many bytes."""
        try:
            sent: int = self._do(self._sslobj.write, piece, deadline=deadline)
        except BaseException:  # OpenSSL has encrypted it, and insists on sending it
            self._left, self._may_repeat = bytes(piece), may_repeat
            raise
        return sent

    def _send_left(self, deadline: float | None) -> None:
        if self._left:
            self._do(self._sslobj.write, self._left, deadline=deadline)
            self._left = None

    def _write(self, data: Any) -> int:
        """All of it, if the socket blocks without end, as others do, too; else a record.

        After an error in between it may be called again for the same, as OpenSSL has it; or for anything else.
        """
        with memoryview(data) as view, view.cast("B") as whole, whole[:_RECORD] as piece:
            if self._patience is None and len(whole):
                self.sendall(whole)
                return len(whole)
            deadline = self._deadline()
            self._take_turn(deadline)
            try:
                if self._left and not (self._may_repeat and piece[: len(self._left)] == self._left):
                    self._send_left(deadline)
                sent = self._put(piece, deadline, may_repeat=True)
                self._left = None
                return sent
            finally:
                self._sending.release()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """All of it, by one deadline for the whole."""
        if self._sslobj is None or flags:
            super().sendall(data, flags)
            return
        deadline = self._deadline()
        self._take_turn(deadline)
        try:
            if self._left:
                self._send_left(deadline)
            if type(data) is bytes and 0 < len(data) <= _RECORD:
                sent = self._put(data, deadline)
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            with memoryview(data) as view, view.cast("B") as rest:
                sent = 0
                while sent < len(rest):
                    sent += self._put(rest[sent : sent + _RECORD], deadline)
        finally:
            self._sending.release()


class CountedTLSSocket(TLSSocket, CountedSocket):
    """A `TLSSocket` that counts what goes over it before it is encrypted, where the kernel does not count at all."""

    def _read(self, length: int, buffer: Any) -> bytes | int:
        found = super()._read(length, buffer)
        self._got(found if isinstance(found, int) else len(found))
        return found

    def _put(self, piece: Any, deadline: float | None, *, may_repeat: bool = False) -> int:
        sent = super()._put(piece, deadline, may_repeat=may_repeat)
        self._gave(sent)
        return sent


def tls_class(family: int) -> type[TLSSocket]:
    """The class of a connection of this family."""
    return TLSSocket if kernel_counts_family(family) else CountedTLSSocket

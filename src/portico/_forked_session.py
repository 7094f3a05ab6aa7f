"""A session whose handler runs in a child process: fed through a pair of sockets, read by calls that block there.

The parent's end of the pair is also how the child is told to end: when it is shut down, or closed by the parent's own
end, the child finds that nothing more will come. What the parent has to know of the child (how much it has read and
sent, and when) stands in a page that both share. All else about sessions is `_session`'s.
"""

from __future__ import annotations

import mmap
import socket
from contextlib import suppress
from struct import Struct
from time import monotonic

from ._session import Session, SessionTally
from .errors import Overloaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._meters import Traffic

__all__ = ["ForkedSession"]

# A message has a byte before the datagram: an empty datagram is to be told from the end. Message by message, in order.
_KIND: Final = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)
_PEEK: Final = int(socket.MSG_PEEK)
_ROOM: Final = (1 << 16) + 1
_SIZE: Final = 1 << 20
# In the shared page: whether the session is cut; datagrams read, bytes sent, when; whether the child has ended it.
_FLAG: Final = Struct("=Q")
_CUT: Final = 0
_DONE: Final = Struct("=QQd")
_WHERE: Final = 8
_SHUT: Final = 32


class ForkedTally(SessionTally):
    """Counts what has come here, and knows from the shared page what the child has sent."""

    __slots__ = ("page",)

    page: Any

    def traffic(self, sock: Any) -> Traffic:
        with suppress(TypeError, ValueError):  # there is none, or it has just been closed
            _, self.sent, said = _DONE.unpack_from(self.page, _WHERE)
            self.said = max(self.said, said)
        return super().traffic(sock)


class ForkedSession(Session):
    """In the parent it is fed; in the child it is a `Session` for the handler."""

    __slots__ = ("_child", "_done", "_fed", "_gone", "_page", "pipe")

    def __init__(self, server: Any, address: Any, payload: bytes) -> None:
        super().__init__(server, address, payload)
        self.tally = ForkedTally(monotonic())
        self.tally.received, self.tally.page = len(payload), None
        self._fed = 0
        self._done = 0
        self._page: Any = None
        self._gone = False
        self._child: Any = None
        self.pipe: Any = None
        """The end of the pair that this process has."""

    # -- in the parent

    def prepare(self) -> None:
        """Make what a child needs, before it is forked; not at once, for the sake of those who are refused."""
        try:
            self.pipe, self._child = socket.socketpair(socket.AF_UNIX, _KIND)
            self._page = mmap.mmap(-1, mmap.PAGESIZE)
            self.pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SIZE)
            self.pipe.setblocking(False)
        except OSError as error:
            raise Overloaded(f"no means for a session in a process ({error})") from error
        self.tally.page = self._page

    def has_forked(self) -> None:
        """In the parent: the child has the other end, and what there is. Here is a copy of what it has not read."""
        self._child.close()
        self._child = None
        self._fed = len(self._waiting)

    def feed(self, payload: bytes) -> bool:
        """Forward it. The child may have ended its session, and not have been reaped yet."""
        if self._page is None:  # a program runs it in a manner of its own, or it has ended
            return super().feed(payload)
        if self._told:
            return self._cannot_take()
        try:
            self._forget_what_was_read()
            if len(self._waiting) >= self._most:
                return self._cannot_take()
            self.pipe.send(b"\0" + payload)
        except (BlockingIOError, InterruptedError):
            return self._cannot_take()
        except (OSError, ValueError):  # closed, there or here
            return self._has_gone()
        self._fed += 1
        self._waiting.append(payload)
        self.tally.received += len(payload)
        self.tally.heard = monotonic()
        return True

    @property
    def over(self) -> bool:
        return self._closed or self._gone

    @property
    def unread(self) -> bool:
        try:
            return self._fed > self._read_by_child()
        except (TypeError, ValueError):  # there is no page, or it has just been closed
            return super().unread

    def leave(self) -> list[bytes]:
        if self._gone and not self._closed:
            self._forget_what_was_read()
            self._goes_on = self._ends_by_itself(self._server._portico_reception)
        return super().leave()

    def keep(self, payload: bytes) -> None:
        if self._page is not None:
            self._forget_what_was_read()
            self._fed += len(self._waiting) < self._most
        super().keep(payload)

    def _has_gone(self) -> bool:
        if _FLAG.unpack_from(self._page, _SHUT)[0]:  # it takes no more, and may still be there
            self._drop("session_ended")
            return True
        self._gone = True
        return False

    def _read_by_child(self) -> int:
        read: int = _DONE.unpack_from(self._page, _WHERE)[0]
        return read

    def _forget_what_was_read(self) -> None:
        read, waiting = self._read_by_child(), self._waiting
        self._used = read > 0
        for _ in range(len(waiting) - (self._fed - read)):
            waiting.popleft()

    # -- in the child

    def is_childs(self) -> None:
        """In the child: from here on this is the handler's."""
        self.pipe.close()
        self.pipe, self._child = self._child, None
        self.pipe.settimeout(self._timeout)
        self.tally = ForkedTally(monotonic())
        self.tally.page = None

    @property
    def _is_childs(self) -> bool:
        return bool(self._server._portico_is_child)

    def _take(self, flags: int) -> bytes | None:
        if not self._is_childs:  # a program runs it in a manner of its own
            return super()._take(flags)
        if self._cut or _FLAG.unpack_from(self._page, _CUT)[0]:
            raise self._over()
        if not self._waiting:
            return None  # what there is waits in the pair, and the end behind it
        self._has_read(flags)
        return self._waiting[0] if flags & _PEEK else self._waiting.popleft()

    def _await(self, flags: int) -> bytes:
        if not self._is_childs:
            return super()._await(flags)
        message: bytes = self.pipe.recv(_ROOM, flags)
        if not message:
            self._told = True
        if not message or _FLAG.unpack_from(self._page, _CUT)[0]:
            raise self._over()
        self._has_read(flags)
        return message[1:]

    def _has_read(self, flags: int) -> None:
        if not flags & _PEEK:
            self._done += 1
            self._note()

    def _sent(self, count: int, now: float) -> int:
        super()._sent(count, now)
        self._note()
        return count

    def _note(self) -> None:
        if self._page is not None:
            _DONE.pack_into(self._page, _WHERE, self._done, self.tally.sent, self.tally.said)

    def settimeout(self, value: float | None) -> None:
        super().settimeout(value)
        if self.pipe is not None:
            self.pipe.settimeout(value)

    # -- in both

    def shutdown(self, how: int) -> None:
        super().shutdown(how)
        if how == socket.SHUT_WR or self.pipe is None:
            return
        try:
            is_childs = self._is_childs
            if self._page is not None and (is_childs or how == socket.SHUT_RDWR):
                _FLAG.pack_into(self._page, _SHUT if is_childs else _CUT, 1)
            self.pipe.shutdown(socket.SHUT_RD if is_childs else socket.SHUT_WR)
        except (OSError, ValueError):  # closed already
            return

    def close(self) -> None:
        pipe, page = self.pipe, self._page
        if self._is_childs:
            self._closed = self._told = self._cut = True
        else:
            if page is not None:
                self._forget_what_was_read()
                self._told = self._told or bool(_FLAG.unpack_from(page, _SHUT)[0])
                self.tally.traffic(self)
                self.tally.page = None
            super().close()
        for held in (pipe, self._child, page):
            if held is not None:
                held.close()
        self._page = self.tally.page = None

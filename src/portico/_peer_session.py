"""A session with one peer, as its server sees it: what all kinds have in common.

The loop's thread feeds it, its handler reads; there is no lock between them. Who waits puts his waker down first, and
then looks once more; who feeds adds the datagram first, and then looks for wakers: one of the two sees the other.

What is unread when it ends begins the peer's next session, unless it was ended by somebody else than its handler. It is
left where it is, for the loop's thread, which alone knows what has come before and after it. The calls that read are in
rooms of their own (`_session`, and those of each way to run).
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from contextlib import suppress
from time import monotonic

from ._meters import Counting, Tally
from .errors import SessionEnded
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Self

    from ._connection import Connection

__all__ = ["PEEK", "PeerSession", "SessionTally"]

PEEK: Final = int(socket.MSG_PEEK)
_NEVER_RUN: Final = (EndReason.REFUSED, EndReason.OVERLOADED)
# Why a handler has ended that was not told to.
_BY_ITSELF: Final = (None, EndReason.DONE, EndReason.FAILED, EndReason.PEER_LEFT, EndReason.KILLED)


class SessionTally(Tally):
    """A peer who has been answered a moment ago may be about to go on: he is not idle yet.

    A stream's client who is told to end finds that out from the stream; here he would go on to wait for an answer.
    """

    __slots__ = ()
    patience = 0.5


class PeerSession(Counting):
    """What is the same for all: being fed, being told to end, addresses. Closed by the server, or by its handler."""

    __slots__ = (
        "__weakref__", "_address", "_closed", "_cut", "_entry", "_goes_on", "_most", "_mute", "_server", "_sleepers",
        "_told", "_used", "_waiting", "closed_at", "connection", "tally", "through",
    )  # fmt: skip

    def __init__(self, server: Any, address: Any, payload: bytes) -> None:
        self._server = server
        self._address = address
        self._most: int = server.session_queue
        self._waiting = deque((payload,))
        self._sleepers: list[Callable[[], object]] = []  # mostly empty, which a deque is not in memory
        """Wakes those who wait for a datagram. To be called where it is fed; a wake-up is a hint."""
        self._told = self._cut = self._mute = self._closed = False
        self._used = False
        """Whether anything has been read."""
        self._goes_on = False
        """Whether what has not been read is for the peer's next session."""
        self.closed_at = 0.0
        self._entry: Connection | None = None
        self.connection: Any = None
        self.through: Any = None
        """What to answer through, where that is not the server's own socket."""
        self.tally: Any = SessionTally(monotonic())
        self.tally.received = len(payload)

    # -- for the server

    def entered(self, connection: Connection) -> None:
        """It has been let in. The connection keeps it, and closes it when it is over, whatever hooks do."""
        self._entry = connection
        connection.kept = self
        connection.tally = self.tally

    def feed(self, payload: bytes) -> bool:
        """A further datagram has come. In the hot path of each; in the loop's thread.

        False if this session is over, so that the datagram is for the next one; what it has no room for is dropped.
        """
        waiting = self._waiting
        if self._told or len(waiting) >= self._most:
            return self._cannot_take()
        waiting.append(payload)
        if self._closed:  # a moment ago, by its handler
            return self._came_too_late()
        tally = self.tally
        tally.received += len(payload)
        tally.heard = monotonic()
        if self._sleepers:
            self._wake()
        return True

    def _came_too_late(self) -> bool:
        if not self._goes_on:
            self._drop_rest()
            return True
        try:
            self._waiting.pop()
        except IndexError:  # dropped already
            return True
        return False

    def _cannot_take(self) -> bool:
        if self._closed:
            return False
        self._drop("session_ended" if self._told else "session_queue")
        return True

    @property
    def over(self) -> bool:
        """Whether its peer may have another one."""
        return self._closed

    @property
    def entry(self) -> Connection | None:
        return self._entry

    @property
    def told(self) -> bool:
        """Whether it has been told to end."""
        return self._told

    @property
    def unread(self) -> bool:
        return bool(self._waiting)

    @property
    def is_ending(self) -> bool:
        """Whether its handler is through, and its connection about to be: then it is closed once more."""
        entry = self._entry
        return self._goes_on and self.connection is None and entry is not None and entry.state != "ended"

    @property
    def leaves_some(self) -> bool:
        return self._goes_on and bool(self._waiting)

    def leave(self) -> list[bytes]:
        """What the next session begins with. In the loop's thread."""
        if not self._goes_on:
            return []
        rest = list(self._waiting)
        self._waiting.clear()
        return rest

    def keep(self, payload: bytes) -> None:
        """What comes between its end and the next one's beginning."""
        if len(self._waiting) >= self._most:
            self._drop("session_queue")
        else:
            self._waiting.append(payload)

    def drop(self) -> None:
        """There will be no next one."""
        self._goes_on = False  # first, see `feed`
        self._drop_rest()

    def moved(self, address: Any) -> None:
        """The same peer, heard by another way; answers go back by that one from now on."""
        self._address = address

    @property
    def address(self) -> Any:
        """Whose it is, as last heard."""
        return self._address

    @property
    def was_connected(self) -> bool:
        """Whether its peer is there, for all that is known: then a connection error is some other connection's."""
        return not (self._told or self._closed)

    def _wake(self) -> None:
        try:
            wake = self._sleepers.pop(0)
        except IndexError:  # he has left
            return
        wake()

    def _wake_all(self) -> None:
        for _ in range(len(self._sleepers)):
            self._wake()

    def _wake_all_soon(self) -> None:
        """From any thread."""
        self._wake_all()

    def _drop(self, reason: str) -> None:
        self._server._portico_connections.refuse(self._server, reason, self._address)

    def _drop_rest(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft()
                self._drop("session_ended")

    def _take(self, flags: int) -> bytes | None:
        """The next datagram, None if there is none yet. Raises `SessionEnded` if there will be none."""
        if self._cut:
            raise self._over()
        if self._waiting:
            try:
                if flags & PEEK:
                    return self._waiting[0]
                self.tally.heard = monotonic()  # from here on an answer is owed again: no goodbye may come between
                found = self._waiting.popleft()
                self._used = True
                return found
            except IndexError:  # somebody else was first
                pass
        if self._told:
            raise self._over()
        return None

    def _leaves(self, wake: Callable[[], object]) -> None:
        """Somebody waits no more. If it was not for what has come, that is for whoever waits, too."""
        sleepers = self._sleepers
        if sleepers:
            with suppress(ValueError):
                sleepers.remove(wake)
            if sleepers and self._waiting:
                self._wake()

    def _over(self) -> SessionEnded:
        return SessionEnded(f"the session with {self._address!r} has ended")

    def _out(self) -> Any:
        """What to send through. Raises if nothing may be sent any more."""
        if self._cut:
            raise self._over()
        if self._mute:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return self._server.socket if self.through is None else self.through

    def _known(self, address: Any) -> Any:
        """The peer's own address, put together by its handler, as that by which our own is known as well."""
        return self._address if address == self._address else address

    def _sent(self, count: int, now: float) -> int:
        """So much was sent. `now` is from before that: what has come since is younger, and has not been answered."""
        self.tally.sent += count
        self.tally.said = now
        return count

    # -- for handlers

    @property
    def family(self) -> int:
        return self._server.address_family  # type: ignore[no-any-return]

    @property
    def type(self) -> int:
        return self._server.socket_type  # type: ignore[no-any-return]

    @property
    def proto(self) -> int:
        return getattr(self._server.socket, "proto", 0)

    def fileno(self) -> int:
        """-1: the socket is the server's, and all its peers'."""
        return -1

    def getpeername(self) -> Any:
        """The peer's address."""
        return self._address

    def getsockname(self) -> Any:
        """Our address, which the peer has asked."""
        route = getattr(self._address, "route", None)
        return self._server.socket.getsockname() if route is None else route.local

    def shutdown(self, how: int) -> None:
        """With SHUT_RD no more is taken in, and what has come can still be read; with SHUT_RDWR it is over at once."""
        if how != socket.SHUT_RD:
            self._mute = True
        if how == socket.SHUT_WR:
            return
        if how == socket.SHUT_RDWR:
            self._cut = True
        self._told = True
        self._wake_all_soon()

    def close(self) -> None:
        """End it. What has not been read begins another one, as does whatever comes from this peer later."""
        reception = self._server._portico_reception
        if self._closed:  # once more, as its connection is over
            reception.ended(self)
            return
        connection = self.connection
        self._goes_on = self._ends_by_itself(reception)
        self.closed_at = monotonic()
        self._closed = True
        self.shutdown(socket.SHUT_RDWR)
        if not self._goes_on:
            self._drop_rest()
        reception.ended(self)
        if connection is not None:
            connection.socket_closed()

    def _ends_by_itself(self, reception: Any) -> bool:
        entry = self._entry
        if entry is None or entry.reason in _NEVER_RUN:
            with suppress(IndexError):
                self._waiting.popleft()  # which has been counted as refused
            return False
        if self._told or reception.takes_no_more or entry.reason not in _BY_ITSELF:
            return False
        if not self._used and self._waiting:  # else a handler that reads nothing would go on for ever
            self._waiting.popleft()
            self._drop("session_ended")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._address!r}{', ended' if self._told else ''}>"

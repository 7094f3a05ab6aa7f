"""The live connections of a server, one registry for all ways to run: who is there, since when, and how each one ends.

A connection begins when it is let in (`admission` says who is) and ends exactly once: when its request has ended, or,
where nobody of ours runs it, when its socket closes. Counts and events come from here and from nowhere else. What
limits a connection's life is `_timekeeper`'s, the end of all of them `_drain`'s.
"""

from __future__ import annotations

import socket
import threading
from itertools import count

from . import logs
from ._connection import Connection
from ._entry import Entry, write
from .lifecycle import ConnectionEnded, ConnectionStarted, EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._access_log import AccessLog
    from ._opening import Openings
    from .admission import Admission

__all__ = ["BOUNDS", "Connections"]

BOUNDS: Final = (*(2**power / 1000 for power in range(22)), float("inf"))
"""Upper bounds of the duration histogram's classes, in seconds: powers of two, from a millisecond to 35 minutes."""
_LAST_CLASS: Final = len(BOUNDS) - 1


class Connections(Entry):
    """A server's live connections and what has become of the others. Begun in the loop's thread, ended in any."""

    def __init__(self) -> None:
        self.admission: Admission | None = None
        self._rules: list[str] = []
        self._swept_at = float("-inf")
        self.openings: Openings | None = None
        """Those that are being opened, where that has to be done."""
        self.keeper: Any = None
        """Who enforces the time limits, if there are any."""
        self.tells = False
        """Whether anybody wants to know of each connection's start and end: either of these two."""
        self.has_listener = False
        """Whether the server's `handle_event` is somebody's own."""
        self.access_log: AccessLog | None = None
        self.only: Connection | None = None
        """In a child, the one that it serves."""
        self.is_full = False
        """Clients wait in the backlog; the loop has to be woken by the next end."""
        self.someone_ended: threading.Event | None = None
        """Set by every end, for a drain that waits."""
        self.accepted = 0
        self.datagrams_failed = self.datagrams_ended = self.unsent = 0
        self.refused: dict[str, int] = {}
        self.would_refuse: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.durations = [0] * len(BOUNDS)
        self.bytes_in = self.bytes_out = 0
        self._live: dict[int, Connection] = {}
        self._foreign: dict[int, Connection] = {}
        self.has_foreign = False
        """Whether there ever was a connection whose socket does not know it."""
        self._numbers = count(1)
        self._lock = threading.RLock()  # re-entrant: a signal handler may ask for figures in the middle of it
        self.alarm_at = float("inf")
        self._alarmed_at = self._overload_failed_at = float("-inf")

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def numbered(self, number: int) -> Connection | None:
        """The live one with this id."""
        return self._live.get(number)

    def snapshot(self) -> tuple[list[Connection], dict[str, Any]]:
        """The live ones, and all counts, of one moment."""
        self.sweep()
        with self._lock:
            names = ("accepted", "datagrams_failed", "datagrams_ended", "bytes_in", "bytes_out")
            counts: dict[str, Any] = {name: getattr(self, name) for name in names}
            counts |= {name: dict(getattr(self, name)) for name in ("refused", "would_refuse", "ended")}
            counts["durations"] = tuple(self.durations)
            return list(self._live.values()), counts

    def sweep(self) -> bool:
        """End those that nobody of ours runs, and whose socket has been dropped or closed without a word.

        Returns whether there are others that nobody of ours runs.
        """
        others = False
        for connection in self:
            if connection.runner is None and not connection.in_hand:
                sock = connection.current_socket()
                foreign = connection.key is not None and isinstance(sock, socket.socket)  # does not tell of its closing
                if sock is None or (foreign and sock.fileno() < 0):
                    self.end(connection)
                else:
                    others = True
        return others

    def number_ended(self) -> int:
        with self._lock:
            return sum(self.ended.values()) + self.datagrams_ended

    def of(self, request: Any) -> Connection | None:
        """The live connection that this request is; None for datagrams."""
        if type(request) is tuple:
            return None
        try:
            found = request.connection
        except AttributeError:  # no socket of ours
            found = None
        if type(found) is Connection:
            return found
        return self._foreign.get(id(request)) if self._foreign else None

    def asked(self, request: Any) -> Connection | None:
        """The same for its handler, also in a child, whose request does not tell of its end any more."""
        return self.of(request) or self.only

    def stand_in(self, server: Any, runner: Any) -> Connection:
        """In the place of a connection, for a request that has none."""
        connection = Connection(server, None, None, 0)
        connection.runner = runner
        return connection

    # -- the end

    def end(self, connection: Connection, reason: EndReason = EndReason.DONE) -> None:
        """A connection is over, for this reason unless another is known. From any thread, and again."""
        with self._lock:
            if self._live.pop(connection.id, None) is None:
                return
            if self.admission is not None and connection.client is not None:
                self.admission.left(connection.client)
        if connection.opening is not None and self.openings is not None:
            self.openings.done(connection)
        lasted = connection.over()
        if connection.reason is None:
            connection.reason = reason
        received, sent = connection.totals()
        name = connection.reason._value_  # not the member, nor its `value`: both run code of enum's (0.4 us of 3)
        with self._lock:
            self.ended[name] = self.ended.get(name, 0) + 1
            self.durations[min(int(lasted * 1000).bit_length(), _LAST_CLASS)] += 1
            self.bytes_in += received
            self.bytes_out += sent
        key = connection.key
        if key is not None and self._foreign.get(key) is connection:  # its id may be another's now
            del self._foreign[key]
        if self.is_full:
            self.make_room(connection._server)
        if self.someone_ended is not None:
            self.someone_ended.set()
        if self.tells:
            self._tell_of_end(connection._server, connection)

    def let_go(self, connection: Connection) -> None:
        """The hook that ran its handler is done with it: so is it, if its socket is closed; else when that closes."""
        connection.in_hand = 0
        if connection.closed:  # looked at after that, as `socket_closed` looks the other way round
            self.end(connection)

    def end_foreign(self, server: Any, request: Any) -> None:
        """A request has been processed whose socket does not tell when it closes: is that its end?"""
        connection = self._foreign.get(id(request))
        if connection is None or connection.runner is not None:
            return
        if server._portico_closes_requests() or request.fileno() < 0:
            self.end(connection)

    def end_closed(self, connection: Connection) -> None:
        """What ran it is over: so is it, if its socket is closed, though a hook of somebody's own has done that."""
        if connection.state != "ended":
            sock = connection.current_socket()
            if sock is None or sock.fileno() < 0:
                self.end(connection)

    def end_datagrams(self, server: Any, count: int) -> None:
        """The requests of so many datagrams are over."""
        with self._lock:
            self.datagrams_ended += count
        if self.is_full:
            self.make_room(server)
        if self.someone_ended is not None:
            self.someone_ended.set()

    # -- who is told

    def listen(self, access_log: AccessLog | None, has_listener: bool) -> None:
        """Who wants to know of each connection: the access log, an overridden `handle_event`, or neither."""
        if access_log is not None and self.access_log is None:
            for connection in self:  # let in when there was none
                connection._note_local()
                access_log.begun(connection)
        self.access_log, self.has_listener = access_log, has_listener
        self.tells = has_listener or access_log is not None

    def _tell_of_start(self, server: Any, connection: Connection) -> None:
        connection._note_local()
        log = self.access_log  # which another thread may take away
        if log is not None:
            write(server, log.begun, connection)
        if self.has_listener:
            logs.emit(server, ConnectionStarted(connection))

    def _tell_of_end(self, server: Any, connection: Connection) -> None:
        log = self.access_log
        if log is not None:
            write(server, log.ended, connection)
        if self.has_listener:
            logs.emit(server, ConnectionEnded(connection))

"""The live connections of a server, one registry for all ways to run: who is there, since when, and how each one ends.

A connection begins when it is let in (`admission` says who is) and ends exactly once: when its request has ended, or,
where nobody of ours runs it, when its socket closes. Counts and events come from here and from nowhere else. What
limits a connection's life is `_timekeeper`'s, the end of all of them `_drain`'s.
"""

from __future__ import annotations

import socket
import threading
from itertools import count
from time import monotonic

from . import _sockets, logs
from ._connection import Connection
from ._meters import Metered
from .lifecycle import ConnectionEnded, ConnectionsHigh, ConnectionStarted, EndReason, HookFailed, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

    from ._access_log import AccessLog
    from .admission import Admission

__all__ = ["BOUNDS", "Connections"]

_shutdown: Final = socket.SocketType.shutdown
_send: Final = socket.SocketType.send
_recv: Final = socket.SocketType.recv
BOUNDS: Final = (*(2**power / 1000 for power in range(22)), float("inf"))
"""Upper bounds of the duration histogram's classes, in seconds: powers of two, from a millisecond to 35 minutes."""
_LAST_CLASS: Final = len(BOUNDS) - 1
# Settings that keep clients out, who are then refused by their names; and what else these go by.
_GATES: Final = (
    "max_connections", "max_connections_per_client", "connection_rate", "connection_rate_per_client", "allow", "deny"
)  # fmt: skip
_RULES: Final = (
    *_GATES, "connection_burst", "connection_burst_per_client", "client_prefix_ipv4", "client_prefix_ipv6",
    "max_tracked_clients"
)  # fmt: skip
# Seconds between two looks for sockets that were dropped, while clients wait for a free place.
_LOOK: Final = 0.05


class Connections:
    """A server's live connections and what has become of the others. Begun in the loop's thread, ended in any."""

    def __init__(self) -> None:
        self.admission: Admission | None = None
        self._rules: list[str] = []
        self._swept_at = float("-inf")
        self.keeper: Any = None
        """Who enforces the time limits, if there are any."""
        self.tells = False
        """Whether anybody wants to know of each connection's start and end: either of these two."""
        self.has_listener = False
        """Whether the server's `handle_event` is somebody's own."""
        self.access_log: AccessLog | None = None
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
        self._alarmed_at = float("-inf")

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

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
            if connection.runner is None:
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

    def obey(self, server: Any) -> bool:
        """Take over a server's rules; whether it has any. Rules that stay as they are keep what they have counted."""
        if all(getattr(server, name) is None for name in _GATES):
            self.admission = None
            return False
        from .admission import Admission  # only where there are rules

        rules = [repr(getattr(server, name)) for name in _RULES]
        with self._lock:  # so that nobody comes or goes while they are counted anew
            if self.admission is None or rules != self._rules:
                self.admission, self._rules = Admission.of(server, self.clients()), rules
        return True

    def clients(self) -> list[Any]:
        """Whom the limits per client count the open connections for."""
        for connection in self:
            if connection.client is None:  # let in when there were no limits
                connection.client = _client(connection.current_socket(), connection.client_address)
        return [connection.client for connection in self]

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

    def stand_in(self, server: Any, runner: Any) -> Connection:
        """In the place of a connection, for a request that has none."""
        connection = Connection(server, None, None, 0)
        connection.runner = runner
        return connection

    # -- the beginning

    def hold(self, server: Any) -> float | None:
        """None if one more may be taken, else the seconds until it may; for ever: until another has ended."""
        admission = self.admission  # which another thread may change
        if admission is None or server.overload != "wait" or server.limits_dry_run:
            return None
        self.is_full = True  # before it is looked: an end in between must wake the loop
        wait = admission.wait(len(self._live), monotonic())
        if wait == float("inf"):
            look_again = self._sweep_if_due()
            wait = admission.wait(len(self._live), monotonic())
            wait = look_again if wait == float("inf") else wait
        self.is_full = wait is not None
        return wait

    def _sweep_if_due(self) -> float:
        """Sweep, but not at every turn; returns the seconds until it has to be done again."""
        now = monotonic()
        if now < self._swept_at + _LOOK:
            return self._swept_at + _LOOK - now
        self._swept_at = now
        return _LOOK if self.sweep() else float("inf")

    def make_room(self, server: Any) -> None:
        """Something has ended: if others wait for that, the loop has to look. From any thread."""
        loop = server._portico_loop if self.is_full else None
        if loop is not None:
            loop.wake()

    def enter(self, server: Any, request: Any, client_address: Any) -> bool:
        """Let a connection in, or refuse it and close it. In the hot path of every connection."""
        if not isinstance(request, Metered) and not hasattr(request, "fileno"):
            return self.enter_datagram(server, request, client_address)  # no connection, whatever else it may be
        if self.admission is None:
            connection = self._insert(server, request, client_address)
        else:
            found = self._insert_if_admitted(server, request, client_address)
            if found is None:
                return False
            connection = found
        if self.keeper is not None:
            self.keeper.add(connection)
        if self.tells:
            self._tell_of_start(server, connection)
        if len(self._live) >= self.alarm_at:
            self._alarm(server)
        return True

    def _insert(self, server: Any, request: Any, client_address: Any) -> Connection:
        connection = Connection(server, request, client_address, next(self._numbers))
        self.accepted += 1
        if not isinstance(request, Metered):
            connection.key = id(request)
            self._foreign[connection.key] = connection
            self.has_foreign = True
        self._live[connection.id] = connection
        return connection

    def _insert_if_admitted(self, server: Any, request: Any, client_address: Any) -> Connection | None:
        """Ask and let in, in one step: others may do the same at this moment, each in a `handle_request` of its own."""
        client = _client(request, client_address)
        with self._lock:
            admission, now = self.admission, monotonic()
            reason = None if admission is None else admission.refusal(client, len(self._live), now)
            if reason == "max_connections" and admission is not None:
                self.sweep()
                reason = admission.refusal(client, len(self._live), now)
            if reason is None or server.limits_dry_run:
                connection = self._insert(server, request, client_address)
                connection.client = client
                if admission is not None:
                    admission.entered(client, monotonic())
        if reason is None:
            return connection
        self.refuse(server, reason, client_address)
        if server.limits_dry_run:
            return connection
        if self.access_log is not None:
            _write(server, self.access_log.refused, reason, request, client_address)
        self.turn_away(server, request, client_address, reason)
        return None

    def _admitted(self, server: Any, request: Any, client_address: Any) -> bool:
        admission = self.admission
        if admission is None:
            return True
        reason = admission.refusal(_client(request, client_address), len(self._live), monotonic())
        if reason is None:
            return True
        self.refuse(server, reason, client_address)
        if not server.limits_dry_run:
            self.turn_away(server, request, client_address, reason)
        return bool(server.limits_dry_run)

    def enter_datagram(self, server: Any, request: Any, client_address: Any) -> bool:
        """The same for a datagram, of which nothing stays: rates and networks count, what is open at once does not."""
        if not self._admitted(server, request, client_address):
            return False
        admission = self.admission
        if admission is not None:
            client = _client(request, client_address)
            admission.entered(client, monotonic())
            admission.left(client)
        return True

    def turn_away(self, server: Any, request: Any, client_address: Any, reason: str) -> None:
        """Close a connection that is refused, with a last word if there is one to be said. Never waits.

        What the client has said already is read and thrown away: closing over it would send a reset, and take the
        answer away again before it is read (RFC 1122, 4.2.2.13).
        """
        self.say_last_word(server, request, client_address, reason)
        try:
            server.close_request(request)
        except Exception as error:
            logs.emit(server, HookFailed("close_request", error))

    def say_last_word(self, server: Any, request: Any, client_address: Any, reason: str) -> None:
        """What `overload` has to say to somebody who is refused."""
        answer = server.overload
        try:
            if callable(answer):
                answer = answer(client_address, reason)
            if isinstance(answer, bytes):
                request = (None, server.socket) if server._portico_has_sessions else request
                _last_word(request, client_address, answer)
        except OSError:  # it has left, or has said nothing
            pass
        except Exception as error:
            logs.emit(server, HookFailed("overload", error))

    def refuse(self, server: Any, reason: str, client_address: Any) -> None:
        """Count somebody who was not let in, or would not have been."""
        counts = self.would_refuse if server.limits_dry_run and reason in _GATES else self.refused
        with self._lock:
            counts[reason] = counts.get(reason, 0) + 1
        if self.has_listener:
            logs.emit(server, Refused(reason, client_address, counts is self.would_refuse))

    def _alarm(self, server: Any) -> None:
        now = monotonic()
        if now - self._alarmed_at >= server.alarm_cooldown:
            self._alarmed_at = now
            logs.emit(server, ConnectionsHigh(len(self._live)))

    # -- the end

    def end(self, connection: Connection, reason: EndReason = EndReason.DONE) -> None:
        """A connection is over, for this reason unless another is known. From any thread, and again."""
        with self._lock:
            if self._live.pop(connection.id, None) is None:
                return
            if self.admission is not None and connection.client is not None:
                self.admission.left(connection.client)
        lasted = connection.over()
        if connection.reason is None:
            connection.reason = reason
        known = connection._figures is not None or connection._known is not None
        received, sent = connection.totals() if known else (0, 0)
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

    def end_foreign(self, server: Any, request: Any) -> None:
        """A request has been processed whose socket does not tell when it closes: is that its end?"""
        connection = self._foreign.get(id(request))
        if connection is None or connection.runner is not None:
            return
        if server._portico_closes_requests() or request.fileno() < 0:
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
            _write(server, log.begun, connection)
        if self.has_listener:
            logs.emit(server, ConnectionStarted(connection))

    def _tell_of_end(self, server: Any, connection: Connection) -> None:
        log = self.access_log
        if log is not None:
            _write(server, log.ended, connection)
        if self.has_listener:
            logs.emit(server, ConnectionEnded(connection))


def _client(request: Any, client_address: Any) -> Any:
    """Who counts as one client: by address, or by user over a Unix socket, where there are no addresses."""
    if isinstance(client_address, tuple) and client_address:
        return client_address[0]
    try:
        return "uid", _sockets.peer_credentials(request).uid
    except Exception:  # closed already, a datagram, a system without credentials
        return "uid", None


def _write(server: Any, write: Callable[..., None], *what: Any) -> None:
    """A line of the access log; that it cannot be written is no reason for anything else to fail."""
    try:
        write(*what)
    except Exception as error:
        logs.emit(server, HookFailed("access_log", error))


def _last_word(request: Any, client_address: Any, answer: bytes) -> None:
    if isinstance(request, socket.socket):
        _send(request, answer, _sockets.DONT_WAIT)
        _shutdown(request, socket.SHUT_WR)
        _recv(request, 1 << 16, _sockets.DONT_WAIT)
    elif type(request) is tuple and client_address:
        request[-1].sendto(answer, _sockets.DONT_WAIT, client_address)

"""Who is let in: a server's rules asked, and what follows if they say no. The registry's side of `admission`.

Asked in the loop's thread for every connection and datagram, and once more for a client whom a proxy announces. What
becomes of those who are in is `_connections`'.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from time import monotonic

from . import _sockets, logs
from ._addresses import AF_UNIX
from ._connection import Connection
from ._meters import Metered
from .admission import UNANNOUNCED
from .events import ConnectionsHigh, HookFailed, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

    from ._access_log import AccessLog
    from ._opening import Opening, Openings
    from .admission import Admission

__all__ = ["Entry", "write"]

_shutdown: Final = socket.SocketType.shutdown
_send: Final = socket.SocketType.send
_recv: Final = socket.SocketType.recv
# Settings that keep clients out, who are then refused by their names; and what else these go by.
_GATES: Final = (
    "max_connections", "max_connections_per_client", "connection_rate", "connection_rate_per_client", "allow", "deny",
    "allow_uids", "allow_gids",
)  # fmt: skip
_LIMITS: Final = (*_GATES, "max_handshakes")
_RULES: Final = (
    *_GATES, "connection_burst", "connection_burst_per_client", "client_prefix_ipv4", "client_prefix_ipv6",
    "max_tracked_clients"
)  # fmt: skip
# Seconds between two looks for sockets that were dropped, while clients wait for a free place.
_LOOK: Final = 0.05


class Entry:
    """The part of `Connections` that lets them in."""

    if TYPE_CHECKING:
        admission: Admission | None
        openings: Openings | None
        access_log: AccessLog | None
        keeper: Any
        tells: bool
        has_listener: bool
        has_foreign: bool
        is_full: bool
        accepted: int
        alarm_at: float
        refused: dict[str, int]
        would_refuse: dict[str, int]
        _live: dict[int, Connection]
        _foreign: dict[int, Connection]
        _lock: Any
        _numbers: Any
        _rules: list[str]
        _swept_at: float
        _alarmed_at: float
        _overload_failed_at: float
        _tell_of_start: Callable[[Any, Connection], None]
        sweep: Callable[[], bool]

        def __iter__(self) -> Iterator[Connection]: ...

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
                known = connection.opening is None or not connection.opening.expects_header
                address = connection.client_address
                connection.client = _client(connection.current_socket(), address) if known else UNANNOUNCED
        return [connection.client for connection in self if connection.client is not UNANNOUNCED]

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
        openings, opening = self.openings, None
        if openings is not None:
            reason = openings.refusal(server, client_address)
            if reason is not None and self._refuse_connection(server, reason, request, client_address):
                return False
            opening = openings.begin(server, client_address)
        if self.admission is None:
            connection = self._insert(server, request, client_address)
        else:
            found = self._insert_if_admitted(server, request, client_address, opening=opening)
            if found is None:
                return False
            connection = found
        if openings is not None and opening is not None:
            openings.add(connection, opening)
            server._portico_seal(request, connection)
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

    def _insert_if_admitted(
        self, server: Any, request: Any, client_address: Any, *, opening: Opening | None
    ) -> Connection | None:
        """Ask and let in, in one step: others may do the same at this moment, each in a `handle_request` of its own."""
        later = opening is not None and opening.expects_header and opening.believed  # then a proxy comes here
        client: Any = UNANNOUNCED if later else _client(request, client_address)
        users = self._refusal_of_user(request, client_address)  # of a proxy, too: whom it announces has no user here
        with self._lock:
            admission, now = self.admission, monotonic()
            reason = users if admission is None else users or admission.refusal(client, len(self._live), now)
            if reason == "max_connections" and admission is not None:
                self.sweep()
                reason = admission.refusal(client, len(self._live), now)
            if reason is None or server.limits_dry_run:
                connection = self._insert(server, request, client_address)
                connection.client = client
                if admission is not None:
                    admission.entered(client, monotonic())
        if reason is None or not self._refuse_connection(server, reason, request, client_address):
            return connection
        return None

    def _refuse_connection(self, server: Any, reason: str, request: Any, client_address: Any) -> bool:
        """Count one that is refused, and close it; False if that was only to be counted."""
        self.refuse(server, reason, client_address)
        if server.limits_dry_run and reason in _LIMITS:
            return False
        if self.access_log is not None:
            write(server, self.access_log.refused, reason, request, client_address)
        self.turn_away(server, request, client_address, reason)
        return True

    def _refusal_of_user(self, request: Any, client_address: Any) -> str | None:
        """Which setting keeps whoever is behind a Unix socket out; whom nobody knows, all of them do."""
        admission = self.admission
        if admission is None or not admission.asks_for_users or not _is_unix(request, client_address):
            return None
        try:
            return admission.refusal_of_user(_sockets.peer_credentials(request).uid, _sockets.peer_groups(request))
        except Exception:  # closed already, a datagram, a system without credentials
            return admission.refusal_of_user(-1, ())

    def admit_announced(self, server: Any, connection: Connection, request: Any) -> bool:
        """Ask once more, when it is known for whom a proxy has connected; whether he may enter."""
        if connection.client is not UNANNOUNCED:
            return True
        client_address = connection.client_address
        client = _client(request, client_address)
        with self._lock:
            admission, now = self.admission, monotonic()
            reason = None if admission is None else admission.refusal_of_client(client, now)
            if reason is None or server.limits_dry_run:
                connection.client = client
                if admission is not None:
                    admission.announced(client, now)
        if reason is None:
            return True
        self.refuse(server, reason, client_address)
        if not server.limits_dry_run:
            connection.refusal = reason
            self.say_last_word(server, request, client_address, reason)
        return bool(server.limits_dry_run)

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
        try:
            answer = _answer(server.overload, client_address, reason)
            # Who expects TLS would take plain text for a broken handshake.
            if answer and (server._portico_keyring is None or server.starttls):
                request = (None, server.socket) if server._portico_has_sessions else request
                with suppress(OSError):  # it has left, or has said nothing
                    _last_word(request, client_address, answer)
        except (Exception, SystemExit) as error:  # which ends no more than this, as in a handler
            now = monotonic()
            if now - self._overload_failed_at >= server.alarm_cooldown:  # many may come: the log is not to be filled
                self._overload_failed_at = now
                logs.emit(server, HookFailed("overload", error))

    def count_refusal(self, reason: str, counts: dict[str, int] | None = None) -> None:
        """Count one, with those who were refused unless there are others to be counted with."""
        counts = self.refused if counts is None else counts
        with self._lock:
            counts[reason] = counts.get(reason, 0) + 1

    def refuse(self, server: Any, reason: str, client_address: Any) -> None:
        """Count somebody who was not let in, or would not have been."""
        counts = self.would_refuse if server.limits_dry_run and reason in _LIMITS else self.refused
        self.count_refusal(reason, counts)
        if self.has_listener:
            logs.emit(server, Refused(reason, client_address, counts is self.would_refuse))

    def _alarm(self, server: Any) -> None:
        now = monotonic()
        if now - self._alarmed_at >= server.alarm_cooldown:
            self._alarmed_at = now
            logs.emit(server, ConnectionsHigh(len(self._live)))


def _is_unix(request: Any, client_address: Any) -> bool:
    """Whether it has come over a Unix socket, whatever its client is called."""
    family = getattr(request, "family", None)
    return not isinstance(client_address, tuple) if family is None else family == AF_UNIX


def _client(request: Any, client_address: Any) -> Any:
    """Who counts as one client: by address, or by user over a Unix socket, where there are no addresses."""
    if isinstance(client_address, tuple) and client_address:
        return client_address[0]
    try:
        return "uid", _sockets.peer_credentials(request).uid
    except Exception:  # closed already, a datagram, a system without credentials
        return "uid", None


def _answer(overload: Any, client_address: Any, reason: str) -> bytes | None:
    """What is to be said, whoever says so."""
    if not callable(overload):
        return overload if isinstance(overload, bytes) else None  # else it is a word that says what to do
    answer = overload(client_address, reason)
    if answer is None or isinstance(answer, (bytes, bytearray, memoryview)):
        return None if answer is None else bytes(answer)
    close = getattr(answer, "close", None)
    if close is not None:  # a coroutine, which nobody will await
        close()
    raise TypeError(f"overload() returned {type(answer).__name__}: it must return bytes or None")


def write(server: Any, write: Callable[..., None], *what: Any) -> None:
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

"""What an operator asks of a server: limits, its live connections, figures, suspending; draining is `_ending`'s.

A server's side of `_connections` and `_timekeeper`, mixed into all of them by `_serving`; those rooms hold
the rules. What a way to run does in its own manner (how a connection is cut, how a goodbye is said, who looks at time
limits) it says by overriding the methods at the end.
"""

from __future__ import annotations

import socket as _socket
import sys

from . import limits, settings
from ._ending import Ending
from ._own import Own
from ._system import System
from .errors import SettingError
from .lifecycle import EndReason, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._connection import Connection
    from ._connections import Connections
    from .reports import Stats

__all__ = ["Managed"]

_FOR_EVER = float("inf")
_MANY = 1 << 30
_RESET = (1).to_bytes(4, sys.byteorder) + bytes(4)  # SO_LINGER on, for no time: close() frees what waits to be sent


def _make_connections() -> Connections:
    from ._connections import Connections  # not before there is a server

    return Connections()


class Managed(Ending):
    """The part of a server that an operator sees."""

    max_connections: int | None = limits.MAX_CONNECTIONS.default
    max_connections_per_client: int | None = limits.MAX_CONNECTIONS_PER_CLIENT.default
    connection_rate: float | None = limits.CONNECTION_RATE.default
    connection_burst: int | None = limits.CONNECTION_BURST.default
    connection_rate_per_client: float | None = limits.CONNECTION_RATE_PER_CLIENT.default
    connection_burst_per_client: int | None = limits.CONNECTION_BURST_PER_CLIENT.default
    client_prefix_ipv4: int = limits.CLIENT_PREFIX_IPV4.default
    client_prefix_ipv6: int = limits.CLIENT_PREFIX_IPV6.default
    max_tracked_clients: int = limits.MAX_TRACKED_CLIENTS.default
    allow: Any = limits.ALLOW.default
    deny: Any = limits.DENY.default
    overload: Any = limits.OVERLOAD.default
    limits_dry_run: bool = limits.LIMITS_DRY_RUN.default
    connections_alarm: int | None = limits.CONNECTIONS_ALARM.default
    alarm_cooldown: float = limits.ALARM_COOLDOWN.default
    idle_timeout: float | None = limits.IDLE_TIMEOUT.default
    connection_timeout: float | None = limits.CONNECTION_TIMEOUT.default
    connection_jitter: float = limits.CONNECTION_JITTER.default
    min_read_rate: float | None = limits.MIN_READ_RATE.default
    read_grace: float = limits.READ_GRACE.default
    send_timeout: float | None = limits.SEND_TIMEOUT.default
    drain_timeout: float | None = limits.DRAIN_TIMEOUT.default
    drain_spread: float = limits.DRAIN_SPREAD.default
    grace: float = limits.GRACE.default
    access_log: str | None = limits.ACCESS_LOG.default

    _portico_system = System()
    _portico_loop: Any = None
    """Whoever waits for this server's requests while it serves; at the least it can `wake`."""
    _portico_connections: Connections = Own(_make_connections)  # type: ignore[assignment]
    _portico_limited = False
    """Whether `_portico_hold` has to be asked before anything is accepted."""
    _portico_bounded = False
    """Whether it has to be asked because of what is in flight (`max_datagrams`)."""
    _portico_full = False
    """Whether so much has been in flight, and too little of it has ended since."""
    _portico_suspended = False
    _portico_is_program = False
    """Whether `run` or the command serves it, where nobody expects what `socketserver` does in every detail."""
    _portico_says_goodbye = False
    """Whether handlers have a `goodbye`."""
    _portico_timers: Any = None
    """Who enforces the time limits; at the least it can `close`."""
    _portico_look: Callable[[], float | None] | None = None
    """Where the loop enforces them: what it has to call every turn, for the seconds until it has to be called again."""
    _portico_prepared_for: Any = False
    """The socket for which the limits have been read."""
    _portico_has_sessions = False
    """Whether its datagrams belong to sessions (`_sessions`), which are its connections."""

    if TYPE_CHECKING:
        stdlib_compat: bool
        socket: _socket.socket
        socket_type: int
        _portico_lifecycle: Any
        _portico_overridden: Callable[[str], bool]
        _portico_prepare: Callable[[], None]
        _portico_stop: Callable[[], None]
        _portico_taken: int
        _portico_runs_inline: bool
        max_datagrams: int

    # -- for the operator

    def connections(self) -> list[Connection]:
        """The connections that are open now, oldest first. Datagrams have none, but their sessions are."""
        self._portico_connections.sweep()
        return list(self._portico_connections)

    def stats(self) -> Stats:
        """What this server has done so far: a snapshot."""
        from ._stats import stats  # only where somebody asks

        return stats(self)

    def configure(self, **values: Any) -> None:
        """Change limits while the server runs: all are checked first, and hold at once, for open connections, too.

        Raises `SettingError` and changes nothing if one is wrong, contradicts another, or counts only at the start.
        """
        for name, value in values.items():
            if name not in limits.LIVE or not hasattr(type(self), name):
                wrong = "cannot be changed while a server runs" if name in settings.ALL else "is no setting"
                can_be = [name for name in limits.LIVE if hasattr(type(self), name)]
                raise SettingError(f"{name!r} {wrong}; {settings.alternatives(name, can_be, 'these can be changed')}")
            settings.ALL[name].check(value)
        own = vars(self)
        with self._portico_lifecycle.lock:
            settings.check(settings.Changed(self, values), values)
            before = {name: own[name] for name in values if name in own}
            own.update(values)
            try:
                self._portico_prepare()
            except BaseException:  # such as that no thread can be started: all as it was
                for name in values.keys() - before.keys():
                    del own[name]
                own.update(before)
                self._portico_prepare()
                raise
        self._portico_wake()

    def suspend(self) -> None:
        """Accept nothing more until `resume`: clients wait in the backlog, connections stay. From any thread.

        One that the loop is about to take at this very moment may still come in. Before the start it has the server
        start suspended. With the run that it was asked in, or for, it is over.
        """
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            lifecycle.step(Verb.SUSPEND)
            self._portico_suspended = True
            self._portico_refresh_hold(ruled=True)
        lifecycle.tell()
        self._portico_wake()

    def resume(self) -> None:
        """Accept again after `suspend`."""
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            lifecycle.step(Verb.RESUME)
            self._portico_suspended = False
            self._portico_refresh()
        lifecycle.tell()
        self._portico_wake()

    # -- for the house

    @property
    def _portico_has_connections(self) -> bool:
        """Whether its requests are connections; a server with an own idea of requests does not always say."""
        return self._portico_has_sessions or getattr(self, "socket_type", None) == _socket.SOCK_STREAM

    def _portico_prepare_once(self) -> None:
        """Get ready where there is no loop that begins and ends: before the first request from this socket."""
        if self._portico_prepared_for is not getattr(self, "socket", None):
            self._portico_prepare()

    def _portico_refresh(self) -> None:
        """Read the limits anew: at the start, and when they are changed."""
        connections = self._portico_connections
        self._portico_refresh_hold(connections.obey(self))
        # Where datagrams run elsewhere; but that others wait in the kernel may not be wanted.
        bounded = not (self._portico_runs_inline or self._portico_has_connections) and hasattr(self, "max_datagrams")
        self._portico_bounded = bounded and self.overload == "wait"
        most = self.max_connections if self.connections_alarm is None else self.connections_alarm
        connections.alarm_at = _FOR_EVER if most is None else most
        access_log = None
        if self.access_log is not None:
            from ._access_log import AccessLog  # only where it is wanted

            access_log = AccessLog(self.access_log)
        connections.listen(access_log, hasattr(self, "handle_event") and self._portico_overridden("handle_event"))
        self._portico_refresh_timers(connections)

    def _portico_refresh_hold(self, ruled: bool) -> None:
        """Sessions read from the socket that others come by, so that nobody can be left waiting there."""
        # In one step, as the loop looks at it meanwhile. Only threading servers have max_threads.
        limited = ruled or self._portico_suspended or getattr(self, "max_threads", None) is not None
        self._portico_limited = limited and not self._portico_has_sessions

    def _portico_refresh_timers(self, connections: Connections) -> None:
        timed = (self._portico_idle_timeout(), self.connection_timeout, self.min_read_rate, self.send_timeout)
        none = timed == (None, None, None, None) or not self._portico_has_connections
        if none and self._portico_timers is None:
            return
        from .deadlines import TimeLimits  # only where there are some

        found = TimeLimits(self)
        found.idle = self._portico_idle_timeout()
        is_new = self._portico_timers is None
        if is_new:
            self._portico_timers = self._portico_make_timers(found, connections)
        if is_new or not self._portico_timers.keeper.limits.same(found):
            self._portico_timers.keeper.change(found, connections)
        connections.keeper = None if none else self._portico_timers.keeper

    def _portico_end_helpers(self) -> None:
        """Let those threads go that only help to serve. Safe again."""
        self._portico_end_timers()

    def _portico_end_timers(self) -> None:
        timers, self._portico_timers = self._portico_timers, None
        self._portico_connections.keeper = None
        if timers is not None:
            timers.close()

    def _portico_runs_here(self) -> bool:
        """Whether this is a thread that requests need to come to their end."""
        here: bool = self._portico_lifecycle.runs_here
        return here

    def _portico_wake(self) -> None:
        loop = self._portico_loop
        if loop is not None:
            loop.wake()

    def _portico_hold(self) -> float | None:
        """None if something may be accepted now, else the seconds until it may; for ever: until something changes."""
        held = self._portico_suspended or (self._portico_bounded and self._portico_is_full())
        return _FOR_EVER if held else self._portico_connections.hold(self)

    def _portico_is_full(self) -> bool:
        """Whether `max_datagrams` are in flight; then until a quarter has ended: not each one is to wake the loop."""
        connections, most = self._portico_connections, self.max_datagrams
        connections.is_full = True  # before it is looked, see `Connections.hold`
        self._portico_full = self._portico_in_flight() > (most * 3 // 4 if self._portico_full else most - 1)
        connections.is_full = self._portico_full
        return self._portico_full

    def _portico_room(self) -> int:
        """How many datagrams may be taken now."""
        return max(1, self.max_datagrams - self._portico_in_flight()) if self._portico_bounded else _MANY

    def _portico_note_handler(self, request: Any, handler: Any) -> None:
        """This handler has a `goodbye`, and serves that connection."""
        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.handler = handler

    # -- for the ways to run to say

    def _portico_idle_timeout(self) -> float | None:
        """Seconds of silence that end a connection, if there is a limit."""
        return self.idle_timeout

    def _portico_make_timers(self, found: Any, connections: Connections) -> Any:
        """Who enforces the time limits. A thread, as the loop may be in a handler, or over before its requests are."""
        from ._timekeeper import TimerThread

        return TimerThread(found, connections)

    @property
    def _portico_loop_thread(self) -> int | None:
        """The thread that requests run in, where they have none of their own."""
        found: int | None = self._portico_lifecycle.loop_thread
        return found

    def _portico_runners(self) -> list[Any]:
        """What runs requests now: threads, tasks, process ids. Those of connections are known from them, too."""
        return []

    def _portico_in_flight(self) -> int:
        """How many datagrams run elsewhere, or wait for that."""
        return 0

    def _portico_reap(self) -> None:
        """Notice requests that have ended, where nothing tells by itself."""

    def _portico_cut(self, connection: Connection, reason: EndReason, *, again: bool) -> None:
        """Take the connection away from its handler, who sees a peer that has gone.

        A drain does so twice: at the deadline, and `again` when there is little hope that the handler ends by itself.
        """
        sock = connection.current_socket()
        if reason is EndReason.SEND_TIMEOUT and isinstance(sock, _socket.socket):
            try:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
            except OSError:  # closed meanwhile
                return
        connection.shut(_socket.SHUT_RDWR)

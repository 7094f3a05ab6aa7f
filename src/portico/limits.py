"""The limits, declared: who may enter, how long a connection may last, and how a server comes to its end.

Declarations only, the counterpart of `settings` for what `socketserver` does not have; `settings` holds them all
together. Unless said otherwise a limit is None on the classes, which is none.
"""

from __future__ import annotations

from ._setting import (
    ACCESS_LOG_KIND,
    COUNT,
    DENIED,
    DURATION,
    FLAG,
    FRACTION,
    KEEPALIVE_KIND,
    MAYBE_COUNT,
    MAYBE_PAUSE,
    NETWORKS,
    OVERLOAD_KIND,
    PAUSE,
    PREFIX4,
    PREFIX6,
    USER_GROUPS,
    USERS,
    WAIT,
    Setting,
)
from .opening_settings import OPENING_LIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ._setting import Keepalive

__all__ = ["LIMITS", "LIVE"]

# Who may enter. `portico serve` sets some of them.

ACCEPT_BATCH: Final = Setting(
    "accept_batch",
    64,
    COUNT,
    unit="requests",
    reason="requests taken per wake-up before the loop looks up (HAProxy 4, gevent 100, Tornado 128)",
)
MAX_CONNECTIONS: Final = Setting[int | None](
    "max_connections",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="never one more; what happens to others says overload",
)
MAX_CONNECTIONS_PER_CLIENT: Final = Setting[int | None](
    "max_connections_per_client",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="at once from one address (IPv6: one network of client_prefix_ipv6; Unix: one user)",
)
CONNECTION_RATE: Final = Setting[float | None](
    "connection_rate",
    None,
    MAYBE_PAUSE,
    unit="1/second",
    reason="new connections, or datagrams, a second, from all clients together (a token bucket)",
)
CONNECTION_BURST: Final = Setting[int | None](
    "connection_burst",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="so many may come at once; none: one second's worth, at least one",
)
CONNECTION_RATE_PER_CLIENT: Final = Setting[float | None](
    "connection_rate_per_client",
    None,
    MAYBE_PAUSE,
    unit="1/second",
    reason="new connections, or datagrams, a second from one client",
)
CONNECTION_BURST_PER_CLIENT: Final = Setting[int | None](
    "connection_burst_per_client",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="so many may come at once from one client; none: one second's worth, at least one",
)
CLIENT_PREFIX_IPV4: Final = Setting(
    "client_prefix_ipv4",
    32,
    PREFIX4,
    unit="bits",
    reason="addresses that share so many first bits are one client",
)
CLIENT_PREFIX_IPV6: Final = Setting(
    "client_prefix_ipv6",
    64,
    PREFIX6,
    unit="bits",
    reason="the same for IPv6, where one customer mostly has a whole /64",
)
MAX_TRACKED_CLIENTS: Final = Setting(
    "max_tracked_clients",
    65536,
    COUNT,
    unit="clients",
    reason="whose rates are remembered, about 14 MB; beyond it the oldest are forgotten",
)
ALLOW: Final = Setting(
    "allow",
    None,
    NETWORKS,
    unit="networks",
    reason="only clients from these may enter; none: all may",
)
DENY: Final = Setting(
    "deny",
    None,
    DENIED,
    unit="networks",
    reason="clients from these may not enter, whatever allow says",
)
ALLOW_UIDS: Final = Setting[object](
    "allow_uids",
    None,
    USERS,
    unit="users",
    reason="of a Unix socket's clients only these users' may enter, or who allow_gids names (SO_PEERCRED)",
)
ALLOW_GIDS: Final = Setting[object](
    "allow_gids",
    None,
    USER_GROUPS,
    unit="groups",
    reason="of a Unix socket's clients only these groups' members may enter, or who allow_uids names",
)
OVERLOAD: Final = Setting(
    "overload",
    "wait",
    OVERLOAD_KIND,
    unit="policy",
    reason="when full: wait (others stay in the backlog), close, or an answer that is sent before closing",
)
LIMITS_DRY_RUN: Final = Setting(
    "limits_dry_run",
    False,
    FLAG,
    unit="flag",
    reason="count in stats().would_refuse who would have been refused, and let everybody in",
)
CONNECTIONS_ALARM: Final = Setting[int | None](
    "connections_alarm",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="warn when so many are open; none: at max_connections",
)
ALARM_COOLDOWN: Final = Setting(
    "alarm_cooldown",
    5.0,
    DURATION,
    unit="seconds",
    reason="between two such warnings (Ranch: 5), and between two errors of an overload that raises",
)
MAX_THREADS: Final = Setting[int | None](
    "max_threads",
    None,
    MAYBE_COUNT,
    unit="threads",
    reason="of threading servers; when so many run, clients wait in the backlog",
)
REUSE_THREADS: Final = Setting(
    "reuse_threads",
    False,
    FLAG,
    unit="flag",
    reason="threads serve one request after the other; what is thread-local then outlives a request",
)
THREAD_IDLE_TIMEOUT: Final = Setting(
    "thread_idle_timeout",
    60.0,
    DURATION,
    unit="seconds",
    reason="so long a re-used thread waits for the next request before it ends",
)
REQUESTS_PER_THREAD: Final = Setting[int | None](
    "requests_per_thread",
    None,
    MAYBE_COUNT,
    unit="requests",
    reason="a re-used thread ends after about so many (up to 10 % fewer, at random); none: never",
)

# How long a connection may last.

IDLE_TIMEOUT: Final = Setting[float | None](
    "idle_timeout",
    None,
    MAYBE_PAUSE,
    unit="seconds",
    reason="no byte either way for so long ends a connection (portico serve: 60)",
)
CONNECTION_TIMEOUT: Final = Setting[float | None](
    "connection_timeout",
    None,
    MAYBE_PAUSE,
    unit="seconds",
    reason="the most that a connection lasts",
)
CONNECTION_JITTER: Final = Setting(
    "connection_jitter",
    0.1,
    FRACTION,
    unit="fraction",
    reason="of connection_timeout, taken off at random, so that not all come back at once",
)
MIN_READ_RATE: Final = Setting[float | None](
    "min_read_rate",
    None,
    MAYBE_PAUSE,
    unit="bytes/second",
    reason="a client that sends, and gets no answer, must send so fast: against slow-loris",
)
READ_GRACE: Final = Setting(
    "read_grace",
    10.0,
    PAUSE,
    unit="seconds",
    reason="a client has so long before min_read_rate counts, and is measured so long",
)
SEND_TIMEOUT: Final = Setting[float | None](
    "send_timeout",
    None,
    MAYBE_PAUSE,
    unit="seconds",
    reason="a peer that takes nothing of what waits for it for so long is cut (portico serve: 30)",
)
KEEPALIVE: Final[Setting[Keepalive]] = Setting(
    "keepalive",
    None,
    KEEPALIVE_KIND,
    unit="seconds",
    reason="of silence before TCP asks whether the peer is alive; a dead one is noticed after about twice that",
)
TCP_USER_TIMEOUT: Final = Setting[float | None](
    "tcp_user_timeout",
    None,
    MAYBE_PAUSE,
    unit="seconds",
    reason="for which sent data may stay unacknowledged before TCP gives up (RFC 5482)",
)

# The end, and what is told.

DRAIN_TIMEOUT: Final = Setting[float | None](
    "drain_timeout",
    30.0,
    WAIT,
    unit="seconds",
    stdlib=None,
    reason="what runs has so long to end, in drain() and server_close(), before it is cut; none: for ever",
)
DRAIN_SPREAD: Final = Setting(
    "drain_spread",
    0.0,
    DURATION,
    unit="seconds",
    reason="over which idle connections are closed, so that not all clients come back at once",
)
GRACE: Final = Setting(
    "grace",
    0.0,
    DURATION,
    unit="seconds",
    reason="for which run() and portico serve go on to accept after a signal, until balancers know",
)
ACCESS_LOG: Final = Setting[str | None](
    "access_log",
    None,
    ACCESS_LOG_KIND,
    unit="format",
    reason="a line per connection to the logger portico.access",
)

LIMITS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Setting))
_AT_THE_START: Final = ("accept_batch", "keepalive", "tcp_user_timeout", "reuse_threads")
LIVE: Final = (
    *(setting.name for setting in LIMITS if setting.name not in _AT_THE_START),
    "max_datagrams", "max_children", *OPENING_LIVE,
)  # fmt: skip
"""What is read again while a server runs."""

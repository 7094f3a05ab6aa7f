"""Which settings are about which servers: a rule that could never hold is an error, not a false comfort.

Rules only. Whether a class has a setting at all is told by its class variables; here is what depends on a server's
socket and on its other settings. `settings` asks for a server, and `cli` for each of the kinds that it may start.
"""

from __future__ import annotations

import socket
from types import MappingProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

__all__ = ["RULES", "misplaced"]

_USERS: Final = frozenset({"allow_uids", "allow_gids"})
_NETWORKS: Final = frozenset({"allow", "deny"})
_OPENING: Final = frozenset({"tls", "starttls", "proxy_protocol", "proxy_trusted"})
RULES: Final = _USERS | _NETWORKS | _OPENING
"""Those that are never taken silently. A program may have attributes of its own that are called like the others."""
_STREAMS: Final = _USERS | _OPENING | {"min_read_rate", "send_timeout", "keepalive", "tcp_user_timeout"}
_CONNECTIONS: Final = frozenset({
    "max_connections", "max_connections_per_client", "connections_alarm", "idle_timeout", "connection_timeout",
    "session_timeout", "session_queue", "max_sessions",
})  # fmt: skip
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_UNIX: Final = getattr(socket, "AF_UNIX", None)


def misplaced(
    name: str, server: Any, *, family: int | None, given: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """Why this setting cannot do anything for a server, or a class of servers with the `given` values; in words.

    None if it can, or may: the `family` of a server without a socket is not known yet.
    """

    def has(setting: str, default: Any) -> Any:
        return given.get(setting, getattr(server, setting, default))

    datagrams = getattr(server, "socket_type", socket.SOCK_STREAM) == socket.SOCK_DGRAM
    if datagrams and name in _STREAMS:
        return "is for stream connections, and this server has datagrams"
    if datagrams and name in _CONNECTIONS and not has("sessions", False):
        return "is for connections, which this server has with sessions=True only"
    if name in _USERS and family not in (None, _UNIX):
        instead = ", but networks (allow, deny)" if family in _INTERNET else ""
        return f"is about who is behind a Unix socket, which the clients of this server do not have{instead}"
    if name in _NETWORKS and family not in (None, *_INTERNET) and has("proxy_protocol", "off") == "off":
        users = ", but users (allow_uids, allow_gids), unless they are announced (proxy_protocol)"
        instead = users if family == _UNIX and not datagrams else ""
        return f"is about IP addresses, which the clients of this server do not have{instead}"
    return None

"""Which settings are about which servers: a limit that could never hold is an error, not a false comfort.

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

__all__ = ["misplaced"]

_STREAMS: Final = frozenset({
    "tls", "starttls", "proxy_protocol", "proxy_trusted", "allow_uids", "allow_gids", "min_read_rate", "send_timeout",
})  # fmt: skip
_CONNECTIONS: Final = frozenset({
    "max_connections", "max_connections_per_client", "connections_alarm", "idle_timeout", "connection_timeout",
})  # fmt: skip
"""Of streams, or sessions."""
_SESSIONS: Final = frozenset({"session_timeout", "session_queue", "max_sessions"})
_USERS: Final = frozenset({"allow_uids", "allow_gids"})
_NETWORKS: Final = frozenset({"allow", "deny"})
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

    if getattr(server, "socket_type", socket.SOCK_STREAM) == socket.SOCK_DGRAM:
        if name in _STREAMS:
            return "is for stream connections, and this server has datagrams"
        if name in _CONNECTIONS | _SESSIONS and not has("sessions", False):
            return "is for connections, which this server has with sessions=True only"
    if family is None:
        return None
    if name in _USERS and family != _UNIX:
        return "is about who is behind a Unix socket; the clients of this server have networks (allow, deny)"
    if name in _NETWORKS and family not in _INTERNET and has("proxy_protocol", "off") == "off":
        return (
            "is about IP addresses, which the clients of this server do not have, but users (allow_uids, allow_gids), "
            "unless they are announced (proxy_protocol)"
        )
    return None

"""The settings of datagram servers, declared. The counterpart of `limits` for what only datagrams have."""

from __future__ import annotations

from ._setting import BYTES, COUNT, FLAG, GROUPS, MAYBE_COUNT, MAYBE_PAUSE, TOS_KIND, TTL_KIND, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["DATAGRAM_SETTINGS"]

MAX_PACKET_SIZE: Final = Setting(
    "max_packet_size",
    65535,
    BYTES,
    unit="bytes",
    stdlib=8192,
    reason="the longest datagram taken whole; over UDP none is longer than 65507, Unix datagrams may be",
)
DELIVER_TRUNCATED: Final = Setting(
    "deliver_truncated",
    False,
    FLAG,
    unit="flag",
    stdlib=True,
    reason="hand over the beginning of a datagram longer than max_packet_size as if it were whole",
)
MAX_DATAGRAMS: Final = Setting(
    "max_datagrams",
    1024,
    COUNT,
    unit="datagrams",
    reason="being handled or waiting for that, in threads or on an event loop; what happens to others says overload",
)
RECV_BUFFER_SIZE: Final = Setting[int | None](
    "recv_buffer_size",
    None,
    MAYBE_COUNT,
    unit="bytes",
    reason="SO_RCVBUF: what a burst may fill while handlers run; none: the system's (Linux: 208 KiB)",
)
SEND_BUFFER_SIZE: Final = Setting[int | None](
    "send_buffer_size",
    None,
    MAYBE_COUNT,
    unit="bytes",
    reason="SO_SNDBUF; none: the system's",
)
BROADCAST: Final = Setting(
    "broadcast",
    False,
    FLAG,
    unit="flag",
    reason="SO_BROADCAST: handlers may send to broadcast addresses",
)
MULTICAST_GROUPS: Final = Setting(
    "multicast_groups",
    None,
    GROUPS,
    unit="groups",
    reason="to join, each on one interface: 239.1.2.3, 239.1.2.3%eth0, 239.1.2.3%192.0.2.1, ff02::1%eth0",
)
TTL: Final = Setting[int | None](
    "ttl",
    None,
    TTL_KIND,
    unit="hops",
    reason="of what is sent, to groups as well; none: the system's (64, to groups 1)",
)
TOS: Final = Setting[int | str | None](
    "tos",
    None,
    TOS_KIND,
    unit="octet",
    reason="type of service or traffic class of what is sent; a DSCP by its name, such as EF or AF41 (RFC 4594)",
)
PIN_INTERFACE: Final = Setting(
    "pin_interface",
    False,
    FLAG,
    unit="flag",
    reason="answers leave by the network interface that the request came by, whatever the routes say",
)
UDP_GRO: Final = Setting(
    "udp_gro",
    False,
    FLAG,
    unit="flag",
    reason="UDP_GRO: datagrams of one sender may come through the kernel as one; for few senders of a lot (Linux 5.0)",
)
UDP_GSO: Final = Setting(
    "udp_gso",
    True,
    FLAG,
    unit="flag",
    reason="UDP_SEGMENT: neighbouring answers to one peer leave through the kernel as one, where it can (Linux 4.18)",
)
SESSIONS: Final = Setting(
    "sessions",
    False,
    FLAG,
    unit="flag",
    reason="one handler per peer, which reads all of his datagrams; not on servers that run one request at a time",
)
SESSION_TIMEOUT: Final = Setting[float | None](
    "session_timeout",
    60.0,
    MAYBE_PAUSE,
    unit="seconds",
    reason="no datagram either way for so long ends a session; the shorter one holds of this and idle_timeout",
)
SESSION_QUEUE: Final = Setting(
    "session_queue",
    64,
    COUNT,
    unit="datagrams",
    reason="of one session, waiting for its handler to read them; further ones are dropped",
)
MAX_SESSIONS: Final = Setting(
    "max_sessions",
    1024,
    COUNT,
    unit="sessions",
    reason="never one more: datagrams of further peers are dropped, or get the answer that overload says",
)

DATAGRAM_SETTINGS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Setting))

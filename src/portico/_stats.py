"""A server's figures, gathered from where they are counted when somebody asks for them. Counts nothing itself."""

from __future__ import annotations

from socket import SOCK_DGRAM

from ._connections import BOUNDS
from .events import EndReason
from .reports import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["stats"]

_FAILURES: Final = (EndReason.FAILED, EndReason.KILLED)
_TIMEOUTS: Final = (
    EndReason.IDLE_TIMEOUT, EndReason.CONNECTION_TIMEOUT, EndReason.MIN_READ_RATE, EndReason.SEND_TIMEOUT
)  # fmt: skip


def stats(server: Any) -> Stats:
    """A snapshot of what this server has done so far."""
    connections = server._portico_connections
    live, counts = connections.snapshot()
    ended: dict[str, int] = counts["ended"]
    failed = sum(ended.get(reason.value, 0) for reason in _FAILURES)
    accepted, done = counts["accepted"], sum(ended.values()) - failed
    if not server._portico_has_connections:
        accepted, failed = server._portico_taken - sum(counts["refused"].values()), counts["datagrams_failed"]
        # Where a request runs in the loop, it has ended when anybody can ask, or is the one that asks.
        over = counts["datagrams_ended"] if server._portico_waits_on_close else accepted
        done = max(0, over - failed)
    for connection in live:
        connection.measure()
    received, sent = (sum(column) for column in zip((0, 0), *(connection.totals() for connection in live), strict=True))
    return Stats(
        state=server._portico_lifecycle.state,
        accepted=accepted,
        active=accepted - done - failed,
        done=done,
        failed=failed,
        refused=counts["refused"],
        would_refuse=counts["would_refuse"],
        timed_out={reason.value: ended.get(reason.value, 0) for reason in _TIMEOUTS},
        bytes_in=counts["bytes_in"] + received,
        bytes_out=counts["bytes_out"] + sent,
        durations=tuple(zip(BOUNDS, counts["durations"], strict=True)),
        ended=ended,
        kernel_drops=_kernel_drops(server),
        opening=_opening(server),
        tls_expires_in=None if server._portico_keyring is None else server._portico_keyring.expires_in(),
        unsent=connections.unsent,
    )


def _opening(server: Any) -> int:
    openings = server._portico_connections.openings
    if openings is None:
        return 0
    server._portico_look_at_openings()
    return len(openings)


def _kernel_drops(server: Any) -> int | None:
    if getattr(server, "socket_type", None) != SOCK_DGRAM:
        return None
    from ._datagram_options import kernel_drops

    drops = kernel_drops(server.socket)
    return getattr(server.socket, "drops", None) if drops is None else drops

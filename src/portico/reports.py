"""What a server says about itself when it is asked: typed snapshots, without a tie to the server. Loaded on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._connection import Connection
    from .lifecycle import State

__all__ = ["DrainReport", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What a server has done so far: `server.stats()`. All numbers count from its making on."""

    state: State
    accepted: int
    """Connections let in, or datagrams taken."""
    active: int
    done: int
    """Those that have ended without a failure, whatever ended them."""
    failed: int
    """Those whose handler raised, or whose process was killed."""
    refused: dict[str, int]
    """By reason; those refused for want of a thread or process, or by `verify_request`, have been accepted before.

    Datagrams that were dropped are here, too: "truncated", "queue_full" and others.
    """
    would_refuse: dict[str, int]
    """The same with `limits_dry_run`: they were let in."""
    timed_out: dict[str, int]
    """By limit."""
    bytes_in: int
    """Of the connections that have ended and those that are open, as far as known."""
    bytes_out: int
    durations: tuple[tuple[float, int], ...]
    """A histogram of ended connections: pairs of the upper bound of a class, in seconds, and how many it has."""
    ended: dict[str, int]
    """By `EndReason`."""
    kernel_drops: int | None = None
    """Datagrams that the kernel has dropped, mostly since the socket's buffer was full; None if it does not say."""
    opening: int = 0
    """Of the active ones, those that wait for their PROXY header or TLS handshake."""
    tls_expires_in: float | None = None
    """Days until the first of the certificates that are shown ends, negative when it has; None without `tls`."""
    unsent: int = 0
    """Answers to datagrams that were kept for a moment, to leave with others, and could not be sent then."""


@dataclass(slots=True)
class DrainReport:
    """What came of a drain: `server.drain()`."""

    finished: int = 0
    """Connections that came to their end in time, by themselves or because they were told."""
    goodbyes: int = 0
    """Of these, those whose handler said goodbye."""
    cut: list[Connection] = field(default_factory=list)
    """Those that still ran at the deadline."""
    stuck: list[tuple[Connection, str]] = field(default_factory=list)
    """Of these, those whose handler has not even ended then, with its stack."""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing had to be cut."""
        return not self.cut

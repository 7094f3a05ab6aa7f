"""How long a connection may last: the time limits, and the verdict on a connection by what it has sent and received.

Pure rules, on values and times: who looks at connections, and when, is `_timekeeper`'s; where the figures come from
`_meters`'. A look costs the same whatever has been sent, and nothing is done per message.
"""

from __future__ import annotations

from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._meters import Traffic

__all__ = ["Marks", "TimeLimits", "verdict"]

# Limits that need two looks to see that nothing has changed are looked at so many times in their own length.
_LOOKS: Final = 4
_NEVER: Final = float("inf")


class TimeLimits:
    """The time limits of a server, in seconds and bytes a second; None for none."""

    __slots__ = ("age", "grace", "idle", "jitter", "rate", "send")

    def __init__(self, server: Any) -> None:
        self.idle: float | None = server.idle_timeout
        self.age: float | None = server.connection_timeout
        self.jitter: float = server.connection_jitter
        self.rate: float | None = server.min_read_rate
        self.grace: float = server.read_grace
        self.send: float | None = server.send_timeout

    def same(self, other: TimeLimits) -> bool:
        """Whether these are the same limits."""
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)


class Marks:
    """What earlier looks at a connection have seen. `luck` is a number from 0 to 1, for the jitter."""

    __slots__ = (
        "began", "luck", "moved", "moved_at", "said", "taken", "window_answered", "window_received", "window_since"
    )  # fmt: skip

    def __init__(self, began: float, luck: float) -> None:
        self.began = began
        self.luck = luck
        self.taken = 0
        """Bytes that the peer had taken, and when the last of them was sent: what was sent again does not count."""
        self.said = began
        self.moved: tuple[int, int] | None = None
        """What was sent and what waited, when something waited for the peer; and since when it has been just that."""
        self.moved_at = began
        self.window_since: float | None = None
        """Since when the peer has been sending without an answer, with how many bytes received before."""
        self.window_received = 0
        self.window_answered = 0


def verdict(limits: TimeLimits, marks: Marks, traffic: Traffic | None, now: float) -> tuple[EndReason | None, float]:
    """Why the connection is to end, if it is; and when it is to be looked at again. None: its traffic is not known."""
    again = _NEVER
    if limits.age is not None:
        again = marks.began + limits.age * (1 - limits.jitter * marks.luck)
        if now >= again:
            return EndReason.CONNECTION_TIMEOUT, again
    if traffic is None:
        return None, again
    if limits.send is not None:
        stalled, look = _stalled(limits.send, marks, traffic, now)
        if stalled:
            return EndReason.SEND_TIMEOUT, look
        again = min(again, look)
    if limits.idle is not None:
        if traffic.taken != marks.taken:
            marks.taken, marks.said = traffic.taken, traffic.said
        look = max(traffic.heard, marks.said) + limits.idle
        if now >= look:
            return EndReason.IDLE_TIMEOUT, look
        again = min(again, look)
    if limits.rate is not None:
        if _too_slow(limits.rate, limits.grace, marks, traffic, now=now):
            return EndReason.MIN_READ_RATE, now
        again = min(again, now + limits.grace / _LOOKS)
    return None, again


def _stalled(patience: float, marks: Marks, traffic: Traffic, now: float) -> tuple[bool, float]:
    """Whether something has been waiting for the peer, and the same for so long; and when to look again."""
    state = traffic.taken, traffic.waiting
    if not traffic.waiting:
        marks.moved = None
        return False, now + patience / _LOOKS
    if state != marks.moved:
        marks.moved, marks.moved_at = state, now
    overdue = marks.moved_at + patience
    return now >= overdue, overdue


def _too_slow(rate: float, grace: float, marks: Marks, traffic: Traffic, *, now: float) -> bool:
    """Whether the peer has been sending for longer than `grace`, without an answer, and slower than `rate`.

    Who sends a short request, in whatever pieces, and waits for its answer is not measured: only what comes after the
    first piece counts, up to the last.
    """
    if traffic.sent != marks.window_answered:
        marks.window_answered, marks.window_since = traffic.sent, None
        marks.window_received = traffic.received
        return False
    received = traffic.received - marks.window_received
    if marks.window_since is None:
        if received:
            marks.window_since, marks.window_received = now, traffic.received
        return False
    lasted = traffic.heard - marks.window_since  # not until now: it may say no more, and wait for its answer
    if lasted < grace:
        return False
    if received < rate * lasted:
        return True
    marks.window_since, marks.window_received = now, traffic.received
    return False

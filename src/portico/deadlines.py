"""How long a connection may last: the time limits, and the verdict on a connection by what it has sent and received.

Pure rules, on values and times: who looks at connections, and when, is `_timekeeper`'s; where the figures come from
`_meters`'. A look costs the same whatever has been sent, and nothing is done per message.
"""

from __future__ import annotations

from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from ._meters import Traffic

    class Asked(Protocol):
        """What has to be asked for, as it is not wanted at each look: a `Connection`."""

        def uncounted(self) -> int: ...
        def unread(self) -> int: ...
        def peer_takes(self, traffic: Traffic, /) -> tuple[int, ...]: ...


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
        "arrived", "began", "due", "gone", "heard", "luck", "moved", "moved_at", "read", "said", "window_answered",
        "window_received", "window_since",
    )  # fmt: skip

    def __init__(self, began: float, luck: float) -> None:
        self.began = began
        self.luck = luck
        self.due = 0.0
        """When it is to be looked at next."""
        self.gone = 0
        """What had been sent, and when the last of it was: what was sent again does not count."""
        self.said = began
        self.moved: tuple[int, ...] | None = None
        """What the peer had taken when something waited for it; and since when it has taken nothing."""
        self.moved_at = began
        self.arrived = 0
        """Bytes that had come, whether or not they were read, and when the last of them had."""
        self.heard = began
        self.read = -1
        """How many of them its handler had read, when it had not read all."""
        self.window_since: float | None = None
        """Since when the peer has been sending without an answer, with how many bytes received before."""
        self.window_received = 0
        self.window_answered = 0


def verdict(
    limits: TimeLimits, marks: Marks, traffic: Traffic | None, now: float, asked: Asked
) -> tuple[EndReason | None, float]:
    """Why the connection is to end, if it is; and when it is to be looked at again. None: its traffic is not known."""
    again = _NEVER
    if limits.age is not None:
        again = marks.began + limits.age * (1 - limits.jitter * marks.luck)
        if now >= again:
            return EndReason.CONNECTION_TIMEOUT, again
    if traffic is None:
        return None, again
    if limits.send is not None:
        stalled, look = _stalled(limits.send, marks, traffic, asked, now=now)
        if stalled:
            return EndReason.SEND_TIMEOUT, look
        again = min(again, look)
    if limits.idle is not None:
        if traffic.gone != marks.gone:
            marks.gone, marks.said = traffic.gone, traffic.said
        look = max(traffic.heard, marks.said) + limits.idle
        if now >= look:
            return EndReason.IDLE_TIMEOUT, look
        again = min(again, look, now + limits.idle / _LOOKS if traffic.glimpsed else _NEVER)
    if limits.rate is not None:
        if _too_slow(limits.rate, marks, traffic, asked, grace=limits.grace, now=now):
            return EndReason.MIN_READ_RATE, now
        again = min(again, now + limits.grace / _LOOKS)
    return None, again


def _stalled(patience: float, marks: Marks, traffic: Traffic, asked: Asked, *, now: float) -> tuple[bool, float]:
    """Whether something has been waiting for the peer, which has taken nothing for so long; and when to look again.

    What is sent meanwhile is no sign of the peer's, so that what has been taken is compared, not what waits.
    """
    if not traffic.waiting:
        marks.moved = None
        return False, now + patience / _LOOKS
    before, marks.moved = marks.moved, asked.peer_takes(traffic)
    if before is None or any(later > earlier for earlier, later in zip(before, marks.moved, strict=False)):
        marks.moved_at = now
    overdue = marks.moved_at + patience
    return now >= overdue, overdue


def _too_slow(rate: float, marks: Marks, traffic: Traffic, asked: Asked, *, grace: float, now: float) -> bool:
    """Whether the peer has been sending for longer than `grace`, without an answer, and slower than `rate`.

    Who sends a short request, in whatever pieces, and waits for its answer is not measured: only what comes after the
    first piece counts, up to the last. Nor is one whose handler leaves unread what it has sent.
    """
    _note_arrivals(marks, traffic, asked.uncounted(), now)
    if traffic.sent != marks.window_answered:
        marks.window_answered = traffic.sent
        return _measure_anew(marks, None)
    if marks.window_since is None:
        return _measure_anew(marks, now) if marks.arrived > marks.window_received else False
    lasted = marks.heard - marks.window_since  # not until now: it may say no more, and wait for its answer
    unread = asked.unread()
    if _handler_reads_nothing(marks, unread):
        return _measure_anew(marks, None)
    if lasted < grace:
        return False
    if marks.arrived - marks.window_received >= rate * lasted:
        return _measure_anew(marks, now)
    return not unread  # else its handler has what to go on with, and we see next time


def _note_arrivals(marks: Marks, traffic: Traffic, uncounted: int, now: float) -> None:
    arrived, before = traffic.received + uncounted, marks.arrived
    if arrived > before:
        marks.heard = now if uncounted else traffic.heard
    elif arrived < before:  # what was encrypted is less when it is read, or was the handshake's
        marks.window_received -= before - arrived
    marks.arrived = arrived


def _measure_anew(marks: Marks, since: float | None) -> bool:
    marks.window_since, marks.window_received, marks.read = since, marks.arrived, -1
    return False


def _handler_reads_nothing(marks: Marks, unread: int) -> bool:
    """Whether it has read nothing since the last look, though there was something: nobody waits for the peer."""
    before, marks.read = marks.read, marks.arrived - unread if unread else -1
    return before == marks.read >= 0

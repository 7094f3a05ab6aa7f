"""What a server has to tell, as typed events; and why a connection has ended.

Values only. `logs` turns events into records; whoever wants to count overrides `BaseServer.handle_event`. Plain classes
with slots: `dataclasses` costs 11 ms to import, three times all of `socketserver`. `lifecycle` shows all of them, too.
"""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .lifecycle import State

__all__ = [
    "AcceptPaused",
    "AcceptResumed",
    "BufferShort",
    "CertificateEnded",
    "CertificatesKept",
    "CertificatesReplaced",
    "ConnectionEnded",
    "ConnectionStarted",
    "ConnectionsHigh",
    "DatagramsTruncated",
    "DrainWaiting",
    "Drained",
    "EndReason",
    "Event",
    "ForkedWithThreads",
    "HookFailed",
    "ListenerDied",
    "LoopHeld",
    "OpeningFailed",
    "PeerLeft",
    "Refused",
    "RequestFailed",
    "RequestsAbandoned",
    "StateChanged",
]


class EndReason(Enum):
    """Why a connection has ended."""

    DONE = "done"
    """Its handler was through with it."""
    PEER_LEFT = "peer_left"
    """The peer reset it, or closed it where the handler did not expect that."""
    FAILED = "failed"
    """Its handler, or a hook on its way, raised."""
    IDLE_TIMEOUT = "idle_timeout"
    CONNECTION_TIMEOUT = "connection_timeout"
    MIN_READ_RATE = "min_read_rate"
    SEND_TIMEOUT = "send_timeout"
    CLOSED = "closed"
    """By the operator: `Connection.close()`."""
    DRAINED = "drained"
    """It was idle when its server drained."""
    CUT = "cut"
    """It still ran at the deadline of a drain."""
    KILLED = "killed"
    """Its process was ended by a signal."""
    REFUSED = "refused"
    """`verify_request` said no."""
    OVERLOADED = "overloaded"
    """No thread or process was to be had for it."""
    HANDSHAKE_FAILED = "handshake_failed"
    """It never spoke TLS, or not as its server does."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """Its PROXY header or TLS handshake took too long, or had to make room for others."""
    PROXY_REFUSED = "proxy_refused"
    """Its PROXY header was wrong, or missing, or not believed."""


class Event:
    """Something a server has to tell. All events are handed to `BaseServer.handle_event`."""

    __slots__ = ()

    def __repr__(self) -> str:
        names = [name for cls in reversed(type(self).__mro__) for name in getattr(cls, "__slots__", ())]
        return f"<{type(self).__name__} {' '.join(f'{name}={getattr(self, name)!r}' for name in names)}>"


class RequestFailed(Event):
    """A handler, or a hook on its way, raised: a bug, or a fault outside the connection."""

    __slots__ = ("client_address", "error", "request")

    def __init__(self, request: Any, client_address: Any, error: BaseException | None) -> None:
        self.request = request
        self.client_address = client_address
        self.error = error


class PeerLeft(RequestFailed):
    """A request ended because its peer closed, reset or fell silent: nothing to mend here."""

    __slots__ = ()


class OpeningFailed(PeerLeft):
    """A connection has ended before its handler saw it: why says `reason`, and `error` what was wrong."""

    __slots__ = ("reason",)

    def __init__(self, request: Any, client_address: Any, error: BaseException, reason: EndReason) -> None:
        super().__init__(request, client_address, error)
        self.reason = reason


class CertificatesKept(Event):
    """New certificates cannot be used, for `error`; the server goes on with those that it has."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class CertificatesReplaced(Event):
    """New certificates are used from now on; the first of them ends in so many `days`."""

    __slots__ = ("days",)

    def __init__(self, days: float | None) -> None:
        self.days = days


class CertificateEnded(Event):
    """A server begins with a certificate that has ended `days` ago: its clients will refuse it."""

    __slots__ = ("days",)

    def __init__(self, days: float) -> None:
        self.days = days


class HookFailed(Event):
    """An overridable method that must not fail did: `service_actions`, `handle_error`, `shutdown_request` ..."""

    __slots__ = ("error", "hook")

    def __init__(self, hook: str, error: BaseException) -> None:
        self.hook = hook
        self.error = error


class AcceptPaused(Event):
    """Requests cannot be taken for now; sent once, however often the pause is repeated."""

    __slots__ = ("error", "seconds")

    def __init__(self, error: BaseException | None, seconds: float) -> None:
        self.error = error
        self.seconds = seconds


class AcceptResumed(Event):
    """Requests are taken again after a pause."""

    __slots__ = ()


class ListenerDied(Event):
    """The listener became useless while it was open; the loop ends with `error`."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class ForkedWithThreads(Event):
    """A request was forked off a process that has other threads; sent once a server."""

    __slots__ = ("threads",)

    def __init__(self, threads: int) -> None:
        self.threads = threads


class LoopHeld(Event):
    """A handler has been holding the event loop for `seconds`, and still does; `stack` is where it is now."""

    __slots__ = ("client_address", "seconds", "stack")

    def __init__(self, client_address: Any, seconds: float, stack: str) -> None:
        self.client_address = client_address
        self.seconds = seconds
        self.stack = stack


class RequestsAbandoned(Event):
    """So many requests of a closing server went on waiting however often they were told to end."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class StateChanged(Event):
    """A step in a server's life."""

    __slots__ = ("after", "before")

    def __init__(self, before: State, after: State) -> None:
        self.before = before
        self.after = after


class ConnectionStarted(Event):
    """A connection was let in. Each has exactly one such event, and one `ConnectionEnded`."""

    __slots__ = ("connection",)

    def __init__(self, connection: Any) -> None:
        self.connection = connection


class ConnectionEnded(Event):
    """A connection is over, closed and with its handler done; `connection.reason` says why.

    In the thread it ended in.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: Any) -> None:
        self.connection = connection


class Refused(Event):
    """A connection or datagram was not let in; with `dry_run` it was, and only counted."""

    __slots__ = ("client_address", "dry_run", "reason")

    def __init__(self, reason: str, client_address: Any, dry_run: bool) -> None:
        self.reason = reason
        self.client_address = client_address
        self.dry_run = dry_run


class ConnectionsHigh(Event):
    """So many connections are open that somebody should know (`connections_alarm`)."""

    __slots__ = ("active",)

    def __init__(self, active: int) -> None:
        self.active = active


class DrainWaiting(Event):
    """A drain has been waiting for a while: for whom, as pairs of a connection and the stack of whoever runs it.

    With `cut` these go on so many seconds after they have been cut.
    """

    __slots__ = ("cut", "seconds", "waiting")

    def __init__(self, waiting: list[tuple[Any, str]], seconds: float, *, cut: bool = False) -> None:
        self.waiting = waiting
        self.seconds = seconds
        self.cut = cut


class Drained(Event):
    """A drain is over; `report` is what it returns."""

    __slots__ = ("report",)

    def __init__(self, report: Any) -> None:
        self.report = report


class DatagramsTruncated(Event):
    """Datagrams were longer than `max_packet_size`: so many so far. Sent once a minute at most."""

    __slots__ = ("client_address", "number", "size")

    def __init__(self, number: int, client_address: Any, size: int | None) -> None:
        self.number = number
        self.client_address = client_address
        """Of the last one."""
        self.size = size
        """Its length in bytes; None if the system does not say."""


class BufferShort(Event):
    """The kernel gave a socket a smaller buffer than `setting` asked for; `sysctl` is what allows more."""

    __slots__ = ("given", "setting", "sysctl", "wanted")

    def __init__(self, setting: str, wanted: int, given: int, sysctl: str) -> None:
        self.setting = setting
        self.wanted = wanted
        self.given = given
        self.sysctl = sysctl

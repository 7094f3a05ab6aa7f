"""Events turned into `logging` records, on the logger `portico`. Only this module and `_access_log` log.

Quiet by default: a peer that leaves is DEBUG, a shortage WARNING, a fault ERROR with its traceback; nothing is logged
per request. No handler is installed, so that a program that never configured logging still sees faults on stderr
(`logging.lastResort`), as it would with `socketserver`.

`logging` is loaded by the first event that somebody can see, not before: it costs more to import than all of
`socketserver`, and adds 80 us to every fork. Where it cannot be loaded any more, out of descriptors, stderr gets the
line instead, which is where an unconfigured `logging` would have put it.
"""

from __future__ import annotations

import sys

from . import _sockets
from .events import (
    AcceptPaused,
    AcceptResumed,
    BufferShort,
    CertificateEnded,
    CertificatesKept,
    CertificatesReplaced,
    ConnectionEnded,
    ConnectionsHigh,
    ConnectionStarted,
    DatagramsTruncated,
    Drained,
    DrainWaiting,
    Event,
    ForkedWithThreads,
    HookFailed,
    ListenerDied,
    LoopHeld,
    OpeningFailed,
    PeerLeft,
    Refused,
    RequestFailed,
    RequestsAbandoned,
    StateChanged,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["emit", "print_like_stdlib", "record"]

# logging's own numbers, known before it is loaded.
_DEBUG: Final = 10
_INFO: Final = 20
_WARNING: Final = 30
_ERROR: Final = 40
_NAMED: Final = 10


def emit(server: object, event: Event) -> None:
    """Hand an event to the server's `handle_event`, or to `record` for a server that is not Portico's.

    Never raises, but for Ctrl-C: telling about a fault must not become one, nor be what ends a drain or a loop.
    """
    try:
        getattr(server, "handle_event", record)(event)
    except (Exception, SystemExit) as error:
        _say_at_least_that(event, error)


def record(event: Event) -> None:
    """Write one event to the log."""
    level, message, error = _rendered(event)
    if level < _WARNING and "logging" not in sys.modules:
        return  # nobody has asked to see it
    import logging

    trace = None if error is None else (type(error), error, error.__traceback__)
    logging.getLogger("portico").log(level, "%s", message, exc_info=trace)


def _rendered(event: Event) -> tuple[int, str, BaseException | None]:
    """An event's level, its message, and the exception whose traceback belongs to it."""
    match event:
        case OpeningFailed():
            return _INFO, f"{_peer(event)} was not let in, {event.reason.value}: {_words(event.error)}", None
        case PeerLeft():
            return _DEBUG, f"peer {_peer(event)} left: {event.error!r}", None
        case RequestFailed():
            return _ERROR, f"request from {_peer(event)} failed", event.error
        case HookFailed():
            return _ERROR, f"{event.hook} raised an exception; the server goes on", event.error
        case AcceptPaused():
            return _WARNING, f"cannot take requests: {event.error}; trying again, at first in {event.seconds:g} s", None
        case AcceptResumed():
            return _INFO, "taking requests again", None
        case ListenerDied():
            return _ERROR, f"the listener is of no use any more, serving ends: {event.error}", None
        case ForkedWithThreads():
            return _WARNING, (
                f"a request is forked while {event.threads} other threads run: a lock that one of them holds stays "
                "locked in the child; serve from the only thread of a process, or use ThreadingMixIn"
            ), None  # fmt: skip
        case LoopHeld():
            held = f"{_holder(event)} has been holding the event loop for {event.seconds:.2g} s"
            return _WARNING, f"{held}, and everybody else with it:\n{event.stack}", None
        case RequestsAbandoned():
            return _ERROR, f"{event.number} requests catch GreenletExit and go on waiting; they are left behind", None
        case DatagramsTruncated():
            size = "" if event.size is None else f", of {event.size} bytes"
            return _WARNING, (
                f"a datagram from {event.client_address!r}{size} was longer than max_packet_size, {event.number} so "
                "far: not handled as if it were whole, see handle_truncated"
            ), None  # fmt: skip
        case BufferShort():
            given = f"{event.setting} = {event.wanted} bytes were asked for, the kernel gives {event.given}"
            return _WARNING, f"{given}: raise the sysctl {event.sysctl}", None
    return _rendered_of_connections(event)


def _rendered_of_connections(event: Event) -> tuple[int, str, BaseException | None]:
    match event:
        case CertificateEnded():
            return _WARNING, f"the certificate has ended {event.days:.1f} days ago: clients will refuse it", None
        case CertificatesKept():
            return _ERROR, f"new certificates cannot be used, the old ones stay: {event.error}", None
        case CertificatesReplaced():
            until = "" if event.days is None else f"; the first of them ends in {event.days:.1f} days"
            return _INFO, f"new certificates are used from now on{until}", None
        case StateChanged():
            return _DEBUG, f"{event.before.value}, now {event.after.value}", None
        case ConnectionStarted():
            return _DEBUG, f"connection {event.connection.id} from {event.connection.client_address!r}", None
        case ConnectionEnded():
            return _DEBUG, f"connection {event.connection.id} has ended: {event.connection.reason.value}", None
        case Refused():
            would = "would have been refused" if event.dry_run else "refused"
            return _DEBUG, f"{event.client_address!r} {would}: {event.reason}", None
        case ConnectionsHigh():
            return _WARNING, f"{event.active} connections are open (connections_alarm, max_connections)", None
        case DrainWaiting():
            whom = "\n".join(f"{_whom(connection)}:\n{stack}" for connection, stack in event.waiting)
            why = "requests to end" if not event.cut else "requests that have been cut"
            return _WARNING, f"has been waiting {event.seconds:.2g} s for {why}; the first are\n{whom}", None
        case Drained() if event.report.cut:
            whom = ", ".join(_whom(connection) for connection in event.report.cut[:_NAMED])
            report = event.report
            return _WARNING, (
                f"{report.finished} requests have come to their end, {len(report.cut)} have been cut "
                f"after {report.seconds:.1f} s, {len(report.stuck)} go on all the same: {whom}"
            ), None  # fmt: skip
        case Drained():
            return (
                _INFO,
                f"{event.report.finished} requests have come to their end in {event.report.seconds:.1f} s",
                None,
            )
    return _INFO, type(event).__name__, None


def _whom(connection: Any) -> str:
    return f"connection {connection.id} from {connection.client_address!r}" if connection.id else f"{connection.runner}"


def _holder(event: LoopHeld) -> str:
    of_its_own = event.client_address is None
    return "a handler's own task or green thread" if of_its_own else f"the handler of {event.client_address!r}"


def _words(error: BaseException | None) -> str:
    """What an exception says, and if that is nothing, as of many of asyncio's, what it is."""
    return str(error) or repr(error)


def _peer(event: RequestFailed) -> str:
    """A peer's name for a reader: Unix clients mostly have an empty address, but a process behind it."""
    address: Any = event.client_address
    if address:
        text = str(address)
        return text if text.isprintable() else repr(address)  # a path may be a stranger's to choose
    try:
        who = _sockets.peer_credentials(event.request)
    except Exception:  # a closed socket, a datagram, a system without credentials: then there is nothing to add
        return "somebody without an address"
    return f"pid {who.pid}, uid {who.uid}"


def _say_at_least_that(event: Event, error: BaseException) -> None:
    """`handle_event` failed: an override's fault, or the log is out of reach."""
    try:
        record(event)
        record(HookFailed("handle_event", error))
    except Exception:
        try:
            print(f"portico: {_rendered(event)[1]} (not logged: {error!r})", file=sys.stderr)
        except Exception:  # stderr closed, an exception that cannot be shown: nobody is left to tell
            return


def print_like_stdlib(client_address: Any) -> None:
    """Print the current exception to stderr, word for word as `socketserver` does (`stdlib_compat`)."""
    import traceback

    line = "-" * 40
    print(line, file=sys.stderr)
    print("Exception occurred during processing of request from", client_address, file=sys.stderr)
    traceback.print_exc()
    print(line, file=sys.stderr)

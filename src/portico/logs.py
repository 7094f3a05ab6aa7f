"""Events turned into `logging` records, on the logger `portico`. The only module that logs.

Quiet by default: a peer that leaves is DEBUG, a shortage WARNING, a fault ERROR with its traceback; nothing is logged
per request. No handler is installed, so that a program that never configured logging still sees faults on stderr
(`logging.lastResort`), as it would with `socketserver`.

`logging` costs more to import than all of `socketserver`, so it is loaded by the first server that is made, not by
`import portico`, and no later: an import needs descriptors, which may be just what has run out.
"""

from __future__ import annotations

from . import _sockets
from .lifecycle import (
    AcceptPaused,
    AcceptResumed,
    Event,
    ForkedWithThreads,
    HookFailed,
    ListenerDied,
    PeerLeft,
    RequestFailed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Any

__all__ = ["emit", "logger", "record"]


def logger() -> logging.Logger:
    """The logger `portico`; loads `logging` if nobody has yet."""
    import logging

    return logging.getLogger("portico")


def emit(server: object, event: Event) -> None:
    """Hand an event to the server's `handle_event`, or to `record` for a server that is not Portico's.

    Never raises: telling about a fault must not become one.
    """
    try:
        getattr(server, "handle_event", record)(event)
    except Exception:
        _say_at_least_that(event)


def record(event: Event) -> None:
    """Write one event to the log."""
    log = logger()
    match event:
        case PeerLeft():
            log.debug("peer %s left: %r", _peer(event), event.error)
        case RequestFailed():
            _error("request from %s failed", _peer(event), error=event.error)
        case HookFailed():
            _error("%s raised an exception; the server goes on", event.hook, error=event.error)
        case AcceptPaused():
            log.warning("cannot take requests: %s; trying again, at first in %g s", event.error, event.seconds)
        case AcceptResumed():
            log.info("taking requests again")
        case ListenerDied():
            log.error("the listener is of no use any more, serving ends: %s", event.error)
        case ForkedWithThreads():
            log.warning(
                "a request was forked while %d other threads run: a lock that one of them holds stays locked in the "
                "child; serve from the only thread of a process, or use ThreadingMixIn",
                event.threads,
            )
        case _:
            log.info("%s", type(event).__name__)


def _error(message: str, subject: str, *, error: BaseException | None) -> None:
    trace = None if error is None else (type(error), error, error.__traceback__)
    logger().error(message, subject, exc_info=trace)


def _peer(event: RequestFailed) -> str:
    """A peer's name for a reader: Unix clients mostly have an empty address, but a process behind it."""
    address: Any = event.client_address
    if address:
        return str(address)
    try:
        who = _sockets.peer_credentials(event.request)
    except Exception:  # a closed socket, a datagram, a system without credentials: then there is nothing to add
        return "without an address"
    return f"pid {who.pid}, uid {who.uid}"


def _say_at_least_that(event: Event) -> None:
    try:
        logger().error("handle_event failed on %s", type(event).__name__, exc_info=True)
    except Exception:  # stderr closed, a broken handler: nobody is left to tell
        return


def print_like_stdlib(client_address: Any) -> None:
    """Print the current exception to stderr, word for word as `socketserver` does (`stdlib_compat`)."""
    import sys
    import traceback

    line = "-" * 40
    print(line, file=sys.stderr)
    print("Exception occurred during processing of request from", client_address, file=sys.stderr)
    traceback.print_exc()
    print(line, file=sys.stderr)

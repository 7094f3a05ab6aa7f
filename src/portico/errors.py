"""What can go wrong, whose fault it is, and what happens next.

Here live the exceptions that Portico raises itself and the two functions that sort the operating system's.
Sorting goes by PEP 3151's classes; only the conditions that have no class of their own are named by errno, here and
nowhere else. No logging, no sockets and no policy: the accept policy is `_acceptor`'s.
"""

from __future__ import annotations

import errno
import select
import sys
from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AddressError",
    "HandlerError",
    "HandshakeError",
    "LineTooLong",
    "Outcome",
    "Overloaded",
    "PorticoError",
    "ProxyError",
    "SessionEnded",
    "SettingError",
    "TLSError",
    "UnavailableError",
    "UnknownSettingError",
    "accept_outcome",
    "is_disconnect",
]


class PorticoError(Exception):
    """Base of all exceptions that Portico defines. Errors of the operating system stay `OSError`s."""


class AddressError(PorticoError, ValueError):
    """An address that cannot be understood, or that does not fit the kind of server it was given to."""


class HandlerError(PorticoError, TypeError):
    """A handler that does not fit the server: a blocking one where handlers are awaited, or the other way round."""


class LineTooLong(PorticoError, ValueError):
    """A peer has sent a longer line than the handler takes (`StreamRequestHandler.max_line`)."""


class ProxyError(PorticoError, ValueError):
    """A connection does not begin with a PROXY protocol header, and why: the peer's fault, or that of its settings."""


class SessionEnded(PorticoError, ConnectionAbortedError):
    """A session (`UDPServer.sessions`) is over: nothing more will come. Uncaught, it is the peer's leaving."""


class SettingError(PorticoError, ValueError):
    """A setting with a value it does not allow."""


class TLSError(PorticoError, ValueError):
    """Certificates, keys or TLS settings that cannot be used."""


class HandshakeError(PorticoError, ConnectionAbortedError):
    """A client has not spoken TLS as it should, when a handler began it (`start_tls`). Uncaught: the peer's fault."""


class UnknownSettingError(SettingError, TypeError):
    """A keyword argument that is no setting. Also a `TypeError`, Python's own word for it."""


class UnavailableError(SettingError):
    """A setting or service that this operating system does not have."""


class Overloaded(PorticoError, RuntimeError):
    """A request could not be started for want of threads, processes or memory: nobody's bug, so accepting pauses.

    Raised by `process_request` of the mix-ins. Also a `RuntimeError`, which is what `Thread.start` raises.
    """


class Outcome(Enum):
    """Why no request could be taken from the listener; the accept loop goes by nothing else."""

    EMPTY = "empty"
    """Nothing was waiting: back to polling."""
    LOST = "lost"
    """This one is lost, through its own peer or a refused hook; the next may be well: go on."""
    EXHAUSTED = "exhausted"
    """Out of descriptors, memory or threads: trying again at once would only burn the processor."""
    DEAD = "dead"
    """The listener itself is of no use any more: the loop ends."""


# accept(2) names these four for a lack of resources; PEP 3151 gave them no class.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The descriptor is closed, is no socket, or does not listen. A candidate only: an overridden `get_request` may raise
# the same numbers about a socket of its own, so the server looks at its listener before it believes them.
_DEAD = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}


def accept_outcome(error: Exception) -> Outcome:
    """Sort an error of taking a request by what the accept loop does next.

    All that accept(2) reports about the new connection rather than the listener (ECONNABORTED, EPROTO, EPERM, the
    pending network errors) is `LOST`, and so is whatever is not known: one unknown error must not end a server.
    """
    if isinstance(error, BlockingIOError):
        return Outcome.EMPTY
    number = getattr(error, "errno", None)
    if number in _EXHAUSTED or isinstance(error, Overloaded):
        return Outcome.EXHAUSTED
    if number in _DEAD:
        return Outcome.DEAD
    return Outcome.LOST


def is_disconnect(error: BaseException | None, request: Any, client_address: Any = None) -> bool:
    """Tell the peer's fault from the handler's: it left, fell silent past the request's own timeout, or sent too much.

    The last is `LineTooLong`, or a line beyond the limit of asyncio's streams: whoever floods a server must not fill
    its log with tracebacks.
    `ConnectionRefusedError` is never a connected peer's doing: in a stream handler it comes from a connection the
    handler made itself, and must be seen. In a datagram handler it is the ICMP answer of a vanished peer. The other
    connection errors may be another connection's, too, so the request's own is looked at. A
    `TimeoutError` counts only if the request's socket has a timeout, or the kernel gave the connection up
    (ETIMEDOUT): since Python 3.11 a future's timeout is of the same class.
    """
    if isinstance(error, (LineTooLong, HandshakeError)) or _is_beyond_asyncios_limit(error):
        return True
    if error is not None and error is getattr(request, "failure", None):  # its TLS is broken
        return True
    if isinstance(error, ConnectionRefusedError):
        return isinstance(request, tuple)
    if isinstance(request, tuple) and isinstance(error, OSError) and _is_out_of_reach(error, client_address):
        return True
    if isinstance(error, ConnectionError):
        return not _is_connected(request)
    if isinstance(error, TimeoutError):
        return error.errno == errno.ETIMEDOUT or _has_timeout(request)
    ssl = sys.modules.get("ssl")  # never imported from here: without it no such error can exist
    return ssl is not None and isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, getattr(errno, "EHOSTDOWN", errno.EHOSTUNREACH)}


def _is_out_of_reach(error: OSError, client_address: Any) -> bool:
    """Whether a datagram's sender cannot be answered, who may have given any address as his, or port 0 (RFC 768)."""
    port = client_address[1] if isinstance(client_address, tuple) and len(client_address) > 1 else None
    return error.errno in _UNREACHABLE or (error.errno == errno.EINVAL and port == 0)


def _is_beyond_asyncios_limit(error: BaseException | None) -> bool:
    """Its `readline` raises a plain ValueError for that, from the error that `readuntil` raises."""
    asyncio = sys.modules.get("asyncio")  # as with ssl
    if asyncio is None:
        return False
    cause = error.__context__ if type(error) is ValueError else error
    return isinstance(cause, asyncio.LimitOverrunError)


def _is_connected(request: Any) -> bool:
    """Whether the request's own connection stands: then an error is of another one, which the handler has made."""
    known: bool | None = getattr(request, "was_connected", None)  # asyncio's streams have closed it meanwhile
    if known is not None:
        return known
    try:
        poll = select.poll()
        poll.register(request, select.POLLOUT)
        return not any(bits & ~select.POLLOUT for _, bits in poll.poll(0))
    except (AttributeError, TypeError, ValueError, OSError):  # closed, a datagram, no socket, no poll(): not to be told
        return False


def _has_timeout(request: Any) -> bool:
    try:
        return request.gettimeout() is not None
    except (AttributeError, OSError):
        return False

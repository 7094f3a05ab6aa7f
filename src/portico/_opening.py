"""How a connection is opened: what has to be read and agreed before its handler sees it, and within what time.

First its PROXY header, if one is expected, then TLS. Here is what one step does, who is believed, and what an end
before the beginning is called; where the steps are taken is said by the way to run: the header where the loop is
(`_lobby`, or a green thread, or a task), the handshake in the request's own thread, process, green thread or task.
"""

from __future__ import annotations

import select
import socket
import sys
from collections import OrderedDict
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic

from . import proxy_protocol
from ._sockets import DONT_WAIT
from .admission import Trusted
from .errors import ProxyError
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._connection import Connection
    from .proxy_protocol import ProxyHeader

__all__ = ["Opening", "Openings", "Undecided", "is_wanted", "reason_of"]

_recv: Final = socket.SocketType.recv
_PEEK: Final = int(socket.MSG_PEEK) | DONT_WAIT
# So long a beginning can be a PROXY header's, or a client's own words.
_SIGNATURE: Final = 12
# Seconds between two looks at such a one: the first, and the last, lest many of them keep their server busy.
_PAUSE: Final = 0.005
_PAUSE_MAX: Final = 0.32
# Of the oldest connections that are being opened, so many are asked whether they have said anything.
_ASKED: Final = 8


class Undecided(BlockingIOError):
    """What has come may yet become a header, and must stay where it is: look again in `pause` seconds."""

    def __init__(self, pause: float) -> None:
        super().__init__("undecided")
        self.pause = pause


class Opening:
    """What one connection has still to do, and until when."""

    __slots__ = ("_pause", "_taken", "believed", "deadline", "expects_header", "heard", "mark", "optional", "told")

    def __init__(self, deadline: float, *, expects_header: bool, optional: bool, believed: bool) -> None:
        self.deadline = deadline
        self.expects_header = expects_header
        """Whether a PROXY header has yet to be taken."""
        self.optional = optional
        self.believed = believed
        """Whether whoever has connected may announce others."""
        self.heard = False
        """Whether anything that it has said was seen: of Unix sockets the kernel does not tell."""
        self.mark: int | None = None
        """Where a child says that it is done, if one does it."""
        self.told = False
        """Whether it has failed, and that has been told."""
        self._taken = b""
        self._pause = _PAUSE

    @property
    def left(self) -> float:
        """Seconds until it is too late; a little above 0 at the least."""
        return max(0.001, self.deadline - monotonic())

    def hear(self, sock: Any) -> None:
        """Return if the client has said anything; nothing is spent on those who are silent. Never waits.

        Raises `BlockingIOError`, after which it may be called again, and `ConnectionResetError` if it has left.
        """
        if not _recv(sock, 1, _PEEK):
            raise ConnectionResetError("the peer has left without a word")
        self.heard = True

    def take_header(self, sock: Any) -> ProxyHeader | None:
        """Read the header, not a byte more; None if there is none and need not be. Never waits.

        Raises `BlockingIOError` while more has to come, which may be called for again, and `ProxyError`.
        """
        while True:
            seen: bytes = _recv(sock, proxy_protocol.MAX_V2, _PEEK)
            self.heard = self.heard or bool(seen)
            data = self._taken + seen
            if self.optional and (not proxy_protocol.may_begin(data) or not (seen or data)):
                return None
            if not seen:
                raise ConnectionResetError(f"the peer has left after {len(data)} bytes of its PROXY header")
            header = proxy_protocol.parse(data)
            if header is not None:
                if not self.believed:
                    raise ProxyError("a PROXY header from somebody who is not in proxy_trusted")
                _recv(sock, header.length - len(self._taken), DONT_WAIT)
                return header
            if self.optional and len(data) < _SIGNATURE and not data.startswith(b"PROXY "):
                if not _has_ended(sock):
                    self._pause, pause = min(2 * self._pause, _PAUSE_MAX), self._pause
                    raise Undecided(pause)
                if len(_recv(sock, proxy_protocol.MAX_V2, _PEEK)) == len(seen):  # looked at after the end was seen
                    return None
                continue
            _recv(sock, len(seen), DONT_WAIT)
            self._taken = data


class Openings:
    """Those of a server's connections that are being opened, and the rules for it."""

    def __init__(self, server: Any) -> None:
        self._live: OrderedDict[int, Connection] = OrderedDict()
        self._timeout: float = server.handshake_timeout
        self.refresh(server)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._live.values()))

    def refresh(self, server: Any) -> None:
        """Read the settings anew."""
        trusted, before = server.proxy_trusted, self._timeout
        self._mode: str = server.proxy_protocol
        self._trusted = None if trusted is None else Trusted(trusted)
        self._timeout = server.handshake_timeout
        for connection in self if self._timeout != before else ():
            opening = connection.opening
            if opening is not None:  # so that their time runs out in the order in which they have come
                opening.deadline += self._timeout - before
        self._most: int | None = server.max_handshakes

    def refusal(self, server: Any, client_address: Any) -> str | None:
        """The setting that keeps a new connection out, if one does."""
        if self._mode == "required" and not self._is_trusted(client_address):
            return "proxy_trusted"
        if self._most is not None and len(self._live) >= self._most:
            server._portico_look_at_openings()
            if len(self._live) >= self._most and not self._make_room(server):
                return "max_handshakes"
        return None

    def begin(self, server: Any, client_address: Any) -> Opening | None:
        """What a new connection has to do, if anything."""
        server._portico_watch_certificates()
        if not server._portico_opens:
            return None
        expects, believed = self._mode != "off", self._mode == "required" or self._is_trusted(client_address)
        deadline, optional = monotonic() + self._timeout, self._mode == "optional"
        return Opening(deadline, expects_header=expects, optional=optional, believed=believed)

    def _is_trusted(self, client_address: Any) -> bool:
        return self._trusted is not None and client_address in self._trusted

    def add(self, connection: Connection, opening: Opening) -> None:
        connection.opening = opening
        self._live[connection.id] = connection

    def done(self, connection: Connection) -> None:
        """It is open, or has come to its end. From any thread, and again."""
        connection.opening = None
        self.opened(connection)

    def opened(self, connection: Connection) -> None:
        """The same, where something of it is still needed."""
        self._live.pop(connection.id, None)

    def _make_room(self, server: Any) -> bool:
        """Cut the oldest one that has said nothing, if there is one."""
        for connection in [connection for connection, _ in zip(self, range(_ASKED), strict=False)]:
            known = connection.measure()
            if not (server._portico_has_heard(connection) or (known is not None and known.received)):
                self._live.pop(connection.id, None)
                connection.refusal = "max_handshakes"
                server._portico_connections.count_refusal("max_handshakes")
                connection.cut(EndReason.HANDSHAKE_TIMEOUT)
                return True
        return False


def _has_ended(sock: Any) -> bool:
    """Whether the peer says nothing more than what has come; False where a system does not tell."""
    if not hasattr(select, "POLLRDHUP"):
        return False
    asked = select.poll()
    asked.register(sock, select.POLLRDHUP)
    return bool(asked.poll(0))


def is_wanted(error: BaseException) -> int | None:
    """The event of `selectors` that has to come first, if that is all that an error says."""
    ssl: Any = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, ssl.SSLWantWriteError):
        return EVENT_WRITE
    if isinstance(error, BlockingIOError) or (ssl is not None and isinstance(error, ssl.SSLWantReadError)):
        return EVENT_READ
    return None


def reason_of(error: BaseException) -> EndReason:
    """What the end of a connection that was never opened is called."""
    if isinstance(error, ProxyError):
        return EndReason.PROXY_REFUSED
    ssl: Any = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return EndReason.PEER_LEFT
    if isinstance(error, TimeoutError):
        return EndReason.HANDSHAKE_TIMEOUT
    if isinstance(error, ConnectionError) and not (ssl is not None and isinstance(error, ssl.SSLError)):
        return EndReason.PEER_LEFT
    return EndReason.HANDSHAKE_FAILED

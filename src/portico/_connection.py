"""One client's connection: who it is, since when, what has gone over it, and how it is cut.

Whom there are, and what their ends count for, is `_connections`'; where the figures come from `_meters`'.
"""

from __future__ import annotations

import socket
from _weakref import ref as _reference  # `weakref` is three times as dear, and adds nothing here
from time import monotonic

from ._addresses import unmapped
from ._meters import Counting, Metered, Tally, in_queue, kernel_counts, kernel_figures, kernel_totals, kernel_traffic
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._meters import Traffic

    Reading = tuple[bytes, float] | Traffic
    """Read for every connection, understood for few: what the kernel has said, and when."""

__all__ = ["Connection"]

# Seconds. The kernel tells in milliseconds, and counts in ticks of up to 10 of them.
_TICK: Final = 0.012
_MOMENT: Final = 0.25
_shutdown: Final = socket.SocketType.shutdown


class Connection:
    """One client's connection, as its server sees it. Made by the server; the socket belongs to the request.

    `bytes_in` and `bytes_out` are None where they cannot be known: of a process that has the only copy of the socket.
    """

    # Class variables, and no slots, since most connections begin and end without any of these being set.

    reason: EndReason | None = None
    """Why it has ended, or is about to."""
    refusal: str | None = None
    """The setting that keeps its client out, where that was known only after it was let in."""
    runner: Any = None
    """What runs its handler: a thread, a green thread, a task, a process id; None if that is the server's loop."""
    in_hand = 0
    """The thread, by its ident, of the hook that runs its handler and has yet to return, and will tell of its end."""
    closed = False
    """Whether its socket has been closed."""
    client: Any = None
    """Whom the limits per client count it for, if there are any."""
    opening: Any = None
    """What is still to be done before its handler sees it, if anything is (`_opening`)."""
    proxy: Any = None
    """The PROXY header that has announced its client."""
    _connected: Any = None
    preamble = 0
    """Bytes of that header, if the kernel counts them among the client's."""
    unanswered = -1
    """Bytes sent before anything that could answer the first request, if that came together with a handshake's end."""
    tls: Any = None
    """What its TLS has agreed on (`client.TLSInfo`), once somebody has asked."""
    credentials: Any = None
    """Who is behind a Unix socket, where the access log has asked."""
    key: int | None = None
    """Where the registry finds it, if its socket does not know it."""
    handler: Any = None
    """The handler, where it has a `goodbye` to be said."""
    told: Any = None
    """Set when it is told to end, by whoever was first to do so."""
    kept: Any = None
    """A second descriptor of it: the parent's where a child serves it, ours where a handler has wrapped the first."""
    marks: Any = None
    glances: Any = None
    """What can be seen of it where nobody counts (`_glances`), for the time limits."""
    backlog: Any = None
    """How much a handler has left unread of what was read for it, where that can be known: asyncio's streams."""
    tally: Tally | None = None
    _ended: float | None = None
    _local: Any = None
    shared: Any = None
    """Where the child that serves it tells what has gone over it."""
    _counted = True
    """Whether it can be read what has gone over it."""
    _seen: Reading | None = None
    """What was read last, by whoever looked."""
    _last: Reading | None = None
    """What was read at its end, and holds: one who looked a moment before must not put something older in its place."""

    def __init__(self, server: Any, request: Any, client_address: Any, number: int) -> None:
        self.id = number
        self.client_address = client_address
        self._server = server
        self._began = monotonic()
        self.follow(request)

    def follow(self, request: Any) -> None:
        """From now on this is its socket. Not kept alive from here: one that is forgotten is closed, as ever."""
        try:
            self._socket: Callable[[], Any] = _reference(request)
        except TypeError:  # nothing that could be referred to weakly, such as None
            self._socket = lambda: request
        if isinstance(request, Metered):
            request.connection = self
            if isinstance(request, Counting) and self.tally is None:
                self.tally = Tally(self._began)
        elif self.tally is None:
            self._counted = isinstance(request, socket.socket) and kernel_counts(request)

    # -- for everybody

    @property
    def local_address(self) -> Any:
        """The address that the client has connected to; None if it is not known any more."""
        self._note_local()
        return self._local

    @property
    def server(self) -> Any:
        """Whose connection it is."""
        return self._server

    @property
    def connected_address(self) -> Any:
        """Who has connected: `client_address`, or the proxy that has announced that one."""
        return self.client_address if self.proxy is None else self._connected

    @property
    def age(self) -> float:
        """Seconds since it began, or that it has lasted."""
        return (monotonic() if self._ended is None else self._ended) - self._began

    @property
    def idle(self) -> float | None:
        """Seconds since the last byte, either way."""
        known = self.measure()
        if known is None:
            return None
        return max(0.0, (monotonic() if self._ended is None else self._ended) - max(known.heard, known.said))

    @property
    def bytes_in(self) -> int | None:
        known = self.measure()
        return None if known is None else known.received

    @property
    def bytes_out(self) -> int | None:
        known = self.measure()
        return None if known is None else known.sent

    @property
    def state(self) -> str:
        """ "open", "closing" (it has been told to end) or "ended"."""
        if self._ended is not None:
            return "ended"
        return "open" if self.reason is None else "closing"

    def close(self) -> None:
        """Cut it, from any thread: its handler sees a peer that has gone. Nothing happens if it has ended."""
        self.cut(EndReason.CLOSED)

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self.client_address!r}, {self.state}>"

    # -- for the house

    def announce(self, header: Any, *, unmap: bool) -> None:
        """A trusted proxy says who its client is; or, with None or a header without one, that it is its own."""
        if header is not None and self.tally is None:
            self.preamble = header.length
            if self.marks is not None:  # nor is it the beginning of what must come so fast
                self.marks.window_since, self.marks.window_received = None, header.length
        if header is None or header.source is None:
            return
        self.proxy, self._connected = header, self.client_address
        self.client_address = unmapped(header.source) if unmap else header.source

    def note_request(self, sock: Any) -> None:
        """Its handshake is done. What has come with its end is a request: tickets, sent after it, are no answer."""
        if sock.unread():
            known = self.measure()
            self.unanswered = -1 if known is None else known.sent

    def cut(self, reason: EndReason) -> None:
        if self._ended is None:
            again = self.reason is EndReason.CUT
            if self.reason is None or (self.reason is EndReason.DRAINED and reason is EndReason.CUT):
                self.reason = reason
            self.settle()
            self._server._portico_cut(self, reason, again=again)

    def shut(self, how: int) -> None:
        """shutdown(2) of its socket, whatever kind that is; from any thread, under the feet of whoever reads there."""
        sock = self.current_socket()
        if isinstance(sock, socket.socket):
            # Not its `shutdown`: a TLS socket's would wait, or take its protocol state away from the handler.
            cut = getattr(sock, "portico_cut", None)
            try:
                if cut is not None:
                    cut(how)
                else:
                    _shutdown(sock, how)
            except OSError:  # closed, or the peer was first
                return
        elif isinstance(sock, Metered):  # a session, which has no descriptor
            sock.shutdown(how)

    def current_socket(self) -> Any:
        return self.kept if self.kept is not None else self._socket()

    def measure(self) -> Traffic | None:
        """What has gone over it; what was last known, once that cannot be read any more; None if it never could."""
        reading = self._last
        if reading is None and self._counted:
            found = self._read()
            if found is not None:
                self._seen = found
            reading = found or self._seen
        return kernel_traffic(*reading) if isinstance(reading, tuple) else reading

    def look(self) -> Traffic | None:
        """What the time limits go by: what has gone over it or, where nobody knows that, whether something has."""
        tally = self.tally
        if tally is not None and tally.blind and self._last is None:
            self.goes_unseen()
            self._glance()
        return self.measure() if self.glances is None else self.glances.traffic(self.current_socket())

    def uncounted(self) -> int:
        """Bytes that have come, and count only when they are read."""
        return 0 if self.tally is None else in_queue(self.current_socket())

    def unread(self) -> int:
        """Bytes that have come, and were not read by its handler, as far as that is known."""
        return in_queue(self.current_socket()) + (0 if self.backlog is None else self.backlog())

    def peer_takes(self, traffic: Traffic) -> tuple[int, ...]:
        """Numbers of which one grows when the peer takes something. Two looks tell whether it does."""
        if self.tally is None:
            return (traffic.taken,)
        from ._glances import peer_takes  # only where somebody has to know

        return peer_takes(self.current_socket(), traffic.sent)

    def _glance(self) -> None:
        from ._glances import Glances

        try:
            if self.kept is not None and self._ended is None:
                self.glances = Glances(self.kept)
        except (AttributeError, OSError):  # there is no epoll; nor a descriptor for it
            return
        keeper = self._server._portico_connections.keeper
        if keeper is not None:
            keeper.look_at(self)

    def _read(self) -> Reading | None:
        if self.tally is not None:
            return self.tally.traffic(self.current_socket())
        sock = self.current_socket()
        figures = None if sock is None else kernel_figures(sock)
        return None if figures is None else (figures, monotonic())

    def totals(self) -> tuple[int, int]:
        """Bytes in and out, as last read; 0 where they are not known."""
        reading = self._last or self._seen
        if isinstance(reading, tuple):
            return kernel_totals(reading[0])
        return (0, 0) if reading is None else (reading.received, reading.sent)

    def settle(self) -> None:
        """It is about to be shut down by its server: the best moment to read what has gone over it, and the last one.

        Afterwards the kernel counts the peer's end as a byte received, or not, and no longer tells which.
        """
        if self._counted and self._last is None:
            self._last = self._read() or self._seen

    def goes_unseen(self, shared: Tally | None = None) -> None:
        """From now on what goes over it is known to another process, or to whoever has its descriptor; not here.

        Unless that one counts in memory that is `shared`.
        """
        self._counted, self.tally = shared is not None, shared

    def last_totals(self) -> tuple[int, int] | None:
        """Bytes in and out, if they can be known to the last one."""
        if self.current_socket() is not None:
            self.settle()
        return None if self._last is None else self.totals()

    def known_at_last(self, traffic: Traffic) -> None:
        """It has ended, and he who alone knew what has gone over it has told."""
        self._last = traffic

    def leaves_socket(self) -> None:
        """Its socket is about to close: the last moment that what has gone over it can be read."""
        if self.shared is None or self.tally is None:
            self.settle()
        self._socket = _nothing

    def has_lost_socket(self) -> None:
        """Its descriptor has been closed by number, which may be somebody else's now: nothing is to be read there."""
        self._socket = _nothing

    def is_idle(self) -> bool:
        """Whether the client is owed nothing: nothing has come that has not been followed by something sent.

        What the kernel says was said within a tick of its clock may have been said before or after: it is believed to
        be an answer when nothing more has come for a moment.
        """
        if self.opening is not None and self._server._portico_still_opens(self):
            return True
        known = self.measure()
        if known is None or known.sent <= self.unanswered:
            return False
        if not known.received or not known.sent:  # what was never said counts as said when the connection began
            return known.received <= self.preamble
        if known.heard > known.said:
            return False
        if self.tally is not None:
            return monotonic() - known.said >= self.tally.patience
        return known.said - known.heard >= _TICK or monotonic() - known.heard > _MOMENT

    def failed(self, reason: EndReason) -> None:
        if self.reason is None:
            self.reason = reason

    def socket_closed(self) -> None:
        """Its socket has been closed.

        That is its end, unless a way to run of ours will tell when the handler is done.
        """
        self.closed = True
        if self.runner is None and not self.in_hand:
            self._server._portico_connections.end(self)

    def socket_detached(self, sock: socket.socket) -> None:
        """Its descriptor is about to go to another object, as when a handler wraps it in TLS.

        With time limits it is followed by a copy, which is closed when the connection ends. Not without: a handler that
        closes what it has wrapped is to be seen to close it, as in `socketserver`. Over Unix sockets what takes its
        place does not count: then looks at the copy tell that something moves, here or in the parent of a child.
        """
        counted = self.tally is not None
        if not counted:
            self.measure()
            self._socket = _nothing
        elif self.shared is not None:
            self.shared.blind = True
            self.goes_unseen()
            return
        else:
            self.goes_unseen()
        followed = self.kept is None and self.marks is not None
        if followed and (self.runner is not None or self._server._portico_closes_requests()):
            self.kept = socket.fromfd(sock.fileno(), sock.family, sock.type, sock.proto)
            if counted:
                self._glance()

    def over(self) -> float:
        """It has ended: free what it holds. Returns the seconds that it has lasted."""
        self._ended = now = monotonic()
        self.settle()
        if self.glances is not None:
            self.glances.close()
        if self.kept is not None:
            self.kept.close()
            self.kept = None
        if self.marks is not None or self.handler is not None:
            self.handler = self.marks = None
        self._socket = _nothing
        return now - self._began

    def _note_local(self) -> None:
        sock = self.current_socket()
        if self._local is None and sock is not None:
            try:
                self._local = sock.getsockname()
            except (OSError, AttributeError):
                return


def _nothing() -> None:
    return None

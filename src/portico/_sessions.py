"""Who has a session on a datagram server: datagrams go to their peer's, and who has none yet gets one, or is refused.

In the place of the server's plain `Reception`: to take a request is to feed the sessions that live until a datagram of
somebody else comes, and to return his new session. From there on he is a connection like all others. What a session is,
for those who read from it, is `_session`'s.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from socket import SHUT_RD

from ._datagrams import BATCH
from ._reception import Reception
from ._session import PeerSession
from .errors import Overloaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._datagrams import DatagramSocket

__all__ = ["SessionReception"]


class SessionReception(Reception):
    """One server's sessions. Fed by the loop's thread; they come to their end in any."""

    def __init__(self) -> None:
        super().__init__()
        self._source: DatagramSocket | None = None
        """The socket that is read by the batch. As `batched`, `get_request` would take its datagrams for requests."""
        self._by_peer: dict[Any, PeerSession] = {}
        """By the peer's address and that of ours which he asks."""
        self._by_route: dict[Any, PeerSession] = {}
        """The same, by what a datagram's sender is known by at once: found without hashing addresses."""
        self._lock = threading.RLock()  # re-entrant: a signal handler may close a session in the middle of it
        self._takes_no_more = False
        self._in_batch = False
        self._woken: deque[Callable[[], object]] = deque()
        """Those who are to go on when all that has come is with its session."""

    def __len__(self) -> int:
        return len(self._by_peer)

    def begin(self, server: Any, sock: Any) -> None:
        super().begin(server, sock)
        self._source, self.batched = self.batched, None
        server._portico_batches = self
        self._takes_no_more = False

    def choose(self, server: Any) -> None:
        server._portico_enter = self._enter

    def end(self, server: Any) -> None:
        super().end(server)
        self._tell_all()

    def _tell_all(self) -> None:
        """Nobody feeds them any more: they are told to end, when they have read what there is."""
        for session in list(self._by_peer.values()):
            session.shutdown(SHUT_RD)

    def take_no_more(self, server: Any) -> bool:
        """Refuse further peers from now on. Whether the socket has to stay, until the last session has ended."""
        self._takes_no_more = True  # first, see `_new`
        lifecycle = server._portico_lifecycle
        # A loop that blocks, and is asked this in its own thread, is about to wait for them.
        if not lifecycle.running or (server._portico_serve_in is None and lifecycle.runs_here):
            self._tell_all()
        return bool(self._by_peer)

    # -- what the loop calls

    def left_over(self, server: Any) -> bool:
        return self._source is not None and self._source is server.socket and bool(self._source.arrived)

    def batch_begins(self) -> None:
        self._budget = self._most
        self._in_batch = True

    def batch_over(self, server: Any) -> None:
        """Whoever got something goes on here and now, which saves a turn of the loop; then their answers go."""
        self._in_batch = False
        woken, self._woken = self._woken, deque()
        if not woken:
            return
        answering = server._portico_answering
        answers = None if answering is None else getattr(answering, "answers", None)
        soon = None if answers is None else answers.soon
        if answers is not None:
            answers.soon = None
        try:
            while woken:
                woken.popleft()()
        finally:
            for wake in woken:  # left over by what ends the loop
                server._portico_requests.soon(wake)
            if answers is not None:
                answers.soon = soon
                if answers.waiting:
                    answers.flush()

    def wake_later(self, server: Any, wake: Callable[[], object]) -> None:
        """In the loop's thread."""
        if self._in_batch:
            self._woken.append(wake)
        else:
            server._portico_requests.soon(wake)

    def _arm(self, count: int) -> None:
        return

    def taker(self, server: Any) -> Callable[[], bool | Exception | None]:
        return partial(_take, server)

    def receive_one(self, server: Any, sock: Any, flags: int) -> tuple[Any, Any]:
        """A peer who had no session, with the one that he has now. Raises `OSError` if what has arrived is used up."""
        if sock is not self._source or sock is None:
            return self._receive_one_by_one(server, sock, flags)
        arrived, find = sock.arrived, self._by_route.get
        while True:
            while arrived:
                payload, address = arrived.popleft()
                session = find(address.route)
                if session is not None and session.feed(payload):
                    continue
                if (session := self._new(server, payload, address)) is not None:
                    return session, address
            self.refill(server, sock)

    def _receive_one_by_one(self, server: Any, sock: Any, flags: int) -> tuple[Any, Any]:
        served = server._portico_loop is not None
        for _ in range(self._budget if served else BATCH):
            self._budget -= served
            (payload, _), address = super().receive_one(server, sock, flags)
            session = self._by_route.get(getattr(address, "route", address))
            if session is not None and session.feed(payload):
                continue
            if (session := self._new(server, payload, address)) is not None:
                return session, address
        raise BlockingIOError

    # -- the beginning

    def _new(self, server: Any, payload: bytes, address: Any) -> PeerSession | None:
        """A session for this peer; None if he has one, and is heard by another way, or may not have one."""
        with self._lock:
            known = self._by_peer.get(_key(address))
            if known is not None and known.over:
                self.forget(known)
                known = None
            reason = self._reason_against(server, address) if known is None else None
            session: PeerSession | None = None
            if known is not None:
                self._by_route.pop(_route(known.address), None)
                known.moved(address)
                self._by_route[_route(address)] = known
            elif reason is None:
                session = server._portico_make_session(address, payload)
                self._by_peer[_key(address)] = self._by_route[_route(address)] = session
                # Who sets this first, and then looks who is there, has seen this one, or is seen here.
                reason = "draining" if self._takes_no_more else None
        if known is not None:  # who may have come to his end just now
            return None if known.feed(payload) else self._new(server, payload, address)
        if reason is None:
            return session
        if session is not None:
            session.close()
        connections = server._portico_connections
        connections.refuse(server, reason, address)
        if address:
            connections.say_last_word(server, (payload, server.socket), address, reason)
        return None

    def _reason_against(self, server: Any, address: Any) -> str | None:
        if not address:  # a Unix socket without a name, that nothing could be sent to
            return "no_address"
        if self._takes_no_more:
            return "draining"
        if server._portico_suspended:
            return "suspended"
        if len(self._by_peer) >= server.max_sessions:
            return "max_sessions"
        return None if server._portico_can_run_one_more() else "overloaded"

    def _enter(self, server: Any, request: Any, client_address: Any) -> bool:
        connections = server._portico_connections
        if not connections.enter(server, request, client_address):
            return False
        if isinstance(request, PeerSession):
            request.entered(connections.of(request))
        return True

    # -- the end

    def forget(self, session: PeerSession) -> None:
        """It is over. From any thread."""
        with self._lock:
            key = _key(session.address)
            if self._by_peer.get(key) is session:
                del self._by_peer[key]
                self._by_route.pop(_route(session.address), None)
        server = session._server
        if self._takes_no_more and not self._by_peer and server._portico_loop is not None:
            server._portico_stop()  # it has gone on for the last of them


def _route(address: Any) -> Any:
    return getattr(address, "route", address)


def _key(address: Any) -> Any:
    route = getattr(address, "route", None)
    return address if route is None else (address, route.local)


def _take(server: Any) -> bool | Exception | None:
    """Take one request, as ever; but that there is nobody to run it is no reason to leave the socket alone."""
    answer: bool | Exception | None = server._handle_request_noblock()
    return True if isinstance(answer, Overloaded) else answer

"""Who has a session on a datagram server: datagrams go to their peer's, and who has none yet gets one, or is refused.

In the place of the server's plain `Reception`: to take a request is to feed the sessions that live until a datagram of
somebody else comes, and to return his new session. From there on he is a connection like all others. What a session is,
is `_peer_session`'s.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from functools import partial
from socket import SHUT_RD
from time import monotonic

from ._datagrams import BATCH
from ._peer_session import PeerSession
from ._reception import Reception
from .errors import Overloaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._datagrams import DatagramSocket

__all__ = ["SessionReception"]

# Seconds after a session in which what it has left may wait for the thread or process that ran it.
_PATIENCE: Final = 1.0


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
        self.takes_no_more = False
        self._left: deque[PeerSession] = deque()
        """Sessions that have ended, and left something unread that their peers' next ones begin with."""
        self._in_batch = False
        self._woken: deque[Callable[[], object]] = deque()
        """Those who are to go on when all that has come is with its session."""

    def __len__(self) -> int:
        return len(self._by_peer)

    def begin(self, server: Any, sock: Any) -> None:
        super().begin(server, sock)
        self._source, self.batched = self.batched, None
        server._portico_batches = self
        self.takes_no_more = False

    def choose(self, server: Any) -> None:
        server._portico_enter = self._enter

    def end(self, server: Any) -> None:
        super().end(server)
        self._tell_all(server)

    def _tell_all(self, server: Any) -> None:
        """Nobody feeds them any more: they are told to end, when they have read what there is, or after a goodbye."""
        partings = []
        for session in list(self._by_peer.values()):
            entry = session.entry
            if session.told:
                continue
            if entry is not None and (server._portico_says_goodbye or entry.handler is not None):
                partings.append(entry)
            else:
                session.shutdown(SHUT_RD)
        if partings:
            from ._goodbyes import Farewell  # only where there is one to be said

            Farewell(server, partings)

    def take_no_more(self, server: Any) -> bool:
        """Refuse further peers from now on. Whether the socket has to stay, until the last session has ended."""
        self.takes_no_more = True  # first, see `_new` and `ended`
        self._drop_left()
        lifecycle = server._portico_lifecycle
        # A loop that blocks, and is asked this in its own thread, is about to wait for them.
        if not lifecycle.running or (server._portico_serve_in is None and lifecycle.runs_here):
            self._tell_all(server)
        return bool(self._by_peer)

    # -- what the loop calls

    def left_over(self, server: Any) -> bool:
        if self._source is not None and self._source is server.socket and self._source.arrived:
            return True
        return bool(self._left) and not all(self._waits(server, session) for session in list(self._left))

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
        if self._left and (found := self._next_of_ended(server)) is not None:
            return found
        if sock is not self._source or sock is None:
            return self._receive_one_by_one(server, sock, flags)
        arrived, find = sock.arrived, self._by_route.get
        while True:
            while arrived:
                payload, address = arrived.popleft()
                session = find(address.route)
                if session is not None and session.feed(payload):
                    continue
                if (session := self._new(server, [payload], address)) is not None:
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
            if (session := self._new(server, [payload], address)) is not None:
                return session, address
        raise BlockingIOError

    # -- the beginning

    def _new(self, server: Any, payloads: list[bytes], address: Any) -> PeerSession | None:
        """A session for this peer; None if he has one, and is heard by another way, or may not have one.

        It begins with what his last one has left unread, if he had one.
        """
        with self._lock:
            known = self._by_peer.get(_key(address))
            if known is not None and known.over:
                if self._waits(server, known):
                    self._keep(known, payloads)
                    return None
                payloads = known.leave() + payloads
                self.forget(known)
                known = None
            if not payloads:
                return None
            reason = self._reason_against(server, address) if known is None else None
            session: PeerSession | None = None
            if known is not None:
                self._by_route.pop(_route(known.address), None)
                known.moved(address)
                self._by_route[_route(address)] = known
            elif reason is None:
                session = server._portico_make_session(address, payloads[0])
                for payload in payloads[1:]:
                    session.feed(payload)
                self._by_peer[_key(address)] = self._by_route[_route(address)] = session
                # Who sets this first, and then looks who is there, has seen this one, or is seen here.
                reason = "draining" if self.takes_no_more else None
        if known is not None:  # who may have come to his end just now
            left = next((number for number, payload in enumerate(payloads) if not known.feed(payload)), len(payloads))
            return self._new(server, payloads[left:], address)
        if reason is None:
            return session
        if session is not None:
            session.close()
            payloads = payloads[:1]  # the other ones are counted
        connections = server._portico_connections
        for payload in payloads:
            connections.refuse(server, reason, address)
            if address:
                connections.say_last_word(server, (payload, server.socket), address, reason)
        return None

    def _next_of_ended(self, server: Any) -> tuple[PeerSession, Any] | None:
        """The next session of a peer whose last one has left something unread, and its address."""
        for _ in range(len(self._left)):
            try:
                last = self._left.popleft()
            except IndexError:  # dropped meanwhile
                return None
            session = self._new(server, [], last.address)
            if session is not None:
                return session, last.address
        return None

    def _waits(self, server: Any, last: PeerSession) -> bool:
        """Whether the next session of this peer waits for the end of the last one, which might stand in its way."""
        if last.is_ending:
            return True
        connections = server._portico_connections
        if not last.closed_at:  # in a process that is to be reaped
            return connections.admission is not None or not server._portico_can_run_one_more()
        if monotonic() > last.closed_at + _PATIENCE:
            return False
        connections.is_full = True  # before it is looked, see `Connections.hold`
        connections.is_full = waits = not server._portico_can_run_one_more()
        return waits

    def _keep(self, last: PeerSession, payloads: list[bytes]) -> None:
        """What has come is for the next session, which begins later."""
        for payload in payloads:
            last.keep(payload)
        if last.closed_at and not last.is_ending and last not in self._left:
            self._left.append(last)
            self._by_peer[_key(last.address)] = last  # may have been forgotten just now, when nothing was left of it

    def _reason_against(self, server: Any, address: Any) -> str | None:
        if not address:  # a Unix socket without a name, that nothing could be sent to
            return "no_address"
        if self.takes_no_more:
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

    def ended(self, session: PeerSession) -> None:
        """It is over, and forgotten when there is nothing left of it. From any thread, and again."""
        with self._lock:
            if session.is_ending:  # which is told once more
                return
            if not session.leaves_some:
                self.forget(session)
                return
            self._left.append(session)
        if self.takes_no_more:
            self._drop_left()
        else:
            session._server._portico_wake()

    def _drop_left(self) -> None:
        with suppress(IndexError):
            while True:
                session = self._left.popleft()
                session.drop()
                self.forget(session)

    def forget(self, session: PeerSession) -> None:
        """From any thread."""
        with self._lock:
            key = _key(session.address)
            if self._by_peer.get(key) is session:
                del self._by_peer[key]
                self._by_route.pop(_route(session.address), None)
        server = session._server
        if self.takes_no_more and not self._by_peer and server._portico_loop is not None:
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

"""Datagrams of a server on an event loop that wait for a handler, and who takes them.

One taker (a green thread, a task) handles one after the other for as long as no handler waits; the moment that one
does, another taker goes on with the rest. So a handler that answers at once costs neither a thread nor a task of its
own (measured: 5 us a datagram in a task each), and one that waits holds up nobody. What a taker is, is `green`'s and
`aio`'s to say.
"""

from __future__ import annotations

import contextvars
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from ._on_loop import Requests

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """The datagrams of one server on one loop, from arrival to the end of their handlers. In the loop's thread."""

    def __init__(self, server: Any, loop: AbstractEventLoop, requests: Requests) -> None:
        self._server = server
        self._loop = loop
        self._requests = requests
        self._dealing = False
        self._takers = 1
        self._ended = 0
        self.waiting: deque[tuple[Any, Any]] = deque()
        self.turn = 0
        """Counts the times that takers were started: one who finds another number has waited meanwhile."""
        self.in_flight = 0
        self.run: Callable[[Any, Any, Any], Any] | None = None
        """What takers do with each one in place of the server's hooks, where nobody overrides these."""

    def put(self, request: Any, client_address: Any) -> None:
        self.in_flight += 1
        self.waiting.append((request, client_address))
        self._deal_soon()

    def take(self, sock: Any, answering: Any, refill: Callable[[], None]) -> bool | Exception:
        """Put in what has arrived, all of it, in the place of `_handle_request_noblock` for each."""
        arrived = sock.arrived
        if not arrived:
            try:
                refill()
            except OSError as error:
                return error
        self._server._portico_taken += len(arrived)
        self.in_flight += len(arrived)
        self.waiting.extend([((payload, answering), client_address) for payload, client_address in arrived])
        arrived.clear()
        self._deal_soon()
        return True

    def _deal_soon(self) -> None:
        if not self._dealing:
            self._dealing = True
            self._requests.add(self)  # so that a server that closes waits for them
            self._loop.call_soon(self._deal)

    def _deal(self) -> None:
        """See to it that what waits is taken; by twice as many as last time, if those have all had to wait."""
        self.turn += 1
        if self._ended:
            self.report()
        if not self.waiting:
            self._dealing, self._takers = False, 1
            self._requests.discard(self)
            return
        takers = min(self._takers, len(self.waiting))
        self._takers = takers * 2
        self._server._portico_start_takers(self, takers)
        self._loop.call_soon(self._deal)  # after those that have just been started

    def ended(self, turn: int, context: contextvars.Context) -> bool:
        """One of them has ended. Whether its taker may take another: it has not had to wait, its context is as it was.

        Each request is to find the context variables of whoever started the server, not those that another one has set.
        """
        self.in_flight -= 1
        self._ended += 1
        if self.turn != turn:
            self.report()
            return False
        return bool(self.waiting) and contextvars.copy_context() == context

    def report(self) -> None:
        """Have those counted that have ended; here, and not for each, as it takes a lock."""
        ended, self._ended = self._ended, 0
        self._server._portico_connections.end_datagrams(self._server, ended)

    def drop(self) -> None:
        """Forget those that wait for a taker: their server closes, and has no more time."""
        connections = self._server._portico_connections
        for _, client_address in self.waiting:
            connections.refuse(self._server, "queue_full", client_address)
        self.in_flight -= len(self.waiting)
        self.waiting.clear()

    # -- as one of the server's requests, that is to be ended

    def interrupt(self, error: BaseException) -> None:
        self.drop()

    def cancel(self) -> None:
        self.drop()

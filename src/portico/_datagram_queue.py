"""Datagrams of a server on an event loop that wait for a handler, and who takes them.

One taker (a green thread, a task) handles one after the other for as long as no handler waits; the moment that one
does, another taker goes on with the rest. So a handler that answers at once costs neither a thread nor a task of its
own (measured: 5 us a datagram in a task each), and one that waits holds up nobody. What a taker is, is `green`'s and
`aio`'s to say. It goes on as long as it has not had to wait (`turn`), and as its context is as it was: each request is
to find the context variables of whoever started the server, not those that another one has set.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from ._datagrams import Answers
    from ._loop_requests import Requests
    from ._reception import Reception

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """The datagrams of one server on one loop, from arrival to the end of their handlers. In the loop's thread."""

    def __init__(self, server: Any, loop: AbstractEventLoop, requests: Requests) -> None:
        self._server = server
        self._loop = loop
        self._requests = requests
        self._dealing = False
        self._takers = 1
        self._told = 0
        self.waiting: deque[tuple[Any, Any]] = deque()
        """Requests, or mere payloads, each with its client's address."""
        self.answering: Any = None
        """The socket that makes a payload a request."""
        self.turn = 0
        """Counts the times that takers were started: one who finds another number has waited meanwhile."""
        self.ended = 0
        """How many handlers have ended; counted by takers."""
        self._put = 0
        self.answers: Answers | None = None
        """Those that leave together, where that is possible."""
        self.made: Any = None
        """The handler class that takers call, in place of the server's hooks, where nobody overrides these."""
        self.handle: Callable[[Any], Any] | None = None
        """Its `handle`, where that is all that it has of its own (`handlers.does_no_more`)."""

    def put(self, request: Any, client_address: Any) -> None:
        self._put += 1
        self.waiting.append((request, client_address))
        if not self._dealing:
            self._begin()
            self._loop.call_soon(self.deal)

    def take(self, reception: Reception, sock: Any) -> bool | Exception | None:
        """Put in what has arrived, all of it, in the place of `_handle_request_noblock` for each."""
        try:
            taken = reception.take_all(self._server, sock)
        except OSError as error:
            return error
        self._put += len(taken)
        self.waiting.extend(taken)
        return reception.more()

    def batch_over(self) -> None:
        """The loop has taken what there was: deal it out here and now, which saves a turn of the loop."""
        if self.waiting and not self._dealing:
            self._begin()
            self.deal()

    def _begin(self) -> None:
        self._dealing, self._takers = True, 1
        self._requests.add(self)  # so that a server that closes waits for them
        if self.answers is not None:
            self.answers.soon = None

    def deal(self) -> None:
        """See to it that what waits is taken; by twice as many as last time, if those have all had to wait.

        Then the answers go that were given meanwhile.
        """
        self.turn += 1
        self.report()
        answers = self.answers
        if answers is not None and answers.waiting:
            answers.flush()
        if not self.waiting:
            self._dealing = False
            self._requests.discard(self)
            if answers is not None:
                answers.soon = self._loop.call_soon
            return
        takers = min(self._takers, len(self.waiting))
        self._takers = takers * 2
        alone = len(self.waiting) == 1 and answers is not None
        if alone:  # its answer goes at once: nothing would be saved
            thread, answers.thread = answers.thread, 0  # type: ignore[union-attr]
        have_run = self._server._portico_start_takers(self, takers)
        if alone:
            answers.thread = thread  # type: ignore[union-attr]
        if have_run:
            self.deal()
        else:
            self._loop.call_soon(self.deal)  # after those that have just been started

    @property
    def in_flight(self) -> int:
        """How many wait or are being handled."""
        return self._put - self.ended

    def report(self) -> None:
        """Have those counted that have ended: here, and not for each, as it takes a lock."""
        count, self._told = self.ended - self._told, self.ended
        if count:
            self._server._portico_connections.end_datagrams(self._server, count)

    def drop(self) -> None:
        """Forget those that wait for a taker: their server closes, and has no more time."""
        connections = self._server._portico_connections
        for _, client_address in self.waiting:
            connections.refuse(self._server, "queue_full", client_address)
        self._put -= len(self.waiting)
        self.waiting.clear()
        self._requests.discard(self)  # nobody may come to deal again, if the loop has been left by Ctrl-C

    # -- as one of the server's requests, that is to be ended

    def interrupt(self, error: BaseException) -> None:
        self.drop()

    def cancel(self) -> None:
        self.drop()

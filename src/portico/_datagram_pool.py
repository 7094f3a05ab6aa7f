"""Datagrams of a threading server that wait for a handler, and the threads that take them.

The counterpart of `_datagram_queue`: a taker runs in a thread of `_workers` and handles one after the other. Another
one is started when half of those that there are have been in a handler for a while, so that handlers which wait get a
thread each within milliseconds, and those which answer at once are run by a single one (measured for 64-byte echoes,
processor time a datagram: 65 us in a thread each; 7.5 us given to a hundred threads by turns; 5.2 us this way).
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from functools import partial
from time import monotonic

from ._requests import request_context, request_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._reception import Reception
    from ._workers import Workers

__all__ = ["DatagramPool"]

_NEW: Final[Any] = object.__new__
# Seconds in a handler after which its thread counts as held up.
_HELD_UP: Final = 0.0002
# Seconds between two looks at that, while something waits.
_LOOK: Final = 0.001


class DatagramPool:
    """The datagrams of one server, from their arrival to the end of their handlers, in at most `most` threads.

    Put in by the loop, or by `handle_request` in any thread.
    """

    def __init__(self, server: Any, workers: Workers) -> None:
        self._server = server
        self.workers = workers
        self.most = 1
        self.waiting: deque[tuple[Any, Any]] = deque()
        self.made: Any = None
        """The handler class that takers call, in place of the server's hooks, where nobody overrides these."""
        self.handle: Callable[[Any], Any] | None = None
        """Its `handle`, where that is all that it has of its own (`handlers.does_no_more`)."""
        self._takers = 0
        self._busy: dict[int, float] = {}
        """Since when each taker has been in a handler."""
        self._lock = threading.RLock()  # re-entrant: a signal handler may close the server in the middle of it

    @property
    def in_flight(self) -> int:
        """How many wait or are being handled."""
        return len(self.waiting) + self._takers

    def put(self, request: Any, client_address: Any) -> None:
        """Raises `RuntimeError` if there is no thread, and none to be had."""
        waits = request, client_address
        self.waiting.append(waits)
        try:
            self.start_more(at_once=self._server._portico_loop is None)  # where nobody looks again
        except RuntimeError:
            if waits in self.waiting:  # else a taker that was there has it
                self.waiting.remove(waits)
                raise

    def take(self, reception: Reception, sock: Any) -> bool | Exception | None:
        """Put in what has arrived, all of it, in the place of `_handle_request_noblock` for each."""
        try:
            taken = reception.take_all(self._server, sock)
        except OSError as error:
            return error
        self.waiting.extend([((payload, sock), client_address) for payload, client_address in taken])
        self.look()
        return reception.more()

    def look(self, context: contextvars.Context | None = None) -> float | None:
        """Start more takers if it is time; returns the seconds until it has to be looked again, if it has.

        A taker says in which context: its own is that of the request it has handled last.
        """
        if not self.waiting:
            return None
        try:
            self.start_more(context)
        except RuntimeError:  # no thread to be had now; what waits is not lost
            pass
        return _LOOK if self._takers < self.most else None  # else they look by themselves

    def start_more(self, context: contextvars.Context | None = None, *, at_once: bool = False) -> None:
        """Twice as many takers, if half of them are held up, or one more `at_once`."""
        with self._lock:
            takers, waiting = self._takers, len(self.waiting)
            held_up_since = monotonic() - _HELD_UP
            held_up = sum(since < held_up_since for since in list(self._busy.values()))
            if at_once:
                takers = 1
            elif held_up * 2 < takers:
                return
            more = min(waiting, max(1, takers), self.most - self._takers)
            self._takers += max(0, more)
        for number in range(more):
            fresh = request_context(self._server) if context is None else context.copy()
            try:
                self.workers.submit(partial(fresh.run, self._take, fresh.copy()))
            except BaseException:
                with self._lock:
                    self._takers -= more - number
                raise

    def drop(self) -> None:
        """Forget those that wait: their server closes, and has no more time."""
        while self.waiting:
            try:
                _, client_address = self.waiting.popleft()
            except IndexError:  # a taker was first
                return
            self._server._portico_connections.refuse(self._server, "queue_full", client_address)

    def _take(self, pristine: contextvars.Context) -> None:
        """What a taker runs. It goes on while its context is as it was, and its thread has not done its share."""
        me, goes_on = threading.get_ident(), True
        try:
            while goes_on and self.waiting and self._takers <= self.most:
                try:
                    request, client_address = self.waiting.popleft()
                except IndexError:  # another taker was first
                    continue
                self._busy[me] = monotonic()
                self._run(request, client_address)
                goes_on = contextvars.copy_context() == pristine and self._server.requests_per_thread is None
        finally:
            with self._lock:
                self._busy.pop(me, None)
                self._takers -= 1
            self.look(pristine)  # for what was put in meanwhile

    def _run(self, request: Any, client_address: Any) -> None:
        server, made, handle = self._server, self.made, self.handle
        if made is None:
            server.process_request_thread(request, client_address)
            return
        try:
            if handle is not None:
                handler = _NEW(made)
                handler.request, handler.client_address, handler.server = request, client_address, server
                handle(handler)
            else:
                made(request, client_address, server)
        except Exception:
            request_failed(server, request, client_address)
        finally:
            server._portico_connections.end_datagrams(server, 1)

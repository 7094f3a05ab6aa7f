"""The lobby: where connections are opened by the loop that has accepted them, without a wait.

There a PROXY header is read for all blocking ways to run, and the first byte of a handshake waited for, so that no
thread and no process is spent on who is silent, and a client is known, and counted, before. Where the loop runs
requests itself, the handshake is done there, too. What a step is says `_opening`, what follows the server.
"""

from __future__ import annotations

import selectors
from collections import OrderedDict
from heapq import heappop, heappush
from itertools import islice
from time import monotonic

from . import logs
from ._opening import Undecided, is_wanted
from .events import EndReason, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["Lobby"]

# Seconds between two looks for a free thread or process, if nothing tells of one.
_LOOK: Final = 0.02


class _Guest:
    """One connection in the lobby."""

    __slots__ = ("began", "connection", "descriptor", "events", "opening", "ready_at", "request", "timeout")

    def __init__(self, request: Any, connection: Connection) -> None:
        self.request = request
        self.connection = connection
        self.opening: Any = connection.opening
        self.descriptor: int = request.fileno()
        self.timeout: float | None = request.gettimeout()
        self.began = False
        """Whether its handshake has."""
        self.events = 0
        """What it is watched for."""
        self.ready_at = 0.0
        """Since when it waits for somebody to run it."""


class Lobby:
    """The connections of one server that its loop opens. For the loop's thread alone."""

    def __init__(self, server: Any, loop: Any, *, secures: bool) -> None:
        self._server = server
        self._loop = loop
        self._secures = secures
        """Whether handshakes are done here, too."""
        self._guests: OrderedDict[int, _Guest] = OrderedDict()
        """Those that are being opened, by their connections' numbers: the order in which their time runs out."""
        self._undecided: list[tuple[float, int, _Guest]] = []
        """A heap of those that are to be looked at again by themselves, and when."""
        self._ready: OrderedDict[int, _Guest] = OrderedDict()
        """Those that wait for a thread or process to run them. Their time does not run: it is ours that passes."""
        # A set of its own, so that the loop need not look through all of them at every turn.
        self._selector: Any = selectors.DefaultSelector()
        self._watched: int = loop.watch(self._selector, self._look_at_ready)

    def __iter__(self) -> Iterator[Any]:
        return iter([guest.request for guests in (self._guests, self._ready) for guest in guests.values()])

    def receive(self, request: Any) -> bool:
        """Take a connection that has just been let in; False if there is nothing to be done for it."""
        connection = self._server._portico_connections.of(request)
        if connection is None or connection.opening is None:
            return False
        guest = self._guests[connection.id] = _Guest(request, connection)
        self._step(guest)
        return True

    def look(self) -> float | None:
        """See to those whose time has come; called every turn. Returns the seconds until the next has."""
        if not self._guests and not self._ready:
            return None
        now = monotonic()
        while self._undecided and self._undecided[0][0] <= now:
            self._step(heappop(self._undecided)[2])
        while self._ready and self._is_place():
            self._run_next()
        while self._guests:
            guest = next(iter(self._guests.values()))
            if guest.opening.deadline > now:
                break
            self._fail(guest, TimeoutError("nothing, or not enough, came in time"))
        waits = [guest.opening.deadline - now for guest in islice(self._guests.values(), 1)]
        waits += [when - now for when, *_ in self._undecided[:1]]
        waits += [_LOOK] if self._ready else []
        return max(0.0, min(waits)) if waits else None

    def close(self) -> None:
        """The loop ends: nobody else will see to them."""
        for guest in (*self._guests.values(), *self._ready.values()):
            guest.connection.failed(EndReason.DRAINED)
            self._leave(guest, is_open=False)
        self._loop.unwatch(self._watched)
        self._selector.close()

    def _look_at_ready(self) -> None:
        for key, _ in self._selector.select(0):
            self._step(key.data)

    def _step(self, guest: _Guest) -> None:
        if guest.connection.id not in self._guests:  # it has come to its end while it was undecided
            return
        try:
            self._take_step(guest)
        except Undecided as undecided:
            self._watch(guest, 0)
            heappush(self._undecided, (monotonic() + undecided.pause, guest.connection.id, guest))
        except Exception as error:
            wanted = is_wanted(error)
            if wanted is None:
                self._fail(guest, error)
            else:
                self._watch(guest, wanted)
        else:
            self._watch(guest, 0)
            self._ready[guest.connection.id] = self._guests.pop(guest.connection.id)
            guest.ready_at = monotonic()
            if len(self._ready) == 1 and self._is_place():
                self._run_next()

    def _is_place(self) -> bool:
        try:
            return bool(self._server._portico_can_run_one_more())
        except Exception as error:
            logs.emit(self._server, HookFailed("ready_to_accept", error))
            return False

    def _run_next(self) -> None:
        guest = next(iter(self._ready.values()))
        guest.opening.deadline += monotonic() - guest.ready_at
        self._leave(guest, is_open=True)

    def _take_step(self, guest: _Guest) -> None:
        """As far as it goes; raises what says that more has to come, or what is wrong."""
        if guest.connection.reason is not None:
            raise ConnectionAbortedError("its server has cut it")
        server, request = self._server, guest.request
        if not guest.began:
            server._portico_step(guest.connection, request, verify=False)
        if not self._secures:
            return
        if not guest.began:
            server._portico_begin_tls(request)
            request.settimeout(0.0)
            guest.began = True
        request.do_handshake()
        request.settimeout(guest.timeout)

    def _watch(self, guest: _Guest, events: int) -> None:
        if events == guest.events:
            return
        if guest.events:
            self._selector.unregister(guest.descriptor)
        if events:
            self._selector.register(guest.descriptor, events, guest)
        guest.events = events

    def _fail(self, guest: _Guest, error: BaseException) -> None:
        self._server._portico_opening_failed(guest.connection, guest.request, error)
        self._leave(guest, is_open=False)

    def _leave(self, guest: _Guest, *, is_open: bool) -> None:
        self._watch(guest, 0)
        if self._guests.pop(guest.connection.id, None) is None and self._ready.pop(guest.connection.id, None) is None:
            return
        if is_open and (self._secures or self._server._portico_keyring is None):
            self._server._portico_opened(guest.connection, guest.request)
        self._server._portico_leave_lobby(guest.request, guest.connection, is_open=is_open)

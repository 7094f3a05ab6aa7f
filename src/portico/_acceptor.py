"""The accept policy, the one for all ways to run: how many requests per wake-up, and what follows when none can be had.

Nothing here knows what a request is or how it runs. The server's hooks take and start it; `errors` sorts what went
wrong; `_loop` waits. One `Acceptor` serves one server for one call of `serve_forever`.
"""

from __future__ import annotations

import os

from . import _sockets
from .errors import Outcome, accept_outcome
from .lifecycle import STOP_FLAG, AcceptPaused, AcceptResumed, HookFailed, ListenerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._loop import Loop

__all__ = ["Acceptor", "serve", "turn"]

# So many refusals in a row with no request between them are no accident: then the loop takes a breath.
_PATIENCE: Final = 16
# Seconds between two looks, where nothing tells that a socket was closed or a child has ended.
_LOOK: Final = 0.08
_POSIX: Final = os.name == "posix"
_FOR_EVER: Final = float("inf")


def serve(loop: Loop, acceptors: list[Acceptor]) -> None:
    """Run until every server has stopped. Exceptions that are no `Exception` (Ctrl-C, SystemExit) leave it."""
    idle = False
    while acceptors:
        timeout = turn(acceptors, idle)
        if acceptors:
            ready = loop.wait(timeout)
            idle = not ready
            for key, _ in ready:
                key.data()


def turn(acceptors: list[Acceptor], idle: bool) -> float | None:
    """Have every acceptor do what is to be done between two waits, and drop those whose server has stopped.

    Returns the seconds that the next wait may last, None for ever.
    """
    timeout: float | None = None
    for acceptor in tuple(acceptors):
        patience = acceptor.turn(idle)
        if acceptor.over:
            acceptors.remove(acceptor)
        elif patience is not None and (timeout is None or patience < timeout):
            timeout = patience
    return timeout


class Acceptor:
    """Takes requests for one server: drains the listener in batches, pauses when short of resources, ends when told.

    `server` is a `BaseServer`; `poll_interval` is `serve_forever`'s, in seconds or None.
    """

    def __init__(self, server: Any, loop: Any, poll_interval: float | None) -> None:
        self._server = server
        self._loop = loop
        # Those who wait for `service_actions` say how often; nobody else wants to know how often it is looked.
        self._poll_interval = poll_interval if server._portico_overridden("service_actions") else _LOOK
        self._flags = vars(server)
        self._clock = server._portico_system.monotonic
        self._listening = _sockets.is_listening(getattr(server, "socket", None))
        self._batch = server._portico_batch_size()
        self._gated = server._portico_has_gate()
        self._watched: int | None = None
        self._failures = 0
        self._pause = 0.0
        self._resume_at: float | None = None
        self._turns = 0
        self.over = False

    def turn(self, idle: bool) -> float | None:
        """What is to be done between two waits; returns the seconds that the next wait may last, None for ever.

        `idle` says that nothing was ready last time. A server that has to prepare for a longer sleep
        (`_may_sleep`) does so only then: the next look is one without waiting, and mostly finds something.

        One function, and little in it: a forking server pays for every page of memory touched between two forks
        (measured: with a method for each step, 85 pages and 0.2 ms a request more).
        """
        server = self._server
        if self._turns and server._portico_ticks and not self._flags[STOP_FLAG]:
            self._service_actions()
        self._turns = 1
        if self._flags[STOP_FLAG]:
            self.end()
            return None
        if self._resume_at is not None and self._clock() >= self._resume_at:
            self._resume_at = None
        lobby = server._portico_lobby
        look = None if lobby is None else lobby.look()  # before all else: it may start what is to be seen to end
        held: float | None = None  # asked anew each turn: a limit may be lifted while it is waited for
        try:
            wanted = self._resume_at is None and (not self._gated or server.ready_to_accept())
            if wanted and (server._portico_limited or server._portico_bounded):
                held = server._portico_hold()
                wanted = held is None
        except Exception as error:
            wanted = False
            self._back_off(self._failed("ready_to_accept", error))
        if wanted != (self._watched is not None):
            self._watch(wanted)
        if wanted and server._portico_left_over:
            self.drain()
            return 0.0
        if not server._portico_may_sleep and self._resume_at is None:
            if not idle:
                return 0.0
            server._portico_prepare_to_sleep()
            if not wanted:  # what has ended meanwhile, and made room, will not wake the loop
                return 0.0
        interval: float | None = self._poll_interval if server._portico_ticks else None
        if look is not None:
            interval = look if interval is None else min(look, interval)
        if server._portico_look is not None:
            look = server._portico_look()
            interval = look if interval is None or (look is not None and look < interval) else interval
        if held is not None and held != _FOR_EVER:
            interval = held if interval is None else min(held, interval)
        if self._resume_at is None:
            return interval
        pause: float = max(0.0, self._resume_at - self._clock())
        return pause if interval is None else min(interval, pause)

    def drain(self) -> None:
        """Take what is waiting, a batch at most, until nothing is left or the server is told to stop."""
        flags = self._flags
        if flags[STOP_FLAG] or self._watched is None:
            return
        if self._server._portico_ticks:  # its listener may have been wrapped in TLS a moment ago
            self._server._portico_look_at_listener()
            self._listening = self._listening or _sockets.is_listening(getattr(self._server, "socket", None))
        if self._listening and _POSIX:
            # Every time: processes may share the listener, and one that ends sets its mode back. 0.3 us.
            try:
                os.set_blocking(self._watched, False)
            except OSError as error:  # closed behind our back
                self._judge(error)
                return
        # Measured for UDP: this loop saves the poll and the selector's bookkeeping, a third of a datagram's cost.
        server = self._server
        take, gated, answer, taken = server._portico_taker(), self._gated, None, 0
        batches = server._portico_batches
        if batches is not None:
            batches.batch_begins()
        try:
            for _ in range(self._batch):
                # Before the first, too: since the last turn another thread may have changed a limit, or suspended.
                if (server._portico_limited or server._portico_bounded) and server._portico_hold() is not None:
                    break
                taken = server._portico_taken
                answer = take()
                if answer is not True or flags[STOP_FLAG] or (gated and not server.ready_to_accept()):
                    break
                if self._failures:
                    self._recovered()
        except Exception as error:
            answer = self._failed("a hook on the way of a request", error)
            if server._portico_taken > taken:
                answer = None  # a request was taken: what became of it says nothing of the listener
        finally:
            if batches is not None:
                batches.batch_over(server)
        if answer is not True and answer is not None:
            self._judge(answer)
            answer = None  # its traceback holds this frame: together they would wait for the garbage collector

    def end(self) -> None:
        """Leave the listener alone and have the loop let the server go. Safe to call again."""
        self.over = True
        if self._watched is not None:
            self._watch(False)
        self._loop.release(self._server)

    # -- what happened, and what follows

    def _judge(self, error: Exception) -> None:
        match accept_outcome(error):
            case Outcome.EMPTY:
                return
            case Outcome.DEAD if self._closed():
                self._server._portico_stop()
            case Outcome.DEAD if not _sockets.is_usable(self._server.socket, self._listening):
                self._server._portico_emit(ListenerDied(error))
                self._server._portico_stop()
            case Outcome.EXHAUSTED:
                self._back_off(error)
            case _:
                self._failures += 1
                if self._failures >= _PATIENCE:
                    self._back_off(error)

    def _back_off(self, error: Exception) -> None:
        """Leave the listener alone for a while: 10 ms, doubling to 1 s by default. Told once, not at every try."""
        server = self._server
        first = not self._pause
        self._failures += 1
        self._pause = server.accept_pause if first else min(self._pause * 2, server.accept_pause_max)
        self._resume_at = self._clock() + self._pause
        if first:
            server._portico_emit(AcceptPaused(error, self._pause))

    def _recovered(self) -> None:
        self._failures = 0
        if self._pause:
            self._pause = 0.0
            self._server._portico_emit(AcceptResumed())

    def _service_actions(self) -> None:
        if self._closed():
            self._server._portico_stop()
            return
        try:
            self._server._portico_look_at_listener()
            self._server.service_actions()
        except Exception as error:
            self._failed("service_actions", error)

    def _failed(self, hook: str, error: Exception) -> Exception:
        """A hook raised: told and forgotten, unless the stdlib's way is asked for, where it ends the loop."""
        if self._server.stdlib_compat:
            raise error
        self._server._portico_emit(HookFailed(hook, error))
        return error

    # -- small questions

    def _closed(self) -> bool:
        closed: bool = self._server.fileno() < 0
        return closed and not getattr(getattr(self._server, "socket", None), "detached", False)

    def _watch(self, wanted: bool) -> None:
        if wanted:
            try:
                self._watched = self._loop.watch(self._server, self.drain)
            except ValueError:
                if self._closed():
                    self._server._portico_stop()  # closed a moment ago
                else:
                    self._server._portico_ticks = True  # about to be wrapped in TLS: the next turn finds it
        elif self._watched is not None:
            self._loop.unwatch(self._watched)
            self._watched = None

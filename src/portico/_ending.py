"""A server's side of its end: what an operator asks for, and what a way to run may say of it. `_drain` does it."""

from __future__ import annotations

from . import limits
from .lifecycle import State, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._connection import Connection
    from ._connections import Connections
    from ._drain import Drain
    from .reports import DrainReport

__all__ = ["Ending"]

_AS_SET: Any = object()
_ENDING = (State.DRAINING, State.CLOSING, State.CLOSED)
# Seconds that a loop has to let in what it has just taken, and between two looks whether it has.
_A_MOMENT = 1.0
_LOOK = 0.01


class Ending:
    """The part of a server that sees to its end."""

    _portico_drain: Drain | None = None
    """The drain that has begun, if one has."""
    _portico_goodbyes: Any = None
    """Who says goodbyes, where handlers block, once there are some to be said."""
    _portico_waits_on_close = False
    """Whether this way to run sees to its requests itself, in a `server_close` of its own."""
    _portico_last_words = 0.03
    """Seconds that handlers have after a cut to see that their peer has gone."""

    if TYPE_CHECKING:
        stdlib_compat: bool
        drain_timeout: float | None
        _portico_lifecycle: Any
        _portico_loop: Any
        _portico_connections: Connections
        _portico_overridden: Callable[[str], bool]
        _portico_stop: Callable[[], None]
        _portico_runs_here: Callable[[], bool]
        _portico_runners: Callable[[], list[Any]]
        _portico_end_timers: Callable[[], None]

        @property
        def _portico_has_connections(self) -> bool: ...

    # -- for the operator

    def is_draining(self) -> bool:
        """Whether the server has been told to come to its end: the time for a handler to take nothing new on."""
        return self._portico_lifecycle.state in _ENDING

    def drain(self, timeout: float | None = _AS_SET) -> DrainReport:
        """Come to the end: close the listener, let requests finish, close idle connections, cut the rest in time.

        `timeout` is in seconds, None for ever; `drain_timeout` if it is not given. Blocks, and returns what came of it;
        a drain that runs already is waited for, and ends by this deadline if that comes sooner than its own. Handlers
        that wait here are not waited for. `server_close` afterwards has nothing left to do. Raises `RuntimeError` in
        the thread of the server's own loop, which would wait for itself: there `request_drain` it is.
        """
        if timeout is not _AS_SET:
            limits.DRAIN_TIMEOUT.check(timeout)
        if self._portico_runs_here():
            raise RuntimeError("drain() would wait for its own thread: call request_drain(), or drain() in another one")
        drain, _ = self._portico_begin_drain(timeout)
        return drain.finish()

    def request_drain(self, timeout: float | None = _AS_SET) -> None:
        """The same without waiting: from any thread, from handlers, hooks and signal handlers.

        With no thread to be had for it the listener is closed, and the idle are told; `server_close` does the rest.
        """
        if timeout is not _AS_SET:
            limits.DRAIN_TIMEOUT.check(timeout)
        drain, _ = self._portico_begin_drain(timeout)
        drain.start()

    # -- for the house

    def _portico_begin_drain(self, timeout: float | None, *, grace: float = 0.0) -> tuple[Drain, bool]:
        """The drain of this server, and whether it is a new one; if not, it ends in this time at the latest."""
        from ._drain import Drain

        wait = self.drain_timeout if timeout is _AS_SET else timeout
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            if self._portico_drain is not None:
                self._portico_drain.until(None if wait is None else wait + grace)
                return self._portico_drain, False
            self._portico_drain = drain = Drain(self, wait, grace=grace)
            lifecycle.step(Verb.DRAIN)
        lifecycle.tell()
        return drain, True

    def _portico_forget_drain(self, drain: Drain) -> None:
        """It has come to nothing: whoever asks next is to have another one."""
        with self._portico_lifecycle.lock:
            if self._portico_drain is drain:
                self._portico_drain = None

    def _portico_end_requests(self, *, wait: bool) -> None:
        """What `server_close` does about requests, when the listener is closed: a drain, or just the telling of it."""
        lifecycle = self._portico_lifecycle
        if self._portico_is_empty(wait=wait):
            self._portico_end_listener()  # which sessions may have needed, until now
            for verb in (Verb.DRAIN, Verb.CLOSE, Verb.FINISH):
                lifecycle.move(verb)
        else:
            drain, is_new = self._portico_begin_drain(_AS_SET)
            drain.tells &= not (is_new and self.stdlib_compat)
            if wait:
                drain.finish()
            elif is_new:
                self._portico_end_listener()  # nobody waits for those who might need it
                drain.tell()
                self._portico_drain = None  # who wants to wait may still do so
        if not len(self._portico_connections):  # else they still hold for those that go on
            self._portico_end_timers()

    def _portico_is_empty(self, *, wait: bool) -> bool:
        """Whether nothing runs. One who can `wait` does so until the loop has let in what it has just taken."""
        for _ in range(int(_A_MOMENT / _LOOK)):
            if len(self._portico_connections) or self._portico_runners():
                return False
            if not (wait and self._portico_loops_elsewhere()) or self._portico_lifecycle.run.wait(_LOOK):
                break
        # A loop that still runs after a moment is in a handler: with a datagram of ours, or for another server.
        loops = wait and self._portico_loops_elsewhere() and not self._portico_has_connections
        return not len(self._portico_connections) and not self._portico_runners() and not loops

    def _portico_loops_elsewhere(self) -> bool:
        """Whether a loop of ours runs, in another thread. A program's own is told to end, and not waited for."""
        return self._portico_loop is not None and bool(self._portico_lifecycle.runs_in_another_thread)

    def _portico_can_wait_for_loop(self) -> bool:
        """Whether requests that run in the loop can be waited for.

        A `process_request` of somebody's own may run them anywhere. With `stdlib_compat` closing is closing the socket,
        and no more.
        """
        elsewhere = self.stdlib_compat or self._portico_overridden("process_request")
        return bool(self._portico_lifecycle.runs_in_another_thread and not elsewhere)

    def _portico_say_loop_runs(self, seconds: float) -> None:
        """The server is closed, and its loop goes on: in whatever its stack shows."""
        from ._drain import say_whom

        say_whom(self, [self._portico_connections.stand_in(self, None)], seconds)

    def _portico_goes_on(self) -> bool:
        """Let nobody in any more; whether the socket has to stay, for those who are in and go on through it."""
        return False

    def _portico_take_no_more(self) -> None:
        """Let nobody in any more. What runs may need the socket, or the loop."""
        if self._portico_goes_on():
            return
        if self._portico_has_connections or self._portico_loop is None:
            self._portico_end_listener()
        else:  # datagrams are answered through what they came by
            self._portico_stop()

    def _portico_end_listener(self) -> None:
        """Have the loop end, and close the socket. Safe again."""
        with self._portico_lifecycle.lock:
            if self._portico_lifecycle.running:  # perhaps in a loop of the program's own, which looks from time to time
                self._portico_stop()
        close = getattr(getattr(self, "socket", None), "close", None)
        if close is not None:
            close()

    # -- for the ways to run to say

    def _portico_closes_requests(self) -> bool:
        """Whether a request that nobody runs elsewhere is run, and in the end closed, by hooks of ours."""
        return not any(map(self._portico_overridden, ("process_request", "shutdown_request", "close_request")))

    def _portico_say_goodbye(self, connection: Connection) -> None:
        """Call `connection.handler.goodbye()`, and then tell the connection to end. Does not wait for it."""
        if self._portico_goodbyes is not None:
            self._portico_goodbyes.say(connection)

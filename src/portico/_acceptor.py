"""The accept policy, the one for all ways to run: how many requests per wake-up, and what follows when none can be had.

Nothing here knows what a request is or how it runs. The server's hooks take and start it; `errors` sorts what went
wrong; `_loop` waits. One `Acceptor` serves one server for one call of `serve_forever`.
"""

from __future__ import annotations

from . import _sockets
from .errors import Outcome, accept_outcome
from .lifecycle import STOP_FLAG, AcceptPaused, AcceptResumed, HookFailed, ListenerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._loop import Loop

__all__ = ["Acceptor", "serve"]

# So many refusals in a row with no request between them are no accident: then the loop takes a breath.
_PATIENCE = 16


def serve(loop: Loop, acceptors: list[Acceptor]) -> None:
    """Run until every server has stopped. Exceptions that are no `Exception` (Ctrl-C, SystemExit) leave it."""
    try:
        while acceptors := [acceptor for acceptor in acceptors if acceptor.prepare()]:
            for callback in loop.wait(_shortest([acceptor.patience() for acceptor in acceptors])):
                callback()
            for acceptor in acceptors:
                acceptor.after()
    finally:
        for acceptor in acceptors:
            acceptor.end()


def _shortest(timeouts: list[float | None]) -> float | None:
    return min((timeout for timeout in timeouts if timeout is not None), default=None)


class Acceptor:
    """Takes requests for one server: drains the listener in batches, pauses when short of resources, ends when told.

    `server` is a `BaseServer`; `poll_interval` is `serve_forever`'s, in seconds or None.
    """

    def __init__(self, server: Any, loop: Loop, poll_interval: float | None) -> None:
        self._server = server
        self._loop = loop
        self._poll_interval = poll_interval
        self._clock = server._system.monotonic
        self._flags = vars(server)
        self._descriptor: int | None = None
        self._begun = False
        self._listening = _sockets.is_listening(getattr(server, "socket", None))
        self._batch = server._batch_size()
        self._failures = 0
        self._pause = 0.0
        self._resume_at: float | None = None

    # -- one turn of the loop: prepare, wait for at most patience(), drain if ready, after

    def prepare(self) -> bool:
        """Get ready to wait; False, after having cleaned up, when this server's serving is over."""
        if self._stopping() or self._closed():
            self.end()
            return False
        if self._resume_at is not None and self._clock() >= self._resume_at:
            self._resume_at = None
        wanted = self._resume_at is None and self._server.ready_to_accept()
        if wanted != (self._descriptor is not None):
            self._watch(wanted)
        return True

    def patience(self) -> float | None:
        """Seconds that the loop may sleep on this server's account."""
        interval: float | None = self._server.service_interval(self._poll_interval)
        if self._resume_at is None:
            return interval
        pause = max(0.0, self._resume_at - self._clock())
        return pause if interval is None else min(pause, interval)

    def drain(self) -> None:
        """Take what is waiting, a batch at most, until nothing is left or the server is told to stop."""
        server = self._server
        if self._stopping():
            return
        # Before every drain and not once: where processes share the listener, one that ends sets its mode back.
        server._take_without_waiting(True)
        # Measured for UDP: this loop saves the poll and the selector's bookkeeping, a third of a datagram's cost.
        take, answer = server._handle_request_noblock, None
        try:
            for _ in range(self._batch):
                answer = take()
                if answer is not True or self._stopping():
                    break
                if self._failures:
                    self._recovered()
        except Exception as error:
            if server.stdlib_compat:
                raise
            server._emit(HookFailed("a hook on the way of a request", error))
            answer = error
        if isinstance(answer, Exception):
            self._judge(answer)

    def after(self) -> None:
        """`service_actions`, after every turn (the stdlib's rule). If it fails, that is told and forgotten."""
        if self._stopping():
            return
        try:
            self._server.service_actions()
        except Exception as error:
            if self._server.stdlib_compat:
                raise
            self._server._emit(HookFailed("service_actions", error))

    def end(self) -> None:
        """Leave the listener as it was found and let `shutdown` return. Safe to call again."""
        if self._descriptor is not None:
            self._watch(False)
        if self._server.fileno() >= 0:
            self._server._take_without_waiting(False)
        self._server._serving_ended(self._loop)

    # -- what happened, and what follows

    def _judge(self, error: Exception) -> None:
        match accept_outcome(error):
            case Outcome.EMPTY:
                return
            case Outcome.DEAD if not self._closed() and not _sockets.is_usable(self._server.socket, self._listening):
                self._server._emit(ListenerDied(error))
                self._server._stop()
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
            server._emit(AcceptPaused(error, self._pause))

    def _recovered(self) -> None:
        self._failures = 0
        if self._pause:
            self._pause = 0.0
            self._server._emit(AcceptResumed())

    # -- small questions

    def _stopping(self) -> bool:
        stopping: bool = self._flags[STOP_FLAG]
        return stopping

    def _closed(self) -> bool:
        """Whether the server's socket is gone: that ends serving quietly, but serving cannot begin with it."""
        try:
            closed: bool = self._server.fileno() < 0
        except (OSError, ValueError, AttributeError):
            if not self._begun:
                raise
            closed = True
        if closed and not self._begun:
            raise ValueError(f"cannot serve: the socket of this {type(self._server).__name__} is closed")
        self._begun = True
        return closed

    def _watch(self, wanted: bool) -> None:
        if wanted:
            self._descriptor = self._loop.watch(self._server, self.drain)
        elif self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
            self._descriptor = None

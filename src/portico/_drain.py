"""How a server comes to its end: the listener is closed, connections finish or are told to, the rest is cut in time.

The steps, for all ways to run; each says for itself how a goodbye is said and how a connection is cut
(`_portico_say_goodbye`, `_portico_cut`). Telling is shutdown(SHUT_RD): the handler finds the end of the stream when it
reads, and what it is still writing goes through.
"""

from __future__ import annotations

import gc
import socket
import sys
import threading
import traceback
from collections import deque
from time import monotonic

from . import logs
from ._system import frame_of
from .lifecycle import Drained, DrainWaiting, EndReason, HookFailed, Verb
from .reports import DrainReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["Drain", "Farewell", "Goodbyes", "stack_of"]

# Seconds between two looks at who has become idle: the first ones, and all others.
_FIRST_LOOK: Final = 0.01
_LOOK: Final = 0.05
# Seconds that one goodbye may take.
_PATIENCE: Final = 1.0
# Seconds after which a drain says whom it is waiting for; the next time after ten times as long.
_STUCK: Final = 1.0
_NAMED: Final = 20
_EVERYBODY: Final = sys.maxsize
# Seconds in which those are told that were not yet known to be idle, where nobody waits.
_LATER: Final = 0.5
# Seconds that the loop has to end, when nothing else runs any more.
_LOOP_ENDS: Final = 1.0
_A_WHILE: Final = 3600.0
_NEVER: Final = float("inf")


class Drain:
    """One drain of one server, run by `run` in the caller's thread or by `start` in one of its own.

    `cut_now` may be called from any thread and from signal handlers.
    """

    def __init__(self, server: Any, timeout: float | None, *, grace: float = 0.0) -> None:
        self._server = server
        self._connections = server._portico_connections
        self._timeout = timeout
        self._grace = grace
        self._deadline = _NEVER
        self._hurried = False
        self._over = threading.Event()
        self._someone_ended = self._connections.someone_ended = threading.Event()
        self._ended_before = self._connections.number_ended()
        self._told: set[int] = set()
        self._thread: threading.Thread | None = None
        self._goodbyes = _goodbyes_of(server)
        self.tells = True
        """Whether those that are idle are told to end."""
        self.report = DrainReport()

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name=f"draining {type(self._server).__name__}")
        self._thread.start()

    def run(self) -> DrainReport:
        """Close the listener, then see to it that every connection ends. Blocks."""
        began = monotonic()
        try:
            until = began + self._grace  # the time in which balancers learn that this server is going
            while not self._hurried and (left := until - monotonic()) > 0:
                self._await_end(min(_LOOK, left))
            self._server._portico_take_no_more()
            if self._timeout is not None:
                self._deadline = monotonic() + self._timeout
            if self._hurried:
                self._deadline = 0.0
            self._wait_for_ends()
            self._cut()
            self._server._portico_end_listener()
            self.report.seconds = monotonic() - began
            # A clean end is no news to a log: programs look at what their closing writes there (CPython's tests do).
            if self.report.cut or (self.report.finished and self._connections.has_listener):
                logs.emit(self._server, Drained(self.report))
        finally:
            self._server._portico_end_helpers()
            self._end()
        return self.report

    def tell(self) -> None:
        """Tell those that are idle to end, and wait for nobody: of some it shows only in a moment, and in a thread."""
        self._tell(list(self._connections), _EVERYBODY)
        self._end()
        if self.tells and len(self._connections):
            threading.Thread(target=self._tell_later, name="portico telling the idle", daemon=True).start()

    def _tell_later(self) -> None:
        until = monotonic() + _LATER
        while len(self._connections) and monotonic() < until:
            self._await_end(_LOOK)
            self._tell(list(self._connections), _EVERYBODY)

    def wait(self) -> DrainReport:
        """Until it is over, in whichever thread it runs."""
        while not self._over.wait(_A_WHILE):  # bounded, so that signal handlers of this thread run meanwhile
            pass
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()
        return self.report

    def cut_now(self) -> None:
        """The deadline is now, as the next look sees: an Event's lock may be held by whom a signal has interrupted."""
        self._hurried = True
        self._deadline = 0.0

    # -- steps

    def _wait_for_ends(self) -> None:
        """Until all have ended, or the deadline; meanwhile tells those that are idle, within `drain_spread` seconds."""
        began = monotonic()
        running = self._running()
        number = len(running)
        spread = min(self._server.drain_spread, _NEVER if self._timeout is None else self._timeout)
        pause = _FIRST_LOOK
        speak_at = began + _STUCK
        while running and (now := monotonic()) < self._deadline:
            self._tell(running, int(number * min(1.0, (now - began) / spread)) + 1 if spread else number)
            if now >= speak_at:
                speak_at = now + (now - began) * 10
                self._say_whom(running, now - began)
            self._await_end(min(pause, self._deadline - now))
            pause = min(pause * 2, _LOOK, spread / number if spread else _LOOK)
            running = self._running()
        self.report.finished = self._connections.number_ended() - self._ended_before

    def _running(self) -> list[Connection]:
        """What still runs, less what this very thread runs: a request that closes its server does not wait for itself.

        A request without a connection (a datagram's, a thread's last hook) is shown as one. So is, if nothing else
        runs, the loop: it may be in a handler, or about to let in what it has just taken.
        """
        self._server._portico_reap()
        me = threading.current_thread()
        mine = (me, None) if self._server._portico_lifecycle.runs_here else (me,)  # None is run by the loop
        running = [connection for connection in self._connections if connection.runner not in mine]
        known = {id(connection.runner) for connection in running}
        others = [runner for runner in self._server._portico_runners() if runner is not me and id(runner) not in known]
        if not running and not others and self._server._portico_lifecycle.runs_in_another_thread:
            others.append(None)
        return running + [self._connections.stand_in(self._server, runner) for runner in others]

    def _await_end(self, seconds: float) -> None:
        if self._someone_ended.wait(seconds):
            self._someone_ended.clear()

    def _tell(self, running: list[Connection], due: int) -> None:
        self._goodbyes.look(_PATIENCE)
        for connection in running if self.tells else ():
            if len(self._told) >= due:
                return
            if connection.id not in self._told and connection.is_idle():
                self._told.add(connection.id)
                self.report.goodbyes += _tell(self._server, connection)

    def _cut(self) -> None:
        """The deadline has come, or nobody is left. Those that go on are told once more, half way to the end."""
        running = self._running()
        self.report.cut = [connection for connection in running if not _is_loop(connection)]
        words: float = self._server._portico_last_words
        end = monotonic() + words
        for until in (end - words / 2, end):
            for connection in running:
                connection.cut(EndReason.CUT)
            while running and (left := until - monotonic()) > 0:
                self._await_end(min(0.005, left))
                running = self._running()
        while running and _is_loop(running[0]) and (left := end + _LOOP_ENDS - monotonic()) > 0:
            self._await_end(min(0.005, left))
            running = self._running()
        self.report.cut += [connection for connection in running if _is_loop(connection)]  # it is in a handler
        self.report.stuck = [(connection, stack_of(connection)) for connection in running]
        if running:
            self._say_whom(running, words)

    def _say_whom(self, running: list[Connection], seconds: float) -> None:
        waiting = [(connection, stack_of(connection)) for connection in running[:_NAMED]]
        logs.emit(self._server, DrainWaiting(waiting, seconds))

    def _end(self) -> None:
        self._server._portico_lifecycle.move(Verb.CLOSE)
        self._server._portico_lifecycle.move(Verb.FINISH)
        self._over.set()


class Farewell:
    """The end of sessions that nobody feeds any more, without a drain: with a goodbye, and nobody waits for them.

    Each is told when it has read and answered what there was, and in a moment in any case.
    """

    def __init__(self, server: Any, connections: list[Connection]) -> None:
        self._server = server
        self._left = connections
        self._until = monotonic() + _LATER
        self._goodbyes = _goodbyes_of(server)
        if self._look():
            threading.Thread(target=self._run, name="portico telling sessions", daemon=True).start()

    def _run(self) -> None:
        pause = _FIRST_LOOK
        while self._look():
            self._server._portico_system.sleep(pause)
            pause = min(pause * 2, _LOOK)

    def _look(self) -> bool:
        """Tell those whose time has come. Whether another look is needed."""
        late = monotonic() >= self._until
        open_ones = [connection for connection in self._left if connection.state != "ended"]
        self._left = []
        for connection in open_ones:
            if late or (connection.handler is not None and _is_answered(connection)):
                _tell(self._server, connection)
            else:
                self._left.append(connection)
        self._goodbyes.look(_PATIENCE)
        return bool(self._left) or self._goodbyes.busy


class Goodbyes:
    """Says goodbye for handlers that block: one after the other, in a thread that ends when none is left to be said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Connection] = deque()
        self._now: Connection | None = None
        self._since = 0.0

    def say(self, connection: Connection) -> None:
        with self._lock:
            self._waiting.append(connection)
            if self._now is not None:
                return
            self._now = connection
        threading.Thread(target=self._run, name="portico goodbyes", daemon=True).start()

    @property
    def busy(self) -> bool:
        return self._now is not None

    def look(self, patience: float) -> None:
        """Cut one that takes so many seconds: its peer does not read, and others wait for their turn."""
        connection = self._now
        if connection is not None and self._since and monotonic() - self._since > patience:
            connection.shut(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._now = None
                    return
                self._now = connection = self._waiting.popleft()
                self._since = monotonic()
            handler = connection.handler
            try:
                if handler is not None:
                    handler.goodbye()
            except OSError:  # the peer has left
                pass
            except Exception as error:
                logs.emit(connection._server, HookFailed("goodbye", error))
            connection.shut(socket.SHUT_RD)


def _goodbyes_of(server: Any) -> Goodbyes:
    # By setdefault, so that of two threads that come here at once both get the same.
    found: Goodbyes = vars(server).setdefault("_portico_goodbyes", Goodbyes())
    return found


def _tell(server: Any, connection: Connection) -> bool:
    """Tell a connection to end, unless somebody has; whether with a goodbye. A second one would end a child at once."""
    mine = object()
    if vars(connection).setdefault("told", mine) is not mine:
        return False
    connection.failed(EndReason.DRAINED)
    if server._portico_still_opens(connection):  # there is nobody yet who could find the end of a stream
        connection.cut(EndReason.DRAINED)
        return False
    if connection.handler is None:
        connection.shut(socket.SHUT_RD)
        return False
    server._portico_say_goodbye(connection)
    return True


def _is_answered(connection: Connection) -> bool:
    """Whether a session has read all that it will get, and sent something after that came."""
    known = connection.measure()
    unread = getattr(connection.current_socket(), "unread", False)
    return known is not None and known.sent > 0 and known.said >= known.heard and not unread


def _is_loop(connection: Connection) -> bool:
    """Whether this stands for the loop, which has nothing to run and mostly is just about to end."""
    return connection.runner is None and not connection.id


def stack_of(connection: Connection) -> str:
    """Where whoever runs this connection's handler is now, as text; of another process only its number."""
    runner = connection.runner
    if isinstance(runner, int):
        return f"process {runner}"
    if hasattr(runner, "get_coro") and not runner.get_coro().cr_running:  # a task that waits
        return "".join(_awaiting(runner.get_coro())) or "no stack"
    frame = getattr(runner, "gr_frame", None)  # a green thread that waits
    if frame is None:
        thread = getattr(runner, "ident", None) or connection._server._portico_loop_thread
        frame = frame_of(thread or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "no stack"


def _awaiting(coroutine: Any) -> Iterator[str]:
    """The frames of a coroutine that waits, from the outermost in."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield from traceback.format_stack(frame, limit=1)
        coroutine = coroutine.cr_await
        if not hasattr(coroutine, "cr_frame"):  # what `__await__` returned: it alone knows the coroutine inside
            inside = (found for found in gc.get_referents(coroutine) if hasattr(found, "cr_frame"))
            coroutine = next(inside, coroutine)

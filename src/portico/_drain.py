"""How a server comes to its end: the listener is closed, connections finish or are told to, the rest is cut in time.

The steps, for all ways to run; each says for itself how a goodbye is said and how a connection is cut
(`_portico_say_goodbye`, `_portico_cut`). Telling is shutdown(SHUT_RD): the handler finds the end of the stream when it
reads, and what it is still writing goes through.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from time import monotonic

from . import logs
from ._goodbyes import goodbyes_of, tell
from ._system import frame_of
from .lifecycle import Drained, DrainWaiting, EndReason, HookFailed, Verb
from .reports import DrainReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["Drain", "say_whom", "stack_of"]

# Seconds between two looks at who has become idle: the first ones, and all others.
_FIRST_LOOK: Final = 0.01
_LOOK: Final = 0.05
# Seconds after which a drain says whom it is waiting for; the next time after ten times as long.
_STUCK: Final = 1.0
_NAMED: Final = 20
_EVERYBODY: Final = sys.maxsize
# Seconds in which those are told that were not yet known to be idle, where nobody waits.
_LATER: Final = 0.5
# Seconds that the loop has to end, when nothing else runs any more.
_LOOP_ENDS: Final = 1.0
_NEVER: Final = float("inf")


class Drain:
    """One drain of one server: `finish` runs it in the caller's thread, `start` in one of its own.

    It is run once, by whoever `claim`s it first. Any thread, and any signal handler, may bring its deadline forward;
    nobody puts it off.
    """

    def __init__(self, server: Any, timeout: float | None, *, grace: float = 0.0) -> None:
        self._server = server
        self._connections = server._portico_connections
        self._timeout = timeout
        self._grace = grace
        # All that have ever been set. Appending needs no lock, which may be held by whom a signal has interrupted.
        self._deadlines = [_NEVER]
        self._claimed = threading.Lock()
        self._inside: list[threading.Thread] = []
        self._over = threading.Event()
        self._broken_off = False
        self._someone_ended = self._connections.someone_ended = threading.Event()
        self._ended_before = self._connections.number_ended()
        self._told: set[int] = set()
        self._thread: threading.Thread | None = None
        self._goodbyes = goodbyes_of(server)
        self.tells = True
        """Whether those that are idle are told to end."""
        self.report = DrainReport()

    # -- for whoever wants it, in any thread

    def claim(self) -> bool:
        """Whether it is the caller who is to run it, by `run`: nobody has before."""
        return self._claimed.acquire(blocking=False)

    def finish(self) -> DrainReport:
        """Run it, or wait for whoever does. Whoever is in here is not waited for: it may be a request that asks."""
        if self.is_here:  # a signal handler has interrupted it, or it tells somebody, who would wait for it
            return self.report
        me = threading.current_thread()
        self._inside.append(me)
        try:
            if self.claim():
                return self.run()
            self._wait()
        finally:
            self._inside.remove(me)
        return self._successor().finish() if self._broken_off else self.report

    def start(self) -> None:
        """Run it in a thread of its own, unless somebody does.

        With no thread to be had the listener is closed all the same, and those that are idle told; the rest is done by
        whoever calls `finish`.
        """
        if not self.claim():
            return
        self._thread = threading.Thread(target=self.run, name=f"draining {type(self._server).__name__}")
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self._claimed.release()
            self._server._portico_take_no_more()
            self._tell(list(self._connections), _EVERYBODY)
            logs.emit(self._server, HookFailed("request_drain", error))

    def until(self, seconds: float | None) -> None:
        """Somebody else wants it to end in so many seconds: the first deadline counts."""
        if seconds is not None:
            self._deadlines.append(monotonic() + seconds)

    def cut_now(self) -> None:
        """The deadline is now, as the next look sees."""
        self._deadlines.append(0.0)

    @property
    def is_here(self) -> bool:
        """Whether this thread runs it, or waits for it, and has been called away."""
        return threading.current_thread() in self._inside and not self._over.is_set()

    @property
    def is_left_behind(self) -> bool:
        """Whether nobody runs it, or nobody any more, though not everything has ended."""
        is_over = self._over.is_set() and (self._broken_off or not self.report.clean)
        return is_over or not self._claimed.locked()

    def killed(self, connection: Connection) -> None:
        """A child was killed, by somebody else than us: its request has not come to its end."""
        if not self._over.is_set():
            self.report.cut.append(connection)

    def tell(self) -> None:
        """Tell those that are idle to end, and wait for nobody: of some it shows only in a moment, and in a thread."""
        self._tell(list(self._connections), _EVERYBODY)
        self._end()
        if self.tells and len(self._connections):
            try:
                threading.Thread(target=self._tell_later, name="portico telling the idle", daemon=True).start()
            except RuntimeError:  # there is none to be had
                return

    def _tell_later(self) -> None:
        until = monotonic() + _LATER
        while len(self._connections) and monotonic() < until:
            self._await_end(_LOOK)
            self._tell(list(self._connections), _EVERYBODY)

    def _wait(self) -> None:
        # Not in one go: a signal that comes in the moment before would have its handler run when this is over.
        while not self._over.wait(_LOOK):
            pass
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()

    def _successor(self) -> Drain:
        """Whoever ran this one was called away: another one sees to the rest, in the same time."""
        soonest = min(self._deadlines)
        timeout = self._timeout if soonest == _NEVER else max(0.0, soonest - monotonic())
        drain: Drain = self._server._portico_begin_drain(timeout)[0]
        return drain

    # -- steps

    def run(self) -> DrainReport:
        """Close the listener, then see to it that every connection ends. Blocks. For whoever has claimed it."""
        me = threading.current_thread()
        self._inside.append(me)
        try:
            self._run()
            self._end()
        except BaseException:  # as of Ctrl-C: whoever asks for the end next is to have a drain that comes to one
            self._broken_off = True
            self._server._portico_forget_drain(self)
            raise
        finally:
            self._over.set()
            self._inside.remove(me)
        return self.report

    def _run(self) -> None:
        began = monotonic()
        try:
            until = began + self._grace  # the time in which balancers learn that this server is going
            while (left := min(until, *self._deadlines) - monotonic()) > 0:
                self._await_end(min(_LOOK, left))
            self._server._portico_take_no_more()
            self.until(self._timeout)
            self._wait_for_ends()
            self._cut()
            self._server._portico_end_listener()
            self.report.seconds = monotonic() - began
            # A clean end is no news to a log: programs look at what their closing writes there (CPython's tests do).
            if self.report.cut or (self.report.finished and self._connections.has_listener):
                logs.emit(self._server, Drained(self.report))
        finally:
            self._server._portico_end_helpers()

    def _wait_for_ends(self) -> None:
        """Until all have ended, or the deadline; meanwhile tells those that are idle, within `drain_spread` seconds."""
        began = monotonic()
        running = self._running()
        number = len(running)
        pause = _FIRST_LOOK
        speak_at = began + _STUCK
        while running and (now := monotonic()) < (deadline := min(self._deadlines)):
            spread = min(self._server.drain_spread, deadline - began)
            self._tell(running, int(number * min(1.0, (now - began) / spread)) + 1 if spread else number)
            if now >= speak_at:
                # Those who only wait for their turn to be told are not waited for.
                late = [one for one in running if one.id in self._told or not one.is_idle()] if spread else running
                speak_at = now + ((now - began) * 10 if late else _STUCK)
                if late:
                    say_whom(self._server, late, now - began)
            self._await_end(min(pause, deadline - now))
            pause = min(pause * 2, _LOOK, spread / number if spread else _LOOK)
            running = self._running()
        self.report.finished = self._connections.number_ended() - self._ended_before - len(self.report.cut)

    def _running(self) -> list[Connection]:
        """What still runs, less those who wait for this very drain: a request that ends its server is one of them.

        A request without a connection (a datagram's, a thread's last hook) is shown as one. So is, if nothing else
        runs, the loop: it may be in a handler, or about to let in what it has just taken.
        """
        server = self._server
        server._portico_reap()
        inside = list(self._inside)
        idents = [thread.ident for thread in inside]
        loop_thread = server._portico_lifecycle.loop_thread
        idents += [None] * (loop_thread in idents)  # what has no thread of its own is run by the loop
        running = [
            connection
            for connection in self._connections
            if (
                connection.runner not in inside
                if connection.runner is not None
                else (connection.in_hand or None) not in idents
            )
        ]
        known = {id(connection.runner) for connection in running}
        runners = server._portico_runners()
        others = [runner for runner in runners if runner not in inside and id(runner) not in known]
        # A loop of the program's own is no concern of ours, nor does it hear of a wish to stop before its next look.
        if not running and not others and server._portico_loop is not None and None not in idents:
            others.append(None)
        return running + [self._connections.stand_in(server, runner) for runner in others]

    def _await_end(self, seconds: float) -> None:
        if self._someone_ended.wait(seconds):
            self._someone_ended.clear()

    def _tell(self, running: list[Connection], due: int) -> None:
        self._goodbyes.look()
        for connection in running if self.tells else ():
            if len(self._told) >= due:
                return
            if connection.id not in self._told and connection.is_idle():
                self._told.add(connection.id)
                self.report.goodbyes += tell(self._server, connection)

    def _cut(self) -> None:
        """The deadline has come, or nobody is left. Those that go on are told once more, half way to the end."""
        began = monotonic()
        running = self._running()
        self.report.cut += [connection for connection in running if not _is_loop(connection)]
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
            say_whom(self._server, running, monotonic() - began, cut=True)

    def _end(self) -> None:
        try:
            self._server._portico_lifecycle.move(Verb.CLOSE)
            self._server._portico_lifecycle.move(Verb.FINISH)
        finally:
            self._over.set()


def say_whom(server: Any, running: list[Connection], seconds: float, *, cut: bool = False) -> None:
    """Tell for whom it is waited, and what they are at; for so long, or since they were `cut`."""
    waiting = [(connection, stack_of(connection)) for connection in running[:_NAMED]]
    logs.emit(server, DrainWaiting(waiting, seconds, cut=cut))


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
        thread = getattr(runner, "ident", None) or connection.in_hand or connection._server._portico_loop_thread
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

"""The life of a server: its states and the transitions between them. What it has to tell on its way is `events`'.

Pure rules: nothing here touches a socket, a clock or a log. `_serving` and `_drain` move the state.

    NEW ─start─▶ STARTING ─ready─▶ SERVING ◀─suspend/resume─▶ SUSPENDED  (by way of SERVING if suspended beforehand)
                    ▲                 │ end                        │ end
                    └────start──── STOPPED ◀───────────────────────┘
    any of these ─drain─▶ DRAINING ─close─▶ CLOSING ─finish─▶ CLOSED ─start─▶ STARTING (with another socket)
"""

from __future__ import annotations

import threading
from collections import deque
from enum import Enum

from . import events
from .events import *  # noqa: F403

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

__all__ = ["LOOP_ENDED", "STOP_FLAG", "Lifecycle", "State", "StopFlag", "Verb", "transition"]
__all__ += events.__all__


STOP_FLAG: Final = "_BaseServer__shutdown_request"
"""Where a server's wish to stop is kept: under `socketserver`'s private name, in the instance's `__dict__`."""


LOOP_ENDED: Final = "_BaseServer__is_shut_down"
"""Where the event is kept that says that no loop runs; the same."""


class State(Enum):
    """Where a server is in its life."""

    NEW = "new"
    STARTING = "starting"
    SERVING = "serving"
    SUSPENDED = "suspended"
    """It serves the connections that it has, and takes no further ones."""
    STOPPED = "stopped"
    """Its loop has ended; it may be started again."""
    DRAINING = "draining"
    """Its listener is closed or about to be, and its connections come to their end."""
    CLOSING = "closing"
    CLOSED = "closed"


class Verb(Enum):
    """What can happen to it."""

    START = "start"
    READY = "get ready"
    SUSPEND = "be suspended"
    RESUME = "resume"
    END = "end"
    DRAIN = "drain"
    CLOSE = "close"
    FINISH = "finish"


def _table() -> dict[tuple[State, Verb], State]:
    s, v = State, Verb
    steps = {
        (s.NEW, v.START): s.STARTING, (s.STOPPED, v.START): s.STARTING, (s.CLOSED, v.START): s.STARTING,
        (s.STARTING, v.READY): s.SERVING,
        (s.SERVING, v.SUSPEND): s.SUSPENDED, (s.SUSPENDED, v.SUSPEND): s.SUSPENDED,
        (s.SUSPENDED, v.RESUME): s.SERVING, (s.SERVING, v.RESUME): s.SERVING,
        # No loop runs that could be suspended, but the next one may be, and `handle_request`.
        **{(state, verb): state for state in (s.NEW, s.STARTING, s.STOPPED) for verb in (v.SUSPEND, v.RESUME)},
        (s.CLOSING, v.FINISH): s.CLOSED, (s.CLOSED, v.FINISH): s.CLOSED,
    }  # fmt: skip
    over = {s.DRAINING, s.CLOSING, s.CLOSED}
    for state in State:
        runs = state in (s.STARTING, s.SERVING, s.SUSPENDED)
        # An end without a start: programs set the event beforehand so that shutdown() cannot block on the stdlib's
        # module. And a loop may end at any moment of the server's own end, or find that one as it begins.
        steps[state, v.END] = s.STOPPED if runs else state
        if state in over:
            steps[state, v.READY] = state
        steps[state, v.DRAIN] = state if state in over else s.DRAINING
        steps[state, v.CLOSE] = state if state is s.CLOSED else s.CLOSING
    return steps


_TRANSITIONS: Final = _table()


def transition(state: State, verb: Verb) -> State:
    """The state that follows; `RuntimeError` for what cannot be, such as to serve twice at once."""
    try:
        return _TRANSITIONS[state, verb]
    except KeyError:
        runs = state in (State.STARTING, State.SERVING, State.SUSPENDED)
        why = ": its loop runs in another call" if verb is Verb.START and runs else ""
        raise RuntimeError(f"a {state.value} server cannot {verb.value}{why}") from None


class Lifecycle(threading.Event):
    """A server's state behind the face of `socketserver`'s `_BaseServer__is_shut_down` event.

    Programs in the wild carry copies of the stdlib's `serve_forever`, which `clear()` this event when the loop starts
    and `set()` it when it ends. So these two are verbs, and a copied loop moves the state as ours does.

    `lock` is held where the state and the wish to stop must change together. It is re-entrant because a signal handler
    may ask for the end in the middle of any of it, in the same thread. `tell` is called with each change: once, and in
    their order, whoever makes them. That is not under the lock, since whoever is told may wait for another thread, or
    ask for the next change himself.
    """

    def __init__(self, tell: Callable[[State, State], object] | None = None) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.state = State.NEW
        self.on_start: Callable[[], object] | None = None
        self.run = threading.Event()
        """Set when this run, or the last one, is over. Each has one of its own, so that whoever waits for the end of a
        run is not caught by the beginning of the next."""
        self.running = False
        self.suspended = False
        """Whether that was asked for: a loop that starts is suspended as soon as it is ready."""
        self._tell = tell
        self._untold: deque[tuple[State, State]] = deque()
        self._telling = threading.Lock()
        """Held by whoever tells; never waited for."""
        self.loop_thread: int | None = None

    def move(self, verb: Verb) -> None:
        """Take a step, and tell of it. Raises `RuntimeError` for one that cannot be."""
        self.step(verb)
        self.tell()

    def step(self, verb: Verb) -> None:
        """The same, but the telling is left to the caller, who holds `lock`."""
        with self.lock:
            while True:
                before = self.state
                after = transition(before, verb)
                if self.state is before:  # else a signal handler has taken a step in between, in this very thread
                    break
            self.state = after
            if verb in (Verb.SUSPEND, Verb.RESUME):
                self.suspended = verb is Verb.SUSPEND
            if after is not before and self._tell is not None:
                self._untold.append((before, after))

    def tell(self) -> None:
        """Tell of all steps that nobody has been told of, unless somebody is at it already: he will see to these, too.

        That may be this very thread, when whoever is told takes a step, or a signal handler does in between.
        """
        while self._untold and self._telling.acquire(blocking=False):
            try:
                if self._untold and self._tell is not None:
                    self._tell(*self._untold.popleft())
            except BaseException:
                self._telling.release()
                self.tell()  # of the others
                raise
            self._telling.release()

    def clear(self) -> None:
        """The loop starts, in this thread. Raises `RuntimeError` if it runs already."""
        self.begin()
        self.get_ready()

    def begin(self) -> None:
        """The first half of it, of which nothing has been told yet, for a caller who holds `lock`."""
        with self.lock:
            if self.running:
                raise RuntimeError(f"a {self.state.value} server cannot start: its loop runs in another call")
            self.step(Verb.START)
            self.running = True
            self.loop_thread = threading.get_ident()
            self.run = threading.Event()
            super().clear()

    def get_ready(self) -> None:
        """The second half, without the lock."""
        self.tell()
        with self.lock:
            self.step(Verb.READY)
            if self.suspended and self.state is State.SERVING:
                self.step(Verb.SUSPEND)
        self.tell()
        if self.on_start is not None:
            self.on_start()

    def set(self) -> None:
        """The loop has ended, and whoever waits for that may go on."""
        self.let_go()
        self.tell()

    def let_go(self) -> None:
        """The same, but for the telling, for a caller who holds `lock`. From here on a wish to stop comes too late."""
        with self.lock:
            self.running = self.suspended = False
            self.step(Verb.END)
            self.loop_thread = None
            self.run.set()
            super().set()

    @property
    def is_over(self) -> bool:
        """Whether a loop has run, and ended."""
        return not self.running and self.state is not State.NEW

    @property
    def runs_here(self) -> bool:
        """Whether this is the thread of the loop that runs."""
        return self.loop_thread == threading.get_ident()

    @property
    def runs_in_another_thread(self) -> bool:
        """Whether somebody else's loop runs, so that its end can be waited for without deadlock."""
        return self.loop_thread not in (None, threading.get_ident())


class StopFlag:
    """The wish to stop, `_BaseServer__shutdown_request`, kept in the instance's `__dict__` as in `socketserver`.

    Programs set it from handlers and signal handlers instead of calling `shutdown()`. An idle loop does not look, so
    setting it has to wake the loop, and whoever waits in `handle_request`.
    """

    def __get__(self, server: Any, owner: type) -> bool:
        if server is None:
            return False
        return bool(vars(server).get(STOP_FLAG))

    def __set__(self, server: Any, value: bool) -> None:
        vars(server)[STOP_FLAG] = value
        loop = server._portico_loop
        if value and loop is not None:
            loop.wake()
        waits = vars(server).get("_portico_waits")
        if value and waits is not None:
            waits.end()

"""The life of a server, and what it has to tell: states, the transitions between them, and typed events.

Pure rules: nothing here touches a socket, a clock or a log. `servers` moves the state, `logs` turns the events into
records.

    NEW ──start──▶ SERVING ──end──▶ STOPPED ──start──▶ SERVING ...

Whether a server is closed is not kept here: its socket knows, and a user may close one and put another in its place.
"""

from __future__ import annotations

import threading
from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

__all__ = [
    "LOOP_ENDED",
    "STOP_FLAG",
    "AcceptPaused",
    "AcceptResumed",
    "Event",
    "ForkedWithThreads",
    "HookFailed",
    "Lifecycle",
    "ListenerDied",
    "LoopHeld",
    "PeerLeft",
    "RequestFailed",
    "RequestsAbandoned",
    "State",
    "StopFlag",
    "Verb",
    "transition",
]


STOP_FLAG: Final = "_BaseServer__shutdown_request"
"""Where a server's wish to stop is kept: under `socketserver`'s private name, in the instance's `__dict__`."""


LOOP_ENDED: Final = "_BaseServer__is_shut_down"
"""Where the event is kept that says that no loop runs; the same."""


class State(Enum):
    """Where a server is in its life."""

    NEW = "new"
    SERVING = "serving"
    STOPPED = "stopped"


class Verb(Enum):
    """What can happen to it."""

    START = "start"
    END = "end"


_TRANSITIONS: Final = {
    (State.NEW, Verb.START): State.SERVING,
    (State.STOPPED, Verb.START): State.SERVING,
    (State.SERVING, Verb.END): State.STOPPED,
    # An end without a start: programs set the event beforehand so that shutdown() cannot block on the stdlib's module.
    (State.NEW, Verb.END): State.NEW,
    (State.STOPPED, Verb.END): State.STOPPED,
}


def transition(state: State, verb: Verb) -> State:
    """The state that follows; `RuntimeError` for the one thing that cannot be: to serve twice at once."""
    try:
        return _TRANSITIONS[state, verb]
    except KeyError:
        raise RuntimeError(f"a {state.value} server cannot {verb.value}: its loop runs in another call") from None


class Lifecycle(threading.Event):
    """A server's state behind the face of `socketserver`'s `_BaseServer__is_shut_down` event.

    Programs in the wild carry copies of the stdlib's `serve_forever`, which `clear()` this event when the loop starts
    and `set()` it when it ends. So these two are the verbs, and a copied loop moves the state as ours does.

    `lock` is held where the state and the wish to stop must change together. It is re-entrant because a signal handler
    may ask for the end in the middle of any of it, in the same thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.state = State.NEW
        self.on_start: Callable[[], object] | None = None
        self.run = threading.Event()
        """Set when this run, or the last one, is over. Each has one of its own, so that whoever waits for the end of a
        run is not caught by the beginning of the next."""
        self._loop_thread: int | None = None

    def clear(self) -> None:
        """The loop starts, in this thread. Raises `RuntimeError` if it runs already."""
        self.state = transition(self.state, Verb.START)
        self._loop_thread = threading.get_ident()
        self.run = threading.Event()
        super().clear()
        if self.on_start is not None:
            self.on_start()

    def end(self) -> None:
        """The loop is over: from here on a wish to stop comes too late to mean anything."""
        self.state = transition(self.state, Verb.END)

    def set(self) -> None:
        """The loop has ended, and whoever waits for that may go on."""
        self.end()
        self._loop_thread = None
        self.run.set()
        super().set()

    @property
    def runs_in_another_thread(self) -> bool:
        """Whether somebody else's loop runs, so that its end can be waited for without deadlock."""
        return self._loop_thread not in (None, threading.get_ident())


class StopFlag:
    """The wish to stop, `_BaseServer__shutdown_request`, kept in the instance's `__dict__` as in `socketserver`.

    Programs set it from handlers and signal handlers instead of calling `shutdown()`. An idle loop does not look, so
    setting it has to wake the loop.
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


class Event:
    """Something a server has to tell. All events are handed to `BaseServer.handle_event`.

    Plain classes with slots: `dataclasses` costs 11 ms to import, three times all of `socketserver`.
    """

    __slots__ = ()


class RequestFailed(Event):
    """A handler, or a hook on its way, raised: a bug, or a fault outside the connection."""

    __slots__ = ("client_address", "error", "request")

    def __init__(self, request: Any, client_address: Any, error: BaseException | None) -> None:
        self.request = request
        self.client_address = client_address
        self.error = error


class PeerLeft(RequestFailed):
    """A request ended because its peer closed, reset or fell silent: nothing to mend here."""

    __slots__ = ()


class HookFailed(Event):
    """An overridable method that must not fail did: `service_actions`, `handle_error`, `shutdown_request` ..."""

    __slots__ = ("error", "hook")

    def __init__(self, hook: str, error: BaseException) -> None:
        self.hook = hook
        self.error = error


class AcceptPaused(Event):
    """Requests cannot be taken for now; sent once, however often the pause is repeated."""

    __slots__ = ("error", "seconds")

    def __init__(self, error: BaseException | None, seconds: float) -> None:
        self.error = error
        self.seconds = seconds


class AcceptResumed(Event):
    """Requests are taken again after a pause."""

    __slots__ = ()


class ListenerDied(Event):
    """The listener became useless while it was open; the loop ends with `error`."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class ForkedWithThreads(Event):
    """A request was forked off a process that has other threads; sent once a server."""

    __slots__ = ("threads",)

    def __init__(self, threads: int) -> None:
        self.threads = threads


class LoopHeld(Event):
    """A handler has been holding the event loop for `seconds`, and still does; `stack` is where it is now."""

    __slots__ = ("client_address", "seconds", "stack")

    def __init__(self, client_address: Any, seconds: float, stack: str) -> None:
        self.client_address = client_address
        self.seconds = seconds
        self.stack = stack


class RequestsAbandoned(Event):
    """So many requests of a closing server went on waiting however often they were told to end."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

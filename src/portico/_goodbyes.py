"""How connections are told to end: by their handler's goodbye, where it has one, and by the end of what it reads.

Handlers that block have their goodbyes said in a thread of ours, one after the other; other ways to run do it in their
own manner (`_portico_say_goodbye`). When to tell is `_drain`'s business, and of sessions that nobody feeds any more
`Farewell`'s.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from time import monotonic

from . import logs
from .lifecycle import EndReason, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["PATIENCE", "Farewell", "Goodbyes", "goodbye_failed", "goodbyes_of", "tell"]

# Seconds that one goodbye may take.
PATIENCE: Final = 1.0
# Seconds in which those sessions are told that have not read all of what there is.
_LATER: Final = 0.5
# Seconds between two looks at them: the first ones, and all others.
_FIRST_LOOK: Final = 0.01
_LOOK: Final = 0.05


class Farewell:
    """The end of sessions that nobody feeds any more, without a drain: with a goodbye, and nobody waits for them.

    Each is told when it has read and answered what there was, and in a moment in any case.
    """

    def __init__(self, server: Any, connections: list[Connection]) -> None:
        self._server = server
        self._left = connections
        self._until = monotonic() + _LATER
        self._goodbyes = goodbyes_of(server)
        if self._look() and not _start(self._run, "portico telling sessions"):
            self._until = 0.0
            self._look()

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
                tell(self._server, connection)
            else:
                self._left.append(connection)
        self._goodbyes.look()
        return bool(self._left) or self._goodbyes.busy


class Goodbyes:
    """Says goodbye for handlers that block: one after the other, in a thread that ends when none is left to be said.

    One that takes too long has its connection cut, which ends it if it waits for its peer, and its thread to itself:
    the others are said in another one, whatever it waits for.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may begin a drain in the middle of it
        self._waiting: deque[Connection] = deque()
        self._speaker: _Speaker | None = None

    def say(self, connection: Connection) -> None:
        with self._lock:
            self._waiting.append(connection)
            if self._speaker is None:
                self._next_speaker()

    @property
    def busy(self) -> bool:
        return self._speaker is not None

    def look(self) -> None:
        """Others are not to wait for one that takes longer than `PATIENCE`."""
        speaker = self._speaker
        if speaker is None or monotonic() - speaker.since <= PATIENCE:
            return
        connection = speaker.connection
        with self._lock:
            if speaker is self._speaker:
                self._next_speaker()
        if connection is not None:
            connection.shut(socket.SHUT_RDWR)

    def _next_speaker(self) -> None:
        """With the lock. Without a thread to be had those that wait are told without a goodbye."""
        self._speaker = speaker = _Speaker() if self._waiting else None
        if speaker is not None and not _start(lambda: self._run(speaker), "portico goodbyes"):
            self._speaker = None
            while self._waiting:
                self._waiting.popleft().shut(socket.SHUT_RD)

    def _run(self, speaker: _Speaker) -> None:
        while (connection := self._take(speaker)) is not None:
            handler = connection.handler
            try:
                if handler is not None:
                    handler.goodbye()
            except OSError:  # the peer has left
                pass
            except BaseException as error:  # whatever ends a thread: it is that of the others, too
                goodbye_failed(connection._server, error)
            connection.shut(socket.SHUT_RD)

    def _take(self, speaker: _Speaker) -> Connection | None:
        """The next one to be said by this speaker, if it is still his turn."""
        with self._lock:
            if speaker is not self._speaker:
                return None
            if not self._waiting:
                self._speaker = None
                return None
            speaker.connection, speaker.since = self._waiting.popleft(), monotonic()
            return speaker.connection


class _Speaker:
    """One thread's turn."""

    connection: Connection | None = None

    def __init__(self) -> None:
        self.since = monotonic()


def goodbye_failed(server: Any, error: BaseException) -> None:
    """Tell of it, inside the `except` block. `sys.exit()` without a word is an end that it has chosen."""
    if not isinstance(error, SystemExit) or error.code:
        logs.emit(server, HookFailed("goodbye", error))


def goodbyes_of(server: Any) -> Goodbyes:
    # By setdefault, so that of two threads that come here at once both get the same.
    found: Goodbyes = vars(server).setdefault("_portico_goodbyes", Goodbyes())
    return found


def tell(server: Any, connection: Connection) -> bool:
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


def _start(run: Any, name: str) -> bool:
    """Run it in a thread that nobody waits for, if there is one to be had."""
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True

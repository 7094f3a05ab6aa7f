"""What a server holds to answer with TLS: the context of its next handshake, replaced as a whole or not at all.

A pair that does not fit breaks every later handshake of the context it is loaded into: so a fresh one is made and tried
(`_contexts`) before it takes the old one's place. Open connections keep theirs. No sockets, no events, no clock but
what is handed in: who tells of an error, and when is the time to look, is the server's to know.
"""

from __future__ import annotations

import os
import ssl
import time
from threading import RLock

from . import _contexts
from ._ticket_keys import TicketKeys
from .errors import SettingError, TLSError
from .tls import TLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeAlias

    Source: TypeAlias = TLS | ssl.SSLContext
    Seen: TypeAlias = tuple[tuple[int, int, int] | None, ...]

__all__ = ["Keyring"]

_DAY: Final = 86400.0


class Keyring:
    """Certificates of one server. `context` is what its next handshake is to use: read it anew each time."""

    def __init__(
        self,
        source: Source,
        *,
        blocking: bool,
        watch: float | None = None,
        tickets: TicketKeys | None = None,
        try_it: bool = True,
    ) -> None:
        """Load and try them: `TLSError` says what is wrong. `watch`: seconds from one look at their files to the next.

        `tickets`: keys of servers that are to know each other's sessions; by default new ones. Contexts that ask for
        clients' certificates get others, which follow from these and from who is believed. A context that a program has
        in use already need not be tried.
        """
        if not isinstance(source, (TLS, ssl.SSLContext)):
            raise SettingError(f"tls must be a portico.TLS or an ssl.SSLContext, not {source!r}")
        self.source = source
        self.context: ssl.SSLContext
        self.tickets = tickets
        self.loads = 0
        """How many contexts there have been."""
        self._blocking = blocking
        self._try_it = try_it
        self._watch = watch
        self._due = float("inf") if watch is None else float("-inf")
        self._lock = RLock()  # re-entrant: a signal handler may reload in the middle of it
        self._end: float | None = None
        self._loaded: Seen = ()
        self._failed: Seen | None = None
        self._told: Seen | None = None
        self._replace(source)

    def reload(self, source: Source | None = None) -> None:
        """Load the files anew, or take another source. `TLSError` says why not: then all is as it was."""
        if source is not None and not isinstance(source, (TLS, ssl.SSLContext)):
            raise SettingError(f"tls must be a portico.TLS or an ssl.SSLContext, not {source!r}")
        with self._lock:
            if source is None and not isinstance(self.source, TLS):
                raise TLSError("an SSLContext cannot be loaded anew: hand in a new one, reload_tls(context)")
            self._replace(self.source if source is None else source)

    def watch(self, seconds: float | None) -> None:
        """From one look to the next, from now on; None for none."""
        if seconds != self._watch:
            self._watch, self._due = seconds, float("inf") if seconds is None else float("-inf")

    def look(self, now: float) -> TLSError | None:
        """Reload what has changed on disk, if it is time; to be asked often, by any thread. Never raises.

        A certificate is written before its key: what fails once is tried again at the next look, and only if it fails
        again, with the same files, the error is returned, once.
        """
        if now < self._due or not self._lock.acquire(blocking=False):
            return None
        try:
            if now < self._due or self._watch is None:  # another thread was faster
                return None
            self._due = now + self._watch
            return self._look()
        finally:
            self._lock.release()

    def expires_in(self, wall_now: float | None = None) -> float | None:
        """Days until the first of all certificates ends that are shown; below 0 if it has; None if nobody knows."""
        if self._end is None:
            return None
        return (self._end - (time.time() if wall_now is None else wall_now)) / _DAY

    def _look(self) -> TLSError | None:
        seen = _seen(self.source)
        if seen == self._loaded:
            self._failed = self._told = None
            return None
        try:
            self._replace(self.source)
        except TLSError as error:
            confirmed = seen == self._failed and seen != self._told
            self._failed = seen
            if not confirmed:
                return None
            self._told = seen
            return error
        return None

    def _replace(self, source: Source) -> None:
        seen = _seen(source)  # before it is read: what changes meanwhile is found at the next look
        loads = self.loads
        if isinstance(source, TLS):
            made = _contexts.make(source, blocking=self._blocking)
        else:
            made = _contexts.adopt(source, try_it=self._try_it)
        now = time.time()
        if loads and made.end is not None and made.end < now and (self._end is None or self._end > now):
            raise TLSError("the new certificate has ended: clients would refuse it, and not the one that is used")
        if self.loads != loads:  # a signal handler has reloaded meanwhile: its files are the newer ones
            return
        self._give_tickets(made, adopted=not isinstance(source, TLS))
        self.source, self.context, self._end = source, made.context, made.end
        self._loaded, self._failed, self._told = seen, None, None
        self.loads += 1

    def _give_tickets(self, made: _contexts.Made, *, adopted: bool) -> None:
        first = adopted and self.loads == 0
        if self.tickets is None:
            self.tickets = TicketKeys.of(made.context)
            if first or self.tickets is None:  # it may be another server's, too, whose clients have tickets
                return
        if self.loads == 0 or made.context is not self.context:
            self.tickets.bound(b"" if first else made.trust).apply(made.context)


def _seen(source: Source) -> Seen:
    """What tells one state of the files from another."""
    return tuple(map(_mark, source.files)) if isinstance(source, TLS) else ()


def _mark(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

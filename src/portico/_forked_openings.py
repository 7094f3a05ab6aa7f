"""How a parent knows how far its children are with their connections, and they why it ends them: in memory they share.

Else one that still waits for its client's handshake would look like one that runs a handler: it would be waited for at
the end, and count in `max_handshakes` for as long as it lives. And one whose connection is cut would find that its peer
has left, and say so.
"""

from __future__ import annotations

from ._serving import Serving
from .events import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["ForkedOpenings"]


_HEARD: Final = 1
_OPEN: Final = 2
# What a parent says of a connection that it cuts.
_REASONS: Final = (None, EndReason.HANDSHAKE_TIMEOUT, EndReason.DRAINED, EndReason.CUT, EndReason.CLOSED)


class Marks:
    """Two bytes for each child, in memory that it shares with its parent: how far it is, and why that ends it."""

    def __init__(self, number: int) -> None:
        from mmap import mmap  # only where connections are opened

        self._bytes = mmap(-1, 2 * number)
        self._free = list(range(0, 2 * number, 2))

    def take(self) -> int | None:
        """A mark that says nothing yet, for one child; None if none is left."""
        if not self._free:
            return None
        mark = self._free.pop()
        self._bytes[mark] = self._bytes[mark + 1] = 0
        return mark

    def set(self, mark: int, step: int) -> None:
        """In the child."""
        self._bytes[mark] |= step

    def is_set(self, mark: int, step: int) -> bool:
        return bool(self._bytes[mark] & step)

    def end(self, mark: int, reason: EndReason) -> None:
        """In the parent, before it cuts the connection."""
        if reason in _REASONS:
            self._bytes[mark + 1] = _REASONS.index(reason)

    def reason(self, mark: int) -> EndReason | None:
        return _REASONS[self._bytes[mark + 1]]

    def free(self, mark: int) -> None:
        """Its child has ended."""
        self._free.append(mark)


class ForkedOpenings(Serving):
    """The part of a forking server that knows how far its children are."""

    max_children: int
    _portico_is_child = False
    _portico_marks: Any = None

    def _portico_mark(self, connection: Connection) -> None:
        """Before the fork: have the child tell when it has opened its connection, as far as there is room for that."""
        if self._portico_marks is None:
            self._portico_marks = Marks(max(self.max_children, 1))
        connection.opening.mark = self._portico_marks.take()

    def _portico_secure(self, request: Any, seconds: float) -> None:
        connection = self._portico_connections.only
        if connection is not None:
            self._portico_tell(connection, _HEARD)
        super()._portico_secure(request, seconds)

    def _portico_opened(self, connection: Connection, request: Any) -> None:
        self._portico_tell(connection, _OPEN)
        super()._portico_opened(connection, request)

    def _portico_tell(self, connection: Connection, step: int) -> None:
        """In the child: so far has it come."""
        opening = connection.opening
        if self._portico_is_child and opening is not None and opening.mark is not None:
            self._portico_marks.set(opening.mark, step)

    def _portico_opening_failed(self, connection: Connection, request: Any, error: BaseException) -> None:
        opening = connection.opening
        reason = None if opening is None or opening.mark is None else self._portico_marks.reason(opening.mark)
        if reason is not None:
            connection.failed(reason)
        super()._portico_opening_failed(connection, request, error)

    def _portico_cut(self, connection: Connection, reason: EndReason, *, again: bool) -> None:
        opening = connection.opening
        if opening is not None and opening.mark is not None:
            self._portico_marks.end(opening.mark, reason)
        super()._portico_cut(connection, reason, again=again)

    def _portico_has_heard(self, connection: Connection) -> bool:
        opening = connection.opening
        if opening is None or opening.mark is None:
            return super()._portico_has_heard(connection)
        return bool(self._portico_marks.is_set(opening.mark, _HEARD))

    def _portico_still_opens(self, connection: Connection) -> bool:
        opening = connection.opening
        if opening is None or opening.mark is None:
            return opening is not None and connection.runner is None
        return self._portico_is_child or not self._portico_marks.is_set(opening.mark, _OPEN)

    def _portico_look_at_openings(self) -> None:
        openings: Any = self._portico_connections.openings
        for connection in openings:
            if not self._portico_still_opens(connection):
                openings.opened(connection)

    def _portico_unmark(self, connection: Connection) -> None:
        """Its child has ended."""
        opening = connection.opening
        if opening is not None and opening.mark is not None:
            self._portico_marks.free(opening.mark)
            opening.mark = None

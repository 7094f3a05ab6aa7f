"""How a parent knows which of its children have opened their connections: by a byte each, in memory that they share.

Else one that still waits for its client's handshake would look like one that runs a handler: it would be waited for at
the end, and count in `max_handshakes` for as long as it lives.
"""

from __future__ import annotations

from ._serving import Serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._connection import Connection

__all__ = ["ForkedOpenings"]


class Marks:
    """What children tell their parent by a byte each, in memory that they share: that they have opened a connection."""

    def __init__(self, number: int) -> None:
        from mmap import mmap  # only where connections are opened

        self._bytes = mmap(-1, number)
        self._free = list(range(number))

    def take(self) -> int | None:
        """A mark that is not set, for one child; None if none is left."""
        if not self._free:
            return None
        mark = self._free.pop()
        self._bytes[mark] = 0
        return mark

    def set(self, mark: int) -> None:
        """In the child."""
        self._bytes[mark] = 1

    def is_set(self, mark: int) -> bool:
        return self._bytes[mark] == 1

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

    def _portico_opened(self, connection: Connection) -> None:
        opening = connection.opening
        if self._portico_is_child and opening is not None and opening.mark is not None:
            self._portico_marks.set(opening.mark)
        super()._portico_opened(connection)

    def _portico_still_opens(self, connection: Connection) -> bool:
        opening = connection.opening
        if opening is None or opening.mark is None:
            return opening is not None and connection.runner is None
        return self._portico_is_child or not self._portico_marks.is_set(opening.mark)

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

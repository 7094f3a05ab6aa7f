"""What children have sent and received, in memory that they share with their parent, who else would not know.

Of TCP the parent learns it at their end; before that from a copy of the socket, if it has kept one. Of what the kernel
does not count (Unix sockets) it knows while they run.
"""

from __future__ import annotations

from ._forked_openings import ForkedOpenings
from ._meters import Tally
from ._own import Own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["ForkedFigures"]

_FIELDS: Final = 6
# Children for whom there is room in one piece of memory.
_ROOM: Final = 84


class Figures:
    """Room for so many children as there are at once. In the parent, before it forks."""

    def __init__(self) -> None:
        self._pages: list[Any] = []
        self._free: list[int] = []
        """Numbers of places, on all pages."""

    def take(self, began: float) -> SharedTally:
        """A tally of nothing, of a connection that began then."""
        if not self._free:
            from mmap import mmap  # only now: `import portico` is to stay cheap

            self._free = list(range(len(self._pages) * _ROOM, (len(self._pages) + 1) * _ROOM))
            self._pages.append(memoryview(mmap(-1, 8 * _FIELDS * _ROOM)).cast("d"))
        place = self._free.pop()
        return SharedTally(began, self._pages[place // _ROOM], place)

    def free(self, tally: SharedTally) -> None:
        """Its child has ended, and nobody will look any more."""
        self._free.append(tally.place)


class SharedTally(Tally):
    """A tally that parent and child see alike. Whole numbers are exact up to 2**53 bytes."""

    __slots__ = ("first", "page", "place")

    def __init__(self, now: float, page: Any, place: int) -> None:
        self.page, self.place, self.first = page, place, first = page, place, place % _ROOM * _FIELDS
        super().__init__(now)
        page[first + 4] = page[first + 5] = 0

    def tell(self, received: int, sent: int) -> None:
        """The child's last word."""
        self.received, self.sent, self.page[self.first + 4] = received, sent, 1

    @property
    def told(self) -> bool:
        return bool(self.page[self.first + 4])

    @property
    def blind(self) -> bool:
        """Whether the child's handler has put something in its socket's place that does not count."""
        return bool(self.page[self.first + 5])

    @blind.setter
    def blind(self, value: bool) -> None:
        self.page[self.first + 5] = value

    @property
    def received(self) -> int:
        return int(self.page[self.first])

    @received.setter
    def received(self, number: int) -> None:
        self.page[self.first] = number

    @property
    def sent(self) -> int:
        return int(self.page[self.first + 1])

    @sent.setter
    def sent(self, number: int) -> None:
        self.page[self.first + 1] = number

    @property
    def heard(self) -> float:
        return float(self.page[self.first + 2])

    @heard.setter
    def heard(self, when: float) -> None:
        self.page[self.first + 2] = when

    @property
    def said(self) -> float:
        return float(self.page[self.first + 3])

    @said.setter
    def said(self, when: float) -> None:
        self.page[self.first + 3] = when


class ForkedFigures(ForkedOpenings):
    """The part of a forking server that knows what its children have sent and received."""

    _portico_figures: Figures = Own(Figures)  # type: ignore[assignment]

    def _portico_share(self, connection: Connection) -> None:
        """Before the fork."""
        connection.shared = self._portico_figures.take(connection._began)

    def _portico_count_in_child(self, connection: Connection) -> None:
        """In the child: from here on it counts."""
        connection.runner = self._portico_system.pid()  # the connection's end is the parent's to tell
        if connection.tally is not None and connection.shared is not None:
            connection.tally = connection.shared

    def _portico_leave_figures(self, connection: Connection) -> None:
        """The last thing that a child tells."""
        shared = connection.shared
        known = connection.last_totals() if connection.tally is None and shared is not None else None
        if known is not None and not shared.blind:
            shared.tell(*known)

    def _portico_take_figures(self, connection: Connection) -> None:
        """Its child has ended, and has told."""
        shared = connection.shared
        if shared is not None:
            if shared.blind:
                connection.goes_unseen()
            elif shared.told or connection.tally is shared:
                connection.known_at_last(shared.traffic(connection.kept))
            connection.tally = connection.shared = None
            self._portico_figures.free(shared)

    def _portico_unshare(self, connection: Connection) -> None:
        """There is no child after all."""
        shared, connection.shared = connection.shared, None
        if shared is not None:
            self._portico_figures.free(shared)

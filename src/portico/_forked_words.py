"""How a parent tells its children to say goodbye, or to end: by SIGTERM, and who is meant by one that others send.

A service manager sends SIGTERM to a whole process group, and a terminal Ctrl-C: the server drains, and its children are
to come to their end by that. So under `run` and the command a parent says what it means in memory that it shares with
each child, before its signal; one without a word was somebody else's. If the server is ending as well, it was for all
of them. If not after a moment, it was for this child alone, and ends it. Elsewhere SIGTERM is what it always was.
"""

from __future__ import annotations

import signal
import socket
import threading

from ._forked_figures import ForkedFigures
from ._goodbyes import goodbye_failed
from ._own import Own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._children import Served
    from ._connection import Connection

__all__ = ["END", "ENDED", "ForkedWords"]

GOODBYE: Final = 1
END: Final = 2
ENDED: Final = 128 + signal.SIGTERM
"""The status of a child that has ended itself at a SIGTERM: what a shell shows of one that the signal has ended."""
_ENDING: Final = 3
# Children for whom there is room in one piece of memory.
_ROOM: Final = 1000
# Seconds in which a server that has got the same signal begins to end.
_A_MOMENT: Final = 0.5


class Words:
    """A byte for each child, in memory that it shares with its parent, and one for all of them. Made in the parent."""

    def __init__(self) -> None:
        self._free: list[Any] = []
        self.places: dict[int, Any] = {}
        """By process id."""
        self.mine = self.everybodys = self.take()

    def take(self) -> Any:
        """A byte that says nothing yet, for the next child."""
        if not self._free:
            from mmap import mmap  # only now: `import portico` is to stay cheap

            page = memoryview(mmap(-1, _ROOM))
            self._free = [page[place : place + 1] for place in range(_ROOM)]
        self.mine = place = self._free.pop()
        place[0] = 0
        return place

    def take_back(self) -> None:
        """The child that it was for could not be forked."""
        self._free.append(self.mine)

    def free(self, pid: int) -> None:
        """Its child has ended."""
        place = self.places.pop(pid, None)
        if place is not None:
            self._free.append(place)


class ForkedWords(ForkedFigures):
    """The part of a forking server that speaks to its children, and in a child the one that hears."""

    _portico_says_goodbye = False
    _portico_served: Served
    _portico_words: Words = Own(Words)  # type: ignore[assignment]
    _portico_said: int = 0
    """In a child: what of its parent's words it has done."""

    # -- in the parent

    def _portico_ready_word(self) -> None:
        """Before the fork."""
        if self._portico_is_program:
            self._portico_words.take()

    def _portico_note_word(self, pid: int) -> None:
        """After it."""
        if self._portico_is_program:
            self._portico_words.places[pid] = self._portico_words.mine

    def _portico_take_back_word(self) -> None:
        """There is no child after all."""
        if self._portico_is_program:
            self._portico_words.take_back()

    def _portico_somebody_goes_on(self) -> None:
        """The server begins, perhaps anew."""
        if self._portico_is_program and self._portico_drain is None:
            self._portico_words.everybodys[0] = 0

    def _portico_everybody_ends(self) -> None:
        """The server has begun to end: what its children hear from others is not for them alone."""
        if self._portico_is_program:
            self._portico_words.everybodys[0] = _ENDING

    def _portico_say_goodbye(self, connection: Connection) -> None:
        """The child says it, in a signal handler of its own."""
        self._portico_signal(connection.runner, signal.SIGTERM, GOODBYE)

    def _portico_signal(self, pid: int, number: int, word: int) -> None:
        place = self._portico_words.places.get(pid) if self._portico_is_program else None
        if place is not None:
            place[0] = word
        try:
            self._portico_system.signal_child(pid, number)
        except ProcessLookupError:  # it has ended just now
            return

    # -- in the child

    def _portico_hear_of_goodbye(self) -> None:
        """SIGTERM is the time to say goodbye. Under `run` the program's own handler is there, and asks us."""
        if not self._portico_is_program:
            self._portico_system.on_signal(signal.SIGTERM, self._portico_hear_goodbye)

    def _portico_hear_goodbye(self, number: int, frame: object) -> None:
        self._portico_system.on_signal(signal.SIGTERM, signal.SIG_DFL)  # the next one is meant
        self._portico_do_say_goodbye()

    def _portico_hear_signal(self, number: int) -> None:
        """A signal has come, under `run`. In the first moment after a fork this may not be the server that forked."""
        word = self._portico_words.mine[0]
        if number != signal.SIGTERM:  # Ctrl-C, which a terminal sends to all of them
            return
        if word == END:
            self._portico_end_child()
        elif word == GOODBYE and self._portico_said < GOODBYE:
            self._portico_said = GOODBYE
            self._portico_do_say_goodbye()
        elif not self._portico_words.everybodys[0]:
            # Not in here: meanwhile the handler goes on.
            try:
                threading.Thread(target=self._portico_wait_for_others, name="portico signal", daemon=True).start()
            except RuntimeError:  # there is none to be had
                self._portico_end_child()

    def _portico_wait_for_others(self) -> None:
        self._portico_system.sleep(_A_MOMENT)
        if not self._portico_words.everybodys[0]:
            self._portico_end_child()

    def _portico_end_child(self) -> None:
        self._portico_system.exit_at_once(ENDED)

    def _portico_do_say_goodbye(self) -> None:
        """Runs where Python runs signal handlers."""
        connection = self._portico_connections.only
        if connection is None:
            return
        try:
            if connection.handler is not None:
                connection.handler.goodbye()
        except OSError:  # the peer has left
            pass
        except Exception as error:
            goodbye_failed(self, error)
        connection.shut(socket.SHUT_RD)

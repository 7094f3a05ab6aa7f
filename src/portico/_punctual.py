"""Answers that are kept to leave together do not wait for a handler that takes its time: a thread looks after them.

It sleeps while the server is idle, and looks every few milliseconds while answers are kept. So a handler may answer,
and then wait for what its client does with that, as with `socketserver`. Which ones are kept is `_datagrams`' business.
"""

from __future__ import annotations

import threading
from weakref import ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["Punctual"]

# Seconds between two looks; what is found twice goes.
_LOOK: Final = 0.005
# So many looks without anything to look after, and it sleeps.
_QUIET: Final = 100


class Punctual:
    """Sends a batch's answers when they have been kept for 5 to 10 ms. Ends with `close`, or with the answers."""

    def __init__(self, answers: Any) -> None:
        self._answers = ref(answers)
        self._over = threading.Event()
        self._busy = threading.Event()
        self._batch = 0
        threading.Thread(target=self._run, name="portico late answers", daemon=True).start()

    def begins(self) -> None:
        """Answers of another batch are kept."""
        self._batch += 1
        if not self._busy.is_set():
            self._busy.set()

    def close(self) -> None:
        self._over.set()
        self._busy.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._busy.wait()
            self._look_after_them()

    def _look_after_them(self) -> None:
        seen, quiet = self._batch, 0
        while quiet < _QUIET and not self._over.wait(_LOOK):
            batch, answers = self._batch, self._answers()
            if answers is None:
                self._over.set()
            elif batch == seen and answers.waiting:
                answers.flush()
            quiet = quiet + 1 if batch == seen else 0
            seen = batch
        if not self._over.is_set():
            self._busy.clear()
            if self._batch != seen:  # begun just now
                self._busy.set()

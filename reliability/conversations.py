"""What clients say to a server under test, the honest ones and the others."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from .crowd import Conversation, Sock, Steps, connected, line_from, reset, sent
from .results import percentile

__all__ = ["FAULTS", "Honest", "Tally", "asked", "faulty", "one_of"]

LINE = b"x" * 63 + b"\n"


class Tally:
    """What a crowd has to report."""

    def __init__(self) -> None:
        self.connected = self.answered = self.failures = self.ended_by_server = 0
        self.raised = 0
        """How many handlers were told to raise."""
        self.first_failure = ""

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or f"{type(error).__name__}: {error}"


def asked(sock: Sock, line: bytes) -> Steps:
    """The answer to a line."""
    yield from sent(sock, line)
    return (yield from line_from(sock))


def honest_once(address: Any, tally: Tally, number: int) -> Conversation:
    """Connect, one line, its answer, close."""
    sock = yield from connected(address, number)
    tally.connected += 1
    with sock:
        if (yield from asked(sock, LINE)) != LINE:
            raise ConnectionError("a wrong answer, or none")
        tally.answered += 1


# -- what goes wrong


def _resets_at_once(sock: Sock, tally: Tally) -> Steps:
    reset(sock)
    yield from ()


def _resets_unanswered(sock: Sock, tally: Tally) -> Steps:
    yield from sent(sock, LINE)
    reset(sock)


def _half_closes(sock: Sock, tally: Tally) -> Steps:
    yield from sent(sock, LINE)
    sock.shutdown(socket.SHUT_WR)
    yield from line_from(sock)


def _says_nothing(sock: Sock, tally: Tally) -> Steps:
    yield from ()


def _breaks_off(sock: Sock, tally: Tally) -> Steps:
    yield from sent(sock, LINE[:-1])


def _makes_it_raise(sock: Sock, tally: Tally) -> Steps:
    tally.raised += 1
    yield from sent(sock, b"!raise\n")
    yield from line_from(sock)


FAULTS: tuple[Callable[[Sock, Tally], Steps], ...] = (
    _resets_at_once, _resets_unanswered, _half_closes, _says_nothing, _breaks_off, _makes_it_raise
)  # fmt: skip


def faulty(address: Any, tally: Tally, number: int, kind: int) -> Conversation:
    """A client that does the fault of this number, instead of taking its answer and leaving."""
    sock = yield from connected(address, number)
    tally.connected += 1
    with sock:
        yield from FAULTS[kind % len(FAULTS)](sock, tally)


def one_of(conversation: Conversation, tally: Tally) -> Conversation:
    """The same, but what it raises is counted."""
    try:
        yield from conversation
    except OSError as error:
        tally.failed(error)


# -- those who must not notice


class Honest:
    """Clients that stay connected and ask all the time; how long the answers take."""

    def __init__(self, address: Any, number: int, pause: float) -> None:
        self.milliseconds: list[float] = []
        self.lost = self.here = 0
        self.first_failure = ""
        self._address, self._number, self._pause = address, number, pause

    def conversations(self, when_all_are_here: Callable[[], object]) -> Iterator[Conversation]:
        return (self._one(when_all_are_here, number) for number in range(self._number))

    def _one(self, when_all_are_here: Callable[[], object], number: int) -> Conversation:
        try:
            sock = yield from connected(self._address, number)
            with sock:
                yield from asked(sock, LINE)
                self.here += 1
                if self.here == self._number:
                    when_all_are_here()
                yield self._pause * number / self._number  # not all at once
                while True:
                    began = time.perf_counter()
                    if (yield from asked(sock, LINE)) != LINE:
                        raise ConnectionError("the server has ended an honest connection")
                    self.milliseconds.append((time.perf_counter() - began) * 1000)
                    yield self._pause
        except OSError as error:
            self.lost += 1
            self.first_failure = self.first_failure or f"{type(error).__name__}: {error}"

    def report(self) -> dict[str, Any]:
        took = self.milliseconds
        return {
            "answers": len(took), "lost": self.lost + self._number - self.here, "p50": percentile(took, 0.5),
            "p99": percentile(took, 0.99), "worst": max(took, default=0.0), "first_failure": self.first_failure,
        }  # fmt: skip

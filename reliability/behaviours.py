"""What a client may do, once, and what its server has to tell of it afterwards: why its connection has ended.

A client that lets its server see its end notes what went over the wire, both ways, which the server must know as well.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from . import processes
from .conversations import LINE
from .crowd import READ, Sock, Steps, line_from, reset, sent
from .sealed import Sealed
from .ways import Over, Way

__all__ = ["BEHAVIOURS", "HONEST", "Behaviour", "Note", "answered", "faults_for", "named", "sees_the_end"]

UNENDING = 60.0
"""Seconds that a client waits for an end that is the server's to make."""


@dataclass
class Note:
    """What the client knows; `control` is where its server is asked to cut it, and who it is there."""

    control: str
    who: str
    bytes: tuple[int, int] | None = None
    """On the wire, to the server and from it; only where the server has had time to see both."""
    wrong: str = ""


Steps_of = Callable[[Sock, Note], Steps]
Ends_of = Callable[[Way, Over], str | None]


@dataclass(frozen=True)
class Behaviour:
    """`ends` gives the one reason there may be, or None where this cannot be done.

    Few: so many are enough, since each takes seconds; of a plain server, where everybody waits for it, two.
    """

    name: str
    steps: Steps_of
    ends: Ends_of
    bare: bool = False
    """Done before any handshake."""
    few: int | None = None


# -- what they do


def answered(sock: Sock, note: Note) -> Steps:
    yield from sent(sock, LINE)
    if (yield from line_from(sock)) != LINE:
        note.wrong = "a wrong answer, or none"


def _is_honest(sock: Sock, note: Note) -> Steps:
    """Asks and leaves. Encrypted, it waits for the server's last word: who does not, resets over it."""
    yield from answered(sock, note)
    if isinstance(sock, Sealed):
        yield from _ends_in_peace(sock, note, len(LINE), len(LINE))
    elif not note.wrong:
        note.bytes = len(LINE), len(LINE)


def _ends_in_peace(sock: Sock, note: Note, out: int, into: int) -> Steps:
    sock.shutdown(socket.SHUT_WR)
    yield from sees_the_end(sock)
    note.bytes = (sock.wire_out, sock.wire_in) if isinstance(sock, Sealed) else (out, into)


def sees_the_end(sock: Sock) -> Steps:
    """Whatever comes, until nothing does: an end, or a reset."""
    read = sock.drained if isinstance(sock, Sealed) else lambda: not sock.recv(1 << 16)
    with suppress(ConnectionError):
        while True:
            try:
                if read():
                    return
            except BlockingIOError:
                if not (yield sock, READ, UNENDING):
                    raise TimeoutError("the server does not end it") from None


def _is_through_with_its_handshake(sock: Sock, note: Note) -> Steps:
    """OpenSSL hears of a reset, which the kernel tells once, while it sends its session tickets, and says nothing: why
    such a connection has ended nobody could say. So an encrypted client is answered once before it resets."""
    if isinstance(sock, Sealed):
        yield from answered(sock, note)


def _resets(sock: Sock, note: Note) -> Steps:
    yield from _is_through_with_its_handshake(sock, note)
    reset(sock)


def _resets_unanswered(sock: Sock, note: Note) -> Steps:
    yield from _is_through_with_its_handshake(sock, note)
    yield from sent(sock, LINE)
    reset(sock)


def _resets_before(sock: Sock, note: Note) -> Steps:
    reset(sock)
    yield from ()


def _half_closes(sock: Sock, note: Note) -> Steps:
    yield from answered(sock, note)
    yield from _ends_in_peace(sock, note, len(LINE), len(LINE))


def _says_nothing(sock: Sock, note: Note) -> Steps:
    yield from _ends_in_peace(sock, note, 0, 0)


def _breaks_off(sock: Sock, note: Note) -> Steps:
    yield from sent(sock, LINE[:-1])
    yield from _ends_in_peace(sock, note, len(LINE) - 1, 0)


def _leaves(sock: Sock, note: Note) -> Steps:
    sock.close()
    yield from ()


def _orders(line: bytes) -> Steps_of:
    def steps(sock: Sock, note: Note) -> Steps:
        yield from answered(sock, note)
        yield from sent(sock, line)
        yield from sees_the_end(sock)

    return steps


def _falls_silent(sock: Sock, note: Note) -> Steps:
    yield from answered(sock, note)
    yield from sees_the_end(sock)


def _says_nothing_and_stays(sock: Sock, note: Note) -> Steps:
    yield from sees_the_end(sock)


def _is_cut(sock: Sock, note: Note) -> Steps:
    """Answered, so that its server knows it; then the operator closes it."""
    yield from answered(sock, note)
    if not processes.asked(note.control, f"cut {note.who}")["cut"]:
        note.wrong = "nobody to cut"
    yield from sees_the_end(sock)


def _speaks_plainly(sock: Sock, note: Note) -> Steps:
    yield from sent(sock, LINE)
    yield from sees_the_end(sock)


# -- why it ends


def _always(reason: str) -> Ends_of:
    return lambda way, over: reason


def _over_tcp(tcp: str, unix: str) -> Ends_of:
    return lambda way, over: unix if over.unix else tcp


def _over_tls(reason: str) -> Ends_of:
    return lambda way, over: reason if over.tls else None


def _of_forks(way: Way, over: Over) -> str | None:
    return "killed" if way.forks else None


def _of_a_server_that_can_be_asked(way: Way, over: Over) -> str | None:
    """A plain server answers nobody else while it serves one."""
    return None if way.kind == "plain" else "closed"


def _where_silence_shows(way: Way, over: Over) -> str | None:
    """In a plain server that waits for one, those in the middle of their handshakes wait with it, until it is the same
    to all."""
    return None if way.kind == "plain" and over.tls else "idle_timeout"


HONEST = Behaviour("honest", _is_honest, _always("done"))
BEHAVIOURS = (
    # A Unix socket has no resets: what is closed with nothing unread has just ended.
    Behaviour("resets at once", _resets, _over_tcp("peer_left", "done")),
    Behaviour("resets unanswered", _resets_unanswered, _always("peer_left")),
    Behaviour("half-closes", _half_closes, _always("done")),
    Behaviour("says nothing", _says_nothing, _always("done")),
    Behaviour("breaks off", _breaks_off, _always("done")),
    Behaviour("makes it raise", _orders(b"!raise\n"), _always("failed")),
    Behaviour("closed twice", _orders(b"!twice\n"), _always("done")),
    Behaviour("cut by the operator", _is_cut, _of_a_server_that_can_be_asked),
    Behaviour("its child killed", _orders(b"!kill\n"), _of_forks),
    Behaviour("falls silent", _falls_silent, _where_silence_shows, few=100),
    Behaviour("leaves in the handshake", _leaves, _over_tls("peer_left"), bare=True),
    Behaviour("resets in the handshake", _resets_before, _over_tls("peer_left"), bare=True),
    Behaviour("speaks no TLS", _speaks_plainly, _over_tls("handshake_failed"), bare=True),
    Behaviour("begins no handshake", _says_nothing_and_stays, _over_tls("handshake_timeout"), bare=True, few=100),
)


def faults_for(way: Way, over: Over) -> list[Behaviour]:
    return [behaviour for behaviour in BEHAVIOURS if behaviour.ends(way, over) is not None]


def named(name: str) -> Behaviour:
    return next(behaviour for behaviour in (HONEST, *BEHAVIOURS) if behaviour.name == name)

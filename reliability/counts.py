"""Counts: after many connections, of which some go wrong, all books agree, connection by connection."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import processes, ways
from .behaviours import HONEST, Behaviour, Note, answered, faults_for, named, sees_the_end
from .books import Page
from .client import ready
from .crowd import Conversation, Crowd, Sock, Steps, connected, sent, who
from .results import Figure, Plan, Row, exactly, shown
from .ways import OVERS, TCP, TLS, UNIX, Over, Way

__all__ = ["experiment", "forks_in_full"]

AT_ONCE = 64
SETTINGS = {"idle_timeout": 2.0}
ENCRYPTED = {"handshake_timeout": 1.0}
FEWEST = 150
"""Connections that there have to be for every fault to come up."""
STAY = 10
"""So many of each kind are there in the end, when the server drains."""
LAST_WORDS = 600
"""Bytes of a close_notify and, if the client leaves right after the handshake, of the session tickets that wait."""
DRAINED = ("drained", "cut")


def experiment(way: Way, plan: Plan) -> list[Row]:
    """100,000 connections, of which every tenth goes wrong: reset before a word or after one, half-closed, without a
    word, in the middle of one, silent until `idle_timeout`, cut by the operator's `close()`, with a handler that raises
    or closes twice or, with forks, whose child is killed. In the end the server drains: idle clients are told, others
    cut. Each client knows what it did, and so what its connection's one ConnectionStarted and one ConnectionEnded have
    to say: the one reason that there may be, and, where both sides saw the end, the bytes on the wire (but for TLS's
    last words, up to 600 bytes, which not every way to run counts). All else has to add up: `stats()`, and the clients'
    own count. Over Unix sockets there are a fifth of that, with TLS a tenth, among them clients that speak none, never
    begin, or leave in the middle of a handshake. With forks again a fifth of each (`make soak` has 100,000 over TCP).
    A plain server answers nobody else meanwhile, so that no operator cuts any of its connections, nor is there silence
    with TLS, in which all that shake hands would share."""
    number = plan.of(100_000, 600) // (5 if way.forks else 1)
    each = {TCP: number, UNIX: max(FEWEST, number // 5), TLS: max(FEWEST, number // 10)}
    return [_counted(way, over, each[over]) for over in each]


def forks_in_full(way: Way, plan: Plan) -> list[Row]:
    """As many connections of a forking server, over TCP, as the other ways to run have: 100,000."""
    return [_counted(way, TCP, plan.of(100_000, 600))]


def _counted(way: Way, over: Over, number: int) -> Row:
    with processes.serving(way, over, events=True, settings=SETTINGS | (ENCRYPTED if over.tls else {})) as server:
        what = {"address": server.address, "control": server.control, "way": way.name, "over": over.name}
        began = time.monotonic()
        clients: list[Any] = processes.load("counts", "come_and_go", 500, number=number, **what)["clients"]
        seconds = time.monotonic() - began
        server.settled()
        with processes.clients("counts", "stay", first=number, plain=way.kind == "plain", **what) as staying:
            staying.ready()
            if way.kind == "plain":  # which listens to nothing but signals while it serves
                os.kill(server.pid, signal.SIGUSR1)
            else:
                server.ask("drain")
            clients += staying.finished()["clients"]
        stats, pages = server.settled(), server.ask("books")
    return Row(
        f"{way.name}, {over.name}", f"{number:,} connections", _figures(way, over, clients, stats, pages, seconds)
    )


def _figures(
    way: Way, over: Over, clients: list[Any], stats: dict[str, Any], pages: Any, seconds: float
) -> list[Figure]:
    wrong = Counter(words for client in clients if (words := client["wrong"]))
    differing = _differences(way, over, clients, pages)
    totals = _totals(clients, stats, pages)
    return [
        exactly("clients gone wrong", _listed(wrong), 0),
        exactly("connections without just one start and one end", sum(not _once(page) for page in pages), 0),
        exactly("other reasons or bytes than the client's", _listed(differing), 0),
        exactly("sums that differ", _listed(totals), 0),
        shown("ended by", ", ".join(f"{name} {n:,}" for name, n in sorted(stats["ended"].items()))),
        shown("bytes compared of", sum(client["bytes"] is not None for client in clients)),
        shown("connections a second", len(clients) / seconds),
    ]


def _once(page: Page) -> bool:
    return bool(page["starts"] == 1 and page["ends"] == 1)


def _listed(found: Counter[str]) -> str | int:
    return ", ".join(f"{words}: {n:,}" for words, n in found.most_common(3)) or 0


def _differences(way: Way, over: Over, clients: list[Any], pages: list[Page]) -> Counter[str]:
    """What the server says of each client against what that one knows; whom only one side knows is one, too."""
    told = {page["who"]: page for page in pages}
    found = Counter({"known to nobody": len(set(told) - {client["who"] for client in clients})})
    for client in clients:
        page = told.get(client["who"])
        if page is None:
            found[f"{client['did']}, never told of"] += 1
            continue
        did, reason = client["did"], page.get("reason")
        expected = did if did in DRAINED else named(did).ends(way, over)
        if reason != expected:
            found[f"{did}, ended by {reason}"] += 1
        elif client["bytes"] is not None and not _same_bytes(way, over, client["bytes"], page["bytes"]):
            found[f"{did}, bytes {client['bytes']} and {page['bytes']}"] += 1
    return +found


def _same_bytes(way: Way, over: Over, known: list[int], told: list[int | None]) -> bool:
    """Linux counts the peer's end as a byte, which a server that forks may see. What TLS sends when the handler is
    through may come after the last look at the books."""
    least = known[1] - (LAST_WORDS if over.tls else 0)
    end = way.forks or over.tls  # which the kernel counts as a byte, or does not tell
    if told[0] is None or told[1] is None:
        return False
    return least <= told[1] <= known[1] and abs(told[0] - known[0]) <= end


def _totals(clients: list[Any], stats: dict[str, Any], pages: list[Page]) -> Counter[str]:
    reasons = Counter(str(page.get("reason")) for page in pages)
    failed = reasons["failed"] + reasons["killed"]
    sums = {
        "connections": len(pages) - len(clients),
        "accepted": stats["accepted"] - len(pages),
        "active": stats["active"],
        "failed": stats["failed"] - failed,
        "done": stats["done"] - (len(pages) - failed),
        "idle_timeout": stats["timed_out"]["idle_timeout"] - reasons["idle_timeout"],
        "reasons": sum((Counter(stats["ended"]) - reasons).values())
        + sum((reasons - Counter(stats["ended"])).values()),
        "bytes in": stats["bytes_in"] - sum(page.get("bytes", (0, 0))[0] or 0 for page in pages),
        "bytes out": stats["bytes_out"] - sum(page.get("bytes", (0, 0))[1] or 0 for page in pages),
    }
    return Counter({name: difference for name, difference in sums.items() if difference})


# -- in the clients' process


def come_and_go(address: Any, control: str, way: str, over: str, number: int) -> dict[str, Any]:
    """So many connections, every tenth with a fault."""
    clients = _Clients(address, control)
    faults = _faults(way, over, number)
    everybody = (clients.one(count, next(faults) if count % 10 == 9 else HONEST) for count in range(number))
    Crowd().run(everybody, AT_ONCE * 2, seconds=480)
    return {"clients": clients.found}


def _faults(way: str, over: str, number: int) -> Iterator[Behaviour]:
    """One after the other; of those that take seconds a few, early, so that the rest goes on meanwhile."""
    (chosen,) = ways.named(way)
    left = {fault: fault.few or number for fault in faults_for(chosen, OVERS[over])}
    if chosen.kind == "plain":
        left = {fault: 2 if fault.few else many for fault, many in left.items()}
    while True:
        for fault in left:
            if left[fault]:
                left[fault] -= 1
                yield fault


class _Clients:
    """What has become of each."""

    def __init__(self, address: Any, control: str) -> None:
        self.found: list[dict[str, Any]] = []
        self._address, self._control = address, control
        self._bare = address["address"] if isinstance(address, dict) else address

    def one(self, number: int, behaviour: Behaviour) -> Conversation:
        note = Note(self._control, who(self._address, number))
        try:
            sock = yield from connected(self._bare if behaviour.bare else self._address, number, named=True)
            with sock:
                yield from behaviour.steps(sock, note)
        except OSError as error:
            note.wrong = f"{behaviour.name}: {type(error).__name__}: {error}"
        self.found.append({"who": note.who, "did": behaviour.name, "bytes": note.bytes, "wrong": note.wrong})


def stay(address: Any, control: str, way: str, over: str, first: int, plain: bool) -> dict[str, Any]:
    """Some that are owed an answer and some that are idle, until the server ends them all; of a plain server just one,
    since it serves no more."""
    clients, kinds = _Clients(address, control), [_OWED] if plain else [_OWED, _IDLE] * STAY
    here = 0

    def stays(behaviour: Behaviour) -> Behaviour:
        def steps(sock: Sock, note: Note) -> Steps:
            nonlocal here
            yield from behaviour.steps(sock, note)
            here += 1
            if here == len(kinds):
                ready()
            yield from sees_the_end(sock)

        return replace(behaviour, steps=steps)

    everybody = (clients.one(first + number, stays(kind)) for number, kind in enumerate(kinds))
    Crowd().run(everybody, len(kinds), seconds=30)
    return {"clients": clients.found}


def _is_answered(sock: Sock, note: Note) -> Steps:
    yield from answered(sock, note)
    yield 0.3  # what is heard in the moment of an answer may count as answered, as the kernel's clock is coarse


def _is_owed(sock: Sock, note: Note) -> Steps:
    yield from _is_answered(sock, note)
    yield from sent(sock, b"!hold\n")
    yield 0.1  # and it has to arrive


_IDLE = Behaviour("drained", _is_answered, lambda way, over: "drained")
_OWED = Behaviour("cut", _is_owed, lambda way, over: "cut")

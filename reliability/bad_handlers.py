"""Bad handlers: they raise, sleep, or close their socket twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import processes
from .conversations import Tally, asked, one_of
from .crowd import Conversation, Crowd, connected
from .results import Plan, Row, at_most, exactly, shown
from .ways import Way

__all__ = ["experiment"]

HONEST = 10
ORDERS = (b"!raise\n", b"!sleep 0.05\n", b"!twice\n")
AT_ONCE = 30


def experiment(way: Way, plan: Plan) -> list[Row]:
    """Of 3,000 handlers 1,000 raise, 1,000 sleep for 50 ms (in the way that their kind sleeps) and 1,000 close their
    socket twice, 30 at a time. Ten honest clients, who were there before, must not be disturbed: no answer lost, the
    99th percentile below 50 ms. Just those that raise count as failed, with one record in the log for each and no
    other; nothing may be left behind. Of a plain server, where everybody waits for who sleeps, a tenth of that, and
    nobody honest who would look on."""
    plain = way.kind == "plain"
    each, number = plan.of(1000, 60) // (10 if plain else 1), 0 if plain else HONEST
    with processes.serving(way) as server:
        processes.load("bad_handlers", "order", 5, address=server.address, each=10)
        before = server.settled()
        leftovers = server.ask("leftovers")
        records = len(server.records())
        said, found = _order(server, each, number)
        stats = server.settled()
        leaked = server.leaked(leftovers)
        records = len(server.records()) - records
    differences = {
        "accepted": stats["accepted"] - before["accepted"] - 3 * each - number,
        "failed": stats["failed"] - before["failed"] - each,
        "done": stats["done"] - before["done"] - 2 * each - number,
        "slept": said["slept"] - each,
    }
    wrong = {name: difference for name, difference in differences.items() if difference}
    return [
        Row(
            way.name,
            f"{each:,} of each",
            [
                at_most("answers (p99)", found["p99"], 50.0, "ms"),
                exactly("honest lost", found["lost"], 0),
                exactly("differences", ", ".join(f"{n:+} {name}" for name, n in wrong.items()) or 0, 0),
                exactly("log records not of a failure", records - each, 0),
                exactly("left behind", ", ".join(f"{n} {what}" for what, n in leaked.items()) or 0, 0),
                shown("answers (p50)", found["p50"], "ms"),
            ],
        )
    ]


def _order(server: processes.Server, each: int, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What those who order have to say, and the honest ones that look on, if there are any."""
    if not number:
        said = processes.load("bad_handlers", "order", 120, address=server.address, each=each)
        return said, {"p99": 0.0, "lost": 0, "p50": 0.0}
    with processes.clients("client", "honest", address=server.address, number=number, pause=0.02) as honest:
        honest.ready()
        said = processes.load("bad_handlers", "order", 120, address=server.address, each=each)
        return said, honest.finished()


def order(address: Any, each: int) -> dict[str, Any]:
    """In the clients' process: so many connections with each of the orders."""
    tally = Tally()

    def everybody() -> Iterator[Conversation]:
        return (one_of(_orders(address, tally, ORDERS[count % 3]), tally) for count in range(3 * each))

    Crowd().run(everybody(), AT_ONCE, seconds=100)
    return {"connected": tally.connected, "slept": tally.answered, "failures": tally.failures}


def _orders(address: Any, tally: Tally, line: bytes) -> Conversation:
    sock = yield from connected(address)
    tally.connected += 1
    with sock:
        answer = yield from asked(sock, line)
        tally.answered += answer == b"slept\n"

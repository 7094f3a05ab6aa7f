"""What is measured, and what the issues ask of it.

A `Sample` is what the load and the server said of one run (see load.c); a `Figure` reads one number out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .roster import PEERS

__all__ = [
    "CASES",
    "CPU",
    "MEMORY",
    "P50",
    "P99",
    "PER_CORE",
    "RATE",
    "SERVED",
    "Case",
    "Figure",
    "Plan",
    "Sample",
    "Target",
    "named",
]

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long to measure, and how much."""

    rounds: int
    seconds: float
    warm_up: float
    idle: int
    """Idle connections."""


@dataclass(frozen=True)
class Figure:
    """One number of a sample. None where the sample does not have it, as a latency when nothing was answered."""

    name: str
    unit: str
    more: bool
    """Whether more is better."""
    read: Callable[[Sample], float | None]


@dataclass(frozen=True)
class Target:
    """`bound` is what the figure of `peer` must reach, as a ratio to that of `than` in the same round if there is one.

    From below where more is better, else from above. Of several, `than` is the best one in each round.
    """

    peer: str
    bound: float
    than: str | tuple[str, ...] | None = None
    figure: Figure | None = None
    """The case's first, if none is named."""


@dataclass(frozen=True)
class Case:
    """One load on one service. The first figure is the one that ratios are made of; `plots` are drawn."""

    name: str
    title: str
    service: str
    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()
    plots: tuple[Figure, ...] = ()
    reference: str = "asyncio-streams"
    notes: str = ""
    program: str = "load"
    """The one in C that makes the load."""
    floods: bool = False
    """Whether the load sends as fast as it can, answered or not: then it is busy in any case."""

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(peer.name for peer in PEERS if self.service in peer.services)

    def load(self, plan: Plan) -> list[str]:
        """What the load program is told, but for the server's port and pid."""
        told = [*self.arguments, "-t", f"{plan.seconds:g}", "-w", f"{plan.warm_up:g}"]
        return [*told, "-i", str(plan.idle)] if self.arguments[0] == "idle" else told


def _per(what: str, number: str, factor: float) -> Callable[[Sample], float | None]:
    return lambda sample: sample[what] / sample[number] * factor if sample[number] else None


def _if_answered(what: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample[what] if sample["messages"] or sample[what] else None


def _memory(sample: Sample) -> float | None:
    return (sample["rss_with"] - sample["rss_before"]) * 1.024 / sample["idle"] if sample["idle"] else None


def _handled(sample: Sample) -> int:
    """What the server's handlers have counted, without the warm-up."""
    counted: int = sample["server"]["handled"] - sample["warmed"]
    return counted


def _share(lost: int, others: int) -> float | None:
    return 100 * lost / (lost + others) if lost + others else None


RATE = Figure("rate", "msg/s", True, _per("messages", "seconds", 1))
P50 = Figure("p50", "us", False, _if_answered("p50"))
P99 = Figure("p99", "us", False, _if_answered("p99"))
CPU = Figure("CPU of 10^6", "s", False, _per("server_cpu", "messages", 1e6))
MEMORY = Figure("idle connection", "kB", False, _memory)
SERVED = Figure("idle connections", "", True, lambda sample: sample["idle"])
OPENING = Figure("opening them", "s", False, lambda sample: sample["opening"])
STREAMED = Figure("stream", "MB/s", True, _per("streamed", "seconds", 1e-6))
LOST = Figure("lost", "%", False, lambda sample: _share(sample["lost"], sample["messages"]))
HANDLED = Figure("rate", "msg/s", True, lambda sample: _handled(sample) / sample["seconds"])
UNHANDLED = Figure("lost", "%", False, lambda sample: _share(sample["sent"] - _handled(sample), _handled(sample)))
SENT = Figure("sent", "msg/s", True, _per("sent", "sending", 1))
PER_CORE = Figure("rate of a core", "conn/s", True, _per("messages", "server_cpu", 1))
CONNECTIONS = Figure("rate", "conn/s", True, _per("messages", "seconds", 1))
HANDLED_CPU = Figure("CPU of 10^6", "s", False, lambda sample: sample["server_cpu"] / max(1, _handled(sample)) * 1e6)
_USUAL = (RATE, P50, P99, CPU)

_ECHO = (
    Target("portico-green", 1.6, "asyncio-streams"),
    Target("portico-green", 2.5, "gevent"),
    Target("portico-green", 0.65, "uvloop-protocol"),
    Target("portico-green", 1.3, "socketserver"),
    Target("portico-green-uvloop", 0.85, "uvloop-protocol"),
    Target("portico-green-uvloop", 0.6, "c-epoll"),
)
_ASYNC = (
    Target("portico-async", 0.9, "asyncio-streams"),
    Target("portico-async-uvloop", 0.9, "uvloop-streams"),
)
_UDP = (
    Target("portico-udp", 1.7, "socketserver-udp"),
    Target("portico-udp", 1.15, "uvloop-udp"),
    Target("portico-udp", 0.7, "c-recvfrom"),
    Target("portico-udp-green", 1.0, "uvloop-udp"),
    Target("portico-udp-green-uvloop", 1.0, "uvloop-udp"),
    Target("portico-udp-async", 1.0, "uvloop-udp"),
    Target("portico-udp-async-uvloop", 1.0, "uvloop-udp"),
    Target("portico-udp-threads", 8, "socketserver-udp-threads"),
)
_TLS = (
    Target("portico-green", 1.0, "uvloop-streams"),
    Target("portico-green-uvloop", 1.0, "uvloop-streams"),
    Target("portico-threads", 1.0, "socketserver"),
    *_ASYNC,
)
IN_PYTHON = ("socketserver", "asyncio-streams", "asyncio-protocol", "uvloop-streams", "uvloop-protocol", "gevent")
_PARTING = (
    "Connect, shake hands (TLS 1.3, a P-256 certificate), echo 64 bytes, say close_notify. A full handshake costs\n"
    "the client more than a server, so it is the load that is busy: *rate of a core* is what the server does in a\n"
    "second of processor time, while p50 and p99, until the echo is there, are mostly the load's. socketserver and\n"
    "gevent end without a close_notify, which spares them a record."
)
_HANDSHAKES = (
    Target("portico-green", 0.9, IN_PYTHON),
    Target("portico-green-uvloop", 0.9, IN_PYTHON),
    Target("portico-threads", 1.0, "socketserver"),
    *_ASYNC,
)


@dataclass(frozen=True)
class _Echo(Case):
    """The usual figures."""

    figures: tuple[Figure, ...] = field(default=_USUAL)
    plots: tuple[Figure, ...] = field(default=(RATE,))


@dataclass(frozen=True)
class _Datagrams(Case):
    """Echoes to 16 sockets with 8 in flight on each."""

    figures: tuple[Figure, ...] = field(default=(RATE, P50, P99, CPU, LOST))
    targets: tuple[Target, ...] = field(default=_UDP)
    plots: tuple[Figure, ...] = field(default=(RATE,))
    reference: str = "socketserver-udp"
    program: str = "udp_load"


@dataclass(frozen=True)
class _Encrypted(_Echo):
    """The usual figures, over TLS."""

    targets: tuple[Target, ...] = field(default=_TLS)
    plots: tuple[Figure, ...] = field(default=(RATE, CPU))
    reference: str = "uvloop-streams"
    program: str = "tls_load"


@dataclass(frozen=True)
class _Handshakes(Case):
    """Connections with an echo each. Shaking hands in full costs a client more than a server.

    So it is the load that is busy, and what counts is how many a server does in a second of its processor's time.
    """

    figures: tuple[Figure, ...] = field(default=(PER_CORE, CONNECTIONS, P50, P99))
    targets: tuple[Target, ...] = field(default=_HANDSHAKES)
    plots: tuple[Figure, ...] = field(default=(PER_CORE,))
    reference: str = "uvloop-streams"
    program: str = "tls_load"
    notes: str = _PARTING


CASES = (
    _Echo("echo-1", "Echo, 64 bytes, 1 connection", "echo", ("echo", "-c", "1")),
    _Echo(
        "echo-50", "Echo, 64 bytes, 50 connections", "echo", ("echo", "-c", "50"),
        targets=(*_ECHO, *_ASYNC), plots=(RATE, CPU),
    ),
    _Echo(
        "echo-1000", "Echo, 64 bytes, 1,000 connections", "echo", ("echo", "-c", "1000"), targets=(*_ECHO, *_ASYNC)
    ),
    _Echo("echo-16k", "Echo, 16 KiB, 50 connections", "echo", ("echo", "-c", "50", "-s", "16384")),
    _Echo(
        "lines", "Lines of 64 bytes through readline and write, 50 connections", "lines", ("lines", "-c", "50"),
        targets=(Target("portico-green", 1.3, "asyncio-streams"), *_ASYNC),
        notes="To the C server a line is a message like any other.",
    ),
    _Echo(
        "connect", "Connect, echo 64 bytes, close; 50 at a time", "echo", ("connect", "-c", "50"),
        targets=(
            Target("portico-green", 4, "socketserver"),
            Target("portico-green", 1.4, "asyncio-streams"),
            Target("portico-green", 0.75, "uvloop-protocol"),
            Target("portico-green-uvloop", 0.75, "uvloop-protocol"),
            *_ASYNC,
        ),
    ),
    Case(
        "idle", "Idle connections, and echo on 50 beside them", "echo", ("idle", "-c", "50"),
        (RATE, P99, MEMORY, SERVED, OPENING, CPU),
        targets=(
            Target("portico-green", 8, figure=MEMORY), Target("portico-green", 10_000, figure=SERVED),
            Target("portico-green-uvloop", 8, figure=MEMORY), Target("portico-green-uvloop", 10_000, figure=SERVED),
        ),
        plots=(MEMORY, RATE),
        notes="Each idle connection has had one echo, so that its handler is there and waits. Memory is the growth of\n"
        "the resident set, in kB of 1,000 bytes; what the kernel holds for a socket or a thread is not in it.",
    ),
    _Echo(
        "http", "http.server, GET with keep-alive, 50 connections", "http", ("http", "-c", "50"),
        reference="socketserver",
    ),
    Case(
        "ttfb", "Time to first byte on 1,000 connections beside one that streams", "stream",
        ("ttfb", "-c", "1000", "-r", "2000"), (P99, P50, RATE, STREAMED),
        targets=(
            Target("portico-green", 20_000, figure=P99), Target("portico-green-uvloop", 20_000, figure=P99),
            Target("portico-async", 20_000, figure=P99), Target("portico-async-uvloop", 20_000, figure=P99),
        ),
        plots=(P99,),
        notes="The 1,000 ask 2,000 times a second in all, so the rate says only whether the server keeps up. The\n"
        "neighbour reads as fast as it can. A request still unanswered at the end counts with its age.",
    ),
    _Datagrams(
        "udp", "UDP echo, 64 bytes, 16 sockets with 8 in flight", "datagrams", ("echo", "-c", "16", "-n", "8")
    ),
    _Datagrams(
        "udp-1200", "UDP echo, 1,200 bytes, 16 sockets with 8 in flight", "datagrams",
        ("echo", "-c", "16", "-n", "8", "-s", "1200"),
    ),
    _Datagrams(
        "udp-ingest", "UDP ingest, 128 bytes, one way", "ingest", ("ingest", "-c", "16", "-n", "32", "-s", "128"),
        (HANDLED, UNHANDLED, SENT, HANDLED_CPU), (Target("portico-udp", 2, "socketserver-udp"),),
        floods=True,
        notes="The load sends as fast as it can, which is more than most take; so what is lost says how fast the load\n"
        "was, too. It is what no handler has counted when nothing waits any more, with which the measured time ends.",
    ),
    _Encrypted("tls", "TLS echo, 64 bytes, 50 connections", "tls", ("echo", "-c", "50")),
    _Encrypted("tls-16k", "TLS echo, 16 KiB, 50 connections", "tls", ("echo", "-c", "50", "-s", "16384")),
    _Handshakes("tls-handshakes", "TLS handshakes in full, 50 at a time", "handshakes", ("full", "-c", "50")),
    _Handshakes("tls-resumed", "TLS handshakes, sessions resumed, 50 at a time", "handshakes", ("resumed", "-c", "50")),
)  # fmt: skip
_BY_NAME = {case.name: case for case in CASES}


def named(name: str) -> Case:
    return _BY_NAME[name]

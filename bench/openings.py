"""What opens a connection, measured: TLS beside the best of the others, and the header of the PROXY protocol by itself.

The servers are those of `peers`, and so is the load. A sample's side is the name of a peer there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from . import processes
from .measures import Experiment, Measure, Plan
from .peers import build, cases, machine, runs

__all__ = ["EXPERIMENTS"]

_PARSE = (
    "from timeit import repeat; from portico.proxy_protocol import parse; header = {!r};"
    "print(min(repeat(lambda: parse(header), number=5000, repeat=5)) / 5000 * 1e6)"
)
_ADDRESSES = bytes((203, 0, 113, 195, 198, 51, 100, 17)) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
# As HAProxy says of a client that has spoken TLS to it: the version, the cipher and who it is.
_TEXTS = b"\x21\0\x07TLSv1.3" + b"\x23\0\x16TLS_AES_256_GCM_SHA384" + b"\x22\0\x0bclient.test"
_TLVS = b"\x20" + (5 + len(_TEXTS)).to_bytes(2, "big") + b"\x07\0\0\0\0" + _TEXTS
_HEADERS = (
    b"PROXY TCP4 203.0.113.195 198.51.100.17 56324 443\r\n",
    _SIGNATURE + len(_ADDRESSES).to_bytes(2, "big") + _ADDRESSES,
    _SIGNATURE + len(_ADDRESSES + _TLVS).to_bytes(2, "big") + _ADDRESSES + _TLVS,
)
_CPU = cases.Figure("CPU", "us", False, lambda sample: sample["server_cpu"] / max(1, sample["messages"]) * 1e6)


def _lacking(sides: tuple[str, ...], case: str = "") -> str | None:
    """What keeps these peers from being measured, and the case, if one is named."""
    try:
        build.programs()
    except (build.NoCompilerError, subprocess.CalledProcessError) as error:
        return str(error)
    unable = [f"{peer}: {why}" for peer, why in runs.check(sides).items()]
    return (runs.lacking(cases.named(case)) if case else None) or "; ".join(unable) or None


def _figure(case: cases.Case, figure: cases.Figure, peer: str, seconds: float) -> float:
    taken = runs.sample(case, peer, cases.Plan(1, seconds, seconds / 10, 1), machine.cores())
    if taken["errors"]:
        print(f"  {peer}: {taken['errors']} errors, the first: {taken['first_error']}", file=sys.stderr)
    return figure.read(taken) or 0.0


def _over_tls(names: tuple[str, ...], peer: str, plan: Plan) -> list[float]:
    taken = [cases.named(name) for name in names]
    return [_figure(case, case.figures[0], peer, plan.seconds) for case in taken]


def _connection(number: int, service: str, *further: str) -> cases.Case:
    arguments = ("connect", "-c", "50", *further)
    return cases.Case(f"connect-{number}", "Connect, echo, close", service, arguments, (_CPU,))


def _headers(peer: str, plan: Plan) -> list[float]:
    """Microseconds that it takes to read a header, and that one adds to a connection on a server of that kind."""
    parsed = [float(processes.python(_PARSE.format(header))) for header in _HEADERS]
    without, first, second = (
        _figure(case, _CPU, peer, plan.seconds)
        for case in (_connection(0, "echo"), _connection(1, "proxy", "-x", "1"), _connection(2, "proxy", "-x", "2"))
    )
    return [*parsed, first - without, second - without]


def _tls(name: str, measures: dict[str, Measure], sides: tuple[str, str]) -> Experiment:
    """Ours beside another peer in some cases of `peers`."""
    needs: Callable[[], str | None] = partial(_lacking, sides, next(iter(measures)))
    sample = partial(_over_tls, tuple(measures))
    return Experiment(name, tuple(measures.values()), sample, "linux", sides, needs)


_FASTER = partial(Measure, unit="/s", more=True)
_MICROSECONDS = partial(Measure, unit="us")

EXPERIMENTS = (
    _tls(
        "tls",
        {"tls": _FASTER("TLS echo, 64 bytes: green, uvloop streams", target=1.0)},
        ("portico-green", "uvloop-streams"),
    ),
    _tls(
        "tls-handshakes",
        {
            "tls-handshakes": _FASTER("TLS handshakes in full: green, uvloop Protocol", target=0.9),
            "tls-resumed": _FASTER("- of resumed sessions: green, uvloop Protocol", target=0.9),
        },
        ("portico-green", "uvloop-protocol"),
    ),
    _tls(
        "tls-threads",
        {
            "tls": _FASTER("TLS echo, 64 bytes: threads, socketserver wrapped", target=1.0),
            "tls-handshakes": _FASTER("TLS handshakes in full: threads, socketserver wrapped", target=1.0),
        },
        ("portico-threads", "socketserver"),
    ),
    Experiment(
        "proxy",
        (
            _MICROSECONDS("PROXY header, version 1: to parse", target=3.0),
            _MICROSECONDS("PROXY header, version 2: to parse", target=3.0),
            _MICROSECONDS("- with the client's TLS in it"),
            _MICROSECONDS("PROXY header, version 1: in all, by a green server"),
            _MICROSECONDS("PROXY header, version 2: in all, by a green server"),
        ),
        _headers,
        "linux",
        ("portico-green",),
        partial(_lacking, ("portico-green",)),
    ),
)

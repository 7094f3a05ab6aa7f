"""The ways to run a server that are put to the test, what its connections go over, and what each is called."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

__all__ = ["ALL", "CONCURRENT", "OVERS", "STREAMS", "TCP", "TLS", "TLS_UNIX", "UNIX", "Over", "Way", "named"]


@dataclass(frozen=True)
class Way:
    """A way to run: `kind` is the part of it that decides how requests run, `loop` whose event loop it uses."""

    name: str
    kind: str
    prefix: str
    loop: str | None = None
    streams: bool = False
    """With asyncio's streams instead of an awaitable socket."""

    @property
    def forks(self) -> bool:
        return self.kind == "fork"

    def possible(self) -> bool:
        return self.loop != "uvloop" or importlib.util.find_spec("uvloop") is not None


ALL = (
    Way("plain", "plain", ""),
    Way("thread", "thread", "Threading"),
    Way("fork", "fork", "Forking"),
    Way("green-uvloop", "green", "Green", "uvloop"),
    Way("green-asyncio", "green", "Green", "asyncio"),
    Way("async-uvloop", "async", "Async", "uvloop"),
    Way("async-asyncio", "async", "Async", "asyncio"),
)
CONCURRENT = tuple(way for way in ALL if way.kind != "plain")
"""Those that serve more than one client at a time."""

STREAMS = (
    Way("streams-uvloop", "async", "Async", "uvloop", streams=True),
    Way("streams-asyncio", "async", "Async", "asyncio", streams=True),
)
"""`AsyncStreamRequestHandler`: the same servers, but their bytes go another way. For what depends on that."""


@dataclass(frozen=True)
class Over:
    """What connections go over."""

    name: str
    unix: bool = False
    tls: bool = False


TCP, UNIX = Over("TCP"), Over("Unix", unix=True)
TLS, TLS_UNIX = Over("TLS", tls=True), Over("TLS over Unix", unix=True, tls=True)
OVERS = {over.name: over for over in (TCP, UNIX, TLS, TLS_UNIX)}


def named(names: str) -> tuple[Way, ...]:
    """Ways by their names, or by kinds, separated by commas. `ValueError` names what is neither."""
    every = (*ALL, *STREAMS)
    known = {way.name for way in every} | {way.kind for way in every}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
    return tuple(way for way in every if way.name in wanted or way.kind in wanted)

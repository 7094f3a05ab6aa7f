"""The ways to run a server that are put to the test, and what each is called."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

__all__ = ["ALL", "CONCURRENT", "Way", "named"]


@dataclass(frozen=True)
class Way:
    """A way to run: `kind` is the part of it that decides how requests run, `loop` whose event loop it uses."""

    name: str
    kind: str
    prefix: str
    loop: str | None = None

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


def named(names: str) -> tuple[Way, ...]:
    """Ways by their names, or by kinds, separated by commas. `ValueError` names what is neither."""
    known = {way.name for way in ALL} | {way.kind for way in ALL}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
    return tuple(way for way in ALL if way.name in wanted or way.kind in wanted)

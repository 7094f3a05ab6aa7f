"""The experiments, in their order. What each one does is said where it is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from . import addresses, bad_handlers, chaos, counts, deaf_peer, drains, leaks, loris, scan, shortage, soak
from .results import Plan, Row
from .ways import ALL, CONCURRENT, STREAMS, Way, named

__all__ = ["EXPERIMENTS", "LONG", "SOAK", "Experiment"]


@dataclass(frozen=True)
class Experiment:
    """`at_once` says how many ways to run may be tried at the same time without getting into each other's way."""

    name: str
    title: str
    function: Callable[[Way, Plan], list[Row]]
    ways: tuple[Way, ...] = CONCURRENT
    at_once: int = 1

    @property
    def says(self) -> str:
        return inspect.getdoc(self.function) or ""


EXPERIMENTS = (
    Experiment("chaos", "Chaos", chaos.experiment, at_once=2),
    Experiment("shortage", "A shortage of descriptors", shortage.experiment, at_once=3),
    Experiment("counts", "Every connection counts once", counts.experiment, (*ALL, *STREAMS)),
    Experiment("loris", "Slow-loris", loris.experiment),
    Experiment("addresses", "Many addresses", addresses.experiment),
    Experiment("scan", "A port scan", scan.experiment, ALL),
    Experiment("deaf-peer", "A peer that never reads", deaf_peer.experiment, ALL),
    Experiment("handlers", "Bad handlers", bad_handlers.experiment, ALL),
    Experiment("leaks", "Leaks", leaks.experiment, ALL, at_once=2),
    Experiment("drains", "Drains", drains.experiment, ALL, at_once=2),
)
SOAK = Experiment("soak", "A soak", soak.experiment, ALL, at_once=len(ALL))
FORKS_IN_FULL = Experiment(
    "forks-in-full", "Every connection of a forking server counts once", counts.forks_in_full, named("fork")
)
LONG = (SOAK, FORKS_IN_FULL)
"""What `make soak` does: not among the others, as it takes its time."""

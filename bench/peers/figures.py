"""Medians, ratios and verdicts: numbers from samples, and nothing else.

A ratio is always that of two samples of the same round, which the machine's other work has met alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cases import Case, Figure, Sample, Target

__all__ = ["Spread", "Verdict", "judge", "ratio", "spread", "value"]

Rounds = Sequence[Mapping[str, Sample]]


@dataclass(frozen=True)
class Spread:
    """A median, and the least and the greatest value that it stands for."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Verdict:
    """What became of a target. `reached` is None where it was not measured."""

    target: Target
    figure: Figure
    reached: Spread | None

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        more, bound = self.figure.more, self.target.bound
        return self.reached.median >= bound if more else self.reached.median <= bound


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def value(rounds: Rounds, figure: Figure, peer: str) -> Spread | None:
    """A peer's figure over the rounds."""
    read = [figure.read(samples[peer]) for samples in rounds if peer in samples]
    return spread([number for number in read if number is not None])


def ratio(rounds: Rounds, figure: Figure, peer: str, than: str | tuple[str, ...]) -> Spread | None:
    """A peer's figure over another's, or over the best of several others', round by round."""
    others = (than,) if isinstance(than, str) else than
    ratios = []
    for samples in rounds:
        ours = figure.read(samples[peer]) if peer in samples else None
        read = [figure.read(samples[other]) for other in others if other in samples]
        theirs = [number for number in read if number]
        if ours is not None and theirs:
            ratios.append(ours / (max(theirs) if figure.more else min(theirs)))
    return spread(ratios)


def judge(case: Case, rounds: Rounds) -> list[Verdict]:
    """What became of each target of a case."""
    verdicts = []
    for target in case.targets:
        figure = target.figure or case.figures[0]
        if target.than is None:
            reached = value(rounds, figure, target.peer)
        else:
            reached = ratio(rounds, figure, target.peer, target.than)
        verdicts.append(Verdict(target, figure, reached))
    return verdicts

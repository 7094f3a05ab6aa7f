"""Takes the samples in turns: A B, B A, A B ..., so that what else happens on the machine meets both sides alike.

The two samples of a round lie next to each other in time, so the ratio is taken within each round; what is reported is
the median of these ratios, with the least and the greatest of them.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass

from .measures import Experiment, Measure, Plan

__all__ = ["Result", "run"]


@dataclass(frozen=True)
class Result:
    """One measure over all rounds: a value per round and side."""

    measure: Measure
    ours: list[float]
    theirs: list[float] | None = None

    @property
    def reached(self) -> list[float]:
        """What the target is about: our values, as ratios to theirs if there are any."""
        if self.theirs is None:
            return self.ours
        return [_ratio(ours, theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def met(self) -> bool | None:
        return self.measure.met(statistics.median(self.reached))


def run(experiment: Experiment, rounds: int, plan: Plan) -> list[Result]:
    """All rounds of one experiment, told on stderr as they go."""
    sides = experiment.sides
    samples: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            values = tuple(experiment.sample(side, plan))
            samples[side].append(values)
            shown = "  ".join(
                f"{value:.4g} {measure.unit}" for value, measure in zip(values, experiment.measures, strict=True)
            )
            print(f"{experiment.name} {number + 1}/{rounds}  {side:12}  {shown}", file=sys.stderr, flush=True)
    columns = [[list(column) for column in zip(*samples[side], strict=True)] for side in sides]
    return [
        Result(measure, *(column[index] for column in columns)) for index, measure in enumerate(experiment.measures)
    ]


def _ratio(ours: float, theirs: float) -> float:
    if theirs:
        return ours / theirs
    return math.inf if ours else 1.0

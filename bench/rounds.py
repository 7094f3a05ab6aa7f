"""Takes the samples in turns: A B, B A, A B ..., so that what else happens on the machine meets both modules alike.

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

MODULES = ("portico", "socketserver")


@dataclass(frozen=True)
class Result:
    """One measure over all rounds: a value per round and module."""

    measure: Measure
    portico: list[float]
    socketserver: list[float]

    @property
    def ratios(self) -> list[float]:
        return [_ratio(ours, theirs) for ours, theirs in zip(self.portico, self.socketserver, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def run(experiment: Experiment, rounds: int, plan: Plan) -> list[Result]:
    """All rounds of one experiment, told on stderr as they go."""
    samples: dict[str, list[tuple[float, ...]]] = {module: [] for module in MODULES}
    for number in range(rounds):
        for module in MODULES if number % 2 == 0 else reversed(MODULES):
            values = tuple(experiment.sample(module, plan))
            samples[module].append(values)
            shown = "  ".join(
                f"{value:.4g} {measure.unit}" for value, measure in zip(values, experiment.measures, strict=True)
            )
            print(f"{experiment.name} {number + 1}/{rounds}  {module:12}  {shown}", file=sys.stderr, flush=True)
    columns = {module: list(zip(*taken, strict=True)) for module, taken in samples.items()}
    return [
        Result(measure, list(columns["portico"][index]), list(columns["socketserver"][index]))
        for index, measure in enumerate(experiment.measures)
    ]


def _ratio(ours: float, theirs: float) -> float:
    if theirs:
        return ours / theirs
    return math.inf if ours else 1.0

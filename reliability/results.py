"""What an experiment finds: rows of figures, some of which have to be met. Says nothing of how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Figure", "Plan", "Row", "at_most", "exactly", "percentile", "shown"]


@dataclass(frozen=True)
class Figure:
    """A figure: what was measured, what had to be (`passes`), and whether it was; None where nothing had to be."""

    name: str
    value: str
    passes: str = ""
    met: bool | None = None


@dataclass
class Row:
    """What came of one experiment with one way to run."""

    way: str
    asked: str
    figures: list[Figure] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return all(figure.met is not False for figure in self.figures)


@dataclass(frozen=True)
class Plan:
    """How much is asked for: `quick` is a smoke run, `soak` the seconds for which memory is watched, 0 for not."""

    quick: bool = False
    soak: float = 0.0

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    return Figure(name, _text(value, unit), f"<= {_text(limit, unit)}", value <= limit)


def exactly(name: str, value: object, expected: object) -> Figure:
    return Figure(name, _text(value), _text(expected), value == expected)


def shown(name: str, value: object, unit: str = "") -> Figure:
    """A figure that is not judged."""
    return Figure(name, _text(value, unit))


def percentile(values: list[float], part: float) -> float:
    """The value that this part of all values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def _text(value: object, unit: str = "") -> str:
    if isinstance(value, float):
        size = abs(value)
        text = f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
    else:
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{text} {unit}".rstrip().replace("-0 ", "0 ")

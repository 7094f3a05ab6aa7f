"""The command: `python -m reliability [--only NAME] [--ways thread,fork] [--quick] [--soak SECONDS] [--output FILE]`.

Progress goes to stderr, the tables to stdout and, unless it is a smoke run, to docs/reliability.md. The exit status is
1 if a figure that has to be met is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from . import page
from .registry import EXPERIMENTS, LONG, Experiment
from .results import Figure, Plan, Row
from .ways import ALL, STREAMS, Way, named

EVERY = (*ALL, *STREAMS)
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(prog="python -m reliability", description="What goes wrong, and what comes of it.")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--ways", default=None, help=f"of {', '.join(way.name for way in EVERY)}, or green, async")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little is asked, and no page is written")
    parser.add_argument(
        "--soak",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="watch memory for so long, and what else takes its time",
    )
    parser.add_argument("--output", type=Path, default=None, help="file for the page (default docs/reliability.md)")
    chosen = parser.parse_args(arguments)
    try:
        chosen.ways = EVERY if chosen.ways is None else named(chosen.ways)
    except ValueError as error:
        parser.error(f"--ways: {error}")
    if not 0 <= chosen.soak <= 7 * 24 * 3600:
        parser.error("--soak must be from 0 to a week, in seconds")
    return chosen


def tried(experiment: Experiment, plan: Plan, way: Way) -> list[Row]:
    """What comes of it with this way to run; what goes wrong with the experiment itself is not met, either."""
    began = time.monotonic()
    try:
        rows = experiment.function(way, plan)
    except Exception as error:
        rows = [Row(way.name, "", [Figure("failed", f"{type(error).__name__}: {error}".partition("\n")[0], "", False)])]
    took = time.monotonic() - began
    for row in rows:
        found = "  ".join(f"{figure.name} {figure.value}{_mark(figure)}" for figure in row.figures)
        print(f"{experiment.name} {row.way} ({took:.1f} s)  {row.asked}  {found}", file=sys.stderr, flush=True)
    return rows


def _mark(figure: Figure) -> str:
    return f" (NOT {figure.passes})" if figure.met is False else ""


def run(experiment: Experiment, plan: Plan, ways: tuple[Way, ...]) -> tuple[list[Row], float]:
    """One experiment with all ways to run that it is meant for; and the seconds it took."""
    began = time.monotonic()
    chosen = [way for way in experiment.ways if way in ways and way.possible()]
    with ThreadPoolExecutor(max(experiment.at_once, 3 if plan.quick else 1)) as pool:
        rows = [row for rows in pool.map(partial(tried, experiment, plan), chosen) for row in rows]
    return rows, time.monotonic() - began


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    if sys.platform != "linux":
        print("python -m reliability needs Linux: it looks at processes through /proc, with epoll", file=sys.stderr)
        return 2
    plan = Plan(chosen.quick, chosen.soak)
    wanted = [*LONG] if chosen.soak else [one for one in EXPERIMENTS if not chosen.only or one.name in chosen.only]
    sections, missed = [], False
    for experiment in wanted:
        rows, seconds = run(experiment, plan, chosen.ways)
        if not rows:
            continue
        print(f"## {experiment.title}\n\n{page.table(rows)}\n", flush=True)
        sections.append(page.section(experiment, rows, seconds))
        missed |= not all(row.met for row in rows)
    whole = chosen.ways == EVERY and not chosen.quick
    if chosen.output is not None or whole:
        page.written(chosen.output or PAGE, sections)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

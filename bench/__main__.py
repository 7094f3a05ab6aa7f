"""The command: `python -m bench [--rounds N] [--seconds S] [--only NAME] [--quick]`, and `python -m bench peers ...`.

Progress goes to stderr, the table to stdout and to bench/results.md. Figures are shown, never judged: the exit status
says only whether everything could be measured. What follows `peers` is for `peers.command`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import counting, measures, openings, report, rounds

RESULTS = Path(__file__).with_name("results.md")
EXPERIMENTS = (*measures.EXPERIMENTS, *counting.EXPERIMENTS, *openings.EXPERIMENTS)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Portico against socketserver and others, in one run."
    )
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each experiment (default 7; quick 2)")
    parser.add_argument("--seconds", type=float, default=None, help="length of a load (default 1.5; quick 0.3)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean little")
    parser.add_argument("--output", type=Path, default=None, help="file for the table (default bench/results.md)")
    chosen = parser.parse_args(arguments)
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 7)
    chosen.seconds = chosen.seconds or (0.3 if chosen.quick else 1.5)
    if chosen.rounds < 1 or not 0 < chosen.seconds <= 60:
        parser.error("--rounds must be 1 or more, --seconds more than 0 and at most 60")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["peers"]:
        from .peers import command

        return command.main(given[1:])
    chosen = options(given)
    began = time.monotonic()
    results = []
    for experiment in EXPERIMENTS:
        if chosen.only and experiment.name not in chosen.only:
            continue
        if lacking := experiment.lacking():
            print(f"{experiment.name}: {lacking}; left out", file=sys.stderr)
            continue
        results += rounds.run(experiment, chosen.rounds, measures.Plan(chosen.seconds, chosen.quick))
    table = report.table(results)
    took = f"{chosen.rounds} rounds, loads of {chosen.seconds:g} s, {time.monotonic() - began:.0f} s in all"
    print(table)
    if chosen.output is not None or not (chosen.quick or chosen.only):
        (chosen.output or RESULTS).write_text(report.page(table, took), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

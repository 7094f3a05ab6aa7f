"""The command: `python -m bench peers [--only CASE,...] [--peers A,B] [--rounds N] [--seconds S] [--quick] [--page]`.

Progress goes to stderr, tables to stdout. Results are kept, and docs/benchmarks.md is made from them, unless the run
was a quick one or had only some of the peers; `--output` keeps them elsewhere in any case. Figures are shown, never
judged: the exit status says only whether measuring was possible.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import build, machine, page, results, roster, runs
from .cases import CASES, Case, Plan

__all__ = ["main", "options"]

_START = 0.45  # seconds that a server process takes to start and end, roughly
_IDLE_EXTRA = 3.0  # and to open the idle connections


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench peers", description="Portico and its peers, in one run.")
    names = [case.name for case in CASES]
    parser.add_argument("--only", default="", metavar="CASE,...", help=f"of: {', '.join(names)}")
    peers = [peer.name for peer in roster.PEERS]
    parser.add_argument("--peers", default="", metavar="PEER,...", help=f"of: {', '.join(peers)}")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each case (default 5; quick 1)")
    parser.add_argument("--seconds", type=float, default=None, help="length of a load (default 0.8; quick 0.15)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean little")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="keep results and page there")
    parser.add_argument("--page", action="store_true", help="measure nothing, make the page from the results kept")
    chosen = parser.parse_args(arguments)
    for option, known in (("only", names), ("peers", peers)):
        given = [name for name in getattr(chosen, option).split(",") if name]
        if unknown := set(given) - set(known):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
        setattr(chosen, option, given)
    chosen.rounds = (1 if chosen.quick else 5) if chosen.rounds is None else chosen.rounds
    chosen.seconds = (0.15 if chosen.quick else 0.8) if chosen.seconds is None else chosen.seconds
    if chosen.rounds < 1 or not 0 < chosen.seconds <= 60:
        parser.error("--rounds must be 1 or more, --seconds more than 0 and at most 60")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = options(arguments)
    kept, page_path = _places(chosen)
    if not chosen.page:
        try:
            build.programs()
        except (build.NoCompilerError, subprocess.CalledProcessError) as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 1
        _measure_all(chosen, kept)
    if kept is not None:
        page.write(results.read(kept), page_path)
    return 0


def _places(chosen: argparse.Namespace) -> tuple[Path | None, Path]:
    """Where results are kept, if anywhere, and where the page goes."""
    if chosen.output is not None:
        return chosen.output, chosen.output / "benchmarks.md"
    keep = chosen.page or not (chosen.quick or chosen.peers)
    return (machine.ROOT / "bench" / "results" if keep else None), machine.ROOT / "docs" / "benchmarks.md"


def _measure_all(chosen: argparse.Namespace, kept: Path | None) -> None:
    began = time.monotonic()
    plan = _plan(chosen)
    cases = [case for case in CASES if not chosen.only or case.name in chosen.only]
    peers = [name for name in _taking_part(cases) if not chosen.peers or name in chosen.peers]
    unable = runs.check(peers)
    for name, why in unable.items():
        _tell(f"{name}: {why}; left out")
    peers = [name for name in peers if name not in unable]
    _tell(f"about {_minutes(cases, peers, plan):.0f} minutes: {len(cases)} cases, {plan.rounds} rounds")
    facts = {"machine": machine.description(), "versions": machine.versions(build.compiler())}
    for case in cases:
        if lacking := runs.lacking(case):
            _tell(f"{case.name}: {lacking}; left out")
            continue
        taking_part = [name for name in case.peers if name in peers]
        told: dict[str, Any] = {**facts, "commands": _commands(case, plan)}
        result = runs.measure(case, taking_part, plan, told)
        result.left_out.update({name: why for name, why in unable.items() if name in case.peers})
        print(f"{case.title}\n\n{page.tables(case, result)}", flush=True)
        if kept is not None:
            results.write(result, kept)
    _tell(f"{time.monotonic() - began:.0f} s in all")


def _taking_part(cases: list[Case]) -> list[str]:
    """Those in any of the cases, in the order of the roster."""
    return [peer.name for peer in roster.PEERS if any(peer.name in case.peers for case in cases)]


def _plan(chosen: argparse.Namespace) -> Plan:
    wanted = 1000 if chosen.quick else 10_000
    idle = machine.possible_idle(wanted, machine.raise_limits())
    if idle < wanted:
        _tell(f"only {idle:,} idle connections: no more files may be open here (ulimit -Hn)")
    if machine.cores().shared:
        _tell("there is one core only: server and load share it, and the figures say little")
    return Plan(chosen.rounds, chosen.seconds, min(0.2, chosen.seconds / 4), idle)


def _commands(case: Case, plan: Plan) -> list[str]:
    return [
        f"python -m bench peers --only {case.name} --rounds {plan.rounds} --seconds {plan.seconds:g}",
        runs.shown(runs.python_command("PEER", case.service)),
        runs.shown([str(build.FOLDER / case.program), *case.load(plan), "-p", "PORT", "-S", "PID"]),
    ]


def _minutes(cases: list[Case], peers: list[str], plan: Plan) -> float:
    one = plan.seconds + plan.warm_up + _START
    seconds = 0.0
    for case in cases:
        extra = _IDLE_EXTRA * plan.idle / 10_000 if case.arguments[0] == "idle" else 0.0
        seconds += len([name for name in case.peers if name in peers]) * (one + extra)
    return seconds * plan.rounds / 60


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""docs/benchmarks.md and its plots, made from the results that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import plot
from .cases import CASES, Case, Figure, Sample
from .figures import Spread, Verdict, judge, ratio, value
from .results import Result
from .roster import named

__all__ = ["table", "tables", "write"]

_HOW = """# Benchmarks

Portico and its peers side by side; `make bench` makes this page anew (`python -m bench peers`; `--help` says what can
be chosen). Against `socketserver` alone, and in more detail, see [bench/results.md](../bench/results.md).

The server is pinned to one core, the load, a program in C, to another. The peers take turns, A B C A B C, each time
with a server process of its own. Values are medians of the rounds; a ratio is made of two samples of the same round,
and the median of these is shown, with the least and the greatest as its spread. Every byte that comes back is compared.
Each Python process has freed one big block before it serves, as any program of some size has: asyncio's reads of 256
KiB cost up to three times as much before. All queues are 1,024 long; buffers, TCP_NODELAY and the rest are as each has
them by default. But all sockets of datagrams ask for a receive buffer of 4 MiB, as the default of 208 KiB does not hold
128 datagrams of 1,200 bytes. A datagram that is not answered within 0.25 s is lost, and another is sent in its place.
Over TLS all show the same certificate, in contexts as Python's `ssl` makes them; Portico makes its own. "CPU of 10^6"
is the server's processor time for a million messages. *load-bound*: the load was busy all the time (95 % or more of its
core; one that floods, if nothing was lost), so the server might do more.
"""
_BUSY = 0.95  # share of its core from which on the load is the limit


def write(results: Sequence[Result], page: Path) -> None:
    """The page, and its plots in a folder of its name beside it."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    cases = {case.name: case for case in CASES}
    parts = [_HOW, _about(results), _targets(results)]
    for result in results:
        case = cases[result.case]
        parts.append(_section(case, result, folder))
    page.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def tables(case: Case, result: Result) -> str:
    """A case's figures, and what became of its targets."""
    verdicts = judge(case, result.rounds)
    return "\n".join([_figures(case, result), *([_verdicts(verdicts)] if verdicts else [])])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain enough to be read in a terminal and to be Markdown."""
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in every
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _figures(case: Case, result: Result) -> str:
    reference = case.reference if case.reference in result.peers else result.peers[0] if result.peers else ""
    main = case.figures[0]
    names = [f"{figure.name}, {figure.unit}".rstrip(", ") for figure in case.figures]
    head = ["server", names[0], f"ratio to {reference}", "spread", *names[1:], "errors", ""]
    rows = []
    for peer in result.peers:
        values = [_median(value(result.rounds, figure, peer)) for figure in case.figures]
        compared = ratio(result.rounds, main, peer, reference)
        samples = [samples[peer] for samples in result.rounds if peer in samples]
        errors = sum(sample["errors"] + sample["stalled"] for sample in samples)
        bound = all(_load_bound(case, sample) for sample in samples)
        title = named(peer).title
        rows.append(
            [title, values[0], *_compared(compared), *values[1:], str(errors or ""), "load-bound" if bound else ""]
        )
    return table(head, rows)


def _load_bound(case: Case, sample: Sample) -> bool:
    """Whether the load could not have done more."""
    return not sample["lost"] if case.floods else sample["cpu"] / sample["seconds"] >= _BUSY


def _verdicts(verdicts: Sequence[Verdict], *before: str) -> str:
    return table(["target", "to reach", "reached", "spread", "met"], [_verdict(verdict) for verdict in verdicts])


def _verdict(verdict: Verdict) -> list[str]:
    target, reached, unit = verdict.target, verdict.reached, verdict.figure.unit
    sign = ">=" if verdict.figure.more else "<="
    what = f"{target.peer}: {verdict.figure.name}"
    if target.than:
        than = target.than if isinstance(target.than, str) else "the best in Python"
        bound = f"{sign} {target.bound:g} x {than}"
        got = "" if reached is None else f"{reached.median:.2f}"
    else:
        bound = f"{sign} {target.bound:,g} {unit}".rstrip()
        got = "" if reached is None else f"{_median(reached)} {unit}".rstrip()
    met = {True: "yes", False: "NO", None: "not measured"}[verdict.met]
    return [what, bound, got, "" if reached is None else _between(reached, bool(target.than)), met]


def _compared(compared: Spread | None) -> list[str]:
    return ["", ""] if compared is None else [f"{compared.median:.2f}", _between(compared, True)]


def _between(spread: Spread, ratio: bool) -> str:
    if ratio:
        return f"{spread.least:.2f}-{spread.most:.2f}"
    return f"{plot.number(spread.least)}-{plot.number(spread.most)}"


def _median(spread: Spread | None) -> str:
    return "" if spread is None else plot.number(spread.median)


def _about(results: Sequence[Result]) -> str:
    """What the newest result was made on."""
    if not results:
        return "Nothing has been measured yet.\n"
    newest = max(results, key=lambda result: result.made).told
    lines = [_listed(newest.get(part, {})) for part in ("machine", "versions")]
    return "\n".join(f"{line}.  " for line in lines if line) + "\n"


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _targets(results: Sequence[Result]) -> str:
    """All targets of all cases, in one table."""
    rows = []
    for case in CASES:
        result = next((result for result in results if result.case == case.name), None)
        rows += [[case.name, *_verdict(verdict)] for verdict in judge(case, result.rounds if result else [])]
    met = sum(row[-1] == "yes" for row in rows)
    measured = sum(row[-1] != "not measured" for row in rows)
    head = f"## Targets\n\n{met} of {measured} that could be measured are met.\n\n"
    return head + table(["case", "target", "to reach", "reached", "spread", "met"], rows)


def _section(case: Case, result: Result, folder: Path) -> str:
    plan, told = result.plan, result.told
    parts = [f"## {case.title}\n", tables(case, result)]
    for figure in case.plots:
        name = case.name if figure is case.plots[0] else f"{case.name}-{figure.name.split()[0].lower()}"
        (folder / f"{name}.svg").write_text(_picture(case, figure, result), encoding="utf-8")
        parts.append(f"![{case.title}: {figure.name}]({folder.name}/{name}.svg)\n")
    parts += [f"{case.notes}\n"] if case.notes else []
    parts += [f"Left out: {named(peer).title}, {why}.  " for peer, why in result.left_out.items()]
    idle = f", {plan.idle:,} idle connections" if case.arguments[0] == "idle" else ""
    commit = told.get("versions", {}).get("commit", "unknown")
    parts.append(f"{result.made}, commit {commit}: {plan.rounds} rounds of {plan.seconds:g} s{idle}.")
    parts += [f"`{command}`  " for command in told.get("commands", ())]
    return "\n".join(parts) + "\n"


def _picture(case: Case, figure: Figure, result: Result) -> str:
    rows = []
    for peer in result.peers:
        found = value(result.rounds, figure, peer)
        if found is not None:
            rows.append(plot.Bar(named(peer).title, found, named(peer).ours))
    rows.sort(key=lambda row: row.value.median, reverse=figure.more)
    better = "more is better" if figure.more else "less is better"
    return plot.bars(f"{case.title}: {figure.name}, {better}", figure.unit, rows)

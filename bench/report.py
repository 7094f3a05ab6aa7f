"""The table, plain enough to be read in a terminal and to be Markdown, and the page bench/results.md around it."""

from __future__ import annotations

import os
import platform
import statistics
import time

from .rounds import Result

__all__ = ["page", "table"]

_HEAD = ("measure", "portico", "other", "ratio", "spread", "target", "met")


def table(results: list[Result]) -> str:
    """One row per measure; values are medians of the rounds, the ratio is the median of the rounds' ratios."""
    rows = [_HEAD, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def page(table: str, took: str) -> str:
    """The results as a Markdown page, with what they were measured on."""
    return (
        "# Portico against `socketserver`\n\n"
        f"Made by `python -m bench` (`make bench`) on {time.strftime('%Y-%m-%d')}: "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} on {platform.machine()}, "
        f"{os.cpu_count()} cores; {took}.\n\n"
        f"{table}\n\n"
        "Values are medians of the rounds; the two sides take turns within each round. The other side is\n"
        "`socketserver` where the measure names nobody else. The ratio is Portico's value over the other's, the\n"
        "median of the rounds' ratios; the spread is the least and the greatest of them, or of the values where there\n"
        "is no other side. For `/s` of the servers more is better, for everything else less. Both servers have a\n"
        "backlog of 128 and run in the main thread of a process of their own; the client is one more process on the\n"
        "same machine. It keeps 8 datagrams in flight on each of 16 sockets, and is a program in C for these if there\n"
        "is a compiler, as it always is for TLS and PROXY headers, with which server and client are pinned to a core\n"
        "each. Handshakes are those of a second of the server's processor time, as a full one costs the client more.\n"
    )


def _row(result: Result) -> tuple[str, ...]:
    measure, theirs, reached, met = result.measure, result.theirs, result.reached, result.met
    unit = measure.unit if theirs is None else ""
    return (
        measure.name,
        _value(statistics.median(result.ours), measure.unit),
        "" if theirs is None else _value(statistics.median(theirs), measure.unit),
        "" if theirs is None else f"{statistics.median(reached):.2f}",
        f"{min(reached):.2f}-{max(reached):.2f}",
        "" if measure.target is None else f"{'>=' if measure.more else '<='} {measure.target:g} {unit}".rstrip(),
        "" if met is None else "yes" if met else "NO",
    )


def _value(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()

"""The table, plain enough to be read in a terminal and to be Markdown, and the page bench/results.md around it."""

from __future__ import annotations

import os
import platform
import statistics
import time

from .rounds import Result

__all__ = ["page", "table"]

_HEAD = ("measure", "portico", "socketserver", "ratio", "spread", "target", "met")


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
        "Values are medians of the rounds; the two modules take turns within each round. The ratio is Portico's value\n"
        "over socketserver's, the median of the rounds' ratios; the spread is the least and the greatest of them.\n"
        "For `/s` of the servers more is better, for everything else less. Both servers have a backlog of 128 and run\n"
        "in the main thread of a process of their own; the client is one more process on the same machine. It\n"
        "keeps 8 datagrams in flight on each of 16 sockets, and is a program in C for these if there is a compiler.\n"
    )


def _row(result: Result) -> tuple[str, ...]:
    measure, ratios = result.measure, result.ratios
    met = measure.met(result.ratio)
    return (
        measure.name,
        _value(statistics.median(result.portico), measure.unit),
        _value(statistics.median(result.socketserver), measure.unit),
        f"{result.ratio:.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        "" if measure.target is None else f"{'>=' if measure.more else '<='} {measure.target:g}",
        "" if met is None else "yes" if met else "NO",
    )


def _value(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()

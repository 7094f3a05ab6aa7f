"""Tables of what was found, and the page docs/reliability.md, of which a run writes anew what it has measured."""

from __future__ import annotations

import os
import platform
import re
import textwrap
import time
from pathlib import Path

from .registry import EXPERIMENTS, LONG, Experiment
from .results import Figure, Row

__all__ = ["section", "table", "written"]

_HEAD = """# Reliability

Made by `make reliability` and `make soak` (`python -m reliability`): what came of it when things went wrong for real
servers, each in a process of its own, with their clients in others, on one machine and its loopback. No figure here is
written by hand. A figure with a limit in its column's head has to meet it; one without is only shown.
"""


def table(rows: list[Row]) -> str:
    """One line per way to run. What has to be met says so in the head; what does not meet it is marked."""
    heads = list(dict.fromkeys(_head(figure) for row in rows for figure in row.figures))
    lines = [["way to run", "asked", *heads, "met"]]
    for row in rows:
        values = {_head(figure): _value(figure) for figure in row.figures}
        lines.append([row.way, row.asked, *(values.get(head, "") for head in heads), "yes" if row.met else "NO"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def section(experiment: Experiment, rows: list[Row], seconds: float) -> str:
    """An experiment as a part of the page: what was done, its table, when and on what it was measured."""
    says = textwrap.fill(" ".join(experiment.says.split()), 120, break_on_hyphens=False, break_long_words=False)
    return f"## {experiment.title}\n\n{says}\n\n{table(rows)}\n\n{_measured(seconds)}\n"


def written(path: Path, sections: list[str]) -> None:
    """Write the page, with these sections in the place of their predecessors."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    old = {_title(part): part.strip() + "\n" for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]}
    found = old | {_title(part): part for part in sections}
    titles = [experiment.title for experiment in (*EXPERIMENTS, *LONG)]
    path.write_text("\n".join([_HEAD, *(found[title] for title in titles if title in found)]), encoding="utf-8")


def _title(part: str) -> str:
    return part.partition("\n")[0].removeprefix("## ")


def _head(figure: Figure) -> str:
    return f"{figure.name}: {figure.passes}" if figure.passes else figure.name


def _value(figure: Figure) -> str:
    return f"**{figure.value}**" if figure.met is False else figure.value


def _measured(seconds: float) -> str:
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} in {seconds:.0f} s: Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} cores."
    )

"""`python -m reliability` makes its page. A smoke run: no figure is looked at, only that there is one everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reliability import page
from reliability.registry import EXPERIMENTS, LONG
from reliability.results import Row, at_most, exactly, shown
from reliability.soak import slope
from reliability.ways import ALL, CONCURRENT, named

ROOT = Path(__file__).parent.parent
CHOSEN = {"counts": 3, "deaf-peer": 2, "drains": 6}
"""How many rows each has of one way to run."""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc, with epoll")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reliability", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@on_linux
def test_makes_a_page_with_a_table_for_every_experiment(tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    only = [word for name in CHOSEN for word in ("--only", name)]
    done = command("--quick", "--ways", "thread", *only, "--output", str(written))
    text = written.read_text()
    assert done.returncode == (", NO" in text or "| NO" in text), done.stderr
    assert "failed:" not in text, done.stderr
    titles = [experiment.title for experiment in EXPERIMENTS if experiment.name in CHOSEN]
    assert [part.partition("\n")[0] for part in text.split("\n## ")[1:]] == titles
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| thread")]
    assert len(rows) == sum(CHOSEN.values())
    assert all(cells[at].strip() for cells in rows for at in (0, 1, -1))
    assert all(sum(bool(cell.strip()) for cell in cells) > 5 for cells in rows)  # not all rows have the same figures
    assert all(name in done.stderr for name in CHOSEN)


def test_says_what_it_can_do() -> None:
    done = command("--only", "nothing")
    assert done.returncode == 2
    assert all(experiment.name in done.stderr for experiment in EXPERIMENTS)
    assert command("--ways", "carrier-pigeon").returncode == 2


def test_ways_are_named_by_themselves_or_by_their_kind() -> None:
    assert [way.name for way in named("green,fork")] == ["fork", "green-uvloop", "green-asyncio"]
    assert [way.name for way in named("async-asyncio")] == ["async-asyncio"]
    assert set(CONCURRENT) < set(ALL)


def test_every_experiment_says_what_it_does() -> None:
    assert all(experiment.says for experiment in (*EXPERIMENTS, *LONG))


def test_figures_that_are_missed_are_marked() -> None:
    rows = [
        Row("thread", "much", [at_most("late", 7.0, 50.0, "ms"), exactly("lost", 0, 0), shown("seen", 1234)]),
        Row("fork", "much", [at_most("late", 51.5, 50.0, "ms"), exactly("lost", 0, 0)]),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.table(rows).splitlines()]
    assert lines[0] == ["way to run", "asked", "late: <= 50 ms", "lost: 0", "seen", "met"]
    assert lines[2:] == [
        ["thread", "much", "7 ms", "0", "1,234", "yes"],
        ["fork", "much", "**51.5 ms**", "0", "", "NO"],
    ]


def test_a_section_takes_the_place_of_its_predecessor(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    first, second = EXPERIMENTS[:2]
    page.written(path, [page.section(second, [Row("thread", "old")], 1.0)])
    page.written(path, [page.section(first, [Row("thread", "other")], 1.0)])
    page.written(path, [page.section(second, [Row("thread", "new")], 1.0)])
    text = path.read_text()
    assert text.startswith("# Reliability")
    assert text.index("other") < text.index("new")
    assert "old" not in text


def test_a_slope_is_that_of_most() -> None:
    samples = [(hour / 10, 20 + hour / 10 * 3) for hour in range(10)]
    samples[4] = samples[4][0], 99.0
    assert slope(samples) == pytest.approx(3.0)
    assert slope([]) == 0.0

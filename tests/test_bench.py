"""`python -m bench` makes its table. A smoke run: no figure is looked at, only that there is one everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks' client needs epoll")


@pytest.mark.timeout(120)
def test_makes_a_table_with_a_row_for_every_measure(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--output", str(page)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert head == ["measure", "portico", "socketserver", "ratio", "spread", "target", "met"]
    names = " ".join(row[0] for row in rows)
    for word in ("shutdown", "wake-ups", "ThreadingTCPServer", "ForkingTCPServer", "UDPServer", "import", "memory"):
        assert word in names
    assert all(row[1] and row[2] and row[3] and row[4] for row in rows)
    assert done.stdout.strip() in page.read_text()


def test_says_what_it_can_measure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "nothing"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "shutdown" in done.stderr

"""`python -m bench` makes its table. A smoke run: no figure is looked at, only that there is one everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench import __main__ as command
from bench import rounds
from bench.measures import Experiment, Measure, Plan
from bench.peers import build, encryption

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks' client needs epoll")


@pytest.mark.timeout(120)
def test_makes_a_table_with_a_row_for_every_measure(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--output", str(page)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert head == ["measure", "portico", "other", "ratio", "spread", "target", "met"]
    left_out = {line.partition(":")[0] for line in done.stderr.splitlines() if line.endswith("left out")}
    assert left_out <= {"tls", "tls-handshakes", "tls-threads", "proxy"}, done.stderr
    assert [row[0] for row in rows] == [
        measure.name for made in command.EXPERIMENTS if made.name not in left_out for measure in made.measures
    ]
    assert all(row[1] and row[4] for row in rows)
    assert all(row[2] and row[3] for row in rows if not row[0].startswith(("PROXY", "- with the client's TLS")))
    assert "errors" not in done.stderr
    assert done.stdout.strip() in page.read_text()


def test_what_opens_connections_is_measured_where_there_are_compiler_openssl_and_uvloop() -> None:
    pytest.importorskip("uvloop")
    if not build.possible():
        pytest.skip("there is no C compiler")
    build.programs()
    try:
        encryption.ready()
    except encryption.CannotEncryptError as error:
        pytest.skip(str(error))
    assert [made.lacking() for made in command.EXPERIMENTS] == [None] * len(command.EXPERIMENTS)


def test_what_has_no_other_side_is_judged_by_its_own_values() -> None:
    made = Experiment("own", (Measure("x", "us", target=3.0),), lambda side, plan: [2.0], sides=("mine",))
    (result,) = rounds.run(made, 3, Plan(0.1, True))
    assert result.reached == [2.0, 2.0, 2.0]
    assert result.met is True


def test_with_another_side_it_is_judged_by_ratios() -> None:
    values = {"mine": 2.0, "theirs": 4.0}
    made = Experiment(
        "both",
        (Measure("x", "/s", more=True, target=0.6),),
        lambda side, plan: [values[side]],
        sides=("mine", "theirs"),
    )
    (result,) = rounds.run(made, 2, Plan(0.1, True))
    assert result.reached == [0.5, 0.5]
    assert result.met is False


def test_says_what_it_can_measure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "nothing"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "shutdown" in done.stderr

"""Runs Portico's command as a user would: another process, its lines, its signals, its exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


def finished(*arguments: str, cwd: Path = ROOT, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "portico", *arguments],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


@contextmanager
def running(command: list[str], *, cwd: Path = ROOT, ready: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command that serves: entered once it has printed a line that matches `ready`; ended, at the latest, here."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if re.search(ready, line):
                break
        else:
            raise AssertionError(f"{command} ended with {process.wait()}: {lines}")
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()

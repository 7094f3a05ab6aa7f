"""Starts the processes that the measures take, and ends each of them, whatever happens.

Everything has a time limit. Children get this interpreter and this environment, but may write .pyc files, so that an
import is measured as users have it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Serving", "load", "run", "seconds_of", "serving"]

HERE = Path(__file__).parent
LIMIT = 30.0  # seconds over what a command is asked to take
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")}


def _command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-P", str(HERE / script), *map(str, arguments)]


def run(script: str, *arguments: object, limit: float = LIMIT) -> dict[str, float]:
    """Run a script of this folder to its end; what its last line of JSON says."""
    done = subprocess.run(
        _command(script, *arguments), stdout=subprocess.PIPE, env=_ENVIRONMENT, timeout=limit, check=True
    )
    return _said(done.stdout)


def load(kind: str, port: int, seconds: float) -> dict[str, float]:
    """Have a client make a load of that kind for so long."""
    return run("client.py", kind, port, seconds, limit=seconds + LIMIT)


def python(code: str) -> str:
    """Run a line of Python in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=_ENVIRONMENT, timeout=LIMIT, check=True, text=True
    )
    return done.stdout


def seconds_of(code: str) -> float:
    """How long a fresh interpreter takes for a line of Python, from start to exit."""
    began = time.perf_counter()
    python(code)
    return time.perf_counter() - began


class Serving:
    """A running server: its port while it runs, and what it said at its end."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def end(self) -> dict[str, float]:
        """End it in good order; its page faults and its peak memory."""
        self.process.terminate()
        output, _ = self.process.communicate(timeout=LIMIT)
        return _said(output)


@contextmanager
def serving(module: str, class_name: str) -> Iterator[Serving]:
    """A server in a process of its own, ready when entered, gone on leaving."""
    command = _command("server.py", module, class_name, "serve")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=_ENVIRONMENT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.wait(LIMIT)}")
        yield Serving(process, int(line))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _said(output: bytes) -> dict[str, float]:
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said

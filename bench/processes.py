"""Starts the processes that the measures take, and ends each of them, whatever happens.

Everything has a time limit. Children get this interpreter and this environment, but may write .pyc files, so that an
import is measured as users have it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from .peers import build

__all__ = [
    "LIMIT",
    "NotServing",
    "Serving",
    "command",
    "load",
    "output_of",
    "pinned",
    "run",
    "seconds_of",
    "serving",
    "started",
]

HERE = Path(__file__).parent
LIMIT = 30.0  # seconds over what a command is asked to take
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")}


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-P", str(HERE / script), *map(str, arguments)]


def run(script: str, *arguments: object, limit: float = LIMIT) -> dict[str, float]:
    """Run a script of this folder to its end; what its last line of JSON says."""
    done = subprocess.run(
        command(script, *arguments), stdout=subprocess.PIPE, env=_ENVIRONMENT, timeout=limit, check=True
    )
    return _said(done.stdout)


def load(kind: str, port: int, seconds: float) -> dict[str, float]:
    """Have a client make a load of that kind for so long.

    Datagrams come from the load in C if there is a compiler: a client in Python is hardly faster than the server.
    """
    if kind == "datagrams" and build.possible():
        return _datagrams_from_c(port, seconds)
    return run("client.py", kind, port, seconds, limit=seconds + LIMIT)


def _datagrams_from_c(port: int, seconds: float) -> dict[str, float]:
    build.programs()
    command = [str(build.FOLDER / "udp_load"), "echo", "-p", str(port), "-t", f"{seconds:g}", "-w", "0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + LIMIT, check=True)
    said = _said(done.stdout)
    return {"rate": said["rate"], "exchanges": said["messages"], "failures": said["lost"] + said["errors"]}


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


class NotServing(Exception):
    """A server that does not serve, and why."""


def serving(module: str, class_name: str) -> AbstractContextManager[Serving]:
    """`server.py`'s server of that class, in a process of its own."""
    return started(command("server.py", module, class_name, "serve"))


@contextmanager
def started(command: list[str], core: int | None = None) -> Iterator[Serving]:
    """A server in a process of its own, ready when entered, gone on leaving. It prints its port when it is ready.

    What it says on stderr is shown only if it does not serve: clients that leave are no news here.
    """
    with tempfile.TemporaryFile() as complaints:
        with pinned(core):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=complaints, env=_ENVIRONMENT, cwd=HERE.parent
            )
        try:
            yield Serving(process, _port(process, complaints))
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _port(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> int:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], LIMIT)[0]:
        raise NotServing(f"does not start within {LIMIT:g} s")
    line = process.stdout.readline().decode().strip()
    if line.isdigit():
        return int(line)
    if line.startswith("no: "):
        raise NotServing(line.removeprefix("no: "))
    status = process.wait(LIMIT)
    complaints.seek(0)
    last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise NotServing(f"ended with status {status}: {last}")


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Whatever is started meanwhile runs on that core only."""
    if core is None:
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def output_of(process: subprocess.Popen[bytes], limit: float) -> bytes:
    """What a process prints until it ends; it is killed if it does not end in time."""
    try:
        output, _ = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return output


def _said(output: bytes) -> dict[str, float]:
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said

"""Real programs that tests talk to: found, or installed once from Debian's packages, or the test is skipped.

Whoever runs the tests without them loses only those tests: nothing here fails one because a program is missing.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from random import randrange
from typing import Any

import pytest

PATIENCE = 20.0
_INSTALLING = 60.0
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


class _Installer:
    """apt-get, as long as it works."""

    works = os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get") is not None

    def install(self, *packages: str) -> None:
        """Try; the first failure is the last try. RUNLEVEL keeps Debian from starting what it installs."""
        if not self.works:
            return
        self.works = False
        deadline = time.monotonic() + _INSTALLING
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=50"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        try:
            for step in (["--download-only"], []):  # what may hang is one that may be killed
                done = subprocess.run(
                    [*command, *step, *packages],
                    env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                    timeout=max(1.0, deadline - time.monotonic()),
                )  # fmt: skip
                if done.returncode:
                    return
        except (OSError, subprocess.SubprocessError):
            return
        self.works = True


_INSTALLER = _Installer()


@cache
def _found(name: str, packages: tuple[str, ...], needs: str | None) -> str | None:
    for tries in (0, 1):
        place = shutil.which(name, path=_PLACES)
        if place is not None and (needs is None or Path(needs).exists()):
            return place
        if not tries:
            _INSTALLER.install(*packages)
    return None


def partner(name: str, *packages: str, needs: str | None = None) -> str:
    """Where a program is, and the file that it `needs` besides; without them the test is skipped."""
    place = _found(name, packages, needs)
    if place is None:
        pytest.skip(f"needs {needs or name} (Debian: {' '.join(packages)})")
    return place


class Program:
    """A program that runs, what is typed into it, and all that it has printed so far, errors among it."""

    def __init__(self, *command: Any) -> None:
        self._command = [str(word) for word in command]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.printed = ""

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def until(self, pattern: str) -> str:
        """Read on until it has printed this; returns what matches."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.printed)) is None:
            if not self._read(deadline):
                raise AssertionError(f"{self._command} did not print {pattern!r}: {self.printed}")
        return found.group()

    def rest(self) -> str:
        """All that it has printed when it has ended by itself."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        self._process.wait(max(0.1, deadline - time.monotonic()))
        return self.printed

    def status(self) -> int:
        """With which it has ended by itself."""
        self.rest()
        return self._process.returncode

    def _read(self, deadline: float) -> bool:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"{self._command} says nothing more: {self.printed}")
        data = os.read(stdout.fileno(), 65536).decode("utf-8", "replace")
        self.printed += data
        return bool(data)


def finished(*command: Any, stdin: str = "", status: int | None = 0) -> str:
    """What a program prints, errors among it, that ends by itself; with any status if it is None."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=False
    )
    assert status is None or done.returncode == status, (words, done.returncode, done.stdout)
    return done.stdout


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on just now, and that no client gets by chance (ip_local_port_range)."""
    found: list[int] = []
    while len(found) < number:
        port = randrange(10000, 30000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _listening() -> set[int]:
    """Ports that somebody listens on: read, as a connection to a proxy is one to what is behind it, too."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].partition(":")[2], 16) for line in lines if line.split()[3] == "0A"}


@contextmanager
def daemon(number: int, command: Callable[[list[int]], list[Any]]) -> Iterator[list[int]]:
    """A program that serves on so many ports, which `command` is told: entered when it listens, ended at the end."""
    with ExitStack() as stack:
        for tries in range(5):
            ports = _free_ports(number)
            program = stack.enter_context(Program(*command(ports)))
            deadline = time.monotonic() + PATIENCE
            while program.runs and not _listening() >= set(ports):
                assert time.monotonic() < deadline, f"{command} does not serve"
                time.sleep(0.005)
            if program.runs:
                break
            assert tries < 4, program.rest()  # somebody else was faster to take a port
        yield ports

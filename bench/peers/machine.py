"""The machine: which core is whose, how many files may be open, and what to write beside the figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cores", "cores", "description", "possible_idle", "raise_limits", "versions"]

ROOT = Path(__file__).parents[2]
_PACKAGES = ("portico", "greenlet", "gevent", "trio", "Twisted", "tornado", "uvloop")
_OTHER_FILES = 200  # that a server has open besides its idle connections


@dataclass(frozen=True)
class Cores:
    """Where the server and the load run."""

    server: int
    load: int

    @property
    def shared(self) -> bool:
        return self.server == self.load


def cores() -> Cores:
    """Two cores that this process may use, or twice the only one."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[1] if len(usable) > 1 else usable[0])


def raise_limits() -> int:
    """Allow as many open files as the system lets us, here and in what is started from here; how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def possible_idle(wanted: int, files: int) -> int:
    """How many idle connections can be had with so many open files."""
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, files - _OTHER_FILES))


def description() -> dict[str, str]:
    """What it was measured on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()} on {platform.machine()}",
    }


def versions(compiler: str) -> dict[str, str]:
    """What was measured: Python, the packages that are there, the compiler, and our own commit."""
    found = {"Python": f"{platform.python_implementation()} {platform.python_version()}", "compiler": _said(compiler)}
    found["OpenSSL"] = ssl.OPENSSL_VERSION.removeprefix("OpenSSL ")
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    changed = "+changes" if _said("git", "status", "--porcelain", "--", "src", "bench/peers", "bench/*.c") else ""
    found["commit"] = (_said("git", "rev-parse", "--short", "HEAD") or "unknown") + changed
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _said(*command: str) -> str:
    """The first line that a command says of itself; nothing if it cannot be run."""
    full = [*command, "--version"] if len(command) == 1 else command
    try:
        done = subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""

"""Compiles the loads and the C servers, into a folder that is not kept."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

__all__ = ["FOLDER", "NoCompilerError", "compiler", "possible", "programs"]

SOURCES = Path(__file__).parents[1]
FOLDER = SOURCES / "build"
_NAMES = ("load", "epoll_echo", "udp_load", "udp_echo", "tls_load", "tls_echo")
_SHARED = (SOURCES / "program.h", SOURCES / "tls.h")


class NoCompilerError(Exception):
    """There is no C compiler, so there is nothing to make the load with."""


def compiler() -> str:
    """The command: `$CC`, or cc."""
    command = os.environ.get("CC") or "cc"
    if not shutil.which(shlex.split(command)[0]):
        raise NoCompilerError(f"{command}: no such command; the load is made by a program in C (set CC)")
    return command


def possible() -> bool:
    try:
        return bool(compiler())
    except NoCompilerError:
        return False


def programs() -> None:
    """Compile what is older than its source."""
    command = compiler()
    FOLDER.mkdir(exist_ok=True)
    for name in _NAMES:
        source, program = SOURCES / f"{name}.c", FOLDER / name
        changed = max(path.stat().st_mtime for path in (source, *_SHARED))
        if not program.exists() or program.stat().st_mtime < changed:
            # By a name of its own first: two runs at a time must not see half a program.
            fresh = program.with_name(f"{name}.{os.getpid()}")
            # -ldl: where dlopen() has a library of its own.
            made = [*shlex.split(command), "-O2", "-o", str(fresh), str(source), "-ldl"]
            subprocess.run(made, check=True, timeout=120)
            fresh.replace(program)

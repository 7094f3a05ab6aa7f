"""CPython's own tests, with Portico in `socketserver`'s place, on every Python from 3.11 on that this machine has.

They are taken from the interpreter's installed `test` package and started by `portico run`, so the command is tested
along. What fails is run once more on the standard library: only what passes there counts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "src"
MODULES = {
    "test_socketserver": 120,
    "test_httpservers": 180,
    "test_xmlrpc": 120,
    "test_docxmlrpc": 60,
    "test_wsgiref": 60,
    "test_logging": 240,
    "test_urllib2_localnet": 120,
}
RAN = r"^Ran [1-9]\d* tests? in"
AT_ONCE = 6
# It asks for the names of the file `socketserver.py`, of which Portico has more.
EXPECTED = {"test_all (test.test_socketserver.MiscTestCase.test_all)"}


def _pythons() -> dict[str, str]:
    """One interpreter of each version: this one, those on the PATH, and pyenv's."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in range(11, 20))]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    found: dict[str, str] = {}
    for python in filter(None, candidates):
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
        version = answer.stdout.strip()
        if answer.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 11):
            found.setdefault(version, python)
    return found


PYTHONS = _pythons()


def _run(python: str, arguments: list[str], folder: Path, seconds: int) -> tuple[int, str]:
    """A test run in a folder of its own; a hang ends at `seconds` and shows where."""
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "default"}
    folder.mkdir()
    result = subprocess.run(
        [python, *arguments],
        cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        timeout=seconds, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout


def _failures(output: str) -> set[str]:
    return set(re.findall(r"^(?:FAIL|ERROR): (.+?)(?: \[.*\])?$", output, re.MULTILINE))


def _all(check: Callable[[Any], str | None], modules: Iterable[Any]) -> None:
    """Check several at once, since they mostly wait; fails with what is wrong with any, and skips if none was there."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(modules, pool.map(check, modules), strict=True))
    wrong = {module: what for module, what in found.items() if what}
    assert not wrong, "\n".join(f"== {module}\n{what}" for module, what in wrong.items())
    if all(what is None for what in found.values()):
        pytest.skip("this Python has none of these tests installed")


def _installed(python: str, module: str, folder: Path) -> bool:
    return not _run(python, ["-c", f"import test.{module}"], folder, 60)[0]


@pytest.mark.timeout(900)
def test_cpythons_tests_pass(tmp_path: Path) -> None:
    def check(what: tuple[str, str]) -> str | None:
        """What is wrong, if anything; None where the tests are not installed."""
        version, module = what
        python, place = PYTHONS[version], tmp_path / version
        if not _installed(python, module, place / f"probe-{module}"):
            return None
        suite, seconds = ["-m", "unittest", f"test.{module}"], MODULES[module]
        status, output = _run(python, ["-m", "portico", "run", *suite], place / module, seconds)
        failed = _failures(output) - EXPECTED
        if not re.search(RAN, output, re.MULTILINE) or (status and not _failures(output)):
            return output[-3000:]
        if failed:
            failed -= _failures(_run(python, suite, place / f"stdlib-{module}", seconds)[1])
        return f"{failed}\n{output[-6000:]}" if failed else ""

    for version in PYTHONS:
        (tmp_path / version).mkdir()
    _all(check, [(version, module) for module in MODULES for version in PYTHONS])


def test_more_than_one_python_is_looked_for() -> None:
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in PYTHONS


# With green threads in the place of threads: those that need no more than a few seconds.
GREEN = ["test_socketserver", "test_httpservers", "test_docxmlrpc", "test_wsgiref", "test_urllib2_localnet"]
# These two look at operating system threads: at `threading.excepthook`, and at ThreadingMixIn's own list.
NO_THREADS = {
    "test_threading_not_handled (test.test_socketserver.ErrorHandlerTest.test_threading_not_handled)",
    "test_threads_reaped (test.test_socketserver.MiscTestCase.test_threads_reaped)",
}


@pytest.mark.timeout(300)
def test_cpythons_tests_pass_with_green_threads_for_threads(tmp_path: Path) -> None:
    def check(module: str) -> str | None:
        if not _installed(sys.executable, module, tmp_path / f"probe-{module}"):
            return None
        run = ["-m", "portico", "run", "--concurrency", "green", "-m", "unittest", f"test.{module}"]
        _, output = _run(sys.executable, run, tmp_path / module, MODULES[module])
        failed = _failures(output) - EXPECTED - NO_THREADS
        return f"{failed}\n{output[-6000:]}" if failed or not re.search(RAN, output, re.MULTILINE) else ""

    _all(check, GREEN)

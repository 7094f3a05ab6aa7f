"""What every test gets: a check that it leaves nothing behind, and the module under test.

No test may have an alert in any log that it has not asked for (`alerts`). After each no thread, child process,
descriptor, task, green thread or unclosed resource may be left that was not there before.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from greenlet import greenlet

from .alerts import alerts, no_alerts  # noqa: F401  # fixtures
from .waiting import until

if TYPE_CHECKING:
    from .certificates import Authority


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--against",
        default="portico",
        metavar="MODULE",
        help="the module that the tests of faults run on; 'socketserver' shows which of them the stdlib fails",
    )
    parser.addoption("--all-must-fail", action="store_true", help="succeed only if every test that runs fails")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alerts(*beginnings): error records that this test provokes (alerts.no_alerts)")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--all-must-fail"):
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        failed, passed = len(reporter.stats.get("failed", ())), len(reporter.stats.get("passed", ()))
        session.exitstatus = int(not failed or bool(passed))


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_pipe() -> None:
    """libuv opens a pipe for signals with its first loop and keeps it: once a process, and no test's doing."""
    if importlib.util.find_spec("uvloop"):
        loop = importlib.import_module("uvloop").new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs all certificates of the tests."""
    from .certificates import Authority  # not before it is wanted: it takes 0.1 s

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def ss(request: pytest.FixtureRequest) -> ModuleType:
    """The module under test, by the name programs know it: portico, or with --against the standard library's."""
    return importlib.import_module(request.config.getoption("--against"))


def _descriptors() -> dict[str, str]:
    """Open descriptors and what they are; the one that lists them is gone by the time it is looked up."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return found


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


def _unfinished() -> list[Any]:
    """Tasks and green threads made since the last `gc.freeze` that are not over, though their test is.

    Without a parent is what a thread itself is to greenlet, which may outlive it. Only its repr says of a green thread
    whose thread has ended that it is dead.
    """
    found = gc.get_objects()
    tasks: list[Any] = [one for one in found if isinstance(one, asyncio.Task) and not one.done()]
    green = [one for one in found if isinstance(one, greenlet) and one.parent is not None]
    return tasks + [one for one in green if " suspended active " in repr(one)]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, no_alerts: None) -> Iterator[None]:  # noqa: F811
    """Fail a test that leaves something of this. ResourceWarnings are errors anyway (pyproject)."""
    if not Path("/proc/self/fd").exists() or request.config.getoption("--against") != "portico":
        yield
        return
    threads, children, descriptors = set(threading.enumerate()), _children(), _descriptors()
    gc.freeze()  # the collection below has only to look at what this test has made: of 6,000 tests, a third of the time
    yield
    gc.collect()
    assert until(lambda: set(threading.enumerate()) <= threads), f"threads left: {set(threading.enumerate()) - threads}"
    assert until(lambda: _children() <= children), f"children left: {_children() - children}"
    left = {number: what for number, what in _descriptors().items() if descriptors.get(number) != what}
    assert not left, f"descriptors left: {left}"
    # A thread is off the list a moment before greenlet calls its green threads dead.
    assert until(lambda: not _unfinished()), f"tasks or green threads left: {_unfinished()}"


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)

"""No alert in any log: what no test has asked for and is logged all the same, by whomever and in whichever process.

Every test fails over a record of level ERROR or above, of any logger, and over what asyncio
warns of in its debug mode. One that provokes such records says so: `@pytest.mark.alerts("request from ")` lets those
pass whose message begins so; `@pytest.mark.alerts` lets all pass, for tests of such records themselves.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import tempfile
from collections.abc import Iterator

import pytest

SLOW = 5.0
"""Seconds of a callback that asyncio may warn of: from 0.1 s on it does, which a busy machine takes for anything."""
_TOOK = re.compile(r"took (\d+\.\d+) seconds")


def is_alert(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.ERROR:
        return True
    message = record.getMessage()
    took = _TOOK.search(message) if record.name == "asyncio" else None
    return "never awaited" in message or bool(took and float(took[1]) >= SLOW)


class Alerts(logging.Handler):
    """Appends each alert in one write to a file without a name, that forked children write to, too."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._file = tempfile.TemporaryFile("wb+", buffering=0)  # noqa: SIM115  # closed by the fixture
        self._taken = 0

    def emit(self, record: logging.LogRecord) -> None:
        if is_alert(record):
            words = f"{record.getMessage()} ({record.levelname} of {record.name})"
            self._file.write(words.replace("\n", " ").encode() + b"\n")

    def taken(self) -> list[str]:
        """Those so far, which are then forgotten."""
        new = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, self._taken)
        self._taken += len(new)
        return new.decode().splitlines()


@pytest.fixture(scope="session")
def alerts() -> Iterator[Alerts]:
    handler = Alerts()
    yield handler
    handler._file.close()


@pytest.fixture
def no_alerts(request: pytest.FixtureRequest, alerts: Alerts) -> Iterator[None]:
    marker = request.node.get_closest_marker("alerts")
    root = logging.getLogger()
    alerts.taken()
    root.addHandler(alerts)
    try:
        yield
        gc.collect()  # tasks whose errors nobody has asked for complain when they go
    finally:
        root.removeHandler(alerts)
    if request.config.getoption("--against") != "portico":
        return
    wrong = [line for line in alerts.taken() if marker is None or not line.startswith(marker.args or ("",))]
    assert not wrong, f"logged, and not asked for: {wrong}"

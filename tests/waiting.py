"""Waiting for something to become true, for tests that cannot be told when it does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    """Whether `condition` became true within `timeout` seconds. Returns at once when it is; never a fixed sleep."""
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True

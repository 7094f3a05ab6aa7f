"""A program that runs one server, as `server.run()` is meant to be used; for tests/test_run.py.

Says where it listens, and, when `run()` has returned, what it has returned and whether the signal handlers are those of
before.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

from .draining import WAYS

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Early:
    """Is told to end by the time it has begun to serve, and before it does."""

    told = False

    def fileno(self) -> int:
        number: int = super().fileno()  # type: ignore[misc]
        if not self.told and signal.getsignal(signal.SIGTERM) is not mine:
            self.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return number


def mine(number: int, frame: Any) -> None:
    raise AssertionError("a signal has come to the program's own handler")


def main() -> int:
    name, handler, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    way = next(way for way in WAYS if way.name == name)
    early = values.pop("early", False)
    if "access_log" in values:
        access = logging.getLogger("portico.access")
        access.addHandler(logging.StreamHandler(sys.stdout))
        access.setLevel(logging.INFO)
    server = way.made(handler, **values)
    if early:
        server.__class__ = type("EarlyServer", (Early, type(server)), {})
    for number in NUMBERS:
        signal.signal(number, mine)
    print(server.server_address[1], flush=True)
    status: int = server.run()
    print(status, [signal.getsignal(number) is mine for number in NUMBERS], server.fileno(), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

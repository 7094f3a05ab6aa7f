"""A process of clients: `python -m reliability.client MODULE FUNCTION ARGUMENTS`, the latter being JSON.

Calls that function and prints what it returns, as JSON. A function that has to be told to end says `ready()` first and
watches standard input, which is then closed. Here are those that several experiments use.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from .conversations import Honest
from .crowd import Crowd, raise_limit

__all__ = ["honest", "ready"]


def ready() -> None:
    print("ready", flush=True)


def honest(address: Any, number: int, pause: float) -> dict[str, Any]:
    """So many clients that are connected before anything happens, until they are told to end."""
    crowd, clients = Crowd(), Honest(address, number, pause)
    crowd.stop_when_readable(sys.stdin.fileno())
    crowd.run(clients.conversations(ready), number, seconds=300)
    return clients.report()


def main() -> None:
    module, function, arguments = sys.argv[1:]
    raise_limit()
    found = getattr(importlib.import_module(f"reliability.{module}"), function)
    print(json.dumps(found(**json.loads(arguments))), flush=True)


if __name__ == "__main__":
    main()

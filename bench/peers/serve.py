"""The serving process, a program of its own: `python -m bench.peers.serve PEER echo | lines | stream | http`.

Prints its port when it serves, or `no: ` and why it does not; on SIGTERM its processor seconds and memory (KiB) as one
line of JSON. Loads only the module that the peer needs.
"""

from __future__ import annotations

import importlib
import sys

__all__ = ["ENTRIES", "main"]

# peer: module, function, and what it is given besides the service
ENTRIES: dict[str, tuple[str, ...]] = {
    "socketserver": ("standard", "threads"),
    "portico-threads": ("standard", "portico_threads"),
    "portico-green": ("standard", "green", "asyncio"),
    "portico-green-uvloop": ("standard", "green", "uvloop"),
    "portico-async": ("coroutines", "serve", "asyncio"),
    "portico-async-uvloop": ("coroutines", "serve", "uvloop"),
    "asyncio-streams": ("loops", "streams", "asyncio"),
    "asyncio-protocol": ("loops", "protocol", "asyncio"),
    "uvloop-streams": ("loops", "streams", "uvloop"),
    "uvloop-protocol": ("loops", "protocol", "uvloop"),
    "gevent": ("frameworks", "gevent"),
    "trio": ("frameworks", "trio"),
    "twisted": ("frameworks", "twisted"),
    "tornado": ("frameworks", "tornado"),
}


def main(peer: str, service: str) -> None:
    module, function, *further = ENTRIES[peer]
    getattr(importlib.import_module(f".{module}", __package__), function)(service, *further)


if __name__ == "__main__":
    main(*sys.argv[1:])

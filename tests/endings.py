"""Programs for tests/test_endings.py: they say where they listen, and what `run()` has returned.

`thread`s are taken away for real, by asking for more stack than there is memory.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import portico

NO_ROOM = 1 << 46


class Echo(portico.StreamRequestHandler):
    def handle(self) -> None:
        if sys.argv[3] == "later":
            threading.stack_size(NO_ROOM)
        for line in self.rfile:
            self.wfile.write(line.upper())


class EchoBye(Echo):
    def goodbye(self) -> None:
        self.wfile.write(b"bye\n")


def main() -> int:
    kind, handler, no_threads = sys.argv[1:4]
    server_class: Any = getattr(portico, kind)
    server = server_class(("127.0.0.1", 0), globals()[handler], drain_timeout=20)
    if no_threads == "from-the-beginning":
        threading.stack_size(NO_ROOM)
    print(server.server_address[1], flush=True)
    status: int = server.run()
    print(status, flush=True)
    print(server.stats().ended, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

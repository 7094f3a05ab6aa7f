"""The serving process of `counting`, a script of its own: `counted.py CLASS HOW`.

CLASS is a stream server of Portico, which echoes. HOW is `limited` (with every limit and an access log), `open` (as it
is), or `uncounted` (sockets of which the kernel keeps no count are made as if it did, so that nobody counts).
Prints its port, or a number that its abstract Unix name ends with, and on SIGTERM the processor seconds that it has
taken since SIGUSR1.
"""

import os
import resource
import signal
import sys
from typing import Any, NoReturn

import portico
from portico import _meters, _sockets, green

LIMITS: dict[str, Any] = {
    "max_connections": 1000, "max_connections_per_client": 1000, "connection_rate_per_client": 1000.0,
    "deny": "192.0.2.0/24", "idle_timeout": 60.0, "connection_timeout": 600.0, "min_read_rate": 1.0,
    "send_timeout": 30.0, "access_log": "json",
}  # fmt: skip


class Echo(portico.BaseRequestHandler):
    """Sends back what comes."""

    def handle(self) -> None:
        request = self.request
        while data := request.recv(1024):
            request.sendall(data)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def count_nothing() -> None:
    """Have every family's sockets made as those are that the kernel counts for."""
    for module in (_meters, _sockets, green):
        if hasattr(module, "kernel_counts_family"):
            setattr(module, "kernel_counts_family", lambda family: True)  # noqa: B010


def serve(server: Any) -> None:
    before = 0.0

    def begin(number: int, frame: Any) -> None:
        nonlocal before
        before = processor_seconds()

    def end(number: int, frame: Any) -> NoReturn:
        print(f'{{"cpu": {processor_seconds() - before}}}', flush=True)
        os._exit(0)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGTERM, end)
    address = server.server_address
    print(address[1] if isinstance(address, tuple) else os.getpid(), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    class_name, how = sys.argv[1:]
    if how == "uncounted":
        count_nothing()
    name: Any = f"\0portico bench {os.getpid()}" if "Unix" in class_name else ("127.0.0.1", 0)
    with getattr(portico, class_name)(name, Echo, **(LIMITS if how == "limited" else {})) as the_server:
        serve(the_server)

"""The serving process, a program of its own: `python -m bench.peers.serve PEER SERVICE`.

SERVICE is echo, lines, stream or http; tls and handshakes are echo over TLS, proxy is echo behind a proxy; to servers
of datagrams it is datagrams, which are sent back, or ingest, whose handlers only count. Prints its port when it serves,
or `no: ` and why it does not; on SIGTERM its processor seconds, its memory (KiB) and how much it counted, as one line
of JSON. Loads only the module that the peer needs.
"""

from __future__ import annotations

import importlib
import sys

__all__ = ["ENTRIES", "main"]

# peer: module, function, and what it is given besides the service
ENTRIES: dict[str, tuple[str, ...]] = {
    "socketserver": ("standard", "threads"),
    "portico-threads": ("standard", "portico_threads"),
    "portico-plain": ("standard", "one_at_a_time"),
    "portico-green": ("standard", "green", "asyncio"),
    "portico-green-uvloop": ("standard", "green", "uvloop"),
    "portico-async": ("coroutines", "serve", "asyncio"),
    "portico-async-uvloop": ("coroutines", "serve", "uvloop"),
    "portico-async-streams": ("coroutines", "serve_streams", "asyncio"),
    "portico-async-streams-uvloop": ("coroutines", "serve_streams", "uvloop"),
    "asyncio-streams": ("loops", "streams", "asyncio"),
    "asyncio-protocol": ("loops", "protocol", "asyncio"),
    "uvloop-streams": ("loops", "streams", "uvloop"),
    "uvloop-protocol": ("loops", "protocol", "uvloop"),
    "gevent": ("frameworks", "gevent"),
    "trio": ("frameworks", "trio"),
    "twisted": ("frameworks", "twisted"),
    "tornado": ("frameworks", "tornado"),
    "portico-udp": ("datagrams", "blocking", "portico", "UDPServer"),
    "portico-udp-threads": ("datagrams", "blocking", "portico", "ThreadingUDPServer"),
    "portico-udp-green": ("datagrams", "blocking", "portico", "GreenUDPServer", "asyncio"),
    "portico-udp-green-uvloop": ("datagrams", "blocking", "portico", "GreenUDPServer", "uvloop"),
    "portico-udp-async": ("datagrams", "awaited", "asyncio"),
    "portico-udp-async-uvloop": ("datagrams", "awaited", "uvloop"),
    "socketserver-udp": ("datagrams", "blocking", "socketserver", "UDPServer"),
    "socketserver-udp-threads": ("datagrams", "blocking", "socketserver", "ThreadingUDPServer"),
    "asyncio-udp": ("loops", "endpoint", "asyncio"),
    "uvloop-udp": ("loops", "endpoint", "uvloop"),
    "gevent-udp": ("datagrams", "gevent"),
}


def main(peer: str, service: str) -> None:
    module, function, *further = ENTRIES[peer]
    getattr(importlib.import_module(f".{module}", __package__), function)(service, *further)


if __name__ == "__main__":
    main(*sys.argv[1:])

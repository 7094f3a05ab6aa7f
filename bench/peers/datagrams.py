"""Servers of datagrams: `socketserver`'s and Portico's classes, and gevent's. asyncio's are in `loops`.

Two services: "datagrams" are sent back, "ingest" is counted and not answered.
"""

from __future__ import annotations

import importlib

from .process import HANDLED, HOST, enlarge, need, part, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["awaited", "blocking", "gevent"]


def blocking(service: str, module: str, class_name: str, event_loop: str = "") -> None:
    """A server of that class and a handler that blocks: `socketserver`'s, or Portico's."""
    library: Any = importlib.import_module(module)
    base: Any = library.BaseRequestHandler

    class Echo(base):  # type: ignore[misc]
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    class Count(base):  # type: ignore[misc]
        def handle(self) -> None:
            next(HANDLED)

    _serve(part(library, class_name), {"datagrams": Echo, "ingest": Count}[service], event_loop)


def awaited(service: str, event_loop: str) -> None:
    """`portico.AsyncUDPServer` on that loop."""
    import portico

    base: Any = part(portico, "AsyncBaseRequestHandler")

    class Echo(base):  # type: ignore[misc]
        async def handle(self) -> None:
            data, sock = self.request
            await sock.sendto(data, self.client_address)

    class Count(base):  # type: ignore[misc]
        async def handle(self) -> None:
            next(HANDLED)

    _serve(part(portico, "AsyncUDPServer"), {"datagrams": Echo, "ingest": Count}[service], event_loop)


def _serve(base: Any, handler_class: Any, event_loop: str) -> None:
    settings: dict[str, object] = {"daemon_threads": True}  # else the standard library's looks at a list each time
    if event_loop:
        need(event_loop)
        settings["event_loop"] = event_loop
    with type("Server", (base,), settings)((HOST, 0), handler_class) as server:
        enlarge(server.socket)
        ready(server.server_address[1])
        server.serve_forever()


def gevent(service: str) -> None:
    """`gevent.server.DatagramServer`, a greenlet per datagram."""
    base: Any = need("gevent.server").DatagramServer

    class Echo(base):  # type: ignore[misc]
        def handle(self, data: bytes, address: Any) -> None:
            self.socket.sendto(data, address)

    class Count(base):  # type: ignore[misc]
        def handle(self, data: bytes, address: Any) -> None:
            next(HANDLED)

    server: Any = (Echo if service == "datagrams" else Count)((HOST, 0))
    server.start()
    enlarge(server.socket)
    ready(server.server_port)
    server.serve_forever()

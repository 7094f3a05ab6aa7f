"""Portico's async servers: `async def handle`, a task per connection."""

from __future__ import annotations

from .process import BACKLOG, CHUNK, HOST, RECEIVE, STREAM, need, opened_by, part, plain, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["serve", "serve_streams"]


def handler(portico: Any, service: str) -> Any:
    """The handler class for a service."""
    base: Any = part(portico, "AsyncBaseRequestHandler")
    stream_base: Any = part(portico, "AsyncStreamRequestHandler")

    class Echo(base):  # type: ignore[misc]
        async def handle(self) -> None:
            while data := await self.request.recv(RECEIVE):
                await self.request.sendall(data)

    class Lines(stream_base):  # type: ignore[misc]
        async def handle(self) -> None:
            while line := await self.rfile.readline():
                self.wfile.write(line)
                await self.wfile.drain()

    class Stream(base):  # type: ignore[misc]
        async def handle(self) -> None:
            while data := await self.request.recv(RECEIVE):
                if data.startswith(STREAM):
                    return await self.stream()
                await self.request.sendall(data)
            return None

        async def stream(self) -> None:
            try:
                while True:
                    await self.request.sendall(CHUNK)
            except OSError:
                return  # the neighbour has had enough

    return {"echo": Echo, "lines": Lines, "stream": Stream}[plain(service)]


def streams_handler(portico: Any) -> Any:
    """Echo through asyncio's streams."""
    base: Any = part(portico, "AsyncStreamRequestHandler")

    class Echo(base):  # type: ignore[misc]
        async def handle(self) -> None:
            while data := await self.rfile.read(RECEIVE):
                self.wfile.write(data)
                await self.wfile.drain()

    return Echo


def serve(service: str, event_loop: str) -> None:
    """`portico.AsyncTCPServer` on that loop."""
    import portico

    _serve(service, event_loop, handler(portico, service))


def serve_streams(service: str, event_loop: str) -> None:
    """The same with the handler that has streams. Lines are by these in any case."""
    import portico

    _serve(service, event_loop, streams_handler(portico))


def _serve(service: str, event_loop: str, handler_class: Any) -> None:
    import portico

    need(event_loop)
    settings = {"request_queue_size": BACKLOG, **opened_by(portico, service)}
    server_class = type("Server", (part(portico, "AsyncTCPServer"),), settings)
    with server_class((HOST, 0), handler_class, event_loop=event_loop) as server:
        ready(server.server_address[1])
        server.serve_forever()

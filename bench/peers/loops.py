"""asyncio by itself, on its own loop and on uvloop: streams, and Protocols."""

from __future__ import annotations

import asyncio

from .process import BACKLOG, CHUNK, HANDLED, HOST, RECEIVE, STREAM, context, enlarge, need, plain, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

__all__ = ["endpoint", "protocol", "streams"]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(RECEIVE):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(RECEIVE):
        if data.startswith(STREAM):
            try:
                while True:
                    writer.write(CHUNK)
                    await writer.drain()
            except OSError:
                break  # the neighbour has had enough
        writer.write(data)
        await writer.drain()
    writer.close()


class Echo(asyncio.Protocol):
    """Writes what comes."""

    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Lines(Echo):
    """Writes whole lines only."""

    rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")


class Stream(Echo):
    """Streams a chunk a turn of the loop to who asks for it, while the transport takes it."""

    paused = False

    def data_received(self, data: bytes) -> None:
        if data.startswith(STREAM):
            self.stream()
        else:
            self.transport.write(data)

    def stream(self) -> None:
        if not self.paused and not self.transport.is_closing():
            self.transport.write(CHUNK)
            asyncio.get_running_loop().call_soon(self.stream)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.stream()


class EchoDatagrams(asyncio.DatagramProtocol):
    """Sends back what comes."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


class CountDatagrams(EchoDatagrams):
    """Counts what comes."""

    def datagram_received(self, data: bytes, address: Any) -> None:
        next(HANDLED)


def streams(service: str, event_loop: str) -> None:
    """`asyncio.start_server`."""
    callback: Callable[..., Awaitable[None]] = {"echo": _echo, "lines": _lines, "stream": _stream}[plain(service)]
    encrypted = context(service)
    _run(event_loop, lambda: asyncio.start_server(callback, HOST, 0, backlog=BACKLOG, ssl=encrypted))


def protocol(service: str, event_loop: str) -> None:
    """`loop.create_server`."""
    factory: type[Echo] = {"echo": Echo, "lines": Lines, "stream": Stream}[plain(service)]
    encrypted = context(service)

    def start() -> Awaitable[asyncio.Server]:
        return asyncio.get_running_loop().create_server(factory, HOST, 0, backlog=BACKLOG, ssl=encrypted)

    _run(event_loop, start)


def endpoint(service: str, event_loop: str) -> None:
    """`loop.create_datagram_endpoint`."""
    factory = {"datagrams": EchoDatagrams, "ingest": CountDatagrams}[service]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(factory, local_addr=(HOST, 0))
        sock = transport.get_extra_info("socket")
        enlarge(sock)
        ready(sock.getsockname()[1])
        await asyncio.Event().wait()

    _on_loop(event_loop, main)


def _run(event_loop: str, start: Callable[[], Awaitable[asyncio.Server]]) -> None:
    async def main() -> None:
        server = await start()
        ready(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    _on_loop(event_loop, main)


def _on_loop(event_loop: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    new_loop = asyncio.new_event_loop if event_loop == "asyncio" else need(event_loop).new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())

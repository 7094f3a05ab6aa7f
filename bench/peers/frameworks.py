"""Everybody else: gevent, trio, Twisted, Tornado, each as its own documentation writes a server."""

from __future__ import annotations

from .process import BACKLOG, CHUNK, HOST, RECEIVE, STREAM, context, need, plain, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["gevent", "tornado", "trio", "twisted"]


def gevent(service: str) -> None:
    """`gevent.server.StreamServer`, not monkey patched: nothing here needs it."""
    server_class = need("gevent.server").StreamServer

    def echo(sock: Any, address: Any) -> None:
        while data := sock.recv(RECEIVE):
            sock.sendall(data)

    def lines(sock: Any, address: Any) -> None:
        with sock.makefile("rb") as reader:
            while line := reader.readline():
                sock.sendall(line)

    def stream(sock: Any, address: Any) -> None:
        while data := sock.recv(RECEIVE):
            try:
                while data.startswith(STREAM):
                    sock.sendall(CHUNK)
            except OSError:
                return  # the neighbour has had enough
            sock.sendall(data)

    handle = {"echo": echo, "lines": lines, "stream": stream}[plain(service)]
    encrypted = context(service, need("gevent.ssl"))
    server = server_class((HOST, 0), handle, backlog=BACKLOG, **({"ssl_context": encrypted} if encrypted else {}))
    server.start()
    ready(server.server_port)
    server.serve_forever()


def trio(service: str) -> None:
    """`trio.serve_tcp`. trio has no readline(); a buffer is what its documentation advises."""
    library = need("trio")

    async def echo(connection: Any) -> None:
        while data := await connection.receive_some(RECEIVE):
            await connection.send_all(data)

    async def lines(connection: Any) -> None:
        rest = b""
        while data := await connection.receive_some(RECEIVE):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                await connection.send_all(line + b"\n")

    async def stream(connection: Any) -> None:
        while data := await connection.receive_some(RECEIVE):
            try:
                while data.startswith(STREAM):
                    await connection.send_all(CHUNK)
            except library.BrokenResourceError:
                return  # the neighbour has had enough
            await connection.send_all(data)

    async def main() -> None:
        handle = {"echo": echo, "lines": lines, "stream": stream}[service]
        listeners = await library.open_tcp_listeners(0, host=HOST, backlog=BACKLOG)
        ready(listeners[0].socket.getsockname()[1])
        await library.serve_listeners(handle, listeners)

    library.run(main)


def twisted(service: str) -> None:
    """A Protocol on the default reactor; lines by `LineOnlyReceiver`, the stream by a push producer."""
    reactor = need("twisted.internet.reactor")
    protocol: Any = need("twisted.internet.protocol")
    protocol_class: Any = protocol.Protocol
    line_class: Any = need("twisted.protocols.basic").LineOnlyReceiver

    class Echo(protocol_class):  # type: ignore[misc]
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    class Lines(line_class):  # type: ignore[misc]
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)

    class Stream(Echo):
        def dataReceived(self, data: bytes) -> None:
            if data.startswith(STREAM):
                self.transport.registerProducer(self, False)
            else:
                self.transport.write(data)

        def resumeProducing(self) -> None:
            self.transport.write(CHUNK)

        def stopProducing(self) -> None:
            """The neighbour has had enough."""

    factory = protocol.Factory.forProtocol({"echo": Echo, "lines": Lines, "stream": Stream}[service])
    port = reactor.listenTCP(0, factory, backlog=BACKLOG, interface=HOST)
    reactor.callWhenRunning(lambda: ready(port.getHost().port))
    reactor.run(installSignalHandlers=False)


def tornado(service: str) -> None:
    """`tornado.tcpserver.TCPServer`, a coroutine per connection."""
    server_class: Any = need("tornado.tcpserver").TCPServer
    iostream, netutil, ioloop = (need(f"tornado.{name}") for name in ("iostream", "netutil", "ioloop"))

    class Echo(server_class):  # type: ignore[misc]
        async def handle_stream(self, stream: Any, address: Any) -> None:
            try:
                while True:
                    await self.answer(stream)
            except iostream.StreamClosedError:
                return

        async def answer(self, stream: Any) -> None:
            await stream.write(await stream.read_bytes(RECEIVE, partial=True))

    class Lines(Echo):
        async def answer(self, stream: Any) -> None:
            await stream.write(await stream.read_until(b"\n"))

    class Stream(Echo):
        async def answer(self, stream: Any) -> None:
            data = await stream.read_bytes(RECEIVE, partial=True)
            while data.startswith(STREAM):
                await stream.write(CHUNK)
            await stream.write(data)

    async def main() -> None:
        sockets = netutil.bind_sockets(0, HOST, backlog=BACKLOG)
        server = {"echo": Echo, "lines": Lines, "stream": Stream}[service]()
        server.add_sockets(sockets)
        ready(sockets[0].getsockname()[1])
        await need("asyncio").Event().wait()

    ioloop.IOLoop.current().run_sync(main)

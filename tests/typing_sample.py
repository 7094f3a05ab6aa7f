"""What a user's typed program looks like. Not run but read: by `mypy --strict` and pyright (test_typing.py)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from io import BufferedIOBase
from typing import assert_type

import portico


class Counter(portico.ThreadingTCPServer):
    """A server with something of its own, which its handlers see with its type."""

    seen: int = 0
    allow_reuse_address = True
    request_queue_size = 50


class Count(portico.StreamRequestHandler[Counter]):
    timeout = 5.0

    def handle(self) -> None:
        assert_type(self.server, Counter)
        assert_type(self.request, socket.socket)
        assert_type(self.rfile, BufferedIOBase)
        assert_type(self.wfile, BufferedIOBase)
        assert_type(self.rfile.readline(), bytes)
        self.server.seen += 1
        for line in self.rfile:
            assert_type(self.wfile.write(line), int)
        self.wfile.write(str(self.server.seen).encode())
        self.wfile.flush()


class Plain(portico.BaseRequestHandler):
    """Without parameters: as loosely typed as the standard library's."""

    def handle(self) -> None:
        self.data = self.request.recv(1024).strip()
        self.request.sendall(self.data.upper())
        self.server.whatever_it_has()


class Echo(portico.DatagramRequestHandler[portico.UDPServer]):
    def handle(self) -> None:
        assert_type(self.request, tuple[bytes, socket.socket])
        assert_type(self.server, portico.UDPServer)
        self.wfile.write(self.packet)


class Async(portico.AsyncTCPServer):
    greeting = b"hello\n"


class Greet(portico.AsyncStreamRequestHandler[Async]):
    async def handle(self) -> None:
        assert_type(self.server, Async)
        assert_type(self.rfile, asyncio.StreamReader)
        assert_type(self.wfile, asyncio.StreamWriter)
        assert_type(await self.rfile.readline(), bytes)
        self.wfile.write(self.server.greeting)
        await self.wfile.drain()


class Loose(portico.AsyncStreamRequestHandler):
    """Without parameters."""

    async def handle(self) -> None:
        self.wfile.write(await self.rfile.read(100))
        self.server.whatever_it_has()


class Passed(portico.AsyncBaseRequestHandler[portico.AsyncTCPServer, portico.AsyncSocket]):
    async def handle(self) -> None:
        assert_type(self.request, portico.AsyncSocket)
        await self.request.sendall(await self.request.recv(100))


class Green(portico.GreenMixIn, portico.TCPServer):
    """A mix-in over a server, as with threads."""

    daemon_threads = True
    address_family = socket.AF_INET6


class Threaded(portico.ThreadingMixIn, portico.UDPServer):
    def process_request(self, request: tuple[bytes, socket.socket], client_address: object) -> None:
        super().process_request(request, client_address)


class Encrypted(portico.ThreadingTCPServer):
    tls = portico.TLS("cert.pem", "key.pem", sni={"b.example": ("b.pem", None)}, alpn=["h2"], client_ca="ca.pem")
    starttls = True
    max_handshakes = 100
    proxy_protocol = "required"
    proxy_trusted = "10.0.0.0/8", "unix"
    allow_uids = "www-data"


class Starts(portico.StreamRequestHandler[Encrypted]):
    def handle(self) -> None:
        assert_type(self.client, portico.Client)
        assert_type(self.client.names, tuple[str, ...])
        assert_type(self.client.proxy, portico.ProxyHeader | None)
        assert_type(self.client.credentials, portico.Credentials | None)
        self.start_tls()
        if self.tls is not None and self.tls.peer is not None:
            assert_type(self.tls, portico.TLSInfo)
            assert_type(self.tls.peer, portico.PeerCertificate)
            assert_type(self.tls.truncated, bool | None)
            self.wfile.write(f"{self.tls.version} {self.tls.alpn} {self.tls.peer.fingerprint}".encode())


class StartsAsync(portico.AsyncStreamRequestHandler[Async]):
    async def handle(self) -> None:
        await self.start_tls()
        assert_type(self.tls, portico.TLSInfo | None)
        assert_type(self.client, portico.Client)


class Picky(portico.UDPServer):
    def verify_request(self, request: tuple[bytes, socket.socket], client_address: object) -> bool:
        return request[0].startswith(b"!")


def any_callable(request: socket.socket, client_address: object, server: portico.TCPServer) -> None:
    request.sendall(b"hello")


def main() -> None:
    with Counter(("127.0.0.1", 0), Count, request_queue_size=10) as server, server.background() as same:
        assert_type(same, Counter)
        server.shutdown()
    with Async(("127.0.0.1", 0), Greet) as tasks, Green(("::1", 0), Plain).background() as green:
        assert_type(green, Green)
        asyncio.run(tasks.serve_async())
        portico.serve_together([tasks, green, Threaded(("", 0), Echo)])
    with Encrypted(("127.0.0.1", 0), Starts, tls_watch=None) as encrypted:
        assert_type(encrypted.reload_tls(portico.TLS("cert.pem")), bool)
        assert_type(encrypted.stats().tls_expires_in, float | None)
        Async(("127.0.0.1", 0), StartsAsync, tls=ssl.create_default_context())
    assert_type(portico.GreenTCPServer(("", 0), Plain).get_request()[0], socket.socket)
    for handler in (Loose, Passed):
        portico.AsyncTCPServer(("", 0), handler, event_loop="asyncio").handle_request()
    assert_type(portico.TCPServer(("", 0), any_callable).get_request()[0], socket.socket)
    assert_type(Picky(("", 0), Echo).get_request()[0], tuple[bytes, socket.socket])
    for made in (portico.UDPServer(("", 0), Echo), portico.TCPServer(("", 0), Plain)):
        made.handle_request()

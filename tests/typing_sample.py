"""What a user's typed program looks like. Not run but read: by `mypy --strict` and pyright (test_typing.py)."""

from __future__ import annotations

import socket
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
        self.server.seen += 1
        self.wfile.write(str(self.server.seen).encode())


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


class Picky(portico.UDPServer):
    def verify_request(self, request: tuple[bytes, socket.socket], client_address: object) -> bool:
        return request[0].startswith(b"!")


def any_callable(request: socket.socket, client_address: object, server: portico.TCPServer) -> None:
    request.sendall(b"hello")


def main() -> None:
    with Counter(("127.0.0.1", 0), Count, request_queue_size=10) as server, server.background() as same:
        assert_type(same, Counter)
        server.shutdown()
    assert_type(portico.TCPServer(("", 0), any_callable).get_request()[0], socket.socket)
    assert_type(Picky(("", 0), Echo).get_request()[0], tuple[bytes, socket.socket])
    for made in (portico.UDPServer(("", 0), Echo), portico.TCPServer(("", 0), Plain)):
        made.handle_request()

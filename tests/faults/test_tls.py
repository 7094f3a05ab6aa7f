"""Row 1: a listener that is wrapped in TLS, so that its accept() makes the handshake, and everybody waits for it."""

from __future__ import annotations

import ssl
from types import ModuleType

import pytest

from ..certificates import Authority
from ..handshakes import leave
from .serving import connected, made, rest, serving, took, upper

WAYS = ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"]


def _ask(address: object, authority: Authority, seconds: float = 2) -> bytes:
    with connected(address, seconds) as plain:
        client = authority.trust().wrap_socket(plain, server_hostname="localhost")
        client.sendall(b"hello")
        answer = client.recv(5)
        leave(client)  # a forked child has a copy of it
        return answer


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_says_nothing_holds_up_neither_others_nor_a_shutdown(
    ss: ModuleType, way: str, authority: Authority
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.pair("localhost"))
    server = made(getattr(ss, way), upper)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server), connected(server.server_address) as silent:
        assert _ask(server.server_address, authority) == b"HELLO"
        assert took(server.shutdown, 2) < 1
        took(server.server_close, 2)
        assert rest(silent) == b""

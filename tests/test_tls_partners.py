"""Servers with TLS, and behind proxies, as the world's own programs see them: openssl, curl, HAProxy, nginx.

The programs are no part of Portico's development: what cannot be had is not tried (`partners`).
"""

from __future__ import annotations

import socket

import portico

from .balancing import Client
from .certificates import Authority
from .every_way import TCP, Case, Peer, in_every_way, serving


async def delay(peer: Peer) -> None:
    """Tells whether small packets are sent at once."""
    await peer.recv(100)
    at_once = peer.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await peer.sendall(b"%d\n" % bool(at_once))


def test_no_answer_waits_for_the_peer_to_acknowledge_its_tickets(authority: Authority) -> None:
    """That takes 40 ms: to the kernel both are small packets, of which there may be one under way (RFC 896)."""
    pair, trust = authority.pair("localhost"), authority.trust()

    @in_every_way(TCP)
    def test(case: Case) -> None:
        with serving(case, delay, tls=portico.TLS(*pair)) as served, Client(served.connect(), trust) as client:
            client.begin().say(b"?")
            assert client.hear() == b"1"

    test()

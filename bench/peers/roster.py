"""Who takes part, in the order in which tables show them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PEERS", "Peer", "named"]

STREAMS = ("echo", "lines", "stream")
HTTP = (*STREAMS, "http")
TLS = ("tls", "handshakes")
DATAGRAMS = ("datagrams", "ingest")


@dataclass(frozen=True)
class Peer:
    """A server to be measured."""

    name: str
    title: str
    services: tuple[str, ...] = STREAMS
    """What it serves; "http" is `http.server`'s handler, "tls" and "handshakes" are echo over TLS: a connection that
    stays, or one after the other. "proxy" is echo behind a proxy, which says who its client is."""
    program: tuple[str, ...] = ()
    """One in C: its command, but for the service."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("portico")


PEERS = (
    Peer("c-epoll", "C, epoll (the limit)", program=("epoll_echo",)),
    Peer("c-openssl", "C, OpenSSL over epoll (the limit)", TLS, ("tls_echo",)),
    Peer("portico-green", "Portico green, asyncio's loop", (*HTTP, *TLS, "proxy")),
    Peer("portico-green-uvloop", "Portico green, uvloop", (*HTTP, *TLS, "proxy")),
    Peer("portico-async", "Portico async, asyncio's loop", (*STREAMS, *TLS, "proxy")),
    Peer("portico-async-uvloop", "Portico async, uvloop", (*STREAMS, *TLS, "proxy")),
    Peer("portico-async-streams", "Portico async streams, asyncio", TLS),
    Peer("portico-async-streams-uvloop", "Portico async streams, uvloop", TLS),
    Peer("portico-threads", "Portico ThreadingTCPServer", (*HTTP, *TLS, "proxy")),
    Peer("portico-plain", "Portico TCPServer, one at a time", ("handshakes",)),
    Peer("socketserver", "socketserver.ThreadingTCPServer", (*HTTP, *TLS)),
    Peer("asyncio-streams", "asyncio streams", (*STREAMS, *TLS)),
    Peer("asyncio-protocol", "asyncio Protocol", (*STREAMS, *TLS)),
    Peer("uvloop-streams", "uvloop streams", (*STREAMS, *TLS)),
    Peer("uvloop-protocol", "uvloop Protocol", (*STREAMS, *TLS)),
    Peer("gevent", "gevent StreamServer", (*STREAMS, *TLS)),
    Peer("trio", "trio"),
    Peer("twisted", "Twisted"),
    Peer("tornado", "Tornado"),
    Peer("c-recvmmsg", "C, recvmmsg (the load's limit)", DATAGRAMS, ("udp_echo", "recvmmsg")),
    Peer("c-recvfrom", "C, recvfrom", DATAGRAMS, ("udp_echo", "recvfrom")),
    Peer("portico-udp", "Portico UDPServer", DATAGRAMS),
    Peer("portico-udp-green", "Portico GreenUDPServer, asyncio", DATAGRAMS),
    Peer("portico-udp-green-uvloop", "Portico GreenUDPServer, uvloop", DATAGRAMS),
    Peer("portico-udp-async", "Portico AsyncUDPServer, asyncio", DATAGRAMS),
    Peer("portico-udp-async-uvloop", "Portico AsyncUDPServer, uvloop", DATAGRAMS),
    Peer("portico-udp-threads", "Portico ThreadingUDPServer", DATAGRAMS),
    Peer("socketserver-udp", "socketserver.UDPServer", DATAGRAMS),
    Peer("socketserver-udp-threads", "socketserver.ThreadingUDPServer", DATAGRAMS),
    Peer("asyncio-udp", "asyncio datagram endpoint", DATAGRAMS),
    Peer("uvloop-udp", "uvloop datagram endpoint", DATAGRAMS),
    Peer("gevent-udp", "gevent DatagramServer", DATAGRAMS),
)
_BY_NAME = {peer.name: peer for peer in PEERS}


def named(name: str) -> Peer:
    return _BY_NAME[name]

"""Who takes part, in the order in which tables show them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMIT", "PEERS", "Peer", "named"]

LIMIT = "c-epoll"


@dataclass(frozen=True)
class Peer:
    """A server to be measured."""

    name: str
    title: str
    http: bool = False
    """Whether it also serves `http.server`'s handler."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("portico")


PEERS = (
    Peer(LIMIT, "C, epoll (the limit)"),
    Peer("portico-green", "Portico green, asyncio's loop", http=True),
    Peer("portico-green-uvloop", "Portico green, uvloop", http=True),
    Peer("portico-async", "Portico async, asyncio's loop"),
    Peer("portico-async-uvloop", "Portico async, uvloop"),
    Peer("portico-threads", "Portico ThreadingTCPServer", http=True),
    Peer("socketserver", "socketserver.ThreadingTCPServer", http=True),
    Peer("asyncio-streams", "asyncio streams"),
    Peer("asyncio-protocol", "asyncio Protocol"),
    Peer("uvloop-streams", "uvloop streams"),
    Peer("uvloop-protocol", "uvloop Protocol"),
    Peer("gevent", "gevent StreamServer"),
    Peer("trio", "trio"),
    Peer("twisted", "Twisted"),
    Peer("tornado", "Tornado"),
)
_BY_NAME = {peer.name: peer for peer in PEERS}


def named(name: str) -> Peer:
    return _BY_NAME[name]

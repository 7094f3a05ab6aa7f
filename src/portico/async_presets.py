"""The ready-made classes whose requests run in asyncio tasks. Class lines only, no bodies.

Apart from `presets`, because these load asyncio; the package loads this module when one of them is wanted.
"""

from __future__ import annotations

from . import servers
from ._addresses import AF_UNIX
from .aio import AsyncMixIn
from .servers import TCPServer, UDPServer

__all__ = ["AsyncTCPServer", "AsyncUDPServer"]


class AsyncTCPServer(AsyncMixIn, TCPServer):
    """TCP, a task per connection."""


class AsyncUDPServer(AsyncMixIn, UDPServer):
    """UDP, a task per datagram."""


if AF_UNIX is not None:
    __all__ += ["AsyncUnixDatagramServer", "AsyncUnixStreamServer"]

    class AsyncUnixStreamServer(AsyncMixIn, servers.UnixStreamServer):
        """Unix streams, a task per connection."""

    class AsyncUnixDatagramServer(AsyncMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a task per datagram."""

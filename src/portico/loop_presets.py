"""The ready-made classes of the ways to run that need an event loop. Class lines only, no bodies.

Apart from `presets`, because these load asyncio and greenlet; the package loads this module when one of them is wanted.
"""

from __future__ import annotations

from . import servers
from ._addresses import AF_UNIX
from .aio import AsyncMixIn
from .green import GreenMixIn
from .servers import TCPServer, UDPServer

__all__ = ["AsyncTCPServer", "AsyncUDPServer", "GreenTCPServer", "GreenUDPServer"]


class AsyncTCPServer(AsyncMixIn, TCPServer):
    """TCP, a task per connection."""


class AsyncUDPServer(AsyncMixIn, UDPServer):
    """UDP, a task per datagram."""


class GreenTCPServer(GreenMixIn, TCPServer):
    """TCP, a green thread per connection."""


class GreenUDPServer(GreenMixIn, UDPServer):
    """UDP, a green thread per datagram."""


if AF_UNIX is not None:
    __all__ += ["AsyncUnixDatagramServer", "AsyncUnixStreamServer"]
    __all__ += ["GreenUnixDatagramServer", "GreenUnixStreamServer"]

    class AsyncUnixStreamServer(AsyncMixIn, servers.UnixStreamServer):
        """Unix streams, a task per connection."""

    class AsyncUnixDatagramServer(AsyncMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a task per datagram."""

    class GreenUnixStreamServer(GreenMixIn, servers.UnixStreamServer):
        """Unix streams, a green thread per connection."""

    class GreenUnixDatagramServer(GreenMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a green thread per datagram."""

"""The ready-made classes whose requests run in green threads. Class lines only, no bodies.

Apart from `presets`, because these load asyncio and greenlet; the package loads this module when one of them is wanted.
"""

from __future__ import annotations

from . import servers
from ._addresses import AF_UNIX
from .green import GreenMixIn
from .servers import TCPServer, UDPServer

__all__ = ["GreenTCPServer", "GreenUDPServer"]


class GreenTCPServer(GreenMixIn, TCPServer):
    """TCP, a green thread per connection."""


class GreenUDPServer(GreenMixIn, UDPServer):
    """UDP, a green thread per datagram."""


if AF_UNIX is not None:
    __all__ += ["GreenUnixDatagramServer", "GreenUnixStreamServer"]

    class GreenUnixStreamServer(GreenMixIn, servers.UnixStreamServer):
        """Unix streams, a green thread per connection."""

    class GreenUnixDatagramServer(GreenMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a green thread per datagram."""

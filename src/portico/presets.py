"""The ready-made classes: a way to run x a kind of socket. Class lines only, no bodies.

What a system lacks (fork, Unix sockets) is missing here as it is in `socketserver`.
"""

from __future__ import annotations

import os

from . import servers
from ._addresses import AF_UNIX
from .forks import ForkingMixIn
from .servers import TCPServer, UDPServer
from .threads import ThreadingMixIn

__all__ = ["ThreadingTCPServer", "ThreadingUDPServer"]


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """TCP, a thread per connection."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """UDP, a thread per datagram."""


if hasattr(os, "fork"):
    __all__ += ["ForkingTCPServer", "ForkingUDPServer"]

    class ForkingTCPServer(ForkingMixIn, TCPServer):
        """TCP, a process per connection."""

    class ForkingUDPServer(ForkingMixIn, UDPServer):
        """UDP, a process per datagram."""


if AF_UNIX is not None:
    __all__ += ["ThreadingUnixDatagramServer", "ThreadingUnixStreamServer"]

    class ThreadingUnixStreamServer(ThreadingMixIn, servers.UnixStreamServer):
        """Unix streams, a thread per connection."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a thread per datagram."""


if hasattr(os, "fork") and AF_UNIX is not None:
    __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]

    class ForkingUnixStreamServer(ForkingMixIn, servers.UnixStreamServer):
        """Unix streams, a process per connection."""

    class ForkingUnixDatagramServer(ForkingMixIn, servers.UnixDatagramServer):
        """Unix datagrams, a process per datagram."""

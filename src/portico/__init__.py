"""Portico: `socketserver`'s classes, hooks and handler style, rebuilt for production.

`import portico as socketserver` is enough to start. This module only shows what the others make; what is in `__all__`
is public and stable, and the names with an underscore are here because programs in the wild use them.
"""

import os as _os

from ._addresses import AF_UNIX as _AF_UNIX
from ._base import BaseServer, _ServerSelector, serve_together
from ._install import install
from ._sockets import Credentials
from .errors import AddressError, Overloaded, PorticoError, SettingError, UnavailableError, UnknownSettingError
from .forks import ForkingMixIn
from .handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler, _SocketWriter
from .presets import *
from .presets import __all__ as _presets
from .servers import TCPServer, UDPServer
from .threads import ThreadingMixIn, _NoThreads, _Threads

__version__ = "0.4"  # what socketserver says; Portico's own version is in its package metadata

__all__ = [
    "AddressError",
    "BaseRequestHandler",
    "BaseServer",
    "Credentials",
    "DatagramRequestHandler",
    "Overloaded",
    "PorticoError",
    "SettingError",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "UDPServer",
    "UnavailableError",
    "UnknownSettingError",
    "install",
    "serve_together",
]
__all__ += _presets

if hasattr(_os, "fork"):
    __all__ += ["ForkingMixIn"]

if _AF_UNIX is not None:
    from .servers import UnixDatagramServer, UnixStreamServer

    __all__ += ["UnixDatagramServer", "UnixStreamServer"]

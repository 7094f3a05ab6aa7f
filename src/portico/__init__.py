"""Portico: `socketserver`'s classes, hooks and handler style, rebuilt for production.

`import portico as socketserver` is enough to start. This module only shows what the others make; what is in `__all__`
is public and stable, and the names with an underscore are here because programs in the wild use them.
"""

import os as _os

from ._addresses import AF_UNIX as _AF_UNIX
from ._base import BaseServer
from ._install import install
from ._loop import _ServerSelector
from ._serving import run_together, serve_together
from ._sockets import Credentials
from .errors import (
    AddressError,
    HandlerError,
    HandshakeError,
    LineTooLong,
    Overloaded,
    PorticoError,
    ProxyError,
    SessionEnded,
    SettingError,
    TLSError,
    UnavailableError,
    UnknownSettingError,
)
from .forks import ForkingMixIn
from .handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler, _SocketWriter
from .presets import *
from .presets import __all__ as _presets
from .servers import TCPServer, UDPServer
from .threads import ThreadingMixIn, _NoThreads, _Threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any as _Any

    from ._async_session import AsyncSession as AsyncSession
    from ._certificates import PeerCertificate as PeerCertificate
    from ._connection import Connection as Connection
    from ._session import Session as Session
    from .aio import AsyncBaseRequestHandler as AsyncBaseRequestHandler
    from .aio import AsyncDatagramRequestHandler as AsyncDatagramRequestHandler
    from .aio import AsyncMixIn as AsyncMixIn
    from .aio import AsyncSocket as AsyncSocket
    from .aio import AsyncStreamRequestHandler as AsyncStreamRequestHandler
    from .async_presets import *
    from .client import Client as Client
    from .client import TLSInfo as TLSInfo
    from .green import GreenMixIn as GreenMixIn
    from .green import GreenSocket as GreenSocket
    from .green_presets import *
    from .proxy_protocol import ProxyHeader as ProxyHeader
    from .reports import DrainReport as DrainReport
    from .reports import Stats as Stats
    from .tls import TLS as TLS

__version__ = "0.4"  # what socketserver says; Portico's own version is in its package metadata

__all__ = [
    "AddressError",
    "BaseRequestHandler",
    "BaseServer",
    "Credentials",
    "DatagramRequestHandler",
    "HandlerError",
    "HandshakeError",
    "LineTooLong",
    "Overloaded",
    "PorticoError",
    "ProxyError",
    "SessionEnded",
    "SettingError",
    "StreamRequestHandler",
    "TCPServer",
    "TLSError",
    "ThreadingMixIn",
    "UDPServer",
    "UnavailableError",
    "UnknownSettingError",
    "install",
    "run_together",
    "serve_together",
]
__all__ += _presets

if hasattr(_os, "fork"):
    __all__ += ["ForkingMixIn"]

if _AF_UNIX is not None:
    from .servers import UnixDatagramServer, UnixStreamServer

    __all__ += ["UnixDatagramServer", "UnixStreamServer"]


def __getattr__(name: str) -> "_Any":
    """What is loaded when it is wanted: reports, and all that needs asyncio, which takes longer than all else together.

    They are not in `__all__`, so that `from portico import *` stays what it is for a program written for socketserver.
    """
    if name == "green":
        from importlib import import_module  # `from . import green` would ask here again

        return import_module(".green", __name__)
    modules: tuple[_Any, ...] = ()
    if name in ("Connection", "DrainReport", "Stats"):
        from . import _connection, reports

        modules = (_connection, reports)
    elif name == "TLS":
        from . import tls

        modules = (tls,)
    elif name in ("Client", "TLSInfo"):
        from . import client

        modules = (client,)
    elif name == "PeerCertificate":
        from . import _certificates

        modules = (_certificates,)
    elif name == "ProxyHeader":
        from . import proxy_protocol

        modules = (proxy_protocol,)
    elif name == "Session":
        from . import _session

        modules = (_session,)
    elif name == "AsyncSession":
        from . import _async_session

        modules = (_async_session,)
    elif name.startswith("Async"):
        from . import aio, async_presets

        modules = (aio, async_presets)
    elif name.startswith("Green"):
        try:
            from . import green, green_presets
        except ImportError as error:
            raise AttributeError(f"portico.{name}: {error}; pip install greenlet") from error
        modules = (green, green_presets)
    for module in modules:
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

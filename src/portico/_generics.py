"""The type parameters of servers and handlers, and nothing that runs.

`typing` costs 7 ms to import on Python 3.13, two thirds of all of `socketserver`, and is of no use once the
program runs. Type checkers read the first branch; the interpreter takes the second, where `TCPServer[...]` is
`TCPServer` itself.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from socket import socket
    from typing import Any, Generic

    from typing_extensions import TypeVar

    RequestT = TypeVar("RequestT", default=Any)
    """What `get_request` returns first and a handler finds as `self.request`."""
    ServerT = TypeVar("ServerT", default=Any)
    """What a handler finds as `self.server`."""
    SettingT = TypeVar("SettingT")

    Datagram = tuple[bytes, socket]
    """The request of a datagram server: the payload, and the server's socket to answer with."""
else:

    class Generic:
        """Stands where `typing.Generic` would: subscripting changes nothing."""

        __slots__ = ()

        def __class_getitem__(cls, parameters):
            return cls

    RequestT = ServerT = SettingT = Datagram = None

__all__ = ["Datagram", "Generic", "RequestT", "ServerT", "SettingT"]

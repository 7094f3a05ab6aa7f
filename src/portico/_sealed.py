"""Connections that have yet to be opened: nothing goes over them before, whoever uses them.

Mostly they are opened before anybody does. But a program may override the hooks that see to that, or bring a loop of
its own: then the first who reads, writes or asks what has been agreed on opens the connection, within its time. So no
handler of an encrypted server sees plain text, and no PROXY header is taken for a client's words. How, is the server's
to say.
"""

from __future__ import annotations

from functools import cache

from ._meters import Metered
from .errors import HandshakeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["kind_of", "open_late", "seal", "unseal"]

_CALLS: Final = (
    "cipher", "do_handshake", "get_channel_binding", "getpeercert", "read", "recv", "recv_into", "recvfrom",
    "recvfrom_into", "recvmsg", "recvmsg_into", "selected_alpn_protocol", "send", "sendall", "sendfile", "sendmsg",
    "sendto", "shared_ciphers", "unwrap", "version", "write",
)  # fmt: skip


class _Sealed:
    """Mixed into the class of a connection from its acceptance until it is opened: the object stays the same one, and
    costs nothing more from then on.
    """

    __slots__ = ()


def _opens_first(name: str, *, is_async: bool) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        _checked(_server(self)._portico_open_late(self), self)
        return getattr(self, name)(*arguments, **keywords)

    async def call_async(self: Any, *arguments: Any, **keywords: Any) -> Any:
        _checked(await _server(self)._portico_open_late(self), self)
        return await getattr(self, name)(*arguments, **keywords)

    return call_async if is_async else call


def _server(request: Any) -> Any:
    if request.connection is not None:
        return request.connection.server
    server = getattr(request, "portico_server", None)  # it has been accepted, and not been let in yet
    if server is None:  # it has ended
        raise HandshakeError("the connection has come to its end before it was opened")
    return server


def _checked(_: object, request: Any) -> None:
    connection = request.connection
    if isinstance(request, _Sealed) or not (
        getattr(request, "secured", False) if connection is None else connection.opening is None
    ):
        raise HandshakeError("the connection has come to its end before it was opened")


@cache
def _sealed(kind: Any, is_async: bool) -> Any:
    members: dict[str, Any] = {name: _opens_first(name, is_async=is_async) for name in _CALLS if hasattr(kind, name)}
    return type(kind.__name__, (_Sealed, kind), {"__slots__": (), "__module__": kind.__module__} | members)


def seal(request: Any, *, is_async: bool) -> None:
    """Have the server open this connection before anything is done with it.

    If it does not `unseal` it, that is all that happens, and a `HandshakeError`.
    """
    if isinstance(request, Metered) and not isinstance(request, _Sealed):
        kind: Any = type(request)
        request.__class__ = _sealed(kind, is_async)


def unseal(request: Any) -> None:
    """It is being opened. Safe again."""
    if isinstance(request, _Sealed):
        request.__class__ = type(request).__bases__[1]


def kind_of(request: Any) -> Any:
    """What it is when it is opened."""
    return type(request).__bases__[1] if isinstance(request, _Sealed) else type(request)


async def open_late(request: Any) -> None:
    """Open an async connection before it is handed over to something that would not."""
    if isinstance(request, _Sealed):
        _checked(await _server(request)._portico_open_late(request), request)

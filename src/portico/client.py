"""Who a client is: the addresses, credentials and names of one connection, the same for every way to run.

Values only, put together when a handler asks (`self.client`, `self.tls`). Where they come from: accept(2), a PROXY
header, the kernel (SO_PEERCRED), a TLS handshake. Who may enter because of them is `admission`'s.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._certificates import PeerCertificate
    from ._connection import Connection
    from ._sockets import Credentials
    from .proxy_protocol import ProxyHeader

# Where it is kept: by our own sockets, which keep it when they are closed, too, and by `ssl`.
_AGREED = ("portico_session", "_sslobj")

__all__ = ["Client", "TLSInfo", "client_of", "tls_of"]


class TLSInfo:
    """What a TLS connection has agreed on, and whom the other end has proved to be."""

    __slots__ = ("_agreed", "_request", "alpn", "cipher", "peer", "server_name", "version")

    def __init__(self, request: Any) -> None:
        self._request, self._agreed = request, _agreement(request)
        session = getattr(request, "portico_session", None) or request
        self.version: str = getattr(request, "portico_version", None) or session.version()
        """ "TLSv1.3" or "TLSv1.2"."""
        self.cipher: str = session.cipher()[0]
        """By OpenSSL's name."""
        self.alpn: str | None = session.selected_alpn_protocol()
        """The protocol agreed on, one of `TLS.alpn`; None if there is none that both know."""
        self.server_name: str | None = getattr(request, "portico_server_name", None)
        """The name that the client has asked for (SNI), as it came: text of a stranger."""
        self.peer: PeerCertificate | None = _known_peer(request, session)
        """The client's certificate, verified; None if it has shown none, or was not asked to."""

    def holds_for(self, request: Any) -> bool:
        """Whether this is still what has been agreed on: not after another handshake, or in plain text again."""
        return self._agreed is _agreement(request) or request.fileno() < 0

    @property
    def truncated(self) -> bool | None:
        """Whether the stream ended without the peer's close_notify, so that something may be missing; None before."""
        found: bool | None = getattr(self._request, "truncated", None)
        return found

    def __repr__(self) -> str:
        return f"<TLSInfo {self.version} {self.cipher} alpn={self.alpn!r} server_name={self.server_name!r}>"


class Client:
    """Who is at the other end of a connection."""

    __slots__ = ("announced", "connected", "credentials", "proxy", "tls")

    def __init__(
        self, connected: Any, *, proxy: ProxyHeader | None, credentials: Credentials | None, tls: TLSInfo | None
    ) -> None:
        self.connected = connected
        """The address that has connected: the client's, or the proxy's between."""
        self.proxy = proxy
        """The header of a trusted proxy that has announced the client, with all that it says; None without one."""
        self.announced: Any = None if proxy is None else proxy.source
        """The client's address as that proxy has announced it."""
        self.credentials = credentials
        """pid, uid and gid of the process that has connected over a Unix socket; None for others."""
        self.tls = tls
        """What TLS has agreed on with whoever has connected; None in plain text."""

    @property
    def address(self) -> Any:
        """The client's own address, as far as anybody who is trusted knows it."""
        return self.connected if self.announced is None else self.announced

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the client has proved to have by a certificate: to us, or to the proxy that has announced it."""
        if self.tls is not None and self.tls.peer is not None:
            return self.tls.peer.names
        seen = None if self.proxy is None else self.proxy.ssl
        return (seen.common_name,) if seen is not None and seen.verified and seen.common_name else ()

    def __repr__(self) -> str:
        known = [name for name in ("announced", "credentials", "tls") if getattr(self, name) is not None]
        return f"<Client {' '.join(f'{name}={getattr(self, name)!r}' for name in ('connected', *known))}>"


def client_of(connection: Connection | None, request: Any, client_address: Any) -> Client:
    """Who has sent this request; a datagram's sender is known by address alone."""
    proxy = None if connection is None else connection.proxy
    connected = client_address if connection is None else connection.connected_address
    credentials = None if type(request) is tuple else _credentials(connection, request)
    return Client(connected, proxy=proxy, credentials=credentials, tls=tls_of(connection, request))


def tls_of(connection: Connection | None, request: Any) -> TLSInfo | None:
    """What its TLS has agreed on; None in plain text. Known on, once it has been asked for."""
    known: TLSInfo | None = None if connection is None else connection.tls
    if known is not None and known.holds_for(request):
        return known
    if getattr(request, "portico_session", None) is None:
        version = getattr(request, "version", None)  # a socket that a program has wrapped itself has one, too
        if version is None or version() is None:
            return None
    found = TLSInfo(request)
    if connection is not None:
        connection.tls = found
    return found


def _known_peer(request: Any, session: Any) -> PeerCertificate | None:
    from ._certificates import PeerCertificate

    if getattr(request, "portico_version", None) is None:
        return PeerCertificate.of(session)
    known: PeerCertificate | None = request.portico_peer
    return known


def _agreement(request: Any) -> Any:
    """What OpenSSL knows a handshake by."""
    return next((found for name in _AGREED if (found := getattr(request, name, None)) is not None), None)


def _credentials(connection: Connection | None, request: Any) -> Credentials | None:
    from . import _sockets

    if connection is not None and connection.credentials is not None:
        known: Credentials = connection.credentials
        return known
    carrier = None if connection is None else connection.current_socket()  # of streams, which have taken it over
    try:
        found = _sockets.peer_credentials(request if carrier is None else carrier)
    except Exception:  # no Unix socket, closed already, a system without credentials
        return None
    if connection is not None:
        connection.credentials = found
    return found

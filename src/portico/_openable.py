"""What a server does with a connection before its handler sees it: certificates, the PROXY header, the handshake.

A server's side of `_opening` and `_keyring`, mixed into all of them by `_serving`. Written for sockets whose calls
wait, in a thread or by parking a green one; `_lobby` takes the steps where nothing may wait, tasks have theirs (`aio`).
"""

from __future__ import annotations

import socket as _socket
import sys
from time import monotonic

from . import _sockets, limits, logs, opening_settings
from ._managed import Managed
from .errors import HandshakeError, SettingError, TLSError
from .events import CertificatesKept, CertificatesReplaced, EndReason, OpeningFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._connection import Connection
    from ._keyring import Keyring
    from ._lobby import Lobby
    from ._opening import Opening
    from .client import Client, TLSInfo
    from .proxy_protocol import ProxyHeader

__all__ = ["NOT_OPENED", "UNOPENED", "Openable"]

NOT_OPENED = object()
"""In the place of the address of a client whose connection came to its end first."""

UNOPENED = (EndReason.HANDSHAKE_FAILED, EndReason.HANDSHAKE_TIMEOUT, EndReason.PROXY_REFUSED)
"""Ends of connections that no handler has seen."""
# Ends that somebody else has told of.
_TOLD = (EndReason.DRAINED, EndReason.CUT, EndReason.CLOSED, EndReason.REFUSED)


class Openable(Managed):
    """The part of a server that a connection meets first."""

    tls: Any = opening_settings.TLS.default
    starttls: bool = opening_settings.STARTTLS.default
    handshake_timeout: float = opening_settings.HANDSHAKE_TIMEOUT.default
    max_handshakes: int | None = opening_settings.MAX_HANDSHAKES.default
    suppress_ragged_eofs: bool = opening_settings.SUPPRESS_RAGGED_EOFS.default
    tls_watch: float | None = opening_settings.TLS_WATCH.default
    proxy_protocol: str = opening_settings.PROXY_PROTOCOL.default
    proxy_trusted: Any = opening_settings.PROXY_TRUSTED.default
    allow_uids: Any = limits.ALLOW_UIDS.default
    allow_gids: Any = limits.ALLOW_GIDS.default

    _portico_keyring: Keyring | None = None
    _portico_opens = False
    """Whether connections have to be opened before they are handled."""
    _portico_lobby: Lobby | None = None
    """Where they are, as far as that is done in the loop."""
    _portico_blocks = True
    """Whether handlers block, on the very socket, so that the kernel may encrypt for them."""

    if TYPE_CHECKING:
        verify_request: Callable[[Any, Any], bool]
        _portico_open_lobby: Callable[[Any], None]
        _portico_loop: Any
        _portico_runs_inline: bool
        _portico_handlers_are_async: bool

    # -- for the operator

    def reload_tls(self, tls: Any = None) -> bool:
        """Use the certificates as they are on disk now, or those of another `portico.TLS` or `SSLContext`.

        They are loaded and tried first; open connections keep what they have. Returns whether they are used: if they
        cannot be, the old ones stay and `CertificatesKept` is told, an error in the log. From any thread and from
        signal handlers. Raises `SettingError` for a server without `tls`.
        """
        keyring = self._portico_ready_keyring()
        if keyring is None:
            raise SettingError("reload_tls: this server has no tls")
        try:
            keyring.reload(tls)
        except TLSError as error:
            logs.emit(self, CertificatesKept(error))
            return False
        if tls is not None:
            self.tls = tls
        logs.emit(self, CertificatesReplaced(keyring.expires_in()))
        return True

    # -- getting ready

    def _portico_prepare_openings(self) -> None:
        """Read the settings, and the certificates if they are not read yet. Before anything is accepted."""
        connections, keyring = self._portico_connections, self._portico_ready_keyring()
        streams = getattr(self, "socket_type", None) == _socket.SOCK_STREAM
        self._portico_opens = streams and (self.proxy_protocol != "off" or (keyring is not None and not self.starttls))
        if not self._portico_opens and keyring is None:
            connections.openings = None
        elif connections.openings is None:
            from ._opening import Openings  # only where there is something to be opened

            connections.openings = Openings(self)
        else:
            connections.openings.refresh(self)
        sock = getattr(self, "socket", None)
        # Where handlers park, a loop of ours says what connections are; without one they block.
        if isinstance(sock, _sockets.ServerSocket) and (self._portico_blocks or self._portico_loop is None):
            sock.make_connection = self._portico_connection_class(int(sock.family))

    def _portico_ready_keyring(self) -> Keyring | None:
        source = self._portico_tls_source()
        if source is None:
            self._portico_keyring = None
        elif self._portico_keyring is None or self._portico_keyring.source is not source:
            from ._keyring import Keyring  # only now: `ssl` is large

            given, blocks = source is self.tls, self._portico_blocks
            self._portico_keyring = Keyring(source, blocking=blocks, watch=self.tls_watch, try_it=given)
        return self._portico_keyring

    def _portico_tls_source(self) -> Any:
        """The setting, or the context of a listener that a program has wrapped in TLS, as one does in `socketserver`.

        Such a listener would have the handshake done in its accept(), and everybody wait for it.
        """
        if self.tls:
            return self.tls
        ssl: Any = sys.modules.get("ssl")
        sock = getattr(self, "socket", None)
        if ssl is None or not isinstance(sock, ssl.SSLSocket) or sock.context.sslsocket_class is not ssl.SSLSocket:
            return None
        sock.do_handshake_on_connect = False
        self.suppress_ragged_eofs = sock.suppress_ragged_eofs
        return sock.context

    def _portico_look_at_listener(self) -> None:
        """Notice one that has been wrapped in TLS while the server runs."""
        if self._portico_keyring is None and self._portico_tls_source() is not None:
            self._portico_prepare()
            self._portico_open_lobby(self._portico_loop)

    def _portico_connection_class(self, family: int) -> type[_socket.socket]:
        """What connections are, where handlers block."""
        if self._portico_keyring is None:
            return _sockets.connection_class(family)
        from ._tls_sockets import tls_class

        return tls_class(family)

    def _portico_converted(self, request: Any) -> Any:
        """A connection that another one's accept() has made, as one of ours; anything else as it is."""
        kinds: tuple[type, ...] = (_socket.socket,)
        if self._portico_keyring is not None:
            kinds = _socket.socket, sys.modules["ssl"].SSLSocket
        if type(request) not in kinds or getattr(request, "do_handshake_on_connect", False):
            return request
        return _sockets.metered(request, self._portico_connection_class(int(request.family)))

    # -- a connection

    def _portico_watch_certificates(self) -> None:
        """Look whether they have changed, if it is time."""
        keyring = self._portico_keyring
        if keyring is None:
            return
        loads, error = keyring.loads, keyring.look(monotonic())
        if error is not None:
            logs.emit(self, CertificatesKept(error))
        elif keyring.loads != loads:
            logs.emit(self, CertificatesReplaced(keyring.expires_in()))

    def _portico_awaits_header(self, request: Any) -> bool:
        """Whether it is not known yet for whom this connection is."""
        connection = self._portico_connections.of(request)
        return connection is not None and connection.opening is not None and connection.opening.expects_header

    def _portico_open_request(self, request: Any, client_address: Any, connection: Connection | None = None) -> Any:
        """Do what is still to be done, here and now. The client's address; `NOT_OPENED` if that came to an end."""
        connection = connection or self._portico_connections.of(request)
        if connection is None:  # it has never been let in, or no more than a request of somebody's own making
            connection = self._portico_connections.stand_in(self, None)
            connection.client_address = client_address
            openings = self._portico_connections.openings
            if openings is not None and getattr(request, "secured", None) is False:
                connection.opening = openings.begin(self, client_address)
        opening = connection.opening
        if opening is None:
            return connection.client_address
        try:
            if opening.expects_header:
                header = self._portico_await(opening.take_header, request, opening)
                if not self._portico_announce(connection, request, header):
                    return NOT_OPENED
            if self._portico_keyring is not None and not self.starttls:
                self._portico_await(opening.hear, request, opening)
                self._portico_secure(request, opening.left)
        except Exception as error:
            self._portico_opening_failed(connection, request, error)
            return NOT_OPENED
        self._portico_opened(connection)
        return connection.client_address

    def _portico_seal(self, request: Any, connection: Connection) -> None:
        """Whoever uses this connection before it is opened, opens it: hooks that are overridden may leave that out."""
        if connection.opening is not None and self._portico_keyring is not None and not self.starttls:
            from ._sealed import seal

            seal(request, self._portico_open_late, is_async=self._portico_handlers_are_async)

    def _portico_open_late(self, request: Any) -> Any:
        """Open it in the middle of its handler."""
        connection = self._portico_connections.asked(request)
        address = None if connection is None else connection.client_address
        self._portico_open_request(request, address, connection)

    def _portico_opened(self, connection: Connection) -> None:
        openings = self._portico_connections.openings
        if openings is not None:
            openings.done(connection)

    def _portico_await(self, step: Callable[[Any], Any], request: Any, opening: Opening) -> Any:
        """Take a step that itself never waits."""
        from ._opening import Undecided

        while True:
            try:
                return step(request)
            except Undecided as error:
                self._portico_pause(error.pause)
            except BlockingIOError:
                self._portico_wait_readable(request, opening.left)
            if monotonic() >= opening.deadline:
                raise TimeoutError("nothing, or not enough, came in time")

    def _portico_announce(
        self, connection: Connection, request: Any, header: ProxyHeader | None, *, verify: bool = True
    ) -> bool:
        """Now it is known for whom a connection is: whether he may enter."""
        if connection.opening is not None:
            connection.opening.expects_header = False
        connection.announce(header, unmap=getattr(self, "unmap_ipv4", False))
        if not self._portico_connections.admit_announced(self, connection, request):
            connection.failed(EndReason.REFUSED)
            return False
        if verify and not self.verify_request(request, connection.client_address):
            self._portico_connections.refuse(self, "verify_request", connection.client_address)
            connection.failed(EndReason.REFUSED)
            return False
        return True

    def _portico_secure(self, request: Any, seconds: float) -> None:
        """TLS's handshake, on a socket whose calls wait. Raises `ssl.SSLError`, `TimeoutError` or another `OSError`."""
        timeout = request.gettimeout()
        self._portico_begin_tls(request)
        request.settimeout(seconds)
        request.do_handshake()
        request.settimeout(timeout)

    def _portico_start_tls(self, request: Any) -> None:
        """`start_tls` of a handler that blocks, or parks."""
        self._portico_check_start(request)
        try:
            self._portico_secure(request, self.handshake_timeout)
        except OSError as error:
            raise self._portico_start_failed(request, error) from error

    def _portico_check_start(self, request: Any) -> None:
        if not self.starttls:
            raise SettingError("start_tls() needs the setting starttls, with tls")
        if getattr(request, "secured", False):
            raise TLSError("this connection is encrypted already")

    def _portico_start_failed(self, request: Any, error: OSError) -> HandshakeError:
        from ._opening import reason_of

        connection = self._portico_connections.asked(request)
        if connection is not None:
            connection.failed(reason_of(error))
        return HandshakeError(f"no TLS: {error}")

    def _portico_begin_tls(self, request: Any) -> None:
        keyring = self._portico_keyring
        if keyring is None:
            raise TLSError("there are no certificates to encrypt with: give the server tls")
        if not hasattr(request, "begin"):
            raise TLSError(f"{type(request).__name__} cannot be encrypted: get_request must return what accept() does")
        from ._sealed import unseal

        unseal(request)
        request.suppress_ragged_eofs = self.suppress_ragged_eofs
        request.begin(keyring.context)

    def _portico_opening_failed(self, connection: Connection, request: Any, error: BaseException) -> None:
        """It is over before it began; whoever runs it closes it."""
        from ._opening import reason_of

        connection.failed(reason_of(error))
        reason = connection.reason
        if reason is not None and reason not in _TOLD:
            logs.emit(self, OpeningFailed(request, connection.client_address, error, reason))

    # -- for handlers

    def _portico_client_of(self, request: Any, client_address: Any) -> Client:
        from . import client  # few handlers ask

        return client.client_of(self._portico_connections.asked(request), request, client_address)

    def _portico_tls_of(self, request: Any, client_address: Any) -> TLSInfo | None:
        from . import client

        return client.tls_of(self._portico_connections.asked(request), request)

    # -- for the ways to run to say

    def _portico_still_opens(self, connection: Connection) -> bool:
        """Whether a connection that had to be opened is not yet."""
        return connection.opening is not None

    def _portico_has_heard(self, connection: Connection) -> bool:
        """Whether whoever opens it has seen its client say anything."""
        return connection.opening is not None and connection.opening.heard

    def _portico_look_at_openings(self) -> None:
        """Notice those that are open, where nothing tells by itself."""

    def _portico_wait_readable(self, request: Any, seconds: float) -> None:
        """Wait until something more can be read, or so long."""
        _sockets.wait_readable(request, seconds)

    def _portico_pause(self, seconds: float) -> None:
        self._portico_system.sleep(seconds)

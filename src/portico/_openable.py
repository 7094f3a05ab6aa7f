"""What a server does with a connection before its handler sees it: certificates, the PROXY header, the handshake.

A server's side of `_opening`, mixed into all of them by `_serving`. Written for sockets whose calls wait, in a thread
or by parking a green one; `_lobby` takes the steps where nothing may wait, tasks have theirs (`aio`). With which
certificates is `_certified`'s.
"""

from __future__ import annotations

import socket as _socket
from contextlib import contextmanager
from functools import partial
from time import monotonic

from . import _sockets, limits, logs, opening_settings
from ._certified import Certified
from ._requests import request_failed
from .errors import HandshakeError, ProxyError, SettingError, TLSError
from .events import EndReason, OpeningFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ._connection import Connection
    from ._lobby import Lobby
    from ._opening import Opening
    from .client import Client, TLSInfo
    from .proxy_protocol import ProxyHeader

__all__ = ["NOT_OPENED", "UNOPENED", "NotLetIn", "Openable"]

NOT_OPENED = object()
"""In the place of the address of a client whose connection came to its end first."""

UNOPENED = (EndReason.HANDSHAKE_FAILED, EndReason.HANDSHAKE_TIMEOUT, EndReason.PROXY_REFUSED)
"""Ends of connections that no handler has seen."""
# Hooks that have a request in hand, perhaps before it is opened.
_SEE_REQUESTS = (
    "get_request", "verify_request", "process_request", "process_request_thread", "process_request_task",
    "finish_request",
)  # fmt: skip
# Ends that somebody else has told of.
_TOLD = (EndReason.DRAINED, EndReason.CUT, EndReason.CLOSED, EndReason.REFUSED)


class NotLetIn(Exception):  # no mistake
    """Now that it is known for whom a connection is, it is refused; which has been told."""


class Openable(Certified):
    """The part of a server that a connection meets first."""

    handshake_timeout: float = opening_settings.HANDSHAKE_TIMEOUT.default
    max_handshakes: int | None = opening_settings.MAX_HANDSHAKES.default
    proxy_protocol: str = opening_settings.PROXY_PROTOCOL.default
    proxy_trusted: Any = opening_settings.PROXY_TRUSTED.default
    allow_uids: Any = limits.ALLOW_UIDS.default
    allow_gids: Any = limits.ALLOW_GIDS.default

    _portico_opens = False
    """Whether connections have to be opened before they are handled."""
    _portico_lobby: Lobby | None = None
    """Where they are, as far as that is done in the loop."""

    if TYPE_CHECKING:
        verify_request: Callable[[Any, Any], bool]
        _portico_open_lobby: Callable[[Any], None]
        _portico_overridden: Callable[[str], bool]
        _portico_loop: Any
        _portico_runs_inline: bool
        _portico_handlers_are_async: bool

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
        self._portico_seals = any(hasattr(self, name) and self._portico_overridden(name) for name in _SEE_REQUESTS)
        sock: Any = getattr(self, "socket", None)
        if self._portico_context_of_listener() is not None:
            sock.accept = partial(self._portico_accept_sealed, sock)
        # Where handlers park, a loop of ours says what connections are; without one they block.
        if isinstance(sock, _sockets.ServerSocket) and (self._portico_blocks or self._portico_loop is None):
            sock.make_connection = self._portico_connection_class(int(sock.family))

    def _portico_look_at_listener(self) -> None:
        """Notice one that has been wrapped in TLS while the server runs."""
        if self._portico_keyring is None and self._portico_context_of_listener() is not None:
            self._portico_prepare()
            self._portico_open_lobby(self._portico_loop)

    # -- a connection

    def _portico_awaits_header(self, request: Any) -> bool:
        """Whether it is not known yet for whom this connection is."""
        connection = self._portico_connections.of(request)
        return connection is not None and connection.opening is not None and connection.opening.expects_header

    def _portico_open_request(self, request: Any, client_address: Any, connection: Connection | None = None) -> Any:
        """Do what is still to be done, here and now. The client's address; `NOT_OPENED` if that came to an end."""
        connection = self._portico_to_be_opened(request, client_address, connection)
        opening = connection.opening
        if opening is not None and not opening.told:
            with self._portico_attempt(connection, request):
                if not self._portico_open_at_once(request, opening):
                    self._portico_await(partial(self._portico_step, connection, request), request, opening)
                    if self._portico_encrypts(request):
                        self._portico_secure(request, opening.left)
        return connection.client_address if connection.opening is None else NOT_OPENED

    def _portico_to_be_opened(self, request: Any, client_address: Any, known: Connection | None) -> Connection:
        """The connection, or one that stands for it: it has never been let in where a program's own loop takes it."""
        connection = known or self._portico_connections.asked(request)
        if connection is None:
            connection = self._portico_connections.stand_in(self, None)
            connection.client_address = client_address
            openings = self._portico_connections.openings
            if openings is not None and hasattr(request, "fileno") and not getattr(request, "secured", False):
                connection.opening = openings.begin(self, client_address)
        return connection

    def _portico_step(self, connection: Connection, request: Any, *, verify: bool = True) -> None:
        """What has to come from the client before a handshake, as far as it has. Never waits.

        Raises `BlockingIOError` while more has to come, `NotLetIn`, `ProxyError`, or `ConnectionError`.
        """
        opening: Any = connection.opening
        if connection.reason is not None:
            raise ConnectionAbortedError("its server has cut it before it was looked at")
        if opening.expects_header:
            header = opening.take_header(request)
            if not self._portico_announce(connection, request, header, verify=verify):
                raise NotLetIn
        if self._portico_encrypts(request):
            opening.hear(request)

    @contextmanager
    def _portico_attempt(self, connection: Connection, request: Any) -> Iterator[None]:
        """Try to open a connection. What is wrong with the peer is told; what is wrong here is raised."""
        opening: Any = connection.opening
        try:
            yield
        except NotLetIn:
            opening.told = True
        except (OSError, ProxyError) as error:
            self._portico_opening_failed(connection, request, error)
        else:
            self._portico_opened(connection, request)

    def _portico_seal(self, request: Any, connection: Connection) -> None:
        """Whoever uses this connection before it is opened, opens it: hooks that are overridden may leave that out."""
        if self._portico_seals and connection.opening is not None and connection.key is None:
            from ._sealed import seal

            seal(request, is_async=self._portico_handlers_are_async)

    def _portico_open_late(self, request: Any) -> Any:
        """Open it in the middle of its handler."""
        connection = self._portico_connections.asked(request)
        self._portico_open_request(request, None if connection is None else connection.client_address, connection)

    def _portico_opened(self, connection: Connection, request: Any) -> None:
        if self._portico_seals:
            from ._sealed import unseal

            unseal(request)
        if getattr(request, "secured", False):
            connection.note_request(request)
        openings = self._portico_connections.openings
        if openings is not None:
            openings.done(connection)

    def _portico_await(self, step: Callable[[], None], request: Any, opening: Opening) -> None:
        """Take a step that itself never waits."""
        from ._opening import Undecided

        while True:
            try:
                return step()
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
        return not verify or self._portico_verified(connection, request)

    def _portico_verified(self, connection: Connection, request: Any) -> bool:
        client_address = connection.client_address
        try:
            if self.verify_request(request, client_address):
                return True
        except Exception:
            request_failed(self, request, client_address)
            connection.failed(EndReason.FAILED)
            return False
        self._portico_connections.refuse(self, "verify_request", client_address)
        connection.failed(EndReason.REFUSED)
        return False

    def _portico_open_at_once(self, request: Any, opening: Opening) -> bool:
        """Open it in a way of one's own, if there is one that is faster; whether that was so."""
        return False

    def _portico_secure(self, request: Any, seconds: float) -> None:
        """TLS's handshake, on a socket whose calls wait. Raises `ssl.SSLError`, `TimeoutError` or another `OSError`."""
        timeout = request.gettimeout()
        self._portico_begin_tls(request)
        request.settimeout(seconds)
        try:
            request.do_handshake()
        finally:
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
        if self._portico_seals:
            from ._sealed import unseal

            unseal(request)
        listener: Any = None if self.tls else self.socket
        request.suppress_ragged_eofs = (listener or self).suppress_ragged_eofs
        request.begin(keyring.context)

    def _portico_opening_failed(self, connection: Connection, request: Any, error: BaseException) -> None:
        """It is over before it began, which is told once; whoever runs it closes it."""
        from ._opening import reason_of

        connection.failed(reason_of(error))
        opening, reason = connection.opening, connection.reason
        told = opening is not None and opening.told
        if opening is not None:
            opening.told = True
        if not told and reason is not None and reason not in _TOLD:
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

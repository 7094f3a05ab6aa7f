"""A server's certificates, and what its connections are because of them: a server's side of `_keyring`.

Where they come from (the setting, or a listener that a program has wrapped), when they are loaded anew, and which class
a connection has. When a handshake is made is `_openable`'s.
"""

from __future__ import annotations

import socket as _socket
import sys
from time import monotonic

from . import _sockets, logs, opening_settings
from ._managed import Managed
from .errors import SettingError, TLSError
from .events import CertificateEnded, CertificatesKept, CertificatesReplaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._keyring import Keyring

__all__ = ["Certified"]


class Certified(Managed):
    """The part of a server that has certificates."""

    tls: Any = opening_settings.TLS.default
    starttls: bool = opening_settings.STARTTLS.default
    suppress_ragged_eofs: bool = opening_settings.SUPPRESS_RAGGED_EOFS.default
    tls_watch: float | None = opening_settings.TLS_WATCH.default

    _portico_keyring: Keyring | None = None
    _portico_seals = False
    """Whether anybody could use a connection before it is opened: a hook of somebody's own."""
    _portico_blocks = True
    """Whether handlers block, on the very socket, so that the kernel may encrypt for them."""

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

    # -- for the house

    def _portico_ready_keyring(self) -> Keyring | None:
        source = self.tls or self._portico_context_of_listener()
        if not source:
            self._portico_keyring = None
        elif self._portico_keyring is None or self._portico_keyring.source is not source:
            from ._keyring import Keyring  # only now: `ssl` is large

            given, blocks = source is self.tls, self._portico_blocks
            self._portico_keyring = keyring = Keyring(source, blocking=blocks, watch=self.tls_watch, try_it=given)
            left = keyring.expires_in()
            if left is not None and left < 0:
                logs.emit(self, CertificateEnded(-left))
        else:
            self._portico_keyring.watch(self.tls_watch)
        return self._portico_keyring

    def _portico_context_of_listener(self) -> Any:
        """That of a listener that a program has wrapped in TLS, as one does in `socketserver`.

        Such a one would have the handshake done in its accept(), and everybody wait for it.
        """
        ssl: Any = sys.modules.get("ssl")
        sock = getattr(self, "socket", None)
        if ssl is None or not isinstance(sock, ssl.SSLSocket):
            return None
        return sock.context if sock.context.sslsocket_class is ssl.SSLSocket else None

    def _portico_accept_sealed(self, listener: Any) -> tuple[Any, Any]:
        """The accept() of such a listener: its handshake is done later, or when a hook wants to know its outcome."""
        descriptor, address = listener._accept()
        family = int(listener.family)
        request: Any = self._portico_connection_class(family)(family, int(listener.type), listener.proto, descriptor)
        if self._portico_seals:
            from ._sealed import seal

            request.portico_server = self
            seal(request, is_async=False)
        return request, address

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
        if type(request) not in kinds or not (kinds[-1] is _socket.socket or self._portico_encrypts(request)):
            return request
        return _sockets.metered(request, self._portico_connection_class(int(request.family)))

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

    def _portico_encrypts(self, request: Any) -> bool:
        """Whether a handshake is to be made, which a program's own `get_request` may have done."""
        if self._portico_keyring is None or self.starttls:
            return False
        secured = getattr(request, "secured", None)
        theirs = getattr(request, "version", None) if secured is None else None
        return not secured and (theirs is None or theirs() is None)

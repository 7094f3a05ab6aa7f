"""The heart: a server owns one socket, takes requests from it and sends each through the hooks.

    get_request → verify_request → process_request → finish_request → RequestHandlerClass(...) → shutdown_request

Here is the order of the hooks and what they do by default, as in `socketserver`. Streams and datagrams are `servers`',
how a request runs the mix-ins' (`threads`, `forks` ...), the loop and its end `_serving`'s, what an address means
`_sockets`'.
"""

from __future__ import annotations

import contextvars
import os
import socket as _socket
import sys
import threading

from . import _sockets, limits, logs, settings
from ._addresses import infer
from ._generics import Generic, RequestT
from ._openable import NOT_OPENED
from ._requests import note_failure
from ._serving import Serving, teller
from .errors import AddressError, is_disconnect
from .lifecycle import Event, Lifecycle, PeerLeft, RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from ._setting import Keepalive
    from ._unix_files import SocketFile

__all__ = ["BaseServer"]

_NEW: Any = object.__new__


class BaseServer(Serving, Generic[RequestT]):
    """What all servers have in common: the attributes, the hooks in their order, the loop and its end.

    For the caller: `serve_forever`, `shutdown`, `background`, `handle_request`, `server_close`, `fileno`, and the
    server as a context manager, which closes it. To override: every other method. This constructor makes no socket;
    a subclass of this very class makes its own and says in `get_request` how a request is taken from it.

    All keyword arguments are settings (docs/settings.md), which may as well be set on a class or on the instance
    before the constructor runs. Raises `SettingError` for a wrong value, `UnknownSettingError` for a wrong name.
    """

    address_family: int = _socket.AF_INET
    socket_type: int = _socket.SOCK_STREAM
    timeout: float | None = settings.TIMEOUT.default
    allow_reuse_address: bool = settings.ALLOW_REUSE_ADDRESS.default
    allow_reuse_port: bool = settings.ALLOW_REUSE_PORT.default
    request_queue_size: int = settings.REQUEST_QUEUE_SIZE.default
    dual_stack: bool | None = settings.DUAL_STACK.default
    unmap_ipv4: bool = settings.UNMAP_IPV4.default
    unix_mode: int | None = settings.UNIX_MODE.default
    unix_group: int | str | None = settings.UNIX_GROUP.default
    keepalive: Keepalive = limits.KEEPALIVE.default
    tcp_user_timeout: float | None = limits.TCP_USER_TIMEOUT.default

    server_address: Any
    socket: _socket.socket
    RequestHandlerClass: Callable[[Any, Any, Any], Any]

    _portico_socket_class: type[_sockets.ServerSocket] = _sockets.ServerSocket
    _portico_adopted = False
    _portico_no_address: tuple[Any, AddressError | None] = None, None
    """An address that could not be understood, and why."""
    _portico_socket_file: SocketFile | None = None

    def __init__(
        self, server_address: Any, RequestHandlerClass: Callable[[Any, Any, Self], Any], **values: Any
    ) -> None:
        settings.apply(self, values)
        if self.stdlib_compat:
            vars(self).update(settings.compat_values(self))
        settings.check(self, values)
        self._portico_check_handler(RequestHandlerClass)
        self._portico_ready_keyring()  # what is wrong with certificates is said here, too
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self._portico_context = contextvars.copy_context()
        self.__is_shut_down = Lifecycle(
            teller(self)
        )  # these two under socketserver's own private names, for `_serving` and others
        self.__shutdown_request = False

    # -- the socket

    def _portico_open(self, bind_and_activate: bool) -> None:
        """Make the socket, or adopt one, and bind it; whatever fails, nothing stays open."""
        adopted = _sockets.existing(self.server_address, self._portico_system)
        if adopted is not None:
            self._portico_adopt(adopted)
        else:
            self._portico_infer_family()
            self.socket = self._portico_socket_class(self.address_family, self.socket_type)
        if self._portico_keyring is not None:  # also for a program's own loop
            self._portico_prepare_openings()
        if bind_and_activate:
            try:
                self.server_bind()
                settings.check(self)  # once more: now it is known what clients there will be
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def _portico_adopt(self, sock: _socket.socket) -> None:
        if sock.type != self.socket_type:
            kind = _socket.SocketKind
            if sock is not self.server_address:  # made here, of a descriptor that was ours to own
                sock.close()
            raise AddressError(
                f"{type(self).__name__} needs a {kind(self.socket_type).name} socket, not a {kind(sock.type).name} one"
            )
        # One that somebody has made stays what it is; of a descriptor handed down it may be made as it is best.
        self.socket = self._portico_socket_class(fileno=sock.detach()) if type(sock) is _sockets.ServerSocket else sock
        sock = self.socket
        self.address_family = sock.family
        self.server_address = sock.getsockname()
        self._portico_adopted = True

    def _portico_infer_family(self) -> None:
        """Choose the family by the address, unless somebody has said which: a subclass, the instance, or a patch."""
        if isinstance(self.server_address, os.PathLike):
            self.server_address = os.fspath(self.server_address)
        said = "address_family" in vars(self) or any(
            "address_family" in vars(cls) for cls in type(self).__mro__ if cls is not BaseServer
        )
        if not said and self.address_family == _socket.AF_INET:
            try:
                self.address_family, self.server_address = infer(self.server_address, self.dual_stack)
            except AddressError as error:  # an overridden `server_bind`, or whoever binds later, may know better
                self._portico_no_address = self.server_address, error

    def server_bind(self) -> None:
        """Bind the socket and set `server_address` to what it then has. An adopted socket is bound already.

        Raises `OSError` with the reason and, on Linux, the process that holds the address.
        """
        if not self._portico_adopted:
            unclear, error = self._portico_no_address
            if error is not None and unclear is self.server_address:
                raise error
            _sockets.set_options(
                self.socket,
                reuse_address=self.allow_reuse_address,
                reuse_port=self.allow_reuse_port,
                dual_stack=self.dual_stack,
            )
            mode, group = self.unix_mode, self.unix_group
            self._portico_socket_file = _sockets.bind(self.socket, self.server_address, mode=mode, group=group)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Make the bound socket ready for requests. Nothing to do here; stream servers listen."""

    def server_close(self) -> None:
        """Close the socket, which ends the loop if it runs, and remove the socket file if it is still ours.

        Then idle connections are closed, requests that run are waited for, `drain_timeout` seconds long, and the rest
        is cut. Where they run in the loop itself that is so in another thread than the loop's; in a handler or hook
        there nothing is waited for. Safe at any time, from any thread, and again.
        """
        waits = not self._portico_waits_on_close and self._portico_can_wait_for_loop()
        if waits:
            self._portico_take_no_more()
        elif not self._portico_goes_on():
            self._portico_end_listener()
        if not self._portico_waits_on_close:
            self._portico_end_requests(wait=waits)

    def _portico_end_listener(self) -> None:
        if self._portico_socket_file is not None and not self.stdlib_compat:
            self._portico_socket_file.remove()
        super()._portico_end_listener()
        self._portico_waits.end()

    def fileno(self) -> int:
        """The socket's descriptor; -1 when it is closed."""
        return self.socket.fileno()

    def handle_request(self) -> None:
        """Wait for one request and handle it, or call `handle_timeout` if none comes, or may be taken, in time.

        The time is the lesser of the socket's own timeout and `self.timeout`, in seconds. Returns without a request
        after `shutdown`, `server_close` or a drain, by whomever; raises `ValueError` if the socket was closed before.
        Unlike in the loop, what `handle_error` raises is passed on.
        """
        waits = [wait for wait in (self.socket.gettimeout(), self.timeout) if wait is not None]
        self._portico_check_socket()
        if self._portico_waits.take(self, min(waits, default=None)) is False:
            self.handle_timeout()

    def service_actions(self) -> None:
        """Called after every turn of the loop. To override; one that raises is logged."""

    # -- a request, hook by hook

    def get_request(self) -> tuple[RequestT, Any]:
        """Take a request from the socket: (request, client_address). An `OSError` means that there is none."""
        raise NotImplementedError(f"{type(self).__name__} must say in get_request how a request is taken")

    def verify_request(self, request: RequestT, client_address: Any) -> bool:
        """Whether to handle this request; else it is closed. To override."""
        return True

    def process_request(self, request: RequestT, client_address: Any) -> None:
        """Run one request to its end, here and now. The mix-ins run it elsewhere.

        A connection that it has is over when this returns, though its handler may have closed the socket long before.
        Where a program runs requests in its own manner, it is the closing that ends one.
        """
        connections = self._portico_connections
        connection = connections.of(request)
        if connection is None or connection.runner is not None:
            self.finish_request(request, client_address)
            self.shutdown_request(request)
            return
        connection.in_hand = threading.get_ident()
        try:
            self.finish_request(request, client_address)
            connection.settle()
            self.shutdown_request(request)
        except BaseException:
            note_failure(self, request)  # before it ends: the caller may be a thread of the program's own
            raise
        finally:
            connections.let_go(connection)

    def finish_request(self, request: RequestT, client_address: Any) -> None:
        """Handle one request: call `RequestHandlerClass`, which may be any callable.

        A plain class is called in two steps, which are Python's own. Through `type.__call__` they take 0.8 kB of C
        stack, which every parked green thread has to keep (measured: 8.2 kB an idle connection, 7.3 kB this way).
        """
        if self._portico_opens:
            client_address = self._portico_open_request(request, client_address)
            if client_address is NOT_OPENED:
                return
        made: Any = self.RequestHandlerClass
        is_plain: bool = type(made) is type and made.__new__ is _NEW
        if is_plain:
            made.__init__(_NEW(made), request, client_address, self)
        else:
            made(request, client_address, self)

    def shutdown_request(self, request: RequestT) -> None:
        """End a request in good order, then close it."""
        self.close_request(request)

    def close_request(self, request: RequestT) -> None:
        """Free what the request holds."""

    def handle_timeout(self) -> None:
        """Called when `handle_request` has waited in vain. To override."""

    def handle_error(self, request: RequestT, client_address: Any) -> None:
        """Called, inside the `except` block, when a request raised. To override.

        By default a peer that left is a `PeerLeft` event and anything else a `RequestFailed`.
        """
        note_failure(self, request)  # once more, for those who call this hook themselves
        error = sys.exception()
        if self.stdlib_compat:
            logs.print_like_stdlib(client_address)
        elif is_disconnect(error, request, client_address):
            self._portico_emit(PeerLeft(request, client_address, error))
        else:
            self._portico_emit(RequestFailed(request, client_address, error))

    def handle_event(self, event: Event) -> None:
        """Called with whatever the server has to tell (`portico.lifecycle`). By default it is logged."""
        logs.record(event)

    def peer_credentials(self, request: _socket.socket) -> _sockets.Credentials:
        """pid, uid and gid of the process behind a Unix stream request. Raises `UnavailableError` for others."""
        return _sockets.peer_credentials(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.server_close()

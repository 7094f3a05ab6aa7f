"""The kinds of servers: streams and datagrams, over IPv4, IPv6 and Unix sockets.

Only what one kind does differently from another; everything that all have in common is `_base`'s.
"""

from __future__ import annotations

import socket as _socket

from . import _sockets, settings
from ._addresses import AF_UNIX, unmapped
from ._base import BaseServer
from ._generics import Datagram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

__all__ = ["TCPServer", "UDPServer", "UnixDatagramServer", "UnixStreamServer"]


class TCPServer(BaseServer[_socket.socket]):
    """Stream connections: TCP over IPv4 or IPv6 by the address, or whatever `address_family` says.

    `server_address` is (host, port), port 0 for any free one; a bound socket; or `fd://N`, `systemd://NAME`. An
    existing socket belongs to the server from then on. Raises `AddressError` or `OSError`, with nothing left open.
    """

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Self], Any],
        bind_and_activate: bool = True,
        **values: Any,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass, **values)
        self._portico_open(bind_and_activate)

    def server_activate(self) -> None:
        """Listen, with `request_queue_size` as the backlog; an adopted socket may listen already.

        `keepalive` and `tcp_user_timeout` are set here, once: connections inherit them.
        """
        _sockets.watch_peers(self.socket, keepalive=self.keepalive, tcp_user_timeout=self.tcp_user_timeout)
        if not (self._portico_adopted and _sockets.is_listening(self.socket)):
            _sockets.listen(self.socket, self.request_queue_size)

    def get_request(self) -> tuple[_socket.socket, Any]:
        """Accept a connection."""
        connection, client_address = self.socket.accept()
        return connection, unmapped(client_address) if self.unmap_ipv4 else client_address

    def process_request(self, request: _socket.socket, client_address: Any) -> None:
        """Run one request to its end, here and now. The mix-ins run it elsewhere."""
        self.finish_request(request, client_address)
        connection = self._portico_connections.of(request)
        if connection is not None:
            connection.settle()
        self.shutdown_request(request)

    def shutdown_request(self, request: _socket.socket) -> None:
        """Tell the peer that nothing more comes (half-close), then close."""
        try:
            request.shutdown(_socket.SHUT_WR)
        except OSError:  # the peer was first
            pass
        self.close_request(request)

    def close_request(self, request: _socket.socket) -> None:
        """Close the connection."""
        request.close()


class UDPServer(BaseServer[Datagram]):
    """Datagrams: a request is `(payload, socket)`, and the handler answers with `socket.sendto(...)`.

    Addresses as for `TCPServer`. There is no connection, so nothing is shut down or closed when a request ends.
    """

    socket_type = _socket.SOCK_DGRAM
    allow_reuse_address = False  # two servers on one port would both seem to work (Linux)
    max_packet_size: int = settings.MAX_PACKET_SIZE.default

    _portico_receive_flags = 0

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Self], Any],
        bind_and_activate: bool = True,
        **values: Any,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass, **values)
        self._portico_open(bind_and_activate)

    def get_request(self) -> tuple[Datagram, Any]:
        """Receive a datagram, of at most `max_packet_size` bytes."""
        sock = self.socket
        flags = self._portico_receive_flags
        if flags:
            payload, client_address = sock.recvfrom(self.max_packet_size, flags)
        else:  # what stands in a socket's place may know no flags
            payload, client_address = sock.recvfrom(self.max_packet_size)
        return (payload, sock), unmapped(client_address) if self.unmap_ipv4 else client_address

    def _portico_wait_to_take(self, wait: bool) -> None:
        # By flag and not by the socket's mode: handlers send through the same socket, and may wait for room.
        wait = wait or not isinstance(self.socket, _socket.socket)
        self._portico_receive_flags = 0 if wait else _sockets.DONT_WAIT


if AF_UNIX is not None:
    _UNIX: int = AF_UNIX

    class UnixStreamServer(TCPServer):
        """Stream connections over a Unix socket: the address is a path, or an abstract name (a zero byte first).

        A file left behind by a dead server is replaced, a live one's never; ours is removed on closing.
        """

        address_family = _UNIX

    class UnixDatagramServer(UDPServer):
        """Datagrams over a Unix socket; addresses and files as for `UnixStreamServer`."""

        address_family = _UNIX

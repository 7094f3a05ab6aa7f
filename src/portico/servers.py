"""The kinds of servers: streams and datagrams, over IPv4, IPv6 and Unix sockets.

Only what one kind does differently from another; everything that all have in common is `_base`'s.
"""

from __future__ import annotations

import socket as _socket
from functools import partial
from threading import get_ident

from . import _handler_kinds, _sockets, datagram_settings
from ._addresses import AF_UNIX, unmapped
from ._base import BaseServer
from ._generics import Datagram
from ._own import Own
from .errors import SettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from ._reception import Reception

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


def _make_reception() -> Reception:
    from ._reception import Reception  # not before there is a datagram server

    return Reception()


class UDPServer(BaseServer[Datagram]):
    """Datagrams: a request is `(payload, socket)`, and the handler answers with `socket.sendto(...)`.

    Addresses as for `TCPServer`. There is no connection, so nothing is shut down or closed when a request ends. Answers
    leave from the address that was asked; those to datagrams that came together leave together, at once after their
    handlers, while these take less than 50 us each. On Linux; elsewhere one by one, from where the system likes.

    With `sessions` a request is a `Session` with one peer, whose handler reads all that he sends: that needs a way to
    run that has handlers beside each other. They are the server's connections: limits, timeouts and drains are theirs.
    """

    socket_type = _socket.SOCK_DGRAM
    allow_reuse_address = False  # two servers on one port would both seem to work (Linux)
    max_packet_size: int = datagram_settings.MAX_PACKET_SIZE.default
    deliver_truncated: bool = datagram_settings.DELIVER_TRUNCATED.default
    max_datagrams: int = datagram_settings.MAX_DATAGRAMS.default
    recv_buffer_size: int | None = datagram_settings.RECV_BUFFER_SIZE.default
    send_buffer_size: int | None = datagram_settings.SEND_BUFFER_SIZE.default
    broadcast: bool = datagram_settings.BROADCAST.default
    multicast_groups: Any = datagram_settings.MULTICAST_GROUPS.default
    ttl: int | None = datagram_settings.TTL.default
    tos: int | str | None = datagram_settings.TOS.default
    pin_interface: bool = datagram_settings.PIN_INTERFACE.default
    udp_gro: bool = datagram_settings.UDP_GRO.default
    udp_gso: bool = datagram_settings.UDP_GSO.default
    sessions: bool = datagram_settings.SESSIONS.default
    session_timeout: float | None = datagram_settings.SESSION_TIMEOUT.default
    session_queue: int = datagram_settings.SESSION_QUEUE.default
    max_sessions: int = datagram_settings.MAX_SESSIONS.default

    _portico_receive_flags = 0
    _portico_reception: Reception = Own(_make_reception)  # type: ignore[assignment]

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Self], Any],
        bind_and_activate: bool = True,
        **values: Any,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass, **values)
        if self.sessions:
            from ._sessions import SessionReception  # only where they are wanted

            self._portico_reception, self._portico_has_sessions = SessionReception(), True
        self._portico_open(bind_and_activate)

    def server_bind(self) -> None:
        """Bind the socket, as `BaseServer`'s."""
        from . import _datagram_options

        _datagram_options.tell_destination(self.socket, wanted=True)  # before the first datagram comes
        super().server_bind()

    def server_activate(self) -> None:
        """Set what datagram sockets alone have: buffers, groups, broadcast, TTL, TOS. There is nothing to listen to."""
        from . import _datagram_options

        for short in _datagram_options.apply(self):
            self._portico_emit(short)

    def get_request(self) -> tuple[Datagram, Any]:
        """Receive a datagram, of at most `max_packet_size` bytes."""
        sock: Any = self.socket
        reception: Any = self._portico_reception
        if sock is reception.batched and get_ident() == reception.thread:
            first = sock.first()
            while first is None:
                reception.refill(self, sock)
                first = sock.first()
            payload, client_address = first
        else:
            found: tuple[Datagram, Any] = reception.receive_one(self, sock, self._portico_receive_flags)
            return found
        return (payload, sock), client_address

    def close_request(self, request: Any) -> None:
        """End a session. A datagram holds nothing."""
        if self._portico_has_sessions and type(request) is not tuple:
            request.close()

    def handle_truncated(self, data: bytes, client_address: Any) -> None:
        """Called with the beginning of a datagram that was longer than `max_packet_size`. To override.

        It is dropped, counted in `stats().refused["truncated"]`, and told of once a minute at most; or handled as if it
        were whole, with `deliver_truncated`. To answer: `self.socket.sendto(..., client_address)`.
        """

    # -- for the house

    def _portico_check_handler(self, handler: Any) -> None:
        super()._portico_check_handler(handler)
        if self.sessions:
            if self._portico_runs_inline:
                raise SettingError(
                    f"sessions needs a way to run that has handlers beside each other: threads, forks, green or async; "
                    f"{type(self).__name__} handles one request after the other"
                )
            _handler_kinds.check_session(handler)

    def _portico_idle_timeout(self) -> float | None:
        limits = [self.idle_timeout, self.session_timeout if self._portico_has_sessions else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def _portico_goes_on(self) -> bool:
        reception: Any = self._portico_reception
        return self._portico_has_sessions and reception.take_no_more(self)

    @property
    def _portico_socket_class(self) -> type[_sockets.ServerSocket]:  # type: ignore[override]
        from ._datagrams import DatagramSocket

        return DatagramSocket

    @property
    def _portico_left_over(self) -> bool:
        """Whether something has been received, and not been taken."""
        return self._portico_reception.left_over(self)

    def _portico_wait_to_take(self, wait: bool) -> None:
        # By flag and not by the socket's mode: handlers send through the same socket, and may wait for room.
        wait = wait or not isinstance(self.socket, _socket.socket)
        self._portico_receive_flags = 0 if wait else _sockets.DONT_WAIT

    def _portico_serving_begins(self, loop: Any) -> None:
        super()._portico_serving_begins(loop)
        self._portico_reception.begin(self, self.socket)

    def _portico_serving_ended(self, loop: Any) -> None:
        if self._portico_loop is loop:
            self._portico_reception.end(self)
        super()._portico_serving_ended(loop)

    def _portico_taker(self) -> Callable[[], bool | Exception | None]:
        if not (self._portico_runs_inline and self._portico_reception.may_take(self)):
            return self._portico_reception.taker(self)
        from ._reception import take

        return partial(take, self)

    def _portico_prepare(self) -> None:
        super()._portico_prepare()
        self._portico_reception.choose(self)


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

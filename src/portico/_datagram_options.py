"""The socket options that datagram servers ask for: where a datagram went to, buffers, groups, broadcast, TTL, TOS.

What a group or a type of service means is `datagram_values`', when what is received `_datagrams`'.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from .datagram_values import Group, groups, octet
from .errors import SettingError, UnavailableError
from .lifecycle import BufferShort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

__all__ = ["apply", "kernel_drops", "tell_destination"]

_LINUX: Final = sys.platform == "linux"
_INET: Final = (socket.AF_INET, socket.AF_INET6)
# In Linux's <linux/in.h>, <linux/udp.h>, <asm-generic/socket.h>; the socket module does not have all of them.
_PKTINFO4: Final = (int(socket.IPPROTO_IP), 8)
_PKTINFO6: Final = (int(socket.IPPROTO_IPV6), 49)
_UDP_GRO: Final = (17, 104)
_SO_MEMINFO: Final = 55
_DROPS_AT: Final = 8


def tell_destination(sock: Any, *, wanted: bool) -> None:
    """Have the kernel say of each datagram to which address it was sent, or not (IP_PKTINFO, IPV6_RECVPKTINFO)."""
    if _LINUX and getattr(sock, "family", None) in _INET:
        sock.setsockopt(*(_PKTINFO4 if sock.family == socket.AF_INET else _PKTINFO6), int(wanted))


def apply(server: Any) -> Iterator[BufferShort]:
    """Set what a server's settings say, on its bound socket; yields what the kernel gave less of.

    Raises `SettingError` or `OSError` with the setting's name for what cannot be had.
    """
    sock = server.socket
    if not isinstance(sock, socket.socket):
        return
    yield from _size_buffers(server, sock)
    if server.broadcast:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if sock.family not in _INET:
        return
    tell_destination(sock, wanted=sock.getsockname()[0] in ("0.0.0.0", "::", "::ffff:0.0.0.0"))
    if server.udp_gro:
        try:
            sock.setsockopt(*_UDP_GRO, 1)
        except OSError as error:
            raise UnavailableError(f"udp_gro needs UDP_GRO, which this system does not have ({error})") from error
    if server.ttl is not None:
        _set(sock, ("IP_TTL", "IP_MULTICAST_TTL", "IPV6_UNICAST_HOPS", "IPV6_MULTICAST_HOPS"), server.ttl)
    if server.tos is not None:
        _set(sock, ("IP_TOS", "IPV6_TCLASS"), octet(server.tos) or 0)
    if server.multicast_groups is not None:
        for group in groups(server.multicast_groups):
            _join(sock, group)


def _set(sock: socket.socket, options: tuple[str, ...], value: int) -> None:
    """Set options of IPv6, if it is such a socket, and of IPv4, which Linux's IPv6 sockets have for IPv4 clients."""
    for option in options:
        six = option.startswith("IPV6")
        if six and sock.family != socket.AF_INET6:
            continue
        try:
            sock.setsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, getattr(socket, option), value)
        except OSError:
            if six or sock.family == socket.AF_INET:
                raise


def _size_buffers(server: Any, sock: socket.socket) -> Iterator[BufferShort]:
    kinds = (("recv_buffer_size", socket.SO_RCVBUF, "rmem"), ("send_buffer_size", socket.SO_SNDBUF, "wmem"))
    for name, option, sysctl in kinds:
        wanted = getattr(server, name)
        if wanted is None:
            continue
        sock.setsockopt(socket.SOL_SOCKET, option, min(wanted, 0x3FFFFFFF))
        given = sock.getsockopt(socket.SOL_SOCKET, option) // (2 if _LINUX else 1)  # which doubles it (socket(7))
        if given < wanted:
            yield BufferShort(name, wanted, given, f"net.core.{sysctl}_max" if _LINUX else "kern.ipc.maxsockbuf")


def _join(sock: socket.socket, group: Group) -> None:
    text = socket.inet_ntop(group.family, group.address) + (f"%{group.interface}" if group.interface else "")
    if group.family == socket.AF_INET6 and sock.family != socket.AF_INET6:
        raise SettingError(f"multicast_groups: {text} is an IPv6 group, and the server's socket is an IPv4 one")
    try:
        if group.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.address + _interface4(group.interface))
        else:
            index = _index(group.interface)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group.address + struct.pack("=i", index))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # joined already: the socket was handed over
            return
        raise OSError(error.errno, f"cannot join the multicast group {text}: {error.strerror}") from error


def _interface4(interface: str) -> bytes:
    """The end of struct ip_mreqn: a local address, or an index (ip(7))."""
    try:
        return socket.inet_pton(socket.AF_INET, interface) + bytes(4)
    except OSError:
        return bytes(4) + struct.pack("=i", _index(interface))


def _index(interface: str) -> int:
    if not interface:
        return 0
    try:
        return int(interface) if interface.isdigit() else socket.if_nametoindex(interface)
    except OSError:
        raise SettingError(f"multicast_groups: there is no network interface {interface!r}") from None


def kernel_drops(sock: Any) -> int | None:
    """How many datagrams the kernel has dropped for want of room, or with a wrong checksum; None where it does not say.

    The counter that SO_RXQ_OVFL sends along with every datagram, asked for instead when somebody wants to know: so it
    costs a datagram nothing (SO_MEMINFO, Linux 4.12).
    """
    try:
        figures = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS_AT + 1)) if _LINUX else b""
    except (OSError, AttributeError):
        return None
    return struct.unpack_from("=I", figures, 4 * _DROPS_AT)[0] if len(figures) > 4 * _DROPS_AT else None

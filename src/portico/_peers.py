"""Who sent a datagram, and to which of our addresses: what the kernel says in bytes, as addresses that Python has.

Values only, no calls: what the bytes are received with is `_mmsg`'s and `_datagrams`'. The layouts are Linux's (ip(7),
ipv6(7), RFC 3542).
"""

from __future__ import annotations

import socket
from struct import Struct
from sys import byteorder

from ._addresses import unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

__all__ = ["NAME_LENGTH", "PeerAddress", "Peers", "Route"]

_V4, _V6 = int(socket.AF_INET), int(socket.AF_INET6)
NAME_LENGTH: Final = {_V4: 16, _V6: 28}
"""Bytes of a socket address, by family."""
_BLANK: Final = {_V4: Struct("=qii i4s4s4x"), _V6: Struct("=qii 16sI4x")}
_CONTROL_LENGTH: Final = {family: layout.size for family, layout in _BLANK.items()}  # with its head and padding
_PKTINFO: Final = {_V4: (28, int(socket.IPPROTO_IP), 8), _V6: (36, int(socket.IPPROTO_IPV6), 50)}
_NAME4: Final = Struct("!2xH4s")
_NAME6: Final = Struct("!2xHI16s")
_HEAD: Final = Struct("=qii")
_SCOPE: Final = Struct("=24xI")
_FAMILY: Final = Struct("=H")
_LINK_LOCAL4: Final = b"\xa9\xfe"
_LINK_LOCAL6: Final = b"\xfe\x80"
_MAPPED: Final = bytes(10) + b"\xff\xff"
# Peers remembered, so that an address is put together once and not with every datagram. Beyond it all are forgotten:
# who floods a server with forged addresses gains no memory, and costs the others one look more (0.3 MB in all).
_KNOWN: Final = 4096


class Route:
    """How a peer is reached: from which address of ours, and what that is in the kernel's own words."""

    __slots__ = ("control", "interface", "local", "name", "peers", "raw", "target")

    def __init__(self, peers: Peers, raw: bytes, target: tuple[Any, ...]) -> None:
        self.peers = peers
        """Of the socket that he was heard by: no other one can send that way."""
        self.raw = raw
        """His address, as the kernel has it."""
        self.target = target
        """As a socket's own `sendto` takes it: not the one that is shown, where that is shown as IPv4's."""
        self.control = b""
        """What sendmsg(2) needs to send from our address; empty where the socket has only one."""
        self.local: Any = None
        """Our address: host and port, as `getsockname()` would have it."""
        self.interface = 0
        """The index of the network interface that he came by; 0 if the kernel did not say."""
        self.name: tuple[Any, ...] = target
        """As it is shown; no `PeerAddress`, which knows its route: the two would wait for the garbage collector."""


class PeerAddress(tuple[Any, ...] if TYPE_CHECKING else tuple):  # type: ignore[misc]
    """A datagram's sender: the tuple that `socketserver` has, which also knows which address of ours it was sent to.

    What is sent to it leaves from there, also on a wildcard or dual-stack socket. A copy is a plain tuple.
    """

    route: Route

    @property
    def local(self) -> Any:
        """The address of ours that was asked: host and port, as `getsockname()` would have it."""
        return self.route.local

    @property
    def interface(self) -> int:
        """The index of the network interface that it came by; 0 if the kernel did not say."""
        return self.route.interface

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


class Peers:
    """The senders of the datagrams of one socket: bytes to addresses. Bounded; made anew when the socket is bound.

    `bound` is the socket's own address, `everywhere` whether that is a wildcard; the others are the settings
    `unmap_ipv4` and `pin_interface`.
    """

    def __init__(self, family: int, bound: Any, *, everywhere: bool, unmap: bool, pin: bool = False) -> None:
        self._family = int(family)
        self._bound = bound
        self._unmap = unmap
        self._pin = pin
        self.name_length = NAME_LENGTH[self._family]
        self.control_length = _CONTROL_LENGTH[self._family] if everywhere else 0
        self.known: dict[bytes | int, PeerAddress] = {}
        """By what the kernel says: the address, then the control message; or the first word of the address alone."""
        self._by_name: dict[tuple[Any, ...], PeerAddress] = {}
        self.last: dict[tuple[Any, ...], PeerAddress] | None = None
        """To be kept up to date with each datagram, if one peer asks several of our addresses: who was heard last."""

    def learn(self, key: bytes, short: int | None = None) -> PeerAddress:
        """The sender that is not known yet."""
        if len(self.known) >= _KNOWN:
            self.known.clear()
            self._by_name.clear()
        raw = key[: self.name_length]
        target = self._decoded(raw)
        found = PeerAddress(unmapped(target) if self._unmap else target)
        found.route = route = Route(self, raw, target)
        route.name, route.local = tuple(found), self._bound
        if self.control_length:
            route.control, route.local, route.interface = self._destination(key[self.name_length :], raw)
        if found in self._by_name:
            self.last = self._by_name
        self.known[key if short is None else short] = self._by_name[found] = found
        return found

    def of(self, address: tuple[Any, ...], ancillary: list[tuple[int, int, bytes]]) -> PeerAddress:
        """The sender, from what `recvmsg` returns."""
        key = self._encoded(address)
        if self.control_length:
            length, level, kind = _PKTINFO[self._family]
            content = next((found[2] for found in ancillary if found[:2] == (level, kind)), b"")
            key += (_HEAD.pack(length, level, kind) + content).ljust(self.control_length, b"\0")
        found = self.known.get(key) or self.learn(key)
        self.heard(found)
        return found

    def named(self, address: tuple[Any, ...]) -> PeerAddress | None:
        """The sender of that address who was heard last, for a handler that has put the address together itself."""
        return self._by_name.get(address)

    def heard(self, sender: PeerAddress) -> None:
        """A datagram of this one is handled now."""
        if self.last is not None:
            self.last[sender] = sender

    def heard_all(self, arrived: Iterable[tuple[bytes, PeerAddress]]) -> None:
        """Datagrams of these will be handled in this order."""
        if self.last is not None:
            self.last.update((sender, sender) for _, sender in arrived)

    def ancillary(self, route: Route, *, any_interface: bool = False) -> list[tuple[int, int, bytes]]:
        """What `sendmsg` needs to send from the address that was asked; by the same interface, or as the routes say."""
        if not route.control:
            return []
        length, level, kind = _PKTINFO[self._family]
        content = route.control[_HEAD.size : length]
        if any_interface:
            content = bytes(4) + content[4:] if self._family == _V4 else content[:16] + bytes(4)
        return [(level, kind, content)]

    def _decoded(self, raw: bytes) -> tuple[Any, ...]:
        if self._family == _V4:
            port, host = _NAME4.unpack_from(raw)
            return socket.inet_ntoa(host), port
        port, flow, host = _NAME6.unpack_from(raw)
        return socket.inet_ntop(_V6, host), port, flow, _SCOPE.unpack_from(raw)[0]

    def _encoded(self, address: tuple[Any, ...]) -> bytes:
        family = _FAMILY.pack(self._family)
        if self._family == _V4:
            return family + _NAME4.pack(address[1], socket.inet_aton(address[0]))[2:] + bytes(8)
        host = socket.inet_pton(_V6, address[0])
        scope: bytes = address[3].to_bytes(4, byteorder)
        return family + _NAME6.pack(address[1], address[2], host)[2:] + scope

    def _destination(self, control: bytes, raw: bytes) -> tuple[bytes, Any, int]:
        """What to send back with, our address, and the interface. Of a group's address nothing can be sent.

        The interface is left to the routes, as replies may have to take another one; but not for link-local peers, who
        are nowhere else, nor for groups, of whom the routes know nothing.
        """
        head = _HEAD.pack(*_PKTINFO[self._family])
        if control[: len(head)] != head:  # something else has been switched on, and has taken its place
            source = _MAPPED if raw[8:20] == _MAPPED else b""
            return (head + source).ljust(len(control), b"\0"), self._bound, 0
        if self._family == _V4:
            *_, interface, source, asked = _BLANK[_V4].unpack(control)
            if source == asked and not self._pin and asked[:2] != _LINK_LOCAL4:
                control = control[:16] + bytes(4) + control[20:]
            return control, (socket.inet_ntoa(asked), *self._bound[1:]), interface
        *_, asked, interface = _BLANK[_V6].unpack(control)
        mapped = asked[:12] == _MAPPED
        if asked[0] == 0xFF or (mapped and asked[12] >= 224):
            control = control[:16] + (_MAPPED if mapped else bytes(12)) + bytes(4) + control[32:]
        elif not self._pin and asked[:2] != _LINK_LOCAL6:
            control = control[:32] + bytes(len(control) - 32)
        if self._unmap and mapped:
            return control, (socket.inet_ntoa(asked[12:]), self._bound[1]), interface
        scope = interface if asked[:2] == _LINK_LOCAL6 else 0
        return control, (socket.inet_ntop(_V6, asked), self._bound[1], 0, scope), interface

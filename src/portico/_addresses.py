"""Addresses as people write them: which family one belongs to, and how it is spelled.

Only values in and values out, but for one thing: a host name has to be looked up to know its family. Sockets are
`_sockets`' business.
"""

from __future__ import annotations

import os
import socket
from collections import namedtuple

from .errors import AddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Endpoint", "describe", "infer", "is_mapped", "parse", "spell", "unmapped"]

AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)
_EXAMPLES = (
    "tcp://127.0.0.1:8000, tcp://[::1]:8000, tls://0.0.0.0:8443, udp://0.0.0.0:53, unix:/run/a.sock, "
    "tls-unix:/run/a.sock, unix-dgram:/run/a.sock, fd://3, systemd://NAME"
)


class Endpoint(namedtuple("Endpoint", ["kind", "address"])):
    """What an address of the command line means: a kind of socket, and the address a server class takes."""

    __slots__ = ()


def infer(address: Any, dual_stack: bool | None = None) -> tuple[int, Any]:
    """The family an address belongs to, and the address to bind.

    A (host, port) pair is IPv4 or IPv6 by its literal, or by name, IPv4 first as with `socketserver`; an empty host is
    IPv4's wildcard, or IPv6's for a dual-stack socket. A path-like object, a text with a slash, or a name that begins
    with a zero byte (Linux's abstract names, unix(7)) is a Unix address.
    """
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    if isinstance(address, (str, bytes)):
        return _infer_unix(address)
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise AddressError(f"{address!r} is no address: give (host, port), a path, a socket, or 'fd://N'")
    host = address[0]
    if dual_stack and host in ("", "::", None):
        return socket.AF_INET6, ("::", *address[1:])
    if isinstance(host, str) and ":" in host and "%" in host and len(address) == 2:
        return socket.AF_INET6, _scoped(host, address[1])
    return _family_of_host(host), address


def _scoped(host: str, port: Any) -> tuple[str, Any, int, int]:
    """A link-local address with its zone, the name or number of an interface (RFC 4007, 11), as bind() takes it."""
    bare, _, zone = host.partition("%")
    try:
        return bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    except OSError:
        raise AddressError(f"{host!r} is no address: there is no network interface {zone!r}") from None


def _infer_unix(address: str | bytes) -> tuple[int, str | bytes]:
    slash, zero = (b"/", b"\0") if isinstance(address, bytes) else ("/", "\0")
    if AF_UNIX is None:
        raise AddressError(f"{address!r} is a Unix address, and this system has no Unix sockets")
    if slash not in address and not address.startswith(zero):  # type: ignore[operator, arg-type]
        raise AddressError(f"{address!r} is no address: a TCP or UDP one is (host, port), a Unix one a path with a '/'")
    return AF_UNIX, address


def _family_of_host(host: Any) -> int:
    """Errors are left to bind(): it reports them as `socketserver`'s users know them."""
    if not isinstance(host, str) or not host:
        return socket.AF_INET
    if ":" in host:
        return socket.AF_INET6
    if host.replace(".", "").isdigit():
        return socket.AF_INET
    try:
        families = {found[0] for found in socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)}
    except (OSError, UnicodeError):
        return socket.AF_INET
    return socket.AF_INET6 if families == {socket.AF_INET6} else socket.AF_INET


def is_mapped(host: str) -> bool:
    """Whether an IPv6 host is an IPv4 one in disguise (RFC 4291, 2.5.5.2)."""
    return host.startswith("::ffff:") and "." in host


def unmapped(address: Any) -> Any:
    """An IPv4-mapped client address as the IPv4 pair it stands for; any other as it is."""
    if isinstance(address, tuple) and len(address) == 4 and is_mapped(address[0]):
        return address[0][7:], address[1]
    return address


def parse(text: str) -> Endpoint:
    """Read an address of the command line; `AddressError` says what is allowed."""
    kind, colon, rest = text.partition(":")
    if not colon:
        raise AddressError(f"{text!r} is no address; give one like {_EXAMPLES}")
    if kind in ("tcp", "tls", "udp") and rest.startswith("//"):
        return Endpoint(kind, _host_and_port(text, rest[2:]))
    if kind in ("unix", "tls-unix", "unix-dgram") and rest.strip("/"):
        path = "/" + rest.lstrip("/") if rest.startswith("//") else rest
        return Endpoint(kind, "\0" + path[1:] if path.startswith("@") else path)
    if kind in ("fd", "systemd") and rest.startswith("//"):
        return Endpoint(kind, text)
    raise AddressError(f"{text!r} is no address; give one like {_EXAMPLES}")


def _host_and_port(text: str, rest: str) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed) or not (port.isascii() and port.isdigit()):
        raise AddressError(f"{text!r} is no address: after '//' comes host:port, with an IPv6 host in brackets")
    if int(port) > 65535:
        raise AddressError(f"{text!r} is no address: a port is from 0 (any free one) to 65535")
    return host[1:-1] if bracketed else host, int(port)


def spell(kind: str, address: Any) -> str:
    """The opposite of `parse`: one word that names where a socket is bound."""
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{kind}://{host}:{address[1]}"
    name = os.fsdecode(address)
    return f"{kind}:{'@' + name[1:] if name.startswith(chr(0)) else name}"


def describe(sock: socket.socket, address: Any = None, *, encrypted: bool = False) -> str:
    """`spell` for a socket: its own address, or one it is about to have."""
    datagram = sock.type == socket.SOCK_DGRAM
    if AF_UNIX is not None and sock.family == AF_UNIX:
        kind = "unix-dgram" if datagram else "tls-unix" if encrypted else "unix"
    else:
        kind = "udp" if datagram else "tls" if encrypted else "tcp"
    try:
        return spell(kind, sock.getsockname() if address is None else address)
    except (TypeError, IndexError):  # an address that is none: bind() will say so
        return f"{kind} address {address!r}"

"""What people write for multicast groups and types of service, and what it means. Values only, no sockets."""

from __future__ import annotations

import socket
from collections import namedtuple

from .errors import SettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Group", "groups", "octet"]


class Group(namedtuple("Group", ["family", "address", "interface"])):
    """A multicast group: its family, its address in bytes, and the interface as it was written, empty for any."""

    __slots__ = ()


def groups(value: Any) -> list[Group]:
    """Read one group or several, such as "239.1.2.3", "239.1.2.3%192.0.2.1", "ff02::1%eth0". Raises `SettingError`."""
    several = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(several, (list, tuple, set, frozenset)):
        raise SettingError(f"{value!r} is no group")
    return [_group(text) for text in several]


def _group(text: Any) -> Group:
    if not isinstance(text, str):
        raise SettingError(f"{text!r} is no group")
    host, _, interface = text.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.inet_pton(family, host)
    except OSError:
        raise SettingError(f"{text!r} is no address") from None
    if not (address[0] == 0xFF if family == socket.AF_INET6 else 224 <= address[0] <= 239):
        raise SettingError(f"{text!r} is no multicast address: those are 224.0.0.0/4 and ff00::/8")
    return Group(family, address, interface)


def octet(tos: int | str) -> int | None:
    """The octet that a type of service is: a number, or a DSCP by name (RFC 2474, 2597, 3246, 8622), else None."""
    if not isinstance(tos, str):
        return tos
    name = tos.upper()
    kind, digits = name[:2], name[2:]
    if name in ("EF", "LE"):
        return {"EF": 46, "LE": 1}[name] << 2
    if kind == "CS" and digits in tuple("01234567"):
        return int(digits) << 5
    if kind == "AF" and len(digits) == 2 and digits[0] in "1234" and digits[1] in "123":
        return (int(digits[0]) * 8 + int(digits[1]) * 2) << 2
    return None

"""Sockets that somebody else opened: a number handed down by a parent, or systemd's socket activation.

The protocol is sd_listen_fds(3): LISTEN_PID names the process meant, LISTEN_FDS counts descriptors from 3 up, and
LISTEN_FDNAMES names them. Reads the environment through `_system`; opens nothing.
"""

from __future__ import annotations

import os
import socket

from .errors import AddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._system import System

__all__ = ["adopt", "from_text"]

_FIRST = 3


def from_text(text: str, system: System) -> socket.socket:
    """The socket that `fd://N`, `systemd://` (the first one), `systemd://NAME` or `systemd://NAME#2` stands for.

    The socket returned owns the descriptor from now on. Raises `AddressError` if there is none.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "systemd":
        return adopt(_systemd_descriptor(rest, system), text)
    if not (rest.isascii() and rest.isdigit()):
        raise AddressError(f"{text!r}: after 'fd://' comes the number of an open socket")
    return adopt(int(rest), text)


def adopt(descriptor: int, text: str) -> socket.socket:
    """Make a socket object of an inherited descriptor, and keep it from being inherited further."""
    try:
        sock = socket.socket(fileno=descriptor)
    except (OSError, OverflowError) as error:
        raise AddressError(f"{text!r}: descriptor {descriptor} is no open socket ({error})") from None
    os.set_inheritable(descriptor, False)
    return sock


def _systemd_descriptor(name: str, system: System) -> int:
    names = _passed(system)
    if not names:
        raise AddressError("no sockets were passed to this process (LISTEN_FDS, LISTEN_PID; see sd_listen_fds(3))")
    if not name:
        return _FIRST
    name, _, number = name.partition("#")
    places = [place for place, known in enumerate(names) if known == name]
    if number and not (number.isascii() and number.isdigit() and 1 <= int(number) <= max(1, len(places))):
        raise AddressError(
            f"'systemd://{name}#{number}': {len(places)} sockets of that name were passed; #1 is the first"
        )
    if not places:
        raise AddressError(f"no socket named {name!r} was passed; there are: {', '.join(names)} (LISTEN_FDNAMES)")
    return _FIRST + places[int(number or 1) - 1]


def _passed(system: System) -> list[str]:
    """The names of the descriptors from 3 up that are meant for this process."""
    environ = system.environ
    if environ.get("LISTEN_PID") != str(system.pid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit()):
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":") if environ.get("LISTEN_FDNAMES") else []
    return [names[i] if i < len(names) else "unknown" for i in range(int(count))]

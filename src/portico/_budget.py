"""What `portico serve` allows by default: limits from what this process may have, and the line that says so.

The classes stay as open as `socketserver`'s; a command that is typed into a shell is not. Each of these can be set
otherwise, or to none.
"""

from __future__ import annotations

from .limits import LIMITS
from .opening_settings import HANDSHAKE_TIMEOUT, MAX_HANDSHAKES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final

    from ._system import System

__all__ = ["BELOW", "budget", "defaults", "told"]

# Bytes that a connection takes, with the kernel's buffers and some of its handler's, by the way it is run.
_EACH: Final = {"ThreadingMixIn": 256 << 10, "ForkingMixIn": 4 << 20}
_EACH_ON_A_LOOP: Final = 64 << 10
# Descriptors: a forking server has a copy of each connection, and one that tells of its child's end.
_DESCRIPTORS: Final = {"ForkingMixIn": 2}
# What must not be above `max_connections`.
BELOW: Final = ("max_connections_per_client", "connections_alarm")
_IDLE_TIMEOUT: Final = 60.0
_SEND_TIMEOUT: Final = 30.0
_ALWAYS: Final = ("drain_timeout", "handshake_timeout")


def defaults(server_class: type, servers: int, system: System, given: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of one of so many stream servers of this process, where those that are `given` say nothing.

    A given one that there is no room for is lowered to what there is.
    """
    names = [base.__name__ for base in server_class.__mro__]
    each = max(_EACH.get(name, _EACH_ON_A_LOOP) for name in names)
    held = max(_DESCRIPTORS.get(name, 1) for name in names)
    number, _ = budget(system.most_descriptors(), system.free_memory(), each=each, held=held)
    most = given.get("connection_timeout")
    idle = _IDLE_TIMEOUT if most is None else min(_IDLE_TIMEOUT, most)
    room = max(1, number // servers)
    found: dict[str, Any] = {"max_connections": room, "idle_timeout": idle, "send_timeout": _SEND_TIMEOUT}
    if "max_connections" not in given:
        found |= {name: min(room, given[name]) for name in BELOW if given.get(name) is not None}
    if _opens(given):
        most_at_once = min(_rooms(server_class, found, given))
        found["max_handshakes"] = max(1, most_at_once // 2)  # so that those who do say something have the rest
    return found


def budget(descriptors: int, memory: int, *, each: int, held: int = 1, reserve: int | None = None) -> tuple[int, str]:
    """How many connections fit, at least 1, and what bounds them: "descriptors" or "memory".

    `descriptors` is the soft limit (negative: none), of which `reserve` stay for listeners, logs and libraries (None:
    one in twenty, at least 32), and `held` what one connection takes. `memory` is what is available, half of which may
    be used, and `each` what one takes, both in bytes.
    """
    if reserve is None:
        reserve = max(32, descriptors // 20)
    by_descriptors = (descriptors - reserve) // held if descriptors >= 0 else float("inf")
    number, bound = min((by_descriptors, "descriptors"), (memory // 2 // each, "memory"))
    return max(1, int(number)), bound


def _opens(values: Mapping[str, Any]) -> bool:
    """Whether connections have something to do before their handler sees them."""
    return _is_encrypted(values) or values.get("proxy_protocol", "off") != "off"


def _is_encrypted(values: Mapping[str, Any]) -> bool:
    return values.get("tls") is not None and not values.get("starttls")


def _rooms(server_class: type, found: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[int]:
    """For how many connections there is room that are not open yet, in each respect."""
    spent = ("max_children", "max_threads") if _is_encrypted(given) else ()  # on a handshake; PROXY headers need none
    for name in ("max_connections", *spent):
        number = given.get(name, getattr(server_class, name, None))
        number = found.get(name) if number is None else number
        if number is not None:
            yield number


def told(server: object) -> str:
    """The limits that this server has, in one line."""
    return ", ".join(_facts(server)) or "none"


def _facts(server: object) -> Iterator[str]:
    if hasattr(server, "max_children"):
        yield f"max_children {server.max_children}"
    shown = {name: getattr(server, name) for name in ("tls", "starttls", "proxy_protocol") if hasattr(server, name)}
    for setting in (*LIMITS, *((MAX_HANDSHAKES, HANDSHAKE_TIMEOUT) if _opens(shown) else ())):
        value = getattr(server, setting.name, setting.default)
        if value == setting.default and setting.name not in _ALWAYS:
            continue
        spelled = f"{value:g}" if isinstance(value, float) else str(value)
        yield f"{setting.name} {spelled}" + (" s" if setting.unit == "seconds" and value is not None else "")

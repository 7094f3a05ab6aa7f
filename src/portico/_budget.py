"""What `portico serve` allows by default: limits from what this process may have, and the line that says so.

The classes stay as open as `socketserver`'s; a command that is typed into a shell is not. Each of these can be set
otherwise, or to none.
"""

from __future__ import annotations

from .admission import budget
from .limits import LIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from ._system import System

__all__ = ["defaults", "told"]

# Bytes that a connection takes, with the kernel's buffers and some of its handler's, by the way it is run.
_EACH: Final = {"ThreadingMixIn": 256 << 10, "ForkingMixIn": 4 << 20}
_EACH_ON_A_LOOP: Final = 64 << 10
_IDLE_TIMEOUT: Final = 60.0
_SEND_TIMEOUT: Final = 30.0


def defaults(server_class: type, servers: int, system: System, *, most: float | None = None) -> dict[str, Any]:
    """The limits of one of so many stream servers of this process, where nobody says otherwise.

    `most` is the seconds that a connection may last at all, if that is limited.
    """
    each = max(_EACH.get(base.__name__, _EACH_ON_A_LOOP) for base in server_class.__mro__)
    number, _ = budget(system.most_descriptors(), system.free_memory(), each=each)
    idle = _IDLE_TIMEOUT if most is None else min(_IDLE_TIMEOUT, most)
    return {"max_connections": max(1, number // servers), "idle_timeout": idle, "send_timeout": _SEND_TIMEOUT}


def told(server: object) -> str:
    """The limits that this server has, in one line."""
    return ", ".join(_facts(server)) or "none"


def _facts(server: object) -> Iterator[str]:
    if hasattr(server, "max_children"):
        yield f"max_children {server.max_children}"
    for setting in LIMITS:
        value = getattr(server, setting.name, setting.default)
        if value == setting.default and setting.name != "drain_timeout":
            continue
        spelled = f"{value:g}" if isinstance(value, float) else str(value)
        yield f"{setting.name} {spelled}" + (" s" if setting.unit == "seconds" and value is not None else "")

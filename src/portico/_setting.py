"""What a setting is: a name, a default, a unit, a reason, and what it allows, in words and as a test.

The mechanism only. Which settings there are, and every number, is `settings`'; what one does is said by the code that
reads it.
"""

from __future__ import annotations

import sys

from ._generics import Generic, SettingT
from .errors import SettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeAlias

    Keepalive: TypeAlias = float | tuple[float, float, int] | None

__all__ = [
    "ACCESS_LOG_KIND",
    "BACKLOG",
    "BYTES",
    "COUNT",
    "DENIED",
    "DURATION",
    "EVENT_LOOP_KIND",
    "FLAG",
    "FRACTION",
    "GROUP",
    "GROUPS",
    "KEEPALIVE_KIND",
    "MAYBE_COUNT",
    "MAYBE_PAUSE",
    "MODE",
    "NETWORKS",
    "OVERLOAD_KIND",
    "PAUSE",
    "PREFIX4",
    "PREFIX6",
    "PROXY_KIND",
    "SAME",
    "SYSTEM_FLAG",
    "TLS_KIND",
    "TOS_KIND",
    "TRUSTED_KIND",
    "TTL_KIND",
    "USERS",
    "USER_GROUPS",
    "Kind",
    "Setting",
]

SAME: Final = object()
"""In the place of a setting's `stdlib`: `socketserver` does the same."""


_LONG: Final = 100
# The most that a setting may be: seconds that threads and loops can still wait for, and counts that C can hold.
_SECONDS: Final = 10**9
_COUNT: Final = 2**31 - 1


class Kind(Generic[SettingT]):
    """What values a setting allows, in words and as a test, and how the command line spells them."""

    __slots__ = ("allowed", "parse", "test")

    def __init__(self, allowed: str, test: Callable[[Any], bool], parse: Callable[[str], SettingT]) -> None:
        self.allowed = allowed
        self.test = test
        self.parse = parse


class Setting(Generic[SettingT]):
    """One setting. `stdlib` is what `socketserver` has in its place, where the two differ."""

    __slots__ = ("default", "kind", "name", "reason", "stdlib", "unit")

    def __init__(
        self, name: str, default: SettingT, kind: Kind[Any], *, unit: str, reason: str, stdlib: Any = SAME
    ) -> None:
        self.name = name
        self.default = default
        self.kind = kind
        self.unit = unit
        self.reason = reason
        self.stdlib = stdlib

    def check(self, value: Any) -> None:
        """Raise `SettingError` unless `value` is allowed."""
        try:
            allowed, why = self.kind.test(value), ""
        except SettingError as error:  # a test that knows what is wrong with it
            allowed, why = False, f": {error}"
        if not allowed:
            raise SettingError(f"{self.name} must be {self.kind.allowed}, not {_shown(value)}{why}")

    def parse(self, text: str) -> SettingT:
        """Return the value that `text` spells on a command line; `SettingError` if it spells none."""
        try:
            value: SettingT = self.kind.parse(text)
        except ValueError:
            raise SettingError(f"{self.name} must be {self.kind.allowed}, not {text!r}") from None
        self.check(value)
        return value


def _shown(value: Any) -> str:
    """A value, or the beginning of a long one: a list of a thousand networks helps nobody."""
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _SECONDS


def _whole(low: int, high: int = _COUNT) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _maybe(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else parse(text)


def _flag(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _overload(text: str) -> str | bytes:
    from difflib import get_close_matches

    if text in ("wait", "close"):
        return text
    if get_close_matches(text.lower(), ("wait", "close"), 1, 0.7):  # else a slip would be what clients are told
        raise ValueError(text)
    return text.encode().decode("unicode_escape").encode("latin-1")


def _keepalive(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return tuple(map(_digits, text.split(","))) if "," in text else float(text)


def _group(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _digits(text: str) -> float:
    return int(text) if text.strip().isdigit() else float(text)


def _is_keepalive(value: Any) -> bool:
    three = isinstance(value, (tuple, list)) and len(value) == 3
    return three and all(_number(number) and number > 0 for number in value) and isinstance(value[2], int)


def _is_networks(value: Any) -> bool:
    from .admission import Networks  # only where somebody sets them

    try:
        Networks.of(value)
    except ValueError as wrong:
        raise SettingError(str(wrong)) from None
    return True


def _is_plain_callable(value: Any) -> bool:
    code = getattr(value, "__code__", None)
    return callable(value) and not (code is not None and code.co_flags & 0x80)  # inspect.CO_COROUTINE


def _is_trusted(value: Any) -> bool:
    from .admission import Trusted

    Trusted(value)
    return True


def _is_ids(value: Any, *, groups: bool = False) -> bool:
    from .admission import user_ids

    user_ids(value, groups=groups)
    return True


def _is_tls(value: Any) -> bool:
    from .tls import TLS

    ssl: Any = sys.modules.get("ssl")  # without it there can be no context
    return isinstance(value, TLS) or (ssl is not None and isinstance(value, ssl.SSLContext))


def _not_text(text: str) -> Any:
    raise ValueError(text)


def _is_groups(value: Any) -> bool:
    from .datagram_values import groups

    groups(value)
    return True


def _is_tos(value: Any) -> bool:
    from .datagram_values import octet

    return isinstance(value, str) and octet(value) is not None


FLAG: Final = Kind("true or false", lambda value: value in (True, False), _flag)
SYSTEM_FLAG: Final = Kind(
    "true, false, or none for the system's own default", lambda value: value in (True, False, None), _maybe(_flag)
)
COUNT: Final = Kind("a whole number from 1 to 2147483647", _whole(1), int)
BACKLOG: Final = Kind("a whole number from 0 to 2147483647", _whole(0), int)
BYTES: Final = Kind("a whole number of bytes from 1 to 16777216 (16 MiB)", _whole(1, 1 << 24), int)
PAUSE: Final = Kind("a number of seconds above 0, up to 1e9", lambda value: _number(value) and value > 0, float)
WAIT: Final = Kind(
    "a number of seconds from 0 to 1e9, or none",
    lambda value: value is None or (_number(value) and value >= 0),
    _maybe(float),
)
MODE: Final = Kind(
    "file permissions from 0o000 to 0o777, or none",
    lambda value: value is None or _whole(0, 0o777)(value),
    _maybe(lambda text: int(text, 8)),
)
GROUP: Final = Kind(
    "a group's name or number, or none",
    lambda value: value is None or isinstance(value, str) or _whole(0)(value),
    _maybe(_group),
)

EVENT_LOOP_KIND: Final = Kind(
    '"auto", "asyncio" or "uvloop"', lambda value: value in ("auto", "asyncio", "uvloop"), str
)

# Kinds of limits. None is no limit.

MAYBE_COUNT: Final = Kind(
    "a whole number from 1 to 2147483647, or none", lambda value: value is None or _whole(1)(value), _maybe(int)
)
MAYBE_PAUSE: Final = Kind(
    "a number above 0, up to 1e9, or none", lambda value: value is None or (_number(value) and value > 0), _maybe(float)
)
DURATION: Final = Kind("a number of seconds from 0 to 1e9", lambda value: _number(value) and value >= 0, float)
FRACTION: Final = Kind("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1, float)
PREFIX4: Final = Kind("a whole number from 1 to 32", _whole(1, 32), int)
PREFIX6: Final = Kind("a whole number from 1 to 128", _whole(1, 128), int)
NETWORKS: Final = Kind(
    'networks such as "10.0.0.0/8, 2001:db8::/32", a list of such, or none',
    lambda value: value is None or _is_networks(value),
    _maybe(str),
)
DENIED: Final = Kind(
    'networks such as "10.0.0.0/8, 2001:db8::/32", a list of such, which may be empty, or none',
    lambda value: value is None or value in ("", [], ()) or _is_networks(value),
    _maybe(str),
)
OVERLOAD_KIND: Final = Kind(
    '"wait", "close", or an answer: bytes, or a callable (no coroutine) that returns them',
    lambda value: value in ("wait", "close") or isinstance(value, bytes) or _is_plain_callable(value),
    _overload,
)
KEEPALIVE_KIND: Final = Kind(
    "a number of seconds above 0, up to 1e9, or three numbers: seconds of silence, seconds between probes and how many "
    "of them, such as (10, 5, 3); true for the system's own, or none",
    lambda value: (
        any(value is known for known in (None, True, False)) or (_number(value) and value > 0) or _is_keepalive(value)
    ),
    _maybe(_keepalive),
)
ACCESS_LOG_KIND: Final = Kind('"text", "json" or none', lambda value: value in ("text", "json", None), _maybe(str))

# What only datagrams have.

GROUPS: Final = Kind(
    'multicast groups such as "239.1.2.3" or "ff02::1%eth0", a list of such, or none',
    lambda value: value is None or _is_groups(value),
    _maybe(lambda text: [word.strip() for word in text.split(",")]),
)
TTL_KIND: Final = Kind(
    "a whole number of hops from 1 to 255, or none", lambda value: value is None or _whole(1, 255)(value), _maybe(int)
)
TOS_KIND: Final = Kind(
    "a whole number from 0 to 255, the name of a DSCP (EF, LE, CS0 to CS7, AF11 to AF43), or none",
    lambda value: value is None or _whole(0, 255)(value) or _is_tos(value),
    _maybe(lambda text: int(text, 0) if text[:1].isdigit() else text),
)

# What happens before a handler sees a connection.

TLS_KIND: Final = Kind(
    "a portico.TLS, an ssl.SSLContext, or none (portico serve: --tls-cert)",
    lambda value: (
        value is None or value is False or _is_tls(value)
    ),  # False: a program's own attribute may be called so
    _maybe(_not_text),
)
PROXY_KIND: Final = Kind('"off", "optional" or "required"', lambda value: value in ("off", "optional", "required"), str)
TRUSTED_KIND: Final = Kind(
    'networks such as "10.0.0.0/8", the word "unix" for Unix clients, a list of such, or none',
    lambda value: value is None or _is_trusted(value),
    _maybe(str),
)
USERS: Final = Kind(
    'numbers or names, such as "www-data, 1000", a list of such, or none',
    lambda value: value is None or _is_ids(value),
    _maybe(str),
)
USER_GROUPS: Final = Kind(
    'numbers or names, such as "staff, 1000", a list of such, or none',
    lambda value: value is None or _is_ids(value, groups=True),
    _maybe(str),
)

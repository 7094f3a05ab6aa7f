"""Every setting of every server, declared once: name, default, unit, reason, and what it allows. Limits are `limits`'.

A declaration serves as a class variable (`request_queue_size: int = REQUEST_QUEUE_SIZE.default`), as a keyword
argument of the constructors, as `--set NAME=VALUE` of `portico serve`, and as a row of docs/settings.md. What a
setting does is said by the code that reads it, not here.

Keyword arguments and the command line are checked one by one, attributes set on a class or an instance when the server
is made and when it begins to serve. A program's own attribute of another meaning must not be called like one of these.
"""

from __future__ import annotations

import os

from . import limits
from ._scopes import RULES, misplaced
from ._setting import (
    BACKLOG,
    COUNT,
    EVENT_LOOP_KIND,
    FLAG,
    GROUP,
    MODE,
    PAUSE,
    SAME,
    SYSTEM_FLAG,
    WAIT,
    Kind,
    Setting,
)
from .datagram_settings import DATAGRAM_SETTINGS
from .errors import SettingError, UnknownSettingError
from .opening_settings import OPENING_SETTINGS, check_opening

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Final

__all__ = ["ALL", "Changed", "Kind", "Setting", "alternatives", "apply", "check", "compat_values", "of"]


# What every server has.

STDLIB_COMPAT: Final = Setting(
    "stdlib_compat",
    False,
    FLAG,
    unit="flag",
    reason="one switch for the old ways that docs/compatibility.md marks with it",
)
TIMEOUT: Final = Setting[float | None](
    "timeout",
    None,
    WAIT,
    unit="seconds",
    reason="how long handle_request() waits (forking servers: 300); serve_forever() never looks at it",
)
ALLOW_REUSE_ADDRESS: Final = Setting(
    "allow_reuse_address",
    os.name == "posix",
    FLAG,
    unit="flag",
    stdlib=False,
    reason="SO_REUSEADDR: on POSIX systems TCP servers restart at once, and steal no port (off: Windows, UDP)",
)
ALLOW_REUSE_PORT: Final = Setting(
    "allow_reuse_port",
    False,
    FLAG,
    unit="flag",
    reason="SO_REUSEPORT: several processes share the port; never by default, it hides a second server",
)
REQUEST_QUEUE_SIZE: Final = Setting(
    "request_queue_size",
    1024,
    BACKLOG,
    unit="connections",
    stdlib=5,
    reason="the listen backlog (Linux caps it at net.core.somaxconn); 5 loses clients in every burst",
)
DUAL_STACK: Final = Setting[bool | None](
    "dual_stack",
    None,
    SYSTEM_FLAG,
    unit="flag",
    reason="an IPv6 socket also takes IPv4 clients; with a wildcard host it makes the socket an IPv6 one",
)
UNMAP_IPV4: Final = Setting(
    "unmap_ipv4",
    False,
    FLAG,
    unit="flag",
    reason="IPv4 clients of a dual-stack socket are shown as ('192.0.2.1', port), not as '::ffff:192.0.2.1'",
)
UNIX_MODE: Final = Setting[int | None](
    "unix_mode",
    None,
    MODE,
    unit="permissions",
    reason="permissions of the socket file, never wider even for a moment; none: the umask's",
)
UNIX_GROUP: Final = Setting[int | str | None](
    "unix_group",
    None,
    GROUP,
    unit="group",
    reason="group of the socket file, which then has mode 0o660 unless unix_mode says else; none: the process's",
)
ACCEPT_PAUSE: Final = Setting(
    "accept_pause",
    0.01,
    PAUSE,
    unit="seconds",
    reason="first pause when out of descriptors, memory or threads; doubles up to accept_pause_max",
)
ACCEPT_PAUSE_MAX: Final = Setting(
    "accept_pause_max",
    1.0,
    PAUSE,
    unit="seconds",
    reason="longest such pause: the server is back at most this long after the shortage ends",
)

# What only threading or forking servers have.

DAEMON_THREADS: Final = Setting(
    "daemon_threads",
    False,
    FLAG,
    unit="flag",
    reason="the interpreter does not wait for request threads when it exits, nor does server_close()",
)
BLOCK_ON_CLOSE: Final = Setting(
    "block_on_close",
    True,
    FLAG,
    unit="flag",
    reason="server_close() waits for the requests that still run",
)
MAX_CHILDREN: Final = Setting(
    "max_children",
    40,
    COUNT,
    unit="processes",
    reason="when so many requests run, further clients wait in the backlog",
)

EVENT_LOOP: Final = Setting(
    "event_loop",
    "auto",
    EVENT_LOOP_KIND,
    unit="name",
    reason="whose event loop serve_forever() makes for green and async servers; auto: uvloop's if it is installed",
)
BLOCKING_WARNING: Final = Setting[float | None](
    "blocking_warning",
    0.1,
    WAIT,
    unit="seconds",
    reason="a green or async handler that holds the event loop longer is reported, with its stack; none: no watch",
)

ALL: Final[dict[str, Setting[Any]]] = {
    setting.name: setting
    for setting in (
        *(value for value in list(globals().values()) if isinstance(value, Setting)),
        *DATAGRAM_SETTINGS,
        *OPENING_SETTINGS,
        *limits.LIMITS,
    )
}


_AS_EVER: Final = ("allow_reuse_address", "allow_reuse_port", "daemon_threads", "block_on_close")
"""Any value is true or false as attributes of these names, as in `socketserver`."""


class Changed:
    """A server as it would be with other values, to be checked."""

    def __init__(self, server: object, values: dict[str, Any]) -> None:
        vars(self).update(values)
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


def check(server: object, given: Iterable[str] = ()) -> None:
    """Raise `SettingError` for a setting, wherever it was set, that is not allowed, or that another one contradicts.

    All values that are not allowed are named at once. What was `given` as a setting has to be of use to such a server;
    a program's own attribute that is called like a setting of others (`broadcast` on one of streams) is none.
    """
    changed, wrong = set(), list[str]()
    made_of = type(server._server if isinstance(server, Changed) else server)
    for name, setting in ALL.items():
        value = getattr(server, name, setting.default)
        if value is setting.default or name in _AS_EVER:  # `32.0` and `False` are equal to defaults, and wrong
            continue
        if not _has(made_of, name):
            continue
        if name not in given and name not in RULES and misplaced(name, server, family=None):
            continue
        try:
            setting.check(value)
        except SettingError as error:
            wrong.append(f"{error}{_whose(made_of, name)}")
            continue
        if value != setting.default and not (value is False and setting.default is None):
            changed.add(name)
    if wrong:
        raise SettingError("; ".join(wrong))
    if changed:
        _check_together(server, made_of, changed, given)


def _check_together(server: object, made_of: type, changed: set[str], given: Iterable[str]) -> None:
    from . import admission

    family = getattr(getattr(server, "socket", None), "family", None)
    for name in sorted(changed & RULES.union(given)):
        why = misplaced(name, server, family=family)
        if why is not None:
            raise SettingError(f"{name} {why}{_whose(made_of, name)}")
    admission.check(server)
    _check_order(server, "idle_timeout", "connection_timeout")
    _check_order(server, "drain_spread", "drain_timeout")
    _check_order(server, "accept_pause", "accept_pause_max")
    wrong = check_opening(server, changed)
    if wrong is not None:
        raise SettingError(wrong)
    if "requests_per_thread" in changed and not getattr(server, "reuse_threads", False):
        raise SettingError("requests_per_thread needs reuse_threads: else each thread serves one request anyway")


def _has(server_class: type, name: str) -> bool:
    """Whether one of Portico's own classes declares this setting for those servers."""
    return any(name in vars(base) and base.__module__.partition(".")[0] == __package__ for base in server_class.__mro__)


def _whose(server_class: type, name: str) -> str:
    """Where a program has an attribute of a setting's name, in words: it may mean something else by it."""
    owner = next((base for base in server_class.__mro__ if name in vars(base)), server_class)
    if owner.__module__.partition(".")[0] == __package__:
        return ""
    return f" (an attribute of {owner.__module__}.{owner.__qualname__}: if it is no setting there, call it otherwise)"


def _check_order(server: object, less: str, more: str) -> None:
    small, great = getattr(server, less, None), getattr(server, more, None)
    if small is not None and great is not None and small > great:
        raise SettingError(f"{less} ({small:g} s) must not be longer than {more} ({great:g} s)")


def of(server_class: type) -> Iterator[Setting[Any]]:
    """The settings that a server class has: those whose class variable it, or a mix-in of it, declares."""
    return (setting for setting in ALL.values() if hasattr(server_class, setting.name))


def apply(server: object, values: dict[str, Any]) -> None:
    """Check the keyword arguments of a constructor and set them on the instance."""
    for name, value in values.items():
        setting = ALL.get(name)
        if setting is None or not hasattr(type(server), name):
            known = alternatives(name, [setting.name for setting in of(type(server))])
            raise UnknownSettingError(f"{type(server).__name__} has no setting {name!r}; {known}")
        setting.check(value)
        setattr(server, name, value)


def alternatives(name: str, known: Iterable[str], what: str = "there are") -> str:
    """What somebody may have meant by a wrong name, and what there is."""
    from difflib import get_close_matches

    close = [] if name in ALL else get_close_matches(name, sorted(known), 1)
    meant = f"did you mean {close[0]}? {what.capitalize()}" if close else what
    return f"{meant}: {', '.join(sorted(known))}"


def compat_values(server: object) -> Iterator[tuple[str, Any]]:
    """What `socketserver` would have in place of each default that nobody has changed.

    A value set on the instance, on a user's class, or patched onto one of Portico's stays: only a class variable
    stands unchanged that one of Portico's classes declares, annotation and all.
    """
    for setting in of(type(server)):
        if setting.stdlib is SAME or setting.name in vars(server):
            continue
        owner = next(c for c in type(server).__mro__ if setting.name in vars(c))
        declared = owner.__module__.partition(".")[0] == __package__ and setting.name in owner.__annotations__
        if declared and vars(owner)[setting.name] == setting.default:
            yield setting.name, setting.stdlib

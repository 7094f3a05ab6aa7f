"""Which handlers fit which servers: blocking ones, and those that are awaited. Looks at classes, runs nothing.

A handler of the wrong kind would hold up the loop, or never run at all; so it is refused before it gets a request.
What cannot be told from outside passes: a function that may return an awaitable, a class with its own constructor.
"""

from __future__ import annotations

from .errors import HandlerError
from .handlers import check_max_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["check", "check_session", "is_own"]

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the import
_STEPS = ("setup", "handle", "finish")


def is_own(module: str | None) -> bool:
    """Whether this is a module of Portico's, or the standard library's `socketserver`."""
    return module is not None and (module == "socketserver" or module.startswith(f"{__package__}."))


def check(handler: Any, server: str, *, awaited: bool) -> None:
    """Raise `HandlerError` if `handler` does not fit a server of that name, which awaits its handlers or does not."""
    if not isinstance(handler, type):
        handler = getattr(handler, "func", handler)  # functools.partial
    name = getattr(handler, "__qualname__", handler)
    if not isinstance(handler, type):
        if not awaited and _is_async(handler):
            raise HandlerError(_needs_async_server(name, server))
    elif is_own(getattr(handler.__init__, "__module__", None)):  # type: ignore[misc]  # no constructor of its own
        check_max_line(getattr(handler, "max_line", None))
        steps = {step: getattr(handler, step, None) for step in _STEPS}
        (_check_awaited if awaited else _check_blocking)(handler, steps, name, server)


def check_session(handler: Any) -> None:
    """Raise `HandlerError` if `handler` is one for a single datagram, or for a stream, which a session is not."""
    for base in getattr(handler, "__mro__", ()):
        if is_own(base.__module__) and base.__name__.endswith(("DatagramRequestHandler", "StreamRequestHandler")):
            fits = base.__name__.replace("Datagram", "Base").replace("Stream", "Base")
            raise HandlerError(
                f"{handler.__qualname__} is a {base.__name__}, and with sessions a request is no "
                f"{'single datagram' if 'Datagram' in base.__name__ else 'stream'}: derive it from {fits}, "
                "whose self.request is the session"
            )


def _check_blocking(handler: type, steps: dict[str, Any], name: Any, server: str) -> None:
    if hasattr(handler, "__await__") or any(_is_async(step) for step in steps.values()):
        raise HandlerError(_needs_async_server(name, server))


def _check_awaited(handler: type, steps: dict[str, Any], name: Any, server: str) -> None:
    if not hasattr(handler, "__await__"):
        if _is_async(steps["handle"]):
            raise HandlerError(f"{name} must be derived from AsyncStreamRequestHandler or another of the Async ones")
        raise HandlerError(
            f"{name}.handle() blocks, and {server} awaits its handlers: make it async def, in a class derived from "
            "AsyncStreamRequestHandler or another of the Async ones, or give it to a server with GreenMixIn"
        )
    for step, method in steps.items():
        if _is_plain(method):
            raise HandlerError(f"{name}.{step}() is not asynchronous, and {server} awaits it: make it async def")


def _needs_async_server(name: Any, server: str) -> str:
    return (
        f"{name} is asynchronous, and {server} runs blocking handlers: give it to a server with AsyncMixIn "
        "(AsyncTCPServer ...), or make it a plain def"
    )


def _is_async(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def _is_plain(function: Any) -> bool:
    """A plain function, and no decorator's, which may well return an awaitable."""
    return hasattr(function, "__code__") and not _is_async(function) and not hasattr(function, "__wrapped__")

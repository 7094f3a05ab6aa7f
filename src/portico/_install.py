"""Puts Portico in `socketserver`'s place, for modules that import it afterwards."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["install"]


def install(*, stdlib_compat: bool = False, concurrency: str = "thread") -> None:
    """Make `import socketserver` give Portico from now on, so that `http.server`, `xmlrpc.server` and others use it.

    Call it before they are imported: a module that has `socketserver` already keeps it, and a `RuntimeWarning` names
    those. `stdlib_compat=True` also turns that setting on for all servers. With `concurrency="green"` the name
    `ThreadingMixIn`, and the classes made with it, stand for the green ones, so that a program's threading servers run
    their requests in green threads; needs greenlet.
    """
    if concurrency not in ("thread", "green"):
        raise ValueError(f"concurrency must be 'thread' or 'green', not {concurrency!r}")
    package = sys.modules[__package__ or ""]
    before = sys.modules.get("socketserver")
    if stdlib_compat:
        package.BaseServer.stdlib_compat = True
    if before is package and concurrency == "thread":
        return
    sys.modules["socketserver"] = package if concurrency == "thread" else _with_green_threads(package)
    late = sorted(name for name, module in list(sys.modules.items()) if before and _built_on(module, before))
    if late:
        import warnings

        warnings.warn(
            f"portico.install() came after the import of {', '.join(late)}: call it earlier to have them use Portico",
            RuntimeWarning,
            stacklevel=2,
        )


def _with_green_threads(package: ModuleType) -> ModuleType:
    """The package once more, with green threads wherever it says threads."""
    from . import green_presets
    from .green import GreenMixIn

    module = ModuleType("socketserver", package.__doc__)
    vars(module).update((name, value) for name, value in vars(package).items() if name not in vars(module))
    for name in package.__all__:
        if name.startswith("Threading"):
            green = "Green" + name.removeprefix("Threading")
            setattr(module, name, GreenMixIn if name == "ThreadingMixIn" else getattr(green_presets, green))
    return module


def _built_on(module: object, original: object) -> bool:
    """Whether a module holds the original, by its name or by one of its classes."""
    names = vars(module) if hasattr(module, "__dict__") else {}
    return module is not original and any(
        value is original or getattr(value, "__module__", None) == "socketserver" for value in list(names.values())
    )

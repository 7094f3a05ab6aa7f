"""Puts Portico in `socketserver`'s place, for modules that import it afterwards."""

from __future__ import annotations

import sys

__all__ = ["install"]


def install(*, stdlib_compat: bool = False) -> None:
    """Make `import socketserver` give Portico from now on, so that `http.server`, `xmlrpc.server` and others use it.

    Call it before they are imported: a module that has `socketserver` already keeps it, and a `RuntimeWarning` names
    those. `stdlib_compat=True` also turns that setting on for all servers.
    """
    package = sys.modules[__package__ or ""]
    before = sys.modules.get("socketserver")
    if stdlib_compat:
        package.BaseServer.stdlib_compat = True
    if before is package:
        return
    sys.modules["socketserver"] = package
    late = sorted(name for name, module in list(sys.modules.items()) if before and _built_on(module, before))
    if late:
        import warnings

        warnings.warn(
            f"portico.install() came after the import of {', '.join(late)}: call it earlier to have them use Portico",
            RuntimeWarning,
            stacklevel=2,
        )


def _built_on(module: object, original: object) -> bool:
    """Whether a module holds the original, by its name or by one of its classes."""
    names = vars(module) if hasattr(module, "__dict__") else {}
    return module is not original and any(
        value is original or getattr(value, "__module__", None) == "socketserver" for value in list(names.values())
    )

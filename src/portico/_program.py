"""Runs a program as `python` would: with its own arguments, path and `__main__`. Knows nothing of servers.

`runpy` would put the old `__main__` back when the program's last line has run, though threads of it may still serve.
"""

from __future__ import annotations

import importlib.util
import io
import os
import runpy
import sys
from importlib.machinery import PathFinder
from types import CodeType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["find_module", "run_module", "run_script"]


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a file, or a folder or archive that has a `__main__.py`. Raises what the program raises, SystemExit too."""
    sys.argv = [path, *arguments]
    full = os.path.abspath(path)
    inside = None if _is_text(full) else PathFinder.find_spec("__main__", [full])
    if inside is not None:  # a folder, or an archive: its `__main__`, with itself first on the path, safe or not
        sys.path[0] = full
        _run_found(inside)
    elif _is_text(full):
        _put_first(os.path.dirname(os.path.realpath(full)))
        with io.open_code(full) as file:
            code = compile(file.read(), full, "exec")
        _run(code, {"__file__": full, "__spec__": None, "__package__": None})
    else:  # a compiled file, or nothing that Python knows
        runpy.run_path(path, run_name="__main__")


def run_module(spec: ModuleSpec, arguments: Sequence[str]) -> None:
    """Run what `find_module` has found, as `python -m` does."""
    sys.argv = [spec.origin or spec.name, *arguments]
    _run_found(spec)


def find_module(name: str) -> ModuleSpec | None:
    """A module, or a package's `__main__`, looked for in the current folder first; None if there is none."""
    _put_first(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ImportError:  # of a package above it
        return None
    return spec


def _run_found(spec: ModuleSpec) -> None:
    code = None if spec.loader is None else spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    if code is None:
        raise ModuleNotFoundError(f"no code object for {spec.name}", name=spec.name)
    _run(code, {"__file__": spec.origin, "__spec__": spec, "__package__": spec.parent, "__loader__": spec.loader})


def _run(code: CodeType, facts: Mapping[str, object]) -> None:
    module = ModuleType("__main__")
    vars(module).update(facts)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _is_text(path: str) -> bool:
    """Whether this is a script by whatever name, and no folder, archive or compiled file."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(1024)


def _put_first(folder: str) -> None:
    """Where the program's own imports are looked for; not at all with `python -P`, as Python has it."""
    if not sys.flags.safe_path:
        sys.path[0] = folder

"""The laws of the house that a machine can check: floors, sizes, names, openings."""

from __future__ import annotations

import ast
import io
import socketserver
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import portico

PACKAGE = Path(portico.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
# Top floor first; docs/design.md draws the same. A module imports only from floors below its own.
FLOORS = (
    {"__init__", "__main__"},
    {"cli"},
    {"_install", "_program", "_budget", "_tls_options"},
    {"presets", "green_presets", "async_presets"},
    {"threads", "forks", "green", "aio"},
    {"_green_tls", "_async_tls"},
    {"_forked_words"},
    {"_forked_figures"},
    {"_async_streams", "_forked_openings", "_green_datagrams"},
    {"_green_sockets", "_async_sockets", "_workers", "_datagram_pool", "_children"},
    {"_parking", "_green_session", "_async_session", "_forked_session"},
    {"servers"},
    {"_base"},
    {"_sessions"},
    {"_reception"},
    {"_hub", "_on_loop"},
    {"_datagram_queue", "_loop_requests", "_watchdog"},
    {"_engine"},
    {"_event_sets"},
    {"_readiness"},
    {"_serving"},
    {"_lobby"},
    {"_openable"},
    {"_certified"},
    {"_requests"},
    {"client"},
    {"_managed"},
    {"_ending"},
    {"_running"},
    {"_session"},
    {"_peer_session"},
    {"_access_log", "_drain", "_stats", "_timekeeper"},
    {"_goodbyes"},
    {"_connections", "reports"},
    {"_entry"},
    {"_opening"},
    {"_connection"},
    {"_glances"},
    {"_acceptor", "_background", "_one_request", "logs"},
    {"_datagrams"},
    {"_tls_sockets"},
    {"_encrypted", "_sealed"},
    {"_sockets", "_handler_kinds", "_datagram_options"},
    {"_meters", "deadlines"},
    {"_mmsg"},
    {"_peers", "_punctual"},
    {"_addresses", "_unix_files", "_activation", "_holders", "_loop"},
    {"lifecycle", "_system"},
    {"events"},
    {"_own", "settings"},
    {"limits"},
    {"datagram_settings", "opening_settings", "_scopes"},
    {"_setting"},
    {"_keyring"},
    {"_contexts"},
    {"_certificates", "_ticket_keys"},
    {"admission", "datagram_values", "proxy_protocol", "tls"},
    {"handlers"},
    {"errors"},
    {"_generics"},
)
FLOOR = {name: len(FLOORS) - height for height, names in enumerate(FLOORS) for name in names}


def _imports(path: Path) -> Iterator[str]:
    """The modules of the house that a module imports when it runs; what only type checkers read does not count."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                yield from visit(child)
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(path.read_text()))


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down(path: Path) -> None:
    upward = [name for name in _imports(path) if FLOOR[name] >= FLOOR[path.stem]]
    assert not upward, f"{path.stem} imports {upward} from its own floor or above"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_short_and_say_what_lives_in_them(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text)), "a module opens with what lives here"


def test_names_for_portico_alone_cannot_be_those_of_a_users_class() -> None:
    """`self._stop = Event()` or `self._loop = ...` in a subclass must not meet anything of ours."""
    import portico
    from portico import green_presets

    stdlib = {"_threads", "_handle_request_noblock", "_BaseServer__shutdown_request"}
    mixed_in = [portico.ThreadingMixIn, portico.ForkingMixIn, portico.GreenMixIn, portico.AsyncMixIn]
    handlers = [portico.BaseRequestHandler, portico.AsyncStreamRequestHandler, portico.AsyncDatagramRequestHandler]
    bases = [portico.UnixStreamServer, portico.UnixDatagramServer, *mixed_in, *handlers, green_presets.GreenTCPServer]
    names = {name for base in bases for cls in base.__mro__ if "portico" in cls.__module__ for name in vars(cls)}
    private = {name for name in names if name.startswith("_") and not name.endswith("__")}
    assert {name for name in private if not name.startswith(("_portico_", "_abc_"))} <= stdlib


def _code_lines(function: ast.AST, text: str) -> int:
    """Lines with code in them: no blank lines, comments or docstring."""
    source = ast.get_source_segment(text, function) or ""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    body = getattr(function, "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        lines -= set(range(body[0].lineno - function.lineno + 1, body[0].end_lineno - function.lineno + 2))  # type: ignore[attr-defined, operator]
    return len(lines)


def _functions() -> Iterator[tuple[Path, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in MODULES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path, text, node


def test_functions_are_short() -> None:
    long = [(path.stem, node.name) for path, text, node in _functions() if _code_lines(node, text) > 50]
    assert not long


def test_functions_take_few_parameters() -> None:
    def count(node: ast.FunctionDef) -> int:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([argument for argument in every if argument.arg not in ("self", "cls")])

    assert not [(path.stem, node.name) for path, _, node in _functions() if count(node) > 6]


def test_all_names_are_there_and_hold_the_standard_librarys() -> None:
    assert len(portico.__all__) == len(set(portico.__all__))
    assert all(hasattr(portico, name) for name in portico.__all__)
    assert set(socketserver.__all__) <= set(portico.__all__)


def test_public_names_are_documented() -> None:
    assert not [name for name in portico.__all__ if not getattr(portico, name).__doc__]


def test_importing_loads_neither_asyncio_nor_ssl_nor_anything_installed() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import portico; "
        "print([m for m in ('asyncio', 'ssl', 'logging', 'typing', 'dataclasses') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"

"""`portico.install()`: in `socketserver`'s place, for what is imported afterwards, and a word about what was before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .commands import ROOT, environment


def printed(program: str, *options: str) -> str:
    result = subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_what_is_imported_afterwards_is_built_on_portico() -> None:
    program = (
        "import portico; portico.install()\n"
        "import socketserver, http.server, xmlrpc.server, wsgiref.simple_server, logging.config\n"
        "assert socketserver is portico\n"
        "for made in (http.server.ThreadingHTTPServer, xmlrpc.server.SimpleXMLRPCServer,\n"
        "             wsgiref.simple_server.WSGIServer):\n"
        "    assert issubclass(made, portico.TCPServer), made\n"
        "assert logging.config.ThreadingTCPServer is portico.ThreadingTCPServer\n"
    )
    assert printed(program, "-W", "error") == ""


def test_installing_again_changes_nothing() -> None:
    program = (
        "import portico; portico.install(); portico.install(); import socketserver; assert socketserver is portico"
    )
    assert printed(program, "-W", "error") == ""


def test_modules_that_were_there_before_are_named_in_a_warning() -> None:
    program = (
        "import http.server\nimport portico\nportico.install()\nimport socketserver\nassert socketserver is portico\n"
    )
    said = printed(program)
    assert "<string>:3: RuntimeWarning: portico.install() came after the import of " in said
    assert "http.server" in said


@pytest.mark.parametrize("line", ["from socketserver import TCPServer as Base", "import socketserver as base"])
def test_the_program_itself_is_named_if_it_has_the_old_one_already(line: str) -> None:
    assert "came after the import of __main__:" in printed(f"{line}\nimport portico\nportico.install()\n")


def test_the_old_module_alone_is_no_reason_to_warn() -> None:
    program = "import socketserver\ndel socketserver\nimport portico\nportico.install()\n"
    assert printed(program, "-W", "error") == ""


def test_stdlib_compat_is_on_for_all_servers() -> None:
    program = (
        "import portico; portico.install(stdlib_compat=True)\n"
        "import http.server\n"
        "with http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler) as server:\n"
        "    print(server.stdlib_compat, server.request_queue_size, server.allow_reuse_address)\n"
    )
    assert printed(program) == "True 5 1\n"


def test_stdlib_compat_can_be_turned_on_later() -> None:
    program = (
        "import portico; portico.install(); portico.install(stdlib_compat=True)\n"
        "print(portico.TCPServer.stdlib_compat)\n"
    )
    assert printed(program) == "True\n"

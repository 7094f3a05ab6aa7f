"""A user's typed program passes the type checkers, and the checkers do look."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLE = Path(__file__).parent / "typing_sample.py"
WRONG = """
import portico

class Handler(portico.StreamRequestHandler[portico.TCPServer]):
    def handle(self) -> None:
        self.request.no_such_method()
        self.server.no_such_attribute
        self.wfile.write("no bytes")

class Async(portico.AsyncStreamRequestHandler[portico.AsyncTCPServer]):
    async def handle(self) -> None:
        self.rfile.readline().upper()
        await self.wfile.no_such_method()
"""


def _mypy(path: Path, cache: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_mypy_strict_is_content_with_a_users_program(tmp_path: Path) -> None:
    assert "Success" in _mypy(SAMPLE, tmp_path)


def test_mypy_sees_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    output = _mypy(wrong, tmp_path)
    assert 'has no attribute "no_such_method"' in output
    assert 'has no attribute "no_such_attribute"' in output
    assert 'Argument 1 to "write"' in output
    assert '"Coroutine[Any, Any, bytes]" has no attribute "upper"' in output
    assert '"StreamWriter" has no attribute "no_such_method"' in output


@pytest.mark.timeout(180)  # the first call fetches pyright's own program
def test_pyright_is_content_with_a_users_program() -> None:
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists() or shutil.which("node") is None:
        pytest.skip("pyright, or the node it runs on, is not installed")
    command = [str(pyright), "--pythonpath", sys.executable, str(SAMPLE)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "error" not in result.stdout:
        pytest.skip(f"pyright could not be fetched: {result.stderr[-200:]}")
    assert "0 errors" in result.stdout, result.stdout

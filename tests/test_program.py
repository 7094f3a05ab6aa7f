"""`portico run` runs a program as `python` does: what it sees of itself, and what its threads still see at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .commands import ROOT

PYTHON = [sys.executable]
RUN = [sys.executable, "-m", "portico", "run"]
FACTS = """
import os, sys, __main__
import helper
print(__name__, __main__.__dict__ is globals(), __package__, sys.argv, os.path.normpath(__file__), helper.__name__)
print(sys.path[0], __spec__ and __spec__.name, sorted(set(globals()) - {"__annotations__", "__cached__", "__loader__"}))
"""
LATE = """
import pickle, sys, threading

class Thing:
    pass

def later():
    threading.main_thread().join()  # the last line has run
    found = pickle.loads(pickle.dumps(Thing()))
    print(type(found) is Thing, sys.modules["__main__"].Thing is Thing, flush=True)

threading.Thread(target=later).start()
print("last line", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program as a file, a module, a package with `__main__`, a folder and an archive."""
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "program.py").write_text(FACTS)
    (tmp_path / "noending").write_text(FACTS)
    (tmp_path / "late.py").write_text(LATE)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(FACTS.replace("import helper", "from . import helper"))
    (package / "helper.py").write_text("")
    (package / "part.py").write_text(FACTS.replace("import helper", "from . import helper"))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "__main__.py").write_text(FACTS)
    (bare / "helper.py").write_text("")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", FACTS)
        archive.writestr("helper.py", "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link.py").symlink_to(tmp_path / "program.py")
    (tmp_path / "latefolder").mkdir()
    (tmp_path / "latefolder" / "__main__.py").write_text(LATE)
    return tmp_path


def result_of(command: list[str], cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "src", *path]))},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def output(command: list[str], cwd: Path, *path: Path) -> str:
    """What a command prints; it must end well and complain of nothing."""
    result = result_of(command, cwd, *path)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


PROGRAMS = {
    "a script": ["program.py", "-m", "x"],
    "one in another folder": ["../{folder}/program.py"],
    "one without an ending": ["noending"],
    "a link to one": ["other/link.py"],
    "a module": ["-m", "program", "x", "-m"],
    "a package": ["-m", "package", "x"],
    "a part of a package": ["-m", "package.part"],
    "a folder": ["bare", "x"],
    "an archive": ["archive.zip", "x"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_sees_what_python_would_show_it(folder: Path, program: str) -> None:
    arguments = [word.replace("{folder}", folder.name) for word in PROGRAMS[program]]
    assert output([*RUN, *arguments], folder) == output([*PYTHON, *arguments], folder)


@pytest.mark.parametrize("arguments", [["../program.py"], ["-m", "program"], ["-m", "package"]], ids=" ".join)
def test_with_a_safe_path_nothing_is_looked_for_beside_the_program(folder: Path, arguments: list[str]) -> None:
    def with_p(command: list[str]) -> list[str]:
        return [command[0], "-P", *command[1:], *arguments]

    assert output(with_p(RUN), folder / "other", folder) == output(with_p(PYTHON), folder / "other", folder)
    missing = result_of(with_p(RUN), folder / "other")
    assert missing.returncode != 0
    assert "helper" in missing.stderr or "there is no module" in missing.stderr


@pytest.mark.parametrize("arguments", [["late.py"], ["-m", "late"], ["latefolder"]], ids=" ".join)
def test_main_stays_what_it_is_when_the_last_line_has_run(folder: Path, arguments: list[str]) -> None:
    for command in (PYTHON, RUN):
        assert output([*command, *arguments], folder) == "last line\nTrue True\n"


def test_the_name_of_the_file_is_absolute(folder: Path) -> None:
    (folder / "where.py").write_text("import os; os.chdir('other'); print(__file__, os.path.exists(__file__))\n")
    assert output([*RUN, "where.py"], folder) == f"{folder / 'where.py'} True\n"


@pytest.mark.parametrize("arguments", [["-m", "package.nothing"], ["-m", "other"], ["other"]], ids=" ".join)
def test_what_cannot_be_run_is_said(folder: Path, arguments: list[str]) -> None:
    result = result_of([*RUN, *arguments], folder)
    assert result.returncode != 0
    assert arguments[-1] in result.stderr.splitlines()[-1]

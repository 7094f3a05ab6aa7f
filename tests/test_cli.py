"""The command: `portico serve`, `portico run`, `portico settings`, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .commands import ROOT, environment, finished, running

PORTICO = [sys.executable, "-m", "portico"]
HANDLER = """
import os, portico
class Upper(portico.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
class Pid(portico.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())
class Datagram(portico.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())
thing = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLER)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('bye')\n")
    return tmp_path


def ask(address: tuple[str, int] | str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> bytes:
    with socket.socket(family, kind) as client:
        client.settimeout(10)
        if family == socket.AF_UNIX and kind == socket.SOCK_DGRAM:
            client.bind("")  # an abstract name of its own: without one there is nobody to answer
        client.connect(address)
        client.sendall(b"hello\n")
        return client.recv(100)


def port(line: str) -> int:
    found = re.search(r":(\d+)$", line)
    assert found, line
    return int(found[1])


@pytest.mark.parametrize("concurrency", ["thread", "fork", "none"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_serve_prints_the_port_and_ends_cleanly(folder: Path, concurrency: str, number: signal.Signals) -> None:
    command = [*PORTICO, "serve", "handlers:Upper", "tcp://127.0.0.1:0", "--concurrency", concurrency]
    with running(command, cwd=folder, ready="^limits: ") as (process, lines):
        assert len(lines) == 2
        assert re.fullmatch(r"serving handlers:Upper on tcp://127\.0\.0\.1:\d+", lines[0])
        assert ask(("127.0.0.1", port(lines[0]))) == b"HELLO\n"
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_serve_takes_several_addresses_at_once(folder: Path) -> None:
    unix = str(folder / "a.sock")
    addresses = ["tcp://127.0.0.1:0", "tcp://[::1]:0", f"unix:{unix}", "unix:@portico-test-cli"]
    with running([*PORTICO, "serve", "handlers:Upper", *addresses], cwd=folder, ready="@portico-test-cli") as (
        _,
        lines,
    ):
        assert len(lines) == 4
        assert ask(("127.0.0.1", port(lines[0]))) == b"HELLO\n"
        assert ask(("::1", port(lines[1])), socket.AF_INET6) == b"HELLO\n"
        assert ask(unix, socket.AF_UNIX) == b"HELLO\n"
        assert ask("\0portico-test-cli", socket.AF_UNIX) == b"HELLO\n"


def test_serve_takes_datagrams(folder: Path) -> None:
    unix = str(folder / "d.sock")
    addresses = ["udp://127.0.0.1:0", f"unix-dgram:{unix}"]
    with running([*PORTICO, "serve", "handlers:Datagram", *addresses], cwd=folder, ready="unix-dgram") as (_, lines):
        assert ask(("127.0.0.1", port(lines[0])), kind=socket.SOCK_DGRAM) == b"HELLO\n"
        assert ask(unix, socket.AF_UNIX, socket.SOCK_DGRAM) == b"HELLO\n"


def test_forking_several_addresses_forks_from_one_thread(folder: Path) -> None:
    command = [*PORTICO, "serve", "handlers:Pid", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "--concurrency", "fork"]
    with running(command, cwd=folder, ready=r"(?s).") as (process, lines):
        assert process.stdout is not None
        lines.append(process.stdout.readline().strip())
        children = {int(ask(("127.0.0.1", port(line)))) for line in lines}
        assert len(children) == 2
        assert process.pid not in children
        process.terminate()
        assert process.wait(10) == 0
        assert "threads" not in process.stdout.read()


def test_serve_takes_a_socket_handed_down(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        process = subprocess.Popen(
            [*PORTICO, "serve", "handlers:Upper", f"fd://{number}"],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, pass_fds=[number],
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            assert port(process.stdout.readline().strip()) == listener.getsockname()[1]
            assert ask(listener.getsockname()) == b"HELLO\n"
            process.terminate()
            assert process.wait(10) == 0


WRONG = {
    "no module": (["nowhere:H", "tcp://127.0.0.1:0"], "cannot import 'nowhere'"),
    "a module that fails": (["broken:H", "tcp://127.0.0.1:0"], "ZeroDivisionError"),
    "a module that exits": (["leaves:H", "tcp://127.0.0.1:0"], "cannot import 'leaves': SystemExit: bye"),
    "no name": (["handlers", "tcp://127.0.0.1:0"], "MODULE:HANDLER"),
    "no such class": (["handlers:Nope", "tcp://127.0.0.1:0"], "has no 'Nope'"),
    "no handler": (["handlers:thing", "tcp://127.0.0.1:0"], "is no handler"),
    "no port": (["handlers:Upper", "tcp://127.0.0.1"], "host:port"),
    "a port too high": (["handlers:Upper", "tcp://127.0.0.1:70000"], "65535"),
    "a bare IPv6 host": (["handlers:Upper", "tcp://::1:80"], "brackets"),
    "an unknown scheme": (["handlers:Upper", "http://x"], "is no address"),
    "no socket": (["handlers:Upper", "fd://99"], "no open socket"),
    "no folder": (["handlers:Upper", "unix:/nonexistent/x.sock"], "cannot bind unix:/nonexistent/x.sock"),
    "an unknown setting": (
        ["handlers:Upper", "tcp://127.0.0.1:0", "--set", "x=1"],
        "no setting 'x'; there are: accept_batch",
    ),
    "a wrong value": (
        ["handlers:Upper", "tcp://127.0.0.1:0", "--set", "accept_batch=0"],
        "from 1 to 2147483647, not 0",
    ),
    "no value": (["handlers:Upper", "tcp://127.0.0.1:0", "--set", "accept_batch"], "NAME=VALUE"),
    "a setting for nobody": (
        ["handlers:Upper", "tcp://127.0.0.1:0", "--set", "max_children=3"],
        "--set max_children: none of the servers asked for has such a setting",
    ),
    "a setting for forks": (
        ["handlers:Upper", "tcp://127.0.0.1:0", "--set", "max_children=3", "--concurrency", "green"],
        "max_children",
    ),
    "settings for nobody": (
        ["handlers:Upper", "tcp://127.0.0.1:0", "--set", "max_packet_size=3", "--set", "unix_group=0"],
        "--set max_packet_size: none",
    ),
    "no program": (["-"], "arguments are required"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_served_is_said_in_one_line(folder: Path, case: str) -> None:
    arguments, said = WRONG[case]
    result = finished("serve", *arguments, cwd=folder)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert case == "no program" or result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the holder is found through /proc")
def test_an_address_in_use_names_its_holder(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        result = finished("serve", "handlers:Upper", "udp://127.0.0.1:0", address, cwd=folder)
    assert result.returncode == 2
    assert f"cannot bind {address}: Address already in use, held by pid {os.getpid()}" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("concurrency", ["fork", "thread"])
def test_settings_can_be_set_for_those_kinds_that_have_them(folder: Path, concurrency: str) -> None:
    unix = folder / "m.sock"
    settings = {"unix_mode": "600", "max_packet_size": "100", "request_queue_size": "7"}
    settings |= {"max_children": "3"} if concurrency == "fork" else {}
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [*PORTICO, "serve", "handlers:Upper", f"unix:{unix}", "udp://127.0.0.1:0", *given]
    with running([*command, "--concurrency", concurrency], cwd=folder, ready="udp://"):
        assert unix.stat().st_mode & 0o777 == 0o600


def test_settings_for_a_socket_handed_down_are_those_of_any_kind_it_may_be(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [*PORTICO, "serve", "handlers:Upper", f"fd://{listener.fileno()}", "--set", "max_packet_size=9"]
        with subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, pass_fds=[listener.fileno()]
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving ")
            process.terminate()
            assert process.wait(10) == 0


def test_where_a_rule_does_not_hold_is_said(folder: Path) -> None:
    addresses = ["tcp://127.0.0.1:0", f"unix:{folder / 'x.sock'}", "udp://127.0.0.1:0"]
    rules = ["--set", "allow_uids=0", "--set", "deny=10.0.0.0/8"]
    with subprocess.Popen(
        [*PORTICO, "serve", "handlers:Upper", *addresses, *rules],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(7)]
        process.terminate()
        assert process.wait(10) == 0
    served = [line.split()[-1] for line in lines[:3]]
    assert lines[4:] == [
        f"not for {served[0]}: allow_uids\n", f"not for {served[1]}: deny\n", f"not for {served[2]}: allow_uids\n",
    ]  # fmt: skip


def test_a_rule_that_cannot_hold_for_a_socket_handed_down_is_not_dropped(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"fd://{listener.fileno()}"
        result = subprocess.run(
            [*PORTICO, "serve", "handlers:Upper", address, "--set", "allow_uids=0"],
            cwd=folder, env=environment(), capture_output=True, text=True, timeout=30,
            pass_fds=[listener.fileno()], check=False,
        )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("portico: --set allow_uids: allow_uids is about who is behind a Unix socket")


@pytest.mark.parametrize("others", [[], ["tcp://127.0.0.1:0"]], ids=["side by side", "apart"])
def test_one_socket_cannot_be_served_twice(folder: Path, others: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"fd://{listener.fileno()}"
        result = subprocess.run(
            [*PORTICO, "serve", "handlers:Upper", address, *others, address],
            cwd=folder, env=environment(), capture_output=True, text=True, timeout=30,
            pass_fds=[listener.fileno()], check=False,
        )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"portico: {address} names a socket that another address has named already\n"


def test_settings_are_listed() -> None:
    result = finished("settings")
    assert result.returncode == 0
    assert re.search(r"request_queue_size +1024 connections ", result.stdout)


def test_run_gives_a_program_its_own_arguments_main_and_exit_status(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, socketserver, http.server, helper\n"
        "assert __name__ == '__main__' and sys.modules['__main__'].__file__ == __file__\n"
        "assert issubclass(http.server.HTTPServer, socketserver.TCPServer)\n"
        "print(socketserver.__name__, sys.argv[1:], sys.argv[0] == __file__, helper.here)\n"
        "sys.exit(7)\n"
    )
    (tmp_path / "helper.py").write_text("here = True\n")
    result = finished("run", str(program), "-x", "--flag", "word")
    assert result.stdout == "portico ['-x', '--flag', 'word'] True True\n"
    assert result.returncode == 7


def test_run_runs_a_module_and_leaves_its_options_alone(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text("import sys, socketserver\nprint(socketserver.__name__, sys.argv[1:], __name__)\n")
    result = finished("run", "-m", "mod", "-m", "--stdlib-compat", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "portico ['-m', '--stdlib-compat'] __main__\n")


def test_run_shows_a_programs_own_traceback(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise KeyError('mine')\n")
    result = finished("run", str(program))
    assert result.returncode == 1
    assert "KeyError: 'mine'" in result.stderr


@pytest.mark.parametrize("arguments", [["/nonexistent.py"], ["-m", "no_such_module_here"]])
def test_run_says_when_there_is_no_such_program(arguments: list[str]) -> None:
    result = finished("run", *arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "portico: " in result.stderr


def test_run_serves_an_unmodified_library() -> None:
    command = [*PORTICO, "run", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with running(command, cwd=ROOT, ready="Serving HTTP") as (_, lines):
        found = re.search(r"port (\d+)", lines[0])
        assert found
        with socket.create_connection(("127.0.0.1", int(found[1])), 10) as client:
            client.sendall(b"GET /LICENSE HTTP/1.0\r\n\r\n")
            with client.makefile() as answer:
                assert "MIT License" in answer.read()

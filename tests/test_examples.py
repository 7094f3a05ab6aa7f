"""The examples and the code in the docs do what they say: each is run as it stands, against a real client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from examples.say import say

from .commands import ROOT, environment, running
from .waiting import until

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks() -> list[tuple[str, str]]:
    """Every ```python block of the README and the docs, by page and number."""
    found = []
    for page in PAGES:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)):
            found.append((f"{page.name}-{number}", code))
    return found


BLOCKS = _blocks()


def free_port() -> int:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        return port


def serves(port: int, path: Path) -> bool:
    """Whether somebody is bound to the port, by TCP or UDP, or to the path."""
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6")]
    return path.exists() or any(re.search(rf":{port:04X} \S+ (0A|07) ", table) for table in tables)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_the_served_examples_answer_over_tcp_udp_and_unix() -> None:
    command = [sys.executable, "-m", "examples.everything", "0"]
    with running(command, ready="unix /") as (process, lines):
        clients = [match[1].split() for line in lines if (match := re.search(r"examples\.say (.*) hello", line))]
        assert [kind for kind, _ in clients] == ["tcp", "udp", "unix"]
        assert [say(kind, where, "hello") for kind, where in clients] == ["HELLO"] * 3
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_whoami_knows_its_client(tmp_path: Path) -> None:
    path = tmp_path / "whoami.sock"
    command = [sys.executable, "-m", "portico", "serve", "examples.whoami:WhoAmI", f"unix:{path}"]
    with running(command, ready="serving"):
        assert say("unix", str(path), "") == f"you are process {os.getpid()} of user {os.getuid()}"


def test_everybody_in_the_chat_hears_everybody() -> None:
    command = [sys.executable, "-m", "portico", "serve", "examples.chat:Chat", "tcp://127.0.0.1:0"]
    with running([*command, "--concurrency", "green"], ready="serving") as (_, lines):
        port = int(lines[0].rpartition(":")[2])
        clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        for client in clients:
            client.sendall(b"here\n")
            assert client.recv(5) == b"here\n"  # so that all are in the room
        clients[0].sendall(b"hello all\n")
        for client in clients:
            with client, client.makefile("rb") as heard:
                while heard.readline() != b"hello all\n":
                    pass


def test_the_test_double_works() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "examples.in_a_test"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert result.stdout == "the client understands OK\n"


@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_code_in_the_docs_runs(code: str, tmp_path: Path) -> None:
    """A block that serves for ever has to come to serve; any other has to come to its end."""
    port, path = free_port(), tmp_path / "app.sock"
    code = code.replace("9999", str(port)).replace("/run/app.sock", str(path))
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            if "serve_forever()" not in code and "server.run()" not in code:
                status = process.wait(30)
                assert status == 0, process.stderr.read()
                return
            assert until(lambda: serves(port, path) or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
        finally:
            process.kill()

"""The examples and the code in the docs do what they say: each is run as it stands, against a real client."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from examples.say import say
from examples.shout import Shout

import portico

from .commands import ROOT, environment, running
from .waiting import until

if TYPE_CHECKING:
    from .certificates import Authority

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


@pytest.mark.parametrize("openssl", ["there", "missing"])
def test_the_served_examples_answer_over_tcp_udp_unix_and_tls(monkeypatch: pytest.MonkeyPatch, openssl: str) -> None:
    kinds = ["tcp", "udp", "tls", "unix"]
    if openssl == "missing":
        monkeypatch.setenv("PATH", "/nonexistent")
    if shutil.which("openssl") is None:
        kinds.remove("tls")
    command = [sys.executable, "-m", "examples.everything", "0"]
    with running(command, ready="unix /") as (process, lines):
        clients = [match[1].split() for line in lines if (match := re.search(r"examples\.say (.*)", line))]
        assert [kind for kind, *_ in clients] == kinds
        assert [say(*words) for words in clients] == ["HELLO"] * len(kinds)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_lockbox_opens_for_whom_a_certificate_names(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.pair("localhost", "127.0.0.1")
    people = [str(joined(tmp_path / f"{name}.pem", authority.client(name))) for name in ("ann", "bob")]
    options = ["--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.ca_file)]
    addresses = ["tls://127.0.0.1:0", f"unix:{tmp_path}/a.sock"]
    command = [sys.executable, "-m", "portico", "serve", "examples.lockbox:Lockbox", *addresses, *options]
    with running(command, ready="^limits") as (_, lines):
        box = partial(say, "tls", lines[0].rpartition("/")[2], authority=str(authority.ca_file))
        assert box("hello", certificate=people[0]) == "Hello, ann: put SOMETHING, or get"
        assert box("put a rose", certificate=people[0]) == "Kept for ann."
        assert box("get", certificate=people[1]) == "Your box is empty."
        assert box("get", certificate=people[0]) == "a rose"
        assert say("unix", f"{tmp_path}/a.sock", "put a thorn") == f"Kept for user {os.getuid()}."


def test_a_lockbox_does_without_certificates() -> None:
    port = free_port()
    code = Path(EXAMPLES[0].parent / "lockbox.py").read_text().replace("9999", str(port))
    with running([sys.executable, "-c", f"print('begun', flush=True)\n{code}"], ready="begun"):
        assert until(lambda: serves(port, Path("/nonexistent")))
        assert say("tcp", f"127.0.0.1:{port}", "put a rose") == "Kept for 127.0.0.1."


def joined(target: Path, pair: tuple[Path, Path]) -> Path:
    """Certificate and key in one file."""
    target.write_bytes(b"".join(path.read_bytes() for path in pair))
    return target


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


def certificates(authority: Authority, folder: Path) -> None:
    """The files that the docs speak of."""
    shutil.copy(authority.ca_file, folder / "ca.pem")
    for source, name in zip(authority.pair("localhost", "127.0.0.1"), ("cert.pem", "key.pem"), strict=True):
        shutil.copy(source, folder / name)
    joined(folder / "b.pem", authority.pair("b.example"))
    joined(folder / "client.pem", authority.client("ann"))


def test_the_command_in_the_docs_makes_a_certificate(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    (command,) = re.findall(r"^    (openssl req .*?ca\.pem)$", (ROOT / "docs" / "tls.md").read_text(), re.M | re.S)
    subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    tls = portico.TLS(tmp_path / "cert.pem", tmp_path / "key.pem")
    with portico.ThreadingTCPServer(("127.0.0.1", 0), Shout, tls=tls).background() as server:
        for name in ("localhost", "127.0.0.1"):
            where = f"{name}:{server.server_address[1]}"
            assert say("tls", where, "hello", str(tmp_path / "ca.pem")) == "HELLO"


@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_code_in_the_docs_runs(code: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A block that serves for ever has to come to serve; any other has to come to its end."""
    if ".pem" in code:
        certificates(request.getfixturevalue("authority"), tmp_path)
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

"""`portico serve` with TLS: addresses, options, what does not go together, and certificates replaced by SIGHUP."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .commands import finished, running
from .waiting import until

if TYPE_CHECKING:
    from .certificates import Authority

PORTICO = [sys.executable, "-m", "portico"]
HANDLERS = """
import json, portico

def known(handler):
    client, tls = handler.client, handler.tls
    return json.dumps({
        "address": handler.client_address, "connected": client.connected, "names": client.names,
        "uid": client.credentials and client.credentials.uid, "version": tls and tls.version, "alpn": tls and tls.alpn,
        "server_name": tls and tls.server_name,
    }).encode() + b"\\n"

class Who(portico.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(known(self))

class WhoAsync(portico.AsyncStreamRequestHandler):
    async def handle(self):
        while await self.rfile.readline():
            self.wfile.write(known(self))

class Starts(portico.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"STARTTLS\\n":
                self.wfile.write(b"go\\n")
                self.start_tls()
            else:
                self.wfile.write(known(self))

class Datagram(portico.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())
"""
WAITING = ["thread", "fork", "green", "async"]
"""The ways whose loop goes on while a request runs."""
WAYS = [*WAITING, "none"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.pair("localhost", "127.0.0.1", "::1")


def given(pair: tuple[Path, Path]) -> list[str]:
    return ["--tls-cert", str(pair[0]), "--tls-key", str(pair[1])]


class Served:
    """The command, where it listens, and what it has said."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        self.process = process
        self.lines = lines
        self.ports = [int(found[1]) for line in lines if (found := re.search(r":(\d+)$", line))]

    def connect(self, context: ssl.SSLContext | None = None, *, name: str = "localhost", which: int = 0) -> Any:
        sock = socket.create_connection(("127.0.0.1", self.ports[which]), 10)
        return sock if context is None else encrypted(sock, context, name)

    def ask(self, context: ssl.SSLContext | None = None, **options: Any) -> dict[str, Any]:
        with self.connect(context, **options) as client:
            return asked(client)

    def names(self, context: ssl.SSLContext) -> set[str]:
        """Those in the certificate that the next handshake shows."""
        with self.connect(context) as client:
            return {value for _, value in client.getpeercert()["subjectAltName"]}

    def rest(self) -> str:
        """What else it has said, when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()


def encrypted(sock: socket.socket, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise


def asked(client: socket.socket) -> dict[str, Any]:
    client.sendall(b"who?\n")
    with client.makefile("rb") as answers:
        known: dict[str, Any] = json.loads(answers.readline())
    return known


@contextmanager
def serving(folder: Path, *arguments: str, way: str = "thread", handler: str = "") -> Iterator[Served]:
    handler = handler or ("WhoAsync" if way == "async" else "Who")
    command = [*PORTICO, "serve", f"handlers:{handler}", *arguments, "--concurrency", way]
    with running(command, cwd=folder, ready="^limits: ") as (process, lines):
        yield Served(process, lines)


@pytest.mark.parametrize("way", WAYS)
def test_an_address_that_begins_with_tls_is_encrypted(
    folder: Path, authority: Authority, pair: tuple[Path, Path], way: str
) -> None:
    with serving(folder, "tls://127.0.0.1:0", *given(pair), way=way) as served:
        assert re.fullmatch(r"serving handlers:Who(Async)? on tls://127\.0\.0\.1:\d+", served.lines[0])
        assert served.ask(authority.trust())["version"] == "TLSv1.3"
        served.process.terminate()
        assert served.process.wait(10) == 0
        assert served.rest() == ""


def test_encrypted_addresses_and_others_are_served_together(
    folder: Path, authority: Authority, pair: tuple[Path, Path]
) -> None:
    path, name = str(folder / "a.sock"), f"portico-test-{os.getpid()}"
    addresses = ["tcp://127.0.0.1:0", "tls://127.0.0.1:0", "tls://[::1]:0", f"tls-unix:{path}", f"tls-unix:@{name}"]
    with serving(folder, *addresses, *given(pair)) as served:
        words = [line.split(" on ")[1].partition(":")[0] for line in served.lines[:-1]]
        assert words == ["tcp", "tls", "tls", "tls-unix", "tls-unix"]
        assert served.ask(which=0)["version"] is None
        assert served.ask(authority.trust(), which=1)["version"] == "TLSv1.3"
        with encrypted(socket.create_connection(("::1", served.ports[2]), 10), authority.trust(), "::1") as client:
            assert asked(client)["version"] == "TLSv1.3"
        for address in (path, f"\0{name}"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address)
            with encrypted(sock, authority.trust()) as client:
                known = asked(client)
                assert (known["version"], known["uid"]) == ("TLSv1.3", os.getuid())


def test_every_option_has_its_effect(folder: Path, authority: Authority) -> None:
    locked = authority.pair("localhost", password="secret")
    other, wild = authority.pair("b.example"), authority.pair("*.c.example")
    both = folder / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in wild))
    (folder / "password").write_text("secret\nnot this\n")
    options = [
        *given(locked), "--tls-password-file", "password", "--tls-sni", f"b.example={other[0]},{other[1]}",
        "--tls-sni", f"*.c.example={both}", "--tls-alpn", "h2, http/1.1", "--tls-client-ca", str(authority.ca_file),
        "--tls-client-certificates", "optional", "--tls-minimum", "1.3",
    ]  # fmt: skip
    with serving(folder, "tls://127.0.0.1:0", *options) as served:
        for name in ("localhost", "b.example", "x.c.example"):
            assert served.ask(authority.trust(), name=name)["server_name"] == name
        mine = authority.trust(pair=authority.client("ann"))
        mine.set_alpn_protocols(["http/1.1", "spdy"])
        known = served.ask(mine)
        assert (known["alpn"], known["version"]) == ("http/1.1", "TLSv1.3")
        assert "ann" in known["names"]
        assert served.ask(authority.trust())["names"] == []
        old = authority.trust()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            served.ask(old)


def test_clients_certificates_are_required_if_there_is_an_authority_for_them(
    folder: Path, authority: Authority, pair: tuple[Path, Path]
) -> None:
    options = [*given(pair), "--tls-client-ca", str(authority.ca_file)]
    with serving(folder, "tls://127.0.0.1:0", *options, way="green") as served:
        with pytest.raises((ssl.SSLError, ConnectionError, ValueError)):  # in TLS 1.3 it is told after the handshake
            served.ask(authority.trust())
        assert served.ask(authority.trust(pair=authority.client("ann")))["names"][0] == "ann"


@pytest.mark.parametrize("way", ["thread", "fork", "green"])
def test_a_handler_may_begin_tls_itself(folder: Path, authority: Authority, pair: tuple[Path, Path], way: str) -> None:
    arguments = ["tcp://127.0.0.1:0", *given(pair), "--set", "starttls=true"]
    with serving(folder, *arguments, way=way, handler="Starts") as served:
        assert re.fullmatch(r"serving handlers:Starts on tcp://127\.0\.0\.1:\d+", served.lines[0])
        client = served.connect()
        assert asked(client)["version"] is None
        client.sendall(b"STARTTLS\n")
        assert client.recv(10) == b"go\n"
        with encrypted(client, authority.trust()) as secured:
            assert asked(secured)["version"] == "TLSv1.3"


def test_settings_of_streams_are_none_of_a_datagram_servers_business(
    folder: Path, authority: Authority, pair: tuple[Path, Path]
) -> None:
    addresses = ["tls://127.0.0.1:0", "udp://127.0.0.1:0"]
    values = ["--set", "proxy_protocol=optional", "--set", "proxy_trusted=127.0.0.1"]
    command = serving(folder, *addresses, *given(pair), *values, handler="Datagram")
    with command as served, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", served.ports[1]))
        client.send(b"hello")
        assert client.recv(10) == b"HELLO"


@pytest.mark.parametrize("way", ["thread", "none", "async"])
def test_a_proxy_in_front_announces_clients(
    folder: Path, authority: Authority, pair: tuple[Path, Path], way: str
) -> None:
    values = ["--set", "proxy_protocol=required", "--set", "proxy_trusted=127.0.0.1"]
    with serving(folder, "tls://127.0.0.1:0", *given(pair), *values, way=way) as served:
        sock = served.connect()
        sock.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n")
        with encrypted(sock, authority.trust()) as client:
            known = asked(client)
        assert known["address"] == ["192.0.2.7", 4711]
        assert known["connected"][0] == "127.0.0.1"
        with served.connect() as stranger:  # who announces nobody
            stranger.sendall(b"who?\n" * 100)
            assert until(lambda: is_over(stranger))


def is_over(client: socket.socket) -> bool:
    """Whether the server has closed this connection."""
    try:
        client.settimeout(0.01)
        return client.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


# -- what is said


@pytest.mark.parametrize(
    ("way", "values", "said"),
    [
        ("thread", ["max_connections=10"], 5),
        ("thread", ["max_connections=10", "max_threads=4"], 2),
        ("none", ["max_connections=1"], 1),
        ("fork", [], 20),
        ("green", ["max_connections=10", "max_handshakes=7"], 7),
    ],
    ids=str,
)
def test_half_of_the_room_is_for_handshakes_and_that_is_said(
    folder: Path, pair: tuple[Path, Path], way: str, values: list[str], said: int
) -> None:
    settings = [word for value in values for word in ("--set", value)]
    with serving(folder, "tcp://127.0.0.1:0", "tls://127.0.0.1:0", *given(pair), *settings, way=way) as served:
        assert f", max_handshakes {said}, handshake_timeout 10 s;" in served.lines[-1]


def test_nothing_of_handshakes_is_said_where_there_are_none(folder: Path, pair: tuple[Path, Path]) -> None:
    with serving(folder, "tcp://127.0.0.1:0", *given(pair), "--set", "starttls=yes", handler="Starts") as served:
        assert "handshake" not in served.lines[-1]


@pytest.mark.parametrize("way", WAYS)
def test_who_is_silent_makes_room_for_others(
    folder: Path, authority: Authority, pair: tuple[Path, Path], way: str
) -> None:
    values = ["--set", "max_handshakes=2", "--set", "handshake_timeout=60"]
    with serving(folder, "tls://127.0.0.1:0", *given(pair), *values, way=way) as served:
        silent = [served.connect() for _ in range(2)]
        try:
            assert served.ask(authority.trust())["version"] == "TLSv1.3"
            assert until(lambda: is_over(silent[0]))
            assert not is_over(silent[1])
        finally:
            for client in silent:
                client.close()


@pytest.mark.parametrize("address", ["tls://127.0.0.1:0", "tcp://127.0.0.1:0"])
def test_who_is_turned_away_has_an_answer_only_where_plain_text_is_expected(
    folder: Path, authority: Authority, pair: tuple[Path, Path], address: str
) -> None:
    values = ["--set", "max_connections=1", "--set", "overload=busy"]
    starts = ["--set", "starttls=true"] if address.startswith("tcp") else []
    command = serving(folder, address, *given(pair), *values, *starts, handler="Starts")
    with command as served, served.connect(None if starts else authority.trust()) as first:
        asked(first)
        with served.connect() as second:
            second.settimeout(10)
            assert second.recv(100) == (b"busy" if starts else b"")


# -- what cannot be


WRONG: dict[str, tuple[list[str], str]] = {
    "no certificate": (["tls://127.0.0.1:0"], "tls://127.0.0.1:0 needs a certificate: --tls-cert FILE"),
    "none over Unix either": (["tls-unix:/tmp/x.sock"], "tls-unix:/tmp/x.sock needs a certificate: --tls-cert FILE"),
    "nobody to show it to": (["tcp://127.0.0.1:0", "CERT"], "--tls-cert: no address is encrypted"),
    "nor datagrams": (["udp://127.0.0.1:0", "CERT"], "--tls-cert: no address is encrypted"),
    "a key alone": (["tls://127.0.0.1:0", "--tls-key", "KEY"], "--tls-key needs --tls-cert"),
    "a name alone": (["tls://127.0.0.1:0", "--tls-sni", "b.example=x"], "--tls-sni needs --tls-cert"),
    "protocols alone": (["tls://127.0.0.1:0", "--tls-alpn", "h2"], "--tls-alpn needs --tls-cert"),
    "an authority alone": (["tls://127.0.0.1:0", "--tls-client-ca", "CA"], "--tls-client-ca needs --tls-cert"),
    "clients alone": (
        ["tls://127.0.0.1:0", "--tls-client-certificates", "optional"], "--tls-client-certificates needs --tls-cert"
    ),
    "a password alone": (["tls://127.0.0.1:0", "--tls-password-file", "x"], "--tls-password-file needs --tls-cert"),
    "a version alone": (["tcp://127.0.0.1:0", "--tls-minimum", "1.3"], "--tls-minimum needs --tls-cert"),
    "no such certificate": (["tls://127.0.0.1:0", "--tls-cert", "nope.pem"], "cannot read nope.pem: No such file"),
    "no certificate in it": (["tls://127.0.0.1:0", "--tls-cert", "KEY"], "holds no certificate"),
    "no key": (["tls://127.0.0.1:0", "--tls-cert", "LEAF"], "holds no private key, and no key was given"),
    "no such key": (["tls://127.0.0.1:0", "--tls-cert", "LEAF", "--tls-key", "nope"], "cannot read nope: No such file"),
    "another's key": (["tls://127.0.0.1:0", "--tls-cert", "LEAF", "--tls-key", "OTHER"], "does not belong to"),
    "no password": (["tls://127.0.0.1:0", "--tls-cert", "LEAF", "--tls-key", "LOCKED"], "needs a password"),
    "a wrong password": (
        ["tls://127.0.0.1:0", "--tls-cert", "LEAF", "--tls-key", "LOCKED", "--tls-password-file", "LEAF"],
        "wrong password",
    ),
    "no such password": (
        ["tls://127.0.0.1:0", "--tls-cert", "LEAF", "--tls-key", "LOCKED", "--tls-password-file", "nope"],
        "its password could not be had: FileNotFoundError",
    ),
    "a name without files": (["tls://127.0.0.1:0", "CERT", "--tls-sni", "b.example"], "give NAME=CERT or NAME=CERT"),
    "a name without a key": (["tls://127.0.0.1:0", "CERT", "--tls-sni", "b.example=x,"], "give NAME=CERT or NAME=CERT"),
    "a name that is none": (["tls://127.0.0.1:0", "CERT", "--tls-sni", "b b=x"], "'b b' is no server name"),
    "a name twice": (
        ["tls://127.0.0.1:0", "CERT", "--tls-sni", "b.example=x", "--tls-sni", "B.example=y"],
        "B.example has a certificate already",
    ),
    "a protocol without a name": (["tls://127.0.0.1:0", "CERT", "--tls-alpn", "h2,"], "'' is none"),
    "no such authority": (["tls://127.0.0.1:0", "CERT", "--tls-client-ca", "nope"], "cannot read nope: No such file"),
    "clients of nobody": (
        ["tls://127.0.0.1:0", "CERT", "--tls-client-certificates", "required"], "needs a client_ca"
    ),
    "an old version": (["tls://127.0.0.1:0", "CERT", "--tls-minimum", "1.1"], "invalid choice: '1.1'"),
    "nothing to start": (["tcp://127.0.0.1:0", "--set", "starttls=true"], "needs --tls-cert FILE"),
    "started already": (
        ["tls://127.0.0.1:0", "CERT", "--set", "starttls=true"], "not tls://127.0.0.1:0, which is encrypted at once"
    ),
    "started by datagrams": (["udp://127.0.0.1:0", "--set", "starttls=no"], "starttls: starttls is for stream conn"),
    "certificates as words": (["tcp://127.0.0.1:0", "--set", "tls=cert.pem"], "tls must be a portico.TLS"),
    "nobody trusted": (["tcp://127.0.0.1:0", "--set", "proxy_protocol=required"], "needs proxy_trusted"),
    "nobody announced": (["tcp://127.0.0.1:0", "--set", "proxy_trusted=::1"], "needs a proxy_protocol"),
    "two slashes missing": (["tls:127.0.0.1:0", "CERT"], "is no address; give one like "),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(authority: Authority, pair: tuple[Path, Path]) -> dict[str, list[str]]:
    """What stands for files above."""
    locked = authority.pair("localhost", password="secret")[1]
    words = {"LEAF": pair[0], "KEY": pair[1], "OTHER": authority.pair("b.example")[1], "LOCKED": locked}
    words["CA"] = authority.ca_file
    return {**{word: [str(path)] for word, path in words.items()}, "CERT": given(pair)}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_said_in_one_line(folder: Path, files: dict[str, list[str]], case: str) -> None:
    arguments, said = WRONG[case]
    spelled = [word for argument in arguments for word in files.get(argument, [argument])]
    result = finished("serve", "handlers:Who", *spelled, cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1 or case == "an old version"


def test_what_cannot_be_leaves_no_socket_behind(folder: Path, pair: tuple[Path, Path]) -> None:
    path = folder / "a.sock"
    result = finished("serve", "handlers:Who", f"tls-unix:{path}", "--tls-cert", str(pair[0]), cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert not path.exists()


# -- certificates replaced


@pytest.fixture
def replaceable(folder: Path, authority: Authority) -> tuple[Path, Path]:
    """A pair of files that shows a.example, until it is overwritten."""
    certificate, key = authority.pair("localhost", "a.example")
    return Path(shutil.copy(certificate, folder)), Path(shutil.copy(key, folder))


@pytest.mark.parametrize("way", WAITING)
def test_sighup_replaces_certificates_and_connections_live_on(
    folder: Path, authority: Authority, replaceable: tuple[Path, Path], way: str
) -> None:
    trust = authority.trust()
    with serving(folder, "tls://127.0.0.1:0", "tcp://127.0.0.1:0", *given(replaceable), way=way) as served:
        assert "a.example" in served.names(trust)
        with served.connect(trust) as old:
            before = asked(old)
            for source, target in zip(authority.pair("localhost", "b.example"), replaceable, strict=True):
                shutil.copy(source, target)
            assert "a.example" in served.names(trust)  # nothing is replaced before it is told
            served.process.send_signal(signal.SIGHUP)
            assert until(lambda: "b.example" in served.names(trust))
            assert asked(old) == before
        served.process.terminate()
        assert served.process.wait(10) == 0
        assert served.rest() == "certificates loaded anew\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_pair_keeps_the_old_one_and_says_so(
    folder: Path, authority: Authority, replaceable: tuple[Path, Path], way: str
) -> None:
    trust = authority.trust()
    with serving(folder, "tls://127.0.0.1:0", *given(replaceable), way=way) as served:
        shutil.copy(authority.pair("localhost", "b.example")[1], replaceable[1])  # another's key
        served.process.send_signal(signal.SIGHUP)
        assert served.process.stdout is not None
        said = served.process.stdout.readline()
        assert "key.pem" in said
        assert "does not belong to" in said
        assert "a.example" in served.names(trust)
        served.process.terminate()
        assert served.process.wait(10) == 0
        assert served.rest() == ""


def test_starttls_shows_the_new_one_too(folder: Path, authority: Authority, replaceable: tuple[Path, Path]) -> None:
    trust = authority.trust()

    def shown(served: Served) -> str:
        client = served.connect()
        client.sendall(b"STARTTLS\n")
        assert client.recv(10) == b"go\n"
        with encrypted(client, trust) as secured:
            return str(secured.getpeercert())

    arguments = ["tcp://127.0.0.1:0", *given(replaceable), "--set", "starttls=true"]
    with serving(folder, *arguments, handler="Starts") as served:
        assert "a.example" in shown(served)
        for source, target in zip(authority.pair("localhost", "b.example"), replaceable, strict=True):
            shutil.copy(source, target)
        served.process.send_signal(signal.SIGHUP)
        assert until(lambda: "b.example" in shown(served))


def test_a_child_that_is_told_goes_on(folder: Path, authority: Authority, replaceable: tuple[Path, Path]) -> None:
    command = serving(folder, "tls://127.0.0.1:0", *given(replaceable), way="fork")
    with command as served, served.connect(authority.trust()) as client:
        before = asked(client)
        (child,) = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGHUP)
        assert asked(client) == before


@pytest.mark.parametrize("way", WAYS)
def test_nobody_is_lost_however_often_it_is_told(
    folder: Path, authority: Authority, replaceable: tuple[Path, Path], way: str
) -> None:
    trust = authority.trust()
    with serving(folder, "tls://127.0.0.1:0", *given(replaceable), way=way) as served:
        for _ in range(20):
            served.process.send_signal(signal.SIGHUP)
            with served.connect(trust) as client:
                served.process.send_signal(signal.SIGHUP)
                assert asked(client)["version"] == "TLSv1.3"


def test_without_tls_sighup_ends_the_process_as_ever(folder: Path) -> None:
    with serving(folder, "tcp://127.0.0.1:0") as served:
        served.process.send_signal(signal.SIGHUP)
        assert served.process.wait(10) == -signal.SIGHUP

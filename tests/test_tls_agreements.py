"""What a handshake agrees on, in every way to run: certificate, protocol, version, who the client is; and reloads."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import portico
from portico.lifecycle import CertificatesKept, CertificatesReplaced

from .certificates import Authority
from .every_way import Case, in_every_way
from .handshakes import EVERY, NAME, Opened, leave, said, server_pair, serving_tls
from .waiting import until


async def tell(peer: Any) -> None:
    """A body that says what its handler knows of the connection, and then echoes."""
    peer.note("handled")
    tls, client = peer.handler.tls, peer.handler.client
    facts = {"version": tls.version, "cipher": tls.cipher, "alpn": tls.alpn, "server_name": tls.server_name}
    facts |= {"names": client.names, "same": client.tls is tls or client.tls.version == tls.version}
    if tls.peer is not None:
        facts["peer"] = [tls.peer.subject, tls.peer.common_name, tls.peer.sans, tls.peer.fingerprint]
    await peer.sendall(json.dumps(facts).encode() + b"\n")
    while data := await peer.recv(65536):
        await peer.sendall(data)


def facts_of(client: ssl.SSLSocket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        more = client.recv(65536)
        if not more:
            raise ConnectionResetError("no facts")
        line += more
    found: dict[str, Any] = json.loads(line)
    return found


def told(served: Opened, *arguments: Any, **options: Any) -> tuple[dict[str, Any], set[str]]:
    """What a handler tells one client, and the names in the certificate that this was shown."""
    client = served.open(*arguments, **options)
    try:
        return facts_of(client), shown(client)
    finally:
        leave(client)


def shown(client: ssl.SSLSocket) -> set[str]:
    certificate: Any = client.getpeercert()
    return {value for _, value in certificate["subjectAltName"]}


def curious(authority: Authority, **options: Any) -> ssl.SSLContext:
    """A client's that believes whatever name it is shown."""
    context = authority.trust(**options)
    context.check_hostname = False
    return context


# --- Certificates and protocols -----------------------------------------------------------------------------------


def test_the_name_a_client_asks_for_chooses_the_certificate(authority: Authority) -> None:
    tls = portico.TLS(
        *server_pair(authority),
        sni={"b.example": authority.pair("b.example"), "*.c.example": authority.pair("*.c.example")},
    )
    wanted = {
        NAME: NAME,
        None: NAME,
        "b.example": "b.example",
        "B.Example": "b.example",
        "x.c.example": "*.c.example",
        "x.y.c.example": NAME,
        "c.example": NAME,
        "other.example": NAME,
    }
    context = curious(authority)

    def one(way: Case) -> None:
        with serving_tls(way, authority, tell, tls=tls) as served:
            for name, expected in wanted.items():
                facts, names = told(served, context, name)
                assert names == {expected}, name
                assert facts["server_name"] == name
                assert facts["same"]

    in_every_way(EVERY)(one)()


def test_the_server_chooses_among_the_clients_protocols(authority: Authority) -> None:
    tls = portico.TLS(*server_pair(authority), alpn=["h2", "http/1.1"])

    def one(way: Case) -> None:
        with serving_tls(way, authority, tell, tls=tls) as served:
            for offered, agreed in (
                (["http/1.1", "h2"], "h2"),
                (["http/1.1"], "http/1.1"),
                (["spdy"], None),
                ([], None),
            ):
                context = authority.trust()
                if offered:
                    context.set_alpn_protocols(offered)
                assert told(served, context)[0]["alpn"] == agreed

    in_every_way(EVERY)(one)()


# --- Clients' certificates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["none", "optional", "required"])
def test_clients_are_known_by_their_certificates(asked: str, authority: Authority, tmp_path: Path) -> None:
    ca: Any = {} if asked == "none" else {"client_ca": authority.ca_file, "client_certificates": asked}
    tls = portico.TLS(*server_pair(authority), **ca)
    tmp_path.joinpath("others").mkdir()
    pairs = {
        "anna": authority.client("anna", "anna@example.org"),
        "nobody": None,
        "a stranger": Authority(tmp_path / "others").client("anna", "anna@example.org"),
    }
    clients = {
        (name, version): _at_most(version, authority.trust(pair=pair))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        for name, pair in pairs.items()
    }
    unwelcome = {"none": [], "optional": ["a stranger"], "required": ["a stranger", "nobody"]}[asked]

    def one(way: Case) -> None:
        with serving_tls(way, authority, tell, tls=tls) as served:
            for (name, _), context in clients.items():
                if name in unwelcome:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        told(served, context)  # TLS 1.3: refused when the client is long through with its handshake
                    continue
                facts, _ = told(served, context)
                if name == "anna" and asked != "none":
                    subject, common_name, sans, fingerprint = facts["peer"]
                    assert "CN=anna" in subject
                    assert (common_name, sans) == ("anna", ["email:anna@example.org"])
                    assert len(fingerprint) == 64
                    assert facts["names"] == ["anna@example.org", "anna"]
                else:
                    assert "peer" not in facts
                    assert facts["names"] == []
            number = 2 * len(unwelcome)
            wanted = {"handshake_failed": number} if number else {}
            assert served.all_over(6) == wanted | {"done": 6 - number}
            assert served.failures() == wanted
            assert served.handled() == 6 - number

    in_every_way(EVERY)(one)()


def _at_most(version: ssl.TLSVersion, context: ssl.SSLContext) -> ssl.SSLContext:
    context.maximum_version = version
    return context


# --- Versions and ciphers (what testssl.sh looks for) -------------------------------------------------------------


def _old(*, ciphers: str = "ALL:COMPLEMENTOFALL", maximum: Any = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """A client that takes part in anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(ciphers + ":@SECLEVEL=0")
    context.options &= ~ssl.OP_NO_COMPRESSION
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = maximum
    return context


def test_what_is_known_to_be_broken_is_not_agreed_on(authority: Authority) -> None:
    versions = ssl.TLSVersion
    weak = {
        "TLS 1.0": _old(maximum=versions.TLSv1),
        "TLS 1.1": _old(maximum=versions.TLSv1_1),
        "no authentication": _old(ciphers="aNULL"),
        "no encryption": _old(ciphers="eNULL:!aNULL"),
        "SHA-1": _old(ciphers="ECDHE-ECDSA-AES128-SHA"),
        "keys that tell of all that was said": _old(ciphers="kRSA"),
    }

    def one(way: Case) -> None:
        with serving_tls(way, authority, tell) as served:
            for name, context in weak.items():
                with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
                    served.open(context)
                if not way.way.own_tasks:  # asyncio and uvloop keep the alert to themselves
                    wanted = "PROTOCOL_VERSION" if name.startswith("TLS") else "HANDSHAKE_FAILURE"
                    assert wanted in str(refused.value), name
            client = served.open(_old(maximum=versions.TLSv1_2))
            facts = facts_of(client)
            assert client.compression() is None
            assert facts["version"] == "TLSv1.2"
            assert "ECDHE" in facts["cipher"]
            assert "GCM" in facts["cipher"] or "CHACHA20" in facts["cipher"]
            leave(client)
            assert told(served)[0]["version"] == "TLSv1.3"
            assert served.all_over(len(weak) + 2) == {"handshake_failed": len(weak), "done": 2}

    in_every_way(EVERY)(one)()


def test_a_minimum_of_1_3_is_kept(authority: Authority) -> None:
    tls = portico.TLS(*server_pair(authority), minimum_version="1.3")
    old = authority.trust()
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    def one(way: Case) -> None:
        with serving_tls(way, authority, tell, tls=tls) as served:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                served.open(old)
            assert told(served)[0]["version"] == "TLSv1.3"

    in_every_way(EVERY)(one)()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
def test_renegotiation_is_refused(authority: Authority) -> None:
    """Which a client can make the server pay for as often as it likes; Python's clients have no call for it."""

    def one(way: Case) -> None:
        with serving_tls(way, authority) as served:
            address = served.server.server_address
            where = ["-unix", address] if way.is_unix else ["-connect", f"[{address[0]}]:{address[1]}"]
            command = ["openssl", "s_client", "-tls1_2", "-CAfile", str(authority.ca_file), *where]
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as client:
                assert client.stdin is not None
                try:
                    assert until(lambda: served.handled() == 1)
                    client.stdin.write(b"R\n")
                    client.stdin.flush()
                    output = client.communicate(timeout=10)[0]
                finally:
                    client.kill()
            assert b"RENEGOTIATING" in output, output
            assert b"no renegotiation" in output, output
            assert served.asked() == b"hello"
            assert served.handled() == 2

    in_every_way(EVERY)(one)()


# --- Sessions -----------------------------------------------------------------------------------------------------


def resumed(served: Opened, context: ssl.SSLContext, session: Any = None) -> tuple[Any, bool, dict[str, Any]]:
    """A session for the next time, whether this one was resumed, and what the handler knew."""
    client = served.open(context, session=session)
    try:
        facts = facts_of(client)  # behind which the tickets of TLS 1.3 have come
        return client.session, bool(client.session_reused), facts
    finally:
        leave(client)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_sessions_are_resumed_over_a_reload_too(version: str, authority: Authority) -> None:
    """By another thread, process, green thread or task than the one that began it; and the client stays who it is."""
    tls = portico.TLS(*server_pair(authority), client_ca=authority.ca_file)
    pair = authority.client("anna")

    def one(way: Case) -> None:
        context = _at_most(ssl.TLSVersion[version], authority.trust(pair=pair))
        with serving_tls(way, authority, tell, tls=tls) as served:
            session, reused, _ = resumed(served, context)
            assert not reused
            for _ in range(2):
                session, reused, facts = resumed(served, context, session)
                assert reused
                assert facts["names"] == ["anna"]
                assert facts["server_name"] == NAME
                assert served.server.reload_tls()
            assert not resumed(served, context)[1]

    in_every_way(EVERY)(one)()


# --- Other certificates -------------------------------------------------------------------------------------------


class Files:
    """A certificate and a key that are written anew, as an operator or a certbot does it."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.pair = folder / "cert.pem", folder / "key.pem"
        self.tls = portico.TLS(*self.pair)

    def write(
        self, name: str | None = None, *, certificate: str | None = None, key: str | None = None, **options: Any
    ) -> None:
        """For this name; or the certificate for one and the key for another one."""
        for place, other in enumerate((certificate or name, key or name)):
            if other is not None:
                self._replace(place, _pair(self.authority, other, **options)[place].read_bytes())

    def spoil(self) -> None:
        self._replace(1, b"no key")

    def _replace(self, place: int, content: bytes) -> None:
        new = self.pair[place].with_suffix(".new")
        new.write_bytes(content)
        new.replace(self.pair[place])


@cache
def _pair(authority: Authority, name: str, **options: Any) -> tuple[Path, Path]:
    return authority.pair(name, **options)


def name_shown(served: Opened, context: ssl.SSLContext) -> set[str]:
    return told(served, context, None)[1]


def test_new_certificates_are_used_from_the_next_handshake_on(authority: Authority, tmp_path: Path) -> None:
    context = curious(authority)

    def one(way: Case) -> None:
        folder = tmp_path / str(way)
        folder.mkdir()
        written = Files(authority, folder)
        written.write("a.example")
        with serving_tls(way, authority, tell, tls=written.tls) as served:
            server = served.server
            old = served.open(context, None)
            facts_of(old)
            written.write("b.example", days=7)
            if not way.one_by_one:  # there nobody else is served meanwhile
                assert shown(old) == {"a.example"}
                assert name_shown(served, context) == {"a.example"}
                assert server.reload_tls() is True
                assert name_shown(served, context) == {"b.example"}
            else:
                assert server.reload_tls() is True
            assert said(old, b"still here") == b"still here"
            leave(old)
            assert name_shown(served, context) == {"b.example"}
            assert 6.9 < server.stats().tls_expires_in < 7.0
            assert [round(event.days) for event in served.of_kind(CertificatesReplaced)] == [7]

            for break_it in (written.spoil, lambda: written.write(certificate="c.example", key="b.example")):
                break_it()
                assert server.reload_tls() is False
                assert name_shown(served, context) == {"b.example"}
            kept = served.of_kind(CertificatesKept)
            assert [str(written.pair[1]) in str(event.error) for event in kept] == [True, True]

            third = portico.TLS(*_pair(authority, "d.example"))
            assert server.reload_tls(third) is True
            assert name_shown(served, context) == {"d.example"}
            assert server.tls is third
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.load_cert_chain(*_pair(authority, "a.example"))
            assert server.reload_tls(made) is True
            assert name_shown(served, context) == {"a.example"}
            assert server.reload_tls() is False  # it is nothing that could be loaded anew
            with pytest.raises(portico.SettingError, match="tls must be"):
                server.reload_tls("cert.pem")
            assert name_shown(served, context) == {"a.example"}

    in_every_way(EVERY)(one)()


def test_files_that_have_changed_are_found(authority: Authority, tmp_path: Path) -> None:
    context = curious(authority)

    def one(way: Case) -> None:
        folder = tmp_path / str(way)
        folder.mkdir()
        written = Files(authority, folder)
        written.write("a.example")
        with serving_tls(way, authority, tell, tls=written.tls, tls_watch=0.02) as served:
            assert name_shown(served, context) == {"a.example"}
            written.write("b.example")
            assert until(lambda: name_shown(served, context) == {"b.example"})
            assert len(served.of_kind(CertificatesReplaced)) == 1
            written.write(certificate="c.example")
            assert until(lambda: name_shown(served, context) and served.of_kind(CertificatesKept))
            assert name_shown(served, context) == {"b.example"}
            assert len(served.of_kind(CertificatesKept)) == 1
            written.write(key="c.example")
            assert until(lambda: name_shown(served, context) == {"c.example"})
            assert len(served.of_kind(CertificatesKept)) == 1

    in_every_way(EVERY)(one)()


@pytest.mark.alerts
def test_kept_certificates_are_an_error_in_the_log(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = Files(authority, tmp_path)
    written.write("a.example")
    with portico.TCPServer(("127.0.0.1", 0), lambda *what: None, tls=written.tls) as server:
        written.spoil()
        assert not server.reload_tls()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert str(written.pair[1]) in caplog.text


def test_a_server_without_tls_has_nothing_to_reload() -> None:
    with portico.TCPServer(("127.0.0.1", 0), lambda *what: None) as server:
        with pytest.raises(portico.SettingError, match="no tls"):
            server.reload_tls()
        assert server.stats().tls_expires_in is None

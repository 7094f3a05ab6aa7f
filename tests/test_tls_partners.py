"""Servers with TLS, and behind proxies, as the world's own programs see them: openssl, curl, HAProxy, nginx.

The programs are no part of Portico's development: what cannot be had is not tried (`partners`). Each meets threads,
green threads and tasks; openssl meets every way to run.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import portico
from portico.lifecycle import EndReason, OpeningFailed

from .balancing import Client, Front, facts, front
from .certificates import Authority
from .every_way import EVERY, TCP, Case, Peer, Served, in_every_way, serving
from .partners import Program, daemon, finished, partner
from .waiting import until

SOME = [case for case in TCP if str(case) in ("thread-tcp4", "green-tcp4", "async-streams-tcp4")]
SOME_UNIX = [case for case in EVERY if str(case) in ("thread-unix", "green-uvloop-unix")]
EACH = pytest.mark.parametrize("case", SOME, ids=str)


class Known:
    """Certificates of these tests."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.ca = authority.ca_file
        self.pair = authority.pair("localhost", "127.0.0.1")
        self.other = authority.pair("other.example")
        self.alice = authority.client("alice")
        self.trust = authority.trust()

    def one_file(self, folder: Path) -> Path:
        """Certificate and key, as HAProxy wants them."""
        place = folder / "both.pem"
        place.write_bytes(b"".join(part.read_bytes() for part in self.pair))
        return place


@pytest.fixture(scope="module")
def known(authority: Authority) -> Known:
    return Known(authority)


# -- what answers


def about(peer: Peer, line: bytes = b"") -> bytes:
    """All that is known of who asks."""
    tls = peer.handler.tls
    seen = None if tls is None else {"alpn": tls.alpn, "server_name": tls.server_name, "cipher": tls.cipher}
    return json.dumps(facts(peer, line) | {"agreed": seen}).encode()


async def shout(peer: Peer) -> None:
    """Answers lines in capitals, "who" with what is known of who asks, and ends after "bye"."""
    said = b""
    while data := await peer.recv(65536):
        said += data
        while b"\n" in said:
            line, _, said = said.partition(b"\n")
            if line == b"bye":
                return
            await peer.sendall((about(peer) if line == b"who" else line.upper()) + b"\n")


async def http(peer: Peer) -> None:
    """Answers each request of a connection with what is known of who asks."""
    peer.note("begun")
    said = b""
    while data := await peer.recv(65536):
        said += data
        while b"\r\n\r\n" in said:
            head, _, said = said.partition(b"\r\n\r\n")
            answer = about(peer, head.partition(b"\r\n")[0])
            await peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


async def mail(peer: Peer) -> None:
    """As much of SMTP as STARTTLS takes (RFC 3207), then capitals."""
    await peer.sendall(b"220 localhost ESMTP\r\n")
    said = b""
    while data := await peer.recv(65536):
        said += data
        while b"\n" in said:
            line, _, said = said.partition(b"\n")
            word = line.strip().upper()
            if word.startswith(b"EHLO"):
                await peer.sendall(b"250-localhost\r\n250 STARTTLS\r\n")
            elif word == b"STARTTLS":
                await peer.sendall(b"220 go on\r\n")
                started = peer.handler.start_tls()
                if started is not None:
                    await started
            elif word == b"BYE":
                return
            else:
                await peer.sendall(b"250 " + word + b"\r\n")


def told(printed: str) -> dict[str, Any]:
    """The answer to "who" among what a program has printed."""
    answer = re.search(r'{"question".*}', printed)
    assert answer is not None, printed
    found: dict[str, Any] = json.loads(answer.group())
    return found


async def delay(peer: Peer) -> None:
    """Tells whether small packets are sent at once."""
    await peer.recv(100)
    at_once = peer.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await peer.sendall(b"%d\n" % bool(at_once))


def test_no_answer_waits_for_the_peer_to_acknowledge_its_tickets(known: Known) -> None:
    """That takes 40 ms: to the kernel both are small packets, of which there may be one under way (RFC 896)."""

    @in_every_way(TCP)
    def test(case: Case) -> None:
        with serving(case, delay, tls=portico.TLS(*known.pair)) as served:  # noqa: SIM117
            with Client(served.connect(), known.trust) as client:
                client.begin().say(b"?")
                assert client.hear() == b"1"

    test()


# -- openssl


def place_of(served: Served) -> list[str]:
    """Where a server is, in openssl's words."""
    address = served.server.server_address
    return ["-unix", address] if isinstance(address, str) else ["-connect", f"127.0.0.1:{address[1]}"]


def s_client(served: Served, known: Known, *options: Any, name: str = "localhost") -> list[Any]:
    """The command that takes what is typed, and letters for commands."""
    program = partner("openssl", "openssl")
    asked = ["-servername", name, "-verify_hostname", name, "-CAfile", known.ca, "-verify_return_error"]
    return [program, "s_client", *place_of(served), *asked, *options]


def openssl(
    served: Served, known: Known, *options: Any, name: str = "localhost", stdin: str = "", status: int | None = 0
) -> str:
    """What it prints until the server has said all."""
    return finished(*s_client(served, known, "-ign_eof", *options, name=name), stdin=stdin, status=status)


@contextmanager
def shouting(case: Case, known: Known, **options: Any) -> Iterator[Served]:
    """A server with TLS for openssl."""
    with serving(case, shout, tls=portico.TLS(*known.pair, **options)) as served:
        yield served
        assert not served.of_kind(portico.lifecycle.RequestFailed)


def test_openssl_is_answered_in_every_way(known: Known) -> None:
    partner("openssl", "openssl")

    @in_every_way(EVERY)
    def test(case: Case) -> None:
        with shouting(case, known) as served:
            printed = openssl(served, known, "-brief", stdin="hello\nwho\nbye\n")
            assert "Protocol version: TLSv1.3\n" in printed
            assert "Verification: OK\n" in printed
            assert "Verified peername: localhost\n" in printed
            assert printed.count("HELLO\n") == 1
            assert told(printed)["agreed"]["server_name"] == "localhost"
            assert served.reasons() == ["done"]
            assert "error" not in printed

    test()


def refused_by(case: Case, alert: str) -> str:
    """What openssl says of a handshake that a server refuses; asyncio's TLS closes without a word."""
    return f"{alert}|unexpected eof|errno=104" if case.way.own_tasks else alert


@EACH
def test_openssl_speaks_the_versions_that_are_allowed_and_no_older_ones(case: Case, known: Known) -> None:
    with shouting(case, known) as served:
        for option, version in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            printed = openssl(served, known, option, stdin="who\nbye\n")
            assert told(printed)["tls"] == version
            assert f"New, {version}, Cipher is {told(printed)['agreed']['cipher']}" in printed
            assert "Compression: NONE\n" in printed
        for option in ("-tls1", "-tls1_1"):
            old = (option, "-cipher", "DEFAULT@SECLEVEL=0")  # else openssl itself refuses
            assert re.search(refused_by(case, "alert protocol version"), openssl(served, known, *old, status=1))
        assert until(lambda: len(served.of_kind(OpeningFailed)) == 2)
        assert [event.reason for event in served.of_kind(OpeningFailed)] == [EndReason.HANDSHAKE_FAILED] * 2
    with shouting(case, known, minimum_version="1.3") as served:
        printed = openssl(served, known, "-tls1_2", status=1)
        assert re.search(refused_by(case, "alert protocol version"), printed)


@EACH
def test_openssl_resumes_its_session(case: Case, known: Known, tmp_path: Path) -> None:
    with shouting(case, known) as served:
        for version in ("-tls1_2", "-tls1_3"):
            for tickets in ([], ["-no_ticket"]):
                session = tmp_path / "session"
                options = version, *tickets
                printed = openssl(served, known, *options, "-sess_out", session, stdin="hello\nbye\n")
                assert "New, TLSv1" in printed
                printed = openssl(served, known, *options, "-sess_in", session, stdin="hello\nbye\n")
                assert "Reused, TLSv1" in printed, (version, tickets)
                assert "HELLO\n" in printed


@EACH
def test_openssl_gets_the_certificate_for_the_name_it_asks_for(case: Case, known: Known) -> None:
    with shouting(case, known, sni={"other.example": known.other}) as served:
        for name in ("localhost", "other.example"):
            printed = openssl(served, known, "-brief", name=name, stdin="who\nbye\n")
            assert f"Verified peername: {name}\n" in printed
            assert told(printed)["agreed"]["server_name"] == name
        assert "verify error" in openssl(served, known, name="nobody.example", status=1)


@EACH
def test_openssl_agrees_on_a_protocol(case: Case, known: Known) -> None:
    with shouting(case, known, alpn=["h2", "http/1.1"]) as served:
        for offered, agreed in (("http/1.1,h2", "h2"), ("foo,http/1.1", "http/1.1")):
            printed = openssl(served, known, "-alpn", offered, stdin="who\nbye\n")
            assert f"ALPN protocol: {agreed}\n" in printed
            assert told(printed)["agreed"]["alpn"] == agreed
        printed = openssl(served, known, "-alpn", "foo", stdin="who\nbye\n")
        assert "No ALPN negotiated\n" in printed
        assert told(printed)["agreed"]["alpn"] is None


@EACH
def test_openssl_shows_its_certificate(case: Case, known: Known, tmp_path: Path) -> None:
    mine = ("-cert", known.alice[0], "-key", known.alice[1])
    stranger = Authority(tmp_path).client("mallory")
    with shouting(case, known, client_ca=known.ca) as served:
        for version in ("-tls1_2", "-tls1_3"):
            printed = openssl(served, known, version, *mine, stdin="who\nbye\n")
            assert "alice" in told(printed)["names"]
            for shown in ((), ("-cert", stranger[0], "-key", stranger[1])):
                printed = openssl(served, known, version, *shown, stdin="who\n", status=None)
                assert re.search(refused_by(case, "alert"), printed)
                assert '{"question"' not in printed
        assert until(lambda: len(served.of_kind(OpeningFailed)) == 4)
        assert {event.reason for event in served.of_kind(OpeningFailed)} == {EndReason.HANDSHAKE_FAILED}
    with shouting(case, known, client_ca=known.ca, client_certificates="optional") as served:
        assert told(openssl(served, known, stdin="who\nbye\n"))["names"] == []


@EACH
def test_openssl_may_not_renegotiate(case: Case, known: Known) -> None:
    with shouting(case, known) as served:
        with Program(*s_client(served, known, "-tls1_2")) as program:
            program.type("hello\n")
            program.until("HELLO")
            program.type("R\n")
            assert "no renegotiation" in program.rest()
        assert served.reasons() in (["done"], ["peer_left"])  # what openssl answers to that is no fault of ours
        assert "HELLO" in openssl(served, known, stdin="hello\nbye\n")


@EACH
def test_openssl_updates_its_keys(case: Case, known: Known) -> None:
    with shouting(case, known) as served, Program(*s_client(served, known, "-tls1_3")) as program:
        for command in ("k", "K", "K"):  # ours; and with K, the server's too
            program.type("hello\n")
            program.until("HELLO")
            program.printed = ""
            program.type(f"{command}\n")
            program.until("KEYUPDATE")
        program.type("again\n")
        program.until("AGAIN")
        program.type("bye\n")
        assert program.status() == 0


def test_openssl_encrypts_what_has_begun_in_plain_text_in_every_way(known: Known) -> None:
    partner("openssl", "openssl")

    @in_every_way(EVERY)
    def test(case: Case) -> None:
        with serving(case, mail, tls=portico.TLS(*known.pair), starttls=True) as served:
            printed = openssl(served, known, "-brief", "-starttls", "smtp", stdin="hello\nbye\n")
            assert "Verification: OK\n" in printed
            assert "250 HELLO" in printed
            assert served.reasons() == ["done"]

    test()


# -- curl


def curl(known: Known, *options: Any, status: int | None = 0) -> str:
    program = partner("curl", "curl")
    return finished(
        program, "--silent", "--show-error", "--max-time", 15, "--cacert", known.ca, *options, status=status
    )


@EACH
def test_curl_fetches_over_tls(case: Case, known: Known) -> None:
    with serving(case, http, tls=portico.TLS(*known.pair, alpn=["http/1.1"])) as served:
        url = f"https://localhost:{served.server.server_address[1]}"
        first, second = (json.loads(line) for line in curl(known, "-w", "\n", f"{url}/a", f"{url}/b").splitlines())
        assert (first["question"], second["question"]) == ("GET /a HTTP/1.1", "GET /b HTTP/1.1")
        assert first["connected"] == second["connected"]  # one connection
        assert first["agreed"]["alpn"] == "http/1.1"
        assert first["agreed"]["server_name"] == "localhost"
        assert served.reasons() == ["done"]
        assert "certificate" in curl(known, "--cacert", known.alice[0], url, status=60)
        curl(known, "--tls-max", "1.1", url, status=35)
        assert curl(known, f"http://localhost:{served.server.server_address[1]}", status=None)  # no TLS: no answer


@pytest.mark.parametrize("case", SOME_UNIX, ids=str)
def test_curl_fetches_over_tls_and_a_unix_socket(case: Case, known: Known) -> None:
    with serving(case, http, tls=portico.TLS(*known.pair)) as served:
        seen = json.loads(curl(known, "--unix-socket", served.server.server_address, "https://localhost/x"))
        assert (seen["question"], seen["connected"]) == ("GET /x HTTP/1.1", "")
        assert seen["tls"] == "TLSv1.3"


@EACH
def test_curl_announces_itself(case: Case, known: Known) -> None:
    for pair, scheme in ((None, "http"), (known.pair, "https")):
        with front(case, body=http, pair=pair) as made:
            port = made.server.server_address[1]
            seen = json.loads(curl(known, "--haproxy-protocol", f"{scheme}://localhost:{port}/x"))
            assert seen["announced"] == seen["connected"]
            assert (seen["proxy"]["version"], seen["proxy"]["destination"]) == (1, ["127.0.0.1", port])
            assert curl(known, f"{scheme}://localhost:{port}/x", status=None)  # unannounced: an error
            made.wait_for_ends(2)
            assert [event.reason for event in made.failures()] == [EndReason.PROXY_REFUSED]


@pytest.mark.parametrize("case", SOME_UNIX, ids=str)
def test_curl_announces_that_it_does_not_know_over_a_unix_socket(case: Case, known: Known) -> None:
    with front(case, body=http) as made:
        seen = json.loads(
            curl(known, "--haproxy-protocol", "--unix-socket", made.server.server_address, "http://localhost/x")
        )
        assert (seen["announced"], seen["connected"]) == (None, "")


# -- proxies


def asked(port: int, trust: Any = None, question: bytes = b"who;") -> tuple[Any, dict[str, Any]]:
    """Our own address, and what the server behind a proxy knows of us."""
    with Client(socket.create_connection(("127.0.0.1", port), 10), trust) as client:
        return list(client.address), client.begin().ask(question)


Configure = Callable[[list[int]], str]


@contextmanager
def haproxy(folder: Path, number: int, sections: Configure) -> Iterator[list[int]]:
    """HAProxy with these sections, which are told the ports they have."""
    program = partner("haproxy", "haproxy")
    times = "timeout connect 9s\n timeout client 9s\n timeout server 9s\n"
    place = folder / "haproxy.cfg"

    def command(ports: list[int]) -> list[Any]:
        place.write_text(f"global\n maxconn 200\ndefaults\n mode tcp\n {times}{sections(ports)}\n")
        return [program, "-db", "-f", place]

    with daemon(number, command) as ports:
        yield ports


def listen(name: str, bind: str, server: str, *more: str) -> str:
    lines = [f"bind {bind}", *more, f"server one {server}"]
    return f"listen {name}\n" + "".join(f" {line}\n" for line in lines)


@contextmanager
def two_fronts(case: Case, known: Known) -> Iterator[tuple[Front, Front]]:
    """Servers that want headers: one in plain text, one with TLS behind them."""
    with front(case) as plain, front(case, pair=known.pair, trust=known.trust) as secure:
        yield plain, secure


@EACH
def test_haproxy_announces_clients_in_both_versions(case: Case, known: Known, tmp_path: Path) -> None:
    with two_fronts(case, known) as (plain, secure):
        here, there = (f"127.0.0.1:{made.server.server_address[1]}" for made in (plain, secure))
        authority = f"ssl verify required ca-file {known.ca} sni str(localhost)"

        def sections(ports: list[int]) -> str:
            places = [f"127.0.0.1:{port}" for port in ports]
            return "".join(
                (
                    listen("v1", places[0], f"{here} send-proxy"),
                    listen("v2", places[1], f"{here} send-proxy-v2"),
                    listen("v1-tls", places[2], f"{there} send-proxy {authority}"),
                    listen("v2-tls", places[3], f"{there} send-proxy-v2 ssl verify none"),
                    listen("v2-passed", places[4], f"{there} send-proxy-v2 proxy-v2-options crc32c"),
                )
            )

        with haproxy(tmp_path, 5, sections) as ports:
            for number, port in enumerate(ports):
                own, seen = asked(port, known.trust if number == 4 else None)
                assert seen["announced"] == seen["client_address"] == own
                assert seen["connected"] != own
                assert seen["proxy"]["version"] == (1 if number in (0, 2) else 2)
                assert seen["proxy"]["destination"] == ["127.0.0.1", port]
                assert (seen["tls"] is None) is (number < 2)
        for made, number in ((plain, 2), (secure, 3)):
            made.wait_for_ends(number)
            assert made.server.stats().ended == {"done": number}


@EACH
def test_haproxy_tells_of_its_clients_tls(case: Case, known: Known, tmp_path: Path) -> None:
    with front(case) as made:
        here = f"127.0.0.1:{made.server.server_address[1]}"
        crt = f"ssl crt {known.one_file(tmp_path)} alpn http/1.1 ca-file {known.ca} verify optional"
        options = "proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"

        def sections(ports: list[int]) -> str:
            unique = "unique-id-format portico-%ci"
            return listen("cn", f"127.0.0.1:{ports[0]} {crt}", f"{here} send-proxy-v2-ssl-cn") + listen(
                "all", f"127.0.0.1:{ports[1]} {crt}", f"{here} send-proxy-v2 {options}", unique
            )

        alice = known.authority.trust(pair=known.alice)
        alice.set_alpn_protocols(["http/1.1"])
        with haproxy(tmp_path, 2, sections) as ports:
            own, seen = asked(ports[0], alice)
            assert (seen["announced"], seen["tls"], seen["names"]) == (own, None, ["alice"])
            version, name, _, verified = seen["proxy"]["ssl"]
            assert (version, name, verified) == ("TLSv1.3", "alice", True)
            _, seen = asked(ports[0], known.trust)  # who shows no certificate
            assert seen["names"] == []
            assert seen["proxy"]["ssl"][0] == "TLSv1.3"
            assert seen["proxy"]["ssl"][3] is False
            _, seen = asked(ports[1], alice)
            assert seen["names"] == ["alice"]
            assert seen["proxy"]["ssl"][2].startswith("TLS_")
            assert (seen["proxy"]["alpn"], seen["proxy"]["authority"]) == ("http/1.1", "localhost")
            assert seen["proxy"]["unique_id"] == "portico-127.0.0.1"


@EACH
def test_haproxys_checks_are_nobodys_connections(case: Case, known: Known, tmp_path: Path) -> None:
    """They come with LOCAL in version 2; the check looks whether the server is there, and leaves."""
    with front(case, body=http) as made:
        here = f"127.0.0.1:{made.server.server_address[1]}"

        def sections(ports: list[int]) -> str:
            check = "check inter 50ms check-send-proxy"
            http_check = ("option httpchk GET /check", "http-check expect status 200")
            return listen("v2", f"127.0.0.1:{ports[0]}", f"{here} send-proxy-v2 {check}", *http_check) + listen(
                "v1", f"127.0.0.1:{ports[1]}", f"{here} send-proxy {check}", *http_check
            )

        with haproxy(tmp_path, 2, sections) as ports:
            assert until(lambda: made.begun() >= 8)
            for port in ports:  # they serve, as what they check is well
                seen = json.loads(curl(known, f"http://127.0.0.1:{port}/x"))
                assert seen["announced"] != seen["connected"]
        made.wait_for_active(0)
        assert made.failures() == []
        assert set(made.server.stats().ended) <= {"done", "peer_left"}
        announced = [end for end in made.served.ends() if end.proxy is not None and end.proxy.version == 2]
        assert len(announced) == 1


@pytest.mark.parametrize("case", SOME_UNIX, ids=str)
def test_haproxy_announces_clients_over_a_unix_socket(case: Case, tmp_path: Path) -> None:
    with front(case) as made:

        def sections(ports: list[int]) -> str:
            place = f"unix@{made.server.server_address}"
            return listen("v1", f"127.0.0.1:{ports[0]}", f"{place} send-proxy") + listen(
                "v2", f"127.0.0.1:{ports[1]}", f"{place} send-proxy-v2"
            )

        with haproxy(tmp_path, 2, sections) as ports:
            for port in ports:
                own, seen = asked(port)
                assert (seen["announced"], seen["connected"]) == (own, "")


@contextmanager
def nginx(folder: Path, number: int, servers: Configure) -> Iterator[list[int]]:
    """nginx with these stream servers, which are told the ports they have."""
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    program = partner("nginx", "nginx", "libnginx-mod-stream", needs=module)
    place = folder / "nginx.conf"
    begin = f"load_module {module}; daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;\n"

    def command(ports: list[int]) -> list[Any]:
        place.write_text(f"{begin}events {{ worker_connections 64; }}\nstream {{\n{servers(ports)}\n}}\n")
        return [program, "-p", folder, "-e", "stderr", "-c", place]

    with daemon(number, command) as ports:
        yield ports


@EACH
def test_nginx_announces_clients(case: Case, known: Known, tmp_path: Path) -> None:
    verify = f"proxy_ssl on; proxy_ssl_trusted_certificate {known.ca}; proxy_ssl_verify on; proxy_ssl_name localhost;"
    with two_fronts(case, known) as (plain, secure):
        here, there = (f"127.0.0.1:{made.server.server_address[1]}" for made in (plain, secure))

        def servers(ports: list[int]) -> str:
            behind = ((here, ""), (there, verify), (there, ""))
            return "\n".join(
                f"server {{ listen 127.0.0.1:{port}; proxy_pass {place}; proxy_protocol on; {more} }}"
                for port, (place, more) in zip(ports, behind, strict=True)
            )

        with nginx(tmp_path, 3, servers) as ports:
            for number, port in enumerate(ports):
                own, seen = asked(port, known.trust if number == 2 else None)
                assert seen["announced"] == seen["client_address"] == own
                assert (seen["proxy"]["version"], seen["proxy"]["destination"]) == (1, ["127.0.0.1", port])
                assert (seen["tls"] is None) is (number == 0)
        assert plain.failures() == secure.failures() == []


@pytest.mark.parametrize("case", SOME_UNIX, ids=str)
def test_nginx_announces_clients_over_a_unix_socket(case: Case, tmp_path: Path) -> None:
    with front(case) as made:

        def servers(ports: list[int]) -> str:
            place = f"unix:{made.server.server_address}"
            return f"server {{ listen 127.0.0.1:{ports[0]}; proxy_pass {place}; proxy_protocol on; }}"

        with nginx(tmp_path, 1, servers) as ports:
            own, seen = asked(ports[0])
            assert (seen["announced"], seen["connected"]) == (own, "")

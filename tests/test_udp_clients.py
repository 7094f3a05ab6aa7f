"""Datagram servers as the world's own clients see them: dig, logger, socat, dnslib, logging; against the examples.

The programs are no part of Portico's development: what is not installed is not tried. Debian has them as
bind9-dnsutils, bsdutils and socat.
"""

from __future__ import annotations

import logging
import logging.handlers
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

import portico

from .commands import ROOT, environment, running
from .contract.flavours import short_folder
from .loops import LOOPBACK, together
from .waiting import until

WAYS = ("", "Threading", "Forking", "Green", "Async")


def tool(name: str, package: str) -> str:
    """Where a client is; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian: {package})")
    return found


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


# -- dig


@pytest.fixture
def dig_is_there() -> None:
    tool("dig", "bind9-dnsutils")


needs_dig = pytest.mark.usefixtures("dig_is_there")


@pytest.fixture
def names() -> Any:
    """The handler of examples/dns.py."""
    pytest.importorskip("dnslib", reason="needs dnslib (pip install dnslib, part of the extra dev)")
    from examples.dns import Names

    return Names


@contextmanager
def name_servers(way: str, host: str, handler: Any) -> Iterator[int]:
    """Both of them in one loop, on one port that is free for both."""
    for _ in range(20):
        udp = getattr(portico, f"{way}UDPServer")((host, 0), handler)
        try:
            tcp = getattr(portico, f"{way}TCPServer")((host, udp.server_address[1]), handler)
        except OSError:  # somebody else's
            udp.server_close()
            continue
        with together(udp, tcp):
            yield udp.server_address[1]
        assert (udp.stats().failed, tcp.stats().failed) == (0, 0)
        return
    raise AssertionError("no port is free for both")


def dig(port: int, *question: str, server: str = "127.0.0.1") -> str:
    program = tool("dig", "bind9-dnsutils")
    return run(program, f"@{server}", "-p", str(port), "+time=10", "+tries=1", "+nocookie", *question)


@needs_dig
@pytest.mark.parametrize("way", ["", "Threading", "Green"])
def test_dig_is_answered(way: str, names: Any) -> None:
    with name_servers(way, "127.0.0.1", names) as port:
        assert dig(port, "+short", "www.example.test", "A") == "192.0.2.80\n"
        assert dig(port, "+short", "WWW.Example.TEST", "AAAA") == "2001:db8::80\n"
        assert dig(port, "+short", "+noedns", "www.example.test", "TXT") == '"hello"\n'
        assert dig(port, "+short", "+tcp", "www.example.test", "A") == "192.0.2.80\n"
        several = dig(port, "+short", "+tcp", "+keepopen", "www.example.test", "A", "www.example.test", "AAAA")
        assert several == "192.0.2.80\n2001:db8::80\n"  # over one connection

        assert "status: NXDOMAIN" in dig(port, "nobody.example.test", "A")
        nothing = dig(port, "www.example.test", "MX")  # the name is there, a record of that kind is not
        assert "status: NOERROR" in nothing
        assert "ANSWER: 0, AUTHORITY: 1" in nothing


@needs_dig
@pytest.mark.parametrize("way", ["", "Green"])
def test_what_is_too_long_for_a_datagram_is_asked_for_again_over_tcp(way: str, names: Any) -> None:
    with name_servers(way, "127.0.0.1", names) as port:
        assert " tc " in dig(port, "+ignore", "long.example.test", "TXT")
        answer = dig(port, "long.example.test", "TXT")
        assert "retrying in TCP mode" in answer
        assert answer.count('"of two kilobytes"') == 120


@needs_dig
@pytest.mark.parametrize("way", ["", "Threading", "Green"])
def test_dig_hears_from_the_address_that_it_asked(way: str, names: Any) -> None:
    """It takes no answer from any other; this machine would send them from 127.0.0.1."""
    with name_servers(way, "", names) as port:
        assert dig(port, "+short", "+notcp", "www.example.test", "A", server="127.0.0.2") == "192.0.2.80\n"


@needs_dig
def test_portico_serves_names_from_the_shell(names: Any) -> None:
    command = [sys.executable, "-m", "portico", "serve", "examples.dns:Names", "udp://127.0.0.1:0"]
    with running(command, ready="limits") as (_, lines):
        assert dig(port_in(lines), "+short", "www.example.test", "A") == "192.0.2.80\n"


@pytest.mark.parametrize("way", WAYS[:-1])
def test_dnslibs_own_client_is_answered(way: str, names: Any) -> None:
    from dnslib import QTYPE, DNSRecord  # type: ignore[import-untyped]

    question = DNSRecord.question("www.example.test", "AAAA")
    with getattr(portico, f"{way}UDPServer")(LOOPBACK, names).background() as server:
        answer = DNSRecord.parse(question.send(*server.server_address, timeout=10))
        assert [(QTYPE[record.rtype], str(record.rdata)) for record in answer.rr] == [("AAAA", "2001:db8::80")]
        assert answer.header.id == question.header.id


def test_what_is_no_question_is_not_answered(names: Any) -> None:
    from dnslib import DNSRecord

    question = DNSRecord.question("www.example.test")
    with portico.UDPServer(LOOPBACK, names).background() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        for nonsense in (b"", b"nonsense", question.pack()[:-1], question.reply().pack()):
            client.send(nonsense)
        client.send(question.pack())
        assert client.recv(512)[:2] == question.pack()[:2]  # the first answer is to the only question
        assert server.stats().failed == 0


def test_without_a_parser_the_name_server_says_what_it_needs() -> None:
    code = "import sys; sys.modules['dnslib'] = None; import examples.dns"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, "examples.dns needs dnslib: pip install dnslib\n")


def port_in(lines: list[str]) -> int:
    """The port that `portico serve` has told."""
    return int(next(line for line in lines if "udp:" in line).rpartition(":")[2])


# -- logger


@contextmanager
def syslog(path: Path) -> Iterator[tuple[int, Any]]:
    """examples/syslog.py on a port and a path; what it prints is read line by line."""
    command = [sys.executable, "-m", "portico", "serve", "examples.syslog:Syslog"]
    command += ["udp://127.0.0.1:0", f"unix-dgram:{path}", "--concurrency", "none"]
    with running(command, ready="limits") as (process, lines):
        yield port_in(lines), process.stdout


def test_logger_is_heard_over_udp(tmp_path: Path) -> None:
    logger = tool("logger", "bsdutils")
    with short_folder() as folder, syslog(folder / "log") as (port, printed):
        to = (logger, "-n", "127.0.0.1", "-P", str(port), "-d", "-t", "tester")
        run(*to, "--rfc3164", "-p", "mail.err", "no such mailbox")
        assert printed.readline().startswith("mail.err 1: ")
        run(*to, "--rfc5424", "-p", "local3.debug", "--msgid", "ID1", "as of 2009")
        line = printed.readline()
        assert line.startswith("local3.debug 1: ")
        assert line.endswith(" as of 2009\n")
        assert " tester - ID1 " in line
        run(*to, "-p", "mail.err", "still none")
        line = printed.readline()
        assert line.startswith("mail.err 2: ")
        assert line.endswith(" still none\n")


def test_logger_is_heard_over_a_unix_socket() -> None:
    logger = tool("logger", "bsdutils")
    with short_folder() as folder, syslog(folder / "log") as (_, printed):
        run(logger, "-u", str(folder / "log"), "-t", "tester", "-p", "cron.alert", "hello")
        line = printed.readline()
        assert line.startswith("cron.alert 1: ")
        assert line.endswith(" tester: hello\n")


def test_all_lines_of_a_log_arrive_in_order_over_a_unix_socket() -> None:
    """Where the kernel has no room, there the sender waits."""
    logger = tool("logger", "bsdutils")
    lines = [f"line {number}" for number in range(3000)]
    with short_folder() as folder, syslog(folder / "log") as (_, printed):
        sending = [logger, "-u", str(folder / "log"), "-t", "tester"]
        with subprocess.Popen(sending, stdin=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write("".join(f"{line}\n" for line in lines))
            process.stdin.close()
            heard = [printed.readline() for _ in lines]
        for number, (line, sent) in enumerate(zip(heard, lines, strict=True), 1):
            assert line.startswith(f"user.notice {number}: ")
            assert line.endswith(f" tester: {sent}\n")


def test_logging_is_heard() -> None:
    with short_folder() as folder, syslog(folder / "log") as (port, printed):
        addresses: list[Any] = [("127.0.0.1", port), str(folder / "log")]
        for number, address in enumerate(addresses, 1):
            handler = logging.handlers.SysLogHandler(address, facility="local2")
            handler.emit(logging.makeLogRecord({"msg": "a\tpiece of \x1b[31mart", "levelname": "ERROR"}))
            handler.close()
            assert printed.readline() == f"local2.err {number}: a?piece of ?[31mart\n"


@pytest.mark.parametrize(
    ("message", "parsed"),
    [
        (b"<0>x", ("kern", "emerg", "x")),
        (b"<191>1 - - - - - -", ("local7", "debug", "- - - - - -")),
        (b"<192>x", ("user", "notice", "<192>x")),
        (b"<1000>x", ("user", "notice", "<1000>x")),
        (b"<>x", ("user", "notice", "<>x")),
        (b"Use the BFG!", ("user", "notice", "Use the BFG!")),  # RFC 3164, 5.4, example 2
        (b"<13>\xff", ("user", "notice", "\ufffd")),
        (b"", ("user", "notice", "")),
    ],
)
def test_a_priority_is_read_as_the_rfcs_say(message: bytes, parsed: tuple[str, str, str]) -> None:
    from examples import syslog as example

    assert example.parsed(message) == parsed


# -- socat


class Upper(portico.DatagramRequestHandler):
    def handle(self) -> None:
        if self.packet == b"quiet":
            return
        self.wfile.write(self.packet.upper())


class AsyncUpper(portico.AsyncDatagramRequestHandler):
    async def handle(self) -> None:
        if self.packet == b"quiet":
            return
        self.wfile.write(self.packet.upper())


@contextmanager
def shouting(way: str, kind: str, address: Any, **settings: Any) -> Iterator[Any]:
    handler = AsyncUpper if way == "Async" else Upper
    with getattr(portico, way + kind)(address, handler, **settings).background() as server:
        yield server


class Socat:
    """socat, with what is typed into it, and what it prints."""

    def __init__(self, address: str) -> None:
        command = [tool("socat", "socat"), "-", address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Socat:
        return self

    def say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def ask(self, line: bytes) -> bytes:
        self.say(line)
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with suppress(BrokenPipeError):
            self._process.communicate(timeout=10)


@pytest.mark.parametrize("way", WAYS)
def test_socat_is_answered_over_udp(way: str) -> None:
    with shouting(way, "UDPServer", LOOPBACK) as server, Socat(f"UDP4:127.0.0.1:{server.server_address[1]}") as client:
        assert client.ask(b"hello\n") == b"HELLO\n"
        assert client.ask(b"again\n") == b"AGAIN\n"


def test_socat_is_answered_over_udp_and_ipv6() -> None:
    with shouting("", "UDPServer", ("::1", 0)) as server, Socat(f"UDP6:[::1]:{server.server_address[1]}") as client:
        assert client.ask(b"hello\n") == b"HELLO\n"


@pytest.mark.parametrize("way", WAYS)
def test_socat_with_a_socket_file_of_its_own_is_answered(way: str) -> None:
    with short_folder() as folder, shouting(way, "UnixDatagramServer", str(folder / "server")):  # noqa: SIM117
        with Socat(f"UNIX-SENDTO:{folder}/server,bind={folder}/client") as client:
            assert client.ask(b"hello\n") == b"HELLO\n"
            assert client.ask(b"again\n") == b"AGAIN\n"


@pytest.mark.parametrize("way", WAYS)
def test_socat_without_an_address_is_heard_and_nobody_stumbles(way: str) -> None:
    """There is nobody to answer to, which is no failure."""
    with short_folder() as folder, shouting(way, "UnixDatagramServer", str(folder / "server")) as server:
        with Socat(f"UNIX-SENDTO:{folder}/server") as client:
            client.say(b"hello\n")
            assert until(lambda: server.stats().done == 1), server.stats()
        with Socat(f"UNIX-SENDTO:{folder}/server,bind={folder}/client") as client:
            assert client.ask(b"hello\n") == b"HELLO\n"
        assert until(lambda: server.stats().done == 2), server.stats()
        assert server.stats().failed == 0


def test_portico_serves_the_game_from_the_shell() -> None:
    tool("socat", "socat")
    command = [sys.executable, "-m", "portico", "serve", "examples.guess:Guess", "udp://127.0.0.1:0"]
    with running([*command, "--concurrency", "green", "--set", "sessions=true"], ready="limits") as (_, lines):  # noqa: SIM117
        with Socat(f"UDP4:127.0.0.1:{port_in(lines)}") as client:
            assert client.ask(b"hello\n") == b"A number from 1 to 100?\n"


def playing(client: Socat) -> Iterator[bytes]:
    """Guess a number in the shortest way; gives each answer."""
    low, high, answer = 1, 100, b""
    while not answer.startswith(b"Yes"):
        guess = (low + high) // 2
        answer = client.ask(b"%d\n" % guess)
        yield answer
        low, high = (guess + 1, high) if b"greater" in answer else (low, guess - 1)


@pytest.mark.parametrize("way", WAYS[1:-1])
def test_two_games_are_played_at_once_with_socat(way: str) -> None:
    """A session of examples/guess.py for each player, and a further one for the next game."""
    from examples.guess import Guess

    with getattr(portico, f"{way}UDPServer")(LOOPBACK, Guess, sessions=True).background() as server:
        address = f"UDP4:127.0.0.1:{server.server_address[1]}"
        with Socat(address) as one, Socat(address) as other:
            for client in (one, other):
                assert client.ask(b"hello\n") == b"A number from 1 to 100?\n"
                assert client.ask(b"hello\n") == b"That is no number.\n"
            answers = list(zip_longest(playing(one), playing(other)))  # in turns
            for game in zip(*answers, strict=True):
                count = len([answer for answer in game if answer])
                assert game[count - 1] == b"Yes, after %d tries. Another game?\n" % (count + 1)
            assert until(lambda: server.stats().done == 2), server.stats()
            assert one.ask(b"again\n") == b"A number from 1 to 100?\n"
            assert server.stats().active == 1


@pytest.mark.parametrize("way", ["", "Green"])
def test_socat_is_answered_when_it_asks_a_group(way: str) -> None:
    """The answer leaves from an address of ours, as a group's can send nothing."""
    group = "239.255.77.77"
    with shouting(way, "UDPServer", ("", 0), multicast_groups=f"{group}%127.0.0.1") as server:
        port = server.server_address[1]
        with Socat(f"UDP4-DATAGRAM:{group}:{port},ip-multicast-if=127.0.0.1") as client:
            assert client.ask(b"hello\n") == b"HELLO\n"


@pytest.mark.parametrize("way", ["", "Green"])
def test_socat_is_answered_when_it_asks_everybody(way: str) -> None:
    with shouting(way, "UDPServer", ("", 0)) as server:  # noqa: SIM117
        with Socat(f"UDP4-DATAGRAM:127.255.255.255:{server.server_address[1]},broadcast") as client:
            assert client.ask(b"hello\n") == b"HELLO\n"

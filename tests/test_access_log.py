"""The access log: one line of ASCII for every connection that ends or is refused, for every way to run."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import portico
from portico._access_log import spelled

from .contract.flavours import looping, short_folder
from .every_way import EVERY, Case, Peer, in_every_way, seconds_to_the_end, serving, until_the_end
from .waiting import until

LOGGER = logging.getLogger("portico.access")
LINE = re.compile(r"(?P<client>\S+) -> (?P<local>\S+) id=(\d+) (\d+\.\d{3})s in=(\d+|-) out=(\d+|-) (\S+)")
LOOPBACK = ("127.0.0.1", 0)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, part: str) -> list[str]:
        return [line for record in self.records if part in (line := record.getMessage())]


@contextmanager
def logged() -> Iterator[Lines]:
    lines, level = Lines(), LOGGER.level
    LOGGER.addHandler(lines)
    LOGGER.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        LOGGER.removeHandler(lines)
        LOGGER.setLevel(level)


@pytest.fixture
def log() -> Iterator[Lines]:
    with logged() as lines:
        yield lines


class Echo(portico.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data)


def ask(address: Any, said: bytes = b"hello", *, family: int = socket.AF_INET, name: Any = None) -> bytes:
    """What is answered to a client that says this and ends."""
    with socket.socket(family) as client:
        client.settimeout(10)
        if name is not None:
            client.bind(name)
        client.connect(address)
        with suppress(OSError):  # it may have been turned away
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                return answer.read()
    return b""


def name_of(case: Case, address: Any) -> str:
    return f"unix:{address}" if case.is_unix else f"{address[0]}:{address[1]}"


def both_ways(test: Callable[[Case, Lines], None]) -> Callable[[], None]:
    """One after the other: each finds its own lines by its server's address, which is free again after it."""

    def run() -> None:
        def alone(case: Case) -> None:
            with logged() as lines:
                test(case, lines)

        in_every_way(EVERY, at_once=False)(alone)()

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def _echoes(peer: Peer) -> None:
    data = await peer.recv(100)
    await peer.sendall(data * 2)
    assert await peer.recv(100) == b""


# -- every way to run


@both_ways
def test_a_line_of_text_for_each_connection(case: Case, lines: Lines) -> None:
    with serving(case, _echoes, access_log="text") as served:
        with served.connect() as client:
            mine = client.getsockname()
            client.sendall(b"12345")
            assert client.recv(100) == b"1234512345"
            client.shutdown(socket.SHUT_WR)
            seconds_to_the_end(client)
        local = name_of(case, served.server.server_address)
        assert until(lambda: lines.of(f"-> {local} "))
        served.reasons()
        (line,) = lines.of(f"-> {local} ")
        found = LINE.fullmatch(line)
        assert found, line
        assert found[3] == "1"
        assert 0 <= float(found[4]) < 5
        assert found.groups()[4:] == ("5", "10", "done")
        client_name = f"unix:pid={os.getpid()},uid={os.getuid()}" if case.is_unix else name_of(case, mine)
        assert found["client"] == client_name
    (record,) = [record for record in lines.records if record.getMessage() == line]
    assert (record.name, record.levelno) == ("portico.access", logging.INFO)


@both_ways
def test_a_line_of_json_for_each_connection(case: Case, lines: Lines) -> None:
    with serving(case, _echoes, access_log="json") as served:
        for _ in range(3):
            with served.connect() as client:
                mine = client.getsockname()
                client.sendall(b"12345")
                assert client.recv(100)
                client.shutdown(socket.SHUT_WR)
                seconds_to_the_end(client)
        local = name_of(case, served.server.server_address)
        assert until(lambda: len(lines.of(f'"{local}"')) == 3)
    every = [json.loads(line) for line in lines.of(f'"{local}"')]
    assert sorted(facts["id"] for facts in every) == [1, 2, 3]
    facts = next(facts for facts in every if facts["id"] == 3)
    assert abs(datetime.fromisoformat(facts.pop("time")) - datetime.now(UTC)) < timedelta(seconds=20)
    assert 0 <= facts.pop("seconds") < 5
    who = {"client_pid": os.getpid(), "client_uid": os.getuid()} if case.is_unix else {}
    client_name = "unix" if case.is_unix else name_of(case, mine)
    assert facts == {
        "id": 3,
        "client": client_name,
        "local": local,
        "reason": "done",
        "bytes_in": 5,
        "bytes_out": 10,
        **who,
    }


async def _fails(peer: Peer) -> None:
    await peer.recv(100)
    raise LookupError("a bug in the handler")


@both_ways
def test_why_it_has_ended(case: Case, lines: Lines) -> None:
    with serving(case, _fails, access_log="text") as served:
        local = name_of(case, served.server.server_address)
        with served.connect() as client:
            client.sendall(b"x")
            seconds_to_the_end(client)
        assert until(lambda: lines.of(f"-> {local} "))
    with serving(case, until_the_end, access_log="text", idle_timeout=0.1, connection_timeout=0.2) as served:
        other = name_of(case, served.server.server_address)
        with served.connect() as client:
            seconds_to_the_end(client)
        assert until(lambda: lines.of(f"-> {other} "))
    assert [line.split()[-1] for line in lines.of(f"-> {local} ")] == ["failed"]
    assert [line.split()[-1] for line in lines.of(f"-> {other} ")] == ["idle_timeout"]


@both_ways
def test_who_is_turned_away_by_verify_request_has_one_line(case: Case, lines: Lines) -> None:
    with serving(case, _echoes, {"verify_request": lambda *_: False}, access_log="text") as served:
        local = name_of(case, served.server.server_address)
        with served.connect() as client:
            seconds_to_the_end(client)
        assert until(lambda: lines.of(f"-> {local} "))
    (line,) = lines.of(f"-> {local} ")
    assert line.endswith(" refused=verify_request")
    assert " id=1 " in line


@both_ways
def test_it_can_be_had_and_left_while_a_server_runs(case: Case, lines: Lines) -> None:
    """Also by those that are there already."""
    with serving(case, _echoes) as served:
        local = name_of(case, served.server.server_address)
        with served.connect() as client:
            client.sendall(b"x")
            assert client.recv(100) == b"xx"
            served.server.configure(access_log="text")
            client.shutdown(socket.SHUT_WR)
            seconds_to_the_end(client)
        assert served.reasons()
        assert len(lines.of(f"-> {local} id=1 ")) == 1
        with served.connect() as client:
            client.shutdown(socket.SHUT_WR)
            seconds_to_the_end(client)
        assert served.reasons(2)
        assert len(lines.of(f"-> {local} id=2 ")) == 1
        served.server.configure(access_log=None)
        with served.connect() as client:
            client.shutdown(socket.SHUT_WR)
            seconds_to_the_end(client)
        assert served.reasons(3)
        assert lines.of(f"-> {local} id=3 ") == []


# -- the standard library's servers, and servers without an own handle_event


@pytest.mark.parametrize("mix_in", ["ThreadingMixIn", "ForkingMixIn", "GreenMixIn"])
@pytest.mark.parametrize("base", [socketserver.TCPServer, portico.TCPServer], ids=["stdlib", "portico"])
def test_the_standard_librarys_server_under_a_mix_in(log: Lines, base: Any, mix_in: str) -> None:
    made = type("Server", (getattr(portico, mix_in), base), {"access_log": "text", "event_loop": "asyncio"})
    with made(LOOPBACK, Echo) as server, looping(server):
        host, port = server.server_address
        assert ask(server.server_address) == b"hello"
        assert until(lambda: log.records)
    (line,) = log.of("")
    assert re.fullmatch(rf"127\.0\.0\.1:\d+ -> {host}:{port} id=1 0\.\d+s in=[56] out=5 done", line)


def test_the_standard_librarys_server_with_async_handlers(log: Lines) -> None:
    class Server(portico.AsyncMixIn, socketserver.TCPServer):
        access_log = "text"

    class AsyncEcho(portico.AsyncStreamRequestHandler):
        async def handle(self) -> None:
            self.wfile.write(await self.rfile.read())

    handler: Any = AsyncEcho
    with Server(LOOPBACK, handler) as server, looping(server):
        assert ask(server.server_address) == b"hello"
        assert until(lambda: log.records)
    assert log.of("")[0].endswith(" in=5 out=5 done")


def test_of_those_that_are_there_already_is_noted_what_their_end_takes_away(log: Lines) -> None:
    with short_folder() as folder:
        path = str(folder / "server.sock")
        with portico.ThreadingUnixStreamServer(path, Echo) as server, looping(server):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                server.configure(access_log="text")
            assert until(lambda: log.records)
    (line,) = log.of("")
    assert line.startswith(f"unix:pid={os.getpid()},uid={os.getuid()} -> unix:{path} id=1 ")
    assert line.endswith(" in=1 out=1 done")


def test_handle_request_writes_a_line_as_well(log: Lines) -> None:
    with (
        portico.TCPServer(LOOPBACK, Echo, access_log="text") as server,
        socket.create_connection(server.server_address) as client,
    ):
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
    assert len(log.records) == 1


def test_as_many_lines_as_connections(log: Lines) -> None:
    with portico.ThreadingTCPServer(LOOPBACK, Echo, access_log="json") as server, looping(server):
        for _ in range(200):
            assert ask(server.server_address) == b"hello"
        assert until(lambda: len(log.records) == 200)
    assert sorted(json.loads(line)["id"] for line in log.of("")) == list(range(1, 201))


# -- none


def test_without_it_there_is_none_and_nothing_is_loaded(log: Lines) -> None:
    with portico.TCPServer(LOOPBACK, Echo) as server, looping(server):
        assert ask(server.server_address) == b"hello"
    assert log.records == []
    code = (
        "import sys, socket, portico\n"
        "class Handler(portico.BaseRequestHandler):\n"
        "    def handle(self): pass\n"
        "with portico.TCPServer(('127.0.0.1', 0), Handler) as server:\n"
        "    with socket.create_connection(server.server_address): server.handle_request()\n"
        "print([name for name in ('logging', 'json', 'portico._access_log') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert answer.stdout.strip() == "[]"


def test_datagrams_have_none(log: Lines) -> None:
    class Back(portico.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.packet)

    with portico.UDPServer(LOOPBACK, Back, access_log="text", deny="127.0.0.9") as server, looping(server):
        for name in ("127.0.0.9", "127.0.0.1"):  # the first is refused
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.bind((name, 0))
                client.settimeout(10)
                client.sendto(b"x", server.server_address)
                assert name.endswith("9") or client.recv(10) == b"x"
        assert server.stats().refused == {"deny": 1}
    assert log.records == []


def test_a_level_that_nobody_sees_costs_no_line(log: Lines) -> None:
    LOGGER.setLevel(logging.WARNING)
    with portico.TCPServer(LOOPBACK, Echo, access_log="text") as server, looping(server):
        assert ask(server.server_address) == b"hello"
    assert log.records == []


# -- refused


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_refused_connection_has_one_line(log: Lines, kind: str) -> None:
    with portico.TCPServer(LOOPBACK, Echo, access_log=kind, deny="127.0.0.9") as server, looping(server):
        ask(server.server_address, name=("127.0.0.9", 0))
        assert ask(server.server_address) == b"hello"
        assert until(lambda: len(log.records) == 2)
        port = server.server_address[1]
    refused, other = log.of("")
    if kind == "text":
        assert re.fullmatch(rf"127\.0\.0\.9:\d+ -> 127\.0\.0\.1:{port} refused=deny", refused)
        assert other.endswith(" done")
    else:
        facts = json.loads(refused)
        assert facts["client"].startswith("127.0.0.9:")
        assert facts["local"] == f"127.0.0.1:{port}"
        assert {name: facts[name] for name in ("id", "seconds", "bytes_in", "bytes_out", "reason", "refused")} == {
            "id": None, "seconds": None, "bytes_in": None, "bytes_out": None, "reason": "refused", "refused": "deny",
        }  # fmt: skip


def test_who_would_have_been_refused_has_the_line_of_who_was_let_in(log: Lines) -> None:
    limits: dict[str, Any] = {"deny": "127.0.0.1", "limits_dry_run": True}
    with portico.TCPServer(LOOPBACK, Echo, access_log="text", **limits) as server, looping(server):
        assert ask(server.server_address) == b"hello"
        assert until(lambda: log.records)
    (line,) = log.of("")
    assert line.endswith(" done")


def test_too_many_connections_are_told_one_by_one(log: Lines) -> None:
    limits: dict[str, Any] = {"max_connections": 1, "overload": "close"}
    with portico.ThreadingTCPServer(LOOPBACK, Echo, access_log="text", **limits) as server, looping(server):
        with socket.create_connection(server.server_address) as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            for _ in range(5):
                ask(server.server_address)
            assert until(lambda: len(log.records) == 5)
        assert until(lambda: len(log.records) == 6)
    assert [line.split()[-1] for line in log.of("")] == ["refused=max_connections"] * 5 + ["done"]


# -- addresses


def test_ipv6_is_in_brackets(log: Lines) -> None:
    with portico.TCPServer(("::1", 0), Echo, access_log="text") as server, looping(server):
        assert ask(server.server_address, family=socket.AF_INET6) == b"hello"
        assert until(lambda: log.records)
        port = server.server_address[1]
    assert re.match(rf"\[::1\]:\d+ -> \[::1\]:{port} id=1 ", log.of("")[0])


HOSTILE = [
    b"\0evil\n127.0.0.1:1 -> 127.0.0.1:2 id=9 0.001s in=0 out=0 done",
    b"\0a b\r\x1b[31m\x7f\x00\xff\xfe",
    b'\0"quoted", "reason": "done"}\\',
    "\0\u2028x\u202ey\udcff".encode("utf-8", "surrogatepass"),
]


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("name", HOSTILE, ids=["newline", "bytes", "quotes", "unicode"])
def test_no_client_can_break_a_line_or_forge_one(log: Lines, kind: str, name: bytes) -> None:
    with short_folder() as folder:
        path = str(folder / "a server\n.sock")
        with portico.UnixStreamServer(path, Echo, access_log=kind) as server, looping(server):
            assert ask(path, family=socket.AF_UNIX, name=name) == b"hello"
            assert until(lambda: log.records)
    (line,) = log.of("")
    assert line.isascii()
    assert line.isprintable()
    if kind == "text":
        assert LINE.fullmatch(line)
        assert len(line.split()) == 8
        assert line.split()[2].endswith("/a\\x20server\\x0a.sock")
    else:
        facts = json.loads(line)
        assert facts["reason"] == "done"
        assert facts["client"].startswith("unix:@")
        assert facts["client_pid"] == os.getpid()


@pytest.mark.parametrize(
    ("address", "word"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, 2), "[fe80::1%2]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        ("/run/a.sock", "unix:/run/a.sock"),
        (b"\0name", "unix:@name"),
        ("\0name", "unix:@name"),
        ("", "unix"),
        (b"", "unix"),
        (None, "-"),
        (os.fsdecode(b"/run/\xff"), "unix:/run/\\xff"),
        ("/\ud800", "unix:/\\xed\\xa0\\x80"),
        (("evil\nhost", 1), "evil\\x0ahost:1"),
        ((3, 1024), "3:1024"),
        ({"who": 1}, "{'who':\\x201}"),
    ],
)
def test_how_addresses_are_spelled(address: Any, word: str) -> None:
    assert spelled(address) == word


@given(st.one_of(st.binary(), st.text(st.characters(codec=None)), st.tuples(st.text(), st.integers()), st.integers()))
def test_whatever_an_address_is_it_is_one_word_of_ascii(address: Any) -> None:
    word = spelled(address)
    assert word
    assert word.isascii()
    assert word.isprintable()
    assert len(word.split()) == 1
    assert '"' not in word


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_two_names_are_never_spelled_alike(one: bytes, other: bytes) -> None:
    """But for the zero byte of an abstract name, which is spelled @."""
    if one != other and not (one[:1] in b"\0@" and other[:1] in b"\0@"):
        assert spelled(one) != spelled(other)


# -- faults


def test_a_log_that_fails_harms_no_connection(log: Lines) -> None:
    events: list[Any] = []

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the disk is full")

    class Server(portico.ThreadingTCPServer):
        def handle_event(self, event: Any) -> None:
            events.append(event)

    broken = Broken()
    LOGGER.addHandler(broken)
    try:
        with Server(LOOPBACK, Echo, access_log="text") as server, looping(server):
            for _ in range(3):
                assert ask(server.server_address) == b"hello"
            assert until(lambda: server.stats().done == 3)
    finally:
        LOGGER.removeHandler(broken)
    failures = [event for event in events if isinstance(event, portico.lifecycle.HookFailed)]
    assert [(event.hook, str(event.error)) for event in failures] == [("access_log", "the disk is full")] * 3
    assert len([event for event in events if isinstance(event, portico.lifecycle.ConnectionEnded)]) == 3


def test_an_override_that_fails_takes_no_line_away(log: Lines) -> None:
    class Server(portico.ThreadingTCPServer):
        def handle_event(self, event: Any) -> None:
            raise RuntimeError("a bug in an override")

    logger = logging.getLogger("portico")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with Server(LOOPBACK, Echo, access_log="text") as server, looping(server):
            assert ask(server.server_address) == b"hello"
            assert until(lambda: log.records)
    finally:
        logger.setLevel(level)
    assert len(log.records) == 1


def test_it_is_wanted_as_text_or_json() -> None:
    with pytest.raises(portico.SettingError, match="access_log"):
        portico.TCPServer(LOOPBACK, Echo, access_log="xml")

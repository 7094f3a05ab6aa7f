"""`start_tls()`: a connection that goes on encrypted when its client asks for it, in every way to run."""

from __future__ import annotations

import inspect
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import portico
from portico.lifecycle import ConnectionEnded, HookFailed, PeerLeft, RequestFailed

from .certificates import Authority
from .contract.flavours import short_folder
from .every_way import EVERY, PATIENCE, Case, Peer, Served, case_class, in_every_way, serving
from .green_worlds import exactly
from .secured import Certificates, OnPaper, certificates, clean_rest, wrapped
from .waiting import until

BLOCKING = [case for case in EVERY if not case.way.own_tasks]
STREAMS = [case for case in EVERY if case.streams]
LATE = 0.6
BIG = bytes(range(251)) * 2_000

KNOWN: Certificates


@pytest.fixture(autouse=True, scope="module")
def known(authority: Authority) -> Certificates:
    global KNOWN
    KNOWN = certificates(authority)
    return KNOWN


async def start_tls(peer: Peer) -> None:
    """What a handler calls, or awaits."""
    begun: Any = peer.handler.start_tls()
    if inspect.isawaitable(begun):
        await begun


async def starts(peer: Peer) -> None:
    """A body that says go, begins, and echoes."""
    assert await peer.recv(100) == b"STARTTLS\n"
    peer.note(f"before {peer.handler.tls}")
    await peer.sendall(b"go\n")
    try:
        await start_tls(peer)
    except BaseException as error:
        peer.note(type(error).__name__)
        raise
    peer.note(f"after {peer.handler.tls.version}")
    while data := await peer.recv(65536):
        await peer.sendall(data)
    peer.note(f"truncated {peer.handler.tls.truncated}")


def ask(served: Served) -> socket.socket:
    """A client that has been told to begin."""
    client = served.connect()
    client.sendall(b"STARTTLS\n")
    assert exactly(client, 3) == b"go\n"
    return client


def faults(served: Served) -> list[Any]:
    return served.of_kind(RequestFailed) + served.of_kind(HookFailed)


def offering(case: Case, body: Any, **settings: Any) -> Any:
    return serving(case, body, **{"tls": KNOWN.description, "starttls": True} | settings)


@in_every_way(EVERY)
def test_a_connection_goes_on_encrypted(case: Case) -> None:
    with offering(case, starts) as served, wrapped(ask(served), KNOWN.trust()) as client:
        assert client.version() == "TLSv1.3"
        for data in (b"hello", BIG[:50_000]):
            client.sendall(data)
            assert exactly(client, len(data)) == data
        client.unwrap().close()
        assert served.reasons() == ["done"]
        assert served.notes() == ["before None", "after TLSv1.3", "truncated False", "finish"]
        assert not faults(served)


@in_every_way(EVERY)
def test_who_does_not_ask_for_it_goes_on_in_plain_text(case: Case) -> None:
    async def echoes(peer: Peer) -> None:
        while data := await peer.recv(65536):
            await peer.sendall(data)
        peer.note(f"{peer.handler.tls} {peer.handler.client.tls}")

    with offering(case, echoes) as served, served.connect() as client:
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(9) == b""
        assert served.reasons() == ["done"]
        assert served.notes() == ["None None", "finish"]


@in_every_way(EVERY)
def test_a_client_that_speaks_no_tls_is_not_a_fault_of_ours(case: Case) -> None:
    with offering(case, starts) as served, ask(served) as client:
        client.sendall(b"MAIL FROM:<somebody@example.org>\r\n")
        with_the_alert = b"\x15\x03"
        try:
            while data := client.recv(100):
                assert data.startswith(with_the_alert)
        except ConnectionResetError:
            pass
        assert served.reasons() == ["handshake_failed"]
        assert until(lambda: served.notes() == ["before None", "HandshakeError", "finish"]), served.notes()
        assert not faults(served)
        if not case.way.own_process:
            assert [type(event.error) for event in served.of_kind(PeerLeft)] == [portico.HandshakeError]
            assert served.server.stats().ended["handshake_failed"] == 1


@in_every_way(EVERY)
def test_a_client_that_does_not_trust_us_is_not_either(case: Case) -> None:
    with offering(case, starts) as served:
        with pytest.raises(ssl.SSLCertVerificationError):
            wrapped(ask(served), ssl.create_default_context())
        assert set(served.reasons()) <= {"handshake_failed", "peer_left"}
        assert not faults(served)


@in_every_way(EVERY)
def test_a_client_that_says_nothing_is_given_up_in_time(case: Case) -> None:
    began = time.monotonic()
    with offering(case, starts, handshake_timeout=0.3) as served, ask(served) as client:
        while client.recv(100):
            pass
        assert 0.3 <= time.monotonic() - began <= 0.3 + LATE
        assert served.reasons() == ["handshake_timeout"]
        assert not faults(served)


@in_every_way([case for case in EVERY if not case.way.own_process])  # a child has copies of the client's socket
def test_a_client_that_leaves_has_left(case: Case) -> None:
    with offering(case, starts) as served:
        client = ask(served)
        client.sendall(b"\x16\x03\x01")
        client.close()
        assert served.reasons() == ["peer_left"]
        assert until(lambda: served.notes() == ["before None", "HandshakeError", "finish"])
        assert not faults(served)


@in_every_way(EVERY)
def test_a_handler_may_go_on_to_say_that_it_did_not_work(case: Case) -> None:
    async def catches(peer: Peer) -> None:
        await peer.recv(100)
        await peer.sendall(b"go\n")
        try:
            await start_tls(peer)
        except portico.HandshakeError as error:
            peer.note(type(error.__cause__).__name__)

    with offering(case, catches) as served, ask(served) as client:
        client.sendall(b"no TLS at all, but long enough\n")
        assert served.reasons() == ["handshake_failed"]
        assert until(lambda: served.notes() == ["SSLError", "finish"]), served.notes()
        assert not faults(served)


@in_every_way(EVERY)
def test_it_begins_once(case: Case) -> None:
    async def twice(peer: Peer) -> None:
        await peer.recv(100)
        await peer.sendall(b"go\n")
        await start_tls(peer)
        try:
            await start_tls(peer)
        except portico.TLSError as error:
            peer.note(str(error))
        await peer.sendall(await peer.recv(100))

    with offering(case, twice) as served, wrapped(ask(served), KNOWN.trust()) as client:
        client.sendall(b"hello")
        assert clean_rest(client) == b"hello"
        assert served.reasons() == ["done"]
        assert until(lambda: served.notes() == ["this connection is encrypted already", "finish"]), served.notes()


@in_every_way(EVERY)
def test_without_the_setting_it_is_an_error_of_the_program(case: Case) -> None:
    async def tries(peer: Peer) -> None:
        await peer.recv(100)
        try:
            await start_tls(peer)
        except portico.SettingError as error:
            peer.note(str(error))
        await peer.sendall(b"as before")

    for settings in ({}, {"tls": KNOWN.description}):
        with serving(case, tries, **settings) as served, served.connect() as plain:
            client: Any = wrapped(plain, KNOWN.trust()) if settings else plain
            with client:
                client.sendall(b"hello")
                assert exactly(client, 9) == b"as before"
                assert served.reasons() == ["done"]
                assert until(lambda: len(served.notes()) == 2)
                assert "starttls" in served.notes()[0]


@in_every_way(EVERY)
def test_its_client_is_known_afterwards(case: Case) -> None:
    tls = portico.TLS(*KNOWN.pair, alpn=["echo"], client_ca=KNOWN.authority.ca_file)

    async def asks(peer: Peer) -> None:
        await peer.recv(100)
        await peer.sendall(b"go\n")
        await start_tls(peer)
        found = peer.handler.client.tls
        peer.note(f"{found.server_name} {found.alpn} {found.peer.names} {peer.handler.client.names}")
        await peer.sendall(b"done")

    trust = KNOWN.trust(pair=KNOWN.authority.client("somebody", "somebody.example"))
    trust.set_alpn_protocols(["echo"])
    with offering(case, asks, tls=tls) as served, wrapped(ask(served), trust) as client:
        assert clean_rest(client) == b"done"
        names = ("somebody.example", "somebody")
        assert until(lambda: served.notes() == [f"localhost echo {names} {names}", "finish"]), served.notes()


@in_every_way([case for case in BLOCKING if not case.way.own_process])
def test_it_ends_and_begins_again(case: Case) -> None:
    async def there_and_back(peer: Peer) -> None:
        for _ in range(2):
            assert await peer.recv(100) == b"STARTTLS\n"
            await peer.sendall(b"go\n")
            await start_tls(peer)
            await peer.sendall(await peer.recv(100))
            peer.request.unwrap()
            peer.note(str(peer.handler.tls))
        await peer.sendall(b"in plain text")

    with offering(case, there_and_back) as served, served.connect() as plain:
        for number in range(2):
            plain.sendall(b"STARTTLS\n")
            assert exactly(plain, 3) == b"go\n"
            client = wrapped(plain, KNOWN.trust())
            client.sendall(b"hello %d" % number)
            assert client.recv(100) == b"hello %d" % number
            plain = client.unwrap()
        assert exactly(plain, 13) == b"in plain text"
        plain.close()
        assert served.reasons() == ["done"]
        assert until(lambda: served.notes() == ["None", "None", "finish"]), served.notes()


@in_every_way([case for case in BLOCKING if not case.way.own_process])
def test_the_sockets_timeout_is_as_it_was(case: Case) -> None:
    async def looks(peer: Peer) -> None:
        await peer.recv(100)
        for seconds in (5.0, None):
            peer.request.settimeout(seconds)
            if seconds:
                await peer.sendall(b"go\n")
                await start_tls(peer)
                peer.note(str(peer.request.gettimeout()))
        peer.note(str(peer.request.gettimeout()))

    with offering(case, looks) as served, wrapped(ask(served), KNOWN.trust()) as client:
        assert clean_rest(client) == b""
        assert until(lambda: served.notes() == ["5.0", "None", "finish"]), served.notes()


# -- files


class Mail(portico.StreamRequestHandler):
    """Reads lines by iteration, throughout."""

    notes: list[str]

    def handle(self) -> None:
        self.wfile.write(b"welcome\n")
        self.wfile.flush()
        for line in self.rfile:
            self.notes.append(line.decode().strip())
            self.wfile.write(b"go\n" if line == b"STARTTLS\n" else line.upper())
            if line == b"STARTTLS\n":
                files = self.rfile, self.wfile
                self.start_tls()
                assert (self.rfile, self.wfile) == files
            else:
                self.wfile.flush()


class AsyncMail(portico.AsyncStreamRequestHandler):
    """The same in async."""

    notes: list[str]

    async def handle(self) -> None:
        self.wfile.write(b"welcome\n")
        async for line in self.rfile:
            self.notes.append(line.decode().strip())
            self.wfile.write(b"go\n" if line == b"STARTTLS\n" else line.upper())
            if line == b"STARTTLS\n":
                files = self.rfile, self.wfile
                await self.start_tls()
                assert (self.rfile, self.wfile) == files
            await self.wfile.drain()


@contextmanager
def mail(case: Case, **members: Any) -> Iterator[tuple[Callable[[], socket.socket], list[str], list[Any]]]:
    """A server of it: how to connect, the lines that have come, and the ends and faults."""
    lines: list[str] = []
    told: list[Any] = []

    def handle_event(self: Any, event: Any) -> None:
        if isinstance(event, ConnectionEnded):
            told.append(event.connection.reason.value)
        elif isinstance(event, RequestFailed) and not isinstance(event, PeerLeft):
            told.append(event.error)

    made = type("Server", (case_class(case),), {"handle_event": handle_event})
    handler = type("Handler", (AsyncMail if case.way.own_tasks else Mail,), {"notes": lines, **members})
    with short_folder() as folder:
        server = made(case.kind.address(folder), handler, tls=KNOWN.description, starttls=True)

        def connect() -> socket.socket:
            client = socket.socket(server.address_family)
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            assert exactly(client, 8) == b"welcome\n"
            return client

        with server.background():
            yield connect, lines, told


def _shakes_hands(plain: socket.socket) -> bool:
    """By hand: `wrap_socket` asks nothing if the server has closed already, and raises nothing either."""
    try:
        OnPaper(plain, KNOWN.trust())
    except OSError:
        return False
    return True


WITH_FILES = [case for case in BLOCKING if not case.way.own_process] + STREAMS
BUFFERS: tuple[dict[str, Any], ...] = (
    {},
    {"rbufsize": 0},
    {"wbufsize": -1},
    {"rbufsize": 0, "max_line": 50},
    {"max_line": 50},
)


@in_every_way(WITH_FILES)
def test_files_go_on_over_it(case: Case) -> None:
    for members in ({"limit": 100},) if case.streams else BUFFERS:
        with mail(case, **members) as (connect, lines, told), connect() as plain:
            plain.sendall(b"first\n")
            assert exactly(plain, 6) == b"FIRST\n"
            plain.sendall(b"STARTTLS\n")
            assert exactly(plain, 3) == b"go\n"
            with wrapped(plain, KNOWN.trust()) as client:
                client.sendall(b"second\nthird\n")
                assert exactly(client, 13) == b"SECOND\nTHIRD\n"
                bounded = members.get("max_line") or members.get("limit")
                client.sendall(b"x" * 200 if bounded else b"fourth\n")
                if bounded:
                    assert clean_rest(client) == b""
                else:
                    assert exactly(client, 7) == b"FOURTH\n"
                    client.unwrap().close()
            assert until(lambda: told == ["peer_left" if bounded else "done"]), (members, told)  # noqa: B023
            assert lines[:4] == ["first", "STARTTLS", "second", "third"]


@in_every_way(WITH_FILES)
def test_words_put_into_the_plain_text_are_not_taken_for_the_clients(case: Case) -> None:
    """RFC 3207, 4.2. Read ahead they are thrown away; where nothing is, they are no TLS."""
    for members in ({},) if case.streams else BUFFERS:
        with mail(case, **members) as (connect, lines, told), connect() as plain:
            plain.sendall(b"STARTTLS\nRCPT TO: somebody else\n")
            assert exactly(plain, 3) == b"go\n"
            if members.get("rbufsize") == 0:
                assert not _shakes_hands(plain)
                assert until(lambda: told == ["handshake_failed"]), (members, told)
                assert lines == ["STARTTLS"]
                continue
            with wrapped(plain, KNOWN.trust()) as client:
                client.sendall(b"RCPT TO: me\n")
                assert exactly(client, 12) == b"RCPT TO: ME\n"
                client.unwrap().close()
            assert until(lambda: told == ["done"]), (members, told)
            assert lines == ["STARTTLS", "RCPT TO: me"]


@in_every_way([case for case in WITH_FILES if not case.streams])
def test_what_was_written_before_it_goes_out_in_plain_text(case: Case) -> None:
    """With a buffer for writing: `start_tls` sends it first, or the client would wait for it, and we for the client."""

    def handle(self: Any) -> None:
        self.wfile.write(b"welcome\ngo\n")
        self.start_tls()
        self.wfile.write(b"encrypted")

    with mail(case, wbufsize=-1, handle=handle) as (connect, _, told), connect() as plain:
        assert exactly(plain, 3) == b"go\n"
        with wrapped(plain, KNOWN.trust()) as client:
            assert clean_rest(client) == b"encrypted"
        assert until(lambda: told == ["done"]), told

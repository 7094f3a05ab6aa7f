"""TLS where programs bring their own: wrapped listeners, overridden hooks, loops, sockets, limits; and bad settings."""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import portico
from portico.lifecycle import EndReason, OpeningFailed

from .certificates import Authority
from .every_way import Case, Peer, in_every_way
from .handshakes import (
    EVERY,
    LATE,
    NAME,
    TCP,
    at_best,
    case,
    crowd,
    hello,
    leave,
    rest,
    said,
    server_context,
    server_pair,
    serving_tls,
    trust,
)
from .test_dropin import Copied
from .waiting import until

HTTP = b"GET / HTTP/1.0\r\n\r\n"
SECRET = b"what is for those who speak TLS"


async def secretive(peer: Peer) -> None:
    peer.note("handled")
    await peer.sendall(SECRET)
    await peer.recv(1)


def plain_answer(address: Any) -> bytes:
    """What is said to a client that speaks no TLS."""
    with socket.create_connection(address[:2], 10) as client:
        client.sendall(HTTP)
        return rest(client)


def secret(address: Any, authority: Authority) -> bytes:
    """What is said to one that does."""
    with socket.create_connection(address[:2], 10) as plain:
        client = trust(authority).wrap_socket(plain, server_hostname=NAME)
        try:
            return client.recv(100)
        finally:
            leave(client)


# --- Listeners that a program has wrapped in TLS, as one does with socketserver -----------------------------------


def _wraps_itself(one: Case, context: ssl.SSLContext, **options: Any) -> dict[str, Any]:
    """Members of a server that wraps its listener when it has one."""

    def server_activate(self: Any) -> None:
        portico.TCPServer.server_activate(self)
        self.socket = context.wrap_socket(self.socket, server_side=True, **options)

    return {"server_activate": server_activate}


async def is_secured(peer: Peer) -> None:
    """A body that has been written for a wrapped listener."""
    peer.note("handled")
    if not hasattr(peer, "wrap") or isinstance(peer.request, ssl.SSLSocket):
        assert peer.request.version() is not None
        assert peer.request.cipher() is not None
        assert peer.request.getpeercert() is None
    while data := await peer.recv(65536):
        await peer.sendall(data)


@pytest.mark.parametrize("when", ["before", "while it serves"])
def test_a_wrapped_listener_gets_what_tls_gets(when: str, authority: Authority) -> None:
    context = server_context(authority)

    def one(way: Case) -> None:
        members = _wraps_itself(way, context) if when == "before" else {}
        with serving_tls(way, authority, is_secured, members, tls=None, handshake_timeout=0.5) as served:
            server = served.server
            if when != "before":
                server.socket = context.wrap_socket(server.socket, server_side=True)
            with crowd(served, 2) as silent, crowd(served, 1, HTTP) as (other,):
                assert served.asked() == b"hello"
                assert rest(other)[:1] in (b"", b"\x15")
                assert served.asked() == b"hello"
                began = monotonic()
                for client in silent:
                    rest(client)
                assert monotonic() - began < 0.5 + LATE
                assert served.all_over(5) == {"done": 2, "handshake_failed": 1, "handshake_timeout": 2}
                assert served.failures() == {"handshake_failed": 1, "handshake_timeout": 2}
            with crowd(served, 2):
                assert until(lambda: server.stats().opening == 2)
                began = monotonic()
                server.shutdown()
                assert monotonic() - began < LATE
                server.server_close()
                assert monotonic() - began < 1
            assert served.handled() == 2

    in_every_way(EVERY)(one)()


def test_a_listener_may_be_wrapped_in_the_very_moment_that_it_is_to_be_watched(authority: Authority) -> None:
    context = server_context(authority)

    def one(way: Case) -> None:
        timers: list[threading.Timer] = []
        wrapped = threading.Event()

        def ready_to_accept(self: Any) -> bool:
            if not timers:
                family, descriptor = self.socket.family, self.socket.detach()  # with which wrap_socket begins

                def go_on() -> None:
                    listener = socket.socket(family, fileno=descriptor)
                    self.socket = context.wrap_socket(listener, server_side=True)
                    wrapped.set()

                timers.append(threading.Timer(0.05, go_on))
                timers[0].start()
            return True

        with serving_tls(way, authority, members={"ready_to_accept": ready_to_accept}, tls=None) as served:
            assert wrapped.wait(10)
            with crowd(served, 1):
                assert served.asked() == b"hello"
            timers[0].join()

    in_every_way([one for one in EVERY if not one.way.own_process])(one)()


MIXED_IN: dict[str, tuple[type, ...]] = {
    "threads": (portico.ThreadingMixIn, http.server.HTTPServer),
    "forks": (portico.ForkingMixIn, http.server.HTTPServer),
    "green": (portico.GreenMixIn, http.server.HTTPServer),
    "ours": (portico.ThreadingTCPServer,),
}


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *arguments: Any) -> None:
        return


def pages(address: Any, authority: Authority) -> list[bytes]:
    """Two of them over one connection, which is kept alive."""
    client = http.client.HTTPSConnection(NAME, address[1], timeout=10, context=trust(authority))
    client.sock = trust(authority).wrap_socket(socket.create_connection(address, 10), server_hostname=NAME)
    found = []
    try:
        for _ in range(2):
            client.request("GET", "/")
            found.append(client.getresponse().read())
    finally:
        leave(client.sock)
    return found


@pytest.mark.parametrize("how", ["tls", "wrapped"])
@pytest.mark.parametrize("base", MIXED_IN)
def test_the_standard_librarys_http_server_speaks_https_under_our_mixins(
    base: str, how: str, authority: Authority
) -> None:
    tls = portico.TLS(*server_pair(authority)) if how == "tls" else None
    server: Any = type("Server", MIXED_IN[base], {"tls": tls, "drain_timeout": 5.0})(("127.0.0.1", 0), Page)
    if how == "wrapped":
        server.socket = server_context(authority).wrap_socket(server.socket, server_side=True)
    address = server.server_address
    with server.background(), socket.create_connection(address, 10):  # who stays silent
        assert pages(address, authority) == [b"page", b"page"]
        assert not plain_answer(address).startswith(b"HTTP")
        assert pages(address, authority) == [b"page", b"page"]
        began = monotonic()
        server.shutdown()
        assert monotonic() - began < LATE


# --- Hooks --------------------------------------------------------------------------------------------------------


HOOKS = (
    "get_request", "verify_request", "process_request", "process_request_thread", "process_request_task",
    "finish_request", "handle_error", "shutdown_request", "close_request",
)  # fmt: skip


def _noted(one: Case) -> dict[str, Any]:
    """Members of a server that note which hooks are called, in order, in whichever process."""

    def noted(name: str) -> Any:
        def hook(self: Any, *arguments: Any) -> Any:
            Peer.note(self.notes_of_hooks, name)
            return getattr(super(self.__class__, self), name)(*arguments)

        return hook

    return {name: noted(name) for name in HOOKS}


def _hooks_called(way: Case, authority: Authority, *, tls: Any, honest: bool) -> list[str]:
    class Notes:
        _notes: Path

    notes: Any = Notes()
    members = _noted(way)
    from .every_way import case_class

    base = case_class(way)
    members = {name: hook for name, hook in members.items() if hasattr(base, name)}
    with serving_tls(way, authority, members={**members, "notes_of_hooks": notes}, tls=tls) as served:
        notes._notes = served._notes.with_name("hooks")
        if honest and tls is not None:
            assert served.asked() == b"hello"
        elif honest:
            client = served.connect()
            assert said(client, b"hello") == b"hello"
            leave(client)
        else:
            with crowd(served, 1, HTTP) as (client,):
                rest(client)
        served.all_over(1)
        found: list[str] = notes._notes.read_text().splitlines()
        return found


def test_hooks_are_called_as_without_tls(authority: Authority) -> None:
    def one(way: Case) -> None:
        tls = portico.TLS(*server_pair(authority))
        plain = _hooks_called(way, authority, tls=None, honest=True)
        encrypted = _hooks_called(way, authority, tls=tls, honest=True)
        failed = _hooks_called(way, authority, tls=tls, honest=False)
        if way.way.own_process:  # parent and child call theirs side by side
            plain, encrypted, failed = sorted(plain), sorted(encrypted), sorted(failed)
        assert encrypted == plain
        assert "finish_request" in plain
        assert "finish_request" not in failed
        assert "handle_error" not in failed
        assert [name for name in plain if name in failed] == failed

    in_every_way(EVERY)(one)()


def _finish(self: Any, request: Any, client_address: Any) -> None:
    """As in programs that hand one thing more to their handlers."""
    self.RequestHandlerClass(request, client_address, self)


def _process(self: Any, request: Any, client_address: Any) -> None:
    """As in programs that have threads of their own."""

    def run() -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    thread = threading.Thread(target=run)
    thread.start()
    self.own_threads.append(thread)


def _process_in_thread(self: Any, request: Any, client_address: Any) -> None:
    """The standard library's own; but tells of the end, which ours does."""
    connection = self._portico_connections.of(request)
    try:
        self.finish_request(request, client_address)
    except Exception:
        self.handle_error(request, client_address)
    finally:
        self.shutdown_request(request)
        if connection is not None:
            self._portico_connections.end(connection)


OVERRIDES: dict[str, dict[str, Any]] = {
    "none": {},
    "finish_request": {"finish_request": _finish},
    "process_request": {"process_request": _process},
    "both": {"finish_request": _finish, "process_request": _process},
    "process_request_thread": {"process_request_thread": _process_in_thread},
    "that and finish_request": {"process_request_thread": _process_in_thread, "finish_request": _finish},
}
BASES: dict[str, tuple[type, ...]] = {
    "plain": (portico.TCPServer,),
    "threads": (portico.ThreadingTCPServer,),
    "forks": (portico.ForkingTCPServer,),
    "green": (portico.GreenTCPServer,),
    "threads over http.server": MIXED_IN["threads"],
    "forks over http.server": MIXED_IN["forks"],
    "green over http.server": MIXED_IN["green"],
}


class Secretive(portico.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(SECRET)
        self.request.recv(1)


class Writes(portico.StreamRequestHandler):
    """The same by files, the second one with a buffer."""

    wbufsize = 100

    def handle(self) -> None:
        self.wfile.write(SECRET)
        self.wfile.flush()
        self.rfile.read(1)


@contextmanager
def _looping(server: Any, loop: str) -> Iterator[None]:
    """Serve two clients, or any number, and close."""

    def one_by_one() -> None:
        for _ in range(2):
            server.handle_request()

    target = one_by_one if loop == "handle_request" else partial(server.serve_forever, 0.05)
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield
    finally:
        server._BaseServer__shutdown_request = True  # which ends every loop, sooner or later
        thread.join()
        for other in server.own_threads:
            other.join()
        server.server_close()


@pytest.mark.parametrize("loop", ["serve_forever", "handle_request", "a copied loop"])
@pytest.mark.parametrize("base", BASES)
def test_no_override_makes_a_connection_go_on_in_plain_text(base: str, loop: str, authority: Authority) -> None:
    copied = (Copied,) if loop == "a copied loop" else ()
    tls = portico.TLS(*server_pair(authority))
    for name, members in OVERRIDES.items():
        handler = Writes if "http" in base else Secretive
        values = {"tls": tls, "drain_timeout": 5.0, "timeout": 10, "own_threads": []}
        server: Any = type("Server", (*copied, *BASES[base]), members | values)(("127.0.0.1", 0), handler)
        with _looping(server, loop):
            assert SECRET not in plain_answer(server.server_address), name
            assert secret(server.server_address, authority) == SECRET, name


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("handler", ["socket", "streams"])
def test_no_override_of_async_does_either(handler: str, loop: str, authority: Authority) -> None:
    class Socket(portico.AsyncBaseRequestHandler[Any, Any]):
        async def handle(self) -> None:
            await self.request.sendall(SECRET)
            await self.request.recv(1)

    class Streams(portico.AsyncStreamRequestHandler[Any]):
        async def handle(self) -> None:
            self.wfile.write(SECRET)
            await self.rfile.read(1)

    async def process_request_task(self: Any, request: Any, client_address: Any) -> None:
        connection = self._portico_connections.of(request)
        try:
            await self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
            self._portico_connections.end(connection)

    members = {"process_request_task": process_request_task, "tls": portico.TLS(*server_pair(authority))}
    values = {"event_loop": loop, "own_threads": [], "timeout": 10}
    made: Any = type("Server", (portico.AsyncTCPServer,), members | values)
    for way in ("serve_forever", "handle_request"):
        server = made(("127.0.0.1", 0), Socket if handler == "socket" else Streams)
        with _looping(server, way):
            assert SECRET not in plain_answer(server.server_address), way
            assert secret(server.server_address, authority) == SECRET, way


def test_a_handler_that_tries_again_and_again_is_told_of_once(authority: Authority) -> None:
    events: list[Any] = []
    caught: list[Exception] = []

    def insist(request: Any, client_address: Any, server: Any) -> None:
        for _ in range(3):
            try:
                request.sendall(SECRET)
            except Exception as error:
                caught.append(error)

    members = OVERRIDES["both"] | {"handle_event": lambda self, event: events.append(event), "own_threads": []}
    tls = portico.TLS(*server_pair(authority))
    made: Any = type("Server", (portico.ThreadingTCPServer,), members)
    server = made(("127.0.0.1", 0), insist, tls=tls, handshake_timeout=0.2)
    with _looping(server, "handle_request"):
        assert SECRET not in plain_answer(server.server_address)
        with socket.create_connection(server.server_address, 10) as silent:
            assert rest(silent) == b""
    assert len(caught) == 6
    assert isinstance(caught[0], portico.HandshakeError)
    reasons = [event.reason for event in events if isinstance(event, OpeningFailed)]
    assert reasons == [EndReason.HANDSHAKE_FAILED, EndReason.HANDSHAKE_TIMEOUT]


def test_a_connection_may_be_refused_before_its_handshake(authority: Authority) -> None:
    def one(way: Case) -> None:
        asked: list[Any] = []

        def verify_request(self: Any, request: Any, client_address: Any) -> bool:
            asked.append(client_address)
            return False

        with serving_tls(way, authority, members={"verify_request": verify_request}) as served:
            with suppress(ConnectionError, ssl.SSLError):
                served.asked()
            assert served.all_over(1) == {"refused": 1}
            assert served.server.stats().refused == {"verify_request": 1}
            assert not served.notes()
            assert not served.failures()
            assert len(asked) == 1

    in_every_way(EVERY)(one)()


def test_who_is_refused_by_a_limit_is_not_told_so_in_plain_text(authority: Authority) -> None:
    def one(way: Case) -> None:
        limits: Any = {"max_connections": 1, "overload": SECRET}
        with serving_tls(way, authority, handshake_timeout=60.0, **limits) as served, crowd(served, 1):
            assert until(lambda: served.server.stats().active == 1)
            with crowd(served, 1) as (client,):
                assert rest(client) == b""
            assert served.server.stats().refused == {"max_connections": 1}

    in_every_way(EVERY)(one)()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_program_may_wrap_what_it_accepts(at_once: bool, authority: Authority) -> None:
    """In its `get_request`: the handshake is made there, or by the first who reads."""
    context = server_context(authority)

    def get_request(self: Any) -> Any:
        request, client_address = portico.TCPServer.get_request(self)
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=at_once), client_address

    def one(way: Case) -> None:
        with serving_tls(way, authority, members={"get_request": get_request}, tls=None) as served:
            for _ in range(2):
                assert served.asked() == b"hello"
            assert served.all_over(2) == {"done": 2}

    in_every_way([one for one in EVERY if one.way.name in ("plain", "thread", "reused", "fork")])(one)()


# --- Sockets and loops that come from elsewhere -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a listener", "a bound socket", "a descriptor"])
def test_listeners_that_were_made_elsewhere_get_tls(how: str, authority: Authority) -> None:
    def one(way: Case) -> None:
        sock = socket.create_server(("127.0.0.1", 0)) if how != "a bound socket" else socket.socket()
        if how == "a bound socket":
            sock.bind(("127.0.0.1", 0))
        address: Any = f"fd://{sock.detach()}" if how == "a descriptor" else sock
        with (
            serving_tls(way, authority, address=address) as served,
            crowd(served, 1),
            crowd(served, 1, HTTP) as (other,),
        ):
            assert rest(other)[:1] in (b"", b"\x15")
            assert served.asked() == b"hello"

    in_every_way([one for one in TCP if not one.streams])(one)()


def test_handle_request_waits_no_longer_for_a_handshake_than_it_may(authority: Authority) -> None:
    tls = portico.TLS(*server_pair(authority))
    for base in (portico.TCPServer, portico.GreenTCPServer):
        events: list[Any] = []
        members = {"handle_event": lambda self, event, events=events: events.append(event), "tls": tls}
        server: Any = type("Server", (base,), members)(("127.0.0.1", 0), Secretive, handshake_timeout=0.3)
        with server, socket.create_connection(server.server_address, 10) as silent:
            began = monotonic()
            server.handle_request()
            assert 0.28 < monotonic() - began < 0.3 + LATE
            assert rest(silent) == b""
            assert [event.reason for event in events if isinstance(event, OpeningFailed)] == [
                EndReason.HANDSHAKE_TIMEOUT
            ]


def test_servers_with_and_without_tls_share_a_loop(authority: Authority) -> None:
    tls = portico.TLS(*server_pair(authority))
    for base in (portico.TCPServer, portico.ThreadingTCPServer, portico.ForkingTCPServer, portico.GreenTCPServer):
        servers: list[Any] = [base(("127.0.0.1", 0), Secretive, tls=value) for value in (tls, None, tls)]
        thread = threading.Thread(target=portico.serve_together, args=(servers,))
        thread.start()
        try:
            with socket.create_connection(servers[0].server_address):  # who stays silent
                for server in servers:
                    if server.tls is None:
                        with socket.create_connection(server.server_address, 10) as client:
                            assert client.recv(100) == SECRET
                            client.sendall(b"\n")
                            assert rest(client) == b""
                    else:
                        assert secret(server.server_address, authority) == SECRET
        finally:
            for server in servers:
                server.server_close()
            thread.join()


# --- Limits -------------------------------------------------------------------------------------------------------


LIMITED = [
    (case("thread", "tcp4"), "max_threads"),
    (case("reused", "tcp4"), "max_threads"),
    (case("fork", "tcp4"), "max_children"),
]


@pytest.mark.parametrize(("way", "limit"), LIMITED, ids=str)
def test_a_handshake_takes_a_thread_or_process_and_gives_it_back(way: Case, limit: str, authority: Authority) -> None:
    only: Any = {limit: 1}

    def wait() -> float:
        with serving_tls(way, authority, handshake_timeout=0.4, **only) as served, crowd(served, 1, hello()[:50]):
            assert until(lambda: [one.runner for one in served.server.connections()] not in ([], [None]))
            began = monotonic()
            assert served.asked() == b"hello"
            return monotonic() - began

    assert at_best(wait, 0.5) < 0.5 + LATE


@pytest.mark.parametrize(("way", "limit"), LIMITED, ids=str)
def test_who_has_to_wait_for_a_thread_or_process_does_so_in_our_time(
    way: Case, limit: str, authority: Authority
) -> None:
    only: Any = {limit: 1}
    with serving_tls(way, authority, handshake_timeout=0.4, **only) as served, crowd(served, 1) as (late,):
        assert until(lambda: served.server.stats().opening == 1)
        busy = served.open()
        late.sendall(hello())
        late.settimeout(0.6)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert said(busy, b"still here") == b"still here"
        leave(busy)
        late.settimeout(10)
        assert late.recv(1) == b"\x16"
        assert len(late.recv(65536)) > 100
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):  # it has what is left of its time
            late.recv(1)
        assert served.all_over(2) == {"done": 1, "handshake_timeout": 1}


# --- Settings -----------------------------------------------------------------------------------------------------


def _client_context() -> ssl.SSLContext:
    return ssl.create_default_context()


BAD_SETTINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tls for datagrams": (portico.UDPServer, {"tls": True}, "tls is for stream connections"),
    "starttls for datagrams": (portico.UDPServer, {"starttls": True}, "starttls"),
    "starttls without tls": (portico.TCPServer, {"starttls": True}, "starttls needs tls"),
    "a path": (portico.TCPServer, {"tls": "cert.pem"}, "tls must be"),
    "a pair of paths": (portico.TCPServer, {"tls": ("cert.pem", "key.pem")}, "tls must be"),
    "a client's context": (portico.TCPServer, {"tls": _client_context}, "for clients"),
    "a context without a certificate": (
        portico.TCPServer, {"tls": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "certificate"
    ),
    "no such file": (portico.TCPServer, {"tls": lambda: portico.TLS("/no/such.pem")}, "/no/such.pem"),
    "no time": (portico.TCPServer, {"handshake_timeout": 0}, "handshake_timeout"),
    "no handshakes": (portico.TCPServer, {"max_handshakes": 0}, "max_handshakes"),
    "no flag": (portico.TCPServer, {"suppress_ragged_eofs": "yes"}, "suppress_ragged_eofs"),
    "no interval": (portico.TCPServer, {"tls_watch": 0}, "tls_watch"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_make_no_sense_are_one_error_when_a_server_is_made(what: str, authority: Authority) -> None:
    base, values, words = BAD_SETTINGS[what]
    values = {name: value() if callable(value) else value for name, value in values.items()}
    if values.get("tls") is True:
        values["tls"] = portico.TLS(*server_pair(authority))
    with pytest.raises(portico.PorticoError, match=words) as keyword:
        base(("127.0.0.1", 0), lambda *what: None, **values)
    with pytest.raises(portico.PorticoError, match=words) as member:
        type("Server", (base,), values)(("127.0.0.1", 0), lambda *what: None)
    said = str(member.value).partition(" (an attribute of ")[0].replace("Server has", f"{base.__name__} has")
    assert str(keyword.value) == said


def test_certificates_are_not_changed_by_configure(authority: Authority) -> None:
    tls = portico.TLS(*server_pair(authority))
    with portico.TCPServer(("127.0.0.1", 0), lambda *what: None, tls=tls) as server:
        with pytest.raises(portico.SettingError, match="tls"):
            server.configure(tls=tls)
        server.configure(handshake_timeout=1.0, max_handshakes=2, tls_watch=None)
        with pytest.raises(portico.SettingError, match="handshake_timeout"):
            server.configure(handshake_timeout=-1.0)

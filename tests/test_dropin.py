"""What programs written for `socketserver` rely on, item by item."""

from __future__ import annotations

import http.client
import http.server
import inspect
import selectors
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import portico

from .commands import finished, running
from .waiting import until

LOOPBACK = ("127.0.0.1", 0)
WAYS = [portico.TCPServer, portico.ThreadingTCPServer, portico.ForkingTCPServer]


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


def ask(address: Any, said: bytes = b"hello\n") -> bytes:
    with socket.create_connection(address[:2], 10) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


# -- names, defaults, signatures


def test_all_names_of_the_standard_library_are_there_also_the_private_ones() -> None:
    assert set(socketserver.__all__) <= set(portico.__all__)
    for name in (*socketserver.__all__, "_ServerSelector", "_SocketWriter", "_Threads", "_NoThreads"):
        assert isinstance(getattr(portico, name), type), name
    assert portico.__version__ == socketserver.__version__ == "0.4"
    assert issubclass(portico._ServerSelector, selectors.BaseSelector)


def test_the_classes_are_each_others_bases_as_in_the_diagram() -> None:
    assert portico.TCPServer.__bases__ == portico.UDPServer.__bases__ == (portico.BaseServer,)
    assert portico.UnixStreamServer.__bases__ == (portico.TCPServer,)
    assert portico.UnixDatagramServer.__bases__ == (portico.UDPServer,)
    for name in portico.__all__:
        for prefix, mix_in in (("Threading", portico.ThreadingMixIn), ("Forking", portico.ForkingMixIn)):
            if name.startswith(prefix) and name.endswith("Server"):
                assert getattr(portico, name).__bases__ == (mix_in, getattr(portico, name.removeprefix(prefix)))


DEFAULTS = {
    "BaseServer": {"timeout": None},
    "TCPServer": {
        "address_family": socket.AF_INET, "socket_type": socket.SOCK_STREAM, "allow_reuse_port": False, "timeout": None,
    },
    "UDPServer": {"socket_type": socket.SOCK_DGRAM, "allow_reuse_address": False, "allow_reuse_port": False},
    "UnixStreamServer": {"address_family": socket.AF_UNIX, "socket_type": socket.SOCK_STREAM},
    "UnixDatagramServer": {"address_family": socket.AF_UNIX, "socket_type": socket.SOCK_DGRAM},
    "ForkingMixIn": {"timeout": 300, "active_children": None, "max_children": 40, "block_on_close": True},
    "ThreadingMixIn": {"daemon_threads": False, "block_on_close": True},
    "StreamRequestHandler": {"rbufsize": -1, "wbufsize": 0, "timeout": None, "disable_nagle_algorithm": False},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_class_attributes_have_the_standard_librarys_defaults(name: str) -> None:
    for attribute, value in DEFAULTS[name].items():
        assert (
            getattr(getattr(portico, name), attribute)
            == value
            == getattr(getattr(socketserver, name), attribute, value)
        )


@pytest.mark.parametrize("name", ["BaseServer", "TCPServer", "UDPServer", "ForkingMixIn", "ThreadingMixIn",
                                  "BaseRequestHandler", "StreamRequestHandler", "DatagramRequestHandler"])  # fmt: skip
def test_every_public_method_takes_what_the_standard_librarys_takes(name: str) -> None:
    for method, original in inspect.getmembers(getattr(socketserver, name), inspect.isfunction):
        if method.startswith("_") and method not in ("__init__", "_handle_request_noblock"):
            continue
        ours = inspect.signature(getattr(getattr(portico, name), method)).parameters.values()
        theirs = inspect.signature(original).parameters.values()
        settings = [p.kind for p in ours if p.kind == p.VAR_KEYWORD]
        plain = [(p.name, p.kind, p.default) for p in ours if p.kind != p.VAR_KEYWORD]
        assert plain == [(p.name, p.kind, p.default) for p in theirs], method
        assert not settings or method == "__init__"


def test_class_attributes_may_be_patched_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portico.TCPServer, "allow_reuse_address", False)
    monkeypatch.setattr(portico.TCPServer, "timeout", 7, raising=False)
    monkeypatch.setattr(portico.TCPServer, "address_family", socket.AF_INET6, raising=False)
    with portico.ThreadingTCPServer(("::1", 0), Upper) as server:
        assert not server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert server.timeout == 7


# -- construction


def test_the_base_servers_constructor_makes_no_socket() -> None:
    class Own(portico.BaseServer):
        def __init__(self) -> None:
            super().__init__(LOOPBACK, Upper)
            assert not hasattr(self, "socket")
            self.socket = socket.create_server(LOOPBACK)

        def get_request(self) -> tuple[Any, Any]:
            return self.socket.accept()

        def shutdown_request(self, request: Any) -> None:
            request.close()

        def server_close(self) -> None:
            self.socket.close()

    with Own().background() as server:
        assert ask(server.socket.getsockname()) == b"HELLO\n"


def test_a_server_that_is_not_bound_has_a_socket_that_may_be_replaced() -> None:
    with portico.TCPServer(LOOPBACK, Upper, bind_and_activate=False) as server:
        assert server.fileno() >= 0
        assert server.server_address == LOOPBACK
        server.socket.close()
        server.socket = socket.create_server(LOOPBACK)
        server.server_address = server.socket.getsockname()
        with server.background():
            assert ask(server.server_address) == b"HELLO\n"


def test_a_server_may_be_bound_and_activated_by_hand() -> None:
    with portico.TCPServer(LOOPBACK, Upper, False) as server:
        server.allow_reuse_address = True
        server.server_bind()
        server.server_activate()
        with server.background():
            assert ask(server.server_address) == b"HELLO\n"


@pytest.mark.parametrize(
    ("address", "error"), [(("127.0.0.1", -1), OverflowError), (("127.0.0.1", 65536), OverflowError),
                           (("127.0.0.1", "http"), TypeError), (("192.0.2.1", 0), OSError)]
)  # fmt: skip
def test_an_address_that_cannot_be_bound_is_binds_own_error_and_closes_the_server(
    address: Any, error: type[Exception]
) -> None:
    closed = []

    class Mine(portico.TCPServer):
        def server_close(self) -> None:
            super().server_close()
            closed.append(self.fileno())

    with pytest.raises(error):
        Mine(address, Upper)
    assert closed == [-1]


def test_a_constructor_may_handle_a_request() -> None:
    with socket.socket() as client:

        class Impatient(portico.TCPServer):
            def __init__(self) -> None:
                super().__init__(LOOPBACK, Upper)
                client.connect(self.server_address)
                client.sendall(b"hello\n")
                self.handle_request()

        with Impatient():
            assert client.recv(10) == b"HELLO\n"


def test_a_mix_in_needs_no_constructor_of_its_own() -> None:
    for mix_in in (portico.ThreadingMixIn, portico.ForkingMixIn):
        assert "__init__" not in vars(mix_in)

    class Base(portico.TCPServer):
        def __init__(self, port: int, *, name: str) -> None:
            super().__init__(("127.0.0.1", port), Upper)
            self.name = name

    class Mine(portico.ThreadingMixIn, Base):
        pass

    with Mine(0, name="mine").background() as server:
        assert server.name == "mine"
        assert ask(server.server_address) == b"HELLO\n"


# -- the handler


@pytest.mark.parametrize("made", WAYS)
def test_a_handler_may_be_any_callable(made: Any) -> None:
    def handler(request: socket.socket, client_address: Any, server: Any) -> None:
        request.sendall(b"from a function")

    with made(LOOPBACK, handler).background() as server:
        assert ask(server.server_address, b"") == b"from a function"
        server.RequestHandlerClass = lambda request, *_: request.sendall(b"replaced")
        assert ask(server.server_address, b"") == b"replaced"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_plain_servers_handler_leaves_handle_request_and_is_no_error(error: type[BaseException]) -> None:
    def leave(*_: object) -> None:
        raise error(3)

    def never(*_: object) -> None:
        raise AssertionError("handle_error was called")

    with portico.TCPServer(LOOPBACK, leave) as server, socket.create_connection(server.server_address, 10) as client:
        server.handle_error = never  # type: ignore[method-assign]
        with pytest.raises(error):
            server.handle_request()
        assert client.recv(1) == b""


@pytest.mark.parametrize("made", WAYS[1:])
def test_an_exit_in_a_handler_that_runs_elsewhere_ends_that_request_only(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's makes more of a SystemExit

    class Mine(made):  # type: ignore[misc]
        def handle_error(self, request: Any, client_address: Any) -> None:
            (tmp_path / "handle_error was called").touch()

    def leave(request: socket.socket, *_: object) -> None:
        if request.recv(10) == b"leave":
            sys.exit(3)
        request.sendall(b"served")

    with Mine(LOOPBACK, leave).background() as server:
        assert ask(server.server_address, b"leave") == b""
        assert ask(server.server_address, b"stay") == b"served"
    assert list(tmp_path.iterdir()) == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_another_base_exception_in_a_thread_reaches_threadings_own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: seen.append(hook.exc_type))

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    with portico.ThreadingTCPServer(LOOPBACK, leave).background() as server:
        assert ask(server.server_address, b"") == b""
    assert seen == [KeyboardInterrupt]


def test_a_bare_raise_in_handle_error_raises_what_the_handler_raised() -> None:
    class Mine(portico.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise

    def fail(*_: object) -> None:
        raise LookupError("mine")

    with Mine(LOOPBACK, fail) as server, socket.create_connection(server.server_address, 10) as client:
        with pytest.raises(LookupError, match="mine"):
            server.handle_request()
        assert client.recv(1) == b""


# -- the loop


def test_the_private_attributes_are_where_programs_look_for_them() -> None:
    with portico.TCPServer(LOOPBACK, Upper) as server:
        assert vars(server)["_BaseServer__shutdown_request"] is False
        event = vars(server)["_BaseServer__is_shut_down"]
        assert isinstance(event, threading.Event)
        assert not event.is_set()
        with server.background():
            assert not event.is_set()
        assert event.is_set()
        assert vars(server)["_BaseServer__shutdown_request"] is False


@pytest.mark.parametrize("made", WAYS)
def test_writing_the_private_flag_from_outside_stops_an_idle_loop_at_once(made: Any) -> None:
    with made(LOOPBACK, Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(None,))
        thread.start()
        assert ask(server.server_address) == b"HELLO\n"
        server._BaseServer__shutdown_request = True
        thread.join(10)
        assert not thread.is_alive()


class Copied:
    """A mix-in with the loop of Python 3.12, as programs in the wild carry it."""

    def serve_forever(self: Any, poll_interval: float = 0.5) -> None:
        self._BaseServer__is_shut_down.clear()
        try:
            with portico._ServerSelector() as selector:
                selector.register(self, selectors.EVENT_READ)
                while not self._BaseServer__shutdown_request:
                    ready = selector.select(poll_interval)
                    if self._BaseServer__shutdown_request:
                        break
                    if ready:
                        self._handle_request_noblock()
                    self.service_actions()
        finally:
            self._BaseServer__shutdown_request = False
            self._BaseServer__is_shut_down.set()


@pytest.mark.parametrize("made", WAYS)
def test_a_copied_loop_works_and_our_shutdown_ends_it(made: Any) -> None:
    Mine = type("Mine", (Copied, made), {})
    with Mine(LOOPBACK, Upper) as server:
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            assert ask(server.server_address) == b"HELLO\n"
            assert ask(server.server_address) == b"HELLO\n"
            server.shutdown()
            assert server._BaseServer__is_shut_down.is_set()
            thread.join()


def test_shutdown_leaves_the_listener_open_for_whoever_comes_next() -> None:
    with portico.TCPServer(LOOPBACK, Upper) as server:
        server.shutdown()
        server.serve_forever()  # a shutdown before the start: returns at once
        with socket.create_connection(server.server_address, 10) as waiting:
            waiting.sendall(b"hello\n")
            server.handle_request()
            assert waiting.recv(10) == b"HELLO\n"


@pytest.mark.parametrize(("own", "sockets"), [(0.01, None), (None, 0.01), (0.01, 50), (50, 0.01), (0, None)])
def test_handle_request_waits_for_the_lesser_of_the_two_timeouts(own: float | None, sockets: float | None) -> None:
    class Mine(portico.TCPServer):
        timeout = own

        def handle_timeout(self) -> None:
            timeouts.append(True)

    timeouts: list[bool] = []
    with Mine(LOOPBACK, Upper) as server:
        server.socket.settimeout(sockets)
        start = time.monotonic()
        server.handle_request()
        assert time.monotonic() - start < 10
        assert server.socket.gettimeout() == sockets
    assert timeouts == [True]


def test_handle_request_handles_one_request_at_a_time() -> None:
    with portico.TCPServer(LOOPBACK, Upper) as server:
        clients = [socket.create_connection(server.server_address, 10) for _ in range(3)]
        for number, client in enumerate(clients):
            client.sendall(b"x%d\n" % number)
        for number, client in enumerate(clients):
            server.handle_request()
            assert client.recv(10) == b"X%d\n" % number
            client.close()


# -- the socket


@pytest.mark.parametrize("made", WAYS)
def test_the_socket_may_be_replaced_by_one_that_wraps_it(made: Any) -> None:
    """As `ssl.SSLContext.wrap_socket` does: the same descriptor in another object."""

    class Wrapped(socket.socket):
        accepted = 0

        def accept(self) -> tuple[socket.socket, Any]:
            Wrapped.accepted += 1
            return super().accept()

    with made(LOOPBACK, Upper) as server:
        server.socket = Wrapped(fileno=server.socket.detach())
        with server.background():
            assert ask(server.server_address) == b"HELLO\n"
        assert Wrapped.accepted >= 1


def test_a_tls_handshake_that_fails_harms_nobody_else() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with portico.TCPServer(LOOPBACK, Upper) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with server.background():
            for _ in range(3):
                with suppress(OSError):  # a reset, or not connected any more
                    assert ask(server.server_address, b"no handshake\n")[:1] in (b"", b"\x15")  # a TLS alert


class Connecting(portico.TCPServer):
    """As in `idlelib.rpc`: a server that connects to its client instead of listening for it."""

    def server_bind(self) -> None:
        """Not wanted."""

    def server_activate(self) -> None:
        self.socket.connect(self.server_address)

    def get_request(self) -> tuple[Any, Any]:
        return self.socket, self.server_address


def test_a_server_may_connect_instead_of_listening() -> None:
    with socket.create_server(LOOPBACK) as listener, Connecting(listener.getsockname(), Upper) as server:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"hello\n")
            server.handle_request()
            peer.settimeout(10)
            assert peer.recv(10) == b"HELLO\n"
            assert server.fileno() == -1


def test_requests_may_be_anything_that_get_request_returns() -> None:
    class Letters(portico.ThreadingMixIn, portico.TCPServer):
        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            with connection:
                return {"letter": connection.recv(1)}, address

        def shutdown_request(self, request: Any) -> None:
            ended.append(request)

    ended: list[Any] = []
    handled: list[Any] = []
    with Letters(LOOPBACK, lambda request, *_: handled.append(request)).background() as server:
        ask(server.server_address, b"a")
        assert until(lambda: ended)
    assert handled == ended == [{"letter": b"a"}]


# -- the standard library's servers


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/fail":
            raise LookupError("a bug in the handler")
        body = b"hello"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Tests are quiet."""


@pytest.mark.parametrize("mix_in", [portico.ThreadingMixIn, portico.ForkingMixIn])
def test_mix_ins_work_over_the_untouched_standard_librarys_servers(mix_in: type, capfd: Any) -> None:
    Mine: Callable[..., Any] = type("Mine", (mix_in, http.server.HTTPServer), {})
    with Mine(LOOPBACK, Hello) as server:
        assert isinstance(server, socketserver.TCPServer)
        assert not isinstance(server, portico.BaseServer)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            for _ in range(5):
                assert http_get(server.server_port, "/") == (200, b"hello")
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                http_get(server.server_port, "/fail")
            assert http_get(server.server_port, "/") == (200, b"hello")
        finally:
            server.shutdown()
            thread.join()
    assert not getattr(server, "active_children", None)
    assert capfd.readouterr().err.count("LookupError: a bug in the handler") == 1


def http_get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# -- whole programs

UDP_PROGRAM = """
import socketserver

class MyUDPHandler(socketserver.BaseRequestHandler):
    def handle(self):
        data = self.request[0].strip()
        sock = self.request[1]
        print(f'{self.client_address[0]} wrote: {self.data}')
        sock.sendto(data.upper(), self.client_address)

with socketserver.UDPServer(('localhost', 0), MyUDPHandler) as server:
    print('port', server.server_address[1])
    server.serve_forever()
"""


@pytest.mark.parametrize("way", ["run", "import"])
def test_the_classic_udp_program_runs_as_it_is_or_with_one_line_changed(tmp_path: Path, way: str) -> None:
    program = tmp_path / "program.py"
    run = ["-m", "portico", "run"] if way == "run" else []
    program.write_text(UDP_PROGRAM if run else UDP_PROGRAM.replace("import ", "import portico as ", 1))
    with running([sys.executable, *run, str(program)], cwd=tmp_path, ready="port") as (process, lines):
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b" hello ", ("127.0.0.1", int(lines[0].split()[1])))
            assert client.recv(100) == b"HELLO"
        assert process.stdout is not None
        assert process.stdout.readline() == "127.0.0.1 wrote: b' hello '\n"


def test_a_program_that_imports_from_socketserver_gets_porticos_classes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from socketserver import *\nfrom socketserver import _SocketWriter\nprint(TCPServer.__module__)\n"
    )
    assert finished("run", str(program)).stdout == "portico.servers\n"

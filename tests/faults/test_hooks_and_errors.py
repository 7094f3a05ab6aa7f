"""Rows 7, 8 and 22: peers that leave are no errors, and no exception in a hook or in its report ends the loop."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, ask, connected, levels, line_of, made, program, rest, serving, took, upper

BAD_STDERR = """
import threading
{spoil}

def handle(request, address, server):
    word = request.recv(9)
    if word == b"fail":
        raise ValueError("a bug")
    request.sendall(word)

import socket
def ask(word):
    with socket.create_connection(server.server_address, 2) as client:
        client.sendall(word)
        return client.recv(9)

server = ss.TCPServer(("127.0.0.1", 0), handle)
threading.Thread(target=server.serve_forever, daemon=True).start()
for word in (b"fail", b"fine"):
    print(ask(word), flush=True)
"""


def _reset(client: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return levels(record for record in caplog.records if record.name == "portico")


@pytest.mark.alerts
@pytest.mark.parametrize(
    "hook",
    [
        "verify_request",
        pytest.param("process_request", marks=pytest.mark.regression),
        "shutdown_request",
        "close_request",
    ],
)
def test_an_exception_in_a_hook_of_a_request_closes_it_and_does_not_end_the_loop(ss: ModuleType, hook: str) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        first: Any = None

    def failing(self: Any, request: Any, *arguments: Any) -> Any:
        self.first = self.first or request
        if request is self.first:
            raise RuntimeError(f"{hook} fails")
        return getattr(ss.TCPServer, hook)(self, request, *arguments)

    setattr(Server, hook, failing)
    server = Server(LOCAL, upper)
    with serving(server):
        with connected(server.server_address) as client:
            try:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                rest(client)
            except TimeoutError:
                pytest.fail("the request was left open")
            except OSError:
                pass  # closed with unread bytes: as closed as can be
        assert ask(server.server_address) == b"HELLO"


@pytest.mark.alerts
def test_an_exception_of_get_request_that_is_no_oserror_does_not_end_the_loop(
    ss: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        failures = 0

        def get_request(self) -> Any:
            if self.failures < 2:
                self.failures += 1
                raise RuntimeError("get_request fails")
            return super().get_request()

    server = Server(LOCAL, upper)
    with serving(server):
        assert ask(server.server_address, seconds=2) == b"HELLO"
    assert _levels(caplog) == ["ERROR", "ERROR"]


@pytest.mark.alerts
def test_a_get_request_that_always_fails_does_not_spin(ss: ModuleType) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        failures = 0

        def get_request(self) -> Any:
            self.failures += 1
            raise RuntimeError("get_request fails")

    server = Server(LOCAL, upper)
    with serving(server) as thread, connected(server.server_address):
        assert not until(lambda: server.failures > 100, timeout=0.5)
        assert server.failures >= 16
        assert thread.is_alive()


@pytest.mark.alerts
def test_an_exception_in_handle_error_does_not_end_the_loop(ss: ModuleType) -> None:
    def handle(request: Any, client_address: Any, server: Any) -> None:
        if request.recv(5) == b"wrong":
            raise ValueError("a bug")
        request.sendall(b"fine")

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        raise RuntimeError("handle_error fails")

    server = made(ss.TCPServer, handle, handle_error=handle_error)
    with serving(server):
        assert ask(server.server_address, b"wrong") == b""
        assert ask(server.server_address, b"right", seconds=2) == b"fine"


@pytest.mark.alerts
def test_an_exception_in_service_actions_does_not_end_the_loop(ss: ModuleType) -> None:
    calls: list[int] = []

    def service_actions(self: Any) -> None:
        calls.append(1)
        raise RuntimeError("service_actions fails")

    server = made(ss.TCPServer, upper, service_actions=service_actions)
    with serving(server, poll_interval=0.02):
        assert until(lambda: len(calls) >= 3, timeout=2)
        assert ask(server.server_address) == b"HELLO"


@pytest.mark.parametrize("spoil", ["sys.stderr.close()", "sys.stderr = object()"])
def test_a_spoiled_stderr_does_not_end_the_loop_when_a_handler_fails(ss: ModuleType, spoil: str) -> None:
    with program(BAD_STDERR.format(spoil=spoil), ss) as process:
        assert line_of(process) == "b''"
        assert line_of(process) == "b'fine'"


@pytest.mark.regression
def test_no_stderr_at_all_does_not_end_the_loop_when_a_handler_fails(ss: ModuleType) -> None:
    with program(BAD_STDERR.format(spoil="sys.stderr = None"), ss) as process:
        printed = [line_of(process) for _ in range(20)]  # the standard library's report is printed to stdout then
        assert "b'fine'" in printed


def test_a_peer_that_leaves_in_mid_write_is_a_debug_record_and_no_traceback(
    ss: ModuleType, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    left = threading.Event()

    def write(request: Any, client_address: Any, server: Any) -> None:
        left.wait(5)
        while True:
            request.sendall(b"x" * 65536)

    server = ss.ThreadingTCPServer(LOCAL, write)
    with caplog.at_level(logging.DEBUG, logger="portico"), serving(server):
        client = connected(server.server_address)
        address = client.getsockname()
        _reset(client)
        left.set()
        assert until(lambda: _levels(caplog) == ["DEBUG"], timeout=2)
        assert str(address) in caplog.text
    assert capfd.readouterr().err == ""


def test_a_peer_that_falls_silent_past_the_handlers_timeout_is_a_debug_record(
    ss: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        timeout = 0.05

        def handle(self) -> None:
            self.rfile.readline()

    server = ss.TCPServer(LOCAL, Handler)
    with caplog.at_level(logging.DEBUG, logger="portico"), serving(server), connected(server.server_address) as client:
        assert rest(client) == b""
        assert until(lambda: _levels(caplog) == ["DEBUG"], timeout=1)


@pytest.mark.alerts
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_a_bug_in_a_handler_is_one_error_with_the_clients_address_and_the_traceback(
    ss: ModuleType, kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("a bug in a handler")

    to_stderr = logging.StreamHandler()  # for a forked child's records, which caplog cannot see
    to_stderr.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger("portico").addHandler(to_stderr)
    server = getattr(ss, kind)(LOCAL, fail)
    try:
        with serving(server), connected(server.server_address) as client:
            address = client.getsockname()
            client.shutdown(socket.SHUT_WR)
            assert rest(client) == b""
    finally:
        logging.getLogger("portico").removeHandler(to_stderr)
    printed = capfd.readouterr().err
    assert f"ERROR portico request from {address} failed" in printed
    assert printed.count("Traceback (most recent call last)") == 1
    assert printed.count("ValueError: a bug in a handler") == 1
    if kind != "ForkingTCPServer":
        assert _levels(caplog) == ["ERROR"]


@pytest.mark.alerts
@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("the handler's own backend"), TimeoutError("a future's"), OSError("disk full")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_handlers_own_doing_is_not_taken_for_the_peers(
    ss: ModuleType, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Any, client_address: Any, server: Any) -> None:
        raise error

    server = ss.TCPServer(LOCAL, fail)
    with serving(server):
        assert ask(server.server_address, b"") == b""
        assert until(lambda: _levels(caplog) == ["ERROR"], timeout=1)


@pytest.mark.alerts
def test_a_connection_refused_for_real_by_the_handlers_backend_is_an_error(
    ss: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound_only:
        bound_only.bind(LOCAL)
        backend = bound_only.getsockname()
        server = ss.TCPServer(LOCAL, lambda *what: socket.create_connection(backend, 1))
        with serving(server):
            assert ask(server.server_address, b"") == b""
            assert until(lambda: _levels(caplog) == ["ERROR"], timeout=1)


@pytest.mark.regression
def test_handle_error_is_still_the_hook_and_sees_the_exception(ss: ModuleType) -> None:
    import sys

    seen: list[object] = []

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        seen.append((type(sys.exc_info()[1]), request.fileno() >= 0, client_address[0]))

    server = made(ss.TCPServer, lambda *what: 1 / 0, handle_error=handle_error)
    with serving(server):
        assert ask(server.server_address, b"") == b""
    assert seen == [(ZeroDivisionError, True, "127.0.0.1")]


@pytest.mark.regression
def test_a_request_that_verify_request_refuses_is_shut_down(ss: ModuleType) -> None:
    """#26309."""
    ended: list[object] = []

    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

        def shutdown_request(self, request: Any) -> None:
            ended.append(request)
            super().shutdown_request(request)

    server = Server(LOCAL, upper)
    with serving(server), connected(server.server_address) as client:
        assert rest(client) == b""
    assert len(ended) == 1


@pytest.mark.regression
@pytest.mark.parametrize("serve", ["handle_request", "serve_forever"])
def test_systemexit_in_a_plain_servers_handler_leaves_the_server_and_closes_the_request(
    ss: ModuleType, serve: str
) -> None:
    left: list[object] = []

    def leave(request: Any, client_address: Any, server: Any) -> None:
        raise SystemExit(3)

    with ss.TCPServer(LOCAL, leave) as server:

        def run() -> None:
            try:
                getattr(server, serve)()
            except SystemExit as error:
                left.append(error.code)

        with connected(server.server_address) as client:
            assert took(run, 5) < 5
            assert rest(client) == b""
    assert left == [3]


def test_what_handle_error_raises_leaves_handle_request_and_closes_the_request(ss: ModuleType) -> None:
    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        raise

    server = made(ss.TCPServer, lambda *what: 1 / 0, handle_error=handle_error)
    with server, connected(server.server_address) as client:
        with pytest.raises(ZeroDivisionError) as raised:
            server.handle_request()
        assert rest(client) == b""  # not only when the last reference to it, in the traceback, goes
    assert raised.traceback


@pytest.mark.alerts
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
def test_a_request_that_is_no_socket_and_cannot_be_shut_down_like_one_is_closed(ss: ModuleType, kind: str) -> None:
    class Odd:
        def __init__(self, connection: socket.socket) -> None:
            self.connection = connection

        def shutdown(self) -> None:
            """Without the argument that a socket's has."""

        def close(self) -> None:
            self.connection.close()

    class Server(getattr(ss, kind)):  # type: ignore[misc]
        def get_request(self) -> Any:
            connection, client_address = super().get_request()
            return Odd(connection), client_address

    server = Server(LOCAL, lambda request, *_: request.connection.sendall(b"served"))
    with serving(server):
        for _ in range(2):
            with connected(server.server_address, 2) as client:
                assert rest(client) == b"served"

"""Rows 9, 10, 36 and 44: bursts, shortages, a socket closed while it is served, requests that somebody else took."""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import socket
import threading
import time
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from .serving import LOCAL, ask, connected, line_of, made, program, rest, serving, tell, took, until, upper

OUT_OF_DESCRIPTORS = """
import json, logging, os, resource, threading, time

records, takes, held = [], [], []

class Keep(logging.Handler):
    def emit(self, record):
        if ", now " not in record.getMessage():  # the steps in a server's life
            records.append(record.levelname)

class Server(ss.TCPServer):
    def get_request(self):
        takes.append(1)
        return super().get_request()
    def close_request(self, request):
        super().close_request(request)
        closed.set()

closed = threading.Event()
logging.getLogger("portico").addHandler(Keep())
logging.getLogger("portico").setLevel(logging.DEBUG)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
server = Server(("127.0.0.1", 0), lambda request, address, server: request.sendall(b"served"))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
input()
closed.wait(5)  # or its descriptor would serve one more
try:
    while True:
        held.append(os.dup(0))
except OSError:
    print("full", flush=True)
input()
before = time.process_time()
threading.Event().wait(1.0)
print(json.dumps([time.process_time() - before, len(takes), records]), flush=True)
while held:
    os.close(held.pop())
input()
print(json.dumps(records), flush=True)
"""

TAKES_FIRST = """
import socket
listener = socket.socket(fileno=int(sys.argv[2]))
for line in sys.stdin:
    connection, address = listener.accept()
    print("taken", flush=True)
"""


def test_a_burst_of_clients_finds_room_in_the_backlog(ss: ModuleType) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def slow(request: Any, client_address: Any, server: Any) -> None:
        busy.set()
        go_on.wait(10)

    server = ss.TCPServer(LOCAL, slow)
    with serving(server), ExitStack() as clients:
        clients.callback(go_on.set)
        clients.enter_context(connected(server.server_address))
        assert busy.wait(5)
        for _ in range(20):
            clients.enter_context(connected(server.server_address, seconds=0.5))


def test_out_of_descriptors_the_loop_pauses_says_so_once_and_recovers(ss: ModuleType) -> None:
    with program(OUT_OF_DESCRIPTORS, ss) as process:
        address = "127.0.0.1", int(line_of(process))
        assert ask(address, b"") == b"served"
        tell(process)
        assert line_of(process) == "full"
        with connected(address) as client:
            tell(process)
            seconds, takes, records = json.loads(line_of(process))
            assert seconds < 0.02  # of one second
            assert takes < 50
            assert records == ["WARNING"]
            assert rest(client) == b"served"
        assert ask(address, b"") == b"served"
        tell(process)
        assert json.loads(line_of(process)) == ["WARNING", "INFO"]


@pytest.mark.parametrize("close", ["server_close()", "socket.close()"])
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "UDPServer"])
def test_closing_the_socket_ends_the_loop_that_waits_on_it(ss: ModuleType, kind: str, close: str) -> None:
    seconds = []
    for _ in range(3):
        server = getattr(ss, kind)(LOCAL, upper)
        with serving(server) as thread:
            begun = time.monotonic()
            server.server_close() if close == "server_close()" else server.socket.close()
            thread.join(1)
            seconds.append(time.monotonic() - begun)
        if seconds[-1] > 1:
            break
    assert min(seconds) < 0.1


def test_closing_a_socket_that_the_program_put_in_place_ends_the_loop(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, upper, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.create_server(LOCAL)
    with serving(server) as thread:
        server.socket.close()
        thread.join(1)
        assert not thread.is_alive()


def test_closing_the_server_in_a_handler_ends_the_loop(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, lambda request, client_address, server: server.server_close())
    with serving(server) as thread, connected(server.server_address) as client:
        assert rest(client) == b""
        thread.join(1)
        assert not thread.is_alive()


@pytest.mark.alerts
def test_a_listener_that_is_of_no_use_any_more_ends_the_loop_with_one_error(
    ss: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    server = ss.TCPServer(LOCAL, upper)
    with serving(server) as thread:
        server.socket.shutdown(socket.SHUT_RDWR)  # accept() fails with EINVAL from now on
        thread.join(1)
        assert not thread.is_alive()
    assert [record.levelname for record in caplog.records if record.name == "portico"] == ["ERROR"]


def test_a_request_that_another_process_took_does_not_block_the_loop(ss: ModuleType) -> None:
    lost = threading.Event()

    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        def get_request(self) -> Any:
            if not lost.is_set():
                tell(other)
                assert line_of(other) == "taken"
                lost.set()
            return super().get_request()

    server = Server(LOCAL, upper)
    with program(TAKES_FIRST, ss, server.fileno(), pass_fds=[server.fileno()]) as other:  # noqa: SIM117
        with serving(server), connected(server.server_address):
            assert lost.wait(5)
            assert took(server.shutdown, 2) < 1


def test_a_datagram_that_somebody_else_took_does_not_block_the_loop(ss: ModuleType) -> None:
    lost = threading.Event()

    class Server(ss.UDPServer):  # type: ignore[misc, name-defined]
        def get_request(self) -> Any:
            if not lost.is_set():
                self.socket.recv(100)
                lost.set()
            return super().get_request()

    server = Server(LOCAL, upper)
    with serving(server), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"x", server.server_address)
        assert lost.wait(5)
        assert took(server.shutdown, 2) < 1


def test_handle_request_does_not_block_when_its_request_has_vanished(ss: ModuleType) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        def get_request(self) -> Any:
            with socket.socket(fileno=socket.dup(self.fileno())) as other:
                other.accept()[0].close()
            return super().get_request()

    with Server(LOCAL, upper) as server, connected(server.server_address):
        try:
            assert took(server.handle_request, 1) < 1
        finally:
            connected(server.server_address).close()  # lets a blocked one go
            connected(server.server_address).close()


@pytest.mark.new_feature
def test_the_listeners_own_timeout_and_mode_are_as_before_when_the_loop_has_ended(ss: ModuleType) -> None:
    with ss.TCPServer(LOCAL, upper) as server, server.socket.dup() as same:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server.server_address) == b"HELLO"
        assert server.socket.gettimeout() is None
        server.shutdown()
        thread.join(5)
        assert os.get_blocking(same.fileno())


def test_clients_in_the_backlog_are_taken_several_at_a_time(ss: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float | None] = []

    class Counting(selectors.PollSelector):
        def select(self, timeout: float | None = None) -> Any:
            calls.append(timeout)
            return super().select(timeout)

    monkeypatch.setattr(ss, "_ServerSelector", Counting)
    done: list[object] = []
    server = made(ss.TCPServer, lambda *what: done.append(what), request_queue_size=128)
    with ExitStack() as clients:
        for _ in range(40):
            clients.enter_context(connected(server.server_address))
        with serving(server):
            assert until(lambda: len(done) == 40)
            assert len(calls) < 20


@pytest.mark.regression
@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EINTR])
def test_an_error_of_one_connection_does_not_end_the_loop(
    ss: ModuleType, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        failures = 0

        def get_request(self) -> Any:
            if self.failures < 3:
                self.failures += 1
                raise OSError(number, "as from accept()")
            return super().get_request()

    server = Server(LOCAL, upper)
    with caplog.at_level(logging.INFO, logger="portico"), serving(server):
        assert ask(server.server_address) == b"HELLO"
    assert not caplog.records

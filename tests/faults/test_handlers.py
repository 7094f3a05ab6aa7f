"""Rows 39, 40 and 43, and faults of handlers mended upstream: types, peers' credentials, timeouts, writes and ends."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, ask, connected, made, rest, serving, upper


@pytest.mark.parametrize("name", ["BaseRequestHandler", "StreamRequestHandler", "DatagramRequestHandler"])
def test_handlers_take_their_servers_type_at_run_time(ss: ModuleType, name: str) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        pass

    class Handler(getattr(ss, name)[Server]):  # type: ignore[misc]
        pass

    assert issubclass(Handler, getattr(ss, name))


@pytest.mark.new_feature
def test_the_process_behind_a_unix_connection_is_known(ss: ModuleType, tmp_path: Path) -> None:
    def tell(request: Any, client_address: Any, server: Any) -> None:
        who = server.peer_credentials(request)
        request.sendall(f"{who.pid} {who.uid} {who.gid}".encode())

    server = ss.UnixStreamServer(str(tmp_path / "server"), tell)
    with serving(server):
        assert ask(server.server_address, b"").decode() == f"{os.getpid()} {os.getuid()} {os.getgid()}"


@pytest.mark.new_feature
def test_credentials_of_a_tcp_peer_are_refused_in_words(ss: ModuleType) -> None:
    with ss.TCPServer(LOCAL, upper) as server, connected(server.server_address) as client:
        with pytest.raises(ss.UnavailableError, match="Unix stream connections only"):
            server.peer_credentials(client)
        server.handle_timeout()


@pytest.mark.alerts
def test_a_unix_client_without_an_address_has_a_name_in_the_log(
    ss: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ss.UnixStreamServer(str(tmp_path / "server"), lambda *what: 1 / 0)
    with serving(server):
        assert ask(server.server_address, b"") == b""
    assert f"pid {os.getpid()}, uid {os.getuid()}" in caplog.text


@pytest.mark.regression
def test_the_servers_timeout_is_how_long_handle_request_waits(ss: ModuleType) -> None:
    calls: list[int] = []
    with made(ss.TCPServer, upper, timeout=0.1, handle_timeout=lambda self: calls.append(1)) as server:
        begun = time.monotonic()
        server.handle_request()
        assert 0.09 < time.monotonic() - begun < 2
        server.socket.settimeout(0.05)  # the lesser of the two counts
        server.timeout = 60
        server.handle_request()
        assert time.monotonic() - begun < 5
    assert calls == [1, 1]


@pytest.mark.regression
def test_the_servers_timeout_means_nothing_to_serve_forever_or_its_requests(ss: ModuleType) -> None:
    calls: list[int] = []
    server = made(ss.TCPServer, upper, timeout=0.02, handle_timeout=lambda self: calls.append(1))
    with serving(server, poll_interval=0.01), connected(server.server_address) as client:
        assert not until(lambda: calls, timeout=0.15)
        client.sendall(b"late")
        assert client.recv(4) == b"LATE"


@pytest.mark.regression
def test_a_stream_handlers_timeout_is_for_each_operation_and_not_for_the_request(ss: ModuleType) -> None:
    lines: list[bytes] = []

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        timeout = 0.5

        def handle(self) -> None:
            while line := self.rfile.readline():
                lines.append(line)
                self.wfile.write(line)

    server = ss.TCPServer(LOCAL, Handler)
    with serving(server), connected(server.server_address) as client:
        begun = time.monotonic()
        pause = threading.Event()
        while time.monotonic() - begun < 0.8:  # longer than the timeout, though never silent for so long
            client.sendall(b"x\n")
            assert client.recv(9) == b"x\n"
            pause.wait(0.1)
        assert rest(client) == b""  # and now it is
    assert len(lines) > 2


@pytest.mark.regression
def test_an_unbuffered_write_writes_all(ss: ModuleType) -> None:
    """bpo-26721."""
    size = 4 << 20
    written: list[int] = []

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            written.append(self.wfile.write(memoryview(b"x" * size)))

    server = ss.TCPServer(LOCAL, Handler)
    with serving(server), connected(server.server_address) as client:
        assert len(rest(client)) == size
    assert written == [size]


@pytest.mark.parametrize("buffered", [pytest.param(False, marks=pytest.mark.regression), True])
def test_finish_ignores_a_peer_that_does_not_take_what_is_left(
    ss: ModuleType, buffered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """bpo-14574."""
    errors: list[object] = []
    closed: list[bool] = []
    gone = threading.Event()

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        wbufsize = -1 if buffered else 0

        def handle(self) -> None:
            if buffered:
                self.wfile.write(b"x")
            gone.wait(5)

        def finish(self) -> None:
            super().finish()
            closed.append(self.wfile.closed and self.rfile.closed)

    server = made(ss.ThreadingTCPServer, Handler, handle_error=lambda self, *what: errors.append(what))
    with caplog.at_level(logging.DEBUG), serving(server):
        client = connected(server.server_address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        gone.set()
        assert until(lambda: closed == [True], timeout=2)
    assert errors == []

"""Row 25: a server in the background that is ready when it says so, and gone when its block ends."""

from __future__ import annotations

import socket
import threading
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, ask, connected, rest, upper

pytestmark = pytest.mark.new_feature


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_the_block_is_entered_when_the_server_serves_and_leaves_nothing(ss: ModuleType, kind: str) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        with getattr(ss, kind)(LOCAL, upper).background() as server:
            assert server._portico_loop is not None
            assert ask(server.server_address) == b"HELLO"
        assert server.fileno() == -1
        assert set(threading.enumerate()) == before
        with pytest.raises(ConnectionRefusedError):
            connected(server.server_address)


def test_leaving_the_block_waits_for_requests_that_run(ss: ModuleType) -> None:
    go_on = threading.Event()
    answers: list[bytes] = []

    def slow(request: Any, client_address: Any, server: Any) -> None:
        request.sendall(b"begun ")
        go_on.wait(5)
        request.sendall(b"done")

    with ss.ThreadingTCPServer(LOCAL, slow).background() as server:
        client = connected(server.server_address)
        assert client.recv(6) == b"begun "
        threading.Timer(0.05, go_on.set).start()
    with client:
        answers.append(rest(client))
    assert answers == [b"done"]


def test_an_exception_in_the_block_still_ends_the_server(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, upper)
    with pytest.raises(KeyError), server.background():
        raise KeyError("the block's own")
    assert server.fileno() == -1


def test_what_ends_the_loop_is_raised_on_leaving_and_clients_are_not_left_waiting(ss: ModuleType) -> None:
    def leave(request: Any, client_address: Any, server: Any) -> None:
        raise SystemExit(4)

    background = ss.TCPServer(LOCAL, leave).background()
    server = background.__enter__()
    with connected(server.server_address) as client:
        assert rest(client) == b""
    assert until(lambda: server.fileno() == -1)
    with pytest.raises(ConnectionRefusedError):
        connected(server.server_address)
    with pytest.raises(SystemExit):
        background.__exit__(None, None, None)


def test_shutting_down_inside_the_block_is_fine(ss: ModuleType) -> None:
    with ss.TCPServer(LOCAL, upper).background() as server:
        server.shutdown()
    assert server.fileno() == -1


def test_entering_with_a_closed_server_says_so(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, upper)
    server.server_close()
    with pytest.raises(ValueError, match="closed"):
        server.background().__enter__()


def test_two_servers_in_the_background_do_not_disturb_each_other(ss: ModuleType) -> None:
    with ss.TCPServer(LOCAL, upper).background() as first:
        with ss.UDPServer(LOCAL, lambda r, address, server: r[1].sendto(r[0], address)).background() as second:
            assert ask(first.server_address) == b"HELLO"
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.sendto(b"echo", second.server_address)
                assert client.recv(9) == b"echo"
        assert ask(first.server_address) == b"HELLO"

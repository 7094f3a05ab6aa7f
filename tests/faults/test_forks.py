"""Rows 15 to 17: other people's children, a full house, sockets that a child should not hold, and threads beside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, ask, connected, line_of, made, program, rest, serving, took, upper

FORKS_BESIDE_A_THREAD = """
import socket, threading, time

class Server(ss.ForkingTCPServer):
    errors = 0
    def handle_error(self, request, client_address):
        self.errors += 1

server = Server(("127.0.0.1", 0), lambda request, address, server: request.sendall(b"served"))
loop = threading.Thread(target=server.serve_forever)
loop.start()
for _ in range(2):
    with socket.create_connection(server.server_address, 5) as client:
        print(client.recv(9).decode(), flush=True)
server.shutdown()
loop.join()
server.server_close()
print("errors:", server.errors, flush=True)
"""

ALONE = """
import socket, threading
told = []

class Server(ss.ForkingTCPServer):
    def handle_event(self, event):
        told.append(type(event).__name__)

with Server(("127.0.0.1", 0), lambda request, address, server: request.sendall(b"served")) as server:
    print(server.server_address[1], flush=True)
    server.handle_request()
print("told:", told, flush=True)
"""


def _python_that_warns() -> str | None:
    """An interpreter that warns of forks beside threads, which is from 3.12 on."""
    if sys.version_info >= (3, 12):
        return sys.executable
    found = Path.home() / ".pyenv/versions/3.13.0/bin/python"
    return str(found) if found.exists() else None


def _states_of_children() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    pids = {pid for task in tasks for pid in (task / "children").read_text().split()}
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]


def _children(server: Any) -> int:
    return len(server.active_children or ())


def test_the_exit_status_of_a_foreign_child_is_left_alone(ss: ModuleType) -> None:
    server = made(ss.ForkingTCPServer, upper, max_children=1)
    foreign = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    os.waitid(os.P_PID, foreign.pid, os.WEXITED | os.WNOWAIT)
    with serving(server, poll_interval=0.02):
        for _ in range(2):
            assert ask(server.server_address) == b"HELLO"
        assert until(lambda: _children(server) == 0)
    assert foreign.wait(5) == 7


def test_shutdown_is_not_held_up_when_all_children_are_busy(ss: ModuleType) -> None:
    seconds = []
    for _ in range(3):
        server = made(ss.ForkingTCPServer, upper, max_children=1)
        with serving(server, poll_interval=0.02), connected(server.server_address) as busy:
            busy.sendall(b"x")
            assert busy.recv(1) == b"X"
            with connected(server.server_address) as waiting:
                seconds.append(took(server.shutdown, 2))
                busy.shutdown(socket.SHUT_WR)
                waiting.shutdown(socket.SHUT_WR)
        if seconds[-1] > 2:
            break
    assert min(seconds) < 0.05


@pytest.mark.regression
def test_handle_request_waits_for_a_child_to_end_but_not_longer(ss: ModuleType) -> None:
    """A loop that cannot ask beforehand: the request is taken, and has to wait for room."""
    with made(ss.ForkingTCPServer, upper, max_children=1) as server:
        for _ in range(3):
            with connected(server.server_address) as client:
                server.handle_request()
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert rest(client) == b"HELLO"


def test_a_child_is_reaped_when_it_ends_and_not_at_the_next_poll(ss: ModuleType) -> None:
    server = ss.ForkingTCPServer(LOCAL, upper)
    with serving(server, poll_interval=2):
        assert ask(server.server_address) == b"HELLO"
        assert until(lambda: _children(server) == 0 and "Z" not in _states_of_children(), timeout=1)


def test_a_killed_child_is_reaped_and_the_server_goes_on(ss: ModuleType) -> None:
    server = ss.ForkingTCPServer(LOCAL, upper)
    with serving(server, poll_interval=2):
        with connected(server.server_address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"X"
            os.kill(next(iter(server.active_children)), signal.SIGKILL)
            assert until(lambda: _children(server) == 0, timeout=1)
        assert ask(server.server_address) == b"HELLO"


@pytest.mark.regression
def test_more_clients_than_max_children_are_all_served(ss: ModuleType) -> None:
    server = made(ss.ForkingTCPServer, upper, max_children=2, request_queue_size=16)
    with serving(server, poll_interval=0.02), ExitStack() as stack:
        clients = [stack.enter_context(connected(server.server_address)) for _ in range(8)]
        for client in clients:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
        assert [rest(client) for client in clients] == [b"HELLO"] * 8


def test_max_children_is_never_exceeded_and_the_rest_wait(ss: ModuleType) -> None:
    server = made(ss.ForkingTCPServer, upper, max_children=2)
    with serving(server, poll_interval=0.02), ExitStack() as stack:
        clients = [stack.enter_context(connected(server.server_address)) for _ in range(3)]
        for client in clients[:2]:
            client.sendall(b"x")
            assert client.recv(1) == b"X"
        try:
            assert _children(server) == 2
            assert took(server.collect_children, 0.5) < 0.5  # never a blocking wait
        finally:
            for client in clients:
                client.shutdown(socket.SHUT_WR)


def test_a_busy_child_does_not_hold_the_port_of_a_closed_server(ss: ModuleType) -> None:
    server = made(ss.ForkingTCPServer, upper, block_on_close=False, allow_reuse_address=True)
    address = server.server_address
    with serving(server), connected(address) as busy:
        busy.sendall(b"x")
        assert busy.recv(1) == b"X"
        took(server.shutdown, 2)
        server.server_close()
        try:
            with pytest.raises(ConnectionRefusedError):
                connected(address).close()
            with made(ss.TCPServer, upper, address, allow_reuse_address=True):
                pass
        finally:
            busy.shutdown(socket.SHUT_WR)
            assert rest(busy) == b""
            server.collect_children(blocking=True)


def test_a_child_holds_no_listener_and_no_loop(ss: ModuleType) -> None:
    def tell(request: Any, client_address: Any, server: Any) -> None:
        links = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                links.append(os.readlink(f"/proc/self/fd/{number}"))
        request.sendall(" ".join(links).encode())

    server = ss.ForkingTCPServer(LOCAL, tell)
    listener = f"socket:[{os.stat(server.fileno()).st_ino}]"
    with serving(server):
        links = ask(server.server_address, b"").decode().split()
    assert links
    assert listener not in links


@pytest.mark.parametrize(
    "warnings", [pytest.param("error::DeprecationWarning", marks=pytest.mark.regression), "always::DeprecationWarning"]
)
def test_forks_beside_threads_work_without_a_warning_whatever_becomes_of_warnings(
    ss: ModuleType, warnings: str, tmp_path: Path
) -> None:
    python = _python_that_warns()
    if python is None:
        pytest.skip("no Python from 3.12 on, which warn of forks beside threads")
    printed = tmp_path / "stderr"
    with printed.open("w") as stderr:  # noqa: SIM117
        with program(FORKS_BESIDE_A_THREAD, ss, command=(python, "-W", warnings), stderr=stderr) as process:
            assert [line_of(process) for _ in range(3)] == ["served", "served", "errors: 0"]
    assert "DeprecationWarning" not in printed.read_text()


def test_forking_beside_threads_is_said_once(ss: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    server = made(ss.ForkingTCPServer, upper, handle_event=lambda self, event: told.append(type(event).__name__))
    with serving(server):
        for _ in range(3):
            assert ask(server.server_address) == b"HELLO"
    assert told.count("ForkedWithThreads") == 1


@pytest.mark.new_feature
def test_forking_from_the_only_thread_is_not_worth_a_word(ss: ModuleType) -> None:
    with program(ALONE, ss) as process:
        assert ask(("127.0.0.1", int(line_of(process))), b"") == b"served"
        told = line_of(process)
        assert told.startswith("told: ['")  # of the connection, and of the server's life
        assert "ForkedWithThreads" not in told


@pytest.mark.regression
@pytest.mark.parametrize("kind", ["ForkingUnixStreamServer", "ForkingUnixDatagramServer"])
def test_forking_unix_servers_are_there_and_serve(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    """#103673."""
    datagrams = "Datagram" in kind

    def handle(request: Any, client_address: Any, server: Any) -> None:
        if datagrams:
            request[1].sendto(request[0].upper(), client_address)
        else:
            upper(request, client_address, server)

    server = getattr(ss, kind)(str(tmp_path / "server"), handle)
    with serving(server):
        if not datagrams:
            assert ask(server.server_address) == b"HELLO"
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(str(tmp_path / "client"))
            client.settimeout(5)
            client.sendto(b"hello", server.server_address)
            assert client.recv(9) == b"HELLO"

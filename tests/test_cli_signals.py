"""`portico serve` told to stop: once, its requests come to their end; twice, they are cut; a child for itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .commands import environment
from .waiting import until

HANDLERS = """
import os, portico

class Holds(portico.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        self.wfile.write(self.rfile.readline().upper())

class HoldsAsync(portico.AsyncStreamRequestHandler):
    async def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        self.wfile.write((await self.rfile.readline()).upper())

class Stubborn(portico.StreamRequestHandler):
    def handle(self):
        while True:
            try:
                self.wfile.write(b"%d\\n" % os.getpid())
                self.wfile.write(self.rfile.readline().upper())
                return
            except Exception:
                pass
"""
WAITING = ["thread", "fork", "green", "green-asyncio", "async", "async-asyncio"]
"""The ways whose loop goes on while a request runs."""
WAYS = [*WAITING, "none"]
SAID = r"\d+ requests have come to their end, [1-9]\d* have been cut after \d+\.\d s, 0 go on all the same: .+\n"
"""What is said of requests that were cut."""
STUCK = "portico: what still ran after the deadline has been cut\n"
"""The same of those that even then went on, and ended with the process."""
CLEAN = (0, "", "")
TICK = 0.03
"""Seconds after which the kernel's clock tells what was sent from what came: it ticks every few milliseconds."""


class Served:
    """The command, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        found = re.search(r":(\d+)$", process.stdout.readline())
        assert found
        assert process.stdout.readline().startswith("limits: ")
        self.address = ("127.0.0.1", int(found[1]))

    @contextmanager
    def held(self) -> Iterator[tuple[socket.socket, int]]:
        """A request that is in flight inside the block, in the middle of a line; and the process it runs in."""
        with socket.create_connection(self.address, 10) as client:
            pid = int(client.recv(100))
            greeted = time.monotonic()
            assert until(lambda: time.monotonic() > greeted + TICK)
            client.sendall(b"e")
            yield client, pid

    def refuses(self) -> bool:
        """Whether nothing is accepted any more: a client is refused, or gets no answer."""
        try:
            with socket.create_connection(self.address, 0.05) as client:
                return client.recv(100) == b""
        except OSError:
            return True

    def tell_twice(self, first: signal.Signals = signal.SIGTERM) -> None:
        """Two signals: not of the same number, since the second could be lost in the first."""
        self.process.send_signal(first)
        assert until(self.refuses)
        self.process.send_signal(signal.SIGINT if first == signal.SIGTERM else signal.SIGTERM)

    def ended(self) -> tuple[int, str, str]:
        """Exit status, the rest of stdout, and stderr."""
        try:
            out, err = self.process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
        return self.process.returncode, out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


@contextmanager
def serving(folder: Path, way: str, handler: str = "") -> Iterator[Served]:
    concurrency, _, loop = way.partition("-")
    handler = handler or ("HoldsAsync" if concurrency == "async" else "Holds")
    command = ["serve", f"handlers:{handler}", "tcp://127.0.0.1:0", "--concurrency", concurrency]
    command += ["--set", f"event_loop={loop}"] if loop else []
    process = subprocess.Popen(
        [sys.executable, "-m", "portico", *command], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield Served(process)
        finally:
            process.kill()


def was_cut(ended: tuple[int, str, str]) -> bool:
    """Whether a command has ended as one does that has cut requests, and has said so."""
    status, out, err = ended
    return (status, out) == (3, "") and re.fullmatch(SAID, err) is not None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("concurrency", WAYS)
def test_a_request_that_runs_comes_to_its_end(folder: Path, concurrency: str, number: signal.Signals) -> None:
    with serving(folder, concurrency) as served:
        with served.held() as (client, _):
            served.process.send_signal(number)
            assert until(served.refuses)
            assert served.process.poll() is None
            client.sendall(b"nd\n")
            assert client.recv(100) == b"END\n"
        assert served.ended() == CLEAN


@pytest.mark.parametrize("concurrency", WAYS)
def test_a_connection_that_has_been_served_and_says_nothing_is_closed_at_once(folder: Path, concurrency: str) -> None:
    with serving(folder, concurrency) as served, socket.create_connection(served.address, 10) as client:
        int(client.recv(100))  # the handler waits for a line, of which nothing has come
        served.process.terminate()
        assert client.recv(100) == b""
        assert served.ended() == CLEAN


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("concurrency", WAYS)
def test_a_second_signal_cuts(folder: Path, concurrency: str, first: signal.Signals) -> None:
    with serving(folder, concurrency) as served, served.held() as (client, pid):
        served.tell_twice(first)
        assert was_cut(served.ended())
        assert client.recv(100) == b""
        assert until(lambda: not is_alive(pid))


def signal_is_taken(pid: int) -> bool:
    """Whether no signal waits for the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return all(int(found, 16) == 0 for found in re.findall(r"^S(?:hd|ig)Pnd:\s+(\w+)", status, re.MULTILINE))


@pytest.mark.parametrize("concurrency", WAITING)
def test_it_cuts_all_requests(folder: Path, concurrency: str) -> None:
    with serving(folder, concurrency) as served, ExitStack() as stack:
        held = [stack.enter_context(served.held()) for _ in range(5)]
        pids = {pid for _, pid in held}
        assert len(pids) == (5 if concurrency == "fork" else 1)
        served.tell_twice()
        assert was_cut(served.ended())
        assert until(lambda: not any(is_alive(pid) for pid in pids))
        assert [client.recv(100) for client, _ in held] == [b""] * 5


@pytest.mark.parametrize("concurrency", ["thread", "fork", "green", "green-asyncio"])
def test_it_cuts_a_handler_that_catches_everything(folder: Path, concurrency: str) -> None:
    with serving(folder, concurrency, "Stubborn") as served, served.held() as (client, pid):
        served.tell_twice()
        status, out, err = served.ended()
        assert (status, out) == (3, "")
        assert "1 have been cut" in err
        assert err.endswith(STUCK) == (concurrency == "thread")  # which nothing can end but the end of the process
        assert client.recv(100) == b""
        assert until(lambda: not is_alive(pid))


def test_sigterm_to_a_child_ends_that_child_and_nothing_else(folder: Path) -> None:
    with serving(folder, "fork") as served:
        with served.held() as (client, pid), served.held() as (other, others):
            assert len({pid, others, served.process.pid}) == 3
            os.kill(pid, signal.SIGTERM)
            assert client.recv(100) == b""
            assert until(lambda: not Path(f"/proc/{pid}").exists())  # and it has been reaped
            other.sendall(b"nd\n")
            assert other.recv(100) == b"END\n"
        with served.held() as (client, _):
            client.sendall(b"nd\n")
            assert client.recv(100) == b"END\n"
        served.process.terminate()
        assert served.ended() == CLEAN


def test_control_c_reaches_the_children_too_and_they_come_to_their_end(folder: Path) -> None:
    with serving(folder, "fork") as served:
        with served.held() as (client, pid):
            served.process.send_signal(signal.SIGINT)
            os.kill(pid, signal.SIGINT)  # as a terminal does, which sends it to all of them
            assert until(served.refuses)
            assert until(lambda: signal_is_taken(pid))
            client.sendall(b"nd\n")
            assert client.recv(100) == b"END\n"
        assert served.ended() == CLEAN


@pytest.mark.parametrize("concurrency", WAYS)
def test_two_signals_at_an_idle_server_are_no_error(folder: Path, concurrency: str) -> None:
    with serving(folder, concurrency) as served:
        served.process.terminate()
        served.process.send_signal(signal.SIGINT)
        assert served.ended() == CLEAN


@pytest.mark.parametrize("number", range(5))
def test_a_child_that_ends_as_it_is_cut_is_no_error(folder: Path, number: int) -> None:
    with serving(folder, "fork") as served:
        with served.held():
            served.process.terminate()
            assert until(served.refuses)
        served.process.send_signal(signal.SIGINT)  # as the child learns that its client has gone
        ended = served.ended()
    assert ended == CLEAN or was_cut(ended)

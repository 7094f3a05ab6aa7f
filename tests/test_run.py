"""`server.run()`, in a process of its own: a signal is the beginning of the end, and the status says how that was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .commands import ROOT, environment
from .draining import WAYS, Client, Way, refuses, serving
from .waiting import until

LATE = 0.25
"""Seconds that a busy machine may add; and a process has to end, too."""
TICK = 0.03
ENDED = "[True, True] -1\n"
"""What the program says: the signal handlers are its own again, and the socket is closed."""
CUT = "portico: what still ran after the deadline has been cut\n"

by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
by_signal = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


class Program:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.server_address = ("127.0.0.1", int(process.stdout.readline()))
        self.told_at = 0.0

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.told_at = time.monotonic()
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str, str]:
        """Exit status, the rest of stdout, and stderr."""
        out, err = self.process.communicate(timeout=10)
        self.lasted = time.monotonic() - self.told_at
        return self.process.returncode, out, err

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@contextmanager
def running(way: Way, handler: str, **values: Any) -> Iterator[Program]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runs", way.name, handler, json.dumps(values)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield Program(process)
        finally:
            process.kill()


def pause() -> None:
    """Until the kernel's clock tells what comes now from what was before."""
    began = time.monotonic()
    assert until(lambda: time.monotonic() - began > TICK)


def idle(client: Client) -> Client:
    assert client.ask(b"line\n") == b"LINE\n"
    pause()
    return client


def in_flight(client: Client) -> Client:
    idle(client).say(b"half")
    return client


def visit(program: Program) -> None:
    with Client(program) as client:
        idle(client)
        client.end()
        assert client.rest() == b""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@by_signal
@by_way
def test_after_a_signal_it_drains(way: Way, number: signal.Signals) -> None:
    with running(way, "EchoBye") as program, Client(program) as client, Client(program) as other:
        in_flight(client)
        if way.waits:  # else it is in the backlog
            idle(other)
        children = program.children()
        assert len(children) == (2 if way.forks else 0)
        program.tell(number)
        if way.waits:
            assert other.rest() == b"bye\n"
            assert other.ended - program.told_at < LATE
        assert until(lambda: refuses(program), 1)
        assert program.process.poll() is None
        client.say(b" and half\n")
        assert client.rest() == b"HALF AND HALF\nbye\n"
        assert program.ended() == (0, f"0 {ENDED}", "")
        assert program.lasted < 1
        assert not any(is_alive(pid) for pid in children)


@by_way
def test_an_idle_server_ends_at_once(way: Way) -> None:
    with running(way, "Echo") as program:
        visit(program)
        program.tell()
        assert program.ended() == (0, f"0 {ENDED}", "")
        assert program.lasted < LATE * 2


@by_signal
@by_way
def test_a_second_signal_cuts(way: Way, number: signal.Signals) -> None:
    """Not of the same number, as that might be lost in the first."""
    other = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
    with running(way, "Echo") as program, Client(program) as client:
        in_flight(client)
        children = program.children()
        program.tell(number)
        assert until(lambda: refuses(program), 1)
        assert program.process.poll() is None
        program.tell(other)
        assert client.rest() in (b"", b"HALF")  # half a line is the last one, to a handler that is told of the end
        assert client.ended - program.told_at < LATE
        assert program.ended() == (3, f"3 {ENDED}", "")
        assert program.lasted < LATE * 2
        assert not any(is_alive(pid) for pid in children)


DEAF = [
    pytest.param(way, style, id=f"{way.name}-{style}")
    for way in WAYS
    for style in (["Catches", "Holds"] if way.on_loop else ["Catches"])
]


@pytest.mark.parametrize(("way", "style"), DEAF)
def test_a_deaf_handler_ends_with_the_process(way: Way, style: str) -> None:
    with running(way, style, drain_timeout=0.3) as program, Client(program) as client:
        assert client.line() == b"here\n"
        pause()
        client.say(b"x")
        children = program.children()
        program.tell()
        assert client.rest() == b""
        assert 0.3 - 0.001 <= client.ended - program.told_at < 0.3 + LATE
        status, out, err = program.ended()
        if way.forks:
            assert (status, out, err) == (3, f"3 {ENDED}", "")
        else:
            assert (status, out, err.endswith(CUT)) == (3, "", True)
        assert program.lasted < 0.3 + 1
        assert not any(is_alive(pid) for pid in children)


@pytest.mark.parametrize(("way", "style"), DEAF)
def test_a_connection_that_ends_with_the_process_has_its_line_in_the_log(way: Way, style: str) -> None:
    with running(way, style, drain_timeout=0.1, access_log="json") as program, Client(program) as client:
        assert client.line() == b"here\n"
        pause()
        client.say(b"x")
        program.tell()
        assert client.rest() == b""
        status, out, _ = program.ended()
        assert status == 3
        (line,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert (line["reason"], line["bytes_in"]) == ("cut", 1)


@by_way
def test_a_second_signal_ends_even_a_deaf_handler(way: Way) -> None:
    with running(way, "Catches", drain_timeout=30.0) as program, Client(program) as client:
        assert client.line() == b"here\n"
        program.tell(signal.SIGTERM)
        assert until(lambda: refuses(program), 1)
        program.tell(signal.SIGINT)
        assert client.rest() == b""
        assert program.ended()[0] == 3
        assert program.lasted < 1


@by_way
def test_in_its_time_of_grace_it_goes_on(way: Way) -> None:
    with running(way, "Echo", grace=0.5) as program:
        visit(program)
        program.tell()
        served = 0
        while time.monotonic() - program.told_at < 0.5 - TICK * 2:
            visit(program)
            served += 1
        assert until(lambda: refuses(program), 1)
        assert time.monotonic() - program.told_at < 0.5 + LATE
        assert served > 2
        status, _, err = program.ended()
        assert (status, err) == (0, "")


@by_way
def test_a_second_signal_ends_the_grace(way: Way) -> None:
    with running(way, "Echo", grace=30.0) as program:
        visit(program)
        program.tell(signal.SIGTERM)
        pause()
        assert not refuses(program)
        program.tell(signal.SIGINT)
        assert program.ended()[0] in (0, 3)  # the client before may not have ended yet
        assert program.lasted < 1


@by_way
def test_a_signal_before_it_serves(way: Way) -> None:
    with running(way, "Echo", early=True) as program:
        assert program.ended() == (0, f"0 {ENDED}", "")


@by_way
def test_outside_the_main_thread_it_refuses_at_once(way: Way) -> None:
    server = way.made("Echo")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            errors.append(error)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [ValueError]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with serving(server), Client(server) as client:
        assert client.ask(b"line\n") == b"LINE\n"
        client.end()
        assert client.rest() == b""


def test_sigterm_to_a_child_ends_that_child_alone() -> None:
    [forks] = [way for way in WAYS if way.forks]
    with running(forks, "Echo") as program, Client(program) as client:
        idle(client)
        [pid] = program.children()
        with Client(program) as other:
            idle(other)
            os.kill(pid, signal.SIGTERM)
            assert client.rest() == b""
            assert other.ask(b"line\n") == b"LINE\n"
            assert until(lambda: not Path(f"/proc/{pid}").exists())  # and it has been reaped
        program.tell()
        assert program.ended() == (0, f"0 {ENDED}", "")

"""Row 2: `shutdown()` is slow, and an idle server keeps waking up. Row 6: it deadlocks, or poisons the next run."""

from __future__ import annotations

import selectors
import signal
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .serving import LOCAL, ask, connected, is_waiting, line_of, made, program, rest, serving, took, until, upper

AT_ONCE = 0.05

STOPPED_BY_SIGNAL = """
import signal, time

def stop(number, frame):
    global asked
    asked = time.monotonic()
    server.shutdown()

signal.signal(signal.SIGTERM, stop)
with ss.TCPServer(("127.0.0.1", 0), print) as server:
    for _ in range(3):
        print("starting", flush=True)
        server.serve_forever()
        print(time.monotonic() - asked, flush=True)
"""

STOPPED_BY_CONTROL_C = """
with ss.TCPServer(("127.0.0.1", 0), print) as server:
    print("starting", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_shutdown_from_another_thread_ends_an_idle_loop_at_once(ss: ModuleType) -> None:
    seconds = []
    for _ in range(3):
        server = ss.TCPServer(LOCAL, upper)
        with serving(server):
            seconds.append(took(server.shutdown, 2))
    assert min(seconds) < AT_ONCE


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ForkingTCPServer", "UDPServer", "ThreadingUDPServer"])
def test_shutdown_is_as_quick_for_every_way_to_run(ss: ModuleType, kind: str) -> None:
    seconds = []
    for _ in range(3):
        server = getattr(ss, kind)(LOCAL, upper)
        with serving(server):
            seconds.append(took(server.shutdown, 2))
    assert min(seconds) < AT_ONCE


def test_shutdown_from_a_handler_in_the_loops_own_thread_ends_the_loop(ss: ModuleType) -> None:
    ended: list[float] = []

    def stop(request: Any, client_address: Any, server: Any) -> None:
        begun = time.monotonic()
        server.shutdown()
        ended.append(time.monotonic() - begun)

    server = ss.TCPServer(LOCAL, stop)
    with serving(server) as thread, connected(server.server_address) as client:
        assert rest(client) == b""
        thread.join(2)
        assert not thread.is_alive()
        assert ended[0] < AT_ONCE


@pytest.mark.regression
def test_shutdown_from_a_handler_in_a_thread_of_its_own_ends_the_loop_at_once(ss: ModuleType) -> None:
    seconds: list[float] = []

    def stop(request: Any, client_address: Any, server: Any) -> None:
        begun = time.monotonic()
        server.shutdown()
        seconds.append(time.monotonic() - begun)

    for _ in range(3):
        server = ss.ThreadingTCPServer(LOCAL, stop)
        with serving(server), connected(server.server_address) as client:
            assert rest(client) == b""
    assert min(seconds) < AT_ONCE


def test_shutdown_from_a_signal_handler_ends_the_loop_that_it_interrupts(ss: ModuleType) -> None:
    seconds = []
    with program(STOPPED_BY_SIGNAL, ss, seconds=5) as process:
        for _ in range(3):
            assert line_of(process) == "starting"
            assert until(lambda: _sleeps(process.pid))
            process.send_signal(signal.SIGTERM)
            seconds.append(float(line_of(process) or "inf"))
            if seconds[-1] == float("inf"):
                break
        assert process.wait(5) == 0
    assert min(seconds) < AT_ONCE


def test_shutdown_before_the_start_returns_and_makes_that_start_return(ss: ModuleType) -> None:
    with ss.TCPServer(LOCAL, upper) as server:
        assert took(server.shutdown, 1) < AT_ONCE
        assert took(server.serve_forever, 2) < 1


def test_a_second_shutdown_does_not_stop_the_next_run(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, upper)
    with serving(server):
        assert took(server.shutdown, 2) < 2
        assert took(server.shutdown, 2) < 2
        again = threading.Thread(target=server.serve_forever, daemon=True)
        again.start()
        try:
            assert ask(server.server_address, seconds=1) == b"HELLO"
        finally:
            took(server.shutdown, 2)
            again.join(2)


def test_shutdowns_from_many_threads_end_one_run_and_not_the_next(ss: ModuleType) -> None:
    server = ss.TCPServer(LOCAL, upper)
    with serving(server):
        callers = [threading.Thread(target=server.shutdown, daemon=True) for _ in range(10)]
        begun = time.monotonic()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(2)
        assert time.monotonic() - begun < 0.3
        again = threading.Thread(target=server.serve_forever, daemon=True)
        again.start()
        assert ask(server.server_address, seconds=1) == b"HELLO"
        took(server.shutdown, 2)
        again.join(2)


def test_the_flag_that_programs_set_themselves_ends_an_idle_loop_at_once(ss: ModuleType) -> None:
    seconds = []
    for _ in range(3):
        server = ss.TCPServer(LOCAL, upper)
        with serving(server) as thread:
            begun = time.monotonic()
            server._BaseServer__shutdown_request = True
            thread.join(2)
            seconds.append(time.monotonic() - begun)
    assert min(seconds) < AT_ONCE


def test_an_idle_loop_does_not_ask_its_selector_again(ss: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float | None] = []

    class Counting(selectors.PollSelector):
        def select(self, timeout: float | None = None) -> Any:
            calls.append(timeout)
            return super().select(timeout)

    monkeypatch.setattr(ss, "_ServerSelector", Counting)
    with serving(ss.TCPServer(LOCAL, upper), poll_interval=0.02):
        before = len(calls)
        assert not until(lambda: len(calls) > before, timeout=0.4)


def test_the_kernel_does_not_wake_the_thread_of_an_idle_loop(ss: ModuleType) -> None:
    with serving(ss.TCPServer(LOCAL, upper), poll_interval=0.02) as thread:
        status = Path(f"/proc/self/task/{thread.native_id}/status")

        def switches() -> int:
            return int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

        before = switches()
        assert not until(lambda: switches() > before + 3, timeout=0.4)


@pytest.mark.regression
@pytest.mark.parametrize("where", ["on the class", "on the instance"])
def test_overridden_service_actions_is_still_called_every_poll_interval(ss: ModuleType, where: str) -> None:
    calls: list[float] = []
    if where == "on the class":
        server = made(ss.TCPServer, upper, service_actions=lambda self: calls.append(time.monotonic()))
    else:
        server = ss.TCPServer(LOCAL, upper)
        server.service_actions = lambda: calls.append(time.monotonic())
    with serving(server, poll_interval=0.03):
        assert until(lambda: len(calls) >= 8, timeout=5)
    assert calls[7] - calls[0] > 7 * 0.02  # and not more often


@pytest.mark.regression
def test_no_request_is_taken_once_the_flag_is_set(ss: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """bpo-35017: the wish to stop came while the loop waited, and a client at the same moment."""

    class StopsWhenReady(selectors.PollSelector):
        def select(self, timeout: float | None = None) -> Any:
            ready = super().select(timeout)
            if ready:
                server._BaseServer__shutdown_request = True
            return ready

    monkeypatch.setattr(ss, "_ServerSelector", StopsWhenReady)
    taken: list[object] = []
    server = made(ss.TCPServer, upper, verify_request=lambda self, *what: taken.append(what))
    with serving(server) as thread, connected(server.server_address):
        thread.join(3)
        assert not thread.is_alive()
    assert taken == []


@pytest.mark.regression
def test_control_c_leaves_the_loop_as_an_exception(ss: ModuleType) -> None:
    with program(STOPPED_BY_CONTROL_C, ss, seconds=5) as process:
        assert line_of(process) == "starting"
        assert until(lambda: _sleeps(process.pid))
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "interrupted"
        assert process.wait(5) == 0


@pytest.mark.parametrize("end", ["shutdown", "server_close"])
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "UDPServer"])
def test_handle_request_returns_when_another_thread_ends_its_server(ss: ModuleType, kind: str, end: str) -> None:
    server = getattr(ss, kind)(LOCAL, upper)
    try:
        waiting = threading.Thread(target=server.handle_request, daemon=True)
        waiting.start()
        assert until(lambda: is_waiting(waiting), 2)
        ending = threading.Thread(target=getattr(server, end), daemon=True)
        ending.start()
        waiting.join(1)
        assert not waiting.is_alive()
        ending.join(1)
        assert not ending.is_alive()
    finally:
        server.server_close()

"""The blocking loop: it waits until something is ready or somebody wakes it, and holds nothing once closed."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from portico._loop import Loop, Waker

from .commands import running


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop(selectors.DefaultSelector) as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_waiting_returns_the_callbacks_of_what_is_ready(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    callback = list[object]().clear
    assert loop.watch(pair[0], callback) == pair[0].fileno()
    assert loop.wait(0) == []
    pair[1].send(b"x")
    ((key, _),) = loop.wait(10)
    assert key.data == callback
    loop.unwatch(pair[0].fileno())
    assert loop.wait(0) == []


def test_unwatching_what_is_not_watched_is_no_fault(loop: Loop) -> None:
    loop.unwatch(12345)
    loop.close()
    loop.unwatch(12345)


def test_a_closed_object_cannot_be_watched(loop: Loop) -> None:
    with socket.socket() as closed:
        pass
    with pytest.raises(ValueError, match="-1"):
        loop.watch(closed, print)


def test_a_descriptor_number_given_out_again_is_watched_anew(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    first, other = socket.socketpair()
    number = first.fileno()
    loop.watch(first, print)
    first.close()  # behind the loop's back
    with other:
        os.dup2(pair[0].fileno(), number)
        try:
            callback = list[object]().clear
            loop.watch(number, callback)
            pair[1].send(b"x")
            assert [key.data for key, _ in loop.wait(10)] == [callback]
        finally:
            loop.unwatch(number)
            os.close(number)


def test_another_thread_wakes_a_loop_that_waits_for_ever(loop: Loop) -> None:
    waker = threading.Thread(target=loop.wake)
    waker.start()
    ((key, _),) = loop.wait(None)
    waker.join()
    key.data()
    assert loop.wait(0) == []


def test_a_wake_up_before_the_wait_is_not_lost(loop: Loop) -> None:
    loop.wake()
    assert len(loop.wait(10)) == 1


def test_a_signal_handler_may_wake_the_loop_in_its_own_thread(loop: Loop) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: loop.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        assert len(loop.wait(10)) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_waking_never_blocks_however_often_it_is_done(loop: Loop) -> None:
    for _ in range(10_000):  # more than the socket's buffer holds
        loop.wake()
    ((key, _),) = loop.wait(10)
    key.data()
    assert loop.wait(0) == []


def test_waking_a_closed_loop_touches_no_descriptor() -> None:
    waker = Waker()
    waker.close()
    here, there = socket.socketpair()  # most likely the very same numbers
    with here, there:
        waker.wake()
        waker.clear()
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(1)


def test_a_wait_with_a_timeout_ends_in_time(loop: Loop) -> None:
    start = time.monotonic()
    assert loop.wait(0.01) == []
    assert time.monotonic() - start < 5


SIGNALLED_ELSEWHERE = """
import signal, socket, sys, threading
import portico

class Waits(portico.BaseRequestHandler):
    def handle(self):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # of all threads, this one alone takes it
        self.request.sendall(b"ready")
        self.request.recv(1)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
server = portico.ThreadingTCPServer(("127.0.0.1", 0), Waits, daemon_threads=True)
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
print(server.server_address[1], flush=True)
server.serve_forever()
print("ended", flush=True)
"""


def test_a_signal_that_another_thread_takes_wakes_the_loop() -> None:
    """Its handler runs in the main thread, which is asleep in the loop: the kernel has not interrupted that one."""
    command = [sys.executable, "-c", SIGNALLED_ELSEWHERE]
    with running(command, ready=r"^\d+$") as (process, lines):
        with socket.create_connection(("127.0.0.1", int(lines[0])), 10) as client:
            assert client.recv(5) == b"ready"
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            assert process.stdout.readline() == "ended\n"
        assert process.wait(10) == 0


def test_another_loops_wish_to_be_told_of_signals_is_respected() -> None:
    with socket.socket() as mine:
        mine.setblocking(False)
        before = signal.set_wakeup_fd(mine.fileno())
        try:
            Loop(selectors.DefaultSelector).close()
            assert signal.set_wakeup_fd(mine.fileno()) == mine.fileno()
        finally:
            signal.set_wakeup_fd(before)

"""The seam to the operating system: each method does what its name says, once, for real."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import warnings

import pytest

from portico._system import System

from .waiting import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and epoll are Linux's")


def test_a_forked_child_ends_at_once_with_its_status_and_is_reaped_once() -> None:
    system = System()
    pid = system.fork()
    if pid == 0:
        system.exit_at_once(3)
    assert until(lambda: system.exit_status(pid) is not None)
    assert system.exit_status(pid) == 0  # gone is gone, whoever waited for it


def test_a_running_child_is_not_reaped_until_it_ends() -> None:
    system, (reader, writer) = System(), os.pipe()
    pid = system.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        system.exit_at_once(0)
    os.close(reader)
    assert system.exit_status(pid) is None
    os.close(writer)
    assert system.exit_status(pid, block=True) is not None


@linux
def test_a_pidfd_becomes_readable_when_the_child_ends() -> None:
    system, (reader, writer) = System(), os.pipe()
    pid = system.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        system.exit_at_once(0)
    os.close(reader)
    descriptor, watched = system.pidfd(pid), system.descriptor_set()
    assert descriptor is not None
    assert watched is not None
    with watched:
        watched.register(descriptor, select.EPOLLIN)
        assert watched.poll(0) == []
        os.close(writer)
        assert watched.poll(10) == [(descriptor, select.EPOLLIN)]
    os.close(descriptor)
    assert system.exit_status(pid) is not None


@linux
def test_there_is_no_pidfd_of_a_process_that_does_not_exist() -> None:
    assert System().pidfd(2**22 + 1) is None


def test_forking_beside_threads_raises_no_warning_even_where_warnings_are_errors() -> None:
    system, stay = System(), threading.Event()
    other = threading.Thread(target=stay.wait)
    other.start()
    try:
        assert system.threads() >= 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pid = system.fork()
            if pid == 0:
                system.exit_at_once(0)
        assert system.exit_status(pid, block=True) is not None
    finally:
        stay.set()
        other.join()


def test_the_clock_and_the_process_are_pythons_own() -> None:
    system = System()
    before = time.monotonic()
    system.sleep(0)
    assert before <= system.monotonic() <= time.monotonic()
    assert system.pid() == os.getpid()
    assert system.environ is os.environ


def test_a_signal_handler_is_put_in_place_of_the_one_before() -> None:
    system, seen = System(), []
    before = system.on_signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        assert callable(system.on_signal(signal.SIGUSR1, before))
    assert signal.getsignal(signal.SIGUSR1) == before

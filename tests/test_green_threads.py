"""Further green threads of a handler, and its timeout blocks: `green.spawn`, `join`, `green.timeout`."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from greenlet import GreenletExit

import portico
from portico import green

from .loops import LOOPBACK, LOOPS, ask, connected
from .waiting import until

Make = Callable[..., Any]
Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest) -> Make:
    """`server(handler)`: a green TCP server, on one loop and on the other."""

    def make(handler: Any, **values: Any) -> Any:
        return portico.GreenTCPServer(LOOPBACK, handler, event_loop=request.param, **values)

    return make


@pytest.fixture
def run(server: Make) -> Run:
    """`run(function)`: what it returns when it runs as a handler; what it raises."""

    def run(function: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def handler(*_: Any) -> None:
            try:
                found.append(function())
            except BaseException as error:
                found.append(error)

        with server(handler).background() as serving:
            assert ask(serving) == b""
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return run


# -- spawn and join


def test_join_returns_the_result_however_often(run: Run) -> None:
    def work() -> list[Any]:
        thread = green.spawn(lambda a, b, c, d: a + b + c + d, 1, 2, 3, 4)
        early = thread.join()
        return [early, thread.join(), green.spawn(dict).join(), green.spawn(len, "ab").join()]

    assert run(work) == [10, 10, {}, 2]


def test_a_spawned_thread_begins_when_its_maker_waits(run: Run) -> None:
    def work() -> list[str]:
        steps: list[str] = []
        thread = green.spawn(steps.append, "child")
        steps.append("maker")
        thread.join()
        return steps

    assert run(work) == ["maker", "child"]


@pytest.mark.parametrize("error", [LookupError("not there"), SystemExit(3), asyncio.CancelledError(), GreenletExit()])
def test_join_raises_what_the_thread_ended_with(run: Run, error: BaseException) -> None:
    def fail() -> None:
        green.sleep(0)
        raise error

    def work() -> None:
        thread = green.spawn(fail)
        for _ in range(2):
            with pytest.raises(type(error)) as raised:
                thread.join()
            assert raised.value is error

    run(work)


def test_several_may_join_one_thread(run: Run) -> None:
    def work() -> list[Any]:
        event = asyncio.Event()
        slow = green.spawn(green.wait_for, event.wait())
        joiners = [green.spawn(slow.join) for _ in range(3)]
        green.sleep(0)
        event.set()
        return [joiner.join() for joiner in joiners]

    assert run(work) == [True] * 3


def test_a_join_that_is_interrupted_leaves_the_thread_alone(run: Run) -> None:
    def work() -> str:
        event = asyncio.Event()
        slow = green.spawn(green.wait_for, event.wait())
        with pytest.raises(TimeoutError), green.timeout(0.01):
            slow.join()
        event.set()
        green.sleep(0)  # it wakes its joiners, of whom none is left
        return f"{slow.join()}"

    assert run(work) == "True"


def test_a_thread_may_be_awaited_in_a_coroutine(run: Run) -> None:
    steps: list[str] = []

    async def wait(thread: green.GreenThread) -> str:
        await thread
        return f"then {steps}"

    def child() -> None:
        green.sleep(0.001)
        steps.append("child")

    assert run(lambda: green.wait_for(wait(green.spawn(child)))) == "then ['child']"


def test_a_thread_cannot_wait_for_itself(run: Run) -> None:
    """As in `threading`; it would wait for ever."""

    def work() -> None:
        threads: list[green.GreenThread] = []
        threads.append(green.spawn(lambda: threads[0].join()))
        with green.timeout(5):
            threads[0].join()

    with pytest.raises(RuntimeError):
        run(work)


def test_a_child_has_a_copy_of_the_context(run: Run) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")

    def child() -> str:
        before = variable.get()
        variable.set("child's")
        return before

    def work() -> list[str]:
        variable.set("maker's")
        return [green.spawn(child).join(), variable.get()]

    assert run(work) == ["maker's", "maker's"]


@pytest.mark.alerts
def test_an_exception_that_nobody_joins_harms_nobody_and_is_told(
    server: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Any, *_: Any) -> None:
        green.spawn(divmod, 1, 0)
        green.sleep(0)
        request.sendall(b"served")

    with server(handler).background() as serving:
        assert [ask(serving) for _ in range(3)] == [b"served"] * 3
    assert [record.getMessage()[:22] for record in caplog.records] == ["a spawned green thread"] * 3
    assert "ZeroDivisionError" in caplog.text


def test_a_thread_is_true_before_and_after_it_runs(run: Run) -> None:
    def work() -> list[bool]:
        thread = green.spawn(int)
        before = bool(thread)
        thread.join()
        return [before, bool(thread)]

    assert run(work) == [True, True]


def test_one_that_is_joined_is_told_to_nobody_else(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        with pytest.raises(ZeroDivisionError):
            green.spawn(divmod, 1, 0).join()

    run(work)
    assert not caplog.records


def test_children_end_with_their_server(server: Make) -> None:
    steps: list[str] = []

    def child() -> None:
        try:
            steps.append("child waits")
            green.sleep(1000)
        except GreenletExit:
            steps.append("child ends")
            raise

    def handler(*_: Any) -> None:
        green.spawn(child)

    with server(handler, drain_timeout=0).background() as serving:
        assert ask(serving) == b""  # the request has ended, its child has not
        assert until(lambda: steps)
        serving.server_close()
        assert steps == ["child waits", "child ends"]


def test_two_threads_may_use_one_socket_one_reading_one_writing(server: Make) -> None:
    data = bytes(range(256)) * 8000

    def handler(request: Any, *_: Any) -> None:
        writer = green.spawn(request.sendall, data)
        received = 0
        while piece := request.recv(65536):
            received += len(piece)
        writer.join()
        request.sendall(b"%d" % received)

    with server(handler).background() as serving, connected(serving) as client:
        client.sendall(data)  # more than the buffers hold: it ends only if the handler reads while it writes
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            assert answer.read() == data + b"%d" % len(data)


# -- timeout blocks


def elapsed(function: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        function()
    return time.monotonic() - began


def test_a_block_that_lasts_too_long_raises_where_it_waits(run: Run) -> None:
    def work() -> float:
        with green.timeout(0.05):
            green.sleep(30)
        raise AssertionError("not interrupted")

    assert 0.05 <= elapsed(lambda: run(work)) < 5


def test_whatever_a_block_waits_for_is_interrupted(server: Make) -> None:
    interrupted: list[int] = []

    def handler(request: Any, *_: Any) -> None:
        release, lock = threading.Event(), asyncio.Lock()
        green.wait_for(lock.acquire())
        waits: list[Callable[[], Any]] = [
            lambda: request.recv(1),
            lambda: request.recv_into(bytearray(1)),
            lambda: request.sendall(bytes(30_000_000)),
            lambda: green.wait_for(asyncio.sleep(30)),
            lambda: green.spawn(green.sleep, 30).join(),
            lambda: green.in_thread(release.wait, 30),
            lambda: green.wait_for(lock.acquire()),
        ]
        for number, wait in enumerate(waits):
            try:
                with green.timeout(0.01):
                    wait()
            except TimeoutError:
                interrupted.append(number)
        release.set()

    with server(handler, drain_timeout=0).background() as serving, connected(serving) as client:
        assert until(lambda: len(interrupted) == 7), interrupted
        client.close()


def test_a_block_that_ends_in_time_raises_nothing_later(run: Run) -> None:
    def work() -> str:
        with green.timeout(0.01):
            green.sleep(0)
        green.sleep(0.03)
        return "undisturbed"

    assert run(work) == "undisturbed"


def test_an_alarm_that_rang_while_the_block_ran_raises_nothing_after_it(run: Run) -> None:
    """It rings while others have their turn, and before this thread has its own it has left the block."""

    def work() -> str:
        for _ in range(50):
            try:
                with green.timeout(0.001):
                    green.sleep(0.001)  # which of the two wakes it is open
            except TimeoutError:
                pass
            green.sleep(0)
            green.wait_for(asyncio.sleep(0))
        return "undisturbed"

    assert run(work) == "undisturbed"


def test_a_block_that_only_computes_is_not_interrupted(run: Run) -> None:
    def work() -> str:
        with green.timeout(0.001):
            end = time.monotonic() + 0.01
            while time.monotonic() < end:
                pass
        green.sleep(0)
        return "undisturbed"

    assert run(work) == "undisturbed"


def test_the_inner_of_two_blocks_may_end_first(run: Run) -> None:
    def work() -> list[str]:
        steps = []
        with green.timeout(30):
            try:
                with green.timeout(0.01):
                    green.sleep(30)
            except TimeoutError:
                steps.append("inner")
            green.sleep(0.01)
            steps.append("outer goes on")
        return steps

    assert run(work) == ["inner", "outer goes on"]


def test_the_outer_of_two_blocks_ends_the_inner_one(run: Run) -> None:
    def work() -> None:
        with green.timeout(0.02):
            with green.timeout(30):
                green.sleep(30)
            raise AssertionError("the inner one swallowed it")

    assert elapsed(lambda: run(work)) < 5


def test_the_outer_of_two_that_ring_at_once_is_not_lost(run: Run) -> None:
    def work() -> list[str]:
        steps = []
        try:
            with green.timeout(0.01):
                try:
                    with green.timeout(0.02):
                        time.sleep(0.05)  # holds the loop: when it runs again, both have rung
                        green.sleep(1)
                except TimeoutError:
                    steps.append("inner")
                green.sleep(1)
                steps.append("the outer one was lost")
        except TimeoutError:
            steps.append("outer")
        return steps

    assert run(work)[-1] == "outer"


def test_a_loop_of_inner_blocks_does_not_outlast_the_outer_one(run: Run) -> None:
    """Try again and again, for so long in all: the way timeouts are nested in practice."""

    def work() -> str:
        stop = time.monotonic() + 2
        try:
            with green.timeout(0.05):
                while time.monotonic() < stop:
                    try:
                        with green.timeout(0.02):
                            green.sleep(30)
                    except TimeoutError:
                        continue
        except TimeoutError:
            return "outer"
        return "the outer one was swallowed"

    assert run(work) == "outer"


def test_a_timeout_blocks_error_is_the_builtin_one_and_the_sockets_own_stays(server: Make) -> None:
    found: list[Any] = []

    def handler(request: Any, *_: Any) -> None:
        request.settimeout(0.01)
        with green.timeout(30):
            try:
                request.recv(1)
            except TimeoutError as error:
                found.append(error)
            assert request.gettimeout() == 0.01
            request.settimeout(None)
            request.sendall(request.recv(10))

    with server(handler).background() as serving, connected(serving) as client:
        assert until(lambda: found)
        client.sendall(b"later")
        assert client.recv(10) == b"later"

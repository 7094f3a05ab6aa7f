"""What a handler may do in a green thread: all that it does in a thread, and the functions of `portico.green`."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import portico
from portico import green

from .contract.flavours import short_folder
from .loops import LOOPBACK, LOOPS, ask, connected, rest_of, together
from .waiting import until

Make = Callable[..., Any]
ANYTHING: Any = object()


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest) -> Make:
    """`server(handler)`: a green TCP server, on one loop and on the other."""

    def make(handler: Any, made: Any = portico.GreenTCPServer, **values: Any) -> Any:
        return made(LOOPBACK, handler, event_loop=request.param, **values)

    return make


def answered(server: Make, function: Callable[[], Any], **values: Any) -> Any:
    """What a function returns that runs as a handler; what it raises."""
    found: list[Any] = []

    def handler(*_: Any) -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    with server(handler, **values).background() as serving:
        assert ask(serving) == b""
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


# -- the same handler


class Session(portico.StreamRequestHandler):
    """A handler as people write them for threads: files, the bare socket, a timeout, state shared under a lock."""

    timeout = 10
    wbufsize = -1
    lock = threading.Lock()
    served: list[Any]

    def setup(self) -> None:
        super().setup()
        self.served.append("setup")

    def handle(self) -> None:
        assert isinstance(self.request, socket.socket)
        assert self.request.gettimeout() == self.timeout
        assert self.request.getpeername() == self.client_address
        for line in self.rfile:
            if line == b"bare\n":
                self.wfile.flush()
                self.request.sendall(b"now " + self.rfile.read(5))
            elif line == b"big\n":
                self.wfile.write(bytes(300_000))
            else:
                self.wfile.write(line.upper())
            with self.lock:
                self.served.append(line)

    def finish(self) -> None:
        self.served.append("finish")
        super().finish()


@pytest.mark.parametrize(
    ("made", "values"),
    [
        (portico.ThreadingTCPServer, {}),
        (portico.GreenTCPServer, {"event_loop": "asyncio"}),
        (portico.GreenTCPServer, {"event_loop": "uvloop"}),
    ],
)
def test_a_handler_for_threads_runs_unchanged(made: Any, values: dict[str, Any]) -> None:
    class Mine(Session):
        served: list[Any] = []  # noqa: RUF012

    with made(LOOPBACK, Mine, **values).background() as serving:
        assert ask(serving, b"one\nbare\n12345big\ntwo\n") == b"ONE\nnow 12345" + bytes(300_000) + b"TWO\n"
    assert Mine.served == ["setup", b"one\n", b"bare\n", b"big\n", b"two\n", "finish"]


def test_all_requests_share_one_thread_and_run_side_by_side(server: Make) -> None:
    here: list[int] = []

    def handler(request: Any, *_: Any) -> None:
        here.append(threading.get_ident())
        request.recv(1)
        request.sendall(b"done")

    with server(handler).background() as serving:
        clients = [connected(serving) for _ in range(20)]
        assert until(lambda: len(here) == 20)  # all of them, before the first has been answered
        for client in reversed(clients):
            client.sendall(b"x")
            assert rest_of(client) == b"done"
            client.close()
    assert len(set(here)) == 1


# -- sleep


def test_sleepers_sleep_side_by_side_and_no_less_than_asked_for(server: Make) -> None:
    slept: list[float] = []

    def handler(*_: Any) -> None:
        began = time.monotonic()
        green.sleep(0.2)
        slept.append(time.monotonic() - began)

    began = time.monotonic()
    with server(handler).background() as serving:
        clients = [connected(serving) for _ in range(20)]
        assert [rest_of(client) for client in clients] == [b""] * 20
        for client in clients:
            client.close()
    assert min(slept) >= 0.2
    assert time.monotonic() - began < 2  # one after the other they would take four


@pytest.mark.parametrize("seconds", [0, -1])
def test_sleeping_for_no_time_lets_the_others_have_a_turn(server: Make, seconds: float) -> None:
    def take_turns() -> list[str]:
        turns: list[str] = []

        def take(name: str) -> None:
            for _ in range(3):
                turns.append(name)
                green.sleep(seconds)

        threads = [green.spawn(take, name) for name in "ab"]
        for thread in threads:
            thread.join()
        return turns

    assert answered(server, take_turns) == ["a", "b"] * 3


# -- connect


def test_a_handler_connects_out_and_lets_others_run(server: Make) -> None:
    def forward(request: Any, *_: Any) -> None:
        with green.connect(behind.server_address) as out:
            assert out.gettimeout() is None
            out.sendall(request.recv(100))
            request.sendall(b"<" + out.recv(100) + b">")

    # Both on one loop: a blocking call in the one would keep the other from answering.
    behind = server(lambda request, *_: request.sendall(request.recv(100).upper()))
    front = server(forward)
    with together(front, behind):
        assert ask(front, b"hello") == b"<HELLO>"


def test_a_connection_out_has_its_timeout_from_the_start(server: Make) -> None:
    def wait_in_vain() -> float | None:
        with socket.create_server(LOOPBACK) as silent, green.connect(silent.getsockname(), 0.05) as out:
            with pytest.raises(TimeoutError):
                out.recv(1)
            return out.gettimeout()

    assert answered(server, wait_in_vain) == 0.05


def test_a_host_is_looked_up_and_a_path_is_a_unix_sockets(server: Make) -> None:
    def connect_all(folder: Path) -> None:
        path = str(folder / "socket")
        with (
            socket.create_server(LOOPBACK) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
            green.connect(("localhost", tcp.getsockname()[1])) as by_name,  # ::1 may be tried first, in vain
        ):
            unix.bind(path)
            unix.listen()
            assert by_name.getpeername() == tcp.getsockname()
            with green.connect(path) as out:
                assert out.getpeername() == path

    with short_folder() as folder:
        answered(server, lambda: connect_all(folder))


def test_a_connection_that_fails_raises_what_a_blocking_socket_would(server: Make) -> None:
    def connect_nowhere(address: Any) -> None:
        green.connect(address)

    with socket.socket() as bound:
        bound.bind(LOOPBACK)  # and does not listen
        with pytest.raises(ConnectionRefusedError):
            answered(server, lambda: connect_nowhere(bound.getsockname()))
    with pytest.raises(FileNotFoundError):
        answered(server, lambda: connect_nowhere("/nonexistent/socket"))


# -- wait_for


def test_wait_for_returns_a_coroutines_result(server: Make) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0.001)
        return number * 2

    assert answered(server, lambda: green.wait_for(double(21))) == 42


def test_wait_for_takes_futures_and_raises_their_exceptions(server: Make) -> None:
    def wait() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, LookupError("not there"))
        green.wait_for(future)

    with pytest.raises(LookupError, match="not there"):
        answered(server, wait)


def test_what_is_done_already_is_not_waited_for(server: Make) -> None:
    def wait() -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_result("there")
        return green.wait_for(future)

    assert answered(server, wait) == "there"


def test_an_interrupted_wait_cancels_what_it_waits_for(server: Make) -> None:
    steps: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    def wait() -> None:
        with green.timeout(0.01):
            green.wait_for(endless())

    with pytest.raises(TimeoutError):
        answered(server, wait)
    assert steps == ["cancelled"]


@pytest.mark.alerts
def test_something_that_others_cancel_raises_in_the_handler_only(
    server: Make, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        said = request.recv(10)
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        try:
            green.wait_for(future)
        except asyncio.CancelledError:
            steps.append("cancelled")
            if said == b"raise":
                raise
        request.sendall(b"goes on")

    with server(handler).background() as serving:
        assert ask(serving, b"catch") == b"goes on"
        assert ask(serving, b"raise") == b""
        assert ask(serving, b"catch") == b"goes on"
    assert steps == ["cancelled"] * 3
    assert {record.name for record in caplog.records} <= {"portico"}, caplog.text


def test_asyncios_lock_event_and_queue_work_through_wait_for(server: Make) -> None:
    def use_all() -> list[Any]:
        lock, event, queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue[int](1)
        found: list[Any] = []

        def produce() -> None:
            green.wait_for(lock.acquire())
            found.append("second")
            lock.release()
            for number in range(3):
                green.wait_for(queue.put(number))
            event.set()

        green.wait_for(lock.acquire())
        producer = green.spawn(produce)
        green.sleep(0)
        found.append("first")
        lock.release()
        found += [green.wait_for(queue.get()) for _ in range(3)]
        green.wait_for(event.wait())
        producer.join()
        return found

    assert answered(server, use_all) == ["first", "second", 0, 1, 2]


# -- in_thread


def test_a_blocking_function_runs_in_another_thread_while_others_are_served(server: Make) -> None:
    release, threads = threading.Event(), set[int]()

    def block() -> bytes:
        threads.add(threading.get_ident())
        assert release.wait(10)
        return b"waited"

    def handler(request: Any, *_: Any) -> None:
        threads.add(threading.get_ident())
        request.sendall(green.in_thread(block) if request.recv(10) == b"block" else b"at once")

    with server(handler).background() as serving, connected(serving) as slow:
        slow.sendall(b"block")
        assert until(lambda: len(threads) == 2)
        assert ask(serving, b"") == b"at once"
        release.set()
        assert slow.recv(10) == b"waited"


def test_a_function_in_a_thread_gets_arguments_and_context_and_raises(server: Make) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def function(word: str) -> str:
        return word + variable.get()

    def run() -> str:
        variable.set("context")
        with pytest.raises(ZeroDivisionError):
            green.in_thread(divmod, 1, 0)
        return str(green.in_thread(function, "its "))

    assert answered(server, run) == "its context"


# -- outside


@pytest.mark.parametrize(
    "call",
    [
        lambda: green.sleep(0),
        lambda: green.connect("/nonexistent/socket"),
        lambda: green.in_thread(print),
        lambda: green.spawn(print),
        lambda: green.timeout(1).__enter__(),
        lambda: green.wait_for(ANYTHING),
    ],
)
def test_outside_green_threads_the_functions_say_so(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="no green thread: call it from a handler of a green server"):
        call()


def test_each_request_has_a_context_of_its_own(server: Make) -> None:
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable")
    token = variable.set(b"the starter's")

    async def inside() -> bytes:
        return variable.get()

    def handler(request: Any, *_: Any) -> None:
        before = variable.get()
        variable.set(request.recv(10))
        green.sleep(0.001)  # others run, and set theirs
        request.sendall(before + b" " + variable.get() + b" " + green.wait_for(inside()))

    try:
        with server(handler).background() as serving:
            clients = [connected(serving) for _ in range(5)]
            for number, client in enumerate(clients):
                client.sendall(b"%d" % number)
            for number, client in enumerate(clients):
                assert rest_of(client) == b"the starter's %d %d" % (number, number)
                client.close()
    finally:
        variable.reset(token)

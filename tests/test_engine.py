"""The engine: event loops made, run, shared and closed, and the accept policy on them. For green and async servers."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import portico
from portico._engine import AsyncioLoop
from portico.lifecycle import AcceptPaused, AcceptResumed

from .commands import running
from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread, rest_of, together

Make = Callable[..., Any]


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class AsyncUpper(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        while line := await self.rfile.readline():
            self.wfile.write(line.upper())


WAYS: dict[str, tuple[Any, Any]] = {
    "green": (portico.GreenTCPServer, Upper),
    "async": (portico.AsyncTCPServer, AsyncUpper),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, way: str) -> Make:
    """`server()`: one whose handler answers in upper case; members of its class may be given, and settings."""

    def make(members: dict[str, Any] | None = None, **values: Any) -> Any:
        base, handler = WAYS[way]
        made = type("Mine", (base,), {"event_loop": request.param, **(members or {})})
        return made(LOOPBACK, handler, **values)

    return make


# -- which loop


def test_which_loop_runs_is_a_setting(way: str) -> None:
    loops: list[Any] = []

    def look(*_: Any) -> None:
        loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    async def look_async(*_: Any) -> None:
        look()

    for values in ({"event_loop": "asyncio"}, {"event_loop": "uvloop"}, {}):
        handler = look if way == "green" else look_async
        with WAYS[way][0](LOOPBACK, handler, **values).background() as serving:
            assert ask(serving) == b""
    assert loops == ["asyncio", "uvloop", "uvloop"]


def test_without_uvloop_asyncios_own_does(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    base, handler = WAYS[way]
    with base(LOOPBACK, handler).background() as serving:
        assert ask(serving, b"hello\n") == b"HELLO\n"
    with base(LOOPBACK, handler, event_loop="uvloop") as serving:
        with pytest.raises(portico.PorticoError, match=r"needs uvloop: pip install portico\[fast\]"):
            serving.serve_forever()
        serving.event_loop = "asyncio"  # nothing has been begun that would be in the way now
        with in_a_thread(serving.serve_forever):
            assert ask(serving, b"hello\n") == b"HELLO\n"
            serving.shutdown()


def test_no_loop_is_left_over(server: Make) -> None:
    with server().background() as serving:
        assert ask(serving, b"hello\n") == b"HELLO\n"
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    with server() as serving, in_a_thread(serving.serve_forever):
        assert ask(serving, b"again\n") == b"AGAIN\n"
        serving.shutdown()


@pytest.mark.parametrize("loop", LOOPS)
def test_green_and_async_servers_share_a_loop(loop: str) -> None:
    loops: set[Any] = set()

    def plain(request: Any, *_: Any) -> None:
        loops.add(asyncio.get_running_loop())
        request.sendall(b"green " + request.recv(10))

    async def awaited(request: Any, *_: Any) -> None:
        loops.add(asyncio.get_running_loop())
        await request.sendall(b"async " + await request.recv(10))

    servers: list[Any] = [
        portico.GreenTCPServer(LOOPBACK, plain, event_loop=loop),
        portico.AsyncTCPServer(LOOPBACK, awaited, event_loop=loop),
        portico.GreenTCPServer(LOOPBACK, plain, event_loop=loop),
    ]
    with together(*servers):
        assert [ask(each, b"x") for each in servers] == [b"green x", b"async x", b"green x"]
        servers[0].server_close()  # the others go on
        assert [ask(each, b"x") for each in servers[1:]] == [b"async x", b"green x"]
    assert len(loops) == 1


def test_one_that_cannot_begin_takes_the_others_along_and_leaves_them_usable(server: Make) -> None:
    with server() as fine, server() as closed:
        closed.server_close()
        with pytest.raises(ValueError, match="closed"):
            portico.serve_together([fine, closed])
        with in_a_thread(fine.serve_forever):
            assert ask(fine, b"hello\n") == b"HELLO\n"
            fine.shutdown()


def test_serve_forever_in_a_second_thread_raises(server: Make) -> None:
    with server().background() as serving:
        with pytest.raises(RuntimeError, match="runs in another call"):
            serving.serve_forever()
        assert ask(serving, b"still\n") == b"STILL\n"


def test_every_thread_may_serve_a_server_of_its_own(server: Make) -> None:
    with server().background() as one, server().background() as other:
        assert [ask(each, b"x\n") for each in (one, other)] == [b"X\n"] * 2


# -- inside a program of asyncio's


async def talk(server: Any, said: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server.server_address)
    writer.write(said)
    answer = await reader.readline()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return answer


def test_serving_inside_a_program_of_asyncios(server: Make) -> None:
    async def program() -> list[bytes]:
        with server() as first, server() as second:
            serving = [asyncio.create_task(each.serve_async()) for each in (first, second)]
            answers = [await talk(first, b"hello\n"), await talk(second, b"again\n")]
            first.shutdown()
            await asyncio.wait_for(serving[0], 10)
            answers.append(await talk(second, b"still\n"))
            second.server_close()
            await asyncio.wait_for(serving[1], 10)
            return answers

    assert asyncio.run(program(), debug=True) == [b"HELLO\n", b"AGAIN\n", b"STILL\n"]


@pytest.mark.parametrize("end", ["cancel", "server_close", "shutdown"])
def test_the_end_of_serve_async_ends_its_requests(server: Make, end: str) -> None:
    async def program() -> None:
        with server({"daemon_threads": True}) as serving:
            task = asyncio.create_task(serving.serve_async())
            reader, writer = await asyncio.open_connection(*serving.server_address)
            writer.write(b"hello\n")
            assert await reader.readline() == b"HELLO\n"
            (task.cancel if end == "cancel" else getattr(serving, end))()
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)
            assert await reader.read() == b""
            writer.close()
            assert task.cancelled() == (end == "cancel")

    asyncio.run(program(), debug=True)


def test_serve_async_may_be_awaited_again(server: Make) -> None:
    async def program() -> None:
        with server() as serving:
            for _ in range(3):
                task = asyncio.create_task(serving.serve_async())
                assert await talk(serving, b"hello\n") == b"HELLO\n"
                serving.shutdown()
                await asyncio.wait_for(task, 10)

    asyncio.run(program(), debug=True)


@pytest.mark.parametrize("call", ["serve_forever", "handle_request"])
def test_blocking_calls_inside_a_running_loop_say_what_to_do_instead(server: Make, call: str) -> None:
    async def program() -> None:
        with server({"handle_error": lambda *_: raise_again()}) as serving, connected(serving):
            getattr(serving, call)()

    def raise_again() -> None:
        error = sys.exc_info()[1]
        assert error is not None
        raise error

    with pytest.raises(RuntimeError, match=r"await server\.serve_async"):
        asyncio.run(program())


# -- the accept policy


def test_a_shortage_is_waited_out_and_told_once(server: Make) -> None:
    events: list[Any] = []
    refusals = iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    def get_request(self: Any) -> Any:
        for error in refusals:
            raise error
        return super(type(self), self).get_request()

    members = {"get_request": get_request, "handle_event": lambda self, event: events.append(event)}
    with server(members, accept_pause=0.001).background() as serving:
        assert ask(serving, b"hello\n") == b"HELLO\n"
    about_accepting = (AcceptPaused, AcceptResumed)
    assert [type(event) for event in events if isinstance(event, about_accepting)] == [AcceptPaused, AcceptResumed]


def test_service_actions_are_called_though_nothing_happens(server: Make) -> None:
    called = threading.Semaphore(0)
    with server({"service_actions": lambda _: called.release()}).background(poll_interval=0.001):
        for _ in range(5):
            assert called.acquire(timeout=10)


def test_clients_wait_in_the_backlog_while_the_server_is_not_ready(server: Make) -> None:
    ready = threading.Event()

    def service_actions(self: Any) -> None:
        """Overridden, so that the loop looks again every poll_interval."""

    members = {"ready_to_accept": lambda _: ready.is_set(), "service_actions": service_actions}
    with server(members).background(poll_interval=0.001) as serving, connected(serving) as client:
        client.sendall(b"hello\n")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(10)
        ready.set()
        client.settimeout(10)
        assert client.recv(10) == b"HELLO\n"


@pytest.mark.alerts
def test_a_hooks_exception_ends_the_loop_only_with_stdlib_compat(server: Make) -> None:
    def service_actions(self: Any) -> None:
        raise LookupError("in service_actions")

    with (
        server({"service_actions": service_actions}, stdlib_compat=True) as serving,
        connected(serving),
        pytest.raises(LookupError, match="in service_actions"),
    ):
        serving.serve_forever()
    with server({"service_actions": service_actions}).background() as serving:
        assert ask(serving, b"hello\n") == b"HELLO\n"


def test_a_closed_object_cannot_be_watched_and_a_late_wake_up_is_no_fault() -> None:
    async def make() -> AsyncioLoop:
        engine = AsyncioLoop(asyncio.get_running_loop())
        with socket.socket() as closed:
            pass
        with pytest.raises(ValueError, match="it is closed"):
            engine.watch(closed, print)
        await engine.close()
        return engine

    asyncio.run(make()).wake()


# -- signals

SIGNALLED_ELSEWHERE = """
import signal, sys
import portico
from portico import green

def wait(request, *_):
    request.sendall(b"ready")
    green.in_thread(take_signals)

def take_signals():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # of all threads, this one alone takes it
    while not done: signal.sigtimedwait([signal.SIGUSR1], 0.01)

done = []
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
server = portico.GreenTCPServer(("127.0.0.1", 0), wait, event_loop=sys.argv[1])
signal.signal(signal.SIGTERM, lambda number, frame: (done.append(1), server.shutdown()))
print(server.server_address[1], flush=True)
server.serve_forever()
server.server_close()
print("ended", flush=True)
"""
INTERRUPTED = """
import sys
import portico

class Waits(portico.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"ready")
        self.request.recv(1)
    def finish(self):
        print("finish", flush=True)

server = portico.GreenTCPServer(("127.0.0.1", 0), Waits, event_loop=sys.argv[1])
print(server.server_address[1], flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("interrupted", flush=True)
server.server_close()
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("program", "number", "said"),
    [(SIGNALLED_ELSEWHERE, signal.SIGTERM, "ended\n"), (INTERRUPTED, signal.SIGINT, "finish\ninterrupted\n")],
    ids=["taken by another thread", "Ctrl-C"],
)
def test_a_signal_reaches_a_loop_that_sleeps(loop: str, program: str, number: int, said: str) -> None:
    with running([sys.executable, "-W", "error", "-c", program, loop], ready=r"^\d+$") as (process, lines):
        with socket.create_connection(("127.0.0.1", int(lines[0])), 10) as client:
            assert client.recv(5) == b"ready"
            process.send_signal(number)
            assert process.stdout is not None
            assert process.stdout.read() == said
            assert rest_of(client) == b""
        assert process.wait(10) == 0

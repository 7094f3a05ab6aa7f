"""What waits for the same at once: two readers, a timeout and a result, two servers of one loop, a cancelled end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

import portico
from portico import green
from portico._hub import Expired, current
from portico.errors import HandlerError

from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread, rest_of
from .waiting import until

Make = Callable[..., Any]


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest) -> Make:
    """`server(handler)`: a green TCP server, on one loop and on the other."""

    def make(handler: Any, **values: Any) -> Any:
        return portico.GreenTCPServer(LOOPBACK, handler, event_loop=request.param, **values)

    return make


def test_a_reader_that_is_woken_for_nothing_does_not_throw_out_another(server: Make) -> None:
    """It owns the socket's reads, then another reader comes, then it is switched to without reason."""
    got: list[bytes] = []

    def handler(request: Any, *_: Any) -> None:
        def read() -> None:
            got.append(request.recv(1))

        got.append(request.recv(1))
        first, second = green.spawn(read), green.spawn(read)
        green.sleep(0.01)
        asyncio.get_running_loop().call_soon(first.switch)  # a wake-up is a hint; this is one
        green.sleep(0.01)
        request.sendall(b"go")
        for thread in (first, second):
            thread.join()

    with server(handler).background() as serving, connected(serving) as client:
        client.sendall(b"0")
        assert client.recv(2) == b"go"
        client.sendall(b"1")
        assert until(lambda: len(got) == 2)
        client.sendall(b"2")
        assert rest_of(client) == b""
    assert sorted(got) == [b"0", b"1", b"2"]


def test_a_result_that_came_with_the_timeout_is_not_lost(server: Make) -> None:
    """Both happen in one turn of the loop: the item has left the queue, and must not vanish."""
    found: list[Any] = []

    def handler(*_: Any) -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        loop, me = asyncio.get_running_loop(), current()
        with green.timeout(1000):
            expired = Expired(0)
            loop.call_later(0.01, lambda: (queue.put_nowait("item"), loop.call_soon(me.interrupt, expired)))
            found.append(green.wait_for(queue.get()))
            me.spare(expired)
        found.append(queue.qsize())

    with server(handler).background() as serving:
        assert ask(serving) == b""
    assert found == ["item", 0]


def test_what_a_timeout_cancels_has_ended_when_the_handler_goes_on(server: Make) -> None:
    steps: list[str] = []

    async def awaited() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            steps.append("cleanup begins")
            await asyncio.sleep(0.01)
            steps.append("cleanup ends")

    def handler(*_: Any) -> None:
        with pytest.raises(TimeoutError), green.timeout(0.01):
            green.wait_for(awaited())
        steps.append("goes on")

    with server(handler).background() as serving:
        assert ask(serving) == b""
    assert steps == ["cleanup begins", "cleanup ends", "goes on"]


def test_servers_of_one_program_share_what_parks() -> None:
    """A socket of one server is waited for in a handler of the other, each with a serve_async() of its own."""
    kept: list[Any] = []
    handed = threading.Event()

    def keeps(request: Any, *_: Any) -> None:
        kept.append(request)
        handed.set()
        while request.fileno() >= 0:
            green.sleep(0.005)

    def reads(request: Any, *_: Any) -> None:
        request.sendall(kept[0].recv(5))
        kept[0].close()

    async def program() -> bytes:
        with portico.GreenTCPServer(LOOPBACK, keeps) as one, portico.GreenTCPServer(LOOPBACK, reads) as two:
            serving = [asyncio.create_task(server.serve_async()) for server in (one, two)]
            _, to_first = await asyncio.open_connection(*one.server_address)
            await asyncio.to_thread(handed.wait, 10)
            second, to_second = await asyncio.open_connection(*two.server_address)
            await asyncio.sleep(0.01)
            to_first.write(b"hello")
            answer = await asyncio.wait_for(second.read(), 10)
            for writer in (to_first, to_second):
                writer.close()
            one.shutdown()
            two.shutdown()
            await asyncio.gather(*serving)
            return answer

    assert asyncio.run(program(), debug=True) == b"hello"


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_serve_async_returns_when_its_requests_have_ended(times: int) -> None:
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        try:
            steps.append("waits")
            request.recv(1)
        finally:
            green.sleep(0.02)
            steps.append("ended")

    async def program() -> None:
        with portico.GreenTCPServer(LOOPBACK, handler) as server:
            serving = asyncio.create_task(server.serve_async())
            _, writer = await asyncio.open_connection(*server.server_address)
            while not steps:
                await asyncio.sleep(0.001)
            for _ in range(times):
                serving.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert steps == ["waits", "ended"]
            writer.close()

    asyncio.run(program())


def test_with_stdlib_compat_a_hook_that_raises_ends_the_loop(server: Make) -> None:
    class Mine(portico.GreenTCPServer[Any]):
        def get_request(self) -> Any:
            raise LookupError("of a hook")

    with (
        Mine(LOOPBACK, print, stdlib_compat=True) as serving,
        socket.create_connection(serving.server_address),
        pytest.raises(LookupError, match="of a hook"),
    ):
        serving.serve_forever()


def test_stopping_does_not_wait_for_the_watchdogs_next_look(server: Make) -> None:
    made = server(lambda request, *_: request.sendall(b"x"), blocking_warning=400)
    with made as serving, in_a_thread(serving.serve_forever):
        assert ask(serving) == b"x"
        serving.shutdown()


# -- handlers of the wrong kind


class Plain(portico.AsyncStreamRequestHandler):
    def handle(self) -> None:  # type: ignore[override]
        """Nobody would run this."""


class HalfAsync(portico.StreamRequestHandler):
    async def setup(self) -> None:  # type: ignore[override]
        """Nobody would await this."""


class HalfPlain(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        """Runs."""

    def finish(self) -> None:  # type: ignore[override]
        """Cannot be awaited."""


@pytest.mark.parametrize("handler", [Plain, HalfAsync])
@pytest.mark.parametrize("made", [portico.TCPServer, portico.ThreadingTCPServer, portico.GreenTCPServer])
def test_one_that_is_awaited_in_part_is_refused_by_blocking_servers(made: Any, handler: Any) -> None:
    with pytest.raises(HandlerError, match="is asynchronous"):
        made(LOOPBACK, handler)


@pytest.mark.parametrize("handler", [Plain, HalfPlain])
def test_one_that_cannot_be_awaited_in_part_is_refused_by_async_servers(handler: Any) -> None:
    with pytest.raises(HandlerError, match=r"\(\) is not asynchronous, and AsyncTCPServer awaits it"):
        portico.AsyncTCPServer(LOOPBACK, handler)

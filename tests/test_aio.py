"""A task per request: the async handlers, their sockets and streams, their errors and their end."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import io
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import portico

from .contract.flavours import short_folder
from .waiting import until

LOOPBACK = ("127.0.0.1", 0)


class Upper(portico.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        while line := await self.rfile.readline():
            self.wfile.write(line.upper())
            await self.wfile.drain()


class Echo(portico.AsyncBaseRequestHandler):
    async def handle(self) -> None:
        while data := await self.request.recv(65536):
            await self.request.sendall(data)


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`server(handler)`: an async TCP server, on one loop and on the other."""

    def make(handler: Any, made: Any = portico.AsyncTCPServer, **values: Any) -> Any:
        return made(LOOPBACK, handler, event_loop=request.param, **values)

    return make


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def connected(server: Any) -> socket.socket:
    return socket.create_connection(server.server_address, 10)


def ask(server: Any, said: bytes) -> bytes:
    with connected(server) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


# -- handlers


def test_a_stream_handler_has_asyncios_streams(server: Callable[..., Any]) -> None:
    with server(Upper).background() as serving:
        assert ask(serving, b"one\ntwo\n") == b"ONE\nTWO\n"


def test_streams_send_at_once_on_either_loop(server: Callable[..., Any]) -> None:
    class Tell(portico.AsyncStreamRequestHandler):
        async def handle(self) -> None:
            sock = self.wfile.get_extra_info("socket")
            self.wfile.write(b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with server(Tell).background() as serving:
        assert ask(serving, b"") == b"1"


def test_the_request_of_a_base_handler_is_a_socket_to_await(server: Callable[..., Any]) -> None:
    data = bytes(range(256)) * 20_000
    with server(Echo).background() as serving, connected(serving) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        with client.makefile("rb") as answer:
            assert answer.read(len(data)) == data
        sender.join()


def test_the_other_calls_of_the_socket(server: Callable[..., Any], folder: Path) -> None:
    (folder / "file").write_bytes(b"0123456789" * 1000)

    async def handler(request: Any, client_address: Any, server: Any) -> None:
        buffer = bytearray(10)
        count = await request.recv_into(buffer)
        await request.sendall(bytes(buffer[:count]))
        data, _ = await request.recvfrom(5)
        await request.sendall(memoryview(data))
        with (folder / "file").open("rb") as file:
            assert await request.sendfile(file, 5, 7) == 7
        assert await request.sendfile(io.BytesIO(b"abc")) == 3

    with server(handler).background() as serving, connected(serving) as client:
        client.sendall(b"first")
        assert client.recv(5) == b"first"
        client.sendall(b"next")
        with client.makefile("rb") as answer:
            assert answer.read() == b"next" + b"5678901" + b"abc"


def test_a_datagram_handler_reads_and_writes_in_memory(server: Callable[..., Any]) -> None:
    class Shout(portico.AsyncDatagramRequestHandler):
        async def handle(self) -> None:
            await asyncio.sleep(0)
            assert self.data == self.packet
            self.wfile.write(self.rfile.read().upper())

    with (
        server(Shout, portico.AsyncUDPServer).background() as serving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        client.sendto(b"hello", serving.server_address)
        assert client.recv(100) == b"HELLO"


def test_a_unix_peer_whose_queue_is_full_is_waited_for(folder: Path) -> None:
    class Flood(portico.AsyncBaseRequestHandler):
        async def handle(self) -> None:
            for number in range(200):
                await self.request[1].sendto(b"%d" % number, self.client_address)

    server = portico.AsyncUnixDatagramServer(str(folder / "server"), Flood)
    with server.background(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind(str(folder / "client"))
        client.sendto(b"go", str(folder / "server"))
        assert [int(client.recv(10)) for _ in range(200)] == list(range(200))


def test_any_callable_that_returns_an_awaitable_handles(server: Callable[..., Any]) -> None:
    async def greet(word: bytes, request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(word)

    with server(functools.partial(greet, b"hello")).background() as serving:
        assert ask(serving, b"") == b"hello"


def test_requests_are_served_side_by_side(server: Callable[..., Any]) -> None:
    together = asyncio.Barrier(5)

    async def handler(request: Any, *_: Any) -> None:
        async with asyncio.timeout(10):
            await together.wait()
        await request.sendall(b"all here")

    with server(handler).background() as serving:
        clients = [connected(serving) for _ in range(5)]
        assert [client.recv(100) for client in clients] == [b"all here"] * 5
        for client in clients:
            client.close()


# -- the wrong kind


@pytest.mark.parametrize("made", [portico.TCPServer, portico.ThreadingTCPServer, portico.GreenTCPServer])
def test_an_async_handler_is_refused_by_a_blocking_server(made: Any) -> None:
    async def function(*_: Any) -> None: ...

    for handler in (Echo, function, functools.partial(function)):
        with pytest.raises(TypeError, match=f"is asynchronous, and {made.__name__} runs blocking handlers: give it to"):
            made(LOOPBACK, handler)


def test_a_blocking_handler_is_refused_by_an_async_server() -> None:
    class Late(portico.BaseRequestHandler):
        async def handle(self) -> None:  # type: ignore[override]
            """Would be made, and never awaited."""

    with pytest.raises(portico.HandlerError, match=r"handle\(\) blocks, and AsyncTCPServer awaits.*GreenMixIn"):
        portico.AsyncTCPServer(LOOPBACK, portico.StreamRequestHandler)
    with pytest.raises(portico.HandlerError, match="Late must be derived from AsyncStreamRequestHandler"):
        portico.AsyncTCPServer(LOOPBACK, Late)


def test_over_the_standard_librarys_server_the_handler_is_looked_at_when_serving_begins() -> None:
    class Mine(portico.AsyncMixIn, socketserver.TCPServer): ...

    with Mine(LOOPBACK, socketserver.BaseRequestHandler) as server, pytest.raises(portico.HandlerError):
        server.serve_forever()
    with Mine(LOOPBACK, Upper).background() as server:  # type: ignore[arg-type]
        assert ask(server, b"stdlib\n") == b"STDLIB\n"


# -- errors, context, end


@pytest.mark.alerts
def test_an_exception_stays_in_its_request(server: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Any, *_: Any) -> None:
        if await request.recv(10) == b"fail":
            raise LookupError("a bug")
        await request.sendall(b"served")

    with server(handler).background() as serving:
        assert ask(serving, b"fail") == b""
        assert ask(serving, b"fine") == b"served"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "LookupError: a bug" in caplog.text


def test_system_exit_ends_its_request_only(server: Callable[..., Any]) -> None:
    async def handler(request: Any, *_: Any) -> None:
        if await request.recv(10) == b"leave":
            raise SystemExit(3)
        await request.sendall(b"served")

    with server(handler).background() as serving:
        assert ask(serving, b"leave") == b""
        assert ask(serving, b"stay") == b"served"


def test_keyboard_interrupt_ends_serving(server: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def handler(*_: Any) -> None:
        raise KeyboardInterrupt

    with server(handler) as serving, connected(serving), pytest.raises(KeyboardInterrupt):
        serving.serve_forever()
    gc.collect()
    assert not caplog.records  # asyncio tells of what nobody has looked at


def test_each_request_has_a_context_of_its_own(server: Callable[..., Any]) -> None:
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable")
    token = variable.set(b"the starter's")

    async def handler(request: Any, *_: Any) -> None:
        before = variable.get()
        variable.set(b"mine")
        await request.sendall(before)

    try:
        with server(handler).background() as serving:
            assert ask(serving, b"") == b"the starter's"
            assert ask(serving, b"") == b"the starter's"
    finally:
        variable.reset(token)


def test_closing_cancels_the_requests_that_still_wait_when_their_time_is_over(server: Callable[..., Any]) -> None:
    steps: list[str] = []

    class Waits(Upper):
        async def handle(self) -> None:
            steps.append("waits")
            try:
                await self.rfile.read()
            except asyncio.CancelledError:
                steps.append("cancelled")
                raise

        async def finish(self) -> None:
            steps.append("finish")
            await super().finish()

    with server(Waits, drain_timeout=0).background() as serving, connected(serving) as client:
        assert until(lambda: steps)
        serving.server_close()
        assert steps == ["waits", "cancelled", "finish"]
        assert client.recv(10) == b""


def test_closing_tells_an_idle_request_by_the_end_of_its_stream(server: Callable[..., Any]) -> None:
    steps: list[object] = []

    class Waits(Upper):
        async def handle(self) -> None:
            steps.append("waits")
            steps.append(await self.rfile.read())

    with server(Waits).background() as serving, connected(serving) as client:
        assert until(lambda: steps)
        began = time.monotonic()
        serving.server_close()
        assert time.monotonic() - began < 5  # not its drain_timeout
        assert steps == ["waits", b""]
        assert client.recv(10) == b""


def test_shutdown_lets_a_request_come_to_its_end(server: Callable[..., Any]) -> None:
    with server(Upper) as serving, connected(serving) as client:
        loop = threading.Thread(target=serving.serve_forever)
        loop.start()
        client.sendall(b"one\n")
        assert client.recv(10) == b"ONE\n"
        serving.shutdown()
        client.sendall(b"two\n")
        assert client.recv(10) == b"TWO\n"
        client.shutdown(socket.SHUT_WR)
        loop.join(10)
        assert not loop.is_alive()


def test_a_peer_that_does_not_read_does_not_hold_up_the_end(server: Callable[..., Any]) -> None:
    class Fills(Upper):
        async def handle(self) -> None:
            self.wfile.write(bytes(50_000_000))

    with server(Fills, drain_timeout=0.1).background() as serving, connected(serving) as client:
        assert client.recv(1)
        began = time.monotonic()
        serving.server_close()
        assert time.monotonic() - began < 5


def test_handle_request_runs_one_request_to_its_end(server: Callable[..., Any]) -> None:
    with server(Upper) as serving, connected(serving) as client:
        client.sendall(b"one\n")
        client.shutdown(socket.SHUT_WR)
        serving.handle_request()
        assert client.recv(10) == b"ONE\n"


def test_a_streaming_client_does_not_starve_the_others(server: Callable[..., Any]) -> None:
    class Reads(portico.AsyncBaseRequestHandler):
        async def handle(self) -> None:
            while data := await self.request.recv(1000):
                if len(data) < 10:
                    await self.request.sendall(data)

    def stream(client: socket.socket) -> None:
        with suppress(OSError):
            for _ in range(100_000):
                client.sendall(bytes(65536))

    with server(Reads).background() as serving, connected(serving) as busy, connected(serving) as other:
        sender = threading.Thread(target=stream, args=(busy,))
        sender.start()
        for _ in range(20):
            other.sendall(b"ping")
            assert other.recv(10) == b"ping"
        busy.shutdown(socket.SHUT_RDWR)
        sender.join()


# -- loops


def test_green_and_async_servers_share_a_loop() -> None:
    loops: set[object] = set()

    class GreenUpper(portico.StreamRequestHandler):
        def handle(self) -> None:
            loops.add(asyncio.get_running_loop())
            self.wfile.write(self.rfile.readline().upper())

    async def upper(request: Any, *_: Any) -> None:
        loops.add(asyncio.get_running_loop())
        await request.sendall((await request.recv(100)).upper())

    servers: list[Any] = [portico.GreenTCPServer(LOOPBACK, GreenUpper), portico.AsyncTCPServer(LOOPBACK, upper)]
    serving = threading.Thread(target=portico.serve_together, args=(servers,))
    serving.start()
    assert [ask(server, b"hello\n") for server in servers] == [b"HELLO\n"] * 2
    for server in servers:
        server.server_close()
    serving.join(10)
    assert not serving.is_alive()
    assert len(loops) == 1


def test_serving_inside_a_program_of_asyncios() -> None:
    async def program() -> bytes:
        with portico.AsyncTCPServer(LOOPBACK, Upper) as server:
            serving = asyncio.create_task(server.serve_async())
            reader, writer = await asyncio.open_connection(*server.server_address)
            writer.write(b"hello\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
            server.shutdown()
            await asyncio.wait_for(serving, 10)
            return answer

    assert asyncio.run(program(), debug=True) == b"HELLO\n"


def test_a_cancelled_serve_async_ends_its_requests() -> None:
    async def program() -> bytes:
        with portico.AsyncTCPServer(LOOPBACK, Upper) as server:
            serving = asyncio.create_task(server.serve_async())
            reader, writer = await asyncio.open_connection(*server.server_address)
            writer.write(b"hello\n")
            answer = await reader.readline()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            rest = await reader.read()
            writer.close()
            return answer + rest

    assert asyncio.run(program()) == b"HELLO\n"


def test_serve_forever_inside_a_running_loop_says_what_to_do_instead() -> None:
    async def program() -> None:
        with portico.AsyncTCPServer(LOOPBACK, Upper) as server:
            server.serve_forever()

    with pytest.raises(RuntimeError, match=r"await server\.serve_async"):
        asyncio.run(program())

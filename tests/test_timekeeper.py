"""Who is to be looked at when: what has ended is not kept until its time would have come."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest

import portico
from portico._connection import Connection
from portico.lifecycle import HookFailed

from .loops import LOOPBACK
from .test_connection_events import no_thread_can_start
from .waiting import until


class Echo(portico.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(10))


def connections_in_memory(server: Any) -> int:
    gc.collect()
    return sum(isinstance(one, Connection) and one.server is server for one in gc.get_objects())


def test_ended_connections_are_not_kept_for_the_sake_of_their_time_limits() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, Echo, idle_timeout=600, connection_timeout=3600).background() as server:
        for _ in range(50):
            with socket.create_connection(server.server_address, 10) as client:
                client.sendall(b"x")
                assert client.recv(10) == b"x"
        assert until(lambda: server.stats().done == 50)
        assert until(lambda: connections_in_memory(server) <= 2)  # the last thread's is let go with the next


@pytest.mark.alerts("request from ")
def test_a_thread_that_could_not_be_started_is_tried_again_with_the_next_connection() -> None:
    class Server(portico.TCPServer[Any]):
        """Its loop is in its own thread, and needs no other one but for time limits."""

    with Server(LOOPBACK, Echo, idle_timeout=0.2).background() as server:
        with no_thread_can_start(), socket.create_connection(server.server_address, 10) as client:
            assert client.recv(1) == b""  # nobody would have watched it
        with socket.create_connection(server.server_address, 10) as client:
            assert client.recv(1) == b""
        assert until(lambda: server.stats().timed_out["idle_timeout"] == 1)


@pytest.mark.alerts("blocking_warning")
def test_a_loop_serves_without_a_watchdog_if_there_is_no_thread_for_one() -> None:
    class Upper(portico.AsyncBaseRequestHandler[Any, Any]):
        async def handle(self) -> None:
            await self.request.sendall((await self.request.recv(10)).upper())

    server = portico.AsyncTCPServer(LOOPBACK, Upper, event_loop="asyncio")
    told: list[Any] = []
    server.handle_event = told.append  # type: ignore[method-assign]

    async def serve() -> None:
        with no_thread_can_start():
            serving = asyncio.ensure_future(server.serve_async())
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(*server.server_address)
        writer.write(b"x")
        assert await reader.read(10) == b"X"
        writer.close()
        server.shutdown()
        await serving

    with server:
        asyncio.run(serve())
    assert [event.hook for event in told if isinstance(event, HookFailed)] == ["blocking_warning"]

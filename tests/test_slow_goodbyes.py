"""Goodbyes that take their time: nobody else waits for them, nor does the drain."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any

import pytest

import portico
from portico import green

from .loops import LOOPBACK, LOOPS, rest_of
from .waiting import until


class GreenSlow(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())
        self.rfile.readline()

    def goodbye(self) -> None:
        green.sleep(30)


class AsyncSlow(portico.AsyncStreamRequestHandler[Any]):
    async def handle(self) -> None:
        self.wfile.write(await self.rfile.readline())
        await self.rfile.readline()

    async def goodbye(self) -> None:
        await asyncio.sleep(30)


@pytest.mark.alerts("goodbye")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("made", "handler"), [(portico.GreenTCPServer, GreenSlow), (portico.AsyncTCPServer, AsyncSlow)]
)
def test_one_that_hangs_is_ended_after_a_second(made: Any, handler: Any, loop: str) -> None:
    with (
        made(LOOPBACK, handler, event_loop=loop).background() as server,
        socket.create_connection(server.server_address, 10) as client,
    ):
        client.sendall(b"x\n")
        assert client.recv(10) == b"x\n"
        began = time.monotonic()
        report = server.drain(20)
        assert rest_of(client) == b""
        assert time.monotonic() - began < 10
    assert (report.cut, report.stuck) == ([], [])


def test_who_waits_for_his_turn_in_a_spread_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Idle(portico.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())
            self.rfile.readline()

    with portico.ThreadingTCPServer(LOOPBACK, Idle, drain_spread=1.6).background() as server:
        clients = [socket.create_connection(server.server_address, 10) for _ in range(4)]
        for client in clients:
            client.sendall(b"x\n")
            assert client.recv(10) == b"x\n"
        assert until(lambda: all(one.is_idle() for one in server.connections()))
        with caplog.at_level(logging.WARNING, "portico"):
            assert server.drain(10).clean
        for client in clients:
            client.close()
    assert "has been waiting" not in caplog.text

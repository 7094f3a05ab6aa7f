"""Fairness: one connection at full speed does not keep the others of its loop waiting, whatever it streams by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import portico
from portico import green

from . import load
from .loops import LOOPBACK, LOOPS
from .waiting import until

PIECE = 100  # so small that the client is always faster, and a further call never has to wait
OTHERS, ROUNDS = 1_000, 1
LIMIT, WORST = 20.0, 500.0  # milliseconds


class Streaming:
    """Handlers that echo, but to a client that says `stream` send without end, and read all that it sends."""

    def __init__(self) -> None:
        self.sent = self.received = 0

    def plain(self, request: Any, *_: Any) -> None:
        while data := request.recv(PIECE):
            if data.startswith(b"stream"):
                green.spawn(self._send, request)
                while data := request.recv(PIECE):
                    self.received += len(data)
                return
            request.sendall(data)

    def _send(self, request: Any) -> None:
        piece = bytes(PIECE)
        while True:
            request.sendall(piece)
            self.sent += PIECE

    async def awaited(self, request: Any, *_: Any) -> None:
        while data := await request.recv(PIECE):
            if data.startswith(b"stream"):
                await asyncio.gather(self._send_awaited(request), self._receive_awaited(request))
            await request.sendall(data)

    async def _send_awaited(self, request: Any) -> None:
        piece = bytes(PIECE)
        while True:
            await request.sendall(piece)
            self.sent += PIECE

    async def _receive_awaited(self, request: Any) -> None:
        while data := await request.recv(PIECE):
            self.received += len(data)


@pytest.mark.alerts("a spawned green thread raised")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["green", "async"])
def test_one_connection_at_full_speed_does_not_keep_the_others_waiting(way: str, loop: str) -> None:
    streaming = Streaming()
    made: Any = portico.GreenTCPServer if way == "green" else portico.AsyncTCPServer
    handler = streaming.plain if way == "green" else streaming.awaited
    with made(LOOPBACK, handler, event_loop=loop).background() as serving, load.running("stream", serving):
        assert until(lambda: streaming.sent > 10 * PIECE and streaming.received > 10 * PIECE)
        before = streaming.sent, streaming.received
        waited = load.finished("pings", serving, OTHERS, ROUNDS)
        assert streaming.sent - before[0] > 100_000  # it has been streaming all the while
        assert streaming.received - before[1] > 100_000
    assert waited["p99"] < LIMIT, waited
    assert waited["worst"] < WORST, waited


# By which calls a green handler may stream; each of them has to give way.
CALLS: dict[str, tuple[Callable[[Any, bytes], Any], Callable[[Any], Any]]] = {
    "send, recv_into": (lambda sock, piece: sock.send(piece), lambda sock: sock.recv_into(bytearray(PIECE))),
    "sendall of a view, recvfrom": (
        lambda sock, piece: sock.sendall(memoryview(piece)) or PIECE,
        lambda sock: len(sock.recvfrom(PIECE)[0]),
    ),
    "sendmsg, recvmsg": (lambda sock, piece: sock.sendmsg([piece]), lambda sock: len(sock.recvmsg(PIECE)[0])),
}


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("side", ["sends", "receives"])
def test_whatever_call_it_streams_by(calls: str, side: str) -> None:
    send, receive = CALLS[calls]
    done = 0

    def handler(request: Any, *_: Any) -> None:
        nonlocal done
        piece = bytes(PIECE)
        while data := request.recv(PIECE):
            if data.startswith(b"stream"):
                while send(request, piece) is not None if side == "sends" else receive(request):
                    done += 1
                return
            request.sendall(data)

    made = portico.GreenTCPServer(LOOPBACK, handler, event_loop="asyncio")
    with made.background() as serving, load.running("stream", serving):
        assert until(lambda: done > 10)
        before = done
        waited = load.finished("pings", serving, 10, 20)
        assert done - before > 1000
    assert waited["p99"] < LIMIT, waited
    assert waited["worst"] < WORST, waited

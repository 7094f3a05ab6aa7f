"""The handlers of the servers under test: they answer lines with the same lines, and obey those that are orders.

    !raise         an exception         !sleep SECONDS  and then an answer    !twice  close the socket, twice
    !write MIB     so much at once      !hold           no answer             !deaf   never end, whatever is raised
    !kill          its own process

In three versions: one that blocks (in a thread, a process, a green thread, or the loop itself), one that awaits its
socket, and one with asyncio's streams. Each says goodbye if its server is made so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import portico

__all__ = ["GOODBYE", "OrderedToFail", "handler_for"]

GOODBYE = b"goodbye\n"

PIECE = bytes(1 << 20)


class OrderedToFail(Exception):
    """What a handler raises that is told to."""


class _Lines:
    """Whole lines out of pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line + b"\n" for line in lines]


class Blocking(portico.BaseRequestHandler[Any, Any]):
    """For threads, processes, and the loop."""

    def handle(self) -> None:
        for line in self.lines():
            order, _, number = line.strip().partition(b" ")
            if not order.startswith(b"!"):
                self.request.sendall(line)
            elif order == b"!twice":
                self.request.close()
                self.request.close()
                return
            else:
                self.obey(order, float(number or 0))

    def lines(self) -> Iterator[bytes]:
        whole = _Lines()
        while data := self.request.recv(65536):
            yield from whole.of(data)

    def obey(self, order: bytes, number: float) -> None:
        if order == b"!raise":
            raise OrderedToFail("as it was told to")
        if order == b"!sleep":
            self.pause(number)
            self.request.sendall(b"slept\n")
        elif order == b"!kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order == b"!write":
            for _ in range(int(number)):
                self.request.sendall(PIECE)
        elif order == b"!deaf":
            while True:
                try:
                    self.pause(60)
                except BaseException:
                    continue

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class Green(Blocking):
    """The same, in a green thread."""

    def pause(self, seconds: float) -> None:
        from portico import green

        green.sleep(seconds)


class _Tasks:
    """The same, in a task: by these three a socket and streams differ."""

    server: Any

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def say(self, data: bytes) -> None:
        raise NotImplementedError

    async def close_twice(self) -> None:
        raise NotImplementedError

    async def handle(self) -> None:
        async for line in self.lines():
            order, _, number = line.strip().partition(b" ")
            if not order.startswith(b"!"):
                await self.say(line)
            elif order == b"!twice":
                await self.close_twice()
                return
            else:
                await self.obey(order, float(number or 0))

    async def lines(self) -> AsyncIterator[bytes]:
        whole = _Lines()
        while data := await self.receive():
            for line in whole.of(data):
                yield line

    async def obey(self, order: bytes, number: float) -> None:
        if order == b"!raise":
            raise OrderedToFail("as it was told to")
        if order == b"!sleep":
            await asyncio.sleep(number)
            await self.say(b"slept\n")
        elif order == b"!write":
            for _ in range(int(number)):
                await self.say(PIECE)
        elif order == b"!deaf":
            while True:
                try:
                    await asyncio.sleep(60)
                except BaseException:
                    continue


class Awaiting(_Tasks, portico.AsyncBaseRequestHandler[Any, Any]):
    async def receive(self) -> bytes:
        data: bytes = await self.request.recv(65536)
        return data

    async def say(self, data: bytes) -> None:
        await self.request.sendall(data)

    async def close_twice(self) -> None:
        self.request.close()
        self.request.close()


class Streaming(_Tasks, portico.AsyncStreamRequestHandler):
    async def receive(self) -> bytes:
        return await self.rfile.read(65536)

    async def say(self, data: bytes) -> None:
        self.wfile.write(data)
        await self.wfile.drain()

    async def close_twice(self) -> None:
        for _ in range(2):
            self.wfile.close()
            await self.wfile.wait_closed()


def handler_for(spec: dict[str, Any]) -> Any:
    """The handler class for a server of this specification."""
    awaits = spec["kind"] == "async"
    made: Any = (
        (Streaming if spec["streams"] else Awaiting) if awaits else Green if spec["kind"] == "green" else Blocking
    )
    if not spec["goodbye"]:
        return made

    def goodbye(self: Any) -> None:
        self.request.sendall(GOODBYE)

    async def goodbye_async(self: Any) -> None:
        await self.say(GOODBYE)

    return type("Polite", (made,), {"goodbye": goodbye_async if awaits else goodbye})

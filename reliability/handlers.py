"""The handlers of the servers under test: they answer lines with the same lines, and obey those that are orders.

    !raise         an exception         !sleep SECONDS  and then an answer    !twice  close the socket, twice
    !write MIB     so much at once      !hold           no answer             !deaf   never end, whatever is raised

In two versions, one that blocks (in a thread, a process, a green thread, or the loop itself) and one that awaits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import portico

__all__ = ["OrderedToFail", "handler_for"]

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


class Awaiting(portico.AsyncBaseRequestHandler[Any, Any]):
    """The same, in a task."""

    async def handle(self) -> None:
        async for line in self.lines():
            order, _, number = line.strip().partition(b" ")
            if not order.startswith(b"!"):
                await self.request.sendall(line)
            elif order == b"!twice":
                self.request.close()
                self.request.close()
                return
            else:
                await self.obey(order, float(number or 0))

    async def lines(self) -> AsyncIterator[bytes]:
        whole = _Lines()
        while data := await self.request.recv(65536):
            for line in whole.of(data):
                yield line

    async def obey(self, order: bytes, number: float) -> None:
        if order == b"!raise":
            raise OrderedToFail("as it was told to")
        if order == b"!sleep":
            await asyncio.sleep(number)
            await self.request.sendall(b"slept\n")
        elif order == b"!write":
            for _ in range(int(number)):
                await self.request.sendall(PIECE)
        elif order == b"!deaf":
            while True:
                try:
                    await asyncio.sleep(60)
                except BaseException:
                    continue


def handler_for(kind: str) -> Any:
    return {"green": Green, "async": Awaiting}.get(kind, Blocking)

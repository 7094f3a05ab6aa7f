"""Datagram servers of every way to run, and clients of theirs: for the tests of datagrams.

What a handler does is written once, a coroutine over the handler itself; where nothing is awaited it never suspends.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

import pytest

import portico
from portico import green

from .crowds import PLAIN, WAYS
from .loops import LOOPBACK

PATIENCE = 10.0
"""Seconds after which something hangs."""
EVERY = ("plain", "threads", "forks", "green-asyncio", "green-uvloop", "async-asyncio", "async-uvloop")
ORDERED = tuple(way for way in EVERY if way not in ("threads", "forks"))
"""Those that handle one datagram after the other, as long as no handler waits."""
ON_LOOPS = tuple(way for way in EVERY if "-" in way)
EVERY_WAY = pytest.mark.parametrize("way", EVERY)

Body = Callable[[Any], Coroutine[Any, Any, object]]


def handler_of(way: str, body: Body, base: Any = None) -> Any:
    """A handler class whose `handle` is this body."""
    if WAYS.get(way, PLAIN).is_async:

        async def handle(self: Any) -> None:
            await body(self)

        return type("AsyncHandler", (base or portico.AsyncBaseRequestHandler,), {"handle": handle})

    def handle_at_once(self: Any) -> None:
        run = body(self)
        try:
            run.send(None)
        except StopIteration:
            return
        raise AssertionError("the body of a handler that blocks has been suspended")

    return type("Handler", (base or portico.BaseRequestHandler,), {"handle": handle_at_once})


async def answer(handler: Any, *arguments: Any) -> int:
    """`sock.sendto(...)`: to the client, if nobody else is named."""
    sock = handler.request[1]
    sent = sock.sendto(*arguments) if len(arguments) > 1 else sock.sendto(*arguments, handler.client_address)
    return int(await sent if isawaitable(sent) else sent)


async def pause(handler: Any, seconds: float = 0.002) -> None:
    """Do something else for so long."""
    if isinstance(handler.server, portico.AsyncMixIn):
        await asyncio.sleep(seconds)
    elif isinstance(handler.server, portico.GreenMixIn):
        green.sleep(seconds)
    else:
        time.sleep(seconds)


async def until_set(handler: Any, event: threading.Event) -> None:
    """Wait for an event of the test's, at most for so long that a test that fails ends."""
    end = time.monotonic() + PATIENCE
    while not event.is_set() and time.monotonic() < end:
        await pause(handler)


async def echo(handler: Any) -> None:
    await answer(handler, handler.request[0])


def made(way: str, body: Body = echo, address: Any = LOOPBACK, members: Any = None, **values: Any) -> Any:
    """A server, bound. `members` are its class's, `base` is its handler's class."""
    way_to_run = WAYS.get(way, PLAIN)
    kind = "UnixDatagramServer" if isinstance(address, str) else "UDPServer"
    base = getattr(portico, way_to_run.prefix + kind)
    server_class = type("Mine", (base,), {**dict(way_to_run.values), **(members or {})})
    return server_class(address, handler_of(way, body, values.pop("base", None)), **{"drain_timeout": 5.0, **values})


@contextmanager
def serving(way: str, body: Body = echo, address: Any = LOOPBACK, members: Any = None, **values: Any) -> Iterator[Any]:
    """A server that serves inside the block."""
    with made(way, body, address, members, **values).background() as server:
        yield server


@contextmanager
def peer(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A client's socket, bound, that hears everybody: a wrong sender is seen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(PATIENCE)
        yield sock


def ask(sock: socket.socket, payload: bytes, to: Any) -> bytes:
    sock.sendto(payload, to)
    return sock.recv(70000)


def heard(sock: socket.socket, number: int) -> list[bytes]:
    """So many datagrams, in the order in which they have come."""
    return [sock.recv(70000) for _ in range(number)]


def silent(*socks: socket.socket) -> bool:
    """Whether nothing more has come to any of them."""
    for sock in socks:
        sock.setblocking(False)
        try:
            sock.recv(70000)
        except BlockingIOError:
            continue
        finally:
            sock.settimeout(PATIENCE)
        return False
    return True


def waits_for(server: Any, payloads: Iterable[bytes], sock: socket.socket) -> None:
    """These are in the server's queue in the kernel before it serves: so they come as one batch."""
    for payload in payloads:
        sock.sendto(payload, server.server_address)


@contextmanager
def looping(server: Any) -> Iterator[threading.Thread]:
    """Serves in a thread inside the block, which the block has to bring to its end."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()

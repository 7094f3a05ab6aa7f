"""Where the body of a test runs: in threads on blocking sockets, or in green threads on green ones. Else all is equal.

One body run in every world proves that a green socket behaves as a blocking one does. `Threads` is the model, `Green`
what is tested: asyncio (with its debug mode on) and uvloop, and on each both ways to learn of readiness.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvloop

import portico
from portico import _engine, green
from portico._event_sets import EpollSet, LoopSet

PATIENCE = 10.0
"""Seconds after which something hangs."""
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
SETS = {"epoll": EpollSet, "loop": LoopSet}
GREEN = [f"{loop}-{kind}" for loop in LOOPS for kind in SETS]
EVERY = ["threads", *GREEN]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname(), PATIENCE)
        there = listener.accept()[0]
    for sock in (here, there):  # a set size does not grow, so that 5 MB are more than fits
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    here.settimeout(None)
    there.settimeout(PATIENCE)
    return here, there


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returned; or its error's class, and number where it has one."""
    try:
        return function(*arguments)
    except OSError as error:
        return (type(error), error.errno) if error.errno else type(error)
    except Exception as error:
        return type(error)


def exactly(sock: Any, size: int) -> bytes:
    """Read so many bytes, or all up to the end."""
    pieces, left = [], size
    while left and (piece := sock.recv(min(left, 65536))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _run(future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)


class World:
    """Runs functions side by side, and owns the sockets that it has made for them."""

    is_green = False

    def __init__(self) -> None:
        self._owned: list[Any] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it in a (green) thread of its own. Those started before have begun by then, if they are green."""
        raise NotImplementedError

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.start(function, *arguments).result(PATIENCE)

    def own(self, *socks: Any) -> Any:
        self._owned += socks
        return socks if len(socks) > 1 else socks[0]

    def adopt(self, sock: socket.socket) -> Any:
        """The same connection as a socket of this world."""
        return self.own(sock)

    def pair(self, make: Callable[[], tuple[socket.socket, socket.socket]] = tcp_pair) -> tuple[Any, socket.socket]:
        """A socket of this world, and a plain one that it is connected to."""
        here, there = make()
        self.own(there)
        there.settimeout(PATIENCE)
        return self.adopt(here), there

    def make(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Any:
        return self.adopt(socket.socket(family, kind))

    def listener(self, backlog: int = 10) -> Any:
        return self.adopt(socket.create_server(("127.0.0.1", 0), backlog=backlog))

    def others_go_on(self) -> None:
        """Whoever else is ready runs, while what has been started before waits."""
        for _ in range(3):
            assert self.run(int) == 0

    def parks(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a call that has to wait, and see others go on meanwhile."""
        future = self.start(call, *arguments)
        self.others_go_on()
        assert not future.done(), future.result()
        return future

    def close(self) -> None:
        self.run(self._close_owned)

    def _close_owned(self) -> None:
        for sock in self._owned:
            with suppress(OSError):  # a blocking call of another thread ends with this, not with close()
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Threads(World):
    def __init__(self) -> None:
        super().__init__()
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        thread = threading.Thread(target=_run, args=(future, function, arguments), daemon=True)
        self._threads.append(thread)
        thread.start()
        return future

    def close(self) -> None:
        super().close()
        for thread in self._threads:
            thread.join(PATIENCE)


class Green(World):
    """Green threads of one request of a server on a loop of its own, in a thread of its own."""

    is_green = True
    loop: asyncio.AbstractEventLoop

    def __init__(self, loop: str, kind: str) -> None:
        super().__init__()
        self.errors: list[dict[str, Any]] = []
        """What the loop has complained of."""
        self._jobs: asyncio.Queue[Any]
        self._ready = threading.Event()
        self._debug = loop == "asyncio"
        self._server = portico.GreenTCPServer(("127.0.0.1", 0), self._boss, blocking_warning=None, drain_timeout=0)
        with pytest.MonkeyPatch.context() as patch, ExitStack() as undo:
            undo.callback(self._server.server_close)
            patch.setattr(_engine, "readiness", SETS[kind])
            self._thread = threading.Thread(target=self._serve, args=(LOOPS[loop],), daemon=True)
            self._thread.start()
            self._client = undo.enter_context(socket.create_connection(self._server.server_address, PATIENCE))
            assert self._ready.wait(PATIENCE)
            undo.pop_all()

    def _serve(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(debug=self._debug, loop_factory=factory) as runner:
            self.loop = runner.get_loop()
            self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
            runner.run(self._server.serve_async())

    def _boss(self, *_: Any) -> None:
        self._jobs = asyncio.Queue()
        self._ready.set()
        while (job := green.wait_for(self._jobs.get())) is not None:
            green.spawn(_run, *job)

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.loop.call_soon_threadsafe(self._jobs.put_nowait, (future, function, arguments))
        return future

    def on_loop(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run it as a callback of the loop: in its thread, but in no green thread."""
        future: Future[Any] = Future()
        self.loop.call_soon_threadsafe(_run, future, function, arguments)
        return future.result(PATIENCE)

    def adopt(self, sock: socket.socket) -> Any:
        return self.own(self.run(lambda: green.GreenSocket(fileno=sock.detach())))

    def close(self) -> None:
        super().close()
        self._server.server_close()
        self._client.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert not self.errors, self.errors


@contextmanager
def world_named(name: str) -> Iterator[Any]:
    world = Threads() if name == "threads" else Green(*name.split("-"))
    try:
        yield world
    finally:
        world.close()

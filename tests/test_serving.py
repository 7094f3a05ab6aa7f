"""A server's side of the loop: how a run begins or fails to, how it ends, and what odd hooks and handlers do to it."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import portico
from portico.errors import HandlerError
from portico.lifecycle import AcceptPaused, Event, HookFailed, State, StateChanged

from .commands import environment
from .waiting import until

LOOPBACK = ("127.0.0.1", 0)
SOON = 0.3
WAYS = ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "GreenTCPServer"]


def upper(request: Any, client_address: Any, server: Any) -> None:
    request.sendall(request.recv(100).upper())


def ask(server: Any, said: bytes = b"hello") -> bytes:
    with socket.create_connection(server.socket.getsockname(), 10) as client:
        client.sendall(said)
        return client.recv(100)


def ended(thread: threading.Thread, seconds: float = 10) -> bool:
    thread.join(seconds)
    return not thread.is_alive()


@contextmanager
def run(server: Any, poll_interval: float | None = 0.5) -> Iterator[threading.Thread]:
    """Serve in a thread, which has begun on entry; it may have ended on exit."""
    begun = threading.Event()
    server._portico_lifecycle.on_start = begun.set
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,), daemon=True)
    thread.start()
    try:
        assert begun.wait(10)
        yield thread
    finally:
        server.server_close()
        assert ended(thread)


# -- a run that cannot begin


class Spiteful(socket.socket):
    """A listener that cannot be looked at, once."""

    spite = True

    def getsockopt(self, *arguments: Any) -> Any:
        if self.spite:
            self.spite = False
            raise LookupError("of the socket")
        return super().getsockopt(*arguments)


@pytest.mark.parametrize("kind", WAYS)
def test_a_run_that_fails_at_its_start_can_be_tried_again(kind: str) -> None:
    with getattr(portico, kind)(LOOPBACK, upper) as server:
        server.socket = Spiteful(fileno=server.socket.detach())
        with pytest.raises(LookupError, match="of the socket"):
            server.serve_forever()
        server.shutdown()  # comes too late to mean anything, and does not wait for what will not be
        with server.background():
            assert ask(server) == b"HELLO"


@pytest.mark.parametrize("kind", WAYS)
def test_so_can_one_whose_handler_was_of_the_wrong_kind(kind: str) -> None:
    async def wrong(*_: Any) -> None:
        raise AssertionError("called")

    with getattr(portico, kind)(LOOPBACK, upper) as server:
        server.RequestHandlerClass = wrong
        with pytest.raises(HandlerError, match="asynchronous"):
            server.serve_forever()
        server.RequestHandlerClass = upper
        with server.background():
            assert ask(server) == b"HELLO"


# -- the end of a run


class Yields:
    """A lock that lets others go first whenever `thread` has given it back."""

    def __init__(self, lock: Any, gate: threading.Event) -> None:
        self._lock = lock
        self._gate = gate
        self.thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread() is self.thread:
            assert self._gate.wait(10)


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "GreenTCPServer"])
def test_a_shutdown_of_one_run_does_not_wait_for_the_end_of_the_next(kind: str) -> None:
    """The thread that calls `shutdown` is held up just after it has asked, until the next run has begun."""
    second = threading.Event()
    begun = iter([lambda: None, second.set])

    def serve_twice() -> None:
        server.serve_forever()
        server.serve_forever()

    with getattr(portico, kind)(LOOPBACK, upper) as server:
        lock = server._portico_lifecycle.lock = Yields(server._portico_lifecycle.lock, second)
        server._portico_lifecycle.on_start = lambda: next(begun)()
        runs = threading.Thread(target=serve_twice, daemon=True)
        runs.start()
        assert ask(server) == b"HELLO"
        lock.thread = threading.Thread(target=server.shutdown, daemon=True)
        lock.thread.start()
        returned = ended(lock.thread, 3)
        assert ask(server) == b"HELLO"  # and the next run was not meant
        server.shutdown()
        assert ended(runs)
    assert returned


class ClosedMeanwhile(socket.socket):
    """Another thread closes it in the middle of what the end of a run does with it."""

    now = False

    def gettimeout(self) -> float | None:
        if self.now:
            self.close()
        return super().gettimeout()


@pytest.mark.parametrize("kind", WAYS)
def test_a_listener_closed_while_a_run_ends_does_not_keep_shutdown_waiting(kind: str) -> None:
    def serve() -> None:
        try:
            server.serve_forever()
        except OSError as error:
            errors.append(error)

    errors: list[OSError] = []
    with getattr(portico, kind)(LOOPBACK, upper) as server:
        server.socket = ClosedMeanwhile(fileno=server.socket.detach())
        runs, stopper = (threading.Thread(target=target, daemon=True) for target in (serve, server.shutdown))
        runs.start()
        assert ask(server) == b"HELLO"
        server.socket.now = True
        stopper.start()
        assert ended(runs)
        returned = ended(stopper, 2)
        server._portico_lifecycle.run.set()  # no thread is left in any case
        assert ended(stopper)
        assert returned, errors
        assert not errors


CLOSED_EARLY = """
import sys, threading, portico

class Second(portico.GreenTCPServer):
    def ready_to_accept(self):
        closing = threading.Thread(target=first.socket.close)
        closing.start()
        closing.join()
        self.shutdown()
        return True

first = portico.GreenTCPServer(("127.0.0.1", 0), print, event_loop=sys.argv[1])
with first, Second(("127.0.0.1", 0), print) as second:
    portico.serve_together([first, second])
print("ended")
"""


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_a_green_server_closed_before_its_loop_has_waited_once_ends_and_not_the_process(event_loop: str) -> None:
    """libuv aborts the process when it is to watch a descriptor that is closed by then."""
    result = subprocess.run(
        [sys.executable, "-c", CLOSED_EARLY, event_loop],
        env=environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr


@pytest.mark.parametrize("poll_interval", [0.5, 30, None])
@pytest.mark.parametrize("kind", WAYS)
def test_a_listener_wrapped_while_serving_serves_on_and_ends_the_loop_when_it_is_closed(
    kind: str, poll_interval: float | None
) -> None:
    class Wrapped(socket.socket):
        pass

    server = getattr(portico, kind)(LOOPBACK, upper)
    with run(server, poll_interval) as thread:
        assert ask(server) == b"HELLO"
        server.socket = Wrapped(fileno=server.socket.detach())
        assert ask(server) == b"HELLO"
        begun = time.monotonic()
        server.socket.close()
        assert ended(thread)
        assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("poll_interval", [0.5, None])
@pytest.mark.parametrize("when", ["before", "while"])
def test_the_same_with_tls(when: str, poll_interval: float | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = portico.ThreadingTCPServer(LOOPBACK, upper)
    if when == "before":
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with run(server, poll_interval) as thread:
        if when == "while":
            server.socket = context.wrap_socket(server.socket, server_side=True)
        begun = time.monotonic()
        server.socket.close()
        assert ended(thread)
        assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("poll_interval", [0.5, None])
@pytest.mark.parametrize("kind", [*WAYS, "UDPServer", "GreenUDPServer"])
def test_an_adopted_socket_that_is_closed_ends_the_loop(kind: str, poll_interval: float | None) -> None:
    made = socket.socket(type=socket.SOCK_DGRAM if "UDP" in kind else socket.SOCK_STREAM)
    made.bind(LOOPBACK)
    handled = threading.Event()
    server = getattr(portico, kind)(made, lambda *_: handled.set())
    with run(server, poll_interval) as thread:
        with socket.socket(type=made.type) as client:
            client.connect(made.getsockname())
            client.send(b"hello")
            if not kind.startswith("Forking"):
                assert handled.wait(10)
        begun = time.monotonic()
        made.close()
        assert ended(thread)
        assert time.monotonic() - begun < SOON


def test_a_listener_taken_away_without_a_word_leaves_shutdown_and_closing_as_they_are() -> None:
    for end in ("shutdown", "server_close"):
        server = portico.TCPServer(LOOPBACK, upper)
        with run(server) as thread, socket.socket(fileno=server.socket.detach()):
            getattr(server, end)()
            assert ended(thread)


@pytest.mark.parametrize("moment", [State.STARTING, State.SERVING])
@pytest.mark.parametrize(
    "base", [portico.TCPServer, portico.ThreadingTCPServer, portico.ForkingTCPServer, portico.GreenTCPServer]
)
def test_a_server_may_be_told_to_drain_in_the_middle_of_its_beginning(base: Any, moment: State) -> None:
    class Mine(base):  # type: ignore[misc]
        def handle_event(self, event: Event) -> None:
            if isinstance(event, StateChanged):
                steps.append(event.after)
                if event.after is moment:
                    self.request_drain()

    steps: list[State] = []
    server = Mine(LOOPBACK, lambda *_: None)
    loop = threading.Thread(target=server.serve_forever, daemon=True)
    loop.start()
    loop.join(10)
    assert not loop.is_alive()
    assert until(lambda: steps[-1] is State.CLOSED)
    begun = [State.STARTING, State.SERVING][: 1 + (moment is State.SERVING)]
    assert steps == [*begun, State.DRAINING, State.CLOSING, State.CLOSED]
    assert server.is_draining()
    server.server_close()


# -- hooks


@pytest.mark.parametrize("name", ["socketserver_ext", "porticoes", "socketserver2", "mine"])
def test_service_actions_of_a_class_from_any_module_is_called(name: str) -> None:
    def service_actions(self: Any) -> None:
        calls.append(1)

    calls: list[int] = []
    service_actions.__module__ = name
    Server = type("Server", (portico.TCPServer,), {"__module__": name, "service_actions": service_actions})
    with Server(LOOPBACK, upper).background(0.01):
        assert until(lambda: len(calls) >= 3)


class Raises(portico.TCPServer):
    """Its `handle_error` passes on what a handler has raised."""

    def __init__(self, handler: Any) -> None:
        super().__init__(LOOPBACK, handler)
        self.events: list[Event] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        raise

    def handle_event(self, event: Event) -> None:
        self.events.append(event)


def test_a_handle_error_that_raises_does_not_make_accepting_pause() -> None:
    def fail(request: Any, *_: Any) -> None:
        request.recv(1)
        raise LookupError("a bug")

    with Raises(fail).background() as server:
        for _ in range(30):
            assert ask(server, b"x") == b""
    assert not [event for event in server.events if isinstance(event, AcceptPaused)]
    assert sum(isinstance(event, HookFailed) for event in server.events) == 30  # but it is told


# -- handlers


class WithFunc(portico.BaseRequestHandler):
    """A method called as the attribute of `functools.partial` that holds what it calls."""

    async def func(self) -> None:
        raise AssertionError("called")

    def handle(self) -> None:
        upper(self.request, self.client_address, self.server)


class RunsItself(portico.BaseRequestHandler):
    """Asynchronous, and knows how to run."""

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        asyncio.run(self.handle())  # type: ignore[arg-type, func-returns-value]

    async def handle(self) -> None:  # type: ignore[override]
        self.request.sendall(self.request.recv(100).upper())


class MadeByNew:
    """No `__init__` at all: the work is done before there would be one."""

    def __new__(cls, *arguments: Any) -> Any:
        upper(*arguments)
        return object.__new__(cls)


class MadeByMeta(type):
    """Its classes are called like functions."""

    def __call__(cls, *arguments: Any) -> Any:
        upper(*arguments)


Called = MadeByMeta("Called", (), {})
HANDLERS: list[Any] = [WithFunc, RunsItself, MadeByNew, Called, functools.partial(WithFunc), functools.partial(upper)]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: getattr(handler, "__name__", repr(handler)[:30]))
def test_a_handler_that_works_is_accepted_whatever_it_looks_like(handler: Any) -> None:
    with portico.TCPServer(LOOPBACK, handler).background() as server:
        assert ask(server) == b"HELLO"


@pytest.mark.parametrize("handler", [dict, namedtuple("Request", "request address server")], ids=["dict", "namedtuple"])
def test_a_class_from_c_or_without_a_constructor_of_its_own_is_a_handler_like_any_other(handler: Any) -> None:
    portico.TCPServer(LOOPBACK, handler).server_close()


@pytest.mark.parametrize("module", ["mine", "socketserver_ext"])
def test_a_constructor_of_ones_own_may_live_in_a_module_of_any_name(module: str) -> None:
    def constructor(self: Any, request: Any, *_: Any) -> None:
        self.request = request
        asyncio.run(self.handle())

    constructor.__module__ = module
    Handler = type("Handler", (RunsItself,), {"__init__": constructor, "__module__": module})
    with portico.TCPServer(LOOPBACK, Handler).background() as server:
        assert ask(server) == b"HELLO"


def test_what_would_never_be_awaited_is_still_refused() -> None:
    class Handler(portico.BaseRequestHandler):
        async def handle(self) -> None:  # type: ignore[override]
            """Nobody would run this."""

    for handler in (Handler, functools.partial(Handler), Handler.handle):
        with pytest.raises(HandlerError, match="is asynchronous"):
            portico.TCPServer(LOOPBACK, handler)

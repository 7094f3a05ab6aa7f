"""What users' subclasses name their own things must not meet anything of ours. On both modules, which must agree.

The names are those that Portico has, or once had, for itself.
"""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import portico

from .faults.serving import LOCAL, ask, serving, took

NAMES = [
    "_adopted", "_batch_size", "_check_handler", "_context", "_emit", "_engine", "_ended", "_hub", "_lifecycle",
    "_keyring", "_lobby", "_loop", "_make_socket", "_may_sleep", "_open", "_overridden", "_own_lifecycle",
    "_receive_flags", "_requests", "_run", "_selector", "_serve", "_serve_in", "_socket_file", "_start", "_state",
    "_stop", "_system", "_ticks", "_wait_to_take", "_watch", "active", "client", "clock", "closing", "context",
    "lifecycle", "lock", "loop", "options", "running", "settings", "state", "stop", "system", "thread",
]  # fmt: skip
LIKELY: dict[str, Callable[[], Any]] = {
    "_stop": threading.Event,
    "_context": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    "_lifecycle": threading.Lock,
    "_open": lambda: True,
    "_loop": lambda: None,
    "_system": lambda: "linux",
}

both = pytest.mark.parametrize("ss", [portico, socketserver], ids=lambda module: module.__name__)


def upper_once(request: Any, client_address: Any, server: Any) -> None:
    request.sendall(request.recv(100).upper())


def assert_works(server: Any) -> None:
    """A request, an orderly end, and the listener is closed."""
    with serving(server, 0.01) as thread:
        assert ask(server.server_address) == b"HELLO"
        assert took(server.shutdown, 5) < 5
        thread.join(5)
        assert not thread.is_alive()
    assert server.fileno() == -1


@both
@pytest.mark.parametrize("when", ["before the constructor", "after it"])
@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_of_any_name_is_the_users_own(ss: ModuleType, name: str, when: str) -> None:
    mine = LIKELY.get(name, object)()

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any) -> None:
            if when == "before the constructor":
                setattr(self, name, mine)
            super().__init__(*arguments)
            setattr(self, name, mine)

        def server_close(self) -> None:
            assert getattr(self, name) is mine
            super().server_close()

    assert_works(Server(LOCAL, upper_once))


@both
@pytest.mark.parametrize("name", NAMES)
def test_a_method_of_any_name_is_the_users_own_and_nobody_calls_it(ss: ModuleType, name: str) -> None:
    called: list[object] = []
    Server = type("Server", (ss.ThreadingTCPServer,), {name: lambda self: called.append(name)})
    assert_works(Server(LOCAL, upper_once))
    assert called == []


@both
def test_a_stop_of_ones_own_may_call_shutdown(ss: ModuleType) -> None:
    class Server(ss.ThreadingTCPServer):  # type: ignore[misc, name-defined]
        def _stop(self) -> None:
            self.shutdown()

    server = Server(LOCAL, upper_once)
    with serving(server, 0.01) as thread:
        assert ask(server.server_address) == b"HELLO"
        assert took(server._stop, 5) < 5
        thread.join(5)
        assert not thread.is_alive()


@both
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_all_of_them_at_once_harm_no_kind_of_server(ss: ModuleType, kind: str) -> None:
    assert_works(type("Server", (getattr(ss, kind),), dict.fromkeys(NAMES, "mine"))(LOCAL, upper_once))


@pytest.mark.parametrize("kind", ["GreenTCPServer", "AsyncTCPServer"])
def test_nor_those_that_only_portico_has(kind: str) -> None:
    async def upper_async(request: Any, client_address: Any, server: Any) -> None:
        await request.sendall((await request.recv(100)).upper())

    handler = upper_async if kind == "AsyncTCPServer" else upper_once
    Server: Any = type("Server", (getattr(portico, kind),), dict.fromkeys(NAMES, "mine"))
    with Server(LOCAL, handler).background() as server:
        assert ask(server.server_address) == b"HELLO"


@both
@pytest.mark.parametrize("name", [*NAMES, "start_tls", "tls"])
def test_a_handlers_attributes_are_its_own_too(ss: ModuleType, name: str) -> None:
    mine = LIKELY.get(name, object)()
    seen: list[object] = []

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            setattr(self, name, mine)
            super().setup()

        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

        def finish(self) -> None:
            super().finish()
            seen.append(getattr(self, name))

    server = ss.TCPServer(LOCAL, Handler)
    with serving(server, 0.01):
        assert ask(server.server_address, b"hello\n") == b"HELLO\n"
    assert seen == [mine]


@both
def test_a_handlers_class_may_have_a_client_and_tls_of_its_own(ss: ModuleType) -> None:
    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        client = "mine"

        @property
        def tls(self) -> bool:
            return False

        def start_tls(self, *arguments: Any) -> str:
            return f"started {arguments}"

        def handle(self) -> None:
            self.wfile.write(f"{self.client} {self.tls} {self.start_tls(1)}".encode())

    server = ss.TCPServer(LOCAL, Handler)
    with serving(server, 0.01):
        assert ask(server.server_address) == b"mine False started (1,)"

"""Odd servers that `socketserver` serves: with addresses of their own, no socket at all, or objects like sockets."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import portico

from .faults.serving import LOCAL, ask, serving, took, upper
from .waiting import until

both = pytest.mark.parametrize("ss", [portico, socketserver], ids=lambda module: module.__name__)


def assert_serves(server: Any) -> None:
    with serving(server, 0.01) as thread:
        assert ask(server.socket.getsockname()) == b"HELLO"
        assert took(server.shutdown, 5) < 5
        thread.join(5)
        assert not thread.is_alive()
    assert server.socket.fileno() == -1


# -- addresses that only the program understands


@both
@pytest.mark.parametrize("address", [None, "whatever", "localhost:80", 80, b"x", {"port": 0}, []], ids=repr)
def test_a_server_that_is_not_bound_needs_no_address(ss: ModuleType, address: Any) -> None:
    server = ss.TCPServer(address, upper, bind_and_activate=False)
    assert server.server_address is address
    server.socket.close()
    server.socket = socket.create_server(LOCAL)
    assert_serves(server)


@both
@pytest.mark.parametrize("address", [None, "whatever"])
def test_a_server_that_is_not_bound_may_get_its_address_and_then_be_bound(ss: ModuleType, address: Any) -> None:
    server = ss.TCPServer(address, upper, bind_and_activate=False)
    server.server_address = LOCAL
    server.server_bind()
    server.server_activate()
    assert_serves(server)


MEANT: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a port": (0, lambda address: ("127.0.0.1", address)),
    "a text": ("127.0.0.1 0", lambda address: (address.split()[0], int(address.split()[1]))),
    "a dict": ({"port": 0}, lambda address: ("127.0.0.1", address["port"])),
    "a list": (["127.0.0.1", 0], tuple),
    "a list of names": (["localhost", "0"], lambda address: (address[0], int(address[1]))),
    "nothing": (None, lambda address: LOCAL),
}


@both
@pytest.mark.parametrize("binds", ["itself", "by the method it overrides"])
@pytest.mark.parametrize("meant", MEANT)
def test_an_overridden_server_bind_makes_of_an_address_what_it_likes(ss: ModuleType, meant: str, binds: str) -> None:
    address, understood = MEANT[meant]

    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        def server_bind(self) -> None:
            assert self.server_address is address
            self.server_address = understood(self.server_address)
            if binds == "itself":
                self.socket.bind(self.server_address)
            else:
                super().server_bind()

    assert_serves(Server(address, upper))


# -- no socket


def piped(*bases: Any) -> Any:
    """A server that takes its requests from a pipe: it has `fileno()`, and no socket."""

    class Pipe(*bases):  # type: ignore[misc]
        def __init__(self, handler: Any) -> None:
            super().__init__("a pipe", handler)
            self.end, self.mouth = os.pipe()

        def fileno(self) -> int:
            return int(self.end)

        def get_request(self) -> tuple[Any, Any]:
            return os.read(self.end, 1), "somebody"

        def server_close(self) -> None:
            if self.end >= 0:
                os.close(self.end)
                os.close(self.mouth)
            self.end = -1

    return Pipe


def assert_pipe_serves(Pipe: Any, handler: Callable[[list[Any]], Any]) -> None:
    seen: list[Any] = []
    server = Pipe(handler(seen))
    for said in (b"abc", b"de"):  # and it can be started again
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        os.write(server.mouth, said)
        assert until(lambda said=said: len(seen) == len(said), 5)
        assert took(server.shutdown, 5) < 5
        thread.join(5)
        assert not thread.is_alive()
        assert sorted(seen) == [said[place : place + 1] for place in range(len(said))]
        seen.clear()
    server.server_close()


def seen_in(seen: list[Any]) -> Any:
    return lambda request, *_: seen.append(request)


@both
@pytest.mark.parametrize("mix_in", [None, "ThreadingMixIn"])
def test_a_base_server_needs_nothing_but_a_descriptor(ss: ModuleType, mix_in: str | None) -> None:
    assert_pipe_serves(piped(*([getattr(ss, mix_in)] if mix_in else []), ss.BaseServer), seen_in)


@pytest.mark.parametrize("base", [portico.BaseServer, socketserver.BaseServer])
def test_nor_with_green_threads(base: Any) -> None:
    assert_pipe_serves(piped(portico.GreenMixIn, base), seen_in)


@pytest.mark.parametrize("base", [portico.BaseServer, socketserver.BaseServer])
def test_nor_with_tasks(base: Any) -> None:
    def handler(seen: list[Any]) -> Any:
        async def handle(request: Any, *_: Any) -> None:
            seen.append(request)

        return handle

    assert_pipe_serves(piped(portico.AsyncMixIn, base), handler)


# -- objects that are like sockets


class Wrapper:
    """Passes on what `socketserver` calls of a socket, and knows nothing else."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def fileno(self) -> int:
        return int(self._wrapped.fileno())

    def close(self) -> None:
        self._wrapped.close()

    def accept(self) -> Any:
        return self._wrapped.accept()

    def getsockname(self) -> Any:
        return self._wrapped.getsockname()

    def recvfrom(self, size: int) -> Any:
        return self._wrapped.recvfrom(size)

    def sendto(self, data: bytes, address: Any) -> int:
        return int(self._wrapped.sendto(data, address))


@both
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_a_listener_may_be_any_object_that_accepts(ss: ModuleType, kind: str) -> None:
    server = getattr(ss, kind)(LOCAL, upper)
    server.socket = Wrapper(server.socket)
    assert_serves(server)


def test_that_of_a_green_server_too() -> None:
    made: Any = portico.GreenTCPServer(LOCAL, upper)
    made.socket = Wrapper(made.socket)
    with made.background() as server:
        assert ask(server.socket.getsockname()) == b"HELLO"
    assert server.fileno() == -1


def back(request: Any, client_address: Any, server: Any) -> None:
    request[1].sendto(request[0].upper(), client_address)


@both
@pytest.mark.parametrize("kind", ["UDPServer", "ThreadingUDPServer", "ForkingUDPServer"])
def test_so_may_be_what_receives_datagrams(ss: ModuleType, kind: str) -> None:
    server = getattr(ss, kind)(LOCAL, back)
    server.socket = Wrapper(server.socket)
    with serving(server, 0.01), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        for number in range(5):
            client.sendto(b"datagram %d" % number, server.server_address)
            assert client.recv(100) == b"DATAGRAM %d" % number
        assert took(server.shutdown, 5) < 5


@both
def test_handle_request_takes_a_datagram_from_such_an_object(ss: ModuleType) -> None:
    with ss.UDPServer(LOCAL, back) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        real, address = server.socket, server.server_address
        server.socket = Wrapper(real)
        server.socket.gettimeout = real.gettimeout  # type: ignore[attr-defined]
        client.settimeout(5)
        client.sendto(b"one", address)
        server.handle_request()
        assert client.recv(100) == b"ONE"

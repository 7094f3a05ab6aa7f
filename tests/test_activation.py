"""Sockets that somebody else opened: a number, systemd's environment, or a socket object."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import pytest

import portico
from portico import _activation
from portico._system import System


class Environment(System):
    """A process that was given sockets."""

    def __init__(self, **environ: str) -> None:
        self._environ = environ

    @property
    def environ(self) -> MutableMapping[str, str]:
        return self._environ

    def pid(self) -> int:
        return 4711


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def ask(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 10) as client:
        client.sendall(b"hello\n")
        return client.recv(100)


def test_a_servers_address_may_be_a_descriptor_that_it_then_owns(listener: socket.socket) -> None:
    address, number = listener.getsockname(), listener.detach()
    os.set_inheritable(number, True)
    with portico.TCPServer(f"fd://{number}", Upper).background() as server:
        assert server.fileno() == number
        assert server.server_address == address
        assert not os.get_inheritable(number)
        assert ask(address) == b"HELLO\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize(
    "text", ["fd://", "fd://x", "fd://-1", "fd://99999", "fd://99999999999999999999", "fd://1.5", "fd://٣"]
)
def test_a_number_that_is_no_open_socket_is_said_so(text: str) -> None:
    with pytest.raises(portico.AddressError, match=text):
        portico.TCPServer(text, Upper)


def test_a_descriptor_that_is_no_socket_is_said_so_and_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(portico.AddressError, match="is no open socket"):
            portico.TCPServer(f"fd://{file.fileno()}", Upper)
        file.write("still open")


def test_a_socket_of_the_wrong_kind_is_refused_and_a_descriptor_of_ours_closed() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        number = os.dup(datagram.fileno())
        with pytest.raises(portico.AddressError, match="TCPServer needs a SOCK_STREAM socket, not a SOCK_DGRAM one"):
            portico.TCPServer(f"fd://{number}", Upper)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        with pytest.raises(portico.AddressError, match="needs a SOCK_STREAM"):
            portico.TCPServer(datagram, Upper)
        assert datagram.fileno() >= 0  # the caller's own


def test_a_bound_socket_is_adopted_listening_or_not() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with portico.TCPServer(bound, Upper).background() as server:
            assert server.socket is bound
            assert ask(server.server_address) == b"HELLO\n"


def test_an_adopted_socket_brings_its_own_family() -> None:
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with portico.TCPServer(listener, Upper).background() as server:
        assert server.address_family == socket.AF_INET6
        assert len(server.server_address) == 4


def test_a_socket_that_is_closed_or_not_bound_is_refused() -> None:
    with socket.socket() as unbound, pytest.raises(portico.AddressError, match="is not bound"):
        portico.TCPServer(unbound, Upper)
    with pytest.raises(portico.AddressError, match="is closed"):
        portico.TCPServer(unbound, Upper)


def test_adopting_makes_no_other_socket_and_keeps_the_settings_off_it(listener: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with portico.TCPServer(listener, Upper, allow_reuse_port=True, request_queue_size=1):
        assert len(os.listdir("/proc/self/fd")) == before
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


# -- systemd; the descriptors begin at 3, which in a test belongs to somebody else, so only the number is looked at

PASSED = {"LISTEN_PID": "4711", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:api"}


@pytest.mark.parametrize(("name", "number"), [("", 3), ("web", 3), ("api", 4), ("unknown", 5)])
def test_systemds_sockets_are_found_by_name(name: str, number: int) -> None:
    assert _activation._systemd_descriptor(name, Environment(**PASSED)) == number


def test_without_names_there_is_the_first_one() -> None:
    passed = Environment(LISTEN_PID="4711", LISTEN_FDS="1")
    assert _activation._systemd_descriptor("", passed) == 3
    assert _activation._systemd_descriptor("unknown", passed) == 3


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(portico.AddressError, match="no socket named 'db' was passed; there are: web, api, unknown"):
        _activation.from_text("systemd://db", Environment(**PASSED))


@pytest.mark.parametrize(
    "wrong",
    [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "many"}],
    ids=str,
)
def test_sockets_that_are_not_meant_for_this_process_are_none(wrong: dict[str, str]) -> None:
    with pytest.raises(portico.AddressError, match="no sockets were passed to this process"):
        _activation.from_text("systemd://", Environment(**{**PASSED, **wrong}))


def test_an_environment_without_any_of_it_is_none() -> None:
    with pytest.raises(portico.AddressError, match="no sockets were passed"):
        _activation.from_text("systemd://web", Environment())


def test_the_server_asks_its_own_system() -> None:
    class Mine(portico.TCPServer):
        _portico_system = Environment(LISTEN_PID="4711", LISTEN_FDS="9", LISTEN_FDNAMES="a:b")

    with pytest.raises(portico.AddressError, match="there are: a, b, unknown"):
        Mine("systemd://nothing", Upper)

"""The kinds of servers: their sockets, addresses and errors; and serving in the background or several at once."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import portico

from .contract.flavours import short_folder
from .waiting import until

LOOPBACK = ("127.0.0.1", 0)


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class Who(portico.BaseRequestHandler):
    """Tells clients who they are."""

    def handle(self) -> None:
        self.request.sendall(repr(self.client_address).encode())


class Back(portico.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"%d" % len(self.packet))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def ask(address: Any, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> bytes:
    with socket.socket(family, kind) as client:
        client.settimeout(10)
        client.connect(address)
        client.sendall(b"hello\n")
        return client.recv(100)


def option(server: Any, name: int, level: int = socket.SOL_SOCKET) -> bool:
    return bool(server.socket.getsockopt(level, name))


# -- addresses and families


def test_the_family_follows_from_the_address_of_any_server(folder: Path) -> None:
    addresses = {("127.0.0.1", 0): socket.AF_INET, ("::1", 0): socket.AF_INET6, str(folder / "a"): socket.AF_UNIX}
    for address, family in addresses.items():
        for made in (portico.TCPServer, portico.UDPServer, portico.ThreadingTCPServer):
            with made(address, Upper) as server:
                assert server.address_family == server.socket.family == family
                assert server.server_address == server.socket.getsockname()


def test_an_ipv6_servers_address_has_four_parts() -> None:
    with portico.TCPServer(("::1", 0), Upper) as server:
        host, port, flow, scope = server.server_address
        assert (host, flow, scope) == ("::1", 0, 0)
        assert port > 0


def test_a_family_that_somebody_has_said_is_not_inferred() -> None:
    class Six(portico.TCPServer):
        address_family = socket.AF_INET6

    class Four(portico.TCPServer):
        def __init__(self, address: Any) -> None:
            self.address_family = socket.AF_INET
            super().__init__(address, Upper)

    with Six(("", 0), Upper) as server:
        assert server.socket.family == socket.AF_INET6
    with pytest.raises(socket.gaierror, match=r"cannot bind tcp://\[::1\]:0"):
        Four(("::1", 0))


def test_a_path_object_is_a_path(folder: Path) -> None:
    with portico.TCPServer(folder / "a.sock", Upper).background() as server:
        assert server.server_address == str(folder / "a.sock")
        assert ask(server.server_address, socket.AF_UNIX) == b"HELLO\n"


@pytest.mark.parametrize("host", ["", "::"])
def test_a_dual_stack_server_takes_both_families(host: str) -> None:
    with portico.TCPServer((host, 0), Who, dual_stack=True).background() as server:
        port = server.server_address[1]
        assert b"'::ffff:127.0.0.1'" in ask(("127.0.0.1", port))
        assert b"'::1'" in ask(("::1", port), socket.AF_INET6)


def test_ipv4_clients_of_a_dual_stack_server_are_shown_as_such_on_request() -> None:
    with portico.TCPServer(("::", 0), Who, dual_stack=True, unmap_ipv4=True).background() as server:
        port = server.server_address[1]
        assert ask(("127.0.0.1", port)).startswith(b"('127.0.0.1', ")
        assert ask(("::1", port), socket.AF_INET6).startswith(b"('::1', ")


@pytest.mark.parametrize("dual_stack", [True, False])
def test_dual_stack_is_the_option_of_an_ipv6_socket(dual_stack: bool) -> None:
    with portico.TCPServer(("::", 0), Upper, dual_stack=dual_stack) as server:
        assert option(server, socket.IPV6_V6ONLY, socket.IPPROTO_IPV6) is not dual_stack
    with portico.TCPServer(LOOPBACK, Upper, dual_stack=dual_stack) as server:
        assert server.address_family == socket.AF_INET


@pytest.mark.parametrize("address", [80, None, "localhost:80", ("127.0.0.1",), b"x", {"port": 0}, [], object])
@pytest.mark.parametrize("made", [portico.TCPServer, portico.ThreadingUDPServer])
def test_what_is_no_address_is_refused_when_it_is_to_be_bound_and_leaves_nothing_open(made: Any, address: Any) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(portico.AddressError, match="is no address") as caught:
        made(address, Upper)
    assert os.listdir("/proc/self/fd") == before
    assert repr(address) in str(caught.value)
    server = made(address, Upper, bind_and_activate=False)
    with server, pytest.raises(portico.AddressError, match="is no address"):
        server.server_bind()


# -- options and errors


@pytest.mark.parametrize(("made", "expected"), [(portico.TCPServer, True), (portico.UDPServer, False)])
def test_addresses_are_reused_for_streams_and_never_for_datagrams(made: Any, expected: bool) -> None:
    with made(LOOPBACK, Upper) as server:
        assert option(server, socket.SO_REUSEADDR) is expected
        assert not option(server, socket.SO_REUSEPORT)
    with made(LOOPBACK, Upper, allow_reuse_address=not expected) as server:
        assert option(server, socket.SO_REUSEADDR) is not expected


@pytest.mark.parametrize("made", [portico.TCPServer, portico.UDPServer])
def test_several_servers_share_a_port_that_all_of_them_allow_to(made: Any) -> None:
    with made(LOOPBACK, Upper, allow_reuse_port=True) as first:
        with made(first.server_address, Upper, allow_reuse_port=True) as second:
            assert second.server_address == first.server_address
        with pytest.raises(OSError, match="Address already in use"):
            made(first.server_address, Upper)


@pytest.mark.parametrize("made", [portico.TCPServer, portico.UDPServer])
def test_an_address_in_use_says_which_and_who_holds_it(made: Any) -> None:
    with made(LOOPBACK, Upper) as holder:
        kind, port = ("tcp" if made is portico.TCPServer else "udp"), holder.server_address[1]
        said = rf"cannot bind {kind}://127\.0\.0\.1:{port}: Address already in use, held by pid {os.getpid()} \("
        with pytest.raises(OSError, match=said) as caught:
            made(holder.server_address, Upper)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_bind_error_keeps_its_class_and_number(folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        portico.UnixStreamServer(str(folder / "no" / "a.sock"), Upper)
    assert missing.value.errno == errno.ENOENT
    with pytest.raises(OSError, match=r"cannot bind tcp://192\.0\.2\.1:0: Cannot assign") as foreign:
        portico.TCPServer(("192.0.2.1", 0), Upper)
    assert foreign.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(socket.gaierror, match=r"cannot bind tcp://no-such-host\.invalid:0: ") as unknown:
        portico.TCPServer(("no-such-host.invalid", 0), Upper)
    assert unknown.value.errno < 0


@pytest.mark.parametrize(("size", "given", "taken"), [(None, 20_000, 20_000), (100, 20_000, 100), (100, 50, 50)])
def test_a_datagram_is_taken_up_to_max_packet_size(size: int | None, given: int, taken: int) -> None:
    values = {} if size is None else {"max_packet_size": size, "deliver_truncated": True}
    server, client = portico.UDPServer(LOOPBACK, Back, **values), socket.socket(type=socket.SOCK_DGRAM)
    with server.background(), client:
        client.settimeout(10)
        client.sendto(bytes(given), server.server_address)
        assert client.recv(100) == b"%d" % taken


def test_peer_credentials_are_those_of_the_client(folder: Path) -> None:
    seen: list[Any] = []

    def handler(request: socket.socket, address: Any, server: Any) -> None:
        seen.append(server.peer_credentials(request))

    with portico.UnixStreamServer(str(folder / "a"), handler) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(server.server_address)
        server.handle_request()
    assert seen == [(os.getpid(), os.getuid(), os.getgid())]
    assert isinstance(seen[0], portico.Credentials)
    for other in (None, (b"", server.socket), socket.socket(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)):
        with pytest.raises(portico.UnavailableError, match="for Unix stream connections only"):
            server.peer_credentials(other)  # type: ignore[arg-type]
        if isinstance(other, socket.socket):
            other.close()


def test_a_closed_server_says_so_by_its_descriptor_and_closes_again() -> None:
    with portico.TCPServer(LOOPBACK, Upper) as server:
        assert server.fileno() == server.socket.fileno() >= 0
    assert server.fileno() == -1
    server.server_close()
    with pytest.raises(ValueError, match="the socket of this TCPServer is closed"):
        server.serve_forever()


def test_a_base_server_without_a_way_to_take_requests_says_so() -> None:
    class Bare(portico.BaseServer):
        pass

    with pytest.raises(NotImplementedError, match="Bare must say in get_request"):
        Bare(LOOPBACK, Upper).get_request()


# -- in the background


def test_the_background_serves_inside_its_block_and_closes_after_it() -> None:
    before = threading.active_count()
    with portico.TCPServer(LOOPBACK, Upper).background() as server:
        assert [thread.name for thread in threading.enumerate()].count("serving TCPServer") == 1
        assert ask(server.server_address) == b"HELLO\n"
    assert server.fileno() == -1
    assert threading.active_count() == before


class Interrupted(portico.TCPServer):
    def service_actions(self) -> None:
        raise KeyboardInterrupt("from the loop")


def test_what_ends_the_loop_is_raised_on_leaving_the_block() -> None:
    server = Interrupted(LOOPBACK, Upper)
    with pytest.raises(KeyboardInterrupt, match="from the loop"), server.background(0.001):
        assert until(lambda: server.fileno() < 0)  # closed: clients must not wait for ever


def test_an_error_of_the_block_itself_is_not_hidden() -> None:
    def wait_and_fail() -> None:
        assert until(lambda: server.fileno() < 0)
        raise LookupError("of the block")

    server = Interrupted(LOOPBACK, Upper)
    with pytest.raises(LookupError, match="of the block") as caught, server.background(0.001):
        wait_and_fail()
    assert caught.value.__notes__ == ["before that, serving had ended with KeyboardInterrupt('from the loop')"]


def test_a_server_that_cannot_start_says_so_on_entering_the_block() -> None:
    server = portico.TCPServer(LOOPBACK, Upper)
    server.server_close()
    entered = False
    with pytest.raises(ValueError, match="is closed"), server.background():
        entered = True
    assert not entered


@pytest.mark.parametrize("made", [portico.TCPServer, portico.ThreadingTCPServer, portico.GreenTCPServer])
def test_the_background_leaves_a_loop_alone_that_runs_already(made: Any) -> None:
    with made(LOOPBACK, Upper).background() as server:
        for _ in range(2):
            entered = False
            with pytest.raises(RuntimeError, match="cannot start"), server.background():
                entered = True
            assert not entered
            assert ask(server.server_address) == b"HELLO\n"


class Late(portico.TCPServer):
    """In the background its loop starts when `gate` is open: just after somebody else's."""

    gate: threading.Event

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        if threading.current_thread().name.startswith("serving "):
            self.gate.wait(10)
        super().serve_forever(poll_interval)


def test_nor_one_that_somebody_else_starts_at_the_same_time() -> None:
    def enter() -> None:
        try:
            background.__enter__()
        except RuntimeError as error:
            raised.append(error)

    raised: list[RuntimeError] = []
    with Late(LOOPBACK, Upper) as server:
        server.gate = threading.Event()
        background = server.background()
        entering = threading.Thread(target=enter)
        entering.start()
        assert until(lambda: server._portico_lifecycle.on_start)  # so far it has come
        theirs = threading.Thread(target=server.serve_forever)
        theirs.start()
        assert ask(server.server_address) == b"HELLO\n"
        server.gate.set()
        entering.join()
        try:
            assert raised
            assert ask(server.server_address) == b"HELLO\n"
        finally:
            server.shutdown()
            theirs.join()
    assert "serving Late" not in [thread.name for thread in threading.enumerate()]


def test_a_server_shut_down_inside_the_block_is_no_error() -> None:
    with portico.TCPServer(LOOPBACK, Upper).background() as server:
        server.shutdown()
        server.shutdown()


def test_the_background_has_the_context_of_whoever_entered_it() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    def tell(request: socket.socket, *_: object) -> None:
        request.recv(100)
        request.sendall(variable.get().encode())

    token = variable.set("mine")
    try:
        with portico.TCPServer(LOOPBACK, tell).background() as server:
            assert ask(server.server_address) == b"mine"
    finally:
        variable.reset(token)


def test_a_server_that_serves_already_cannot_start_again() -> None:
    with portico.TCPServer(LOOPBACK, Upper).background() as server:
        with pytest.raises(RuntimeError, match="a serving server cannot start"):
            server.serve_forever()
        assert ask(server.server_address) == b"HELLO\n"


# -- several at once


@pytest.fixture
def together() -> Iterator[Callable[[list[Any]], threading.Thread]]:
    threads: list[threading.Thread] = []
    served: list[Any] = []

    def start(servers: list[Any]) -> threading.Thread:
        served.extend(servers)
        threads.append(threading.Thread(target=portico.serve_together, args=(servers,)))
        threads[-1].start()
        return threads[-1]

    yield start
    for server in served:
        server.server_close()
    for thread in threads:
        thread.join()


def test_servers_of_several_kinds_are_served_by_one_thread(
    folder: Path, together: Callable[[list[Any]], threading.Thread]
) -> None:
    tcp, unix = portico.TCPServer(LOOPBACK, Upper), portico.ThreadingUnixStreamServer(str(folder / "a"), Upper)
    udp = portico.UDPServer(LOOPBACK, Back)
    thread = together([tcp, unix, udp])
    for _ in range(3):
        assert ask(tcp.server_address) == b"HELLO\n"
        assert ask(unix.server_address, socket.AF_UNIX) == b"HELLO\n"
        assert ask(udp.server_address, kind=socket.SOCK_DGRAM) == b"6"
    tcp.shutdown()
    assert ask(unix.server_address, socket.AF_UNIX) == b"HELLO\n"
    unix.server_close()
    assert ask(udp.server_address, kind=socket.SOCK_DGRAM) == b"6"
    udp.shutdown()
    thread.join(10)
    assert not thread.is_alive()


def test_one_that_cannot_start_leaves_the_others_as_they_were() -> None:
    with portico.TCPServer(LOOPBACK, Upper) as well, portico.TCPServer(LOOPBACK, Upper) as closed:
        closed.server_close()
        with pytest.raises(ValueError, match="is closed"):
            portico.serve_together([well, closed])
        with well.background():
            assert ask(well.server_address) == b"HELLO\n"

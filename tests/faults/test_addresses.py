"""Rows 11, 18, 19, 20 and 22435: families, sockets made by others, and ports that are taken or were just given back."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .serving import LOCAL, ask, connected, descriptors, line_of, made, program, rest, serving, upper

ACTIVATED = """
import os
if "LISTEN_PID" not in os.environ:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:admin")
    for number, given in ((3, sys.argv[2]), (4, sys.argv[3])):
        os.dup2(int(given), number)
    os.execv(sys.executable, sys.orig_argv)
with ss.TCPServer(sys.argv[4], lambda request, address, server: request.sendall(b"served")) as server:
    print(server.server_address[1], server.fileno(), os.get_inheritable(server.fileno()), flush=True)
    server.handle_request()
"""


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")


def _in_time_wait(ss: ModuleType) -> Any:
    """An address on which a server has just closed a connection first, and then itself."""
    server = ss.TCPServer(LOCAL, lambda *what: None)
    with serving(server), connected(server.server_address) as client:
        assert rest(client) == b""
    return server.server_address


@needs_ipv6
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "UDPServer"])
def test_an_ipv6_address_makes_an_ipv6_server(ss: ModuleType, kind: str) -> None:
    with getattr(ss, kind)(("::1", 0), upper) as server:
        assert server.address_family == server.socket.family == socket.AF_INET6


@needs_ipv6
def test_an_ipv6_server_serves(ss: ModuleType) -> None:
    server = ss.TCPServer(("::1", 0), upper)
    with serving(server):
        assert ask(server.server_address) == b"HELLO"


@pytest.mark.parametrize("kind", ["text", "PathLike", "bytes", "abstract name"])
def test_a_unix_address_makes_a_unix_server(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "server"
    address = {
        "text": str(path),
        "PathLike": path,
        "bytes": os.fsencode(path),
        "abstract name": f"\0portico-test-{os.getpid()}",
    }[kind]
    server = ss.TCPServer(address, upper)
    with serving(server):
        assert server.address_family == socket.AF_UNIX
        assert ask(server.socket.getsockname()) == b"HELLO"


@pytest.mark.regression
def test_an_ipv4_name_and_the_empty_host_are_ipv4(ss: ModuleType) -> None:
    for host in ("localhost", ""):
        with ss.TCPServer((host, 0), upper) as server:
            assert server.socket.family == socket.AF_INET


@needs_ipv6
@pytest.mark.regression
@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_family_that_somebody_has_set_is_obeyed(ss: ModuleType, where: str) -> None:
    class Server(ss.TCPServer):  # type: ignore[misc, name-defined]
        if where == "class":
            address_family = socket.AF_INET6

        def __init__(self, *arguments: Any) -> None:
            if where == "instance":
                self.address_family = socket.AF_INET6
            super().__init__(*arguments)

    with Server(("", 0), upper) as server:
        assert server.socket.family == socket.AF_INET6


@needs_ipv6
def test_a_dual_stack_server_is_reached_by_both_families(ss: ModuleType) -> None:
    server = made(ss.TCPServer, upper, ("", 0), dual_stack=True)
    with serving(server):
        port = server.server_address[1]
        assert ask(("127.0.0.1", port)) == b"HELLO"
        assert ask(("::1", port)) == b"HELLO"


@needs_ipv6
def test_ipv4_clients_of_an_ipv6_socket_are_shown_as_ipv4_on_request(ss: ModuleType) -> None:
    def tell(request: Any, client_address: Any, server: Any) -> None:
        request.sendall(repr(client_address).encode())

    settings = {"address_family": socket.AF_INET6, "dual_stack": True, "unmap_ipv4": True}
    server = made(ss.TCPServer, tell, ("::", 0), **settings)
    with serving(server), connected(("127.0.0.1", server.server_address[1])) as client:
        assert rest(client).decode() == repr(client.getsockname())


def test_a_listening_socket_is_adopted_and_no_other_is_made(ss: ModuleType) -> None:
    listener = socket.create_server(LOCAL)
    before = descriptors()
    server = ss.TCPServer(listener, upper)
    with serving(server):
        assert server.socket is listener
        assert server.server_address == listener.getsockname()
        assert ask(server.server_address) == b"HELLO"
    assert descriptors() == before - 1  # and it is the server's to close


def test_a_bound_socket_that_does_not_listen_yet_is_adopted(ss: ModuleType) -> None:
    bound = socket.socket()
    bound.bind(LOCAL)
    server = ss.TCPServer(bound, upper)
    with serving(server):
        assert ask(server.server_address) == b"HELLO"


@pytest.mark.parametrize("family", ["IPv6", "Unix"])
def test_the_family_of_an_adopted_socket_is_its_own(ss: ModuleType, family: str, tmp_path: Path) -> None:
    if family == "IPv6" and not _has_ipv6():
        pytest.skip("no IPv6 here")
    if family == "IPv6":
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "server"))
    server = ss.TCPServer(listener, upper)
    with serving(server):
        assert server.address_family == listener.family
        assert ask(server.server_address) == b"HELLO"


def test_a_descriptor_given_by_number_is_adopted(ss: ModuleType) -> None:
    with socket.create_server(LOCAL) as listener:
        server = ss.TCPServer(f"fd://{os.dup(listener.fileno())}", upper)
        with serving(server):
            assert server.server_address == listener.getsockname()
            assert ask(server.server_address) == b"HELLO"


@pytest.mark.parametrize(("address", "which"), [("systemd://", 0), ("systemd://web", 0), ("systemd://admin", 1)])
def test_sockets_that_systemd_passes_are_adopted_by_name(ss: ModuleType, address: str, which: int) -> None:
    with socket.create_server(LOCAL) as web, socket.create_server(LOCAL) as admin:
        given = [fcntl.fcntl(listener, fcntl.F_DUPFD, 60) for listener in (web, admin)]
        try:
            with program(ACTIVATED, ss, *given, address, pass_fds=given) as process:
                port = (web, admin)[which].getsockname()[1]
                assert line_of(process) == f"{port} {3 + which} False"
                assert ask(("127.0.0.1", port), b"") == b"served"
                assert process.wait(5) == 0
        finally:
            for number in given:
                os.close(number)


@pytest.mark.new_feature
def test_a_socket_of_the_wrong_kind_is_refused_in_words(ss: ModuleType) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(LOCAL)
        with pytest.raises(ss.AddressError, match="TCPServer needs a SOCK_STREAM socket, not a SOCK_DGRAM one"):
            ss.TCPServer(datagrams, upper)
        assert datagrams.fileno() >= 0  # still its owner's
    with socket.create_server(LOCAL) as listener:
        with pytest.raises(ss.AddressError, match="UDPServer needs a SOCK_DGRAM socket"):
            ss.UDPServer(f"fd://{os.dup(listener.fileno())}", upper)
        with pytest.raises(ss.AddressError, match="not bound"), socket.socket() as unbound:
            ss.TCPServer(unbound, upper)
    for wrong, why in ((listener, "closed"), ("fd://x", "number"), ("fd://9999", "no open socket"), (7, "no address")):
        with pytest.raises(ss.AddressError, match=why):
            ss.TCPServer(wrong, upper)


@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"])
def test_a_bind_error_names_the_process_that_holds_the_address(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    address = str(tmp_path / "server") if "Unix" in kind else LOCAL
    with getattr(ss, kind)(address, upper) as server:
        with pytest.raises(OSError, match=rf"held by pid {os.getpid()} \(") as raised:
            getattr(ss, kind)(server.server_address, upper)
        assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.regression
@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer"])
def test_two_servers_do_not_share_a_port_by_default(ss: ModuleType, kind: str) -> None:
    with getattr(ss, kind)(LOCAL, upper) as server:
        with pytest.raises(OSError, match="in use") as raised:
            getattr(ss, kind)(server.server_address, upper)
        assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.regression
@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_two_servers_share_a_port_if_both_ask_for_it(ss: ModuleType) -> None:
    with made(ss.TCPServer, upper, allow_reuse_port=True) as server:
        made(ss.TCPServer, upper, server.server_address, allow_reuse_port=True).server_close()


def test_a_server_restarts_on_its_port_while_an_old_connection_is_in_time_wait(ss: ModuleType) -> None:
    address = _in_time_wait(ss)
    server = ss.TCPServer(address, upper)
    with serving(server):
        assert ask(address) == b"HELLO"


@pytest.mark.regression
@pytest.mark.parametrize("wanted", [True, False])
def test_reuse_patched_onto_the_class_works_in_its_subclasses(
    ss: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setattr(ss.TCPServer, "allow_reuse_address", wanted)
    with ss.ThreadingTCPServer(LOCAL, upper) as server:
        assert bool(server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is wanted


@pytest.mark.regression
@pytest.mark.parametrize("hook", ["server_bind", "server_activate"])
def test_a_constructor_that_fails_a_thousand_times_leaves_nothing_open(ss: ModuleType, hook: str) -> None:
    """#22435."""

    def fail(self: Any) -> None:
        raise ZeroDivisionError(hook)

    before = descriptors()
    for _ in range(1024):
        with pytest.raises(ZeroDivisionError):
            made(ss.TCPServer, upper, **{hook: fail})
    assert descriptors() == before
    if sys.platform == "linux":
        with pytest.raises(OSError, match="assign requested address"):
            ss.TCPServer(("192.0.2.1", 0), upper)
    assert descriptors() == before

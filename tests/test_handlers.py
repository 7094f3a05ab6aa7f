"""Request handlers: what they find, in what order they are called, and what their files do."""

from __future__ import annotations

import io
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import portico
from portico import _SocketWriter

from .contract.flavours import short_folder
from .waiting import until

Pair = tuple[socket.socket, socket.socket]
SERVER: Any = object()


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    there.settimeout(10)
    with here, there:
        yield here, there


@pytest.fixture
def udp() -> Iterator[Pair]:
    """A datagram server's socket, and a client's."""
    with socket.socket(type=socket.SOCK_DGRAM) as here, socket.socket(type=socket.SOCK_DGRAM) as there:
        for sock in (here, there):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(10)
        yield here, there


class Told(portico.BaseRequestHandler):
    """Tells what is called, and raises where it is told to."""

    fail_in = ""

    def tell(self, name: str) -> None:
        self.client_address.append(name)
        if self.fail_in == name:
            raise LookupError(name)

    def setup(self) -> None:
        self.tell("setup")

    def handle(self) -> None:
        self.tell("handle")

    def finish(self) -> None:
        self.tell("finish")


@pytest.mark.parametrize(
    ("fail_in", "called"),
    [
        ("", "setup handle finish"),
        ("setup", "setup"),
        ("handle", "setup handle finish"),
        ("finish", "setup handle finish"),
    ],
)
def test_finish_is_called_unless_setup_raised(fail_in: str, called: str) -> None:
    names: list[str] = []
    Failing = type("Failing", (Told,), {"fail_in": fail_in})
    if fail_in:
        with pytest.raises(LookupError, match=fail_in):
            Failing(None, names, SERVER)
    else:
        Failing(None, names, SERVER)
    assert " ".join(names) == called


def test_the_three_attributes_are_set_before_setup() -> None:
    class Looking(portico.BaseRequestHandler):
        def setup(self) -> None:
            assert (self.request, self.client_address, self.server) == ("request", "address", SERVER)

    Looking("request", "address", SERVER)


def test_subscripts_are_for_type_checkers_only() -> None:
    assert portico.BaseRequestHandler[Any, Any] is portico.BaseRequestHandler  # type: ignore[comparison-overlap]
    assert portico.StreamRequestHandler[Any] is portico.StreamRequestHandler  # type: ignore[comparison-overlap]
    assert portico.BaseServer[Any] is portico.BaseServer  # type: ignore[comparison-overlap]


# -- streams


def test_a_stream_handler_has_files_over_its_connection(pair: Pair) -> None:
    class Handler(portico.StreamRequestHandler):
        def handle(self) -> None:
            assert self.connection is self.request is pair[0]
            assert isinstance(self.rfile, io.BufferedReader)
            assert isinstance(self.wfile, _SocketWriter)
            self.wfile.write(self.rfile.readline().upper())

        def finish(self) -> None:
            super().finish()
            assert self.rfile.closed
            assert self.wfile.closed

    pair[1].sendall(b"hello\n")
    Handler(pair[0], "", SERVER)
    assert pair[1].recv(10) == b"HELLO\n"
    assert pair[0].fileno() >= 0  # closing it is the server's business


@pytest.mark.parametrize(("rbufsize", "kind"), [(-1, io.BufferedReader), (10, io.BufferedReader), (0, socket.SocketIO)])
def test_rbufsize_is_the_buffer_to_read_with(pair: Pair, rbufsize: int, kind: type) -> None:
    kinds: list[type] = []
    members = {"rbufsize": rbufsize, "handle": lambda self: kinds.append(type(self.rfile))}
    type("Handler", (portico.StreamRequestHandler,), members)(pair[0], "", SERVER)
    assert kinds == [kind]


@pytest.mark.parametrize("wbufsize", [-1, 100])
def test_what_is_buffered_is_sent_at_the_end(pair: Pair, wbufsize: int) -> None:
    class Handler(portico.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"late")
            pair[1].setblocking(False)
            with pytest.raises(BlockingIOError):
                pair[1].recv(10)

    Handler.wbufsize = wbufsize
    Handler(pair[0], "", SERVER)
    assert pair[1].recv(10) == b"late"


def test_a_peer_that_is_gone_when_the_buffer_is_sent_is_no_fault(pair: Pair) -> None:
    class Handler(portico.StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            self.wfile.write(b"for nobody")
            pair[1].close()

    Handler(pair[0], "", SERVER)


def test_a_handler_may_close_its_files_and_its_request_itself(pair: Pair) -> None:
    class Handler(portico.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"bye")
            self.wfile.close()
            self.rfile.close()
            self.request.close()

    Handler(pair[0], "", SERVER)
    assert pair[1].recv(10) == b"bye"
    assert pair[1].recv(10) == b""


def test_timeout_is_the_connections_own(pair: Pair) -> None:
    class Impatient(portico.StreamRequestHandler):
        timeout = 0.01

        def handle(self) -> None:
            assert self.connection.gettimeout() == 0.01
            self.rfile.readline()

    with pytest.raises(TimeoutError):
        Impatient(pair[0], "", SERVER)


@pytest.mark.parametrize("disabled", [False, True])
def test_nagles_algorithm_is_disabled_on_request(disabled: bool) -> None:
    seen: list[int] = []

    class Handler(portico.StreamRequestHandler):
        disable_nagle_algorithm = disabled

        def handle(self) -> None:
            seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with portico.TCPServer(("127.0.0.1", 0), Handler) as server, socket.create_connection(server.server_address, 10):
        server.handle_request()
    assert [bool(value) for value in seen] == [disabled]


# -- the unbuffered writer


def test_the_writer_is_a_file_that_counts_bytes(pair: Pair) -> None:
    writer = _SocketWriter(pair[0])
    assert isinstance(writer, io.BufferedIOBase)
    assert writer.writable()
    assert not writer.readable()
    assert writer.fileno() == pair[0].fileno()
    assert writer.write(b"abc") == 3
    assert writer.write(memoryview(bytearray(8)).cast("q")) == 8
    assert pair[1].recv(100) == b"abc" + bytes(8)
    writer.close()
    assert pair[0].fileno() >= 0


def test_the_writer_writes_all_even_if_signals_interrupt_it(pair: Pair) -> None:
    data, received, caught = bytes(range(256)) * 20_000, [], []

    def read() -> None:
        until(lambda: caught)
        while sum(map(len, received)) < len(data):
            received.append(pair[1].recv(65536))

    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(True))
    reader = threading.Thread(target=read)
    killer = threading.Thread(target=signal.pthread_kill, args=(threading.get_ident(), signal.SIGUSR1))
    try:
        reader.start()
        killer.start()
        assert _SocketWriter(pair[0]).write(data) == len(data)
    finally:
        reader.join()
        killer.join()
        signal.signal(signal.SIGUSR1, before)
    assert b"".join(received) == data


# -- datagrams


class Written(portico.DatagramRequestHandler):
    """Answers with what it is told to."""

    def handle(self) -> None:
        assert self.packet == self.rfile.read() == self.data == self.request[0]
        assert self.socket is self.request[1]
        self.wfile.write(self.packet.removeprefix(b"say "))


def test_a_datagram_handlers_answer_is_sent_when_it_is_done(udp: Pair) -> None:
    Written((b"say hello", udp[0]), udp[1].getsockname(), SERVER)
    assert udp[1].recv(10) == b"hello"


def answers(handler: Any, server: Any, udp: Pair) -> list[bytes]:
    handler((b"", udp[0]), udp[1].getsockname(), server)
    Written((b"the last", udp[0]), udp[1].getsockname(), SERVER)
    found = [udp[1].recv(10)]
    while found[-1] != b"the last":
        found.append(udp[1].recv(10))
    return found[:-1]


def test_nothing_written_is_nothing_sent_unless_asked_for(udp: Pair) -> None:
    compat = type("Old", (), {"stdlib_compat": True})()
    assert answers(Written, SERVER, udp) == []
    assert answers(type("Empty", (Written,), {"send_empty_reply": True}), SERVER, udp) == [b""]
    assert answers(Written, compat, udp) == [b""]


@pytest.mark.parametrize("address", [None, "", b""])
def test_a_peer_without_an_address_gets_no_answer(address: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        Written((b"hello", sock), address, SERVER)


def test_a_peer_that_is_gone_gets_no_answer(udp: Pair) -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        Written((b"hello", sock), str(folder / "gone.sock"), SERVER)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(folder / "dead.sock"))
        Written((b"hello", sock), str(folder / "dead.sock"), SERVER)


def test_an_answer_that_is_too_long_is_a_fault_of_the_handler(udp: Pair) -> None:
    with pytest.raises(OSError, match="Message too long"):
        Written((bytes(70_000), udp[0]), udp[1].getsockname(), SERVER)


def test_a_unix_client_without_an_address_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with short_folder() as folder:
        path = str(Path(folder) / "server.sock")
        with portico.UnixDatagramServer(path, Written).background():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
                nameless.sendto(b"hello", path)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.bind(str(Path(folder) / "client.sock"))
                client.sendto(b"hello", path)
                assert client.recv(10) == b"hello"
    assert caplog.records == []


# -- self.data


def test_data_is_the_payload_and_may_be_set_over(udp: Pair) -> None:
    class Handler(portico.BaseRequestHandler):
        def handle(self) -> None:
            assert self.data == b"payload"
            assert "data" not in vars(self)
            self.data = self.data.upper()
            assert self.data == b"PAYLOAD"
            del self.data
            assert self.data == b"payload"

    Handler((b"payload", udp[0]), udp[1].getsockname(), SERVER)


def test_on_a_stream_data_is_whatever_the_handler_sets(pair: Pair) -> None:
    class Handler(portico.BaseRequestHandler):
        def handle(self) -> None:
            assert not hasattr(self, "data")
            with pytest.raises(AttributeError, match="'Handler' object has no attribute 'data': only datagram servers"):
                _ = self.data
            self.data = self.request.recv(10)
            assert self.data == b"hello"

    pair[1].sendall(b"hello")
    Handler(pair[0], "", SERVER)


def test_a_class_that_declares_data_itself_keeps_its_own(udp: Pair) -> None:
    class Handler(portico.BaseRequestHandler):
        data = b"mine"

        def handle(self) -> None:
            assert self.data == b"mine"

    Handler((b"payload", udp[0]), udp[1].getsockname(), SERVER)


@pytest.mark.parametrize("request_", [("a", "b"), (b"a", None), (b"a",), (), "ab", None])
def test_a_request_that_only_looks_like_a_datagrams_has_no_data(request_: Any) -> None:
    assert not hasattr(portico.BaseRequestHandler(request_, "", SERVER), "data")

"""`GreenSocket`'s calls: each parks its green thread and never the loop, and does what a blocking socket's call does.

Every body runs in threads over blocking sockets as well, as the proof that it says what those do. What flags, modes
and ends change is in `test_green_modes`, how readiness is learned in `test_readiness`.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import portico

from .contract.flavours import short_folder
from .green_worlds import EVERY, GREEN, LOOPS, PATIENCE, exactly, outcome, tcp_pair, world_named

BIG = bytes(range(251)) * 40_000
"""10 MB: more than the buffers of any connection hold."""


@pytest.fixture(params=EVERY)
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


@pytest.fixture(params=GREEN)
def green_world(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


def udp_pair() -> tuple[socket.socket, socket.socket]:
    here, there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (here, there):
        sock.bind(("127.0.0.1", 0))
    there.connect(here.getsockname())
    return here, there


# -- each call waits, alone


def _into(call: str, sock: Any) -> tuple[int, bytes]:
    buffer = bytearray(100)
    count = getattr(sock, call)(buffer)
    count = count[0] if isinstance(count, tuple) else count
    return count, bytes(buffer[:count])


def _msg_into(sock: Any) -> tuple[Any, ...]:
    first, second = bytearray(2), bytearray(10)
    count = sock.recvmsg_into([first, second])[0]
    return count, bytes(first + second)[:count]


def _file(call: str, sock: Any, **how: Any) -> Any:
    with sock.makefile("rb", **how) as file:
        return getattr(file, call)()


READS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "recv": (lambda sock: sock.recv(100), b"hello\n"),
    "recv with flags": (lambda sock: sock.recv(100, socket.MSG_NOSIGNAL), b"hello\n"),
    "recv_into": (lambda sock: _into("recv_into", sock), (6, b"hello\n")),
    "recvfrom": (lambda sock: sock.recvfrom(100)[0], b"hello\n"),
    "recvfrom_into": (lambda sock: _into("recvfrom_into", sock), (6, b"hello\n")),
    "recvmsg": (lambda sock: sock.recvmsg(100)[0], b"hello\n"),
    "recvmsg_into": (_msg_into, (6, b"hello\n")),
    "makefile": (lambda sock: _file("readline", sock), b"hello\n"),
    "makefile, one read": (lambda sock: _file("read1", sock), b"hello\n"),
    "makefile, unbuffered": (lambda sock: _file("readline", sock, buffering=0), b"hello\n"),
}


@pytest.mark.parametrize("make", [tcp_pair, socket.socketpair, udp_pair])
@pytest.mark.parametrize("name", READS)
def test_a_read_waits_for_data_and_holds_nobody_up(world: Any, name: str, make: Any) -> None:
    if make is udp_pair and "makefile" in name:
        pytest.skip("files are made over streams")
    call, expected = READS[name]
    sock, peer = world.pair(make)
    for _ in range(2):  # the second time the socket is known
        reading = world.parks(call, sock)
        peer.sendall(b"hello\n")
        assert reading.result(PATIENCE) == expected


def test_a_datagram_tells_its_sender(world: Any) -> None:
    sock, peer = world.pair(udp_pair)
    for call in (lambda: sock.recvfrom(10)[1], lambda: sock.recvfrom_into(bytearray(9))[1], lambda: sock.recvmsg(9)[3]):
        reading = world.parks(call)
        peer.send(b"x")
        assert reading.result(PATIENCE) == peer.getsockname()


def _sendfile(sock: Any) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(BIG)
        return sock.sendfile(file), file.tell()


def _write(sock: Any, buffering: int) -> Any:
    with sock.makefile("wb", buffering=buffering) as file:
        return file.write(BIG)


WRITES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "send": (lambda sock: sock.send(BIG), len(BIG)),
    "sendall": (lambda sock: sock.sendall(BIG), None),
    "sendall, a buffer": (lambda sock: sock.sendall(memoryview(bytearray(BIG)).cast("H")), None),
    "sendmsg": (lambda sock: sock.sendmsg([BIG[:70], BIG[70:]]), len(BIG)),
    "sendfile": (_sendfile, (len(BIG), len(BIG))),
    "sendfile, no real file": (lambda sock: sock.sendfile(io.BytesIO(BIG)), len(BIG)),
    "makefile": (lambda sock: _write(sock, 8192), len(BIG)),
    "makefile, unbuffered": (lambda sock: _write(sock, 0), len(BIG)),
}


@pytest.mark.parametrize("make", [tcp_pair, socket.socketpair])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_waits_for_room_and_sends_everything(world: Any, name: str, make: Any) -> None:
    call, expected = WRITES[name]
    sock, peer = world.pair(make)
    writing = world.parks(call, sock)
    assert exactly(peer, len(BIG)) == BIG
    assert writing.result(PATIENCE) == expected


@pytest.mark.parametrize("call", ["sendto", "sendmsg", "send"])
def test_a_datagram_waits_for_room_in_a_unix_peers_queue(world: Any, call: str) -> None:
    def flood(sock: Any, address: str) -> None:
        for data in (b"%d" % number for number in range(100)):
            if call == "sendto":
                sock.sendto(data, address)
            elif call == "sendmsg":
                sock.sendmsg([data], [], 0, address)
            else:
                sock.send(data)

    with short_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(folder / "peer"))
        sock = world.make(socket.AF_UNIX, socket.SOCK_DGRAM)
        if call == "send":
            sock.connect(str(folder / "peer"))
        flooding = world.parks(flood, sock, str(folder / "peer"))
        peer.settimeout(PATIENCE)
        assert [int(peer.recv(10)) for _ in range(100)] == list(range(100))
        flooding.result(PATIENCE)


def test_accept_waits_for_a_client(world: Any) -> None:
    listener = world.listener()
    for _ in range(2):
        accepting = world.parks(listener.accept)
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            connection, address = accepting.result(PATIENCE)
            world.own(connection)
            assert address == client.getsockname()
            assert type(connection) is type(listener)
            assert connection.gettimeout() is None
            reading = world.parks(connection.recv, 10)
            client.sendall(b"hello")
            assert reading.result(PATIENCE) == b"hello"


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_connect_waits_for_a_full_listener(world: Any, call: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        full = world.own(socket.create_connection(address, PATIENCE))
        sock = world.make()
        connecting = world.parks(getattr(sock, call), address)
        world.own(listener.accept()[0], full)
        assert connecting.result(PATIENCE) == {"connect": None, "connect_ex": 0}[call]
        peer = world.own(listener.accept()[0])
        peer.sendall(b"hello")
        assert world.run(sock.recv, 10) == b"hello"


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_connect_waits_for_a_full_unix_listener(world: Any, call: str) -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as full:
        listener.bind(str(folder / "listener"))
        listener.listen(0)
        full.connect(str(folder / "listener"))
        sock = world.make(socket.AF_UNIX)
        connecting = world.parks(getattr(sock, call), str(folder / "listener"))
        listener.accept()[0].close()
        assert connecting.result(PATIENCE) == {"connect": None, "connect_ex": 0}[call]
        listener.accept()[0].close()


def test_connect_looks_a_name_up_and_tells_what_is_wrong(world: Any) -> None:
    listener = world.listener()
    assert world.run(world.make().connect, ("localhost", listener.getsockname()[1])) is None
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    assert world.run(outcome, world.make().connect, nobody) == (ConnectionRefusedError, errno.ECONNREFUSED)
    assert world.run(outcome, world.make().connect_ex, nobody) == errno.ECONNREFUSED
    missing = world.make(socket.AF_UNIX)
    assert world.run(outcome, missing.connect, "/nowhere/at/all") == (FileNotFoundError, errno.ENOENT)
    assert world.run(outcome, missing.connect_ex, "/nowhere/at/all") == errno.ENOENT
    assert world.run(outcome, world.make().connect, ("127.0.0.1", "no number")) is TypeError


def test_parts_of_files_are_sent_and_their_position_moved(world: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def send(sock: Any) -> Any:
        with (tmp_path / "file").open("rb") as file:
            return sock.sendfile(file, 3, 4), file.tell(), sock.sendfile(file, 9), file.tell(), sock.sendfile(file, 20)

    sock, peer = world.pair()
    assert world.run(send, sock) == (4, 7, 1, 10, 0)
    assert exactly(peer, 5) == b"34569"
    with (tmp_path / "file").open() as text, (tmp_path / "file").open("rb") as file:
        assert world.run(outcome, sock.sendfile, text) is ValueError
        assert world.run(outcome, sock.sendfile, file, 0, -1) is ValueError
        assert world.run(outcome, world.make(kind=socket.SOCK_DGRAM).sendfile, file) is ValueError


def test_descriptors_pass_through_a_message(world: Any) -> None:
    sock, peer = world.pair(socket.socketpair)
    reading = world.parks(socket.recv_fds, sock, 10, 1)
    with tempfile.TemporaryFile() as file:
        socket.send_fds(peer, [b"x"], [file.fileno()])
        data, (passed,), *_ = reading.result(PATIENCE)
        assert data == b"x"
        assert os.path.sameopenfile(passed, file.fileno())
        os.close(passed)


# -- deadlines

TIMED: dict[str, Callable[[Any], Any]] = {
    **{name: call for name, (call, _) in READS.items()},
    "sendall": lambda sock: sock.sendall(BIG * 3),
    "send": lambda sock: [sock.send(BIG) for _ in range(100)],
    "sendmsg": lambda sock: [sock.sendmsg([BIG]) for _ in range(100)],
    "sendfile": _sendfile,
    "write": lambda sock: _write(sock, 0),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_call_ends_with_timeout_error_at_the_deadline(world: Any, name: str) -> None:
    def timed() -> tuple[Any, float]:
        began = time.monotonic()
        return outcome(TIMED[name], sock), time.monotonic() - began

    sock, _ = world.pair()
    sock.settimeout(0.05)
    waiting = world.start(timed)
    world.others_go_on()
    result, lasted = waiting.result(PATIENCE)
    if name == "write":  # SocketIO makes one send of it
        assert 0 < result < len(BIG)
    else:
        assert result is TimeoutError
        assert 0.049 < lasted < 5


def test_accept_and_connect_end_at_the_deadline(world: Any) -> None:
    listener = world.listener(backlog=0)
    listener.settimeout(0.02)
    assert world.run(outcome, listener.accept) is TimeoutError
    world.own(socket.create_connection(listener.getsockname(), PATIENCE))
    sock, other = world.make(), world.make()
    sock.settimeout(0.02)
    assert world.run(outcome, sock.connect, listener.getsockname()) is TimeoutError
    other.settimeout(0.02)
    assert world.run(outcome, other.connect_ex, listener.getsockname()) == errno.EAGAIN


def test_a_timeout_is_each_calls_and_sendalls_for_the_whole(world: Any) -> None:
    def slowly_read() -> bytes:
        for _ in range(20):
            peer.sendall(b"x")
            got.acquire(timeout=PATIENCE)
        return exactly(peer, 1)

    def read() -> list[bytes]:
        pieces = []
        for _ in range(20):
            pieces.append(sock.recv(1))
            got.release()
        sock.settimeout(None)
        sock.sendall(b"y")
        return pieces

    sock, peer = world.pair()
    got = threading.Semaphore(0)
    sock.settimeout(PATIENCE)
    reading = world.start(read)
    assert slowly_read() == b"y"
    assert reading.result(PATIENCE) == [b"x"] * 20


# -- many on one socket


def test_one_reads_while_another_writes(world: Any) -> None:
    sock, peer = world.pair()
    plain = [threading.Thread(target=peer.sendall, args=(BIG[::-1],))]
    answers: list[bytes] = []
    plain.append(threading.Thread(target=lambda: answers.append(exactly(peer, len(BIG)))))
    reading, writing = world.start(exactly, sock, len(BIG)), world.start(sock.sendall, BIG)
    for thread in plain:
        thread.start()
    assert reading.result(30) == BIG[::-1]
    writing.result(30)
    for thread in plain:
        thread.join(30)
    assert answers == [BIG]


def test_two_that_read_share_what_comes(world: Any) -> None:
    sock, peer = world.pair()
    reading = [world.parks(sock.recv, 1) for _ in range(2)]
    peer.sendall(b"ab")
    assert sorted(future.result(PATIENCE) for future in reading) == [b"a", b"b"]
    reading = [world.parks(sock.recv, 10) for _ in range(2)]
    peer.sendall(b"c")
    while not any(future.done() for future in reading):
        world.others_go_on()
    peer.sendall(b"d")
    assert b"".join(sorted(future.result(PATIENCE) for future in reading)) == b"cd"


def test_both_ends_may_be_green(world: Any) -> None:
    here, there = (world.adopt(sock) for sock in tcp_pair())
    calls = [(exactly, there, len(BIG)), (exactly, here, len(BIG)), (here.sendall, BIG), (there.sendall, BIG[::-1])]
    futures = [world.start(*call) for call in calls]
    assert [future.result(30) for future in futures[:2]] == [BIG, BIG[::-1]]


# -- outside a green thread


def test_in_an_os_thread_calls_block_and_work(green_world: Any) -> None:
    sock, peer = green_world.pair()
    with world_named("threads") as others:
        reading = others.start(sock.recv, 10)
        green_world.others_go_on()
        peer.sendall(b"hello")
        assert reading.result(PATIENCE) == b"hello"
        writing = others.start(sock.sendall, BIG)
        assert exactly(peer, len(BIG)) == BIG
        writing.result(PATIENCE)
        sock.settimeout(0.02)
        assert others.run(outcome, sock.recv, 10) is TimeoutError
        sock.settimeout(None)
    reading = green_world.parks(sock.recv, 10)  # and green again
    peer.sendall(b"world")
    assert reading.result(PATIENCE) == b"world"


@pytest.mark.parametrize("loop", LOOPS)
def test_in_a_hook_that_the_loop_calls_they_block_too(loop: str) -> None:
    class Server(portico.GreenTCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return bool(request.recv(5) == b"open!")

    class Upper(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100).upper())

    with (
        Server(("127.0.0.1", 0), Upper, event_loop=loop).background() as server,
        socket.create_connection(server.server_address, PATIENCE) as client,
    ):
        client.sendall(b"open!")
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"

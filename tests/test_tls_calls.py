"""The calls of an encrypted socket that a handler may use: each does what `ssl.SSLSocket`'s does, and waits likewise.

Every body runs over `ssl.SSLSocket`, too, as the proof that it says what that does; but for those about what ours do
better: half-close, going on after a timeout. What comes of a connection in a server is in `test_tls_streams`.
"""

from __future__ import annotations

import errno
import io
import select
import socket
import ssl
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from .certificates import Authority
from .green_worlds import PATIENCE, exactly, outcome, tcp_pair
from .loops import in_a_thread
from .secured import OURS, WORLDS, Certificates, certificates, clean_rest, secured_world
from .waiting import until

SOME = bytes(range(251)) * 8_000
"""2 MB: more than a Unix connection's buffers hold, and many records."""
RECORD = 1 << 14
SHORT = 0.02
WANT_READ, WANT_WRITE = (ssl.SSLWantReadError, 2), (ssl.SSLWantWriteError, 3)


@pytest.fixture
def known(authority: Authority) -> Certificates:
    return certificates(authority)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, known: Certificates) -> Iterator[Any]:
    with secured_world(request.param, known) as made:
        yield made


@pytest.fixture(params=OURS)
def ours(request: pytest.FixtureRequest, known: Certificates) -> Iterator[Any]:
    with secured_world(request.param, known) as made:
        yield made


def narrow_pair() -> tuple[socket.socket, socket.socket]:
    """Over TCP, with buffers of one size, so that it is known how much fits for certain, and what does not."""
    here, there = tcp_pair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
    return here, there


# -- reading


def _into(sock: Any, call: str, buffer: Any, *arguments: Any) -> tuple[int, bytes]:
    count = getattr(sock, call)(*((buffer, *arguments) if call == "recv_into" else (*arguments, buffer)))
    return count, bytes(buffer)


def _file(sock: Any, read: Callable[[Any], Any], **how: Any) -> Any:
    with sock.makefile("rb", **how) as file:
        return read(file)


READS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "recv": (lambda sock: sock.recv(100), b"hello\n"),
    "recv of less": (lambda sock: (sock.recv(2), sock.recv(3), sock.recv(9)), (b"he", b"llo", b"\n")),
    "recv by default": (lambda sock: sock.recv(), b"hello\n"),
    "recv_into": (lambda sock: _into(sock, "recv_into", bytearray(8)), (6, b"hello\n\0\0")),
    "recv_into, so many": (lambda sock: _into(sock, "recv_into", bytearray(8), 4), (4, b"hell\0\0\0\0")),
    "recv_into, too many": (lambda sock: _into(sock, "recv_into", bytearray(4), 9), (4, b"hell")),
    "recv_into, below 0": (lambda sock: _into(sock, "recv_into", bytearray(4), -1), (4, b"hell")),
    "recv_into numbers": (lambda sock: _into(sock, "recv_into", array("H", [0] * 4)), (6, b"hello\n\0\0")),
    "recv_into a view": (lambda sock: _into(sock, "recv_into", memoryview(bytearray(9))[2:8]), (6, b"hello\n")),
    "read": (lambda sock: sock.read(100), b"hello\n"),
    "read by default": (lambda sock: sock.read(), b"hello\n"),
    "read into": (lambda sock: _into(sock, "read", bytearray(8), 5), (5, b"hello\0\0\0")),
    "readline": (lambda sock: _file(sock, io.BufferedReader.readline), b"hello\n"),
    "read1": (lambda sock: _file(sock, io.BufferedReader.read1), b"hello\n"),
    "so many of a file": (lambda sock: _file(sock, lambda file: file.read(6)), b"hello\n"),
    "a file's next": (lambda sock: _file(sock, next), b"hello\n"),
    "a line, unbuffered": (lambda sock: _file(sock, lambda file: file.readline(), buffering=0), b"hello\n"),
    "a line, little buffer": (lambda sock: _file(sock, lambda file: file.readline(), buffering=2), b"hello\n"),
}


def test_a_read_waits_for_data(world: Any) -> None:
    sock, peer = world.secure(socket.socketpair)
    for name, (call, expected) in READS.items():
        reading = world.parks(call, sock)
        peer.sendall(b"hello\n")
        assert (name, reading.result(PATIENCE)) == (name, expected)
        peer.sendall(b".")
        while world.run(sock.recv, 1) != b".":  # what is left
            pass


def test_what_can_hold_nothing_gets_nothing_at_once(world: Any) -> None:
    sock, _ = world.secure()
    calls = (lambda: sock.recv(0), lambda: sock.read(0), lambda: sock.recv_into(bytearray()))
    assert [world.run(call) for call in calls] == [b"", b"", 0]
    assert world.run(outcome, sock.recv, -1) is ValueError


def test_pending_is_what_has_been_decrypted(world: Any) -> None:
    sock, peer = world.secure()
    peer.sendall(b"x" * 100)
    assert (sock.pending(), world.run(sock.recv, 10), sock.pending()) == (0, b"x" * 10, 90)
    assert (world.run(sock.recv, 100), sock.pending()) == (b"x" * 90, 0)


def test_records_may_come_byte_by_byte(world: Any) -> None:
    sock, peer = world.secure(on_paper=True)
    reading = world.start(exactly, sock, 11)
    for byte in peer.record(b"hello ") + peer.record(b"again"):
        peer.sock.sendall(bytes([byte]))
    assert reading.result(PATIENCE) == b"hello again"


def test_empty_records_are_nothing(world: Any) -> None:
    sock, peer = world.secure(on_paper=True)
    reading = world.start(sock.recv, 100)
    peer.sock.sendall(peer.record(b""))
    world.others_go_on()
    assert not reading.done()
    peer.sock.sendall(peer.record(b"x"))
    assert reading.result(PATIENCE) == b"x"


# -- writing


def _sendfile(sock: Any, *arguments: Any) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(SOME)
        file.seek(0)
        return sock.sendfile(file, *arguments), file.tell()


def _write(sock: Any, buffering: int) -> Any:
    with sock.makefile("wb", buffering=buffering) as file:
        for begin in range(0, len(SOME), 1_000_000):
            file.write(SOME[begin : begin + 1_000_000])


WRITES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "send": (lambda sock: sock.send(SOME), len(SOME)),
    "write": (lambda sock: sock.write(SOME), len(SOME)),
    "send numbers": (lambda sock: sock.send(array("H", SOME)), len(SOME)),
    "sendall": (lambda sock: sock.sendall(SOME), None),
    "sendall of a bytearray": (lambda sock: sock.sendall(bytearray(SOME)), None),
    "sendall of numbers": (lambda sock: sock.sendall(array("I", SOME)), None),
    "sendall of a table": (lambda sock: sock.sendall(memoryview(SOME).cast("B", (8, 251_000))), None),
    "sendfile": (lambda sock: _sendfile(sock), (len(SOME), len(SOME))),
    "a file": (lambda sock: _write(sock, -1), None),
    "a file of little buffer": (lambda sock: _write(sock, 1000), None),
}


def test_a_write_waits_until_there_is_room(world: Any) -> None:
    sock, peer = world.secure(socket.socketpair)
    for name, (call, expected) in WRITES.items():
        writing = world.parks(call, sock)
        assert exactly(peer, len(SOME)) == SOME, name
        assert (name, writing.result(PATIENCE)) == (name, expected)


def test_an_unbuffered_file_says_how_much_it_has_written(world: Any) -> None:
    sock, peer = world.secure(socket.socketpair)
    with sock.makefile("wb", buffering=0) as file:
        writing = world.start(file.write, SOME[:100_000])
        count = writing.result(PATIENCE)
        assert exactly(peer, count) == SOME[:count]


def test_a_part_of_a_file_is_sent(world: Any) -> None:
    sock, peer = world.secure()
    assert world.run(_sendfile, sock, 5, 100) == (100, 105)
    assert exactly(peer, 100) == SOME[5:105]


def test_nothing_to_send_is_sent_at_once(world: Any) -> None:
    sock, peer = world.secure()
    calls = (lambda: sock.send(b""), lambda: sock.sendall(b""), lambda: sock.sendall(memoryview(b"")))
    assert [world.run(outcome, call) for call in calls] == [0, None, None]
    world.run(sock.sendall, b"x")
    assert peer.recv(9) == b"x"


def test_a_file_stays_when_its_socket_is_closed_before_it(world: Any) -> None:
    sock, peer = world.secure()
    with sock.makefile("rwb", buffering=0) as file:
        sock.close()
        world.run(file.write, b"hello")
        assert peer.recv(9) == b"hello"
        peer.sendall(b"x")
        assert world.run(file.read, 9) == b"x"
    assert sock.fileno() == -1


# -- what is refused, in the same words


REFUSED: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "recv with flags": (lambda sock: sock.recv(1, socket.MSG_PEEK), ValueError),
    "recv_into with flags": (lambda sock: sock.recv_into(bytearray(1), 1, socket.MSG_PEEK), ValueError),
    "send with flags": (lambda sock: sock.send(b"x", socket.MSG_OOB), ValueError),
    "sendall with flags": (lambda sock: sock.sendall(b"x", socket.MSG_OOB), ValueError),
    "recvfrom": (lambda sock: sock.recvfrom(1), ValueError),
    "recvfrom_into": (lambda sock: sock.recvfrom_into(bytearray(1)), ValueError),
    "sendto": (lambda sock: sock.sendto(b"x", ("127.0.0.1", 1)), ValueError),
    "recvmsg": (lambda sock: sock.recvmsg(1), NotImplementedError),
    "recvmsg_into": (lambda sock: sock.recvmsg_into([bytearray(1)]), NotImplementedError),
    "sendmsg": (lambda sock: sock.sendmsg([b"x"]), NotImplementedError),
    "dup": (lambda sock: sock.dup(), NotImplementedError),
    "text": (lambda sock: sock.sendall("x"), TypeError),
    "text, too": (lambda sock: sock.send("x"), TypeError),
    "timeout below 0": (lambda sock: sock.settimeout(-1), ValueError),
    "timeout of text": (lambda sock: sock.settimeout("x"), TypeError),
    "no number": (lambda sock: sock.settimeout(float("nan")), ValueError),
}


def test_what_ssl_refuses_is_refused(world: Any) -> None:
    sock, peer = world.secure()
    peer.sendall(b"still there")
    found = {name: world.run(outcome, call, sock) for name, (call, _) in REFUSED.items()}
    assert found == {name: error for name, (_, error) in REFUSED.items()}
    assert world.run(sock.recv, 100) == b"still there"


def test_a_closed_one_does_nothing_more(world: Any) -> None:
    sock, _ = world.secure()
    sock.close()
    sock.close()
    closed: Any = (OSError, errno.EBADF)
    calls: dict[str, tuple[Any, Any]] = {"recv": (1, closed), "send": (b"x", closed), "sendall": (b"x", closed)}
    calls |= {"read": (1, ValueError), "write": (b"x", ValueError), "sendfile": (io.BytesIO(b"x"), closed)}
    for name, (argument, expected) in calls.items():
        assert (name, world.run(outcome, getattr(sock, name), argument)) == (name, expected)
    assert sock.fileno() == -1


def test_before_tls_begins_it_has_what_every_socket_has(ours: Any) -> None:
    """On a server with `starttls` this is what a handler gets: nothing of `ssl`'s refusals holds yet."""
    here, there = socket.socketpair()
    there.settimeout(PATIENCE)
    sock, peer = ours.own(ours.run(ours.plain, here), there)
    peer.sendall(b"hello")
    assert ours.run(sock.recv, 2, socket.MSG_PEEK) == b"he"
    assert ours.run(sock.recvmsg, 2)[0] == b"he"
    buffer = bytearray(2)
    assert (ours.run(sock.recvmsg_into, [buffer])[0], buffer) == (2, b"ll")
    assert ours.run(sock.recvfrom, 9)[0] == b"o"
    copy = ours.own(ours.run(sock.dup))
    assert ours.run(copy.sendmsg, [b"a", b"b"]) + ours.run(sock.sendmsg, [b"c"]) == 3
    assert exactly(peer, 3) == b"abc"
    assert (sock.version(), sock.cipher(), sock.pending()) == (None, None, 0)


# -- modes


def _modes(sock: Any, *calls: Callable[[Any], Any]) -> list[Any]:
    found = []
    for call in calls:
        call(sock)
        found += [sock.gettimeout(), sock.timeout, sock.getblocking()]
    return found


def test_modes_are_what_they_were_set_to(world: Any) -> None:
    sock, _ = world.secure()
    calls = (
        lambda sock: sock.settimeout(5), lambda sock: sock.settimeout(None), lambda sock: sock.setblocking(False),
        lambda sock: sock.setblocking(True), lambda sock: sock.settimeout(0.5), lambda sock: sock.settimeout(0),
    )  # fmt: skip
    expected: list[Any] = []
    for seconds in (5.0, None, 0.0, None, 0.5, 0.0):
        expected += [seconds, seconds, seconds != 0.0]
    assert world.run(_modes, sock, *calls) == expected


def test_a_timeout_ends_a_read_that_may_be_tried_again(world: Any) -> None:
    sock, peer = world.secure(on_paper=True)
    sock.settimeout(SHORT)
    assert world.run(outcome, sock.recv, 9) is TimeoutError
    record = peer.record(b"hello")
    peer.sock.sendall(record[:10])
    assert world.run(outcome, sock.recv, 9) is TimeoutError
    assert world.run(outcome, sock.recv_into, bytearray(9)) is TimeoutError
    peer.sock.sendall(record[10:])
    sock.settimeout(PATIENCE)
    assert world.run(sock.recv, 9) == b"hello"


def test_one_that_does_not_block_says_so_in_the_words_of_ssl(world: Any) -> None:
    sock, peer = world.secure(socket.socketpair)
    sock.setblocking(False)
    assert world.run(outcome, sock.recv, 9) == WANT_READ
    assert world.run(outcome, sock.recv_into, bytearray(9)) == WANT_READ
    peer.sendall(b"hello")
    assert until(lambda: world.run(outcome, sock.recv, 9) == b"hello")
    sent, piece = 0, SOME[: 2 * RECORD]
    while isinstance(count := world.run(outcome, sock.send, piece), int):
        assert 0 < count <= len(piece)
        sent += count
    assert count == WANT_WRITE
    assert world.run(outcome, sock.send, piece) == WANT_WRITE
    with in_a_thread(exactly, peer, sent):
        assert until(lambda: isinstance(world.run(outcome, sock.send, piece), int))


def test_what_send_was_told_to_do_again_is_sent_once(world: Any) -> None:
    sock, peer = world.secure(socket.socketpair)
    sock.setblocking(False)
    sent, refused = 0, threading.Event()
    found: list[bytes] = []

    def read() -> None:
        assert refused.wait(PATIENCE)
        found.append(exactly(peer, len(SOME)))

    with in_a_thread(read):
        while sent < len(SOME):
            count = world.run(outcome, sock.send, SOME[sent : sent + 30_000])
            if isinstance(count, int):
                sent += count
            else:
                assert count == WANT_WRITE
                refused.set()
                select.select([], [sock], [], PATIENCE)
    assert found == [SOME]


def _send_until_it_times_out(sock: Any, data: bytes) -> int:
    """How much has gone."""
    sent = 0
    with suppress(TimeoutError):
        while True:
            sent += sock.send(data[sent : sent + 30_000])
    return sent


def test_a_send_that_timed_out_may_be_tried_again(world: Any) -> None:
    """As over a plain socket: what a timeout has ended has not been sent, and is not sent twice."""
    sock, peer = world.secure(socket.socketpair)
    sock.settimeout(SHORT)
    sent = world.run(_send_until_it_times_out, sock, SOME)
    found: list[bytes] = []
    with in_a_thread(lambda: found.append(exactly(peer, len(SOME)))):
        sock.settimeout(PATIENCE)
        while sent < len(SOME):
            sent += world.run(sock.send, SOME[sent : sent + 30_000])
    assert found == [SOME]


@pytest.mark.parametrize(
    ("call", "make"), [("sendall", narrow_pair), ("sendall", socket.socketpair), ("send", narrow_pair)]
)
def test_after_a_timeout_other_data_may_be_sent(ours: Any, call: str, make: Any) -> None:
    """As over a plain socket: the peer gets a part of the first, then all of the second; `ssl` has no such rule."""
    sock, peer = ours.secure(make)
    sock.settimeout(SHORT)
    first, second = b"A" * 8_000_000, b"B" * 100_000
    sent = 0
    with suppress(TimeoutError):
        if call == "sendall":
            ours.run(sock.sendall, first)
        while True:
            sent += ours.run(getattr(sock, call), first)
    for _ in range(2):  # which changes nothing
        assert ours.run(outcome, sock.sendall, first) is TimeoutError
    sock.settimeout(PATIENCE)
    got: list[bytes] = []
    with in_a_thread(lambda: got.append(clean_rest(peer))):
        ours.run(sock.sendall, second)
        ours.run(sock.shutdown, socket.SHUT_WR)
    as_, bs = got[0].count(b"A"), got[0].count(b"B")
    assert got[0] == b"A" * as_ + b"B" * bs
    assert (as_ >= sent, bs) == (True, len(second))


def test_what_sendall_has_left_is_not_taken_for_what_is_sent_next(known: Certificates) -> None:
    """Even if that is the same: only `send` has told nobody that its data is on its way."""
    with secured_world("threads", known) as threads:
        sock, peer = threads.secure(socket.socketpair)
        sock.settimeout(SHORT)
        record = SOME[:RECORD]
        assert threads.run(outcome, sock.sendall, record * 100) is TimeoutError
        peer.settimeout(SHORT)
        got = 0
        with suppress(TimeoutError):
            while True:
                got += len(peer.recv(RECORD))
        peer.settimeout(PATIENCE)
        assert threads.run(sock.send, record) == RECORD
        threads.run(sock.shutdown, socket.SHUT_WR)
        assert clean_rest(peer) == record * 2  # the one that was underway, and this one
        assert not got % RECORD

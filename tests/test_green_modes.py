"""What changes a green socket's calls: flags, modes, shutdown, close, detach and dup, as they change a blocking one's.

The calls themselves are in `test_green_sockets`. Bodies run in threads over blocking sockets, too.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .green_worlds import EVERY, GREEN, PATIENCE, exactly, outcome, world_named

BIG = bytes(10_000_000)
EMPTY = (BlockingIOError, errno.EAGAIN)
CLOSED = (OSError, errno.EBADF)
BROKEN = (BrokenPipeError, errno.EPIPE)


@pytest.fixture(params=EVERY)
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


@pytest.fixture(params=GREEN)
def green_world(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


def read_short(world: Any, sock: Any, peer: socket.socket) -> None:
    """Leave a socket that is known to have nothing more to read."""
    reading = world.start(sock.recv, 100)
    world.others_go_on()
    peer.sendall(b"before")
    assert reading.result(PATIENCE) == b"before"


# -- flags


def test_peek_waits_and_leaves_the_data(world: Any) -> None:
    sock, peer = world.pair()
    peeking = world.parks(sock.recv, 3, socket.MSG_PEEK)
    peer.sendall(b"hello")
    assert peeking.result(PATIENCE) == b"hel"
    assert world.run(sock.recv, 100, socket.MSG_PEEK) == b"hello"
    assert world.run(sock.recv, 100) == b"hello"
    world.parks(sock.recv, 100, socket.MSG_PEEK)


FULL: dict[str, Callable[[Any], Any]] = {
    "recv": lambda sock: sock.recv(6, socket.MSG_WAITALL),
    "recv_into": lambda sock: sock.recv_into(bytearray(6), 0, socket.MSG_WAITALL),
    "recvfrom": lambda sock: sock.recvfrom(6, socket.MSG_WAITALL)[0],
    "recvmsg": lambda sock: sock.recvmsg(6, 0, socket.MSG_WAITALL)[0],
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(6)], 0, socket.MSG_WAITALL)[0],
}


@pytest.mark.parametrize("call", FULL)
def test_waitall_waits_for_all_of_it(world: Any, call: str) -> None:
    sock, peer = world.pair()
    peer.sendall(b"hel")
    reading = world.parks(FULL[call], sock)
    peer.sendall(b"lo!")
    assert reading.result(PATIENCE) == (6 if "into" in call else b"hello!")


@pytest.mark.parametrize("call", FULL)
def test_waitall_ends_with_the_stream(world: Any, call: str) -> None:
    sock, peer = world.pair()
    peer.sendall(b"hel")
    reading = world.parks(FULL[call], sock)
    peer.shutdown(socket.SHUT_WR)
    assert reading.result(PATIENCE) == (3 if "into" in call else b"hel")
    assert world.run(FULL[call], sock) == (0 if "into" in call else b"")


def test_waitall_with_a_timeout_loses_nothing(world: Any) -> None:
    """A blocking socket returns what there is, since Python makes it non-blocking while it has a timeout."""
    sock, peer = world.pair()
    sock.settimeout(0.05)
    peer.sendall(b"hel")
    assert world.run(sock.recv, 6, socket.MSG_WAITALL) == b"hel"
    assert world.run(outcome, sock.recv, 6, socket.MSG_WAITALL) is TimeoutError


def test_waitall_and_peek_lose_nothing(world: Any) -> None:
    sock, peer = world.pair()
    peer.sendall(b"hello!")
    assert world.run(sock.recv, 6, socket.MSG_WAITALL | socket.MSG_PEEK) == b"hello!"
    assert world.run(sock.recv, 6, socket.MSG_WAITALL) == b"hello!"


def test_dontwait_never_waits(world: Any) -> None:
    sock, peer = world.pair()
    for call in (
        lambda: sock.recv(10, socket.MSG_DONTWAIT),
        lambda: sock.recv_into(bytearray(9), 0, socket.MSG_DONTWAIT),
        lambda: sock.recvfrom(10, socket.MSG_DONTWAIT),
        lambda: sock.recvmsg(10, 0, socket.MSG_DONTWAIT),
        lambda: [sock.send(BIG, socket.MSG_DONTWAIT) for _ in range(100)],
        lambda: sock.sendall(BIG * 3, socket.MSG_DONTWAIT),
        lambda: [sock.sendmsg([BIG], [], socket.MSG_DONTWAIT) for _ in range(100)],
    ):
        assert world.run(outcome, call) == EMPTY
    peer.sendall(b"hello")
    assert select.select([sock], [], [], PATIENCE)[0]
    assert world.run(sock.recv, 10, socket.MSG_DONTWAIT) == b"hello"


def test_urgent_data(world: Any) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    assert world.run(outcome, sock.recv, 1, socket.MSG_OOB) == (OSError, errno.EINVAL)  # none: says so at once
    reading = world.parks(exactly, sock, 2)
    peer.sendall(b"ab")
    assert reading.result(PATIENCE) == b"ab"
    peer.send(b"c!", socket.MSG_OOB)
    peer.sendall(b"de")
    assert select.select([], [], [sock], PATIENCE)[2]
    assert world.run(sock.recv, 100) == b"c"  # a read stops at the mark
    assert world.run(sock.recv, 1, socket.MSG_OOB) == b"!"
    assert world.run(exactly, sock, 2) == b"de"
    reading = world.parks(sock.recv, 100)
    peer.sendall(b"after")
    assert reading.result(PATIENCE) == b"after"


def test_what_needs_no_data_does_not_wait_for_it(world: Any) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    assert world.run(sock.recv, 0) == b""
    assert world.run(sock.recv_into, bytearray()) == 0
    assert world.run(outcome, sock.recv, -1) is ValueError
    assert world.run(outcome, sock.recv_into, bytearray(2), 3) is ValueError
    assert world.run(outcome, sock.recv_into, b"constant") is TypeError
    assert world.run(outcome, sock.recv, "ten") is TypeError
    assert world.run(outcome, sock.sendall, "text") is TypeError
    assert world.run(sock.send, b"") == 0


def test_buffers_of_wide_items_are_measured_in_bytes(world: Any) -> None:
    def read() -> tuple[int, int, bytes]:
        wide = array.array("I", [0] * 4)
        return sock.recv_into(wide), sock.recv_into(wide, 4), wide.tobytes()

    sock, peer = world.pair()
    peer.sendall(bytes(range(20)))
    assert world.run(read) == (16, 4, bytes([16, 17, 18, 19, *range(4, 16)]))


# -- non-blocking


@pytest.mark.parametrize("make_so", [lambda sock: sock.setblocking(False), lambda sock: sock.settimeout(0)])
def test_a_non_blocking_socket_raises_instead_of_waiting(world: Any, make_so: Callable[[Any], object]) -> None:
    (sock, peer), listener, out = world.pair(), world.listener(), world.make()
    for made in (sock, listener, out):
        make_so(made)
        assert (made.gettimeout(), made.timeout, made.getblocking()) == (0.0, 0.0, False)
    for call in (sock.recv, sock.recvfrom, sock.recvmsg, sock.recv_into):
        assert world.run(outcome, call, bytearray(9) if call == sock.recv_into else 9) == EMPTY
    assert world.run(outcome, listener.accept) == EMPTY
    assert world.run(outcome, sock.sendall, BIG * 3) == EMPTY
    assert world.run(outcome, sock.send, BIG) == EMPTY
    assert world.run(outcome, out.connect, listener.getsockname()) == (BlockingIOError, errno.EINPROGRESS)
    with sock.makefile("rb", buffering=0) as file, open(__file__, "rb") as source:
        assert world.run(file.read, 10) is None
        assert world.run(outcome, sock.sendfile, source) is ValueError
    sock.setblocking(True)
    assert (sock.gettimeout(), sock.getblocking()) == (None, True)
    reading = world.parks(sock.recv, 10)
    peer.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"


def test_connecting_without_blocking_is_seen_through(world: Any) -> None:
    listener, sock = world.listener(), world.make()
    sock.setblocking(False)
    assert world.run(sock.connect_ex, listener.getsockname()) == errno.EINPROGRESS
    sock.setblocking(True)
    peer = world.own(world.run(listener.accept)[0])
    assert world.run(outcome, sock.connect, listener.getsockname()) in (None, (OSError, errno.EISCONN))
    assert world.run(outcome, sock.connect, listener.getsockname()) == (OSError, errno.EISCONN)
    assert world.run(sock.connect_ex, listener.getsockname()) == errno.EISCONN
    world.run(peer.sendall, b"hello")
    assert world.run(sock.recv, 10) == b"hello"


def test_the_default_timeout_is_heeded(world: Any) -> None:
    for timeout, expected in ((0.02, TimeoutError), (0.0, EMPTY)):
        listener = world.listener()
        with socket.create_connection(listener.getsockname(), PATIENCE):
            socket.setdefaulttimeout(timeout)
            try:
                accepted = world.own(world.run(listener.accept)[0])
                assert accepted.gettimeout() == timeout
                assert world.run(outcome, accepted.recv, 10) == expected
            finally:
                socket.setdefaulttimeout(None)


def test_timeouts_are_checked(world: Any) -> None:
    sock, _ = world.pair()
    sock.settimeout(2)
    assert (sock.gettimeout(), type(sock.gettimeout()), sock.getblocking()) == (2.0, float, True)
    assert outcome(sock.settimeout, -1) is ValueError
    assert outcome(sock.settimeout, "soon") is TypeError
    assert sock.gettimeout() == 2.0


def test_a_file_of_a_socket_that_timed_out_says_so(world: Any) -> None:
    sock, peer = world.pair()
    sock.settimeout(0.02)
    with sock.makefile("rb") as file:
        assert world.run(outcome, file.read, 1) is TimeoutError
        peer.sendall(b"late")
        assert world.run(outcome, file.read, 1) is OSError


# -- ends


def test_half_close_leaves_the_other_half(world: Any) -> None:
    sock, peer = world.pair()
    peer.sendall(b"last")
    peer.shutdown(socket.SHUT_WR)
    assert world.run(exactly, sock, 100) == b"last"
    assert [world.run(sock.recv, 10) for _ in range(3)] == [b""] * 3
    world.run(sock.sendall, b"answer")
    sock.shutdown(socket.SHUT_WR)
    assert exactly(peer, 100) == b"answer"
    assert world.run(outcome, sock.sendall, b"more") == BROKEN
    assert world.run(outcome, sock.send, b"more") == BROKEN


def test_a_socket_shut_for_reading_still_gives_what_has_come(world: Any) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    peer.sendall(b"hello")
    assert select.select([sock], [], [], PATIENCE)[0]
    sock.shutdown(socket.SHUT_RD)
    assert [world.run(sock.recv, 3) for _ in range(4)] == [b"hel", b"lo", b"", b""]
    world.run(sock.sendall, b"answer")
    assert peer.recv(10) == b"answer"


def test_a_peers_reset_is_an_error_once(world: Any) -> None:
    sock, peer = world.pair()
    reading = world.parks(outcome, sock.recv, 10)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert reading.result(PATIENCE) == (ConnectionResetError, errno.ECONNRESET)
    assert world.run(outcome, sock.recv, 10) == b""
    assert world.run(outcome, sock.sendall, b"x") == BROKEN


def test_a_reset_in_the_middle_of_sending(world: Any) -> None:
    """What has been sent till then counts for send(), and sendall() fails."""
    for call, expected in (("send", None), ("sendall", (ConnectionResetError, errno.ECONNRESET))):
        sock, peer = world.pair()
        sending = world.parks(outcome, getattr(sock, call), BIG)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        result = sending.result(PATIENCE)
        assert result == expected if expected else 0 < result < len(BIG)


def test_every_call_on_a_closed_socket_fails(world: Any) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    for call in (
        lambda: sock.recv(10), lambda: sock.recv_into(bytearray(9)), lambda: sock.recvfrom(10),
        lambda: sock.recvmsg(10), lambda: sock.send(b"x"), lambda: sock.sendall(b"x"), lambda: sock.sendmsg([b"x"]),
        lambda: sock.sendto(b"x", ("127.0.0.1", 9)), lambda: sock.connect(("127.0.0.1", 9)), sock.accept,
        lambda: sock.shutdown(socket.SHUT_RD), sock.dup, lambda: sock.recv(10, socket.MSG_PEEK),
    ):  # fmt: skip
        assert world.run(outcome, call) == CLOSED
    assert peer.recv(10) == b""


def test_a_file_keeps_its_socket_open(world: Any) -> None:
    sock, peer = world.pair()
    with sock.makefile("rwb") as file:
        sock.close()
        assert sock.fileno() >= 0
        reading = world.parks(file.readline)
        peer.sendall(b"hello\n")
        assert reading.result(PATIENCE) == b"hello\n"
    assert sock.fileno() == -1
    assert peer.recv(10) == b""


@pytest.mark.parametrize(("timeout", "blocking"), [(None, True), (5.0, False), (0.0, False)])
def test_detach_gives_the_descriptor_in_the_mode_that_the_socket_had(world: Any, timeout: Any, blocking: bool) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    sock.settimeout(timeout)
    number = sock.fileno()
    with socket.socket(fileno=world.run(sock.detach)) as plain:
        assert (plain.fileno(), sock.fileno(), sock.detach()) == (number, -1, -1)
        assert os.get_blocking(number) is blocking
        plain.sendall(b"plain")
        assert peer.recv(10) == b"plain"


def test_a_copy_outlives_the_original(world: Any) -> None:
    sock, peer = world.pair()
    read_short(world, sock, peer)
    sock.settimeout(PATIENCE)
    copy = world.own(world.run(sock.dup))
    assert type(copy) is type(sock)
    assert copy.gettimeout() == PATIENCE
    assert copy.fileno() != sock.fileno()
    assert not os.get_inheritable(copy.fileno())
    world.run(sock.close)
    reading = world.parks(copy.recv, 10)
    peer.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"


def test_a_copy_made_elsewhere_is_as_good(world: Any) -> None:
    sock, peer = world.pair()
    copy = world.own(sock.dup())
    reading = world.parks(copy.recv, 10)
    peer.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"


# -- woken from elsewhere

PARKED: dict[str, Callable[[Any], Any]] = {
    "recv": lambda sock: sock.recv(100),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvfrom": lambda sock: sock.recvfrom(10)[0],
    "recvmsg": lambda sock: sock.recvmsg(10)[0],
    "readline": lambda sock: sock.makefile("rb").readline(),
    "sendall": lambda sock: sock.sendall(BIG),
}


@pytest.fixture(params=["same", "other"])
def elsewhere(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`elsewhere(world, call)`: made by another green thread of the same loop, or by another OS thread."""
    return lambda world, call: world.run(call) if request.param == "same" else call()


@pytest.mark.parametrize("name", PARKED)
def test_shutdown_wakes_whoever_waits(world: Any, name: str, elsewhere: Callable[..., Any]) -> None:
    sock, _ = world.pair()
    waiting = world.parks(outcome, PARKED[name], sock)
    elsewhere(world, lambda: sock.shutdown(socket.SHUT_RDWR))
    assert waiting.result(PATIENCE) == {"sendall": BROKEN, "recv_into": 0}.get(name, b"")


def test_shutdown_of_a_listener_wakes_accept(world: Any, elsewhere: Callable[..., Any]) -> None:
    listener = world.listener()
    accepting = world.parks(outcome, listener.accept)
    elsewhere(world, lambda: listener.shutdown(socket.SHUT_RDWR))
    assert accepting.result(PATIENCE) == (OSError, errno.EINVAL)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("name", ["accept", *PARKED])
def test_close_wakes_whoever_waits(green_world: Any, name: str, timeout: Any, elsewhere: Callable[..., Any]) -> None:
    """A blocking socket's call may go on for ever, its next one fails with EBADF."""
    if name == "readline":
        pytest.skip("a file keeps its socket open")
    sock = green_world.listener() if name == "accept" else green_world.pair()[0]
    sock.settimeout(timeout)
    waiting = green_world.parks(outcome, PARKED.get(name, lambda sock: sock.accept()), sock)
    elsewhere(green_world, sock.close)
    assert waiting.result(PATIENCE) == CLOSED

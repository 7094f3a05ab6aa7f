"""How sockets' readiness is learned: nothing is lost, nothing spins, nothing is left, and numbers are used again.

On both loops, and by both ways to learn. What the calls then do is in `test_green_sockets`.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from portico import green

from .green_worlds import GREEN, PATIENCE, exactly, outcome, tcp_pair, world_named
from .waiting import until

CLOSED = (OSError, errno.EBADF)
RESET = (ConnectionResetError, errno.ECONNRESET)


@pytest.fixture(params=GREEN)
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ask_and_answer(world: Any, sock: Any, peer: socket.socket) -> None:
    """A read that waits, so that the socket is known, and a write that waits."""
    reading = world.parks(sock.recv, 100)
    peer.sendall(b"ask")
    assert reading.result(PATIENCE) == b"ask"
    answer = bytes(5_000_000)
    writing = world.parks(sock.sendall, answer)
    assert exactly(peer, len(answer)) == answer
    writing.result(PATIENCE)


def renumbered(sock: socket.socket, number: int) -> socket.socket:
    """The same connection under a number that has just become free."""
    if sock.fileno() == number:
        return sock
    assert not is_open(number)
    with sock:
        return socket.socket(fileno=os.dup2(sock.fileno(), number, inheritable=False))


def is_open(number: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


# -- numbers


@pytest.mark.parametrize("way", ["same", "other", "detach", "parked", "peer first", "reset"])
def test_a_number_that_is_used_again_works(world: Any, way: str) -> None:
    sock, peer = world.pair()
    number = sock.fileno()
    for _ in range(5):
        here, next_peer = world.own(*tcp_pair())  # now: later the number might be theirs
        ask_and_answer(world, sock, peer)
        waiting = world.parks(outcome, sock.recv, 10) if way == "parked" else None
        if way == "peer first":
            peer.close()
        elif way == "reset":
            reset(peer)
        if way == "detach":
            os.close(world.run(sock.detach))
        elif way == "other":
            sock.close()
        else:
            world.run(sock.close)
        assert until(lambda: not is_open(number))
        peer = next_peer
        sock = world.adopt(renumbered(here, number))
        assert sock.fileno() == number
        if waiting is not None:
            assert waiting.result(PATIENCE) == CLOSED
    ask_and_answer(world, sock, peer)


@pytest.mark.parametrize("before", [b"", b"news for the old one"])
def test_a_number_is_used_again_within_one_turn_of_the_loop(world: Any, before: bytes) -> None:
    (first, first_peer), (second, second_peer) = world.own(*tcp_pair()), world.own(*tcp_pair())

    def change() -> Any:
        old = green.GreenSocket(fileno=first.detach())
        assert old.recv(100) == b"hello"
        first_peer.sendall(before)
        number = old.fileno()
        old.close()
        new = world.own(green.GreenSocket(fileno=renumbered(second, number).detach()))
        assert new.fileno() == number
        return new.recv(100)

    changing = world.parks(change)
    first_peer.sendall(b"hello")
    world.others_go_on()
    assert not changing.done()
    second_peer.sendall(b"world")
    assert changing.result(PATIENCE) == b"world"


def test_an_event_that_is_under_way_does_not_hurt_who_has_the_number_next(world: Any) -> None:
    """Two sockets have news at once, and whoever is told first closes the other and opens one with its number."""
    (one, one_peer), (two, two_peer), (here, there) = world.pair(), world.pair(), world.own(*tcp_pair())
    pairs = {one: two, two: one}

    def read(sock: Any) -> Any:
        got = outcome(sock.recv, 10)
        if got != b"news" or pairs[sock].fileno() < 0:
            return got
        number = pairs[sock].fileno()
        pairs[sock].close()
        new = world.own(green.GreenSocket(fileno=renumbered(here, number).detach()))
        return new.recv(10)

    def tell() -> None:
        one_peer.sendall(b"news")
        two_peer.sendall(b"news")

    reading = [world.parks(read, sock) for sock in pairs]
    world.run(tell)
    world.others_go_on()
    there.sendall(b"mine")
    assert sorted((future.result(PATIENCE) for future in reading), key=str) == [CLOSED, b"mine"]


def test_a_number_is_used_again_while_a_copy_lives(world: Any) -> None:
    """The kernel then keeps what it knows of the number that was closed."""
    sock, peer = world.pair()
    ask_and_answer(world, sock, peer)
    number = sock.fileno()
    copy = world.own(world.run(sock.dup))
    for _ in range(3):
        world.run(sock.close)
        sock = world.own(world.run(lambda: green.GreenSocket(fileno=os.dup2(copy.fileno(), number, False))))
        ask_and_answer(world, sock, peer)
    world.run(sock.close)
    here, other = world.own(*tcp_pair())
    new = world.adopt(renumbered(here, number))
    ask_and_answer(world, copy, peer)
    ask_and_answer(world, new, other)
    ask_and_answer(world, copy, peer)


# -- dropped sockets


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("where", ["same", "other"])
def test_a_dropped_socket_leaves_nothing(world: Any, where: str) -> None:
    number, held = -1, []

    def use(here: socket.socket, number: int) -> int:
        sock = green.GreenSocket(fileno=(renumbered(here, number) if number >= 0 else here).detach())
        assert sock.recv(100) == b"hello"
        held.append(sock)
        return sock.fileno()

    for _ in range(5):
        here, there = world.own(*tcp_pair())
        using = world.parks(use, here, number)
        there.sendall(b"hello")
        number = using.result(PATIENCE)
        watched = weakref.ref(held[0])
        (lambda: world.run(held.clear) if where == "same" else held.clear())()
        assert watched() is None
        assert not is_open(number)
        assert there.recv(10) == b""


def test_a_socket_that_somebody_waits_for_is_not_dropped(world: Any) -> None:
    def read() -> bytes:
        with green.GreenSocket(fileno=here.detach()) as sock:
            return sock.recv(5)

    here, there = world.own(*tcp_pair())
    reading = world.parks(read)
    gc.collect()
    there.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"


# -- wake-ups


def test_what_comes_between_the_try_and_the_wait_is_not_lost(world: Any) -> None:
    """A ping-pong, in which now and then either side is the faster one."""

    def pong() -> int:
        count = 0
        while data := sock.recv(100):
            sock.sendall(data)
            count += len(data)
        return count

    for _ in range(10):  # the window is widest while a socket is new
        sock, peer = world.pair()
        answering = world.start(pong)
        for number in range(50):
            peer.sendall(b"x" * (1 + number % 2))
            assert exactly(peer, 1 + number % 2)
        peer.shutdown(socket.SHUT_WR)
        assert answering.result(PATIENCE) == 75


LAST: dict[str, tuple[Callable[[socket.socket], object], Any]] = {
    "end": (lambda peer: peer.shutdown(socket.SHUT_WR), b""),
    "close": (lambda peer: peer.close(), b""),
    "reset": (reset, RESET),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("data", [b"", b"last"])
@pytest.mark.parametrize("way", LAST)
def test_the_peers_end_is_seen_however_close_it_follows(world: Any, way: str, data: bytes, known: bool) -> None:
    end, expected = LAST[way]

    def read() -> Any:  # in one go: nothing of it gives the loop a turn
        peer.sendall(data)
        end(peer)
        return [outcome(sock.recv, 100) for _ in range(1 + bool(data))]

    sock, peer = world.pair()
    if known:
        ask_and_answer(world, sock, peer)
    assert world.run(read) == [data, expected] if data else [expected]


@pytest.mark.parametrize("way", LAST)
def test_the_peers_end_is_seen_by_who_waits(world: Any, way: str) -> None:
    def read() -> Any:
        return [outcome(sock.recv, 100) for _ in range(3)]

    end, expected = LAST[way]
    sock, peer = world.pair()
    reading = world.parks(read)
    peer.sendall(b"last")
    world.others_go_on()
    end(peer)
    assert reading.result(PATIENCE) == [b"last", expected, b""]


def test_a_reset_wakes_the_reader_and_the_writer(world: Any) -> None:
    sock, peer = world.pair()
    waiting = [world.parks(outcome, sock.sendall, bytes(20_000_000)), world.parks(outcome, sock.recv, 10)]
    reset(peer)
    results = [future.result(PATIENCE) for future in waiting]
    assert RESET in results  # one is told, and the other finds a closed connection
    assert results[0] in (RESET, (BrokenPipeError, errno.EPIPE))
    assert results[1] in (RESET, b"")


def test_urgent_data_wakes_and_does_not_spin(world: Any) -> None:
    sock, peer = world.pair()
    ask_and_answer(world, sock, peer)
    reading = world.parks(exactly, sock, 4)
    peer.send(b"ab!", socket.MSG_OOB)
    assert idle(world)
    peer.sendall(b"cd")
    assert reading.result(PATIENCE) == b"abcd"
    assert idle(world)


# -- rest


def idle(world: Any) -> bool:
    """Whether the process does nothing for a while, but to see whether it does."""
    world.others_go_on()
    began = time.process_time()
    threading.Event().wait(0.1)
    return time.process_time() - began < 0.03


@pytest.mark.parametrize("way", LAST)
@pytest.mark.parametrize("known", [False, True])
def test_an_ended_peer_does_not_keep_the_loop_busy(world: Any, way: str, known: bool) -> None:
    """Nobody reads any more; the thread waits for another socket."""

    def read() -> Any:
        got = outcome(sock.recv, 10)
        other.recv(10)
        return got

    (sock, peer), (other, other_peer) = world.pair(), world.pair()
    if known:
        ask_and_answer(world, sock, peer)
    reading = world.parks(read)
    LAST[way][0](peer)
    assert idle(world)
    other_peer.sendall(b"on")
    assert reading.result(PATIENCE) == LAST[way][1]


@pytest.mark.parametrize("waits", ["recv", "sendall"])
def test_one_who_waits_keeps_nothing_busy(world: Any, waits: str) -> None:
    """Neither with data that nobody reads, nor with room that nobody fills, nor with the peer's half closed."""
    sock, peer = world.pair()
    ask_and_answer(world, sock, peer)
    waiting = world.parks(sock.recv, 9) if waits == "recv" else world.parks(sock.sendall, bytes(20_000_000))
    assert idle(world)
    if waits == "sendall":
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        assert idle(world)
        assert len(exactly(peer, 20_000_000)) == 20_000_000
        assert world.run(exactly, sock, 100) == b"unread"
    else:
        peer.sendall(b"read")
    waiting.result(PATIENCE)


# -- closing at a bad moment


def test_close_at_any_moment_wakes_whoever_is_about_to_wait(world: Any) -> None:
    def read(sock: Any) -> Any:
        while data := sock.recv(10):
            assert data == b"x"
            sock.sendall(b"y")
        return data

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns wherever they can
    try:
        for number in range(200):
            sock, peer = world.pair(socket.socketpair)
            reading = world.start(outcome, read, sock)
            for _ in range(2):
                peer.sendall(b"x")
                assert peer.recv(1) == b"y"
            for _ in range(number * 10):
                pass
            sock.close()
            assert reading.result(PATIENCE) == CLOSED
            peer.close()
    finally:
        sys.setswitchinterval(interval)


def test_two_threads_may_close_at_once(world: Any) -> None:
    for _ in range(50):
        sock, peer = world.pair(tcp_pair)
        waiting = world.start(outcome, sock.recv, 10)
        closing = threading.Thread(target=sock.close)
        closing.start()
        world.run(sock.close)
        closing.join(PATIENCE)
        assert waiting.result(PATIENCE) == CLOSED
        assert peer.recv(10) == b""

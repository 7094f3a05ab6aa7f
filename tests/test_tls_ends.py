"""How an encrypted socket ends, and half ends: close_notify, half-close, unwrap, detach; and who is there meanwhile.

`ssl.SSLSocket` is no model here: it says nothing to its peer when it is shut down, and forgets how to decrypt.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from .certificates import Authority
from .green_worlds import PATIENCE, exactly, outcome, tcp_pair
from .loops import in_a_thread
from .secured import OURS, WORLDS, Certificates, certificates, clean_rest, secured_world

RANDOM = random.Random(6).randbytes(1 << 21)
PAIRS = [tcp_pair, socket.socketpair]
SHORT = 0.05


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


@pytest.fixture(params=["ours"])
def threads(known: Certificates) -> Iterator[Any]:
    with secured_world("threads", known) as made:
        yield made


# -- the peer's end


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_clean_end_is_told_from_a_truncated_one(ours: Any, version: ssl.TLSVersion) -> None:
    for clean in (True, False):
        sock, peer = ours.secure(context=ours.known.context(version=version), on_paper=True)
        assert sock.version() == version.name.replace("_", ".")
        peer.sock.sendall(peer.record(b"hello") + (peer.last_word() if clean else b""))
        assert (ours.run(sock.recv, 9), sock.truncated) == (b"hello", None)
        peer.sock.shutdown(socket.SHUT_WR)
        for _ in range(2):
            assert (ours.run(sock.recv, 9), sock.truncated) == (b"", not clean)
        assert ours.run(sock.recv_into, bytearray(3)) == 0


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_truncated_end_is_an_error_where_that_is_wished(ours: Any, cut: int) -> None:
    """Between two records, or in the middle of one."""
    sock, peer = ours.secure(on_paper=True)
    sock.suppress_ragged_eofs = False
    peer.sock.sendall(peer.record(b"hello") + peer.record(b"again")[:cut])
    peer.sock.shutdown(socket.SHUT_WR)
    assert ours.run(sock.recv, 9) == b"hello"
    for _ in range(2):
        assert ours.run(outcome, sock.recv, 9)[0] is ssl.SSLEOFError
    assert sock.truncated


def test_one_may_answer_after_the_peers_clean_end(ours: Any) -> None:
    sock, peer = ours.secure(on_paper=True)
    peer.sock.sendall(peer.last_word())
    assert ours.run(sock.recv, 9) == b""
    ours.run(sock.sendall, b"the answer")
    ours.run(sock.shutdown, socket.SHUT_WR)
    assert (peer.recv(), peer.recv()) == (b"the answer", b"")


def test_a_reset_is_a_reset(ours: Any) -> None:
    """As over a plain socket; `ssl` takes it for an end."""
    sock, peer = ours.secure(on_paper=True)
    reading = ours.parks(sock.recv, 9)
    peer.reset()
    with pytest.raises(ConnectionResetError):
        reading.result(PATIENCE)


def test_a_truncated_end_does_not_keep_us_from_answering(ours: Any) -> None:
    """As over a plain socket; `ssl` sends nothing more once it has seen one."""
    sock, peer = ours.secure(on_paper=True)
    peer.sock.sendall(peer.record(b"hello"))
    peer.sock.shutdown(socket.SHUT_WR)
    assert (ours.run(exactly, sock, 9), sock.truncated) == (b"hello", True)
    ours.run(sock.sendall, b"the answer")
    ours.run(sock.shutdown, socket.SHUT_WR)
    assert (peer.recv(), peer.recv()) == (b"the answer", b"")


def test_a_bad_record_is_an_error_and_the_peer_is_told(ours: Any) -> None:
    sock, peer = ours.secure(on_paper=True)
    record = bytearray(peer.record(b"hello"))
    record[-1] ^= 1
    peer.sock.sendall(record)
    with pytest.raises(ssl.SSLError) as caught:
        ours.run(sock.recv, 9)
    assert sock.failure is caught.value
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        peer.recv()


# -- our end


@pytest.mark.parametrize("make", PAIRS)
@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_shutdown_says_so_to_the_peer(ours: Any, make: Any, how: int) -> None:
    sock, peer = ours.secure(make)
    ours.run(sock.sendall, b"hello")
    ours.run(sock.shutdown, how)
    assert clean_rest(peer) == b"hello"
    assert issubclass(ours.run(outcome, sock.sendall, b"x")[0], OSError)


def test_a_shutdown_of_reading_says_nothing_to_the_peer(ours: Any) -> None:
    sock, peer = ours.secure()
    ours.run(sock.shutdown, socket.SHUT_RD)
    assert ours.run(sock.recv, 9) == b""
    ours.run(sock.sendall, b"hello")
    assert peer.recv(9) == b"hello"
    ours.run(sock.shutdown, socket.SHUT_WR)
    assert clean_rest(peer) == b""


@pytest.mark.parametrize("make", PAIRS)
@pytest.mark.parametrize("read", [0, 100, 20_000])
def test_a_half_close_loses_nothing_of_what_has_come(ours: Any, make: Any, read: int) -> None:
    """Nothing of a record that is read in part, of what waits in the kernel, and of what is still on its way."""
    sock, peer = ours.secure(make)
    with in_a_thread(peer.sendall, RANDOM):
        begin = ours.run(exactly, sock, read)
        ours.run(sock.shutdown, socket.SHUT_WR)
        assert begin + ours.run(exactly, sock, len(RANDOM) - read) == RANDOM
    assert clean_rest(peer) == b""
    peer.sendall(b"and more")
    assert ours.run(sock.recv, 100) == b"and more"


@pytest.mark.parametrize("make", PAIRS)
def test_one_may_half_close_while_another_one_reads(ours: Any, make: Any) -> None:
    """As a tunnel does, with one thread for each direction."""
    for _ in range(5):
        sock, peer = ours.secure(make)
        reading = ours.start(exactly, sock, len(RANDOM))
        with in_a_thread(peer.sendall, RANDOM):
            ours.run(sock.shutdown, socket.SHUT_WR)
        assert reading.result(PATIENCE) == RANDOM
        assert clean_rest(peer) == b""


def test_who_waits_to_read_goes_on_waiting_after_a_half_close(ours: Any) -> None:
    sock, peer = ours.secure()
    reading = ours.parks(sock.recv, 9)
    ours.run(sock.shutdown, socket.SHUT_WR)
    ours.others_go_on()
    assert not reading.done()
    peer.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"


def test_what_is_cut_during_a_half_close_is_cut(threads: Any) -> None:
    """As a server cuts, which may be in the middle of anything."""
    for _ in range(60):
        sock, peer = threads.secure(socket.socketpair)
        sock.settimeout(PATIENCE)
        one, other = threads.start(sock.shutdown, socket.SHUT_WR), threads.start(sock.portico_cut, socket.SHUT_RDWR)
        one.result(PATIENCE), other.result(PATIENCE)
        assert threads.run(sock.recv, 9) == b""
        with pytest.raises(BrokenPipeError):
            socket.SocketType.send(peer, b"x")
        sock.close()
        peer.close()


def test_what_is_closed_during_a_half_close_closes_nobody_elses(threads: Any) -> None:
    for _ in range(30):
        sock, peer = threads.secure(socket.socketpair)
        with ThreadPoolExecutor(3) as pool:
            ends = [pool.submit(outcome, sock.shutdown, socket.SHUT_WR), pool.submit(sock.close)]
            made = pool.submit(lambda: [os.pipe() for _ in range(3)]).result()
        for read, write in made:
            os.write(write, b"x")
            assert os.read(read, 9) == b"x"
            os.close(read)
            os.close(write)
        assert [end.result(PATIENCE) for end in ends][1] is None
        peer.close()


def test_a_last_word_waits_for_what_is_still_to_be_sent(ours: Any) -> None:
    """What a timeout has left behind is sent before it, if there is room within a second."""
    sock, peer = ours.secure(socket.socketpair)
    sock.settimeout(SHORT)
    assert ours.run(outcome, sock.sendall, RANDOM) is TimeoutError
    closing = ours.parks(sock.shutdown, socket.SHUT_WR)
    rest = clean_rest(peer)
    closing.result(PATIENCE)
    assert rest == RANDOM[: len(rest)]


def test_a_peer_that_does_not_read_holds_up_nobody_for_more_than_a_second(known: Certificates) -> None:
    with ExitStack() as stack:
        closings = []
        for world in [stack.enter_context(secured_world(name, known)) for name in OURS]:
            sock, _ = world.secure(socket.socketpair)
            sock.settimeout(SHORT)
            assert world.run(outcome, sock.sendall, RANDOM) is TimeoutError
            closings.append(world.parks(sock.shutdown, socket.SHUT_WR))
        with pytest.raises(TimeoutError):
            closings[0].result(0.5)
        for closing in closings:
            closing.result(1.5)


def _full(world: Any) -> tuple[Any, Any]:
    """A connection with as much underway as there is room for; and its peer."""
    here, there = tcp_pair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    sock, peer = world.secure(lambda: (here, there))
    sock.settimeout(SHORT)
    for _ in range(3):  # TCP makes room where there was none
        assert world.run(outcome, sock.sendall, RANDOM) is TimeoutError
    return sock, peer


def _read_slowly(peer: Any) -> int:
    """So slowly that it takes more than a second until there is room for a word more; then at once."""
    total, began = 0, time.monotonic()
    while piece := peer.recv(3_000):
        total += len(piece)
        if time.monotonic() - began < 1.6:
            time.sleep(0.05)
    return total


def _seconds_to_shut(sock: Any) -> float:
    began = time.monotonic()
    sock.shutdown(socket.SHUT_WR)
    return time.monotonic() - began


def test_a_peer_that_reads_slowly_is_waited_for(known: Certificates) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(len(OURS)) as pool:
        ends = []
        for world in [stack.enter_context(secured_world(name, known)) for name in OURS]:
            sock, peer = _full(world)
            ends.append((world.start(_seconds_to_shut, sock), pool.submit(_read_slowly, peer)))
        assert all(reading.result(PATIENCE) > 100_000 for _, reading in ends)  # and a clean end
        assert max(closing.result(PATIENCE) for closing, _ in ends) > 1.0


# -- and then in plain text


def test_after_unwrap_it_goes_on_in_plain_text(world: Any) -> None:
    sock, peer = world.secure()
    unwrapping = world.parks(sock.unwrap)
    plain = world.own(peer.unwrap())
    left = unwrapping.result(PATIENCE)
    assert left is sock
    assert (sock.version(), sock.cipher()) == (None, None)
    reading = world.parks(left.recv, 9)
    plain.sendall(b"hello")
    assert reading.result(PATIENCE) == b"hello"
    world.run(left.sendall, b"back")
    assert plain.recv(9) == b"back"
    left.settimeout(SHORT)
    assert world.run(outcome, left.recv, 9) is TimeoutError


@pytest.mark.parametrize("file", [False, True])
def test_plain_text_may_come_with_the_end_of_the_encrypted_one(world: Any, file: bool) -> None:
    sock, peer = world.secure(on_paper=True)
    peer.sock.sendall(peer.record(b"bye") + peer.last_word() + b"in plain text")
    assert (world.run(sock.recv, 9), world.run(sock.recv, 9)) == (b"bye", b"")
    left = world.run(sock.unwrap)
    if file:
        with left.makefile("rb") as lines:
            assert world.run(lines.read, 13) == b"in plain text"
    else:
        assert (world.run(left.recv, 5), world.run(left.recv, 99)) == (b"in pl", b"ain text")
    peer.sock.sendall(b"more")
    assert world.run(left.recv, 9) == b"more"


def test_after_unwrap_it_may_be_encrypted_again(ours: Any) -> None:
    sock, peer = ours.secure(on_paper=True)
    peer.sock.sendall(peer.last_word())
    assert ours.run(sock.recv, 9) == b""
    assert ours.run(sock.unwrap) is sock
    peer.recv()
    sock.begin(ours.known.context())
    opening = ours.start(sock.do_handshake)
    again = type(peer)(peer.sock, ours.known.trust())
    opening.result(PATIENCE)
    again.sock.sendall(again.record(b"hello"))
    assert (ours.run(sock.recv, 9), sock.truncated) == (b"hello", None)


def test_who_detaches_it_has_the_connection_as_it_was(world: Any) -> None:
    for seconds in (None, 5.0):
        sock, peer = world.secure(on_paper=True)
        sock.settimeout(seconds)
        descriptor = world.run(sock.detach)
        with socket.socket(fileno=descriptor) as raw:
            assert sock.fileno() == -1
            assert os.get_blocking(descriptor) == (seconds is None)
            record = peer.record(b"hello")
            peer.sock.sendall(record)
            raw.settimeout(PATIENCE)
            assert exactly(raw, len(record)) == record


# -- what is told about it


def test_it_is_an_ssl_socket_to_who_asks(world: Any) -> None:
    context, trust = world.known.context(), world.known.trust()
    for side in (context, trust):
        side.set_alpn_protocols(["h2", "echo"])
    sock, peer = world.secure(context=context, trust=trust)
    assert isinstance(sock, ssl.SSLSocket)
    assert (sock.version(), sock.cipher(), sock.compression()) == (peer.version(), peer.cipher(), None)
    assert (sock.selected_alpn_protocol(), sock.server_side, sock.context) == ("h2", True, context)
    assert (sock.getpeercert(), sock.getpeercert(True), sock.session_reused) == (None, None, False)
    assert (sock.getpeername(), sock.getsockname()) == (peer.getsockname(), peer.getpeername())
    assert isinstance(sock.session, ssl.SSLSession)
    assert peer.cipher() in sock.shared_ciphers()
    assert sock.fileno() > 0
    assert sock.get_channel_binding("tls-unique") == peer.get_channel_binding("tls-unique")
    with pytest.raises(ValueError, match="not implemented"):
        sock.get_channel_binding("tls-exporter")


def test_a_clients_certificate_is_seen(world: Any) -> None:
    context = world.known.context()
    context.load_verify_locations(world.known.authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    trust = world.known.trust(pair=world.known.authority.client("someone@example.org"))
    sock, _ = world.secure(context=context, trust=trust)
    assert dict(part[0] for part in sock.getpeercert()["subject"])["commonName"] == "someone@example.org"
    assert sock.getpeercert(True).startswith(b"\x30")


# -- several at once


def _say(sock: Any, who: int, many: int) -> None:
    """Messages, each of one who can be told, by its length."""
    sizes = random.Random(who)
    for number in range(many):
        size = sizes.choice((1, 50, 16_384, 40_000))
        sock.sendall(struct.pack("!BHI", who, number, size) + bytes([who]) * size)


def _heard(peer: Any, total: int) -> dict[int, int]:
    """How many messages of each, all of them whole and in order."""
    heard: dict[int, int] = {}
    for _ in range(total):
        who, number, size = struct.unpack("!BHI", exactly(peer, 7))
        assert number == heard.get(who, 0)
        assert exactly(peer, size) == bytes([who]) * size
        heard[who] = number + 1
    return heard


@pytest.mark.parametrize("seconds", [None, 30.0])
@pytest.mark.parametrize("make", PAIRS)
def test_messages_of_several_are_never_mixed(ours: Any, make: Any, seconds: float | None) -> None:
    """The broadcast of a chat: several send to one who takes his time, and one reads meanwhile."""
    sock, peer = ours.secure(make, on_paper=True)
    sock.settimeout(seconds)
    echo = ours.start(exactly, sock, len(RANDOM) // 4)
    with in_a_thread(peer.sendall, RANDOM[: len(RANDOM) // 4]):
        senders = [ours.start(_say, sock, who, 30) for who in range(6)]
        ours.others_go_on()
        assert _heard(peer, 180) == dict.fromkeys(range(6), 30)
    for sender in senders:
        sender.result(PATIENCE)
    assert echo.result(PATIENCE) == RANDOM[: len(RANDOM) // 4]


def test_who_waits_for_his_turn_waits_no_longer_than_his_timeout(ours: Any) -> None:
    sock, peer = ours.secure(socket.socketpair)
    first = ours.parks(sock.sendall, RANDOM)
    sock.settimeout(SHORT)
    assert ours.run(outcome, sock.sendall, b"second") is TimeoutError
    sock.settimeout(0)
    assert ours.run(outcome, sock.send, b"third")[0] is ssl.SSLWantWriteError
    sock.settimeout(None)
    got = exactly(peer, len(RANDOM))
    first.result(PATIENCE)
    assert got == RANDOM


def test_threads_of_the_system_may_use_a_green_one(known: Certificates) -> None:
    """Their calls block; those of green threads park."""
    with secured_world("green-asyncio", known) as world, ThreadPoolExecutor(1) as pool:
        sock, peer = world.secure(on_paper=True)
        reading = world.parks(sock.recv, 9)
        sending = pool.submit(sock.sendall, RANDOM)
        assert exactly(peer, len(RANDOM)) == RANDOM
        sending.result(PATIENCE)
        peer.sendall(b"hello")
        assert reading.result(PATIENCE) == b"hello"
        peer.sendall(b"again")
        assert pool.submit(sock.recv, 9).result(PATIENCE) == b"again"
        assert threading.active_count() < 20

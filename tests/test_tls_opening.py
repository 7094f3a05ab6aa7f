"""Handshakes that stall, fail or never begin, in every way to run: each costs its own connection, and no other one."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

import pytest

from portico.lifecycle import HookFailed, PeerLeft, Refused, RequestFailed

from .certificates import Authority
from .every_way import Case, in_every_way
from .handshakes import (
    EVERY,
    LATE,
    Opened,
    at_best,
    crowd,
    end_of,
    hello,
    leave,
    reset,
    rest,
    said,
    serving_tls,
)
from .waiting import until

SOON = 0.05
"""Seconds that a shutdown may take."""


# --- Those who say nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", EVERY, ids=str)
def test_a_thousand_stalled_clients_delay_nobody_and_go_with_their_server(way: Case, authority: Authority) -> None:
    """Most of them have said nothing, the others half of a hello."""
    forks = way.way.own_process
    number, honest = (100, 20) if forks else (1000, 50)
    more: Any = {"max_children": 2 * number} if forks else {}

    def slowdown(busy: Opened, quiet: Opened) -> float:
        """How much longer than the quiet server's the busy one's handshakes take, the worst but one of each."""
        took: dict[Opened, list[float]] = {busy: [], quiet: []}
        for _ in range(honest):
            for served, seconds in took.items():
                began = monotonic()
                assert served.asked() == b"hello"
                seconds.append(monotonic() - began)
        slow, normal = (sorted(found)[-2] for found in took.values())
        return slow / max(normal, 0.005)

    def shutdown() -> float:
        with (
            serving_tls(way, authority, handshake_timeout=60.0, **more) as busy,
            serving_tls(way, authority, **more) as quiet,
            crowd(busy, number - number // 10) as silent,
            crowd(busy, number // 10, hello()[:100]) as half,
        ):
            assert until(lambda: busy.server.stats().opening == number)
            assert at_best(lambda: slowdown(busy, quiet), 2.0) <= 2.0
            began = monotonic()
            busy.server.shutdown()
            lasted = monotonic() - began
            busy.server.server_close()
            for client in silent + half:
                rest(client)
            assert monotonic() - began < 2
            reasons = busy.all_over(len(busy.ends()))
            assert reasons["drained"] == number
            assert set(reasons) == {"done", "drained"}
            assert busy.handled() == reasons["done"]
            assert not busy.failures()
        return lasted

    assert at_best(shutdown, SOON) < SOON


def test_a_place_is_free_when_a_silent_client_s_time_is_over(authority: Authority) -> None:
    def one(way: Case) -> None:
        def wait() -> float:
            with serving_tls(way, authority, handshake_timeout=0.4, max_connections=1) as served:
                began = monotonic()
                with crowd(served, 1) as (silent,):
                    assert until(lambda: served.server.stats().active == 1)
                    assert served.asked() == b"hello"
                    waited = monotonic() - began
                    assert rest(silent) == b""
                assert served.all_over(2) == {"handshake_timeout": 1, "done": 1}
                assert served.failures() == {"handshake_timeout": 1}
            assert waited >= 0.39
            return waited

        assert at_best(wait, 0.5) <= 0.5 + LATE

    in_every_way(EVERY)(one)()


def test_the_time_is_one_for_the_whole_handshake(authority: Authority) -> None:
    """A client that says a byte now and then has no more of it."""

    def one(way: Case) -> None:
        with serving_tls(way, authority, handshake_timeout=0.4) as served, crowd(served, 1) as (client,):
            began = monotonic()
            with suppress(ConnectionError):
                for byte in hello():
                    if monotonic() - began > 0.4 + 2 * LATE:
                        break
                    client.sendall(bytes([byte]))
                    time.sleep(0.02)
            assert end_of(client, began) < 0.4 + 2 * LATE
            assert served.all_over(1) == served.failures() == {"handshake_timeout": 1}
            assert served.failure_texts() != ["handshake_timeout "], "a reason without a word"
            assert not served.notes()

    in_every_way(EVERY)(one)()


def test_the_time_does_not_count_for_what_comes_after_the_handshake(authority: Authority) -> None:
    def one(way: Case) -> None:
        with serving_tls(way, authority, handshake_timeout=0.3) as served:
            client = served.open()
            time.sleep(0.5)
            assert said(client, b"still here") == b"still here"
            leave(client)
            assert served.all_over(1) == {"done": 1}

    in_every_way(EVERY)(one)()


# --- Those who say something else ---------------------------------------------------------------------------------


def _record(kind: int, body: bytes, *, version: int = 0x0301, length: int | None = None) -> bytes:
    return struct.pack("!BHH", kind, version, len(body) if length is None else length & 0xFFFF) + body


def _old_hello(version: int) -> bytes:
    """That of a client who knows no newer version, nor any extension."""
    body = struct.pack("!H32sB", version, bytes(32), 0) + b"\0\4\xc0\x13\0\x2f" + b"\1\0"
    return _record(22, b"\1" + len(body).to_bytes(3, "big") + body)


FAILED, LEFT = "handshake_failed", "peer_left"
_V2 = b"\x01\x00\x02\x00\x03\x00\x00\x00\x10\x01\x00\x80" + bytes(16)
BEGINNINGS = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", FAILED),
    "a proxy's CONNECT": (b"CONNECT localhost:443 HTTP/1.1\r\n\r\n", FAILED),
    "lines": (b"EHLO localhost\r\n", FAILED),
    "zeros": (bytes(64), FAILED),
    "SSL 2": (struct.pack("!H", 0x8000 | len(_V2)) + _V2, FAILED),
    "SSL 3": (_old_hello(0x0300), FAILED),
    "TLS 1.0": (_old_hello(0x0301), FAILED),
    "TLS 1.1": (_old_hello(0x0302), FAILED),
    "an alert": (_record(21, b"\2\x28"), FAILED),
    "data": (_record(23, bytes(100)), FAILED),
    "a change of ciphers": (_record(20, b"\1"), FAILED),
    "an unknown kind of record": (_record(99, bytes(100)), FAILED),
    "a record of an unknown version": (_record(22, bytes(100), version=0x0999), FAILED),
    "a record longer than may be": (_record(22, bytes(100), length=0x4801), FAILED),
    "the longest record there could be": (_record(22, bytes(100), length=-1), FAILED),
    "another message than a hello": (_record(22, b"\x0b\0\0\1\0"), FAILED),
    "a hello longer than may be": (_record(22, b"\1\xff\xff\xff" + bytes(100)), FAILED),
    "a hello shorter than it must be": (_record(22, b"\1\0\0\1\0"), FAILED),
    "a hello of nothing": (_record(22, b"\1\0\0\0"), FAILED),
    "a name that is no ASCII": (hello().replace(b"localhost", b"l\xf6calhost"), FAILED),
    "nothing": (b"", LEFT),
    "one byte": (b"\x16", LEFT),
    "the head of a record": (b"\x16\3\1\2\0", LEFT),
    "half of a hello": (hello()[: len(hello()) // 2], LEFT),
    "a hello and no more": (hello(), LEFT),
}


# CPython itself shows a name that is no ASCII to `sys.unraisablehook`, and refuses it.
names_are_shown = pytest.mark.filterwarnings("ignore:Exception ignored in. b:pytest.PytestUnraisableExceptionWarning")


def _say(served: Opened, sayings: Iterable[bytes], at_once: int = 12) -> int:
    """Connect for each, say it, and nothing more; so many are there at once. Returns how many there were."""
    there: deque[Any] = deque()
    number = 0
    with ExitStack() as stack:
        for words in sayings:
            client = served.connect()
            stack.callback(client.close)
            number += 1
            with suppress(OSError):  # the server was first
                client.sendall(words)
                client.shutdown(socket.SHUT_WR)
            there.append(client)
            if len(there) >= at_once:
                _end(there.popleft())
        for client in there:
            _end(client)
    return number


def _end(client: Any) -> None:
    answer = rest(client)
    assert answer[:1] in (b"", b"\x15", b"\x16", b"\x14"), answer  # nothing, or records: never plain text
    leave(client)


@names_are_shown
def test_who_speaks_no_tls_is_ended_and_told_of_once(authority: Authority) -> None:
    def one(way: Case) -> None:
        with serving_tls(way, authority) as served:
            _say(served, (words for words, _ in BEGINNINGS.values()), at_once=1)
            assert served.asked() == b"hello"
            wanted = Counter(reason for _, reason in BEGINNINGS.values())
            assert served.all_over(len(BEGINNINGS) + 1) == {**wanted, "done": 1}
            assert served.failures() == wanted
            assert served.handled() == 1

    in_every_way(EVERY)(one)()


def test_hellos_cut_off_after_every_byte_end_their_own_connection(authority: Authority) -> None:
    def one(way: Case) -> None:
        step = 24 if way.way.own_process or way.way.own_thread else 1
        with serving_tls(way, authority) as served:
            number = _say(served, (hello()[:length] for length in range(0, len(hello()), step)))
            assert served.asked() == b"hello"
            assert served.all_over(number + 1) == {LEFT: number, "done": 1}
            assert served.failures() == {LEFT: number}
            assert served.handled() == 1

    in_every_way(EVERY)(one)()


def _bad(random: random.Random) -> bytes:
    """A beginning that is none, of any of the kinds that come to mind."""
    words = bytearray(hello())
    match random.randrange(6):
        case 0:
            return random.randbytes(random.randrange(600))
        case 1:  # a record of anything
            body = random.randbytes(random.randrange(300))
            version = random.choice((0x0300, 0x0301, 0x0303, random.randrange(1 << 16)))
            wrong = random.choice((None, random.randrange(1 << 16)))
            return _record(
                random.choice((20, 21, 22, 23, 24, random.randrange(256))), body, version=version, length=wrong
            )
        case 2:  # a message of anything
            body = random.randbytes(random.randrange(300))
            length = random.choice((len(body), random.randrange(1 << 24)))
            return _record(22, bytes([random.choice((1, random.randrange(256)))]) + length.to_bytes(3, "big") + body)
        case 3:  # some bytes of a hello are others
            for _ in range(random.randrange(1, 9)):
                words[random.randrange(len(words))] = random.randrange(256)
            return bytes(words)
        case 4:  # something is missing, or too much
            place = random.randrange(len(words))
            del words[place : place + random.randrange(40)]
            words[place:place] = random.randbytes(random.randrange(40))
            return bytes(words)
        case _:
            return bytes(words[: random.randrange(len(words))]) + random.randbytes(random.randrange(50))


@names_are_shown
@pytest.mark.parametrize("way", EVERY, ids=str)
def test_thousands_of_random_beginnings_end_their_own_connections(way: Case, authority: Authority) -> None:
    source = random.Random(str(way))
    number = 100 if way.way.own_process else 1100
    with serving_tls(way, authority) as served:
        _say(served, (_bad(source) for _ in range(number)))
        assert served.asked() == b"hello"
        reasons = served.all_over(number + 1)
        assert reasons.pop("done") == 1
        assert served.failures() == reasons
        assert set(reasons) == {FAILED, LEFT}
        assert served.handled() == 1


def test_a_hello_without_an_end_is_not_waited_for(authority: Authority) -> None:
    """As many records of it as there may be are read, and not more."""

    def one(way: Case) -> None:
        with serving_tls(way, authority) as served, crowd(served, 1) as (client,):
            piece = bytes(1 << 14)
            sent = 0
            with suppress(ConnectionError):
                client.sendall(_record(22, b"\1\xff\xff\xff" + bytes(1000)))
                while sent < 64 << 20:
                    sent += client.send(_record(22, piece))
            assert sent < 16 << 20
            assert served.all_over(1) == served.failures() == {FAILED: 1}

    in_every_way(EVERY)(one)()


def test_who_leaves_in_the_middle_is_told_of_as_one_who_has_left(authority: Authority) -> None:
    """By closing, and by a reset, before anything was said and after the server's answer."""

    def one(way: Case) -> None:
        with serving_tls(way, authority) as served:
            for words in (b"", hello()[:9], hello()):
                for end in (leave,) if way.is_unix else (leave, reset):
                    client = served.connect()
                    client.sendall(words)
                    if words == hello():
                        assert client.recv(1) == b"\x16"
                    assert until(lambda: served.server.stats().opening == 1)
                    end(client)
                    assert until(lambda: served.server.stats().opening == 0)
            assert served.asked() == b"hello"
            number = 3 if way.is_unix else 6
            assert served.all_over(number + 1) == {LEFT: number, "done": 1}
            assert served.failures() == {LEFT: number}
            assert served.handled() == 1

    in_every_way(EVERY)(one)()


def test_a_client_that_does_not_believe_the_certificate_says_so_and_is_told_of(authority: Authority) -> None:
    def one(way: Case) -> None:
        with serving_tls(way, authority) as served:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                stranger = ssl.create_default_context()
                stranger.minimum_version = stranger.maximum_version = version
                with pytest.raises(ssl.SSLCertVerificationError):
                    served.open(stranger)
            assert served.all_over(2) == served.failures() == {FAILED: 2}
            assert all("alert unknown ca" in text.lower() for text in served.failure_texts()), served.failure_texts()

    in_every_way(EVERY)(one)()


def test_who_does_not_begin_when_told_to_is_ended_in_time(authority: Authority) -> None:
    """STARTTLS: the same deadline, and whose fault it is."""

    async def start(peer: Any) -> None:
        peer.note("handled")
        starting = peer.handler.start_tls()
        if starting is not None:
            await starting

    def one(way: Case) -> None:
        with (
            serving_tls(way, authority, start, starttls=True, handshake_timeout=0.3) as served,
            crowd(served, 1, hello()[:50]) as (client,),
        ):
            began = monotonic()
            assert rest(client)[:1] in (b"", b"\x15")
            assert 0.28 < monotonic() - began < 0.3 + LATE
            assert served.all_over(1) == {"handshake_timeout": 1}
            if not way.way.own_process:
                assert len(served.of_kind(PeerLeft)) == 1
            assert not served.of_kind(RequestFailed)

    in_every_way(EVERY)(one)()


# --- How many at once ---------------------------------------------------------------------------------------------


def test_one_handshake_too_many_takes_the_place_of_the_oldest_who_is_silent(authority: Authority) -> None:
    def one(way: Case) -> None:
        with ExitStack() as stack, serving_tls(way, authority, max_handshakes=3, handshake_timeout=60.0) as served:

            def come(words: bytes = b"") -> Any:
                return stack.enter_context(crowd(served, 1, words))[0]

            stats = served.server.stats
            speaks = come(hello()[:100])
            assert until(lambda: stats().opening == 1)
            silent = [come(), come()]
            assert until(lambda: stats().opening == 3)
            new = come()  # in the place of the first who is silent
            assert rest(silent[0]) == b""
            assert until(lambda: len(served.ends()) == 1)
            assert served.reasons() == ["handshake_timeout"]
            assert stats().opening == 3
            assert served.asked() == b"hello"  # and an honest one in the place of the next
            assert rest(silent[1]) == b""
            last = come(hello()[:200])
            new.sendall(hello()[:5])
            assert until(lambda: stats().opening == 3)
            time.sleep(0.1)  # until what has been said is there
            assert rest(come()) == b""
            assert stats().refused == {"max_handshakes": 3}  # two have made room for others
            assert [event.reason for event in served.of_kind(Refused)] == ["max_handshakes"]
            leave(speaks)
            assert until(lambda: stats().opening == 2)
            assert served.asked() == b"hello"
            for client in (new, last):
                leave(client)
            assert served.all_over(7) == {"handshake_timeout": 2, LEFT: 3, "done": 2}
            assert served.failures() == {"handshake_timeout": 2, LEFT: 3}

    in_every_way(EVERY)(one)()


def test_one_that_has_to_make_room_before_anybody_has_looked_at_it_is_told_of_too(authority: Authority) -> None:
    def one(way: Case) -> None:
        with serving_tls(way, authority, max_handshakes=1, handshake_timeout=60.0) as served:
            served.server.suspend()
            with crowd(served, 3) as clients:
                served.server.resume()
                for client in clients[:2]:
                    assert rest(client) == b""
                assert until(lambda: served.server.stats().opening == 1)
            assert served.all_over(3) == {"handshake_timeout": 2, LEFT: 1}
            assert served.failures() == {"handshake_timeout": 2, LEFT: 1}

    in_every_way(EVERY)(one)()


# --- The end of a server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["drain", "server_close", "cut"])
def test_handshakes_under_way_are_ended_with_their_server_at_once(end: str, authority: Authority) -> None:
    def one(way: Case) -> None:
        # With `max_handshakes` a forking server has copies of its children's connections, and ends these otherwise.
        most = 50 if end != "cut" else None
        with (
            serving_tls(way, authority, handshake_timeout=60.0, max_handshakes=most) as served,
            crowd(served, 3) as silent,
            crowd(served, 2, hello()[:100]) as half,
            crowd(served, 2, hello()) as whole,
        ):
            assert until(lambda: served.server.stats().opening == 7)
            if not way.one_by_one:  # those who have said something are opened elsewhere than in the loop
                assert until(lambda: sum(one.runner is not None for one in served.server.connections()) >= 4)
            began = monotonic()
            if end == "drain":
                assert not served.server.drain(5).cut
            elif end == "cut":
                for connection in served.server.connections():
                    connection.close()
            else:
                served.server.server_close()
            for client in silent + half + whole:
                rest(client)
            assert monotonic() - began < 1
            if end == "cut":
                assert served.asked() == b"hello"
                assert served.all_over(8) == {"closed": 7, "done": 1}
            else:
                assert served.all_over(7) == {"drained": 7}
            assert not served.failures()

    in_every_way(EVERY)(one)()


# CPython's wrap_socket does not close the client's side if that is reset before it has begun.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("end", ["drain", "server_close"])
def test_a_server_that_ends_amid_a_crowd_of_handshakes_loses_count_of_none(end: str, authority: Authority) -> None:
    """Each is opened and served, or ended, or was never let in."""

    def one(way: Case) -> None:
        with serving_tls(way, authority) as served:
            over = threading.Event()

            def come() -> None:
                while not over.is_set():
                    with suppress(OSError):  # the server was first
                        served.asked()

            crowds = [threading.Thread(target=come) for _ in range(4)]
            for thread in crowds:
                thread.start()
            try:
                assert until(lambda: len(served.ends()) >= 20)
                getattr(served.server, end)()
            finally:
                over.set()
                for thread in crowds:
                    thread.join()
            assert until(lambda: served.server.stats().active == 0)
            reasons = served.all_over(len(served.ends()))
            assert reasons["done"] >= 20
            assert set(reasons) <= {"done", "drained", "peer_left", "cut"}
            assert not served.of_kind(RequestFailed)
            assert not served.of_kind(HookFailed)

    in_every_way(EVERY)(one)()

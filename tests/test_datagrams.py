"""Each datagram answered exactly once, whole, in order, from the address that was asked: in every way to run."""

from __future__ import annotations

import random
import socket
from collections import defaultdict, deque
from contextlib import ExitStack
from typing import Any

import pytest

import portico
from portico.lifecycle import DatagramsTruncated

from .contract.flavours import short_folder
from .packets import (
    EVERY_WAY,
    ON_LOOPS,
    ORDERED,
    answer,
    ask,
    heard,
    made,
    peer,
    serving,
    silent,
    waits_for,
)
from .waiting import until

MOST = 64
UDP_SEGMENT = 103


# -- a lot of them

OURS = [*(f"127.0.0.{number}" for number in range(1, 10)), "::1"]
NUMBER = {"threads": 20_000, "forks": 200}


class Client:
    """One peer, who asks one of the server's addresses, and knows what has to come back."""

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self.sock = sock
        self.server = (host, port)
        self.expected: deque[bytes] = deque()

    def send(self, payload: bytes) -> None:
        self.expected.append(payload)
        self.sock.sendto(payload, self.server)

    def hear_all(self, *, ordered: bool) -> None:
        while self.expected:
            payload, sender = self.sock.recvfrom(100)
            assert sender[:2] == self.server, f"{self.server} was asked, {sender} has answered"
            if ordered:
                assert payload == self.expected.popleft()
            else:
                self.expected.remove(payload)  # which raises if it was not asked, or was answered before


@pytest.mark.parametrize("unmap", [False, True])
@EVERY_WAY
def test_each_of_many_is_answered_once_in_order_and_from_where_it_was_asked(way: str, unmap: bool) -> None:
    """In batches of 1 to 64 of several peers, at nine addresses and over IPv6, on one socket."""
    number = NUMBER.get(way, 100_000) // 2
    chance = random.Random(seed := random.randrange(1 << 32))
    with ExitStack() as stack:
        server = stack.enter_context(serving(way, address=("::", 0), dual_stack=True, unmap_ipv4=unmap))
        port = server.server_address[1]
        clients = [
            Client(stack.enter_context(peer("::1" if ":" in host else "127.0.0.1")), host, port) for host in OURS
        ]
        sent = 0
        while sent < number:
            for count in range(sent, min(number, sent + chance.randint(1, MOST))):
                chance.choice(clients).send(b"%d" % count)
                sent += 1
            for client in clients:
                client.hear_all(ordered=way in ORDERED)
        assert silent(*(client.sock for client in clients)), f"random seed {seed}"
        assert server.stats().accepted == number
        assert until(lambda: server.stats().done == number)
        assert server.stats().kernel_drops in (0, None)


@pytest.mark.parametrize("size", [1, 1000, 1300])
@pytest.mark.parametrize("way", ORDERED)
def test_answers_of_one_length_to_few_peers_are_as_many_and_in_order(way: str, size: int) -> None:
    """They leave through the kernel as one (UDP_SEGMENT), as far as one may be long."""

    async def numbered(handler: Any) -> None:
        await answer(handler, handler.request[0].ljust(size, b"."))

    server = made(way, numbered)
    with peer() as one, peer() as other:
        for number in range(60):
            waits_for(server, [b"%c" % number], other if number % 20 == 19 else one)
        with server.background():
            expected = [(b"%c" % number).ljust(size, b".") for number in range(60)]
            assert heard(one, 57) == [expected[n] for n in range(60) if n % 20 != 19]
            assert heard(other, 3) == expected[19::20]
            assert silent(one, other)


# -- whole


@EVERY_WAY
def test_every_size_comes_and_goes_whole(way: str) -> None:
    with serving(way) as server, peer() as client:
        for size in (0, 1, 508, 1472, 9000, 65_507):
            payload = random.randbytes(size)
            assert ask(client, payload, server.server_address) == payload


@EVERY_WAY
def test_the_longest_over_ipv6(way: str) -> None:
    with serving(way, address=("::1", 0)) as server, peer("::1") as client:
        payload = random.randbytes(65_527)  # 20 bytes more than over IPv4, whose length counts its own head
        assert ask(client, payload, server.server_address) == payload


@EVERY_WAY
def test_what_is_cut_off_is_never_handled_as_if_it_were_whole(way: str) -> None:
    cut: list[Any] = []
    events: list[Any] = []

    def handle_truncated(self: Any, data: bytes, client_address: Any) -> None:
        cut.append((data, client_address))
        self.socket.sendto(b"too long", client_address)

    members = {"handle_truncated": handle_truncated, "handle_event": lambda self, event: events.append(event)}
    server = made(way, members=members, max_packet_size=100)
    with peer() as client:
        waits_for(server, [bytes(100), bytes(101), b"a" * 20_000, b"last"], client)
        with server.background():
            assert sorted(heard(client, 4), key=len) == [b"last", b"too long", b"too long", bytes(100)]
            assert cut == [(bytes(100), client.getsockname()), (b"a" * 100, client.getsockname())]
            stats = server.stats()
            assert (stats.refused, stats.accepted) == ({"truncated": 2}, 2)
            assert until(lambda: server.stats().active == 0)
        assert silent(client)
    told = [(event.number, event.client_address, event.size) for event in events if type(event) is DatagramsTruncated]
    assert told == [(1, cut[0][1], 101)]  # once a minute


def test_that_it_was_cut_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving("plain", max_packet_size=10) as server, peer() as client:
        client.sendto(bytes(11), server.server_address)
        assert ask(client, b"whole", server.server_address) == b"whole"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "a datagram from ('127.0.0.1', " in record.getMessage()
    assert "of 11 bytes was longer than max_packet_size, 1 so far: " in record.getMessage()


@pytest.mark.alerts
def test_a_handle_truncated_that_raises_is_told_of_and_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    def handle_truncated(self: Any, data: bytes, client_address: Any) -> None:
        raise LookupError("a bug")

    server = made("plain", members={"handle_truncated": handle_truncated}, max_packet_size=5)
    with peer() as client:
        waits_for(server, [b"a", b"too long", b"b"], client)
        with server.background():
            assert heard(client, 2) == [b"a", b"b"]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]


@pytest.mark.parametrize("setting", ["deliver_truncated", "stdlib_compat"])
@EVERY_WAY
def test_the_standard_librarys_way_hands_over_the_beginning_in_its_place(way: str, setting: str) -> None:
    server = made(way, max_packet_size=5, **{setting: True})
    with peer() as client:
        waits_for(server, [b"a", b"too long", b"b", b"too long, too", b"c"], client)
        with server.background():
            answers = heard(client, 5)
            expected = [b"a", b"too l", b"b", b"too l", b"c"]
            assert (answers if way in ORDERED else sorted(answers)) == (
                expected if way in ORDERED else sorted(expected)
            )
            assert server.stats().refused == {}


@pytest.mark.parametrize("how", ["handle_request", "get_request", "unix"])
def test_what_is_cut_off_is_dropped_where_datagrams_come_one_by_one_as_well(how: str) -> None:
    members = {"get_request": lambda self: portico.UDPServer.get_request(self)} if how == "get_request" else {}
    with short_folder() as folder:
        unix = how == "unix"
        server = made(
            "plain", address=str(folder / "s") if unix else ("127.0.0.1", 0), members=members, max_packet_size=5
        )
        with server, socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind(str(folder / "c") if unix else ("127.0.0.1", 0))
            waits_for(server, [b"too long", b"a", b"12345", b"123456"], client)
            if how == "handle_request":
                server.timeout = 0
                for _ in range(4):
                    server.handle_request()
                assert heard(client, 2) == [b"a", b"12345"]
            else:
                with server.background():
                    assert heard(client, 2) == [b"a", b"12345"]
                    assert until(lambda: server.stats().refused == {"truncated": 2})
            assert silent(client)
            assert server.stats().refused == {"truncated": 2}


# -- several joined by the kernel (UDP_GRO)


def joins(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(17, UDP_SEGMENT, size)
    except OSError:
        pytest.skip("needs UDP_SEGMENT (Linux 4.18)")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("way", ["plain", "threads", *ON_LOOPS])
def test_joined_ones_are_taken_apart(way: str, host: str) -> None:
    """Pieces of 10, the last ones shorter; between them some that are whole, and some of another peer."""
    ours = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    server = made(way, address=(host, 0), udp_gro=True)
    to = (ours, server.server_address[1])
    with peer(ours) as client, peer(ours) as other:
        expected = defaultdict(list)
        joins(client, 10)
        for number in range(40):
            text = bytes([65 + number % 26]) * (number * 7 % 120 + 1)
            client.sendto(text, to)
            expected[client] += [text[start : start + 10] for start in range(0, len(text), 10)]
            if number % 5 == 0:
                other.sendto(text, to)
                expected[other].append(text)
        with server.background():
            for sock, texts in expected.items():
                answers = heard(sock, len(texts))
                assert (answers if way in ORDERED else sorted(answers)) == (texts if way in ORDERED else sorted(texts))
            assert silent(client, other)
            assert server.stats().accepted == sum(map(len, expected.values()))


def test_more_joined_ones_than_a_batch_has_room_for() -> None:
    """100 messages of 60 pieces wait: there is room for 64, of any number of pieces, at a time."""
    seen: list[bytes] = []

    async def note(handler: Any) -> None:
        seen.append(handler.request[0])

    server = made("plain", note, udp_gro=True)
    with peer() as client:
        joins(client, 5)
        for number in range(100):
            client.sendto(b"".join(b"%5d" % (number * 60 + piece) for piece in range(60)), server.server_address)
        with server.background():
            assert until(lambda: len(seen) == 6_000)
    assert list(map(int, seen)) == list(range(6_000))


def test_joined_ones_that_are_too_long_are_cut_one_by_one() -> None:
    server = made("plain", udp_gro=True, max_packet_size=5)
    with peer() as client:
        client.sendto(b"a", server.server_address)
        joins(client, 10)
        client.sendto(bytes(29), server.server_address)
        client.sendto(b"1234", server.server_address)
        with server.background():
            assert heard(client, 2) == [b"a", b"1234"]
            assert server.stats().refused == {"truncated": 3}

"""The PROXY protocol through whole servers, in every way to run: who is believed, seen, counted, refused, and when.

What bytes are a header is said by test_proxy_protocol; here they come over sockets, in pieces, glued to what follows,
before TLS, from strangers, or not at all.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import portico
from portico.errors import ProxyError
from portico.lifecycle import ConnectionEnded, ConnectionStarted, EndReason, Refused

from .balancing import DESTINATION, END, SOURCE, Client, Front, front, local, raw, seen_tls, tell, tlv, trusted, v1, v2
from .certificates import Authority
from .contract.flavours import KINDS, WAYS, short_folder
from .every_way import EVERY, TCP, Case, Served, case_class, in_every_way
from .waiting import until

AT_ONCE = [case for case in EVERY if not case.one_by_one]
"""Those that serve several clients at the same time."""
SIX = ("2001:db8::7", 4711, 0, 0)


class _Certificates:
    """Made once, when the first test of this module runs."""

    pair: Any = None
    trust: ssl.SSLContext | None = None


@pytest.fixture(scope="module", autouse=True)
def certificates(authority: Authority) -> None:
    _Certificates.pair = authority.pair("localhost")
    _Certificates.trust = authority.trust()


def fronts(case: Case, mode: str = "required", **settings: Any) -> Iterator[Front]:
    """The same server twice: in plain text, and with TLS behind the header."""
    for pair in (None, _Certificates.pair):
        with front(case, mode, pair=pair, trust=_Certificates.trust, **settings) as made:
            yield made
            assert not made.faults()


# -- what is announced

HEADERS: dict[bytes, Any] = {
    v1(): SOURCE,
    v1(SIX, ("2001:db8::80", 443)): SIX,
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n": None,  # 107 bytes
    v2(): SOURCE,
    v2(SIX, ("2001:db8::80", 443), tlv(2, b"example.org"), checksum=True): SIX,
    v2(SOURCE, DESTINATION, tlv(4, bytes(4096 - 16 - 12 - 3))): SOURCE,  # 4096 bytes
    v2("/run/client.sock", "/run/server.sock"): "/run/client.sock",
    v2("\0client", "\0server"): "\0client",
    local(): None,
    local(tlv(5, b"check 1")): None,
    raw(): None,  # a family that the proxy has no name for
}


@in_every_way(EVERY)
def test_a_handler_sees_whom_a_header_announces(case: Case) -> None:
    for made in fronts(case):
        for number, (header, source) in enumerate(HEADERS.items()):
            for glued in (False, True):
                with made.client(header, glued=glued) as client:
                    connected = list(client.address) if isinstance(client.address, tuple) else client.address
                    seen = client.ask()
                    announced = list(source) if isinstance(source, tuple) else source
                    assert seen["announced"] == announced, (number, glued)
                    assert seen["connected"] == connected
                    assert seen["client_address"] == seen["address"] == (connected if source is None else announced)
                    assert (seen["proxy"] is None) is (source is None)
                    assert (seen["tls"] is None) is (made.trust is None)
        assert made.failures() == []
        assert made.begun() == 2 * len(HEADERS)


REFUSED = {
    b"PROXY TCP4 192.0.2.7 192.0.2.80 4711 70000\r\n": "port",
    b"PROXY TCP4 192.0.2.7 192.0.2.80 4711 443 \r\n": "more than",
    b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n": "107",
    b"PROXY TCP4\n": "TCP4, TCP6 or UNKNOWN",
    raw(bytes(12), family=0x11, kind=0x31): "version 3",
    raw(bytes(12), family=0x11, kind=0x22): "command",
    raw(bytes(12), family=0x41): "family",
    raw(bytes(11), family=0x11): "too few",
    raw(bytes(4081)): "4096",
    v2(SOURCE, DESTINATION, tlv(2, b"example.org")[:-1]): "longer than its room",
    v2(SOURCE, DESTINATION, tlv(3, bytes(4))): "CRC32C",
    v2(SOURCE, DESTINATION, tlv(0x20, bytes(4))): "SSL TLV",
    v2(SOURCE, DESTINATION, tlv(5, bytes(129))): "UNIQUE_ID",
}
NO_HEADER = {
    b"GET / HTTP/1.1\r\n\r\n": "no PROXY header",
    b"\x16\x03\x01\x02\0": "no PROXY header",
    b"PROXIMITY": "no PROXY header",
    b"\r\n\r\n\0\r\nQUIT\r": "no PROXY header",
}


@in_every_way(EVERY)
def test_a_wrong_header_ends_its_connection_with_one_reason(case: Case) -> None:
    for mode, wrong in (("required", REFUSED | NO_HEADER), ("optional", REFUSED)):
        for made in fronts(case, mode):
            for header in wrong:
                with made.connect() as client:
                    client.raw(header)
                    assert client.is_refused(), header
            ends = made.wait_for_ends(len(wrong))
            assert [event.reason for event in made.failures()] == [EndReason.PROXY_REFUSED] * len(wrong)
            for event, word in zip(made.failures(), wrong.values(), strict=True):
                assert isinstance(event.error, ProxyError)
                assert word in str(event.error)
            assert len(made.served.of_kind(ConnectionStarted)) == len(wrong)
            assert {end.reason for end in ends} == {EndReason.PROXY_REFUSED}
            assert made.server.stats().ended == {"proxy_refused": len(wrong)}
            assert made.server.stats().refused == {}
            assert made.begun() == 0
            with made.client(v1()) as client:
                assert client.ask()["announced"] == list(SOURCE)


# -- in pieces

SPLIT = (v1(), v2(SOURCE, DESTINATION, checksum=True))
SAMPLE = (1, 5, 6, 11, 12, 13, 16, 17, 30)


def split_everywhere(made: Front, header: bytes, places: Any, *, one_by_one: bool) -> None:
    """As many connections as places: each says its header up to there, and the rest when that has been looked at."""
    with ExitStack() as stack:
        clients = [(place, stack.enter_context(made.connect())) for place in places]
        for place, client in clients:
            client.raw(header[:place])
        made.barrier()
        for place, client in clients if not one_by_one else ():
            client.raw(header[place:])
        for place, client in clients:
            client.begin(header[place:] if one_by_one else b"", glued=True)
            seen = client.ask(b"all of it" + END)
            assert (seen["announced"], seen["question"]) == (list(SOURCE), "all of it"), place
            client.__exit__()


@in_every_way(EVERY)
def test_a_header_in_two_pieces_is_the_same_header(case: Case) -> None:
    for mode in ("required", "optional"):
        for made in fronts(case, mode):
            for header in SPLIT:
                fully = case.way.name == "thread" and not case.is_unix and made.trust is None
                places = range(1, len(header)) if fully else SAMPLE if made.trust is None else SAMPLE[::2]
                split_everywhere(made, header, places, one_by_one=case.one_by_one)
            assert made.failures() == []


@in_every_way(EVERY)
def test_a_header_that_comes_byte_by_byte_is_the_same_header(case: Case) -> None:
    for mode in ("required", "optional"):
        for made in fronts(case, mode):
            for header in SPLIT:
                with made.connect() as client:
                    for byte in header:
                        client.raw(bytes((byte,)))
                    assert client.begin().ask()["announced"] == list(SOURCE)


# -- optional: with a header, or without

BEGINNINGS = (b"P", b"PROX", b"PROXY", b"\r", b"\r\n\r\n", b"\r\n\r\n\0\r\nQUIT")
"""What a client may say first of all that is no header, and for a while looks like one."""


@in_every_way(EVERY)
def test_who_has_no_header_is_served_as_he_is(case: Case) -> None:
    for made in fronts(case, "optional"):
        with made.client() as client:  # with TLS, its hello is what comes first
            seen = client.ask()
            assert seen["announced"] is seen["proxy"] is None
            assert seen["client_address"] == seen["connected"]
        with made.client(v1()) as client:
            assert client.ask()["announced"] == list(SOURCE)
        assert made.failures() == []


@in_every_way(EVERY)
def test_nothing_is_lost_of_what_has_looked_like_a_header(case: Case) -> None:
    with front(case, "optional") as made, ExitStack() as stack:
        clients = [(first, stack.enter_context(made.connect())) for first in BEGINNINGS]
        for first, client in clients:
            client.raw(first)
        made.barrier()
        for first, client in clients:
            seen = client.ask(b"ING" + END)
            assert seen["question"] == (first + b"ING").decode()
            assert seen["announced"] is None
            client.__exit__()
        assert made.failures() == []


@in_every_way(EVERY)
def test_who_says_no_more_than_the_beginning_of_a_header_is_served_at_once(case: Case) -> None:
    with front(case, "optional") as made, ExitStack() as stack:
        clients = [(first, stack.enter_context(made.connect())) for first in BEGINNINGS]
        for first, client in clients:
            client.raw(first)
        made.barrier()
        for first, client in clients:
            client.sock.shutdown(socket.SHUT_WR)
            assert client.ask(b"")["question"] == first.decode()
            client.__exit__()
        made.wait_for_ends(len(BEGINNINGS) + 2)  # children, too, are seen to end


@in_every_way(EVERY)
def test_a_header_whose_sender_has_ended_its_side_is_read_to_its_end(case: Case) -> None:
    with front(case, "optional") as made:
        for header in SPLIT:
            for place in (0, 5, 11):
                with made.connect() as client:
                    client.raw(header[:place])
                    made.barrier()
                    client.raw(header[place:] + b"last words")
                    client.sock.shutdown(socket.SHUT_WR)
                    seen = client.ask(b"")
                    assert (seen["announced"], seen["question"]) == (list(SOURCE), "last words")


# -- strangers


@in_every_way(TCP)
def test_where_headers_are_required_strangers_are_refused_before_they_say_anything(case: Case) -> None:
    for made in fronts(case, proxy_trusted="127.0.0.2, 2001:db8::/32"):
        with made.connect() as client:
            assert client.is_refused()
            (event,) = made.served.of_kind(Refused)
            assert (event.reason, event.client_address, event.dry_run) == ("proxy_trusted", client.address, False)
        with made.connect(bound_to=("127.0.0.2", 0)) as client:
            assert client.begin(v1()).ask()["announced"] == list(SOURCE)
        assert made.server.stats().refused == {"proxy_trusted": 1}
        assert len(made.served.of_kind(ConnectionStarted)) == 1
        assert made.failures() == []


@in_every_way(EVERY)
def test_where_they_are_optional_a_strangers_header_is_refused_and_strangers_without_are_served(case: Case) -> None:
    for made in fronts(case, "optional", proxy_trusted="192.0.2.0/24"):
        for header in (v1(), v2(), local(), b"PROXY UNKNOWN\r\n"):
            with made.connect() as client:
                client.raw(header)
                assert client.is_refused()
        made.wait_for_ends(4)
        assert [event.reason for event in made.failures()] == [EndReason.PROXY_REFUSED] * 4
        assert all("proxy_trusted" in str(event.error) for event in made.failures())
        assert made.server.stats().ended == {"proxy_refused": 4}
        with made.client() as client:
            assert client.ask()["announced"] is None
        assert made.begun() == 1


@in_every_way(EVERY)
def test_the_word_unix_means_unix_clients_and_networks_the_others(case: Case) -> None:
    with front(case, proxy_trusted="192.0.2.0/24" if case.is_unix else "unix") as made:
        with made.connect() as client:
            assert client.is_refused()
        assert made.server.stats().refused == {"proxy_trusted": 1}
        made.server.configure(proxy_trusted=["unix", "127.0.0.0/8"])
        with made.client(v2()) as client:
            assert client.ask()["announced"] == list(SOURCE)


@in_every_way(EVERY)
def test_who_is_trusted_changes_while_the_server_runs(case: Case) -> None:
    with front(case) as made, made.connect() as early:
        early.raw(v1()[:20])
        made.barrier()
        made.server.configure(proxy_trusted="192.0.2.0/24")
        with made.connect() as late:
            assert late.is_refused()
        early.raw(v1()[20:])  # who has come in when he was trusted still is
        assert early.ask()["announced"] == list(SOURCE)
        with pytest.raises(portico.SettingError):
            made.server.configure(proxy_trusted=None)
        assert made.server.stats().refused == {"proxy_trusted": 1}


# -- silence


UNFINISHED = (b"", b"P", b"PROXY TCP4 ", v2()[:11], v2()[:-1], b"\r\n") * 2


@in_every_way(EVERY)
def test_who_is_silent_or_does_not_come_to_an_end_has_only_so_much_time(case: Case) -> None:
    number = len(UNFINISHED)
    for mode in ("required", "optional"):
        with front(case, mode, handshake_timeout=0.15) as made, ExitStack() as stack:
            clients = [stack.enter_context(made.connect()) for _ in UNFINISHED]
            for client, said in zip(clients, UNFINISHED, strict=True):
                client.raw(said)
            made.wait_for_openings(number)
            assert all(client.is_refused() for client in clients)
            with made.client(v1()) as client:
                client.ask()
            ends = made.wait_for_ends(number + 1)
            assert made.server.stats().opening == 0
            assert made.server.stats().ended == {"done": 1, "handshake_timeout": number}
            assert [event.reason for event in made.failures()] == [EndReason.HANDSHAKE_TIMEOUT] * number
            assert all(0.1 < end.age < 2 for end in ends if end.reason is EndReason.HANDSHAKE_TIMEOUT)


@in_every_way(EVERY)
def test_who_leaves_before_his_header_has_come_is_told_of_once(case: Case) -> None:
    for mode in ("required", "optional"):
        with front(case, mode) as made:
            for said in (v1()[:20], v2()[:20]):
                with made.connect() as client:
                    client.raw(said)
                    client.sock.shutdown(socket.SHUT_WR)
                    assert client.is_refused()
            made.wait_for_ends(2)
            assert [event.reason for event in made.failures()] == [EndReason.PEER_LEFT] * 2
            assert made.server.stats().ended == {"peer_left": 2}


@in_every_way(EVERY)
def test_the_time_for_a_header_changes_for_those_who_wait_already(case: Case) -> None:
    """Where the loop reads headers. A thread or task that waits goes on waiting for as long as it was told to."""
    if case.way.own_tasks or case.way.name.startswith("green"):
        return
    with front(case, handshake_timeout=600.0) as made, made.connect() as first, made.connect() as second:
        made.wait_for_openings(2)
        made.server.configure(handshake_timeout=0.1)
        assert first.is_refused()
        assert second.is_refused()
        with made.connect() as third:
            assert third.is_refused()
        assert [event.reason for event in made.failures()] == [EndReason.HANDSHAKE_TIMEOUT] * 3


def have_spoken(made: Front) -> int:
    """Of how many the server has read a part of their header."""
    openings = [connection.opening for connection in made.server.connections()]
    return len([opening for opening in openings if opening is not None and opening._taken])


@in_every_way(EVERY)
def test_one_that_has_said_nothing_makes_room_and_one_that_has_does_not(case: Case) -> None:
    with front(case, max_handshakes=2) as made, made.connect() as early, made.connect() as silent:
        early.raw(v1()[:20])
        made.wait_for_openings(2)
        assert until(lambda: have_spoken(made) == 1)
        with made.client(v1()) as client:
            assert silent.is_refused()
            assert client.ask()
        assert until(lambda: made.failures())
        (event,) = made.failures()
        assert (event.reason, event.client_address) == (EndReason.HANDSHAKE_TIMEOUT, silent.address)
        with made.connect() as another:
            another.raw(v2()[:20])
            assert until(lambda: have_spoken(made) == 2)
            with made.connect() as third:
                assert third.is_refused()
            assert made.server.stats().refused == {"max_handshakes": 2}
        early.raw(v1()[20:])
        assert early.ask()["announced"] == list(SOURCE)


@in_every_way(EVERY)
def test_one_that_the_operator_closes_meanwhile_ends_so(case: Case) -> None:
    for said in (b"", b"PROXY TCP4 ", b"P"):
        with front(case, "optional") as made, made.connect() as client:
            client.raw(said)
            made.barrier()
            made.server.connections()[0].close()
            assert client.is_refused()
            made.wait_for_ends(3)
            assert made.server.stats().ended == {"done": 2, "closed": 1}
            assert made.failures() == []


# -- limits: of the announced client, of the connection


def other(number: int) -> tuple[str, int]:
    """Another client behind the same balancer."""
    return f"198.51.100.{number}", 40000 + number


@in_every_way(AT_ONCE)
def test_limits_per_client_count_the_announced_one_and_no_longer_than_he_stays(case: Case) -> None:
    for made in fronts(case, max_connections_per_client=2):
        with ExitStack() as stack:
            for number in range(12):  # over one balancer's address
                assert stack.enter_context(made.client(v2(other(number)))).ask()
            one, two = (stack.enter_context(made.client(header)) for header in (v1(), v2()))
            assert one.ask()
            assert two.ask()
            for header in (v1(), v2(), v1(("192.0.2.7", 1))):
                with made.connect() as third:
                    third.raw(header)
                    assert third.is_refused()
            made.wait_for_active(14)
            one.__exit__()
            made.wait_for_active(13)
            with made.client(v1()) as again:
                assert again.ask()
        made.wait_for_active(0)
        stats = made.server.stats()
        assert stats.refused == {"max_connections_per_client": 3}
        assert stats.ended == {"done": 15, "refused": 3}
        assert made.failures() == []
        reasons = [event.client_address for event in made.served.of_kind(Refused)]
        assert reasons == [SOURCE, SOURCE, ("192.0.2.7", 1)]
        assert made.server._portico_connections.admission._counts == {}


@in_every_way(EVERY)
def test_rates_per_client_count_the_announced_one(case: Case) -> None:
    for made in fronts(case, connection_rate_per_client=0.001, connection_burst_per_client=2):
        for number in range(2):
            for header in (v1(), v2(other(1)), v2(SIX, SIX)):
                with made.client(header) as client:
                    assert client.ask(), number
        with made.connect() as client:
            client.raw(v1())
            assert client.is_refused()
        with made.client(v1(other(2))) as client:
            assert client.ask()
        assert made.server.stats().refused == {"connection_rate_per_client": 1}


@in_every_way(AT_ONCE)
def test_a_dry_run_counts_the_announced_and_lets_them_in(case: Case) -> None:
    for made in fronts(case, max_connections_per_client=1, deny="198.51.100.0/24", limits_dry_run=True):
        with made.client(v1()) as one, made.client(v1()) as two, made.client(v1(other(1))) as three:
            assert [client.ask()["announced"][0] for client in (one, two, three)] == [SOURCE[0], SOURCE[0], other(1)[0]]
            assert made.server.stats().refused == {}
            assert made.server.stats().would_refuse == {"max_connections_per_client": 1, "deny": 1}
            assert [event.dry_run for event in made.served.of_kind(Refused)] == [True] * 2
        made.wait_for_active(0)
        made.server.configure(limits_dry_run=False)
        with made.client(v1()) as one:
            assert one.ask()
            with made.connect() as two:
                two.raw(v1())
                assert two.is_refused()


@in_every_way(EVERY)
def test_allow_and_deny_ask_for_the_announced_client(case: Case) -> None:
    """The balancer's own address is in none of the networks; for itself (LOCAL) it may not enter over TCP."""
    for made in fronts(case, allow="192.0.2.0/24, 2001:db8::/32", deny="192.0.2.66"):
        for header in (v1(), v2(), v1(SIX, SIX), v2(("::ffff:192.0.2.7", 5, 0, 0), SIX)):
            with made.client(header) as client:
                assert client.ask()
        for header in (v1(("192.0.2.66", 1)), v2(("::ffff:192.0.2.66", 1, 0, 0), SIX), v2(other(1))):
            with made.connect() as client:
                client.raw(header)
                assert client.is_refused()
        assert made.server.stats().refused == {"deny": 2, "allow": 1}
        with made.connect() as client:
            client.raw(local())
            if case.is_unix:  # who has no network is asked for none
                assert client.begin().ask()["announced"] is None
            else:
                assert client.is_refused()
        made.wait_for_active(0)
        assert made.begun() == 4 + case.is_unix
        assert made.failures() == []


@in_every_way(EVERY)
def test_a_refused_client_hears_what_overload_has_to_say(case: Case) -> None:
    def answer(client_address: Any, reason: str) -> bytes:
        return f"{client_address[0]}: {reason}\n".encode()

    with front(case, deny="192.0.2.66", overload=answer) as made, made.connect() as client:
        client.raw(v1(("192.0.2.66", 1)) + b"who" + END)
        assert client.hear() == b"192.0.2.66: deny"
        assert client.is_refused()


@in_every_way(AT_ONCE)
def test_limits_of_all_together_count_connections_from_the_first_moment(case: Case) -> None:
    with front(case, max_connections=3, overload="close") as made, ExitStack() as stack:
        for said in (b"", b"PROXY", v1()):
            stack.enter_context(made.connect()).raw(said)
        made.wait_for_active(3)
        with made.connect() as client:
            assert client.is_refused()
        assert made.server.stats().refused == {"max_connections": 1}
        stack.close()
        made.wait_for_active(0)
        with made.client(v1()) as client:
            assert client.ask()


@in_every_way(EVERY)
def test_the_rate_of_all_together_counts_connections_whomever_they_are_for(case: Case) -> None:
    with front(case, connection_rate=0.001, connection_burst=2, overload="close") as made:
        for header in (v1(), v1(other(1))):
            with made.client(header) as client:
                assert client.ask()
        with made.connect() as client:
            assert client.is_refused()
        assert made.server.stats().refused == {"connection_rate": 1}


@in_every_way(AT_ONCE)
def test_limits_that_are_set_while_headers_are_awaited_hold_for_them(case: Case) -> None:
    with front(case) as made, made.client(v1()) as first, made.connect() as second, made.connect() as third:
        assert first.ask()
        made.wait_for_openings(2)
        made.server.configure(max_connections_per_client=1, deny="198.51.100.0/24")
        second.raw(v1())
        assert second.is_refused()
        third.raw(v1(other(1)))
        assert third.is_refused()
        with made.client(v2(SIX, SIX)) as client:
            assert client.ask()
        assert made.server.stats().refused == {"max_connections_per_client": 1, "deny": 1}


@in_every_way(TCP)
def test_who_thinks_between_his_header_and_his_question_is_not_slow(case: Case) -> None:
    """`min_read_rate` measures from his first words to the last; the header is a proxy's."""

    async def slow(peer: Any) -> None:
        question = await peer.recv(100)
        await peer.pause(0.3)
        await peer.sendall(question + b"\n")

    with front(case, body=slow, min_read_rate=1000, read_grace=0.1) as made, made.client(v1()) as client:
        time.sleep(0.2)
        client.say(b"who")
        assert client.hear() == b"who"
        made.wait_for_ends(1)
        assert made.server.stats().ended == {"done": 1}


# -- hooks, events and records


@in_every_way(EVERY)
def test_verify_request_is_asked_once_and_for_the_announced_client(case: Case) -> None:
    asked: list[Any] = []

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        asked.append(client_address)
        return "192.0.2.66" not in client_address

    for mode in ("required", "optional"):
        for made in fronts(case, mode, members={"verify_request": verify_request}):
            asked.clear()
            with made.client(v1()) as client:
                assert client.ask()
            assert made.turns_away(v1(("192.0.2.66", 9)))
            assert asked == [SOURCE, ("192.0.2.66", 9)]
            if mode == "optional":
                with made.client() as client:
                    assert client.ask()
                    assert asked[2:] == [client.address]
            with made.connect() as client:
                client.raw(b"PROXY\r\n" if mode == "required" else b"PROXY \r\n")
                assert client.is_refused()
            assert len(asked) == (2 if mode == "required" else 3)  # who has no right header is asked for nothing
            assert made.server.stats().refused == {"verify_request": 1}
            made.wait_for_active(0)
            assert made.server.stats().ended["refused"] == 1


@in_every_way(EVERY)
def test_the_announced_address_is_told_wherever_an_address_is(case: Case) -> None:
    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        (notes_of[case] / "error").write_text(repr(client_address))

    notes_of: dict[Case, Any] = {}
    with front(case, members={"handle_error": handle_error}) as made:
        notes_of[case] = made.served._notes.parent
        with made.client(v1()) as client:
            assert client.ask()["client_address"] == list(SOURCE)
            (connection,) = made.server.connections()
            assert connection.client_address == SOURCE
            assert connection.connected_address == client.address
            assert "192.0.2.7" in repr(connection)
            client.say(b"fail" + END)
            made.wait_for_ends(1)
        assert (notes_of[case] / "error").read_text() == repr(SOURCE)
        assert made.server.stats().ended == {"failed": 1}
        (ended,) = made.served.of_kind(ConnectionEnded)
        assert ended.connection.client_address == SOURCE


@contextmanager
def access_records() -> Iterator[list[str]]:
    """What goes to the access log meanwhile."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("portico.access")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_the_access_log_names_the_announced_client_and_his_proxy(case: Case) -> None:
    with access_records() as records, front(case, access_log="text", deny="192.0.2.66") as made:
        with made.client(v1()) as client:
            via = "unix" if case.is_unix else f"127.0.0.1:{client.address[1]}"
            assert client.ask()
        made.wait_for_ends(1)
        with made.connect() as client:
            client.raw(v1(("192.0.2.66", 1)))
            assert client.is_refused()
        made.wait_for_ends(2)
        with made.connect() as client:
            client.raw(b"nonsense")
            assert client.is_refused()
        made.wait_for_ends(3)
        assert until(lambda: len(records) == 3)
    assert records[0].startswith(f"192.0.2.7:4711 via {via} -> ")
    assert records[0].endswith(" done")
    assert records[1].startswith("192.0.2.66:1 via ")
    assert records[1].endswith(" refused=deny")
    assert records[2].endswith(" proxy_refused")


# -- what a proxy says besides


@in_every_way(EVERY)
def test_handlers_have_all_that_the_proxy_says(case: Case) -> None:
    seen_by_proxy = seen_tls(version="TLSv1.3", common_name="alice", cipher="TLS_AES_128_GCM_SHA256")
    tlvs = (tlv(1, b"h2"), tlv(2, b"example.org"), tlv(5, b"connection 9"), seen_by_proxy)
    for made in fronts(case):
        with made.client(v2(SOURCE, DESTINATION, *tlvs, checksum=True)) as client:
            seen = client.ask()
        assert seen["proxy"] == {
            "version": 2,
            "destination": list(DESTINATION),
            "alpn": "h2",
            "authority": "example.org",
            "unique_id": "connection 9",
            "ssl": ["TLSv1.3", "alice", "TLS_AES_128_GCM_SHA256", True],
        }
        assert seen["names"] == ["alice"]
        for unproved in (seen_tls(7, 1, common_name="alice"), seen_tls(1, 0, common_name="alice"), seen_tls()):
            with made.client(v2(SOURCE, DESTINATION, unproved)) as client:
                assert client.ask()["names"] == []
        with made.client(v1()) as client:
            seen = client.ask()
            assert seen["names"] == []
            assert seen["proxy"]["version"] == 1
            assert seen["uid"] == (os.getuid() if case.is_unix else None)  # the proxy's


@in_every_way(EVERY)
def test_mapped_addresses_that_are_announced_are_shown_as_the_setting_says(case: Case) -> None:
    mapped = ("::ffff:192.0.2.7", 4711, 0, 0)
    for unmap, expected in ((False, list(mapped)), (True, ["192.0.2.7", 4711])):
        with front(case, unmap_ipv4=unmap) as made:
            for header in (v1(mapped, SIX), v2(mapped, SIX)):
                with made.client(header) as client:
                    assert client.ask()["client_address"] == expected
            with made.client(v2(SIX, SIX)) as client:
                assert client.ask()["client_address"] == list(SIX)


# -- who waits for whom

BLOCKING = [case for case in EVERY if case.way.name in ("thread", "fork")]
FULL: dict[str, dict[str, Any]] = {"thread": {"max_threads": 1}, "fork": {"max_children": 1}}


@in_every_way(BLOCKING)
def test_who_waits_for_a_thread_or_process_loses_no_time_for_his_handshake_and_is_served_in_turn(case: Case) -> None:
    for made in fronts(case, handshake_timeout=0.2, **FULL[case.way.name]):
        with ExitStack() as stack:
            first = stack.enter_context(made.client(v1()))
            assert first.ask()
            waiting = [stack.enter_context(made.connect()) for _ in range(3)]
            for number, client in enumerate(waiting):
                client.raw(v1(other(number)))
            loop = time.pthread_getcpuclockid(made.server._portico_lifecycle.loop_thread)
            spent = time.clock_gettime(loop)
            time.sleep(0.3)  # longer than the time for opening
            assert time.clock_gettime(loop) - spent < 0.1
            assert made.begun() == 1
            first.__exit__()
            for number, client in enumerate(waiting):
                assert client.begin().ask()["announced"] == list(other(number))
                client.__exit__()
        assert made.failures() == []
        made.wait_for_active(0)
        assert made.server.stats().ended == {"done": 4}


@in_every_way(BLOCKING)
def test_silent_ones_take_no_thread_and_no_process(case: Case) -> None:
    with front(case, **FULL[case.way.name]) as made, ExitStack() as stack:
        for said in (b"", b"PROXY TCP4", v2()[:20]) * 3:
            stack.enter_context(made.connect()).raw(said)
        made.wait_for_openings(9)
        for _ in range(3):
            with made.client(v1()) as client:
                assert client.ask()
        made.wait_for_active(9)
        assert made.begun() == 3


@in_every_way(BLOCKING)
def test_a_hook_that_fails_keeps_waiting_whom_it_was_asked_for_and_ends_nothing(case: Case) -> None:
    def ready_to_accept(self: Any) -> bool:
        if flags["broken"]:
            raise LookupError("a bug in the hook")
        return True

    flags = {"broken": False}
    with front(case, members={"ready_to_accept": ready_to_accept}) as made, made.connect() as client:
        made.wait_for_openings(1)
        flags["broken"] = True
        client.raw(v1())
        assert until(lambda: len(made.faults()) > 1)
        flags["broken"] = False
        assert client.begin().ask()["announced"] == list(SOURCE)
        assert {str(error) for error in made.faults()} == {"a bug in the hook"}


@in_every_way([case for case in EVERY if case.way.own_process])
def test_children_keep_nobodys_connection_open(case: Case) -> None:
    with front(case) as made, ExitStack() as stack:
        waiting = [stack.enter_context(made.connect()) for _ in range(3)]
        made.wait_for_openings(3)
        held = [stack.enter_context(made.client(v1(other(number)))) for number in range(2)]
        assert all(client.ask() for client in held)
        awaited = {f"socket:[{os.fstat(request.fileno()).st_ino}]" for request in made.server._portico_lobby}
        assert len(awaited) == 3
        for pid in made.server.active_children:
            assert not awaited & {os.readlink(place) for place in Path(f"/proc/{pid}/fd").iterdir()}
        for client in waiting[:2]:
            client.raw(b"nonsense")
            assert client.is_refused()  # though two children run that were forked when it was open
        waiting[2].raw(v1())
        assert waiting[2].begin().ask()
        for client in held:
            assert client.ask()
        made.server.connections()[0].close()
        assert waiting[2].hear() == b""


@contextmanager
def many_files() -> Iterator[None]:
    """A limit of descriptors that lets 500 clients and their server be one process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


FLOODED = [(case, "required") for case in TCP if not case.streams]
FLOODED += [(case, "optional") for case in TCP if case.way.name in ("thread", "green")]


def seconds_to_shutdown_among_silent_ones(case: Case, mode: str) -> float:
    with many_files(), front(case, mode) as made, ExitStack() as stack:
        for number in range(500):
            stack.enter_context(made.connect()).raw((b"", b"PROXY ", v2()[:14], b"P")[number % 4])
        made.wait_for_openings(500)
        began = time.monotonic()
        for number in range(40):
            with made.client(v1(other(number))) as client:
                assert client.ask()
        assert time.monotonic() - began < 5  # the silent ones have 10 s
        began = time.monotonic()
        made.server.shutdown()
        return time.monotonic() - began


@pytest.mark.parametrize(("case", "mode"), FLOODED, ids=str)
def test_500_silent_peers_delay_nobody_and_no_shutdown(case: Case, mode: str) -> None:
    """The best of three, if it has to be: others may keep this machine busy."""
    assert any(seconds_to_shutdown_among_silent_ones(case, mode) < 0.05 for _ in range(3))


# -- the end


@in_every_way(EVERY)
def test_a_drain_ends_at_once_who_has_said_no_more_than_a_header(case: Case) -> None:
    """A child's socket is watched by its parent if there is something to watch for, such as idleness."""
    for header in (v1(), v2(), local(), b"PROXY UNKNOWN\r\n"):
        with front(case, idle_timeout=60) as made, ExitStack() as stack:
            announced = stack.enter_context(made.client(header))
            assert until(lambda made=made: made.begun() == 1)
            waiting = [stack.enter_context(made.connect()) for _ in range(3)]
            for client, said in zip(waiting, (b"", b"PRO", header[:-1]), strict=True):
                client.raw(said)
            if not case.one_by_one:
                made.wait_for_openings(3)
            began = time.monotonic()
            report = made.server.drain(timeout=5)
            assert time.monotonic() - began < 1
            assert report.cut == []
            assert all(client.is_refused() for client in (announced, *waiting))
            assert {end.reason for end in made.served.ends()} <= {EndReason.DRAINED, EndReason.DONE}
            assert made.failures() == []


@in_every_way(AT_ONCE)
def test_who_has_asked_something_after_his_header_is_answered_before_the_end(case: Case) -> None:
    async def slow(peer: Any) -> None:
        question = await peer.recv(100)
        peer.note("begun")
        await peer.pause(0.3)
        await peer.sendall(question + b"\n")

    with front(case, body=slow, idle_timeout=60) as made, made.connect() as client:
        client.raw(v1() + b"who")
        assert until(lambda: made.begun() == 1)
        assert made.server.drain(timeout=5).cut == []
        assert client.hear() == b"who"


@in_every_way(EVERY)
def test_a_closing_server_closes_those_whose_header_it_still_awaits(case: Case) -> None:
    for pair in (None, _Certificates.pair):
        with front(case, pair=pair, trust=_Certificates.trust) as made, ExitStack() as stack:
            waiting = [stack.enter_context(made.connect()) for _ in range(3)]
            for client, said in zip(waiting, (b"", v1()[:9], v2()[:14]), strict=True):
                client.raw(said)
            made.wait_for_openings(3)
            began = time.monotonic()
            made.server.server_close()
            assert all(client.is_refused() for client in waiting)
            assert time.monotonic() - began < 2
            ends = made.wait_for_ends(3)
            assert {end.reason for end in ends} == {EndReason.DRAINED}
            assert made.failures() == []


# -- without a loop, and over the standard library's servers


@in_every_way(EVERY)
def test_handle_request_opens_what_it_takes(case: Case) -> None:
    """It returns when the request has run, or has been given to somebody who runs it."""
    folder: Any
    with short_folder() as folder:
        notes = folder / "notes"
        for pair in (None, _Certificates.pair):
            for header, announced in ((v1(), True), (b"nonsense nonsense", False)):
                events: list[Any] = []
                members = {"handle_event": lambda self, event, events=events: events.append(event)}
                settings: dict[str, Any] = {"tls": None if pair is None else portico.TLS(*pair)}
                server = type("Server", (case_class(case),), members)(
                    case.kind.address(folder), case.handler(tell, notes),
                    proxy_protocol="required", proxy_trusted=trusted(case), **settings,
                )  # fmt: skip
                thread = threading.Thread(target=server.handle_request)
                thread.start()
                made = Front(Served(server, events, notes), None if pair is None else _Certificates.trust)
                if announced:
                    with made.client(header) as client:
                        assert client.ask()["announced"] == list(SOURCE)
                else:
                    assert made.turns_away(header)
                thread.join(10)
                assert not thread.is_alive()
                if case.way.own_process:
                    server.collect_children(blocking=True)
                made.wait_for_active(0)
                server.server_close()
                (ended,) = made.wait_for_ends(1)
                assert ended.reason is (EndReason.DONE if announced else EndReason.PROXY_REFUSED)
                if not case.way.own_process:  # where a child tells of it
                    assert len(made.failures()) == (not announced)


@in_every_way([case for case in TCP if not case.one_by_one])
def test_mixed_into_a_server_of_the_standard_library_it_is_the_same(case: Case) -> None:
    mixin = getattr(portico, f"{case.way.prefix}MixIn")
    with short_folder() as folder:
        for mode in ("required", "optional"):
            for pair in (None, _Certificates.pair):
                members = dict(case.way.settings) | {
                    "proxy_protocol": mode,
                    "proxy_trusted": "127.0.0.1",
                    "tls": None if pair is None else portico.TLS(*pair),
                    "max_connections_per_client": 1,
                    "daemon_threads": False,
                }
                made_of = type("Server", (mixin, socketserver.TCPServer), members)
                server = made_of(("127.0.0.1", 0), case.handler(tell, folder / "notes"))
                thread = threading.Thread(target=server.serve_forever)
                thread.start()
                made = Front(Served(server, [], folder / "notes"), None if pair is None else _Certificates.trust)
                with made.client(v1()) as client, made.client(v2(other(1))) as another:
                    assert client.ask()["announced"] == list(SOURCE)
                    assert another.ask()["announced"] == list(other(1))
                    assert made.turns_away(v2())
                assert made.turns_away(b"PROXY nonsense\r\n")
                made.wait_for_active(0)
                server.shutdown()
                server.server_close()
                thread.join(10)
                assert server.stats().refused == {"max_connections_per_client": 1}
                assert server.stats().ended == {"done": 2, "refused": 1, "proxy_refused": 1}


# -- IPv6


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_balancers_may_have_ipv6_addresses_and_come_by_mapped_ones(way: Any) -> None:
    six = Case(way, next(kind for kind in KINDS if kind.name == "tcp6"))
    with front(six, proxy_trusted="::1/128") as made:
        with made.client(v1(SIX, SIX)) as client:
            assert client.ask()["announced"] == list(SIX)
        made.server.configure(proxy_trusted="::2/127")
        assert made.turns_away(v1())
    made_class = case_class(six)
    handler = six.handler(tell, Path(os.devnull))
    server = made_class(("::", 0), handler, dual_stack=True, proxy_protocol="required", proxy_trusted="127.0.0.0/8")
    with server.background(), Client(socket.create_connection(("127.0.0.1", server.server_address[1]), 10)) as client:
        seen = client.begin(v1()).ask()
        assert (seen["connected"][0], seen["announced"]) == ("::ffff:127.0.0.1", list(SOURCE))

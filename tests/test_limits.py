"""Who may enter, for every way to run: how many at once, how fast, from where; what is said to the others."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from time import monotonic
from typing import Any

import pytest

import portico
from portico.lifecycle import (
    ConnectionEnded,
    ConnectionsHigh,
    ConnectionStarted,
    EndReason,
    HookFailed,
    Refused,
    State,
    StateChanged,
)

from .contract.flavours import looping
from .crowds import EVERY_KIND, EVERY_WAY, PATIENCE, WAYS, AsyncRoom, Crowd, Door, Room, scene, server_class
from .loops import LOOPBACK, in_a_thread
from .waiting import until

BLOCKING = pytest.mark.parametrize("way", ["threads", "reused"])


# -- so many at once


@EVERY_KIND
@EVERY_WAY
def test_so_many_are_in_and_the_next_one_when_one_has_left(way: str, kind: str) -> None:
    with scene(way, kind, max_connections=10) as s:
        s.crowd.come(11)
        first = s.crowd.inside(10, 2.0 if way == "forks" else 0.4)  # others may keep this machine busy
        assert len(s.server.connections()) == 10
        s.crowd.leave(first[:1])
        s.crowd.inside(10)
        assert s.door.steps() == [1] * 10 + [-1, 1]
        s.crowd.leave()
        assert s.empty()
        assert s.server.stats().accepted == 11
        assert s.server.stats().refused == {}


@EVERY_KIND
@EVERY_WAY
def test_in_wave_after_wave_never_one_more_and_all_are_served(way: str, kind: str) -> None:
    number = 5
    with scene(way, kind, max_connections=number) as s:
        for _ in range(10):
            s.crowd.come(2 * number)
            s.crowd.leave(s.crowd.inside(number))
            s.crowd.leave(s.crowd.inside(number))
        assert s.empty()
        assert s.door.peak() == number
        assert s.server.stats().done + s.server.stats().failed == 20 * number
    started, ended = s.told(ConnectionStarted), s.told(ConnectionEnded)
    assert len(started) == len(ended) == 20 * number
    assert {id(event.connection) for event in started} == {id(event.connection) for event in ended}


@EVERY_WAY
def test_clients_that_leave_in_a_hurry_lose_no_slot(way: str) -> None:
    """Here nobody waits for anybody: the next enters while the last one's end is still under way."""
    with scene(way, max_connections=3) as s:
        for _ in range(8):
            s.crowd.leave(s.crowd.come(6))
        assert until(lambda: s.server.stats().accepted == 48)
        assert s.empty()
        assert s.door.peak() <= 3
        s.crowd.come(4)
        s.crowd.inside(3)


@EVERY_WAY
def test_the_limit_changes_while_the_server_runs(way: str) -> None:
    with scene(way, max_connections=2) as s:
        s.crowd.come(6)
        first = s.crowd.inside(2)
        s.server.configure(max_connections=3)
        s.crowd.inside(3)
        s.server.configure(max_connections=1)
        s.crowd.leave(first)
        assert until(lambda: s.server.stats().active == 1)
        s.crowd.leave(s.crowd.inside(1))
        assert len(s.crowd.inside(1)) == 1
        assert list(accumulate(s.door.steps())) == [1, 2, 3, 2, 1, 0, 1]
        s.server.configure(max_connections=None)
        s.crowd.inside(3)
        s.crowd.come(20)
        s.crowd.inside(23)


@EVERY_WAY
def test_a_limit_may_be_set_while_the_server_runs_and_counts_those_who_are_in(way: str) -> None:
    with scene(way) as s:
        s.crowd.come(3)
        s.crowd.inside(3)
        s.server.configure(max_connections=3, max_connections_per_client=3, overload="close")
        s.crowd.come(1)
        s.crowd.turned_away(1)
        s.server.configure(max_connections=None)
        s.crowd.come(1)
        s.crowd.turned_away(2)
        assert s.server.stats().refused == {"max_connections": 1, "max_connections_per_client": 1}
        s.crowd.leave(s.crowd.inside(3)[:1])
        assert until(lambda: s.server.stats().active == 2)
        s.crowd.come(1)
        s.crowd.inside(3)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@EVERY_WAY
def test_limits_that_change_while_clients_come_and_go_lose_no_slot(way: str, hasty: None) -> None:
    over = threading.Event()
    with scene(way, max_connections_per_client=4) as s:

        def change() -> None:
            number = 4
            while not over.is_set():
                number = 9 - number
                s.server.configure(max_connections_per_client=number)

        with in_a_thread(change):
            for _ in range(15):
                s.crowd.come(4)
                s.crowd.leave(s.crowd.inside(4))
                assert s.empty()
            over.set()
        s.server.configure(max_connections_per_client=4)
        s.crowd.come(5)
        s.crowd.inside(4)
        s.crowd.turned_away(1)


class Host:
    """A client's address that does something once when it is next looked up."""

    act: Any = None

    def __hash__(self) -> int:
        act, self.act = self.act, None
        if act is not None:
            act()
        return 1


def test_one_that_leaves_just_when_all_are_counted_anew_is_not_counted_for_ever() -> None:
    host = Host()
    members = {"get_request": lambda self: (portico.TCPServer.get_request(self)[0], (host,))}

    def leave() -> None:
        s.crowd.leave(s.crowd.inside(2)[:1])
        until(lambda: len(s.server._portico_connections) < 2, 0.2)  # which may have to wait for the counting

    with scene("threads", members=members, max_connections_per_client=2) as s:
        s.crowd.come(2)
        s.crowd.inside(2)
        host.act = leave
        s.server.configure(max_connections_per_client=3)
        assert until(lambda: s.server.stats().active == 1)
        s.crowd.come(3)
        s.crowd.inside(3)
        s.crowd.turned_away(1)


def test_a_plain_server_serves_one_after_the_other_within_any_limit() -> None:
    door = Door()
    made = server_class("plain", door=door.theirs)
    with made(LOOPBACK, Room, max_connections=1).background() as server:
        crowd = Crowd(server.server_address)
        crowd.come(3)
        for _ in range(3):
            crowd.leave(crowd.inside(1))
        assert until(lambda: door.steps() == [1, -1] * 3)
        assert until(lambda: server.stats().active == 0)
        assert server.stats().refused == {}
    door.close()


@EVERY_WAY
def test_the_operator_closes_one_and_the_next_one_enters(way: str) -> None:
    with scene(way, max_connections=2) as s:
        s.crowd.come(3)
        s.crowd.inside(2)
        oldest, second = s.server.connections()
        oldest.close()
        s.crowd.await_number(b"in.", 1)
        s.crowd.inside(2)
        assert until(lambda: oldest.state == "ended")
        assert oldest.reason is EndReason.CLOSED
        assert second.state == "open"
        oldest.close()
        s.crowd.leave()
        assert until(lambda: s.server.stats().active == 0)  # a process that is ended leaves through no door
        assert s.server.stats().ended["closed"] == 1


# -- what is said to those who may not


@EVERY_KIND
@EVERY_WAY
def test_overload_close_turns_away_without_a_word(way: str, kind: str) -> None:
    with scene(way, kind, max_connections=2, overload="close") as s:
        s.crowd.come(2)
        s.crowd.inside(2)
        s.crowd.come(3)
        s.crowd.turned_away(3)
        assert s.server.stats().refused == {"max_connections": 3}
        assert [event.reason for event in s.told(Refused)] == ["max_connections"] * 3
        assert not any(event.dry_run for event in s.told(Refused))
        assert len(s.told(ConnectionStarted)) == 2
        s.crowd.leave(s.crowd.inside(2))
        assert s.empty()
        s.crowd.come(1)
        s.crowd.inside(1)


@EVERY_KIND
@EVERY_WAY
def test_an_answer_arrives_though_the_client_has_spoken_already(way: str, kind: str) -> None:
    with scene(way, kind, max_connections=1, overload=b"busy\r\n") as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.server.suspend()
        for client in s.crowd.come(3):
            client.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        s.server.resume()
        s.crowd.turned_away(3, b"busy\r\n")


@EVERY_WAY
def test_a_callable_answers_by_address_and_reason(way: str) -> None:
    asked = []

    def answer(client_address: Any, reason: str) -> bytes | None:
        asked.append((client_address, reason))
        return b"sorry: " + reason.encode() if len(asked) < 3 else None

    with scene(way, max_connections=2, max_connections_per_client=1, overload=answer) as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.crowd.come(1)
        s.crowd.turned_away(1, b"sorry: max_connections_per_client")
        s.crowd.come(1, source="127.0.0.2")
        s.crowd.inside(2)
        (third,) = s.crowd.come(1, source="127.0.0.3")
        s.crowd.turned_away(1, b"sorry: max_connections")
        assert asked[1] == (third.getsockname(), "max_connections")
        s.crowd.come(1)
        s.crowd.turned_away(1)
        assert len(asked) == 3


@EVERY_WAY
@pytest.mark.parametrize("kind", [LookupError, FileNotFoundError])
def test_a_callable_that_raises_is_told_of_and_the_connection_closed(way: str, kind: type[Exception]) -> None:
    def answer(client_address: Any, reason: str) -> bytes:
        raise kind(reason)

    with scene(way, max_connections=1, overload=answer) as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.crowd.come(2)
        s.crowd.turned_away(2)
        assert [event.hook for event in s.told(HookFailed)] == ["overload"]  # a crowd does not fill the log
        s.server.configure(alarm_cooldown=0)
        s.crowd.come(2)
        s.crowd.turned_away(4)
        assert [event.hook for event in s.told(HookFailed)] == ["overload"] * 3
        assert isinstance(s.told(HookFailed)[0].error, kind)


@EVERY_WAY
@pytest.mark.parametrize(
    ("answered", "error"),
    [(lambda *_: "busy", TypeError), (lambda *_: sys.exit(), SystemExit)],
    ids=["text", "exits"],
)
def test_what_a_callable_must_not_do_is_told_of_and_ends_nothing(
    answered: Any, error: type[BaseException], way: str
) -> None:
    with scene(way, max_connections=1, overload=answered) as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.crowd.come(1)
        s.crowd.turned_away(1)
        assert [type(event.error) for event in s.told(HookFailed)] == [error]
        s.server.configure(overload=lambda *_: bytearray(b"busy"))
        s.crowd.come(1)
        s.crowd.turned_away(1, b"busy")


@EVERY_WAY
def test_the_policy_changes_while_the_server_runs(way: str) -> None:
    with scene(way, max_connections=1) as s:
        s.crowd.come(3)
        s.crowd.inside(1)
        s.server.configure(overload=b"full")
        s.crowd.turned_away(2, b"full")
        s.server.configure(overload="wait")
        s.crowd.come(1)
        s.crowd.leave(s.crowd.inside(1))
        s.crowd.inside(1)


# -- one client


@EVERY_WAY
def test_each_address_has_a_number_of_its_own(way: str) -> None:
    with scene(way, max_connections_per_client=2) as s:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            s.crowd.come(3, source=source)
        inside = s.crowd.inside(6)
        s.crowd.turned_away(3)
        assert Counter(client.getsockname()[0] for client in inside) == {f"127.0.0.{n}": 2 for n in (1, 2, 3)}
        assert s.server.stats().refused == {"max_connections_per_client": 3}
        s.crowd.leave([client for client in inside if client.getsockname()[0] == "127.0.0.2"][:1])
        assert until(lambda: s.server.stats().active == 5)
        s.crowd.come(2, source="127.0.0.2")
        s.crowd.inside(6)
        s.crowd.turned_away(4)


@EVERY_WAY
def test_addresses_of_one_network_are_one_client(way: str) -> None:
    with scene(way, max_connections_per_client=2, client_prefix_ipv4=24) as s:
        for number in (1, 2, 3):
            s.crowd.come(1, source=f"127.0.0.{number}")
        s.crowd.inside(2)
        s.crowd.turned_away(1)
        s.crowd.come(1, source="127.0.1.1")
        s.crowd.inside(3)


@EVERY_WAY
def test_over_ipv6_a_network_is_one_client(way: str) -> None:
    with scene(way, address=("::1", 0), max_connections_per_client=2) as s:
        s.crowd.come(3)
        s.crowd.inside(2)
        s.crowd.turned_away(1)


@EVERY_WAY
def test_over_unix_sockets_a_user_is_one_client(way: str) -> None:
    with scene(way, "unix", max_connections_per_client=2) as s:
        s.crowd.come(3)
        s.crowd.inside(2)
        s.crowd.turned_away(1)
        assert [connection.client for connection in s.server.connections()] == [("uid", os.getuid())] * 2
        s.crowd.leave(s.crowd.inside(2)[:1])
        assert until(lambda: s.server.stats().active == 1)
        s.crowd.come(1)
        s.crowd.inside(2)


# -- how fast


@EVERY_WAY
def test_a_burst_enters_at_once_and_the_next_waits_for_its_turn(way: str) -> None:
    rate = 5.0
    with scene(way, connection_rate=rate, connection_burst=3) as s:
        began = monotonic()
        s.crowd.come(5)
        s.crowd.inside(3)
        burst = monotonic() - began
        s.crowd.inside(4)
        fourth = monotonic() - began
        s.crowd.inside(5)
        assert burst < fourth
        assert fourth > 0.9 / rate
        assert monotonic() - began > 1.9 / rate
        assert s.server.stats().refused == {}


@EVERY_WAY
def test_a_rate_that_is_lifted_holds_nobody_any_longer(way: str) -> None:
    with scene(way, connection_rate=0.001) as s:
        s.crowd.come(3)
        s.crowd.inside(1)
        s.server.configure(connection_rate=1000)
        s.crowd.inside(3)
        s.server.configure(connection_rate=0.001)
        s.crowd.come(3)
        s.server.configure(connection_rate=None)
        s.crowd.inside(6)


@EVERY_WAY
def test_beyond_the_rate_others_are_told_if_they_shall_not_wait(way: str) -> None:
    with scene(way, connection_rate=0.001, connection_burst=2, overload=b"later") as s:
        s.crowd.come(5)
        s.crowd.inside(2)
        s.crowd.turned_away(3, b"later")
        assert s.server.stats().refused == {"connection_rate": 3}


@EVERY_WAY
def test_each_address_has_a_rate_of_its_own(way: str) -> None:
    with scene(way, connection_rate_per_client=0.001, connection_burst_per_client=2) as s:
        s.crowd.come(4, source="127.0.0.1")
        s.crowd.come(4, source="127.0.0.2")
        s.crowd.inside(4)
        s.crowd.turned_away(4)
        assert s.server.stats().refused == {"connection_rate_per_client": 4}
        s.crowd.leave()
        s.crowd.come(1)
        s.crowd.turned_away(1)


@EVERY_WAY
def test_changing_another_limit_gives_nobody_a_new_burst(way: str) -> None:
    with scene(way, connection_rate_per_client=0.001, connection_burst_per_client=1) as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.server.configure(idle_timeout=100)
        s.server.suspend()
        s.server.resume()
        s.crowd.come(1)
        s.crowd.turned_away(1)


# -- from where


@EVERY_WAY
def test_networks_are_allowed_and_denied(way: str) -> None:
    with scene(way, allow=["127.0.0.0/24"], deny="127.0.0.2, 127.0.0.4/30") as s:
        answers = {}
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.1.1"):
            (client,) = s.crowd.come(1, source=source)
            assert s.crowd.hear(client)
            answers[source] = s.crowd.said[client]
        assert answers == {
            "127.0.0.1": b"in", "127.0.0.2": b".", "127.0.0.3": b"in", "127.0.0.5": b".", "127.0.1.1": b"."
        }  # fmt: skip
        assert s.server.stats().refused == {"deny": 2, "allow": 1}
        s.server.configure(deny="127.0.0.3", allow=None)
        s.crowd.come(1, source="127.0.0.3")
        s.crowd.turned_away(4)
        s.crowd.come(1, source="127.0.0.2")
        s.crowd.inside(3)


@pytest.mark.parametrize("unmap", [False, True])
@EVERY_WAY
def test_ipv4_clients_of_a_dual_stack_listener_are_ipv4_clients(way: str, unmap: bool) -> None:
    values: dict[str, Any] = {"dual_stack": True, "unmap_ipv4": unmap}
    with scene(way, address=("::", 0), deny="127.0.0.2", max_connections_per_client=1, **values) as s:
        s.crowd.address = ("127.0.0.1", s.server.server_address[1])
        s.crowd.come(1, source="127.0.0.2")
        s.crowd.turned_away(1)
        s.crowd.come(2, source="127.0.0.3")
        s.crowd.inside(1)
        s.crowd.turned_away(2)
        s.crowd.address = ("::1", s.server.server_address[1])
        s.crowd.come(1)
        s.crowd.inside(2)
        assert s.server.stats().refused == {"deny": 1, "max_connections_per_client": 1}


# -- datagrams


class Echo(portico.BaseRequestHandler):
    """Sends a datagram back."""

    def handle(self) -> None:
        payload, sock = self.request
        sock.sendto(payload, self.client_address)


class AsyncEcho(portico.AsyncBaseRequestHandler):
    """The same in async."""

    async def handle(self) -> None:
        payload, sock = self.request
        await sock.sendto(payload, self.client_address)


EVERY_DATAGRAM_WAY = pytest.mark.parametrize("way", [*WAYS, "plain"])


@contextmanager
def datagrams(way: str, **values: Any) -> Iterator[Any]:
    made = server_class(way, "udp")
    handler = AsyncEcho if way.startswith("async") else Echo
    with made(LOOPBACK, handler, **values).background() as server:
        yield server


@contextmanager
def speaker(source: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.settimeout(PATIENCE)
        yield sock


@EVERY_DATAGRAM_WAY
def test_datagrams_are_refused_by_network_and_by_rate(way: str) -> None:
    with (
        datagrams(way, deny="127.0.0.2", connection_rate_per_client=0.001, connection_burst_per_client=2) as server,
        speaker("127.0.0.1") as good,
        speaker("127.0.0.2") as bad,
        speaker("127.0.0.3") as other,
    ):
        bad.sendto(b"bad", server.server_address)
        for number in range(4):
            good.sendto(b"%d" % number, server.server_address)
        other.sendto(b"other", server.server_address)
        assert other.recv(10) == b"other"
        assert {good.recv(10), good.recv(10)} == {b"0", b"1"}
        assert until(lambda: server.stats().refused == {"deny": 1, "connection_rate_per_client": 2})
        for sock in (good, bad):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(10)


@EVERY_DATAGRAM_WAY
def test_rules_for_datagrams_may_be_set_and_taken_back_while_the_server_runs(way: str) -> None:
    with datagrams(way) as server, speaker("127.0.0.1") as good, speaker("127.0.0.2") as bad:
        bad.sendto(b"1", server.server_address)
        assert bad.recv(10) == b"1"
        server.configure(deny="127.0.0.2")
        bad.sendto(b"2", server.server_address)
        good.sendto(b"3", server.server_address)
        assert good.recv(10) == b"3"
        assert server.stats().refused == {"deny": 1}
        server.configure(deny=None)
        bad.sendto(b"4", server.server_address)
        assert bad.recv(10) == b"4"


@EVERY_DATAGRAM_WAY
def test_datagrams_beyond_the_rate_wait_in_the_sockets_queue(way: str) -> None:
    with datagrams(way, connection_rate=10, connection_burst=2) as server, speaker("127.0.0.1") as client:
        began = monotonic()
        for number in range(4):
            client.sendto(b"%d" % number, server.server_address)
        assert {client.recv(10) for _ in range(4)} == {b"0", b"1", b"2", b"3"}
        assert monotonic() - began > 0.19
        assert server.stats().refused == {}


# -- only counting, alarms


@EVERY_WAY
def test_a_dry_run_counts_and_lets_everybody_in(way: str) -> None:
    limits: dict[str, Any] = {"max_connections": 2, "deny": "127.0.0.2", "connection_rate_per_client": 0.001}
    with scene(way, limits_dry_run=True, connection_burst_per_client=1, overload=b"no", **limits) as s:
        s.crowd.come(1)
        s.crowd.inside(1)
        s.crowd.come(1)
        s.crowd.inside(2)
        s.crowd.come(1, source="127.0.0.2")
        s.crowd.inside(3)
        s.crowd.come(1, source="127.0.0.3")
        s.crowd.inside(4)
        stats = s.server.stats()
        assert stats.would_refuse == {"connection_rate_per_client": 1, "deny": 1, "max_connections": 1}
        assert stats.refused == {}
        assert [(event.reason, event.dry_run) for event in s.told(Refused)] == [
            ("connection_rate_per_client", True), ("deny", True), ("max_connections", True)
        ]  # fmt: skip
        s.server.configure(limits_dry_run=False)
        s.crowd.come(1, source="127.0.0.2")
        s.crowd.turned_away(1, b"no")
        assert s.server.stats().refused == {"deny": 1}


@EVERY_WAY
def test_a_dry_run_holds_nobody_who_would_have_to_wait(way: str) -> None:
    with scene(way, limits_dry_run=True, max_connections=1, connection_rate=0.001) as s:
        s.crowd.come(3)
        s.crowd.inside(3)
        assert s.server.stats().would_refuse == {"max_connections": 2}


@EVERY_WAY
def test_what_verify_request_refuses_is_counted_and_frees_its_slot(way: str) -> None:
    refuse = {"verify_request": lambda self, request, client_address: client_address[0] != "127.0.0.2"}
    with scene(way, max_connections=1, members=refuse) as s:
        s.crowd.come(3, source="127.0.0.2")
        s.crowd.turned_away(3)
        s.crowd.come(1)
        s.crowd.inside(1)
        assert s.server.stats().refused == {"verify_request": 3}
        assert s.server.stats().ended == {"refused": 3}


@EVERY_WAY
def test_the_alarm_is_told_once_and_again_after_its_cooldown(way: str) -> None:
    with scene(way, connections_alarm=3, alarm_cooldown=1000) as s:
        s.crowd.come(2)
        s.crowd.inside(2)
        assert not s.told(ConnectionsHigh)
        s.crowd.come(4)
        s.crowd.inside(6)
        assert [event.active for event in s.told(ConnectionsHigh)] == [3]
        s.server.configure(alarm_cooldown=0)
        s.crowd.come(2)
        s.crowd.inside(8)
        assert [event.active for event in s.told(ConnectionsHigh)] == [3, 7, 8]
        s.server.configure(connections_alarm=100)
        s.crowd.come(1)
        s.crowd.inside(9)
        assert len(s.told(ConnectionsHigh)) == 3


@EVERY_WAY
def test_without_a_number_of_its_own_the_alarm_is_told_when_full(way: str) -> None:
    with scene(way, max_connections=2) as s:
        s.crowd.come(3)
        s.crowd.inside(2)
        assert [event.active for event in s.told(ConnectionsHigh)] == [2]


# -- nobody for a while


@EVERY_KIND
@EVERY_WAY
def test_a_suspended_server_serves_whom_it_has_and_lets_others_wait(way: str, kind: str) -> None:
    with scene(way, kind) as s:
        (first,) = s.crowd.come(1)
        s.crowd.inside(1)
        s.server.suspend()
        assert s.server.stats().state is State.SUSPENDED
        s.crowd.come(3)
        first.send(b"x")
        assert until(lambda: s.server.stats().active == 0)  # the loop has looked at its sockets, and ends are seen
        s.crowd.await_number(b"in.", 1)
        assert s.server.stats().accepted == 1
        assert s.door.steps() == [1, -1]
        s.server.resume()
        s.crowd.inside(3)
        s.server.suspend()
        s.server.suspend()
        s.server.resume()
        s.server.resume()
        s.crowd.come(1)
        s.crowd.inside(4)
        changes = [(event.before, event.after) for event in s.told(StateChanged)]
        assert changes[2:] == [(State.SERVING, State.SUSPENDED), (State.SUSPENDED, State.SERVING)] * 2


@EVERY_WAY
def test_after_suspend_has_returned_nobody_enters(way: str) -> None:
    """Not even those who come while the loop is just about to wake up for it."""
    with scene(way) as s:
        for round_ in range(1, 11):
            s.server.suspend()
            s.crowd.come(2)
            assert s.server.stats().accepted == 2 * round_ - 2
            s.server.configure(max_connections=1000)  # has the loop look once more
            assert s.server.stats().accepted == 2 * round_ - 2
            s.server.resume()
            s.crowd.inside(2 * round_)


@EVERY_WAY
def test_a_server_suspended_when_it_stopped_serves_when_it_is_started_again(way: str) -> None:
    door = Door()
    made = server_class(way, door=door.theirs)
    with made(LOOPBACK, AsyncRoom if WAYS[way].is_async else Room) as server:
        with looping(server):
            assert until(lambda: server.stats().state is State.SERVING)
            server.suspend()
        crowd = Crowd(server.server_address)
        crowd.come(1)
        with looping(server):
            assert until(lambda: server.stats().state is State.SERVING)
            crowd.inside(1)
            crowd.leave()
    door.close()


# -- one by one


@pytest.mark.parametrize("way", ["threads", "reused", "forks"])
def test_handle_request_waits_for_a_free_slot(way: str) -> None:
    door = Door()
    made = server_class(way, door=door.theirs)
    with made(LOOPBACK, Room, max_connections=1, timeout=PATIENCE) as server:
        crowd = Crowd(server.server_address)
        crowd.come(2)
        server.handle_request()
        (first,) = crowd.inside(1)
        first.send(b"x")
        server.handle_request()
        crowd.inside(1)
        assert door.steps() == [1, -1, 1]
        crowd.leave()
    door.close()


@pytest.mark.parametrize("way", ["threads", "reused", "forks"])
def test_handle_request_waits_no_longer_than_its_timeout(way: str) -> None:
    door = Door()
    timeouts: list[float] = []
    members: dict[str, Any] = {"door": door.theirs, "handle_timeout": lambda self: timeouts.append(monotonic())}
    with server_class(way, **members)(LOOPBACK, Room, max_connections=1, timeout=0.1) as server:
        crowd = Crowd(server.server_address)
        crowd.come(2)
        server.handle_request()
        crowd.inside(1)
        began = monotonic()
        server.handle_request()
        assert len(timeouts) == 1
        assert 0.1 <= timeouts[0] - began < 5
        crowd.inside(1)
        crowd.leave()
    door.close()


@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_handle_request_keeps_to_a_rate(way: str) -> None:
    door = Door()
    timeouts: list[float] = []
    members: dict[str, Any] = {"door": door.theirs, "handle_timeout": lambda self: timeouts.append(monotonic())}
    made = server_class(way, **members)
    handler = AsyncRoom if way.startswith("async") else Room
    with made(LOOPBACK, handler, connection_rate=0.001, connection_burst=2, timeout=0.1) as server:
        crowd = Crowd(server.server_address)
        for client in crowd.come(3):
            client.send(b"x")
        for _ in range(3):
            server.handle_request()
        assert len(timeouts) == 1
        crowd.await_number(b"in.", 2)
        crowd.leave()
    door.close()


# -- handlers that do odd things with their socket


class Odd(Room):
    """Ends its connection in a way of its own, and stays a while: the slot is free when it has ended, and not before.

    Its clients say what to do, and then when.
    """

    def handle(self) -> None:
        os.write(self.server.door, b"+")
        self.request.sendall(b"in")
        getattr(self, self.request.recv(20).decode())()
        os.write(self.server.door, b"-")

    def early(self) -> None:
        self.request.close()

    def twice(self) -> None:
        self.request.close()
        self.request.close()

    def detach(self) -> None:
        os.close(self.request.detach())

    def wrap(self) -> None:
        with socket.socket(fileno=self.request.detach()) as wrapped:
            wrapped.setblocking(True)
            wrapped.sendall(b"wrapped")

    def server_side(self) -> None:
        self.server.shutdown_request(self.request)

    def file(self) -> None:
        file = self.request.makefile("rwb")
        self.request.close()
        file.write(b"file")
        file.close()


class AsyncOdd(portico.AsyncBaseRequestHandler):
    """The same in async."""

    early, twice, detach, wrap, server_side = Odd.early, Odd.twice, Odd.detach, Odd.wrap, Odd.server_side

    async def handle(self) -> None:
        os.write(self.server.door, b"+")
        await self.request.sendall(b"in")
        getattr(self, (await self.request.recv(20)).decode())()
        os.write(self.server.door, b"-")


ENDS = ("early", "twice", "detach", "wrap", "server_side", "file")
ODD = [(way, ends) for way in WAYS for ends in ENDS if ends != "file" or not WAYS[way].is_async]


@pytest.mark.parametrize(("way", "ends"), ODD)
@EVERY_KIND
def test_however_a_handler_ends_its_socket_its_slot_comes_back_once(way: str, kind: str, ends: str) -> None:
    handler = AsyncOdd if WAYS[way].is_async else Odd
    with scene(way, kind, handler=handler, max_connections=2, max_connections_per_client=2) as s:
        s.crowd.come(9)
        said = {"wrap": b"inwrapped.", "file": b"infile."}.get(ends, b"in.")
        for served in range(9):
            s.crowd.inside(min(2, 9 - served))
            s.crowd.those(b"in")[0].send(ends.encode())
            s.crowd.await_number(said, served + 1)
        assert s.empty()
        assert s.door.peak() == 2
        assert s.server.stats().accepted == 9
        assert sum(s.server.stats().ended.values()) == 9
    assert len(s.told(ConnectionEnded)) == 9


class Lingering(Room):
    """Closes its socket long before it ends."""

    def handle(self) -> None:
        os.write(self.server.door, b"+")
        self.request.close()
        assert self.server.gate.wait(PATIENCE)
        os.write(self.server.door, b"-")


@BLOCKING
def test_a_handler_that_has_closed_its_socket_keeps_its_slot_until_it_ends(way: str) -> None:
    gate = threading.Event()
    with scene(way, handler=Lingering, max_connections=1, members={"gate": gate}) as s:
        s.crowd.come(2)
        s.crowd.turned_away(1)
        assert [connection.state for connection in s.server.connections()] == ["open"]
        gate.set()
        s.crowd.turned_away(2)
        assert s.empty()
        assert s.door.steps() == [1, -1, 1, -1]


# -- requests that run where none of our code sees them


def elsewhere(*, ends: str) -> dict[str, Any]:
    """Members of a server that runs its requests in an executor, and ends them in this way."""

    def process_request(self: Any, request: Any, client_address: Any) -> None:
        self.executor.submit(run, self, request)

    def run(server: Any, request: Any) -> None:
        os.write(server.door, b"+")
        request.sendall(b"in")
        request.recv(1)
        os.write(server.door, b"-")
        if ends == "shutdown":
            server.shutdown_request(request)

    return {"process_request": process_request}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ends", ["shutdown", "dropped"])
@pytest.mark.parametrize("way", ["plain", "threads", "reused", "forks"])
@EVERY_KIND
def test_a_request_run_in_an_executor_gives_its_slot_back(way: str, kind: str, ends: str) -> None:
    with ThreadPoolExecutor(8) as executor:
        members = {**elsewhere(ends=ends), "executor": executor}
        with scene(way, kind, members=members, max_connections=2, max_connections_per_client=2) as s:
            s.crowd.come(8)
            for _ in range(3):
                s.crowd.leave(s.crowd.inside(2))
            s.crowd.inside(2)
            s.crowd.leave()
            assert s.empty()
            assert s.door.peak() == 2
            assert sum(s.server.stats().ended.values()) == 8
        assert len(s.told(ConnectionEnded)) == 8


class Foreign(portico.TCPServer):
    """Its connections are sockets of the standard library, as with TLS in `get_request`."""

    def get_request(self) -> Any:
        request, client_address = super().get_request()
        return socket.socket(fileno=request.detach()), client_address


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ends", ["shutdown", "dropped"])
def test_foreign_sockets_in_an_executor_give_their_slots_back(ends: str) -> None:
    with ThreadPoolExecutor(8) as executor:
        kept: list[Any] = []

        def run(server: Any, request: Any) -> None:
            request.sendall(b"in")
            request.recv(1)
            if ends == "shutdown":
                kept.append(request)  # closed, but not forgotten
                server.shutdown_request(request)

        members = {"process_request": lambda self, request, address: executor.submit(run, self, request) and None}
        made = type("Mine", (Foreign,), members)
        with made(LOOPBACK, Room, max_connections=2).background() as server:
            crowd = Crowd(server.server_address)
            crowd.come(6)
            for _ in range(2):
                crowd.leave(crowd.inside(2))
            crowd.inside(2)
            crowd.leave()
            assert until(lambda: server.stats().active == 0)
            assert sum(server.stats().ended.values()) == 6

"""Sessions: one handler per peer of a datagram server, in every way to run; limits, timeouts, drains hold."""

from __future__ import annotations

import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

import portico
from portico.lifecycle import ConnectionEnded, ConnectionStarted, PeerLeft, RequestFailed

from .contract.flavours import short_folder
from .draining import Draining
from .talks import EVERY_WAY, NOT_FORKS, ONE_OF_EACH, WAYS, Client, Talk, echo, handler_of, server_of, serving
from .waiting import until

# -- protocols as straight-line code


async def guessing(talk: Talk) -> None:
    """Higher, lower, or right; with the number of guesses."""
    secret = int(await talk.recv())
    await talk.send(b"guess")
    guesses = 1
    while (guess := int(await talk.recv())) != secret:
        guesses += 1
        await talk.send(b"higher" if guess < secret else b"lower")
    await talk.send(b"right after %d" % guesses)


@EVERY_WAY
def test_a_guessing_game_of_two_at_once(way: str) -> None:
    with serving(way, guessing) as served, served.client() as one, served.client() as two:
        assert (one.ask(b"42"), two.ask(b"7")) == (b"guess", b"guess")
        assert [one.ask(b"50"), two.ask(b"5"), one.ask(b"40"), two.ask(b"7")] == [
            b"lower", b"higher", b"higher", b"right after 2"
        ]  # fmt: skip
        assert one.ask(b"42") == b"right after 3"
        assert served.reasons(2) == ["done", "done"]
        assert until(lambda: served.notes == ["finish"] * 2)


async def sends_a_file(talk: Talk) -> None:
    """TFTP in small: each block is sent until it is acknowledged, at most ten times."""
    await talk.recv()
    for number in range(5):
        for _ in range(10):
            await talk.send(b"%d" % number)
            try:
                while await talk.recv(0.05) != b"ack %d" % number:
                    pass
                break
            except TimeoutError:
                talk.note(f"again {number}")
        else:
            raise AssertionError("the peer has gone")


@EVERY_WAY
def test_a_transfer_that_retransmits(way: str) -> None:
    with serving(way, sends_a_file) as served, served.client() as client:
        client.say(b"get")
        for number in range(5):
            if number % 2:
                assert client.hear() == b"%d" % number  # and does not acknowledge it
            assert client.hear() == b"%d" % number
            client.say(b"ack 99", b"ack %d" % number)
        assert served.reasons() == ["done"]
        assert {"again 1", "again 3"} <= set(served.notes)


@NOT_FORKS
def test_two_hundred_peers_at_once_each_in_order(way: str) -> None:
    with serving(way, echo) as served:
        clients = [served.client() for _ in range(200)]
        try:
            for number in range(1, 6):
                for client in clients:
                    client.say(b"%d" % client.sock.getsockname()[1])
                for client in clients:
                    assert client.hear() == b"%d:%d" % (number, client.sock.getsockname()[1])
            assert len(served.server.connections()) == 200
        finally:
            for client in clients:
                client.sock.close()


def test_twenty_peers_in_processes_each_in_order() -> None:
    with serving("forks", echo) as served:
        clients = [served.client() for _ in range(20)]
        for number in range(1, 20):
            for client in clients:
                client.say(b"%d" % client.sock.getsockname()[1])
            for client in clients:
                assert client.hear() == b"%d:%d" % (number, client.sock.getsockname()[1])
        for client in clients:
            client.sock.close()


@EVERY_WAY
def test_many_datagrams_of_one_peer_come_in_order(way: str) -> None:
    async def gathers(talk: Talk) -> None:
        got = [await talk.recv() for _ in range(1000)]
        await talk.send(b"in order" if got == [b"%d" % number for number in range(1000)] else b"not in order")

    with serving(way, gathers, session_queue=2000, recv_buffer_size=1 << 20) as served, served.client() as client:
        for number in range(1000):
            client.say(b"%d" % number)
            if number % 50 == 0:
                time.sleep(0.001)
        assert client.hear() == b"in order"


@EVERY_WAY
def test_two_addresses_of_ours_are_two_sessions_of_one_peer(way: str) -> None:
    with serving(way, echo, address=("0.0.0.0", 0)) as served:
        port = served.server.server_address[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(5)
            peer.bind(("127.0.0.1", 0))
            for number in (1, 2):
                for host in ("127.0.0.1", "127.0.0.2"):
                    peer.sendto(host.encode(), (host, port))
                    assert peer.recvfrom(100) == (b"%d:%s" % (number, host.encode()), (host, port))
            locals_ = [connection.local_address for connection in served.server.connections()]
            assert locals_ == [("127.0.0.1", port), ("127.0.0.2", port)]
            assert [c.client_address for c in served.server.connections()] == [peer.getsockname()] * 2


def test_ipv6_peers() -> None:
    with serving("threads", echo, address=("::1", 0)) as served, served.client() as client:
        assert [client.ask(b"a"), client.ask(b"b")] == [b"1:a", b"2:b"]


# -- the end


@EVERY_WAY
def test_a_later_datagram_begins_another_session(way: str) -> None:
    with serving(way, echo) as served, served.client() as client:
        assert [client.ask(b"a"), client.ask(b"bye")] == [b"1:a", b"2:bye"]
        assert served.reasons() == ["done"]
        assert [client.ask(b"a"), client.ask(b"bye")] == [b"1:a", b"2:bye"]
        assert served.reasons(2) == ["done", "done"]
        assert served.server.stats().accepted == 2


@EVERY_WAY
def test_session_timeout_ends_who_is_silent_and_nobody_else(way: str) -> None:
    with serving(way, echo, session_timeout=0.3) as served, served.client() as silent, served.client() as talks:
        assert (silent.ask(b"a"), talks.ask(b"b")) == (b"1:a", b"1:b")
        number = 1
        while not served.told(ConnectionEnded):
            number += 1
            assert talks.ask(b"b") == b"%d:b" % number
            time.sleep(0.02)
            assert number < 200
        assert served.reasons() == ["idle_timeout"]
        assert served.told(ConnectionEnded)[0].connection.client_address == silent.sock.getsockname()
        assert talks.ask(b"b") == b"%d:b" % (number + 1)
        assert served.server.stats().timed_out["idle_timeout"] == 1
        assert until(lambda: served.notes == ["end", "finish"])
        assert not served.told(RequestFailed)


def test_what_is_sent_counts_as_well_for_the_timeout() -> None:
    async def sends(talk: Talk) -> None:
        for _ in range(12):
            await talk.send(b"tick")
            await talk.pause(0.05)
        talk.note("through")

    for way in ("threads", "forks", "async-asyncio"):
        with serving(way, sends, session_timeout=0.3) as served, served.client() as client:
            assert client.ask(b"go") == b"tick"
            assert served.reasons() == ["done"]
            assert "through" in served.notes


@ONE_OF_EACH
def test_the_shorter_of_both_timeouts_holds(way: str) -> None:
    with serving(way, echo, session_timeout=60.0, idle_timeout=0.1) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        assert served.reasons() == ["idle_timeout"]


@ONE_OF_EACH
def test_connection_timeout(way: str) -> None:
    with serving(way, echo, connection_timeout=0.2, connection_jitter=0.0) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        until(lambda: client.say(b"a") or served.told(ConnectionEnded), 2)
        assert "connection_timeout" in served.reasons()


@EVERY_WAY
def test_closing_one_ends_it_at_once(way: str) -> None:
    with serving(way, echo) as served, served.client() as one, served.client() as two:
        assert (one.ask(b"a"), two.ask(b"b")) == (b"1:a", b"1:b")
        connection = served.server.connections()[0]
        assert (connection.client_address, connection.state) == (one.sock.getsockname(), "open")
        connection.close()
        assert served.reasons() == ["closed"]
        assert two.ask(b"b") == b"2:b"
        assert one.ask(b"a") == b"1:a"  # a new one
        if WAYS[way].prefix == "Threading":  # elsewhere it is ended where it waits
            assert served.notes == ["end", "finish"]


@EVERY_WAY
def test_a_session_that_ends_is_no_failure(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "portico")
    with serving(way, echo, session_timeout=0.1) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        assert served.reasons() == ["idle_timeout"]
        assert not served.told(RequestFailed)
        if not WAYS[way].forks:
            [left] = served.told(PeerLeft)
            assert type(left.error) is portico.SessionEnded
        assert served.server.stats().failed == 0
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@ONE_OF_EACH
def test_a_bug_is_a_failure(way: str) -> None:
    async def fails(talk: Talk) -> None:
        await talk.recv()
        raise LookupError("a bug")

    with serving(way, fails) as served, served.client() as client:
        client.say(b"a")
        assert served.reasons() == ["failed"]
        assert served.server.stats().failed == 1
        client.say(b"a")
        assert served.reasons(2) == ["failed"] * 2


@EVERY_WAY
def test_iteration_goes_on_until_the_end(way: str) -> None:
    async def counts(talk: Talk) -> None:
        await talk.send(b"here")
        talk.note(str(await talk.rest()))

    with serving(way, counts, session_timeout=0.3) as served, served.client() as client:
        client.say(b"a", b"", b"b")
        client.hear()
        assert served.reasons() == ["idle_timeout"]
        assert until(lambda: served.notes == [str([b"a", b"", b"b"]), "finish"])


# -- limits


@EVERY_WAY
def test_a_full_queue_drops_and_counts(way: str) -> None:
    async def waits(talk: Talk) -> None:
        await talk.send(b"here")
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)
        talk.note(str([await talk.recv() for _ in range(5)]))

    with serving(way, waits, session_queue=5) as served, served.client() as client:
        client.ask(b"0")
        client.say(*(b"%d" % number for number in range(1, 9)))
        assert until(lambda: served.refused == {"session_queue": 4})
        (served.server.notes.parent / "go").touch()
        assert served.reasons() == ["done"]
        assert served.notes[0] == str([b"%d" % number for number in range(5)])
        assert served.server.connections() == []


@EVERY_WAY
def test_max_sessions(way: str) -> None:
    with (
        serving(way, echo, max_sessions=2, overload=b"full") as served,
        served.client() as one,
        served.client() as two,
        served.client() as three,
    ):
        assert (one.ask(b"a"), two.ask(b"b"), three.ask(b"c")) == (b"1:a", b"1:b", b"full")
        assert served.refused == {"max_sessions": 1}
        assert one.ask(b"bye") == b"2:bye"
        served.reasons()
        assert three.ask(b"c") == b"1:c"


@EVERY_WAY
@pytest.mark.parametrize("overload", ["wait", "close", b"no"])
def test_max_connections_refuses_and_never_waits(way: str, overload: Any) -> None:
    with (
        serving(way, echo, max_connections=1, overload=overload) as served,
        served.client() as one,
        served.client() as two,
    ):
        assert one.ask(b"a") == b"1:a"
        two.say(b"b")
        assert two.hear() == b"no" if overload == b"no" else until(lambda: served.refused)
        assert served.refused == {"max_connections": 1}
        assert one.ask(b"a") == b"2:a"
        assert len(served.server.connections()) == 1
        assert one.ask(b"bye") == b"3:bye"
        served.reasons()
        assert two.ask(b"b") == b"1:b"


@ONE_OF_EACH
def test_limits_per_client_rates_and_networks(way: str) -> None:
    with serving(way, echo, max_connections_per_client=1) as served, served.client() as one, served.client() as two:
        assert one.ask(b"a") == b"1:a"
        two.say(b"b")
        assert until(lambda: served.refused == {"max_connections_per_client": 1})
        assert one.ask(b"a") == b"2:a"
    with serving(way, echo, connection_rate_per_client=0.01) as served, served.client() as one, served.client() as two:
        assert one.ask(b"a") == b"1:a"
        two.say(b"b")
        assert until(lambda: served.refused == {"connection_rate_per_client": 1})
        assert [one.ask(b"a") for _ in range(20)][-1] == b"21:a"
    with serving(way, echo, deny="127.0.0.0/8", overload=b"no") as served, served.client() as one:
        assert one.ask(b"a") == b"no"
        assert served.refused == {"deny": 1}


def test_a_dry_run_counts_and_lets_in() -> None:
    with (
        serving("threads", echo, max_connections=1, limits_dry_run=True) as served,
        served.client() as one,
        served.client() as two,
    ):
        assert (one.ask(b"a"), two.ask(b"b")) == (b"1:a", b"1:b")
        assert served.server.stats().would_refuse == {"max_connections": 1}


@pytest.mark.parametrize(
    ("way", "setting"), [("threads", "max_threads"), ("reused", "max_threads"), ("forks", "max_children")]
)
def test_without_a_thread_or_process_a_peer_is_refused_and_others_go_on(way: str, setting: str) -> None:
    with serving(way, echo, overload=b"no", **{setting: 1}) as served, served.client() as one, served.client() as two:
        assert one.ask(b"a") == b"1:a"
        for number in range(2, 30):
            assert two.ask(b"b") == b"no"
            assert one.ask(b"a") == b"%d:a" % number
        assert set(served.refused) == {"overloaded"}
        assert one.ask(b"bye") == b"30:bye"
        assert until(lambda: two.ask(b"b") != b"no")


def test_a_thread_that_cannot_be_started_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("threads", echo) as served, served.client() as one, served.client() as two:
        assert one.ask(b"a") == b"1:a"

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr("portico.threads._RequestThread.start", start)
            for number in range(2, 40):
                two.say(b"b")
                assert one.ask(b"a") == b"%d:a" % number
            assert until(lambda: served.refused == {"overloaded": 38})
        assert two.ask(b"b") == b"1:b"
        assert len(served.server._portico_reception) == 2


@NOT_FORKS
def test_a_flood_of_peers_takes_neither_memory_nor_threads(way: str) -> None:
    with serving(way, echo, max_sessions=100, overload="close") as served:
        threads = threading.active_count()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target = served.server.server_address
        for number in range(100):
            crowd = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
            for sock in crowd:
                sock.sendto(b"x", target)
            for sock in crowd:
                sock.close()
            least = number * 80  # some have the port of one who has a session
            assert until(lambda least=least: served.refused.get("max_sessions", 0) >= least), number  # type: ignore[misc]
        assert len(served.server.connections()) <= 100
        assert len(served.server._portico_reception) <= 100
        assert threading.active_count() <= threads + 100 + 1  # who looks at time limits
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
        assert served.refused["max_sessions"] > 5000


@EVERY_WAY
def test_verify_request_sees_the_session_once(way: str) -> None:
    seen = []

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        seen.append((request.getpeername() == client_address, request.fileno(), request.type))
        return len(seen) != 1

    with serving(way, echo, members={"verify_request": verify_request}) as served, served.client() as client:
        client.say(b"a")
        assert served.reasons() == ["refused"]
        assert [client.ask(b"a"), client.ask(b"b")] == [b"1:a", b"2:b"]
        assert seen == [(True, -1, socket.SOCK_DGRAM)] * 2
        assert served.refused == {"verify_request": 1}


@ONE_OF_EACH
def test_a_hook_that_forgets_to_close_keeps_no_session(way: str) -> None:
    def close_request(self: Any, request: Any) -> None:
        return

    with serving(way, echo, members={"close_request": close_request}) as served, served.client() as client:
        assert client.ask(b"bye") == b"1:bye"
        served.reasons()
        assert client.ask(b"a") == b"1:a"


# -- suspended, drained


@EVERY_WAY
def test_suspended_it_goes_on_with_who_is_there(way: str) -> None:
    with serving(way, echo) as served, served.client() as one, served.client() as two:
        assert one.ask(b"a") == b"1:a"
        served.server.suspend()
        assert one.ask(b"a") == b"2:a"
        two.say(b"b")
        assert until(lambda: served.refused == {"suspended": 1})
        assert one.ask(b"a") == b"3:a"
        served.server.resume()
        assert two.ask(b"b") == b"1:b"


async def gathers(talk: Talk) -> None:
    """Says nothing until it has heard it all."""
    got = []
    while (data := await talk.recv()) != b"end":
        got.append(data)
        if len(got) == 1:
            talk.note("begun")
    await talk.send(b"".join(got))


@EVERY_WAY
@pytest.mark.parametrize("verb", ["drain", "server_close"])
def test_a_drain_feeds_those_in_the_middle_and_takes_nobody_else(way: str, verb: str) -> None:
    with serving(way, gathers) as served, served.client() as one, served.client() as two, served.client() as idle:
        one.say(b"a")
        assert until(lambda: "begun" in served.notes)
        ends = threading.Thread(target=getattr(served.server, verb))
        ends.start()
        assert until(served.server.is_draining)
        until(lambda: two.say(b"x") or served.refused.get("draining"))
        one.say(b"b", b"c")
        time.sleep(0.1)
        assert ends.is_alive()
        assert one.ask(b"end") == b"abc"
        ends.join(5)
        assert not ends.is_alive()
        assert served.reasons() == ["done"]
        assert served.server.fileno() == -1
        assert served.refused["draining"] >= 1
        assert len(served.told(ConnectionStarted)) == 1
        assert idle.hears_nothing(0.01)


@EVERY_WAY
def test_a_transfer_under_way_is_finished_in_a_drain(way: str) -> None:
    with serving(way, sends_a_file) as served, served.client() as client:
        client.say(b"get")
        drain = None
        for number in range(5):
            assert client.hear() == b"%d" % number
            client.say(b"ack %d" % number)
            drain = drain or Draining(served.server)
            assert until(served.server.is_draining)
        assert drain is not None
        assert drain.report().finished == 1
        assert served.reasons() == ["done"]


@EVERY_WAY
def test_a_drain_tells_those_that_are_idle(way: str) -> None:
    with serving(way, echo) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        drain = Draining(served.server, 5.0)
        report = drain.report()
        assert (report.finished, report.cut) == (1, [])
        assert drain.lasted < 2
        assert served.reasons() == ["drained"]
        assert until(lambda: served.notes == ["end", "finish"])


@EVERY_WAY
def test_what_waits_is_given_before_the_end_is_told(way: str) -> None:
    async def late(talk: Talk) -> None:
        await talk.send(b"here")
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)
        talk.note(str(await talk.rest()))

    with serving(way, late) as served, served.client() as client:
        client.ask(b"a")
        client.say(b"b")
        assert until(lambda: served.server.connections()[0].bytes_in == 2)
        served.server.connections()[0].shut(socket.SHUT_RD)
        client.say(b"dropped")
        assert until(lambda: served.refused == {"session_ended": 1})
        (served.server.notes.parent / "go").touch()
        served.reasons()
        assert until(lambda: served.notes == [str([b"a", b"b"]), "finish"])


@EVERY_WAY
def test_the_deadline_cuts(way: str) -> None:
    """None may be stuck; the best of three, as on a busy machine one may not have its turn in time."""
    assert any(not cut_at_the_deadline(way).stuck for _ in range(3))


def cut_at_the_deadline(way: str) -> Any:
    with serving(way, gathers) as served, served.client() as client:
        client.say(b"a")
        assert until(lambda: "begun" in served.notes)
        drain = Draining(served.server, 0.2)
        report = drain.report()
        assert [connection.client_address for connection in report.cut] == [client.sock.getsockname()]
        assert 0.2 <= drain.lasted < 1.5
        assert served.reasons() == ["cut"]
        return report


@EVERY_WAY
def test_shutdown_tells_all_that_nothing_more_will_come(way: str) -> None:
    with serving(way, echo) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        served.server.shutdown()
        assert until(lambda: served.notes == ["end", "finish"])


@EVERY_WAY
@pytest.mark.parametrize("verbs", [["shutdown", "server_close"], ["server_close"], ["drain"]])
def test_what_has_been_asked_is_answered_before_the_socket_is_closed(way: str, verbs: list[str]) -> None:
    async def answers_late(talk: Talk) -> None:
        got = [await talk.recv()]
        talk.note("begun")
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)
        await talk.send(b"".join([*got, *await talk.rest()]))

    with serving(way, answers_late) as served, served.client() as client:
        client.say(b"a")
        assert until(lambda: served.notes == ["begun"])
        client.say(b"b")
        assert until(lambda: served.server.connections()[0].bytes_in == 2)

        def end() -> None:
            for verb in verbs:
                getattr(served.server, verb)()

        ends = threading.Thread(target=end)
        ends.start()
        if verbs != ["shutdown", "server_close"]:
            assert until(served.server.is_draining)
            served.server.connections()[0].shut(socket.SHUT_RD)
        (served.server.notes.parent / "go").touch()
        assert client.hear() == b"ab"
        ends.join(5)
        assert served.server.fileno() == -1


@pytest.mark.parametrize("way", ["threads", "green-asyncio", "async-uvloop", "forks"])
def test_closed_by_its_own_loop(way: str) -> None:
    def service_actions(self: Any) -> None:
        if (self.notes.parent / "close").exists():
            self.server_close()

    with serving(way, echo, members={"service_actions": service_actions}) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        (served.server.notes.parent / "close").touch()
        client.say(b"b")
        assert until(lambda: served.server.fileno() == -1, 3)
        assert served.reasons()[0] in ("drained", "done", "peer_left", "cut")


@EVERY_WAY
def test_served_again_after_shutdown(way: str) -> None:
    with short_folder() as folder:
        server = server_of(way, echo, notes=folder / "notes")
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with Client(server) as client:
                assert [client.ask(b"a"), client.ask(b"b")] == [b"1:a", b"2:b"]
            server.shutdown()
            thread.join(5)
            assert not thread.is_alive()
        server.server_close()


@EVERY_WAY
def test_goodbyes_are_said(way: str) -> None:
    def goodbye(self: Any) -> None:
        self.request.send(b"goodbye")

    async def goodbye_async(self: Any) -> None:
        await self.request.send(b"goodbye")

    is_async = WAYS[way].is_async
    handler = handler_of(echo, is_async=is_async, goodbye=goodbye_async if is_async else goodbye)
    with serving(way, None, handler=handler) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        report = Draining(served.server, 5.0).report()
        assert client.hear() == b"goodbye"
        assert (report.goodbyes, report.cut) == (1, [])


@pytest.mark.parametrize("settings", [{"daemon_threads": True}, {"block_on_close": False}])
@pytest.mark.parametrize("way", ["threads", "green-asyncio", "async-uvloop"])
def test_who_is_not_waited_for_is_told_at_once(way: str, settings: dict[str, Any]) -> None:
    with serving(way, gathers, **settings) as served, served.client() as client:
        client.say(b"a")
        assert until(lambda: "begun" in served.notes)
        began = time.monotonic()
        served.server.server_close()
        assert time.monotonic() - began < 0.5
        assert served.server.fileno() == -1
        served.reasons()


# -- what an operator sees


@EVERY_WAY
def test_connections_and_figures(way: str) -> None:
    with serving(way, echo, access_log="text") as served, served.client() as client:
        assert [client.ask(b"abc"), client.ask(b"de")] == [b"1:abc", b"2:de"]
        [connection] = served.server.connections()
        assert connection.client_address == client.sock.getsockname()
        assert connection.local_address == served.server.server_address
        assert until(lambda: (connection.bytes_in, connection.bytes_out) == (5, 9))
        assert connection.state == "open"
        stats = served.server.stats()
        assert (stats.accepted, stats.active, stats.bytes_in, stats.bytes_out) == (1, 1, 5, 9)
        assert client.ask(b"bye") == b"3:bye"
        assert served.reasons() == ["done"]
        stats = served.server.stats()
        assert (stats.accepted, stats.active, stats.done, stats.bytes_in, stats.bytes_out) == (1, 0, 1, 8, 14)
        assert len(served.told(ConnectionStarted)) == len(served.told(ConnectionEnded)) == 1


def test_the_access_log_has_a_line_for_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "portico.access")
    with serving("threads", echo, access_log="text") as served, served.client() as client:
        assert client.ask(b"bye") == b"1:bye"
        served.reasons()
        assert until(lambda: caplog.messages)
    [line] = caplog.messages
    assert line.startswith(f"127.0.0.1:{client_port(line)} -> 127.0.0.1:{served.server.server_address[1]} id=1 ")
    assert line.endswith("in=3 out=5 done")


def client_port(line: str) -> str:
    return line.split(" ")[0].partition(":")[2]


# -- Unix


@EVERY_WAY
def test_unix_peers_with_and_without_an_address(way: str) -> None:
    with (
        serving(way, echo, kind="UnixDatagramServer") as served,
        short_folder() as folder,
        served.client() as bound,
        served.client() as unbound,
    ):
        unbound.sock.sendto(b"x", served.server.server_address)
        assert until(lambda: served.refused == {"no_address": 1})
        bound.sock.bind(str(folder / "peer"))
        bound.sock.connect(served.server.server_address)
        assert [bound.ask(b"a"), bound.ask(b""), bound.ask(b"bye")] == [b"1:a", b"2:", b"3:bye"]
        assert served.reasons() == ["done"]


@NOT_FORKS
def test_a_unix_peer_that_has_gone_ends_its_session(way: str) -> None:
    async def answers_late(talk: Talk) -> None:
        await talk.recv()
        talk.note("got")
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)
        await talk.send(b"too late")

    with (
        serving(way, answers_late, kind="UnixDatagramServer") as served,
        short_folder() as folder,
        served.client() as client,
    ):
        client.sock.bind(str(folder / "peer"))
        client.sock.connect(served.server.server_address)
        client.say(b"a")
        assert until(lambda: served.notes == ["got"])
        client.sock.close()
        (served.server.notes.parent / "go").touch()
        assert served.reasons() == ["peer_left"]
        assert [type(event.error) for event in served.told(PeerLeft)] == [portico.SessionEnded]


# -- processes


def test_a_child_that_is_killed_ends_its_session_and_the_next_is_another() -> None:
    async def dies(talk: Talk) -> None:
        await talk.send(b"here")
        await talk.recv()
        if await talk.recv() == b"die":
            os.kill(os.getpid(), 9)
        await talk.send(b"lives")

    with serving("forks", dies) as served, served.client() as client:
        assert client.ask(b"a") == b"here"
        client.say(b"die")
        assert served.reasons() == ["killed"]
        assert client.ask(b"a") == b"here"
        assert client.ask(b"b") == b"lives"
        assert served.reasons(2) == ["killed", "done"]


def test_a_peer_may_come_again_before_his_child_is_reaped() -> None:
    class Lingers(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.request.send(self.request.recv())
            self.request.close()
            self.request._server._portico_system.sleep(0.3)

    with serving("forks", None, handler=Lingers) as served, served.client() as client:
        for number in range(1, 4):
            assert client.ask(b"a") == b"a"
            time.sleep(0.05)
            assert len(served.server.connections()) == number
        assert served.reasons(3) == ["done"] * 3


def test_the_parent_keeps_nothing_of_sessions_in_processes() -> None:
    with serving("forks", echo) as served:
        for number in range(1, 11):
            with served.client() as client:
                assert client.ask(b"bye") == b"1:bye"
            served.reasons(number)
            if number == 1:
                before = len(os.listdir("/proc/self/fd"))
        assert until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)  # what sees children end


# -- what does not fit


def test_a_server_that_runs_one_request_at_a_time_has_no_sessions() -> None:
    with pytest.raises(portico.SettingError, match="threads, forks, green or async"):
        portico.UDPServer(("127.0.0.1", 0), portico.BaseRequestHandler, sessions=True)
    with pytest.raises(portico.SettingError, match="threads, forks, green or async"):
        type("Mine", (portico.UDPServer,), {"sessions": True})(("127.0.0.1", 0), portico.BaseRequestHandler)
    with pytest.raises(portico.UnknownSettingError):
        portico.ThreadingTCPServer(("127.0.0.1", 0), portico.BaseRequestHandler, sessions=True)


@pytest.mark.parametrize(
    ("way", "base", "fits"),
    [
        ("Threading", "DatagramRequestHandler", "BaseRequestHandler"),
        ("Green", "StreamRequestHandler", "BaseRequestHandler"),
        ("Async", "AsyncDatagramRequestHandler", "AsyncBaseRequestHandler"),
        ("Async", "AsyncStreamRequestHandler", "AsyncBaseRequestHandler"),
    ],
)
def test_a_handler_of_another_kind_is_refused(way: str, base: str, fits: str) -> None:
    is_async = way == "Async"

    async def handle_async(self: Any) -> None:
        return

    handler = type("Mine", (getattr(portico, base),), {"handle": handle_async if is_async else lambda self: None})
    with pytest.raises(portico.HandlerError, match=f"Mine is a {base}, .* derive it from {fits}"):
        getattr(portico, f"{way}UDPServer")(("127.0.0.1", 0), handler, sessions=True)


def test_nothing_of_sessions_is_loaded_where_there_are_none() -> None:
    code = (
        "import sys, portico\n"
        "portico.ThreadingUDPServer(('127.0.0.1', 0), portico.BaseRequestHandler).server_close()\n"
        "print([m for m in sys.modules if 'session' in m])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# -- other ways to receive


def test_an_overridden_get_request_may_ask_ours() -> None:
    seen = []

    def get_request(self: Any) -> Any:
        found = portico.UDPServer.get_request(self)
        seen.append(found[1])
        return found

    with (
        serving("threads", echo, members={"get_request": get_request}) as served,
        served.client() as one,
        served.client() as two,
    ):
        for number in range(1, 100):
            assert (one.ask(b"a"), two.ask(b"b")) == (b"%d:a" % number, b"%d:b" % number)
        assert len(seen) == 2


@pytest.mark.parametrize("way", ["threads", "green-asyncio", "async-uvloop"])
def test_a_socket_of_somebody_elses(way: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    with serving(way, echo, address=sock) as served, served.client() as one, served.client() as two:
        for number in range(1, 100):
            assert (one.ask(b"a"), two.ask(b"b")) == (b"%d:a" % number, b"%d:b" % number)


def test_more_peers_than_are_remembered_cost_no_session() -> None:
    """A peer whose address has been forgotten meanwhile is still found."""
    with serving("threads", echo) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        served.server.socket.peers.known.clear()
        assert client.ask(b"a") == b"2:a"
        served.server.socket.peers.known.clear()
        assert client.ask(b"bye") == b"3:bye"
        served.reasons()
        assert until(lambda: len(served.server._portico_reception) == 0)
        assert not served.server._portico_reception._by_route


def test_handle_request_begins_one() -> None:
    with short_folder() as folder:
        server = server_of("threads", echo, notes=folder / "notes")
        with server, Client(server) as one, Client(server) as two:
            one.say(b"a")
            server.handle_request()
            assert one.hear() == b"1:a"
            two.say(b"b")
            one.say(b"c")
            server.handle_request()
            server.timeout = 0.01
            server.handle_request()
            assert (one.hear(), two.hear()) == (b"2:c", b"1:b")


@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way].prefix in ("Green", "Async")])
def test_handle_request_on_a_loop_of_its_own_is_fed_by_nobody(way: str) -> None:
    with short_folder() as folder:
        server = server_of(way, echo, notes=folder / "notes")
        with server, Client(server) as client:
            client.say(b"a")
            server.handle_request()
            assert client.hear() == b"1:a"
            assert (folder / "notes").read_text() == "end\nfinish\n"


def test_many_at_once_from_many_threads() -> None:
    def talk(client: Any) -> bool:
        return [client.ask(b"x") for _ in range(30)] == [b"%d:x" % number for number in range(1, 31)]

    # All stay open: whoever came later might get the port of one who has left, and with it his session.
    with serving("threads", echo) as served, ExitStack() as clients, ThreadPoolExecutor(20) as pool:
        assert all(pool.map(talk, [clients.enter_context(served.client()) for _ in range(60)]))

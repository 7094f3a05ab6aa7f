"""Time limits on live connections: who is cut and when, who is not, and what a handler sees; for every way to run.

Each limit is a fraction of a second, and what has to outlast it does so several times over. Clients end their side with
a half-close: a forked child has a copy of the client's socket, too, as both ends are in one process here.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

from .every_way import EVERY, TCP, Case, Peer, in_every_way, resident, seconds_to_the_end, serving, until_the_end
from .loops import in_a_thread
from .waiting import until

LATE = 0.3
"""Seconds that a limit may be enforced too late."""
LIMIT = 0.2
PIECE = bytes(1 << 20)


def timer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "time limits" in thread.name]


def heard_within(client: socket.socket, seconds: float) -> bool:
    """Whether something, or the end, comes within so many seconds."""
    return bool(select.select([client], [], [], seconds)[0])


def ping(client: socket.socket, seconds: float, every: float = LIMIT / 4) -> int:
    """Send a byte now and then, for so long, and read its echo; returns how many times that went well."""
    times, end = 0, time.monotonic() + seconds
    with suppress(ConnectionError):
        while time.monotonic() < end:
            client.sendall(b"x")
            if client.recv(1) != b"x":
                break
            times += 1
            if heard_within(client, every):
                break
    return times


def leave(client: socket.socket) -> None:
    """End this side and wait for the other."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
    seconds_to_the_end(client)


# -- idle_timeout


@in_every_way(EVERY)
def test_a_silent_client_is_cut_in_time(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=LIMIT) as served, served.connect() as client:
        assert LIMIT - 0.02 <= seconds_to_the_end(client) <= LIMIT + LATE
        assert served.reasons() == ["idle_timeout"]
        assert served.notes() == ["end", "finally", "finish"]
        assert served.server.stats().timed_out["idle_timeout"] == 1


@in_every_way(EVERY)
def test_a_client_that_falls_silent_is_cut_by_its_last_byte(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=LIMIT) as served, served.connect() as client:
        assert ping(client, LIMIT) > 1
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert LIMIT - 0.02 <= seconds_to_the_end(client) <= LIMIT + LATE
        assert served.reasons() == ["idle_timeout"]


@in_every_way(EVERY)
def test_one_that_pings_is_not_idle(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=LIMIT) as served, served.connect() as client:
        assert ping(client, LIMIT * 3) > 3
        leave(client)
        assert served.reasons() == ["done"]


async def _answers_for_long(peer: Peer) -> None:
    await peer.recv(1)
    for _ in range(12):
        await peer.sendall(b"x")
        await peer.pause(LIMIT / 4)


@in_every_way(EVERY)
def test_what_a_handler_sends_counts_as_well(case: Case) -> None:
    with serving(case, _answers_for_long, idle_timeout=LIMIT) as served, served.connect() as client:
        client.sendall(b"x")
        assert len(client.makefile("rb").read()) == 12
        assert served.reasons() == ["done"]


# -- connection_timeout


@in_every_way(EVERY)
def test_an_active_client_is_cut_when_its_time_is_over(case: Case) -> None:
    limits: dict[str, Any] = {"connection_timeout": 0.4, "connection_jitter": 0.0}
    with serving(case, until_the_end, **limits) as served, served.connect() as client:
        began = time.monotonic()
        assert ping(client, 5.0, every=0.02) > 3
        assert 0.38 <= time.monotonic() - began <= 0.4 + LATE
        assert served.reasons() == ["connection_timeout"]
        assert served.notes() == ["end", "finally", "finish"]


@in_every_way([case for case in EVERY if not case.one_by_one and case.way.name in ("thread", "fork", "green", "async")])
def test_jitter_spreads_the_ends_and_only_shortens(case: Case) -> None:
    limits: dict[str, Any] = {"connection_timeout": 0.5, "connection_jitter": 1.0}
    with serving(case, until_the_end, **limits) as served, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(served.connect())
        assert served.reasons(20) == ["connection_timeout"] * 20
        ages = [connection.age for connection in served.ends()]
        assert max(ages) <= 0.5 + LATE
        assert max(ages) - min(ages) > 0.1


# -- min_read_rate


async def _takes_it_all(peer: Peer) -> None:
    total = 0
    try:
        while data := await peer.recv(65536):
            total += len(data)
        peer.note(f"end {total}")
    finally:
        peer.note("finally")
    with suppress(ConnectionError):
        await peer.sendall(b"%d" % total)


RATE: dict[str, Any] = {"min_read_rate": 1000, "read_grace": 0.3}


@in_every_way(EVERY)
def test_a_trickling_client_is_cut(case: Case) -> None:
    with serving(case, _takes_it_all, **RATE) as served, served.connect() as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 5:
                client.sendall(b"x")
                if heard_within(client, 0.05):
                    break
        assert 0.28 <= time.monotonic() - began <= 0.3 * 1.25 + 0.05 + LATE
        assert served.reasons() == ["min_read_rate"]
        assert served.notes()[-2:] == ["finally", "finish"]


@in_every_way(EVERY)
def test_an_honest_upload_is_not(case: Case) -> None:
    """Twice as fast as it must be, several times as long as it is measured."""
    with serving(case, _takes_it_all, **RATE) as served, served.connect() as client:
        sent, began = 0, time.monotonic()
        while time.monotonic() - began < 0.9:
            client.sendall(bytes(100))
            sent += 100
            assert not heard_within(client, 0.04)
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"%d" % sent
        assert served.reasons() == ["done"]


async def _thinks(peer: Peer) -> None:
    assert await peer.recv(100) == b"quest"
    assert await peer.recv(100) == b"ion"
    await peer.pause(0.8)
    await peer.sendall(b"answer")
    assert await peer.recv(100) == b"another"
    await peer.pause(0.5)
    await peer.sendall(b"answer")


@in_every_way(EVERY)
def test_a_short_request_may_wait_for_a_slow_answer(case: Case) -> None:
    with serving(case, _thinks, **RATE) as served, served.connect() as client:
        client.sendall(b"quest")
        assert not heard_within(client, 0.15)
        client.sendall(b"ion")  # in two pieces, of which a look comes between
        assert client.recv(100) == b"answer"
        client.sendall(b"another")
        assert client.recv(100) == b"answer"
        leave(client)
        assert served.reasons() == ["done"]


PIECES = 12


async def _reads_late(peer: Peer) -> None:
    """A few bytes at a time, as a handler does that has to think about each piece."""
    total = 0
    while total < PIECES * 20:
        total += len(await peer.recv(20))
        await peer.pause(0.12)
    await peer.sendall(b"%d" % total)


@in_every_way(EVERY)
def test_who_has_sent_all_at_once_to_a_handler_that_reads_late_is_not_slow(case: Case) -> None:
    with serving(case, _reads_late, **RATE) as served, served.connect() as client:
        client.sendall(bytes(PIECES * 20))
        assert client.recv(100) == b"%d" % (PIECES * 20)
        leave(client)
        assert served.reasons() == ["done"]


async def _answers_each_late(peer: Peer) -> None:
    for _ in range(3):
        assert len(await peer.recv(9)) == 9
        await peer.pause(0.8)
        await peer.sendall(b"answer")


@in_every_way(EVERY)
def test_who_asks_again_before_its_first_answer_is_not_slow(case: Case) -> None:
    """What it says lies unread meanwhile: nobody waits for it."""
    with serving(case, _answers_each_late, **RATE) as served, served.connect() as client:
        for _ in range(3):
            client.sendall(b"question\n")
            heard_within(client, 0.25)
        assert client.makefile("rb").read(18) == b"answer" * 3
        leave(client)
        assert served.reasons() == ["done"]


async def _lets_it_wait(peer: Peer) -> None:
    """Until nothing more is taken from the client, then reads it all."""
    await peer.pause(0.8)
    await _takes_it_all(peer)


@in_every_way(EVERY)
def test_backpressure_is_not_the_clients_slowness(case: Case) -> None:
    """More than the buffers hold: the client stands still because the handler does."""
    with serving(case, _lets_it_wait, min_read_rate=1e6, read_grace=0.2) as served, served.connect() as client:
        in_all = 8 << 20
        with in_a_thread(client.sendall, bytes(in_all)):
            heard_within(client, 0.7)
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"%d" % in_all
        assert served.reasons() == ["done"]


# -- send_timeout


async def _writes_a_lot(peer: Peer) -> None:
    await peer.recv(1)
    before = resident()
    try:
        for _ in range(100):
            await peer.sendall(PIECE)
        peer.note("all of it")
    except ConnectionError:
        peer.note("error")
        raise
    finally:
        peer.note(f"grown {max(0, resident() - before)}")


@in_every_way(EVERY, at_once=False)
def test_a_peer_that_does_not_read_is_cut(case: Case) -> None:
    with serving(case, _writes_a_lot, send_timeout=LIMIT) as served, served.connect() as client:
        client.sendall(b"x")
        assert served.reasons() == ["send_timeout"]
        notes = served.notes()
        assert notes[0] == "error"
        assert int(notes[1].split()[1]) < 30 << 20, notes
        assert notes[2] == "finish"
        (connection,) = served.ends()
        assert connection.age < 3


@in_every_way(EVERY)
def test_a_peer_that_reads_slowly_is_not(case: Case) -> None:
    """Each pause is a fraction of the limit, all of them several times as long."""

    async def writes(peer: Peer) -> None:
        for _ in range(16):
            await peer.sendall(bytes(500_000))

    with serving(case, writes, send_timeout=0.3) as served, served.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        left, ready = 8_000_000, threading.Event()
        while left:
            data = client.recv(min(left, 500_000), socket.MSG_WAITALL)
            assert data
            left -= len(data)
            ready.wait(0.06)
        assert client.recv(1) == b""
        assert served.reasons() == ["done"]


async def _ticks(peer: Peer) -> None:
    """Writes on whatever becomes of it, by little enough never to fill what lies between."""
    try:
        for _ in range(120):
            await peer.sendall(bytes(1500))
            await peer.pause(0.02)
        peer.note("all of it")
    except ConnectionError:
        peer.note("error")
        raise


@in_every_way(EVERY)
def test_a_peer_that_does_not_read_is_cut_while_its_handler_writes_on(case: Case) -> None:
    with serving(case, _ticks, send_timeout=0.4) as served, served.connect(buffer=4096) as client:
        assert served.reasons() == ["send_timeout"]
        assert served.notes()[-2:] == ["error", "finish"]
        (connection,) = served.ends()
        assert connection.age < 2
        assert client.fileno() >= 0  # it has been there all the time


@in_every_way(EVERY)
def test_a_peer_that_reads_more_slowly_than_its_handler_writes_is_not(case: Case) -> None:
    """Less than half of what is written, so that more and more waits; each pause a fraction of the limit."""
    with serving(case, _ticks, send_timeout=0.5) as served, served.connect(buffer=4096) as client:
        end, pause = time.monotonic() + 1.5, threading.Event()
        while time.monotonic() < end:
            assert client.recv(2000)
            pause.wait(0.06)
        assert served.ends() == []
        leave(client)
        assert served.reasons() != ["send_timeout"]


@in_every_way(EVERY)
def test_a_handler_that_sends_now_and_then_to_a_peer_that_reads_is_not_cut(case: Case) -> None:
    async def sends(peer: Peer) -> None:
        for _ in range(20):
            await peer.sendall(b"x")
            await peer.pause(LIMIT / 3)

    with serving(case, sends, send_timeout=LIMIT) as served, served.connect() as client:
        assert len(client.makefile("rb").read()) == 20
        assert served.reasons() == ["done"]


# -- several at once, live changes, ends


@in_every_way([case for case in EVERY if not case.one_by_one])
def test_each_is_judged_for_itself(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=0.4) as served, ExitStack() as stack:
        silent = [stack.enter_context(served.connect()) for _ in range(10)]
        active = [stack.enter_context(served.connect()) for _ in range(3)]
        end = time.monotonic() + 0.9
        while time.monotonic() < end:
            for client in active:
                assert ping(client, 0.001) == 1
        assert sorted(served.reasons(10)) == ["idle_timeout"] * 10
        assert all(heard_within(client, 0) for client in silent)
        for client in active:
            leave(client)
        assert sorted(served.reasons(13)) == ["done"] * 3 + ["idle_timeout"] * 10


@in_every_way(EVERY)
def test_other_limits_hold_at_once_for_open_connections(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=60.0) as served, served.connect() as client:
        assert ping(client, 0.001) == 1
        assert not heard_within(client, 0.1)
        served.server.configure(idle_timeout=None)
        assert not heard_within(client, 0.1)
        served.server.configure(idle_timeout=LIMIT)
        assert seconds_to_the_end(client) <= LIMIT + LATE
        assert served.reasons() == ["idle_timeout"]


@in_every_way(EVERY)
def test_a_limit_that_was_none_holds_at_once_for_open_connections(case: Case) -> None:
    """A process that has forked without a limit has no copy to measure by, or to cut: its age is all it knows."""
    reason = "connection_timeout" if case.way.own_process else "idle_timeout"
    with serving(case, until_the_end) as served, served.connect() as client:
        assert ping(client, 0.001) == 1
        served.server.configure(**{reason: LIMIT})
        assert seconds_to_the_end(client) <= LIMIT + LATE
        assert served.reasons() == [reason]


@in_every_way(EVERY)
def test_a_limit_that_is_lifted_cuts_nobody(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=LIMIT) as served, served.connect() as client:
        assert ping(client, 0.001) == 1
        served.server.configure(idle_timeout=None)
        assert not heard_within(client, LIMIT * 2)
        assert ping(client, 0.001) == 1
        leave(client)
        assert served.reasons() == ["done"]


@in_every_way(
    [case for case in EVERY if case.way.name in ("plain", "thread", "green", "async", "async-uvloop")], at_once=False
)
def test_no_thread_is_left(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=60.0) as served, served.connect() as client:
        assert ping(client, 0.001) == 1
        assert len(timer_threads()) == (1 if case.way.name in ("plain", "thread") else 0)
        leave(client)
    assert timer_threads() == []


@in_every_way([case for case in EVERY if not case.one_by_one and not case.way.own_process])
def test_limits_hold_for_requests_that_go_on_after_shutdown(case: Case) -> None:
    with serving(case, until_the_end, idle_timeout=0.4) as served, served.connect() as client:
        assert ping(client, 0.001) == 1
        with in_a_thread(served.server.shutdown):
            pass
        assert served.server.stats().state.value in ("stopped", "serving")
        assert ping(client, 0.4) > 1
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert 0.4 - 0.02 <= seconds_to_the_end(client) <= 0.4 + LATE
        assert served.reasons() == ["idle_timeout"]


# -- what a handler has wrapped


def _tls_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    """Without a certificate, which needs no files: the peers stay unknown to each other."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


# Made before anybody forks: a lock that OpenSSL holds meanwhile would stay locked in the child.
CLIENT = _tls_context(ssl.PROTOCOL_TLS_CLIENT)


async def _in_tls(peer: Peer) -> None:
    await peer.wrap(_tls_context(ssl.PROTOCOL_TLS_SERVER))
    try:
        while data := await peer.recv(100):
            await peer.sendall(data)
    except (OSError, ssl.SSLError):
        pass
    finally:
        peer.note("end")
        if isinstance(peer.request, ssl.SSLSocket):
            peer.request.close()


@in_every_way([case for case in TCP if case.way.name in ("plain", "thread", "fork")])
def test_tls_of_the_handlers_own_is_cut_as_well(case: Case) -> None:
    with serving(case, _in_tls, idle_timeout=LIMIT) as served, served.connect() as plain:
        with CLIENT.wrap_socket(plain, suppress_ragged_eofs=True) as client:
            assert ping(client, LIMIT * 3) > 3
            assert served.ends() == []
            assert until(lambda: served.ends(), LIMIT + LATE)
            with suppress(OSError):
                assert client.recv(1) == b""
        assert served.reasons() == ["idle_timeout"]
        assert served.notes() == ["end", "finish"]
        (connection,) = served.ends()
        assert connection.bytes_in is not None
        assert connection.bytes_in > 100  # the handshake counts, too


WRAPPED_UNIX = [case for case in EVERY if case.is_unix and case.way.name in ("plain", "thread", "fork")]


@in_every_way(WRAPPED_UNIX)
def test_tls_over_a_unix_socket_is_cut_when_nothing_moves(case: Case) -> None:
    """Nobody counts there; but who looks at a copy of the descriptor sees that something has moved since last time."""
    with serving(case, _in_tls, idle_timeout=LIMIT) as served, served.connect() as plain:
        with CLIENT.wrap_socket(plain, suppress_ragged_eofs=True) as client:
            assert ping(client, LIMIT * 5, every=LIMIT / 5) > 5
            assert served.ends() == []
            began = time.monotonic()
            assert until(served.ends, LIMIT * 3 + LATE)
            assert time.monotonic() - began >= LIMIT * 0.7  # it was pinged up to a pause ago
            with suppress(OSError):
                assert client.recv(1) == b""
        assert served.reasons() == ["idle_timeout"]
        assert served.notes() == ["end", "finish"]
        assert [(end.bytes_in, end.bytes_out) for end in served.ends()] == [(None, None)]


@in_every_way(WRAPPED_UNIX)
def test_what_only_the_handler_sends_moves_as_well(case: Case) -> None:
    async def tells(peer: Peer) -> None:
        await peer.wrap(_tls_context(ssl.PROTOCOL_TLS_SERVER))
        for _ in range(20):
            await peer.sendall(b"x")
            await peer.pause(LIMIT / 4)
        peer.request.close()

    with serving(case, tells, idle_timeout=LIMIT) as served, served.connect() as plain:
        with CLIENT.wrap_socket(plain, suppress_ragged_eofs=True) as client:
            assert len(client.makefile("rb").read()) == 20
        assert served.reasons() == ["done"]


@in_every_way(WRAPPED_UNIX)
def test_a_wrapped_flood_to_a_peer_that_does_not_read_is_cut(case: Case) -> None:
    async def floods(peer: Peer) -> None:
        await peer.wrap(_tls_context(ssl.PROTOCOL_TLS_SERVER))
        try:
            while True:
                await peer.sendall(bytes(65536))
        except OSError:
            peer.note("error")
        finally:
            peer.request.close()

    with serving(case, floods, send_timeout=LIMIT) as served, served.connect() as plain:
        with CLIENT.wrap_socket(plain, suppress_ragged_eofs=True):
            assert served.reasons() == ["send_timeout"]
        assert served.notes() == ["error", "finish"]


# -- handlers that do not end


async def _does_not_mind(peer: Peer) -> None:
    with suppress(ConnectionError):
        await peer.recv(1)
    peer.note("told")
    await peer.pause(0.3)


@in_every_way(EVERY)
def test_a_cut_does_not_end_a_handler_only_its_connection(case: Case) -> None:
    with serving(case, _does_not_mind, idle_timeout=LIMIT) as served, served.connect() as client:
        assert seconds_to_the_end(client) <= LIMIT + LATE
        assert until(lambda: served.notes() == ["told"])
        assert [connection.state for connection in served.server.connections()] == ["closing"]
        assert served.reasons() == ["idle_timeout"]
        assert served.notes() == ["told", "finish"]

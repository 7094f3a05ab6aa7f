"""Floods, and the end: what is in flight is bounded, what is dropped is counted, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
import weakref
from contextlib import ExitStack
from typing import Any

import pytest

import portico

from .crowds import Door
from .every_way import resident
from .packets import (
    EVERY,
    EVERY_WAY,
    ON_LOOPS,
    answer,
    ask,
    heard,
    looping,
    made,
    pause,
    peer,
    serving,
    silent,
    until_set,
    waits_for,
)
from .waiting import until

BESIDE = tuple(way for way in EVERY if way != "plain")
"""Those whose handlers run beside each other."""
FLOOD = 60
MOST = 4
BOUND = {"forks": "max_children"}
UDP_SEGMENT = 103


class Gate:
    """Handlers that say when they begin and end, also from another process, and wait in between."""

    def __init__(self) -> None:
        self.door = Door()
        self.closed, self.opening = os.pipe()

    def open(self) -> None:
        os.write(self.opening, b"x" * FLOOD)

    async def body(self, handler: Any) -> None:
        os.write(self.door.theirs, b"+")
        try:
            if isinstance(handler.server, (portico.GreenMixIn, portico.AsyncMixIn)):
                await until_set(handler, self)  # type: ignore[arg-type]
            else:
                os.read(self.closed, 1)
            await answer(handler, handler.request[0])
        finally:
            os.write(self.door.theirs, b"-")

    def is_set(self) -> bool:
        """For handlers on a loop, which must not read."""
        import select

        return bool(select.select([self.closed], [], [], 0)[0])

    def close(self) -> None:
        self.door.close()
        os.close(self.closed)
        os.close(self.opening)


@pytest.fixture
def gate() -> Any:
    found = Gate()
    yield found
    found.close()


# -- floods


@pytest.mark.parametrize("way", BESIDE)
def test_those_beyond_the_bound_wait_in_the_kernel_and_none_is_lost(way: str, gate: Gate) -> None:
    server = made(way, gate.body, **{BOUND.get(way, "max_datagrams"): MOST})
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(FLOOD)], client)
        with server.background():
            assert until(lambda: gate.door.inside() == MOST)
            assert server.stats().accepted == MOST
            gate.open()
            assert sorted(map(int, heard(client, FLOOD))) == list(range(FLOOD))
            assert until(lambda: server.stats().done == FLOOD)
            assert server.stats().refused == {}
        assert gate.door.peak() <= MOST


@pytest.mark.parametrize("overload", ["close", b"busy", "callable"])
@pytest.mark.parametrize("way", [way for way in BESIDE if way != "forks"])
def test_those_beyond_the_bound_are_dropped_and_counted_or_told(way: str, overload: Any, gate: Gate) -> None:
    def busy(client_address: Any, reason: str) -> bytes:
        assert client_address[0] == "127.0.0.1"
        return b"busy: " + reason.encode()

    server = made(way, gate.body, max_datagrams=MOST, overload=busy if overload == "callable" else overload)
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(FLOOD)], client)
        with server.background():
            assert until(lambda: server.stats().refused == {"queue_full": FLOOD - MOST})
            assert (server.stats().accepted, server.stats().active) == (MOST, MOST)
            told = {"close": [], "callable": [b"busy: queue_full"] * (FLOOD - MOST)}.get(
                overload, [b"busy"] * (FLOOD - MOST)
            )
            assert heard(client, len(told)) == told
            gate.open()
            assert sorted(heard(client, MOST)) == [b"0", b"1", b"2", b"3"]
            assert until(lambda: server.stats().active == 0)
            assert silent(client)
            assert ask(client, b"after", server.server_address) == b"after"


@pytest.mark.parametrize("way", ["threads", *ON_LOOPS])
def test_the_bound_holds_for_those_that_the_kernel_joins(way: str, gate: Gate) -> None:
    server = made(way, gate.body, max_datagrams=MOST, udp_gro=True)
    with peer() as client:
        client.setsockopt(17, UDP_SEGMENT, 2)
        for number in range(0, FLOOD, 20):
            client.sendto(b"".join(b"%02d" % piece for piece in range(number, number + 20)), server.server_address)
        with server.background():
            assert until(lambda: gate.door.inside() == MOST)
            assert server.stats().accepted == MOST
            gate.open()
            assert sorted(map(int, heard(client, FLOOD))) == list(range(FLOOD))
            assert until(lambda: server.stats().done == FLOOD)
        assert gate.door.peak() <= MOST


@pytest.mark.parametrize("way", ["threads", *ON_LOOPS])
def test_the_bound_may_be_changed_while_it_holds(way: str, gate: Gate) -> None:
    server = made(way, gate.body, max_datagrams=MOST)
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(FLOOD)], client)
        with server.background():
            assert until(lambda: gate.door.inside() == MOST)
            server.configure(max_datagrams=2 * MOST)
            assert until(lambda: gate.door.inside() == 2 * MOST)
            gate.open()
            assert len(set(heard(client, FLOOD))) == FLOOD
        assert gate.door.peak() == 2 * MOST


def test_a_flood_is_handled_by_a_pool_of_threads(gate: Gate) -> None:
    before = threading.active_count()
    server = made("threads", gate.body, max_threads=3)
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(FLOOD)], client)
        with server.background():
            assert until(lambda: gate.door.inside() == 3)
            assert until(lambda: server.stats().accepted == FLOOD)  # in flight, but not in threads of their own
            assert threading.active_count() <= before + 4
            server.configure(max_threads=5)
            client.sendto(b"one more", server.server_address)
            assert until(lambda: gate.door.inside() == 5)
            gate.open()
            os.write(gate.opening, b"x")
            assert len(heard(client, FLOOD + 1)) == FLOOD + 1
        assert gate.door.peak() == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("values", [{"reuse_threads": True, "requests_per_thread": 1}, {}])
def test_what_waits_for_a_thread_that_ends_is_handled_by_another(values: Any) -> None:
    async def leave(handler: Any) -> None:
        await answer(handler, handler.request[0])
        if not values:
            raise SystemExit

    server = made("threads", leave, max_threads=1, **values)
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(20)], client)
        with server.background():
            assert sorted(map(int, heard(client, 20))) == list(range(20))
            assert until(lambda: server.stats().active == 0)


def test_threads_have_a_datagram_each_in_the_standard_librarys_way(gate: Gate) -> None:
    server = made("threads", gate.body, stdlib_compat=True)
    with peer() as client:
        waits_for(server, [b"%d" % number for number in range(20)], client)
        before = threading.active_count()
        with server.background():
            assert until(lambda: gate.door.inside() == 20)
            assert threading.active_count() == before + 21
            gate.open()
            heard(client, 20)


@EVERY_WAY
def test_a_rate_is_counted_with_who_asked_too_often(way: str) -> None:
    server = made(way, connection_rate_per_client=0.001, connection_burst_per_client=3)
    with peer() as client, peer("127.0.0.2") as other:
        waits_for(server, [b"x"] * 10, client)
        waits_for(server, [b"y"], other)
        with server.background():
            assert heard(client, 3) == [b"x"] * 3
            assert heard(other, 1) == [b"y"]
            assert until(lambda: server.stats().refused == {"connection_rate_per_client": 7})
            assert silent(client, other)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_what_the_kernel_drops_is_in_the_figures(gate: Gate) -> None:
    server = made("plain", recv_buffer_size=4096)
    with server, peer() as client:
        waits_for(server, [bytes(100)] * 500, client)
        drops = server.stats().kernel_drops
        assert drops is not None
        assert 0 < drops < 500
        with looping(server):
            assert heard(client, 500 - drops) == [bytes(100)] * (500 - drops)
            server.shutdown()
        assert server.stats().accepted == 500 - drops


def test_addresses_that_are_remembered_are_bounded() -> None:
    server = made("plain", address=("0.0.0.0", 0))
    with server.background(), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(10)
        port = server.server_address[1]
        for number in range(10_000):  # 65,000 addresses of ours: to the server, that many peers
            host = f"127.1.{number >> 8}.{number & 255}"
            client.sendto(b"x", (host, port))
            if number % 32 == 31:
                for _ in range(32):
                    assert client.recvfrom(10)[1][0].startswith("127.1.")
        peers = server.socket.peers
        assert len(peers.known) <= 4096
        assert len(peers._by_name) <= 4096


# -- the end


@pytest.mark.parametrize("way", BESIDE)
@pytest.mark.parametrize("close", ["server_close", "drain"])
def test_what_is_being_handled_is_answered_before_the_end(way: str, close: str, gate: Gate) -> None:
    server = made(way, gate.body, drain_timeout=10.0)
    with peer() as client, looping(server):
        waits_for(server, [b"%d" % number for number in range(10)], client)
        assert until(lambda: gate.door.inside() == 10)
        ending = threading.Thread(target=getattr(server, close))
        ending.start()
        assert until(lambda: server.is_draining())
        gate.open()
        assert sorted(map(int, heard(client, 10))) == list(range(10))
        ending.join(10)
        assert not ending.is_alive()
        server.server_close()
        assert (server.stats().done, server.stats().active) == (10, 0)


@pytest.mark.alerts("request from ")  # a child that was forked at that moment has nothing to answer through
@pytest.mark.parametrize("way", ON_LOOPS)
def test_handlers_that_wait_are_ended_at_the_deadline_and_what_waits_is_counted(way: str) -> None:
    ended: list[str] = []

    async def wait(handler: Any) -> None:
        try:
            while True:
                await pause(handler, 0.05)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    server = made(way, wait, drain_timeout=0.05)
    with peer() as client, looping(server):
        waits_for(server, [b""] * 20, client)
        assert until(lambda: server.stats().accepted == 20)
        began = time.monotonic()
        server.server_close()
        assert time.monotonic() - began < 3
    stats = server.stats()
    assert set(ended) == {"GreenletExit" if way.startswith("green") else "CancelledError"}
    assert len(ended) + stats.refused.get("queue_full", 0) == 20
    assert stats.active == 0


@EVERY_WAY
def test_a_server_that_is_closed_with_datagrams_waiting_ends_at_once(way: str) -> None:
    server = made(way)
    with peer() as client:
        waits_for(server, [b"x"] * 100, client)
        with looping(server):
            assert until(lambda: server.stats().accepted)
            server.server_close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("way", ["plain", "threads", *ON_LOOPS])
def test_many_datagrams_leave_nothing_behind(way: str) -> None:
    """100,000 on the plain server, of peers that come and go."""
    rounds = 50 if way == "plain" else 10

    def some(number: int) -> None:
        for _ in range(number):
            with peer() as client:
                for _ in range(1000 // 50):
                    for _ in range(50):
                        client.sendto(bytes(100), to)
                    heard(client, 50)

    with serving(way, address=("0.0.0.0", 0)) as server:
        to = ("127.0.0.1", server.server_address[1])
        some(rounds)
        gc.collect()
        before, objects, numbers = resident(), len(gc.get_objects()), descriptors()
        some(rounds)
        assert until(lambda: server.stats().active == 0)
        gc.collect()
        assert descriptors() == numbers
        assert len(gc.get_objects()) - objects < 500
        assert resident() - before < 1 << 20


@EVERY_WAY
def test_a_server_that_has_ended_is_freed(way: str) -> None:
    """With its memory for batches, 4 MB each way; a plain one without a collection."""
    server = made(way)
    with peer() as client:
        waits_for(server, [b"a", b"b"], client)
        with looping(server):
            assert sorted(heard(client, 2)) == [b"a", b"b"]
            server.shutdown()
    server.server_close()
    known = [weakref.ref(found) for found in (server, server.socket, server.socket.answers)]
    gc.collect()
    gc.disable()
    try:
        del server
        if way != "plain":
            gc.collect()
        assert [reference() for reference in known] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["UDPServer", "TCPServer"])
def test_room_that_is_made_when_the_loop_is_about_to_sleep_is_seen(kind: str) -> None:
    """All children end between the last look for room and the one before the sleep, which nobody would end."""

    def prepare(self: Any) -> None:
        for pid in self.active_children or ():
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        super(type(self), self)._portico_prepare_to_sleep()

    def handler(request: Any, client_address: Any, server: Any) -> None:
        if kind == "UDPServer":
            request[1].sendto(b"x", client_address)
        else:
            request.sendall(b"x")
        time.sleep(0.02)  # so that the parent has nothing else to do, and looks

    base = getattr(portico, f"Forking{kind}")
    server = type("Late", (base,), {"_portico_prepare_to_sleep": prepare})(("127.0.0.1", 0), handler, max_children=1)
    with server.background(), ExitStack() as stack:
        family = socket.SOCK_DGRAM if kind == "UDPServer" else socket.SOCK_STREAM
        clients = [stack.enter_context(socket.socket(socket.AF_INET, family)) for _ in range(4)]
        for client in clients:
            client.settimeout(10)
            client.connect(server.server_address)
            client.send(b"x")
        assert [client.recv(1) for client in clients] == [b"x"] * 4

"""The calls of a session, one by one: as a socket's, as far as they mean something."""

from __future__ import annotations

import asyncio
import pickle
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import portico
from portico import green

from .talks import Client
from .waiting import until

LOOPBACK = ("127.0.0.1", 0)


class Lends(portico.BaseRequestHandler):
    """Lends its session to the test."""

    def handle(self) -> None:
        self.server.lent.put(self.request)
        self.server.done.wait(10)


@contextmanager
def lent(**settings: Any) -> Iterator[tuple[Any, Client]]:
    """A session that has read its first datagram, and its peer."""
    made = type("Server", (portico.ThreadingUDPServer,), {"lent": queue.Queue(), "done": threading.Event()})
    with made(LOOPBACK, Lends, sessions=True, **settings).background() as server, Client(server) as client:
        try:
            client.say(b"hello")
            session = server.lent.get(timeout=5)
            assert session.recv() == b"hello"
            yield session, client
        finally:
            server.done.set()


def test_recv_gives_a_datagram_each_time_cut_off_as_the_kernel_does() -> None:
    with lent() as (session, client):
        client.say(b"abc", b"defgh", b"", b"i")
        assert [session.recv(10), session.recv(3), session.recv(), session.recv(0)] == [b"abc", b"def", b"", b""]
        client.say(b"x" * 60000)
        assert session.recv() == b"x" * 60000
        client.say(b"abc")
        with pytest.raises(ValueError, match="negative"):
            session.recv(-1)


def test_other_ways_to_receive() -> None:
    with lent() as (session, client):
        client.say(b"abc", b"defgh", b"ijk", b"l")
        assert session.recvfrom(2) == (b"ab", client.sock.getsockname())
        buffer = bytearray(4)
        assert (session.recv_into(buffer), buffer) == (4, b"defg")
        assert (session.recv_into(buffer, 2), buffer) == (2, b"ijfg")
        with pytest.raises(ValueError, match="nbytes"):
            session.recv_into(buffer, 5)


def test_peeking_takes_nothing_and_dont_wait_waits_for_nothing() -> None:
    with lent() as (session, client):
        with pytest.raises(BlockingIOError):
            session.recv(10, socket.MSG_DONTWAIT)
        client.say(b"a", b"b")
        assert [session.recv(10, socket.MSG_PEEK) for _ in range(2)] == [b"a", b"a"]
        assert [session.recv(), session.recv(10, socket.MSG_PEEK), session.recv()] == [b"a", b"b", b"b"]


def test_timeouts_are_as_a_sockets() -> None:
    with lent() as (session, client):
        assert (session.gettimeout(), session.getblocking()) == (None, True)
        session.settimeout(0.05)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            session.recv()
        assert 0.05 <= time.monotonic() - began < 0.5
        client.say(b"a")
        assert session.recv() == b"a"
        session.setblocking(False)
        assert (session.gettimeout(), session.getblocking()) == (0.0, False)
        with pytest.raises(BlockingIOError):
            session.recv()
        client.say(b"b")
        assert until(lambda: session._waiting)
        assert session.recv() == b"b"
        session.settimeout(1e9)
        client.say(b"c")
        assert session.recv() == b"c"
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="out of range"):
                session.settimeout(wrong)


def test_answers_and_words_to_others() -> None:
    with lent() as (session, client), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(LOOPBACK)
        other.settimeout(5)
        assert session.send(b"abc") == 3
        assert session.send(memoryview(b"de"), socket.MSG_DONTWAIT) == 2
        session.sendall(bytearray(b""))
        assert session.sendto(b"f", client.sock.getsockname()) == 1
        assert [client.hear() for _ in range(4)] == [b"abc", b"de", b"", b"f"]
        assert session.sendto(b"to you", other.getsockname()) == 6
        assert session.sendto(b"and you", 0, other.getsockname()) == 7
        assert [other.recv(10) for _ in range(2)] == [b"to you", b"and you"]
        with pytest.raises(OSError, match="too long"):
            session.send(bytes(70000))


def test_what_it_says_of_itself() -> None:
    with lent() as (session, client):
        assert session.getpeername() == client.sock.getsockname()
        assert session.getsockname() == client.sock.getpeername()
        assert (session.family, session.type, session.proto) == (socket.AF_INET, socket.SOCK_DGRAM, 0)
        assert session.fileno() == -1
        with pytest.raises(ValueError, match="negative"):
            select.select([session], [], [], 0)
        assert repr(session) == f"<Session with {client.sock.getsockname()!r}>"
        assert not hasattr(session, "__dict__")


def test_shut_for_reading_it_gives_what_there_is_and_still_sends() -> None:
    with lent() as (session, client):
        client.say(b"a", b"b")
        assert until(lambda: len(session._waiting) == 2)
        session.shutdown(socket.SHUT_RD)
        client.say(b"too late")
        assert list(session) == [b"a", b"b"]
        for _ in range(2):
            with pytest.raises(portico.SessionEnded, match="has ended"):
                session.recv()
        session.send(b"still")
        assert client.hear() == b"still"


def test_shut_for_writing_it_reads_on() -> None:
    with lent() as (session, client):
        session.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            session.send(b"a")
        client.say(b"a")
        assert session.recv() == b"a"


def test_shut_for_both_it_is_over_at_once() -> None:
    with lent() as (session, client):
        client.say(b"a")
        assert until(lambda: session._waiting)
        session.shutdown(socket.SHUT_RDWR)
        for call in (session.recv, session.recvfrom, lambda: session.send(b"a"), lambda: session.sendall(b"a")):
            with pytest.raises(portico.SessionEnded):
                call()
        assert list(session) == []


def test_closed_it_is_forgotten_and_the_peer_may_come_again() -> None:
    with lent() as (session, client):
        server = session._server
        with session as same:
            assert same is session
        session.close()
        with pytest.raises(portico.SessionEnded):
            session.recv()
        client.say(b"again")
        assert server.lent.get(timeout=5).recv() == b"again"
        assert repr(session).endswith("ended>")


def test_the_end_wakes_all_who_wait_and_a_datagram_one() -> None:
    with lent() as (session, client):
        heard: queue.Queue[Any] = queue.Queue()

        def listen() -> None:
            try:
                heard.put(session.recv())
            except portico.SessionEnded as error:
                heard.put(type(error))

        threads = [threading.Thread(target=listen) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert until(lambda: len(session._sleepers) == 5)
        client.say(b"a", b"b")
        assert {heard.get(timeout=5), heard.get(timeout=5)} == {b"a", b"b"}
        session.shutdown(socket.SHUT_RD)
        assert [heard.get(timeout=5) for _ in range(3)] == [portico.SessionEnded] * 3
        for thread in threads:
            thread.join()
        assert not session._sleepers


def test_no_datagram_is_lost_between_looking_and_waiting() -> None:
    """Thousands of times, with a reader who is mostly about to wait when something comes."""
    with lent(session_queue=10_000) as (session, client):
        session.settimeout(5)
        for number in range(3000):
            client.say(b"%d" % number)
            assert session.recv() == b"%d" % number


def test_the_classes_are_there_for_annotations() -> None:
    with lent() as (session, _):
        assert isinstance(session, portico.Session)
    assert portico.AsyncSession.__name__ == "AsyncSession"
    assert portico.Session.__doc__
    assert portico.AsyncSession.__doc__


def test_session_ended_is_an_error_of_a_connection() -> None:
    assert issubclass(portico.SessionEnded, (portico.PorticoError, ConnectionAbortedError))
    error = pickle.loads(pickle.dumps(portico.SessionEnded("it has ended")))
    assert (type(error), str(error)) == (portico.SessionEnded, "it has ended")


# -- on loops


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_green_calls_let_others_run_and_may_be_made_in_a_thread(event_loop: str) -> None:
    class Handler(portico.BaseRequestHandler):
        def handle(self) -> None:
            assert self.request.recv() == b"a"
            ticks = []
            ticking = green.spawn(lambda: [ticks.append(green.sleep(0.001)) for _ in range(10)])  # type: ignore[func-returns-value]
            self.request.send(b"1")
            assert self.request.recv() == b"b"
            ticking.join()
            self.request.send(b"%d" % len(ticks))
            self.request.send(green.in_thread(self.request.recv))
            green.in_thread(self.request.send, b"from a thread")
            self.request.settimeout(0.01)
            with pytest.raises(TimeoutError, match="timed out"):
                self.request.recv()
            self.request.settimeout(None)
            with pytest.raises(TimeoutError), green.timeout(0.01):
                self.request.recv()
            self.request.setblocking(False)
            with pytest.raises(BlockingIOError):
                self.request.recv()
            self.request.send(b"through")

    with (
        portico.GreenUDPServer(LOOPBACK, Handler, sessions=True, event_loop=event_loop).background() as server,
        Client(server) as client,
    ):
        assert client.ask(b"a") == b"1"
        time.sleep(0.05)
        assert client.ask(b"b") == b"10"
        client.say(b"c")
        # What is sent on the loop leaves with the answers of others, a moment later: a thread may be faster.
        assert {client.hear(), client.hear(), client.hear()} == {b"c", b"from a thread", b"through"}


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_async_calls(event_loop: str) -> None:
    class Handler(portico.AsyncBaseRequestHandler):
        async def handle(self) -> None:
            session = self.request
            assert await session.recvfrom(2) == (b"ab", self.client_address)
            buffer = bytearray(3)
            await session.send(b"1")
            assert (await session.recv_into(buffer), buffer) == (3, b"def")
            await session.sendall(bytearray(b"2"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await session.recv()
            await session.sendto(b"3", tuple(self.client_address))
            both = await asyncio.gather(session.recv(), session.recv())
            await session.send(b"".join(sorted(both)))
            assert (session.gettimeout(), session.fileno()) == (None, -1)

    with (
        portico.AsyncUDPServer(LOOPBACK, Handler, sessions=True, event_loop=event_loop).background() as server,
        Client(server) as client,
    ):
        assert [client.ask(b"abc"), client.ask(b"defg"), client.hear()] == [b"1", b"2", b"3"]
        client.say(b"x", b"y")
        assert client.hear() == b"xy"
        assert until(lambda: server.stats().done == 1)

"""What handlers send: in order, to whomever, and what becomes of what cannot be sent or of who is not there."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest

import portico

from .contract.flavours import short_folder
from .packets import (
    EVERY_WAY,
    ON_LOOPS,
    answer,
    ask,
    echo,
    heard,
    made,
    pause,
    peer,
    serving,
    silent,
    waits_for,
)
from .waiting import until

# -- answers


@EVERY_WAY
def test_an_empty_answer_goes_if_it_was_asked_for_and_only_then(way: str) -> None:
    base = portico.AsyncDatagramRequestHandler if way.startswith("async") else portico.DatagramRequestHandler

    async def nothing(handler: Any) -> None:
        handler.wfile.write(handler.packet)

    with serving(way, nothing, base=base) as server, peer() as client:
        client.sendto(b"", server.server_address)
        assert ask(client, b"x", server.server_address) == b"x"
        assert silent(client)
        server.RequestHandlerClass.send_empty_reply = True
        assert ask(client, b"", server.server_address) == b""
    with serving(way) as server, peer() as client:  # with `sendto` nobody else decides
        assert ask(client, b"", server.server_address) == b""


@EVERY_WAY
def test_several_answers_to_several_peers_in_the_order_in_which_they_were_given(way: str) -> None:
    async def tell(handler: Any) -> None:
        others = [("127.0.0.1", int(port)) for port in handler.request[0].split()]
        for number in range(3):
            await answer(handler, b"%d" % number)
            for other in others:
                await answer(handler, b"%d of another" % number, other)
        await answer(handler, bytearray(b"bytearray"))
        await answer(handler, b"flags", 0, handler.client_address)
        await answer(handler, memoryview(b"memoryview")[3:])
        await answer(handler, b"end")

    server = made(way, tell)
    with peer() as client, peer() as second, peer() as third:
        ports = b"%d %d" % (second.getsockname()[1], third.getsockname()[1])
        waits_for(server, [ports] * (1 if way in ("threads", "forks") else 3), client)
        turns = 1 if way in ("threads", "forks") else 3
        with server.background():
            answers = heard(client, turns * 7)
            if turns == 1 or way == "plain":
                assert answers == [b"0", b"1", b"2", b"bytearray", b"flags", b"oryview", b"end"] * turns
            for other in (second, third):
                assert sorted(heard(other, 3 * turns)) == sorted([b"%d of another" % n for n in range(3)] * turns)
            assert silent(client, second, third)


@EVERY_WAY
def test_an_answer_that_waits_with_its_handler_comes_as_well(way: str) -> None:
    async def twice(handler: Any) -> None:
        await answer(handler, b"first")
        await pause(handler)
        await answer(handler, b"second")
        await pause(handler)

    server = made(way, twice)
    with peer() as client:
        waits_for(server, [b""] * 5, client)
        with server.background():
            answers = heard(client, 10)
            assert sorted(answers) == [b"first"] * 5 + [b"second"] * 5
            assert silent(client)


@EVERY_WAY
def test_what_is_too_long_fails_in_the_handler_and_nowhere_else(way: str) -> None:
    async def too_much(handler: Any) -> None:
        try:
            await answer(handler, bytes(65_508))
        except OSError as error:
            await answer(handler, type(error).__name__.encode() + b" %d" % error.errno)
        await answer(handler, handler.request[0])

    server = made(way, too_much)
    with peer() as client:
        waits_for(server, [b"a", b"a"], client)
        with server.background():
            assert sorted(heard(client, 4)) == sorted([b"OSError 90", b"a"] * 2)
            assert server.stats().failed == 0


@EVERY_WAY
def test_a_proxy_between_two_servers(way: str) -> None:
    """It sends through another server's socket, and to the addresses of another server's clients."""
    with serving("plain", address=("0.0.0.0", 0)) as behind, peer() as client:

        async def forward(handler: Any) -> None:
            payload, sender = handler.request[0], handler.client_address
            if sender[1] == behind.server_address[1]:
                port, payload = payload.split(b" ", 1)
                await answer(handler, payload, ("127.0.0.1", int(port)))
            else:
                await answer(handler, b"%d " % sender[1] + payload, ("127.0.0.1", behind.server_address[1]))
                behind.socket.sendto(b"by another socket", sender)

        with serving(way, forward, address=("0.0.0.0", 0)) as server:
            to = ("127.0.0.1", server.server_address[1])
            for number in range(20):
                client.sendto(b"%d" % number, to)
                answers = dict(client.recvfrom(100)[::-1] for _ in range(2))
                assert answers == {to: b"%d" % number, ("127.0.0.1", behind.server_address[1]): b"by another socket"}


# -- who is not there


def from_port_0(to: Any) -> bytes:
    """A datagram's UDP head and content, from a port that nobody can be answered at."""
    return struct.pack("!HHHH", 0, to[1], 8 + 5, 0) + b"stray"


@pytest.mark.alerts
@pytest.mark.parametrize("way", ["plain", "threads", *ON_LOOPS])
def test_an_answer_that_cannot_be_sent_is_reported_and_the_others_go(way: str) -> None:
    failures: list[Any] = []

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        failures.append((request[0], client_address))
        if way != "threads":  # where a thread ends with it, and says so
            raise LookupError("a bug in handle_error")

    server = made(way, members={"handle_error": handle_error})
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("needs a raw socket")
    with raw, peer() as client:
        waits_for(server, [b"a"], client)
        raw.sendto(from_port_0(server.server_address), ("127.0.0.1", 0))
        waits_for(server, [b"b"] * 3, client)
        with server.background():
            assert heard(client, 4) == [b"a", b"b", b"b", b"b"]
            assert until(lambda: failures == [(b"stray", ("127.0.0.1", 0))])
            assert server.stats().failed + server.stats().unsent == 1
            assert ask(client, b"still", server.server_address) == b"still"


@pytest.mark.alerts
@EVERY_WAY
def test_peers_that_have_gone_or_are_out_of_reach_end_nothing(way: str) -> None:
    async def far(handler: Any) -> None:
        if handler.request[0] == b"far":
            await answer(handler, b"far", ("240.0.0.1", 9))
        await answer(handler, handler.request[0])

    server = made(way, far)
    with peer() as client:
        for number in range(5):
            with peer() as gone:
                waits_for(server, [b"gone"], gone)
            waits_for(server, [b"%d" % number], client)
        waits_for(server, [b"far", b"last"], client)
        with server.background():
            assert sorted(heard(client, 6)) == [b"0", b"1", b"2", b"3", b"4", b"last"]
            if way != "forks":
                assert until(lambda: server.stats().failed == 1)
            assert silent(client)


@pytest.mark.alerts
@EVERY_WAY
def test_unix_peers_without_an_address_and_those_that_have_gone(way: str) -> None:
    async def mostly(handler: Any) -> None:
        if handler.client_address:
            await echo(handler)

    with short_folder() as folder, serving(way, mostly, address=str(folder / "server")) as server:
        for name in (None, "gone", None, "client"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                if name is not None:
                    client.bind(str(folder / name))
                client.sendto(b"x", server.server_address)
                if name == "gone":
                    (folder / name).unlink()
                elif name is not None:
                    assert client.recv(10) == b"x"


def test_a_unix_peer_cannot_fill_the_servers_table_of_descriptors() -> None:
    """Those that come along (SCM_RIGHTS) are the kernel's to close."""
    with (
        short_folder() as folder,
        serving("plain", address=str(folder / "s")) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        client.bind(str(folder / "c"))
        client.connect(server.server_address)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            socket.send_fds(client, [b"x"], [0, 1, 2])
            assert client.recv(10) == b"x"
        assert len(os.listdir("/proc/self/fd")) == before

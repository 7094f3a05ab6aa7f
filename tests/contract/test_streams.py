"""Stream flavours: bytes come back as they went, and no way for a client to leave harms the next one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .flavours import STREAMS, Flavour, handler_for

Connect = Callable[..., Any]
Log = Callable[[], list[str]]

pytestmark = pytest.mark.parametrize("flavour", STREAMS, ids=str)


@pytest.fixture
def server(flavour: Flavour, address: Any) -> Iterator[Any]:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        yield server


def errors(log: Log) -> list[str]:
    return [line for line in log() if line.startswith(("ERROR", "CRITICAL"))]


def is_served(peer: Any) -> bool:
    answer: bytes = peer.exchange([b"afterwards\n", b"abc"])
    return answer == b"cba"


def test_a_mebibyte_in_random_pieces_comes_back_byte_for_byte(server: Any, connect: Connect) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    data = chance.randbytes(1 << 20)
    pieces, start = [b"echo\n"], 0
    while start < len(data):
        size = chance.randint(1, 1 << chance.randint(0, 16))  # up to 64 KiB, the short ones as likely as the long
        pieces.append(data[start : start + size])
        start += size
    assert connect(server).exchange(pieces) == data, f"random seed {seed}"


def test_a_client_that_has_ended_its_side_still_gets_all_of_the_answer(server: Any, connect: Connect) -> None:
    peer = connect(server)
    data = bytes(range(256)) * 1000
    peer.send(b"afterwards\n" + data)
    peer.end_writing()
    assert peer.receive_all() == data[::-1]


@pytest.mark.parametrize("command", [b"ec", b"hold\n", b"afterwards\nabc"])
def test_a_client_that_resets_in_mid_request_harms_nobody(
    server: Any, connect: Connect, log: Log, command: bytes
) -> None:
    peer = connect(server)
    peer.send(command)
    if command == b"hold\n":
        assert peer.receive(8) == b"running\n"
    peer.close(reset=True)
    try:
        assert is_served(connect(server))
    finally:
        server.server_close()  # waits for the handlers
    assert errors(log) == []


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_client_that_leaves_while_the_handler_writes_harms_nobody(
    server: Any, connect: Connect, log: Log, reset: bool
) -> None:
    peer = connect(server)
    peer.send(b"fill 33554432\n")
    assert peer.receive(1000) == bytes(1000)
    peer.close(reset=reset)
    assert is_served(connect(server))
    server.server_close()
    assert errors(log) == []
    assert [line for line in log() if line.startswith("DEBUG peer ")]


def test_clients_that_connect_and_close_at_once_harm_nobody(server: Any, connect: Connect, log: Log) -> None:
    for reset in (False, True) * 5:
        connect(server).close(reset=reset)
    assert is_served(connect(server))
    server.server_close()
    assert errors(log) == []


@pytest.mark.alerts("request from ")
def test_a_handler_that_raises_ends_its_own_request_only(server: Any, connect: Connect, log: Log) -> None:
    peer = connect(server)
    peer.send(b"fail\n")
    assert peer.receive_all() == b""
    assert is_served(connect(server))
    server.server_close()
    assert len(errors(log)) == 1
    assert errors(log)[0].startswith("ERROR request from ")


def test_many_clients_are_served_one_after_the_other(server: Any, connect: Connect, log: Log) -> None:
    for number in range(50):
        peer = connect(server)
        peer.send(b"hold\n%d\n" % number)
        assert peer.receive_all() == b"running\n%d\n" % number
        peer.close()
    assert errors(log) == []


def test_shutdown_lets_a_request_that_runs_come_to_its_end(server: Any, connect: Connect) -> None:
    peer = connect(server)
    peer.send(b"hold\n")
    assert peer.receive(8) == b"running\n"
    stopper = threading.Thread(target=server.shutdown)
    stopper.start()
    peer.send(b"go on\n")
    assert peer.receive_all() == b"GO ON\n"
    stopper.join()


def test_a_request_that_is_not_verified_is_closed(flavour: Flavour, address: Any, connect: Connect) -> None:
    refused: list[Any] = []

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        refused.append(client_address)
        return len(refused) > 1

    with flavour.extended(verify_request=verify_request)(address, handler_for(flavour)).background() as server:
        assert connect(server).receive_all() == b""
        assert is_served(connect(server))

"""Datagram flavours: each datagram is answered exactly once, with what belongs to it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .flavours import DATAGRAMS, Flavour, handler_for

Connect = Callable[..., Any]
Log = Callable[[], list[str]]

pytestmark = pytest.mark.parametrize("flavour", DATAGRAMS, ids=str)


def test_every_datagram_is_answered_exactly_once(flavour: Flavour, address: Any, connect: Connect) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    count = 40 if flavour.way.own_process else 200
    sizes = [0, 1, 8191, 8192, *(chance.randint(0, 8192) for _ in range(count - 4))]
    payloads = [chance.randbytes(size) for size in sizes]
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        peer = connect(server)
        answers = peer.ask(*payloads)
    assert Counter(answers) == Counter(b"<" + payload[::-1] + b">" for payload in payloads), f"random seed {seed}"
    assert peer.left_over() == []


def test_clients_get_their_own_answers(flavour: Flavour, address: Any, connect: Connect) -> None:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        peers = [connect(server) for _ in range(5)]
        for number, peer in enumerate(peers):
            assert peer.ask(b"%d" % number) == [b"<%d>" % number]
    assert [peer.left_over() for peer in peers] == [[]] * 5


@pytest.mark.alerts("request from ")
def test_a_handler_that_raises_ends_its_own_request_only(
    flavour: Flavour, address: Any, connect: Connect, log: Log
) -> None:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        peer = connect(server)
        peer.send(b"fail")
        assert peer.ask(b"abc") == [b"<cba>"]
    assert len([line for line in log() if line.startswith("ERROR")]) == 1


def test_a_client_that_is_gone_before_its_answer_harms_nobody(flavour: Flavour, address: Any, connect: Connect) -> None:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        for _ in range(5):
            peer = connect(server)
            peer.send(b"never mind")
            peer.close()
        assert connect(server).ask(b"abc") == [b"<cba>"]


def test_a_datagram_that_is_not_verified_is_not_answered(flavour: Flavour, address: Any, connect: Connect) -> None:
    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return bool(request[0] != b"no")

    with flavour.extended(verify_request=verify_request)(address, handler_for(flavour)).background() as server:
        peer = connect(server)
        peer.send(b"no")
        assert peer.ask(b"yes") == [b"<sey>"]
    assert peer.left_over() == []

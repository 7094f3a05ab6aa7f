"""A reliable protocol over sessions: whatever the network loses, doubles and reorders, what arrives is exact."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .contract.flavours import short_folder
from .talks import WAYS, Talk, server_of

LINGER = 0.25
"""Seconds in which the receiver still answers, as its last answer may have been lost."""
PATIENCE = 0.004
"""Seconds until the sender sends once more."""
FATES = st.lists(st.sampled_from(["pass", "lose", "twice", "later"]), max_size=12)


async def receives(talk: Talk) -> None:
    """Stop-and-wait: numbered pieces, each acknowledged; the end, too, with all that has come."""
    got: list[bytes] = []
    while True:
        number, _, piece = (await talk.recv()).partition(b" ")
        if int(number) == len(got):
            got.append(piece)
            if piece == b"":
                break
        await talk.send(b"ack %d" % min(int(number), len(got) - 1))
    answer = b"all " + b"".join(got)
    await talk.send(answer)
    try:
        while True:
            await talk.recv(LINGER)
            await talk.send(answer)
    except TimeoutError:
        return


class Network:
    """A sender's socket, between which and the server each datagram meets its fate; when all have been met, none."""

    def __init__(self, address: Any, out: list[str], back: list[str]) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect(address)
        self.sock.settimeout(PATIENCE)
        self._out, self._back = deque(out), deque(back)
        self._late: list[bytes] = []
        self._late_back: list[bytes] = []

    def send(self, data: bytes) -> None:
        for found in self._meets(self._out, data, self._late):
            self.sock.send(found)

    def receive(self) -> Iterator[bytes]:
        yield from self._meets(self._back, self.sock.recv(65536), self._late_back)

    @staticmethod
    def _meets(fates: deque[str], data: bytes, late: list[bytes]) -> list[bytes]:
        fate = fates.popleft() if fates else "pass"
        if fate == "later":
            late.append(data)
            return []
        found = {"pass": [data], "lose": [], "twice": [data, data]}[fate]
        found, late[:] = found + late, []
        return found


def sent_over(network: Network, pieces: list[bytes]) -> bytes:
    """Send these, each until it is acknowledged; returns what the receiver says it has got."""
    for number, piece in enumerate([*pieces, b""]):
        wanted = b"all " if piece == b"" else b"ack %d" % number
        for _ in range(200):
            network.send(b"%d %s" % (number, piece))
            try:
                answers = list(network.receive())
            except TimeoutError:
                continue
            for answer in answers:
                if answer.startswith(wanted) and (piece == b"" or answer == wanted):
                    break
            else:
                continue
            break
        else:
            raise AssertionError(f"piece {number} does not arrive")
    return answer.removeprefix(b"all ")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "forks"])
def test_what_arrives_is_exact(way: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(pieces=st.lists(st.binary(min_size=1, max_size=50), max_size=8), out=FATES, back=FATES)
    def is_exact(pieces: list[bytes], out: list[str], back: list[str]) -> None:
        network = Network(server.server_address, out, back)
        # Open to the end: another one with the same port would be the same peer, whose session still lingers.
        stack.callback(network.sock.close)
        assert sent_over(network, pieces) == b"".join(pieces)

    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        server = stack.enter_context(server_of(way, receives, notes=folder / "notes").background())
        is_exact()


def test_what_arrives_is_exact_in_processes() -> None:
    fates = ["lose", "pass", "twice", "later", "later", "pass", "lose", "twice"]
    with short_folder() as folder, server_of("forks", receives, notes=folder / "notes").background() as server:
        for turn in range(4):
            network = Network(server.server_address, fates[turn:], fates[-turn:])
            try:
                assert sent_over(network, [b"a", b"bb", b"ccc"]) == b"abbccc"
            finally:
                network.sock.close()

"""Servers with TLS in every way to run, whose failures are kept wherever they happen; and clients that open, or do not.

What a handler answers and what a server tells of failed openings goes into files: a forked child tells it itself.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import portico
from portico.lifecycle import ConnectionStarted, OpeningFailed

from .certificates import Authority
from .contract.flavours import KINDS, WAYS, Kind, Way, short_folder
from .every_way import Body, Case, Served, case_class
from .waiting import until

NAME = "localhost"
LATE = 0.25
"""Seconds that a machine with much else to do may be late by."""

_WAYS = {
    way.name: way for way in (*WAYS, Way("reused", "Threading", own_thread=True, settings=(("reuse_threads", True),)))
}
_KINDS = {kind.name: kind for kind in KINDS}


def case(way: str, kind: str, *, streams: bool = False) -> Case:
    found: tuple[Way, Kind] = _WAYS[way], _KINDS[kind]
    return Case(*found, streams)


EVERY = [
    case("plain", "tcp4"),
    case("thread", "tcp6"),
    case("reused", "unix"),
    case("fork", "tcp4"),
    case("green", "unix"),
    case("green-uvloop", "tcp4"),
    case("async", "tcp6"),
    case("async", "unix", streams=True),
    case("async-uvloop", "unix"),
    case("async-uvloop", "tcp4", streams=True),
]
"""Every way to run and every kind of socket, each pair of which would say nothing new."""
TCP = [case(one.way.name, "tcp4", streams=one.streams) if one.is_unix else one for one in EVERY]
"""The same over TCP."""


@cache
def server_pair(authority: Authority) -> tuple[Path, Path]:
    return authority.pair(NAME)


@cache
def trust(authority: Authority) -> ssl.SSLContext:
    return authority.trust()


@cache
def server_context(authority: Authority) -> ssl.SSLContext:
    """One that a program has made itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server_pair(authority))
    return context


@cache
def hello() -> bytes:
    """What a client says first."""
    said = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname=NAME)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()


async def echo(peer: Any) -> None:
    """A body that answers, and tells that it has been run."""
    peer.note("handled")
    while data := await peer.recv(65536):
        await peer.sendall(data)


class Opened(Served):
    """A server with TLS that runs."""

    authority: Authority
    _told: Path

    def open(self, context: ssl.SSLContext | None = None, name: str | None = NAME, **options: Any) -> ssl.SSLSocket:
        """A client whose handshake is done."""
        client = self.connect()
        try:
            return (context or trust(self.authority)).wrap_socket(client, server_hostname=name, **options)
        except BaseException:
            leave(client)
            raise

    def asked(self, *arguments: Any, **options: Any) -> bytes:
        """What an honest client is answered."""
        client = self.open(*arguments, **options)
        try:
            return said(client, b"hello")
        finally:
            leave(client)

    def failures(self) -> Counter[str]:
        """Openings that have failed, by their reasons, as they were told."""
        return Counter(line.partition(" ")[0] for line in self.failure_texts())

    def failure_texts(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []

    def handled(self) -> int:
        """How many connections a handler has seen."""
        return self.notes().count("handled")

    def all_over(self, number: int) -> Counter[str]:
        """Why so many connections have ended, each told of once, at its start and at its end."""
        assert until(lambda: len(self.ends()) >= number), (number, Counter(self.reasons(0)), self.server.stats())
        assert until(lambda: self.server.stats().opening == self.server.stats().active == 0), self.server.stats()
        started = [event.connection.id for event in self.of_kind(ConnectionStarted)]
        ended = [connection.id for connection in self.ends()]
        assert sorted(started) == sorted(ended) == sorted(set(ended)), "told of twice, or not at all"
        assert len(ended) == number
        reasons = Counter(self.reasons(number))
        stats = self.server.stats()
        assert dict(reasons) == stats.ended
        assert stats.accepted == number
        return reasons


@contextmanager
def serving_tls(
    one: Case,
    authority: Authority,
    body: Body = echo,
    members: dict[str, Any] | None = None,
    *,
    address: Any = None,
    **settings: Any,
) -> Iterator[Opened]:
    """A server in this way to run, with the authority's certificate for `localhost` unless `tls` says another."""
    events: list[Any] = []
    with short_folder() as folder:
        told, notes = folder / "told", folder / "notes"

        def handle_event(self: Any, event: Any) -> None:
            events.append(event)
            if isinstance(event, OpeningFailed):
                with told.open("ab", buffering=0) as file:
                    file.write(f"{event.reason.value} {event.error}".replace("\n", " ").encode() + b"\n")

        made = type("Server", (case_class(one),), {"handle_event": handle_event, **(members or {})})
        values = {"tls": portico.TLS(*server_pair(authority)), "drain_timeout": 5.0, **settings}
        server = made(one.kind.address(folder) if address is None else address, one.handler(body, notes), **values)
        with server.background():
            served = Opened(server, events, notes)
            served.authority, served._told = authority, told
            yield served


def said(client: Any, words: bytes) -> bytes:
    """What is answered to these words: as many bytes, or fewer at an end."""
    client.sendall(words)
    got = b""
    while len(got) < len(words) and (more := client.recv(65536)):
        got += more
    return got


def leave(client: socket.socket) -> None:
    """For good: children forked by this process may have copies of the socket."""
    with suppress(OSError):
        socket.SocketType.shutdown(client, socket.SHUT_RDWR)
    client.close()


def reset(client: socket.socket) -> None:
    """Leave as one who crashes, whoever else has a copy: connect(2) to no address resets a TCP connection."""
    ctypes.CDLL(None).connect(client.fileno(), bytes(16), 16)
    client.close()


def rest(client: socket.socket) -> bytes:
    """All that a server says to a client until it closes, or resets."""
    got = b""
    with suppress(ConnectionError):
        while more := socket.SocketType.recv(client, 65536):
            got += more
    return got


@contextmanager
def crowd(served: Served, number: int, words: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many who connect, say this much, and no more."""
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            client = served.connect()
            stack.callback(leave, client)
            found.append(client)
            if words:
                client.sendall(words)
        yield found


def end_of(client: socket.socket, began: float) -> float:
    """Seconds from then until the server has closed, or reset."""
    rest(client)
    return monotonic() - began


def at_best(measure: Callable[[], float], at_most: float, tries: int = 3) -> float:
    """The least of a few figures, as soon as one is low enough: a machine with much else to do has bad moments."""
    found = []
    for _ in range(tries):
        found.append(measure())
        if found[-1] <= at_most:
            break
    return min(found)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))

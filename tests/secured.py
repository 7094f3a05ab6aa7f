"""Encrypted connections for tests: clients that know a truncated end from a clean one, and worlds of encrypted sockets.

The model of an encrypted socket is `ssl.SSLSocket`, in threads; what is tested are ours, in threads and green ones.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import portico
from portico._green_tls import green_tls_class
from portico._tls_sockets import tls_class

from .certificates import Authority
from .every_way import PATIENCE, Body, Case, Served, serving
from .green_worlds import Green, Threads, tcp_pair
from .waiting import until

NAME = "localhost"


class Certificates:
    """What servers show, and what clients believe: made once an authority."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.pair = authority.pair(NAME, "127.0.0.1", "::1")
        self.description = portico.TLS(*self.pair)

    def context(self, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A server's, made by hand."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.pair)
        if version is not None:
            context.maximum_version = version
        return context

    def trust(self, **options: Any) -> ssl.SSLContext:
        return self.authority.trust(**options)


@cache
def certificates(authority: Authority) -> Certificates:
    return Certificates(authority)


def wrapped(client: socket.socket, trust: ssl.SSLContext, **options: Any) -> ssl.SSLSocket:
    """A client's side, its handshake done. A truncated end raises `ssl.SSLEOFError` there."""
    options = {"server_hostname": NAME, "suppress_ragged_eofs": False} | options
    try:
        return trust.wrap_socket(client, **options)
    except BaseException:
        client.close()
        raise


def clean_rest(client: ssl.SSLSocket) -> bytes:
    """All that the server still says, up to its close_notify: an end without one raises `ssl.SSLEOFError`."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


class OnPaper:
    """A client whose records can be held in hand: encrypted by it, sent by the test, whole, in part, or spoilt.

    One thread may read while another one writes, which in an `ssl.SSLSocket` would meet inside OpenSSL.
    """

    def __init__(self, sock: socket.socket, trust: ssl.SSLContext) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)
        self._patiently(self._tls.do_handshake)
        self.send()

    def _patiently(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                with self._lock:
                    return call()
            except ssl.SSLWantReadError:
                self.send()
                data = self.sock.recv(65536)
                with self._lock:
                    if data:
                        self._incoming.write(data)
                    else:
                        self._incoming.write_eof()

    def send(self) -> None:
        """Send what is encrypted."""
        with self._lock:
            data = self._outgoing.read()
        if data:
            self.sock.sendall(data)

    def sendall(self, data: bytes) -> None:
        for begin in range(0, len(data), 10_000):
            self.sock.sendall(self.record(data[begin : begin + 10_000]))

    def record(self, data: bytes) -> bytes:
        """This, encrypted, in a record of its own."""
        with self._lock:
            self._tls.write(data)
            return self._outgoing.read()

    def last_word(self) -> bytes:
        """A close_notify."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def recv(self, size: int = 65536) -> bytes:
        """Raises `ssl.SSLError` if the server says that something is wrong, `ssl.SSLEOFError` at a truncated end."""
        try:
            data: bytes = self._patiently(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""
        return data

    def reset(self) -> None:
        """Leave without a word."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> OnPaper:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


class Secured(Served):
    """A server with TLS that runs."""

    trust: ssl.SSLContext

    def secure(self, **options: Any) -> ssl.SSLSocket:
        """A client whose handshake is done."""
        trust = options.pop("trust", self.trust)
        return wrapped(self.connect(), trust, **options)

    def on_paper(self, trust: ssl.SSLContext | None = None) -> OnPaper:
        client = self.connect()
        try:
            return OnPaper(client, trust or self.trust)
        except BaseException:
            client.close()
            raise

    def faults(self) -> list[Any]:
        """What would have been logged as an error."""
        events = portico.lifecycle
        return [event.error for kind in (events.RequestFailed, events.HookFailed) for event in self.of_kind(kind)]


@contextmanager
def securely(case: Case, body: Body, known: Certificates, **settings: Any) -> Iterator[Secured]:
    """A server with TLS for this body."""
    settings = {"tls": known.description} | settings
    with serving(case, body, **settings) as served:
        made = Secured(served.server, served.events, served._notes)
        made.trust = known.trust()
        yield made


# -- worlds


class _Wrapping:
    """Makes encrypted sockets of a world."""

    known: Certificates

    def encrypt(self, sock: socket.socket, context: ssl.SSLContext) -> Any:
        raise NotImplementedError

    def secure(
        self: Any,
        make: Callable[[], tuple[socket.socket, socket.socket]] = tcp_pair,
        *,
        context: ssl.SSLContext | None = None,
        trust: ssl.SSLContext | None = None,
        on_paper: bool = False,
    ) -> tuple[Any, Any]:
        """An encrypted socket of this world, and its peer, an `ssl.SSLSocket`; their handshake is done."""
        here, there = make()
        there.settimeout(PATIENCE)
        opening = self.start(self._handshake, here, context or self.known.context())
        peer: Any = (OnPaper if on_paper else wrapped)(there, trust or self.known.trust())
        self._owned.append(peer.sock if on_paper else peer)
        return self.own(opening.result(PATIENCE)), peer

    def _handshake(self, sock: socket.socket, context: ssl.SSLContext) -> Any:
        made = self.encrypt(sock, context)
        made.do_handshake()
        return made


class Model(_Wrapping, Threads):
    def encrypt(self, sock: socket.socket, context: ssl.SSLContext) -> Any:
        return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


class Ours(_Wrapping, Threads):
    make = staticmethod(tls_class)

    def plain(self, sock: socket.socket) -> Any:
        """What a server makes of a connection; it is not encrypted yet."""
        return self.make(sock.family)(int(sock.family), int(sock.type), sock.proto, sock.detach())

    def encrypt(self, sock: socket.socket, context: ssl.SSLContext) -> Any:
        made = self.plain(sock)
        made.begin(context)
        return made


class GreenOurs(_Wrapping, Green):
    make = staticmethod(green_tls_class)
    plain, encrypt = Ours.plain, Ours.encrypt


OURS = ["threads", "green-asyncio", "green-uvloop"]
WORLDS = ["ssl", *OURS]


@contextmanager
def secured_world(name: str, known: Certificates) -> Iterator[Any]:
    world: Any
    if name.startswith("green-"):
        world = GreenOurs(name.removeprefix("green-"), "epoll")
    else:
        world = Model() if name == "ssl" else Ours()
    world.known = known
    try:
        yield world
    finally:
        world.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


__all__ = [
    "NAME", "OURS", "WORLDS", "Certificates", "OnPaper", "Secured", "certificates", "clean_rest", "descriptors",
    "secured_world", "securely", "until", "wrapped",
]  # fmt: skip

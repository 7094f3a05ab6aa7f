"""What stands before a server in tests: PROXY headers, and clients who begin with one, in plain text or with TLS.

The handler here tells each question what is known of who asks, so that every way to run can be asked the same.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import portico

from .every_way import PATIENCE, Case, Peer, Served, serving
from .waiting import until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
END = b";"
"""What ends a question."""
SOURCE, DESTINATION = ("192.0.2.7", 4711), ("192.0.2.80", 443)
_FAMILIES = {socket.AF_INET: (0x11, "TCP4"), socket.AF_INET6: (0x21, "TCP6"), socket.AF_UNIX: (0x31, "")}


# -- headers


def _family(address: Any) -> int:
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def v1(source: Any = SOURCE, destination: Any = DESTINATION) -> bytes:
    """Version 1's header, as a proxy writes it."""
    kind = _FAMILIES[_family(source)][1]
    return f"PROXY {kind} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(source: Any = SOURCE, destination: Any = DESTINATION, *tlvs: bytes, checksum: bool = False) -> bytes:
    """Version 2's header, with these TLVs and, if wanted, a checksum."""
    family = _family(source)
    if family == socket.AF_UNIX:
        block = struct.pack("108s108s", source.encode(), destination.encode())
    else:
        addresses = [socket.inet_pton(family, address[0]) for address in (source, destination)]
        block = b"".join(addresses) + struct.pack("!HH", source[1], destination[1])
    return raw(block + b"".join(tlvs), family=_FAMILIES[family][0], checksum=checksum)


def raw(block: bytes = b"", *, kind: int = 0x21, family: int = 0, checksum: bool = False) -> bytes:
    """Version 2's header around a block of any bytes."""
    length = len(block) + 7 * checksum
    made = SIGNATURE + struct.pack("!BBH", kind, family, length) + block
    return made + tlv(3, _crc32c(made + tlv(3, bytes(4))).to_bytes(4, "big")) if checksum else made


def local(*tlvs: bytes) -> bytes:
    """A proxy's own connection, such as a health check."""
    return raw(b"".join(tlvs), kind=0x20)


def seen_tls(flags: int = 7, verify: int = 0, **texts: str) -> bytes:
    """The TLV of what a proxy has seen of its client's TLS."""
    kinds = {"version": 0x21, "common_name": 0x22, "cipher": 0x23}
    parts = [tlv(kinds[name], text.encode()) for name, text in texts.items()]
    return tlv(0x20, struct.pack("!BI", flags, verify) + b"".join(parts))


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


# -- clients


class Client:
    """One connection, whose bytes the test decides on; with a context it speaks TLS when it is told to."""

    def __init__(self, sock: socket.socket, trust: ssl.SSLContext | None = None) -> None:
        self.sock = sock
        self._trust = trust
        self._tls: ssl.SSLObject | None = None
        self._unsent = b""
        self._heard = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # a child may have a copy
        self.sock.close()

    @property
    def address(self) -> Any:
        """As the server sees it."""
        return self.sock.getsockname()

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def begin(self, header: bytes = b"", *, glued: bool = False) -> Client:
        """Say who it is for; with TLS, shake hands. If `glued`, what comes next goes in the same packet."""
        if glued:
            self._unsent = header
        else:
            self.raw(header)
        if self._trust is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = self._trust.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
            self._call(self._tls.do_handshake)
        return self

    def say(self, data: bytes) -> None:
        if self._tls is None:
            self._send(data)
        else:
            self._tls.write(data)
            self._send(self._outgoing.read())

    def hear(self) -> bytes:
        """A line, or what there is before the end."""
        while b"\n" not in self._heard:
            data = self.sock.recv(65536) if self._tls is None else self._call(self._read)
            if not data:
                break
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def ask(self, question: bytes = b"who" + END) -> dict[str, Any]:
        """What the handler of this module knows of us."""
        self.say(question)
        answer = self.hear()
        assert answer, "no answer"
        found: dict[str, Any] = json.loads(answer)
        return found

    def is_refused(self) -> bool:
        """Whether the connection has been ended without a word; waits for that."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def _read(self) -> bytes:
        assert self._tls is not None
        try:
            return self._tls.read(65536)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def _send(self, data: bytes) -> None:
        data, self._unsent = self._unsent + data, b""
        if data:
            self.sock.sendall(data)

    def _call(self, call: Any) -> Any:
        while True:
            try:
                found = call()
            except ssl.SSLWantReadError:
                self._send(self._outgoing.read())
                data = self.sock.recv(65536)
                _ = self._incoming.write(data) if data else self._incoming.write_eof()
            else:
                self._send(self._outgoing.read())
                return found


# -- servers


def _listed(address: Any) -> Any:
    """As it looks after a journey through JSON."""
    return list(address) if isinstance(address, tuple) else address


def facts(peer: Peer, question: bytes) -> dict[str, Any]:
    """What a handler knows of its client."""
    client: portico.Client = peer.handler.client
    found: dict[str, Any] = {
        "question": question.decode("latin-1"),
        "client_address": _listed(peer.handler.client_address),
        "address": _listed(client.address),
        "connected": _listed(client.connected),
        "announced": _listed(client.announced),
        "names": list(client.names),
        "uid": None if client.credentials is None else client.credentials.uid,
        "tls": None if client.tls is None else client.tls.version,
        "proxy": None,
    }
    if client.proxy is not None:
        seen = client.proxy.ssl
        found["proxy"] = {
            "version": client.proxy.version,
            "destination": _listed(client.proxy.destination),
            "alpn": None if client.proxy.alpn is None else client.proxy.alpn.decode(),
            "authority": client.proxy.authority,
            "unique_id": None if client.proxy.unique_id is None else client.proxy.unique_id.decode(),
            "ssl": None if seen is None else [seen.version, seen.common_name, seen.cipher, seen.verified],
        }
    return found


async def tell(peer: Peer) -> None:
    """Answers each question, and what has come before an end, with what is known of who asks; "fail" raises."""
    peer.note("begun")
    said = b""
    while True:
        data = await peer.recv(65536)
        said += data
        while END in said or (said and not data):
            question, _, said = said.partition(END)
            if question == b"fail":
                raise LookupError("a bug in the handler")
            await peer.sendall(json.dumps(facts(peer, question)).encode() + b"\n")
        if not data:
            return


@dataclass
class Front:
    """A server that expects proxies, and clients of it."""

    served: Served
    trust: ssl.SSLContext | None

    @property
    def server(self) -> Any:
        return self.served.server

    def connect(self, *, bound_to: Any = None, tls: bool | None = None) -> Client:
        trust = self.trust if tls is None or tls else None
        return Client(self.served.connect(bound_to=bound_to), trust)

    def client(self, header: bytes = b"", *, glued: bool = False) -> Client:
        """One that has said its header, and has shaken hands."""
        made = self.connect()
        try:
            return made.begin(header, glued=glued)
        except BaseException:
            made.sock.close()
            raise

    def turns_away(self, header: bytes) -> bool:
        """Whether one who says this is not served; he shakes hands, too, if he gets so far."""
        with self.connect() as client:
            try:
                return client.begin(header).hear() == b""
            except (ConnectionError, ssl.SSLError):
                return True

    def barrier(self) -> None:
        """All that was sent before has been looked at by the server's loop, as far as it could be."""
        for _ in range(2):  # what is ready in the same turn may come after the first
            with self.client(v1()) as client:
                client.ask()

    def begun(self) -> int:
        """How many handlers have begun."""
        return self.served.notes().count("begun")

    def failures(self) -> list[Any]:
        return self.served.of_kind(portico.lifecycle.OpeningFailed)

    def faults(self) -> list[Any]:
        """What would have been logged as an error."""
        events = portico.lifecycle
        kinds = (events.RequestFailed, events.HookFailed)
        return [event.error for kind in kinds for event in self.served.of_kind(kind)]

    def wait_for_ends(self, number: int) -> list[portico.Connection]:
        """Connections that have ended, when they are so many."""
        assert until(lambda: len(self.served.ends()) >= number), self.server.stats()
        assert len(self.served.ends()) == number
        return self.served.ends()

    def wait_for_openings(self, number: int) -> None:
        """Until so many are being opened."""
        assert until(lambda: self.server.stats().opening == number), self.server.stats()

    def wait_for_active(self, number: int) -> None:
        """Until so many are open."""
        assert until(lambda: self.server.stats().active == number), self.server.stats()


def trusted(case: Case) -> str:
    """Networks of whoever the clients of these tests are."""
    return "unix" if case.is_unix else "127.0.0.0/8"


@contextmanager
def front(
    case: Case, mode: str = "required", *, pair: Any = None, trust: Any = None, **settings: Any
) -> Iterator[Front]:
    """A server whose clients are announced; with a `pair` of certificate and key they speak TLS after that."""
    body, members = settings.pop("body", tell), settings.pop("members", None)
    settings = {"proxy_protocol": mode, "proxy_trusted": trusted(case), "handshake_timeout": PATIENCE} | settings
    if pair is not None:
        settings["tls"] = portico.TLS(*pair)
    with serving(case, body, members, **settings) as served:
        yield Front(served, trust if pair is not None else None)

"""The PROXY protocol, versions 1 and 2: what a proxy says before anything else about who its client is.

Pure rules on bytes: no socket, no clock, no log, and no opinion about who may be believed, which is its caller's to
know. The source is HAProxy's proxy-protocol.txt; where that leaves a choice, what is in doubt is refused, because a
guess here gives a client somebody else's address.
"""

from __future__ import annotations

from functools import cache
from os import fsdecode
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

from .errors import ProxyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

__all__ = ["MAX_UNIQUE_ID", "MAX_V1", "MAX_V2", "ProxyHeader", "ProxySSL", "may_begin", "parse"]

MAX_V1: Final = 107
# The whole header. Its length field would let whoever connects have 64 kB kept; what is meant for one segment (536
# bytes) fits with all that proxies add to it, a client's certificate among them. nginx has the same bound.
MAX_V2: Final = 4096
MAX_UNIQUE_ID: Final = 128

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = Struct("!BBH")  # after the signature: version and command, family and transport, length
_BLOCK: Final = len(_V2) + _FIXED.size  # where addresses begin
_TLV: Final = Struct("!BH")
_SSL: Final = Struct("!BI")

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _SSL_TYPE, _NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
_SINGLE: Final = {
    _ALPN: "ALPN",
    _AUTHORITY: "AUTHORITY",
    _CRC32C: "CRC32C",
    _UNIQUE_ID: "UNIQUE_ID",
    _SSL_TYPE: "SSL",
    _NETNS: "NETNS",
}
_VERSION, _CN, _CIPHER, _SIG_ALG, _KEY_ALG = range(0x21, 0x26)
_SSL_TEXTS: Final = {_VERSION: "VERSION", _CN: "CN", _CIPHER: "CIPHER", _SIG_ALG: "SIG_ALG", _KEY_ALG: "KEY_ALG"}
_CERTIFICATE: Final = 0x02 | 0x04  # given in this connection, or before in its session

_INTERNET: Final = {"TCP4": (AF_INET, "IPv4"), "TCP6": (AF_INET6, "IPv6")}
_KINDS: Final = (*_INTERNET, "UNKNOWN")
_WORDS: Final = 5  # kind, two addresses, two ports
_BLOCKS: Final = {0: Struct(""), 1: Struct("!4s4sHH"), 2: Struct("!16s16sHH"), 3: Struct("108s108s")}
_FAMILIES: Final = ("unspecified", "IPv4", "IPv6", "Unix")
_TRANSPORTS: Final = ("unspec", "stream", "dgram")


class ProxyHeader:
    """What a proxy has announced. Nothing changes it; addresses are as `accept()` would show them.

    `source` and `destination` are None if nobody is announced (`local`): the connection is the proxy's own, or the
    proxy does not know, and its real addresses hold. `length` counts the bytes of the header, after which the client's
    begin. `tlvs` are pairs of type and value as they came, but for padding. `transport` is "stream", "dgram" or
    "unspec".
    """

    __slots__ = ("destination", "length", "source", "tlvs", "transport", "version")

    def __init__(
        self,
        version: int,
        source: Any,
        destination: Any,
        transport: str,
        length: int,
        tlvs: tuple[tuple[int, bytes], ...] = (),
    ) -> None:
        self.version = version
        self.source = source
        self.destination = destination
        self.transport = transport
        self.length = length
        self.tlvs = tlvs

    @property
    def local(self) -> bool:
        """Whether nobody is announced: LOCAL, UNKNOWN, or a family that the proxy has no name for."""
        return self.source is None

    @property
    def alpn(self) -> bytes | None:
        """The protocol that TLS has agreed on, such as b"h2"."""
        return _value(self.tlvs, _ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for; with TLS, its SNI."""
        return _text(_value(self.tlvs, _AUTHORITY), "AUTHORITY")

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for this connection."""
        return _value(self.tlvs, _UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The network namespace that the proxy took the connection in."""
        return _text(_value(self.tlvs, _NETNS), "NETNS")

    @property
    def ssl(self) -> ProxySSL | None:
        """How the client has spoken TLS to the proxy; also there, with `client` 0, if it has not."""
        value = _value(self.tlvs, _SSL_TYPE)
        return None if value is None else ProxySSL(value)

    def _values(self) -> tuple[object, ...]:
        return self.version, self.source, self.destination, self.transport, self.length, self.tlvs

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, ProxyHeader) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"ProxyHeader{self._values()!r}"


class ProxySSL:
    """A client's TLS, from the value of the SSL TLV; a text that was not sent is None.

    `client` are its flags: 1 for TLS, 2 for a certificate given in this connection, 4 for one given in its session.
    `verify` is 0 if that is good, from HAProxy also if there is none: `verified` tells these apart.
    """

    __slots__ = ("cipher", "client", "common_name", "key_alg", "sig_alg", "verify", "version")

    def __init__(self, value: bytes) -> None:
        if len(value) < _SSL.size:
            raise ProxyError(f"PROXY header: the SSL TLV has {len(value)} bytes, fewer than {_SSL.size}")
        self.client, self.verify = _SSL.unpack_from(value)
        texts: dict[int, str | None] = {}
        for kind, part, _ in _split(value, _SSL.size, len(value), "in the SSL TLV"):
            name = _SSL_TEXTS.get(kind)
            if name is None:
                continue
            if kind in texts:
                raise ProxyError(f"PROXY header: the SSL TLV has a second {name}")
            texts[kind] = _text(part, f"SSL {name}")
        self.version, self.common_name, self.cipher, self.sig_alg, self.key_alg = map(texts.get, _SSL_TEXTS)

    @property
    def verified(self) -> bool:
        """Whether the client has given a certificate, now or before in this session, and it was found good."""
        return bool(self.client & _CERTIFICATE) and self.verify == 0

    def __repr__(self) -> str:
        return f"<ProxySSL {' '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)}>"


def may_begin(data: bytes) -> bool:
    """Whether a header may begin like this: with a signature, or with the beginning of one."""
    return data.startswith((_V1, _V2)) or _V1.startswith(data) or _V2.startswith(data)


def parse(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None if it is the beginning of one. What follows it is not looked at.

    `ProxyError` says why no header can come of it, in the same words however the bytes arrive. Version 1 is judged word
    by word; addresses and TLVs of version 2, whose length is known, when all are there.
    """
    if data.startswith(_V1):
        return _parse_v1(data)
    if data.startswith(_V2):
        return _parse_v2(data)
    if may_begin(data):
        return None
    wrong = next(data[:size] for size in range(1, len(_V2) + 1) if not may_begin(data[:size]))
    raise ProxyError(f"no PROXY header: {wrong!r} begins neither version 1 nor 2; does the sender speak the protocol?")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    # In the order of the bytes, so that more of them never change the reason.
    end = data.find(b"\r", len(_V1), MAX_V1 - 1)
    words = data[len(_V1) : end if end >= 0 else MAX_V1 - 1].decode("latin-1").split(" ")
    begun = words.pop() if end < 0 else None
    kind = words[0] if words else None
    source = destination = None
    if kind in _INTERNET:
        source, destination = _announced(words, begun)
    elif kind != "UNKNOWN" and not (kind is None and any(name.startswith(begun or "") for name in _KINDS)):
        raise ProxyError("PROXY header: TCP4, TCP6 or UNKNOWN must come after PROXY")
    if end < 0:
        if len(data) >= MAX_V1 - 1:
            raise ProxyError(f"PROXY header: no CRLF within {MAX_V1} bytes")
        return None
    if data[end + 1 : end + 2] != b"\n":
        if len(data) > end + 1:
            raise ProxyError("PROXY header: CR without LF")
        return None
    return ProxyHeader(1, source, destination, "unspec" if source is None else "stream", end + 2)


def _announced(words: list[str], begun: str | None) -> tuple[Any, Any]:
    """Source and destination; None while their words have not all come. `begun` is the one that has not ended."""
    family, name = _INTERNET[words[0]]
    hosts = [_host(word, family, name) for word in words[1:3]]
    ports = [_port(word) for word in words[3:_WORDS]]
    if len(words) + (begun is not None) > _WORDS:
        raise ProxyError("PROXY header: more than two addresses and two ports")
    if len(words) < _WORDS:
        if begun is None:
            raise ProxyError("PROXY header: fewer than two addresses and two ports")
        return None, None
    if family == AF_INET:
        return (hosts[0], ports[0]), (hosts[1], ports[1])
    return (hosts[0], ports[0], 0, 0), (hosts[1], ports[1], 0, 0)


def _host(word: str, family: int, name: str) -> str:
    try:
        packed = inet_pton(family, word)
    except (OSError, ValueError):  # ValueError: a NUL
        raise ProxyError(f"PROXY header: {word!r} is no {name} address") from None
    return word if family == AF_INET else inet_ntop(family, packed)  # of IPv6 there are many ways to write one


def _port(word: str) -> int:
    # Of Latin-1's characters only ASCII's digits are decimal.
    if word.isdecimal() and len(word) <= 5 and (word[0] != "0" or word == "0") and (number := int(word)) <= 0xFFFF:
        return number
    raise ProxyError(f"PROXY header: {word!r} is no port")


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _BLOCK:
        _check_kind(*data[len(_V2) : len(_V2) + 2])
        return None
    kind, family, length = _FIXED.unpack_from(data, len(_V2))
    if kind != 0x21 or family != 0x11:  # what nearly all are
        _check_kind(kind, family)
    end = _BLOCK + length
    if end > MAX_V2:
        raise ProxyError(f"PROXY header: {end} bytes are more than {MAX_V2}")
    if kind == 0x20:
        return ProxyHeader(2, None, None, "unspec", end, _of_local(data, family, end)) if len(data) >= end else None
    block = _BLOCKS[family >> 4]
    if block.size > length:
        raise ProxyError(f"PROXY header: {length} bytes are too few for {_FAMILIES[family >> 4]} addresses")
    if len(data) < end:
        return None
    tlvs = _tlvs(data, _BLOCK + block.size, end) if block.size < length else ()
    source, destination = _addresses(family >> 4, block.unpack_from(data, _BLOCK))
    return ProxyHeader(2, source, destination, _TRANSPORTS[family & 15], end, tlvs)


def _check_kind(kind: int = 0x20, family: int = 0) -> None:
    """What bytes 13 and 14 may be; without them, as if they were right."""
    if kind >> 4 != 2:
        raise ProxyError(f"PROXY header: version {kind >> 4} after version 2's signature")
    if kind & 15 > 1:
        raise ProxyError(f"PROXY header: unknown command {kind & 15}")
    if kind & 15 and family >> 4 >= len(_FAMILIES):
        raise ProxyError(f"PROXY header: unknown address family {family >> 4}")
    if kind & 15 and family & 15 >= len(_TRANSPORTS):
        raise ProxyError(f"PROXY header: unknown transport {family & 15}")


def _addresses(family: int, block: tuple[Any, ...]) -> tuple[Any, Any]:
    if family == 1:
        source, destination, source_port, destination_port = block
        return (inet_ntop(AF_INET, source), source_port), (inet_ntop(AF_INET, destination), destination_port)
    if family == 2:
        source, destination, source_port, destination_port = block
        return (
            (inet_ntop(AF_INET6, source), source_port, 0, 0),
            (inet_ntop(AF_INET6, destination), destination_port, 0, 0),
        )
    if family == 3:
        return _path(block[0]), _path(block[1])
    return None, None


def _path(field: bytes) -> str:
    """A path ends with the first NUL, a name in Linux's abstract namespace begins with one; without a name: ""."""
    return fsdecode(field.rstrip(b"\0") if field[0] == 0 else field.partition(b"\0")[0])


def _of_local(data: bytes, family: int, end: int) -> tuple[tuple[int, bytes], ...]:
    """The TLVs of LOCAL, if there are any: a receiver has to skip whatever comes. A checksum among them counts."""
    block = _BLOCKS.get(family >> 4)
    if block is None:
        return ()
    try:
        tlvs, checksum = _checked(data, _BLOCK + block.size, end)
    except ProxyError:
        return ()
    _check_checksum(data, checksum, end)
    return tlvs


def _tlvs(data: bytes, begin: int, end: int) -> tuple[tuple[int, bytes], ...]:
    tlvs, checksum = _checked(data, begin, end)
    _check_checksum(data, checksum, end)
    return tlvs


def _checked(data: bytes, begin: int, end: int) -> tuple[tuple[tuple[int, bytes], ...], int | None]:
    """TLVs that are what they claim to be, and where the checksum is, which is still to be checked."""
    tlvs = []
    seen = set()
    checksum = None
    for kind, value, at in _split(data, begin, end, "after the addresses"):
        if kind == _NOOP:
            continue
        if kind in _SINGLE:
            if kind in seen:  # which of two should be believed?
                raise ProxyError(f"PROXY header: a second {_SINGLE[kind]} TLV")
            seen.add(kind)
            _check_value(kind, value)
            if kind == _CRC32C:
                checksum = at
        tlvs.append((kind, value))
    return tuple(tlvs), checksum


def _split(data: bytes, at: int, end: int, where: str) -> Iterator[tuple[int, bytes, int]]:
    """Type, value, and where the value begins."""
    while at < end:
        begin = at + _TLV.size
        if begin > end:
            raise ProxyError(f"PROXY header: {end - at} bytes {where} are no TLV")
        kind, size = _TLV.unpack_from(data, at)
        at = begin + size
        if at > end:
            raise ProxyError(f"PROXY header: a TLV {where} (type {kind:#04x}) is {at - end} bytes longer than its room")
        yield kind, data[begin:at], begin


def _check_value(kind: int, value: bytes) -> None:
    if kind == _CRC32C and len(value) != 4:
        raise ProxyError(f"PROXY header: the CRC32C TLV has {len(value)} bytes instead of 4")
    if kind == _UNIQUE_ID and len(value) > MAX_UNIQUE_ID:
        raise ProxyError(f"PROXY header: the UNIQUE_ID TLV has {len(value)} bytes, more than {MAX_UNIQUE_ID}")
    if kind in (_AUTHORITY, _NETNS):
        _text(value, _SINGLE[kind])
    if kind == _SSL_TYPE:
        ProxySSL(value)


def _value(tlvs: tuple[tuple[int, bytes], ...], kind: int) -> bytes | None:
    return next((value for found, value in tlvs if found == kind), None)


def _text(value: bytes | None, name: str) -> str | None:
    """All texts are UTF-8, also those that ought to be US-ASCII, which is a part of it."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ProxyError(f"PROXY header: {name} is no UTF-8 text: {value[:40]!r}") from None


def _check_checksum(data: bytes, at: int | None, end: int) -> None:
    if at is None:
        return
    crc = _crc32c(data[:at] + bytes(4) + data[at + 4 : end])
    if crc != int.from_bytes(data[at : at + 4], "big"):
        raise ProxyError(f"PROXY header: its CRC32C ({data[at : at + 4].hex()}) is not that of its bytes ({crc:08x})")


def _crc32c(data: bytes) -> int:
    """Castagnoli's CRC (RFC 4960, appendix B), as a number whose most significant byte is sent first."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    """What each byte adds; the polynomial is written with its bits reversed."""
    table = []
    for number in range(256):
        entry = number
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return tuple(table)

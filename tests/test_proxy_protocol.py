"""Rules of `portico.proxy_protocol`: the examples of its specification, cases of HAProxy and Ranch, any bytes."""

from __future__ import annotations

import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portico
from portico.errors import PorticoError, ProxyError
from portico.proxy_protocol import MAX_UNIQUE_ID, MAX_V1, MAX_V2, ProxyHeader, may_begin, parse

from . import fuzz_proxy_protocol as fuzz
from .commands import ROOT
from .fuzz_proxy_protocol import AWS, SEEDS, SIGNATURE, check

INET = bytes((127, 0, 0, 1, 192, 168, 0, 1)) + struct.pack("!HH", 444, 443)
SOURCE, DESTINATION = ("127.0.0.1", 444), ("192.168.0.1", 443)
REST = b"GET / HTTP/1.1\r\n\r\n"


def crc32c(data: bytes) -> int:
    """Bit by bit, unlike the one under test."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def tlv(kind: int, value: bytes = b"") -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(block: bytes = INET, *, kind: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", kind, family, len(block) if length is None else length) + block


def with_checksum(block: bytes, after: bytes = b"", **values: int) -> bytes:
    """The block, a right checksum, and what follows that."""
    blank = v2(block + tlv(3, bytes(4)) + after, **values)
    return v2(block + tlv(3, crc32c(blank).to_bytes(4, "big")) + after, **values)


def header(data: bytes) -> ProxyHeader:
    """What `data` begins with, however it comes."""
    found = check(data)
    assert isinstance(found, ProxyHeader), found
    return found


def reason(data: bytes) -> str:
    found = check(data)
    assert isinstance(found, str), found
    return found


# Version 1

V1 = {
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": (("255.255.255.255", 65535),) * 2,
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n": (("192.168.0.1", 56324), ("192.168.0.11", 443)),
    b"PROXY TCP4 0.0.0.0 1.2.3.4 0 1\r\n": (("0.0.0.0", 0), ("1.2.3.4", 1)),
    b"PROXY TCP6 %s %s 65535 65535\r\n" % ((b"ffff:" * 7 + b"ffff",) * 2): ((":".join(["ffff"] * 8), 65535, 0, 0),) * 2,
    b"PROXY TCP6 2001:0db8:0000:0042:0000:8a2e:0370:7334 2001:DB8::1 4124 443\r\n": (
        ("2001:db8:0:42:0:8a2e:370:7334", 4124, 0, 0),
        ("2001:db8::1", 443, 0, 0),
    ),
    b"PROXY TCP6 :: ::ffff:192.0.2.1 1 2\r\n": (("::", 1, 0, 0), ("::ffff:192.0.2.1", 2, 0, 0)),
}


@pytest.mark.parametrize("line", V1)
def test_version_1_announces_addresses_as_accept_shows_them(line: bytes) -> None:
    found = header(line + REST)
    assert (found.source, found.destination) == V1[line]
    assert (found.version, found.local, found.transport, found.length) == (1, False, "stream", len(line))
    assert (found.tlvs, found.alpn, found.authority, found.unique_id, found.netns, found.ssl) == ((), *[None] * 5)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN 4124 443\r\n",
        b"PROXY UNKNOWN \xff\0 \n junk\r\n",
        b"PROXY UNKNOWN %s %s 65535 65535\r\n" % ((b"ffff:" * 7 + b"ffff",) * 2),
    ],
)
def test_of_unknown_all_up_to_the_end_of_the_line_is_ignored(line: bytes) -> None:
    found = header(line + REST)
    assert found == ProxyHeader(1, None, None, "unspec", len(line))
    assert found.local


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY tcp4 1.1.1.1 1.1.1.1 1 1", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY UNKNOWNS", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY ", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TC", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TCP4\t1.1.1.1 1.1.1.1 1 1", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TCP4", "fewer than two"),
        (b"PROXY TCP4 1.1.1.1 1.1.1.1 1", "fewer than two"),
        (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 ", "more than two"),
        (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1", "more than two"),
        (b"PROXY TCP4 1.1.1.1  1.1.1.1 1 1", "'' is no IPv4 address"),
        (b"PROXY TCP4 192.1638.0.1 192.168.0.11 56324 443", "'192.1638.0.1' is no IPv4 address"),
        (b"PROXY TCP4 1.1.1.01 1.1.1.1 1 1", "'1.1.1.01' is no IPv4 address"),
        (b"PROXY TCP4 1.1.1.256 1.1.1.1 1 1", "'1.1.1.256' is no IPv4 address"),
        (b"PROXY TCP4 1.1.1 1.1.1.1 1 1", "'1.1.1' is no IPv4 address"),
        (b"PROXY TCP4 1.1.1.1\0 1.1.1.1 1 1", r"'1.1.1.1\x00' is no IPv4 address"),
        (b"PROXY TCP4 1.1.1.\xb2 1.1.1.1 1 1", "'1.1.1.\xb2' is no IPv4 address"),
        (b"PROXY TCP4 ::1 1.1.1.1 1 1", "'::1' is no IPv4 address"),
        (b"PROXY TCP4 localhost 1.1.1.1 1 1", "'localhost' is no IPv4 address"),
        (b"PROXY TCP6 1.1.1.1 ::1 1 1", "'1.1.1.1' is no IPv6 address"),
        (b"PROXY TCP6 ::1 2001:0db8:00;0:0042:0000:8a2e:0370:7335 1 1", "is no IPv6 address"),
        (b"PROXY TCP6 ::1 fe80::1%lo 1 1", "'fe80::1%lo' is no IPv6 address"),
        (b"PROXY TCP6 ::1 1::2::3 1 1", "'1::2::3' is no IPv6 address"),
        (b"PROXY TCP6 ::1 1:2:3:4:5:6:7 1 1", "is no IPv6 address"),
        *[
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 " + port, "is no port")
            for port in (
                b"65536",
                b"1111111",
                b"01",
                b"00",
                b"-1",
                b"+1",
                b"1_0",
                b"foo",
                b"\xb9",
                b"1.0",
                b"1\n",
                b"0x1",
            )
        ],
        (b"PROXY TCP4 1.1.1.1 1.1.1.1  1 1", "'' is no port"),
    ],
)
def test_a_line_that_is_not_exactly_as_specified_is_refused(line: bytes, why: str) -> None:
    assert why in reason(line + b"\r\n" + REST)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r \n"])
@pytest.mark.parametrize("line", [b"PROXY UNKNOWN", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1"])
def test_nothing_but_cr_and_lf_ends_a_line(line: bytes, end: bytes) -> None:
    found = check(line + end)
    if found is None:  # more may come: then too much comes
        found = check(line + end + bytes(MAX_V1))
    assert isinstance(found, str)


def test_a_line_has_107_bytes_at_most() -> None:
    line = b"PROXY UNKNOWN ".ljust(MAX_V1 - 2, b"x") + b"\r\n"
    assert header(line).length == MAX_V1 == len(line)
    assert "107" in reason(line[:-2] + b"x\r\n")
    assert "107" in reason(b"PROXY UNKNOWN ".ljust(MAX_V1, b"x"))
    assert parse(line[:-2]) is None is parse(line[:-1])
    assert "107" in reason(line[:-2] + b"x")  # the CRLF would not fit any more
    assert "107" in reason(b"PROXY TCP4 " + b"1" * MAX_V1)


def test_a_line_is_refused_with_the_word_that_is_wrong() -> None:
    assert parse(b"PROXY T") is None
    assert "TCP4" in reason(b"PROXY G")
    assert parse(b"PROXY TCP4 GET") is None
    assert "'GET' is no IPv4" in reason(b"PROXY TCP4 GET ")
    assert "more than two" in reason(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 ")


# Version 2


def test_version_2_announces_addresses_as_accept_shows_them() -> None:
    found = header(v2() + REST)
    assert found == ProxyHeader(2, SOURCE, DESTINATION, "stream", 28)
    assert not found.local
    inet6 = IPv6Address("159c:1090:1::").packed + IPv6Address("2001:db8:1::").packed + b"\x01\xbc\x01\xbb"
    found = header(v2(inet6, family=0x21) + REST)
    assert (found.source, found.destination) == (("159c:1090:1::", 444, 0, 0), ("2001:db8:1::", 443, 0, 0))
    assert found.length == 52


@pytest.mark.parametrize(
    ("field", "path"),
    [
        (b"/var/pgsql_sock", "/var/pgsql_sock"),
        (b"/run/a\0left over", "/run/a"),
        (b"/".ljust(108, b"x"), "/".ljust(108, "x")),
        (b"\0abstract", "\0abstract"),
        (b"\0two\0parts", "\0two\0parts"),
        (b"", ""),
        (b"/\xff", "/\udcff"),
    ],
)
def test_unix_addresses_are_paths_or_abstract_names(field: bytes, path: str) -> None:
    found = header(v2(field.ljust(108, b"\0") + b"/b".ljust(108, b"\0"), family=0x31) + REST)
    assert (found.source, found.destination, found.transport, found.length) == (path, "/b", "stream", 232)
    assert not found.local


TRANSPORTS = ("unspec", "stream", "dgram")
SIZES = {0: 0, 1: 12, 2: 36, 3: 216}


@pytest.mark.parametrize("kind", range(256))
def test_every_version_and_command_but_2_and_local_or_proxy_is_refused(kind: int) -> None:
    if kind in (0x20, 0x21):
        assert header(v2(kind=kind)).local == (kind == 0x20)
        return
    assert ("unknown command" if kind >> 4 == 2 else f"version {kind >> 4}") in reason(v2(kind=kind))
    assert isinstance(check(SIGNATURE + bytes([kind])), str), "certain with this byte"


@pytest.mark.parametrize("family", range(256))
def test_every_family_and_transport_but_the_specified_is_refused_unless_local(family: int) -> None:
    known, size = family >> 4 in SIZES and family & 15 < 3, SIZES.get(family >> 4, 0)
    assert header(v2(bytes(size), kind=0x20, family=family)) == ProxyHeader(2, None, None, "unspec", 16 + size)
    if known:
        found = header(v2(bytes(size), family=family))
        assert found.transport == TRANSPORTS[family & 15]
        assert found.local == (family >> 4 == 0) == (found.source is None)
    else:
        assert "unknown" in reason(v2(bytes(size), family=family))
        assert isinstance(check(v2()[:13] + bytes([family])), str), "certain with this byte"


@pytest.mark.parametrize("family", [1, 2, 3])
def test_addresses_must_fit_the_length(family: int) -> None:
    for length in range(SIZES[family]):
        start = SIGNATURE + struct.pack("!BBH", 0x21, family << 4 | 1, length)
        assert "too few" in reason(start), "certain with the length"
    assert header(v2(bytes(SIZES[family]), family=family << 4 | 1)).tlvs == ()


def test_a_header_has_4096_bytes_at_most_and_more_are_refused_with_the_length() -> None:
    def padded(size: int) -> bytes:
        return v2(INET + tlv(4, bytes(size - 28 - 3)))

    assert [parse(padded(size)) for size in (536, 537, MAX_V2)] == [
        ProxyHeader(2, SOURCE, DESTINATION, "stream", size) for size in (536, 537, MAX_V2)
    ]
    assert parse(padded(MAX_V2)[:-1]) is None
    assert reason(padded(MAX_V2 + 1)[:16]) == "PROXY header: 4097 bytes are more than 4096"
    assert parse(padded(MAX_V2 + 1)[:15]) is None
    assert "65551" in reason(v2(b"", length=0xFFFF)) == reason(v2(b"", length=0xFFFF, family=0) + bytes(9))
    assert "65551" in reason(v2(b"", length=0xFFFF, kind=0x20))


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02])
def test_a_family_without_a_name_announces_nobody_but_may_have_tlvs(family: int) -> None:
    found = header(v2(tlv(2, b"host"), family=family) + REST)
    assert (found.local, found.source, found.destination, found.authority) == (True, None, None, "host")
    assert "no TLV" in reason(v2(b"\1", family=family))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"x",
        b"junk" * 30,
        bytes(12),
        bytes(11),
        INET + b"\2\xff\xff",
        INET + tlv(3, b"short"),
        INET + tlv(2, b"\xff"),
    ],
)
@pytest.mark.parametrize("family", [0x00, 0x11, 0x21, 0x31, 0x7F, 0xFF])
def test_local_is_accepted_whatever_is_in_its_block(block: bytes, family: int) -> None:
    found = header(v2(block, kind=0x20, family=family) + REST)
    assert found == ProxyHeader(2, None, None, "unspec", 16 + len(block), found.tlvs)
    assert found.local


def test_tlvs_of_local_are_there_and_their_checksum_counts() -> None:
    assert header(v2(tlv(5, b"id"), kind=0x20, family=0)).unique_id == b"id"
    assert header(v2(INET + tlv(5, b"id"), kind=0x20)).unique_id == b"id"
    assert header(with_checksum(INET, kind=0x20)).local
    assert "CRC32C" in reason(v2(INET + tlv(3, b"nope"), kind=0x20))


# TLVs


def test_tlvs_are_there_as_they_came_but_for_padding() -> None:
    parts = [(0xE0, b""), (4, b"pad"), (0xEA, b"\1vpce"), (0xE0, b"again"), (0xFF, bytes(9)), (4, b"")]
    found = header(v2(INET + b"".join(tlv(*part) for part in parts)) + REST)
    assert found.tlvs == tuple(part for part in parts if part[0] != 4)


def test_known_tlvs_have_names() -> None:
    block = INET + tlv(1, b"h2") + tlv(2, "höst".encode()) + tlv(5, b"\0\xff") + tlv(0x30, b"/var/run/netns/example")
    found = header(v2(block))
    assert (found.alpn, found.authority, found.unique_id, found.netns, found.ssl) == (
        b"h2",
        "höst",
        b"\0\xff",
        "/var/run/netns/example",
        None,
    )


def test_a_nul_in_an_authority_does_not_end_it() -> None:
    assert header(v2(INET + tlv(2, b"public\0x"))).authority == "public\0x"


def test_what_haproxy_tests_of_tlvs() -> None:
    plain = bytes.fromhex("7F0000017F000001002A0539")
    assert header(v2(plain + tlv(2, b"12345"))).authority == "12345"
    assert header(v2(plain + tlv(2, b"12345")) + tlv(2, b"54321")).authority == "12345"
    too_long = reason(v2(plain + b"\2\0\x0a" + b"12345"))
    assert "type 0x02" in too_long
    assert "5 bytes longer" in too_long
    assert "1 bytes after the addresses are no TLV" in reason(v2(plain + tlv(2, b"1234") + b"G"))


@pytest.mark.parametrize("kind", [1, 2, 5, 0x20, 0x30])
def test_of_what_can_be_there_once_a_second_is_refused(kind: int) -> None:
    assert "a second" in reason(v2(INET + tlv(kind, bytes(5)) * 2))
    assert "a second" in reason(v2(INET + tlv(kind, bytes(5)) + tlv(4) + tlv(kind, bytes(6))))


def test_a_unique_id_has_128_bytes_at_most() -> None:
    most = bytes(range(MAX_UNIQUE_ID))
    assert header(v2(INET + tlv(5, most))).unique_id == most
    assert "128" in reason(v2(INET + tlv(5, most + b"x")))


@pytest.mark.parametrize("block", [tlv(2, b"\xff"), tlv(0x30, b"\xff"), tlv(0x20, bytes(5) + tlv(0x22, b"\xff"))])
def test_texts_that_are_not_utf_8_are_refused(block: bytes) -> None:
    assert "no UTF-8" in reason(v2(INET + block))


def test_a_checksum_must_be_right_whatever_comes_before_and_after() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the published check value
    for after in b"", tlv(4, b"pad"), tlv(5, b"id"):
        good = with_checksum(INET + tlv(2, b"host"), after)
        assert header(good + REST).authority == "host"
        kind = good.index(
            tlv(3, b"")[:1] + b"\0\4", 16 + len(INET)
        )  # changed, it is of another type: not to be noticed
        for at in (at for at in range(16, len(good)) if at != kind):
            bad = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
            assert isinstance(fuzz.outcome(bad), str)
        assert "CRC32C" in reason(good[:17] + b"x" + good[18:])


def test_a_checksum_has_four_bytes_and_comes_once() -> None:
    for size in 0, 3, 5:
        assert "instead of 4" in reason(v2(INET + tlv(3, bytes(size))))
    assert "a second CRC32C" in reason(with_checksum(INET, tlv(3, bytes(4))))


def test_a_real_header_of_aws_with_checksum_and_padding() -> None:
    found = header(AWS)
    assert (found.source, found.destination) == (("172.31.7.113", 51442), ("172.31.10.31", 80))
    assert found.tlvs == ((3, bytes.fromhex("e8d6892d")), (0xEA, b"\1vpce-08d2bf15fac5001c9"))


def test_the_clients_tls_has_names() -> None:
    texts = [(0x21, b"TLSv1.3"), (0x22, "Jürgen".encode()), (0x23, b"ECDHE"), (0x24, b"SHA256"), (0x25, b"RSA2048")]
    more = tlv(0x28, b"a certificate \xff") + tlv(0x28)
    found = header(v2(INET + tlv(0x20, b"\7\0\0\0\0" + b"".join(tlv(*text) for text in texts) + more))).ssl
    assert found is not None
    assert (found.client, found.verify, found.verified) == (7, 0, True)
    assert (found.version, found.common_name) == ("TLSv1.3", "Jürgen")
    assert (found.cipher, found.sig_alg, found.key_alg) == ("ECDHE", "SHA256", "RSA2048")


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [(0, 0, False), (1, 0, False), (3, 0, True), (5, 0, True), (3, 1, False), (7, 1 << 31, False), (0xF8, 0, False)],
)
def test_a_client_is_verified_by_a_certificate_that_was_given_and_good(
    client: int, verify: int, verified: bool
) -> None:
    found = header(v2(INET + tlv(0x20, struct.pack("!BI", client, verify)))).ssl
    assert found is not None
    assert (found.client, found.verify, found.verified) == (client, verify, verified)
    assert (found.version, found.common_name, found.cipher, found.sig_alg, found.key_alg) == (None,) * 5


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *[(bytes(size), "fewer than 5") for size in range(5)],
        (bytes(5) + b"\x21", "no TLV"),
        (bytes(5) + b"\x21\0\4TLS", "longer than its room"),
        (bytes(5) + tlv(0x22, b"a") + tlv(0x22, b"b"), "a second CN"),
    ],
)
def test_what_is_in_the_tls_tlv_is_checked_too(value: bytes, why: str) -> None:
    assert why in reason(v2(INET + tlv(0x20, value) + tlv(4, bytes(9))))


# Both


def test_only_what_begins_with_a_signature_may_become_a_header() -> None:
    for signature in b"PROXY ", SIGNATURE:
        for size in range(len(signature) + 1):
            assert may_begin(signature[:size])
            assert parse(signature[:size]) is None
        assert may_begin(signature + b"anything")
        for at in range(len(signature)):
            other = signature[:at] + b"\xff"
            assert not may_begin(other)
            assert repr(other) in reason(other + REST)
    for data in b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\r\n\r\nGET", b"PROXYTCP4", b"proxy ", b" PROXY ":
        assert not may_begin(data)
        assert "no PROXY header" in reason(data)


def test_errors_are_porticos_and_values_wrong() -> None:
    assert issubclass(ProxyError, PorticoError)
    assert issubclass(ProxyError, ValueError)


def test_headers_are_compared_by_what_they_say() -> None:
    one, same, other = parse(v2()), parse(v2()), parse(v2(INET + tlv(5, b"id")))
    assert one == same != other
    assert one != "header"
    assert len({one, same, other}) == 2
    assert repr(one) == "ProxyHeader(2, ('127.0.0.1', 444), ('192.168.0.1', 443), 'stream', 28, ())"


# Any

PORTS = st.integers(0, 0xFFFF)
V4, V6 = st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.builds(IPv6Address, st.integers(0, 2**128 - 1))
PATHS = st.binary(max_size=108).map(lambda path: b"/" + path.replace(b"\0", b"")[:107])
SINGLE = {1: st.binary(max_size=20), 2: st.text(max_size=20).map(str.encode), 5: st.binary(max_size=MAX_UNIQUE_ID)}
TLVS = st.tuples(
    st.fixed_dictionaries({}, optional=SINGLE).map(lambda found: list(found.items())),
    st.lists(st.tuples(st.sampled_from([4, 0xE0, 0xEA, 0xFF]), st.binary(max_size=9)), max_size=4),
).flatmap(lambda parts: st.permutations(parts[0] + parts[1]))
SLOW = settings(max_examples=400, deadline=None)


@st.composite
def built(draw: Any) -> tuple[bytes, ProxyHeader]:
    """A header, and what has to be read from it."""
    family = draw(st.sampled_from([1, 2, 3]))
    if family == 3:
        ends = [draw(PATHS), draw(PATHS)]
        block, (source, destination) = (
            b"".join(end.ljust(108, b"\0") for end in ends),
            [end.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()) for end in ends],
        )
    else:
        hosts = draw(st.tuples(*[V4 if family == 1 else V6] * 2))
        ports = draw(st.tuples(PORTS, PORTS))
        flow = () if family == 1 else (0, 0)
        source, destination = ((str(host), port, *flow) for host, port in zip(hosts, ports, strict=True))
        block = b"".join(host.packed for host in hosts) + struct.pack("!HH", *ports)
        if family == 1 and draw(st.booleans()):
            line = f"PROXY TCP4 {hosts[0]} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()
            return line, ProxyHeader(1, source, destination, "stream", len(line))
        if family == 2 and draw(st.booleans()):
            line = f"PROXY TCP6 {hosts[0].exploded.upper()} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()
            return line, ProxyHeader(1, source, destination, "stream", len(line))
    transport = draw(st.integers(0, 2))
    parts = draw(TLVS)
    data = v2(block + b"".join(tlv(*part) for part in parts), family=family << 4 | transport)
    kept = tuple(part for part in parts if part[0] != 4)
    if draw(st.booleans()):
        data = with_checksum(data[16:], family=family << 4 | transport)
        kept += ((3, data[-4:]),)
    return data, ProxyHeader(2, source, destination, TRANSPORTS[transport], len(data), kept)


def plain(address: Any) -> Any:
    """`ipaddress` and the system write IPv6 addresses with IPv4 in them differently."""
    return (IPv6Address(address[0]), *address[1:]) if len(address) == 4 and isinstance(address, tuple) else address


@SLOW
@given(built(), st.binary(max_size=9))
def test_what_is_built_is_read_however_it_arrives(case: tuple[bytes, ProxyHeader], rest: bytes) -> None:
    data, expected = case
    for size in range(len(data)):
        assert parse(data[:size]) is None
    found = header(data + rest)
    assert plain(found.source) == plain(expected.source)
    assert plain(found.destination) == plain(expected.destination)
    assert (found.version, found.transport, found.length) == (expected.version, expected.transport, expected.length)
    assert found.tlvs == expected.tlvs
    named = dict(expected.tlvs)
    assert (found.alpn, found.unique_id) == (named.get(1), named.get(5))
    assert found.authority == (named[2].decode() if 2 in named else None)


@SLOW
@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21"]), st.binary())
def test_any_bytes_have_one_outcome_for_good(begin: bytes, data: bytes) -> None:
    check(begin + data)


@SLOW
@given(built(), st.integers(0), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_headers_have_one_outcome_for_good(case: Any, at: int, new: bytes, lost: int) -> None:
    data = case[0]
    at %= len(data)
    check(data[:at] + new + data[at + lost :])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_fuzzers_seeds_are_headers(seed: bytes) -> None:
    header(seed)


def test_the_fuzzer_says_when_it_goes_without_coverage_and_finds_nothing() -> None:
    assert fuzz.at_random(0.5, seed=1) > 0
    hidden = "import sys; sys.modules['atheris'] = None; from tests.fuzz_proxy_protocol import main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", hidden, "--seconds", "0.2"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "atheris is not installed" in answer.stdout
    assert "nothing to be found" in answer.stdout


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import portico.proxy_protocol; "
        "print([m for m in ('asyncio', 'ssl', 'typing', 'dataclasses', 'ipaddress') if m in sys.modules])"
    )
    package = portico.__path__[0].rpartition("/")[0]
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, package], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"

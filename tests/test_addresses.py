"""Addresses as people write them: read, spelled, and sorted into families (`portico._addresses`)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico._addresses import Endpoint, describe, infer, is_mapped, parse, spell, unmapped
from portico.errors import AddressError

PORTS = st.integers(0, 65535)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?", fullmatch=True)
HOSTS = st.one_of(NAMES, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
PATHS = st.from_regex(r"/[a-zA-Z0-9_. :@-]{1,30}", fullmatch=True)
RELATIVE = st.from_regex(r"[a-z][a-zA-Z0-9_. :@/-]{0,30}", fullmatch=True)
ABSTRACT = st.from_regex(r"[a-zA-Z0-9_./-]{1,30}", fullmatch=True).map(lambda name: "\0" + name)


@given(st.sampled_from(["tcp", "udp"]), HOSTS, PORTS)
def test_an_internet_address_survives_being_spelled_and_read(kind: str, host: str, port: int) -> None:
    assert parse(spell(kind, (host, port))) == Endpoint(kind, (host, port))


@given(st.sampled_from(["unix", "unix-dgram"]), st.one_of(PATHS, RELATIVE, ABSTRACT))
def test_a_unix_address_survives_being_spelled_and_read(kind: str, address: str) -> None:
    assert parse(spell(kind, address)) == Endpoint(kind, address)


@given(st.text(max_size=40))
def test_any_other_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        found = parse(text)
    except AddressError as error:
        said: str | None = str(error)
    else:
        said = None
        assert found.kind in ("tcp", "udp", "unix", "unix-dgram", "fd", "systemd")
    assert said is None or repr(text) in said


@pytest.mark.parametrize(
    ("text", "kind", "address"),
    [
        ("tcp://127.0.0.1:80", "tcp", ("127.0.0.1", 80)),
        ("tcp://[::1]:0", "tcp", ("::1", 0)),
        ("tcp://:80", "tcp", ("", 80)),
        ("udp://localhost:53", "udp", ("localhost", 53)),
        ("unix:/run/a.sock", "unix", "/run/a.sock"),
        ("unix:///run/a.sock", "unix", "/run/a.sock"),
        ("unix:a.sock", "unix", "a.sock"),
        ("unix:@name", "unix", "\0name"),
        ("unix-dgram:@name", "unix-dgram", "\0name"),
        ("fd://3", "fd", "fd://3"),
        ("systemd://web", "systemd", "systemd://web"),
    ],
)
def test_addresses_are_read_as_documented(text: str, kind: str, address: Any) -> None:
    assert parse(text) == (kind, address)


@pytest.mark.parametrize(
    "text",
    [
        "", "tcp", "tcp:", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:http", "tcp://::1:80",
        "tcp://127.0.0.1:65536", "tcp://127.0.0.1:-1", "tcp://127.0.0.1:٣", "127.0.0.1:80", "unix:", "unix://", "fd:3",
        "TCP://127.0.0.1:80",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="is no address"):
        parse(text)


@pytest.mark.parametrize(
    ("address", "family"),
    [
        (("127.0.0.1", 0), socket.AF_INET),
        (("", 0), socket.AF_INET),
        ((None, 0), socket.AF_INET),
        (("255.255.255.255", 0), socket.AF_INET),
        (("::1", 0), socket.AF_INET6),
        (("::", 0, 0, 0), socket.AF_INET6),
        (("fe80::1%lo", 0), socket.AF_INET6),
        (("localhost", 0), socket.AF_INET),
        (("no-such-host.invalid", 0), socket.AF_INET),
        (("a" * 70 + ".invalid", 0), socket.AF_INET),
        ("/run/a.sock", socket.AF_UNIX),
        ("./a.sock", socket.AF_UNIX),
        (b"/run/a.sock", socket.AF_UNIX),
        ("\0name", socket.AF_UNIX),
        (b"\0name", socket.AF_UNIX),
        (Path("/run/a.sock"), socket.AF_UNIX),
    ],
)
def test_the_family_follows_from_the_address(address: Any, family: int) -> None:
    assert infer(address)[0] == family


def test_a_path_object_without_a_slash_is_no_unix_address_by_its_text_alone() -> None:
    with pytest.raises(AddressError, match="a path with a '/'"):
        infer("a.sock")


@pytest.mark.parametrize("address", [None, 80, (), ("127.0.0.1",), ["127.0.0.1", 80], "127.0.0.1:80", b"x", ("h",) * 5])
def test_what_is_no_address_is_said_so(address: Any) -> None:
    with pytest.raises(AddressError, match="is no address"):
        infer(address)


@pytest.mark.parametrize("host", ["", "::", None])
def test_a_wildcard_of_a_dual_stack_server_is_the_ipv6_one(host: str | None) -> None:
    assert infer((host, 80), dual_stack=True) == (socket.AF_INET6, ("::", 80))
    assert infer(("127.0.0.1", 80), dual_stack=True)[0] == socket.AF_INET


def test_mapped_addresses_are_told_from_others() -> None:
    assert is_mapped("::ffff:192.0.2.1")
    assert not is_mapped("::ffff:1")
    assert not is_mapped("192.0.2.1")
    assert unmapped(("::ffff:192.0.2.1", 80, 0, 0)) == ("192.0.2.1", 80)
    for address in (("::1", 80, 0, 0), ("192.0.2.1", 80), "/run/a.sock", "", None):
        assert unmapped(address) == address


def test_a_socket_is_described_by_where_it_is_bound(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        assert describe(tcp) == f"tcp://127.0.0.1:{tcp.getsockname()[1]}"
        assert describe(udp, ("::1", 53)) == "udp://[::1]:53"
        assert describe(tcp, 7) == "tcp address 7"
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        assert describe(stream, "/run/a.sock") == "unix:/run/a.sock"
        assert describe(datagram, b"\0name") == "unix-dgram:@name"

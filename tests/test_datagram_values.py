"""What people write for multicast groups and types of service."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import portico
from portico.datagram_values import Group, groups, octet

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("239.1.2.3", [Group(V4, b"\xef\1\2\3", "")]),
        ("239.1.2.3%eth0", [Group(V4, b"\xef\1\2\3", "eth0")]),
        ("239.1.2.3%192.0.2.1", [Group(V4, b"\xef\1\2\3", "192.0.2.1")]),
        ("224.0.0.0", [Group(V4, b"\xe0\0\0\0", "")]),
        ("239.255.255.255", [Group(V4, b"\xef\xff\xff\xff", "")]),
        ("ff02::1%eth0", [Group(V6, b"\xff\2" + bytes(13) + b"\1", "eth0")]),
        (["239.1.2.3", "ff02::1"], [Group(V4, b"\xef\1\2\3", ""), Group(V6, b"\xff\2" + bytes(13) + b"\1", "")]),
        (("239.1.2.3",), [Group(V4, b"\xef\1\2\3", "")]),
        ([], []),
    ],
)
def test_groups(value: Any, expected: list[Group]) -> None:
    assert groups(value) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is no address"),
        ("239.1.2", "is no address"),
        ("eth0", "is no address"),
        ("239.1.2.3:5000", "is no address"),
        ("223.255.255.255", "is no multicast address"),
        ("240.0.0.0", "is no multicast address"),
        ("fe80::1%eth0", "is no multicast address"),
        ("127.0.0.1", "is no multicast address"),
        (5, "is no group"),
        (b"239.1.2.3", "is no group"),
        ([5], "is no group"),
        ({"239.1.2.3": "eth0"}, "is no group"),
    ],
)
def test_what_is_no_group_says_why(value: Any, reason: str) -> None:
    with pytest.raises(portico.SettingError, match=reason):
        groups(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("EF", 0xB8), ("ef", 0xB8), ("LE", 0x04), ("CS0", 0), ("CS1", 0x20), ("CS7", 0xE0), ("AF11", 0x28), ("AF43", 0x98),
     ("AF22", 0x50), (0, 0), (255, 255), ("AF44", None), ("AF01", None), ("AF1", None), ("CS8", None), ("CS", None),
     ("", None), ("high", None), ("184", None)],
)  # fmt: skip
def test_types_of_service_by_the_names_of_their_rfcs(value: Any, expected: int | None) -> None:
    assert octet(value) == expected


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("tos", [None, 0, 255, "EF", "AF41"], [-1, 256, "AF99", 1.5, True]),
        ("ttl", [None, 1, 255], [0, 256, -1, "64", 1.5, True]),
        ("multicast_groups", [None, "239.1.2.3", ["239.1.2.3"]], ["127.0.0.1", 5, ""]),
        ("max_datagrams", [1, 100_000], [0, -1, None, "many", True]),
        ("recv_buffer_size", [None, 1, 1 << 30], [0, -1, "1M", True]),
        ("send_buffer_size", [None, 65536], [0, 1.5]),
        ("max_packet_size", [1, 65535, 1 << 24], [0, (1 << 24) + 1, None]),
        ("udp_gro", [True, False, 1], [None, 2, "yes"]),
        ("deliver_truncated", [True, False], [None, "no"]),
        ("broadcast", [True, False], [2, "on"]),
    ],
)
def test_settings_are_checked_when_a_server_is_made(name: str, good: list[Any], bad: list[Any]) -> None:
    def make(value: Any) -> None:
        portico.UDPServer(("127.0.0.1", 0), portico.BaseRequestHandler, False, **{name: value}).server_close()

    for value in good:
        make(value)
    for value in bad:
        with pytest.raises(portico.SettingError, match=name):
            make(value)

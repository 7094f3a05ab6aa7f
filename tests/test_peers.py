"""Who sent a datagram, and to which address of ours: the kernel's bytes, as addresses that Python has."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from portico._peers import PeerAddress, Peers

V4, V6 = socket.AF_INET, socket.AF_INET6
PORTS = some.integers(0, 65535)
INTERFACES = some.integers(0, (1 << 31) - 1)


def name4(host: str, port: int) -> bytes:
    """struct sockaddr_in"""
    return struct.pack("=H", V4) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def name6(host: str, port: int, flow: int = 0, scope: int = 0) -> bytes:
    """struct sockaddr_in6"""
    address = socket.inet_pton(V6, host)
    return struct.pack("=H", V6) + struct.pack("!HI", port, flow) + address + struct.pack("=I", scope)


def asked4(ours: str, interface: int = 1, source: str | None = None) -> bytes:
    """A control message with struct in_pktinfo."""
    content = struct.pack("=i", interface) + socket.inet_aton(source or ours) + socket.inet_aton(ours)
    return struct.pack("=qii", 28, socket.IPPROTO_IP, 8) + content + bytes(4)


def asked6(ours: str, interface: int = 1) -> bytes:
    """A control message with struct in6_pktinfo."""
    content = socket.inet_pton(V6, ours) + struct.pack("=i", interface)
    return struct.pack("=qii", 36, socket.IPPROTO_IPV6, 50) + content + bytes(4)


def peers(family: int = V4, *, everywhere: bool = True, bound: Any = None, **values: bool) -> Peers:
    default = ("0.0.0.0", 53) if family == V4 else ("::", 53, 0, 0)
    return Peers(family, bound or default, everywhere=everywhere, unmap=values.pop("unmap", False), **values)


def test_a_sender_over_ipv4() -> None:
    found = peers().learn(name4("192.0.2.7", 4000) + asked4("192.0.2.1", 3))
    assert (found, found.local, found.interface) == (("192.0.2.7", 4000), ("192.0.2.1", 53), 3)
    assert repr(found) == "('192.0.2.7', 4000)"


def test_a_sender_over_ipv6() -> None:
    known = peers(V6)
    found = known.learn(name6("2001:db8::7", 4000, 5) + asked6("2001:db8::1", 3))
    assert (found, found.local, found.interface) == (("2001:db8::7", 4000, 5, 0), ("2001:db8::1", 53, 0, 0), 3)
    local = known.learn(name6("fe80::7", 4000, 0, 3) + asked6("fe80::1", 3))
    assert (local, local.local) == (("fe80::7", 4000, 0, 3), ("fe80::1", 53, 0, 3))


@pytest.mark.parametrize("unmap", [False, True])
def test_an_ipv4_sender_on_a_dual_stack_socket(unmap: bool) -> None:
    known = peers(V6, unmap=unmap)
    found = known.learn(name6("::ffff:192.0.2.7", 4000) + asked6("::ffff:192.0.2.1", 3))
    if unmap:
        assert (found, found.local) == (("192.0.2.7", 4000), ("192.0.2.1", 53))
    else:
        assert (found, found.local) == (("::ffff:192.0.2.7", 4000, 0, 0), ("::ffff:192.0.2.1", 53, 0, 0))
    assert found.route.target == ("::ffff:192.0.2.7", 4000, 0, 0)  # what its socket's `sendto` takes


def test_a_socket_at_one_address_needs_no_control_messages() -> None:
    known = peers(everywhere=False, bound=("192.0.2.1", 53))
    found = known.learn(name4("192.0.2.7", 4000), 7)
    assert (found.local, found.interface, found.route.control) == (("192.0.2.1", 53), 0, b"")
    assert known.ancillary(found.route) == []
    assert known.known == {7: found}


def test_the_answer_goes_by_the_interface_and_from_the_address_that_was_asked_or_as_the_routes_say() -> None:
    known = peers(pin=True)
    route = known.learn(name4("192.0.2.7", 4000) + asked4("192.0.2.1", 3)).route
    [(level, kind, content)] = known.ancillary(route)
    assert (level, kind) == (socket.IPPROTO_IP, 8)
    assert content == struct.pack("=i", 3) + socket.inet_aton("192.0.2.1") * 2
    [(_, _, anywhere)] = known.ancillary(route, any_interface=True)
    assert anywhere == bytes(4) + content[4:]
    known = peers(V6, pin=True)
    route = known.learn(name6("2001:db8::7", 4000) + asked6("2001:db8::1", 3)).route
    [(level, kind, content)] = known.ancillary(route)
    assert (level, kind) == (socket.IPPROTO_IPV6, 50)
    assert content == socket.inet_pton(V6, "2001:db8::1") + struct.pack("=i", 3)
    [(_, _, anywhere)] = known.ancillary(route, any_interface=True)
    assert anywhere == content[:16] + bytes(4)


def test_only_link_local_peers_and_groups_are_answered_by_the_same_interface_of_themselves() -> None:
    for host, index in (("192.0.2.1", 0), ("169.254.0.1", 3)):
        found = peers().learn(name4("192.0.2.7", 4000) + asked4(host, 3))
        assert found.interface == 3
        assert peers().ancillary(found.route)[0][2] == struct.pack("=i", index) + socket.inet_aton(host) * 2
    for host, index in (("2001:db8::1", 0), ("fe80::1", 3)):
        found = peers(V6).learn(name6("2001:db8::7", 4000) + asked6(host, 3))
        assert found.interface == 3
        assert peers(V6).ancillary(found.route)[0][2] == socket.inet_pton(V6, host) + struct.pack("=i", index)


def test_what_is_no_message_about_our_address_is_not_taken_for_one() -> None:
    other = struct.pack("=qii", 32, socket.SOL_SOCKET, 29).ljust(32, b"t")  # SCM_TIMESTAMP has come in its place
    found = peers().learn(name4("192.0.2.7", 4000) + other)
    assert found.interface == 0
    assert peers().ancillary(found.route)[0][2] == bytes(12)


@pytest.mark.parametrize("group", ["ff02::1", "ff05::7:7", "::ffff:239.1.2.3"])
def test_no_answer_leaves_from_a_groups_address(group: str) -> None:
    known = peers(V6)
    found = known.learn(name6("2001:db8::7", 4000) + asked6(group, 3))
    assert found.local[0] == group
    [(_, _, content)] = known.ancillary(found.route)
    unspecified = "::ffff:0.0.0.0" if "." in group else "::"
    assert content == socket.inet_pton(V6, unspecified) + struct.pack("=i", 3)


def test_a_group_over_ipv4_is_told_apart_from_our_address_by_the_kernel() -> None:
    found = peers().learn(name4("192.0.2.7", 4000) + asked4("239.1.2.3", 3, "192.0.2.1"))
    assert found.local == ("239.1.2.3", 53)
    assert peers().ancillary(found.route)[0][2][4:8] == socket.inet_aton("192.0.2.1")


@given(host=some.ip_addresses(v=4), port=PORTS, ours=some.ip_addresses(v=4), interface=INTERFACES)
def test_a_message_of_its_own_says_the_same_as_one_of_a_batch_over_ipv4(
    host: Any, port: int, ours: Any, interface: int
) -> None:
    batched, single = peers(), peers()
    control = asked4(str(ours), interface)
    first = batched.learn(name4(str(host), port) + control)
    again = single.of((str(host), port), [(socket.IPPROTO_IP, 8, control[16:28])])
    assert (first, first.local, first.interface) == (again, again.local, again.interface)
    assert (first.route.raw, first.route.control) == (again.route.raw, again.route.control)
    assert list(batched.known) == list(single.known)


@given(
    host=some.ip_addresses(v=6), port=PORTS, ours=some.ip_addresses(v=6), interface=INTERFACES, unmap=some.booleans()
)
def test_a_message_of_its_own_says_the_same_as_one_of_a_batch_over_ipv6(
    host: Any, port: int, ours: Any, interface: int, unmap: bool
) -> None:
    batched, single = peers(V6, unmap=unmap), peers(V6, unmap=unmap)
    control = asked6(str(ours), interface)
    first = batched.learn(name6(str(host), port, 0, 7) + control)
    again = single.of((str(host), port, 0, 7), [(socket.IPPROTO_IPV6, 50, control[16:36])])
    assert (first, first.local, first.interface) == (again, again.local, again.interface)
    assert (first.route.raw, first.route.control) == (again.route.raw, again.route.control)


def test_who_asks_several_of_our_addresses_is_known_by_name_as_whom_he_asked_last() -> None:
    known = peers()
    one = known.learn(name4("192.0.2.7", 4000) + asked4("192.0.2.1"))
    assert known.last is None  # nothing to be kept up to date
    two = known.learn(name4("192.0.2.7", 4000) + asked4("192.0.2.2"))
    assert known.named(("192.0.2.7", 4000)) is two
    known.heard(one)
    assert known.named(("192.0.2.7", 4000)) is one
    known.heard_all([(b"", one), (b"", two)])
    assert known.named(("192.0.2.7", 4000)) is two
    assert known.named(("192.0.2.8", 4000)) is None


def test_those_that_are_remembered_are_bounded() -> None:
    known = peers()
    first = known.learn(name4("127.0.0.1", 1) + asked4("127.0.0.1"))
    for number in range(20_000):
        known.learn(name4(f"10.0.{number >> 8}.{number & 255}", 1) + asked4("127.0.0.1"))
        assert len(known.known) <= 4096
    assert len(known._by_name) <= 4096
    assert first.local == ("127.0.0.1", 53)  # whoever has it still can answer
    assert type(first) is PeerAddress
    assert first.route.peers is known

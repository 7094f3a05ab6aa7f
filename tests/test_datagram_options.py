"""Where datagrams come and go: by which address and interface, to groups and broadcasts, with which options."""

from __future__ import annotations

import contextvars
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import portico
from portico.lifecycle import BufferShort

from .packets import EVERY, EVERY_WAY, answer, ask, heard, made, peer, serving, silent, waits_for

PORT = 1
IP_PKTINFO, IP_RECVTOS, IP_RECVTTL = 8, 13, 12
MANNERS = ("sock", "server.socket", "tuple", "tuple with flags", "wfile", "later")


async def in_that_manner(handler: Any) -> None:
    """Answers in the manner that it is asked for, with the address that it was asked at."""
    manner, sender = handler.request[0].decode(), handler.client_address
    text = f"{sender.local[0]} {sender.local[1]} {sender.interface}".encode()
    if manner == "sock":
        await answer(handler, text)
    elif manner == "server.socket":
        handler.server.socket.sendto(text, sender)
    elif manner == "tuple":
        await answer(handler, text, (sender[0], *sender[1:]))
    elif manner == "tuple with flags":
        await answer(handler, text, 0, (sender[0], *sender[1:]))
    elif manner == "wfile":
        handler.wfile.write(text)
    elif manner == "later":
        later = threading.Thread(target=lambda: handler.server.socket.sendto(text, sender))
        later.start()
        later.join()


def base_of(way: str) -> Any:
    return portico.AsyncDatagramRequestHandler if way.startswith("async") else portico.DatagramRequestHandler


@pytest.mark.parametrize("kind", ["IPv4", "dual stack", "dual stack, unmapped", "hooked"])
@EVERY_WAY
def test_an_answer_leaves_from_where_the_request_came_to(way: str, kind: str) -> None:
    values: dict[str, Any] = {"address": ("0.0.0.0", 0)}
    ours = ["127.0.0.1", "127.0.0.2", "127.0.0.9"]
    if kind.startswith("dual"):
        values = {"address": ("::", 0), "dual_stack": True, "unmap_ipv4": "unmapped" in kind}
        ours.append("::1")
    if kind == "hooked":
        values["members"] = {
            "get_request": lambda self: portico.UDPServer.get_request(self),
            "verify_request": lambda self, request, client_address: True,
        }
    loopback = str(socket.if_nametoindex("lo"))
    with serving(way, in_that_manner, base=base_of(way), **values) as server, peer() as four, peer("::1") as six:
        port = server.server_address[PORT]
        for manner in MANNERS:
            for host in (*ours, *reversed(ours)):
                client = six if ":" in host else four
                client.sendto(manner.encode(), (host, port))
                text, sender = client.recvfrom(100)
                assert sender[:2] == (host, port), manner
                mapped = kind == "dual stack" and ":" not in host
                assert text.decode().split() == ["::ffff:" * mapped + host, str(port), loopback]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1"])
@EVERY_WAY
def test_a_server_at_one_address_knows_that_it_is_this(way: str, host: str) -> None:
    with serving(way, in_that_manner, address=(host, 0), base=base_of(way)) as server, peer(host) as client:
        for manner in MANNERS:
            assert ask(client, manner.encode(), server.server_address).decode().split()[0] == host


@pytest.mark.parametrize("how", ["handle_request", "fd", "overridden", "mapped"])
def test_sockets_that_are_received_from_otherwise_know_it_too(how: str) -> None:
    members: dict[str, Any] = {}
    if how == "overridden":  # as many programs have it

        def server_bind(self: Any) -> None:
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()

        members = {"server_bind": server_bind, "server_activate": lambda self: None}
    address: Any = ("0.0.0.0", 0)
    if how == "mapped":
        address, members = ("::ffff:0.0.0.0", 0), {"address_family": socket.AF_INET6, "dual_stack": True}
    if how == "fd":
        with socket.socket(type=socket.SOCK_DGRAM) as bound:
            bound.bind(address)
            address = f"fd://{bound.detach()}"
    server = made("plain", in_that_manner, address=address, members=members)
    to = ("127.0.0.5", server.server_address[PORT])
    with peer() as client:
        if how == "handle_request":
            with server:
                for _ in range(2):
                    client.sendto(b"sock", to)
                    server.handle_request()
                    assert client.recvfrom(100)[1] == to
        else:
            with server.background():
                for _ in range(20):
                    client.sendto(b"sock", to)
                    if client.recvfrom(100)[1] == to:  # the first ones may have come before it was asked where to
                        return
                raise AssertionError("from another address")


def test_an_address_is_a_tuple_in_all_else() -> None:
    import copy
    import pickle

    seen: list[Any] = []

    async def note(handler: Any) -> None:
        seen.append(handler.client_address)
        await answer(handler, b"")

    with serving("plain", note) as server, peer() as client:
        ask(client, b"", server.server_address)
    [address] = seen
    assert address == client_name(address)
    assert (isinstance(address, tuple), repr(address)) == (True, repr(tuple(address)))
    assert hash(address) == hash(tuple(address))
    for again in (copy.copy(address), copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert (type(again), again) == (tuple, tuple(address))


def client_name(address: Any) -> Any:
    return ("127.0.0.1", address[1])


def link_local() -> tuple[str, str]:
    """A link-local address of this machine, and its interface."""
    with open("/proc/net/if_inet6") as file:
        for line in file:
            digits, *_, name = line.split()
            if digits.startswith("fe80"):
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), name
    pytest.skip("needs a link-local address")


@pytest.mark.parametrize("bound_to", ["::", "its own"])
@pytest.mark.parametrize("way", ["plain", "threads", "green-asyncio", "async-uvloop"])
def test_link_local_addresses_keep_their_scope(way: str, bound_to: str) -> None:
    host, name = link_local()
    index = socket.if_nametoindex(name)
    address: Any = ("::", 0, 0, 0) if bound_to == "::" else (host, 0, 0, index)
    seen: list[Any] = []

    async def note(handler: Any) -> None:
        seen.append((tuple(handler.client_address), tuple(handler.client_address.local)))
        await answer(handler, handler.request[0])

    with (
        serving(way, note, address=address, members={"address_family": socket.AF_INET6}) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        client.bind((host, 0, 0, index))
        client.settimeout(10)
        port = server.server_address[PORT]
        for _ in range(3):
            client.sendto(b"x", (host, port, 0, index))
            payload, sender = client.recvfrom(10)
            assert (payload, tuple(sender)) == (b"x", (f"{host}%{name}" if "%" in sender[0] else host, port, 0, index))
        assert [(who[1], who[3], local[1], local[3]) for who, local in seen] == [
            (client.getsockname()[1], index, port, index)
        ] * 3


# -- groups and broadcasts


@pytest.mark.parametrize("group", ["239.7.7.7%127.0.0.1", "239.7.7.7%lo", "ff02::7:7"])
@EVERY_WAY
def test_a_group_is_joined_and_answered_from_an_address_of_ours(way: str, group: str) -> None:
    values: dict[str, Any] = {"address": ("0.0.0.0", 0), "multicast_groups": [group]}
    if six := ":" in group:
        ours, name = link_local()
        values = {"address": ("::", 0), "multicast_groups": f"{group}%{name}"}
        bound: Any = (ours, 0, 0, socket.if_nametoindex(name))
        via = (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(name).to_bytes(4, sys.byteorder))
    else:
        ours, bound = "127.0.0.1", ("127.0.0.1", 0)
        via = (socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    with (
        serving(way, in_that_manner, base=base_of(way), **values) as server,
        socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        client.bind(bound)
        client.setsockopt(*via)
        for manner in ("sock", "wfile", "tuple"):
            client.sendto(manner.encode(), (group.partition("%")[0], server.server_address[PORT]))
            text, sender = client.recvfrom(100)
            assert (sender[0].partition("%")[0], sender[PORT]) == (ours, server.server_address[PORT])
            assert text.split()[0].decode() == group.partition("%")[0]


def test_a_group_on_an_interface_that_is_not_there() -> None:
    with pytest.raises(OSError, match=r"cannot join the multicast group 239\.7\.7\.7%192\.0\.2\.77: "):
        made("plain", multicast_groups="239.7.7.7%192.0.2.77")
    with pytest.raises(portico.SettingError, match="is an IPv6 group, and the server's socket is an IPv4 one"):
        made("plain", multicast_groups=["ff05::7"])
    with pytest.raises(portico.SettingError, match="is no multicast address"):
        made("plain", multicast_groups=["127.0.0.1"])


@pytest.mark.parametrize("broadcast", [True, False])
def test_broadcasts_are_sent_where_they_are_allowed(broadcast: bool) -> None:
    async def shout(handler: Any) -> None:
        try:
            await answer(handler, b"all", ("127.255.255.255", int(handler.request[0])))
        except PermissionError:
            await answer(handler, b"not allowed")

    with socket.socket(type=socket.SOCK_DGRAM) as everybody, peer() as client:
        everybody.bind(("0.0.0.0", 0))
        everybody.settimeout(10)
        with serving("plain", shout, broadcast=broadcast) as server:
            client.sendto(b"%d" % everybody.getsockname()[1], server.server_address)
            assert (everybody if broadcast else client).recv(20) == (b"all" if broadcast else b"not allowed")


def test_a_broadcast_is_answered_from_an_address_of_ours() -> None:
    with serving("plain", in_that_manner, address=("0.0.0.0", 0)) as server, peer() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"sock", ("127.255.255.255", server.server_address[PORT]))
        text, sender = client.recvfrom(100)
        assert sender == ("127.0.0.1", server.server_address[PORT])
        assert text.split()[0] == b"127.255.255.255"


# -- what goes with each packet


@pytest.fixture
def told() -> Iterator[Any]:
    """A client that sees TTL and TOS of what it gets."""
    with peer() as client:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        client.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)

        def receive() -> dict[int, int]:
            return {kind: data[0] for _, kind, data in client.recvmsg(100, 100)[1]}

        yield client, receive


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
@EVERY_WAY
def test_ttl_and_tos_are_those_of_all_answers(way: str, host: str, told: Any) -> None:
    client, receive = told
    values: dict[str, Any] = {"dual_stack": True} if host == "::" else {}
    server = made(way, address=(host, 0), ttl=7, tos="EF", **values)
    to = ("127.0.0.1", server.server_address[PORT])
    client.sendto(b"1", to)
    client.sendto(b"2", to)
    with server.background():
        assert [receive(), receive()] == [{socket.IP_TTL: 7, socket.IP_TOS: 46 << 2}] * 2


@pytest.mark.parametrize("way", ["plain", "threads", "green-asyncio", "async-asyncio"])
def test_an_option_that_a_handler_sets_for_its_answer_holds_for_that_one(way: str, told: Any) -> None:
    client, receive = told

    async def short(handler: Any) -> None:
        sock = handler.request[1]
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, int(handler.request[0]))
        await answer(handler, b"x")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        await answer(handler, b"x")

    server = made(way, short)
    waits_for(server, [b"5"] if way == "threads" else [b"5", b"6", b"7"], client)
    with server.background():
        seen = [receive()[socket.IP_TTL] for _ in range(2 if way == "threads" else 6)]
    assert seen == [5, 64, 6, 64, 7, 64][: len(seen)]


@pytest.mark.parametrize(("name", "option"), [("recv", socket.SO_RCVBUF), ("send", socket.SO_SNDBUF)])
def test_buffers_are_as_large_as_the_kernel_gives_and_it_is_told_if_that_is_less(name: str, option: int) -> None:
    events: list[Any] = []
    members = {"handle_event": lambda self, event: events.append(event)}
    with made("plain", members=members, **{f"{name}_buffer_size": 50_000}) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, option) == 100_000  # Linux doubles it, for its own use
    assert [event for event in events if isinstance(event, BufferShort)] == []
    with made("plain", members=members, **{f"{name}_buffer_size": 1 << 29}) as server:
        given = server.socket.getsockopt(socket.SOL_SOCKET, option) // 2
    sysctl = f"net.core.{'rmem' if name == 'recv' else 'wmem'}_max"
    [short] = [event for event in events if isinstance(event, BufferShort)]
    assert (short.setting, short.wanted, short.given, short.sysctl) == (f"{name}_buffer_size", 1 << 29, given, sysctl)


def test_a_short_buffer_is_logged_with_the_sysctl(caplog: pytest.LogCaptureFixture) -> None:
    with made("plain", recv_buffer_size=1 << 29):
        pass
    assert "raise the sysctl net.core.rmem_max" in caplog.records[0].getMessage()


# -- adopted sockets


@pytest.mark.parametrize("way", EVERY)
def test_a_socket_that_somebody_has_made_is_served_as_it_is(way: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as own, peer() as client:
        own.bind(("127.0.0.1", 0))
        with serving(way, address=own) as server:
            assert server.socket is own
            for number in range(5):
                assert ask(client, b"%d" % number, own.getsockname()) == b"%d" % number


@pytest.mark.parametrize("way", ["plain", "threads", "green-uvloop", "async-asyncio"])
def test_a_socket_put_in_the_servers_place(way: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as own, peer() as client:
        own.bind(("127.0.0.1", 0))
        server = made(way)
        with server.socket:
            pass
        server.socket = own
        with server.background():
            client.sendto(b"a", own.getsockname())
            client.sendto(b"b", own.getsockname())
            assert sorted(heard(client, 2)) == [b"a", b"b"]


@pytest.mark.parametrize("way", EVERY)
def test_a_socket_with_a_timeout(way: str) -> None:
    server = made(way)
    server.socket.settimeout(0.5)
    with server.background(), peer() as client:
        for number in range(20):
            client.sendto(b"%d" % number, server.server_address)
        assert sorted(map(int, heard(client, 20))) == list(range(20))
        assert silent(client)


KNOWN: contextvars.ContextVar[str] = contextvars.ContextVar("KNOWN", default="nobody's")


@EVERY_WAY
def test_context_variables_of_one_request_are_not_the_next_ones(way: str) -> None:
    async def note(handler: Any) -> None:
        found = KNOWN.get()
        if handler.request[0] != b"only looks":
            KNOWN.set("another one's")
        await answer(handler, found.encode())

    server = made(way, note)
    with peer() as client:
        waits_for(server, [b"x", b"only looks", b"x", b"x", b"only looks"], client)
        with server.background():
            answers = heard(client, 5)
    assert set(answers) == ({b"nobody's"} if way != "plain" else {b"nobody's", b"another one's"})

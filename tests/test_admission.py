"""Rules of `portico.admission`, against `ipaddress`, a plain token bucket, and a million addresses."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import threading
import tracemalloc
from collections import deque
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import portico
from portico._budget import budget
from portico.admission import (
    UNANNOUNCED,
    Admission,
    ClientRates,
    Networks,
    Rate,
    Trusted,
    check,
    client_key,
    user_ids,
)
from portico.errors import SettingError

PACKAGE = portico.__path__[0]


def server(**values: Any) -> SimpleNamespace:
    """What has a server's settings: all at their defaults but these."""
    names = (
        "max_connections max_connections_per_client connection_rate connection_burst connection_rate_per_client "
        "connection_burst_per_client allow deny connections_alarm allow_uids allow_gids"
    )
    defaults: dict[str, Any] = dict.fromkeys(names.split())
    defaults |= {"client_prefix_ipv4": 32, "client_prefix_ipv6": 64, "max_tracked_clients": 65536}
    assert set(values) <= set(defaults)
    return SimpleNamespace(**defaults | values)


def admission(**values: Any) -> Admission:
    made = Admission.of(server(**values))
    assert made is not None
    return made


# Few different bits, so that networks nest, meet and are hit: a dozen at the top, and a few at the bottom.
def numbers(width: int) -> st.SearchStrategy[int]:
    return st.builds(lambda top, low: top << (width - 6) | low, st.integers(0, 63), st.integers(0, 7))


def networks_of(width: int) -> st.SearchStrategy[IPv4Network | IPv6Network]:
    kind: Any = IPv4Network if width == 32 else IPv6Network
    lengths = st.one_of(st.integers(0, 8), st.integers(width - 4, width))
    return st.builds(lambda number, length: kind((number, length), strict=False), numbers(width), lengths)


V4 = st.builds(IPv4Address, numbers(32))
V6 = st.builds(IPv6Address, numbers(128))
NETWORKS = st.lists(st.one_of(networks_of(32), networks_of(128)), min_size=1, max_size=12)
HOSTS = st.lists(st.one_of(V4, V6), min_size=1, max_size=20)


def mapped(host: IPv4Address) -> str:
    return f"::ffff:{host}"


def contained(host: IPv4Address | IPv6Address, networks: list[Any]) -> bool:
    return any(host.version == network.version and host in network for network in networks)


# Networks.


@given(NETWORKS, HOSTS)
def test_a_host_is_in_networks_as_ipaddress_says(networks: list[Any], hosts: list[Any]) -> None:
    ours = Networks.parse([str(network) for network in networks])
    for edge in networks:
        hosts += [edge[0], edge[-1]]
        hosts += [type(edge[0])(n) for n in (int(edge[0]) - 1, int(edge[-1]) + 1) if 0 <= n < 1 << edge.max_prefixlen]
    for host in hosts:
        assert (str(host) in ours) is contained(host, networks)
        assert (host.exploded in ours) is contained(host, networks)
        if host.version == 4:
            assert (mapped(host) in ours) is contained(host, networks)
            assert (IPv6Address(mapped(host)).exploded in ours) is contained(host, networks)


@given(st.lists(networks_of(32), min_size=1, max_size=8), st.lists(V4, min_size=1))
def test_a_mapped_network_means_the_ipv4_one(networks: list[IPv4Network], hosts: list[IPv4Address]) -> None:
    plain = Networks.parse([str(network) for network in networks])
    ours = Networks.parse([f"{mapped(network[0])}/{96 + network.prefixlen}" for network in networks])
    assert plain.covers(ours)
    assert ours.covers(plain)
    for host in hosts:
        assert (str(host) in ours) is contained(host, networks) is (mapped(host) in ours)


@given(NETWORKS, NETWORKS)
def test_covering_is_that_all_of_the_others_are_inside(mine: list[Any], theirs: list[Any]) -> None:
    def collapsed(networks: list[Any]) -> list[Any]:
        return [n for version in (4, 6) for n in collapse_addresses(n for n in networks if n.version == version)]

    whole = collapsed(mine)
    expected = all(any(a.version == b.version and a.subnet_of(b) for b in whole) for a in collapsed(theirs))
    assert Networks.parse([*map(str, mine)]).covers(Networks.parse([*map(str, theirs)])) is expected


@given(st.one_of(st.text(max_size=20), st.text("0123456789abcdef.:/% ", max_size=20)))
@example("1.2.3.4\0")
@example("\ud800")
@example("010.1.2.3")
@example("1.2.3.4%eth0")
@example("")
def test_a_host_is_an_address_only_if_ipaddress_says_so(text: str) -> None:
    try:
        ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        assert text not in Networks.parse("0.0.0.0/0, ::/0")
    else:
        assert text in Networks.parse("0.0.0.0/0, ::/0")


def test_a_scope_is_ignored_and_what_has_no_text_is_in_no_network() -> None:
    link = Networks.parse("fe80::/10")
    assert "fe80::1%eth0" in link
    assert "fe80::1" in link
    for host in (None, 0, b"fe80::1", ("uid", 0), "", "localhost"):
        assert host not in Networks.parse(("0.0.0.0/0", "::/0"))


def test_all_of_ipv6_is_not_ipv4() -> None:
    everything = Networks.parse("::/0")
    assert "::" in everything
    assert "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" in everything
    assert "1.2.3.4" not in everything
    assert "::ffff:1.2.3.4" not in everything
    assert not everything.covers(Networks.parse("10.0.0.0/8"))


def test_a_text_with_commas_is_a_list() -> None:
    networks = Networks.parse(" 10.0.0.0/8 ,192.0.2.1,\t2001:db8::/32")
    assert all(host in networks for host in ("10.255.255.255", "192.0.2.1", "2001:db8:ffff::"))
    assert not any(host in networks for host in ("11.0.0.0", "192.0.2.0", "192.0.2.2", "2001:db9::"))


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has bits set after its prefix of 8"),
        (["10.0.0.0/8", "2001:db8::1/32"], "'2001:db8::1/32' has bits set after its prefix of 32"),
        ("::ffff:0.0.0.0/0", "has bits set after its prefix of 0"),
        ("::ffff:10.0.0.0/8", "has bits set after its prefix of 8"),
        ("::ffff:0.0.0.0/95", "has bits set after its prefix of 95"),
        ("10.0.0.0/33", "'10.0.0.0/33' has a prefix that is no number from 0 to 32"),
        ("::/129", "'::/129' has a prefix that is no number from 0 to 128"),
        ("10.0.0.0/", "has a prefix"),
        ("10.0.0.0/-1", "has a prefix"),
        ("10.0.0.0/+8", "has a prefix"),
        ("10.0.0.0/8/8", "has a prefix"),
        ("10.0.0.0/255.0.0.0", "has a prefix"),
        ("10.0.0.0/\u0668", "has a prefix"),
        ("10.0.0.0/" + "9" * 5000, "has a prefix"),
        ("10.0.0.0/8,", "'' is no network"),
        (["10.0.0.0/8", "localhost"], "'localhost' is no network"),
        ("010.0.0.0/8", "'010.0.0.0/8' is no network"),
        ("fe80::%eth0/64", "'fe80::%eth0/64' is no network"),
        (["10.0.0.0/8", 5], "5 is no text"),
        ([b"10.0.0.0/8"], "is no text"),
        ([], r"\[\] is no list of networks"),
        ("", "'' is no network"),
        (None, "None is no list of networks"),
        (5, "5 is no list of networks"),
        ({"10.0.0.0/8": 1}, "is no list of networks, and no text with commas"),
    ],
)
def test_what_is_no_network_is_named_with_what_is(value: Any, wrong: str) -> None:
    with pytest.raises(SettingError, match=wrong) as caught:
        Networks.parse(value, "deny")
    assert str(caught.value).startswith("deny")
    assert '"10.0.0.0/8"' in str(caught.value)


# Clients.


@given(st.one_of(V4, V6), st.one_of(V4, V6), st.integers(0, 32), st.integers(0, 128))
def test_one_client_is_one_network(one: Any, other: Any, prefix4: int, prefix6: int) -> None:
    def network(host: Any) -> Any:
        return (
            IPv4Network((host, prefix4), strict=False)
            if host.version == 4
            else IPv6Network((host, prefix6), strict=False)
        )

    def key(host: Any) -> Any:
        return client_key(str(host), prefix4, prefix6)

    assert (key(one) == key(other)) is (network(one) == network(other))
    if one.version == 4:
        assert client_key(mapped(one), prefix4, prefix6) == key(one)
        assert client_key(IPv6Address(mapped(one)).exploded, prefix4, prefix6) == key(one)


@given(st.one_of(V4, V6), st.integers(0, 128), st.integers(0, 128))
def test_keys_of_different_lengths_differ(host: Any, one: int, other: int) -> None:
    if host.version == 4:
        one, other = one % 33, other % 33
    keys = {client_key(str(host), length, length) for length in (one, other)}
    assert len(keys) == len({one, other})


def test_a_whole_ipv4_address_is_its_own_key_and_so_is_what_is_no_address() -> None:
    for host in ("192.0.2.1", "", "localhost", "no:address", ("uid", 1000), None):
        assert client_key(host, 32, 64) is host
    assert client_key("fe80::1%eth0", 32, 128) == client_key("fe80::1%eth1", 32, 128)


# Rates.


@given(
    st.floats(0.01, 10_000),
    st.integers(1, 50),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), max_size=100),
    st.floats(0, 1e6),
)
def test_a_rate_is_a_token_bucket(per_second: float, burst: int, gaps: list[float], now: float) -> None:
    """Gaps are in intervals. Where the model is within rounding of a whole token, either answer is right."""
    rate, room = Rate(per_second, burst), burst + 0.001
    tat, tokens = Rate.FULL, room
    for gap in gaps:
        now += gap / per_second
        tokens = min(room, tokens + gap)
        wait = rate.wait(tat, now)
        assert wait == pytest.approx(max(0.0, (1 - tokens) / per_second), abs=1e-7)
        assert (wait == 0.0) is (tokens >= 1) or abs(tokens - 1) < 1e-7 * per_second + 1e-9
        if wait == 0.0:
            tat = rate.next(tat, now)
            tokens -= 1


@given(st.floats(0.01, 1000), st.integers(1, 200), st.floats(0, 1e6))
def test_rounding_takes_none_off_a_burst_and_adds_none(per_second: float, burst: int, now: float) -> None:
    rate, tat = Rate(per_second, burst), Rate.FULL
    for _ in range(burst):
        assert rate.wait(tat, now) == 0.0
        tat = rate.next(tat, now)
    assert rate.wait(tat, now) == pytest.approx(1 / per_second, rel=0.01, abs=1e-7)


@pytest.mark.parametrize(("per_second", "burst"), [(0.1, 1), (1, 1), (5, 5), (100, 100)])
def test_a_burst_is_one_seconds_worth_and_at_least_one(per_second: float, burst: int) -> None:
    rate, tat = Rate(per_second), Rate.FULL
    for _ in range(burst):
        assert rate.wait(tat, 7.0) == 0.0
        tat = rate.next(tat, 7.0)
    assert rate.wait(tat, 7.0) > 0.0


def test_a_million_clients_take_no_more_memory_than_is_said() -> None:
    """Traced for the first of them, in which the table is filled and made anew: tracing all takes ten times as long."""
    clients = ClientRates(Rate(1), 65536)
    tracemalloc.start()
    try:
        for number in range(1_000_000):
            clients.enter(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", number * 1e-5)
            if number == 250_000:
                kept, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            if number % 1000 == 0:
                assert len(clients) <= 65536
    finally:
        tracemalloc.stop()
    assert len(clients) == 65536
    assert 8e6 < kept < 15e6
    assert peak < 20e6


def test_a_full_table_forgets_the_idle_first_and_never_more_than_four() -> None:
    clients = ClientRates(Rate(1, burst=10), 5)
    for _ in range(8):
        clients.enter("busy", 0.0)  # full again at 8
    for name in "abcd":
        clients.enter(name, 0.0)  # full again at 1
    clients.enter("e", 2.0)
    assert len(clients) == 3  # of the four looked at, a, b and c went
    assert clients.wait("busy", 2.0) == 0.0
    for _ in range(4):
        clients.enter("busy", 2.0)
    assert clients.wait("busy", 2.0) > 0.0


def test_a_full_table_of_busy_clients_forgets_who_was_touched_longest_ago() -> None:
    clients = ClientRates(Rate(0.001), 3)
    for now, name in enumerate("abcd"):
        clients.enter(name, now)
    assert len(clients) == 3
    assert clients.wait("a", 4.0) == 0.0
    assert all(clients.wait(name, 4.0) > 0.0 for name in "bcd")
    clients.enter("b", 5.0)
    clients.enter("e", 6.0)
    assert clients.wait("c", 7.0) == 0.0
    assert all(clients.wait(name, 7.0) > 0.0 for name in "bde")


def test_a_table_of_one_remembers_the_last() -> None:
    clients = ClientRates(Rate(1), 1)
    for number in range(100):
        clients.enter(number, 0.0)
        assert len(clients) == 1
        assert clients.wait(number, 0.0) > 0.0


# Admission.


@pytest.mark.parametrize(
    "rule",
    [
        {"allow": "10.0.0.0/8"},
        {"deny": ["10.0.0.0/8"]},
        {"max_connections": 1},
        {"max_connections_per_client": 1},
        {"connection_rate": 1},
        {"connection_rate_per_client": 0.5},
    ],
)
def test_without_a_rule_there_is_nothing_to_ask(rule: dict[str, Any]) -> None:
    assert Admission.of(server()) is None
    assert Admission.of(server(connections_alarm=5)) is None
    assert Admission.of(SimpleNamespace()) is None
    assert Admission.of(server(**rule)) is not None


def test_reasons_come_in_their_order() -> None:
    """Each rule is broken at once; with one after the other lifted, the next in the order is named."""
    rules = {
        "allow": ("10.0.0.0/8", "192.0.2.0/24"),
        "deny": ("192.0.2.0/28", "10.0.0.0/8"),
        "max_connections": (3, None),
        "max_connections_per_client": (2, None),
        "connection_rate": (0.001, None),
        "connection_rate_per_client": (0.001, None),
    }
    values: dict[str, Any] = {name: broken for name, (broken, _) in rules.items()}
    for name, (_, kept) in rules.items():
        asked = admission(**values)
        for _ in range(2):
            asked.entered("192.0.2.1", 0.0)
        assert asked.refusal("192.0.2.1", 3, 0.0) == name
        values[name] = kept
    asked = admission(**values)
    assert asked.refusal("192.0.2.1", 3, 0.0) is None


def test_networks_do_not_apply_to_clients_without_an_address() -> None:
    asked = admission(allow="10.0.0.0/8", deny="10.1.0.0/16", max_connections_per_client=1)
    assert asked.refusal("10.2.0.1", 0, 0.0) is None
    assert asked.refusal("::ffff:10.1.0.1", 0, 0.0) == "deny"
    assert asked.refusal("no address", 0, 0.0) == "allow"
    assert asked.refusal(("uid", 1000), 0, 0.0) is None
    asked.entered(("uid", 1000), 0.0)
    assert asked.refusal(("uid", 1000), 1, 0.0) == "max_connections_per_client"
    assert asked.refusal(("uid", 1001), 1, 0.0) is None


def test_a_refused_attempt_costs_nothing() -> None:
    asked = admission(
        max_connections_per_client=5, connection_rate=1, connection_rate_per_client=0.5, connection_burst=2
    )
    asked.entered("10.0.0.1", 0.0)
    for attempt in range(1000):
        assert asked.refusal("10.0.0.1", 1, 2.0 * attempt / 1001) == "connection_rate_per_client"
    assert asked.refusal("10.0.0.1", 1, 2.0) is None
    assert asked._counts == {"10.0.0.1": 1}
    assert asked.refusal("10.0.0.2", 1, 2.0) is None
    assert asked._clients is not None
    assert len(asked._clients) == 1


def test_who_enters_in_a_dry_run_takes_no_token_it_would_not_have_had() -> None:
    asked = admission(connection_rate=1, connection_rate_per_client=1)
    for _ in range(1000):
        asked.entered("10.0.0.1", 0.0)
    assert asked.refusal("10.0.0.1", 0, 0.9) == "connection_rate"
    assert asked.refusal("10.0.0.1", 0, 1.0) is None


def test_waiting_is_for_one_to_leave_or_for_the_rate() -> None:
    asked = admission(max_connections=2, connection_rate=4, connection_burst=1)
    assert asked.wait(1, 10.0) is None
    asked.entered("10.0.0.1", 10.0)
    assert asked.wait(1, 10.0) == pytest.approx(0.25, rel=0.01)
    assert asked.wait(1, 10.25) is None
    assert asked.wait(2, 10.0) == float("inf")
    assert admission(deny="10.0.0.0/8").wait(10**6, 0.0) is None


def test_one_client_is_counted_however_its_address_is_written_or_varied() -> None:
    asked = admission(max_connections_per_client=2, client_prefix_ipv4=24)
    for host in ("10.0.0.1", "::ffff:10.0.0.2", "2001:db8::1", "2001:db8::ffff:1"):
        asked.entered(host, 0.0)
    for host in ("10.0.0.3", "::ffff:10.0.0.3", "2001:db8::2"):
        assert asked.refusal(host, 4, 0.0) == "max_connections_per_client"
    asked.left("10.0.0.2")
    asked.left("2001:db8::1")
    for host in ("::ffff:10.0.0.1", "2001:db8::2", "10.0.1.1", "2001:db8:0:1::1"):
        assert asked.refusal(host, 2, 0.0) is None


def test_counts_are_bounded_by_the_connections_that_live() -> None:
    asked = admission(max_connections_per_client=3)
    live: list[str] = []
    for number in range(20_000):
        live.append(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        asked.entered(live[-1], 0.0)
        if len(live) > 100:
            asked.left(live.pop(0))
        assert len(asked._counts) == len(live)
    for host in live:
        asked.left(host)
    asked.left("10.0.0.1")  # one that was never counted
    assert asked._counts == {}


def test_connections_that_are_open_already_count_under_new_rules() -> None:
    asked = Admission.of(server(max_connections_per_client=2), live=["10.0.0.1", "10.0.0.1", ("uid", 0)])
    assert asked is not None
    assert asked.refusal("10.0.0.1", 3, 0.0) == "max_connections_per_client"
    assert asked.refusal(("uid", 0), 3, 0.0) is None
    asked.left("10.0.0.1")
    assert asked.refusal("10.0.0.1", 2, 0.0) is None


def test_connections_leave_from_any_thread() -> None:
    asked = admission(max_connections_per_client=10**6)
    hosts = [f"10.0.0.{number % 3}" for number in range(3000)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for host in hosts * 4:
            asked.entered(host, 0.0)
        threads = [threading.Thread(target=lambda: deque(map(asked.left, hosts))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for host in hosts:
            asked.entered(host, 0.0)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert asked._counts == {f"10.0.0.{number}": 1000 for number in range(3)}


# Contradictions.


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_connections_per_client": 11, "max_connections": 10}, ["11", "10"]),
        ({"connection_rate_per_client": 2.5, "connection_rate": 2}, ["2.5", "2"]),
        ({"connections_alarm": 101, "max_connections": 100}, ["101", "100"]),
        ({"connection_burst": 5}, ["5", "connection_rate", "None"]),
        ({"connection_burst_per_client": 5, "connection_rate": 9}, ["5", "connection_rate_per_client", "None"]),
        ({"deny": "0.0.0.0/0", "allow": ["10.0.0.0/8", "192.0.2.1"]}, ["0.0.0.0/0", "10.0.0.0/8", "nobody"]),
        ({"deny": "10.0.0.0/9,10.128.0.0/9", "allow": "::ffff:10.0.0.0/104"}, ["10.0.0.0/9", "nobody"]),
    ],
)
def test_contradictions_name_both_settings_and_values(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        check(server(**values))
    assert all(word in str(caught.value) for word in [*values, *words] if word != "connection_rate" or word in words)


def test_what_does_not_contradict_is_let_be() -> None:
    check(SimpleNamespace())
    check(server())
    check(server(max_connections_per_client=10, max_connections=10, connections_alarm=10))
    check(server(connection_rate_per_client=2, connection_rate=2, connection_burst=1, connection_burst_per_client=9))
    check(server(max_connections_per_client=10, connection_rate_per_client=2, connections_alarm=10))
    check(server(deny="10.0.0.0/8", allow="10.0.0.0/8, 192.0.2.1"))
    check(server(deny="0.0.0.0/0, ::/0"))


@pytest.mark.parametrize("name", ["allow", "deny"])
def test_a_wrong_network_is_told_with_its_setting(name: str) -> None:
    for ask in (check, Admission.of):
        with pytest.raises(SettingError, match=f"^{name}: 'nowhere' is no network"):
            ask(server(**{name: "nowhere"}))


# How many fit.

GIGABYTE = 1 << 30


def test_a_budget_goes_by_what_is_scarcer() -> None:
    assert budget(1024, 8 * GIGABYTE, each=10_000) == (1024 - 51, "descriptors")
    assert budget(256, 8 * GIGABYTE, each=10_000) == (256 - 32, "descriptors")
    assert budget(1024, 8 * GIGABYTE, each=10_000, reserve=24) == (1000, "descriptors")
    assert budget(1_000_000, GIGABYTE, each=1 << 20) == (512, "memory")
    assert budget(-1, GIGABYTE, each=1 << 20) == (512, "memory")
    assert budget(1024, 8 * GIGABYTE, each=10_000, reserve=24, held=2) == (500, "descriptors")


@given(st.integers(-1, 1 << 63), st.integers(0, 1 << 50), st.integers(1, 1 << 30))
def test_a_budget_is_never_below_one_nor_above_what_there_is(descriptors: int, memory: int, each: int) -> None:
    number, bound = budget(descriptors, memory, each=each)
    assert isinstance(number, int)
    assert number >= 1
    assert number == 1 or number * each <= memory // 2
    assert number == 1 or descriptors < 0 or number <= descriptors - 32
    assert bound in ("descriptors", "memory")


@given(st.lists(st.integers(0, 4000), min_size=2, max_size=6), st.integers(0, 1 << 30))
def test_a_budget_grows_with_the_limit(limits: list[int], memory: int) -> None:
    found = [budget(limit, memory, each=1 << 16)[0] for limit in sorted(limits)]
    assert all(one <= other for one, other in pairwise(found))


def test_importing_it_loads_nothing_slow() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import portico.admission; "
        "print([m for m in ('ipaddress', 'typing', 'dataclasses', 'logging', 'asyncio', 'ssl') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(PACKAGE).removesuffix("/portico")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"


# Who is believed, and clients who are known only later.


def test_the_trusted_are_networks_and_the_word_unix() -> None:
    both = Trusted("10.0.0.0/8, unix ,2001:db8::/32")
    for address in (("10.1.2.3", 1), ("::ffff:10.1.2.3", 1, 0, 0), ("2001:db8::1%eth0", 1, 0, 2), "", "/a", b"\0name"):
        assert address in both
    for address in (("11.1.2.3", 1), ("::1", 1, 0, 0), ("unix", 1), ()):
        assert address not in both
    assert "" not in Trusted("10.0.0.0/8")
    assert "" in Trusted(["unix"])
    assert ("127.0.0.1", 1) not in Trusted(("unix",))


@pytest.mark.parametrize("wrong", ["", [], "UNIX", "unix,", "10.0.0.0/33", ["unix", 5], None, 5, {"unix"}, b"unix"])
def test_what_trusts_nobody_or_nobody_that_there_is_is_refused(wrong: Any) -> None:
    with pytest.raises(SettingError, match="proxy_trusted"):
        Trusted(wrong)


def test_an_unannounced_one_counts_among_all_and_for_no_client() -> None:
    rules = admission(
        max_connections=3, max_connections_per_client=1, connection_rate=1, connection_burst=2,
        connection_rate_per_client=0.5, connection_burst_per_client=1, allow="10.0.0.0/8",
    )  # fmt: skip
    for active in (0, 1):
        assert rules.refusal(UNANNOUNCED, active, 0.0) is None
        rules.entered(UNANNOUNCED, 0.0)
    assert rules.refusal(UNANNOUNCED, 2, 0.0) == "connection_rate"
    assert rules.refusal(UNANNOUNCED, 3, 9.0) == "max_connections"
    assert rules.refusal_of_client("10.0.0.1", 0.0) is None
    rules.left(UNANNOUNCED)  # it has said nothing
    assert rules.refusal_of_client("10.0.0.1", 0.0) is None
    assert rules._counts == {}


def test_an_announced_client_is_asked_for_all_that_is_his_own() -> None:
    rules = admission(
        max_connections=1, max_connections_per_client=1, connection_rate=1, connection_rate_per_client=0.1,
        connection_burst_per_client=2, allow="10.0.0.0/8", deny="10.6.6.6",
    )  # fmt: skip
    assert rules.refusal_of_client("11.0.0.1", 0.0) == "allow"
    assert rules.refusal_of_client("10.6.6.6", 0.0) == "deny"
    assert rules.refusal_of_client(("uid", 5), 0.0) is None  # who has no network is asked for none
    rules.entered(UNANNOUNCED, 0.0)
    rules.announced("10.0.0.1", 0.0)
    assert rules.refusal_of_client("10.0.0.1", 0.0) == "max_connections_per_client"
    assert rules.refusal_of_client("10.0.0.2", 0.0) is None  # max_connections and connection_rate have been asked
    rules.left("10.0.0.1")
    assert rules.refusal_of_client("10.0.0.1", 0.0) is None
    rules.announced("10.0.0.1", 0.0)
    rules.left("10.0.0.1")
    assert rules.refusal_of_client("10.0.0.1", 0.0) == "connection_rate_per_client"
    assert rules.refusal_of_client("10.0.0.1", 10.0) is None


def test_who_is_announced_from_the_start_is_asked_and_counted_as_before() -> None:
    rules = admission(max_connections_per_client=1, connection_rate_per_client=1, connection_burst_per_client=1)
    rules.entered("10.0.0.1", 0.0)
    assert rules.refusal("10.0.0.1", 1, 0.0) == "max_connections_per_client"
    rules.left("10.0.0.1")
    assert rules.refusal("10.0.0.1", 0, 0.0) == "connection_rate_per_client"


# Users.


def test_users_and_groups_are_numbers_or_names() -> None:
    me, mine = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert user_ids([0, "7", f" {me.pw_name} "]) == {0, 7, me.pw_uid}
    assert user_ids(f"0,7,{me.pw_name}") == user_ids((0, 7, me.pw_uid)) == user_ids({0, 7, me.pw_uid})
    assert user_ids([mine.gr_name], groups=True) == {mine.gr_gid}


@pytest.mark.parametrize(
    "wrong", [[], "", None, 5, [-1], [True], [1.0], [None], ["nobody here"], ["1,2"], "0,", ["-1"], ["\u0661"]]
)
def test_what_is_no_user_is_no_setting(wrong: Any) -> None:
    for groups in (False, True):
        with pytest.raises(SettingError):
            user_ids(wrong, groups=groups)


def test_either_a_users_number_or_one_of_his_groups_lets_him_in() -> None:
    assert admission(max_connections=1).refusal_of_user(5, [5]) is None
    assert not admission(max_connections=1).asks_for_users
    users = admission(allow_uids=[5, 6])
    assert users.asks_for_users
    assert users.refusal_of_user(5, []) is None
    assert users.refusal_of_user(7, [5, 6]) == "allow_uids"
    groups = admission(allow_gids="5,6")
    assert groups.refusal_of_user(7, [1, 6]) is None
    assert groups.refusal_of_user(5, [1, 2]) == "allow_gids"
    assert groups.refusal_of_user(5, []) == "allow_gids"
    both = admission(allow_uids=[5], allow_gids=[6])
    assert both.refusal_of_user(5, []) is None
    assert both.refusal_of_user(7, [6]) is None
    assert both.refusal_of_user(7, [5]) == "allow_gids"
    assert both.refusal_of_user(-1, []) == "allow_gids"  # whom nobody knows

"""Every limit, and what comes before a handler, with a wrong value: one error that names it, and what is allowed."""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

import portico
from portico import limits, settings
from portico._scopes import RULES
from portico.opening_settings import OPENING_SETTINGS

from .contract.flavours import short_folder
from .crowds import EVERY_WAY, scene, server_class
from .loops import LOOPBACK
from .test_connection_events import no_thread_can_start
from .test_settings import BAD
from .waiting import until

NAMES = [setting.name for setting in (*limits.LIMITS, *OPENING_SETTINGS)]
NAN, INF = float("nan"), float("inf")
# Besides those of test_settings: what is no number, or is equal to a default and of the wrong type.
WORSE: dict[str, list[Any]] = {
    "max_connections": [NAN, INF, b"1", [1], 1 + 0j],
    "max_connections_per_client": [-1, NAN, INF, "1"],
    "connection_rate": [-INF, "1/s"],
    "connection_burst": [-1, NAN, INF, "5"],
    "connection_rate_per_client": [NAN, INF, True],
    "connection_burst_per_client": [-1, NAN, True, "5"],
    "client_prefix_ipv4": [-1, 32.0, True, NAN],
    "client_prefix_ipv6": [-1, 64.0, "64", INF],
    "accept_batch": ["x", None, NAN],
    "max_tracked_clients": [-1, 65536.0, True, INF, "9"],
    "allow": [[], (), "", b"10.0.0.0/8", {"10.0.0.0/8"}, [["10.0.0.0/8"]], "10.0.0.1/8", "fe80::1%lo", True],
    "deny": [[None], [[]], "300.0.0.1", "10.0.0.0/-1", "10.0.0.0/ 8", 0],
    "overload": ["", "WAIT", bytearray(b"x"), True, ["wait"]],
    "limits_dry_run": ["", 0.5, []],
    "connections_alarm": [-1, True, NAN, "5"],
    "alarm_cooldown": [NAN, INF, True],
    "max_threads": [NAN, True, INF, "4"],
    "reuse_threads": [2, 0.5],
    "thread_idle_timeout": [NAN, INF, True],
    "requests_per_thread": [-1, True, NAN, "7"],
    "idle_timeout": [NAN, INF, False],
    "connection_timeout": [NAN, True, "1"],
    "connection_jitter": [NAN, INF, False],
    "min_read_rate": [NAN, INF, True],
    "read_grace": [NAN, INF, True, "1"],
    "send_timeout": [NAN, INF, True],
    "keepalive": [NAN, INF, (10, 5), (10, 5, 3.5), (10, 0, 3), (10, 5, True), (10, NAN, 3), "10,5,3"],
    "tcp_user_timeout": [NAN, INF, True],
    "drain_timeout": [INF, False, -INF],
    "drain_spread": [NAN, INF, False],
    "grace": [NAN, INF, False],
    "access_log": ["", "TEXT", False, b"text"],
    "tls": ["", b"cert.pem", {}, []],
    "starttls": ["", 0.5, []],
    "handshake_timeout": [NAN, INF, False, [1]],
    "max_handshakes": [NAN, INF, False, [1]],
    "suppress_ragged_eofs": ["", 0.5, []],
    "tls_watch": [NAN, INF, False],
    "proxy_protocol": ["", "REQUIRED", b"off", False],
    "proxy_trusted": ["", "UNIX", b"unix", {"10.0.0.0/8"}, "10.0.0.1/8", [["unix"]], True],
    "allow_uids": ["", b"root", {"root": 0}, ["root", ""], True, [NAN]],
    "allow_gids": [{"root": 0}, ["root", ""], True, [[0]], "0, -1"],
}
WRONG = [(name, value) for name in NAMES for value in [*BAD[name], *WORSE[name]]]
WORDS = [
    ("accept_batch", "8", 8),
    ("max_connections", "10", 10), ("max_connections_per_client", "none", None), ("connection_rate", "2.5", 2.5),
    ("connection_burst", "7", 7), ("connection_rate_per_client", "1e-3", 0.001),
    ("connection_burst_per_client", "1", 1), ("client_prefix_ipv4", "24", 24), ("client_prefix_ipv6", "128", 128),
    ("max_tracked_clients", "1", 1), ("allow", "10.0.0.0/8,::1", "10.0.0.0/8,::1"), ("deny", "none", None),
    ("overload", "wait", "wait"), ("limits_dry_run", "yes", True), ("connections_alarm", "9", 9),
    ("alarm_cooldown", "0", 0.0), ("max_threads", "64", 64), ("reuse_threads", "on", True),
    ("thread_idle_timeout", "0.5", 0.5), ("requests_per_thread", "1000", 1000), ("idle_timeout", "60", 60.0),
    ("connection_timeout", "none", None), ("connection_jitter", "0", 0.0), ("min_read_rate", "100", 100.0),
    ("read_grace", "1", 1.0), ("send_timeout", "30", 30.0), ("keepalive", "60", 60.0),
    ("keepalive", "10,2.5,3", (10, 2.5, 3)), ("tcp_user_timeout", "9", 9.0),
    ("drain_timeout", "30", 30.0), ("drain_spread", "5", 5.0), ("grace", "0", 0.0), ("access_log", "text", "text"),
    ("tls", "none", None), ("starttls", "no", False), ("handshake_timeout", "5", 5.0), ("max_handshakes", "9", 9),
    ("suppress_ragged_eofs", "off", False), ("tls_watch", "1", 1.0), ("proxy_protocol", "required", "required"),
    ("proxy_trusted", "unix, 10.0.0.0/8", "unix, 10.0.0.0/8"), ("allow_uids", "root", "root"),
    ("allow_gids", "0, root", "0, root"),
]  # fmt: skip
CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"max_connections": 2, "max_connections_per_client": 3}, ["max_connections_per_client", "3", "2"]),
    ({"connection_rate": 1, "connection_rate_per_client": 2.5}, ["connection_rate_per_client", "2.5", "1"]),
    ({"max_connections": 2, "connections_alarm": 3}, ["connections_alarm", "3", "2"]),
    ({"connection_burst": 4}, ["connection_burst", "4", "connection_rate"]),
    ({"connection_burst_per_client": 4, "connection_rate": 5}, ["connection_burst_per_client", "4"]),
    ({"allow": ["10.0.0.0/8", "::1"], "deny": "::/0, 0.0.0.0/0"}, ["deny", "allow", "nobody"]),
    ({"idle_timeout": 2, "connection_timeout": 1}, ["idle_timeout", "2", "1"]),
    ({"drain_spread": 40}, ["drain_spread", "40", "30"]),
    ({"requests_per_thread": 4}, ["requests_per_thread", "reuse_threads"]),
    ({"proxy_protocol": "optional"}, ["proxy_protocol", "optional", "proxy_trusted"]),
    ({"proxy_trusted": "unix"}, ["proxy_trusted", "proxy_protocol"]),
    ({"starttls": True}, ["starttls", "tls"]),
]


NOWHERE: list[tuple[str, dict[str, Any], str]] = [
    *(("UDP", {name: value}, "datagrams") for name, value in (
        ("allow_uids", [0]), ("min_read_rate", 1), ("send_timeout", 1.0), ("keepalive", 9), ("tcp_user_timeout", 9),
    )),
    *(("UDP", {name: value}, "sessions=True") for name, value in (
        ("max_connections", 5), ("max_connections_per_client", 5), ("connections_alarm", 5), ("idle_timeout", 5),
        ("connection_timeout", 5), ("session_timeout", 5), ("session_queue", 5), ("max_sessions", 5),
    )),
    ("TCP", {"allow_uids": [0]}, "allow, deny"),
    ("TCP", {"allow_gids": "root"}, "allow, deny"),
    ("UnixStream", {"allow": "10.0.0.0/8"}, "allow_uids, allow_gids"),
    ("UnixStream", {"deny": ["::1"]}, "allow_uids, allow_gids"),
    ("UnixDatagram", {"allow": "10.0.0.0/8"}, "IP addresses, which the clients of this server do not have"),
]  # fmt: skip
"""Limits that could never hold there, and what is said of them."""


def made(**members: Any) -> Any:
    return type("Mine", (portico.ThreadingTCPServer,), members)


def refused(make: Callable[[], Any]) -> str:
    """The message with which a server is not made."""
    with pytest.raises(portico.SettingError) as caught:
        make()
    return str(caught.value)


def test_every_limit_is_here() -> None:
    assert set(WORSE) == set(NAMES)
    assert {name for name, _, _ in WORDS} == set(NAMES)


@pytest.mark.parametrize("how", ["keyword", "class", "instance"])
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value))
def test_a_wrong_value_is_refused_wherever_it_is_set(name: str, value: Any, how: str) -> None:
    if how == "keyword":
        said = refused(lambda: made()(LOOPBACK, lambda *_: None, **{name: value}))
    elif how == "class":
        said = refused(lambda: made(**{name: value})(LOOPBACK, lambda *_: None))
    else:

        class Mine(portico.ThreadingTCPServer):
            def __init__(self) -> None:
                setattr(self, name, value)
                super().__init__(LOOPBACK, lambda *_: None)

        said = refused(Mine)
    assert said.startswith((f"{name} must be ", f"{name}: "))
    assert settings.ALL[name].kind.allowed in said
    assert repr(value) in said


@EVERY_WAY
def test_class_attributes_are_checked_for_every_way_to_run(way: str) -> None:
    for name in ("max_connections", "connection_rate"):
        members: dict[str, Any] = {name: -1}
        assert name in refused(lambda: server_class(way, **members)(LOOPBACK, print))  # noqa: B023


@pytest.mark.parametrize("how", ["keyword", "class", "mixed"])
@pytest.mark.parametrize(("values", "named"), CONTRADICTIONS, ids=lambda value: ",".join(value))
def test_contradictions_are_refused_by_name(values: dict[str, Any], named: list[str], how: str) -> None:
    (first, *rest) = values.items()
    attributes = {"keyword": {}, "class": values, "mixed": dict([first])}[how]
    keywords = {"keyword": values, "class": {}, "mixed": dict(rest)}[how]
    said = refused(lambda: made(**attributes)(LOOPBACK, lambda *_: None, **keywords))
    for word in named:
        assert word in said


@pytest.mark.parametrize(("name", "text", "value"), WORDS)
def test_every_limit_has_a_spelling_for_the_command_line(name: str, text: str, value: Any) -> None:
    parsed = settings.ALL[name].parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "x", "1e999"])
@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(settings.ALL[name].default, (int, float))])
def test_words_that_are_no_such_number_are_refused(name: str, text: str) -> None:
    with pytest.raises(portico.SettingError, match=f"^{name} must be .*, not "):
        settings.ALL[name].parse(text)


def test_users_are_users_and_groups_are_groups() -> None:
    groups, users = {group.gr_name for group in grp.getgrall()}, {user.pw_name for user in pwd.getpwall()}
    no_user = min(groups - users)
    with (
        short_folder() as folder,
        portico.ThreadingUnixStreamServer(
            f"{folder}/s", lambda *_: None, allow_uids="root", allow_gids=["root", no_user]
        ),
    ):
        pass
    assert f"no user {no_user!r}" in refused(lambda: made()(LOOPBACK, print, allow_uids=["root", no_user]))
    assert "no group 'nobody at all'" in refused(lambda: made()(LOOPBACK, print, allow_gids="nobody at all"))


def nothing(*_: Any) -> None:
    """A handler."""


async def nothing_awaited(*_: Any) -> None:
    """An async one."""


@pytest.mark.parametrize("way", ["", "Threading", "Forking", "Green", "Async"])
@pytest.mark.parametrize(("kind", "values", "why"), NOWHERE, ids=lambda value: ",".join(value))
def test_a_limit_that_could_never_hold_is_refused(way: str, kind: str, values: dict[str, Any], why: str) -> None:
    ((name, value),) = values.items()
    handler: Any = nothing_awaited if way == "Async" else nothing
    with short_folder() as folder:
        address: Any = f"{folder}/s" if "Unix" in kind else LOOPBACK
        server_class = getattr(portico, f"{way}{kind}Server")
        said = refused(lambda: server_class(address, handler, **values))
        assert said.startswith(f"{name} is ")
        assert why in said
        with server_class(address, handler) as server:
            if name in limits.LIVE:
                assert said == refused(lambda: server.configure(**values))
            if name in RULES:
                setattr(server, name, value)
                assert said == refused(server.serve_forever)
        mine = type("Mine", (server_class,), values)
        if name in RULES:
            assert "Mine" in refused(lambda: mine(address, handler))
        else:  # a program's own attribute, harmless under `socketserver`
            mine(address, handler).server_close()
            type("Mine", (server_class,), {name: "never"})(address, handler).server_close()


def test_all_values_that_are_wrong_are_named_at_once() -> None:
    said = refused(lambda: made(idle_timeout=0, overload="Busy!")(LOOPBACK, print, max_connections=3, keepalive="on"))
    assert said.startswith("keepalive must be ")  # what is given is looked at first
    said = refused(lambda: made(idle_timeout=0, overload="Busy!", keepalive="on")(LOOPBACK, print))
    assert all(f"{name} must be " in said for name in ("idle_timeout", "overload", "keepalive"))


@pytest.mark.parametrize("slip", ["wiat", "Close", "WAIT", "closed"])
def test_a_slip_is_not_what_clients_are_told(slip: str) -> None:
    with pytest.raises(portico.SettingError, match=f"^overload must be .*, not '{slip}'"):
        settings.ALL["overload"].parse(slip)
    assert settings.ALL["overload"].parse(r"busy\n") == b"busy\n"


def test_where_such_a_limit_holds_it_is_taken() -> None:
    named = {"proxy_protocol": "required", "proxy_trusted": "unix", "allow": "10.0.0.0/8"}
    with short_folder() as folder, made(**named)(f"{folder}/s", lambda *_: None):
        pass
    with portico.ThreadingUDPServer(LOOPBACK, lambda *_: None, sessions=True, max_connections=5, idle_timeout=3):
        pass


def test_a_program_may_put_a_socket_of_another_kind_in_place() -> None:
    class Late(portico.TCPServer):
        allow_uids = "root"

        def server_bind(self) -> None:
            self.socket.close()
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(self.server_address)

    with short_folder() as folder:
        made(allow_gids="root")(LOOPBACK, nothing, bind_and_activate=False).server_close()
        Late(f"{folder}/s", nothing).server_close()


def test_a_socket_made_for_a_server_that_is_refused_is_closed() -> None:
    with socket.socket() as ours:
        ours.bind(LOOPBACK)
        ours.listen()
        assert "allow_uids" in refused(lambda: made(allow_uids=[0])(ours, print))
    assert "allow_uids" in refused(lambda: made(allow_uids=[0])(LOOPBACK, print))  # or its descriptor would be left


def test_a_list_of_networks_names_the_wrong_one() -> None:
    said = refused(lambda: made()(LOOPBACK, print, allow=["10.0.0.0/8", "10.0.0.1/8"]))
    assert "allow" in said
    assert "10.0.0.1/8" in said


# -- while a server runs


LIVE = [name for name in NAMES if name in limits.LIVE]


@pytest.mark.parametrize("name", LIVE)
def test_configure_changes_all_or_none(name: str) -> None:
    needed = {"proxy_protocol": "required", "proxy_trusted": "127.0.0.1"} if name == "proxy_trusted" else {}
    with ExitStack() as stack:
        unix = f"{stack.enter_context(short_folder())}/s"
        address = unix if name in ("allow_uids", "allow_gids") else LOOPBACK
        server = made(**needed)(address, lambda *_: None, max_connections=7, reuse_threads=True)
        stack.enter_context(server.background())
        before = {limit: getattr(server, limit) for limit in NAMES}
        for value in [*BAD[name], *WORSE[name]]:
            with pytest.raises(portico.SettingError, match=name):
                server.configure(**{"max_connections": 5, "drain_spread": 1.0, name: value})
            assert {limit: getattr(server, limit) for limit in NAMES} == before
        good = {word: value for word, _, value in WORDS if word in ("max_connections", "drain_spread", name)}
        if "burst" in name:
            good[name.replace("burst", "rate")] = 5.0
        server.configure(**good)
        assert {limit: getattr(server, limit) for limit in NAMES} == before | good


@pytest.mark.parametrize(("values", "named"), CONTRADICTIONS, ids=lambda value: ",".join(value))
def test_configure_refuses_contradictions_with_what_is_set(values: dict[str, Any], named: list[str]) -> None:
    (first, *rest) = values.items()
    if "burst" in first[0] or "requests" in first[0] or not rest:
        first, rest = ("grace", 1.0), list(values.items())
    with made(**dict([first]))(LOOPBACK, lambda *_: None).background() as server:
        with pytest.raises(portico.SettingError) as caught:
            server.configure(alarm_cooldown=1, **dict(rest))
        at_the_start = set(dict(rest)) - set(limits.LIVE)
        assert all(word in str(caught.value) for word in (at_the_start or named))
        assert server.alarm_cooldown == 5.0
        assert not set(dict(rest)) & set(vars(server))


@pytest.mark.parametrize("name", ["keepalive", "tcp_user_timeout", "reuse_threads", "request_queue_size", "no_such"])
def test_what_counts_only_at_the_start_cannot_be_changed(name: str) -> None:
    with made()(LOOPBACK, lambda *_: None).background() as server:
        why = "is no setting" if name == "no_such" else "cannot be changed while a server runs"
        with pytest.raises(portico.SettingError, match=f"'{name}' {why}; these can be changed: "):
            server.configure(max_connections=5, **{name: 5})
        assert server.max_connections is None


def test_a_limit_of_another_way_to_run_cannot_be_set() -> None:
    with portico.TCPServer(LOOPBACK, lambda *_: None) as server:
        with pytest.raises(portico.SettingError, match="max_threads"):
            server.configure(max_threads=5)
        with pytest.raises(portico.UnknownSettingError, match="max_threads"):
            portico.TCPServer(LOOPBACK, lambda *_: None, max_threads=5)


def test_a_change_that_cannot_be_made_leaves_all_as_it_was() -> None:
    """Time limits need a thread, if somebody is there."""
    Upper = type("Upper", (portico.StreamRequestHandler,), {"handle": lambda self: self.rfile.readline()})
    with (
        made()(LOOPBACK, Upper, alarm_cooldown=7).background() as server,
        socket.create_connection(server.server_address, 10) as client,
    ):
        assert until(server.connections)
        with no_thread_can_start(), pytest.raises(RuntimeError, match="start new thread"):
            server.configure(alarm_cooldown=8, max_connections=3, idle_timeout=0.05)
        assert (server.alarm_cooldown, server.max_connections, server.idle_timeout) == (7, None, None)
        assert "max_connections" not in vars(server)
        server.configure(idle_timeout=0.05)
        assert client.recv(1) == b""
        assert until(lambda: server.stats().timed_out["idle_timeout"] == 1)


@pytest.mark.parametrize("way", ["forks"])
def test_the_number_of_children_can_be_changed_and_who_waits_comes_in_at_once(way: str) -> None:
    with scene(way, max_children=1) as s:
        s.crowd.come(3)
        s.crowd.inside(1)
        s.server.configure(max_children=2)
        s.crowd.inside(2)
        s.server.configure(max_children=3)
        s.crowd.inside(3)


@EVERY_WAY
def test_a_refused_change_leaves_the_old_limits_in_force(way: str) -> None:
    with scene(way, max_connections=2, overload="close") as s:
        s.crowd.come(2)
        s.crowd.inside(2)
        with pytest.raises(portico.SettingError):
            s.server.configure(max_connections=50, max_connections_per_client=60)
        s.crowd.come(1)
        s.crowd.turned_away(1)
        assert s.server.stats().refused == {"max_connections": 1}


def test_no_socket_stays_open_when_a_limit_is_wrong() -> None:
    with socket.socket() as taken:
        taken.bind(LOOPBACK)
        address = taken.getsockname()
    assert "max_connections" in refused(lambda: made(max_connections=0)(address, print))
    with socket.socket() as free:
        free.bind(address)


def test_limits_that_are_right_are_kept_as_they_are() -> None:
    good = {name: value for name, _, value in WORDS if "burst" not in name and name not in ("allow_uids", "allow_gids")}
    with made(**good)(LOOPBACK, lambda *_: None) as server:
        assert {name: getattr(server, name) for name in good} == good

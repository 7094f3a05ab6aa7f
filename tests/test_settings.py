"""Settings: declared once, checked as keyword arguments, read from words, and old again with `stdlib_compat`."""

from __future__ import annotations

import re
import socketserver
from collections.abc import Callable
from typing import Any

import pytest

import portico
from portico import settings
from portico._certified import Certified
from portico._managed import Managed
from portico._on_loop import OnLoop
from portico._openable import Openable
from portico._serving import Serving

LOOPBACK = ("127.0.0.1", 0)
BAD: dict[str, list[Any]] = {
    "stdlib_compat": [2, "yes", None],
    "timeout": [-1, "1", True],
    "allow_reuse_address": [None, "yes", 2],
    "allow_reuse_port": [None, "yes"],
    "request_queue_size": [-1, 1.5, True, "5", None],
    "dual_stack": ["yes", 2],
    "unmap_ipv4": [None],
    "unix_mode": [-1, 0o1000, "600", 1.0],
    "unix_group": [-1, 1.5, b"users"],
    "accept_batch": [0, -1, 1.0, True],
    "accept_pause": [0, -0.1, "1", None],
    "accept_pause_max": [0, -1],
    "max_packet_size": [0, -1, (1 << 24) + 1, 100.0, "huge", None],
    "deliver_truncated": [None, 2],
    "max_datagrams": [0, 1.5, True, None],
    "recv_buffer_size": [0, -1, "1", 1.5],
    "send_buffer_size": [0, True],
    "broadcast": [None],
    "multicast_groups": [1, "10.0.0.1", "nonsense", ["239.0.0.1", 5], b"239.0.0.1", "2001:db8::1"],
    "sessions": ["no", None, 2],
    "session_timeout": [0, -1, "5"],
    "session_queue": [0, 1.5, True, None],
    "max_sessions": [0, -1, "many"],
    "ttl": [0, 256, 1.5, "1"],
    "tos": [-1, 256, "AF14", "fast", 1.5],
    "pin_interface": [None, 2],
    "udp_gro": [None],
    "udp_gso": ["yes"],
    "daemon_threads": [None],
    "block_on_close": ["no"],
    "max_children": [0, 1.5],
    "event_loop": ["trio", None, 1],
    "blocking_warning": [-1, "0.1", True],
    "max_connections": [0, -1, 1.5, True, "10"],
    "max_connections_per_client": [0, 1.5, False],
    "connection_rate": [0, -0.5, "1", True, float("nan"), float("inf")],
    "connection_burst": [0, 1.5, True],
    "connection_rate_per_client": [0, -1, "1"],
    "connection_burst_per_client": [0, 2.0],
    "client_prefix_ipv4": [0, 33, None, 24.0, "24"],
    "client_prefix_ipv6": [0, 129, None, True],
    "max_tracked_clients": [0, None, 1.5],
    "allow": ["nowhere", "10.0.0.0/33", ["10.0.0.0/8", 5], 5, [""]],
    "deny": ["nowhere", ["::/129"], 5],
    "overload": ["refuse", None, 5],
    "limits_dry_run": [None, "yes", 2],
    "connections_alarm": [0, 1.5],
    "alarm_cooldown": [-1, None, "5"],
    "max_threads": [0, -1, 1.5],
    "reuse_threads": [None, "yes"],
    "thread_idle_timeout": [-1, None, "60"],
    "requests_per_thread": [0, 1.5],
    "idle_timeout": [0, -1, "60", True],
    "connection_timeout": [0, -1, float("inf")],
    "connection_jitter": [-0.1, 1.1, None, "0.1", True],
    "min_read_rate": [0, -1, "fast"],
    "read_grace": [0, -1, None],
    "send_timeout": [0, -1, "30"],
    "keepalive": [0, -1, "60", 1 + 0j],
    "tcp_user_timeout": [0, -1, "60"],
    "drain_timeout": [-1, "30", True, float("nan")],
    "drain_spread": [-1, None, "1"],
    "grace": [-1, None, "1"],
    "access_log": ["xml", True, 1],
    "tls": ["cert.pem", ("cert.pem", "key.pem"), True, 0],
    "starttls": [None, "yes", 2],
    "handshake_timeout": [0, -1, None, "10", True],
    "max_handshakes": [0, -1, 1.5, True, "10"],
    "suppress_ragged_eofs": [None, "no", 2],
    "tls_watch": [0, -1, "60", True],
    "proxy_protocol": ["on", True, None, 1],
    "proxy_trusted": ["nobody", "10.0.0.0/33", 5, [], ["unix", 5]],
    "allow_uids": ["no such user", -1, [], [True], [None], 1.5],
    "allow_gids": ["no such group", [-1], "", [b"users"], 5],
}
PARSED: list[tuple[str, str, Any]] = [
    ("stdlib_compat", "on", True),
    ("timeout", "none", None),
    ("timeout", "0.5", 0.5),
    ("allow_reuse_address", "no", False),
    ("request_queue_size", "0", 0),
    ("dual_stack", "None", None),
    ("dual_stack", "TRUE", True),
    ("unix_mode", "660", 0o660),
    ("unix_mode", "0o600", 0o600),
    ("unix_group", "100", 100),
    ("unix_group", "users", "users"),
    ("accept_pause", "1e-2", 0.01),
    ("max_packet_size", "65535", 65535),
    ("event_loop", "uvloop", "uvloop"),
    ("blocking_warning", "none", None),
    ("max_connections", "10000", 10000),
    ("max_connections", "none", None),
    ("connection_rate", "0.5", 0.5),
    ("client_prefix_ipv6", "48", 48),
    ("allow", "10.0.0.0/8, 2001:db8::/32", "10.0.0.0/8, 2001:db8::/32"),
    ("deny", "NONE", None),
    ("overload", "close", "close"),
    ("overload", r"busy\r\n", b"busy\r\n"),
    ("overload", r"\x00\xff", b"\x00\xff"),
    ("limits_dry_run", "on", True),
    ("connection_jitter", "1", 1.0),
    ("drain_timeout", "0", 0.0),
    ("drain_timeout", "none", None),
    ("grace", "5", 5.0),
    ("access_log", "json", "json"),
    ("access_log", "none", None),
    ("tls", "none", None),
    ("starttls", "on", True),
    ("handshake_timeout", "2.5", 2.5),
    ("max_handshakes", "none", None),
    ("tls_watch", "none", None),
    ("proxy_protocol", "optional", "optional"),
    ("proxy_trusted", "unix, 10.0.0.0/8", "unix, 10.0.0.0/8"),
    ("allow_uids", "root, 1000", "root, 1000"),
    ("allow_gids", "none", None),
]
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"idle_timeout": 60, "connection_timeout": 30}, r"idle_timeout \(60 s\) .* connection_timeout \(30 s\)"),
    ({"accept_pause": 2, "accept_pause_max": 1}, r"accept_pause \(2 s\) .* accept_pause_max \(1 s\)"),
    ({"drain_spread": 20, "drain_timeout": 10}, r"drain_spread \(20 s\) .* drain_timeout \(10 s\)"),
    ({"max_connections": 5, "max_connections_per_client": 6}, r"max_connections_per_client \(6\) .* \(5\)"),
    ({"connection_burst": 5}, r"connection_burst \(5\) needs a connection_rate"),
    ({"connection_burst_per_client": 5}, r"connection_burst_per_client \(5\) needs a connection_rate_per_client"),
    ({"requests_per_thread": 5}, "requests_per_thread needs reuse_threads"),
    ({"allow": "10.0.0.0/8", "deny": "10.0.0.0/7"}, "covers all of allow"),
    ({"proxy_protocol": "required"}, r"proxy_protocol \('required'\) needs proxy_trusted"),
    ({"proxy_trusted": "10.0.0.0/8"}, 'proxy_trusted needs a proxy_protocol of "required" or "optional"'),
    ({"starttls": True}, "starttls needs tls"),
]


KINDS: list[Any] = [
    portico.TCPServer, portico.UDPServer, portico.ForkingTCPServer, portico.ThreadingTCPServer, portico.GreenTCPServer,
]  # fmt: skip
AS_EVER = ("allow_reuse_address", "allow_reuse_port", "daemon_threads", "block_on_close")


def server(made: Callable[..., Any], **values: Any) -> Any:
    return made(LOOPBACK, lambda *_: None, bind_and_activate=False, **values)


@pytest.mark.parametrize("name", settings.ALL)
def test_every_setting_is_declared_with_all_that_a_reader_needs(name: str) -> None:
    setting = settings.ALL[name]
    setting.check(setting.default)
    assert setting.unit
    assert len(setting.reason) > 10
    assert setting.kind.allowed
    owners = [portico.ForkingMixIn, portico.ThreadingMixIn, portico.UDPServer, portico.BaseServer, Serving]
    owners += [OnLoop, portico.GreenMixIn, Managed, Certified, Openable, portico.TCPServer]
    assert any(name in vars(owner) for owner in owners)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_by_name_and_nothing_stays_open(name: str, value: Any) -> None:
    made = next(made for made in KINDS if hasattr(made, name))
    with pytest.raises(portico.SettingError, match=rf"{name} must be .*, not {re.escape(repr(value))}"):
        server(made, **{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_so_it_is_as_an_attribute_of_a_class(name: str, value: Any) -> None:
    if name in AS_EVER:
        pytest.skip("any value is true or false there, as in socketserver")
    owner = next(made for made in KINDS if hasattr(made, name))
    with pytest.raises(portico.SettingError, match=rf"{name} must be .*, not {re.escape(repr(value))}"):
        server(type("Mine", (owner,), {"sessions": True, name: value}))  # without them some are the program's own


@pytest.mark.parametrize("value", [10**12, 1e300, 10**400], ids=["a billion", "a float", "too long"])
@pytest.mark.parametrize("name", [name for name, made in settings.ALL.items() if type(made.default) in (int, float)])
def test_numbers_that_no_clock_and_no_kernel_can_count_to_are_refused(name: str, value: Any) -> None:
    owner = next(made for made in KINDS if hasattr(made, name))
    with pytest.raises(portico.SettingError, match=f"^{name} must be "):
        server(owner, **{name: value})


def test_nobody_denied_is_no_mistake() -> None:
    for nobody in ([], (), ""):
        with server(portico.TCPServer, deny=nobody) as made:
            assert made.deny == nobody


def test_whose_attribute_a_wrong_value_is_is_said() -> None:
    class Program(portico.TCPServer):
        access_log = "/var/log/mine"

    with pytest.raises(portico.SettingError, match=r"an attribute of .*Program: if it is no setting there, call it"):
        server(Program)
    with pytest.raises(portico.SettingError, match=r"no coroutine") as caught:
        server(portico.TCPServer, overload=_answers)
    assert "an attribute of" not in str(caught.value)


async def _answers(*_: Any) -> bytes:
    return b"no"


@pytest.mark.parametrize("name", ["broadcast", "sessions", "ttl", "tos", "multicast_groups", "max_threads"])
def test_a_programs_own_attribute_is_no_setting_of_other_servers(name: str) -> None:
    """A chat server has a broadcast(), and sessions."""

    class Mine(portico.TCPServer):
        pass

    for own in (lambda *_: None, {}, "mine"):
        setattr(Mine, name, own)
        with Mine(LOOPBACK, portico.BaseRequestHandler) as mine:
            mine.configure(max_connections=5)
            assert vars(Mine)[name] is own


@pytest.mark.parametrize(("values", "said"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused_wherever_they_were_set(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(portico.SettingError, match=said):
        server(portico.ThreadingTCPServer, **values)
    with pytest.raises(portico.SettingError, match=said):
        server(type("Mine", (portico.ThreadingTCPServer,), values))


def test_every_setting_has_wrong_values_above() -> None:
    assert set(BAD) == set(settings.ALL)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    said = r"TCPServer has no setting 'acept_batch'; did you mean accept_batch\? There are: accept_batch, "
    with pytest.raises(TypeError, match=said):
        server(portico.TCPServer, acept_batch=1)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (portico.TCPServer, "max_packet_size"),
        (portico.TCPServer, "max_children"),
        (portico.ForkingTCPServer, "daemon_threads"),
        (portico.UDPServer, "block_on_close"),
    ],
)
def test_a_setting_of_another_kind_of_server_is_unknown(made: Callable[..., Any], name: str) -> None:
    with pytest.raises(portico.UnknownSettingError, match=name):
        server(made, **{name: settings.ALL[name].default})


def test_keyword_arguments_set_the_instance_and_no_other() -> None:
    with server(portico.ThreadingTCPServer, request_queue_size=7, daemon_threads=True) as first:
        assert (first.request_queue_size, first.daemon_threads) == (7, True)
    with server(portico.ThreadingTCPServer) as second:
        assert (second.request_queue_size, second.daemon_threads) == (1024, False)


def test_attributes_that_are_right_are_taken_as_they_are() -> None:
    class Mine(portico.TCPServer):
        allow_reuse_address = 1  # type: ignore[assignment]
        accept_batch = 3

        def __init__(self) -> None:
            self.request_queue_size = 9
            super().__init__(LOOPBACK, lambda *_: None)

    with Mine() as mine:
        assert (mine.allow_reuse_address, mine.accept_batch, mine.request_queue_size) == (1, 3, 9)


@pytest.mark.parametrize(("name", "text", "value"), PARSED)
def test_words_of_the_command_line_are_read(name: str, text: str, value: Any) -> None:
    assert settings.ALL[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("stdlib_compat", "maybe"), ("unix_mode", "9"), ("accept_batch", "many"), ("accept_batch", "0"), ("timeout", "-1"),
     ("accept_pause", "nan"), ("accept_pause_max", "inf"), ("timeout", "nan"), ("timeout", "inf"), ("timeout", "")],
)  # fmt: skip
def test_words_that_mean_nothing_are_refused(name: str, text: str) -> None:
    with pytest.raises(portico.SettingError, match=f"{name} must be "):
        settings.ALL[name].parse(text)


COMPAT = ["TCPServer", "UDPServer", "ThreadingTCPServer", "ForkingTCPServer", "ForkingUDPServer", "UnixStreamServer"]


@pytest.mark.parametrize("name", COMPAT)
def test_stdlib_compat_brings_every_default_of_the_stdlib_back(name: str) -> None:
    original, made = getattr(socketserver, name), getattr(portico, name)
    with server(made, stdlib_compat=True) as old:
        for setting in settings.of(made):
            if hasattr(original, setting.name):
                assert getattr(old, setting.name) == getattr(original, setting.name), setting.name


def test_what_somebody_has_said_stays_with_stdlib_compat() -> None:
    class Mine(portico.TCPServer):
        allow_reuse_address = True

    with server(Mine, stdlib_compat=True, request_queue_size=8) as mine:
        assert (mine.allow_reuse_address, mine.request_queue_size) == (True, 8)


def test_what_somebody_has_patched_stays_with_stdlib_compat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portico.TCPServer, "request_queue_size", 77, raising=False)
    with server(portico.ThreadingTCPServer, stdlib_compat=True) as patched:
        assert patched.request_queue_size == 77


def test_a_flag_set_to_the_stdlibs_own_default_is_refused_for_none_of_its_classes() -> None:
    for name in portico.__all__:
        made = getattr(portico, name)
        if isinstance(made, type) and issubclass(made, portico.BaseServer):
            for setting in settings.of(made):
                setting.check(getattr(made, setting.name))

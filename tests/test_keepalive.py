"""`keepalive` and `tcp_user_timeout`: set on the listener, found on every accepted connection, at no cost for each."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import portico
from portico import _sockets, settings

from .contract.flavours import ALL, STREAMS, Flavour, short_folder
from .loops import LOOPBACK, rest_of

TCP = [flavour for flavour in STREAMS if flavour.kind.family != socket.AF_UNIX]
OTHERS = [flavour for flavour in ALL if flavour not in TCP]
NAMES = {
    "on": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0))),
    "interval": (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", 0)),
    "count": (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", 0)),
    "user_timeout": (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", 0)),
}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is inherited, and how, is the system's business")
pytestmark = LINUX


def options(sock: Any) -> dict[str, int]:
    return {name: sock.getsockopt(*option) for name, option in NAMES.items()}


DEFAULTS = dict.fromkeys(NAMES, 0)
with socket.socket() as _fresh:
    DEFAULTS = options(_fresh)


class Telling(portico.BaseRequestHandler):
    """Says what options its connection has."""

    def handle(self) -> None:
        self.request.sendall(json.dumps(options(self.request)).encode())


class AsyncTelling(portico.AsyncBaseRequestHandler):
    """The same in async."""

    async def handle(self) -> None:
        await self.request.sendall(json.dumps(options(self.request)).encode())


class AsyncStreamTelling(portico.AsyncStreamRequestHandler):
    """The same over asyncio's streams, which take the connection over."""

    async def handle(self) -> None:
        self.wfile.write(json.dumps(options(self.wfile.get_extra_info("socket"))).encode())


@contextmanager
def serving(made: Any, address: Any = LOOPBACK, handler: Any = Telling, **values: Any) -> Iterator[Any]:
    with made(address, handler, **values).background() as server:
        yield server


def told(server: Any) -> dict[str, int]:
    with socket.create_connection(server.server_address[:2], 10) as client:
        answer: dict[str, int] = json.loads(rest_of(client))
    return answer


@pytest.mark.parametrize("flavour", TCP, ids=str)
def test_connections_have_what_the_listener_was_given(flavour: Flavour) -> None:
    handlers = [AsyncTelling, AsyncStreamTelling] if flavour.way.own_tasks else [Telling]
    address = flavour.kind.address(Path())
    for handler in handlers:
        with serving(flavour.server_class, address, handler, keepalive=60, tcp_user_timeout=90) as server:
            expected = {"on": 1, "idle": 60, "interval": 20, "count": 3, "user_timeout": 90_000}
            assert told(server) == expected
            assert told(server) == expected


@pytest.mark.parametrize("flavour", TCP, ids=str)
def test_by_default_they_have_what_the_system_gives(flavour: Flavour) -> None:
    handler = AsyncTelling if flavour.way.own_tasks else Telling
    with serving(flavour.server_class, flavour.kind.address(Path()), handler) as server:
        assert told(server) == DEFAULTS


def test_each_goes_without_the_other() -> None:
    with serving(portico.TCPServer, keepalive=30) as server:
        assert told(server) == {**DEFAULTS, "on": 1, "idle": 30, "interval": 10, "count": 3}
    with serving(portico.TCPServer, tcp_user_timeout=30) as server:
        assert told(server) == {**DEFAULTS, "user_timeout": 30_000}


@pytest.mark.parametrize(
    ("keepalive", "idle", "interval"),
    [
        (0.01, 1, 1),
        (1, 1, 1),
        (2, 2, 1),
        (3, 3, 1),
        (6.6, 7, 2),
        (10, 10, 3),
        (3600.0, 3600, 1200),
        (32767, 32767, 10922),
    ],
)
def test_the_kernel_counts_whole_seconds(keepalive: float, idle: int, interval: int) -> None:
    with portico.TCPServer(LOOPBACK, Telling, keepalive=keepalive) as server:
        assert options(server.socket) == {**DEFAULTS, "on": 1, "idle": idle, "interval": interval, "count": 3}


@pytest.mark.parametrize("keepalive", [(10, 5, 3), [10, 5.0, 3], (9.9, 4.6, 3)])
def test_or_all_three_figures_are_given(keepalive: Any) -> None:
    with portico.TCPServer(LOOPBACK, Telling, keepalive=keepalive) as server:
        assert options(server.socket) == {**DEFAULTS, "on": 1, "idle": 10, "interval": 5, "count": 3}


@pytest.mark.parametrize("keepalive", [True, False])
def test_or_the_system_decides(keepalive: bool) -> None:
    """What programs mean that have an attribute of that name."""
    with portico.TCPServer(LOOPBACK, Telling, keepalive=keepalive) as server:
        assert options(server.socket) == {**DEFAULTS, "on": int(keepalive)}
    assert settings.ALL["keepalive"].parse(str(keepalive)) is keepalive


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.0001, 1), (0.5, 500), (1, 1000), (1.2345, 1234)])
def test_the_user_timeout_is_counted_in_milliseconds(seconds: float, milliseconds: int) -> None:
    with portico.TCPServer(LOOPBACK, Telling, tcp_user_timeout=seconds) as server:
        assert options(server.socket)["user_timeout"] == milliseconds


@pytest.mark.parametrize(
    "values",
    [{"keepalive": 32768}, {"keepalive": (10, 5, 128)}, {"keepalive": 1e15}, {"tcp_user_timeout": 1e15}],
    ids=lambda values: str(values),
)
def test_more_than_the_kernel_counts_is_a_wrong_setting(values: dict[str, float]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(portico.SettingError, match=name) as caught:
        portico.TCPServer(LOOPBACK, Telling, **values)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("how", ["bound", "listening", "fd"])
def test_adopted_listeners_get_them_too(how: str) -> None:
    listener = socket.socket()
    listener.bind(LOOPBACK)
    if how != "bound":
        listener.listen(5)
    address: Any = f"fd://{listener.detach()}" if how == "fd" else listener
    with serving(portico.ThreadingTCPServer, address, keepalive=9, tcp_user_timeout=5) as server:
        assert told(server) == {"on": 1, "idle": 9, "interval": 3, "count": 3, "user_timeout": 5000}


def test_class_variables_count_as_much_as_keywords() -> None:
    class Mine(portico.TCPServer):
        keepalive = 12
        tcp_user_timeout = 2.5

    with serving(Mine) as server:
        assert told(server) == {"on": 1, "idle": 12, "interval": 4, "count": 3, "user_timeout": 2500}


def test_a_handler_may_set_its_connections_own() -> None:
    class Own(Telling):
        def handle(self) -> None:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            super().handle()

    with serving(portico.TCPServer, handler=Own, keepalive=9) as server:
        assert told(server)["on"] == 0
        assert options(server.socket)["on"] == 1


@pytest.mark.parametrize("flavour", OTHERS, ids=str)
def test_on_unix_sockets_and_datagrams_they_mean_nothing(flavour: Flavour) -> None:
    handler = AsyncTelling if flavour.way.own_tasks else Telling
    made = flavour.extended(keepalive=10, tcp_user_timeout=10)
    with short_folder() as folder, made(flavour.kind.address(folder), handler) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


# -- on systems that have less


def test_a_system_without_the_timings_still_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name)
    with portico.TCPServer(LOOPBACK, Telling, keepalive=10) as server:
        assert options(server.socket) == {**DEFAULTS, "on": 1}


def test_macos_has_another_name_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", socket.TCP_KEEPIDLE, raising=False)
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with portico.TCPServer(LOOPBACK, Telling, keepalive=10) as server:
        assert options(server.socket) == {**DEFAULTS, "on": 1, "idle": 10, "interval": 3, "count": 3}


def test_a_system_without_a_user_timeout_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    with pytest.raises(portico.UnavailableError, match="tcp_user_timeout needs TCP_USER_TIMEOUT"):
        portico.TCPServer(LOOPBACK, Telling, tcp_user_timeout=10)
    with portico.TCPServer(LOOPBACK, Telling, keepalive=10) as server:
        assert options(server.socket)["on"] == 1


def test_nothing_is_asked_of_a_socket_when_nothing_is_set() -> None:
    class Asked:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    _sockets.watch_peers(Asked(), keepalive=None, tcp_user_timeout=None)

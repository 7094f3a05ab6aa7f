"""Rows 23 and 24: datagrams cut short, answers that nobody wrote, and peers that cannot be answered."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, levels, made, serving


@contextmanager
def _client(address: Any, name: str | None = None) -> Iterator[socket.socket]:
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        if name is not None:
            client.bind(name)
        client.connect(address)
        yield client


@pytest.mark.parametrize("kind", ["UDPServer", "ThreadingUDPServer", "ForkingUDPServer"])
@pytest.mark.parametrize("size", [pytest.param(8192, marks=pytest.mark.regression), 9000, 65507])
def test_a_datagram_arrives_whole(ss: ModuleType, kind: str, size: int) -> None:
    def measure(request: Any, client_address: Any, server: Any) -> None:
        request[1].sendto(str(len(request[0])).encode(), client_address)

    server = getattr(ss, kind)(LOCAL, measure)
    with serving(server), _client(server.server_address) as client:
        client.send(b"x" * size)
        assert client.recv(99) == str(size).encode()


def _answers_only_questions(ss: ModuleType, **attributes: Any) -> Any:
    class Handler(ss.DatagramRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            if self.rfile.read() == b"question":
                self.wfile.write(b"answer")

    return type("Handler", (Handler,), attributes)


def test_nothing_is_sent_when_nothing_was_written(ss: ModuleType) -> None:
    server = ss.UDPServer(LOCAL, _answers_only_questions(ss))
    with serving(server), _client(server.server_address) as client:
        client.send(b"remark")
        client.send(b"question")
        assert client.recv(99) == b"answer"


@pytest.mark.regression
def test_an_empty_answer_is_sent_on_request(ss: ModuleType) -> None:
    server = ss.UDPServer(LOCAL, _answers_only_questions(ss, send_empty_reply=True))
    with serving(server), _client(server.server_address) as client:
        client.send(b"remark")
        assert client.recv(99) == b""


def test_a_unix_peer_without_an_address_is_no_error(
    ss: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[object] = []
    server = made(
        ss.UnixDatagramServer,
        _answers_only_questions(ss),
        str(tmp_path / "server"),
        handle_error=lambda self, *what: errors.append(what),
    )
    with serving(server), _client(server.server_address) as nobody:
        nobody.send(b"question")
        with _client(server.server_address, str(tmp_path / "client")) as client:
            client.send(b"question")
            assert client.recv(99) == b"answer"
    assert errors == []
    assert caplog.records == []


@pytest.mark.parametrize("how", ["closed", "closed and its file removed"])
def test_a_unix_peer_that_has_left_is_no_error(ss: ModuleType, how: str, tmp_path: Path) -> None:
    errors: list[object] = []
    taken, left, ended = threading.Event(), threading.Event(), threading.Event()

    class Handler(ss.DatagramRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            taken.set()
            left.wait(5)
            self.wfile.write(b"too late")

        def finish(self) -> None:
            try:
                super().finish()
            except Exception as error:
                errors.append(error)
            ended.set()

    server = ss.ThreadingUnixDatagramServer(str(tmp_path / "server"), Handler)
    with serving(server):
        with _client(server.server_address, str(tmp_path / "client")) as client:
            client.send(b"question")
            assert taken.wait(5)
        if how != "closed":
            (tmp_path / "client").unlink()
        left.set()
        assert ended.wait(5)
    assert errors == []


def test_a_plain_handlers_answer_to_a_peer_that_has_left_is_a_debug_record(
    ss: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Any, client_address: Any, server: Any) -> None:
        request[1].sendto(b"too late", client_address)

    server = ss.UnixDatagramServer(str(tmp_path / "server"), answer)
    with caplog.at_level(logging.DEBUG, logger="portico"):
        with _client(server.server_address, str(tmp_path / "client")) as client:
            client.send(b"question")
        with serving(server):  # only now
            assert until(lambda: levels(caplog.records) == ["DEBUG"], timeout=2)


@pytest.mark.new_feature
def test_a_handler_has_the_payload_as_its_data_unless_it_sets_its_own(ss: ModuleType) -> None:
    class Handler(ss.BaseRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            payload = self.data
            self.data = b"set: "
            self.request[1].sendto(self.data + payload.upper(), self.client_address)

    server = ss.UDPServer(LOCAL, Handler)
    with serving(server), _client(server.server_address) as client:
        client.send(b"hello")
        assert client.recv(99) == b"set: HELLO"

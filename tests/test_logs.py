"""Events as records on the logger `portico`: their level, their words, and that telling never becomes a fault."""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import subprocess
import sys
from typing import Any

import pytest

import portico
from portico import logs
from portico.lifecycle import (
    AcceptPaused,
    AcceptResumed,
    CertificatesKept,
    CertificatesReplaced,
    EndReason,
    Event,
    ForkedWithThreads,
    HookFailed,
    ListenerDied,
    OpeningFailed,
    PeerLeft,
    RequestFailed,
)

from .commands import ROOT, environment

PEER = ("192.0.2.1", 80)
RECORDS = {
    "DEBUG peer ('192.0.2.1', 80) left: BrokenPipeError()": PeerLeft(None, PEER, BrokenPipeError()),
    "INFO ('192.0.2.1', 80) was not let in, handshake_failed: no hello": OpeningFailed(
        None, PEER, OSError("no hello"), EndReason.HANDSHAKE_FAILED
    ),
    "INFO ('192.0.2.1', 80) was not let in, peer_left: ConnectionResetError()": OpeningFailed(
        None, PEER, ConnectionResetError(), EndReason.PEER_LEFT
    ),
    "ERROR new certificates cannot be used, the old ones stay: no key": CertificatesKept(OSError("no key")),
    "INFO new certificates are used from now on; the first of them ends in 29.5 days": CertificatesReplaced(29.5),
    "INFO new certificates are used from now on": CertificatesReplaced(None),
    "ERROR request from ('192.0.2.1', 80) failed": RequestFailed(None, PEER, LookupError()),
    "ERROR service_actions raised an exception; the server goes on": HookFailed("service_actions", LookupError()),
    "WARNING cannot take requests: full; trying again, at first in 0.01 s": AcceptPaused(OSError("full"), 0.01),
    "INFO taking requests again": AcceptResumed(),
    "ERROR the listener is of no use any more, serving ends: gone": ListenerDied(OSError("gone")),
    "INFO Mine": type("Mine", (Event,), {})(),
}


@pytest.mark.alerts
@pytest.mark.parametrize("words", RECORDS)
def test_every_event_is_one_record(words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "portico")
    logs.record(RECORDS[words])
    assert [f"{record.levelname} {record.getMessage()}" for record in caplog.records] == [words]
    assert caplog.records[0].name == "portico"


def test_a_warning_says_what_is_wrong_with_forking_beside_threads(caplog: pytest.LogCaptureFixture) -> None:
    logs.record(ForkedWithThreads(3))
    assert "while 3 other threads run" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.alerts
@pytest.mark.parametrize(
    "event", [RequestFailed(None, PEER, LookupError("mine")), HookFailed("x", LookupError("mine"))]
)
def test_a_fault_comes_with_its_traceback(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    logs.record(event)
    assert "LookupError: mine" in caplog.text


@pytest.mark.alerts
@pytest.mark.skipif(
    not hasattr(socket, "SO_PEERCRED"), reason="who is behind a Unix socket is asked through SO_PEERCRED"
)
def test_a_unix_client_is_named_by_its_process(caplog: pytest.LogCaptureFixture) -> None:
    here, there = socket.socketpair()
    with here, there:
        logs.record(RequestFailed(here, "", LookupError()))
    logs.record(RequestFailed(here, "", LookupError()))
    logs.record(RequestFailed((b"payload", here), None, LookupError()))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"request from pid {os.getpid()}, uid {os.getuid()} failed"
    assert said[1:] == ["request from somebody without an address failed"] * 2


class Speechless(portico.TCPServer):
    def handle_event(self, event: Event) -> None:
        raise LookupError("telling failed")


@pytest.mark.alerts
def test_a_failing_handle_event_is_said_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with Speechless(("127.0.0.1", 0), lambda *_: None) as server:
        logs.emit(server, AcceptResumed())
    assert "handle_event raised an exception" in caplog.text
    assert "telling failed" in caplog.text


def test_a_log_that_fails_is_no_fault_of_the_server() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    logger, handler = logging.getLogger("portico"), Broken()
    logger.addHandler(handler)
    try:
        logs.emit(object(), HookFailed("x", LookupError()))
    finally:
        logger.removeHandler(handler)


@pytest.mark.alerts
def test_a_server_of_the_stdlib_has_its_events_logged(caplog: pytest.LogCaptureFixture) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        logs.emit(server, HookFailed("shutdown_request", LookupError()))
    assert "shutdown_request raised an exception" in caplog.text


def test_stdlib_compat_prints_word_for_word_what_the_stdlib_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(module: Any, **values: Any) -> str:
        with module.TCPServer(("127.0.0.1", 0), None, False, **values) as server:
            try:
                raise LookupError("mine")
            except LookupError:
                server.handle_error(None, PEER)
        return capsys.readouterr().err

    assert printed(portico, stdlib_compat=True) == printed(socketserver)


def test_faults_are_seen_on_stderr_where_nobody_configured_logging() -> None:
    program = (
        "import portico\nfrom portico.lifecycle import *\nfrom portico import logs\n"
        "logs.record(RequestFailed(None, 'peer', LookupError('mine')))\nlogs.record(AcceptResumed())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert result.stderr == "request from peer failed\nLookupError: mine\n"

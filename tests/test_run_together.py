"""Several servers as one program: `portico.run_together`; and what `run()` says of other moments than its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import portico

from .commands import ROOT, environment
from .loops import LOOPBACK, rest_of

PROGRAM = """
import sys, portico

class Upper(portico.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

    def goodbye(self):
        self.wfile.write(b"bye")

kinds = [getattr(portico, name) for name in sys.argv[2:]]
servers = [kinds[0](("127.0.0.1", 0), Upper, drain_timeout=0.3), kinds[1](sys.argv[1], Upper, drain_timeout=0.3)]
print(servers[0].server_address[1], flush=True)
sys.exit(portico.run_together(servers))
"""
KINDS = [
    ("ThreadingTCPServer", "ThreadingUnixStreamServer"),
    ("ForkingTCPServer", "ThreadingUnixStreamServer"),
    ("GreenTCPServer", "GreenUnixStreamServer"),
]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: kinds[0])
def test_one_signal_drains_them_all(kinds: tuple[str, str], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    command = [sys.executable, "-c", PROGRAM, path, *kinds]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), 10) as first, socket.socket(socket.AF_UNIX) as second:
                second.settimeout(10)
                second.connect(path)
                for client in (first, second):
                    client.sendall(b"hello\n")
                    assert client.recv(10) == b"HELLO\n"
                process.send_signal(signal.SIGTERM)
                assert [rest_of(client) for client in (first, second)] == [b"bye", b"bye"]
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert not os.path.exists(path)


def test_a_server_that_was_told_to_end_before_it_runs_has_ended() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, portico.BaseRequestHandler) as server:
        server.request_drain()
        assert server.run() == 0


def test_a_limit_of_lines_is_checked_when_the_server_is_made() -> None:
    kinds: list[tuple[Any, Any]] = [
        (portico.ThreadingTCPServer, portico.StreamRequestHandler),
        (portico.AsyncTCPServer, portico.AsyncStreamRequestHandler),
    ]
    for made, base in kinds:
        for wrong in (0, -5, "x", True):
            with pytest.raises(portico.SettingError, match=f"max_line must be .*, not {wrong!r}"):
                made(LOOPBACK, type("Handler", (base,), {"max_line": wrong}))

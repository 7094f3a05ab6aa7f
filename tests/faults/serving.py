"""Servers, clients and other processes for the tests of faults, on Portico and the standard library's module alike."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from logging import LogRecord
from pathlib import Path
from socket import AF_UNIX, SHUT_WR, create_connection, socket
from types import ModuleType
from typing import Any

from ..commands import environment
from ..waiting import until

LOCAL = ("127.0.0.1", 0)
PROLOGUE = "import importlib, sys; ss = importlib.import_module(sys.argv[1])\n"


def upper(request: Any, client_address: Any, server: Any) -> None:
    """A stream handler: answers all that the client says, up to its half-close, in capitals."""
    while piece := request.recv(4096):
        request.sendall(piece.upper())


def made(server_class: Any, handler: Any, address: Any = LOCAL, **attributes: Any) -> Any:
    """A server of a subclass with these class attributes, which is how both modules take settings."""
    return type("Server", (server_class,), attributes)(address, handler)


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread is in its selector's `select`."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "select"


def took(action: Callable[[], object], at_most: float) -> float:
    """The seconds that `action` took in a thread of its own; infinite if it had not ended after `at_most`."""
    begun = time.monotonic()
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(at_most)
    return float("inf") if thread.is_alive() else time.monotonic() - begun


@contextmanager
def serving(server: Any, poll_interval: float = 0.5) -> Iterator[threading.Thread]:
    """Serve in a bare thread, which waits for clients on entry; shut down and close on exit, as far as that ends."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,), daemon=True)
    thread.start()
    try:
        assert until(lambda: is_waiting(thread) or not thread.is_alive())
        yield thread
    finally:
        took(server.shutdown, 2)
        took(server.server_close, 2)
        thread.join(2)
        for pid in tuple(getattr(server, "active_children", None) or ()):
            os.kill(pid, signal.SIGKILL)  # not waited for, so that a server that has left one is still found out


def ask(address: Any, text: bytes = b"hello", seconds: float = 5) -> bytes:
    """What a server answers to one client that says `text` and no more."""
    with connected(address, seconds) as client:
        if text:
            client.sendall(text)
        with suppress(OSError):  # the server was first
            client.shutdown(SHUT_WR)
        return rest(client)


def connected(address: Any, seconds: float = 5) -> socket:
    if isinstance(address, tuple):
        return create_connection(address[:2], seconds)
    client = socket(AF_UNIX)
    client.settimeout(seconds)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def rest(client: socket) -> bytes:
    """All that comes until the other end closes."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def program(
    source: str, ss: ModuleType, *arguments: object, seconds: float = 8, command: tuple[str, ...] = (), **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """Another process, with `ss` the module under test; killed after `seconds` at the latest, so reading it ends."""
    process = subprocess.Popen(
        [*(command or (sys.executable,)), "-c", PROLOGUE + source, ss.__name__, *map(str, arguments)],
        env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more,
    )  # fmt: skip
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        watchdog.cancel()
        watchdog.join()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line it prints; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def levels(records: Iterable[LogRecord]) -> list[str]:
    """The levels of log records, but for the steps in a server's life, which every server tells."""
    return [record.levelname for record in records if not re.fullmatch(r"\w+, now \w+", record.getMessage())]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

"""Servers on either event loop, and the few things that a client of theirs does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import portico

LOOPBACK = ("127.0.0.1", 0)
LOOPS = ("asyncio", "uvloop")


def connected(server: Any) -> socket.socket:
    return socket.create_connection(server.server_address, 10)


def rest_of(client: socket.socket) -> bytes:
    """All that the server still says."""
    with client.makefile("rb") as answer:
        return answer.read()


def ask(server: Any, said: bytes = b"") -> bytes:
    """All that a server answers to a client that says just this."""
    with connected(server) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        return rest_of(client)


@contextmanager
def in_a_thread(target: Any, *arguments: Any) -> Iterator[threading.Thread]:
    """Runs beside the block, and has to end with it."""
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    yield thread
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def together(*servers: Any) -> Iterator[None]:
    """Serves these on one loop, and closes them at the end of the block."""
    thread = threading.Thread(target=portico.serve_together, args=(servers,))
    thread.start()
    try:
        yield
    finally:
        for server in servers:
            server.server_close()
        thread.join()

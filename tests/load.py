"""Clients in a process of their own, so that they neither hold the server's interpreter lock nor count in its memory.

Run as a program: `load.py NAME PORT [NUMBER ...]` calls the function of that name and prints what it returns as JSON.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SECONDS = 5
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close() sends a reset


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def connect_echo_close(port: int, number: int) -> int:
    """So many connections, one message each; every tenth client resets, every seventh ends its side first."""
    for count in range(number):
        with connected(port) as client:
            client.sendall(b"%d" % count)
            answer = client.recv(100)
            assert answer == b"%d" % count, answer
            if count % 10 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif count % 7 == 0:
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
    return number


def datagrams(port: int, number: int, window: int = 16) -> int:
    """So many datagrams, at most `window` of them unanswered; returns how many were answered."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", port))
        for count in range(number):
            if count >= window:
                client.recv(100)
            client.send(b"%d" % count)
        for _ in range(min(window, number)):
            client.recv(100)
    return number


def stream(port: int) -> None:
    """Send and receive as fast as can be, until the server ends the connection."""
    with connected(port) as client:
        client.sendall(b"stream")
        sender = threading.Thread(target=_send_all, args=(client,), daemon=True)
        sender.start()
        with suppress(OSError):
            # Thrown away by the kernel, so that the client is faster than any server.
            while client.recv(1 << 20, getattr(socket, "MSG_TRUNC", 0)):
                pass


def _send_all(client: socket.socket) -> None:
    piece = bytes(1 << 20)
    with suppress(OSError):
        while True:
            client.sendall(piece)


def pings(port: int, connections: int, rounds: int) -> dict[str, float]:
    """One message after the other, on each of so many connections in turn; milliseconds that the answers took.

    The first on each of them counts: it is answered when the connection has been accepted.
    """
    clients = [connected(port) for _ in range(connections)]
    took = []
    for _ in range(rounds):
        for client in clients:
            began = time.perf_counter()
            client.sendall(b"ping")
            assert client.recv(100) == b"ping"
            took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return {"median": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "worst": took[-1]}


# -- the test's side


def _command(name: str, server: Any, *numbers: int) -> list[str]:
    return [sys.executable, __file__, name, *map(str, (server.server_address[1], *numbers))]


def finished(name: str, server: Any, *numbers: int) -> Any:
    """What one of these clients returns."""
    done = subprocess.run(_command(name, server, *numbers), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def running(name: str, server: Any, *numbers: int) -> Iterator[subprocess.Popen[bytes]]:
    """One of these clients, beside the block."""
    process = subprocess.Popen(_command(name, server, *numbers), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*map(int, sys.argv[2:]))))

"""The process that makes the load, a script of its own: `client.py connections | datagrams PORT SECONDS`.

One thread and one epoll set, so that it costs the machine as little as it can. Prints one line of JSON: exchanges a
second, exchanges in all, failures.
"""

from __future__ import annotations

import select
import socket
import sys
import time

PAYLOAD = b"x" * 64
CONNECTIONS = 8  # at a time
SOCKETS = 16
WINDOW = 8  # datagrams in flight per socket
PATIENCE = 0.25  # seconds without an answer after which datagrams count as lost


def connections(port: int, seconds: float) -> tuple[int, int]:
    """Connect, send, read the echo up to the server's end of file, close; as often as possible."""
    poll = select.epoll()
    alive: dict[int, socket.socket] = {}
    done = failed = 0

    def connect() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        alive[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLOUT)

    for _ in range(CONNECTIONS):
        connect()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, event in poll.poll(PATIENCE):
            sock = alive[number]
            try:
                if event & select.EPOLLOUT:
                    sock.send(PAYLOAD)
                    poll.modify(number, select.EPOLLIN)
                    continue
                if sock.recv(1024):
                    continue
                done += 1
            except OSError:
                failed += 1
            del alive[number]
            sock.close()  # which takes it out of the set
            connect()
    for sock in alive.values():
        sock.close()
    return done, failed


def datagrams(port: int, seconds: float) -> tuple[int, int]:
    """Keep a window of datagrams in flight on each of some sockets."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(SOCKETS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sockets[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    done = lost = 0
    quiet = True  # nothing in flight
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if quiet:
            lost += SOCKETS * WINDOW if done else 0
            for sock in sockets.values():
                for _ in range(WINDOW):
                    sock.send(PAYLOAD)
        ready = poll.poll(PATIENCE)
        quiet = not ready
        for number, _ in ready:
            sock = sockets[number]
            try:
                while True:
                    sock.recv(1024)
                    sock.send(PAYLOAD)
                    done += 1
            except BlockingIOError:
                continue
    for sock in sockets.values():
        sock.close()
    return done, lost


if __name__ == "__main__":
    load = connections if sys.argv[1] == "connections" else datagrams
    length = float(sys.argv[3])
    exchanges, failures = load(int(sys.argv[2]), length)
    print(f'{{"rate": {exchanges / length}, "exchanges": {exchanges}, "failures": {failures}}}')

"""What counting costs: processor time of an echo, with all that counts and limits, and without.

The load is made here, by as many clients as a loop over their sockets can keep busy; what is measured is the server's.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from functools import partial

from . import processes
from .measures import Experiment, Measure, Plan
from .peers import machine

__all__ = ["EXPERIMENTS"]

_CLIENTS = 20
_MESSAGE = bytes(64)


def _clients(class_name: str, number: int) -> list[socket.socket]:
    is_unix = "Unix" in class_name
    made = []
    for _ in range(_CLIENTS):
        client = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        client.settimeout(processes.LIMIT)
        client.connect(f"\0portico bench {number}" if is_unix else ("127.0.0.1", number))
        made.append(client)
    return made


def _exchange(clients: list[socket.socket], seconds: float) -> int:
    """Echoes got in that time, one under way on each connection."""
    number, end = 0, time.perf_counter() + seconds
    by_descriptor = {client.fileno(): client for client in clients}
    with select.epoll() as poll:
        for client in clients:
            poll.register(client, select.EPOLLIN)
            client.sendall(_MESSAGE)
        while time.perf_counter() < end:
            for descriptor, _ in poll.poll(processes.LIMIT):
                client = by_descriptor[descriptor]
                number += bool(client.recv(1024))
                client.sendall(_MESSAGE)
        for client in clients:
            number += bool(client.recv(1024))
    return number


def _sample(class_name: str, side: str, plan: Plan) -> list[float]:
    """Microseconds of the server's processor time for a message, on one core: on two, threads wait for each other."""
    with processes.started(processes.command("counted.py", class_name, side), machine.cores().server) as server:
        clients = _clients(class_name, server.port)
        _exchange(clients, plan.seconds / 5)
        server.process.send_signal(signal.SIGUSR1)
        number = _exchange(clients, plan.seconds)
        for client in clients:
            client.close()
        return [server.end()["cpu"] / number * 1e6]


def _experiment(name: str, text: str, class_name: str, sides: tuple[str, str]) -> Experiment:
    measure = Measure(f"{text}: a 64-byte echo", "us", target=1.03)
    return Experiment(name, (measure,), partial(_sample, class_name), "linux", sides)


EXPERIMENTS = (
    _experiment("counting", "All limits and a log, of none, TCP", "GreenTCPServer", ("limited", "open")),
    _experiment("counting-unix", "Counted, of uncounted, Unix", "GreenUnixStreamServer", ("open", "uncounted")),
    _experiment("counting-threads", "- with threads", "ThreadingUnixStreamServer", ("open", "uncounted")),
)

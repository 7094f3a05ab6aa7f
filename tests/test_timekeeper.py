"""Who is to be looked at when: what has ended is not kept until its time would have come."""

from __future__ import annotations

import gc
import socket
from typing import Any

import portico
from portico._connection import Connection

from .loops import LOOPBACK
from .waiting import until


class Echo(portico.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(10))


def connections_in_memory(server: Any) -> int:
    gc.collect()
    return sum(isinstance(one, Connection) and one.server is server for one in gc.get_objects())


def test_ended_connections_are_not_kept_for_the_sake_of_their_time_limits() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, Echo, idle_timeout=600, connection_timeout=3600).background() as server:
        for _ in range(50):
            with socket.create_connection(server.server_address, 10) as client:
                client.sendall(b"x")
                assert client.recv(10) == b"x"
        assert until(lambda: server.stats().done == 50)
        assert until(lambda: connections_in_memory(server) <= 2)  # the last thread's is let go with the next

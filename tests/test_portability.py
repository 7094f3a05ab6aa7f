"""What only some systems have is not needed to import Portico or to serve TCP and UDP.

Another process takes fork, Unix sockets, poll, epoll, pidfd and MSG_DONTWAIT away before it imports Portico.
"""

from __future__ import annotations

import subprocess
import sys

from .commands import ROOT, environment

PROGRAM = """
import os, select, signal, socket

for module, names in {
    os: ["fork", "pidfd_open", "set_blocking"],
    select: ["poll", "epoll", "EPOLLIN"],
    socket: ["AF_UNIX", "MSG_DONTWAIT", "SO_REUSEPORT", "SO_PEERCRED"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.name = "other"

def socketpair():
    # as Python makes one where there is no native one
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        return listener.accept()[0], here

socket.socketpair = socketpair

import portico

class Stream(portico.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Datagram(portico.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())

for made, kind in (
    (portico.TCPServer, Stream), (portico.ThreadingTCPServer, Stream),
    (portico.UDPServer, Datagram), (portico.ThreadingUDPServer, Datagram),
):
    with made(("127.0.0.1", 0), kind).background() as server:
        with socket.socket(type=server.socket_type) as client:
            client.settimeout(10)
            client.connect(server.server_address)
            client.sendall(b"hello\\n")
            assert client.recv(99) == b"HELLO\\n"

assert not hasattr(portico, "ForkingTCPServer") and not hasattr(portico, "UnixStreamServer")
for wrong in (
    lambda: portico.TCPServer(("127.0.0.1", 0), Stream, allow_reuse_port=True),
    lambda: portico.TCPServer("/tmp/x.sock", Stream),
    lambda: portico.TCPServer(("127.0.0.1", 0), Stream, bind_and_activate=False).peer_credentials(None),
):
    try:
        wrong()
    except portico.PorticoError as error:
        print(error)
"""


def test_what_is_missing_is_not_needed_or_said_in_one_error() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "allow_reuse_port needs SO_REUSEPORT, which this system does not have",
        "'/tmp/x.sock' is a Unix address, and this system has no Unix sockets",
        "peer credentials need SO_PEERCRED, which this system does not have",
    ]

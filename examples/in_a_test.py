"""A server as a test double: ready when the block begins, gone when it ends. No port to choose, no sleep."""

import socket

import portico


class Canned(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"250 OK\r\n")


def test_client_understands_ok() -> None:
    with (
        portico.TCPServer(("127.0.0.1", 0), Canned).background() as server,
        socket.create_connection(server.server_address) as client,
        client.makefile("rw") as lines,
    ):
        print("NOOP", file=lines, flush=True)
        assert lines.readline() == "250 OK\n"


if __name__ == "__main__":
    test_client_understands_ok()
    print("the client understands OK")

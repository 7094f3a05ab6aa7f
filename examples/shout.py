"""A line server: what you send comes back in capitals. Serve it over TCP or a Unix socket.

portico serve examples.shout:Shout tcp://127.0.0.1:9999 unix:/tmp/shout.sock
"""

import portico


class Shout(portico.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


if __name__ == "__main__":
    with portico.ThreadingTCPServer(("127.0.0.1", 9999), Shout) as server:
        server.serve_forever()

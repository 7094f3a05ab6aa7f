"""Everybody hears everybody: a chat room for as many as come, each in a green thread, written as if there were one.

portico serve examples.chat:Chat tcp://127.0.0.1:9999 --concurrency green
"""

from typing import Any, ClassVar

import portico


class Chat(portico.StreamRequestHandler):
    room: ClassVar[set["Chat"]] = set()  # green threads take turns only where they wait: no lock needed

    def handle(self) -> None:
        self.room.add(self)
        for line in self.rfile:
            for other in tuple(self.room):
                other.wfile.write(line)

    def finish(self) -> None:
        self.room.discard(self)
        super().finish()


if __name__ == "__main__":
    server: Any = portico.GreenTCPServer(("127.0.0.1", 9999), Chat)
    with server:
        server.serve_forever()

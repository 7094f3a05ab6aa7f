"""Guess my number, over UDP: each player has a handler of his own, written as if there were only one.

python3 -m examples.guess                      in another terminal: socat - UDP:127.0.0.1:9999, or nc -u 127.0.0.1 9999
portico serve examples.guess:Guess udp://127.0.0.1:9999 --concurrency green --set sessions=true
"""

import random
from typing import Any

import portico


class Guess(portico.BaseRequestHandler):
    def handle(self) -> None:
        number = random.randint(1, 100)
        self.request.recv()  # whatever the player begins with
        self.request.send(b"A number from 1 to 100?\n")
        for tries, said in enumerate(self.request, 1):
            try:
                guess = int(said)
            except ValueError:
                self.request.send(b"That is no number.\n")
                continue
            if guess == number:
                self.request.send(b"Yes, after %d tries. Another game?\n" % tries)
                return  # what comes next begins a new one
            self.request.send(b"It is greater.\n" if guess < number else b"It is less.\n")


if __name__ == "__main__":
    server: Any = portico.GreenUDPServer(("127.0.0.1", 9999), Guess, sessions=True, session_timeout=300)
    with server:
        server.serve_forever()

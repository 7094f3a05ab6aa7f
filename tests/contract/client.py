"""The clients of the contract suite, all in one other process.

A forked handler holds copies of whatever sockets the test's process has, so a client there could not really disappear.
Commands come as JSON lines on stdin, answers go as JSON lines to stdout; bytes travel as base64.
"""

from __future__ import annotations

import base64
import json
import selectors
import socket
import struct
import sys
from typing import Any

SECONDS = 15
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close() sends a reset


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpacked(text: str) -> bytes:
    return base64.b64decode(text)


class Peers:
    """The sockets by number. Every method is a command."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def connect(self, family: int, kind: int, address: Any, own: str | None) -> int:
        peer = socket.socket(family, kind)
        peer.settimeout(SECONDS)
        if own is not None:
            peer.bind(own)
        peer.connect(tuple(address) if isinstance(address, list) else address)
        self._sockets[peer.fileno()] = peer
        return peer.fileno()

    def send(self, number: int, data: str) -> None:
        self._sockets[number].sendall(unpacked(data))

    def receive(self, number: int, size: int) -> str:
        """So many bytes of a stream, or fewer at its end; or one datagram."""
        peer, data = self._sockets[number], b""
        while len(data) < size:
            piece = peer.recv(size - len(data))
            data += piece
            if not piece or peer.type == socket.SOCK_DGRAM:
                break
        return packed(data)

    def receive_all(self, number: int) -> str:
        pieces = []
        while piece := self._sockets[number].recv(65536):
            pieces.append(piece)
        return packed(b"".join(pieces))

    def end_writing(self, number: int) -> None:
        self._sockets[number].shutdown(socket.SHUT_WR)

    def close(self, number: int, reset: bool) -> None:
        peer = self._sockets.pop(number)
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()

    def exchange(self, number: int, pieces: list[str]) -> str:
        """Send in these pieces, receiving all the while; end the writing side; return all that came until EOF."""
        peer, waiting, received = self._sockets[number], [unpacked(piece) for piece in pieces][::-1], []
        with selectors.DefaultSelector() as selector:
            selector.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while ready := selector.select(SECONDS):
                events = ready[0][1]
                if events & selectors.EVENT_WRITE:
                    piece = waiting.pop()
                    if rest := piece[peer.send(piece) :]:
                        waiting.append(rest)
                    if not waiting:
                        peer.shutdown(socket.SHUT_WR)
                        selector.modify(peer, selectors.EVENT_READ)
                if events & selectors.EVENT_READ:
                    data = peer.recv(65536)
                    if not data:
                        return packed(b"".join(received))
                    received.append(data)
        raise TimeoutError("the exchange has come to a standstill")

    def ask(self, number: int, payloads: list[str], window: int) -> list[str]:
        """Send datagrams, at most `window` unanswered ones at once; return as many answers, as they come."""
        peer, answers = self._sockets[number], []
        for sent, payload in enumerate(payloads, 1):
            peer.send(unpacked(payload))
            if sent - len(answers) >= window:
                answers.append(packed(peer.recv(65536)))
        while len(answers) < len(payloads):
            answers.append(packed(peer.recv(65536)))
        return answers

    def left_over(self, number: int) -> list[str]:
        """Datagrams that are there already."""
        peer, found = self._sockets[number], []
        peer.setblocking(False)
        try:
            while True:
                found.append(packed(peer.recv(65536)))
        except BlockingIOError:
            return found
        finally:
            peer.settimeout(SECONDS)

    def forget(self) -> None:
        for peer in self._sockets.values():
            peer.close()
        self._sockets.clear()


def main() -> None:
    peers = Peers()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer: Any = {"answer": getattr(peers, name)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

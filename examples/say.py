"""A client for all the examples: says a line and prints the answer.

python3 -m examples.say tcp 127.0.0.1:9999 hello
"""

import socket
import sys


def say(kind: str, where: str, text: str) -> str:
    host, _, port = where.rpartition(":")
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(where if kind == "unix" else (host, int(port)))
        client.sendall(text.encode() + b"\n")
        return client.recv(65535).decode().strip()


if __name__ == "__main__":
    print(say(*sys.argv[1:]))

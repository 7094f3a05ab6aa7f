"""A client for all the examples: says a line and prints the answer.

python3 -m examples.say tcp 127.0.0.1:9999 hello
python3 -m examples.say tls localhost:9999 hello ca.pem         believes whom ca.pem has signed
python3 -m examples.say tls localhost:9999 hello ca.pem me.pem  and shows a certificate of its own
"""

import socket
import ssl
import sys


def say(kind: str, where: str, text: str, authority: str | None = None, certificate: str | None = None) -> str:
    host, _, port = where.rpartition(":")
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    with client:
        client.settimeout(5)
        client.connect(where if kind == "unix" else (host, int(port)))
        if kind == "tls":
            context = ssl.create_default_context(cafile=authority)
            if certificate is not None:
                context.load_cert_chain(certificate)
            client = context.wrap_socket(client, server_hostname=host)
        with client:
            client.sendall(text.encode() + b"\n")
            return client.recv(65535).decode().strip()


if __name__ == "__main__":
    print(say(*sys.argv[1:]))

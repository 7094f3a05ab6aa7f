"""A box for everybody: what you put in, only you get out. Who you are is not yours to say.

A certificate says it, or the kernel over a Unix socket, or else the address that you come from:

portico serve examples.lockbox:Lockbox tls://127.0.0.1:9999 --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem
portico serve examples.lockbox:Lockbox unix:/tmp/lockbox.sock
python3 -m examples.lockbox --cert cert.pem --key key.pem --ca ca.pem     (python3 -m examples.lockbox: in plain text)
"""

import argparse

import portico


class Lockbox(portico.StreamRequestHandler):
    max_line = 4096
    boxes: dict[str, bytes]

    def setup(self) -> None:
        super().setup()
        self.boxes = vars(self.server).setdefault("boxes", {})

    def handle(self) -> None:
        me = self.name()
        for line in self.rfile:
            word, _, what = line.strip().partition(b" ")
            if word == b"put":
                self.boxes[me] = what
                self.wfile.write(f"Kept for {me}.\n".encode())
            elif word == b"get":
                self.wfile.write(self.boxes.get(me, b"Your box is empty.") + b"\n")
            else:
                self.wfile.write(f"Hello, {me}: put SOMETHING, or get\n".encode())

    def name(self) -> str:
        client = self.client
        if client.names:  # in a certificate that our authority has signed
            return client.names[0]
        return f"user {client.credentials.uid}" if client.credentials else str(client.address[0])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Boxes, on 127.0.0.1:9999.")
    for option in "--cert", "--key", "--ca":
        options.add_argument(option)
    given = options.parse_args()
    tls = given.cert and portico.TLS(given.cert, given.key, client_ca=given.ca)
    with portico.ThreadingTCPServer(("127.0.0.1", 9999), Lockbox, tls=tls) as server:
        server.serve_forever()

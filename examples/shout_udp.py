"""The same for datagrams, as in every tutorial.

portico serve examples.shout_udp:MyUDPHandler udp://127.0.0.1:9999
"""

import portico as socketserver


class MyUDPHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data = self.request[0].strip()
        sock = self.request[1]
        print(f"{self.client_address[0]} wrote: {self.data}", flush=True)
        sock.sendto(data.upper(), self.client_address)


if __name__ == "__main__":
    with socketserver.UDPServer(("127.0.0.1", 9999), MyUDPHandler) as server:
        server.serve_forever()

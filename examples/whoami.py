"""Who is there? A Unix socket for one group only, answered by the kernel's word and not the client's.

portico serve examples.whoami:WhoAmI unix:/tmp/whoami.sock --set unix_mode=660
"""

import portico


class WhoAmI(portico.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        peer = self.server.peer_credentials(self.request)
        self.wfile.write(f"you are process {peer.pid} of user {peer.uid}\n".encode())


if __name__ == "__main__":
    with portico.ThreadingUnixStreamServer("/tmp/whoami.sock", WhoAmI, unix_mode=0o660) as server:
        server.serve_forever()

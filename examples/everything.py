"""TCP, UDP and a Unix socket, from one process and one loop: what `make run` serves until Ctrl-C."""

import sys

import portico
from examples.shout import Shout
from examples.shout_udp import MyUDPHandler

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
path = "/tmp/portico-example.sock"
python = "{:60} # or: python3 -m examples.say {} hello"

with (
    portico.ThreadingTCPServer(("127.0.0.1", port), Shout) as tcp,
    portico.ThreadingUDPServer(("127.0.0.1", port), MyUDPHandler) as udp,
    portico.ThreadingUnixStreamServer(path, Shout) as unix,
):
    print("Serving until Ctrl-C. Try, in another terminal:\n")
    for kind, server, nc in ("tcp", tcp, "nc -q1"), ("udp", udp, "nc -u -w1"):
        host, chosen = server.server_address
        print(python.format(f"echo hello | {nc} {host} {chosen}", f"{kind} {host}:{chosen}"))
    print(python.format(f"echo hello | nc -q1 -U {path}", f"unix {path}"), flush=True)
    try:
        portico.serve_together([tcp, udp, unix])
    except KeyboardInterrupt:
        print("closed")

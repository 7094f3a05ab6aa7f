"""TCP, UDP and a Unix socket, from one process and one loop: what `make run` serves until Ctrl-C."""

import sys
from contextlib import ExitStack, suppress

import portico
from examples.shout import Shout
from examples.shout_udp import MyUDPHandler

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
path = "/tmp/portico-example.sock"
python = "{:60} # or: python3 -m examples.say {} hello"

with ExitStack() as stack:
    try:
        tcp = stack.enter_context(portico.ThreadingTCPServer(("127.0.0.1", port), Shout))
        udp = stack.enter_context(portico.ThreadingUDPServer(("127.0.0.1", port), MyUDPHandler))
        unix = stack.enter_context(portico.ThreadingUnixStreamServer(path, Shout))
    except OSError as error:
        sys.exit(f"{error.strerror}. Another port: make run PORT=8888")
    print("Serving until Ctrl-C. Try, in another terminal:\n")
    for kind, server, nc in ("tcp", tcp, "nc -q1"), ("udp", udp, "nc -u -w1"):
        host, chosen = server.server_address
        print(python.format(f"echo hello | {nc} {host} {chosen}", f"{kind} {host}:{chosen}"))
    print(python.format(f"echo hello | nc -q1 -U {path}", f"unix {path}"), flush=True)
    with suppress(KeyboardInterrupt):
        portico.serve_together([tcp, udp, unix])
    print("closed")

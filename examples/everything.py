"""TCP, UDP, TLS and a Unix socket, from one process and one loop: what `make run` serves until Ctrl-C."""

import subprocess
import sys
from contextlib import ExitStack, suppress
from tempfile import TemporaryDirectory

import portico
from examples.shout import Shout
from examples.shout_udp import MyUDPHandler

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
path = "/tmp/portico-example.sock"
python = "{:60} # or: python3 -m examples.say {}"
openssl = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost -addext {} {}"


def self_signed(folder: str) -> tuple[str, str]:
    """A certificate and its key, if there is the `openssl` to make them."""
    certificate, key = f"{folder}/cert.pem", f"{folder}/key.pem"
    command = openssl.format("subjectAltName=DNS:localhost,IP:127.0.0.1", f"-out {certificate} -keyout {key}")
    with suppress(OSError):
        subprocess.run(command.split(), capture_output=True, check=False)
    return certificate, key


with ExitStack() as stack:
    certificate, key = self_signed(stack.enter_context(TemporaryDirectory()))
    tls = None
    try:
        tcp = stack.enter_context(portico.ThreadingTCPServer(("127.0.0.1", port), Shout))
        udp = stack.enter_context(portico.ThreadingUDPServer(("127.0.0.1", port), MyUDPHandler))
        unix = stack.enter_context(portico.ThreadingUnixStreamServer(path, Shout))
        with suppress(portico.TLSError):  # without openssl there is no certificate
            made = portico.TLS(certificate, key)
            tls = stack.enter_context(portico.ThreadingTCPServer(("127.0.0.1", port and port + 1), Shout, tls=made))
    except OSError as error:
        sys.exit(f"{error.strerror}. Another port: make run PORT=8888")
    print("Serving until Ctrl-C. Try, in another terminal:\n")
    for kind, server, nc in ("tcp", tcp, "nc -q1"), ("udp", udp, "nc -u -w1"):
        host, chosen = server.server_address
        print(python.format(f"echo hello | {nc} {host} {chosen}", f"{kind} {host}:{chosen} hello"))
    if tls is not None:
        host, chosen = tls.server_address
        said = f"openssl s_client -quiet -connect {host}:{chosen}", f"tls {host}:{chosen} hello {certificate}"
        print(python.format(*said))
    print(python.format(f"echo hello | nc -q1 -U {path}", f"unix {path} hello"), flush=True)
    with suppress(KeyboardInterrupt):
        portico.serve_together([server for server in (tcp, udp, tls, unix) if server is not None])
    print("closed")

"""What every serving process does besides serving: says its port, or that it cannot serve, and on SIGTERM what it took.

Nothing here is loaded for its own sake: the memory of the process is to be the peer's.
"""

from __future__ import annotations

import importlib
import itertools
import os
import resource
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = [
    "BACKLOG",
    "CHUNK",
    "HANDLED",
    "HOST",
    "RECEIVE",
    "STREAM",
    "context",
    "enlarge",
    "need",
    "opened_by",
    "part",
    "plain",
    "ready",
    "refuse",
]

HOST = "127.0.0.1"
BACKLOG = 1024  # everybody's, so that the length of the queue (socketserver: 5) does not decide
RECEIVE = 16384  # bytes asked for at a time, where a peer wants to be told
STREAM = b"S"  # a message that begins with it asks for a stream, where the service is "stream"
CHUNK = b"s" * 65536
HANDLED = itertools.count()  # a handler that only counts takes the next: one call in C, so no thread misses one


def need(name: str) -> Any:
    """A package that may not be there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        refuse(f"not installed ({error})")


def part(module: Any, name: str) -> Any:
    """What a later version of the module will have."""
    if not hasattr(module, name):
        refuse(f"not there yet ({module.__name__} has no {name})")
    return getattr(module, name)


_OVER_TLS = ("tls", "handshakes")


def plain(service: str) -> str:
    """What a handler serves, however its connections are opened."""
    return "echo" if service in (*_OVER_TLS, "proxy") else service


def context(service: str, module: Any = None) -> Any:
    """A server's `SSLContext` with our certificate, all else as `module` (`ssl`) has it; None for services without."""
    if service not in _OVER_TLS:
        return None
    ssl = module or importlib.import_module("ssl")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(_certificate())
    return made


def opened_by(portico: Any, service: str) -> dict[str, object]:
    """Portico's settings for the same, and for who is announced by a proxy."""
    if service in _OVER_TLS:
        return {"tls": part(portico, "TLS")(_certificate())}
    return {"proxy_protocol": "required", "proxy_trusted": ["127.0.0.0/8"]} if service == "proxy" else {}


def _certificate() -> str:
    from .encryption import CannotEncryptError, certificate

    try:
        return str(certificate())
    except CannotEncryptError as error:
        refuse(str(error))


def enlarge(sock: Any) -> None:
    """Have 4 MiB of datagrams wait, which is everybody's: this is to measure servers, not the length of a queue.

    By default it is 208 KiB on Linux, less than 128 datagrams of 1,200 bytes take. The kernel gives what its
    net.core.rmem_max allows.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)


def ready(port: int) -> None:
    """Serving begins now: say where."""
    _settle_the_allocator()
    signal.signal(signal.SIGTERM, _end)
    _say(str(port))


def refuse(why: str) -> NoReturn:
    """This peer cannot serve."""
    _say(f"no: {why}")
    sys.exit(3)


def _settle_the_allocator() -> None:
    """Free one big block, as any program of some size has done.

    Until then glibc maps every buffer of 128 KiB or more anew, and asyncio asks for 256 KiB at each read: in a process
    as young as this one its messages would cost up to three times as much, until a chance free ends that.
    """
    block = bytearray(1 << 20)
    del block


def _end(number: int, frame: Any) -> NoReturn:
    # In the signal handler, whatever the loop is at: an end in good order is nothing to measure here.
    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = {"VmHWM": 0, "VmRSS": 0}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in memory:
                memory[name] = int(value.split()[0])
    cpu = used.ru_utime + used.ru_stime
    took = f'"cpu": {cpu:.6f}, "peak": {memory["VmHWM"]}, "rss": {memory["VmRSS"]}'
    _say(f'{{{took}, "handled": {next(HANDLED)}}}')
    os._exit(0)


def _say(line: str) -> None:
    # Past sys.stdout, whose lock the interrupted code may hold.
    os.write(1, (line + "\n").encode())

"""The serving process: `python -m reliability.server SPEC`, SPEC being JSON. It prints its address when it is ready.

With `times` it makes that many servers, one after the other, and each runs until it is told by a signal to drain.
Without, it serves until it is killed, together with a plain server on a Unix socket (`control`), in the same loop and
with no thread more: that one is asked for figures, and told to cut connections.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import portico
from portico.events import ConnectionEnded, ConnectionStarted

from .books import Books, who
from .handlers import handler_for

__all__ = ["Spec"]

Spec = dict[str, Any]
DRAIN = 0.5
"""Seconds."""


def server_class(spec: Spec) -> Any:
    unix = spec["address"] is not None
    base: Any = getattr(portico, spec["prefix"] + ("UnixStreamServer" if unix else "TCPServer"))
    if not spec["events"]:
        return base

    class Told(base):  # type: ignore[misc]
        """Keeps books of the events of connections, as a program would that wants to know of each."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.books = Books()
            super().__init__(*arguments, **settings)

        def handle_event(self, event: Any) -> None:
            if type(event) is ConnectionStarted:
                self.books.starts(event.connection)
            elif type(event) is ConnectionEnded:
                self.books.ends(event.connection)
            else:
                super().handle_event(event)

    return Told


def make(spec: Spec) -> Any:
    address = spec["address"] or ("127.0.0.1", 0)
    settings = spec["settings"]
    if spec["tls"]:
        settings = {**settings, "tls": portico.TLS(*spec["tls"][:2])}
    return server_class(spec)(address, handler_for(spec), **settings)


# -- what the server under test is asked


def tidied() -> None:
    """Give back what is free, so that memory is what is held: else the C allocator's gaps come and go by half a MiB."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def leftovers() -> dict[str, int]:
    """What a server must not have more of when its connections have ended, and how many objects there are."""
    tidied()
    objects = len(gc.get_objects())
    children = [
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    ]
    found = {
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "threads": threading.active_count(),
        "children": len(children),
        "tasks": 0,
        "green threads": 0,
        "objects": objects,
    }
    if "asyncio" in sys.modules:
        import asyncio

        if asyncio._get_running_loop() is not None:
            found["tasks"] = len(asyncio.all_tasks())
    if "greenlet" in sys.modules:
        from greenlet import greenlet

        from portico._hub import Hub

        every = gc.get_objects()
        kept = sum(len(one.spare) for one in every if isinstance(one, Hub))  # for the next requests: at most 256
        found["green threads"] = sum(bool(one) for one in every if isinstance(one, greenlet)) - kept
    return found


def counts(server: Any) -> dict[str, Any]:
    stats = server.stats()
    names = ("accepted", "active", "done", "failed", "refused", "timed_out", "ended", "bytes_in", "bytes_out")
    books = getattr(server, "books", None)
    return {name: getattr(stats, name) for name in names} | {"most": books.most if books is not None else None}


def answer(server: Any, order: str, argument: str) -> Any:
    """What it is asked for: "counts", "leftovers", "books", who is "live", and in which child; or told: "tidy" frees
    what is free, "cut" cuts a connection, that of a certain client or any, and "drain" begins a short drain, as SIGUSR1
    does."""
    if order == "leftovers":
        return leftovers()
    if order == "books":
        return server.books.pages()
    if order == "live":
        return {who(one): one.runner if isinstance(one.runner, int) else 0 for one in server.connections()}
    if order == "tidy":
        tidied()
    elif order == "cut":
        return {"cut": cut(server, argument)}
    elif order == "drain":
        drain(server)
    else:
        return counts(server)
    return {}


def drain(server: Any) -> None:
    threading.Thread(target=server.drain, args=(DRAIN,)).start()


def cut(server: Any, client: str) -> int:
    """Close the connection of that client, or a random one; its number, or 0 if there is none."""
    found = [one for one in server.connections() if not client or who(one) == client]
    if not found:
        return 0
    chosen = random.choice(found)
    chosen.close()
    return int(chosen.id)


def control(server: Any, path: str) -> Any:
    class Control(portico.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            self.request.settimeout(5)
            order, _, argument = self.request.recv(200).decode().strip().partition(" ")
            self.request.sendall(json.dumps(answer(server, order, argument)).encode())

    return portico.UnixStreamServer(path, Control)


# -- serving


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def serve(spec: Spec) -> None:
    server = make(spec)
    asked = control(server, spec["control"])
    if spec["descriptors"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["descriptors"],) * 2)
    signal.signal(signal.SIGUSR1, lambda *_: drain(server))
    say(address=server.server_address)
    portico.serve_together([server, asked])


def drains(spec: Spec) -> None:
    for _ in range(spec["times"]):
        server = make(spec)
        say(address=server.server_address)
        status = server.run()
        # Of the same clock as the one who sent the signal: CLOCK_MONOTONIC is the system's.
        say(returned=time.monotonic(), status=status)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    spec: Spec = json.loads(sys.argv[1])
    socket.setdefaulttimeout(None)
    if spec["times"]:
        drains(spec)
    else:
        serve(spec)


if __name__ == "__main__":
    main()

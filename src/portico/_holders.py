"""Who holds an address: finds the process behind "Address already in use", for the error message.

Linux only, from /proc (proc(5)); elsewhere, and wherever it may not look, it knows nothing and says so with None. The
search is bounded: a host with a hundred thousand descriptors must not be searched for the sake of a message.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["holder"]

_MOST_DESCRIPTORS = 50_000
_LISTEN = "0A"  # TCP_LISTEN, net/tcp_states.h


def holder(kind: int, address: Any) -> str | None:
    """ "pid 123 (name)" of the process that holds the address, or None if that cannot be found out.

    `kind` is SOCK_STREAM or SOCK_DGRAM, `address` a pair or tuple of the internet families, or a Unix path.
    """
    try:
        inodes = set(_inet_inodes(kind, int(address[1])) if isinstance(address, tuple) else _unix_inodes(address))
        return _owner({f"socket:[{inode}]" for inode in inodes}) if inodes else None
    except (OSError, ValueError, IndexError, TypeError):
        return None


def _inet_inodes(kind: int, port: int) -> Iterator[str]:
    tables = ("tcp", "tcp6") if kind == socket.SOCK_STREAM else ("udp", "udp6")
    for table in tables:
        for fields in _rows(f"/proc/net/{table}"):
            if int(fields[1].rpartition(":")[2], 16) == port and (kind == socket.SOCK_DGRAM or fields[3] == _LISTEN):
                yield fields[9]


def _unix_inodes(path: str | bytes) -> Iterator[str]:
    name = os.fsdecode(path).replace("\0", "@", 1)
    for fields in _rows("/proc/net/unix"):
        if len(fields) > 7 and fields[7] == name:
            yield fields[6]


def _rows(path: str) -> Iterator[list[str]]:
    with open(path) as table:
        next(table, None)
        for line in table:
            yield line.split()


def _owner(links: set[str]) -> str | None:
    budget = _MOST_DESCRIPTORS
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # ended meanwhile, or another user's
            continue
        budget -= len(descriptors)
        if any(_link(f"/proc/{pid}/fd/{number}") in links for number in descriptors):
            with open(f"/proc/{pid}/comm") as name:
                return f"pid {pid} ({name.read().strip()})"
        if budget < 0:
            return None
    return None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

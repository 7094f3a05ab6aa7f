"""What can be known of a Unix socket's connection from beside it: what its peer has not read, and whether it moves.

TCP keeps count of both ways (`_meters`). For Unix sockets Linux tells what lies in a peer's queue (sock_diag(7)), and
wakes whoever watches a copy of the descriptor, so that time limits hold even for what nobody counts.
"""

from __future__ import annotations

import os
import socket
from struct import Struct, error
from time import monotonic

from ._meters import Traffic, in_queue, out_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["Glances", "peer_takes", "unread_by_peer"]

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
# struct nlmsghdr and unix_diag_req of linux/{netlink,unix_diag}.h: any protocol, state and cookie.
_ASKED: Final = Struct("=IHHII BBHIIIII")
# struct nlmsghdr and unix_diag_msg, and of an attribute its length and kind.
_ANSWERED: Final = Struct("=IHHII BBBBIII")
_ATTRIBUTE: Final = Struct("=HH")
_NUMBER: Final = Struct("=I")
_ANY: Final = 0xFFFFFFFF
_SHOW_PEER, _PEER = 0x04, 2
_SHOW_QUEUES, _QUEUES = 0x10, 4


def unread_by_peer(sock: Any) -> int | None:
    """Bytes of what was sent that the peer of a Unix socket has not read; None where that cannot be known.

    10 to 40 us (measured, with up to 10,000 sockets), so it is for few looks.
    """
    try:
        mine = os.fstat(sock.fileno()).st_ino
        peer = _tell(mine, _SHOW_PEER, _PEER)
        return None if peer is None else _tell(peer, _SHOW_QUEUES, _QUEUES)
    except (OSError, ValueError, AttributeError, error):  # not on Linux; not allowed; the peer has gone
        return None


def _tell(inode: int, show: int, wanted: int) -> int | None:
    """The first number of this attribute of a Unix socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as asking:
        family = int(socket.AF_UNIX)
        asking.send(_ASKED.pack(_ASKED.size, _BY_FAMILY, 1, 0, 0, family, 0, 0, _ANY, inode, show, _ANY, _ANY))
        answer = asking.recv(4096, socket.MSG_DONTWAIT)  # it is there when the question has been sent
    if _ANSWERED.unpack_from(answer)[1] != _BY_FAMILY:
        return None
    place = _ANSWERED.size
    while place + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, place)
        if kind == wanted:
            return int(_NUMBER.unpack_from(answer, place + _ATTRIBUTE.size)[0])
        place += max(length + 3 & ~3, _ATTRIBUTE.size)
    return None


def peer_takes(sock: Any, sent: int) -> tuple[int, int]:
    """Two numbers. When the peer of a Unix socket has taken something since they were last asked for, one has grown.

    Where it cannot be known, or what was counted is not what lies in the queue (TLS), something that was sent meanwhile
    is taken for something taken: until the queue is full, which is soon.
    """
    left = unread_by_peer(sock)
    if left is None:
        return sent, -out_queue(sock)
    return (sent if _may_be_encrypted(sock) else sent - left), -left


def _may_be_encrypted(sock: Any) -> bool:
    return hasattr(sock, "secured") or getattr(sock, "end_reading", None) is not None


class Glances:
    """Tells whether something has moved between one look and the next, whoever moves it: nothing is counted.

    What comes, and what the peer reads, wakes those who watch the socket, even if it has gone again when they look.
    """

    def __init__(self, sock: Any) -> None:
        import select

        self._moves = 0
        self._moved_at = monotonic()
        self._queues = (0, 0)
        self._edges = select.epoll()
        self._edges.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def traffic(self, sock: Any) -> Traffic:
        queues = in_queue(sock), out_queue(sock)
        if self._has_moved() or queues != self._queues:
            self._moves, self._moved_at, self._queues = self._moves + 1, monotonic(), queues
        when = self._moved_at
        traffic = Traffic(0, 0, taken=self._moves, waiting=queues[1], heard=when, said=when)
        traffic.glimpsed = True
        return traffic

    def _has_moved(self) -> bool:
        try:
            return bool(self._edges.poll(0))
        except (OSError, ValueError):  # it has ended meanwhile
            return False

    def close(self) -> None:
        self._edges.close()

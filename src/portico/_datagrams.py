"""A datagram server's own socket: receives in batches, and answers from the address that was asked.

What a handler sends with `sendto` leaves from where its request came to. Answers of a batch leave together (`Answers`),
where requests run one after the other in the loop's own thread. What the kernel's calls look like is `_mmsg`'s, which
options there are `_datagram_options`'; what becomes of a request is the server's business.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import threading
from collections import deque, namedtuple
from threading import get_ident
from weakref import WeakSet, ref

from ._datagram_options import kernel_drops
from ._peers import NAME_LENGTH, PeerAddress, Peers, Route
from ._sockets import DONT_WAIT, ServerSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

__all__ = [
    "BATCH", "LONGEST", "MANY", "Answers", "DatagramSocket", "Shape", "addressed", "flush_answers", "knows_peers",
    "receive_one", "send_now",
]  # fmt: skip

BATCH: Final = 64
"""Datagrams received or sent by one call, at most (`_mmsg` says why)."""
_Socket: Any = socket.SocketType
LONGEST: Final = 65507
"""Bytes of the longest datagram over IPv4 (RFC 768: 65535 with its head and IP's)."""
_WILDCARDS: Final = ("0.0.0.0", "::", "::ffff:0.0.0.0")
_LINUX: Final = (sys.platform, os.name) == ("linux", "posix") and sys.maxsize > 1 << 32  # `_mmsg` knows no others
# As plain numbers: an enum's & takes longer than the call that returns it.
_PEEK: Final = int(socket.MSG_PEEK)
_TRUNC: Final = int(getattr(socket, "MSG_TRUNC", 0))
_ANCILLARY: Final = socket.CMSG_SPACE(64) if hasattr(socket, "CMSG_SPACE") else 0
# What a device says that cannot cut up what it is given for several (udp(7)).
_CANNOT_CUT: Final = (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP)
# Seconds after which it is tried again on a loop.
_SOON: Final = 0.001
# Milliseconds that answers wait for room in the kernel before the first is given up.
_PATIENCE: Final = 10_000
MANY: Final = 1024
"""Answers that may wait on a loop for room, before who has more waits himself."""
# What a forked child must not send once more. Of the process, as a fork is.
_live: Final[WeakSet[Answers]] = WeakSet()


def knows_peers(family: int) -> bool:
    """Whether datagrams of this family can be received by the batch, with the address of ours that each was sent to."""
    if not _LINUX or int(family) not in NAME_LENGTH:
        return False
    try:
        from . import _mmsg  # noqa: F401  # not before there is a server
    except (ImportError, AttributeError):  # a Python without ctypes, a C library without these calls
        return False
    return True


def receive_one(sock: Any, buffer: bytearray, flags: int) -> tuple[bytes, Any, bool]:
    """One datagram from any socket: payload, sender, and whether there was more of it than fits the buffer."""
    if not hasattr(sock, "recvmsg_into"):  # Windows, which raises an error instead
        return (*sock.recvfrom(len(buffer), flags), False)
    peers = sock.peers if isinstance(sock, DatagramSocket) else None
    # No room for what is not asked for: a Unix peer could fill our table of descriptors with his (SCM_RIGHTS).
    count, ancillary, told, address = sock.recvmsg_into([buffer], 0 if peers is None else _ANCILLARY, flags)
    payload = bytes(memoryview(buffer)[:count])
    if peers is not None:
        address = peers.of(address, ancillary)
    return payload, address, bool(told & _TRUNC)


def send_now(sock: Any, data: Any, flags: int, route: Route) -> int:
    """`sendto` a peer, from the address that he has asked. By the interface he came by, if there is a way back."""
    if not route.control:
        return int(_Socket.sendto(sock, data, flags, route.target))
    peers = route.peers
    try:
        return int(_Socket.sendmsg(sock, [data], peers.ancillary(route), flags, route.target))
    except (BlockingIOError, InterruptedError):
        raise
    except OSError:
        if not route.interface:
            raise
        return int(_Socket.sendmsg(sock, [data], peers.ancillary(route, any_interface=True), flags, route.target))


def addressed(answers: Answers | None, ancdata: Any, flags: int, address: Any) -> tuple[Any, int, Any]:
    """The last three arguments of `sendmsg`, so that it sends from the address that was asked."""
    route = None if answers is None or address is None else answers.route(address)
    if route is None:
        return ancdata, flags, address
    return list(ancdata) or route.peers.ancillary(route), flags, route.target


class Answers:
    """Answers that leave together, in the order in which they were given: of one thread, through one socket.

    `unsent` is called with what could not be sent: the error, the payload and the address.
    """

    __slots__ = (
        "__weakref__", "_joins_again", "_outgoing", "_sock", "_tries_later", "joined", "later", "lock", "peers",
        "soon", "thread", "unsent", "waiting",
    )  # fmt: skip

    def __init__(self, sock: Any, peers: Peers, unsent: Callable[..., None], *, joined: bool) -> None:
        from ._mmsg import Outgoing  # not before there is a server

        self._sock = ref(sock)  # which knows its answers
        self.peers = peers
        self.unsent = unsent
        self.joined = joined
        self._outgoing = Outgoing(peers, joined=joined)
        # Held while a descriptor is used, also by whoever closes it: else the number may be another socket's by then.
        self.lock = threading.RLock()
        self.waiting: list[tuple[bytes, Route]] = []
        self.thread = 0
        """The thread whose answers are kept for a moment; 0 for none."""
        _live.add(self)
        self._joins_again = self._tries_later = False
        self.later: Callable[[float, Callable[[], object]], object] | None = None
        """Has `flush` called in so many seconds, on a loop, which must not wait for room."""
        self.soon: Callable[[Callable[[], object]], object] | None = None
        """Has `flush` called when the handlers that can run now have had their turn; None where others see to it."""

    def keep(self, data: Any, address: Any) -> bool:
        """Keep an answer, to be sent with the others, if it is one that can be; whether it is.

        In the hot path of every answer: measured, its checks are a fifth of a microsecond.
        """
        if type(address) is not PeerAddress or get_ident() != self.thread or type(data) is not bytes:
            return False
        waiting, route = self.waiting, address.route
        if route.peers is not self.peers or len(data) > LONGEST or len(waiting) >= MANY:
            return False
        if not waiting and self.soon is not None:
            self.soon(self.flush)
        waiting.append((data, route))
        return True

    def route(self, address: Any) -> Route | None:
        """The way to whom a handler means: as he was received, or with his address put together by the handler."""
        if type(address) is tuple:
            address = self.peers.named(address)
        route = address.route if type(address) is PeerAddress else None
        return route if route is not None and route.peers is self.peers else None

    def flush(self) -> None:
        """Send them. One that cannot be sent is told of, in the end, and does not hold up the others."""
        failed: list[tuple[OSError, bytes, Any]] = []
        try:
            with self.lock:
                while self.waiting and self._send_some(failed):
                    pass
        finally:
            if failed:
                thread, self.thread = self.thread, 0  # what is answered to that goes at once
                for failure in failed:
                    self.unsent(*failure)
                self.thread = thread

    def _send_some(self, failed: list[tuple[OSError, bytes, Any]]) -> bool:
        """Send what one call takes; whether to go on."""
        sock, sent = self._sock(), 0
        try:
            sent = self._outgoing.send(-1 if sock is None else sock.fileno(), self.waiting)
            self._joins_again = False
        except BlockingIOError as error:  # no room, and the file's mode is not to wait for it
            if self.later is not None:
                if not self._tries_later:
                    self._tries_later = True
                    self.later(_SOON, self._try_again)
                return False
            if not _has_room(sock):
                sent = self._give_up(error, failed)
        except InterruptedError:
            return True
        except OSError as error:
            if not self._is_for_joining(error):
                sent = self._give_up(error, failed)
        del self.waiting[:sent]
        return True

    def _try_again(self) -> None:
        self._tries_later = False
        self.flush()

    def flush_at_last(self) -> None:
        """Send them, and wait for room: the loop has ended."""
        self.later = self.soon = None
        self.flush()

    def _is_for_joining(self, error: OSError) -> bool:
        """Whether this may be about joined answers, which are joined no more from here on: if that helps."""
        if self._outgoing.joined and error.errno in _CANNOT_CUT:
            self._outgoing.joined, self._joins_again = False, True
            return True
        if self._joins_again:
            self._outgoing.joined, self._joins_again = True, False
        return False

    def forget(self) -> None:
        """In a forked child: what waits is the parent's to send. What is sent here goes at once."""
        self.waiting, self.thread, self.lock = [], 0, threading.RLock()

    def _give_up(self, error: OSError, failed: list[tuple[OSError, bytes, Any]]) -> int:
        """Try the first one by itself, which may find another way."""
        data, route = self.waiting[0]
        try:
            send_now(self._sock(), data, 0, route)
        except OSError:
            failed.append((error, data, route.name))
        return 1


def _has_room(sock: Any) -> bool:
    """Whether something can be sent, perhaps in a while."""
    waiting = select.poll()
    waiting.register(sock.fileno(), select.POLLOUT)
    return bool(waiting.poll(_PATIENCE))


def _forget_the_parents() -> None:
    for answers in list(_live):
        answers.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


def flush_answers(sock: Any) -> None:
    """Send what a socket keeps, or raise `BlockingIOError` if there is no room for all of it."""
    sock.answers.flush()
    if sock.answers.waiting:
        raise BlockingIOError


class Shape(namedtuple("Shape", ["size", "unmap", "pin", "joins_incoming", "joins_outgoing"])):
    """What a server wants of its socket: max_packet_size, unmap_ipv4, pin_interface, udp_gro and udp_gso."""

    __slots__ = ()


def _can_segment(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(17, 103) >= 0  # SOL_UDP, UDP_SEGMENT
    except OSError:
        return False


class DatagramSocket(ServerSocket):
    """What a UDP server receives with and, but on event loops, answers through.

    A `socket.socket` in all else: who reads from it in a handler gets what was received already, in order.
    """

    __slots__ = ("_incoming", "answers", "arrived", "drops", "elsewhere", "peers")

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.peers: Peers | None = None
        self.answers: Answers | None = None
        self.elsewhere: Answers | None = None
        """Those of the socket that handlers on a loop answer through."""
        self.arrived: deque[tuple[bytes, PeerAddress]] = deque()
        """Received, and not yet taken."""
        self.drops: int | None = None
        """How many the kernel had dropped when it was closed."""
        self._incoming: Any = None

    def make_ready(self, shape: Shape, unsent: Callable[..., None]) -> None:
        """Make room for batches; the socket is bound. Done again where that changes. `unsent` is `Answers`'."""
        from ._mmsg import Incoming  # not before there is a server

        bound = self.getsockname()
        self.peers = Peers(self.family, bound, everywhere=bound[0] in _WILDCARDS, unmap=shape.unmap, pin=shape.pin)
        self._incoming = Incoming(self.peers, min(shape.size, 1 << 16), joined=shape.joins_incoming)
        self.answers = Answers(self, self.peers, unsent, joined=shape.joins_outgoing and _can_segment(self))

    def receive(self, most: int) -> list[tuple[bytes, PeerAddress, int, int]]:
        """Have what waits arrive, at most so many. Returns what did not fit: as `_mmsg.Incoming` does.

        Raises `BlockingIOError` if nothing waits, `OSError` for what the kernel has to tell of an earlier answer.
        """
        with self.answers.lock:  # type: ignore[union-attr]
            found: list[tuple[bytes, PeerAddress, int, int]] = self._incoming.receive(self.fileno(), most, self.arrived)
        return found

    # -- for handlers

    def sendto(self, data: Any, address: Any, real_address: Any = None, /) -> int:
        """Send a datagram: to a client, from the address that it has asked. Returns its length.

        Flags may come before the address, as ever.
        """
        answers = self.answers
        if answers is None:
            return super().sendto(data, address, *(() if real_address is None else (real_address,)))
        if type(address) is PeerAddress and type(data) is bytes and get_ident() == answers.thread:
            waiting, route, size = answers.waiting, address.route, len(data)  # what `keep` does, without a call
            if route.peers is self.peers and size <= LONGEST and len(waiting) < MANY:
                waiting.append((data, route))
                return size
        flags, address = (0, address) if real_address is None else (address, real_address)
        self._let_go()  # in order
        known = answers.route(address)
        return super().sendto(data, flags, address) if known is None else send_now(self, data, flags, known)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        self._let_go()  # in order
        return super().sendmsg(buffers, *addressed(self.answers, ancdata, flags, address))

    def setsockopt(self, *arguments: Any) -> None:
        self._let_go()  # what was sent before an option was set must not be changed by it
        super().setsockopt(*arguments)

    def _let_go(self) -> None:
        """What waits to be sent by this thread goes now."""
        for answers in (self.answers, self.elsewhere):
            if answers is not None and answers.waiting and get_ident() == answers.thread:
                answers.flush()

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        payload, _, _, sender = self.recvmsg(bufsize, 0, flags)
        return payload, sender

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        with memoryview(buffer) as view, view.cast("B") as room:
            payload, sender = self.recvfrom(nbytes or len(room), flags)
            room[: len(payload)] = payload
        return len(payload), sender

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return self.recvfrom(bufsize, flags)[0]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """What has arrived already, else the next one. Who asks may wait for the reply to what he has sent: that goes
        first."""
        self._let_go()
        found = self.arrived[0] if self.arrived and flags & _PEEK else None if flags & ~DONT_WAIT else self.first()
        if found is not None:
            return found[0][:bufsize], [], _TRUNC if len(found[0]) > bufsize else 0, found[1]
        peers = self.peers
        if peers is None:
            return super().recvmsg(bufsize, ancbufsize, flags)
        payload, ancillary, told, sender = super().recvmsg(bufsize, max(ancbufsize, _ANCILLARY), flags)
        return payload, ancillary if ancbufsize else [], told, peers.of(sender, ancillary)

    def first(self) -> tuple[bytes, PeerAddress] | None:
        """The first that has arrived and not been taken, if there is one. Others may take some at the same time."""
        try:
            found = self.arrived.popleft()
        except IndexError:
            return None
        if self.peers is not None:
            self.peers.heard(found[1])
        return found

    def close(self) -> None:
        answers = self.answers
        if answers is None:
            super().close()
            return
        with answers.lock:
            if self.fileno() >= 0:
                self.drops = kernel_drops(self)
                answers.thread = 0
                answers.flush()
            super().close()

"""How a datagram server receives: by the batch under its own loop, else one by one; what did not fit; what is answered.

One `Reception` is one server's. The socket, and the answers that leave together, are `_datagrams`'; how many may be in
flight is the business of the way to run.
"""

from __future__ import annotations

import socket
from operator import attrgetter
from threading import get_ident
from time import monotonic
from weakref import ref

from . import _sockets, logs
from ._addresses import unmapped
from ._datagram_options import tell_destination
from ._datagrams import BATCH, DatagramSocket, Shape, knows_peers, receive_one
from ._punctual import Punctual
from ._requests import request_failed
from .handlers import STEPS, does_no_more
from .lifecycle import STOP_FLAG, DatagramsTruncated, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any, Final

__all__ = ["Reception", "take"]

# Seconds a datagram beyond which the next batch's answers are sent one by one: what they would have saved is nothing
# then, and the first had to wait for the last. So are those of the first batch, of which nothing is known.
_SLOW: Final = 50e-6
_FEW: Final = 3
# So often few datagrams are taken for all, after some have been waited for in vain.
_LONELY: Final = 8
# Seconds between two words about datagrams that were cut off.
_QUIET: Final = 60.0
_NEVER: Final = float("-inf")
_NEW: Final[Any] = object.__new__
_HOOKS: Final = (
    "get_request", "verify_request", "process_request", "finish_request", "shutdown_request", "close_request",
    "_handle_request_noblock", "process_request_thread", "process_request_task", "thread_started", "thread_finished",
)  # fmt: skip


_PARTS: Final = ("__new__", "__init__", "setup", "finish", "handle", "__await__")


class Reception:
    """What a datagram server has received and not yet handled, and how its handlers' answers leave."""

    def __init__(self) -> None:
        self.batched: DatagramSocket | None = None
        """The socket that is read by the batch, if there is one."""
        self.thread = 0
        """The loop's: a `handle_request` in another one takes its datagrams one by one."""
        self.short = False
        """Whether no hook is overridden that is called between `get_request` and the handler, and after it."""
        self._hooks: Callable[[type], Any] = attrgetter("get_request")
        self._found: Any = None
        self._punctual: Punctual | None = None
        self._parts: Any = None
        self._handle: Any = None
        self._shape: Any = None
        self._most = 1
        self._inline = False
        self._since = 0.0
        self._count = 0
        self._budget = 0
        self._lonely = 0
        self._slow = True
        self._buffer: bytearray | None = None
        self._truncated = 0
        self._told_at = _NEVER

    def begin(self, server: Any, sock: Any) -> None:
        """The server's loop begins."""
        self._most = min(server._portico_batch_size(), BATCH)
        self._inline = server._portico_runs_inline and _is_ours(server, "process_request")
        self.thread = get_ident()
        self.batched = server._portico_batches = None
        if _knows_senders(sock):
            self.make_ready(server, sock)  # also for a `get_request` that reads from it by itself
        if _knows_senders(sock) and not server._portico_overridden("get_request"):
            self.batched, server._portico_batches = sock, self
        self.choose(server)

    def end(self, server: Any) -> None:
        """It has ended. What has arrived stays, for the next one, or for `handle_request`."""
        if self.batched is not None and self.batched.answers is not None:
            self.batched.answers.thread, self._since = 0, 0.0
        if self._punctual is not None:
            self._punctual.close()
            self._punctual = None
        self.batched = server._portico_batches = None
        self.short = False

    def may_take(self, server: Any) -> bool:
        """Whether all may be taken at once, without the hooks between: all are ours, those just set, too."""
        if self._hooks(type(server)) != self._found:
            self.choose(server)
        return self.short and vars(server).keys().isdisjoint(_HOOKS)

    def choose(self, server: Any) -> None:
        """Whether the hooks between `get_request` and the handler need be called: not if they are all ours."""
        names = [name for name in _HOOKS if hasattr(server, name)]
        self._hooks = attrgetter(*names)
        self._found = self._hooks(type(server))
        calls = server._portico_enter is not None or not all(_is_ours(server, name) for name in names)
        self.short = self.batched is not None and not calls

    def handle_of(self, made: Any, steps: tuple[Any, Any, Any, Any]) -> Any:
        """The `handle` of a handler class that has nothing else of its own (`does_no_more`), else None."""
        parts = made, *[getattr(made, name, None) for name in _PARTS]
        if parts != self._parts:
            self._parts, self._handle = parts, made.handle if does_no_more(made, steps) else None
        return self._handle

    def make_ready(self, server: Any, sock: DatagramSocket) -> None:
        wanted = Shape(server.max_packet_size, server.unmap_ipv4, server.pin_interface, server.udp_gro, server.udp_gso)
        shape = wanted, sock.getsockname()
        if shape != self._shape or sock.peers is None:  # or this is another socket
            sock.make_ready(wanted, _unsent(server))
            self._shape = shape
            # Once more: programs override `server_bind` and `server_activate`.
            tell_destination(sock, wanted=sock.peers is not None and sock.peers.control_length > 0)

    # -- what the loop calls

    def batch_begins(self) -> None:
        """The loop begins to take datagrams."""
        self._budget = self._most
        self._arm(len(self.batched.arrived))  # type: ignore[union-attr]

    def refill(self, server: Any, sock: DatagramSocket) -> None:
        """Have the next ones arrive. Raises `OSError` if there are none, or the loop is to look up first."""
        again = self._budget != self._most
        if not self._budget or (
            again and self.short and not self.may_take(server)
        ):  # else what a hook is for is missed
            raise BlockingIOError
        room = min(self._budget, server._portico_room())
        try:
            truncated = sock.receive(room)
        except BlockingIOError:
            self._lonely = again * _LONELY
            raise
        count = len(sock.arrived) + len(truncated)
        # Fewer than there was room for are all that there are: asking again would be a call for nothing. But if they
        # are few, their senders may have been answered meanwhile, and be back before the loop has looked up: that is
        # tried, and if it was in vain, not for a while. Joined ones (udp_gro) may be more than there was room for.
        if self._lonely:
            self._lonely -= 1
        hopeful = count <= _FEW and not self._lonely
        self._budget = max(0, self._budget - count) if count >= room or hopeful else 0
        for inserted, (payload, sender, length, place) in enumerate(truncated):
            if server.deliver_truncated:
                sock.arrived.insert(place + inserted, (payload, sender))
            else:
                self._tell_truncated(server, payload, sender, length)
        if not sock.arrived:
            raise BlockingIOError
        self._arm(len(sock.arrived))

    def refill_to_take(self, server: Any, sock: DatagramSocket) -> None:
        """The same for who takes all at once: not if a hook or rule has been set meanwhile, which they have to pass."""
        self.refill(server, sock)
        if not self.may_take(server):
            raise BlockingIOError

    def taken(self, server: Any, arrived: deque[tuple[bytes, Any]]) -> list[tuple[bytes, Any]]:
        """Take what has arrived: all; of joined ones (udp_gro), which may be more than was asked for, what has room."""
        count = len(arrived) if not server.udp_gro else min(len(arrived), server._portico_room())
        try:
            return [arrived.popleft() for _ in range(count)]
        except IndexError:  # a handler has read from the socket meanwhile, in another thread
            return []

    def take_all(self, server: Any, sock: Any) -> list[tuple[bytes, Any]]:
        """What has arrived, or does so now, for who runs it elsewhere. Raises as `refill`."""
        if not sock.arrived:
            self.refill_to_take(server, sock)
        found = self.taken(server, sock.arrived)
        server._portico_taken += len(found)
        sock.peers.heard_all(found)
        return found

    def more(self) -> bool | None:
        """What is returned to the loop when all that has arrived is taken: True if there may be more this time."""
        return True if self._budget else None

    def batch_over(self, server: Any) -> None:
        """The loop looks up: answers that wait are sent."""
        if server._portico_queue is not None:
            server._portico_queue.batch_over()
            return
        answers: Any = self.batched.answers  # type: ignore[union-attr]
        if self._since:
            try:
                if answers.thread:
                    answers.flush()
            finally:
                answers.thread = 0
            self._slow = monotonic() - self._since > self._count * _SLOW
            self._since = 0.0

    def _arm(self, count: int) -> None:
        """Answers to so many are kept until all are handled: not to a single one, which nothing would be saved by."""
        if self._since:
            self._count += count
        elif self._inline and count > 1:
            self._since, self._count = monotonic(), count
            if not self._slow:
                answers: Any = self.batched.answers  # type: ignore[union-attr]
                if self._punctual is None:
                    self._punctual = Punctual(answers)
                self._punctual.begins()
                answers.thread = get_ident()

    def left_over(self, server: Any) -> bool:
        """Whether something has been received, and not been taken."""
        return bool(getattr(server.socket, "arrived", None))

    def taker(self, server: Any) -> Callable[[], bool | Exception | None]:
        """What the loop calls for each request, where that is not `take`."""
        call: Callable[[], bool | Exception | None] = server._handle_request_noblock
        return call

    # -- one by one

    def receive_one(self, server: Any, sock: Any, flags: int) -> tuple[Any, Any]:
        """A request of a single one, from whatever the server has in a socket's place; waits for it as that does."""
        if not isinstance(sock, socket.socket):
            payload, sender = sock.recvfrom(server.max_packet_size)
            return (payload, sock), unmapped(sender) if server.unmap_ipv4 else sender
        if isinstance(sock, DatagramSocket) and _knows_senders(sock):
            self.make_ready(server, sock)
            first = sock.first()
            if first is not None:
                return (first[0], sock), first[1]
        size = server.max_packet_size
        buffer, self._buffer = self._buffer, None  # nobody else's meanwhile: there may be several `handle_request`
        if buffer is None or len(buffer) != size:
            buffer = bytearray(size)
        try:
            while True:
                payload, sender, cut_off = receive_one(sock, buffer, flags)
                if server.unmap_ipv4:
                    sender = unmapped(sender)
                if not cut_off or server.deliver_truncated:
                    return (payload, sock), sender
                self._tell_truncated(server, payload, sender, None)
                flags = _sockets.DONT_WAIT  # who waited has seen something come
        finally:
            self._buffer = buffer

    def _tell_truncated(self, server: Any, payload: bytes, sender: Any, length: int | None) -> None:
        server._portico_taken += 1
        server._portico_connections.refuse(server, "truncated", sender)
        self._truncated += 1
        now = monotonic()
        if now - self._told_at >= _QUIET:
            self._told_at = now
            logs.emit(server, DatagramsTruncated(self._truncated, sender, length))
        try:
            server.handle_truncated(payload, sender)
        except Exception as error:
            logs.emit(server, HookFailed("handle_truncated", error))


def take(server: Any) -> bool | Exception | None:
    """`_handle_request_noblock` for all that has arrived, with the hooks written out that nobody overrides.

    Measured: a quarter of what Portico itself does for a datagram goes that way.
    """
    reception: Reception = server._portico_reception
    sock: Any = reception.batched
    arrived = sock.arrived
    if not arrived:
        try:
            reception.refill_to_take(server, sock)
        except OSError as error:
            return error
    server._portico_taken += len(arrived)
    flags = vars(server)
    made = server.RequestHandlerClass
    handle = reception.handle_of(made, STEPS)
    last = sock.peers.last
    try:
        while arrived:
            try:
                payload, client_address = arrived.popleft()
            except IndexError:  # a `handle_request` in another thread was first
                break
            if last is not None:
                last[client_address] = client_address
            try:
                if handle is None:
                    made((payload, sock), client_address, server)
                else:  # what it comes to, without the methods that do nothing
                    handler = _NEW(made)
                    handler.request, handler.client_address, handler.server = (payload, sock), client_address, server
                    handle(handler)
            except Exception:
                request_failed(server, (payload, sock), client_address)
            if flags[STOP_FLAG]:
                break
    finally:
        server._portico_taken -= len(arrived)  # they are taken the next time
    return reception.more()


def _is_ours(server: Any, name: str) -> bool:
    """Whether a hook is Portico's own: where it was written counts, whatever a decorator has copied on it."""
    hook = getattr(type(server), name, None)
    where: str = getattr(hook, "__globals__", {}).get("__name__", "")
    return name not in vars(server) and where.partition(".")[0] == __package__


def _knows_senders(sock: Any) -> bool:
    return type(sock) is DatagramSocket and (sock.peers is not None or knows_peers(sock.family))


def _unsent(server: Any) -> Callable[..., None]:
    """What becomes of an answer that could not be sent: `handle_error`, with the answer in the request's place."""
    known = ref(server)

    def unsent(error: OSError, payload: bytes, address: Any) -> None:
        found = known()
        if found is None:
            return
        found._portico_connections.unsent += 1
        request = payload, found.socket
        try:
            raise error
        except OSError:
            try:
                found.handle_error(request, address)
            except Exception as failure:  # here there is no request any more whose failure it could be
                logs.emit(found, HookFailed("handle_error", failure))

    return unsent

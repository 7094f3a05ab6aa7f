"""Random interleavings of reads, writes, timeouts, shutdowns, closes and resets against a model of a connection.

The two ends are real, one green and the other green or in threads. The model says of each call what may come of it:
these bytes, the end, this error, or that it waits. The same runs between two blocking sockets prove the model.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .green_worlds import GREEN, PATIENCE, Threads, tcp_pair, world_named

PATTERN = random.Random(3).randbytes(65_521)
ROOM = 16_384
"""So much fits into a connection's buffers for certain."""
BIG = 3_000_000
"""So much does not."""
KINDS = {errno.EBADF: "closed", errno.EPIPE: "pipe", errno.ECONNRESET: "reset"}


def content(start: int, size: int) -> bytes:
    """What a stream carries there."""
    offset = start % len(PATTERN)
    return (PATTERN * ((offset + size) // len(PATTERN) + 1))[offset : offset + size]


@dataclass
class Stream:
    """One direction of a connection."""

    put: int = 0
    """Bytes that are sent, or being sent."""
    got: int = 0
    ended: bool = False
    """The writer has shut it: nothing more will be put."""
    cut: bool = False
    """It may end anywhere before `put`, as a write was broken off."""

    @property
    def left(self) -> int:
        return self.put - self.got


@dataclass
class End:
    """One end of a connection: the model's part, and the real socket."""

    world: Any
    sock: Any
    incoming: Stream
    outgoing: Stream
    open: bool = True
    deaf: bool = False
    """Shut in both directions."""
    reset: bool = False
    """Torn down by the other side."""
    told: bool = False
    """Somebody may have had the error already: it is told once."""
    shaky: bool = False
    """The other side's kernel may tear it down any time, having been sent what nobody will read."""
    reading: Future[Any] | None = None
    writing: Future[Any] | None = None
    size: int = 0
    """How much the pending read wants."""
    broken: bool = False
    """This end was shut or closed while the pending write was under way."""

    @property
    def gone(self) -> bool:
        """Whoever writes to this end is answered with a reset."""
        return self.deaf or not self.open

    @property
    def busy(self) -> bool:
        return bool(self.reading or self.writing)

    def may_read(self) -> set[str]:
        """What may come of a read."""
        data = {"data"} if self.incoming.left else set()
        if not self.open:
            return {"closed"}
        if self.shaky:
            return {*data, "end", "reset"}
        if self.reset:
            if self.told or self.deaf or self.incoming.cut:
                return {*data, "end", "reset"}
            return {*data, "end" if self.incoming.ended else "reset"} if not data else {*data, "reset"}
        if self.deaf or self.incoming.cut:
            return {*data, "end"}
        return data or {"end" if self.incoming.ended else "waits"}

    def may_write(self, other: End) -> set[str]:
        """What may come of a write whose bytes have been put already."""
        if not self.open:
            return {"closed", "sent", "part", "pipe", "reset"} if self.broken else {"closed"}
        full = {"waits"} if self.outgoing.left > ROOM else set()
        failed = {"pipe", "reset", "part"} if self.reset or self.shaky or self.broken else {"pipe"}
        if self.outgoing.ended:
            return {"sent", *failed} if self.broken else failed
        if self.reset:
            return {"sent", *failed}
        if self.shaky or other.gone:
            return {"sent", "pipe", "reset", "part", *full}
        return {"sent", *full}


# -- the real calls


def read(sock: Any, size: int, timeout: float | None = None) -> tuple[str, bytes]:
    """What a read came to. How it is called is chosen by the size."""
    buffer = bytearray(size)
    try:
        if timeout is not None:
            sock.settimeout(timeout)
        data = sock.recv(size) if size % 2 else bytes(buffer[: sock.recv_into(buffer)])
        if timeout is not None:
            sock.settimeout(None)
    except TimeoutError:
        sock.settimeout(None)
        return "timeout", b""
    except OSError as error:
        return KINDS[error.errno or 0], b""
    return "data" if data else "end", data


def write(sock: Any, data: bytes) -> str:
    try:
        if len(data) % 2:
            sock.sendall(data)
        else:
            return "sent" if sock.send(data) == len(data) else "part"
    except OSError as error:
        return KINDS[error.errno or 0]
    return "sent"


def write_some(sock: Any, data: bytes) -> tuple[str, int]:
    """With a timeout send() sends what it can."""
    try:
        sock.settimeout(0.005)
        count = sock.send(data)
        sock.settimeout(None)
    except TimeoutError:
        sock.settimeout(None)
        return "timeout", 0
    except OSError as error:
        return KINDS[error.errno or 0], 0
    return "sent", count


def shut(sock: Any, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # a connection that is over already
            raise


def close(sock: Any, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def abandon(sock: Any) -> None:
    """What a failed run has left open."""
    if sock.fileno() >= 0:
        shut(sock, socket.SHUT_RDWR)
        sock.close()


# -- a connection that is driven


class Connection:
    def __init__(self, *worlds: Any) -> None:
        pair = tcp_pair()
        pair[1].settimeout(None)
        for sock in pair:  # so that what has been sent has come
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        streams = Stream(), Stream()
        self.ends = [
            End(world, world.adopt(sock), incoming, outgoing)
            for world, sock, incoming, outgoing in zip(worlds, pair, streams, streams[::-1], strict=True)
        ]

    def step(self, number: int, verb: str, size: int) -> None:
        end, other = self.ends[number], self.ends[1 - number]
        getattr(self, verb)(end, other, size)
        self.settle()

    def read(self, end: End, _: End, size: int) -> None:
        if end.reading is None:
            end.size = size
            end.reading = end.world.start(read, end.sock, size)

    def read_in_time(self, end: End, other: End, size: int) -> None:
        if not end.busy:
            allowed = end.may_read()
            kind, data = end.world.run(read, end.sock, size, 0.005 if allowed == {"waits"} else PATIENCE / 2)
            self.check_read(end, other, {"timeout"} if allowed == {"waits"} else allowed, kind, data, size)

    def write(self, end: End, other: End, size: int) -> None:
        if end.writing is None:
            data = content(end.outgoing.put, size)
            if end.open and not end.outgoing.ended:
                end.outgoing.put += size
                end.shaky = other.shaky = end.shaky or other.gone
            end.writing = end.world.start(write, end.sock, data)

    def write_some(self, end: End, other: End, size: int) -> None:
        if end.busy:
            return
        if end.open and not end.outgoing.ended:
            end.shaky = other.shaky = end.shaky or other.gone
        allowed = end.may_write(other)
        full = end.outgoing.left > ROOM
        kind, count = end.world.run(write_some, end.sock, content(end.outgoing.put, size))
        assert kind in allowed or (kind == "timeout" and full), (kind, allowed)
        end.told |= kind in ("pipe", "reset")
        assert count <= size
        assert count == size or full or kind != "sent" or size > ROOM - end.outgoing.left
        end.outgoing.put += count

    def half_close(self, end: End, other: End, _: int) -> None:
        if end.open and not end.outgoing.ended and not (end.reset or other.gone):
            end.outgoing.ended = True
            end.outgoing.cut = end.broken = end.writing is not None
            shut(end.sock, socket.SHUT_WR)

    def shut(self, end: End, other: End, _: int) -> None:
        if not end.open or end.deaf:
            return
        end.broken |= end.writing is not None
        end.outgoing.cut |= end.broken
        end.deaf = end.outgoing.ended = True
        end.shaky = other.shaky = end.shaky or other.writing is not None or end.incoming.left > 0
        shut(end.sock, socket.SHUT_RDWR)

    def close(self, end: End, other: End, _: int, *, reset: bool = False) -> None:
        if not end.open or (end.busy and not end.world.is_green):
            return
        unread = end.incoming.left > 0
        reset = reset or unread  # what has not been read makes it one, too
        if other.open and (reset or other.writing is not None):
            other.told |= other.reset or other.writing is not None or unread
            other.reset = True
        end.broken |= end.writing is not None
        end.outgoing.cut |= end.broken
        end.outgoing.ended = end.outgoing.ended or not reset
        end.open = False
        unread = unread and not (end.shaky or end.deaf or end.incoming.cut)
        end.world.run(lambda: close(end.sock, reset=reset and not unread))

    def reset(self, end: End, other: End, size: int) -> None:
        if end.open and end.incoming.left == 0:
            self.close(end, other, size, reset=True)

    # -- what has come of the calls that were waiting

    def settle(self) -> None:
        """See to it that what need not wait any more has ended, and as the model says."""
        for _ in range(2):  # a read makes room for a write
            for end, other in (self.ends, self.ends[::-1]):
                self.settle_read(end, other)
                self.settle_write(end, other)

    def settle_read(self, end: End, other: End) -> None:
        if end.reading is None:
            return
        allowed = end.may_read()
        if allowed == {"waits"}:
            assert not end.reading.done(), end.reading.result()
            return
        kind, data = end.reading.result(PATIENCE)
        end.reading = None
        self.check_read(end, other, allowed, kind, data, end.size)

    def check_read(self, end: End, _: End, allowed: set[str], kind: str, data: bytes, size: int) -> None:
        assert kind in allowed, (kind, allowed)
        assert len(data) <= size
        assert data == content(end.incoming.got, min(len(data), end.incoming.left))
        end.incoming.got += len(data)
        if kind == "reset":
            end.told = True

    def settle_write(self, end: End, other: End) -> None:
        if end.writing is None:
            return
        allowed = end.may_write(other)
        if "waits" in allowed and not end.writing.done():
            return
        kind = end.writing.result(PATIENCE)
        put = end.broken or not end.outgoing.ended
        end.writing, end.broken = None, False
        assert kind in allowed, (kind, allowed)
        if kind != "sent":
            end.outgoing.cut |= put
            end.told = True

    def finish(self) -> None:
        """Close what is open, one end after the other; nobody may go on waiting."""
        for end, other in (self.ends, self.ends[::-1]):
            self.shut(end, other, 0)
            self.settle()
            while end.incoming.left and end.open and not end.reading and "data" in end.may_read():
                kind, data = end.world.run(read, end.sock, 99_999)
                self.check_read(end, other, end.may_read(), kind, data, 99_999)
                if not data:
                    break
                self.settle()
            self.close(end, other, 0)
            self.settle()
        assert not any(end.busy for end in self.ends)


VERBS = ["read", "read", "read_in_time", "write", "write", "write_some", "half_close", "shut", "close", "reset"]
STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(VERBS), st.sampled_from([1, 10, 999, 50_000, BIG, BIG + 1])),
    max_size=20,
)


@pytest.fixture(params=["threads", *GREEN])
def here(request: pytest.FixtureRequest) -> Iterator[Any]:
    with world_named(request.param) as made:
        yield made


@pytest.mark.parametrize("there", ["threads", "same"])
def test_a_connection_is_what_the_model_says(here: Any, there: str) -> None:
    if there == "same" and isinstance(here, Threads):
        pytest.skip("the same as the other")

    @settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def drive(steps: list[tuple[int, str, int]]) -> None:
        connection = Connection(here, here if there == "same" else others)
        try:
            for number, verb, size in steps:
                connection.step(number, verb, size)
            connection.finish()
        finally:
            for end in connection.ends:
                end.world.run(abandon, end.sock)

    with world_named("threads") as others:
        drive()

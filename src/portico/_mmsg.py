"""Several datagrams a call: recvmmsg(2) and sendmmsg(2), through `ctypes`, where the system has them (Linux).

Only the kernel's structures and their memory, which is used again for every batch. Who sends and receives, and when, is
`_datagrams`'; what the addresses mean is `_peers`'.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from array import array
from itertools import accumulate, groupby
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Any, Final

    from ._peers import PeerAddress, Peers, Route

__all__ = ["BATCH", "LONGEST", "Incoming", "Outgoing"]

BATCH: Final = 64
"""Datagrams a call, at most: as many as the loop takes before it looks up (`accept_batch`)."""
LONGEST: Final = 65507
"""Bytes of the longest datagram over IPv4 (RFC 768: 65535 with its head and IP's)."""
_ROOM: Final = 1 << 22
_UDP: Final = 17
_SEGMENT: Final = 103
_GRO: Final = 104
# Longer ones gain nothing by it (measured: 7 % at 400 bytes, a loss of 3 % at 1,200), and may not fit into one packet.
_LONGEST_SEGMENT: Final = 1000
_SEGMENT_CONTROL: Final = Struct("=qiiH6x")
_GRO_CONTROL: Final = Struct("=qiii4x")


class _Vector(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct msghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Head(ctypes.Structure):
    """struct mmsghdr"""

    _anonymous_ = ("message",)
    _fields_ = (("message", _Message), ("length", ctypes.c_uint))


_SIZE: Final = ctypes.sizeof(_Head)
_NAME4: Final = 16
_VECTOR: Final = ctypes.sizeof(_Vector)
# Where a head's fields are, in words: of 4 bytes, the others of 8.
_LENGTH_AT: Final = _Head.length.offset // 4
_VECTORS_AT: Final = _Message.vectors.offset // 8
_COUNT_AT: Final = _Message.vector_count.offset // 8
_receive: Any = ctypes.CDLL(None, use_errno=True).recvmmsg
_receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_send: Any = ctypes.CDLL(None, use_errno=True).sendmmsg
_send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
# Also says how long a datagram was that did not fit (recv(2)).
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_TRUNC)


def _memory(size: int) -> mmap:
    """Memory whose slices are bytes, at a third of the cost of a bytearray's. A forked child's is its own."""
    return mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)


def _address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _error() -> OSError:
    number = ctypes.get_errno()
    if number == errno.EAGAIN:
        return BlockingIOError()  # which is no news to anybody
    return OSError(number, os.strerror(number))


class Incoming:
    """Room for a batch of datagrams of up to `size` bytes, and the one call that fills it.

    With `joined` the kernel may hand over several datagrams of one sender as one (UDP_GRO, udp(7)).
    """

    def __init__(self, peers: Peers, size: int, *, joined: bool) -> None:
        self._peers = peers
        self._size = size
        self._joined = joined
        each = 1 << 16 if joined else size
        control = peers.control_length + (_GRO_CONTROL.size if joined else 0)
        # An address and its control message lie side by side: one slice of both is what a sender is known by.
        stride = peers.name_length + control
        self._data = _memory(BATCH * each)
        self._names = _memory(BATCH * (stride + 8))
        self._heads = _memory(BATCH * _SIZE)
        self._vectors = _memory(BATCH * _VECTOR)
        data, names, vectors = _address(self._data), _address(self._names), _address(self._vectors)
        for number in range(BATCH):
            vector = _Vector.from_buffer(self._vectors, number * _VECTOR)
            vector.base, vector.length = data + number * each, each
            head = _Head.from_buffer(self._heads, number * _SIZE)
            head.name, head.name_length = names + number * stride, peers.name_length
            head.vectors, head.vector_count = vectors + number * _VECTOR, 1
            head.control, head.control_length = head.name + peers.name_length, control
        self._fresh, self._used = self._heads[:], 0
        self._at = _address(self._heads)
        self._lengths = memoryview(self._heads).cast("I")[_LENGTH_AT :: _SIZE // 4]
        # An IPv4 sender is known by one word, if our address says nothing new: a third less than for a slice.
        words = memoryview(self._names).cast("Q")[:: stride // 8] if stride == _NAME4 else None
        self._words = words
        self._slots = [(n * each, n * stride, n * stride + stride) for n in range(BATCH)]

    def receive(self, descriptor: int, most: int, arrived: deque[tuple[bytes, PeerAddress]]) -> list[Any]:
        """Hand all that waits, at most so many, to `arrived`. Returns those that did not fit: payload, sender, length,
        and which place among those that did they would have had.

        Raises `BlockingIOError` if there is nothing, `OSError` for what the kernel has to tell (ECONNREFUSED ...).
        """
        used = self._used * _SIZE
        self._heads[:used] = self._fresh[:used]  # the kernel has written lengths into it
        count = self._used = _receive(descriptor, self._at, most, _RECEIVE_FLAGS, None)
        if count <= 0:
            self._used = 0
            raise _error()
        lengths = self._lengths[:count].tolist()
        if self._joined:
            return self._take_apart(lengths, arrived)
        if max(lengths) > self._size:
            return self._sort_out(lengths, arrived)
        data, names, known, learn = self._data, self._names, self._peers.known.get, self._peers.learn
        if self._words is not None:
            found = [
                (data[start : start + length], known(short) or learn(names[name:end], short))
                for (start, name, end), length, short in zip(self._slots, lengths, self._words[:count].tolist())  # noqa: B905
            ]
        else:
            found = [
                (data[start : start + length], known(names[name:end]) or learn(names[name:end]))
                for (start, name, end), length in zip(self._slots, lengths)  # noqa: B905  # there are more slots
            ]
        arrived.extend(found)
        return []

    def _sort_out(self, lengths: list[int], arrived: deque[tuple[bytes, PeerAddress]]) -> list[Any]:
        truncated = []
        for (start, name, end), length in zip(self._slots, lengths):  # noqa: B905
            sender = self._sender(self._names[name:end])
            payload = self._data[start : start + min(length, self._size)]
            if length > self._size:
                truncated.append((payload, sender, length, len(arrived)))
            else:
                arrived.append((payload, sender))
        return truncated

    def _sender(self, key: bytes) -> PeerAddress:
        return self._peers.known.get(key) or self._peers.learn(key)

    def _take_apart(self, lengths: list[int], arrived: deque[tuple[bytes, PeerAddress]]) -> list[Any]:
        """Joined datagrams say how long each one is, the last apart, in a control message before the others."""
        truncated = []
        own, rest = self._peers.name_length, self._peers.control_length
        for (start, name, end), length in zip(self._slots, lengths):  # noqa: B905
            key, step = self._names[name:end], length
            _, level, kind, segment = _GRO_CONTROL.unpack_from(key, own)
            if (level, kind) == (_UDP, _GRO):
                step, key = segment, key[:own] + key[own + _GRO_CONTROL.size :]
            else:
                key = key[: own + rest]
            self._names[name + own : end] = bytes(end - name - own)  # a next one may have none
            sender = self._sender(key)
            for place in range(start, start + max(length, 1), max(step, 1)):
                payload = self._data[place : min(place + step, start + length)]
                if len(payload) > self._size:
                    truncated.append((payload[: self._size], sender, len(payload), len(arrived)))
                else:
                    arrived.append((payload, sender))
        return truncated


class Outgoing:
    """Room for a batch of answers, and the one call that sends it.

    With `joined` neighbours to one peer are handed to the kernel as one message that it cuts up again (UDP_SEGMENT,
    udp(7)), if the answers of the batch are all of one length: measured, a tenth more answers a second.
    """

    def __init__(self, peers: Peers, *, joined: bool) -> None:
        self.joined = joined
        self._data = _memory(_ROOM)
        self._base = _address(self._data)
        self._vectors = _memory(BATCH * _VECTOR)
        words = memoryview(self._vectors).cast("Q")
        self._bases, self._lengths = words[::2], words[1::2]
        self._laid_out: list[int] = []
        """The lengths that the vectors say."""
        vectors = _address(self._vectors)
        self._single = _Heads(peers, vectors, peers.control_length)
        self._runs = _Heads(peers, vectors, peers.control_length + _SEGMENT_CONTROL.size) if joined else None

    def send(self, descriptor: int, batch: list[tuple[bytes, Route]]) -> int:
        """Send the first ones, at most `BATCH`; returns how many have gone. Raises `OSError` if the first cannot."""
        payloads, routes = zip(*batch[:BATCH], strict=True)
        count = len(payloads)
        content = b"".join(payloads)
        self._data[: len(content)] = content
        lengths = list(map(len, payloads))
        if lengths != self._laid_out[:count]:  # as it often is: the same again
            self._laid_out = []  # until it is: an exception, such as Ctrl-C's, may come anywhere
            self._lengths[:count] = array("Q", lengths)
            self._bases[:count] = array("Q", accumulate(lengths[:-1], initial=self._base))
            self._laid_out = lengths
        if self.joined and 0 < lengths[0] <= _LONGEST_SEGMENT and lengths.count(lengths[0]) == count:
            count = min(count, LONGEST // lengths[0])  # else a run of them would be longer than a datagram may be
            routes = routes[:count]
            runs = [(route, len(list(run))) for route, run in groupby(routes)]
            if len(runs) * 2 <= count:
                return self._send_joined(descriptor, runs, lengths[0])
        heads = self._single
        heads.name([route.raw for route in routes])
        if heads.control:
            heads.say([route.control for route in routes])
        return heads.send(descriptor, count)

    def _send_joined(self, descriptor: int, runs: list[tuple[Route, int]], length: int) -> int:
        heads: Any = self._runs
        routes, counts = zip(*runs, strict=True)
        heads.counts[: len(runs)] = array("Q", counts)
        starts = accumulate(counts[:-1], initial=0)
        heads.vectors[: len(runs)] = array("Q", [heads.first_vector + start * _VECTOR for start in starts])
        heads.name([route.raw for route in routes])
        segments = _SEGMENT_CONTROL.pack(18, _UDP, _SEGMENT, length)
        heads.say([route.control + segments for route in routes])
        return sum(counts[: heads.send(descriptor, len(runs))])


class _Heads:
    """The heads of a batch of messages, with room for addresses and for control messages of one length."""

    def __init__(self, peers: Peers, vectors: int, control: int) -> None:
        self.control = control
        self.first_vector = vectors
        self._names = _memory(BATCH * peers.name_length)
        self._controls = _memory(BATCH * control + 8)
        self._heads = _memory(BATCH * _SIZE)
        self._at = _address(self._heads)
        names, controls = _address(self._names), _address(self._controls)
        for number in range(BATCH):
            head = _Head.from_buffer(self._heads, number * _SIZE)
            head.name, head.name_length = names + number * peers.name_length, peers.name_length
            head.vectors, head.vector_count = vectors + number * _VECTOR, 1
            if control:
                head.control, head.control_length = controls + number * control, control
        words = memoryview(self._heads).cast("Q")
        self.vectors, self.counts = words[_VECTORS_AT :: _SIZE // 8], words[_COUNT_AT :: _SIZE // 8]

    def name(self, names: list[bytes]) -> None:
        content = b"".join(names)
        self._names[: len(content)] = content

    def say(self, controls: list[bytes]) -> None:
        content = b"".join(controls)
        self._controls[: len(content)] = content

    def send(self, descriptor: int, count: int) -> int:
        sent: int = _send(descriptor, self._at, count, 0)
        if sent < 0:
            raise _error()
        return sent

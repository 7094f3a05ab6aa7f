"""Bytes that nobody thought of, for `portico.proxy_protocol`: `python -m tests.fuzz_proxy_protocol`.

With atheris installed, it looks for new paths by coverage; else real headers are damaged at random. Both run for
`--seconds`, and both check one property, which the tests check, too.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time

from portico import proxy_protocol
from portico.errors import ProxyError
from portico.proxy_protocol import MAX_V1, MAX_V2, ProxyHeader, may_begin, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# Seen on a Network Load Balancer of AWS: a checksum, a type of its own, and padding.
AWS = SIGNATURE + bytes.fromhex(
    "21110054ac1f0771ac1f0a1fc8f20050030004e8d6892dea001701767063652d30386432626631356661633530303163390400240000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
)
SEEDS = (
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 0 65535\r\n",
    b"PROXY UNKNOWN what \n ever\r\n",
    SIGNATURE + bytes.fromhex("2111000c7f000001c0a8000101bc01bb"),
    SIGNATURE + bytes.fromhex("21120014c0000201c0000202003500350200056578616d70"),
    SIGNATURE + b"\x21\x21\x00\x24" + bytes(range(36)),
    SIGNATURE + b"\x21\x31\x00\xd8" + b"/run/a.sock".ljust(108, b"\0") + b"\0name".ljust(108, b"\0"),
    SIGNATURE + b"\x20\x00\x00\x05\x20\x00\x00\x01\x02",
    SIGNATURE + b"\x21\x00\x00\x15\x20\x00\x12\x07\x00\x00\x00\x00\x21\x00\x03TLS\x22\x00\x04name",
    AWS,
)

Outcome = ProxyHeader | str | None


def outcome(data: bytes) -> Outcome:
    """The header, None, or the reason why there is none. All that can be asked of a header is asked."""
    try:
        header = parse(data)
    except ProxyError as error:
        return str(error)
    if header is not None:
        _ = header.alpn, header.authority, header.unique_id, header.netns, header.ssl, repr(header), hash(header)
        assert header.ssl is None or repr(header.ssl)
    return header


def check(data: bytes) -> Outcome:
    """None, then one outcome for good, however many bytes have come; of these none too many were needed."""
    whole, before = outcome(data), None
    for size in range(len(data) + 1):
        now = outcome(data[:size])
        assert now == whole or (now is None and before is None), (now, before, whole, data[:size])
        before = now
        if now is None:
            assert may_begin(data[:size])
            assert size < MAX_V2
            assert size < MAX_V1 or not data.startswith(b"PROXY")
        if now is None and isinstance(whole, ProxyHeader):
            assert size < whole.length
        if isinstance(now, ProxyHeader):
            assert now.length <= size
    return whole


def damaged(source: random.Random) -> bytes:
    """A seed with a few bytes changed, lost, doubled, or cut; now and then any bytes after a signature."""
    if source.random() < 0.2:
        begin = source.choice((b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"))
        return begin + source.randbytes(source.randrange(64))
    data = bytearray(source.choice(SEEDS))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(data))
        data[at : at + 1] = source.choice((source.randbytes(1), b"", data[at : at + 1] * 2, b" ", b"\r", b"\n", b"0"))
    return bytes(data[: source.randrange(len(data) + 1)] if source.random() < 0.1 else data)


def at_random(seconds: float, seed: int | None = None) -> int:
    """How many inputs were checked in this time."""
    seed = random.randrange(1 << 32) if seed is None else seed
    source, end, number = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = damaged(source)
        try:
            check(data)
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}: {data!r}") from error
        number += 1
    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_proxy_protocol", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    seconds = parser.parse_args().seconds
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print(f"atheris is not installed: headers are damaged at random, without coverage, for {seconds:g} seconds")
        print(f"{at_random(seconds)} inputs, and nothing to be found")
        return
    for function in list(vars(proxy_protocol).values()):
        if getattr(function, "__module__", None) == proxy_protocol.__name__ and hasattr(function, "__code__"):
            atheris.instrument_func(function)  # in place

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """Signatures are compared at once, so coverage alone would not find them."""
        source = random.Random(seed)
        return damaged(source)[:most] if source.random() < 0.05 else bytes(atheris.Mutate(data, most))

    def one(data: bytes) -> None:
        check(data)

    options = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={MAX_V2 + 64}", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""`max_line` of stream handlers: longer lines end in `LineTooLong` before they are in memory; else all is as ever."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import pickle
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import portico
from portico._async_streams import CountedReader
from portico.errors import is_disconnect

from .certificates import Authority
from .contract.flavours import STREAMS, Flavour, short_folder
from .green_worlds import EVERY, PATIENCE, tcp_pair, world_named
from .loops import LOOPS
from .secured import certificates, wrapped

Pair = tuple[socket.socket, socket.socket]
SERVER: Any = object()
BUFFERS = [-1, 0, 1, 7, 100_000]
LIMIT = 20


def _tls_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    """Without a certificate, which needs no files: the peers stay unknown to each other."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


def tls_pair() -> Pair:
    here, there = tcp_pair()
    client, server = _tls_context(ssl.PROTOCOL_TLS_CLIENT), _tls_context(ssl.PROTOCOL_TLS_SERVER)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.wrap_socket, there)
        return server.wrap_socket(here, server_side=True), future.result(PATIENCE)


PAIRS: dict[str, Callable[[], Pair]] = {"unix": socket.socketpair, "tcp": tcp_pair, "tls": tls_pair}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    here, there = PAIRS[request.param]()
    here.settimeout(PATIENCE)
    there.settimeout(PATIENCE)
    with here, there:
        yield here, there


@pytest.fixture
def plain() -> Iterator[Pair]:
    here, there = socket.socketpair()
    here.settimeout(PATIENCE)
    there.settimeout(PATIENCE)
    with here, there:
        yield here, there


def handler(body: Callable[[Any], Any], **members: Any) -> Any:
    """A handler class with `max_line` and this body."""
    return type("Handler", (portico.StreamRequestHandler,), {"max_line": LIMIT, **members, "handle": body})


def run(sock: socket.socket, body: Callable[[Any], Any], **members: Any) -> Any:
    """What the body returns, of a handler that runs on this connection."""
    told: list[Any] = []
    handler(lambda self: told.append(body(self)), **members)(sock, "", SERVER)
    return told[0]


def lines_of(rfile: Any) -> list[Any]:
    """Every line up to the end; in the place of one that is too long, its error's class."""
    found: list[Any] = []
    while True:
        try:
            line = rfile.readline()
        except portico.LineTooLong as error:
            found.append(type(error))
            continue
        if not line:
            return found
        found.append(line)


def say(peer: socket.socket, *pieces: bytes) -> None:
    for piece in pieces:
        peer.sendall(piece)
    if isinstance(peer, ssl.SSLSocket):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.shutdown(socket.SHUT_WR)


# -- which lines pass


FITS = b"x" * (LIMIT - 1) + b"\n"
CASES: dict[str, tuple[bytes, list[Any]]] = {
    "short": (b"a\n\nb\n", [b"a\n", b"\n", b"b\n"]),
    "as long as allowed": (FITS * 2, [FITS, FITS]),
    "the last without a newline": (b"a\n" + b"x" * LIMIT, [b"a\n", b"x" * LIMIT]),
    "one byte more": (b"x" + FITS + b"a\n", [portico.LineTooLong, b"a\n"]),
    "two bytes more": (b"xx" + FITS + b"a\n", [portico.LineTooLong, b"a\n"]),
    "the last is one byte more": (b"x" * (LIMIT + 1), [portico.LineTooLong]),
    "much more": (b"x" * 5000 + b"\na\n" + b"y" * 500, [portico.LineTooLong, b"a\n", portico.LineTooLong]),
    "one after the other": (
        (b"x" * 50 + b"\n") * 2 + b"a\n",
        [portico.LineTooLong, portico.LineTooLong, b"a\n"],
    ),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("rbufsize", BUFFERS)
@pytest.mark.parametrize("case", CASES)
def test_a_line_passes_that_is_not_longer(plain: Pair, case: str, rbufsize: int) -> None:
    said, found = CASES[case]
    say(plain[1], said)
    assert run(plain[0], lambda self: lines_of(self.rfile), rbufsize=rbufsize) == found


@pytest.mark.parametrize("rbufsize", BUFFERS)
def test_lines_pass_on_every_kind_of_connection(pair: Pair, rbufsize: int) -> None:
    say(pair[1], FITS, b"a\n", b"x" * 100, b"\nb")
    found = [FITS, b"a\n", portico.LineTooLong, b"b"]
    assert run(pair[0], lambda self: lines_of(self.rfile), rbufsize=rbufsize) == found


@pytest.mark.parametrize("max_line", [1, 2, 65536, sys.maxsize, sys.maxsize * 4])
def test_any_number_of_bytes_may_be_the_limit(plain: Pair, max_line: int) -> None:
    say(plain[1], b"\n" if max_line == 1 else b"x" * (min(max_line, 10_000) - 1) + b"\n")
    (line,) = run(plain[0], lambda self: lines_of(self.rfile), max_line=max_line)
    assert len(line) == min(max_line, 10_000)


@pytest.mark.parametrize("rbufsize", BUFFERS)
@pytest.mark.parametrize(
    "read",
    [
        lambda rfile: rfile.readline(),
        lambda rfile: rfile.readline(-1),
        lambda rfile: rfile.readline(None),
        lambda rfile: rfile.readline(LIMIT + 1),
        lambda rfile: rfile.readline(65537),
        next,
        list,
        lambda rfile: rfile.readlines(),
        lambda rfile: rfile.readlines(10),
    ],
    ids=["readline", "-1", "None", "one more", "much more", "next", "list", "readlines", "hint"],
)
def test_every_way_to_read_lines_is_bounded(plain: Pair, rbufsize: int, read: Callable[[Any], Any]) -> None:
    plain[1].sendall(b"x" * 100)  # and neither a newline nor the end
    with pytest.raises(portico.LineTooLong, match=f"max_line = {LIMIT}"):
        run(plain[0], lambda self: read(self.rfile), rbufsize=rbufsize)


@pytest.mark.parametrize("rbufsize", BUFFERS)
def test_reading_lines_otherwise_is_as_ever(plain: Pair, rbufsize: int) -> None:
    say(plain[1], b"1\n22\n333\n4444\n55555\n", b"x" * 100)

    def body(self: Any) -> None:
        rfile = self.rfile
        assert isinstance(rfile, io.BufferedReader)
        assert rfile.readline(LIMIT + 1) == b"1\n"
        assert next(rfile) == b"22\n"
        assert rfile.readlines(5) == [b"333\n", b"4444\n"]
        assert rfile.readline(2) == b"55"
        assert rfile.readline(0) == b""
        assert rfile.readline(LIMIT) == b"555\n"
        assert rfile.readline(LIMIT) == b"x" * LIMIT  # an explicit size is what may be longer, as ever
        assert rfile.read(10) == b"x" * 10
        assert len(rfile.read()) == 70

    run(plain[0], body, rbufsize=rbufsize)


@pytest.mark.parametrize("size", ["5", 5.0, b""])
def test_a_size_that_is_none_is_a_type_error(plain: Pair, size: Any) -> None:
    with pytest.raises(TypeError):
        run(plain[0], lambda self: self.rfile.readline(size))


@pytest.mark.parametrize("rbufsize", BUFFERS)
def test_the_rest_of_a_line_is_never_taken_for_another(plain: Pair, rbufsize: int) -> None:
    """Else a client that hides a command behind a long line has it obeyed by whoever goes on after the error."""
    say(plain[1], b"x" * 50 + b"DELETE\n" + b"next\n")

    def body(self: Any) -> None:
        with pytest.raises(portico.LineTooLong):
            self.rfile.readline()
        assert self.rfile.readline() == b"next\n"

    run(plain[0], body, rbufsize=rbufsize)


def test_the_rest_of_a_line_may_be_read_in_pieces(plain: Pair) -> None:
    say(plain[1], b"x" * 30 + b"\nnext\n")

    def body(self: Any) -> None:
        with pytest.raises(portico.LineTooLong):
            self.rfile.readline()
        assert self.rfile.readline(4) == b"xxxx"
        assert self.rfile.readline(LIMIT) == b"xxxxx\n"
        assert self.rfile.readline() == b"next\n"

    run(plain[0], body)


# -- how much is read


@pytest.mark.parametrize("rbufsize", [-1, 0, 1, 100])
def test_no_more_is_read_than_the_limit_and_a_buffer(pair: Pair, rbufsize: int) -> None:
    limit, sent = 1000, 60_000
    pair[1].sendall(bytes(sent))

    def body(self: Any) -> None:
        with pytest.raises(portico.LineTooLong):
            self.rfile.readline()
        left, connection = sent, self.connection
        for size in iter(lambda: len(connection.recv(65536)), 0):
            left -= size
        buffer = {-1: io.DEFAULT_BUFFER_SIZE, 0: 1}.get(rbufsize, rbufsize)
        assert limit < left <= limit + buffer

    pair[1].shutdown(socket.SHUT_WR)
    run(pair[0], body, rbufsize=rbufsize, max_line=limit)


def test_what_is_thrown_away_is_never_all_in_memory(plain: Pair) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    sender = threading.Thread(target=say, args=(plain[1], bytes(20_000_000), b"\nnext\n"))
    sender.start()

    def body(self: Any) -> int:
        tracemalloc.start()
        try:
            assert lines_of(self.rfile) == [portico.LineTooLong, b"next\n"]
            return int(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    assert run(plain[0], body, max_line=10_000) < 500_000
    sender.join()


def test_without_a_buffer_nothing_is_read_ahead(plain: Pair) -> None:
    """As with `rbufsize = 0` ever: the connection itself may be read from where the file is."""
    plain[1].sendall(b"one\nand the rest")

    def body(self: Any) -> None:
        assert self.rfile.readline() == b"one\n"
        assert self.connection.recv(4) == b"and "
        assert self.rfile.read(100) == b"the rest"  # what is there, without waiting for all 100
        plain[1].sendall(b"more")
        buffer = bytearray(100)
        assert self.rfile.readinto(buffer) == 4
        plain[1].sendall(b"the\nend")
        plain[1].shutdown(socket.SHUT_WR)
        assert self.rfile.read() == b"the\nend"
        assert self.rfile.read(1) == b""

    run(plain[0], body, rbufsize=0)


# -- the file and the connection


@pytest.mark.parametrize("rbufsize", [-1, 0, 10])
@pytest.mark.parametrize("first", ["file", "connection"])
def test_closing_both_in_either_order_frees_the_descriptor(pair: Pair, first: str, rbufsize: int) -> None:
    here = pair[0]

    class Handler(portico.StreamRequestHandler):
        max_line = LIMIT

        def handle(self) -> None:
            assert here._io_refs == 1  # type: ignore[attr-defined]
            if first == "connection":
                here.close()
                assert here.fileno() >= 0  # the file still needs it
                self.rfile.close()
            else:
                self.rfile.close()
                assert here._io_refs == 0  # type: ignore[attr-defined]
                here.close()
            assert here.fileno() == -1

    Handler.rbufsize = rbufsize
    Handler(here, "", SERVER)
    assert pair[1].recv(1) == b""


def test_finish_closes_the_file(plain: Pair) -> None:
    rfile = run(plain[0], lambda self: self.rfile)
    assert rfile.closed
    plain[0].close()
    assert plain[0].fileno() == -1
    with pytest.raises(ValueError, match="closed"):
        rfile.readline()


def test_a_handler_leaves_no_cycle_that_keeps_a_connection_open(plain: Pair) -> None:
    gc.disable()
    try:
        run(plain[0], lambda self: None)
        plain[0].close()
        assert plain[1].recv(1) == b""
    finally:
        gc.enable()


def test_timeouts_go_on_as_ever(plain: Pair) -> None:
    plain[1].sendall(b"x")
    with pytest.raises(TimeoutError):
        run(plain[0], lambda self: self.rfile.readline(), timeout=0.01)


@pytest.mark.parametrize(("rbufsize", "kind"), [(-1, io.BufferedReader), (0, socket.SocketIO)])
def test_without_a_limit_the_file_is_the_standard_librarys(plain: Pair, rbufsize: int, kind: type) -> None:
    assert run(plain[0], lambda self: type(self.rfile), max_line=None, rbufsize=rbufsize) is kind
    assert portico.StreamRequestHandler.max_line is None


@pytest.mark.parametrize("value", [0, -1, "100", True, False, 1.5, b"1", [1]], ids=repr)
def test_a_wrong_limit_is_told_in_setup(plain: Pair, value: Any) -> None:
    with pytest.raises(portico.SettingError) as caught:
        run(plain[0], lambda self: None, max_line=value)
    for word in ("max_line", repr(value), "1 up", "None"):
        assert word in str(caught.value)
    assert plain[0]._io_refs == 0  # type: ignore[attr-defined]


# -- on green sockets, whose calls park


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("make", [tcp_pair, socket.socketpair])
@pytest.mark.parametrize("rbufsize", [-1, 0, 10])
def test_green_sockets_park(name: str, make: Callable[[], Pair], rbufsize: int) -> None:
    with world_named(name) as world:
        here, there = world.pair(make)
        waits = world.parks(lambda: run(here, lambda self: lines_of(self.rfile), rbufsize=rbufsize))
        there.sendall(b"x" * LIMIT)
        world.others_go_on()
        assert not waits.done()  # a newline would make it too long, the end would not
        there.sendall(b"y" * 100)
        world.others_go_on()
        assert not waits.done()
        there.sendall(b"\nab")
        there.sendall(b"c\n" + FITS)
        there.shutdown(socket.SHUT_WR)
        assert waits.result(PATIENCE) == [portico.LineTooLong, b"abc\n", FITS]
        world.run(here.close)
        assert here.fileno() == -1


# -- in async handlers, over asyncio's streams


def reader(max_line: int | None = LIMIT, **options: Any) -> CountedReader:
    """One that nobody feeds. To be called in a loop."""
    made = CountedReader(loop=asyncio.get_running_loop(), **options)
    made.max_line = max_line
    return made


async def lines_awaited(rfile: Any) -> list[Any]:
    """`lines_of`, awaited."""
    found: list[Any] = []
    while True:
        try:
            line = await rfile.readline()
        except portico.LineTooLong as error:
            found.append(type(error))
            continue
        if not line:
            return found
        found.append(line)


async def fed(rfile: CountedReader, data: bytes, size: int) -> None:
    """Piece by piece, each of which has time to be read."""
    for begin in range(0, len(data), size):
        rfile.feed_data(data[begin : begin + size])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    rfile.feed_eof()


@pytest.mark.parametrize("size", [1, 7, LIMIT, LIMIT + 1, 100_000])
@pytest.mark.parametrize("case", CASES)
def test_async_lines_are_as_those_of_handlers_that_block(case: str, size: int) -> None:
    said, found = CASES[case]

    async def main() -> list[Any]:
        rfile = reader()
        feeding = asyncio.create_task(fed(rfile, said, size))
        lines = await lines_awaited(rfile)
        await feeding
        return lines

    assert asyncio.run(main()) == found


@given(
    data=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"x", b"y" * 9])).map(b"".join),
    size=st.integers(1, 20),
    end=st.sampled_from([b"\n", b"\r\n", b"\r\n\r\n"]),
)
def test_readuntil_finds_what_splitting_finds(data: bytes, size: int, end: bytes) -> None:
    most = 10

    async def main() -> list[Any]:
        found: list[Any] = []
        rfile = reader(most)
        feeding = asyncio.create_task(fed(rfile, data, size))
        while True:
            try:
                found.append(await rfile.readuntil(end))
            except portico.LineTooLong:
                found.append(None)
            except asyncio.IncompleteReadError as error:
                await feeding
                return [*found, error.partial]

    *lines, rest = data.split(end)
    # What is too long is told of at once; when it was all there is, there is nothing after it.
    after = [None, b""] if len(rest) > most else [rest]
    assert asyncio.run(main()) == [line + end if len(line + end) <= most else None for line in lines] + after


def test_it_is_told_as_soon_as_a_byte_is_too_many() -> None:
    async def main() -> None:
        rfile = reader()
        waits = asyncio.create_task(rfile.readline())
        rfile.feed_data(b"x" * LIMIT)
        await asyncio.sleep(0.01)
        assert not waits.done()  # a newline would make it too long, the end would not
        rfile.feed_data(b"x")
        with pytest.raises(portico.LineTooLong, match=f"max_line = {LIMIT}"):
            await waits
        rfile.feed_data(b"DELETE\nnext\n")
        assert await rfile.readline() == b"next\n"

    asyncio.run(main())


def test_asyncios_own_limit_neither_shortens_nor_lengthens_them() -> None:
    async def main() -> None:
        rfile = reader(1000, limit=10)
        rfile.feed_data(b"x" * 999 + b"\n" + b"y" * 1000 + b"\n")
        assert len(await rfile.readline()) == 1000
        with pytest.raises(portico.LineTooLong):
            await rfile.readline()
        without = reader(None, limit=10)
        without.feed_data(b"x" * 10 + b"\n" + b"x" * 11 + b"\n")
        assert len(await without.readline()) == 11
        with pytest.raises(ValueError, match="limit") as caught:
            await without.readline()
        assert type(caught.value) is ValueError

    asyncio.run(main())


def test_what_has_broken_the_stream_is_raised() -> None:
    async def main() -> None:
        rfile = reader()
        rfile.set_exception(ConnectionResetError())
        with pytest.raises(ConnectionResetError):
            await rfile.readline()
        with pytest.raises(ValueError, match="eparator"):
            await reader().readuntil(b"")

    asyncio.run(main())


ASYNC = {"readline": lambda rfile: rfile.readline(), "iteration": lambda rfile: anext(rfile),
         "readuntil": lambda rfile: rfile.readuntil(b"\n")}  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("sealed", ["plain", "tls", "starttls"])
@pytest.mark.parametrize("call", ASYNC)
def test_async_handlers_have_it_on_every_kind_of_connection(
    loop: str, sealed: str, call: str, authority: Authority
) -> None:
    class Lines(portico.AsyncStreamRequestHandler):
        limit = 100
        max_line = 1000

        async def handle(self) -> None:
            if sealed == "starttls":
                with pytest.raises(portico.LineTooLong):
                    await ASYNC[call](self.rfile)
                self.wfile.write(b"go")
                await self.start_tls()
            for _ in range(4):
                try:
                    answer = b"%d" % len(await ASYNC[call](self.rfile))
                except portico.LineTooLong:
                    answer = b"long"
                self.wfile.write(answer + b"\n")

    settings: dict[str, Any] = {"event_loop": loop}
    if sealed != "plain":
        settings |= {"tls": certificates(authority).description, "starttls": sealed == "starttls"}
    with portico.AsyncTCPServer(("127.0.0.1", 0), Lines, **settings).background() as server:
        client = socket.create_connection(server.server_address, PATIENCE)
        with closing(client):
            if sealed == "starttls":
                client.sendall(b"y" * 1001)  # whose rest is forgotten with the plain text
                assert client.recv(2) == b"go"
            if sealed != "plain":
                client = wrapped(client, certificates(authority).trust())
            with closing(client), client.makefile("rb") as answers:
                client.sendall(b"x" * 999 + b"\n")
                assert answers.readline() == b"1000\n"
                client.sendall(b"x" * 1001)
                assert answers.readline() == b"long\n"
                client.sendall(b"x" * 5000 + b"\nab\n" + b"x" * 1000 + b"\n")
                assert answers.readline() == b"3\n"
                assert answers.readline() == b"long\n"


@pytest.mark.parametrize("value", [0, -1, "100", True, 1.5])
def test_a_wrong_limit_is_told_in_setup_of_async_handlers(value: Any) -> None:
    class Lines(portico.AsyncStreamRequestHandler):
        max_line = value

    with pytest.raises(portico.SettingError, match="max_line"):
        asyncio.run(Lines(SERVER, "", SERVER).setup())


# -- whose fault it is


def test_the_error_is_both_porticos_and_a_value_error() -> None:
    assert issubclass(portico.LineTooLong, (portico.PorticoError, ValueError))
    assert issubclass(portico.LineTooLong, ValueError)
    assert "LineTooLong" in portico.__all__
    error = pickle.loads(pickle.dumps(portico.LineTooLong("a line is too long")))
    assert str(error) == "a line is too long"


def test_it_is_the_peers_fault() -> None:
    assert is_disconnect(portico.LineTooLong("too long"), None)
    assert not is_disconnect(ValueError("too long"), None)


@contextmanager
def events_of(made: Any, address: Any, handler_class: Any) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A server, and what tells of its next event: by a pipe, so that children may tell, too."""
    reader, writer = os.pipe()

    def handle_event(self: Any, event: Any) -> None:
        name = type(event).__name__
        if name in ("PeerLeft", "RequestFailed"):
            os.write(writer, f"{name} {type(event.error).__name__}\n".encode())

    cls = type("Server", (made,), {"handle_event": handle_event})
    with open(reader, "rb", closefd=True) as lines:
        try:
            with cls(address, handler_class).background() as server:
                yield server, lines.readline
        finally:
            os.close(writer)


class Uppers(portico.AsyncStreamRequestHandler):
    """What the test below does in handlers that block."""

    max_line = LIMIT

    async def handle(self) -> None:
        async for line in self.rfile:
            self.wfile.write(line.upper())


@pytest.mark.parametrize("flavour", STREAMS, ids=str)
def test_a_client_that_floods_is_not_the_servers_failure(flavour: Flavour) -> None:
    body = handler(lambda self: [self.wfile.write(line.upper()) for line in self.rfile])
    if flavour.way.own_tasks:
        body = Uppers
    with short_folder() as folder:
        address = flavour.kind.address(Path(folder))
        with events_of(flavour.server_class, address, body) as (server, next_event):
            for _ in range(2):  # the first does the second no harm
                with closing(socket.socket(flavour.kind.family)) as client:
                    client.settimeout(PATIENCE)
                    client.connect(server.server_address)
                    client.sendall(b"hello\n")
                    assert client.recv(10) == b"HELLO\n"
                    client.sendall(b"x" * 1000)
                    assert next_event() == b"PeerLeft LineTooLong\n"


@pytest.mark.parametrize("call", ["readline", "readuntil"])
def test_a_line_beyond_the_limit_of_asyncios_streams_is_the_peers_fault_too(call: str) -> None:
    class Lines(portico.AsyncStreamRequestHandler):
        limit = 100

        async def handle(self) -> None:
            await getattr(self.rfile, call)()

    told: list[portico.lifecycle.Event] = []

    class Mine(portico.AsyncTCPServer):
        def handle_event(self, event: portico.lifecycle.Event) -> None:
            told.append(event)

    with (
        Mine(("127.0.0.1", 0), Lines).background() as server,
        socket.create_connection(server.server_address, 10) as client,
    ):
        client.sendall(bytes(1000) + b"\n")
        assert not client.recv(10)
    failures = [event for event in told if isinstance(event, portico.lifecycle.RequestFailed)]
    assert [type(event) for event in failures] == [portico.lifecycle.PeerLeft]

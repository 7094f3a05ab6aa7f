"""Encrypted connections once they are open, in every way to run: what goes over them, how they end, who cuts them.

The sockets' own calls are in `test_tls_calls`, their ends in `test_tls_ends`.
"""

from __future__ import annotations

import gc
import random
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import portico
from portico.lifecycle import PeerLeft

from . import draining
from .certificates import Authority
from .contract.flavours import KINDS, short_folder
from .every_way import EVERY, PATIENCE, TCP, Case, Peer, case_class, in_every_way, until_the_end
from .green_worlds import exactly
from .loops import in_a_thread
from .secured import Certificates, OnPaper, certificates, clean_rest, descriptors, securely, wrapped
from .waiting import until

OVER_TCP6 = [Case(case.way, kind, case.streams) for case in TCP for kind in KINDS if kind.name == "tcp6"]
HERE = [case for case in EVERY if not case.way.own_process]
"""Forked children have the sockets of threads; what takes its time is not done by them again."""
LIMIT = 0.25
LATE = 0.5
OVERHEAD = 8_000
"""Bytes that a handshake and the frames of some records come to, at most."""

KNOWN: Certificates


@pytest.fixture(autouse=True, scope="module")
def known(authority: Authority) -> Certificates:
    global KNOWN
    KNOWN = certificates(authority)
    return KNOWN


async def until_the_peer_says_no_more(peer: Peer) -> None:
    """A body that notes what comes, and of which kind the end was."""
    try:
        while data := await peer.recv(65536):
            peer.note(data.decode())
        peer.note("end")
    finally:
        peer.note(f"truncated {peer.handler.tls.truncated}")


# -- what goes over them


@in_every_way([*EVERY, *OVER_TCP6])
def test_all_comes_back_as_it_was_sent(case: Case) -> None:
    """T13: a MiB in random pieces."""
    chance = random.Random(str(case))
    with securely(case, until_the_end, KNOWN) as served, served.secure() as client:
        left = 1 << 20
        while left:
            piece = chance.randbytes(min(left, chance.randint(1, 1 << 16)))
            client.sendall(piece)
            back = b""
            while len(back) < len(piece):
                more = client.recv(chance.randint(1, 1 << 16))
                assert more
                back += more
            assert back == piece
            left -= len(piece)
        client.unwrap().close()
        assert served.reasons() == ["done"]
        assert served.notes() == ["end", "finally", "finish"]
        assert not served.faults()


@in_every_way(EVERY)
def test_a_given_context_does_as_well(case: Case) -> None:
    context = KNOWN.context()
    context.set_alpn_protocols(["echo"])
    trust = KNOWN.trust()
    trust.set_alpn_protocols(["echo"])
    with securely(case, until_the_end, KNOWN, tls=context) as served, served.secure(trust=trust) as client:
        assert client.selected_alpn_protocol() == "echo"
        client.sendall(b"hello")
        assert client.recv(9) == b"hello"
        client.unwrap().close()
        assert served.reasons() == ["done"]
        assert not served.faults()


@in_every_way([case for case in HERE if not case.one_by_one])
def test_a_broadcast_reaches_everybody_whole(case: Case) -> None:
    """A chat: each handler sends to all connections what it reads from one, and one of the peers takes his time."""
    members: list[Peer] = []
    everybody, messages, size = 4, 12, 9_000

    async def chat(peer: Peer) -> None:
        members.append(peer)
        while len(members) < everybody:
            await peer.pause(0.01)
        got = b""
        while data := await peer.recv(65536):
            got += data
            while len(got) >= size:
                for member in list(members):
                    await member.sendall(got[:size])
                got = got[size:]

    def listen(number: int, client: OnPaper) -> None:
        for _ in range(everybody * messages):
            message = exactly(client, size)
            who, count = message[0], message[1]
            assert message == bytes([who, count]) * (size // 2)
            assert count == heard[number].get(who, 0)
            heard[number][who] = count + 1
            if number == 0:
                time.sleep(0.002)

    with securely(case, chat, KNOWN) as served, ExitStack() as stack:
        heard: list[dict[int, int]] = [{} for _ in range(everybody)]
        clients = [stack.enter_context(served.on_paper()) for _ in range(everybody)]
        with ExitStack() as listeners:
            for number, client in enumerate(clients):
                listeners.enter_context(in_a_thread(listen, number, client))
            for count in range(messages):
                for number, client in enumerate(clients):
                    client.sendall(bytes([number, count]) * (size // 2))
        assert heard == [dict.fromkeys(range(everybody), messages)] * everybody
        for client in clients:
            client.sock.sendall(client.last_word())
            client.sock.shutdown(socket.SHUT_WR)
        served.reasons(everybody)
        assert not served.faults()


@in_every_way(EVERY)
def test_bytes_are_counted(case: Case) -> None:
    async def answers(peer: Peer) -> None:
        assert await peer.recv(65536)
        await peer.sendall(bytes(500_000))
        await until_the_end(peer)

    with securely(case, answers, KNOWN, connection_timeout=60.0) as served, served.secure() as client:
        client.sendall(b"x" * 10_000)
        exactly(client, 500_000)
        (connection,) = served.server.connections()
        assert until(lambda: connection.bytes_out >= 500_000)
        assert 10_000 <= connection.bytes_in <= 10_000 + OVERHEAD
        assert connection.bytes_out <= 500_000 * 1.01 + OVERHEAD
        client.unwrap().close()
        assert served.reasons() == ["done"]
        stats = served.server.stats()
        assert (stats.bytes_in, stats.bytes_out) == (connection.bytes_in, connection.bytes_out)
        assert stats.bytes_out >= 500_000


# -- our end


async def answers_and_ends(peer: Peer) -> None:
    await peer.sendall(b"got " + await peer.recv(9))


@in_every_way(EVERY)
def test_the_end_is_a_clean_one(case: Case) -> None:
    with securely(case, answers_and_ends, KNOWN) as served, served.secure() as client:
        client.sendall(b"it")
        assert clean_rest(client) == b"got it"
        assert served.reasons() == ["done"]


async def answers_and_fails(peer: Peer) -> None:
    await answers_and_ends(peer)
    raise LookupError("a bug in the handler")


@in_every_way(EVERY)
def test_the_end_is_a_clean_one_when_a_handler_fails(case: Case) -> None:
    with securely(case, answers_and_fails, KNOWN) as served, served.secure() as client:
        client.sendall(b"it")
        assert clean_rest(client) == b"got it"
        assert served.reasons() == ["failed"]
        if not case.way.own_process:
            assert [type(error) for error in served.faults()] == [LookupError]


async def sends_a_lot(peer: Peer) -> None:
    await peer.recv(1)
    await peer.sendall(bytes(3_000_000))


@in_every_way(HERE)
def test_who_reads_slowly_gets_all_and_a_clean_end(case: Case) -> None:
    """Not all of it is taken within the second that a peer has which takes nothing."""
    with securely(case, sends_a_lot, KNOWN) as served, served.connect() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        with wrapped(plain, served.trust) as client:
            client.sendall(b"x")
            total, began = 0, time.monotonic()
            while piece := client.recv(1 << 14):
                total += len(piece)
                time.sleep(0.01 if total < 2_500_000 else 0)
            assert total == 3_000_000
            assert time.monotonic() - began > 1.2
            assert served.reasons() == ["done"]
            assert not served.faults()


@in_every_way(HERE)
def test_who_sends_waits_for_who_reads(case: Case) -> None:
    """However much is handed over at once: it must not pile up here, where nobody sees it."""
    size = 12_000_000 if not case.is_unix else 1_500_000

    async def sends(peer: Peer) -> None:
        await peer.recv(1)
        peer.note("begins")
        await peer.sendall(bytes(size))
        peer.note("ends")

    with securely(case, sends, KNOWN) as served, served.secure() as client:
        client.sendall(b"x")
        assert until(lambda: served.notes() == ["begins"])
        assert not until(lambda: "ends" in served.notes(), timeout=0.3)
        assert len(clean_rest(client)) == size
        assert until(lambda: served.notes() == ["begins", "ends", "finish"])


@in_every_way([case for case in HERE if not case.way.own_tasks])
def test_who_reads_nothing_is_waited_for_no_longer_than_a_second_or_so(case: Case) -> None:
    async def gives_up(peer: Peer) -> None:
        await peer.recv(1)
        peer.request.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                peer.request.sendall(bytes(1 << 20))
        peer.note(str(time.monotonic()))

    with securely(case, gives_up, KNOWN) as served, served.secure() as client:
        client.sendall(b"x")
        assert served.reasons() == ["done"]
        ended = time.monotonic()
        assert ended - float(served.notes()[0]) < 2.5


@in_every_way(EVERY)
def test_a_handler_may_end_it_itself(case: Case) -> None:
    async def closes(peer: Peer) -> None:
        await answers_and_ends(peer)
        with suppress(OSError):
            peer.request.shutdown(socket.SHUT_RDWR)
        await peer.close()
        peer.note("closed")

    with securely(case, closes, KNOWN) as served, served.secure() as client:
        client.sendall(b"it")
        assert clean_rest(client) == b"got it"
        assert served.reasons() == ["done"]
        assert until(lambda: served.notes() == ["closed", "finish"]), served.notes()
        assert not served.faults()


# -- the peer's end, and its faults


@in_every_way(EVERY)
def test_a_truncated_stream_is_told_from_a_whole_one(case: Case) -> None:
    for clean in (True, False):
        with securely(case, until_the_peer_says_no_more, KNOWN) as served, served.on_paper() as client:
            client.sock.sendall(client.record(b"hello") + (client.last_word() if clean else b""))
            client.sock.shutdown(socket.SHUT_WR)
            assert served.reasons() == ["done"]
            assert served.notes() == ["hello", "end", f"truncated {not clean}", "finish"]
            assert not served.faults()


@in_every_way(EVERY)
def test_a_truncated_stream_is_an_error_where_that_is_wished_and_the_peers_fault(case: Case) -> None:
    settings: dict[str, Any] = {"suppress_ragged_eofs": False}
    with securely(case, until_the_peer_says_no_more, KNOWN, **settings) as served, served.on_paper() as client:
        client.sock.sendall(client.record(b"hello") + client.record(b"again")[:9])
        client.sock.shutdown(socket.SHUT_WR)
        assert served.reasons() == ["peer_left"]
        assert served.notes() == ["hello", "truncated True", "finish"]
        assert not served.faults()
        if not case.way.own_process:
            assert [type(event.error) for event in served.of_kind(PeerLeft)] == [ssl.SSLEOFError]


@in_every_way(HERE)
def test_a_peer_that_resets_has_left(case: Case) -> None:
    with securely(case, until_the_peer_says_no_more, KNOWN) as served, served.on_paper() as client:
        client.sock.sendall(client.record(b"hello"))
        assert until(lambda: served.notes() == ["hello"])
        client.reset()
        assert set(served.reasons()) <= {"peer_left", "done"}
        assert not served.faults()


def _flipped(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


def client_hears(client: OnPaper) -> bytes | None:
    """None for an error: what our alert, a reset or a truncated end are to it."""
    try:
        return client.recv()
    except (ssl.SSLError, ConnectionError):
        return None


SPOILT = {
    "a bad record": lambda client: _flipped(client.record(b"hello")),
    "no TLS": lambda client: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": lambda client: random.Random(1).randbytes(5_000),
    "a record of all too much": lambda client: b"\x17\x03\x03\xff\xff" + bytes(70_000),
    "a record played again": lambda client: client.record(b"twice") * 2,
}


@in_every_way(EVERY)
def test_what_is_spoilt_ends_its_own_connection_only_as_its_peers_fault(case: Case) -> None:
    for name, spoil in SPOILT.items():
        with securely(case, until_the_end, KNOWN) as served, ExitStack() as stack:
            other = None if case.one_by_one else stack.enter_context(served.secure())
            client = stack.enter_context(served.on_paper())
            client.sock.sendall(client.record(b"x"))
            assert client.recv() == b"x"
            with suppress(OSError):
                client.sock.sendall(spoil(client))
            heard = client_hears(client)
            assert heard is None or (heard == b"twice" and client_hears(client) is None), name
            assert served.reasons() == ["peer_left"], name
            assert not served.faults(), name
            if other is not None:
                other.sendall(b"still here")
                assert other.recv(99) == b"still here"
                other.unwrap()


@in_every_way([case for case in HERE if not case.one_by_one])
def test_who_writes_to_a_broken_stream_is_not_to_blame(case: Case) -> None:
    async def writes_on(peer: Peer) -> None:
        await peer.sendall(await peer.recv(9))
        with suppress(OSError):
            await peer.recv(9)
        peer.note("broken")
        await peer.pause(0.05)
        for _ in range(3):
            await peer.sendall(b"on and on")
            await peer.pause(0.02)

    with securely(case, writes_on, KNOWN) as served, served.on_paper() as client:
        client.sock.sendall(client.record(b"x"))
        assert client.recv() == b"x"
        client.sock.sendall(_flipped(client.record(b"hello")))
        assert until(lambda: served.notes() == ["broken"])
        client.reset()
        assert served.reasons() == ["peer_left"]
        assert not served.faults()


# -- limits, and the end of a server


def seconds_to_the_end(client: ssl.SSLSocket, began: float | None = None) -> float:
    began = time.monotonic() if began is None else began
    with suppress(OSError):
        while client.recv(65536):
            pass
    return time.monotonic() - began


@in_every_way(EVERY)
def test_a_silent_client_is_cut_in_time(case: Case) -> None:
    with securely(case, until_the_end, KNOWN, idle_timeout=LIMIT) as served, served.secure() as client:
        began = time.monotonic()
        client.sendall(b"x")
        assert client.recv(9) == b"x"
        assert LIMIT - 0.02 <= seconds_to_the_end(client, began) <= LIMIT + LATE
        assert served.reasons() == ["idle_timeout"]
        assert served.notes() == ["end", "finally", "finish"]


@in_every_way(HERE)
def test_a_client_is_cut_when_its_time_is_over(case: Case) -> None:
    limits: dict[str, Any] = {"connection_timeout": 0.4, "connection_jitter": 0.0}
    with securely(case, until_the_end, KNOWN, **limits) as served:
        began = time.monotonic()
        with served.secure() as client:
            assert 0.38 <= seconds_to_the_end(client, began) <= 0.4 + LATE
        assert served.reasons() == ["connection_timeout"]


@in_every_way(HERE)
def test_a_trickling_client_is_cut(case: Case) -> None:
    limits: dict[str, Any] = {"min_read_rate": 20_000, "read_grace": 0.3}

    async def reads(peer: Peer) -> None:
        while await peer.recv(65536):
            pass

    with securely(case, reads, KNOWN, **limits) as served, served.secure() as client:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 5:
                client.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began < 0.3 * 1.25 + 0.05 + LATE
        assert served.reasons() == ["min_read_rate"]


@in_every_way(HERE)
def test_a_client_that_does_not_read_is_cut(case: Case) -> None:
    async def sends(peer: Peer) -> None:
        await peer.recv(1)
        for _ in range(30):
            await peer.sendall(bytes(1 << 20))

    with securely(case, sends, KNOWN, send_timeout=LIMIT) as served, served.secure() as client:
        client.sendall(b"x")
        assert served.reasons() == ["send_timeout"]
        assert served.ends()[0].age < 4
        assert not served.faults()


@in_every_way(EVERY)
def test_an_operator_may_close_a_connection(case: Case) -> None:
    with securely(case, until_the_end, KNOWN) as served, served.secure() as client:
        client.sendall(b"x")
        assert client.recv(9) == b"x"
        (connection,) = served.server.connections()
        connection.close()
        assert seconds_to_the_end(client) < 1
        assert served.reasons() == ["closed"]
        assert not served.faults()


@pytest.mark.parametrize("way", draining.WAYS, ids=lambda way: way.name)
def test_goodbyes_are_said_before_a_clean_end(way: draining.Way) -> None:
    with draining.serving(way.made("EchoBye", tls=KNOWN.description)) as server:
        with ExitStack() as stack:
            clients = []
            for _ in range(1 if not way.waits else 3):
                plain = stack.enter_context(socket.create_connection(server.server_address, PATIENCE))
                clients.append(stack.enter_context(wrapped(plain, KNOWN.trust())))
            for client in clients:
                client.sendall(b"line\n")
                assert exactly(client, 5) == b"LINE\n"
            drain = draining.Draining(server)
            assert [clean_rest(client) for client in clients] == [b"bye\n"] * len(clients)
            report = drain.report()
        assert (report.finished, report.goodbyes, report.clean) == (len(clients), len(clients), True)


@in_every_way([case for case in HERE if not case.one_by_one])
def test_a_drain_cuts_who_does_not_end(case: Case) -> None:
    async def goes_on(peer: Peer) -> None:
        await peer.sendall(await peer.recv(1))
        await peer.recv(1)
        peer.note("runs")
        await peer.recv(1)

    with securely(case, goes_on, KNOWN) as served, served.secure() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        client.sendall(b"y")
        assert until(lambda: served.notes() == ["runs"])
        report = served.server.drain(0.2)
        assert len(report.cut) == 1
        assert not report.stuck
        assert seconds_to_the_end(client) < 1
        assert served.reasons() == ["cut"]


# -- files over it


class Lines(portico.StreamRequestHandler):
    timeout = 0.3
    max_line = 100
    wbufsize = -1

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())
            self.wfile.flush()


@in_every_way([case for case in HERE if not case.way.own_tasks])
def test_a_handler_of_files_has_its_lines_timeout_and_bounds(case: Case) -> None:
    ends: list[Any] = []

    def handle_event(self: Any, event: Any) -> None:
        if isinstance(event, portico.lifecycle.ConnectionEnded):
            ends.append(event.connection.reason.value)
        elif isinstance(event, portico.lifecycle.RequestFailed) and type(event) is portico.lifecycle.RequestFailed:
            ends.append(event.error)

    made = type("Server", (case_class(case),), {"handle_event": handle_event})
    for rbufsize in (-1, 0):
        ends.clear()
        handler = type("Handler", (Lines,), {"rbufsize": rbufsize})
        with short_folder() as folder:
            server = made(case.kind.address(folder), handler, tls=KNOWN.description)
            with server.background():
                address = server.server_address
                for said, rest in ((b"x" * 200, b""), (b"", b"")):
                    plain = socket.socket(server.address_family)
                    plain.settimeout(PATIENCE)
                    plain.connect(address)
                    with wrapped(plain, KNOWN.trust()) as client:
                        client.sendall(b"one\ntwo\n")
                        assert exactly(client, 8) == b"ONE\nTWO\n"
                        client.sendall(said)
                        began = time.monotonic()
                        assert clean_rest(client) == rest
                        assert (time.monotonic() - began > 0.2) == (not said)
                assert until(lambda: len(ends) == 2)
        assert ends == ["peer_left", "peer_left"]


# -- what OpenSSL's own tool provokes


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the tool openssl is not installed")
@in_every_way([case for case in HERE if not case.one_by_one and not case.is_unix])
def test_keys_may_be_updated_by_the_peer(case: Case) -> None:
    with securely(case, until_the_end, KNOWN) as served:
        host, port = served.server.server_address
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "localhost", "-tls1_3"]
        command += ["-CAfile", str(KNOWN.authority.ca_file), "-verify_return_error"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as tool:
            assert tool.stdin is not None
            assert tool.stdout is not None
            seen = b""

            def reads_until(mark: bytes) -> bool:
                nonlocal seen
                while mark not in seen and (data := tool.stdout.read1(65536)):  # type: ignore[union-attr]
                    seen += data
                return mark in seen

            for number in range(3):
                tool.stdin.write(b"text %d\n" % number)
                tool.stdin.flush()
                assert reads_until(b"\ntext %d\n" % number), seen
                tool.stdin.write(b"K\n")  # new keys for us, and for it in answer
                tool.stdin.flush()
                assert reads_until(b"KEYUPDATE"), seen
                seen = b"\n"
            tool.stdin.write(b"after all\n")
            tool.stdin.flush()
            assert reads_until(b"after all\n"), seen
            tool.stdin.write(b"Q\n")
            tool.stdin.close()
            tool.stdout.read()
        assert served.reasons() == ["done"]
        assert not served.faults()


# -- nothing is left


@in_every_way([case for case in HERE if not case.is_unix], at_once=False)
def test_nothing_grows_with_connections_that_have_ended(case: Case) -> None:
    """Objects of TLS are large, and easily kept by a cycle, or by what a handler has asked for."""

    async def looks(peer: Peer) -> None:
        assert peer.handler.tls.version
        await answers_and_ends(peer)

    trust = KNOWN.trust()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with securely(case, looks, KNOWN) as served:
        served.trust = trust

        def some(number: int) -> tuple[int, int]:
            ended = len(served.ends())
            for _ in range(number):
                with served.secure() as client:
                    client.sendall(b"it")
                    assert clean_rest(client) == b"got it"
            served.reasons(ended + number)
            served.events.clear()
            gc.collect()
            objects = sum(
                isinstance(found, (ssl.SSLObject, ssl.SSLSocket, portico.Connection)) for found in gc.get_objects()
            )
            return descriptors(), objects

        before = some(5)
        after = some(40)
        assert after[0] <= before[0]
        assert after[1] <= before[1] + 2


# -- what its server owes a client


async def _slow(peer: Peer) -> None:
    data = await peer.recv(100)
    peer.note("asked")
    await peer.pause(0.3)
    await peer.sendall(b"answer to " + data)


def _asks_with_its_last_word(served: Any) -> tuple[Any, Any, Any]:
    """A client whose first request comes together with the end of its handshake."""
    raw, incoming, outgoing = served.connect(), ssl.MemoryBIO(), ssl.MemoryBIO()
    client = served.trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(65536))
    client.write(b"question")
    raw.sendall(outgoing.read())
    return raw, client, incoming


@in_every_way([case for case in HERE if (not case.is_unix and "uvloop" not in str(case)) or "green" in str(case)])
def test_tickets_that_follow_a_request_are_no_answer(case: Case) -> None:
    """They are sent after it; a drain would else take its handler for one that waits for more."""
    with securely(case, _slow, KNOWN, connection_timeout=60.0) as served:
        raw, client, incoming = _asks_with_its_last_word(served)
        with raw:
            assert until(lambda: served.notes() == ["asked"])
            assert [connection.is_idle() for connection in served.server.connections()] == [False]
            with suppress(ssl.SSLWantReadError):
                client.read(100)
            while True:
                try:
                    assert client.read(100) == b"answer to question"
                    break
                except ssl.SSLWantReadError:
                    incoming.write(raw.recv(65536))

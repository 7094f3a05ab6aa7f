"""Who a client is: `self.client` and `self.tls`, the same in every way to run, and who else is told.

What a proxy announces is in `test_proxied`, rules about users in `test_admission`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import portico

from . import draining
from .certificates import Authority
from .contract.flavours import KINDS, WAYS
from .every_way import EVERY, PATIENCE, TCP, Case, Peer, in_every_way, serving
from .green_worlds import exactly
from .secured import Certificates, certificates, clean_rest, securely, wrapped
from .waiting import until

TCP6 = [Case(way, kind) for way in WAYS for kind in KINDS if kind.name == "tcp6"]
UNIX = [case for case in EVERY if case.is_unix]
NOBODY = 65534

KNOWN: Certificates
CLIENT: tuple[Any, Any]
NAMES = ["client.example", "somebody@example.org", "somebody"]


@pytest.fixture(autouse=True, scope="module")
def known(authority: Authority) -> Certificates:
    global KNOWN, CLIENT
    KNOWN, CLIENT = certificates(authority), authority.client("somebody", "client.example", "somebody@example.org")
    return KNOWN


def mutual(**options: Any) -> portico.TLS:
    return portico.TLS(*KNOWN.pair, client_ca=KNOWN.authority.ca_file, **options)


def facts(client: Any) -> dict[str, Any]:
    """All that there is to be known of one."""
    found = {name: getattr(client, name) for name in ("address", "connected", "announced", "proxy")}
    found["credentials"] = None if client.credentials is None else tuple(client.credentials)
    tls = client.tls
    found["tls"] = None if tls is None else [tls.version, tls.alpn, tls.server_name, tls.peer and tls.peer.common_name]
    return found | {"names": list(client.names)}


async def tells(peer: Peer) -> None:
    """A body that notes who its client is."""
    handler = peer.handler
    peer.note(json.dumps(facts(handler.client) | {"client_address": handler.client_address, "same": _same(handler)}))
    await peer.sendall(b"done")


def _same(handler: Any) -> bool:
    """Whether the one attribute says what the other one does, both times that they are asked."""
    return all(handler.client.tls == handler.tls for _ in range(2))


def told(served: Any) -> Any:
    assert until(lambda: served.notes()), [getattr(event, "error", event) for event in served.events]
    return json.loads(served.notes()[0])


NOTHING: dict[str, Any] = {
    "announced": None,
    "proxy": None,
    "credentials": None,
    "tls": None,
    "names": [],
    "same": True,
}


@in_every_way(TCP + TCP6)
def test_over_tcp_a_client_is_its_address(case: Case) -> None:
    with serving(case, tells) as served, served.connect() as client:
        address = list(client.getsockname())
        assert exactly(client, 4) == b"done"
        assert told(served) == {"address": address, "connected": address, "client_address": address} | NOTHING


@in_every_way(UNIX)
def test_over_a_unix_socket_it_is_a_process(case: Case) -> None:
    """One of somebody else, where this one may become somebody else."""
    code = (
        "import os, socket, sys; sock = socket.socket(socket.AF_UNIX)\n"
        "if not os.geteuid(): os.setgid(65534); os.setuid(65534)\n"
        "sock.connect(sys.argv[1]); assert sock.recv(9) == b'done'; print(os.getuid(), os.getgid())\n"
        "sys.stdin.read()"
    )
    with serving(case, tells) as served:
        path = served.server.server_address
        os.chmod(os.path.dirname(path), 0o755)
        os.chmod(path, 0o777)
        other = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with other:
            assert other.stdout is not None
            uid, gid = map(int, other.stdout.readline().split())
            other.communicate()
        assert told(served)["credentials"] == [other.pid, uid, gid]
        assert os.geteuid() or (uid, gid) == (NOBODY, NOBODY)
        rest = {"address": "", "connected": "", "client_address": "", "credentials": [other.pid, uid, gid]}
        assert told(served) == NOTHING | rest


@in_every_way(EVERY + TCP6)
def test_over_tls_it_is_what_its_certificate_proves(case: Case) -> None:
    trust = KNOWN.trust(pair=CLIENT)
    trust.set_alpn_protocols(["echo"])
    with securely(case, tells, KNOWN, tls=mutual(alpn=["echo"])) as served, served.secure(trust=trust) as client:
        assert clean_rest(client) == b"done"
        address = "" if case.is_unix else list(client.getsockname())
        expected: dict[str, Any] = NOTHING | {"address": address, "connected": address, "client_address": address}
        expected |= {"tls": ["TLSv1.3", "echo", "localhost", "somebody"], "names": NAMES}
        if case.is_unix:
            expected["credentials"] = [os.getpid(), os.getuid(), os.getgid()]
        assert told(served) == expected


@in_every_way(EVERY)
def test_without_a_certificate_it_has_no_name(case: Case) -> None:
    tls = mutual(client_certificates="optional")
    with securely(case, tells, KNOWN, tls=tls) as served, served.secure(server_hostname=None, trust=_trust()) as client:
        assert clean_rest(client) == b"done"
        assert (told(served)["tls"], told(served)["names"]) == (["TLSv1.3", None, None, None], [])


def _trust() -> ssl.SSLContext:
    """Of one who asks for no name."""
    trust = KNOWN.trust()
    trust.check_hostname = False
    return trust


@in_every_way(EVERY)
def test_it_is_known_when_its_connection_is_closed_and_not_before(case: Case) -> None:
    """Asked for the first time when there is nothing left to ask."""

    async def closes(peer: Peer) -> None:
        await peer.sendall(b"done")
        peer.request.shutdown(socket.SHUT_WR)
        await peer.close()
        peer.note(json.dumps(facts(peer.handler.client)))

    with securely(case, closes, KNOWN, tls=mutual()) as served, served.secure(trust=KNOWN.trust(pair=CLIENT)) as client:
        assert clean_rest(client) == b"done"
        client.close()
        assert (told(served)["tls"], told(served)["names"]) == (["TLSv1.3", None, "localhost", "somebody"], NAMES)


@in_every_way(EVERY)
def test_finish_knows_it_too_whatever_has_happened(case: Case) -> None:
    """Of a stream that its peer has spoilt."""

    async def reads(peer: Peer) -> None:
        await peer.recv(9)

    def asks(handler: Any) -> None:
        Peer(handler, handler_notes[0]).note(json.dumps(facts(handler.client)))

    handler_notes: list[Any] = []
    made = Case.handler

    class Asking(Case):
        def handler(self, body: Any, notes: Any) -> Any:
            handler_notes.append(notes)
            base = made(self, body, notes)
            if self.way.own_tasks:

                async def finish(self: Any) -> None:
                    asks(self)
                    await base.finish(self)
            else:

                def finish(self: Any) -> None:  # type: ignore[misc]
                    asks(self)
                    base.finish(self)

            return type("Asking", (base,), {"finish": finish})

    asking = Asking(case.way, case.kind, case.streams)
    with securely(asking, reads, KNOWN, tls=mutual()) as served, served.on_paper(KNOWN.trust(pair=CLIENT)) as client:
        record = client.record(b"hello")
        client.sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
        assert (told(served)["tls"], told(served)["names"]) == (["TLSv1.3", None, "localhost", "somebody"], NAMES)
        assert served.reasons() == ["peer_left"]
        assert not served.faults()


@pytest.mark.parametrize("way", draining.WAYS, ids=lambda way: way.name)
def test_goodbyes_know_it(way: draining.Way) -> None:
    def greeting(handler: Any) -> bytes:
        return f"bye, {handler.client.names[0]} of {handler.tls.version}\n".encode()

    class Bye(draining.EchoBye):
        def goodbye(self) -> None:
            self.wfile.write(greeting(self))

    class AsyncBye(draining.AsyncEchoBye):
        async def goodbye(self) -> None:
            self.wfile.write(greeting(self))
            await self.wfile.drain()

    server = way.made("EchoBye", tls=mutual())
    server.RequestHandlerClass = AsyncBye if way.is_async else Bye
    with draining.serving(server):
        plain = socket.create_connection(server.server_address, PATIENCE)
        with wrapped(plain, KNOWN.trust(pair=CLIENT)) as client:
            client.sendall(b"line\n")
            assert exactly(client, 5) == b"LINE\n"
            drain = draining.Draining(server)
            assert clean_rest(client) == b"bye, client.example of TLSv1.3\n"
            assert drain.report().goodbyes == 1


# -- datagrams


@pytest.mark.parametrize("way", ["", "Threading", "Forking", "Green", "Async"])
def test_a_datagrams_sender_is_known_by_address(way: str) -> None:
    def answer(handler: Any) -> bytes:
        return json.dumps(
            facts(handler.client) | {"client_address": handler.client_address, "same": _same(handler)}
        ).encode()

    class Handler(portico.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            self.request[1].sendto(answer(self), self.client_address)

    class AsyncHandler(portico.AsyncBaseRequestHandler[Any, Any]):
        async def handle(self) -> None:
            await self.request[1].sendto(answer(self), self.client_address)

    kind: Any = getattr(portico, f"{way}UDPServer")
    server = kind(("127.0.0.1", 0), AsyncHandler if way == "Async" else Handler)
    with server.background(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"who am I?", server.server_address)
        address = ["127.0.0.1", client.getsockname()[1]]
        assert json.loads(client.recv(2000)) == NOTHING | dict.fromkeys(
            ("address", "connected", "client_address"), address
        )


@pytest.mark.parametrize("way", ["Threading", "Forking", "Green", "Async"])
def test_so_is_a_sessions_peer(way: str) -> None:
    class Handler(portico.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            self.request.recv()
            self.request.send(json.dumps(facts(self.client)).encode())

    class AsyncHandler(portico.AsyncBaseRequestHandler[Any, Any]):
        async def handle(self) -> None:
            await self.request.recv()
            await self.request.send(json.dumps(facts(self.client)).encode())

    kind: Any = getattr(portico, f"{way}UDPServer")
    server = kind(("127.0.0.1", 0), AsyncHandler if way == "Async" else Handler, sessions=True)
    with server.background(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"who am I?", server.server_address)
        address = ["127.0.0.1", client.getsockname()[1]]
        assert json.loads(client.recv(2000)) | {"same": True} == NOTHING | {"address": address, "connected": address}


# -- a program's own


@in_every_way(TCP)
def test_a_handlers_own_attribute_of_that_name_is_its_own(case: Case) -> None:
    async def sets(peer: Peer) -> None:
        peer.handler.client = {"a": "dict"}
        peer.handler.tls = 5
        peer.note(f"{peer.handler.client} {peer.handler.tls}")

    with serving(case, sets) as served, served.connect():
        assert until(lambda: served.notes()[:1] == ["{'a': 'dict'} 5"]), served.notes()


def test_a_subclasss_own_is_too() -> None:
    class Handler(portico.BaseRequestHandler):
        client = "mine"
        tls = None

        def handle(self) -> None:
            self.request.sendall(self.client.encode())

    with (
        portico.TCPServer(("127.0.0.1", 0), Handler).background() as server,
        socket.create_connection(server.server_address, PATIENCE) as client,
    ):
        assert client.recv(9) == b"mine"


class Says(portico.BaseRequestHandler):
    """What it finds, in words."""

    def handle(self) -> None:
        try:
            found = f"{self.client.address} {self.tls}"
        except AttributeError as error:
            found = str(error)
        self.request.sendall(found.encode())


def test_under_the_standard_librarys_server_there_is_none() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Says) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address, PATIENCE) as client:
            assert b"its server is another's" in client.recv(999)
        thread.join()


@pytest.mark.parametrize("mix_in", ["ThreadingMixIn", "ForkingMixIn", "GreenMixIn"])
def test_under_a_mix_in_of_ours_there_is(mix_in: str) -> None:
    made = type("Mixed", (getattr(portico, mix_in), socketserver.TCPServer), {})
    server: Any = made(("127.0.0.1", 0), Says)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with socket.create_connection(server.server_address, PATIENCE) as client:
            address = client.getsockname()
            assert client.recv(999) == f"{address} None".encode()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@in_every_way([case for case in TCP if case.way.name in ("plain", "thread", "fork")])
def test_what_a_handler_has_encrypted_itself_is_known(case: Case) -> None:
    """As one does over `socketserver`, with `wrap_socket`."""
    context = KNOWN.context()

    async def wraps(peer: Peer) -> None:
        await peer.wrap(context)
        peer.handler.request = peer.request
        await peer.sendall(str(peer.handler.tls).encode())
        await peer.close()

    with serving(case, wraps) as served, wrapped(served.connect(), KNOWN.trust(), suppress_ragged_eofs=True) as client:
        assert clean_rest(client).startswith(b"<TLSInfo TLSv1.3 ")


# -- who else is told


@contextmanager
def access_log() -> Iterator[list[Any]]:
    lines: list[Any] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(record.getMessage()))

    logger, handler = logging.getLogger("portico.access"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@in_every_way(EVERY, at_once=False)
def test_the_access_log_and_the_operator_are_told(case: Case) -> None:
    async def stays(peer: Peer) -> None:
        await peer.sendall(await peer.recv(9))
        await peer.recv(9)

    with access_log() as lines, securely(case, stays, KNOWN, access_log="json", tls=mutual()) as served:
        with served.connect() as noisy:
            noisy.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert until(lambda: len(lines) == 1)
        with served.secure(trust=KNOWN.trust(pair=CLIENT)) as client:
            client.sendall(b"hello")
            assert client.recv(9) == b"hello"
            (connection,) = served.server.connections()
            who = "" if case.is_unix else client.getsockname()
            assert (connection.client_address, connection.connected_address, connection.state) == (who, who, "open")
            client.unwrap().close()
        assert until(lambda: len(lines) == 2)
        assert [line["reason"] for line in lines] == ["handshake_failed", "done"]
        for line in lines:
            assert line["client"] == ("unix" if case.is_unix else line["client"])
            assert line["local"] == lines[0]["local"]
            if case.is_unix:
                assert (line["client_pid"], line["client_uid"]) == (os.getpid(), os.getuid())
        if not case.way.own_process:
            assert lines[1]["bytes_in"] >= 5
            assert lines[1]["bytes_out"] >= 5
        assert served.server.stats().ended == {"handshake_failed": 1, "done": 1}

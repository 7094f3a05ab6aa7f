"""Green threads under what is built on `socketserver`: http.server, wsgiref, xmlrpc, programs by `portico run`."""

from __future__ import annotations

import http.client
import http.server
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

import portico
from portico import green

from .commands import running
from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread
from .waiting import until

LOOP = pytest.mark.parametrize("loop", LOOPS)


class Page(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1 with connections that are kept; a page may take a while, a form is read."""

    protocol_version = "HTTP/1.1"
    threads: set[int] = set()  # noqa: RUF012

    def do_GET(self) -> None:
        self.threads.add(threading.get_ident())
        if self.path == "/slow":
            green.sleep(0.05)
        self.answer(self.path.encode() + b" " + b"x" * 100_000)

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])).upper())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


class GreenHTTPServer(portico.GreenMixIn, http.server.HTTPServer):
    request_queue_size = 100  # with the standard library's 5 a client may have to try again, a second later


def over(made: Any, loop: str) -> Any:
    return type(made.__name__, (made,), {"event_loop": loop})


def got(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


@LOOP
def test_http_servers_handler_keeps_several_connections_at_once(loop: str) -> None:
    with over(GreenHTTPServer, loop)(LOOPBACK, Page).background() as server:
        clients = [http.client.HTTPConnection(*server.server_address, timeout=10) for _ in range(10)]
        for _ in range(3):
            for client in clients:
                client.request("GET", "/slow")
            for client in clients:
                assert client.getresponse().read() == b"/slow " + b"x" * 100_000
        clients[3].request("POST", "/", b"a form" * 50_000)
        assert clients[3].getresponse().read() == b"A FORM" * 50_000
        for client in clients:
            client.close()
    assert len(Page.threads) <= len(LOOPS)


@LOOP
def test_closing_it_ends_connections_that_are_kept(loop: str) -> None:
    with over(GreenHTTPServer, loop)(LOOPBACK, Page).background() as server:
        client = http.client.HTTPConnection(*server.server_address, timeout=10)
        assert got(client, "/one").startswith(b"/one ")
        sock = client.sock
        server.server_close()
        assert sock.recv(1) == b""
        client.close()


@LOOP
def test_http_server_serves_files(loop: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(bytes(range(256)) * 10_000)

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None: ...

    with over(GreenHTTPServer, loop)(LOOPBACK, Files).background() as server:
        client = http.client.HTTPConnection(*server.server_address, timeout=10)
        assert got(client, "/file.bin") == bytes(range(256)) * 10_000
        client.close()


def test_a_server_of_the_standard_librarys_serves_again_in_another_thread() -> None:
    with GreenHTTPServer(LOOPBACK, Page) as server:
        for _ in range(2):
            with in_a_thread(server.serve_forever):
                client = http.client.HTTPConnection(*server.server_address, timeout=10)
                assert got(client, "/again").startswith(b"/again ")
                client.close()
                server.shutdown()


@pytest.mark.parametrize("base", [socketserver.TCPServer, socketserver.UDPServer])
@LOOP
def test_the_standard_librarys_own_servers_go_green(base: Any, loop: str) -> None:
    together = threading.active_count()

    def handler(request: Any, client_address: Any, server: Any) -> None:
        green.sleep(0.001)
        assert threading.active_count() <= together + 2  # the loop's thread, the watchdog
        if isinstance(request, tuple):
            request[1].sendto(request[0].upper(), client_address)
        else:
            request.sendall(request.recv(10).upper())

    class Mine(portico.GreenMixIn, base): ...

    with over(Mine, loop)(LOOPBACK, handler).background() as server:
        if base is socketserver.TCPServer:
            assert ask(server, b"hello") == b"HELLO"
            return
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            for number in range(10):
                client.sendto(b"hello %d" % number, server.server_address)
            assert sorted(client.recv(10) for _ in range(10)) == [b"HELLO %d" % number for number in range(10)]


@LOOP
def test_wsgiref(loop: str) -> None:
    running_now, most = 0, 0

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        green.sleep(0.05)
        running_now -= 1
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        start("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode(), b" ", body]

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    class Mine(portico.GreenMixIn, WSGIServer): ...

    made: Any = make_server(*LOOPBACK, application, server_class=over(Mine, loop), handler_class=Quiet)
    with made.background() as server:
        clients = [http.client.HTTPConnection(*server.server_address, timeout=10) for _ in range(5)]
        for number, client in enumerate(clients):
            client.request("POST", f"/{number}", b"body")
        for number, client in enumerate(clients):
            assert client.getresponse().read() == b"/%d body" % number
            client.close()
    assert most == 5


@LOOP
def test_xmlrpc(loop: str) -> None:
    class Mine(portico.GreenMixIn, xmlrpc.server.SimpleXMLRPCServer): ...

    def fail() -> None:
        raise LookupError("not there")

    with over(Mine, loop)(LOOPBACK, logRequests=False) as server:
        server.register_function(pow)
        server.register_function(fail)
        with server.background(), xmlrpc.client.ServerProxy(f"http://127.0.0.1:{server.server_address[1]}") as client:
            assert [client.pow(2, number) for number in range(5)] == [1, 2, 4, 8, 16]
            with pytest.raises(xmlrpc.client.Fault, match="not there"):
                client.fail()
            assert client.pow(3, 2) == 9


# -- portico run --concurrency green

PROGRAMS = {
    "socketserver": """
import socketserver, threading

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%s %d\\n" % (line.strip(), threading.get_ident()))

class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True

with Server(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
""",
    "http.server": """
import http.server, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"%s %d\\n" % (self.path[1:].encode(), threading.get_ident())
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
""",
}


class Program:
    """What a client sees of the program: it says a word, and reads it back with the number of a thread."""

    def __init__(self, name: str, port: int) -> None:
        self._say = f"GET /%s HTTP/1.1\r\nHost: {name}\r\n\r\n" if name == "http.server" else "%s\n"
        self.server_address = ("127.0.0.1", port)

    def talk(self, client: socket.socket, word: str) -> int:
        client.sendall((self._say % word).encode())
        answer = b""
        while not (found := re.search(rf"{word} (\d+)\n".encode(), answer)):
            piece = client.recv(1000)
            assert piece, answer
            answer += piece
        return int(found[1])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("concurrency", ["green", "thread"])
def test_a_program_that_asks_for_threads_gets_green_ones(name: str, concurrency: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[name])
    command = [sys.executable, "-W", "error", "-m", "portico", "run", "--concurrency", concurrency, str(script)]
    with running(command, ready=r"^\d+$") as (process, lines):
        program = Program(name, int(lines[0]))
        clients = [connected(program) for _ in range(5)]  # all kept: each is one request, and still runs
        threads = {program.talk(client, f"w{number}") for number, client in enumerate(clients * 2)}
        assert len(threads) == (1 if concurrency == "green" else 5)
        if concurrency == "green":
            assert until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) <= 2)  # the watchdog is the other
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read().endswith("KeyboardInterrupt\n")
        assert process.wait(10) != 0
        for client in clients:
            client.close()

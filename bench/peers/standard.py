"""Blocking handlers, for `socketserver`, and the same for on Portico's threads and green threads."""

from __future__ import annotations

from .process import BACKLOG, CHUNK, HOST, RECEIVE, STREAM, context, need, opened_by, part, plain, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["green", "one_at_a_time", "portico_threads", "threads"]

_PAGE = b"Hello from a handler.\n"


def handler(module: Any, service: str) -> Any:
    """The handler class for a service, on the module's own base classes."""

    class Echo(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            while data := self.request.recv(RECEIVE):
                self.request.sendall(data)

    class Lines(module.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            while line := self.rfile.readline():
                self.wfile.write(line)

    class Stream(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            while data := self.request.recv(RECEIVE):
                if data.startswith(STREAM):
                    return self.stream()
                self.request.sendall(data)
            return None

        def stream(self) -> None:
            try:
                while True:
                    self.request.sendall(CHUNK)
            except OSError:
                return  # the neighbour has had enough

    return {"echo": Echo, "lines": Lines, "stream": Stream}[plain(service)]


def page() -> Any:
    """`http.server`'s handler with keep-alive. Buffered: two writes an answer meet a delayed acknowledgement."""
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(_PAGE)))
            self.end_headers()
            self.wfile.write(_PAGE)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """A line on stderr for each is not measured."""

    return Page


def threads(service: str) -> None:
    """The standard library's, a thread per connection."""
    if service == "http":
        import http.server

        _serve(http.server.ThreadingHTTPServer, page())
    else:
        import socketserver

        _serve(_over_wrapped(socketserver.ThreadingTCPServer, service), handler(socketserver, service))


def portico_threads(service: str) -> None:
    """Portico's, a thread per connection."""
    import portico

    if service == "http":
        _serve(_over_http_server(portico.ThreadingMixIn), page())
    else:
        _serve(portico.ThreadingTCPServer, handler(portico, service), **opened_by(portico, service))


def one_at_a_time(service: str) -> None:
    """Portico's, without a thread: requests wait for each other, but not for another's handshake."""
    import portico

    _serve(portico.TCPServer, handler(portico, service), **opened_by(portico, service))


def green(service: str, event_loop: str) -> None:
    """Portico's, a green thread per connection."""
    import portico

    need(event_loop)
    if service == "http":
        _serve(_over_http_server(part(portico, "GreenMixIn")), page(), event_loop=event_loop)
    else:
        settings = opened_by(portico, service)
        _serve(part(portico, "GreenTCPServer"), handler(portico, service), event_loop=event_loop, **settings)


def _over_http_server(mix_in: Any) -> Any:
    import http.server

    class Server(mix_in, http.server.HTTPServer):  # type: ignore[misc]
        pass

    return Server


def _over_wrapped(base: Any, service: str) -> Any:
    """With a listener that is wrapped in TLS, as programs do it: there is no other way in `socketserver`."""
    encrypted = context(service)
    if encrypted is None:
        return base

    class Server(base):  # type: ignore[misc]
        def server_activate(self) -> None:
            super().server_activate()
            self.socket: Any = encrypted.wrap_socket(self.socket, server_side=True)

    return Server


def _serve(base: Any, handler_class: Any, **settings: object) -> None:
    # Settings as class variables: http.server's class takes no keywords.
    server_class = type("Server", (base,), {"request_queue_size": BACKLOG, "daemon_threads": True, **settings})
    with server_class((HOST, 0), handler_class) as server:
        ready(server.server_address[1])
        server.serve_forever()

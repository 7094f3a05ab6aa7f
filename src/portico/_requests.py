"""A request's context, its failure and its end: what every way to run does around it, in the same words.

The hooks that are called are the server's, which may be the standard library's, under one of our mix-ins.
"""

from __future__ import annotations

import contextvars
import socket as _socket
import sys

from . import logs
from .errors import is_disconnect
from .events import EndReason, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["end_request", "note_cut", "note_failure", "request_context", "request_failed"]


def request_failed(server: Any, request: Any, client_address: Any) -> None:
    """`server.handle_error(...)`, with the failure noted. Inside the `except` block."""
    server._portico_connections.datagrams_failed += type(request) is tuple
    note_failure(server, request)
    server.handle_error(request, client_address)


def note_failure(server: Any, request: Any) -> None:
    """Note, inside an `except` block, that a connection has failed, or that its peer has left.

    `sys.exit()` is an end that its handler has chosen, unless it says that something is wrong.
    """
    connection = server._portico_connections.of(request)
    if connection is None or connection.reason is not None:
        return
    error = sys.exception()
    if isinstance(error, SystemExit) and not error.code:
        return
    connection.reason = EndReason.PEER_LEFT if is_disconnect(error, request) else EndReason.FAILED


def note_cut(server: Any, request: Any) -> None:
    """Its request has been ended where it waited, for whatever reason, if none is known."""
    connection = server._portico_connections.of(request)
    if connection is not None:
        connection.failed(EndReason.CUT)


def end_request(server: Any, request: Any, *, ran: bool = True) -> None:
    """`server.shutdown_request(request)`, but never raising and always closing, whatever an override does.

    The server may be the standard library's, under one of our mix-ins.
    """
    connections = server._portico_connections
    connection = connections.of(request)
    queued = server._portico_queue is not None  # which counts them itself
    try:
        if connection is not None:
            connection.settle()
            if connection.key is None:
                request.connection = None  # it need not tell of its closing
        if getattr(request, "secured", False):
            request.ending = True
            if connections.access_log is not None:
                from . import client

                client.tls_of(connection, request)  # which remembers it
        server.shutdown_request(request)
    except BaseException as error:
        if isinstance(error, Exception):
            logs.emit(server, HookFailed("shutdown_request", error))
            if connection is not None:
                connection.failed(EndReason.FAILED)
        try:
            server.close_request(request)
        except Exception:
            if isinstance(request, _socket.socket):
                request.close()
        if not isinstance(error, Exception):  # a green thread's end, in the middle of a last word
            raise
    finally:
        if connection is not None:
            connections.end(connection)
        elif type(request) is tuple and ran and not queued:
            connections.end_datagrams(server, 1)


def request_context(server: object) -> contextvars.Context:
    """The context variables a request starts with: a copy of the loop's own.

    A loop in a bare `threading.Thread` has none before Python 3.14; then those count with which the server was made.
    """
    context = contextvars.copy_context()
    made_with: contextvars.Context | None = getattr(server, "_portico_context", None)
    return context if len(context) or made_with is None else made_with.copy()

"""The access log: one line for every connection that has ended or was refused, on the logger `portico.access`.

Text or JSON, a line of ASCII either way, whatever a peer calls itself. What is told when is `_connections`'; events and
faults are `logs`'. Loaded only where `access_log` says so, as it loads `logging`.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from . import _sockets
from .errors import UnavailableError
from .events import EndReason

if TYPE_CHECKING:
    from typing import Any, Final

    from ._connection import Connection

__all__ = ["AccessLog", "spelled"]

_LOGGER: Final = logging.getLogger("portico.access")
# What `stats().refused` calls those that were let in, and then not run.
_REFUSALS: Final = {EndReason.REFUSED: "verify_request", EndReason.OVERLOADED: "overloaded"}
# All of ASCII that can be seen, less what an escape begins with and what would end a quoted word.
_PLAIN: Final = {code for code in range(0x21, 0x7F) if chr(code) not in '\\"'}


class AccessLog:
    """Writes the lines of one server, as `kind` says: "text" or "json"."""

    def __init__(self, kind: str) -> None:
        self._render = _text if kind == "text" else _json

    def begun(self, connection: Connection) -> None:
        """Note what cannot be known any more at the end: who is behind a Unix socket."""
        if isinstance(connection.client_address, tuple):
            return
        connection.credentials = _credentials(connection.current_socket())

    def ended(self, connection: Connection) -> None:
        """A connection is over."""
        assert connection.reason is not None
        if not _LOGGER.isEnabledFor(logging.INFO):
            return
        facts = _facts(connection.client_address, connection.local_address, connection.reason.value)
        facts |= {"id": connection.id, "seconds": round(connection.age, 3)}
        facts |= {"bytes_in": connection.bytes_in, "bytes_out": connection.bytes_out}
        if connection.proxy is not None:
            facts["via"] = spelled(connection.connected_address)
        who = connection.credentials
        if who is not None:
            facts |= {"client_pid": who.pid, "client_uid": who.uid}
        if connection.tls is not None:
            peer = connection.tls.peer
            facts |= {"tls": connection.tls.version, "tls_name": None if peer is None else peer.common_name}
        if connection.reason in _REFUSALS or connection.refusal is not None:
            facts["refused"] = connection.refusal or _REFUSALS[connection.reason]
        _LOGGER.info("%s", self._render(facts))

    def refused(self, reason: str, request: Any, client_address: Any) -> None:
        """A connection was not let in."""
        if _LOGGER.isEnabledFor(logging.INFO):
            facts = _facts(client_address, _local(request), EndReason.REFUSED.value)
            who = None if isinstance(client_address, tuple) else _credentials(request)
            if who is not None:
                facts |= {"client_pid": who.pid, "client_uid": who.uid}
            _LOGGER.info("%s", self._render(facts | {"refused": reason}))


def _credentials(request: Any) -> _sockets.Credentials | None:
    try:
        return _sockets.peer_credentials(request)
    except (UnavailableError, OSError):  # no Unix socket, closed already, or a system without credentials
        return None


def _facts(client: Any, local: Any, reason: str) -> dict[str, Any]:
    """What there is to say of every connection. The order is that of JSON's keys."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    unknown = dict.fromkeys(("seconds", "bytes_in", "bytes_out"))
    return {"time": now, "id": None, "client": spelled(client), "local": spelled(local), **unknown, "reason": reason}


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts)


def _text(facts: dict[str, Any]) -> str:
    """Without the time, which is `logging`'s to say."""
    client = facts["client"]
    if client == "unix" and "client_pid" in facts:
        client = f"unix:pid={facts['client_pid']},uid={facts['client_uid']}"
    if "via" in facts:
        client += f" via {facts['via']}"
    end = f"refused={facts['refused']}" if "refused" in facts else facts["reason"]
    if facts["id"] is None:
        return f"{client} -> {facts['local']} {end}"
    bytes_in, bytes_out = ("-" if facts[name] is None else facts[name] for name in ("bytes_in", "bytes_out"))
    seconds = f"{facts['seconds']:.3f}s"
    if "tls" in facts:
        end += f" tls={facts['tls']}" + (f" name={_word(facts['tls_name'])}" if facts["tls_name"] else "")
    return f"{client} -> {facts['local']} id={facts['id']} {seconds} in={bytes_in} out={bytes_out} {end}"


def _local(request: Any) -> Any:
    try:
        return request.getsockname()
    except (OSError, AttributeError):
        return None


def spelled(address: Any) -> str:
    r"""An address as one word of ASCII: 127.0.0.1:80, [::1]:80, unix:/path, unix:@name, unix for one without a name.

    "-" if it is not known. Bytes that could end a word or a line are spelled \xNN, so that no client can forge one.
    """
    if address is None:
        return "-"
    if isinstance(address, tuple) and len(address) >= 2:
        host, port, *more = address
        if isinstance(host, str) and ":" in host:
            scope = f"%{more[1]}" if len(more) == 2 and more[1] and "%" not in host else ""
            return _word(f"[{host}{scope}]:{port}")
        return _word(f"{host}:{port}")
    if not isinstance(address, (str, bytes)):
        return _word(repr(address))
    name = _bytes(address)
    name = b"@" + name[1:] if name[:1] == b"\0" else name
    return _word(b"unix:" + name if name else "unix")


def _bytes(name: str | bytes) -> bytes:
    if isinstance(name, bytes):
        return name
    try:
        return name.encode("utf-8", "surrogateescape")  # as the system's own names are decoded
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def _word(name: str | bytes) -> str:
    return "".join(chr(code) if code in _PLAIN else f"\\x{code:02x}" for code in _bytes(name))

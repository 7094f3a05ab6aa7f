"""Sockets as a server needs them: made or adopted, bound with an error that helps, asked what they are.

What an address means is `_addresses`', what becomes of socket files `_unix_files`', and what is accepted when
`_acceptor`'s.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from array import array  # socket has loaded it anyway

from . import _addresses
from .errors import AddressError, SettingError, UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from ._meters import MeteredSocket
    from ._setting import Keepalive
    from ._system import System
    from ._unix_files import SocketFile

__all__ = [
    "DONT_WAIT",
    "Credentials",
    "ServerSocket",
    "bind",
    "can_take_without_waiting",
    "connection_class",
    "existing",
    "is_listening",
    "is_usable",
    "listen",
    "make_nonblocking",
    "metered",
    "peer_credentials",
    "peer_groups",
    "set_blocking_again",
    "set_options",
    "wait_readable",
    "watch_peers",
]

DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
"""The flag with which recv() fails rather than blocks; 0 where there is none (Windows)."""
_POSIX = os.name == "posix"
_INHERITS_MODE = sys.platform != "linux"
_IN_USE = errno.EADDRINUSE
_PEER_GROUPS = 59  # SO_PEERGROUPS, which `socket` does not know


class Credentials(tuple[int, int, int]):
    """The process at the other end of a Unix connection, as the kernel saw it when it connected (unix(7))."""

    __slots__ = ()
    # By hand: `namedtuple` compiles code for every class that it makes, a tenth of what `import portico` takes.
    pid = property(lambda self: self[0], doc="Its process id.")
    uid = property(lambda self: self[1], doc="Its user.")
    gid = property(lambda self: self[2], doc="Its group.")

    def __new__(cls, pid: int, uid: int, gid: int) -> Self:
        return super().__new__(cls, (pid, uid, gid))

    def __getnewargs__(self) -> tuple[int, int, int]:
        return self.pid, self.uid, self.gid  # for copy and pickle

    def __repr__(self) -> str:
        return f"Credentials(pid={self.pid}, uid={self.uid}, gid={self.gid})"


def connection_class(family: int) -> type[MeteredSocket]:
    """What the blocking ways to run give their handlers: a socket of which is known what goes over it."""
    from ._meters import CountedSocket, MeteredSocket, kernel_counts_family  # not before there is a server

    return MeteredSocket if kernel_counts_family(family) else CountedSocket


def metered(sock: socket.socket, kind: Callable[..., socket.socket]) -> socket.socket:
    """The same connection in a socket of another kind, such as one of which is known what goes over it."""
    timeout = sock.gettimeout()
    found = kind(int(sock.family), int(sock.type), sock.proto, sock.detach())
    if timeout is not None:
        found.settimeout(timeout)
    return found


class ServerSocket(socket.socket):
    """A server's own socket. Closing it ends the loop that waits on it, through `on_close`.

    The kernel would not even wake it: poll() goes on waiting on a descriptor that another thread has closed.
    """

    __slots__ = ("_kind", "detached", "make_connection", "on_close", "on_detach")

    _kind: tuple[int, int, int]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.on_close: Callable[[], object] | None = None
        self.on_detach: Callable[[], object] | None = None
        self.detached = False
        self.make_connection: Callable[..., socket.socket] = connection_class(int(self.family))

    def accept(self) -> tuple[socket.socket, Any]:
        """`socket.accept`, but without turning numbers into enums and back for every connection.

        That is a quarter of the pages a forking server touches between two forks (measured: 92 down to 68).
        """
        try:
            family, kind, proto = self._kind
        except AttributeError:
            self._kind = family, kind, proto = int(self.family), int(self.type), self.proto
        descriptor, address = self._accept()  # type: ignore[attr-defined]
        connection = self.make_connection(family, kind, proto, descriptor)
        # BSD and macOS let a connection inherit the listener's mode, which its object does not see (Issue 7995).
        if _INHERITS_MODE and socket.getdefaulttimeout() is None:
            connection.setblocking(True)
        return connection, address

    def close(self) -> None:
        if self.on_close is not None:
            self.on_close()  # first: once closed, the descriptor's number may be somebody else's
        super().close()

    def detach(self) -> int:
        self.detached = True
        if self.on_detach is not None:
            self.on_detach()
        return super().detach()


def existing(address: Any, system: System) -> socket.socket | None:
    """The socket that `address` is or names (`fd://N`, `systemd://NAME`); None if it is an address to bind."""
    if isinstance(address, socket.socket):
        if address.fileno() < 0:
            raise AddressError("the socket given as the server's address is closed")
        if not _is_bound(address):
            raise AddressError("the socket given as the server's address is not bound; give an address instead")
        return address
    if isinstance(address, str) and address.startswith(("fd://", "systemd://")):
        from . import _activation  # like `_unix_files` below: few programs want it, and all would pay for the import

        return ServerSocket(fileno=_activation.from_text(address, system).detach())
    return None


def _is_bound(sock: socket.socket) -> bool:
    name = sock.getsockname()
    return bool(name[1] if isinstance(name, tuple) else name)


def set_options(sock: socket.socket, *, reuse_address: Any, reuse_port: Any, dual_stack: bool | None) -> None:
    """Set what has to be set before bind(). Raises `UnavailableError` for what this system does not have."""
    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif sys.platform == "win32" and inet and not reuse_port:
        # Without it another process may bind the same port and take the clients (Microsoft's advice for all servers).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    if reuse_port and inet:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise UnavailableError("allow_reuse_port needs SO_REUSEPORT, which this system does not have")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if dual_stack is not None and sock.family == socket.AF_INET6:
        if dual_stack and not socket.has_dualstack_ipv6():
            raise UnavailableError("dual_stack needs IPv6 sockets that also take IPv4, which this system does not have")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)


def bind(
    sock: socket.socket, address: Any, *, mode: int | None = None, group: int | str | None = None
) -> SocketFile | None:
    """Bind; a Unix path gets `mode` and `group`, and the file made is returned.

    An `OSError` keeps its class and errno, and says which address it is about and, where the system lets us know, who
    holds it. Other errors (an OverflowError for a port of 70000) are bind()'s own.
    """
    try:
        if sock.family == _addresses.AF_UNIX:
            from . import _unix_files

            if _unix_files.has_file(address):
                return _unix_files.bind(sock, address, mode=mode, group=group)
        sock.bind(address)
    except OSError as error:
        raise _explained(error, sock, address) from error
    return None


def _explained(error: OSError, sock: socket.socket, address: Any) -> OSError:
    reason = error.strerror or str(error)
    where = _addresses.describe(sock, address)
    if isinstance(error, PermissionError) and sock.family != _addresses.AF_UNIX:
        reason += "; ports below 1024 need privileges"
    if error.errno == _IN_USE and sock.family == _addresses.AF_UNIX and _is_other_file(address):
        reason += "; there is a file or folder that is no socket"
    elif error.errno == _IN_USE:
        from ._holders import holder  # only wanted when things have gone wrong

        who = holder(sock.type, address)
        reason += f", held by {who}" if who else ""
    kind = socket.gaierror if isinstance(error, socket.gaierror) else OSError
    return kind(error.errno, f"cannot bind {where}: {reason}")


def _is_other_file(path: Any) -> bool:
    try:
        return not stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):  # none, or an abstract name
        return False


def listen(sock: socket.socket, backlog: int) -> None:
    """listen(), with `bind`'s errors: where SO_REUSEADDR let two sockets bind one port, only one may listen."""
    try:
        sock.listen(backlog)
    except OSError as error:
        raise _explained(error, sock, sock.getsockname()) from error


def watch_peers(listener: Any, *, keepalive: Keepalive, tcp_user_timeout: float | None) -> None:
    """Have TCP look after the peers of the connections that this listener accepts, which inherit what is set here.

    `keepalive`: after so many seconds of silence the peer is asked for a sign of life, then again after each third of
    them, three times in all; or as three numbers say: seconds of silence, seconds between questions, how many; or, if
    it is True, when the system does so by itself.
    `tcp_user_timeout`: seconds that sent data, or such a question, may stay unacknowledged; it then decides alone when
    a silent peer is given up (tcp(7)). None leaves the system's own. Means nothing for sockets other than TCP's. Raises
    `UnavailableError` for what this system does not have, `SettingError` for more than it can count.
    """
    if not keepalive and tcp_user_timeout is None:
        return
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
        return
    if keepalive:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if keepalive and keepalive is not True:
        first = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # the latter is macOS's
        timings = (keepalive, keepalive / 3, 3) if isinstance(keepalive, (int, float)) else keepalive
        for option, number in zip((first, "TCP_KEEPINTVL", "TCP_KEEPCNT"), timings, strict=True):
            if hasattr(socket, option):
                _set_tcp(listener, option, _at_least_one(number), f"keepalive = {keepalive!r}")
    if tcp_user_timeout is not None:
        if not hasattr(socket, "TCP_USER_TIMEOUT"):
            raise UnavailableError("tcp_user_timeout needs TCP_USER_TIMEOUT, which this system does not have")
        milliseconds = _at_least_one(tcp_user_timeout * 1000)
        _set_tcp(listener, "TCP_USER_TIMEOUT", milliseconds, f"tcp_user_timeout = {tcp_user_timeout!r}")


def _at_least_one(number: float) -> int:
    return max(1, round(number))


def _set_tcp(sock: Any, option: str, number: int, setting: str) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), array("i", [number]))
    except (OSError, OverflowError) as error:  # the latter is array's: setsockopt's own is a strange TypeError
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise SettingError(f"{setting} is more seconds than this system can count") from error


def is_listening(sock: Any) -> bool:
    """Whether this is a socket that accepts connections; False for anything that is no open socket."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (OSError, AttributeError, TypeError):
        return False


def is_usable(sock: Any, listening: bool) -> bool:
    """Whether requests can still come from this socket, which was `listening` before."""
    try:
        return is_listening(sock) if listening else bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
    except (OSError, AttributeError, TypeError):
        return False


def can_take_without_waiting(kind: int) -> bool:
    """Whether this system can have an empty listener fail at once: datagrams by a flag, streams by the file's mode."""
    return bool(DONT_WAIT) if kind == socket.SOCK_DGRAM else _POSIX


def make_nonblocking(sock: socket.socket) -> None:
    """Have accept() fail rather than block, without touching the timeout that the socket object shows.

    The mode belongs to the open file, which other processes may share: it may be set back at any time.
    """
    _set_blocking(sock, False)


def set_blocking_again(sock: socket.socket) -> None:
    """Undo `make_nonblocking`, for whoever calls accept() on the listener after us."""
    if sock.gettimeout() is None:
        _set_blocking(sock, True)


def _set_blocking(sock: socket.socket, blocking: bool) -> None:
    if _POSIX:
        try:
            os.set_blocking(sock.fileno(), blocking)
        except (OSError, ValueError):  # closed, perhaps by another thread and just now
            return


def wait_readable(sock: Any, seconds: float) -> bool:
    """Wait until something can be read, or the end has come, or so long; whether it is so.

    Of a socket or descriptor. A selector would take three times as long to make.
    """
    import select

    if not hasattr(select, "poll"):
        return bool(select.select((sock,), (), (), seconds)[0])
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def peer_groups(sock: socket.socket) -> frozenset[int]:
    """All groups of a Unix stream's peer (SO_PEERGROUPS, Linux 4.13); its first one where only that is known."""
    first = peer_credentials(sock).gid
    try:
        answer = sock.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, 1024)  # Python has no more room
    except OSError as error:
        answer = _many_groups(sock) if error.errno == errno.ERANGE else b""
    return frozenset(array("I", answer)) | {first}


def _many_groups(sock: socket.socket) -> bytes:
    """The same for somebody who is in more than 256; of these there can be 65,536."""
    try:
        import ctypes

        room, size = ctypes.create_string_buffer(4 << 16), ctypes.c_uint(4 << 16)
        asked = ctypes.CDLL(None).getsockopt(sock.fileno(), socket.SOL_SOCKET, _PEER_GROUPS, room, ctypes.byref(size))
    except (ImportError, AttributeError):  # a Python without ctypes
        return b""
    return b"" if asked else room.raw[: size.value]


def peer_credentials(sock: socket.socket) -> Credentials:
    """pid, uid and gid of a Unix stream's peer. Raises `UnavailableError` for other sockets and systems."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise UnavailableError("peer credentials need SO_PEERCRED, which this system does not have")
    if not isinstance(sock, socket.socket) or sock.family != _addresses.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise UnavailableError("peer credentials exist for Unix stream connections only")
    answer = array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))  # struct ucred: three ints
    return Credentials(*answer)

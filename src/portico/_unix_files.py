"""The files of Unix sockets: who may use one, whether one left behind is dead, and whose it is to remove.

Only paths. Abstract names leave no file, and everything here lets them pass.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections import namedtuple

from .errors import AddressError, SettingError, UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SocketFile", "bind", "has_file"]


def has_file(address: Any) -> bool:
    """Whether a Unix address is a path; abstract and unnamed ones are not."""
    return bool(address) and isinstance(address, (str, bytes)) and os.fsencode(address)[0] != 0


class SocketFile(namedtuple("SocketFile", ["path", "device", "inode", "pid"])):
    """A socket file that this process made. `pid` keeps a forked child from removing its parent's."""

    __slots__ = ()

    @classmethod
    def at(cls, path: str | bytes) -> SocketFile:
        status = os.lstat(path)
        return cls(os.path.abspath(path), status.st_dev, status.st_ino, os.getpid())

    def is_still_ours(self) -> bool:
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino, os.getpid()) == (self.device, self.inode, self.pid)

    def remove(self) -> None:
        """Remove the file, unless it is gone or another server has put its own there."""
        if self.is_still_ours():
            try:
                os.unlink(self.path)
            except OSError:  # gone between the two calls, or a folder we may not write to: nothing is lost
                return


def bind(sock: socket.socket, path: str | bytes, *, mode: int | None, group: int | str | None) -> SocketFile:
    """Bind to `path`, in place of a dead socket's file if one is there, with `mode` and `group`.

    Raises `OSError` as bind() does: EADDRINUSE if a live server or another kind of file has the path.
    """
    gid = None if group is None else _group_id(group)
    if mode is not None or gid is not None:
        _narrow(sock, 0o777 if mode is None else mode)
    try:
        sock.bind(path)
    except OSError:
        if not _remove_if_dead(path, sock.type):
            raise
        sock.bind(path)
    file = SocketFile.at(path)
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        if mode is not None or gid is not None:
            os.chmod(path, 0o660 if mode is None else mode)
    except OSError:
        file.remove()
        raise
    return file


def _group_id(group: int | str) -> int:
    if isinstance(group, int):
        return group
    try:
        import grp  # POSIX only
    except ImportError:
        raise UnavailableError("unix_group needs a POSIX system; leave it at none") from None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SettingError(f"unix_group: there is no group {group!r}") from None


def _narrow(sock: socket.socket, mode: int) -> None:
    """Give the file that bind() will make the owner's share of `mode` from its first moment.

    Linux makes the file with the mode of the socket's inode (unix_bind), so no umask, which all threads share, has to
    be changed. Elsewhere a stream socket has no window either, as nobody can connect before listen(); a datagram
    socket has one.
    """
    if sys.platform == "linux":
        os.fchmod(sock.fileno(), mode & 0o700)
    elif sock.type == socket.SOCK_DGRAM:
        raise UnavailableError("unix_mode and unix_group of a datagram socket need Linux; leave them at none")


def _remove_if_dead(path: str | bytes, kind: int) -> bool:
    """Remove a socket file that nobody serves any more; True if bind() is worth another try.

    Connecting tells: only a socket without an owner refuses. The inode is looked at again before the file goes, in
    case another server has just replaced it.
    """
    if not has_file(path):
        return False
    try:
        before = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISSOCK(before.st_mode) or not _refuses(path, kind):
        return False
    dead = SocketFile(path, before.st_dev, before.st_ino, os.getpid())
    dead.remove()
    return True


def _refuses(path: str | bytes, kind: int) -> bool:
    if len(os.fsencode(path)) > 107:
        raise AddressError(f"{os.fsdecode(path)!r} is too long for a Unix socket: at most 107 bytes (unix(7))")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:  # a full backlog, a socket of the other kind, no permission: somebody may well live there
            return False
    return False

"""The files of Unix sockets: replaced only when dead, removed only when ours, and never open wider than asked for."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import portico
from portico._unix_files import SocketFile, has_file

from .contract.flavours import short_folder

KINDS = {"stream": portico.UnixStreamServer, "datagram": portico.UnixDatagramServer}


@pytest.fixture
def path() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "server.sock"


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def nothing(*_: object) -> None:
    """A handler that does nothing."""


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_file_is_removed_on_closing(made: Any, path: Path) -> None:
    server = made(str(path), nothing)
    assert stat.S_ISSOCK(path.stat().st_mode)
    server.server_close()
    assert not path.exists()
    server.server_close()


def test_the_file_of_another_server_that_took_our_place_is_left_alone(made: Any, path: Path) -> None:
    first = made(str(path), nothing)
    path.unlink()
    with made(str(path), nothing):
        first.server_close()
        assert path.exists()


def test_a_file_left_by_a_dead_server_is_replaced(made: Any, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, made.socket_type) as dead:
        dead.bind(str(path))
    before = path.stat().st_ino, path.stat().st_ctime_ns
    with made(str(path), nothing):
        assert (path.stat().st_ino, path.stat().st_ctime_ns) != before


def test_a_live_socket_of_the_other_kind_is_left_alone(made: Any, path: Path) -> None:
    other = socket.SOCK_DGRAM if made.socket_type == socket.SOCK_STREAM else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, other) as live:
        live.bind(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            made(str(path), nothing)
        assert path.exists()


def test_a_live_servers_file_is_never_taken(made: Any, path: Path) -> None:
    with made(str(path), nothing):
        before = path.stat().st_ino
        with pytest.raises(OSError, match="Address already in use") as caught:
            made(str(path), nothing)
        assert caught.value.errno == errno.EADDRINUSE
        assert path.stat().st_ino == before


@pytest.mark.parametrize("content", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(made: Any, path: Path, content: str) -> None:
    if content == "file":
        path.write_text("precious")
    elif content == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(OSError, match="cannot bind"):
        made(str(path), nothing)
    assert os.path.lexists(path)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o700])
def test_the_mode_is_the_one_asked_for_whatever_the_umask(made: Any, path: Path, mode: int) -> None:
    with made(str(path), nothing, unix_mode=mode):
        assert permissions(path) == mode


def test_without_a_mode_the_umask_decides(made: Any, path: Path) -> None:
    before = os.umask(0o027)
    try:
        with made(str(path), nothing):
            assert permissions(path) == 0o750
    finally:
        os.umask(before)


def test_with_a_group_alone_the_mode_lets_the_group_in_and_nobody_else(made: Any, path: Path) -> None:
    with made(str(path), nothing, unix_group=os.getgid()):
        assert permissions(path) == 0o660
        assert path.stat().st_gid == os.getgid()


def test_a_group_that_does_not_exist_is_said_and_leaves_no_file(made: Any, path: Path) -> None:
    with pytest.raises(portico.SettingError, match="there is no group 'no-such-group-here'"):
        made(str(path), nothing, unix_group="no-such-group-here")
    assert not path.exists()


def test_a_group_that_we_may_not_give_leaves_no_file(made: Any, path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may give a file to any group")
    foreign = next(gid for gid in range(1, 100) if gid not in os.getgroups() and gid != os.getgid())
    with pytest.raises(PermissionError):
        made(str(path), nothing, unix_group=foreign)
    assert not path.exists()


def test_a_forked_child_does_not_remove_its_parents_file(made: Any, path: Path) -> None:
    with made(str(path), nothing) as server:
        pid = os.fork()
        if pid == 0:
            server.server_close()
            os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert path.exists()
    assert not path.exists()


def test_a_path_that_was_relative_is_removed_from_wherever_we_are_by_then(
    made: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    server = made("./server.sock", nothing)
    monkeypatch.chdir("/")
    server.server_close()
    assert not path.exists()


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_a_path_may_be_text_bytes_or_a_path_object(made: Any, path: Path, kind: Any) -> None:
    with made(kind(path), nothing) as server:
        assert os.fsdecode(server.server_address) == str(path)
        assert path.exists()
    assert not path.exists()


def test_an_abstract_name_leaves_no_file_and_is_free_again(made: Any) -> None:
    name = f"\0portico-test-{os.getpid()}"
    for _ in range(2):
        with made(name, nothing) as server:
            assert server.server_address == name.encode()
    assert not has_file(name)
    assert not has_file(name.encode())
    assert not has_file("")


@pytest.mark.parametrize("length", [108, 300])
def test_a_path_too_long_is_an_error_that_leaves_nothing_open(made: Any, path: Path, length: int) -> None:
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        made(str(path.parent / ("x" * length)), nothing)


def test_a_folder_that_does_not_exist_is_said(made: Any, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot bind unix(-dgram)?:.*/nowhere/a\.sock: No such file"):
        made(str(path.parent / "nowhere" / "a.sock"), nothing)


def test_stdlib_compat_leaves_the_file(made: Any, path: Path) -> None:
    made(str(path), nothing, stdlib_compat=True).server_close()
    assert path.exists()


def test_a_file_whose_folder_is_gone_is_no_longer_ours(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    file = SocketFile.at(str(path))
    assert file.is_still_ours()
    path.unlink()
    assert not file.is_still_ours()
    file.remove()

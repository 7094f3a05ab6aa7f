"""Rows 26 and 27: whose a socket file is, when it goes, and who may use it."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .serving import ask, connected, line_of, made, program, rest, serving, upper

KINDS = ["UnixStreamServer", "UnixDatagramServer", "ThreadingUnixStreamServer"]

SERVES_A_PATH = """
with getattr(ss, sys.argv[2])(sys.argv[3], print) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_a_killed_server_is_replaced(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "server"
    with program(SERVES_A_PATH, ss, kind, path) as process:
        assert line_of(process) == "ready"
        process.kill()
        process.wait(5)
    assert path.is_socket()
    server = getattr(ss, kind)(str(path), upper)
    with serving(server):
        if "Stream" in kind:
            assert ask(str(path)) == b"HELLO"


@pytest.mark.regression
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_a_live_server_is_not_replaced(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    server = getattr(ss, kind)(path, upper)
    inode = os.lstat(path).st_ino
    with serving(server):
        with pytest.raises(OSError, match="in use") as raised:
            getattr(ss, kind)(path, upper)
        assert raised.value.errno == errno.EADDRINUSE
        assert os.lstat(path).st_ino == inode
        if "Stream" in kind:
            assert ask(path) == b"HELLO"


@pytest.mark.regression
@pytest.mark.parametrize("other", ["a server with a full backlog", "a server of the other kind"])
def test_the_file_of_a_socket_that_cannot_answer_now_is_not_replaced(
    ss: ModuleType, other: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "server")
    kind = socket.SOCK_DGRAM if other == "a server of the other kind" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as holder:
        holder.bind(path)
        clients = []
        if kind == socket.SOCK_STREAM:
            holder.listen(0)
            clients.append(connected(path))
        with pytest.raises(OSError, match="in use"):
            ss.UnixStreamServer(path, upper)
        assert stat.S_ISSOCK(os.lstat(path).st_mode)
        for client in clients:
            client.close()


@pytest.mark.regression
@pytest.mark.parametrize("what", ["file", "folder", "symbolic link"])
def test_what_is_no_socket_is_never_removed(ss: ModuleType, what: str, tmp_path: Path) -> None:
    path = tmp_path / "server"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = path.lstat()
    with pytest.raises(OSError, match="in use"):
        ss.UnixStreamServer(str(path), upper)
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_removed_on_closing(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "server"
    server = getattr(ss, kind)(str(path), upper)
    assert path.is_socket()
    with serving(server):
        pass
    assert not path.exists()


def test_the_file_is_removed_although_the_folder_has_changed(
    ss: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = ss.UnixStreamServer("./server", upper)
    monkeypatch.chdir("/")
    server.server_close()
    assert not (tmp_path / "server").exists()


@pytest.mark.regression
@pytest.mark.parametrize("successor", ["a server", "a file", "nothing"])
def test_what_has_taken_the_place_of_the_file_is_not_removed(ss: ModuleType, successor: str, tmp_path: Path) -> None:
    path = tmp_path / "server"
    with ss.UnixStreamServer(str(path), upper) as first:
        path.rename(tmp_path / "moved")
        if successor == "a server":
            second = ss.UnixStreamServer(str(path), upper)
        elif successor == "a file":
            path.write_text("precious")
        first.server_close()
        if successor == "a server":
            with serving(second):
                assert ask(str(path)) == b"HELLO"
        else:
            assert path.exists() is (successor == "a file")


@pytest.mark.regression
def test_a_forked_child_that_closes_the_server_does_not_remove_the_file(ss: ModuleType, tmp_path: Path) -> None:
    def close(request: Any, client_address: Any, server: Any) -> None:
        server.server_close()
        request.sendall(b"closed")

    server_class = type("Server", (ss.ForkingMixIn, ss.UnixStreamServer), {})
    server = server_class(str(tmp_path / "server"), close)
    with serving(server):
        for _ in range(2):
            assert ask(server.server_address, b"") == b"closed"
        assert (tmp_path / "server").is_socket()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_asked_for_is_the_files(ss: ModuleType, kind: str, tmp_path: Path) -> None:
    for mode in (0o600, 0o660, 0o666):
        path = str(tmp_path / f"server-{mode:o}")
        with made(getattr(ss, kind), upper, path, unix_mode=mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_the_file_is_never_wider_than_the_mode_asked_for(ss: ModuleType, tmp_path: Path) -> None:
    seen: set[int] = set()
    done = threading.Event()
    path = str(tmp_path / "server")

    def look() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE(os.lstat(path).st_mode))
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(200):
            made(ss.UnixStreamServer, upper, path, unix_mode=0o640).server_close()
            if os.path.exists(path):
                os.unlink(path)
    finally:
        done.set()
        watcher.join()
    assert all(mode | 0o640 == 0o640 for mode in seen), [oct(mode) for mode in seen]


def test_the_group_asked_for_is_the_files(ss: ModuleType, tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    if os.geteuid() == 0:  # may give it to any
        group = next(other for other in grp.getgrall() if other.gr_gid != os.getgid())
    for given in (group.gr_gid, group.gr_name):
        path = str(tmp_path / f"server-{given}")
        with made(ss.UnixStreamServer, upper, path, unix_group=given):
            status = os.stat(path)
            assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (group.gr_gid, 0o660)


@pytest.mark.regression
def test_an_abstract_name_leaves_no_file_and_is_free_after_closing(
    ss: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"\0portico-test-{os.getpid()}"
    for _ in range(2):
        server = ss.UnixStreamServer(name, upper)
        with serving(server), connected(name) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert rest(client) == b"HELLO"
    assert list(tmp_path.iterdir()) == []

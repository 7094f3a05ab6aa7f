"""Who may enter by user and group over Unix sockets, in every way to run, with clients that really are others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from portico.lifecycle import Refused

from .balancing import SOURCE, Front, front, tell, v1
from .every_way import EVERY, Case, in_every_way, serving
from .waiting import until

UNIX = [case for case in EVERY if case.is_unix]
ME = os.getuid()
# Nobody's on any system: above all that Debian and systemd give out by themselves.
USER, GROUP, OTHER = 70001, 70002, 70003
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to connect as somebody else")
# Each becomes somebody else, connects, says something, and tells what it has heard. By itself, as a program that
# belongs to root may not be one that others may run.
_CLIENTS = """
import json, os, socket, sys
path, said, everybody = sys.argv[1], sys.argv[2].encode(), json.loads(sys.argv[3])
for uid, gid, groups in everybody:
    pid = os.fork()
    if not pid:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(path)
        try:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            heard = client.makefile("rb").read()
        except ConnectionError:
            heard = b""
        os.write(1, heard.splitlines()[0] + b"\\n" if heard else b"null\\n")
        os._exit(0)
    os.waitpid(pid, 0)
"""


def connect_as(server: Any, *everybody: tuple[int, int, list[int]], said: bytes = b"who;") -> list[Any]:
    """What each of these users hears of the server; None for one that is refused."""
    Path(server.server_address).parent.chmod(0o755)
    command = [sys.executable, "-I", "-S", "-c", _CLIENTS, server.server_address, said.decode(), json.dumps(everybody)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def served(server: Any, *everybody: tuple[int, int, list[int]], said: bytes = b"who;") -> list[bool]:
    return [heard is not None for heard in connect_as(server, *everybody, said=said)]


EVERYBODY = (
    (USER, GROUP, []),
    (USER, OTHER, [OTHER]),
    (OTHER, GROUP, []),
    (OTHER, OTHER, [OTHER, GROUP]),
    (OTHER, OTHER, []),
    (0, 0, [0]),
)
RULES: list[tuple[dict[str, Any], list[bool], str]] = [
    ({"allow_uids": [USER]}, [True, True, False, False, False, False], "allow_uids"),
    ({"allow_uids": "root, 70001"}, [True, True, False, False, False, True], "allow_uids"),
    ({"allow_gids": [GROUP]}, [True, False, True, True, False, False], "allow_gids"),
    ({"allow_gids": ["root"]}, [False, False, False, False, False, True], "allow_gids"),
    ({"allow_uids": [USER], "allow_gids": [GROUP]}, [True, True, True, True, False, False], "allow_gids"),
]


@NEEDS_ROOT
@in_every_way(UNIX)
def test_users_enter_by_number_or_name_and_by_any_of_their_groups(case: Case) -> None:
    with serving(case, tell, unix_mode=0o777) as made:
        refused: dict[str, int] = {}
        for rules, expected, reason in RULES:
            made.server.configure(allow_uids=None, allow_gids=None)
            made.server.configure(**rules)
            assert served(made.server, *EVERYBODY) == expected, rules
            refused[reason] = refused.get(reason, 0) + expected.count(False)
            assert made.server.stats().refused == refused
        assert {event.reason for event in made.of_kind(Refused)} == {"allow_uids", "allow_gids"}
        made.server.configure(allow_uids=None, allow_gids=None)
        assert all(served(made.server, *EVERYBODY))


@NEEDS_ROOT
@in_every_way(UNIX)
def test_handlers_see_the_user_who_has_connected(case: Case) -> None:
    with serving(case, tell, unix_mode=0o777) as made:
        assert [heard["uid"] for heard in connect_as(made.server, *EVERYBODY)] == [who[0] for who in EVERYBODY]


@NEEDS_ROOT
@in_every_way(UNIX)
def test_a_proxys_user_has_to_be_allowed_whomever_it_announces(case: Case) -> None:
    """Else a header would be all it takes to get past the rule."""
    for mode in ("required", "optional"):
        with front(case, mode, unix_mode=0o777, allow_uids=[USER]) as made:
            heard = connect_as(made.server, *EVERYBODY[:3], said=v1() + b"who;")
            assert [found and found["announced"] for found in heard] == [list(SOURCE), list(SOURCE), None]
            assert made.server.stats().refused == {"allow_uids": 1}
            if mode == "optional":
                assert served(made.server, *EVERYBODY[:3]) == [True, True, False]


@NEEDS_ROOT
@in_every_way(UNIX)
def test_a_dry_run_counts_users_and_lets_them_in(case: Case) -> None:
    with serving(case, tell, unix_mode=0o777, allow_uids=[USER], limits_dry_run=True) as made:
        assert all(served(made.server, *EVERYBODY))
        assert (made.server.stats().refused, made.server.stats().would_refuse) == ({}, {"allow_uids": 4})


@NEEDS_ROOT
@in_every_way([case for case in UNIX if not case.one_by_one])
def test_limits_per_client_count_each_user(case: Case) -> None:
    with serving(case, tell, unix_mode=0o777, connection_rate_per_client=0.001, connection_burst_per_client=1) as made:
        twice = [who for who in EVERYBODY[1:4] for _ in range(2)]
        assert served(made.server, *twice) == [True, False, True, False, False, False]
        assert made.server.stats().refused == {"connection_rate_per_client": 4}


@in_every_way(UNIX)
def test_without_being_root_one_is_a_user_too(case: Case) -> None:
    with serving(case, tell, allow_uids=[ME]) as made:
        with Front(made, None).client() as client:
            assert client.ask()["uid"] == ME
        made.server.configure(allow_uids=[ME + 1])
        with Front(made, None).connect() as client:
            assert client.is_refused()
        made.server.configure(allow_gids=os.getgroups() or [os.getgid()])
        with Front(made, None).client() as client:
            assert client.ask()["uid"] == ME
        assert until(lambda: made.server.stats().active == 0)
        assert made.server.stats().refused == {"allow_uids": 1}


@NEEDS_ROOT
def test_more_groups_than_fit_in_a_page_are_all_looked_at() -> None:
    (case,) = [case for case in UNIX if case.way.name == "thread"]
    many = list(range(80000, 80000 + 5000))
    with serving(case, tell, unix_mode=0o777, allow_gids=[many[-1]]) as made:
        assert served(made.server, (USER, OTHER, many), (USER, OTHER, many[:-1])) == [True, False]

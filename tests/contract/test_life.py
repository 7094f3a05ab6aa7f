"""All flavours: servers are made, fail to be made, stop, start again, are replaced, and call their hooks in order."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ..commands import environment
from .flavours import ALL, Flavour, handler_for, looping

Connect = Callable[..., Any]

pytestmark = pytest.mark.parametrize("flavour", ALL, ids=str)

HOOKS = (
    "get_request", "verify_request", "process_request", "process_request_thread", "process_request_task",
    "finish_request", "shutdown_request", "close_request",
)  # fmt: skip


def is_served(peer: Any, flavour: Flavour) -> bool:
    if flavour.kind.type == socket.SOCK_DGRAM:
        return bool(peer.ask(b"abc") == [b"<cba>"])
    return bool(peer.exchange([b"afterwards\n", b"abc"]) == b"cba")


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_server_can_be_stopped_and_started_again(flavour: Flavour, address: Any, connect: Connect) -> None:
    with flavour.server_class(address, handler_for(flavour)) as server:
        for _ in range(3):
            with looping(server):
                assert is_served(connect(server), flavour)


def test_a_client_that_came_while_stopped_is_served_after_the_next_start(
    flavour: Flavour, address: Any, connect: Connect
) -> None:
    with flavour.server_class(address, handler_for(flavour)) as server:
        with looping(server):
            assert is_served(connect(server), flavour)
        early = connect(server)
        datagram = flavour.kind.type == socket.SOCK_DGRAM
        early.send(b"abc" if datagram else b"hold\nabc\n")
        with looping(server):
            assert early.receive(5 if datagram else 12) == (b"<cba>" if datagram else b"running\nABC\n")


def test_another_server_has_the_same_address_right_after(flavour: Flavour, address: Any, connect: Connect) -> None:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        if flavour.kind.type == socket.SOCK_STREAM:
            peer = connect(server)
            peer.send(b"fill 10\n")  # the server's side closes first, and is left in TIME_WAIT
            assert peer.receive_all() == bytes(10)
            peer.close()
        assert is_served(connect(server), flavour)
    with flavour.server_class(server.server_address, handler_for(flavour)).background() as successor:
        assert successor.server_address == server.server_address
        assert is_served(connect(successor), flavour)


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_the_nth_failure_of_construction_leaves_nothing_open(
    flavour: Flavour, address: Any, error: type[BaseException]
) -> None:
    """Each hook on the way of a constructor fails once before and once after it has done its work."""
    calls, fail_at = 0, 0

    def failing(name: str) -> Callable[[Any], None]:
        def hook(self: Any) -> None:
            nonlocal calls
            for work in (lambda: None, lambda: getattr(super(Mine, self), name)()):
                work()
                calls += 1
                if calls == fail_at:
                    raise error(f"call {calls}: {name}")

        return hook

    Mine = flavour.extended(server_bind=failing("server_bind"), server_activate=failing("server_activate"))
    with Mine(address, handler_for(flavour)) as server:
        address = server.server_address
    steps, before = calls, descriptors()
    assert steps == 4
    for fail_at in range(1, steps + 1):
        calls = 0
        with pytest.raises(error, match=f"call {fail_at}: "):
            Mine(address, handler_for(flavour))
        assert descriptors() == before
        flavour.server_class(address, handler_for(flavour)).server_close()


SECOND = """
import json, os, sys, portico

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

async def handler(*_): pass
name, address, settings = json.loads(sys.argv[1])
server_class = getattr(portico, name)
handler = handler if name.startswith("Async") else print
before = descriptors()
try:
    server_class(tuple(address) if isinstance(address, list) else address, handler, **settings)
except OSError as error:
    print(json.dumps([str(error), before, descriptors()]))  # looked at while the error, and all it refers to, is there
"""


def test_an_address_in_use_leaves_nothing_open(flavour: Flavour, address: Any, connect: Connect) -> None:
    """The second server is in a process of its own, where nothing but it opens or closes anything."""
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        assert is_served(connect(server), flavour)
        made = [flavour.way.prefix + flavour.kind.suffix, server.server_address, dict(flavour.way.settings)]
        command = [sys.executable, "-c", SECOND, json.dumps(made)]
        result = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=30, check=True
        )  # fmt: skip
        said, before, after = json.loads(result.stdout)
        assert "Address already in use" in said
        assert before == after
        assert is_served(connect(server), flavour)


def test_closing_ends_the_loop_and_is_safe_again(flavour: Flavour, address: Any, connect: Connect) -> None:
    with flavour.server_class(address, handler_for(flavour)).background() as server:
        assert is_served(connect(server), flavour)
        server.server_close()
        server.server_close()
    assert server.fileno() == -1


def test_the_hooks_are_called_in_their_order(flavour: Flavour, address: Any, connect: Connect) -> None:
    if flavour.way.own_process:
        pytest.skip("half of the hooks are called in another process")
    called: list[str] = []

    def told(name: str) -> Callable[..., Any]:
        def hook(self: Any, *arguments: Any) -> Any:
            called.append(name)
            return getattr(super(self.__class__, self), name)(*arguments)

        return hook

    def told_async(name: str) -> Callable[..., Any]:
        async def hook(self: Any) -> Any:
            called.append(name)
            return await getattr(super(self.__class__, self), name)()

        return hook

    hooks = [name for name in HOOKS if hasattr(flavour.server_class, name)]
    assert ("process_request_thread" in hooks) == flavour.way.own_thread
    assert ("process_request_task" in hooks) == flavour.way.own_tasks
    steps = {name: told_async(name) if flavour.way.own_tasks else told(name) for name in ("setup", "handle", "finish")}
    handler = type("Told", (handler_for(flavour),), steps)
    with flavour.extended(**{name: told(name) for name in hooks})(address, handler).background() as server:
        assert is_served(connect(server), flavour)
    after = hooks.index("shutdown_request")
    assert called == [*hooks[:after], "setup", "handle", "finish", *hooks[after:]]

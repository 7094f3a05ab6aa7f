"""Flavours on an event loop run in its debug mode in this suite, where misuse of the loop is an error."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from ..waiting import until
from .flavours import ALL, Flavour

ON_A_LOOP = [flavour for flavour in ALL if hasattr(flavour.server_class, "event_loop")]


@pytest.mark.parametrize("flavour", ON_A_LOOP, ids=str)
def test_the_loop_is_in_debug_mode(flavour: Flavour, address: Any, connect: Callable[..., Any]) -> None:
    found: list[bool] = []

    def look(*_: Any) -> None:
        found.append(asyncio.get_running_loop().get_debug())

    async def look_async(*_: Any) -> None:
        look()

    with flavour.server_class(address, look_async if flavour.way.own_tasks else look).background() as server:
        peer = connect(server)
        if flavour.kind.type == socket.SOCK_DGRAM:
            peer.send(b"x")
        assert until(lambda: found)
    assert found == [True]

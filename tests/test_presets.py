"""The ready-made classes that are loaded when they are wanted, and what is missing without greenlet."""

from __future__ import annotations

import subprocess
import sys

import pytest

import portico

from .commands import environment

ASYNC = """
import socket, threading

async def upper(request, client_address, server):
    await request.sendall((await request.recv(100)).upper())

class Stream(portico.AsyncStreamRequestHandler):
    async def handle(self):
        self.wfile.write((await self.rfile.readline()).upper())

for handler in (upper, Stream):
    with portico.AsyncTCPServer(("127.0.0.1", 0), handler, event_loop="asyncio").background() as server:
        with socket.create_connection(server.server_address, 10) as client:
            client.sendall(b"hello\\n")
            print(client.recv(100))
"""
GREEN = """
names = ("GreenTCPServer", "GreenMixIn", "GreenSocket", "GreenUnixStreamServer")
print([hasattr(portico, name) for name in names], getattr(portico, "GreenTCPServer", "a default"))
try:
    portico.GreenTCPServer
except AttributeError as error:
    print(error)
try:
    from portico import GreenMixIn
except ImportError as error:
    print(type(error).__name__)
"""


def without_greenlet(code: str) -> str:
    """What a program prints where greenlet is not installed."""
    hidden = "import sys; sys.modules['greenlet'] = None\nimport portico\n"
    result = subprocess.run(
        [sys.executable, "-c", hidden + code], env=environment(), capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_async_servers_need_no_greenlet() -> None:
    assert without_greenlet(ASYNC) == "b'HELLO\\n'\n" * 2


def test_without_greenlet_there_is_no_green_name_and_asking_for_one_says_what_to_install() -> None:
    lines = without_greenlet(GREEN).splitlines()
    assert lines[0] == "[False, False, False, False] a default"
    assert "portico.GreenTCPServer: " in lines[1]
    assert "pip install greenlet" in lines[1]
    assert lines[2:] == ["ImportError"]


def test_everything_else_is_there_without_greenlet() -> None:
    code = "from portico import *\nprint(all(hasattr(portico, name) for name in portico.__all__), TCPServer.__name__)\n"
    assert without_greenlet(code) == "True TCPServer\n"


def test_the_command_says_what_to_install() -> None:
    code = (
        "import sys\nfrom portico.cli import main\n"
        "sys.stderr = sys.stdout\n"
        "print(main(['serve', 'portico:StreamRequestHandler', 'tcp://127.0.0.1:0', '--concurrency', 'green']))\n"
    )
    said, status = without_greenlet(code).splitlines()
    assert said.startswith("portico: --concurrency green: ")
    assert said.endswith("pip install greenlet")
    assert status == "2"


def test_importing_portico_loads_none_of_them_until_one_is_wanted() -> None:
    code = (
        "import sys, portico\n"
        "late = ('aio', 'green', 'async_presets', 'green_presets')\n"
        "def loaded(): return [name for name in late if f'portico.{name}' in sys.modules]\n"
        "print(loaded()); portico.AsyncTCPServer; print(loaded()); portico.GreenTCPServer; print(loaded())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.splitlines() == [
        "[]", "['aio', 'async_presets']", "['aio', 'green', 'async_presets', 'green_presets']"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Async", "Green", "AsyncNothing", "GreenTCPserver", "nothing"])
def test_what_there_is_not_is_an_attribute_error(name: str) -> None:
    assert not hasattr(portico, name)
    with pytest.raises(AttributeError, match=name):
        getattr(portico, name)

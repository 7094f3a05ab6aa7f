"""Starts the processes of an experiment, looks at them from outside, and ends each of them, whatever happens."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import certificates
from .crowd import bound
from .sealed import trust
from .ways import TCP, Over, Way

__all__ = [
    "Client",
    "Server",
    "asked",
    "children",
    "clients",
    "connect",
    "cpu_seconds",
    "load",
    "memory",
    "peak_memory",
    "serving",
    "until",
]

ROOT = Path(__file__).parent.parent
LIMIT = 30.0  # seconds that anything may take that should take none
OBJECTS = 700
"""Objects of the garbage collector that a server may have more: what is left of the last threads goes with the next."""
# One arena of the C library's memory: with one for each few threads it goes up and down by more than what a leak takes.
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "1"}
_TICKS = os.sysconf("SC_CLK_TCK")
# A record of level INFO or above begins so; so does what is printed where nothing can be logged.
_RECORD = re.compile(r"^(INFO|WARNING|ERROR|CRITICAL|portico:|Exception )", re.MULTILINE)


def asked(control: str, what: str) -> Any:
    """The answer to that, of the server whose `control` this is."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(control)
        sock.sendall(what.encode() + b"\n")
        return json.loads(b"".join(iter(lambda: sock.recv(1 << 18), b"")))


class Server:
    """A server under test, in a process and a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.address: Any = None
        """For those that connect: what the server says, or, if connections are encrypted, with whom to believe."""
        self.authority = ""
        self.control = str(directory / "control")
        self._log = directory / "log"
        self._output = b""

    def ask(self, what: str = "counts") -> Any:
        """What it answers (`server.answer`)."""
        return asked(self.control, what)

    def leaked(self, before: dict[str, int], seconds: float = 5.0) -> dict[str, int]:
        """What there is more of than before, when there has been time for it to go; of objects, more than `OBJECTS`."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.ask("leftovers")
            allowed = {"objects": OBJECTS}
            more = {name: now[name] - before[name] for name in now if now[name] > before[name] + allowed.get(name, 0)}
            if not more or time.monotonic() > deadline:
                return more
            time.sleep(0.1)

    def settled(self, active: int = 0, seconds: float = 20.0) -> dict[str, Any]:
        """The counts, when no more than so many connections are open, or cannot be waited for any longer."""
        until(lambda: self.ask()["active"] <= active, seconds)
        stats: dict[str, Any] = self.ask()
        return stats

    def is_at(self, address: Any) -> None:
        self.address = {"address": address, "authority": self.authority} if self.authority else address

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def records(self) -> list[str]:
        """Log lines above DEBUG, without tracebacks."""
        text = self.log()
        return [text[found.start() :].partition("\n")[0] for found in _RECORD.finditer(text)]

    def said(self, seconds: float = LIMIT) -> dict[str, Any]:
        """The next line that it prints. `TimeoutError` if none comes, `EOFError` if it has ended."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._output:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the server says nothing")
            data = os.read(descriptor, 65536)
            if not data:
                raise EOFError(f"the server has ended; the end of its log: {self.log()[-2000:]}")
            self._output += data
        line, _, self._output = self._output.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def serving(way: Way, over: Over = TCP, **spec: Any) -> Iterator[Server]:
    """A server that runs so; `settings`, `events`, `descriptors`, `times`, `goodbye` as in `server`."""
    with tempfile.TemporaryDirectory(prefix="portico") as name:
        directory = Path(name)
        tls = certificates.made(directory) if over.tls else None
        whole = _whole(way, over, name, spec) | {"tls": tls}
        with open(directory / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "reliability.server", json.dumps(whole)],
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=_ENVIRONMENT,
                start_new_session=True,
            )  # fmt: skip
        server = Server(process, directory)
        server.authority = tls[2] if tls else ""
        try:
            if not spec.get("times"):
                server.is_at(server.said()["address"])
                until(lambda: os.path.exists(server.control), LIMIT)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _whole(way: Way, over: Over, directory: str, spec: dict[str, Any]) -> dict[str, Any]:
    settings = spec.get("settings", {})
    if way.loop is not None:
        settings = {**settings, "event_loop": way.loop}
    if way.forks:
        settings = {"max_children": 2000, **settings}
    whole = {"descriptors": None, "times": 0, "events": False, "goodbye": False, **spec, "settings": settings}
    whole |= {"prefix": way.prefix, "kind": way.kind, "streams": way.streams}
    return whole | {"control": f"{directory}/control", "address": f"{directory}/socket" if over.unix else None}


def connect(address: Any, seconds: float = 5.0, number: int | None = None) -> socket.socket:
    """A client's connection that blocks, for so long; encrypted if there is an authority to believe."""
    if isinstance(address, dict):
        bare = connect(address["address"], seconds, number)
        try:
            return trust(address["authority"]).wrap_socket(bare, server_hostname=certificates.NAME)
        except BaseException:
            bare.close()
            raise
    sock = bound(address, number, named=True)
    try:
        sock.settimeout(seconds)
        sock.connect(address if isinstance(address, str) else tuple(address))
    except BaseException:
        sock.close()
        raise
    return sock


class Client:
    """A process of clients: a function of a module of this package, called there."""

    def __init__(self, module: str, function: str, arguments: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reliability.client", module, function, json.dumps(arguments)],
            stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT, env=_ENVIRONMENT,
        )  # fmt: skip

    def ready(self) -> None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], LIMIT)[0]:
            raise TimeoutError("the clients do not get ready")
        if self._process.stdout.readline() != b"ready\n":
            raise EOFError("the clients have ended")

    def finished(self, seconds: float = LIMIT) -> dict[str, Any]:
        """What the function returns; it is told to end, if it can be."""
        output, _ = self._process.communicate(timeout=seconds)
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
        said: dict[str, Any] = json.loads(output.splitlines()[-1])
        return said

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextmanager
def clients(module: str, function: str, **arguments: Any) -> Iterator[Client]:
    """A process of clients, beside the block."""
    client = Client(module, function, arguments)
    try:
        yield client
    finally:
        client.end()


def load(module: str, function: str, limit: float, **arguments: Any) -> dict[str, Any]:
    """What that function returns, called in a process of clients."""
    with clients(module, function, **arguments) as client:
        return client.finished(limit + LIMIT)


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether `condition` became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- from outside


def _status(pid: int, name: str) -> float:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024


def memory(pid: int) -> float:
    """Resident memory, MiB."""
    return _status(pid, "VmRSS:")


def peak_memory(pid: int) -> float:
    return _status(pid, "VmHWM:")


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _read(task / "children").split()]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a thread that has ended meanwhile
        return ""


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, without its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

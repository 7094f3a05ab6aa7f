"""The end in awkward moments: from other threads, twice, from several handlers, without threads, told to groups."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import portico
from portico._running import CUT, StopsOnSignals
from portico._system import System
from portico.lifecycle import DrainWaiting, EndReason, HookFailed, State

from .commands import ROOT, environment
from .draining import WAYS, Client, Draining, Telling, Way, refuses, serving, settled
from .test_drain import LATE, Make, heard, in_flight, make, with_deaf  # noqa: F401  # a fixture
from .waiting import until

by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
[PLAIN] = [way for way in WAYS if way.name == "plain"]
[THREADS] = [way for way in WAYS if way.name == "threads"]
[FORKS] = [way for way in WAYS if way.forks]
LOCAL = ("127.0.0.1", 0)


def made(base: Any, handler: Any, **values: Any) -> Any:
    return type("Telling", (Telling, base), {})(LOCAL, handler, **{"drain_timeout": 5.0, **values})


# -- leaving `background()`, and closing from another thread


def leave(server: Any, inside: Callable[[], object]) -> threading.Thread:
    """A thread that leaves `background()` when `inside` is done."""

    def visit() -> None:
        with server.background():
            inside()

    thread = threading.Thread(target=visit)
    thread.start()
    return thread


@by_way
def test_leaving_the_background_tells_an_idle_client_at_once(way: Way) -> None:
    server, found = way.made("EchoBye" if way.forks else "Echo"), []
    with ExitStack() as stack:

        def visit() -> None:
            found.append(stack.enter_context(Client(server)))
            assert until(lambda: server.connections())

        leaving = leave(server, visit)
        assert until(lambda: found)
        assert found[0].rest() in (b"", b"bye\n")
        leaving.join(2)
        assert not leaving.is_alive()
        assert server.stats().ended == {"drained": 1} or way.forks


@by_way
def test_leaving_the_background_cuts_what_goes_on(way: Way) -> None:
    server, found = way.made("Sleeps", drain_timeout=0.3), []
    try:
        with ExitStack() as stack:

            def visit() -> None:
                client = stack.enter_context(Client(server))
                assert client.line() == b"here\n"
                assert until(lambda: settled(server))
                client.say(b"x")
                found.append(client)

            leaving = leave(server, visit)
            assert until(lambda: found)
            began = time.monotonic()
            assert found[0].rest() == b""
            assert found[0].ended - began < 0.3 + LATE * 4
            server.release.set()  # a plain server's loop is in it, and nothing ends a thread
            leaving.join(10)
            assert not leaving.is_alive()
    finally:
        server.release.set()


def test_a_loop_that_goes_on_after_all_is_left_behind_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico._background._LOOP_ENDS", 0.2)
    server = PLAIN.made("Sleeps", drain_timeout=0.1)
    background = server.background()
    background.__enter__()
    try:
        with Client(server) as client:
            assert client.line() == b"here\n"
            background.__exit__(None, None, None)
            assert background._thread.is_alive()
            last = server.told(DrainWaiting)[-1]
            assert last.seconds >= 0.2
            assert "in ignore_the_world" in last.waiting[0][1]
    finally:
        server.release.set()
        background._thread.join(10)


def test_a_plain_server_is_closed_when_its_request_has_been_cut(make: Make) -> None:  # noqa: F811
    server = make(PLAIN, "Echo", drain_timeout=0.3)
    client = in_flight(make, server)
    began = time.monotonic()
    server.server_close()
    assert 0.3 - 0.001 <= time.monotonic() - began < 0.3 + LATE * 2
    assert client.rest() in (b"", b"HALF")
    assert until(lambda: server.stats().state is State.CLOSED)
    assert server.connections() == []


def test_a_program_that_runs_requests_elsewhere_is_not_waited_for() -> None:
    """Nobody knows whose request it is that closes the server."""
    closed = threading.Event()

    class Elsewhere(portico.TCPServer):  # type: ignore[type-arg]
        def process_request(self, request: Any, client_address: Any) -> None:
            threads.append(threading.Thread(target=super().process_request, args=(request, client_address)))
            threads[-1].start()

    def close(request: Any, client_address: Any, server: Any) -> None:
        server.server_close()
        closed.set()

    threads: list[threading.Thread] = []
    server = made(Elsewhere, close, drain_timeout=20.0)
    with serving(server), Client(server) as client:
        assert closed.wait(2)
        assert client.rest() == b""
        threads[0].join()


def test_a_plain_server_does_not_wait_for_the_handler_of_another_one() -> None:
    """They share a loop."""
    busy, other = PLAIN.made("Sleeps", drain_timeout=20.0), PLAIN.made("Echo", drain_timeout=20.0)
    loop = threading.Thread(target=portico.serve_together, args=([busy, other],))
    loop.start()
    try:
        with Client(busy) as client:
            assert client.line() == b"here\n"
            began = time.monotonic()
            other.server_close()
            assert time.monotonic() - began < 3
            assert other.stats().state is State.CLOSED
    finally:
        busy.release.set()
        busy.server_close()
        loop.join(10)


# -- a second drain


@by_way
@pytest.mark.parametrize("second", ["drain", "request_drain", "server_close"])
def test_the_first_deadline_counts(make: Make, way: Way, second: str) -> None:  # noqa: F811
    server = make(way, "Sleeps", drain_timeout=0.3)
    client = with_deaf(make, server)
    drain = make.drain(server, None)
    assert until(lambda: refuses(server), 1)
    began = time.monotonic()
    getattr(server, second)(*([0.3] if second != "server_close" else []))
    assert client.rest() == b""
    assert 0.3 - 0.001 <= client.ended - began < 0.3 + LATE * 2
    assert len(drain.report().cut) == 1


def test_a_later_deadline_puts_nothing_off(make: Make) -> None:  # noqa: F811
    server = make(THREADS, "Sleeps")
    client = with_deaf(make, server)
    drain = make.drain(server, 0.3)
    assert until(lambda: refuses(server), 1)
    server.request_drain(None)
    server.request_drain(30)
    assert client.rest() == b""
    assert client.ended - drain.began < 0.3 + LATE * 2
    drain.report()


@pytest.mark.parametrize("values", [{}, {"reuse_threads": True}], ids=["threads", "reused"])
@pytest.mark.parametrize("name", ["drain", "server_close"])
def test_handlers_that_ask_for_the_end_do_not_wait_for_each_other(name: str, values: dict[str, Any]) -> None:
    met = threading.Barrier(2)

    class Asks(portico.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            met.wait(5)
            began = time.monotonic()
            getattr(self.server, name)()
            self.wfile.write(b"at once" if time.monotonic() - began < 2 else b"late")

    server = made(portico.ThreadingTCPServer, Asks, drain_timeout=4.0, **values)
    with serving(server), Client(server) as one, Client(server) as other:
        one.say(b"\n")
        other.say(b"\n")
        assert [one.rest(), other.rest()] == [b"at once", b"at once"]


# -- goodbyes


def goodbye_server(way: Way, first: Callable[[], object]) -> Any:
    """The goodbye of the first client does that; all others say bye."""

    class Bye(way.handler("Echo")):  # type: ignore[misc]
        def goodbye(self) -> Any:
            if self.server.first == self.client_address:
                first()
            if not way.is_async:
                self.wfile.write(b"bye\n")
                return None
            return self.say()

        async def say(self) -> None:
            self.wfile.write(b"bye\n")
            await self.wfile.drain()

    base = getattr(portico, way.prefix + "TCPServer")
    return made(base, Bye, **way.values)


def said_to_others(server: Any, timeout: float | None) -> list[bytes]:
    with serving(server), ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(4)]
        server.first = clients[0].sock.getsockname()
        for client in clients:
            assert client.ask(b"line\n") == b"LINE\n"
        drain = Draining(server, timeout)
        rest = [client.rest() for client in clients[1:]]
        drain.report()
        assert clients[0].rest() == b""
    return rest


@pytest.mark.parametrize("error", [SystemExit(1), SystemExit(), KeyboardInterrupt()], ids=["exit-1", "exit", "ctrl-c"])
@pytest.mark.parametrize("way", [way for way in WAYS if way.waits and not way.forks], ids=lambda way: way.name)
def test_a_goodbye_that_leaves_takes_it_from_nobody(
    way: Way, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    if way.on_loop and isinstance(error, KeyboardInterrupt):
        pytest.skip("which ends the loop")

    def leaves() -> None:
        raise error

    server = goodbye_server(way, leaves)
    assert said_to_others(server, 5.0) == [b"bye\n"] * 3
    said = [(event.hook, event.error) for event in server.told(HookFailed)]
    silent = isinstance(error, SystemExit) and not error.code
    assert said == ([] if silent else [("goodbye", error)])


@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_goodbye_that_waits_for_something_else_holds_nobody_up(timeout: float | None) -> None:
    release = threading.Event()
    server = goodbye_server(THREADS, lambda: release.wait(10))
    try:
        assert said_to_others(server, timeout) == [b"bye\n"] * 3
    finally:
        release.set()


# -- run()


@contextmanager
def program(kind: str, handler: str = "Echo", no_threads: str = "no", **values: Any) -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.endings", kind, handler, no_threads],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **values,
    ) as process:  # fmt: skip
        try:
            process.server_address = ("127.0.0.1", int(process.stdout.readline()))  # type: ignore
            yield process
        finally:
            process.kill()


def ended(process: Any) -> tuple[int, str]:
    out, _ = process.communicate(timeout=10)
    return process.returncode, out


NO_THREADS = [
    ("TCPServer", "later"), ("ThreadingTCPServer", "later"), ("GreenTCPServer", "later"),
    ("ForkingTCPServer", "from-the-beginning"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "when"), NO_THREADS)
def test_without_a_thread_to_be_had_a_signal_still_drains(kind: str, when: str) -> None:
    with program(kind, no_threads=when) as process:
        with Client(process) as client:
            assert client.ask(b"line\n") == b"LINE\n"
            time_of_kernel()
            client.say(b"half")
            time_of_kernel()
            process.terminate()
            assert until(lambda: refuses(process), 2)
            client.say(b" a line\n")
            client.end()
            assert client.rest() == b"HALF A LINE\n"
        assert ended(process) == (0, "0\n")


def time_of_kernel() -> None:
    """Until its clock tells what comes now from what was before."""
    began = time.monotonic()
    assert until(lambda: time.monotonic() - began > 0.03)


@pytest.mark.parametrize("kind", ["TCPServer", "ForkingTCPServer"])
def test_without_any_thread_a_second_signal_ends_the_process_all_the_same(kind: str) -> None:
    with program(kind, no_threads="from-the-beginning") as process, Client(process) as client:
        assert client.ask(b"line\n") == b"LINE\n"
        time_of_kernel()
        client.say(b"half")
        time_of_kernel()
        process.send_signal(signal.SIGTERM)
        assert until(lambda: refuses(process), 2)
        time_of_kernel()
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == CUT
        assert client.rest() in (b"", b"HALF")


def test_a_drain_without_a_thread_is_done_by_whoever_closes() -> None:
    server = made(portico.ThreadingTCPServer, THREADS.handler("Echo"))
    with serving(server), Client(server) as client:
        client.say(b"half")
        assert until(lambda: heard(server, 4))
        before = threading.stack_size(1 << 46)
        try:
            server.request_drain(None)
        finally:
            threading.stack_size(before)
        assert until(lambda: refuses(server), 1)
        [failed] = server.told(HookFailed)
        assert failed.hook == "request_drain"
        assert server._portico_drain.is_left_behind
        closing = threading.Thread(target=server.server_close)
        closing.start()
        client.say(b"\n")
        client.end()
        assert client.rest() == b"HALF\n"
        closing.join(5)
        assert server.drain().finished == 1


class Foreign(System):
    """Where somebody has installed a handler that is not Python's."""

    def __init__(self) -> None:
        self.installed: list[Any] = []

    def on_signal(self, number: int, handler: Any) -> Any:
        self.installed.append(handler)
        return None if len(self.installed) <= 2 else super().on_signal(number, handler)


def test_what_python_cannot_put_back_is_no_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with StopsOnSignals([], system := Foreign()):
            pass
        assert system.installed[2:] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


@by_way
@pytest.mark.parametrize(("timeout", "status"), [(0, CUT), (5, 0)])
def test_the_status_is_of_the_drain_that_ended_it_whoever_began_it(way: Way, timeout: float, status: int) -> None:
    server = way.made("Echo")

    def visit() -> None:
        with Client(server) as client:
            client.say(b"half")
            assert until(lambda: heard(server, 4))
            server.request_drain(timeout)
            assert until(lambda: refuses(server), 2)
            if timeout:
                client.say(b"\n")
                client.end()
            client.rest()

    visitor = threading.Thread(target=visit)
    server._portico_lifecycle.on_start = visitor.start
    assert server.run() == status
    visitor.join(10)
    server.server_close()


# -- signals to a process group


def children(process: Any) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("handler", ["Echo", "EchoBye"])
def test_a_signal_to_the_whole_group_ends_children_by_the_drain(handler: str, number: signal.Signals) -> None:
    with program("ForkingTCPServer", handler, start_new_session=True) as process:
        with Client(process) as client, Client(process) as idle:
            assert idle.ask(b"line\n") == b"LINE\n"
            assert client.ask(b"line\n") == b"LINE\n"
            time_of_kernel()
            client.say(b"half")
            time_of_kernel()
            os.killpg(process.pid, number)
            assert idle.rest() == (b"bye\n" if handler == "EchoBye" else b"")
            assert until(lambda: refuses(process), 2)
            client.say(b" a line\n")
            assert client.rest() == (b"HALF A LINE\nbye\n" if handler == "EchoBye" else b"HALF A LINE\n")
        assert ended(process) == (0, "0\n")


def test_a_signal_to_one_child_alone_ends_it_and_nothing_else() -> None:
    with program("ForkingTCPServer", "EchoBye") as process:
        with Client(process) as client:
            assert client.ask(b"line\n") == b"LINE\n"
            [pid] = children(process)
            with Client(process) as other:
                assert other.ask(b"line\n") == b"LINE\n"
                os.kill(pid, signal.SIGTERM)
                assert client.rest() == b""
                assert until(lambda: not Path(f"/proc/{pid}").exists())
                assert other.ask(b"line\n") == b"LINE\n"
        process.terminate()
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "0\n")
        assert "'killed': 1" in err


def test_a_second_one_cuts_them() -> None:
    with program("ForkingTCPServer", "EchoBye", start_new_session=True) as process, Client(process) as client:
        assert client.ask(b"line\n") == b"LINE\n"
        time_of_kernel()
        client.say(b"half")
        time_of_kernel()
        pids = children(process)
        os.killpg(process.pid, signal.SIGTERM)
        assert until(lambda: refuses(process), 2)
        os.killpg(process.pid, signal.SIGINT)
        assert client.rest() in (b"", b"HALF")
        assert ended(process) == (CUT, f"{CUT}\n")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_child_that_others_kill_during_a_drain_was_cut(make: Make, number: signal.Signals) -> None:  # noqa: F811
    server = make(FORKS, "Echo")
    client = in_flight(make, server)
    [connection] = server.connections()
    drain = make.drain(server)
    assert until(lambda: refuses(server), 1)
    os.kill(connection.runner, number)
    assert client.rest() == b""
    report = drain.report()
    assert (report.finished, report.cut, report.clean) == (0, [connection], False)
    assert connection.reason is EndReason.KILLED


# -- asked for where it is done, called away, beside a loop of the program's own


class CopiedLoop:
    """What programs in the wild carry: `socketserver`'s own loop."""

    def serve_forever(self: Any, poll_interval: float = 0.05) -> None:
        self._BaseServer__is_shut_down.clear()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.socket.fileno(), selectors.EVENT_READ)
                self.looks.set()
                while not self._BaseServer__shutdown_request:
                    if selector.select(poll_interval) and not self._BaseServer__shutdown_request:
                        self._handle_request_noblock()
                    self.service_actions()
        finally:
            self._BaseServer__shutdown_request = False
            self._BaseServer__is_shut_down.set()


@pytest.mark.parametrize("name", ["TCPServer", "UDPServer", "ThreadingTCPServer", "ThreadingUDPServer"])
def test_closing_ends_a_loop_of_the_programs_own_and_does_not_wait_for_it(name: str) -> None:
    server = type("Copied", (CopiedLoop, getattr(portico, name)), {})(LOCAL, portico.BaseRequestHandler)
    server.looks = threading.Event()
    loop = threading.Thread(target=server.serve_forever, args=(1.0,))  # it looks so seldom
    loop.start()
    assert server.looks.wait(10)
    began = time.monotonic()
    server.server_close()
    assert time.monotonic() - began < 0.5
    loop.join(10)
    assert not loop.is_alive()


class Waits(portico.BaseRequestHandler):
    """Until its server says that it may end, or that it is cut."""

    def handle(self) -> None:
        self.request.sendall(b"here\n")
        self.request.recv(1)
        self.server.release.wait(10)


def own(base: Any, handler: Any, members: dict[str, Any] | None = None) -> Any:
    return type("Own", (base,), members or {})(LOCAL, handler, drain_timeout=5.0)


@contextmanager
def held(server: Any) -> Iterator[Any]:
    """A server with one request that does not end by itself, and is owed an answer."""
    server.release = threading.Event()
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    try:
        with Client(server) as client:
            assert client.line() == b"here\n"
            client.say(b"x")
            assert until(lambda: not server.connections()[0].is_idle())
            yield client
    finally:
        server.release.set()
        server.server_close()
        loop.join(10)


@pytest.mark.parametrize("again", ["drain", "server_close", "request_drain"])
@pytest.mark.parametrize("first", ["drain", "request_drain", "claimed"])
def test_whoever_is_told_whom_a_drain_waits_for_may_ask_for_the_end(
    first: str, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portico._drain._STUCK", 0.05)
    asked: list[object] = []

    def asks(server: Any, event: Any) -> None:
        if type(event) is DrainWaiting and not asked:
            asked.append(event)
            getattr(server, again)(*([] if again == "server_close" else [0.0]))
            server.release.set()

    server = own(portico.ThreadingTCPServer, Waits, {"handle_event": asks})
    with held(server):
        drain, _ = server._portico_begin_drain(5.0)
        if first == "claimed":  # as the threads of `run()` do it
            assert drain.claim()
        ways: dict[str, Any] = {"drain": drain.finish, "request_drain": drain.start, "claimed": drain.run}
        asker = threading.Thread(target=ways[first], daemon=True)
        asker.start()
        assert until(drain._over.is_set, 4)
        asker.join(10)
    assert server.stats().state is State.CLOSED


def test_a_forking_server_is_closed_by_whoever_is_told_whom_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico._drain._STUCK", 0.05)

    def asks(server: Any, event: Any) -> None:
        if type(event) is DrainWaiting:
            server.server_close()

    server = own(portico.ForkingTCPServer, Waits, {"handle_event": asks})
    with held(server):
        began = time.monotonic()
        report = server.drain(0.3)
        assert time.monotonic() - began < 3  # its child would go on for longer
        assert len(report.cut) == 1


def test_a_drain_that_was_interrupted_is_done_by_the_next_one() -> None:
    server = own(portico.ThreadingTCPServer, Waits)
    with held(server) as client:

        def interrupted(seconds: float) -> None:
            raise KeyboardInterrupt

        drain, _ = server._portico_begin_drain(5.0)
        drain._await_end = interrupted
        with pytest.raises(KeyboardInterrupt):
            server.drain()
        report = server.drain(0.1)
        assert len(report.cut) == 1
        assert client.rest() == b""


def test_whoever_waits_for_a_drain_that_is_interrupted_does_the_rest() -> None:
    server = own(portico.ThreadingTCPServer, Waits)
    with held(server) as client:
        interrupt = threading.Event()

        def interrupted(seconds: float) -> None:
            interrupt.wait(10)
            raise SystemExit

        drain, _ = server._portico_begin_drain(1.0)
        drain._await_end = interrupted
        assert drain.claim()

        def run() -> None:
            with suppress(SystemExit):
                drain.run()

        runs = threading.Thread(target=run)
        runs.start()
        other = Draining(server, 5.0)
        assert until(lambda: len(drain._inside) == 2)
        interrupt.set()
        runs.join(10)
        assert len(other.report().cut) == 1
        assert client.rest() == b""


def test_leaving_the_background_gives_requests_the_time_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico._background._LOOP_ENDS", 0.1)

    def process_request(server: Any, request: Any, client_address: Any) -> None:
        portico.TCPServer.process_request(server, request, client_address)

    server = own(portico.TCPServer, Waits, {"process_request": process_request})
    server.release = threading.Event()
    background = server.background()
    background.__enter__()
    with Client(server) as client:
        assert client.line() == b"here\n"
        client.say(b"x")
        threading.Timer(0.5, server.release.set).start()
        background.__exit__(None, None, None)
        assert server.release.is_set()
        assert not background._thread.is_alive()


@pytest.mark.parametrize("where", ["handle_request", "a thread of its own"])
def test_a_handler_that_drains_does_not_wait_for_itself_whoever_runs_it(where: str) -> None:
    reports: list[Any] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        request.sendall(b"x")
        request.recv(1)
        reports.append(server.drain(3.0))

    def process_request(server: Any, request: Any, client_address: Any) -> None:
        run = portico.TCPServer.process_request
        threading.Thread(target=run, args=(server, request, client_address)).start()

    members = {"process_request": process_request} if where == "a thread of its own" else {}
    with own(portico.TCPServer, handler, members) as server, Client(server) as client:
        client.say(b"x")
        began = time.monotonic()
        server.handle_request()
        assert until(lambda: reports, 2)
        assert time.monotonic() - began < 1
        assert reports[0].clean


def test_whom_a_drain_waits_for_is_shown_where_he_is_whoever_runs_him() -> None:
    server = own(portico.TCPServer, Waits)
    server.release = threading.Event()
    with server, Client(server) as client:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert client.line() == b"here\n"
        client.say(b"x")
        assert until(lambda: not server.connections()[0].is_idle())
        [(_, stack)] = server.drain(0.05).stuck
        assert "release.wait" in stack
        server.release.set()
        thread.join(10)


@pytest.mark.alerts("handle_event raised")
@pytest.mark.parametrize("state", [State.DRAINING, State.CLOSING, State.CLOSED])
def test_a_listener_that_leaves_ends_no_drain(state: State) -> None:
    def leaves(server: Any, event: Any) -> None:
        if getattr(event, "after", None) is state:
            sys.exit(3)

    server = own(portico.ThreadingTCPServer, Waits, {"handle_event": leaves})
    with held(server):
        server.request_drain(0.1)
        closing = threading.Thread(target=server.server_close, daemon=True)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()
        assert server.stats().state is State.CLOSED

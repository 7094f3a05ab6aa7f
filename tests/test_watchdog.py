"""The watchdog: who holds the event loop is told of while he does, and nobody else ever."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import portico
from portico import green
from portico.lifecycle import LoopHeld

from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread, rest_of, together
from .waiting import until

WARNING = 0.04
LONG = 6 * WARNING
"""Long enough for a hold, or for silence, to have been seen."""


class Telling:
    """Keeps what it is told."""

    blocking_warning: float | None = WARNING
    held: list[LoopHeld]
    was_told: threading.Event

    def server_activate(self) -> None:
        super().server_activate()  # type: ignore[misc]
        self.held = []
        self.was_told = threading.Event()

    def handle_event(self, event: Any) -> None:
        super().handle_event(event)  # type: ignore[misc]
        if isinstance(event, LoopHeld):
            self.held.append(event)
            self.was_told.set()


class Told(Telling, portico.GreenTCPServer[Any]):
    pass


class AsyncTold(Telling, portico.AsyncTCPServer[Any]):
    pass


def make(handler: Any, loop: str = "asyncio", **values: Any) -> Any:
    return Told(LOOPBACK, handler, event_loop=loop, **values)


on_both = pytest.mark.parametrize("loop", LOOPS)


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "portico watchdog"]


def clumsy(request: Any, client_address: Any, server: Any) -> None:
    """Holds the loop until that is told of, or for two seconds."""
    request.sendall(b"%d" % server.was_told.wait(2))


def clumsy_for_a_while(*_: Any) -> None:
    time.sleep(LONG)


def works(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# -- what is told


@on_both
def test_a_hold_is_told_of_while_it_lasts_with_its_stack_and_its_client(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    with make(clumsy, loop).background() as serving, connected(serving) as client:
        address = client.getsockname()
        assert rest_of(client) == b"1"  # said by the handler, once the report was there
        (event,) = serving.held
    assert event.client_address == address
    assert WARNING <= event.seconds < 5
    assert "in clumsy\n" in event.stack
    assert "server.was_told.wait(2)" in event.stack
    ((logger, level, message),) = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert (logger, level) == ("portico", "WARNING")
    assert f"the handler of {address} has been holding the event loop for 0." in message
    assert message.endswith(event.stack)


def test_a_handler_that_computes_is_told_of_too() -> None:
    def computes(request: Any, client_address: Any, server: Any) -> None:
        end = time.monotonic() + 2
        while not server.held and time.monotonic() < end:
            pass
        request.sendall(b"%d" % len(server.held))

    with make(computes).background() as serving:
        assert ask(serving) == b"1"
        assert "in computes\n" in serving.held[0].stack


@on_both
def test_after_it_was_woken_as_well(loop: str) -> None:
    def handler(request: Any, client_address: Any, server: Any) -> None:
        assert request.recv(1) == b"x"
        green.sleep(LONG)  # the watchdog sleeps, too
        clumsy(request, client_address, server)

    with make(handler, loop).background() as serving, connected(serving) as first, connected(serving) as second:
        second.sendall(b"x")
        assert rest_of(second) == b"1"
        assert [event.client_address for event in serving.held] == [second.getsockname()]
        first.sendall(b"x")
        assert rest_of(first) == b"1"


def test_in_finish_and_in_handle_request_as_well() -> None:
    class Clumsy(portico.BaseRequestHandler):
        def finish(self) -> None:
            clumsy(self.request, self.client_address, self.server)

    with make(Clumsy) as serving, connected(serving) as client:
        serving.handle_request()
        assert rest_of(client) == b"1"


def test_a_child_that_holds_the_loop_is_told_of_without_inventing_a_client(caplog: pytest.LogCaptureFixture) -> None:
    def child(until_when: float, step: float) -> int:
        while not caplog.records and time.monotonic() < until_when:
            time.sleep(step)
        return len(caplog.records)

    def handler(request: Any, *_: Any) -> None:
        request.sendall(b"%d" % green.spawn(child, time.monotonic() + 2, 0.0013).join())

    with make(handler).background() as serving:
        assert ask(serving) == b"1"
    assert "in child\n" in caplog.text
    assert "the handler of 0.0013" not in caplog.text


# -- how often


def test_two_places_are_told_of_and_each_of_them_once() -> None:
    def another(request: Any, client_address: Any, server: Any) -> None:
        clumsy(request, client_address, server)

    handlers = iter([clumsy_for_a_while, clumsy_for_a_while, another])

    def handler(request: Any, client_address: Any, server: Any) -> None:
        server.was_told.clear()
        next(handlers)(request, client_address, server)

    with make(handler).background() as serving:
        assert [ask(serving) for _ in range(3)] == [b"", b"", b"1"]
        assert len(serving.held) == 2
        first, second = (event.stack for event in serving.held)
    assert "in clumsy_for_a_while\n" in first
    assert "in another\n" in second


def test_a_place_is_told_of_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico._watchdog._AGAIN", 0.001)

    def handler(request: Any, client_address: Any, server: Any) -> None:
        server.was_told.clear()
        clumsy(request, client_address, server)

    with make(handler).background() as serving:
        assert [ask(serving) for _ in range(3)] == [b"1"] * 3
        assert len(serving.held) >= 3


def test_one_long_hold_is_told_of_once_wherever_it_happens_to_be() -> None:
    """It is looked at again and again, and is in another function each time."""

    def one() -> None:
        works(WARNING)

    def two() -> None:
        time.sleep(WARNING)

    def three() -> None:
        sum(range(500_000))

    def handler(*_: Any) -> None:
        end = time.monotonic() + 3 * LONG
        while time.monotonic() < end:
            for step in (one, two, three):
                step()

    with make(handler).background() as serving:
        assert ask(serving) == b""
        assert len(serving.held) == 1, [event.stack for event in serving.held]


# -- what is not told


def test_a_handler_that_waits_holds_nothing() -> None:
    async def inside() -> None:
        await asyncio.sleep(LONG)

    def handler(request: Any, *_: Any) -> None:
        request.settimeout(LONG)
        with pytest.raises(TimeoutError):
            request.recv(1)
        green.sleep(LONG)
        green.wait_for(inside())
        green.in_thread(time.sleep, LONG)
        request.sendall(b"waited")

    with make(handler).background() as serving, connected(serving) as client:
        assert client.recv(10) == b"waited"
        assert serving.held == []


@on_both
def test_a_loop_that_is_busy_with_many_short_turns_is_not_held(loop: str) -> None:
    def handler(request: Any, *_: Any) -> None:
        while data := request.recv(10):
            works(WARNING / 20)
            green.sleep(0)
            request.sendall(data)

    def client(serving: Any) -> None:
        with connected(serving) as sock:
            end = time.monotonic() + 2 * LONG
            while time.monotonic() < end:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"

    with (
        make(handler, loop).background() as serving,
        in_a_thread(client, serving),
        in_a_thread(client, serving),
        in_a_thread(client, serving),
    ):
        pass
    assert serving.held == []


def test_a_stream_that_never_pauses_is_not_held() -> None:
    def handler(request: Any, *_: Any) -> None:
        received = 0
        while data := request.recv(65536):
            received += len(data)
        request.sendall(b"%d" % received)

    with make(handler).background() as serving, connected(serving) as client:
        end, sent = time.monotonic() + 2 * LONG, 0
        while time.monotonic() < end:
            sent += client.send(bytes(200_000))
        client.shutdown(socket.SHUT_WR)
        assert rest_of(client) == b"%d" % sent
        assert serving.held == []


def switches(thread: threading.Thread) -> int:
    """How often a thread has gone to sleep so far."""
    for line in Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError("no such line")


@on_both
def test_an_idle_server_has_an_idle_watchdog(loop: str) -> None:
    def handler(request: Any, *_: Any) -> None:
        while data := request.recv(10):
            request.sendall(data)

    with make(handler, loop).background() as serving, connected(serving) as client:
        for word in (b"once", b"again"):
            client.sendall(word)
            assert client.recv(10) == word
            (watchdog,) = watchdogs()
            seen = -1

            def sleeps(watchdog: threading.Thread = watchdog) -> bool:
                nonlocal seen
                before, seen = seen, switches(watchdog)
                time.sleep(2 * WARNING)
                return seen == before == switches(watchdog)

            assert until(sleeps)
        assert serving.held == []


def test_none_means_no_watch() -> None:
    def handler(request: Any, *_: Any) -> None:
        request.sendall(b"%d" % len(watchdogs()))
        time.sleep(LONG)

    with make(handler, blocking_warning=None).background() as serving:
        assert ask(serving) == b"0"
        assert serving.held == []
    with make(handler).background() as serving:
        assert ask(serving) == b"1"
    assert watchdogs() == []


@pytest.mark.parametrize("first", ["watched", "unwatched"])
def test_a_server_that_wants_no_watch_takes_it_from_nobody(first: str) -> None:
    both = [make(clumsy), make(clumsy_for_a_while, blocking_warning=None)]
    with together(*(both if first == "watched" else both[::-1])):
        assert ask(both[1]) == b""
        assert ask(both[0]) == b"1"


LOOKED_AT_DURING_COLLECTIONS = """
import gc, socket, time, portico

class Cycle:
    def __init__(self):
        self.me = self

    def __del__(self):
        if time.monotonic() < end:  # not for all that has come together, when it is over
            time.sleep(0.0005)  # lets other threads run, as the closing of a socket does

def deep(number):
    return deep(number - 1) if number else (Cycle(), sum(range(2000)))

def handler(request, client_address, server):
    for _ in range(50):
        deep(30)
    request[1].sendto(b"x", client_address)

end = time.monotonic() + 3
gc.set_threshold(20, 2, 2)
server = portico.GreenUDPServer(("127.0.0.1", 0), handler, blocking_warning=0.0002, event_loop="asyncio")
server.handle_event = lambda event: None
with server.background(), socket.socket(type=socket.SOCK_DGRAM) as client:
    while time.monotonic() < end:
        client.sendto(b"x", server.server_address)
        client.recv(10)
"""


def test_a_collection_while_it_looks_does_not_end_the_process() -> None:
    """Python 3.11 crashes if a frame is over before its object is made; here within a second, mostly."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKED_AT_DURING_COLLECTIONS], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- tasks


def make_async(handler: Any, loop: str = "asyncio", **values: Any) -> Any:
    return AsyncTold(LOOPBACK, handler, event_loop=loop, **values)


class Clumsy(portico.AsyncStreamRequestHandler[Any]):
    """Reads a line, by what `waits`, and holds the loop until that is told of, or for two seconds."""

    async def waits(self) -> None:
        await self.rfile.readline()

    async def handle(self) -> None:
        await self.waits()
        self.wfile.write(b"%d" % self.server.was_told.wait(2))


class ClumsyAfterATimer(Clumsy):
    async def waits(self) -> None:
        await asyncio.sleep(LONG)  # which stirs nobody


class ClumsyOverASocket(portico.AsyncBaseRequestHandler[Any, Any]):
    async def handle(self) -> None:
        await self.request.recv(10)
        await self.request.sendall(b"%d" % self.server.was_told.wait(2))


@on_both
@pytest.mark.parametrize("handler", [Clumsy, ClumsyAfterATimer, ClumsyOverASocket])
def test_a_task_that_holds_the_loop_is_told_of_while_it_does(handler: Any, loop: str) -> None:
    with make_async(handler, loop).background() as serving, connected(serving) as client:
        time.sleep(LONG)  # the watchdog sleeps by now
        client.sendall(b"x\n")
        assert rest_of(client) == b"1"
        (event,) = serving.held
        assert event.client_address == client.getsockname()
    assert WARNING <= event.seconds < 5
    assert "self.server.was_told.wait(2)" in event.stack


def test_a_task_of_a_handlers_own_is_told_of_without_inventing_a_client(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(portico.AsyncBaseRequestHandler[Any, Any]):
        async def child(self) -> int:
            return self.server.was_told.wait(2)  # type: ignore[no-any-return]

        async def handle(self) -> None:
            await self.request.sendall(b"%d" % await asyncio.create_task(self.child()))

    with make_async(Handler).background() as serving:
        assert ask(serving) == b"1"
        assert [event.client_address for event in serving.held] == [None]
    assert "a handler's own task" in caplog.text


@on_both
def test_tasks_that_give_way_hold_nothing(loop: str) -> None:
    class Handler(portico.AsyncStreamRequestHandler[Any]):
        async def handle(self) -> None:
            await asyncio.sleep(LONG)
            end = time.monotonic() + LONG
            while time.monotonic() < end:
                works(WARNING / 20)
                await asyncio.sleep(0)
            self.wfile.write(b"done")

    with make_async(Handler, loop).background() as serving, connected(serving) as first, connected(serving) as second:
        assert rest_of(first) == rest_of(second) == b"done"
        assert serving.held == []


@on_both
def test_a_server_without_tasks_has_an_idle_watchdog(loop: str) -> None:
    with make_async(Clumsy, loop).background() as serving:
        assert ask(serving, b"x\n") == b"1"
        (watchdog,) = watchdogs()

        def sleeps() -> bool:
            before = switches(watchdog)
            time.sleep(1.2)  # longer than it would nap
            return before == switches(watchdog)

        assert until(sleeps)


def test_none_means_no_watch_of_tasks() -> None:
    with make_async(Clumsy, blocking_warning=None).background() as serving, connected(serving):
        assert watchdogs() == []


def test_of_both_kinds_on_one_loop_each_is_told_of_its_own() -> None:
    class AnotherWay(Clumsy):  # places are told of once a minute, and this is another one
        async def handle(self) -> None:
            await self.waits()
            end = time.monotonic() + 2
            while not self.server.held and time.monotonic() < end:
                pass
            self.wfile.write(b"%d" % len(self.server.held))

    both = [make(clumsy), make_async(AnotherWay)]
    with together(*both):
        assert ask(both[0]) == b"1"
        assert ask(both[1], b"x\n") == b"1"
        assert [len(server.held) for server in both] == [1, 1]

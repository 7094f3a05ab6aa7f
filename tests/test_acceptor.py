"""The accept policy on a fake clock and a fake loop: what follows from each way in which a request cannot be taken."""

from __future__ import annotations

import errno
import gc
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import portico
from portico._acceptor import Acceptor, serve
from portico._system import System
from portico.errors import Overloaded
from portico.lifecycle import (
    AcceptPaused,
    AcceptResumed,
    ConnectionEnded,
    ConnectionStarted,
    Event,
    HookFailed,
    ListenerDied,
    Refused,
    StateChanged,
)

NO_ROOM = OSError(errno.EMFILE, "Too many open files")
NOTHING = BlockingIOError(errno.EAGAIN, "nothing waits")
LOST = ConnectionAbortedError(errno.ECONNABORTED, "gone again")
OF_EVERY_LIFE = (StateChanged, ConnectionStarted, ConnectionEnded)
"""What every server tells; left out, so that what is in the list is about accepting."""


class Clock(System):
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class FakeLoop:
    """Whatever is watched is ready at once; a wait for nothing lasts as long as it may, on the fake clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: dict[int, Callable[[], object]] = {}
        self.servers: list[Any] = []
        self.waits: list[float | None] = []

    def watch(self, fileobj: Any, callback: Callable[[], object]) -> int:
        self._watched[fileobj.fileno()] = callback
        return int(fileobj.fileno())

    def unwatch(self, descriptor: int) -> None:
        self._watched.pop(descriptor, None)

    def release(self, server: Any) -> None:
        server._portico_serving_ended(self)

    def wake(self) -> None:
        """There is nobody to wake."""

    def wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        self.waits.append(timeout)
        if not self._watched:
            assert timeout is not None, "the loop would sleep for ever"
            self._clock.now += timeout
        return [(selectors.SelectorKey(fd, fd, 1, callback), 1) for fd, callback in self._watched.items()]


class Scripted(portico.TCPServer):
    """Takes its requests from a list: an exception is raised, anything else is a request. At its end it stops."""

    def __init__(self, *answers: Any, **values: Any) -> None:
        super().__init__(("127.0.0.1", 0), self.handled, **values)
        self._portico_system = Clock()
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.events: list[Event] = []
        self.refused = False

    def handled(self, request: Any, client_address: Any, server: Any) -> None:
        self.requests.append(request)

    def get_request(self) -> tuple[Any, Any]:
        if not self.answers:
            self._BaseServer__shutdown_request = True
            raise NOTHING
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer, "somebody"

    def shutdown_request(self, request: Any) -> None:
        """What is in the list needs no end."""

    def handle_event(self, event: Event) -> None:
        if not isinstance(event, OF_EVERY_LIFE):
            self.events.append(event)

    def run_on_fakes(self, poll_interval: float | None = 0.5) -> FakeLoop:
        with self:
            loop: Any = FakeLoop(self._portico_system)  # type: ignore[arg-type]
            self._portico_serving_begins(loop)
            loop.servers.append(self)
            try:
                serve(loop, [Acceptor(self, loop, poll_interval)])
            finally:
                self._portico_serving_ended(loop)
        return loop  # type: ignore[no-any-return]

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]


def pauses(loop: FakeLoop) -> list[float]:
    return [wait for wait in loop.waits if wait]


def test_out_of_descriptors_the_pause_doubles_from_ten_milliseconds_to_a_second_and_is_told_once() -> None:
    server = Scripted(*[NO_ROOM] * 10)
    assert pauses(server.run_on_fakes()) == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0])
    assert server.kinds() == [AcceptPaused]
    told = server.events[0]
    assert isinstance(told, AcceptPaused)
    assert (told.error, told.seconds) == (NO_ROOM, 0.01)


def test_a_request_ends_the_shortage_and_the_next_one_begins_anew() -> None:
    server = Scripted(NO_ROOM, NO_ROOM, "a", "b", NO_ROOM, "c")
    assert pauses(server.run_on_fakes()) == pytest.approx([0.01, 0.02, 0.01])
    assert server.kinds() == [AcceptPaused, AcceptResumed, AcceptPaused, AcceptResumed]
    assert server.requests == ["a", "b", "c"]


def test_the_pauses_are_settings() -> None:
    server = Scripted(*[NO_ROOM] * 4, accept_pause=0.5, accept_pause_max=1.5)
    assert pauses(server.run_on_fakes()) == [0.5, 1.0, 1.5, 1.5]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_every_shortage_pauses(number: int) -> None:
    server = Scripted(OSError(number, "short"), "a")
    assert pauses(server.run_on_fakes()) == [0.01]
    assert server.requests == ["a"]


def test_a_request_that_cannot_be_started_pauses_like_one_that_cannot_be_taken() -> None:
    class Full(Scripted):
        def process_request(self, request: Any, client_address: Any) -> None:
            if request == "too much":
                raise Overloaded("no thread")
            super().process_request(request, client_address)

    server = Full("too much", "a")
    assert pauses(server.run_on_fakes()) == [0.01]
    assert server.requests == ["a"]
    assert server.kinds() == [Refused, AcceptPaused, AcceptResumed]


def test_lost_connections_and_an_empty_listener_are_nothing_to_pause_for() -> None:
    server = Scripted(*[LOST] * 15, "a", *[LOST] * 15, *[NOTHING] * 50, "b")
    assert pauses(server.run_on_fakes()) == []
    assert server.requests == ["a", "b"]
    assert server.events == []


def test_sixteen_refusals_in_a_row_are_no_accident() -> None:
    server = Scripted(*[LOST] * 17, "a")
    assert pauses(server.run_on_fakes()) == pytest.approx([0.01, 0.02])
    assert server.kinds() == [AcceptPaused, AcceptResumed]


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP])
def test_a_dead_listeners_error_is_not_believed_while_the_listener_is_well(number: int) -> None:
    server = Scripted(OSError(number, "of another socket"), "a")
    server.run_on_fakes()
    assert server.requests == ["a"]
    assert server.events == []


def test_a_listener_that_no_longer_listens_ends_the_loop_and_is_told() -> None:
    class Dying(Scripted):
        def get_request(self) -> tuple[Any, Any]:
            self.socket.shutdown(socket.SHUT_RDWR)
            raise OSError(errno.EINVAL, "Invalid argument")

    server = Dying("a")
    server.run_on_fakes()
    assert server.kinds() == [ListenerDied]
    assert server.answers == ["a"]


def test_a_closed_listener_ends_the_loop_without_a_word() -> None:
    class Closing(Scripted):
        def get_request(self) -> tuple[Any, Any]:
            self.socket.close()
            raise OSError(errno.EBADF, "Bad file descriptor")

    server = Closing("a")
    server.run_on_fakes()
    assert server.events == []


def test_a_hook_that_raises_is_told_and_the_loop_goes_on() -> None:
    error = LookupError("in get_request")
    server = Scripted(error, "a")
    server.run_on_fakes()
    assert server.requests == ["a"]
    (told,) = server.events
    assert isinstance(told, HookFailed)
    assert told.error is error


def test_with_stdlib_compat_a_hook_that_raises_ends_the_loop() -> None:
    server = Scripted(LookupError("in get_request"), "a", stdlib_compat=True)
    with pytest.raises(LookupError):
        server.run_on_fakes()
    assert server.answers == ["a"]


def test_an_exception_that_is_no_exception_leaves_the_loop() -> None:
    server = Scripted(KeyboardInterrupt(), "a")
    with pytest.raises(KeyboardInterrupt):
        server.run_on_fakes()
    assert server.answers == ["a"]


def test_an_idle_server_waits_for_ever_unless_it_has_something_to_do_every_now_and_then() -> None:
    class Ticking(Scripted):
        def service_actions(self) -> None:
            self.requests.append("tick")

    assert set(Scripted("a", "b").run_on_fakes().waits) == {None}
    ticking = Ticking("a", "b")
    assert set(ticking.run_on_fakes(poll_interval=0.25).waits) == {0.25}
    assert ticking.requests == ["a", "tick", "b", "tick"]  # not before the first turn, and not after the end
    assert set(Ticking("a").run_on_fakes(poll_interval=None).waits) == {None}


def test_the_shorter_of_a_pause_and_the_poll_interval_counts() -> None:
    class Ticking(Scripted):
        def service_actions(self) -> None:
            pass

    waits = Ticking(NO_ROOM, NO_ROOM, accept_pause=0.5).run_on_fakes(poll_interval=0.375).waits
    # At once, after half a second, after one more second, and at the end.
    assert waits == [0.375, 0.375, 0.125, 0.375, 0.375, 0.375, 0.25, 0.375]


def test_a_server_that_is_not_ready_takes_nothing_until_it_is() -> None:
    class Busy(Scripted):
        looks = 0

        def ready_to_accept(self) -> bool:
            self.looks += 1
            return self.looks > 3

        def service_actions(self) -> None:
            assert self.looks > 3 or not self.requests

    server = Busy("a")
    loop = server.run_on_fakes()
    assert server.requests == ["a"]
    assert server._portico_system.monotonic() == pytest.approx(1.5)
    assert loop.waits[:4] == [0.5] * 4


def test_a_closed_server_cannot_be_served() -> None:
    server = Scripted("a")
    server.server_close()
    with pytest.raises(ValueError, match="socket of this Scripted is closed"):
        server.run_on_fakes()


@pytest.fixture
def waiting_clients() -> Iterator[Callable[[Any, int], None]]:
    clients: list[socket.socket] = []

    def connect(server: Any, count: int) -> None:
        clients.extend(socket.create_connection(server.server_address, 10) for _ in range(count))

    yield connect
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("values", "batches"), [({}, [5]), ({"accept_batch": 2}, [2, 2, 1]), ({"accept_batch": 1}, [1] * 5)]
)
def test_a_batch_is_taken_per_wake_up(
    values: dict[str, Any], batches: list[int], waiting_clients: Callable[[Any, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    taken: list[int] = []
    turns: list[bool] = []

    class Counting(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            turns.append(True)
            return super().select(timeout)

    def take(request: object, client_address: object, server: portico.TCPServer) -> None:
        taken.append(len(turns))
        if len(taken) == 5:
            server.shutdown()

    monkeypatch.setattr(portico, "_ServerSelector", Counting)
    with portico.TCPServer(("127.0.0.1", 0), take, **values) as server:
        waiting_clients(server, 5)
        server.serve_forever()
    assert [taken.count(turn) for turn in sorted(set(taken))] == batches


def test_a_gate_that_raises_is_told_and_tried_again_later(waiting_clients: Callable[[Any, int], None]) -> None:
    told: list[Event] = []
    served: list[object] = []

    class Gated(portico.TCPServer):
        def ready_to_accept(self) -> bool:
            if not told:
                raise LookupError("the gate is broken")
            return True

        def handle_event(self, event: Event) -> None:
            if not isinstance(event, OF_EVERY_LIFE):
                told.append(event)

    def take(request: object, client_address: object, server: portico.TCPServer) -> None:
        served.append(request)
        server.shutdown()

    with Gated(("127.0.0.1", 0), take) as server:
        waiting_clients(server, 1)
        server.serve_forever()
    assert [type(event) for event in told[:2]] == [HookFailed, AcceptPaused]
    assert len(served) == 1


def test_what_an_empty_listener_raises_is_freed_at_once() -> None:
    """An error whose traceback holds the frame that holds the error waits for the garbage collector."""
    gc.disable()
    try:
        before = sum(type(thing) is BlockingIOError for thing in gc.get_objects())
        with portico.UDPServer(("127.0.0.1", 0), portico.BaseRequestHandler) as server, server.background():
            for _ in range(5):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"x", server.server_address)
            server.shutdown()
            after = sum(type(thing) is BlockingIOError for thing in gc.get_objects())
    finally:
        gc.enable()
    assert after == before

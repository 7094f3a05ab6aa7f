"""Green servers from start to end: errors in requests, how they are ended, and the ways to serve."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from greenlet import GreenletExit

import portico
from portico import green

from .loops import LOOPBACK, LOOPS, ask, connected, in_a_thread, rest_of
from .waiting import until

Make = Callable[..., Any]


class Upper(portico.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest) -> Make:
    """`server(handler)`: a green TCP server, on one loop and on the other."""

    def make(handler: Any, made: Any = portico.GreenTCPServer, **values: Any) -> Any:
        return made(LOOPBACK, handler, event_loop=request.param, **values)

    return make


# -- errors


def wait_nowhere(request: Any) -> None:
    """Raises in the accept turn."""


def wait_for_a_timer(request: Any) -> None:
    green.sleep(0.001)


def wait_for_a_message(request: Any) -> None:
    assert request.recv(1)


SAID = {wait_nowhere: b"", wait_for_a_timer: b"", wait_for_a_message: b"x"}
"""What is left unread would have the server reset the connection."""
waits = pytest.mark.parametrize("wait", SAID, ids=lambda wait: wait.__name__)


@pytest.mark.alerts
@waits
def test_an_exception_stays_in_its_request(
    server: Make, caplog: pytest.LogCaptureFixture, wait: Callable[..., Any]
) -> None:
    def handler(request: Any, *_: Any) -> None:
        wait(request)
        raise LookupError("a bug")

    with server(handler).background() as serving:
        assert [ask(serving, SAID[wait]) for _ in range(2)] == [b""] * 2
    assert [(record.name, record.levelname) for record in caplog.records] == [("portico", "ERROR")] * 2
    assert caplog.text.count("LookupError: a bug") == 2


@pytest.mark.alerts
def test_others_go_on_when_one_request_fails(server: Make) -> None:
    def handler(request: Any, *_: Any) -> None:
        for line in request.makefile("rb"):
            if line == b"fail\n":
                raise LookupError("a bug")
            request.sendall(line)

    with server(handler).background() as serving, connected(serving) as other:
        for number in range(3):
            assert ask(serving, b"fail\n") == b""
            other.sendall(b"%d\n" % number)
            assert other.recv(10) == b"%d\n" % number


@waits
def test_system_exit_ends_its_request_only(
    server: Make, caplog: pytest.LogCaptureFixture, wait: Callable[..., Any]
) -> None:
    def handler(request: Any, *_: Any) -> None:
        wait(request)
        raise SystemExit(3)

    with server(handler).background() as serving:
        assert [ask(serving, SAID[wait]) for _ in range(2)] == [b""] * 2
    assert not caplog.records  # as in a thread


@waits
def test_keyboard_interrupt_ends_serving(server: Make, wait: Callable[..., Any]) -> None:
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        if request.recv(4) == b"wait":
            try:
                green.sleep(1000)
            finally:
                steps.append("the other one is ended")
        wait(request)
        raise KeyboardInterrupt

    with server(handler) as serving, connected(serving) as other, connected(serving) as client:
        other.sendall(b"wait")
        client.sendall(b"stop" + b"x")
        with pytest.raises(KeyboardInterrupt):
            serving.serve_forever()
        assert rest_of(client) == b""
    assert steps == ["the other one is ended"]


@pytest.mark.alerts
def test_an_exception_in_finish_is_told_and_closes_the_connection(
    server: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Upper):
        def finish(self) -> None:
            super().finish()
            raise LookupError("in finish")

    with server(Fails).background() as serving:
        assert [ask(serving, b"one\n") for _ in range(2)] == [b"ONE\n"] * 2
    assert caplog.text.count("LookupError: in finish") == 2


@pytest.mark.alerts
@pytest.mark.parametrize("hook", ["handle_error", "shutdown_request", "thread_finished"])
def test_a_hook_that_raises_is_told_and_closes_the_connection(
    server: Make, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError(hook)

    mine = type("Mine", (portico.GreenTCPServer,), {hook: fail})
    with server(fail, mine).background() as serving:
        assert [ask(serving) for _ in range(2)] == [b""] * 2
    assert caplog.text.count(f"{hook} raised an exception; the server goes on") == 2


@pytest.mark.alerts
def test_thread_finished_is_called_last_in_every_request(server: Make) -> None:
    steps: list[str] = []

    class Mine(portico.GreenTCPServer[Any]):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            steps.append("closed")

        def thread_finished(self) -> None:
            green.sleep(0)  # in the request's own green thread
            steps.append("finished")

    def handler(request: Any, *_: Any) -> None:
        if request.recv(10) == b"fail":
            raise ConnectionResetError

    with server(handler, Mine).background() as serving:
        assert ask(serving, b"fine") == b""
        assert until(lambda: len(steps) == 2)
        assert ask(serving, b"fail") == b""
    assert steps == ["closed", "finished"] * 2


# -- the end


class Waits(portico.StreamRequestHandler):
    steps: list[str]

    def handle(self) -> None:
        self.steps.append("waits")
        try:
            self.rfile.read()
        except GreenletExit:
            self.steps.append("ended")
            raise
        finally:
            self.steps.append("finally")

    def finish(self) -> None:
        self.steps.append("finish")
        super().finish()


@pytest.fixture
def waiting() -> Any:
    return type("Mine", (Waits,), {"steps": []})


ENDED = ["waits", "ended", "finally", "finish"]


def test_closing_ends_the_requests_where_they_wait(
    server: Make, waiting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with server(waiting, drain_timeout=0).background() as serving, connected(serving) as client:
        assert until(lambda: waiting.steps)
        serving.server_close()
        assert waiting.steps == ENDED
        assert client.recv(10) == b""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 have been cut" in caplog.text


def test_closing_has_one_that_reads_find_the_end(server: Make, waiting: Any, caplog: pytest.LogCaptureFixture) -> None:
    with server(waiting).background() as serving, connected(serving) as client:
        assert until(lambda: waiting.steps)
        serving.server_close()
        assert waiting.steps == ["waits", "finally", "finish"]
        assert client.recv(10) == b""
    assert not caplog.records


@pytest.mark.parametrize("values", [{"daemon_threads": True}, {"block_on_close": False}], ids=str)
def test_shutdown_ends_them_too_if_nobody_is_to_wait(server: Make, waiting: Any, values: Any) -> None:
    with server(waiting, **values) as serving, connected(serving):
        with in_a_thread(serving.serve_forever):
            assert until(lambda: waiting.steps)
            serving.shutdown()
        assert waiting.steps == ENDED


def test_shutdown_lets_a_request_come_to_its_end(server: Make) -> None:
    with server(Upper) as serving, connected(serving) as client, in_a_thread(serving.serve_forever) as loop:
        client.sendall(b"one\n")
        assert client.recv(10) == b"ONE\n"
        serving.shutdown()
        client.sendall(b"two\n")
        assert client.recv(10) == b"TWO\n"
        assert loop.is_alive()
        client.shutdown(socket.SHUT_WR)


def test_a_request_may_still_wait_while_it_is_ended(server: Make) -> None:
    """What `finally` has to say may take a moment."""
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        steps.append("waits")
        try:
            request.recv(1)
        finally:
            request.sendall(b"good ")
            green.in_thread(steps.append, "cleans up")
            request.sendall(b"bye")

    with server(handler).background() as serving, connected(serving) as client:
        assert until(lambda: steps)
        serving.server_close()
        assert rest_of(client) == b"good bye"
    assert steps == ["waits", "cleans up"]


def test_a_request_may_still_wait_while_it_is_cut(server: Make) -> None:
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        steps.append("waits")
        try:
            request.recv(1)
        finally:
            green.in_thread(steps.append, "cleans up")
            steps.append("has done so")

    with server(handler, drain_timeout=0).background() as serving, connected(serving) as client:
        assert until(lambda: steps)
        serving.server_close()
        assert rest_of(client) == b""
    assert steps == ["waits", "cleans up", "has done so"]


def test_one_whose_connection_is_closed_by_an_operator_may_still_wait(server: Make) -> None:
    steps: list[str] = []

    def handler(request: Any, *_: Any) -> None:
        steps.append("waits")
        try:
            request.recv(1)
        except GreenletExit:
            green.in_thread(steps.append, "cleans up")
            raise

    with server(handler).background() as serving, connected(serving) as client:
        assert until(lambda: steps)
        serving.connections()[0].close()
        assert rest_of(client) == b""
        assert until(lambda: serving.stats().ended)
        assert serving.stats().ended == {"closed": 1}
    assert steps == ["waits", "cleans up"]


def test_a_handler_may_end_its_own_server(server: Make) -> None:
    def handler(request: Any, client_address: Any, server: Any) -> None:
        server.shutdown()
        request.sendall(b"still here ")
        server.server_close()  # which only begins: it is cut where it waits next
        request.sendall(b"and here")
        green.sleep(1000)

    with server(handler, drain_timeout=0.3) as serving, in_a_thread(serving.serve_forever):
        assert ask(serving) == b"still here and here"


@pytest.mark.alerts
def test_one_that_catches_it_over_and_over_is_left_behind(server: Make, caplog: pytest.LogCaptureFixture) -> None:
    caught, requests = 0, list[Any]()

    def handler(request: Any, *_: Any) -> None:
        nonlocal caught
        requests.append(request)
        while caught < 1000:
            try:
                green.sleep(1000)
            except GreenletExit:
                caught += 1

    with server(handler, drain_timeout=0).background() as serving, connected(serving):
        assert until(lambda: requests)
        began = time.monotonic()
        serving.server_close()
        assert time.monotonic() - began < 10
    requests[0].close()  # nobody else does
    assert 3 <= caught < 1000
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told == ["1 requests catch GreenletExit and go on waiting; they are left behind"]
    assert "1 go on all the same" in caplog.text


# -- ways to serve


def test_handle_request_runs_one_request_to_its_end(server: Make) -> None:
    def handler(request: Any, *_: Any) -> None:
        green.sleep(0.01)
        request.sendall(green.in_thread(request.recv, 10) + request.recv(10))

    with server(handler) as serving:
        for _ in range(2):
            with connected(serving) as client:
                client.sendall(b"one")
                client.shutdown(socket.SHUT_WR)
                serving.handle_request()
                assert client.recv(10) == b"one"


def test_handle_request_has_its_timeout(server: Make) -> None:
    class Mine(portico.GreenTCPServer[Any]):
        timeout = 0.01
        timed_out = False

        def handle_timeout(self) -> None:
            self.timed_out = True

    with server(Upper, Mine) as serving:
        serving.handle_request()
        assert serving.timed_out


def test_it_may_be_stopped_and_started_again(server: Make) -> None:
    with server(Upper) as serving:
        for _ in range(3):
            with in_a_thread(serving.serve_forever):
                assert ask(serving, b"again\n") == b"AGAIN\n"
                serving.shutdown()

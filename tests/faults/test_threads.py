"""Rows 13, 21, 34 and 35: threads that do not start, their bookkeeping, their context and their end."""

from __future__ import annotations

import contextvars
import threading
from types import ModuleType
from typing import Any

import pytest

from ..waiting import until
from .serving import LOCAL, ask, connected, line_of, made, program, rest, serving, took, upper

WHO = contextvars.ContextVar("WHO", default="nobody")

NO_THREAD = """
import logging, resource, socket, threading

records = []

class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.levelname)

logging.getLogger("portico").addHandler(Keep())
server = ss.ThreadingTCPServer(("127.0.0.1", 0), lambda request, address, server: request.sendall(b"served"))
loop = threading.Thread(target=server.serve_forever)
loop.start()

def ask():
    with socket.create_connection(server.server_address, 5) as client:
        return client.recv(9).decode()

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
threading.stack_size(4 << 30)
print("without threads:", ask(), flush=True)
threading.stack_size(0)
print("with threads:", ask(), flush=True)
server.shutdown()
server.server_close()
print("closed", records, flush=True)
"""


def test_a_thread_that_does_not_start_is_overload_and_the_server_recovers_and_closes(ss: ModuleType) -> None:
    with program(NO_THREAD, ss) as process:
        assert line_of(process) == "without threads: "
        assert line_of(process) == "with threads: served"
        assert line_of(process) == "closed ['WARNING']"
        assert process.wait(5) == 0


@pytest.mark.regression
def test_a_thousand_requests_leave_the_list_of_threads_as_short_as_one(ss: ModuleType) -> None:
    server = made(ss.ThreadingTCPServer, lambda *what: None, request_queue_size=128)
    with serving(server):
        for _ in range(1000):
            with connected(server.server_address) as client:
                assert rest(client) == b""
        assert len(server._threads) < 20


@pytest.mark.regression
def test_many_slow_requests_at_once_are_all_waited_for_on_closing(ss: ModuleType) -> None:
    go_on = threading.Event()
    begun: list[int] = []
    done: list[int] = []

    def slow(request: Any, client_address: Any, server: Any) -> None:
        begun.append(1)
        go_on.wait(10)
        done.append(1)

    server = made(ss.ThreadingTCPServer, slow, request_queue_size=128)
    with serving(server):
        clients = [connected(server.server_address) for _ in range(30)]
        try:
            assert until(lambda: len(begun) == 30)
            assert took(server.shutdown, 2) < 2
            go_on.set()
            assert took(server.server_close, 5) < 5
            assert len(done) == 30
        finally:
            go_on.set()
            for client in clients:
                client.close()


def _tell(request: Any, client_address: Any, server: Any) -> None:
    request.sendall(WHO.get().encode())
    WHO.set("a handler before")


def test_handlers_see_the_context_of_a_loop_called_directly(ss: ModuleType) -> None:
    answers: list[bytes] = []
    server = ss.ThreadingTCPServer(LOCAL, _tell)

    def clients() -> None:
        answers.append(ask(server.server_address, b""))
        answers.append(ask(server.server_address, b""))
        server.shutdown()

    token = WHO.set("the starter")
    try:
        with server:
            thread = threading.Thread(target=clients, daemon=True)
            thread.start()
            server.serve_forever()
            thread.join(5)
    finally:
        WHO.reset(token)
    assert answers == [b"the starter", b"the starter"]


def test_handlers_see_the_context_of_a_loop_in_a_bare_thread(ss: ModuleType) -> None:
    token = WHO.set("the starter")
    try:
        server = ss.ThreadingTCPServer(LOCAL, _tell)
        with serving(server):
            assert ask(server.server_address, b"") == b"the starter"
            assert ask(server.server_address, b"") == b"the starter"
    finally:
        WHO.reset(token)


@pytest.mark.new_feature
def test_handlers_see_the_context_in_which_the_background_was_entered(ss: ModuleType) -> None:
    server = ss.ThreadingTCPServer(LOCAL, _tell)
    token = WHO.set("the starter")
    try:
        with server.background():
            assert ask(server.server_address, b"") == b"the starter"
    finally:
        WHO.reset(token)


@pytest.mark.parametrize("fate", ["handler returns", "handler fails", "handler exits", "handle_error fails"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_finished_is_called_once_a_request_whatever_happens(ss: ModuleType, fate: str) -> None:
    finished: list[threading.Thread] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        if fate == "handler exits":
            raise SystemExit
        if fate != "handler returns":
            raise ValueError("a bug")

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        if fate == "handle_error fails":
            raise RuntimeError("handle_error fails")

    def thread_finished(self: Any) -> None:
        finished.append(threading.current_thread())

    server = made(ss.ThreadingTCPServer, handle, handle_error=handle_error, thread_finished=thread_finished)
    with serving(server):
        for _ in range(3):
            assert ask(server.server_address, b"") == b""
        took(server.shutdown, 2)
        assert took(server.server_close, 2) < 2
        assert len(finished) == len(set(finished)) == 3


def test_thread_finished_runs_in_the_requests_thread_and_context_after_the_request(ss: ModuleType) -> None:
    seen: list[object] = []

    def handle(request: Any, client_address: Any, server: Any) -> None:
        WHO.set("this request")
        seen.append(threading.get_ident())

    def thread_finished(self: Any) -> None:
        seen.extend([threading.get_ident(), WHO.get()])

    server = made(ss.ThreadingTCPServer, handle, thread_finished=thread_finished)
    with serving(server):
        assert ask(server.server_address, b"") == b""
        assert until(lambda: len(seen) == 3, timeout=1)
    assert seen == [seen[0], seen[0], "this request"]


@pytest.mark.alerts
@pytest.mark.new_feature
def test_thread_finished_that_fails_is_told_and_harms_nothing(ss: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    def thread_finished(self: Any) -> None:
        raise RuntimeError("thread_finished fails")

    server = made(ss.ThreadingTCPServer, upper, thread_finished=thread_finished)
    with serving(server):
        assert ask(server.server_address) == b"HELLO"
        assert ask(server.server_address) == b"HELLO"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert len(server._threads) <= 1

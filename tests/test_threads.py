"""A thread per request: its name and kind, its errors, and who waits for it."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import portico
from portico import _NoThreads, _Threads

from .waiting import until

LOOPBACK = ("127.0.0.1", 0)


def ask(address: Any) -> bytes:
    """All that a server says to a silent client. Silent, because a server that closes without reading resets."""
    with socket.create_connection(address, 10) as client:
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


class Gate:
    """A handler that holds its requests until the gate is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, request: socket.socket, client_address: Any, server: Any) -> None:
        self.threads.append(threading.current_thread())
        assert self.opened.wait(30)
        request.sendall(b"done")


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()
    for thread in gate.threads:
        thread.join()


@pytest.fixture
def client() -> Iterator[Callable[[Any], socket.socket]]:
    clients: list[socket.socket] = []

    def connect(server: Any) -> socket.socket:
        clients.append(socket.create_connection(server.server_address, 10))
        return clients[-1]

    yield connect
    for sock in clients:
        sock.close()


def test_threads_are_named_and_typed_as_the_standard_librarys(gate: Gate, client: Callable[..., Any]) -> None:
    with portico.ThreadingTCPServer(LOOPBACK, gate).background() as server:
        client(server)
        assert until(lambda: gate.threads)
        gate.opened.set()
    assert gate.threads[0].name.startswith("Thread-")
    assert gate.threads[0].name.endswith(" (process_request_thread)")
    assert not gate.threads[0].daemon


def test_closing_waits_for_the_requests_that_run(gate: Gate, client: Callable[..., Any]) -> None:
    server = portico.ThreadingTCPServer(LOOPBACK, gate)
    with server.background():
        clients = [client(server) for _ in range(3)]
        assert until(lambda: len(gate.threads) == 3)
        assert len(server._threads) == 3
        closer = threading.Thread(target=server.server_close)
        closer.start()
        assert until(lambda: server.fileno() < 0)
        assert closer.is_alive()
        gate.opened.set()
        closer.join()
    assert [sock.recv(10) for sock in clients] == [b"done"] * 3
    assert not any(thread.is_alive() for thread in gate.threads)


@pytest.mark.parametrize("values", [{"block_on_close": False}, {"daemon_threads": True}], ids=str)
def test_closing_does_not_wait_if_told_not_to(gate: Gate, client: Callable[..., Any], values: dict[str, bool]) -> None:
    with portico.ThreadingTCPServer(LOOPBACK, gate, **values).background() as server:
        sock = client(server)
        assert until(lambda: gate.threads)
    assert gate.threads[0].is_alive()
    assert gate.threads[0].daemon is values.get("daemon_threads", False)
    assert len(server._threads) == 0
    gate.opened.set()
    assert sock.recv(10) == b"done"


def test_several_requests_run_at_once() -> None:
    together = threading.Barrier(5, timeout=10)

    def handler(request: socket.socket, *_: object) -> None:
        together.wait()
        request.sendall(b"all here")

    answers: list[bytes] = []
    with portico.ThreadingTCPServer(LOOPBACK, handler).background() as server:
        askers = [threading.Thread(target=lambda: answers.append(ask(server.server_address))) for _ in range(5)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert answers == [b"all here"] * 5


def test_a_handler_may_close_its_own_server() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, lambda request, address, server: server.server_close()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server.server_address) == b""
        thread.join(10)
        assert not thread.is_alive()


def test_a_handler_may_shut_its_own_server_down() -> None:
    with portico.ThreadingTCPServer(LOOPBACK, lambda request, address, server: server.shutdown()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server.server_address) == b""
        thread.join(10)
        assert not thread.is_alive()


def test_process_request_thread_is_a_hook() -> None:
    class Mine(portico.ThreadingTCPServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            request.sendall(b"before ")
            super().process_request_thread(request, client_address)

    with Mine(LOOPBACK, lambda request, *_: request.sendall(b"handled")).background() as server:
        assert ask(server.server_address) == b"before handled"


@pytest.mark.alerts
@pytest.mark.parametrize("hook", ["handle_error", "shutdown_request"])
def test_a_hook_that_raises_in_a_thread_still_has_the_request_closed(
    hook: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uncaught: list[type] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: uncaught.append(hook.exc_type))

    def fail(*_: object) -> None:
        raise LookupError(hook)

    Mine = type("Mine", (portico.ThreadingTCPServer,), {hook: fail})
    with Mine(LOOPBACK, fail).background() as server:
        assert ask(server.server_address) == b""
        assert ask(server.server_address) == b""
    # What handle_error raises is the thread's end, as in the standard library; the other is told in the log.
    assert uncaught == ([LookupError] * 2 if hook == "handle_error" else [])
    assert caplog.text.count("shutdown_request raised") == (0 if hook == "handle_error" else 2)


def test_datagrams_are_threaded_as_well(gate: Gate) -> None:
    began: list[int] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        began.append(threading.get_ident())
        gate.opened.wait(10)
        request[1].sendto(request[0], client_address)

    server, client = portico.ThreadingUDPServer(LOOPBACK, handler), socket.socket(type=socket.SOCK_DGRAM)
    with server.background(), client:
        client.settimeout(10)
        client.connect(server.server_address)
        for number in range(5):
            client.send(b"%d" % number)
        assert until(lambda: len(set(began)) == 5)
        gate.opened.set()
        assert sorted(client.recv(10) for _ in range(5)) == [b"0", b"1", b"2", b"3", b"4"]


def test_datagrams_that_wait_for_a_thread_are_answered_before_the_socket_is_closed(gate: Gate) -> None:
    began: list[int] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        began.append(threading.get_ident())
        gate.opened.wait(10)
        request[1].sendto(request[0], client_address)

    server = portico.ThreadingUDPServer(LOOPBACK, handler, max_threads=2)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        for number in range(5):
            client.send(b"%d" % number)
        assert until(lambda: len(began) == 2 and server.stats().accepted == 5)
        closing = threading.Thread(target=server.server_close)
        closing.start()
        serving.join(10)  # nothing more is taken
        gate.opened.set()
        assert sorted(client.recv(10) for _ in range(5)) == [b"0", b"1", b"2", b"3", b"4"]
        closing.join(10)
        assert server.fileno() == -1
        assert len(set(began)) == 2
        assert (server.stats().done, server.stats().failed, server.stats().active) == (5, 0, 0)


def test_a_server_may_serve_again_after_its_threads_have_ended(gate: Gate, client: Callable[..., Any]) -> None:
    gate.opened.set()
    with portico.ThreadingTCPServer(LOOPBACK, gate) as server:
        for number in range(3):
            sock = client(server)
            server.handle_request()
            assert sock.recv(10) == b"done"
            assert len(server._threads) <= number + 1


def test_context_variables_of_a_bare_base_are_no_condition() -> None:
    """Under a server that is not Portico's there is no `_context`, no `handle_event` and no settings."""

    class Foreign:
        RequestHandlerClass = None

        def finish_request(self, request: Any, client_address: Any) -> None:
            handled.append((request, client_address))

        def shutdown_request(self, request: Any) -> None:
            ended.append(request)

        def server_close(self) -> None:
            ended.append("closed")

    class Mine(portico.ThreadingMixIn, Foreign):  # type: ignore[misc]
        pass

    handled: list[Any] = []
    ended: list[Any] = []
    mine = Mine()
    mine.process_request("request", "address")
    mine.server_close()
    assert handled == [("request", "address")]
    assert sorted(ended) == ["closed", "request"]


# -- the bookkeeping


def thread() -> threading.Thread:
    return threading.Thread(target=lambda: None)


def test_what_has_ended_is_cleared_away_when_the_next_one_comes() -> None:
    threads, first, second = _Threads(), thread(), thread()
    threads.append(first)
    threads.ended(first)
    assert len(threads) == 1
    threads.append(second)
    assert list(threads) == [second]
    threads.discard(second)
    threads.discard(second)
    assert len(threads) == 0


def test_joining_waits_for_all_but_the_thread_that_joins() -> None:
    threads, other = _Threads(), thread()
    other.start()
    threads.append(other)
    threads.append(threading.current_thread())
    threads.join()
    assert not other.is_alive()
    assert list(threads) == [threading.current_thread()]


def test_the_stand_in_keeps_nothing_and_waits_for_nobody() -> None:
    none = _NoThreads()
    none.append(threading.current_thread())
    none.ended(threading.current_thread())
    none.discard(threading.current_thread())
    none.join()
    assert len(none) == 0
    assert isinstance(portico.ThreadingMixIn._threads, _NoThreads)


def test_threads_that_clear_away_what_has_ended_at_once_do_not_trip_over_each_other() -> None:
    """Several threads may each take requests with `handle_request`."""
    threads = portico._Threads()
    failed: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(5_000):
                for _ in range(5):
                    threads.ended(threading.current_thread())
                threads.append(threading.current_thread())
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # else one of them mostly runs to its end before the next begins
    try:
        workers = [threading.Thread(target=come_and_go) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed

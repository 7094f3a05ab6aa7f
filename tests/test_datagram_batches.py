"""Batches are not seen: nothing is lost or handled twice, whatever a handler does in the middle of one."""

from __future__ import annotations

import os
import select
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

import portico

from .loops import LOOPBACK, together
from .packets import (
    EVERY,
    ON_LOOPS,
    PATIENCE,
    answer,
    ask,
    echo,
    handler_of,
    heard,
    looping,
    made,
    peer,
    serving,
    silent,
    until_set,
    waits_for,
)
from .waiting import until

ALL = [b"%d" % number for number in range(10)]
IN_HERE = tuple(way for way in EVERY if way != "forks")
"""Those whose handlers run in this process."""


# -- in the middle of a batch


@pytest.mark.parametrize("again", ["serve_forever", "handle_request"])
@pytest.mark.parametrize("how", ["shutdown", "KeyboardInterrupt", "SystemExit"])
def test_what_was_received_before_a_stop_is_handled_once_when_it_serves_again(how: str, again: str) -> None:
    seen: list[bytes] = []

    async def stop(handler: Any) -> None:
        seen.append(handler.request[0])
        await echo(handler)
        if len(seen) in (3, 10):
            if how == "shutdown" or len(seen) == 10:
                handler.server.shutdown()
            else:
                raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[how]

    with made("plain", stop, timeout=PATIENCE) as server, peer() as client:
        waits_for(server, ALL, client)
        with suppress(KeyboardInterrupt, SystemExit):
            server.serve_forever()
        assert heard(client, 3) == seen == ALL[:3]
        assert server.stats().accepted == 3
        if again == "serve_forever":
            server.serve_forever()
        else:
            for _ in range(7):
                server.handle_request()
        assert heard(client, 7) == seen[3:] == ALL[3:]
        assert server.stats().accepted == 10
        assert silent(client)


@pytest.mark.parametrize("way", ON_LOOPS)
def test_ctrl_c_in_a_handler_on_a_loop_ends_it_and_what_waits_is_counted(way: str) -> None:
    async def interrupted(handler: Any) -> None:
        await echo(handler)
        if handler.request[0] == b"2":
            raise KeyboardInterrupt

    server = made(way, interrupted)
    with peer() as client:
        waits_for(server, ALL, client)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever()
        server.server_close()
        assert time.monotonic() - began < 1
        assert heard(client, 3) == ALL[:3]
        stats = server.stats()
        assert (stats.accepted, stats.active, stats.refused) == (3, 0, {"queue_full": 7})


@pytest.mark.parametrize("way", ON_LOOPS)
def test_shutdown_in_a_batch_on_a_loop_lets_what_was_taken_be_answered(way: str) -> None:
    async def stop(handler: Any) -> None:
        await echo(handler)
        if handler.request[0] == b"2":
            handler.server._portico_stop()

    with made(way, stop) as server, peer() as client:
        waits_for(server, ALL, client)
        server.serve_forever()
        answered = server.stats().accepted
        assert heard(client, answered) == ALL[:answered]
        with looping(server):
            assert heard(client, 10 - answered) == ALL[answered:]
            assert ask(client, b"2", server.server_address) == b"2"  # which stops it once more
        assert silent(client)


@pytest.mark.parametrize("way", IN_HERE)
def test_suspend_and_resume_lose_nothing(way: str) -> None:
    server = made(way)
    with peer() as client, server.background():
        for number in range(20):
            if number % 2:
                server.suspend()
            waits_for(server, ALL, client)
            if number % 2:
                server.resume()
            assert sorted(heard(client, 10)) == ALL
        assert silent(client)


@pytest.mark.parametrize("way", ["plain", "green-asyncio", "async-uvloop"])
def test_a_handler_that_closes_its_server(way: str) -> None:
    async def close(handler: Any) -> None:
        await echo(handler)
        if handler.request[0] == b"2":
            handler.server.server_close()

    server = made(way, close)
    with peer() as client:
        waits_for(server, ALL, client)
        with looping(server):
            assert heard(client, 3) == ALL[:3]  # said before
        assert server.fileno() == -1


# -- handlers that use the socket


@pytest.mark.parametrize("call", ["recvfrom", "recv", "recvfrom_into", "recv_into"])
def test_a_handler_that_reads_gets_the_next_one_and_what_it_has_sent_has_gone(call: str) -> None:
    async def dialogue(handler: Any) -> None:
        sock = handler.request[1]
        await answer(handler, b"and?")
        buffer = bytearray(100)
        if call.endswith("into"):
            result = getattr(sock, call)(buffer)
            count = result[0] if isinstance(result, tuple) else result
            data = bytes(buffer[:count])
        else:
            result = getattr(sock, call)(100)
            data = result[0] if isinstance(result, tuple) else result
        await answer(handler, handler.request[0] + b" " + data)

    server = made("plain", dialogue)
    with peer() as client:
        waits_for(server, ALL[:5], client)
        with server.background():
            assert heard(client, 5) == [b"and?", b"0 1", b"and?", b"2 3", b"and?"]
            client.sendto(b"the end", server.server_address)  # by whom has heard the question
            assert heard(client, 1) == [b"4 the end"]


def test_a_child_that_a_handler_forks_sends_what_it_says_and_nothing_else() -> None:
    async def fork(handler: Any) -> None:
        await echo(handler)
        if handler.request[0] == b"5":
            pid = os.fork()
            if not pid:
                try:
                    handler.request[1].sendto(b"child", handler.client_address)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)

    server = made("plain", fork)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            assert sorted(heard(client, 11)) == [*ALL, b"child"]
            assert silent(client)


def test_a_forked_handler_that_reads_takes_nothing_that_its_parent_has() -> None:
    async def read(handler: Any) -> None:
        sock = handler.request[1]
        found = select.select([sock], [], [], 0.05)[0]
        await answer(handler, b"%s %s" % (handler.request[0], sock.recv(100) if found else b"nothing"))

    server = made("forks", read)
    with peer() as client:
        waits_for(server, ALL[:5], client)
        with server.background():
            assert sorted(heard(client, 5)) == [payload + b" nothing" for payload in ALL[:5]]


@pytest.mark.parametrize("batch", [1, 2, 64, 1000])
def test_any_size_of_a_batch(batch: int) -> None:
    server = made("plain", accept_batch=batch)
    many = [b"%d" % number for number in range(150)]
    with peer() as client:
        waits_for(server, many, client)
        with server.background():
            assert heard(client, 150) == many


def test_handle_request_in_several_threads() -> None:
    with made("plain", timeout=0.05) as server, peer() as client:
        waits_for(server, [b"%d" % number for number in range(100)], client)

        def some() -> None:
            for _ in range(25):
                server.handle_request()

        threads = [threading.Thread(target=some) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(int, heard(client, 100))) == list(range(100))
        assert silent(client)


@pytest.mark.parametrize("way", [way for way in EVERY if way != "plain"])
def test_handle_request_of_every_way(way: str) -> None:
    with made(way, timeout=PATIENCE) as server, peer() as client:
        waits_for(server, ALL[:3], client)
        for _ in range(3):
            server.handle_request()
        assert sorted(heard(client, 3)) == ALL[:3]


# -- slow ones


def test_answers_do_not_wait_for_slow_handlers() -> None:
    async def slow(handler: Any) -> None:
        await echo(handler)
        time.sleep(0.02)

    server = made("plain", slow)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            for _ in range(3):
                delays = []
                for _ in ALL:
                    began = time.monotonic()
                    client.recv(10)
                    delays.append(time.monotonic() - began)
                assert max(delays) < 0.15  # not all after 0.2 s
                waits_for(server, ALL, client)
            heard(client, 10)


def test_a_handler_may_wait_for_what_its_client_says_to_its_answer_elsewhere() -> None:
    """The answer must not wait for the handler, which waits for the client, who waits for the answer."""

    async def elsewhere(handler: Any) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as own:
            own.bind(("127.0.0.1", 0))
            own.settimeout(PATIENCE)
            await answer(handler, b"%d" % own.getsockname()[1])
            payload, sender = own.recvfrom(10)
            own.sendto(payload.upper(), sender)

    server = made("plain", elsewhere)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            for _ in ALL:
                payload, sender = client.recvfrom(10)
                assert sender == server.server_address
                client.sendto(b"more", ("127.0.0.1", int(payload)))
                assert client.recv(10) == b"MORE"


def test_it_may_do_so_in_the_middle_of_a_fast_stream_too() -> None:
    """Where answers are kept: the batch before was fast."""
    heard_there: list[bytes] = []

    async def say_where(handler: Any) -> None:
        if handler.request[0] != b"where":
            await echo(handler)
            return
        with socket.socket(type=socket.SOCK_DGRAM) as there:
            there.bind(LOOPBACK)
            there.settimeout(PATIENCE)
            await answer(handler, b"%d" % there.getsockname()[1])
            heard_there.append(there.recv(9))

    with made("plain", say_where) as server, peer() as client, server.background():
        for _ in range(3):
            for number in range(32):
                client.sendto(b"%d" % number, server.server_address)
            assert len(heard(client, 32)) == 32
        for word in (b"a", b"b", b"c", b"where"):
            client.sendto(word, server.server_address)
        *_, port = heard(client, 4)
        client.sendto(b"here", (LOOPBACK[0], int(port)))
        assert until(lambda: heard_there == [b"here"])


@pytest.mark.parametrize("way", ["threads", *ON_LOOPS])
def test_a_handler_that_waits_holds_up_nobody(way: str) -> None:
    free = threading.Event()

    async def some_wait(handler: Any) -> None:
        if int(handler.request[0]) % 2:
            await until_set(handler, free)
        await echo(handler)

    server = made(way, some_wait)
    with peer() as client:
        waits_for(server, ALL, client)
        with server.background():
            assert sorted(heard(client, 5)) == ALL[::2]
            assert silent(client)
            free.set()
            assert sorted(heard(client, 5)) == ALL[1::2]


# -- as in socketserver


class Told:
    """Hooks that tell the order in which they are called."""

    calls: list[Any]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.calls.append(("verify", request[0]))
        return bool(super().verify_request(request, client_address))  # type: ignore[misc]

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.calls.append(("finish", request[0], type(client_address) is tuple or client_address == (*client_address,)))
        super().finish_request(request, client_address)  # type: ignore[misc]


def test_a_program_sees_the_same_with_the_standard_librarys_module() -> None:
    seen = {}
    for module in (socketserver, portico):
        made_here = type("Mine", (Told, module.UDPServer), {"calls": [], "max_packet_size": 5})
        values = {} if module is socketserver else {"stdlib_compat": True}
        with (
            made_here(LOOPBACK, handler_of("plain", echo, module.BaseRequestHandler), **values) as server,
            peer() as client,
        ):
            waits_for(server, [b"a", b"", b"too long", b"b"], client)
            with looping(server):
                answers = heard(client, 4)
                server.shutdown()
            seen[module] = answers, server.calls
    assert seen[portico] == seen[socketserver]


def test_two_servers_on_one_loop() -> None:
    first, second = made("plain"), made("plain", address=("0.0.0.0", 0))
    with peer() as client:
        waits_for(first, ALL, client)
        for payload in ALL:
            client.sendto(payload, ("127.0.0.3", second.server_address[1]))
        with together(first, second):
            answers: dict[Any, list[bytes]] = {}
            for _ in range(20):
                payload, sender = client.recvfrom(10)
                answers.setdefault(sender, []).append(payload)
    assert answers == {first.server_address: ALL, ("127.0.0.3", second.server_address[1]): ALL}


def test_an_unserved_servers_socket_is_a_plain_one() -> None:
    with made("plain") as server, peer() as client:
        client.sendto(b"x", server.server_address)
        payload, sender = server.socket.recvfrom(10)
        server.socket.sendto(payload, 0, sender)
        assert client.recv(10) == b"x"
        with pytest.raises(BlockingIOError):
            server.socket.recv(10, socket.MSG_DONTWAIT)
        with pytest.raises(TypeError):
            server.socket.sendto(b"x")
        with serving("plain", address=("127.0.0.1", 0)) as other:
            assert ask(client, b"y", other.server_address) == b"y"

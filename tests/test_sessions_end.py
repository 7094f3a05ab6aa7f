"""The end of sessions: goodbyes are said, and what a handler has not read is its peer's next one's, in order."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

import portico
from portico import green

from .draining import Draining
from .talks import EVERY_WAY, ONE_OF_EACH, WAYS, Client, Talk, echo, handler_of, serving
from .waiting import until


def with_goodbye(way: str, body: Any, seconds: float = 0.0) -> Any:
    """A handler with a goodbye, which takes so long before it is sent."""

    def goodbye(self: Any) -> None:
        if seconds:
            time.sleep(seconds)
        self.request.send(b"goodbye")

    async def goodbye_async(self: Any) -> None:
        await self.request.send(b"goodbye")

    is_async = WAYS[way].is_async
    return handler_of(body, is_async=is_async, goodbye=goodbye_async if is_async else goodbye)


# -- goodbyes


@EVERY_WAY
@pytest.mark.parametrize("verbs", [[], ["shutdown"], ["shutdown", "server_close"], ["server_close"]])
def test_goodbyes_are_said_however_it_ends(way: str, verbs: list[str]) -> None:
    with serving(way, None, handler=with_goodbye(way, echo)) as served:
        clients = [served.client() for _ in range(3)]
        assert [client.ask(b"a") for client in clients] == [b"1:a"] * 3
        for verb in verbs:
            getattr(served.server, verb)()
        if verbs:
            assert [client.hear() for client in clients] == [b"goodbye"] * 3
    if not verbs:  # the end of `background()` is one, too
        assert [client.hear() for client in clients] == [b"goodbye"] * 3
    for client in clients:
        assert client.hears_nothing(0.01)
        client.sock.close()
    assert served.reasons(3) == ["drained"] * 3


@EVERY_WAY
def test_what_was_asked_is_answered_before_the_goodbye(way: str) -> None:
    async def answers_late(talk: Talk) -> None:
        while True:
            data = await talk.recv()
            talk.note("got")
            while not (talk.server.notes.parent / "go").exists():
                await talk.pause(0.01)
            await talk.send(data)

    with serving(way, None, handler=with_goodbye(way, answers_late)) as served, served.client() as client:
        client.say(b"a", b"b")
        assert until(lambda: served.notes == ["got"] and served.server.connections()[0].bytes_in == 2)
        served.server.shutdown()
        (served.server.notes.parent / "go").touch()
        assert [client.hear(), client.hear(), client.hear()] == [b"a", b"b", b"goodbye"]


@EVERY_WAY
def test_who_never_answers_has_a_goodbye_in_a_moment(way: str) -> None:
    async def listens(talk: Talk) -> None:
        talk.note("begun")
        await talk.rest()

    with serving(way, None, handler=with_goodbye(way, listens)) as served, served.client() as client:
        client.say(b"a")
        assert until(lambda: served.notes == ["begun"])
        served.server.shutdown()
        assert client.hear() == b"goodbye"
        served.server.server_close()
        assert served.reasons() == ["drained"]


@pytest.mark.parametrize("way", ["threads", "forks"])
def test_a_slow_goodbye_is_said_once_and_to_its_end(way: str) -> None:
    with serving(way, None, handler=with_goodbye(way, echo, 0.3)) as served, served.client() as client:
        assert client.ask(b"a") == b"1:a"
        served.server.shutdown()
        served.server.server_close()
        assert client.hear() == b"goodbye"
        assert client.hears_nothing()
        assert served.reasons() == ["drained"]


def test_a_goodbye_that_waits_for_what_nobody_brings_is_cut_off() -> None:
    def goodbye(self: Any) -> None:
        self.request.send(b"goodbye?")
        self.request.recv()

    async def listens(talk: Talk) -> None:
        data = await talk.recv()
        await talk.send(data)
        talk.note("answered")
        await talk.rest()

    handler = handler_of(listens, is_async=False, goodbye=goodbye)
    with serving("threads", None, handler=handler) as served, served.client() as client:
        assert client.ask(b"a") == b"a"
        assert until(lambda: served.notes == ["answered"])
        served.server.shutdown()
        assert client.hear() == b"goodbye?"
        assert served.reasons() == ["drained"]


def test_a_handler_that_is_gone_has_no_goodbye() -> None:
    shut: list[int] = []
    green._say_goodbye(None, SimpleNamespace(handler=None, shut=shut.append))  # type: ignore[arg-type]
    assert len(shut) == 1


# -- what has not been read


async def until_bye(talk: Talk) -> None:
    while True:
        data = await talk.recv()
        await talk.send(b"got " + data)
        if data == b"bye":
            return


@EVERY_WAY
def test_what_comes_behind_the_last_one_read_begins_the_next_session(way: str) -> None:
    with serving(way, until_bye) as served, served.client() as client:
        for number in range(1, 6):
            client.say(b"1", b"bye", b"2", b"3", b"bye", b"4")
            assert [client.hear() for _ in range(6)] == [
                b"got 1", b"got bye", b"got 2", b"got 3", b"got bye", b"got 4"
            ]  # fmt: skip
            assert client.ask(b"bye") == b"got bye"
            assert served.reasons(number * 3) == ["done"] * number * 3
        assert served.refused == {}
        assert until(lambda: len(served.server._portico_reception) == 0)


ENDS = {
    "max_sessions": {"max_sessions": 1},
    "max_connections": {"max_connections": 1},
    "max_threads": {"max_threads": 1},
    "max_children": {"max_children": 1},
}


@EVERY_WAY
@pytest.mark.parametrize("limit", [None, *ENDS])
def test_a_stream_of_datagrams_is_read_in_order_by_one_session_after_the_other(way: str, limit: str | None) -> None:
    async def reads_three(talk: Talk) -> None:
        for _ in range(3):
            await talk.send(await talk.recv())

    settings: dict[str, Any] = {} if limit is None else ENDS[limit]
    prefix = {"max_threads": "Threading", "max_children": "Forking"}.get(limit or "", WAYS[way].prefix)
    if prefix != WAYS[way].prefix:
        pytest.skip("has no such limit")
    total = 90 if way == "forks" else 600
    with serving(way, reads_three, session_queue=1000, **settings) as served, served.client() as client:
        heard = []
        for number in range(total):
            client.say(b"%d" % number)
            if number >= 50:  # so many are under way at any time
                heard.append(client.hear())
        heard += [client.hear() for _ in range(total - len(heard))]
        assert heard == [b"%d" % number for number in range(total)]
        assert served.reasons(total // 3) == ["done"] * (total // 3)
        assert served.refused == {}
        assert until(lambda: len(served.server._portico_reception) == 0)
        assert not served.server._portico_reception._by_route


@EVERY_WAY
def test_it_does_so_after_a_failure(way: str) -> None:
    async def fails(talk: Talk) -> None:
        await talk.send(await talk.recv())
        raise ValueError("a bug")

    with serving(way, fails) as served, served.client() as client:
        client.say(b"1", b"2", b"3")
        assert [client.hear() for _ in range(3)] == [b"1", b"2", b"3"]
        assert served.reasons(3) == ["failed"] * 3
        assert served.refused == {}


@EVERY_WAY
def test_a_handler_that_reads_nothing_loses_one_each_time(way: str) -> None:
    async def reads_nothing(talk: Talk) -> None:
        await talk.send(b"here")
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)

    with serving(way, reads_nothing) as served, served.client() as client:
        client.ask(b"1")
        client.say(b"2", b"3")
        assert until(lambda: served.server.connections()[0].bytes_in == 3)
        (served.server.notes.parent / "go").touch()
        assert [client.hear(), client.hear()] == [b"here"] * 2
        assert served.reasons(3) == ["done"] * 3
        assert until(lambda: served.refused == {"session_ended": 3})
        assert client.hears_nothing()


@EVERY_WAY
def test_one_that_closes_its_session_and_goes_on_holds_up_nobody(way: str) -> None:
    async def closes(talk: Talk) -> None:
        data = await talk.recv()
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)
        await talk.send(data)
        talk.session.close()
        await talk.pause(0.3)

    with serving(way, closes) as served, served.client() as client:
        client.say(b"1", b"2")
        assert until(lambda: served.server.connections() and served.server.connections()[0].bytes_in == 2)
        (served.server.notes.parent / "go").touch()
        assert client.hear() == b"1"
        if way == "forks":  # whose parent learns of it by the next one, or by the child's end
            client.say(b"3")
        assert client.hear() == b"2"
        assert served.refused == {}


@EVERY_WAY
@pytest.mark.parametrize("how", ["close", "drain", "timeout", "shut"])
def test_there_is_no_next_one_if_somebody_else_has_ended_it(way: str, how: str) -> None:
    async def reads_one(talk: Talk) -> None:
        await talk.send(await talk.recv())
        try:
            while not (talk.server.notes.parent / "go").exists():
                await talk.pause(0.01)
        finally:
            talk.note("end")

    settings: dict[str, Any] = {"connection_timeout": 0.3} if how == "timeout" else {}
    with serving(way, reads_one, **settings) as served, served.client() as client:
        assert client.ask(b"1") == b"1"
        client.say(b"2", b"3")
        assert until(lambda: served.server.connections()[0].bytes_in == 3)
        [connection] = served.server.connections()
        drain = None
        if how == "close":
            connection.close()
        elif how == "shut":
            connection.shut(socket.SHUT_RD)
        elif how == "drain":
            drain = Draining(served.server, 5.0)
            assert until(served.server.is_draining)
            assert until(lambda: served.server._portico_reception.takes_no_more)
        else:
            assert until(lambda: connection.state != "open")
        (served.server.notes.parent / "go").touch()
        assert len(served.reasons()) == 1
        assert until(lambda: served.refused == {"session_ended": 2})
        if drain is not None:
            assert drain.report().cut == []
        assert client.hears_nothing(0.05)
        assert len(served.server.connections()) == 0


@ONE_OF_EACH
def test_a_suspended_server_refuses_the_next_one(way: str) -> None:
    async def reads_one(talk: Talk) -> None:
        await talk.send(await talk.recv())
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)

    with serving(way, reads_one) as served, served.client() as client:
        assert client.ask(b"1") == b"1"
        client.say(b"2", b"3")
        assert until(lambda: served.server.connections()[0].bytes_in == 3)
        served.server.suspend()
        (served.server.notes.parent / "go").touch()
        served.reasons()
        assert until(lambda: served.refused == {"suspended": 2})


@ONE_OF_EACH
def test_what_is_left_when_it_closes_is_counted(way: str) -> None:
    async def reads_one(talk: Talk) -> None:
        await talk.send(await talk.recv())
        while not (talk.server.notes.parent / "go").exists():
            await talk.pause(0.01)

    with serving(way, reads_one) as served, served.client() as client:
        assert client.ask(b"1") == b"1"
        client.say(b"2", b"3")
        assert until(lambda: served.server.connections()[0].bytes_in == 3)
        ends = threading.Thread(target=served.server.server_close)
        ends.start()
        assert until(lambda: served.server._portico_reception.takes_no_more)
        (served.server.notes.parent / "go").touch()
        ends.join(5)
        assert until(lambda: served.refused == {"session_ended": 2})
        assert len(served.server._portico_reception) == 0


def test_handle_request_begins_the_next_one() -> None:
    class Reads(portico.BaseRequestHandler):
        def handle(self) -> None:
            self.server.go.wait(5)
            self.request.send(self.request.recv())

    made = type("Server", (portico.ThreadingUDPServer,), {"go": threading.Event(), "timeout": 5})
    with made(("127.0.0.1", 0), Reads, sessions=True) as server, Client(server) as client:
        client.say(b"1", b"2")
        server.handle_request()
        server.timeout = 0.05
        server.handle_request()
        server.go.set()
        assert client.hear() == b"1"
        assert until(lambda: server._portico_left_over)
        server.handle_request()
        assert client.hear() == b"2"

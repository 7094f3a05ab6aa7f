"""Green threads below any server: started, parked, woken for no reason, interrupted, used again, ended."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from greenlet import GreenletExit, getcurrent

from portico import green
from portico._event_sets import readiness
from portico._hub import GreenThread, Hub, current

from .loops import LOOPS


class World:
    """A hub on a loop, and what runs on it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.readiness = readiness(self.loop)
        self.hub = Hub(self.loop, self.readiness)
        self.group: set[Any] = set()

    def start(self, function: Callable[..., Any], *arguments: Any) -> GreenThread:
        thread = self.hub.request(self.group, contextvars.copy_context(), (function, *arguments))
        thread.start()
        return thread

    def close(self) -> None:
        self.hub.close()
        self.readiness.close()


Test = Callable[[World], Awaitable[None]]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """`run(test)`: a coroutine on one loop and on the other, with a hub; nothing may be left in its group."""

    async def main(test: Test) -> None:
        world = World()
        try:
            await asyncio.wait_for(test(world), 10)
            assert not world.group
        finally:
            world.close()

    def run(test: Test) -> None:
        factory = asyncio.new_event_loop
        if request.param == "uvloop":
            factory = pytest.importorskip("uvloop").new_event_loop
        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            runner.run(main(test))

    return run


def test_it_runs_at_once_up_to_where_it_waits(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        steps: list[str] = []

        def work() -> str:
            steps.append("begins")
            green.sleep(0)
            steps.append("ends")
            return "result"

        thread = world.start(work)
        assert steps == ["begins"]
        assert world.group == {thread}
        await thread
        assert steps == ["begins", "ends"]

    run(test)


def test_one_that_starts_soon_or_from_another_runs_later(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        steps: list[str] = []

        def outer() -> None:
            inner = world.start(steps.append, "inner")
            steps.append("outer")
            inner.join()

        await world.start(outer)
        assert steps == ["outer", "inner"]

    run(test)


def test_wake_ups_without_reason_end_no_wait(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        event = asyncio.Event()
        began = time.monotonic()
        child = world.start(green.wait_for, event.wait())
        waits = {
            "sleep": world.start(green.sleep, 0.05),
            "wait_for": child,
            "join": world.start(child.join),
        }
        for _ in range(5):
            for thread in waits.values():
                thread.switch()
                assert thread.job is not None, "it has ended"
            await asyncio.sleep(0)
        event.set()
        for thread in waits.values():
            await thread
        assert time.monotonic() - began >= 0.05

    run(test)


def test_a_wake_up_after_the_end_is_no_fault(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        thread = world.start(green.sleep, 0)
        await thread
        for _ in range(3):
            thread.switch()
            thread.interrupt(GreenletExit())
        await asyncio.sleep(0)
        again = world.start(green.sleep, 0.001)  # most likely the same greenlet
        await again
        assert again.failure is None

    run(test)


def test_a_greenlet_is_used_again_with_nothing_of_the_last_request(run: Callable[[Test], None]) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")

    class Thing:
        pass

    async def test(world: World) -> None:
        seen: list[Any] = []

        def work(thing: Any) -> Any:
            seen.append((getcurrent(), variable.get()))
            variable.set("something")
            with green.timeout(30):
                green.sleep(0.001)
            return thing

        things = [Thing() for _ in range(3)]
        known = [weakref.ref(thing) for thing in things]
        for _ in range(len(things)):
            await world.start(work, things.pop())
        assert len({greenlet for greenlet, _ in seen}) == 1
        assert [value for _, value in seen] == ["nothing"] * 3
        gc.collect()
        assert [reference() for reference in known] == [None] * 3

    run(test)


def test_no_more_spare_ones_are_kept_than_is_useful(
    run: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portico._hub._SPARE", 3)

    async def test(world: World) -> None:
        threads = [world.start(green.sleep, 0.001) for _ in range(10)]
        for thread in threads:
            await thread
        assert len(world.hub.spare) == 3
        spare = list(world.hub.spare)
        world.hub.close()
        assert all(thread.dead for thread in spare)

    run(test)


def test_an_interruption_is_raised_where_it_waits_once(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        steps: list[str] = []

        def work() -> None:
            try:
                green.sleep(30)
            except LookupError as error:
                steps.append(str(error))
            green.sleep(0.001)
            steps.append("goes on")

        thread = world.start(work)
        thread.interrupt(LookupError("wake up"))
        assert steps == []  # soon, not now: who calls may be anybody
        await thread
        assert steps == ["wake up", "goes on"]

    run(test)


def test_the_end_is_not_made_into_a_timeout(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        caught: list[BaseException] = []

        def work() -> None:
            try:
                green.sleep(30)
            except BaseException as error:
                caught.append(error)

        thread = world.start(work)
        thread.interrupt(GreenletExit())
        thread.interrupt(TimeoutError())
        await thread
        assert [type(error) for error in caught] == [GreenletExit]

    run(test)


def test_one_that_is_ended_before_it_began_never_runs(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        steps: list[str] = []

        def work() -> None:
            child = green.spawn(steps.append, "child")
            child.interrupt(GreenletExit())
            with pytest.raises(GreenletExit):
                child.join()

        thread = world.start(work)
        await thread
        assert steps == []

    run(test)


class Counting:
    """A loop that counts the timers it is asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.timers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, *arguments: Any) -> Any:
        self.timers += 1
        return self._loop.call_later(*arguments)


def test_a_deadline_on_every_wait_does_not_need_a_timer_for_each(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        world.hub.loop = counting = Counting(world.loop)  # type: ignore[assignment]

        def work() -> None:
            for _ in range(1000):
                current().park_until(time.monotonic() + 30)
            current().park_until(time.monotonic() + 0.001)  # an earlier one needs a further timer

        thread = world.start(work)
        for _ in range(1000):
            thread.switch()
        await thread
        assert counting.timers < 100  # of 1,001 waits; on a machine that stalls some fall due meanwhile

    run(test)


def test_threads_that_never_wait_for_long_take_turns_with_the_loop(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        counts = [0, 0]

        def work(number: int) -> None:
            while not done:
                counts[number] += 1
                green.sleep(0)

        done: list[bool] = []
        threads = [world.start(work, number) for number in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        done.append(True)
        for thread in threads:
            await thread
        assert min(counts) >= 10
        assert abs(counts[0] - counts[1]) <= 1

    run(test)


def test_outside_of_green_threads_there_is_no_current_one(run: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(RuntimeError, match="no green thread"):
            current()

        async def inside() -> None:
            with pytest.raises(RuntimeError, match="no green thread"):
                current()

        def work() -> GreenThread:
            green.wait_for(inside())  # a task of the loop's
            return current()

        thread = world.start(work)
        await thread

    run(test)

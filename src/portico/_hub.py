"""Green threads on an asyncio loop: how one starts, parks, is woken, interrupted and ended. No sockets, no servers.

A green thread (a greenlet) runs until it parks, which switches to the greenlet that runs the loop; the loop's callbacks
switch back. One `Hub` is one loop's green threads. A wake-up is a hint: every `park` stands in a loop that looks at
what it waits for.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from . import logs
from ._readiness import FutureWaiter
from .lifecycle import HookFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import FrameType
    from typing import TypeAlias

    from ._readiness import Readiness, Waiter

    Job: TypeAlias = tuple[Any, ...]

__all__ = ["Expired", "GreenThread", "Hub", "current"]

_SPARE: Final = 256
"""Greenlets kept for further requests. A new one has its own piece of Python stack mapped and touched: measured, a
connection with one message costs 15 % more that way."""


class Hub:
    """The green threads of one asyncio loop. Made inside that loop, by whoever serves on it, who closes it, too."""

    __slots__ = ("loop", "readiness", "root", "spare", "thread", "to_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness) -> None:
        self.loop = loop
        self.readiness = readiness
        self.root = getcurrent()
        self.to_loop = self.root.switch
        self.thread = threading.get_ident()
        self.spare: list[GreenThread] = []

    def request(self, group: Any, context: contextvars.Context, job: Job) -> GreenThread:
        """A green thread for a request, used again for others when that has ended. To be started."""
        thread = self.spare.pop() if self.spare else GreenThread(self, _SPARE)
        thread.prepare(group, context, job)
        return thread

    def away(self) -> None:
        """Leave the green thread that runs: for the next one that an event waits for, else for the loop."""
        if not self.readiness.next():
            self.to_loop()

    def running(self, frame: FrameType | None) -> GreenThread | None:
        """The green thread that this frame is in, of the loop's OS thread; None for none."""
        while frame is not None:
            if frame.f_code is GreenThread._run_job.__code__:
                thread: GreenThread | None = frame.f_locals.get("self")
                return thread
            frame = frame.f_back
        return None

    def close(self) -> None:
        """Let the spare ones end. In the loop's own greenlet."""
        spare, self.spare = self.spare, []
        for thread in spare:
            thread.interruption = GreenletExit()
            thread.switch()


class GreenThread(greenlet):
    """One green thread. `join` waits for its end, in another one."""

    __slots__ = (
        "_alarm", "_alarm_at", "_deadline", "_joiners", "_spare", "blocks", "failure", "group", "hub",
        "interruption", "job", "result",
    )  # fmt: skip

    def __init__(self, hub: Hub, spare: int = 0) -> None:
        super().__init__(None, hub.root)
        self.hub = hub
        self._spare = spare
        """When it has ended and fewer than these are there, it waits for a further job."""
        self.job: Job | None = None
        """What it runs, with the arguments; None when it has ended."""
        self.group: Any = None
        """Those that are ended together (`_on_loop.Requests`); a thread is in it until it has ended."""
        self.result: Any = None
        self.failure: BaseException | None = None
        self.interruption: BaseException | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._deadline: float | None = None
        self._joiners: tuple[Waiter, ...] = ()
        self.blocks = 0
        """Timeout blocks that it is in."""

    def prepare(self, group: Any, context: contextvars.Context, job: Job) -> None:
        """Give it something to run. Of itself a greenlet would start without a context."""
        self.gr_context = context
        self.job = job
        self.group = group
        group.add(self)

    def start(self, *, soon: bool = False) -> None:
        """Run up to where it first parks: at once, if this is the loop's own greenlet and not `soon`."""
        if soon or getcurrent() is not self.hub.root:
            self.hub.loop.call_soon(self.switch)
        else:
            self.switch()

    def run(self, *_: object) -> None:
        """What the greenlet runs. Only what is no `Exception` leaves it, and that ends the loop."""
        hub = self.hub
        while self.job is not None:
            self._run_job(self.job)
            if len(hub.spare) >= self._spare:
                if self._alarm is not None:  # a spare one's may ring: the next request's seldom has to be set then
                    self._alarm.cancel()
                    self._alarm = None
                return
            hub.spare.append(self)
            self.result = self.failure = None
            while self.job is None and self.interruption is None:
                hub.away()

    def _run_job(self, job: Job) -> None:
        self.hub.readiness.turn()
        try:
            if self.interruption is not None:
                raise self.interruption
            if len(job) == 3:  # every request: a call without `*` saves a C frame, 0.6 kB of each parked one
                self.result = job[0](job[1], job[2])
            else:
                self.result = job[0](*job[1:])
        except (Exception, GreenletExit, SystemExit, asyncio.CancelledError) as error:  # SystemExit as in `threading`
            self.failure = _without_its_frame(error)
        finally:
            self.job = self.interruption = None
            self.group.discard(self)
            joiners, self._joiners = self._joiners, ()
            for joiner in joiners:
                self.hub.loop.call_soon(joiner.switch)

    def park(self) -> None:
        """Give way until somebody switches back here, for whatever reason. Raises what the thread is interrupted with.

        Only from inside this green thread.
        """
        self.hub.away()
        self.hub.readiness.turn()

    def park_until(self, deadline: float) -> None:
        """The same, but not for long beyond a time of `time.monotonic`.

        The alarm is set anew only if it would ring too late, so that a timeout on every read costs one now and then.
        """
        if self._alarm is None or self._alarm_at > deadline:
            self._set_alarm(deadline)
        self._deadline = deadline
        try:
            self.park()
        finally:
            self._deadline = None

    def sleep_until(self, deadline: float) -> None:
        while monotonic() < deadline:
            self.park_until(deadline)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self.hub.loop.call_later(when - monotonic(), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._deadline is None:
            return
        if monotonic() >= self._deadline:
            self.switch()
        else:
            self._set_alarm(self._deadline)

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """Run an awaitable of the asyncio world: its result or exception is ours, an interruption cancels it."""
        future = asyncio.ensure_future(awaitable, loop=self.hub.loop)
        future.add_done_callback(self._woken)
        try:
            while not future.done():
                self.park()
        except BaseException as error:
            return self._gave_up(future, error)
        return future.result()

    def _gave_up(self, future: asyncio.Future[Any], error: BaseException) -> Any:
        """Interrupted while it waited: what it waited for is cancelled and comes to its end first (asyncio.wait_for).

        If that has a result all the same, nothing of it is lost: it is returned, and the interruption comes at the next
        wait, or not at all if its block is over by then.
        """
        while not future.done():
            future.cancel()
            try:
                self.park()
            except BaseException as later:
                error = min(error, later, key=_rank)
        if future.cancelled() or not isinstance(error, Expired):
            if not future.cancelled():
                future.exception()  # looked at, and outweighed
            raise error
        self.interrupt(error)
        return future.result()

    def call_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a blocking function in one of the loop's own pool of threads, in this context."""
        run = contextvars.copy_context().run
        return self.wait_for(self.hub.loop.run_in_executor(None, run, function, *arguments))

    def _woken(self, _: object) -> None:
        self.switch()

    def give_way(self) -> None:
        """Let everybody else who is ready have a turn."""
        self.hub.loop.call_soon(self.switch)
        self.park()

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in this thread where it is parked, or where it parks next. In the loop's thread only.

        One that is not raised yet gives way to a greater one only: the thread's end, or the time of an outer block.
        """
        before = self.interruption
        if self.job is None or (before is not None and _rank(before) <= _rank(error)):
            return
        self.interruption = error
        self.hub.loop.call_soon(self._raise_interruption)

    def _raise_interruption(self) -> None:
        has_started = self.gr_frame is not None  # if not, it finds its interruption when it does
        if has_started and self.interruption is not None:
            error, self.interruption = self.interruption, None
            self.throw(error)

    def spare(self, error: BaseException) -> None:
        """Take an interruption back that has not been raised yet."""
        if self.interruption is error:
            self.interruption = None

    def join(self) -> Any:
        """Wait, in another green thread, until this one has ended; returns its result or raises what it ended with."""
        me = current()
        if me is self:
            raise RuntimeError("a green thread cannot join itself: it would wait for ever")
        while self.job is not None:
            if me not in self._joiners:
                self._joiners = (*self._joiners, me)
            me.park()
        self.group = None  # its failure is known now
        if self.failure is not None:
            raise self.failure
        return self.result

    def __bool__(self) -> bool:
        """True, as any object; a greenlet's own truth is whether it has started and not ended."""
        return True

    def __del__(self) -> None:
        """A failure that nobody has joined to see is told of; not lost, as by `threading` and asyncio."""
        error, server = self.failure, getattr(self.group, "server", None)
        if isinstance(error, Exception) and server is not None:
            logs.emit(server, HookFailed("a spawned green thread", error))

    def __await__(self) -> Generator[Any, None, None]:
        """Wait, in a task, until this one has ended."""
        while self.job is not None:
            waiter = FutureWaiter(self.hub.loop)
            self._joiners = (*self._joiners, waiter)
            yield from waiter.future


class Expired(BaseException):
    """The time of a `green.timeout` block is over; no `Exception`, so that no block within it takes it for its own."""

    def __init__(self, depth: int) -> None:
        super().__init__("timed out")
        self.depth = depth
        """How many blocks there are around it."""


def _without_its_frame(error: BaseException) -> BaseException:
    """Its traceback less the frame of `_run_job`, which would keep the thread alive, and silent."""
    trace = error.__traceback__
    return error.with_traceback(trace and trace.tb_next)


def _rank(interruption: BaseException) -> float:
    """The lower, the greater."""
    if isinstance(interruption, GreenletExit):
        return -1
    return interruption.depth if isinstance(interruption, Expired) else float("inf")


def current() -> GreenThread:
    """The green thread that this is called in; `RuntimeError` anywhere else."""
    thread = getcurrent()
    if type(thread) is not GreenThread:
        raise RuntimeError("this is no green thread: call it from a handler of a green server")
    return thread

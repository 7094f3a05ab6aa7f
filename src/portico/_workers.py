"""Threads that serve one request after the other (`reuse_threads`).

How a request runs in one is `threads`' business.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from random import uniform
from weakref import WeakSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeAlias

    Job: TypeAlias = Callable[[], object]

__all__ = ["Workers"]

# Of requests_per_thread, taken off at random, so that not all threads end at once.
_JITTER: Final = 0.1


# Whose idle threads the interpreter must not wait for when it exits. Of the process, as its exit is.
_live: Final[WeakSet[Workers]] = WeakSet()


def _let_go() -> None:
    for workers in list(_live):
        workers.close(wait=False)


if hasattr(threading, "_register_atexit"):  # what `concurrent.futures` uses: `atexit` runs when all threads have ended
    threading._register_atexit(_let_go)


class Workers:
    """The re-used threads of one server. Jobs come from its loop's thread; one that finds nobody waiting has a new
    thread.

    A worker that nobody needs for `thread_idle_timeout` seconds, or that has done its share, ends.
    """

    def __init__(self, server: Any, run: Callable[[Callable[[], None]], None]) -> None:
        self._server = server
        self._run = run
        """Runs the whole of a worker: hooks before and after."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.RLock()  # re-entrant: a signal handler may close the server in the middle of it
        self._idle = 0
        self.over = False
        self.threads: set[threading.Thread] = set()
        self._working: set[threading.Thread] = set()
        self._ending: deque[threading.Thread] = deque()
        _live.add(self)

    @property
    def busy(self) -> int:
        """Workers that run a request, or are about to begin or to end."""
        return len(self.threads) - self._idle

    def running(self) -> set[threading.Thread]:
        """Workers that run a request."""
        return self._working.copy()

    def submit(self, job: Job) -> None:
        """Have a worker do it. Raises `RuntimeError` if one is needed and cannot be started."""
        with self._lock:
            waits = self._idle > 0
            self._idle -= waits
        if waits:
            self._jobs.put(job)
            return
        first = [job]  # to be taken out: a thread keeps what it was started with
        while self._ending and not self._ending[0].is_alive():
            self._ending.popleft()
        thread = threading.Thread(
            target=self._run, args=(lambda: self._work(first),), daemon=self._server.daemon_threads
        )
        thread.name = thread.name.replace("_portico_run_worker", "process_request_thread")
        self.threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self.threads.discard(thread)
            raise

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()
        share = self._server.requests_per_thread
        left = None if share is None else max(1, round(share * uniform(1 - _JITTER, 1)))
        me = threading.current_thread()
        while job is not None:
            self._working.add(me)
            try:
                job()
            finally:
                self._working.discard(me)
            job = None  # what it holds must not wait for the next one
            if left is not None:
                left -= 1
                if not left:
                    return
            job = self._next()

    def _next(self) -> Job | None:
        with self._lock:
            if self.over or not threading.main_thread().is_alive():
                return None
            self._idle += 1
        self._server._portico_connections.make_room(self._server)
        try:
            return self._jobs.get(timeout=self._server.thread_idle_timeout)
        except Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
            return self._jobs.get()  # whoever has counted on this one is about to put it in

    def ended(self) -> None:
        """Called by a worker, as the last thing it does."""
        self._ending.append(threading.current_thread())
        self.threads.discard(threading.current_thread())

    def close(self, *, wait: bool) -> None:
        """Let those go that wait for a request, and `wait` until they have. Not for one that a request holds."""
        with self._lock:
            self.over = True
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._jobs.put(None)
        if wait:
            for thread in self.threads.copy() | set(self._ending):
                if thread is not threading.current_thread() and thread not in self._working:
                    thread.join()

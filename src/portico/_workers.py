"""Threads that serve one request after the other (`reuse_threads`).

How a request runs in one is `threads`' business.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from random import uniform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeAlias

    Job: TypeAlias = Callable[[], object]

__all__ = ["Workers"]

# Of requests_per_thread, taken off at random, so that not all threads end at once.
_JITTER: Final = 0.1


class Workers:
    """The re-used threads of one server. Jobs come from its loop's thread; one that finds nobody waiting has a new
    thread.

    A worker that nobody needs for `thread_idle_timeout` seconds, or that has done its share, ends.
    """

    def __init__(self, server: Any, run: Callable[[Callable[[], None]], None]) -> None:
        self._server = server
        self.most: int | None = None
        """Beyond so many workers jobs wait for one that is done."""
        self.waiting = 0
        """Jobs that no worker has been counted on for."""
        self._run = run
        """Runs the whole of a worker: hooks before and after."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.RLock()  # re-entrant: a signal handler may close the server in the middle of it
        self._idle = 0
        self.over = False
        self.threads: set[threading.Thread] = set()
        self._leaving = 0
        """How many of them take no more jobs."""
        self._working: set[threading.Thread] = set()
        self._ending: deque[threading.Thread] = deque()

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
            if not waits and self.most is not None and len(self.threads) >= self.most:
                self.waiting += 1
                waits = True
        if waits:
            self._jobs.put(job)
            return
        self._start(job)

    def _start(self, job: Job) -> None:
        first = [job]  # to be taken out: a thread keeps what it was started with
        with self._lock:
            while self._ending and not self._ending[0].is_alive():
                self._ending.popleft()
        thread = threading.Thread(
            target=self._run, args=(lambda: self._work(first),), daemon=self._server.daemon_threads
        )
        thread.name = thread.name.replace("_portico_run_worker", "process_request_thread")
        self.threads.add(thread)
        self._working.add(thread)  # here, so that a drain never finds nobody between one that ends and its successor
        try:
            thread.start()
        except BaseException:
            self.threads.discard(thread)
            self._working.discard(thread)
            raise

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()
        share = self._server.requests_per_thread
        left = None if share is None else max(1, round(share * uniform(1 - _JITTER, 1)))
        me = threading.current_thread()
        try:
            while job is not None:
                job()
                job = None  # what it holds must not wait for the next one
                if left is not None:
                    left -= 1
                    if not left:
                        return
                job = self._next(me)
        finally:
            self._hand_on()
            self._working.discard(me)

    def _hand_on(self) -> None:
        """A worker ends. Others do not know of what waits for it: a new one has to do that."""
        with self._lock:
            self._leaving += 1
            if not self.waiting or self.over or len(self.threads) - self._leaving >= (self.most or 0):
                return
            self.waiting -= 1
        job: Any = self._jobs.get()
        try:
            self._start(job)
        except RuntimeError:  # no thread to be had: it waits for the next one that is done
            with self._lock:
                self.waiting += 1
            self._jobs.put(job)

    def _next(self, me: threading.Thread) -> Job | None:
        with self._lock:
            if self.over or (self.most is not None and len(self.threads) - self._leaving > self.most):
                return None
            if self.waiting:
                self.waiting -= 1
                return self._jobs.get()
            self._idle += 1
            self._working.discard(me)
        job = self._wait()
        self._working.add(me)
        return job

    def _wait(self) -> Job | None:
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
        with self._lock:
            self._leaving -= 1
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

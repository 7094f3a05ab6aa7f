"""A thread per request. Says only how a request runs; works through the hooks alone, over any `socketserver` server."""

from __future__ import annotations

import threading
from collections import deque

from . import logs, settings
from ._serving import end_request, request_context
from .errors import Overloaded
from .lifecycle import HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ._base import BaseServer

    _Base = BaseServer[Any]
else:
    _Base = object

__all__ = ["ThreadingMixIn"]


class _Threads:
    """The request threads that `server_close` waits for.

    A thread reports its own end, and the next one to be added clears away what has ended: O(1) a request, where the
    stdlib looks through all of them. Not removed by the thread itself, which at that moment is still running.
    """

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()
        self._ended: deque[threading.Thread] = deque()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(self._running.copy())

    def append(self, thread: threading.Thread) -> None:
        while self._ended:
            self._running.discard(self._ended.popleft())
        self._running.add(thread)

    def discard(self, thread: threading.Thread) -> None:
        """Forget a thread that never started."""
        self._running.discard(thread)

    def ended(self, thread: threading.Thread) -> None:
        """Called by the thread itself, as the last thing it does."""
        self._ended.append(thread)

    def join(self) -> None:
        """Wait for all of them; a request that closes its own server does not wait for itself."""
        for thread in self:
            if thread is not threading.current_thread():
                thread.join()
                self._running.discard(thread)


class _NoThreads:
    """Stands in where no thread is waited for: with `daemon_threads`, or without `block_on_close`."""

    def __len__(self) -> int:
        return 0

    def append(self, thread: threading.Thread) -> None:
        return

    def discard(self, thread: threading.Thread) -> None:
        return

    def ended(self, thread: threading.Thread) -> None:
        return

    def join(self) -> None:
        return


class _RequestThread(threading.Thread):
    """Runs one request in the context it was given, and tells its server when it is done, whatever happens."""

    def __init__(self, server: ThreadingMixIn, threads: _Threads | _NoThreads, request: Any, address: Any) -> None:
        # The target gives the thread the name that socketserver's have: "Thread-1 (process_request_thread)".
        super().__init__(target=server.process_request_thread, args=(request, address), daemon=server.daemon_threads)
        self._server = server
        self._threads = threads
        self._run_in = request_context(server).run

    def run(self) -> None:
        try:
            self._run_in(super().run)
        finally:
            try:
                self._run_in(self._server.thread_finished)
            except Exception as error:
                logs.emit(self._server, HookFailed("thread_finished", error))
            self._threads.ended(self)


class ThreadingMixIn(_Base):
    """Mix-in that runs every request in a thread of its own: `class Server(ThreadingMixIn, TCPServer): pass`.

    Handlers see the context variables of whoever started the server.
    """

    daemon_threads: bool = settings.DAEMON_THREADS.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default

    _threads: _Threads | _NoThreads = _NoThreads()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request. Raises `Overloaded` if there is none to be had."""
        if self.block_on_close and not self.daemon_threads:
            threads = vars(self).setdefault("_threads", _Threads())
        else:
            threads = self._threads if self.block_on_close else _NoThreads()
        thread = _RequestThread(self, threads, request, client_address)
        if not thread.daemon:
            threads.append(thread)
        try:
            thread.start()
        except RuntimeError as error:
            threads.discard(thread)
            raise Overloaded(f"no thread for a request ({error})") from error

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the thread runs: the request, its errors and its end."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            end_request(self, request)

    def thread_finished(self) -> None:
        """Called once in every request's thread, last of all, even after an error. To override.

        The place to give back what belongs to the thread, such as a database connection.
        """

    def server_close(self) -> None:
        """Close the server, then wait for the requests that still run (`block_on_close`), without a deadline."""
        super().server_close()
        self._threads.join()

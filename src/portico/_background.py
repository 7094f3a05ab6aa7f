"""A server in a thread of its own, for as long as a `with` block lasts."""

from __future__ import annotations

import contextvars
import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic, Protocol

    from typing_extensions import TypeVar

    from .lifecycle import Lifecycle

    class Served(Protocol):
        """The server, as far as it matters here."""

        @property
        def _portico_lifecycle(self) -> Lifecycle: ...
        def serve_forever(self, poll_interval: float | None = ...) -> None: ...
        def shutdown(self) -> None: ...
        def server_close(self) -> None: ...

        drain_timeout: float | None

        def _portico_ask_to_end(self) -> threading.Event | None: ...
        def _portico_say_loop_runs(self, seconds: float) -> None: ...

    ServedT = TypeVar("ServedT", bound=Served)
else:
    from ._generics import Generic

    ServedT = None

__all__ = ["Background"]

# Seconds that a loop has to end which is in nobody's handler.
_A_MOMENT = 0.1
# Seconds that its thread has to end after the server has been closed; more, if `drain_timeout` is not over then.
_LOOP_ENDS = 5.0


class Background(Generic[ServedT]):
    """What `server.background()` returns: a context manager that serves inside its block.

    Entering returns the server once its loop runs, or raises what kept it from running. Leaving shuts it down, and
    closes the server, which waits for the requests that still run as `server_close()` does, and cuts them in time. A
    loop that goes on even then, in a handler that nothing can end, is told of and left behind. An exception that ends
    the loop closes the server at once and is raised again on leaving; if the block itself has failed, a note on its
    exception.
    """

    def __init__(self, server: ServedT, poll_interval: float | None) -> None:
        self._server = server
        self._poll_interval = poll_interval
        self._ready = threading.Event()
        self._begun = False
        self._error: BaseException | None = None
        # The values of the starter's context variables go along, as they would in a call.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._serve,), name=f"serving {type(server).__name__}")

    def __enter__(self) -> ServedT:
        self._server._portico_lifecycle.on_start = self._begin
        self._thread.start()
        self._ready.wait()
        if not self._begun:
            self._thread.join()
            assert self._error is not None
            raise self._error
        return self._server

    def _begin(self) -> None:
        if threading.current_thread() is self._thread:  # and not somebody else's loop, a moment before ours
            self._begun = True
            self._ready.set()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        run = self._server._portico_ask_to_end()
        began = monotonic()
        # One that does not end is in a handler, for which `shutdown()` would wait however long it is; closing does not.
        held = run is not None and not run.wait(_A_MOMENT)
        try:
            if not held:
                self._server.shutdown()  # which waits for nothing now, but may be somebody's own
        finally:
            self._server.server_close()
            if self._has_ended(began) and held:
                self._server.shutdown()
        if self._error is not None and error is None:
            raise self._error
        if self._error is not None and isinstance(error, BaseException):
            error.add_note(f"before that, serving had ended with {self._error!r}")

    def _has_ended(self, began: float) -> bool:
        """Wait for the loop's thread. Last: a loop that has requests of its own may end only now.

        They have `drain_timeout`, like those of ours, also where a `process_request` of somebody's own runs them.
        """
        patience = self._server.drain_timeout
        self._thread.join(None if patience is None else max(began + patience - monotonic(), _LOOP_ENDS))
        if self._thread.is_alive():
            self._server._portico_say_loop_runs(monotonic() - began)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            self._server.serve_forever(self._poll_interval)
        except BaseException as error:
            self._error = error
            if not self._begun:  # it is closed, or somebody else's loop runs: not ours to end
                return
            self._server.server_close()  # else clients would wait for ever in the backlog of a loop that is gone
        finally:
            self._ready.set()

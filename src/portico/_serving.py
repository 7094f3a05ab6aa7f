"""Serving: a server's side of the loop. How it begins, takes requests one by one, and comes to its end.

What `_acceptor` and the loops ask of a server lives here, apart from the server itself, because the ways to run that
bring a loop of their own (`green`, `aio`) also work over the standard library's servers: they mix this in, and such a
server then begins, stops and ends as ours do. It leans on nothing but the hooks and the two private names that
`socketserver` keeps its state in. What the hooks do by default is `_base`'s.
"""

from __future__ import annotations

import socket as _socket
from _weakref import ref

from . import _handler_kinds, _sockets, limits, logs, settings
from ._acceptor import Acceptor, serve
from ._loop import Loop, selector_class
from ._one_request import Waits
from ._openable import Openable
from ._own import Own
from ._requests import end_request, note_failure, request_failed
from .errors import Overloaded
from .lifecycle import LOOP_ENDED, EndReason, Lifecycle, State, StateChanged, StopFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self

    from ._background import Background

__all__ = ["Serving", "run_together", "serve_together", "teller"]

_MANY = 1 << 30
_REFUSALS = {EndReason.REFUSED: "verify_request", EndReason.OVERLOADED: "overloaded"}


class Serving(Openable):
    """The part of a server that a loop sees. Mixed into `BaseServer` and into the ways to run that bring a loop."""

    stdlib_compat: bool = settings.STDLIB_COMPAT.default
    accept_batch: int = limits.ACCEPT_BATCH.default
    accept_pause: float = settings.ACCEPT_PAUSE.default
    accept_pause_max: float = settings.ACCEPT_PAUSE_MAX.default

    _portico_ticks = False
    """Whether the loop has to call `service_actions`, after every turn and every `poll_interval` seconds."""
    _portico_may_sleep = True
    """Whether the loop may wait for long; if not, it calls `_prepare_to_sleep` before it does."""
    _portico_serve_in: Callable[[list[Any], float | None], None] | None = None
    """The loop that this way to run needs, as a function that serves; None where a blocking one will do."""
    _portico_handlers_are_async = False
    _portico_taken = 0
    """How many requests `get_request` has returned."""
    _portico_enter: Callable[[Any, Any, Any], bool] | None = None
    """Asked before a request counts, if anybody has to be: every connection's, a datagram's where there are rules."""
    _portico_converts = False
    """Whether `accept` is somebody else's, so that connections have to be made to tell of their closing."""
    _portico_runs_inline = True
    """Whether a request has been run when `process_request` returns, in the thread that called it."""
    _portico_left_over: Any = False
    """Whether requests have been taken from the socket that have not been returned by `get_request` yet."""
    _portico_queue: Any = None
    """Those that wait for a handler, where they do that."""
    _portico_batches: Any = None
    """Whoever has to know when the loop begins to take requests, and when it looks up again, if anybody has."""
    _portico_waits: Waits = Own(Waits)  # type: ignore[assignment]
    """Those that wait in `handle_request`."""
    _BaseServer__shutdown_request = StopFlag()

    if TYPE_CHECKING:
        RequestHandlerClass: Callable[[Any, Any, Any], Any]
        socket: _socket.socket
        socket_type: int
        get_request: Callable[[], tuple[Any, Any]]
        verify_request: Callable[[Any, Any], bool]
        process_request: Callable[[Any, Any], None]
        finish_request: Callable[[Any, Any], None]
        handle_error: Callable[[Any, Any], None]
        shutdown_request: Callable[[Any], None]
        close_request: Callable[[Any], None]
        fileno: Callable[[], int]
        server_close: Callable[[], None]

    # -- for the caller

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve until `shutdown` or `server_close`. Blocks; may be called again afterwards.

        An idle server sleeps. Only where `service_actions` is overridden it is called every `poll_interval` seconds,
        and after every request. Of a hook's or handler's exceptions only those that are no `Exception` (Ctrl-C,
        SystemExit) end the loop. Raises `RuntimeError` if it runs already, `ValueError` if the socket is closed.
        """
        serve_together([self], poll_interval)

    def run(self) -> int:
        """Serve, in the main thread, until SIGINT or SIGTERM, then drain. Returns the exit status for the process.

        That is 0 after a clean drain and 3 if connections had to be cut. After a signal, `grace` seconds long clients
        are still accepted; a second signal cuts at once. Handlers for both signals are put back as they were. What is
        stuck even then, in a thread that nothing can end, ends with the process: status 3.
        """
        from ._running import StopsOnSignals  # only now: `import portico` is to stay cheap

        with StopsOnSignals([self]) as signals:
            signals.serve(lambda _: self.serve_forever())
        return signals.status

    def shutdown(self) -> None:
        """End the loop, and wait until it has ended, unless this is the loop's own thread.

        From any thread, from a handler or a signal handler, and again. Before the first `serve_forever` it makes that
        one return at once; after a loop has ended it changes nothing. The socket stays open (the stdlib's rule): new
        clients wait in the backlog until `server_close`.
        """
        run = self._portico_ask_to_end()
        if run is not None:
            run.wait()

    def background(self, poll_interval: float | None = 0.5) -> Background[Self]:
        """A context manager that serves in a thread: `with server.background(): ...`.

        The server is ready on entry and closed on exit; no thread is left (see `Background`).
        """
        from ._background import Background  # only now: `import portico` is to stay cheap

        return Background(self, poll_interval)

    def ready_to_accept(self) -> bool:
        """Whether a request may be taken now; looked at every turn. While not, clients wait in the backlog."""
        return True

    # -- what the loop asks and tells

    _portico_emit = logs.emit

    def _portico_check_handler(self, handler: Any) -> None:
        _handler_kinds.check(handler, type(self).__name__, awaited=self._portico_handlers_are_async)

    def _handle_request_noblock(self) -> bool | Exception | None:
        """Take one request and run it. True if there was one, else the error that says why not."""
        if self._portico_loop is None:  # a loop of a program's own, or the stdlib's
            self._portico_prepare_once()
        try:
            request, client_address = self.get_request()
        except OSError as error:
            return error
        self._portico_taken += 1
        enter = self._portico_enter
        if enter is not None and self._portico_converts:
            request = self._portico_converted(request)
        return self._portico_run(request, client_address, enter)

    def _portico_run(self, request: Any, client_address: Any, enter: Any) -> bool | Exception:
        """Let a request in, if it has to be asked who may `enter`, and run it, whatever its hooks do."""
        try:
            if enter is not None:
                if not enter(self, request, client_address):
                    return True
                if self._portico_lobby is not None and self._portico_lobby.receive(request):
                    return True
            if self._portico_opens and self._portico_awaits_header(request):  # then it is verified when that has come
                self.process_request(request, client_address)
            elif self.verify_request(request, client_address):
                self.process_request(request, client_address)
                if self._portico_connections.has_foreign and self._portico_has_connections:
                    self._portico_connections.end_foreign(self, request)
            else:
                self._portico_refuse(request, client_address, EndReason.REFUSED)
        except Overloaded as error:
            self._portico_refuse(request, client_address, EndReason.OVERLOADED)
            return error
        except Exception:
            try:
                request_failed(self, request, client_address)
            finally:
                end_request(self, request)
        except BaseException:
            note_failure(self, request)
            end_request(self, request)
            raise
        return True

    def _portico_open_lobby(self, loop: Any) -> None:
        """Have the loop open connections, as far as that is not left to what runs them."""
        if self._portico_opens and self._portico_blocks and self._portico_lobby is None:
            from ._lobby import Lobby  # only where it is wanted

            secures = self._portico_runs_inline and self._portico_keyring is not None and not self.starttls
            self._portico_lobby = Lobby(self, loop, secures=secures)

    def _portico_leave_lobby(self, request: Any, connection: Any, *, is_open: bool) -> None:
        """What the loop had to do is done, or it has come to an end."""
        if is_open:
            self._portico_run(request, connection.client_address, None)
        else:
            end_request(self, request)

    def _portico_taker(self) -> Callable[[], bool | Exception | None]:
        """What the loop calls for each request: this, or something shorter that comes to the same."""
        return self._handle_request_noblock

    def _portico_refuse(self, request: Any, client_address: Any, reason: EndReason) -> None:
        """End a request that was let in, and then could not or should not be run."""
        connections = self._portico_connections
        connections.refuse(self, _REFUSALS[reason], client_address)
        connection = connections.of(request)
        if connection is not None:
            connection.failed(reason)
        end_request(self, request, ran=False)

    def _portico_has_place(self, request: Any, client_address: Any) -> bool:
        """Whether one more datagram may be in flight; else it is dropped, and counted."""
        if self._portico_in_flight() < getattr(self, "max_datagrams", _MANY):
            return True
        self._portico_connections.refuse(self, "queue_full", client_address)
        self._portico_connections.turn_away(self, request, client_address, "queue_full")
        return False

    def _portico_overridden(self, name: str) -> bool:
        """Whether a hook is somebody else's: neither Portico's own nor the standard library's."""
        return name in vars(self) or not _handler_kinds.is_own(getattr(getattr(type(self), name), "__module__", None))

    def _portico_batch_size(self) -> int:
        """Requests per wake-up. One, as in the stdlib, wherever taking one more might block or skip a hook."""
        sock = getattr(self, "socket", None)
        blocks = not isinstance(sock, _socket.socket) or bool(sock.gettimeout())
        blocks = blocks or not _sockets.can_take_without_waiting(self.socket_type)
        foreign = self._portico_overridden("get_request") or self._portico_overridden("service_actions")
        # The stdlib's own datagram servers know no way to receive without waiting.
        blocks = blocks or (self.socket_type == _socket.SOCK_DGRAM and not hasattr(self, "_portico_receive_flags"))
        return 1 if blocks or foreign else self.accept_batch

    def _portico_wait_to_take(self, wait: bool) -> None:
        """Whether `get_request` may block. Not once a request was seen: it can vanish before it is taken."""
        sock = getattr(self, "socket", None)
        if isinstance(sock, _socket.socket) and _sockets.is_listening(sock):
            (_sockets.set_blocking_again if wait else _sockets.make_nonblocking)(sock)

    def _portico_has_gate(self) -> bool:
        """Whether `ready_to_accept` says anything, so that it must be asked before each request.

        With sessions whoever reads the socket asks it, for those who are new.
        """
        return not self._portico_has_sessions and self._portico_has_own_gate()

    def _portico_has_own_gate(self) -> bool:
        return "ready_to_accept" in vars(self) or type(self).ready_to_accept is not Serving.ready_to_accept

    def _portico_can_run_one_more(self) -> bool:
        """Whether there is somebody to run a further session, which cannot wait for that."""
        return self.ready_to_accept()

    def _portico_prepare_to_sleep(self) -> None:
        self._portico_may_sleep = True

    def _portico_ask_to_end(self) -> Any:
        """Have the loop end; what tells when it has, if that is not over and can be waited for here."""
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            self._portico_waits.end()
            if lifecycle.is_over:
                return None
            self._portico_stop()
            return lifecycle.run if lifecycle.runs_in_another_thread else None

    def _portico_wake(self) -> None:
        super()._portico_wake()
        self._portico_waits.wake()

    def _portico_stop(self) -> None:
        self._BaseServer__shutdown_request = True

    @property
    def _portico_lifecycle(self) -> Lifecycle:
        """The state, in place of the plain event that a server of the standard library has made for itself."""
        state = vars(self).get(LOOP_ENDED)
        if not isinstance(state, Lifecycle):
            # By setdefault, so that of two threads that come here at once both get the same.
            own = vars(self).setdefault("_portico_own_lifecycle", Lifecycle(teller(self)))
            state = vars(self)[LOOP_ENDED] = own
        return state

    def _portico_serving_begins(self, loop: Any) -> None:
        self._portico_check_handler(getattr(self, "RequestHandlerClass", None))
        self._portico_check_socket()
        self._portico_prepare()
        self._portico_open_lobby(loop)
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            if lifecycle.state is State.CLOSED:  # and has another socket: what ended the first is over
                self._portico_check_socket()  # or it has been closed a moment ago
                self._portico_drain = None
            lifecycle.begin()
        lifecycle.get_ready()
        self._portico_loop = loop
        self._portico_waits.begin_to_take(self, loop)
        sock = getattr(self, "socket", None)
        # A socket that somebody else made does not tell when it is closed: that has to be looked for.
        self._portico_ticks = self._portico_overridden("service_actions")
        if isinstance(sock, _sockets.ServerSocket):
            sock.on_close, sock.on_detach = self._portico_stop, self._portico_look_often
        else:
            self._portico_ticks = True

    def _portico_check_socket(self) -> None:
        if not self._BaseServer__shutdown_request and self.fileno() < 0:
            raise ValueError(f"cannot serve: the socket of this {type(self).__name__} is closed")

    def _portico_prepare(self) -> None:
        """Read the limits, perhaps set since the constructor ran, and note whom to ask before a request is run."""
        settings.check(self)
        self._portico_says_goodbye = getattr(getattr(self, "RequestHandlerClass", None), "goodbye", None) is not None
        self._portico_prepare_openings()
        self._portico_refresh()
        connections = self._portico_connections
        if self._portico_has_connections:
            self._portico_enter = connections.enter
            ours = isinstance(getattr(self, "socket", None), _sockets.ServerSocket)
            self._portico_converts = not (ours or self._portico_overridden("get_request"))
            self._portico_converts |= self._portico_keyring is not None
        else:
            self._portico_enter = connections.enter_datagram if self._portico_limited else None
        self._portico_prepared_for = getattr(self, "socket", None)

    def _portico_look_often(self) -> None:
        """The listener's descriptor has gone to another object, as with TLS: one that will not tell of its closing."""
        self._portico_ticks = True
        if self._portico_loop is not None:
            self._portico_loop.wake()

    def _portico_serving_ended(self, loop: Any) -> None:
        if self._portico_loop is not loop:
            return
        self._portico_loop, self._portico_prepared_for = None, False
        if self._portico_lobby is not None:
            self._portico_lobby.close()
            self._portico_lobby = None
        self._portico_waits.end_taking(self, loop)
        sock = getattr(self, "socket", None)
        if isinstance(sock, _sockets.ServerSocket):
            sock.on_close, sock.on_detach = self._portico_waits.end, None
        lifecycle = self._portico_lifecycle
        with lifecycle.lock:
            self._BaseServer__shutdown_request = self._portico_suspended = False
            lifecycle.let_go()
        lifecycle.tell()


def teller(server: Any) -> Callable[[State, State], None]:
    """What a server's lifecycle tells its changes to. It does not keep the server alive.

    As of connections, only those are told who have asked, by overriding `handle_event`: a program whose log goes to
    this very server (`HTTPHandler`) would wait for an answer that a loop about to end does not give any more.
    """
    known = ref(server)

    def tell(before: State, after: State) -> None:
        found = known()
        if found is not None and hasattr(found, "handle_event") and found._portico_overridden("handle_event"):
            logs.emit(found, StateChanged(before, after))

    return tell


def serve_together(servers: Iterable[Serving], poll_interval: float | None = 0.5) -> None:
    """Serve several servers in this thread until each of them has been shut down or closed.

    `serve_forever` is this with one server. Green and async servers share one event loop this way. A handler that
    blocks holds up all of them, unless a mix-in runs it elsewhere. The loop itself starts no thread, so forking
    servers may share it safely.
    """
    every = list(servers)
    loops = [server._portico_serve_in for server in every if server._portico_serve_in is not None]
    (loops or [_serve_blocking])[0](every, poll_interval)


def run_together(servers: Iterable[Serving]) -> int:
    """`run()` for several servers: serve until SIGINT or SIGTERM, drain all of them, return the exit status."""
    from ._running import StopsOnSignals

    every = list(servers)
    with StopsOnSignals(every) as signals:
        signals.serve(serve_together)
    return signals.status


def _serve_blocking(servers: list[Any], poll_interval: float | None) -> None:
    with Loop(selector_class(), Serving._portico_system) as loop:
        try:
            for server in servers:
                loop.servers.append(server)
                server._portico_serving_begins(loop)
            serve(loop, [Acceptor(server, loop, poll_interval) for server in loop.servers])
        finally:
            for server in loop.servers:
                server._portico_serving_ended(loop)

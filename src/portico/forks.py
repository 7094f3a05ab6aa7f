"""A process per request. Says only how a request runs; works through the hooks alone, over any `socketserver` server.

Children are waited for one by one, by their own pid: those that the program started for itself are never touched.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from . import logs, settings
from ._children import ChildWatch, Served, close_kept
from ._forked_words import END, ENDED, ForkedWords
from ._openable import NOT_OPENED, UNOPENED
from ._own import Own
from ._serving import Serving
from .errors import Overloaded, is_disconnect
from .lifecycle import STOP_FLAG, EndReason, ForkedWithThreads, HookFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from ._connection import Connection
    from ._connections import Connections
    from ._drain import Drain
    from ._loop import Loop
    from ._session import PeerSession

__all__ = ["ForkingMixIn"]

_close: Final = os.close
_detach: Final = socket.SocketType.detach
# Seconds between two looks for a free child, where no loop of ours can wait for one.
_LOOK_AGAIN = 0.05
# Seconds that the loop has to end before its children are reaped from another thread.
_LOOP_ENDS = 1.0
_FAILED, _PEER_LEFT = 1, 3
# Numbers that no handler's own exit has, for connections that no handler has seen, or that it has closed.
_OWN: Final = dict(enumerate((*UNOPENED, EndReason.REFUSED, EndReason.CLOSED), 217))
_REASONS: Final = {0: EndReason.DONE, _FAILED: EndReason.FAILED, _PEER_LEFT: EndReason.PEER_LEFT, **_OWN}
_STATUSES: Final[dict[Any, int]] = {reason: status for status, reason in _REASONS.items()}


class ForkingMixIn(ForkedWords):
    """Mix-in that runs every request in a process of its own: `class Server(ForkingMixIn, TCPServer): pass`.

    With `max_children` of them running, clients wait in the backlog. Best served from the only thread of a process:
    what other threads have locked stays locked in a child, and a warning says so once.
    """

    timeout: float | None = 300
    active_children: set[int] | None = None
    max_children: int = settings.MAX_CHILDREN.default
    block_on_close: bool = settings.BLOCK_ON_CLOSE.default

    _portico_keeps = False
    """Whether the parent keeps its copy of a connection until the child has ended."""
    _portico_runs_inline = False
    _portico_waits_on_close = True
    _portico_served: Served = Own(Served)  # type: ignore[assignment]
    _portico_is_child = False
    _portico_child_watch: ChildWatch | None = None
    _portico_looked_for_threads = False
    _portico_warned_of_threads = False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child for the request. Raises `Overloaded` if there is none to be had."""
        if self.active_children is not None and len(self.active_children) >= self.max_children:
            self._portico_wait_for_room()
        if not self._portico_looked_for_threads:
            self._portico_look_for_threads()
        connection = self._portico_connections.of(request)
        if connection is not None and connection.opening is not None:
            self._portico_mark(connection)
        if self._portico_has_sessions:
            request.prepare()
        elif connection is not None:
            self._portico_share(connection)
        pid = self._portico_fork(connection)
        if pid == 0:
            self._portico_run_child(request, client_address, connection)
        if self.active_children is None:
            self.active_children = set()
        self.active_children.add(pid)
        self._portico_note_word(pid)
        self._portico_may_sleep = False
        if connection is not None:
            connection.runner = pid
            self._portico_served.connections[pid] = connection
            if self._portico_has_sessions:
                request.has_forked()
            elif connection.tally is not None or not self._portico_keeps:
                connection.goes_unseen(None if connection.tally is None else connection.shared)
            if self._portico_keeps:
                connection.kept = request
                if self._portico_says_goodbye:
                    connection.handler = self.RequestHandlerClass  # in place of the child's, which has one to be said
                return
        self.close_request(request)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended; with `blocking`, wait for all of them. Never anybody else's."""
        for pid in tuple(self.active_children or ()):
            self._portico_reap_child(pid, block=blocking)

    def ready_to_accept(self) -> bool:
        """Whether another child may be started (`max_children`)."""
        children = self.active_children
        if children is None or len(children) < self.max_children:
            return True
        self.collect_children()
        return len(children) < self.max_children

    def handle_timeout(self) -> None:
        """Reap, when `handle_request` has waited in vain."""
        self.collect_children()

    def service_actions(self) -> None:
        """Reap. Called by loops that do not see the children's ends themselves."""
        self.collect_children()

    def server_close(self) -> None:
        """Close the server, then wait for its children (`block_on_close`).

        They have `drain_timeout` seconds, those known to be idle none; then they are ended, by SIGTERM and SIGKILL.
        """
        super().server_close()
        if self._portico_is_child:  # which has closed its own copy: no more is its business
            return
        if self._portico_loop is not None and not self._portico_goes_on():
            # The loop reaps, too, and in its own thread: let it end first. Not by an override that closes as well.
            Serving.shutdown(self)
        self.collect_children()
        self._portico_end_requests(wait=self.block_on_close)
        drain = self._portico_drain
        waits = self.block_on_close and (drain is None or not (drain.report.stuck or drain.is_here))
        self.collect_children(blocking=waits)
        self._portico_end_watch()

    # -- in the parent

    def _portico_fork(self, connection: Connection | None) -> int:
        """Fork. Where a child is to hear of SIGTERM, that waits until it can (`_portico_hear_of_goodbye`)."""
        self._portico_ready_word()
        says_goodbye, pid = self._portico_says_goodbye, -1
        try:
            if says_goodbye:
                self._portico_system.hold_back(signal.SIGTERM, True)
            pid = self._portico_system.fork()
        except OSError as error:
            self._portico_take_back_word()
            if connection is not None:
                self._portico_unmark(connection)
                self._portico_unshare(connection)
            raise Overloaded(f"no process for a request ({error})") from error
        finally:
            if says_goodbye and pid:
                self._portico_system.hold_back(signal.SIGTERM, False)
        return pid

    def _portico_prepare_to_sleep(self) -> None:
        """Have the loop woken by children's ends. Not done at the fork: a busy server reaps without being woken."""
        self.collect_children()
        if self.active_children and not self._portico_watch(self.active_children):
            self._portico_ticks = True  # it will not see all of them end: let it look now and then
        self._portico_look_for_threads()
        super()._portico_prepare_to_sleep()

    def _portico_serving_begins(self, loop: Loop) -> None:
        super()._portico_serving_begins(loop)
        self._portico_somebody_goes_on()
        self._portico_may_sleep = not self.active_children  # an earlier loop may have left some

    def _portico_serving_ended(self, loop: Loop) -> None:
        try:
            if self._portico_loop is loop:
                self._portico_end_watch()
        finally:
            super()._portico_serving_ended(loop)  # whatever happens: `shutdown()` waits for it

    def _portico_watch(self, children: set[int]) -> bool:
        """Watch those children that are not watched yet; whether all of them are."""
        if self._portico_child_watch is None:
            self._portico_child_watch = ChildWatch(self._portico_loop, self._portico_system, self._portico_reap_child)
        unseen = [pid for pid in children if not self._portico_child_watch.add(pid)]
        return not unseen

    def _portico_end_watch(self) -> None:
        if self._portico_child_watch is not None:
            self._portico_child_watch.close()
            self._portico_child_watch = None

    def _portico_reap_child(self, pid: int, *, block: bool = False) -> None:
        status = self._portico_system.exit_status(pid, block=block)
        if status is None:
            return
        if self.active_children is not None:
            self.active_children.discard(pid)
        if self._portico_child_watch is not None:
            self._portico_child_watch.remove(pid)
        served = self._portico_served
        killed = status < 0 or (self._portico_is_program and status == ENDED)
        by_others = killed and pid not in served.terminated
        served.terminated.discard(pid)
        if self._portico_is_program:
            self._portico_words.free(pid)
        connection = served.connections.pop(pid, None)
        if by_others and self._portico_drain is not None:
            self._portico_drain.killed(connection or self._portico_connections.stand_in(self, pid))
        if connection is not None:
            self._portico_unmark(connection)
            self._portico_take_figures(connection)
            if connection.kept is not None:
                connection.settle()
                self.close_request(connection.kept)
            unknown = EndReason.KILLED if killed else EndReason.FAILED
            self._portico_connections.end(connection, _REASONS.get(status, unknown))
        elif not self._portico_has_connections:
            self._portico_connections.datagrams_failed += status not in (0, _PEER_LEFT)
            self._portico_connections.end_datagrams(self, 1)

    def _portico_wait_for_room(self) -> None:
        """Wait until a child may be started, where nobody asked `ready_to_accept` before taking the request.

        That is in `handle_request` and in the stdlib's loop; Portico's does not take what it cannot run. The wish to
        stop is looked at, so that `shutdown()` is not held up as by the stdlib's blocking wait.
        """
        while not self.ready_to_accept():
            if vars(self).get(STOP_FLAG):
                raise Overloaded(f"all {self.max_children} children are busy, and the server is stopping")
            self._portico_system.sleep(_LOOK_AGAIN)

    def _portico_look_for_threads(self) -> None:
        """At the first fork, and whenever the loop is idle: to look at every fork would cost 50 pages."""
        self._portico_looked_for_threads = True
        if self._portico_drain is not None:  # it may have a thread, which is no news to anybody
            return
        others = self._portico_system.threads() - 1
        if others > 0 and not self._portico_warned_of_threads:
            self._portico_warned_of_threads = True
            logs.emit(self, ForkedWithThreads(others))

    # -- limits and the end

    def _portico_refresh(self) -> None:
        super()._portico_refresh()
        # Only then: a connection is not closed before the last copy is, and its child may want to close it earlier.
        self._portico_says_goodbye = getattr(self.RequestHandlerClass, "goodbye", None) is not None
        watched = self.access_log is not None or self._portico_timers is not None
        watched |= self.max_handshakes is not None  # to know who is silent
        keeps = watched or self._portico_says_goodbye or self._portico_is_program
        self._portico_keeps = keeps or self._portico_has_sessions

    def _portico_make_timers(self, found: Any, connections: Connections) -> Any:
        """The loop looks itself: a process that forks had better have no other thread."""
        from ._timekeeper import LoopTimers

        timers = LoopTimers(found, connections)
        self._portico_look = timers.keeper.look
        return timers

    def _portico_begin_drain(self, timeout: float | None, *, grace: float = 0.0) -> tuple[Drain, bool]:
        if self._portico_is_child:
            raise RuntimeError("a request's own process cannot drain the server, which is its parent's")
        self._portico_everybody_ends()
        return super()._portico_begin_drain(timeout, grace=grace)

    def _portico_make_session(self, address: Any, payload: bytes) -> PeerSession:
        from ._forked_session import ForkedSession  # only where they are wanted

        return ForkedSession(self, address, payload)

    def _portico_runners(self) -> list[Any]:
        return list(self.active_children or ())

    def _portico_in_flight(self) -> int:
        return len(self.active_children or ())

    def _portico_reap(self) -> None:
        if not self._portico_lifecycle.runs_in_another_thread:
            self.collect_children()

    def _portico_end_listener(self) -> None:
        super()._portico_end_listener()
        if self._portico_lifecycle.runs_in_another_thread:
            self._portico_lifecycle.run.wait(_LOOP_ENDS)  # which reaps, too

    def _portico_cut(self, connection: Connection, reason: EndReason, *, again: bool) -> None:
        """Shut the connection down; at a drain's deadline end the child as well, by SIGTERM, the second time SIGKILL.

        A connection of which only the child has a socket cannot be ended but by SIGTERM.
        """
        super()._portico_cut(connection, reason, again=again)
        pid = connection.runner
        is_last = reason is EndReason.CUT
        if not (is_last or connection.current_socket() is None) or pid not in (self.active_children or ()):
            return
        told = is_last and pid in self._portico_served.terminated
        self._portico_served.terminated.add(pid)
        self._portico_signal(pid, signal.SIGKILL if told else signal.SIGTERM, END)

    # -- in the child

    def _portico_run_child(self, request: Any, client_address: Any, connection: Connection | None) -> NoReturn:
        """Close what is the parent's, run the request and end the process: status 0, or 1 after any exception.

        A child that kept a listener would hold the port, and the clients in its backlog, after the parent has ended. A
        datagram server's socket stays: it is part of the request. One function, few objects, and `detach` the C type's
        own: each page that a child writes to is a fault (measured: spread over more functions, 15 of 265 more).
        """
        status = _FAILED
        self._portico_is_child = True
        self._portico_connections.only = connection
        try:
            if connection is not None and connection.key is None:
                self._portico_count_in_child(connection)
                if self._portico_says_goodbye:
                    self._portico_hear_of_goodbye()
            stays = request
            if type(request) is tuple:
                stays = request[-1]
                if hasattr(stays, "arrived"):
                    stays.arrived.clear()  # the other ones are the parent's
            elif self._portico_has_sessions:
                stays = self.socket
                request.is_childs()
            compat = getattr(self, "stdlib_compat", False)
            loop: Loop | None = getattr(self, "_portico_loop", None)
            for server in (self,) if loop is None else loop.servers:
                if getattr(server, "_portico_keeps", False) or server._portico_lobby is not None:
                    close_kept(server)
                try:
                    if not compat and server.socket is not stays:
                        _close(_detach(server.socket))
                except (AttributeError, TypeError, OSError):  # no socket, or closed already
                    continue
            if self._portico_opens:
                client_address = self._portico_open_request(request, client_address, connection)
            if client_address is not NOT_OPENED:
                self.finish_request(request, client_address)
                status = 0
        except SystemExit as error:
            status = _FAILED if error.code else 0
        except Exception:
            status = _PEER_LEFT if is_disconnect(sys.exception(), request) else _FAILED
            self.handle_error(request, client_address)
        finally:
            if connection is not None:
                self._portico_leave_figures(connection)
            try:
                self.shutdown_request(request)
            except Exception as error:
                status = status or _FAILED
                logs.emit(self, HookFailed("shutdown_request", error))
            finally:
                status = _STATUSES.get(getattr(connection, "reason", None), status)
                self._portico_system.exit_at_once(status)

    def _portico_note_handler(self, request: Any, handler: Any) -> None:
        super()._portico_note_handler(request, handler)
        if self._portico_is_child:  # from here on it can say goodbye
            self._portico_system.hold_back(signal.SIGTERM, False)

"""A session whose calls park the green thread that makes them. All else about sessions is `_session`'s."""

from __future__ import annotations

from greenlet import getcurrent

from ._hub import GreenThread
from ._session import Session

__all__ = ["GreenSession"]


class GreenSession(Session):
    """A `Session` for green threads. Outside of them, as in `green.in_thread`, its calls block the thread."""

    __slots__ = ()

    def _sleep(self, deadline: float | None) -> None:
        thread = getcurrent()
        if type(thread) is not GreenThread:
            super()._sleep(deadline)
            return
        wake = thread.switch
        self._sleepers.append(wake)
        try:
            if deadline is None:
                thread.park()
            else:
                thread.park_until(deadline)
        finally:
            self._leaves(wake)

    def _wake(self) -> None:
        """Not at once: who feeds it is the loop, which has others to feed first."""
        try:
            wake = self._sleepers.pop(0)
        except IndexError:  # he has left
            return
        self._server._portico_reception.wake_later(self._server, wake)

    def _wake_all_soon(self) -> None:
        if self._server._portico_requests_so_far:  # else nobody has come to wait
            self._server._portico_requests.soon(self._wake_all)

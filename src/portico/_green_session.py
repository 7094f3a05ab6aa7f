"""A session whose calls park the green thread that makes them. All else about sessions is `_session`'s."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from greenlet import getcurrent

from ._hub import GreenThread
from ._session import Session

if TYPE_CHECKING:
    from ._hub import Hub

__all__ = ["GreenSession"]


class GreenSession(Session):
    """A `Session` for green threads. Outside of them, as in `green.in_thread`, its calls block the thread."""

    __slots__ = ()

    def _sleep(self, deadline: float | None) -> None:
        thread = getcurrent()
        if type(thread) is not GreenThread:
            super()._sleep(deadline)
            return
        hub: Hub = thread.hub
        # Not at once: who feeds it is the loop, which has others to feed. A datagram more may come before it runs.
        wake = partial(hub.loop.call_soon, thread.switch)
        self._sleepers.append(wake)
        try:
            if deadline is None:
                thread.park()
            else:
                thread.park_until(deadline)
        finally:
            self._leaves(wake)

    def _wake_all_soon(self) -> None:
        if self._server._portico_requests_so_far:  # else nobody has come to wait
            self._server._portico_requests.soon(self._wake_all)

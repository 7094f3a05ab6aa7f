"""A session whose calls are awaited. All else about sessions is `_session`'s."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any

from ._readiness import FutureWaiter
from ._session import GONE, LONGEST, PeerSession, cut_off, put_into
from .errors import SessionEnded

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AsyncSession"]


class AsyncSession(PeerSession):
    """A session for coroutines: `async for datagram in self.request: ...`, `await self.request.recv()`.

    As `Session`, but timeouts are asyncio's: `async with asyncio.timeout(5): ...`.
    """

    __slots__ = ()

    async def recv(self, bufsize: int = LONGEST, flags: int = 0) -> bytes:
        """The next datagram, or as much of it as fits. Raises `SessionEnded`."""
        found = self._take(flags)
        while found is None:
            await self._sleep()
            found = self._take(flags)
        return cut_off(found, bufsize)

    async def recvfrom(self, bufsize: int = LONGEST, flags: int = 0) -> tuple[bytes, Any]:
        """The same, and the peer's address."""
        return await self.recv(bufsize, flags), self._address

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """The same into a buffer; returns how many bytes there are."""
        return put_into(await self.recv(LONGEST, flags), buffer, nbytes)

    async def send(self, data: Any, flags: int = 0) -> int:
        """Send the peer a datagram, from the address that he has asked. Returns its length."""
        out, now = self._out(), monotonic()
        try:
            return self._sent(await out.sendto(data, *((flags,) if flags else ()), self._address), now)
        except GONE as error:
            self.shutdown(socket.SHUT_RD)
            raise self._over() from error

    async def sendall(self, data: Any, flags: int = 0) -> None:
        """The same: a datagram goes whole or not at all."""
        await self.send(data, flags)

    async def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """Send a datagram to any address, through the server's socket."""
        out, now = self._out(), monotonic()
        *flags, address = flags_and_address
        return self._sent(await out.sendto(data, *flags, self._known(address)), now)

    def gettimeout(self) -> None:
        """None: calls wait for as long as they are awaited."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except SessionEnded:
            raise StopAsyncIteration from None

    async def _sleep(self) -> None:
        waiter = FutureWaiter(asyncio.get_running_loop())
        self._sleepers.append(waiter.switch)
        try:
            await waiter.future
        finally:
            self._leaves(waiter.switch)

    def _wake_all_soon(self) -> None:
        if self._server._portico_requests_so_far:  # else nobody has come to wait
            self._server._portico_requests.soon(self._wake_all)

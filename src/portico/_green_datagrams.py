"""What green datagram handlers answer through. The answers themselves, and their way, are `_datagrams`'."""

from __future__ import annotations

from threading import get_ident
from typing import Any

from ._datagrams import Answers, addressed, flush_answers, send_now
from ._green_sockets import GreenSocket
from ._parking import WRITE

__all__ = ["GreenDatagramSocket"]


class GreenDatagramSocket(GreenSocket):
    """What green datagram handlers answer through: from the address that was asked, with others that answer now."""

    __slots__ = ("answers",)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.answers: Answers | None = None

    def sendto(self, data: Any, address: Any, real_address: Any = None, /) -> int:
        answers = self.answers
        if answers is None:
            return super().sendto(data, address, *(() if real_address is None else (real_address,)))
        if real_address is None and answers.keep(data, address):
            return len(data)
        flags, address = (0, address) if real_address is None else (address, real_address)
        if answers.waiting and get_ident() == answers.thread:
            self._call(WRITE, flush_answers)  # in order
        route = answers.route(address)
        if route is None:
            return super().sendto(data, flags, address)
        return int(self._call(WRITE, send_now, data, flags, route, flags=flags))

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        if self.answers is not None and self.answers.waiting and get_ident() == self.answers.thread:
            self._call(WRITE, flush_answers)  # in order
        return super().sendmsg(buffers, *addressed(self.answers, ancdata, flags, address))

    def setsockopt(self, *arguments: Any) -> None:
        if self.answers is not None:
            self.answers.flush()  # what was sent before an option was set must not be changed by it
        super().setsockopt(*arguments)

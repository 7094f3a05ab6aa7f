"""What a server under test has told of its connections: the books that are compared with those of the clients."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

__all__ = ["Books", "Page", "who"]

Page: TypeAlias = dict[str, Any]
"""Of one connection: `who` its client is, how many `starts` and `ends` it had, its `reason` and `bytes`."""


def who(connection: Any) -> str:
    """Its client: the address without the port, or the name of a Unix socket."""
    address = connection.client_address
    return address.decode() if isinstance(address, bytes) else str(address[0]) if address else ""


class Books:
    """What a server has told of each of its connections, by the number that it has there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[int, Page] = {}
        self._now = self.most = 0
        """How many there are that have begun and not ended, and how many there ever were."""

    def starts(self, connection: Any) -> None:
        with self._lock:
            self._page(connection)["starts"] += 1
            self._now += 1
            self.most = max(self.most, self._now)

    def ends(self, connection: Any) -> None:
        with self._lock:
            page = self._page(connection)
            page["ends"] += 1
            page["bytes"] = connection.bytes_in, connection.bytes_out
            page["reason"] = connection.reason and connection.reason.value
            self._now -= 1

    def _page(self, connection: Any) -> Page:
        return self._pages.setdefault(connection.id, {"who": who(connection), "starts": 0, "ends": 0})

    def pages(self) -> list[Page]:
        with self._lock:
            return list(self._pages.values())

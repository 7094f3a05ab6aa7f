"""What each server has of its own, under a mix-in that has no constructor to make it in."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Own"]


class Own:
    """What each server has of its own, made when it is first asked for; from then on it stands in the instance."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, server: Any, owner: type) -> Any:
        # By setdefault, so that of two threads that come here at once both get the same.
        return self if server is None else vars(server).setdefault(self._name, self._make())

"""The keys that session tickets are encrypted with: kept outside of contexts, so that sessions outlive a reload.

Python has no call for them: they are reached in OpenSSL itself, through `ctypes`. Here lives how, and every guard that
it needs; when, is `_keyring`'s. Wherever anything is not as it is known to be, nothing is written, and contexts keep
keys of their own: clients then make a full handshake after a reload.
"""

from __future__ import annotations

import ctypes
import os
import ssl
import sys
from functools import cache
from hashlib import shake_256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["TicketKeys"]

LENGTH: Final = 80
"""Bytes of OpenSSL's keys since 1.1.1: a name of 16, and 32 each for HMAC and AES."""
_GET: Final = 58  # SSL_CTRL_GET_TLSEXT_TICKET_KEYS
_SET: Final = 59
# Where a context has its SSL_CTX*, was looked up for these: right after the object's head.
_KNOWN: Final = ((3, 11), (3, 12), (3, 13))
_VERIFY: Final = {
    ssl.CERT_NONE: 0,
    ssl.CERT_OPTIONAL: 1,
    ssl.CERT_REQUIRED: 3,
}  # SSL_VERIFY_PEER, _FAIL_IF_NO_PEER_CERT


@cache
def _library() -> Any:
    """The very OpenSSL that `ssl` works with, or None. A static one shows no symbols."""
    try:
        import _ssl

        library = ctypes.CDLL(_ssl.__file__)
        library.OpenSSL_version_num.restype = ctypes.c_ulong
        control = library.SSL_CTX_ctrl
        control.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        control.restype = ctypes.c_long
        library.SSL_CTX_get_options.argtypes = library.SSL_CTX_get_verify_mode.argtypes = (ctypes.c_void_p,)
        library.SSL_CTX_get_options.restype = ctypes.c_uint64
        same: bool = library.OpenSSL_version_num() == ssl.OPENSSL_VERSION_NUMBER
    except (ImportError, AttributeError, OSError):
        return None
    return library if same else None


def _place(context: ssl.SSLContext) -> int | None:
    """The address of a context's SSL_CTX, if it can be reached for certain."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN or sys.maxsize >> 32 == 0:
        return None
    library = _library()
    if library is None or not isinstance(context, ssl.SSLContext):
        return None
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if not pointer:
        return None
    if library.SSL_CTX_get_options(pointer) != int(context.options) & (1 << 64) - 1:
        return None
    if library.SSL_CTX_get_verify_mode(pointer) != _VERIFY.get(context.verify_mode):
        return None
    if library.SSL_CTX_ctrl(pointer, _SET, 0, None) != LENGTH:
        return None
    return pointer


def _read(pointer: int) -> bytes | None:
    room = ctypes.create_string_buffer(LENGTH)
    return room.raw if _library().SSL_CTX_ctrl(pointer, _GET, LENGTH, room) == 1 else None


class TicketKeys:
    """Keys for session tickets: those of one process, or of several that are to know each other's sessions."""

    __slots__ = ("secret",)

    def __init__(self, secret: bytes | None = None) -> None:
        """Given ones, or new ones."""
        if secret is not None and len(secret) != LENGTH:
            raise ValueError(f"ticket keys are {LENGTH} bytes, not {len(secret)}")
        self.secret = os.urandom(LENGTH) if secret is None else bytes(secret)

    @classmethod
    def of(cls, context: ssl.SSLContext) -> TicketKeys | None:
        """Those that a context has, which is only read; None where it cannot be done."""
        pointer = _place(context)
        found = None if pointer is None else _read(pointer)
        return None if found is None else cls(found)

    def apply(self, context: ssl.SSLContext) -> bool:
        """Give them to a context that serves nobody yet. False where it cannot be done: it keeps its own."""
        pointer = _place(context)
        if pointer is None:
            return False
        done = _library().SSL_CTX_ctrl(pointer, _SET, LENGTH, ctypes.create_string_buffer(self.secret, LENGTH))
        return bool(done == 1 and _read(pointer) == self.secret)

    def bound(self, trust: bytes) -> TicketKeys:
        """Others that follow from these and from who is believed; the same, if nobody is asked who he is.

        Who resumes a session shows no certificate again: one that was begun under other rules must not be taken.
        """
        return TicketKeys(shake_256(self.secret + trust).digest(LENGTH)) if trust else self

    def __repr__(self) -> str:
        return "<TicketKeys>"  # whoever has them can read all sessions

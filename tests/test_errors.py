"""The two tables of `portico.errors`: what follows from an error of accepting, and whether a peer has merely left."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest

import portico
from portico.errors import Outcome, Overloaded, accept_outcome, is_disconnect

OUTCOMES = {
    Outcome.EMPTY: [errno.EAGAIN, errno.EWOULDBLOCK, errno.EINPROGRESS],
    Outcome.LOST: [
        errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.ENOPROTOOPT,
        errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED,
        errno.EMSGSIZE,
    ],
    Outcome.EXHAUSTED: [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM],
    Outcome.DEAD: [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP],
}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(number, outcome) for outcome, numbers in OUTCOMES.items() for number in numbers],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.value,
)
def test_every_error_of_accept_has_its_outcome(number: int, outcome: Outcome) -> None:
    assert accept_outcome(OSError(number, "said the system")) is outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Overloaded("no thread"), Outcome.EXHAUSTED),
        (OSError("without a number"), Outcome.LOST),
        (TimeoutError("timed out"), Outcome.LOST),
        (ssl.SSLError(1, "handshake"), Outcome.LOST),
        (LookupError("a hook"), Outcome.LOST),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.value,
)
def test_other_errors_have_theirs(error: Exception, outcome: Outcome) -> None:
    assert accept_outcome(error) is outcome


@pytest.fixture
def request_with_timeout() -> Any:
    with socket.socket() as request:
        request.settimeout(1)
        yield request


@pytest.fixture
def request_without_timeout() -> Any:
    with socket.socket() as request:
        yield request


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (BrokenPipeError(errno.EPIPE, "pipe"), True),
        (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "of another connection"), False),
        (TimeoutError(errno.ETIMEDOUT, "the kernel gave it up"), True),
        (TimeoutError("a future's"), False),
        (ssl.SSLEOFError(8, "EOF"), True),
        (ssl.SSLZeroReturnError(6, "closed"), True),
        (ssl.SSLError(1, "wrong version"), False),
        (OSError(errno.ENOSPC, "disk full"), False),
        (EOFError(), False),
        (LookupError("bug"), False),
        (None, False),
    ],
    ids=lambda value: repr(value),
)
def test_a_peer_that_left_is_told_from_a_bug(
    error: BaseException | None, left: bool, request_without_timeout: Any
) -> None:
    assert is_disconnect(error, request_without_timeout) is left


def test_a_timeout_is_the_peers_silence_only_if_the_request_has_one(request_with_timeout: Any) -> None:
    assert is_disconnect(TimeoutError("timed out"), request_with_timeout)
    request_with_timeout.close()
    assert is_disconnect(TimeoutError("timed out"), request_with_timeout)  # what it was is still known
    assert not is_disconnect(TimeoutError("timed out"), (b"payload", request_with_timeout))
    assert not is_disconnect(TimeoutError("timed out"), object())


def test_a_refusal_in_a_datagram_handler_is_the_peers_doing(request_without_timeout: Any) -> None:
    assert is_disconnect(ConnectionRefusedError(), (b"payload", request_without_timeout))


def test_errors_can_be_caught_by_pythons_own_words_for_them() -> None:
    assert issubclass(portico.AddressError, ValueError)
    assert issubclass(portico.SettingError, ValueError)
    assert issubclass(portico.UnknownSettingError, TypeError)
    assert issubclass(portico.UnavailableError, portico.SettingError)
    assert issubclass(portico.Overloaded, RuntimeError)
    for name in ("AddressError", "Overloaded", "SettingError", "UnavailableError", "UnknownSettingError"):
        assert issubclass(getattr(portico, name), portico.PorticoError)
    assert not issubclass(portico.PorticoError, OSError)

"""What happens to a connection before its handler sees it, declared: TLS, and who announces whom (PROXY protocol).

Declarations only; `settings` holds them all together. What is in a certificate's description is `tls`'.
"""

from __future__ import annotations

from ._setting import FLAG, MAYBE_COUNT, MAYBE_PAUSE, PAUSE, PROXY_KIND, TLS_KIND, TRUSTED_KIND, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["OPENING_LIVE", "OPENING_SETTINGS", "check_opening"]

TLS: Final = Setting[object](
    "tls",
    None,
    TLS_KIND,
    unit="certificates",
    reason="stream connections are encrypted with these (portico serve: --tls-cert)",
)
STARTTLS: Final = Setting(
    "starttls",
    False,
    FLAG,
    unit="flag",
    reason="connections begin in plain text, and self.start_tls() in a handler encrypts them",
)
HANDSHAKE_TIMEOUT: Final = Setting(
    "handshake_timeout",
    10.0,
    PAUSE,
    unit="seconds",
    reason="a client has so long for its PROXY header and its TLS handshake (Netty: 10, Ranch: 5, asyncio: 60)",
)
MAX_HANDSHAKES: Final = Setting[int | None](
    "max_handshakes",
    None,
    MAYBE_COUNT,
    unit="connections",
    reason="under way at once; one more takes the place of the oldest that has said nothing, or is refused",
)
SUPPRESS_RAGGED_EOFS: Final = Setting(
    "suppress_ragged_eofs",
    True,
    FLAG,
    unit="flag",
    reason="a truncated TLS stream ends like a whole one, and self.tls.truncated tells; off: it raises SSLEOFError",
)
TLS_WATCH: Final = Setting[float | None](
    "tls_watch",
    60.0,
    MAYBE_PAUSE,
    unit="seconds",
    reason="between two looks, when clients come, whether certificate files have changed; none: only reload_tls()",
)
PROXY_PROTOCOL: Final = Setting(
    "proxy_protocol",
    "off",
    PROXY_KIND,
    unit="policy",
    reason="whether clients are announced by a PROXY header; optional: protocols whose clients speak first only",
)
PROXY_TRUSTED: Final = Setting[object](
    "proxy_trusted",
    None,
    TRUSTED_KIND,
    unit="networks",
    reason="who may send a PROXY header: the balancers, and nobody else",
)

OPENING_SETTINGS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Setting))
OPENING_LIVE: Final = ("handshake_timeout", "max_handshakes", "suppress_ragged_eofs", "tls_watch", "proxy_trusted")
"""What is read again while a server runs. Certificates are `reload_tls()`'s."""


def check_opening(server: Any, changed: set[str]) -> str | None:
    """What contradicts what, in words; None if nothing does."""
    mode, trusted = getattr(server, "proxy_protocol", "off"), getattr(server, "proxy_trusted", None)
    if mode != "off" and trusted is None:
        return f"proxy_protocol ({mode!r}) needs proxy_trusted: the networks of those who may announce clients"
    if mode == "off" and "proxy_trusted" in changed:
        return 'proxy_trusted needs a proxy_protocol of "required" or "optional": with "off" nobody is asked'
    if getattr(server, "starttls", False) and not getattr(server, "tls", None):
        return "starttls needs tls: certificates to encrypt with"
    return None

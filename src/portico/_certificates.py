"""What a certificate says: when it ends, and who the client is that has shown it.

Pure reading of bytes and of `ssl`'s own dict. Whether a certificate is to be believed was OpenSSL's to decide before;
which of its names may enter is for handlers and rules.
"""

from __future__ import annotations

from datetime import datetime, timezone
from hashlib import sha256
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["PeerCertificate", "not_after"]

_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_MOST_LENGTH_BYTES: Final = 4


def _element(der: bytes, at: int, end: int, *tags: int) -> tuple[int, int, int]:
    """The tag of the element at a place, and where its content begins and ends; `ValueError` if it is no such one."""
    if end - at < 2 or (tags and der[at] not in tags):
        raise ValueError("no certificate")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F  # 0 would be a length that is not said: no DER
        if not 0 < count <= _MOST_LENGTH_BYTES or start + count > end:
            raise ValueError("no certificate")
        length, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + length > end:
        raise ValueError("no certificate")
    return der[at], start, start + length


def _moment(tag: int, text: bytes) -> float:
    """RFC 5280 4.1.2.5: both kinds with seconds, without fractions, in UTC."""
    short = tag == _UTC_TIME
    digits = text[:-1]
    if text[-1:] != b"Z" or not digits.isdigit() or len(digits) != (12 if short else 14):
        raise ValueError(f"{text!r} is no time of a certificate")
    if short:
        digits = (b"19" if digits[:2] >= b"50" else b"20") + digits
    year, rest = int(digits[:4]), [int(digits[place : place + 2]) for place in range(4, 14, 2)]
    month, day, hour, minute, second = rest
    return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()  # noqa: UP017


def not_after(der: bytes) -> float:
    """When a certificate ends, in seconds since the epoch. `ValueError` if it is none."""
    _, at, end = _element(der, 0, len(der), _SEQUENCE)
    _, at, end = _element(der, at, end, _SEQUENCE)
    tag, _, after = _element(der, at, end, _VERSION, _INTEGER)
    if tag == _VERSION:
        _, _, after = _element(der, after, end, _INTEGER)
    for _ in ("signature's algorithm", "issuer"):
        _, _, after = _element(der, after, end, _SEQUENCE)
    _, at, end = _element(der, after, end, _SEQUENCE)
    _, _, at = _element(der, at, end, _UTC_TIME, _GENERALIZED_TIME)
    tag, at, end = _element(der, at, end, _UTC_TIME, _GENERALIZED_TIME)
    return _moment(tag, der[at:end])


# RFC 4514's short names, and what else is usual; all others stay as OpenSSL writes them.
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_KINDS: Final = {"DNS": "DNS", "IP Address": "IP", "URI": "URI", "email": "email"}


def _escaped(value: str) -> str:
    """RFC 4514 2.4; control characters by their number, too, as the text may end up in a log or a header."""
    last = len(value) - 1
    written = []
    for place, letter in enumerate(value):
        if letter in ',+"\\<>;' or (letter == " " and place in (0, last)) or (letter == "#" and place == 0):
            written.append("\\" + letter)
        elif letter.isprintable():
            written.append(letter)
        else:
            written.append("".join(f"\\{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass")))
    return "".join(written)


def _distinguished(name: Any) -> str:
    """A name as `ssl` gives it, as RFC 4514 writes it: the last part first."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in reversed(name)
    )


def _address(text: str) -> str:
    """OpenSSL writes IPv6 in its own way: 2001:DB8:0:0:0:0:0:1."""
    text = text.strip()
    try:
        family = AF_INET6 if ":" in text else AF_INET
        return inet_ntop(family, inet_pton(family, text))
    except OSError:
        return text


class PeerCertificate:
    """A client's certificate. OpenSSL has verified it against the `client_ca`, before there is one of these."""

    __slots__ = ("_fields", "_names", "der")

    def __init__(self, der: bytes, fields: Any) -> None:
        """What `getpeercert(True)` and `getpeercert()` return."""
        self.der = der
        """The certificate itself."""
        self._fields: dict[str, Any] = fields or {}
        self._names = [
            (kind, _address(value) if kind == "IP" else value)
            for openssl, value in self._fields.get("subjectAltName", ())
            if (kind := _KINDS.get(openssl)) and isinstance(value, str)
        ]

    @classmethod
    def of(cls, connection: Any) -> PeerCertificate | None:
        """That of an `SSLSocket` or `SSLObject` after its handshake; None if the client has sent none."""
        der = connection.getpeercert(True)
        return None if der is None else cls(der, connection.getpeercert())

    @property
    def subject(self) -> str:
        """Whose it is, as in "CN=client,O=Acme"."""
        return _distinguished(self._fields.get("subject", ()))

    @property
    def issuer(self) -> str:
        """Who has signed it, in the same form."""
        return _distinguished(self._fields.get("issuer", ()))

    @property
    def serial(self) -> str:
        """Its number with its issuer, in hexadecimal digits."""
        return str(self._fields.get("serialNumber", ""))

    @property
    def common_name(self) -> str | None:
        """The last of its subject's, as that is the most special; None if there is none."""
        parts = [pair for part in self._fields.get("subject", ()) for pair in part]
        return next((value for kind, value in reversed(parts) if kind == "commonName"), None)

    @property
    def sans(self) -> tuple[str, ...]:
        """Its other names: "DNS:a.example", "IP:192.0.2.1", "URI:spiffe://a/b", "email:a@b.example"."""
        return tuple(f"{kind}:{value}" for kind, value in self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """The same without their kinds, the common name last; each once."""
        common = self.common_name
        return tuple(dict.fromkeys([value for _, value in self._names] + ([] if common is None else [common])))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal digits."""
        return sha256(self.der).hexdigest()

    @property
    def not_after(self) -> float:
        """When it ends, in seconds since the epoch."""
        return not_after(self.der)

    def __repr__(self) -> str:
        return f"<PeerCertificate {self.subject}>"

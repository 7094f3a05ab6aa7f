"""How a server is to use TLS: a description of files and rules, `portico.TLS`.

Values only: nothing is read from disk here, and `ssl` is not imported, as it costs 27 ms. `_contexts` makes contexts
from a description, `_keyring` keeps them for a server and replaces them.
"""

from __future__ import annotations

from os import PathLike, fsdecode
from types import MappingProxyType

from .errors import SettingError, UnknownSettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, TypeAlias

    PathText: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
    Pair: TypeAlias = tuple[str, str | None]

__all__ = ["TLS"]

_LABEL: Final = 63
_NAME: Final = 253


def _path(value: Any) -> str | None:
    if not isinstance(value, (str, bytes, PathLike)) or not (text := fsdecode(value)) or "\0" in text:
        return None
    return text


def _is_server_name(name: Any) -> bool:
    """Whether a client may send it (RFC 6066): A-labels, no port, no trailing dot; or with "*" as its first label."""
    if not isinstance(name, str) or not name.isascii() or not 0 < len(name) <= _NAME:
        return False
    first, *rest = name.split(".")
    labels = rest if first == "*" else [first, *rest]
    return bool(labels) and all(
        0 < len(label) <= _LABEL and all(letter.isalnum() or letter in "-_" for letter in label) for label in labels
    )


def _pair(value: Any) -> Pair | None:
    """(certificate, key), or a certificate that has its key in it."""
    certificate, key = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, None)
    file, key_file = _path(certificate), _path(key)
    if file is None or (key is not None and key_file is None):
        return None
    return file, key_file


def _sni(value: Any) -> Mapping[str, Pair]:
    if value is None:
        return MappingProxyType({})
    if not hasattr(value, "items"):
        raise ValueError
    pairs = {}
    for name, files in dict(value).items():
        if not _is_server_name(name):
            raise ValueError(f"{name!r} is no server name")
        pair = _pair(files)
        if pair is None:
            raise ValueError(f"{files!r} is neither a file nor a pair of files")
        if name.lower() in pairs:
            raise ValueError(f"{name!r} is there twice")
        pairs[name.lower()] = pair
    return MappingProxyType(pairs)


def _alpn(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    for name in value:
        if not isinstance(name, str) or not name.isascii() or not 0 < len(name) < 256:
            raise ValueError(f"{name!r} is none")
    return tuple(value)


def _file_or_none(value: Any) -> str | None:
    path = _path(value)
    if path is None and value is not None:
        raise ValueError
    return path


def _password(value: Any) -> Any:
    if not (value is None or isinstance(value, (str, bytes, bytearray)) or callable(value)):
        raise ValueError
    return bytes(value) if isinstance(value, bytearray) else value


def _ciphers(value: Any) -> str | None:
    if not (value is None or (isinstance(value, str) and value and "\0" not in value)):
        raise ValueError
    return value


def _one_of(*allowed: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        # 1 == True, but it is no answer to a question of yes or no
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            raise ValueError
        return value

    return read


_CLIENTS: Final = ("none", "optional", "required")
# Name: default, what is allowed, and what reads it: `ValueError` if it is not, with what is wrong, if that can be said.
_OPTIONS: Final[dict[str, tuple[Any, str, Callable[[Any], Any]]]] = {
    "password": (None, "text, bytes, or a callable that returns them", _password),
    "sni": (
        None,
        'a dict of server names such as "a.example" or "*.a.example" (A-labels: "xn--...") to a certificate\'s file,'
        " or to (certificate, key)",
        _sni,
    ),
    "alpn": ((), 'a list of names of 1 to 255 ASCII characters such as "h2"', _alpn),
    "client_ca": (None, "the path of a PEM file or of a folder of such files, or none", _file_or_none),
    "client_certificates": (None, '"none", "optional" or "required"', _one_of(None, *_CLIENTS)),
    "minimum_version": ("1.2", '"1.2" or "1.3"', _one_of("1.2", "1.3")),
    "ciphers": (None, 'OpenSSL\'s text for ciphers of TLS 1.2, such as "ECDHE+AESGCM"', _ciphers),
    "ktls": (None, "true, false, or none for wherever it is to be had", _one_of(True, False, None)),
}


def _read(name: str, value: Any) -> Any:
    default, allowed, read = _OPTIONS[name]
    if value is default:
        return read(value)
    try:
        return read(value)
    except (ValueError, TypeError) as wrong:
        shown = f"a value of type {type(value).__name__}" if name == "password" else repr(value)
        raise SettingError(
            f"TLS: {name} must be {allowed}, not {shown}" + (f": {wrong}" if str(wrong) else "")
        ) from None


class TLS:
    """Certificates and rules for a server's `tls`: `TLS("cert.pem", "key.pem", alpn=["h2", "http/1.1"])`.

    `certificate` is a PEM file with the chain, a server's own certificate first; `key` one with its key, or None if
    that is in the same file. Nothing is read before a server is made. Never changes; equal if all options are.

    password: for encrypted keys, text, bytes, or a callable that returns them.
    sni: what other names are answered with, {"b.example": (certificate, key), "*.c.example": certificate}: a "*" stands
        for one label, an exact name goes first. Clients that want another name, or none, get the first certificate.
    alpn: names of protocols, best first. Clients who know none of them go on without one.
    client_ca: a PEM file, or a folder of such files, with the authorities whose clients are believed.
    client_certificates: "none", "optional" or "required"; by default "required" if there is a `client_ca`, else "none".
    minimum_version: "1.2" or "1.3".
    ciphers: OpenSSL's text, for TLS 1.2 only.
    ktls: let the kernel encrypt, where requests run in threads or processes; by default wherever OpenSSL offers it.
    """

    __slots__ = (
        "alpn",
        "certificate",
        "ciphers",
        "client_ca",
        "client_certificates",
        "key",
        "ktls",
        "minimum_version",
        "password",
        "sni",
    )
    certificate: str
    key: str | None
    password: str | bytes | Callable[[], str | bytes] | None
    sni: Mapping[str, Pair]
    alpn: tuple[str, ...]
    client_ca: str | None
    client_certificates: str
    minimum_version: str
    ciphers: str | None
    ktls: bool | None

    def __init__(self, certificate: PathText, key: PathText | None = None, **options: Any) -> None:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise UnknownSettingError(f"TLS: {', '.join(unknown)}: no such option; there are {', '.join(_OPTIONS)}")
        values = {name: _read(name, options.get(name, _OPTIONS[name][0])) for name in _OPTIONS}
        values["certificate"], values["key"] = _path(certificate), _path(key)
        for name, given in (("certificate", certificate), ("key", key)):
            if values[name] is None and (given is not None or name == "certificate"):
                raise SettingError(f"TLS: {name} must be a path of a PEM file, not {given!r}")
        if values["client_certificates"] is None:
            values["client_certificates"] = "none" if values["client_ca"] is None else "required"
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._fit()

    def _fit(self) -> None:
        """Refuse what contradicts itself."""
        asked = self.client_certificates != "none"
        if asked and self.client_ca is None:
            raise SettingError(
                f'TLS: client_certificates="{self.client_certificates}" needs a client_ca, which is to be believed'
            )
        if self.client_ca is not None and not asked:
            raise SettingError('TLS: client_ca is of no use with client_certificates="none": leave one of them out')

    @property
    def files(self) -> tuple[str, ...]:
        """All paths that are read for it, each once."""
        pairs = [(self.certificate, self.key), *self.sni.values()]
        paths = [path for pair in pairs for path in pair]
        return tuple(dict.fromkeys(path for path in (*paths, self.client_ca) if path is not None))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"TLS does not change: make another one with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"TLS does not change: {name} stays")

    def _values(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, TLS) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.certificate, self.key, *self.sni))

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.certificate, self.key, self._given())

    def _given(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _OPTIONS}
        given["sni"] = dict(self.sni) or None
        if self.client_certificates == ("none" if self.client_ca is None else "required"):
            given["client_certificates"] = None
        return {name: value for name, value in given.items() if value != _OPTIONS[name][0]}

    def __repr__(self) -> str:
        files = [repr(path) for path in (self.certificate, self.key) if path is not None]
        given = [f"{name}={'...' if name == 'password' else repr(value)}" for name, value in self._given().items()]
        return f"TLS({', '.join([*files, *given])})"


def _again(certificate: str, key: str | None, options: dict[str, Any]) -> TLS:
    return TLS(certificate, key, **options)

"""The options of `portico serve` that say which certificates to use: words into a `portico.TLS`."""

from __future__ import annotations

from .errors import SettingError
from .tls import TLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

__all__ = ["add", "read"]

_OPTIONS: Final = {
    "key": "--tls-key",
    "sni": "--tls-sni",
    "alpn": "--tls-alpn",
    "client_ca": "--tls-client-ca",
    "client_certificates": "--tls-client-certificates",
    "password": "--tls-password-file",
    "minimum_version": "--tls-minimum",
}


def add(command: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = command.add_argument_group("TLS, for tls:// and tls-unix: addresses; SIGHUP loads certificates anew")
    group.add_argument("--tls-cert", metavar="FILE", help="PEM file with the certificate and its chain")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file with its key, if that is not in the same file")
    group.add_argument("--tls-password-file", metavar="FILE", help="file whose first line is the key's password")
    group.add_argument(
        "--tls-sni", metavar="NAME=CERT[,KEY]", action="append", default=[],
        help="the certificate for clients that ask for NAME, such as b.example or *.b.example; may be repeated",
    )  # fmt: skip
    group.add_argument("--tls-alpn", metavar="NAME,...", help="application protocols, best first")
    group.add_argument("--tls-client-ca", metavar="FILE", help="PEM file or folder of CAs whose clients are believed")
    group.add_argument(
        "--tls-client-certificates", choices=("optional", "required"), help="of clients; required with --tls-client-ca"
    )
    group.add_argument("--tls-minimum", choices=("1.2", "1.3"), help="version (default: 1.2)")


def read(options: argparse.Namespace) -> TLS | None:
    """What they describe; None if there are none. Raises `SettingError`."""
    given: dict[str, Any] = {
        "sni": _sni(options.tls_sni) or None,
        "alpn": None if options.tls_alpn is None else [name.strip() for name in options.tls_alpn.split(",")],
        "client_ca": options.tls_client_ca,
        "client_certificates": options.tls_client_certificates,
        "password": options.tls_password_file and _FirstLine(options.tls_password_file),
        "minimum_version": options.tls_minimum,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if options.tls_cert is None:
        others = [option for name, option in _OPTIONS.items() if name in given or (name == "key" and options.tls_key)]
        if others:
            raise SettingError(f"{others[0]} needs --tls-cert")
        return None
    return TLS(options.tls_cert, options.tls_key, **given)


def _sni(texts: list[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for text in texts:
        name, files = _named(text)
        if name.lower() in named:
            raise SettingError(f"--tls-sni {text!r}: {name} has a certificate already")
        named[name.lower()] = files
    return named


def _named(text: str) -> tuple[str, Any]:
    name, equals, files = text.partition("=")
    certificate, comma, key = files.partition(",")
    if not (equals and name and certificate and (key or not comma)):
        raise SettingError(f"--tls-sni {text!r}: give NAME=CERT or NAME=CERT,KEY")
    return name, (certificate, key) if comma else certificate


class _FirstLine:
    """A password that is read when it is needed, each time anew."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self) -> str:
        with open(self._path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")

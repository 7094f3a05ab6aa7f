"""Certificates of an authority of our own, as files, and handshakes in memory."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


class Authority:
    """Signs whatever it is asked for. Keys are elliptic curves', as RSA's take their time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count()
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def pair(
        self, *names: str, expired: bool = False, days: float = 30, password: str | None = None, **options: Any
    ) -> tuple[Path, Path]:
        """Certificate and key, for names or addresses; `days` until it ends. Options are `trustme`'s."""
        now = datetime.now(timezone.utc)  # noqa: UP017
        end = now - timedelta(days=1) if expired else now + timedelta(days=days)
        options = {"key_type": trustme.KeyType.ECDSA} | options
        leaf = self._ca.issue_cert(*names, not_before=now - timedelta(days=10), not_after=end, **options)
        place = self.folder / str(next(self._numbers))
        place.mkdir()
        certificate, key = place / "cert.pem", place / "key.pem"
        certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        content = leaf.private_key_pem.bytes()
        key.write_bytes(content if password is None else _locked(content, password))
        return certificate, key

    def client(self, name: str, *identities: str, **options: Any) -> tuple[Path, Path]:
        """A client's, with its name as common name, and as an e-mail address or host name, too."""
        return self.pair(*(identities or (name,)), common_name=name, **options)

    def trust(self, *, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """A client's context that believes this authority, with a certificate of its own if there is a `pair`."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


def _locked(key: bytes, password: str) -> bytes:
    opened = load_pem_private_key(key, None)
    return opened.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))


class Talk:
    """A client and a server that talk in memory, after a handshake that has gone well on both sides."""

    def __init__(
        self, server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "localhost", session: Any = None
    ) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        waiting: list[ssl.SSLObject] = [self.client, self.server]
        for _ in range(6):
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
        assert not waiting
        self.say(b"hello")  # which brings the tickets of TLS 1.3 to the client, and the server's refusal

    def say(self, text: bytes) -> None:
        self.server.write(text)
        assert self.client.read(len(text)) == text

    @property
    def names(self) -> set[str]:
        """Those in the certificate that the server has shown."""
        shown: Any = self.client.getpeercert()
        return {value for _, value in shown["subjectAltName"]}

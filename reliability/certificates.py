"""What a server under test shows to its clients, when its connections are encrypted."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NAME", "made"]

NAME = "localhost"


def made(directory: Path) -> tuple[str, str, str]:
    """Certificate, key, and the authority's certificate, as files. The keys are elliptic curves', which are quick."""
    import trustme  # of the extra `dev`; whoever wants no TLS does without

    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert(NAME, key_type=trustme.KeyType.ECDSA)
    certificate, key, trusted = (str(directory / name) for name in ("cert.pem", "key.pem", "ca.pem"))
    for number, part in enumerate(leaf.cert_chain_pems):
        part.write_to_path(certificate, append=number > 0)
    leaf.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)
    return certificate, key, trusted

"""What the loads over TLS need besides the C compiler: OpenSSL's library, and a certificate of our own.

The certificate is for P-256, made by `trustme` or else by the `openssl` command, into the folder of what is compiled.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from pathlib import Path

from . import build

__all__ = ["CannotEncryptError", "certificate", "ready"]

_DAYS = 300
_NAME = "localhost"


class CannotEncryptError(Exception):
    """There can be no load over TLS here, and why."""


def ready() -> None:
    """See that there is all that it takes; the programs are compiled."""
    check = [str(build.FOLDER / "tls_load"), "check"]
    done = subprocess.run(check, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise CannotEncryptError(done.stderr.strip())
    certificate()


def certificate() -> Path:
    """The file with a certificate and its key, made if there is none that is good for another day."""
    build.FOLDER.mkdir(exist_ok=True)
    path = build.FOLDER / "certificate.pem"
    if not path.exists() or path.stat().st_mtime + (_DAYS - 1) * 86400 < time.time():
        # By a name of its own first: two runs at a time must not see half a file.
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        try:
            _make_with_trustme(fresh)
        except ImportError:
            _make_with_openssl(fresh)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(fresh)
        fresh.replace(path)
    return path


def _make_with_trustme(path: Path) -> None:
    import trustme

    leaf = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(_NAME, key_type=trustme.KeyType.ECDSA)
    leaf.private_key_and_cert_chain_pem.write_to_path(path)


def _make_with_openssl(path: Path) -> None:
    key = path.with_suffix(f"{path.suffix}.key")
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days {_DAYS} -subj /CN={_NAME}"
    try:
        made = subprocess.run(
            ["openssl", *words.split(), "-keyout", str(key)], capture_output=True, text=True, timeout=60, check=True
        )
        path.write_text(made.stdout + key.read_text())
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotEncryptError(f"no certificate: neither trustme nor openssl makes one ({error})") from None
    finally:
        key.unlink(missing_ok=True)

"""From a description to an `SSLContext` that is known to work: read, put together, and tried in a handshake in memory.

All that may be wrong with files is said here, once, as a `TLSError` that names the file. Nothing of a server, and no
state: which context is in use, and when it is replaced, is `_keyring`'s.
"""

from __future__ import annotations

import os
import ssl
import stat
from functools import cache
from hashlib import sha256

from ._certificates import not_after
from .errors import TLSError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from .tls import TLS, Pair

__all__ = ["Made", "Names", "adopt", "make"]

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_OLD_CERTIFICATES: Final = (b"-----BEGIN TRUSTED CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----")
_KEY: Final = b"PRIVATE KEY-----"
_LONGEST: Final = 1 << 24
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENTS: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_KTLS: Final = getattr(ssl, "OP_ENABLE_KTLS", 1 << 3)  # Python has its name since 3.12
_ROUNDS: Final = 8
_OTHER_KIND: Final = ("KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")  # the first until OpenSSL 1.1.1
_TOO_WEAK: Final = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")


class Names:
    """What OpenSSL calls with the name that a client wants: notes it, and chooses who answers.

    It is noted as `portico_server_name` on the `SSLSocket` or `SSLObject`.
    """

    __slots__ = ("_contexts", "_theirs")

    def __init__(self, contexts: dict[str, ssl.SSLContext], theirs: Callable[..., int | None] | None = None) -> None:
        self._contexts = contexts
        self._theirs = theirs

    def __call__(self, connection: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        try:
            connection.portico_server_name = name
        except AttributeError:  # a bare `_ssl._SSLSocket`, which has no room for it
            pass
        if self._theirs is not None:
            return self._theirs(connection, name, context)
        if name is not None and self._contexts:
            chosen = self.of(name)
            if chosen is not None:
                connection.context = chosen
        return None

    def of(self, name: str) -> ssl.SSLContext | None:
        """Whose name it is: exactly, else by a "*" for its first label."""
        name = name.lower()
        exact = self._contexts.get(name)
        return exact if exact is not None else self._contexts.get("*." + name.partition(".")[2])


class Made:
    """A context that works, when the first of its certificates ends, and a digest of which clients it believes."""

    __slots__ = ("context", "end", "trust")

    def __init__(self, context: ssl.SSLContext, end: float | None, trust: bytes) -> None:
        self.context = context
        self.end = end
        self.trust = trust


def make(description: TLS, *, blocking: bool) -> Made:
    """Read and try all that a description names. Raises `TLSError`."""
    made: dict[Pair, ssl.SSLContext] = {}
    authorities = {} if description.client_ca is None else _authorities(description.client_ca)
    first = (description.certificate, description.key)
    for pair in (first, *description.sni.values()):
        if pair not in made:
            made[pair] = _context(description, pair, blocking)
    ends = [_tried(context, pair[0]) for pair, context in made.items()]
    if authorities:
        for context in made.values():  # after the trial, in which the client has no certificate
            _believe(context, description, authorities)
    context = made[first]
    context.sni_callback = Names({name: made[pair] for name, pair in description.sni.items()})
    return Made(context, _first(ends), _trust(description, authorities))


def _trust(description: TLS, authorities: dict[str, bytes]) -> bytes:
    if not authorities:
        return b""
    contents = b"".join(sha256(content).digest() for content in authorities.values())
    return sha256(description.client_certificates.encode() + contents).digest()


def adopt(context: ssl.SSLContext, *, try_it: bool = True) -> Made:
    """Try a context that was made elsewhere, and add what a server needs: the recorder of names, no renegotiation.

    It may be in use by others already: nothing else of it changes, but that a truncated end is seen to be one. Whom it
    believes cannot be read from it, so that is taken to be like nobody else's.
    """
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise TLSError(
            "the SSLContext is one for clients: make it by ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), or by"
            " ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        )
    theirs: Any = context.sni_callback
    asks = theirs is not None and not isinstance(theirs, Names)  # who has certificates for names alone, and counts
    end = _tried(context, "the SSLContext") if try_it and not asks else None
    wanted = (context.options | ssl.OP_NO_RENEGOTIATION) & ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if context.options != wanted:
        context.options = wanted
    if not isinstance(theirs, Names):
        context.sni_callback = Names({}, theirs)
    return Made(context, end, b"" if context.verify_mode == ssl.CERT_NONE else os.urandom(16))


def _first(ends: list[float | None]) -> float | None:
    """The first of several ends, of which some may be unknown."""
    return min((end for end in ends if end is not None), default=None)


def _context(description: TLS, pair: Pair, blocking: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[description.minimum_version]
    # A connection that is cut off must not look like one that has ended (Python would have it so by default).
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if blocking and description.ktls is not False:
        if ssl.OPENSSL_VERSION_INFO >= (3,):
            context.options |= _KTLS
        elif description.ktls:
            raise TLSError(f"ktls needs OpenSSL 3; this is {ssl.OPENSSL_VERSION}")
    if description.ciphers is not None:
        try:
            context.set_ciphers(description.ciphers)
        except ssl.SSLError:
            raise TLSError(f"ciphers: OpenSSL has none that are meant by {description.ciphers!r}") from None
    if description.alpn:
        context.set_alpn_protocols(list(description.alpn))
    _load(context, pair, description.password)
    return context


def _read(path: str) -> bytes:
    """The content of a file, so that what is wrong with it can be said: OpenSSL's own errors name none."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TLSError(f"cannot read {path}: it is no regular file")
            return file.read(_LONGEST)
    except OSError as error:
        raise TLSError(f"cannot read {path}: {error.strerror}") from None


def _holds_certificates(content: bytes) -> bool:
    return _CERTIFICATE in content or any(head in content for head in _OLD_CERTIFICATES)


class _Password:
    """Answers OpenSSL, which would ask at the terminal if there were nobody to ask."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.asked = False
        self.failure: Exception | None = None

    def __call__(self) -> str | bytes:
        self.asked = True
        if self.given is None:
            raise LookupError
        try:
            answer = self.given() if callable(self.given) else self.given
            if not isinstance(answer, (str, bytes, bytearray)):
                raise TypeError(f"it returned {type(answer).__name__}, not text or bytes")
        except Exception as error:
            self.failure = error
            raise
        return bytes(answer) if isinstance(answer, bytearray) else answer


def _load(context: ssl.SSLContext, pair: Pair, password: Any) -> None:
    certificate, key = pair
    if not _holds_certificates(_read(certificate)):
        raise TLSError(f"{certificate} holds no certificate")
    if _KEY not in _read(key or certificate):
        raise TLSError(f"{key or certificate} holds no private key" + ("" if key else ", and no key was given"))
    answer = _Password(password)
    try:
        context.load_cert_chain(certificate, key, answer)
    except LookupError:
        if answer.failure is None:
            raise TLSError(f"{key or certificate} needs a password") from None
        _unusable(pair, answer, answer.failure)
    except Exception as error:  # a user's callable may raise anything
        _unusable(pair, answer, error)


def _unusable(pair: Pair, answer: _Password, error: Exception) -> NoReturn:
    certificate, key_file = pair
    key = key_file or certificate
    reason = getattr(error, "reason", None)
    if answer.failure is not None:
        what = f"{type(answer.failure).__name__}: {answer.failure}"
        raise TLSError(f"{key}: its password could not be had: {what}") from answer.failure
    if reason == "KEY_VALUES_MISMATCH":
        said = f"{key} does not belong to the certificate in {certificate}"
    elif reason in _OTHER_KIND:
        said = f"{key} is of another kind than the certificate in {certificate}, and does not belong to it"
    elif reason in _TOO_WEAK:
        said = f"{certificate} is too weak for OpenSSL: {_words(error)}"
    elif answer.asked:
        said = f"{key}: wrong password"
    elif not _is_readable(certificate):
        said = f"{certificate} holds no certificate that OpenSSL can read"
    else:
        said = f"{key} holds no private key that OpenSSL can read"
    raise TLSError(said) from None


def _is_readable(certificate: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except (ssl.SSLError, OSError):
        return False
    return True


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if isinstance(reason, str) else str(error).partition(" (_ssl.c")[0]


def _authorities(path: str) -> dict[str, bytes]:
    """The files of a `client_ca`. All those of a folder that hold certificates, whatever their names are."""
    if not os.path.isdir(path):
        content = _read(path)
        if not _holds_certificates(content):
            raise TLSError(f"{path} holds no certificate")
        return {path: content}
    try:
        with os.scandir(path) as entries:
            files = sorted(entry.path for entry in entries if entry.is_file())
    except OSError as error:
        raise TLSError(f"cannot read {path}: {error.strerror}") from None
    found = {file: content for file in files if _holds_certificates(content := _read(file))}
    if not found:
        raise TLSError(f"{path} has no file with a certificate in it")
    return found


def _believe(context: ssl.SSLContext, description: TLS, authorities: dict[str, bytes]) -> None:
    for file in authorities:
        try:
            context.load_verify_locations(file)
        except (ssl.SSLError, OSError):
            raise TLSError(f"{file} holds no certificate that OpenSSL can read") from None
    context.verify_mode = _CLIENTS[description.client_certificates]


@cache
def _visitor() -> ssl.SSLContext:
    """A client that takes whatever a server may offer: it only wants to see its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:!aNULL:@SECLEVEL=0")
    return context


def _tried(context: ssl.SSLContext, what: str) -> float | None:
    """Shake hands in memory, which proves that certificate and key work together; when its chain ends, if it says so.

    A server that demands a client's certificate has proved its own by the time it gets none.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client: Any = _visitor().wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    refused = None
    for _ in range(_ROUNDS):
        if _step(client, what):
            break
        try:
            server.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            refused = error
            if error.reason != "PEER_DID_NOT_RETURN_A_CERTIFICATE":
                raise TLSError(_why_not(what, error)) from None
            break
    chain = _chain(client)
    if not chain:
        raise TLSError(f"{what} shows no certificate" if refused is None else _why_not(what, refused))
    return _first([_end(der) for der in chain])


def _step(client: Any, what: str) -> bool:
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError as error:
        raise TLSError(_why_not(what, error)) from None
    return True


def _why_not(what: str, error: ssl.SSLError) -> str:
    if error.reason in ("NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM", "NO_CERTIFICATE_SET"):
        return f"{what} has no certificate that fits its ciphers and versions, or none at all"
    return f"{what} does not work in a handshake: {_words(error)}"


def _chain(client: Any) -> list[bytes]:
    """All certificates that a server has shown. Public since 3.13, and always usable in the middle of a handshake."""
    try:
        import _ssl

        shown = client._sslobj.get_unverified_chain() or ()
        return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in shown]
    except (ImportError, AttributeError):  # another Python than CPython
        der = client.getpeercert(True)
        return [] if der is None else [der]


def _end(der: bytes) -> float | None:
    try:
        return not_after(der)
    except ValueError:
        return None

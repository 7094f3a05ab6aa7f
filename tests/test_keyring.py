"""What a server answers with: by which certificate, to whom, and how it is replaced."""

from __future__ import annotations

import os
import shutil
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from portico._keyring import Keyring
from portico.errors import SettingError, TLSError
from portico.tls import TLS

from .certificates import Authority, Talk


def _keyring(*pair: Any, **options: Any) -> Keyring:
    return Keyring(TLS(*pair, **options), blocking=True)


def _context(*pair: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


# --- Which certificate --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(authority: Authority) -> Keyring:
    return _keyring(
        *authority.pair("localhost", "deep.a.w.example", "w.example", "else.example"),
        sni={
            "A.example": authority.pair("a.example"),
            "*.w.example": authority.pair("*.w.example"),
            "exact.w.example": authority.pair("exact.w.example"),
        },
    )


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("a.example", "a.example"),
        ("A.EXAMPLE", "a.example"),
        ("b.w.example", "*.w.example"),
        ("exact.w.example", "exact.w.example"),
        ("deep.a.w.example", "localhost"),
        ("w.example", "localhost"),
        ("else.example", "localhost"),
    ],
)
def test_the_name_that_is_asked_for_chooses_the_certificate(
    named: Keyring, authority: Authority, asked: str, shown: str
) -> None:
    talk = Talk(named.context, authority.trust(), asked)
    assert shown in talk.names
    server: Any = talk.server
    assert server.portico_server_name.lower() == asked.lower()


def test_who_asks_for_no_name_gets_the_first_certificate(named: Keyring, authority: Authority) -> None:
    client = authority.trust()
    client.check_hostname = False
    server: Any = (talk := Talk(named.context, client, None)).server
    assert "localhost" in talk.names
    assert server.portico_server_name is None


def test_names_of_one_pair_share_a_context(authority: Authority) -> None:
    pair = authority.pair("localhost", "a.example")
    keyring = _keyring(*pair, sni={"a.example": pair})
    talk = Talk(keyring.context, authority.trust(), "a.example")
    assert talk.server.context is keyring.context


def test_a_context_that_is_given_is_asked_and_told_of_names(authority: Authority) -> None:
    context, other = _context(*authority.pair("localhost")), _context(*authority.pair("b.example"))
    asked: list[str | None] = []

    def choose(connection: Any, name: str | None, default: ssl.SSLContext) -> None:
        asked.append(name)
        assert default is context
        if name == "b.example":
            connection.context = other

    context.sni_callback = choose
    first, second = Keyring(context, blocking=True), Keyring(context, blocking=True)
    assert first.context is second.context is context
    asked.clear()
    talk = Talk(context, authority.trust(), "b.example")
    server: Any = talk.server
    assert talk.names == {"b.example"}
    assert server.portico_server_name == "b.example"
    assert asked == ["b.example"]


def test_what_a_given_contexts_callback_refuses_is_refused(authority: Authority) -> None:
    context = _context(*authority.pair("localhost"))
    context.sni_callback = lambda _, name, __: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if name else None
    keyring = Keyring(context, blocking=True)
    with pytest.raises(ssl.SSLError):
        Talk(keyring.context, authority.trust())


# --- Under which rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "agreed"), [(["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"), (["spdy"], None), ([], None)]
)
@pytest.mark.parametrize("name", ["localhost", "a.example"])
def test_the_servers_order_of_protocols_counts(
    authority: Authority, offered: list[str], agreed: str | None, name: str
) -> None:
    keyring = _keyring(
        *authority.pair("localhost"), alpn=["h2", "http/1.1"], sni={"a.example": authority.pair("a.example")}
    )
    client = authority.trust()
    if offered:
        client.set_alpn_protocols(offered)
    assert Talk(keyring.context, client, name).server.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("name", ["localhost", "a.example"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_client_must_show_a_certificate_if_an_authority_is_named(
    authority: Authority, name: str, folder: bool, tmp_path: Path
) -> None:
    shutil.copy(authority.ca_file, tmp_path / "some-name.pem")
    (tmp_path / "README").write_text("no certificate")
    keyring = _keyring(
        *authority.pair("localhost"),
        client_ca=tmp_path if folder else authority.ca_file,
        sni={"a.example": authority.pair("a.example")},
    )
    assert Talk(keyring.context, authority.trust(pair=authority.client("me")), name).server.getpeercert()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        Talk(keyring.context, authority.trust(), name)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        Talk(keyring.context, authority.trust(pair=Authority(tmp_path).client("me")), name)


def test_a_client_may_show_a_certificate_if_it_is_optional(authority: Authority) -> None:
    keyring = _keyring(*authority.pair("localhost"), client_ca=authority.ca_file, client_certificates="optional")
    assert Talk(keyring.context, authority.trust(pair=authority.client("me"))).server.getpeercert()
    assert Talk(keyring.context, authority.trust()).server.getpeercert() is None


def test_a_client_is_not_asked_for_a_certificate_if_no_authority_is_named(authority: Authority) -> None:
    keyring = _keyring(*authority.pair("localhost"))
    assert Talk(keyring.context, authority.trust(pair=authority.client("me"))).server.getpeercert() is None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@pytest.mark.parametrize(
    ("minimum", "refused"), [("1.2", ssl.TLSVersion.TLSv1_1), ("1.3", ssl.TLSVersion.TLSv1_2)], ids=["1.1", "1.2"]
)
def test_older_versions_are_refused(authority: Authority, minimum: str, refused: ssl.TLSVersion) -> None:
    keyring = _keyring(*authority.pair("localhost"), minimum_version=minimum)
    client = authority.trust()
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = refused
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|protocol.version"):
        Talk(keyring.context, client)


def test_ciphers_are_those_that_are_named(authority: Authority) -> None:
    keyring = _keyring(*authority.pair("localhost"), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    client = authority.trust()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    cipher = Talk(keyring.context, client).server.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_nothing_is_compressed_or_renegotiated_and_an_end_that_was_cut_off_is_told(authority: Authority) -> None:
    options = _keyring(*authority.pair("localhost")).context.options
    assert options & ssl.OP_NO_RENEGOTIATION
    assert options & ssl.OP_NO_COMPRESSION
    assert options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert not options & ssl.OP_IGNORE_UNEXPECTED_EOF


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3,), reason="kTLS came with OpenSSL 3")
@pytest.mark.parametrize(
    ("ktls", "blocking", "on"), [(None, True, True), (True, True, True), (False, True, False), (None, False, False)]
)
def test_the_kernel_encrypts_for_blocking_ways_alone(
    authority: Authority, ktls: bool | None, blocking: bool, on: bool
) -> None:
    keyring = Keyring(TLS(*authority.pair("localhost"), ktls=ktls), blocking=blocking)
    assert bool(keyring.context.options & 8) is on


def test_a_given_context_renegotiates_no_more_and_keeps_all_else(authority: Authority) -> None:
    context = _context(*authority.pair("localhost"))
    before = context.options
    keyring = Keyring(context, blocking=True)
    assert keyring.context is context
    assert context.options == before | ssl.OP_NO_RENEGOTIATION


# --- What cannot be used ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(authority: Authority) -> dict[str, Any]:
    """All that may be wrong with files, by the names that the texts have for them."""
    certificate, key = authority.pair("localhost")
    _, other = authority.pair("localhost")
    rsa = authority.pair("localhost", key_type=trustme.KeyType.RSA)[1]
    locked_certificate, locked = authority.pair("localhost", password="geheim")
    folder = authority.folder / "broken"
    folder.mkdir()
    for name, kind in (("broken.pem", "CERTIFICATE"), ("broken-key.pem", "PRIVATE KEY")):
        (folder / name).write_text(f"-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")
    (folder / "empty").mkdir()
    return {
        "cert": certificate, "key": key, "other": other, "rsa": rsa, "lcert": locked_certificate, "locked": locked,
        "broken": folder / "broken.pem", "brokenkey": folder / "broken-key.pem", "folder": folder / "empty",
        "none": folder / "none.pem", "ca": authority.ca_file,
    }  # fmt: skip


def _no_vault() -> str:
    raise RuntimeError("the vault is shut")


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("cert", "other"), {}, "{other} does not belong to the certificate in {cert}"),
        (("cert", "rsa"), {}, "{rsa} is of another kind than the certificate in {cert}, and does not belong to it"),
        (("cert",), {}, "{cert} holds no private key, and no key was given"),
        (("cert", "cert"), {}, "{cert} holds no private key"),
        (("key", "key"), {}, "{key} holds no certificate"),
        (("none", "key"), {}, "cannot read {none}: No such file or directory"),
        (("cert", "none"), {}, "cannot read {none}: No such file or directory"),
        (("folder", "key"), {}, "cannot read {folder}: Is a directory"),
        (("broken", "key"), {}, "{broken} holds no certificate that OpenSSL can read"),
        (("cert", "brokenkey"), {}, "{brokenkey} holds no private key that OpenSSL can read"),
        (("lcert", "locked"), {}, "{locked} needs a password"),
        (("lcert", "locked"), {"password": "x"}, "{locked}: wrong password"),
        (("lcert", "locked"), {"password": lambda: b"x"}, "{locked}: wrong password"),
        (
            ("lcert", "locked"),
            {"password": _no_vault},
            "{locked}: its password could not be had: RuntimeError: the vault is shut",
        ),
        (
            ("lcert", "locked"),
            {"password": lambda: 3},
            "{locked}: its password could not be had: TypeError: it returned int, not text or bytes",
        ),
        (("cert", "key"), {"ciphers": "nonsense"}, "ciphers: OpenSSL has none that are meant by 'nonsense'"),
        (("cert", "key"), {"client_ca": "{key}"}, "{key} holds no certificate"),
        (("cert", "key"), {"client_ca": "{none}"}, "cannot read {none}: No such file or directory"),
        (("cert", "key"), {"client_ca": "{broken}"}, "{broken} holds no certificate that OpenSSL can read"),
        (("cert", "key"), {"client_ca": "{folder}"}, "{folder} has no file with a certificate in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_with_files_is_said_of_the_file_that_is_wrong(
    files: dict[str, Any], names: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    options = {name: value.format(**files) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(TLSError) as error:
        _keyring(*[files[name] for name in names], **options)
    assert str(error.value) == said.format(**files)


def test_a_pair_for_a_name_is_as_wrong_as_the_first(files: dict[str, Any]) -> None:
    with pytest.raises(TLSError, match="does not belong to the certificate"):
        _keyring(files["cert"], files["key"], sni={"a.example": (files["cert"], files["other"])})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read_is_named(authority: Authority) -> None:
    certificate, key = authority.pair("localhost")
    key.chmod(0)
    with pytest.raises(TLSError, match=f"cannot read {key}: Permission denied"):
        _keyring(certificate, key)


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(authority: Authority, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TLSError, match="it is no regular file"):
        _keyring(authority.pair("localhost")[0], tmp_path / "pipe")


@pytest.mark.parametrize("password", ["geheim", b"geheim", lambda: "geheim", lambda: bytearray(b"geheim")])
def test_a_key_opens_with_its_password(authority: Authority, password: Any) -> None:
    keyring = _keyring(*authority.pair("localhost", password="geheim"), password=password)
    assert Talk(keyring.context, authority.trust()).names == {"localhost"}


def test_one_file_may_hold_both(authority: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(file.read_bytes() for file in reversed(authority.pair("localhost"))))
    assert Talk(_keyring(both).context, authority.trust()).names == {"localhost"}


def test_a_context_for_clients_is_refused() -> None:
    with pytest.raises(TLSError, match="the SSLContext is one for clients: make it by"):
        Keyring(ssl.create_default_context(), blocking=True)


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_context_without_a_certificate_is_refused(most: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = most
    with pytest.raises(TLSError, match="the SSLContext has no certificate that fits"):
        Keyring(context, blocking=True)


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_context_that_demands_certificates_is_tried_all_the_same(authority: Authority, most: ssl.TLSVersion) -> None:
    context = _context(*authority.pair("localhost"))
    context.maximum_version = most
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    days = Keyring(context, blocking=True).expires_in()
    assert days is not None
    assert 29 < days < 30


def test_what_is_neither_a_description_nor_a_context_is_refused() -> None:
    wrong: Any = "cert.pem"
    with pytest.raises(SettingError, match=r"tls must be a portico.TLS or an ssl.SSLContext, not 'cert.pem'"):
        Keyring(wrong, blocking=True)


# --- How long they last -------------------------------------------------------------------------------------------


def test_the_first_certificate_that_ends_is_told_of_whosever_it_is(authority: Authority) -> None:
    sni = {"a.example": authority.pair("a.example", days=7), "b.example": authority.pair("b.example", days=90)}
    keyring = _keyring(*authority.pair("localhost", days=20), sni=sni)
    days = keyring.expires_in()
    assert days is not None
    assert 6.9 < days < 7
    assert keyring.expires_in(0.0) == pytest.approx(keyring.expires_in(86400.0) + 1)  # type: ignore[operator]


def test_an_expired_certificate_is_used_and_told_of(authority: Authority) -> None:
    days = _keyring(*authority.pair("localhost", expired=True)).expires_in()
    assert days is not None
    assert -1.1 < days < -0.9


def test_an_expired_certificate_in_the_chain_is_told_of(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.pair("localhost")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate.read_bytes() + authority.pair("between", expired=True)[0].read_bytes())
    days = _keyring(chain, key).expires_in()
    assert days is not None
    assert days < 0


# --- How they are replaced ----------------------------------------------------------------------------------------


class Files:
    """A pair of files that is replaced while a server runs, and the time that its keyring is told."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.now = 100.0
        self.write(authority.pair("old.example"))
        self.keyring = Keyring(TLS(self.certificate, self.key), blocking=True, watch=5)
        assert self.look() is None

    def write(self, pair: tuple[Path, Path], *, key: bool = True, certificate: bool = True) -> None:
        for file, source, wanted in ((self.certificate, pair[0], certificate), (self.key, pair[1], key)):
            if wanted:
                new = file.with_suffix(".new")
                shutil.copyfile(source, new)
                new.replace(file)

    def look(self, after: float = 6.0) -> TLSError | None:
        self.now += after
        return self.keyring.look(self.now)

    def shown(self, name: str) -> bool:
        try:
            return Talk(self.keyring.context, self.authority.trust(), name).names == {name}
        except ssl.SSLCertVerificationError:
            return False


@pytest.fixture
def replaced(authority: Authority, tmp_path: Path) -> Files:
    return Files(authority, tmp_path)


def test_files_that_stay_are_not_loaded_again(replaced: Files) -> None:
    context = replaced.keyring.context
    assert [replaced.look() for _ in range(3)] == [None] * 3
    assert (replaced.keyring.loads, replaced.keyring.context) == (1, context)


def test_a_new_pair_is_found_when_it_is_time(replaced: Files) -> None:
    replaced.write(replaced.authority.pair("new.example"))
    assert replaced.look(after=4.9) is None
    assert replaced.shown("old.example")
    assert replaced.look(after=0.2) is None
    assert replaced.shown("new.example")
    assert replaced.keyring.loads == 2


def test_half_a_pair_is_passed_over_in_silence(replaced: Files) -> None:
    pair = replaced.authority.pair("new.example")
    replaced.write(pair, key=False)
    assert replaced.look() is None
    assert replaced.shown("old.example")
    replaced.write(pair, certificate=False)
    assert replaced.look() is None
    assert replaced.shown("new.example")


def test_a_pair_that_still_does_not_fit_at_the_second_look_is_told_of_once(replaced: Files) -> None:
    replaced.write(replaced.authority.pair("new.example"), key=False)
    assert replaced.look() is None
    error = replaced.look()
    assert isinstance(error, TLSError)
    assert str(error) == f"{replaced.key} does not belong to the certificate in {replaced.certificate}"
    assert [replaced.look() for _ in range(3)] == [None] * 3
    assert replaced.shown("old.example")
    replaced.write(replaced.authority.pair("other.example"), key=False)
    assert replaced.look() is None
    assert isinstance(replaced.look(), TLSError)
    replaced.write(replaced.authority.pair("last.example"))
    assert replaced.look() is None
    assert replaced.shown("last.example")


def test_a_file_that_is_gone_is_told_of_and_found_again(replaced: Files) -> None:
    replaced.key.unlink()
    assert replaced.look() is None
    assert "No such file" in str(replaced.look())
    replaced.write(replaced.authority.pair("new.example"))
    assert replaced.look() is None
    assert replaced.shown("new.example")


def test_files_that_are_put_back_are_as_they_were(replaced: Files) -> None:
    content, found = replaced.key.read_bytes(), replaced.key.stat()
    replaced.key.write_bytes(b"nonsense")
    assert replaced.look() is None
    replaced.key.write_bytes(content)
    os.utime(replaced.key, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert [replaced.look() for _ in range(3)] == [None] * 3
    assert replaced.keyring.loads == 1


def test_a_touched_file_is_loaded_again(replaced: Files) -> None:
    os.utime(replaced.certificate, ns=(1, 1))
    assert replaced.look() is None
    assert replaced.keyring.loads == 2


def test_without_watch_nobody_looks(authority: Authority, tmp_path: Path) -> None:
    files = Files(authority, tmp_path)
    keyring = Keyring(files.keyring.source, blocking=True)
    files.write(authority.pair("new.example"))
    assert keyring.look(1e9) is None
    assert keyring.loads == 1


def test_who_looks_while_another_thread_loads_is_not_kept_waiting(authority: Authority) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        assert go.wait(10)
        return "geheim"

    certificate, key = authority.pair("localhost", password="geheim")
    go.set()
    keyring = Keyring(TLS(certificate, key, password=slow), blocking=True, watch=1)
    go.clear()
    inside.clear()
    os.utime(key, ns=(1, 1))
    thread = threading.Thread(target=keyring.look, args=(10.0,))
    thread.start()
    assert inside.wait(10)
    assert keyring.look(100.0) is None
    go.set()
    thread.join()
    assert keyring.loads == 2


def test_a_reload_by_hand_keeps_the_old_one_if_it_fails(replaced: Files) -> None:
    before = replaced.keyring.context, replaced.keyring.source
    replaced.write(replaced.authority.pair("new.example"), key=False)
    with pytest.raises(TLSError, match="does not belong to"):
        replaced.keyring.reload()
    with pytest.raises(TLSError, match="No such file"):
        replaced.keyring.reload(TLS("/no/such/file"))
    assert (replaced.keyring.context, replaced.keyring.source) == before
    assert replaced.shown("old.example")


def test_open_connections_stay_after_a_reload(replaced: Files) -> None:
    talk = Talk(replaced.keyring.context, replaced.authority.trust(), "old.example")
    replaced.write(replaced.authority.pair("new.example"))
    replaced.keyring.reload()
    talk.say(b"still here")
    assert replaced.shown("new.example")


def test_another_description_takes_over_and_its_files_are_watched(replaced: Files, authority: Authority) -> None:
    other = TLS(*authority.pair("b.example"))
    replaced.keyring.reload(other)
    assert replaced.keyring.source is other
    replaced.write(authority.pair("new.example"))
    assert replaced.look() is None
    assert replaced.shown("b.example")
    os.utime(other.certificate, ns=(1, 1))
    replaced.look()
    assert replaced.keyring.loads == 3


def test_a_context_is_replaced_by_another_one_only(authority: Authority) -> None:
    keyring = Keyring(_context(*authority.pair("localhost")), blocking=True, watch=1)
    assert keyring.look(1.0) is None
    with pytest.raises(TLSError, match="an SSLContext cannot be loaded anew: hand in a new one"):
        keyring.reload()
    new = _context(*authority.pair("new.example"))
    keyring.reload(new)
    assert keyring.context is keyring.source is new
    with pytest.raises(SettingError, match=r"tls must be a portico\.TLS"):
        keyring.reload(3)  # type: ignore[arg-type]

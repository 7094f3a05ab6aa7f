"""What a certificate says: its end, and a client's names."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from portico._certificates import PeerCertificate, not_after
from portico._keyring import Keyring
from portico.tls import TLS

from .certificates import Authority, Talk

KEY = ec.generate_private_key(ec.SECP256R1())


def _signed(end: datetime, *, names: list[tuple[Any, str]] | None = None) -> bytes:
    name = x509.Name([x509.NameAttribute(kind, text) for kind, text in names or [(NameOID.COMMON_NAME, "x")]])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1)
    made = builder.not_valid_before(datetime(1990, 1, 1)).not_valid_after(end).sign(KEY, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


SIGNED = _signed(datetime(2031, 5, 6, 7, 8, 9, tzinfo=timezone.utc))  # noqa: UP017


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2999, 9999])
def test_the_end_is_read_in_both_spellings_of_time(year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 59, tzinfo=timezone.utc)  # noqa: UP017
    assert not_after(_signed(end)) == end.timestamp()


@given(st.binary(max_size=300))
def test_any_bytes_have_an_end_or_are_no_certificate(der: bytes) -> None:
    try:
        assert isinstance(not_after(der), float)
    except ValueError:
        pass


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_certificate_has_an_end_or_is_none(data: Any) -> None:
    der = bytearray(SIGNED)
    for place in data.draw(st.lists(st.integers(0, len(der) - 1), max_size=4)):
        der[place] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(not_after(bytes(der)), float)
    except ValueError:
        pass


def test_a_certificate_that_is_cut_off_is_none() -> None:
    for length in range(len(SIGNED)):
        with pytest.raises(ValueError, match="no certificate"):
            not_after(SIGNED[:length])


def _peer(authority: Authority, *pair: Any) -> PeerCertificate | None:
    server = Keyring(
        TLS(*authority.pair("localhost"), client_ca=authority.ca_file, client_certificates="optional"), blocking=True
    )
    talk = Talk(server.context, authority.trust(pair=pair[0] if pair else None))
    return PeerCertificate.of(talk.server)


def test_a_client_is_known_by_all_its_names(authority: Authority) -> None:
    pair = authority.client(
        "client", "a.example", "*.b.example", "192.0.2.1", "2001:db8::1", "me@c.example", organization_name="Acme, Inc."
    )
    peer = _peer(authority, pair)
    assert peer is not None
    assert peer.subject.startswith("CN=client,OU=Testing cert")
    assert peer.subject.endswith("O=Acme\\, Inc.")
    assert peer.common_name == "client"
    assert set(peer.sans) == {
        "DNS:a.example",
        "DNS:*.b.example",
        "IP:192.0.2.1",
        "IP:2001:db8::1",
        "email:me@c.example",
    }
    assert set(peer.names[:-1]) == {san.partition(":")[2] for san in peer.sans}
    assert peer.names[-1] == "client"
    assert peer.der == ssl.PEM_cert_to_DER_cert(pair[0].read_text().partition("-----END")[0] + _END)
    assert peer.fingerprint == sha256(peer.der).hexdigest()
    assert peer.issuer.startswith("OU=Testing CA")
    assert int(peer.serial, 16) == x509.load_der_x509_certificate(peer.der).serial_number
    assert abs(peer.not_after - (datetime.now() + timedelta(days=30)).timestamp()) < 600
    assert repr(peer) == f"<PeerCertificate {peer.subject}>"


_END = "-----END CERTIFICATE-----\n"


def test_a_common_name_that_is_a_san_is_there_once(authority: Authority) -> None:
    peer = _peer(authority, authority.client("a.example"))
    assert peer is not None
    assert peer.names == ("a.example",)


def test_a_client_without_a_certificate_has_none(authority: Authority) -> None:
    assert _peer(authority) is None


def test_what_a_name_holds_cannot_end_it() -> None:
    fields = {
        "subject": (
            (("countryName", "DE"),),
            (("organizationName", "#A+B"), ("serialNumber", " 7 ")),
            (("commonName", 'evil,O=Acme\r\nX: "1"\0'),),
        ),
        "subjectAltName": (
            ("URI", "spiffe://a/b"),
            ("DirName", ((("commonName", "d"),),)),
            ("othername", "<unsupported>"),
            ("IP Address", "2001:DB8:0:0:0:0:0:1\n"),
            ("IP Address", "<invalid>"),
        ),
    }
    peer = PeerCertificate(b"", fields)
    assert peer.subject == r"CN=evil\,O=Acme\0D\0AX: \"1\"\00,O=\#A\+B+serialNumber=\ 7\ ,C=DE"
    assert peer.sans == ("URI:spiffe://a/b", "IP:2001:db8::1", "IP:<invalid>")


def test_a_certificate_without_names_has_none() -> None:
    peer = PeerCertificate(SIGNED, {})
    assert (peer.subject, peer.issuer, peer.serial, peer.common_name) == ("", "", "", None)
    assert (peer.sans, peer.names) == ((), ())

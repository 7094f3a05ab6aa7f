"""`portico.tls.TLS`: values, what is refused, and in which words."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from portico.errors import SettingError, UnknownSettingError
from portico.tls import TLS


def test_a_description_reads_nothing_and_imports_no_ssl() -> None:
    code = (
        "import sys; from portico.tls import TLS; TLS('/no/such/cert.pem', '/no/such/key.pem', client_ca='/no/ca');"
        "print('ssl' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_defaults_are_those_that_are_told() -> None:
    tls = TLS("cert.pem")
    assert (tls.certificate, tls.key, tls.password, dict(tls.sni), tls.alpn) == ("cert.pem", None, None, {}, ())
    assert (tls.client_ca, tls.client_certificates, tls.minimum_version) == (None, "none", "1.2")
    assert (tls.ciphers, tls.ktls) == (None, None)
    assert TLS("cert.pem", client_ca="ca.pem").client_certificates == "required"


def test_paths_may_be_paths_or_bytes() -> None:
    assert TLS(Path("a/cert.pem"), b"a/key.pem") == TLS("a/cert.pem", "a/key.pem")


def test_names_are_compared_in_lower_case_and_pairs_may_lack_a_key() -> None:
    tls = TLS("c", sni={"B.Example": ("b", "k"), "*.xn--bcher-kva.example": "w"})
    assert dict(tls.sni) == {"b.example": ("b", "k"), "*.xn--bcher-kva.example": ("w", None)}


def test_files_are_all_that_is_read_each_once() -> None:
    tls = TLS("c", "k", sni={"a.example": ("c", "k"), "b.example": ("b", "k"), "d.example": "d"}, client_ca="ca")
    assert tls.files == ("c", "k", "b", "d", "ca")


def test_a_description_does_not_change() -> None:
    tls = TLS("cert.pem", sni={"a.example": "b"})
    with pytest.raises(AttributeError, match="does not change"):
        tls.key = "other.pem"
    with pytest.raises(AttributeError, match="does not change"):
        del tls.key
    with pytest.raises(TypeError):
        tls.sni["b.example"] = ("x", None)  # type: ignore[index]


def test_equal_are_those_with_equal_options() -> None:
    tls = TLS("c", "k", alpn=["h2"], password="x")
    assert tls == TLS("c", "k", alpn=("h2",), password="x")
    assert hash(tls) == hash(TLS("c", "k", alpn=("h2",), password="x"))
    assert tls != TLS("c", "k", alpn=["h2"], password="y")
    assert tls != "c"


def test_a_description_shows_what_was_given_but_no_password() -> None:
    tls = TLS("c", "k", alpn=["h2"], password="geheim", client_ca="ca")
    assert repr(tls) == "TLS('c', 'k', password=..., alpn=('h2',), client_ca='ca')"
    assert repr(TLS("c")) == "TLS('c')"


def test_copies_and_pickles_are_equal() -> None:
    tls = TLS("c", "k", sni={"a.example": "b"}, client_ca="ca", client_certificates="optional", ktls=False)
    assert pickle.loads(pickle.dumps(tls)) == copy.deepcopy(tls) == tls


def test_an_unknown_option_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UnknownSettingError, match=r"TLS: cert_file: no such option; there are password, sni, .*ktls"):
        TLS("c", cert_file="d")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"minimum_version": "1.0"}, """TLS: minimum_version must be "1.2" or "1.3", not '1.0'"""),
    ({"minimum_version": 1.2}, """TLS: minimum_version must be "1.2" or "1.3", not 1.2"""),
    ({"minimum_version": None}, """TLS: minimum_version must be "1.2" or "1.3", not None"""),
    ({"alpn": "h2"}, """such as "h2", not 'h2'"""),
    ({"alpn": ["h2", ""]}, "'' is none"),
    ({"alpn": ["x" * 256]}, "is none"),
    ({"alpn": [b"h2"]}, "b'h2' is none"),
    ({"ktls": 1}, "TLS: ktls must be true, false, or none for wherever it is to be had, not 1"),
    ({"ciphers": ""}, "TLS: ciphers must be OpenSSL's text"),
    ({"client_ca": 3}, "TLS: client_ca must be the path of a PEM file or of a folder"),
    ({"client_certificates": "maybe"}, """must be "none", "optional" or "required", not 'maybe'"""),
    ({"client_certificates": "required"}, 'client_certificates="required" needs a client_ca'),
    ({"client_certificates": "optional"}, 'client_certificates="optional" needs a client_ca'),
    ({"client_ca": "ca", "client_certificates": "none"}, 'client_ca is of no use with client_certificates="none"'),
    ({"sni": ["c"]}, "TLS: sni must be a dict of server names"),
    ({"sni": {"bücher.example": "c"}}, "'bücher.example' is no server name"),
    ({"sni": {"*": "c"}}, "'*' is no server name"),
    ({"sni": {"a.*.example": "c"}}, "'a.*.example' is no server name"),
    ({"sni": {"a.example:443": "c"}}, "'a.example:443' is no server name"),
    ({"sni": {"a.example.": "c"}}, "'a.example.' is no server name"),
    ({"sni": {"a" * 64: "c"}}, "is no server name"),
    ({"sni": {"a.example": 3}}, "3 is neither a file nor a pair of files"),
    ({"sni": {"a.example": ("c", "k", "x")}}, "is neither a file nor a pair of files"),
    ({"sni": {"a.example": "c", "A.EXAMPLE": "d"}}, "'A.EXAMPLE' is there twice"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_in_words(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        TLS("cert.pem", **options)
    assert said in str(refused.value)


def test_a_wrong_password_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingError, match=r"not a value of type int") as refused:
        TLS("cert.pem", password=4711)
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize("certificate", [3, "", None, "a\0b"])
def test_a_certificate_must_be_a_path(certificate: Any) -> None:
    with pytest.raises(SettingError, match="TLS: certificate must be a path of a PEM file"):
        TLS(certificate)


def test_a_key_must_be_a_path() -> None:
    with pytest.raises(SettingError, match="TLS: key must be a path of a PEM file, not 3"):
        TLS("cert.pem", 3)  # type: ignore[arg-type]

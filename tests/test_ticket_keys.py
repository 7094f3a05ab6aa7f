"""Session tickets stay good over a reload, and where their keys cannot be reached nothing breaks."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from portico import _ticket_keys
from portico._keyring import Keyring
from portico._ticket_keys import LENGTH, TicketKeys
from portico.tls import TLS

from .certificates import Authority, Talk

reachable = pytest.mark.skipif(
    TicketKeys.of(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) is None,
    reason="this Python shows no way to OpenSSL's ticket keys",
)


@reachable
def test_keys_that_are_given_are_those_that_a_context_has() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys = TicketKeys()
    own = TicketKeys.of(context)
    assert own is not None
    assert own.secret != keys.secret
    assert keys.apply(context)
    read = TicketKeys.of(context)
    assert read is not None
    assert read.secret == keys.secret


@reachable
def test_contexts_of_subclasses_have_theirs_in_the_same_place() -> None:
    class Sub(ssl.SSLContext):
        pass

    context = Sub(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    assert TicketKeys().apply(context)


def test_what_is_no_context_is_left_alone() -> None:
    class Looks:
        options = verify_mode = 0

    impostor: Any = Looks()
    assert TicketKeys.of(impostor) is None
    assert TicketKeys().apply(impostor) is False


def test_a_context_that_does_not_say_what_openssl_says_is_left_alone() -> None:
    class Other(ssl.SSLContext):
        @property
        def options(self) -> Any:
            return 1

        @options.setter
        def options(self, value: Any) -> None: ...

    assert TicketKeys().apply(Other(ssl.PROTOCOL_TLS_SERVER)) is False


def test_keys_are_of_one_length_and_never_shown() -> None:
    with pytest.raises(ValueError, match="ticket keys are 80 bytes, not 3"):
        TicketKeys(b"abc")
    keys = TicketKeys(bytes(LENGTH))
    assert keys.secret == bytes(LENGTH)
    assert repr(keys) == "<TicketKeys>"


def _client(authority: Authority, version: ssl.TLSVersion) -> ssl.SSLContext:
    client = authority.trust()
    client.minimum_version = client.maximum_version = version
    return client


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@reachable
@VERSIONS
def test_a_session_is_resumed_after_a_reload(authority: Authority, version: ssl.TLSVersion) -> None:
    keyring = Keyring(TLS(*authority.pair("localhost")), blocking=True)
    client = _client(authority, version)
    before = keyring.context
    session = Talk(before, client).client.session
    keyring.reload()
    assert keyring.context is not before
    assert Talk(keyring.context, client, session=session).client.session_reused


@reachable
@VERSIONS
def test_a_session_is_resumed_by_another_server_with_the_same_keys(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    pair = authority.pair("localhost")
    keys = TicketKeys()
    one, other = (Keyring(TLS(*pair), blocking=True, tickets=TicketKeys(keys.secret)) for _ in range(2))
    client = _client(authority, version)
    session = Talk(one.context, client).client.session
    assert Talk(other.context, client, session=session).client.session_reused


@reachable
def test_a_session_with_a_clients_certificate_and_another_name_is_resumed(authority: Authority) -> None:
    description = TLS(
        *authority.pair("localhost"), sni={"b.example": authority.pair("b.example")}, client_ca=authority.ca_file
    )
    keyring = Keyring(description, blocking=True)
    client = authority.trust(pair=authority.client("me"))
    session = Talk(keyring.context, client, "b.example").client.session
    keyring.reload()
    talk = Talk(keyring.context, client, "b.example", session)
    assert talk.client.session_reused
    assert talk.server.getpeercert()


@reachable
def test_a_context_that_is_given_keeps_the_keys_that_it_has(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.pair("localhost"))
    one, other = Keyring(context, blocking=True), Keyring(context, blocking=False)
    assert one.tickets is not None
    assert other.tickets is not None
    assert one.tickets.secret == other.tickets.secret
    new = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.load_cert_chain(*authority.pair("localhost"))
    one.reload(new)
    applied = TicketKeys.of(new)
    assert applied is not None
    assert applied.secret == one.tickets.secret


def test_without_a_way_to_the_keys_a_reload_goes_on(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ticket_keys, "_KNOWN", ())  # as on a Python that nobody has looked into
    keyring = Keyring(TLS(*authority.pair("localhost")), blocking=True)
    assert keyring.tickets is None
    keyring.reload()
    assert Talk(keyring.context, authority.trust()).names == {"localhost"}


@reachable
@pytest.mark.parametrize("asked", ["optional", "required"])
def test_a_session_that_began_under_other_rules_is_not_resumed(authority: Authority, asked: str) -> None:
    """Or who had no certificate when none was asked for would need none now."""
    pair = authority.pair("localhost")
    keyring = Keyring(TLS(*pair), blocking=True)
    client = authority.trust(pair=authority.client("me"))
    session = Talk(keyring.context, client).client.session
    keyring.reload(TLS(*pair, client_ca=authority.ca_file, client_certificates=asked))
    talk = Talk(keyring.context, client, session=session)
    assert not talk.client.session_reused
    assert talk.server.getpeercert()


@reachable
def test_a_session_of_a_client_whose_authority_has_left_is_not_resumed(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.ca_file.read_bytes())
    keyring = Keyring(TLS(*authority.pair("localhost"), client_ca=ca), blocking=True)
    client = authority.trust(pair=authority.client("me"))
    session = Talk(keyring.context, client).client.session
    ca.write_bytes(Authority(tmp_path).ca_file.read_bytes())
    keyring.reload()
    with pytest.raises(ssl.SSLError):
        Talk(keyring.context, client, session=session)


@reachable
def test_a_new_context_that_asks_for_certificates_takes_no_sessions_of_the_old_one(authority: Authority) -> None:
    keyring = Keyring(TLS(*authority.pair("localhost")), blocking=True)
    client = authority.trust()
    session = Talk(keyring.context, client).client.session
    new = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.load_cert_chain(*authority.pair("localhost"))
    new.load_verify_locations(authority.ca_file)
    new.verify_mode = ssl.CERT_OPTIONAL
    keyring.reload(new)
    assert not Talk(keyring.context, client, session=session).client.session_reused

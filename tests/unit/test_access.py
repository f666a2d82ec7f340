"""Access: tokens, boards, origins, proxies and rates."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from relay.auth.addresses import rate_key, source
from relay.auth.gate import ForeignOrigin, Gate, TooMany, Visitor
from relay.auth.keys import AccessError, signing_keys
from relay.auth.rates import Rates
from relay.auth.tokens import Access, Pattern, Refused, UnknownKey, static_tokens, token_lines
from relay.config.origins import Origins
from relay.config.proxies import Proxies

SECRET = "a secret that is long enough, by far, for every algorithm that there is"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(*more: dict[str, Any]) -> str:
    """Return a set of two keys, and more."""
    keys = [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"},
        ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec"},
    ]
    return json.dumps({"keys": [*keys, *more]})


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: Any) -> str:
    """Sign a token that is good for a minute, if nothing else is said."""
    claims = {"exp": time.time() + 60, "boards": ["a"]} | claims
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key,
        algorithm,
        headers={"kid": kid} if kid else None,
    )


def signed(**options: Any) -> Access:
    return Access(secret=SECRET, keys=signing_keys(jwks(), "test"), **options)


# Boards


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("a", ["a"], ["", "A", "aa", "a*"]),
        ("*", ["", "a", "ä/*\n"], []),
        ("team-*", ["team-", "team-1"], ["team", "a-team-1"]),
        ("*-team", ["-team", "a-team"], ["team", "a-team-"]),
        ("a*b*c", ["abc", "a1b2c", "abbc", "abcbc"], ["ac", "acb", "ab"]),
        ("a*a", ["aa", "aba"], ["a"]),
        ("**", ["", "x"], []),
        ("[ab]?", ["[ab]?"], ["a1"]),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, names: list[str], others: list[str]) -> None:
    assert [name for name in names if not Pattern.of(pattern).matches(name)] == []
    assert [name for name in others if Pattern.of(pattern).matches(name)] == []


@given(st.lists(st.text("ab*", max_size=4), max_size=4), st.text("ab", max_size=12))
def test_a_pattern_matches_what_its_parts_are_found_in(parts: list[str], name: str) -> None:
    """As a slow reference says: try every place for every star."""

    def reference(pattern: str, rest: str) -> bool:
        if not pattern:
            return not rest
        if pattern[0] == "*":
            return any(reference(pattern[1:], rest[start:]) for start in range(len(rest) + 1))
        return rest[:1] == pattern[0] and reference(pattern[1:], rest[1:])

    text = "*".join(parts)
    if text.count("*") <= 5:
        assert Pattern.of(text).matches(name) == reference(text, name)


def test_a_hostile_name_is_matched_in_no_time() -> None:
    """A megabyte against many stars: a pattern that tried again would take years."""
    assert not Pattern.of("*a*a*a*a*a*a*b").matches("a" * 1_000_000)


# Static tokens


def test_a_static_token_is_worth_its_boards() -> None:
    access = Access(static_tokens(["all", "some:a,team-*"], "here"))
    assert access.grant("all").names("anything")
    assert [name for name in ("a", "b", "team-1") if access.grant("some").names(name)] == ["a", "team-1"]


@pytest.mark.parametrize("credential", [None, "", "al", "alll", "ALL", "all\0", "\ud800", "é" * 10_000])
def test_an_invalid_token_is_refused(credential: str | None) -> None:
    with pytest.raises(Refused):
        Access(static_tokens(["all"], "here")).grant(credential)


@pytest.mark.parametrize("entries", [[""], [":a"], ["t:"], ["t:,"], ["t", "t"], ["t:a", "t:b"]])
def test_bad_entries_are_named_by_number_and_not_shown(entries: list[str]) -> None:
    with pytest.raises(AccessError, match=rf"^here: entry {len(entries)} (is no|has the) token") as failure:
        static_tokens(entries, "here")
    assert "t:b" not in str(failure.value)


def test_a_file_of_tokens_may_have_comments() -> None:
    assert token_lines("# ours\n\n one \ntwo:a\n#three") == ["one", "two:a"]


def test_without_a_credential_configured_everybody_gets_in() -> None:
    assert Access().open
    assert Access().grant(None).names("anything") or Access().grant(None).boards is None


# JSON Web Tokens


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(SECRET, "HS256", None), (RSA, "RS256", "rsa"), (RSA, "RS256", None), (EC, "ES256", "ec")],
)
def test_a_signed_token_is_worth_what_it_says(key: Any, algorithm: str, kid: str | None) -> None:
    expires = int(time.time()) + 60
    grant = signed().grant(token(key, algorithm, kid, exp=expires, boards=["a", "b-*"], sub="me"))
    assert [name for name in ("a", "b", "b-1") if grant.names(name)] == ["a", "b-1"]
    assert grant.claims["sub"] == "me"
    assert grant.expires is not None
    assert expires <= grant.expires < expires + 60


@pytest.mark.parametrize(
    "wrong",
    [
        token(SECRET[::-1]),
        token(OTHER_RSA, "RS256", "rsa"),
        token(OTHER_RSA, "RS256"),
        token(exp=time.time() - 60),
        token(exp=None),
        token(exp="soon"),
        token(nbf=time.time() + 3600, exp=time.time() + 7200),
        token(SECRET, "HS512"),
        jwt.encode({"exp": time.time() + 60}, "", "none"),
        "a.b.c",
        "..",
        "e30.e30.",
        "[" * 10_000,
    ],
    ids=map(str, range(13)),
)
def test_a_token_that_is_wrong_in_any_way_is_refused(wrong: str) -> None:
    with pytest.raises(Refused) as failure:
        signed().grant(wrong)
    assert wrong not in str(failure.value)


def test_a_public_key_is_never_taken_for_a_secret() -> None:
    """The classic: the attacker signs with HS256 and the public key, which everybody has."""
    public = jwks()
    parts = [{"alg": "HS256", "kid": "rsa"}, {"exp": time.time() + 60, "boards": "*"}]
    signed_part = b".".join(base64url_encode(json.dumps(part).encode()) for part in parts)
    signature = hmac.digest(public.encode(), signed_part, "sha256")
    forged = (signed_part + b"." + base64url_encode(signature)).decode()
    with pytest.raises(Refused):
        Access(keys=signing_keys(public, "test")).grant(forged)


def test_an_unknown_key_is_distinguished_for_it_may_be_new() -> None:
    with pytest.raises(UnknownKey):
        signed().grant(token(RSA, "RS256", "next"))


ED25519, P384 = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("key", "jwk", "algorithm"),
    [
        (ED25519, OKPAlgorithm.to_jwk(ED25519.public_key(), as_dict=True), "EdDSA"),
        (P384, ECAlgorithm.to_jwk(P384.public_key(), as_dict=True), "ES384"),
        (OTHER_RSA, RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True), "PS256"),
        (OTHER_RSA, RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True), "RS512"),
    ],
)
def test_keys_of_other_kinds_are_good(key: Any, jwk: dict[str, Any], algorithm: str) -> None:
    """Without a name too, in the token or in the set: all that fit the algorithm are tried."""
    for kid in ({}, {"kid": "k"}):
        for headers in ({}, {"kid": "k"}):
            access = Access(keys=signing_keys(jwks(jwk | kid), "test"))
            signed_with_it = jwt.encode({"exp": time.time() + 60, "boards": ["a"]}, key, algorithm, headers=headers)
            assert access.grant(signed_with_it).names("a")


def test_a_token_without_a_name_of_its_key_is_tried_with_each() -> None:
    """As while keys are rotated; a key that names its algorithm is good for that alone."""
    second = RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True) | {"kid": "next"}
    nameless = token(OTHER_RSA, "RS256")
    assert Access(keys=signing_keys(jwks(second), "test")).grant(nameless).names("a")
    with pytest.raises(UnknownKey):
        Access(keys=signing_keys(jwks(second | {"alg": "PS256"}), "test")).grant(nameless)
    with pytest.raises(Refused, match="wrong signature"):
        Access(keys=signing_keys(jwks(second), "test")).grant(token(RSA, "RS256", "next"))


def test_audience_and_issuer_must_be_those_configured() -> None:
    access = signed(audience="relay", issuer="us")
    assert access.grant(token(aud=["relay", "other"], iss="us")).names("a")
    for claims in ({"iss": "us"}, {"aud": "other", "iss": "us"}, {"aud": "relay"}, {"aud": "relay", "iss": "them"}):
        with pytest.raises(Refused):
            access.grant(token(**claims))


def test_an_audience_is_ignored_if_none_is_configured() -> None:
    assert signed().grant(token(aud="other")).names("a")


@pytest.mark.parametrize("boards", [None, [], "", [1], {"a": 1}, 5, [["a"]]])
def test_a_token_that_names_no_boards_is_worth_none(boards: object) -> None:
    assert not signed().grant(token(boards=boards)).names("a")


def test_without_boards_in_the_token_the_database_decides_if_it_is_asked() -> None:
    access = signed(database_decides=True)
    assert access.grant(token(boards=None)).names("anything")
    assert not access.grant(token(boards=["a"])).names("b")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "YQ"}]}', '{"keys": 5}']
)
def test_an_invalid_set_of_keys_is_reported(text: str) -> None:
    with pytest.raises(AccessError, match=r"^here: "):
        signing_keys(text, "here")


def test_keys_that_are_for_something_else_are_left_out() -> None:
    oct_key = {"kty": "oct", "k": "YQ", "kid": "secret"}
    assert [key.kid for key in signing_keys(jwks(oct_key), "test")] == ["rsa", "ec"]


@given(st.text())
def test_no_text_whatever_breaks_it(text: str) -> None:
    """Whatever a stranger presents is refused in the same way."""
    access = Access(static_tokens(["all"], "here"), secret=SECRET, keys=signing_keys(jwks(), "test"))
    with pytest.raises(Refused):
        access.grant(text + ".")


# What a visitor presents


def test_a_credential_may_come_in_three_ways() -> None:
    for visitor in (
        Visitor("", authorization=["Bearer t"]),
        Visitor("", authorization=["Basic x", "bearer  t"]),
        Visitor("", subprotocols=["relay", "bearer.t"]),
        Visitor("", target="/?a=1&token=t"),
        Visitor("", target="/?token=%74"),
        Visitor("", authorization=["Bearer the-proxys"], subprotocols=["relay", "bearer.t"]),
        Visitor("", authorization=["Bearer the-proxys"], target="/?token=t"),
    ):
        assert visitor.credential == "t"


def test_a_subprotocol_may_hold_any_token() -> None:
    """A browser can offer no other characters than those of a header's token."""
    assert Visitor("", subprotocols=["bearer.a%2Bb%2Fc%3D%25"]).credential == "a+b/c=%"


@pytest.mark.parametrize("target", ["/", "/?", "/?token", "/?" + "a&" * 1000, "/?tokens=t", "/#?x"])
def test_no_credential_is_none(target: str) -> None:
    assert Visitor("", target=target, authorization=["Basic t"], subprotocols=["relay"]).credential is None


def test_pages_of_other_origins_are_refused() -> None:
    gate = Gate(origins=Origins.of(["http://localhost:4000"]))
    gate.admit(Visitor(""), 0)
    gate.admit(Visitor("", origins=["http://localhost:4000"]), 0)
    for origins in (["http://evil.example"], ["null"], ["http://localhost:4000", "http://evil.example"]):
        with pytest.raises(Refused, match="foreign origin"):
            gate.admit(Visitor("", origins=origins), 0)


def test_an_origin_may_be_required() -> None:
    with pytest.raises(Refused, match="no origin"):
        Gate(origins=Origins.of(["http://a"]), require_origin=True).admit(Visitor(""), 0)


# Where it comes from

PROXIES = Proxies.of("10.0.0.0/8, 192.0.2.7 ::1")


@pytest.mark.parametrize(
    ("peer", "host", "forwarded", "lets_in"),
    [
        ("10.0.0.1", "relay:4002", ["app.example.com"], True),
        ("10.0.0.1", "relay:4002", ["app.example.com", "inner.example.com"], True),
        ("10.0.0.1", "relay:4002", ["app.example.com:8443"], False),
        ("10.0.0.1", "app.example.com", ["evil.example"], False),
        ("10.0.0.1", "relay:4002", [], False),
        ("192.0.2.1", "relay:4002", ["app.example.com"], False),
        ("192.0.2.1", "app.example.com", ["evil.example"], True),
    ],
)
def test_the_host_that_a_trusted_proxy_was_asked_for_is_where_a_page_may_be_from(
    peer: str, host: str, forwarded: list[str], *, lets_in: bool
) -> None:
    gate = Gate(origins=Origins.of([]), trusted=Proxies.of("10.0.0.0/8"))
    visitor = Visitor(peer, origins=["https://app.example.com"], host=host, forwarded_hosts=forwarded)
    if lets_in:
        gate.admit(visitor, 0)
    else:
        with pytest.raises(ForeignOrigin):
            gate.admit(visitor, 0)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.1", [], "203.0.113.1"),
        ("203.0.113.1", ["198.51.100.1"], "203.0.113.1"),  # not a trusted proxy: anybody may write that header
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 192.0.2.7"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("", [""], ""),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: list[str], client: str) -> None:
    assert source(peer, forwarded, [], PROXIES).address == client


def test_a_client_of_ipv6_is_counted_by_its_network() -> None:
    assert rate_key("2001:db8::1") == rate_key("2001:db8::2:3") != rate_key("2001:db8:0:1::1")
    assert rate_key("::ffff:10.0.0.1") == rate_key("10.0.0.1") != rate_key("10.0.0.2")


# How many


def test_so_many_at_once_and_then_one_as_time_goes_by() -> None:
    rates = Rates(per_client=3, total=0)
    assert [rates.take("10.0.0.1", 100) for _ in range(3)] == [0, 0, 0]
    assert rates.take("10.0.0.1", 100) == pytest.approx(20)
    assert rates.take("10.0.0.1", 119) == pytest.approx(1)
    assert rates.take("10.0.0.1", 120.001) == 0
    assert rates.take("10.0.0.1", 121) > 0


def test_one_client_does_not_use_up_anothers() -> None:
    rates = Rates(per_client=1, total=0)
    assert [rates.take(f"10.0.0.{last}", 100) for last in (1, 1, 2)] == [0, pytest.approx(60), 0]


def test_a_visitor_that_is_refused_takes_nothing_of_the_total() -> None:
    rates = Rates(per_client=1, total=2)
    assert rates.take("10.0.0.1", 100) == 0
    assert all(rates.take("10.0.0.1", 100) for _ in range(10))
    assert rates.take("10.0.0.2", 100) == 0
    assert rates.take("10.0.0.3", 100) == pytest.approx(30)


def test_no_limit_is_none() -> None:
    rates = Rates(per_client=0, total=0)
    assert not any(rates.take("10.0.0.1", 100) for _ in range(10_000))


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    rates = Rates(per_client=1, total=0)
    assert rates.take("10.0.0.1", 100) == 0
    assert all(rates.take("10.0.0.1", now) > 0 for now in (100, 50, 100, 99))


def test_a_flood_is_refused_before_its_credentials_are_checked() -> None:
    gate = Gate(Access(static_tokens(["t"], "here")), rates=Rates(per_client=1, total=0))
    with pytest.raises(Refused, match="no credential"):
        gate.admit(Visitor("10.0.0.1"), 100)
    with pytest.raises(TooMany) as refused:
        gate.admit(Visitor("10.0.0.1", authorization=["Bearer t"]), 100)
    assert refused.value.seconds == 60

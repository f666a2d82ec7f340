"""The keys that JSON Web Tokens are signed with, and which algorithms each is good for. Pure.

The key decides which algorithm is good, never the token: a public key cannot be taken for a secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jwt

ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""The algorithms of a key, by its type and curve. A key that names one is good for that alone."""

SECRETS: Final = "HS256"
"""The algorithm of secrets."""

ASYMMETRIC: Final = "RS256, PS256, ES256, ES384 or EdDSA"
"""Those that people use, in words."""


class AccessError(Exception):
    """Why a configured credential cannot be used, in one line, without showing it."""


class Key(NamedTuple):
    """What tokens are signed with: its name, if it has one, and the algorithms that it is good for."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


def signing_keys(text: str | bytes, where: str) -> list[Key]:
    """Read a JWKS, the keys in it that sign tokens. Raises AccessError."""
    try:
        members = json.loads(text)["keys"]
        keys = [key for member in members if (key := _key(member))]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise AccessError(f"{where}: is no JWKS: expected a JSON object with keys for {ASYMMETRIC}") from None
    if not keys:
        raise AccessError(f"{where}: has no key for {ASYMMETRIC}: expected at least one")
    return keys


def _key(member: Any) -> Key | None:
    """Read a member of a JWKS; None if it is no key for tokens, or none that can be read."""
    if not isinstance(member, dict) or member.get("use", "sig") != "sig":
        return None
    found = ALGORITHMS.get((str(member.get("kty")), member.get("crv")), ())
    algorithms = tuple(each for each in found if member.get("alg", each) == each)
    if not algorithms:
        return None
    try:
        return Key(member.get("kid"), algorithms, jwt.PyJWK(member, algorithms[0]).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None

"""The keys that sign JSON Web Tokens, and the algorithms of each. Pure.

The key decides which algorithm is valid, never the token, so a public key cannot be mistaken for a secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""The algorithms of a key, by its type and curve. A key with an `alg` is valid for that algorithm only."""

SECRETS: Final = "HS256"
"""The algorithm of secrets."""

ASYMMETRIC: Final = "RS256, PS256, ES256, ES384 or EdDSA"
"""The usual algorithms, for error messages."""


class AccessError(Exception):
    """A configured credential cannot be used. The text says why, in one line, without showing it."""


class Key(NamedTuple):
    """A key that signs tokens: its name, if it has one, and its algorithms."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


def signing_keys(text: str | bytes, where: str) -> list[Key]:
    """Read the keys of a JWKS that sign tokens. Raises AccessError."""
    try:
        members = json.loads(text)["keys"]
        keys = [key for member in members if (key := _key(member))]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise AccessError(f"{where}: is no JWKS: expected a JSON object with keys for {ASYMMETRIC}") from None
    if not keys:
        raise AccessError(f"{where}: has no key for {ASYMMETRIC}: expected at least one")
    return keys


def _key(member: Any) -> Key | None:
    """Parse a member of a JWKS; return None if it is not a key for tokens, or cannot be read."""
    if not isinstance(member, dict) or member.get("use", "sig") != "sig":
        return None
    import jwt  # noqa: PLC0415  # as Access does

    found = ALGORITHMS.get((str(member.get("kty")), member.get("crv")), ())
    algorithms = tuple(each for each in found if member.get("alg", each) == each)
    if not algorithms:
        return None
    try:
        return Key(member.get("kid"), algorithms, jwt.PyJWK(member, algorithms[0]).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None

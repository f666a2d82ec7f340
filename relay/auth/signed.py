"""JSON Web Tokens: verifies signatures and returns claims. Pure.

The key decides which algorithm is valid; see keys.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from relay.auth.keys import ALGORITHMS, SECRETS, Key
from relay.auth.tokens import LEEWAY_SECONDS, Refused, UnknownKey


class SignedTokens:
    """Verifies tokens signed with a secret or one of several keys, for an audience and from an issuer."""

    def __init__(self, secret: str, keys: Sequence[Key] | None, audience: str, issuer: str) -> None:
        self._secret = secret
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    def claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token. Raises Refused."""
        try:
            return self._claims(token, jwt.get_unverified_header(token))
        except jwt.ExpiredSignatureError:
            raise Refused("expired token") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as ex:
            raise Refused(f"wrong token: {type(ex).__name__}") from None

    def _claims(self, token: str, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return the claims of a token that is signed with one of the keys. Raises Refused and jwt's errors."""
        algorithm, kid = str(header.get("alg")), header.get("kid")
        keys = [key for key in self._keys_of(algorithm) if kid is None or key.kid in {None, kid}]
        for key in keys:
            with contextlib.suppress(jwt.InvalidSignatureError):
                return jwt.decode(
                    token,
                    key.key,
                    algorithms=[algorithm],
                    audience=self._audience or None,
                    issuer=self._issuer or None,
                    leeway=LEEWAY_SECONDS,
                    options={"require": ["exp"], "verify_aud": bool(self._audience)},
                )
        if algorithm == SECRETS or (kid is not None and any(key.kid == kid for key in keys)):
            raise Refused("wrong token: wrong signature")
        if self._keys is not None and any(algorithm in each for each in ALGORITHMS.values()):
            raise UnknownKey("unknown key")
        raise Refused("wrong token: no key for its algorithm")

    def _keys_of(self, algorithm: str) -> list[Key]:
        """Return the keys of an algorithm. The secret is only for HS256, and HS256 only for the secret."""
        if algorithm == SECRETS:
            return [Key(None, (algorithm,), self._secret)] if self._secret else []
        return [key for key in self._keys or () if algorithm in key.algorithms]

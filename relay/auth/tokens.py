"""Tokens: which credentials are valid, and for which boards. Pure.

A *credential* is what a client presents: a static token or a JSON Web Token. A *grant* is what it allows: which
boards, and until when. An `Access` knows the valid credentials.

Rules:
- No credential is ever part of an error, a log line or a repr. To clients, all refusals are the same; the log has the
  reason.
- Static tokens are compared in constant time.
- Strangers choose the names of boards, so matching a name against a pattern takes linear time.
- If no credential is configured, everybody is admitted, as the guide's clients expect: `Access.open`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from relay.auth.keys import AccessError, Key

if TYPE_CHECKING:
    from relay.auth.signed import SignedTokens

LEEWAY_SECONDS: Final = 5
"""Maximum difference between the clocks of the relay and of the issuer of tokens."""


_OF_THE_TOKEN: Final = frozenset({"exp", "iat", "nbf", "jti"})
"""Claims about the token itself, not about the rights of its bearer."""


class Refused(Exception):
    """A client is not admitted. The text is the reason for the log, `status` the HTTP status."""

    status = HTTPStatus.UNAUTHORIZED


class UnknownKey(Refused):
    """The token is signed with an unknown key, which may be a new one."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of board names, in which each `*` matches any characters."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Parse a pattern."""
        return cls(tuple(text.split("*")))

    def matches(self, name: str) -> bool:
        """Return whether the name of a board matches."""
        first, *rest = self.parts
        if not rest:
            return name == first
        *middle, last = rest
        if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
            return False
        # The first match of a part leaves the most room for the next ones, so no other need be tried.
        place, end = len(first), len(name) - len(last)
        for part in middle:
            if (place := name.find(part, place, end)) < 0:
                return False
            place += len(part)
        return True


@dataclass(frozen=True, slots=True)
class Grant:
    """What a credential allows.

    `boards` are the patterns that it names; None leaves the decision to the database. `claims` are passed to the
    database, if it decides. `expires` is in seconds since the Unix epoch; None if it does not expire.
    """

    boards: tuple[Pattern, ...] | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    expires: float | None = None

    def allows_as(self, other: Grant) -> bool:
        """Return whether it allows the same as another, apart from the time of expiry."""
        return self.boards == other.boards and _lasting(self.claims) == _lasting(other.claims)

    def names(self, board: str) -> bool:
        """Return whether it allows a board, as far as the token decides."""
        return self.boards is None or any(pattern.matches(board) for pattern in self.boards)


def _lasting(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in _OF_THE_TOKEN}


EVERYBODY: Final = Grant()
"""The grant of every client if no credential is configured."""


class Access:
    """The valid credentials."""

    def __init__(  # one for each way to be known
        self,
        tokens: Mapping[bytes, Grant] | None = None,
        *,
        secret: str = "",
        keys: Sequence[Key] | None = None,
        audience: str = "",
        issuer: str = "",
        database_decides: bool = False,
    ) -> None:
        self._database_decides = database_decides
        self._tokens = dict(tokens or {})
        self._signed: SignedTokens | None = None
        if secret or keys is not None:
            # Imported only if needed, because this loads 10 MB of cryptography.
            from relay.auth.signed import SignedTokens  # noqa: PLC0415

            self._signed = SignedTokens(secret, keys, audience, issuer)

    @property
    def open(self) -> bool:
        """Whether everybody is admitted, because no credential is configured."""
        return not self._tokens and self._signed is None

    def grant(self, credential: str | None) -> Grant:
        """Return the grant of a credential. Raises Refused."""
        if self.open:
            return EVERYBODY
        if not credential:
            raise Refused("no credential")
        if (grant := self._static(credential)) is not None:
            return grant
        if self._signed is None:
            raise Refused("wrong credential")
        return self._granted(self._signed.claims(credential))

    def _granted(self, claims: Mapping[str, Any]) -> Grant:
        named = _boards(claims)
        if named is None and not self._database_decides:
            named = ()
        return Grant(named, claims, float(claims["exp"]) + LEEWAY_SECONDS)

    def _static(self, credential: str) -> Grant | None:
        """Compare with every token, so that the time does not depend on which one matches."""
        presented = digest(credential)
        found = None
        for known, grant in self._tokens.items():
            if hmac.compare_digest(known, presented):
                found = grant
        return found


def _boards(claims: Mapping[str, Any]) -> tuple[Pattern, ...] | None:
    """Return the boards that a token names: None without the claim, none if the claim is not a list of strings."""
    if "boards" not in claims:
        return None
    named = claims["boards"]
    if isinstance(named, str):
        named = [named]
    if not isinstance(named, list) or not all(isinstance(board, str) for board in named):
        return ()
    return tuple(map(Pattern.of, named))


def digest(token: str) -> bytes:
    """Return the digest of a static token, so that all compared values have the same length."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def static_tokens(entries: Iterable[str], where: str) -> dict[bytes, Grant]:
    """Parse configured tokens: `token`, for every board, or `token:board,team-*`.

    Raises AccessError, which names `where` and the number of the entry.
    """
    tokens: dict[bytes, Grant] = {}
    for number, entry in enumerate(entries, 1):
        token, colon, boards = entry.partition(":")
        named = [board for board in boards.split(",") if board]
        if not token or (colon and not named):
            raise AccessError(f"{where}: entry {number} is no token: expected token or token:board,board")
        if (key := digest(token)) in tokens:
            raise AccessError(f"{where}: entry {number} has the token of another: expected each once")
        named = named or ["*"]
        tokens[key] = Grant(tuple(map(Pattern.of, named)), {"boards": named})
    return tokens


def token_lines(text: str) -> list[str]:
    """Return the entries of a token file, one per line, without empty lines and those that begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]

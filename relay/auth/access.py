"""Who gets in, and to which boards. Pure: what the time is, and what stands in files and at addresses, it is told.

A *credential* is what a client presents: a static token, or a JSON Web Token. A *grant* is what it is worth: which
boards, and until when. An `Access` knows the credentials that are good.

Rules:
- No credential is ever part of an error, a log line or a repr. What is refused is refused in the same words, whatever
  was wrong with it; the reason is for the log.
- Static tokens are compared in constant time. Of a JSON Web Token, the key decides which algorithm is good, never the
  token: a public key cannot be taken for a secret.
- A board's name comes from strangers: matching it against a pattern takes time in proportion to its length.
- With no credential configured everybody gets in, as the guide's clients expect. `Access.open` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import jwt

from relay.auth import proxies
from relay.auth.proxies import Source, rate_key
from relay.config.origins import Origins
from relay.config.proxies import Proxies

LEEWAY_SECONDS: Final = 5
"""By how much the clocks of the relay and of who issues tokens may differ."""

_ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""The algorithms of a key, by its type and curve. A key that names one is good for that alone."""

_SECRETS: Final = "HS256"
"""The algorithm of secrets."""

ASYMMETRIC: Final = "RS256, PS256, ES256, ES384 or EdDSA"
"""Those that people use, in words."""


_OF_THE_TOKEN: Final = frozenset({"exp", "iat", "nbf", "jti"})
"""Claims that say when a token is good and which one it is, not what its bearer may."""

FLOOD: Final = "too many connections a minute"
"""What the log calls it, wherever it is noticed."""


class Refused(Exception):
    """Why somebody does not get in, in a word for the log; and what HTTP says to that."""

    status = HTTPStatus.UNAUTHORIZED


class ForeignOrigin(Refused):
    """A page of an origin that is not allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__("foreign origin")
        self.origin = origin


class UnknownKey(Refused):
    """The token is signed with a key that is not known, perhaps not yet."""


class TooMany(Refused):
    """Too many connections came; there is room for one again in so many seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        super().__init__(FLOOD)
        self.seconds = math.ceil(seconds)


class AccessError(Exception):
    """Why a configured credential cannot be used, in one line, without showing it."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Names of boards: each `*` stands for any characters, all else for itself."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Read a pattern."""
        return cls(tuple(text.split("*")))

    def matches(self, name: str) -> bool:
        """Tell whether a name is one of them."""
        first, *rest = self.parts
        if not rest:
            return name == first
        *middle, last = rest
        if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
            return False
        # The first place where a part fits leaves the most room for those that follow: no need to try another.
        place, end = len(first), len(name) - len(last)
        for part in middle:
            if (place := name.find(part, place, end)) < 0:
                return False
            place += len(part)
        return True


@dataclass(frozen=True, slots=True)
class Grant:
    """What a credential is worth.

    `boards` are those that it names; None if that is left to the database, or to nobody. `claims` are what the
    database is asked with, if it decides. `expires` is in seconds of the epoch, None if it does not.
    """

    boards: tuple[Pattern, ...] | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    expires: float | None = None

    def allows_as(self, other: Grant) -> bool:
        """Tell whether it allows what another does: the same boards and claims, but for when the token is good."""
        return self.boards == other.boards and _lasting(self.claims) == _lasting(other.claims)

    def names(self, board: str) -> bool:
        """Tell whether it names a board."""
        return self.boards is None or any(pattern.matches(board) for pattern in self.boards)


def _lasting(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in _OF_THE_TOKEN}


EVERYBODY: Final = Grant()
"""What everybody has where no credential is configured."""


class Key(NamedTuple):
    """What tokens are signed with: its name, if it has one, and the algorithms that it is good for."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


class Access:
    """The credentials that are good."""

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
        self._secret = secret
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    @property
    def open(self) -> bool:
        """Whether everybody gets in, for no credential is configured."""
        return not self._tokens and not self._secret and self._keys is None

    def grant(self, credential: str | None) -> Grant:
        """Say what a credential is worth. Raises Refused."""
        if self.open:
            return EVERYBODY
        if not credential:
            raise Refused("no credential")
        if (grant := self._static(credential)) is not None:
            return grant
        if not self._secret and self._keys is None:
            raise Refused("wrong credential")
        return self._signed(credential)

    def _static(self, credential: str) -> Grant | None:
        """Look at every token, lest the time tell which is nearly right."""
        presented = digest(credential)
        found = None
        for known, grant in self._tokens.items():
            if hmac.compare_digest(known, presented):
                found = grant
        return found

    def _signed(self, token: str) -> Grant:
        try:
            claims = self._claims(token, jwt.get_unverified_header(token))
        except jwt.ExpiredSignatureError:
            raise Refused("expired token") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as ex:
            raise Refused(f"wrong token: {type(ex).__name__}") from None
        named = _boards(claims)
        if named is None and not self._database_decides:
            named = ()
        return Grant(named, claims, float(claims["exp"]) + LEEWAY_SECONDS)

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
        if algorithm == _SECRETS or (kid is not None and any(key.kid == kid for key in keys)):
            raise Refused("wrong token: wrong signature")
        if self._keys is not None and any(algorithm in each for each in _ALGORITHMS.values()):
            raise UnknownKey("unknown key")
        raise Refused("wrong token: no key for its algorithm")

    def _keys_of(self, algorithm: str) -> list[Key]:
        """Return the keys of an algorithm: a public key is never taken for a secret."""
        if algorithm == _SECRETS:
            return [Key(None, (algorithm,), self._secret)] if self._secret else []
        return [key for key in self._keys or () if algorithm in key.algorithms]


def _boards(claims: Mapping[str, Any]) -> tuple[Pattern, ...] | None:
    """Return the boards that a token names: none if its claim is not a list of texts; None without the claim."""
    if "boards" not in claims:
        return None
    named = claims["boards"]
    if isinstance(named, str):
        named = [named]
    if not isinstance(named, list) or not all(isinstance(board, str) for board in named):
        return ()
    return tuple(map(Pattern.of, named))


def digest(token: str) -> bytes:
    """Return what a static token is known by: all of them have the same length."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def static_tokens(entries: Iterable[str], where: str) -> dict[bytes, Grant]:
    """Read tokens as they are configured: `token`, good for every board, or `token:board,team-*`.

    Raises AccessError, which names `where` and the entry by its number.
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
    """Return the entries of a file of tokens: one a line, but for empty ones and those that begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


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
    found = _ALGORITHMS.get((str(member.get("kty")), member.get("crv")), ())
    algorithms = tuple(each for each in found if member.get("alg", each) == each)
    if not algorithms:
        return None
    try:
        return Key(member.get("kid"), algorithms, jwt.PyJWK(member, algorithms[0]).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None


class Rates:
    """How many connections a minute, from each address and from all: token buckets, full at first.

    They stand in a fixed piece of memory, which several processes may share. Addresses that fall into the same slot
    share a bucket; which do, nobody can foretell without the key in the memory's first bytes. 0 is no limit.
    """

    SLOTS: Final = 65_536
    BYTES: Final = 16 * (SLOTS + 2)
    KEY_BYTES: Final = 16
    PERIOD_SECONDS: Final = 60.0

    def __init__(self, per_client: int, total: int, memory: memoryview | None = None) -> None:
        self._limits = (per_client, total)
        if memory is None:
            memory = memoryview(bytearray(self.BYTES))
            memory[: self.KEY_BYTES] = secrets.token_bytes(self.KEY_BYTES)
        self._key = bytes(memory[: self.KEY_BYTES])
        self._cells = memory.cast("d")

    def take(self, address: str, now: float) -> float:
        """Count one in; return 0, or how many seconds to wait. Who is refused is not counted."""
        wait = self.wait(address, now)
        if not wait:
            self._cells[2 * self._slot(address)] -= 1
            self._cells[2] -= 1
        return wait

    def wait(self, address: str, now: float) -> float:
        """Return 0 if one may come, or how many seconds to wait."""
        per_client, total = self._limits
        return self._fill(self._slot(address), per_client, now) or self._fill(1, total, now)

    def _slot(self, address: str) -> int:
        found = hashlib.blake2b(rate_key(address).encode(), key=self._key, digest_size=4).digest()
        return 2 + int.from_bytes(found) % self.SLOTS

    def _fill(self, slot: int, limit: int, now: float) -> float:
        """Fill a bucket up to this moment; return how long until there is one in it."""
        if limit == 0:
            return 0.0
        left, filled = self._cells[2 * slot], self._cells[2 * slot + 1]
        rate = limit / self.PERIOD_SECONDS
        left = float(limit) if filled == 0.0 else min(float(limit), left + max(now - filled, 0.0) * rate)
        self._cells[2 * slot], self._cells[2 * slot + 1] = left, now
        return 0.0 if left >= 1 else (1 - left) / rate


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who knocks: what stands in the request for the connection, and where it comes from.

    `forwarded` are the values of `X-Forwarded-For`, `standard` those of `Forwarded`.
    """

    peer: str
    target: str = "/"
    authorization: Sequence[str] = ()
    subprotocols: Sequence[str] = ()
    origins: Sequence[str] = ()
    host: str | None = None
    forwarded: Sequence[str] = ()
    standard: Sequence[str] = ()

    @property
    def credential(self) -> str | None:
        """What it presents: as a subprotocol `bearer.…`, as `?token=…`, or as a header.

        In this order, for a proxy may add a header of its own, and nobody but the client the others. In a subprotocol
        characters that none may have are percent-encoded.
        """
        for offered in self.subprotocols:
            if offered.startswith(BEARER):
                return unquote(offered.removeprefix(BEARER))
        with contextlib.suppress(ValueError):
            named = dict(parse_qsl(self.target.partition("?")[2], max_num_fields=100))
            if "token" in named:
                return named["token"]
        for value in self.authorization:
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token.strip()
        return None


BEARER: Final = "bearer."
"""What a subprotocol begins with that is a credential."""


class Gate:
    """What is asked of whoever knocks. `access` may be replaced at any time. `origins` None lets all pages in."""

    def __init__(
        self,
        access: Access | None = None,
        *,
        origins: Origins | None = None,
        require_origin: bool = False,
        trusted: Proxies | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.access = access or Access()
        self.proxies = trusted or Proxies()
        self._origins = origins or Origins(any_page=True)
        self._require_origin = require_origin
        self._rates = rates

    def flooded(self, peer: str, now: float) -> float:
        """Return how many seconds a peer that is no proxy has to wait, before it has said anything."""
        return self._rates.wait(peer, now) if self._rates else 0.0

    def source(self, visitor: Visitor) -> Source:
        """Say where a visitor is."""
        return proxies.source(visitor.peer, visitor.forwarded, visitor.standard, self.proxies)

    def admit(self, visitor: Visitor, now: float) -> Grant:
        """Say what a visitor may see, at a moment of a clock that only goes forward. Raises Refused.

        What costs least comes first, so that a flood costs little.
        """
        if self._rates and (wait := self._rates.take(self.source(visitor).address, now)):
            raise TooMany(wait)
        if not visitor.origins and self._require_origin:
            raise Refused("no origin")
        for origin in visitor.origins:
            if not self._origins.allow(origin, visitor.host):
                raise ForeignOrigin(origin)
        return self.access.grant(visitor.credential)

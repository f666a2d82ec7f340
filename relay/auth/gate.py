"""The gate: decides which connections are admitted. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

from relay.auth import addresses
from relay.auth.addresses import Source
from relay.auth.rates import Rates
from relay.auth.tokens import Access, Grant, Refused
from relay.config.origins import Origins
from relay.config.proxies import Proxies

FLOOD: Final = "too many connections a minute"
"""Reason of the refusal, for which there are two places."""


class ForeignOrigin(Refused):
    """The page is of an origin that is not allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__("foreign origin")
        self.origin = origin


class TooMany(Refused):
    """There were too many connections. The next one is possible in `seconds`."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        super().__init__(FLOOD)
        self.seconds = math.ceil(seconds)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A client that asks to connect, as described by its request.

    `forwarded` are the values of `X-Forwarded-For`, `standard` those of `Forwarded`, `forwarded_hosts` those of
    `X-Forwarded-Host`, of which the first is the client's. `peer` is the address of the connection, `address` that of
    the client, from `Gate.source`.
    """

    peer: str
    address: str = ""
    target: str = "/"
    authorization: Sequence[str] = ()
    subprotocols: Sequence[str] = ()
    origins: Sequence[str] = ()
    host: str | None = None
    forwarded: Sequence[str] = ()
    standard: Sequence[str] = ()
    forwarded_hosts: Sequence[str] = ()

    @property
    def credential(self) -> str | None:
        """The credential that it presents: as a subprotocol `bearer.…`, as `?token=…`, or as a header.

        In this order, because only the client adds the first two, but a proxy may add a header of its own. In a
        subprotocol, characters that are not allowed there are percent-encoded.
        """
        for offered in self.subprotocols:
            if offered.startswith(BEARER):
                return unquote(offered.removeprefix(BEARER))
        with contextlib.suppress(ValueError):
            named = dict(parse_qsl(self.target.partition("?")[2], max_num_fields=MAX_PARAMETERS))
            if "token" in named:
                return named["token"]
        for value in self.authorization:
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token.strip()
        return None


MAX_PARAMETERS: Final = 200
"""Maximum number of query parameters searched for a token. A subscription over HTTP has 101 at most."""

BEARER: Final = "bearer."
"""Prefix of a subprotocol that is a credential."""


class Gate:
    """Decides which visitors are admitted. `access` may be replaced at any time. By default, all may connect."""

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
        """Return how many seconds a peer that is not a proxy must wait, before it has sent anything."""
        return self._rates.wait(peer, now) if self._rates else 0.0

    def source(self, visitor: Visitor) -> Source:
        """Find the address of a visitor."""
        return addresses.source(visitor.peer, visitor.forwarded, visitor.standard, self.proxies)

    def _host(self, visitor: Visitor) -> str | None:
        """Return the host that a client asked for: as reported by a trusted proxy, otherwise `Host`.

        A page can set neither. Another program can, but it can also claim any origin.
        """
        if visitor.forwarded_hosts and self.proxies.trusts(visitor.peer):
            return visitor.forwarded_hosts[0]
        return visitor.host

    def admit(self, visitor: Visitor, now: float) -> Grant:
        """Return the grant of a visitor. `now` is of a clock that only goes forward. Raises Refused.

        The cheapest checks come first, so that a flood costs little.
        """
        self.let_ask(visitor, now)
        return self.access.grant(visitor.credential)

    def let_ask(self, visitor: Visitor, now: float) -> None:
        """Check everything but the credential: the rate of connections, and the origin. Raises Refused."""
        if self._rates and (wait := self._rates.take(self.source(visitor).address, now)):
            raise TooMany(wait)
        if not visitor.origins and self._require_origin:
            raise Refused("no origin")
        for origin in visitor.origins:
            if not self._origins.allow(origin, self._host(visitor)):
                raise ForeignOrigin(origin)

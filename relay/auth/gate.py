"""The gate: what a connection must show before it is admitted. Pure."""

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
"""Name of the refusal in the log, wherever it is noticed."""


class ForeignOrigin(Refused):
    """A page of an origin that is not allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__("foreign origin")
        self.origin = origin


class TooMany(Refused):
    """Too many connections came; `seconds` says when there is room for one again."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        super().__init__(FLOOD)
        self.seconds = math.ceil(seconds)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A client that asks to connect: what its request says, and where it comes from.

    `forwarded` are the values of `X-Forwarded-For`, `standard` those of `Forwarded`, `forwarded_hosts` those of
    `X-Forwarded-Host`, the one that the client named first. `address` is where the client is, as `Gate.source`
    says.
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

        In this order, for a proxy may add a header of its own, and only the client can add the others. In a
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
"""Maximum number of parameters in which a token is searched: a subscription over HTTP has 101 at most."""

BEARER: Final = "bearer."
"""Prefix of a subprotocol that is a credential."""


class Gate:
    """Decides which visitors are admitted. `access` may be replaced at any time. `origins` None admits all pages."""

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
        """Return how many seconds a peer that is no proxy has to wait, before it has sent anything."""
        return self._rates.wait(peer, now) if self._rates else 0.0

    def source(self, visitor: Visitor) -> Source:
        """Find the address of a visitor."""
        return addresses.source(visitor.peer, visitor.forwarded, visitor.standard, self.proxies)

    def _host(self, visitor: Visitor) -> str | None:
        """Return the host that a client asked for: the one that a trusted proxy reports, else that of `Host`.

        A page cannot set either. Another program can, but that can also claim any origin.
        """
        if visitor.forwarded_hosts and self.proxies.trusts(visitor.peer):
            return visitor.forwarded_hosts[0]
        return visitor.host

    def admit(self, visitor: Visitor, now: float) -> Grant:
        """Return the grant of a visitor, at a moment of a clock that only goes forward. Raises Refused.

        The cheapest checks come first, so that a flood costs little.
        """
        self.let_ask(visitor, now)
        return self.access.grant(visitor.credential)

    def let_ask(self, visitor: Visitor, now: float) -> None:
        """Let a visitor ask who has no credential yet: if its origin may connect, and it does not come too often.

        Raises Refused.
        """
        if self._rates and (wait := self._rates.take(self.source(visitor).address, now)):
            raise TooMany(wait)
        if not visitor.origins and self._require_origin:
            raise Refused("no origin")
        for origin in visitor.origins:
            if not self._origins.allow(origin, self._host(visitor)):
                raise ForeignOrigin(origin)

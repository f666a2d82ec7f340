"""The gate: what is asked of a connection before it is let in. Pure."""

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
"""What the log calls it, wherever it is noticed."""


class ForeignOrigin(Refused):
    """A page of an origin that is not allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__("foreign origin")
        self.origin = origin


class TooMany(Refused):
    """Too many connections came; there is room for one again in so many seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, seconds: float) -> None:
        super().__init__(FLOOD)
        self.seconds = math.ceil(seconds)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who knocks: what stands in the request for the connection, and where it comes from.

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
        return addresses.source(visitor.peer, visitor.forwarded, visitor.standard, self.proxies)

    def _host(self, visitor: Visitor) -> str | None:
        """Return the host that a client asked for: as a trusted proxy says, else as `Host` does.

        A page cannot say either. A program that is no browser can, but that can also say any origin.
        """
        if visitor.forwarded_hosts and self.proxies.trusts(visitor.peer):
            return visitor.forwarded_hosts[0]
        return visitor.host

    def admit(self, visitor: Visitor, now: float) -> Grant:
        """Say what a visitor may see, at a moment of a clock that only goes forward. Raises Refused.

        What costs least comes first, so that a flood costs little.
        """
        if self._rates and (wait := self._rates.take(self.source(visitor).address, now)):
            raise TooMany(wait)
        if not visitor.origins and self._require_origin:
            raise Refused("no origin")
        for origin in visitor.origins:
            if not self._origins.allow(origin, self._host(visitor)):
                raise ForeignOrigin(origin)
        return self.access.grant(visitor.credential)

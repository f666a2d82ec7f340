"""Addresses, and the proxies that are trusted to report their clients' addresses. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UNIX: Final = "unix"
"""Name of the peers of Unix sockets, which have no address, in a list of trusted proxies."""

_PORTED: Final = re.compile(r"\[([^\[\]]*)\](?::\w*)?|([^:\[\]]*):\w*", re.ASCII)
"""An address in brackets, with a port or without; or one without colons in it, with a port."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxies that are trusted: their addresses, and whether every peer of a Unix socket is one."""

    networks: Sequence[Network] = ()
    unix: bool = False

    @classmethod
    def of(cls, text: str) -> Proxies:
        """Read addresses, networks and the word `unix`, separated by commas or spaces. Raises ValueError."""
        words = text.replace(",", " ").split()
        networks = tuple(ipaddress.ip_network(word, strict=False) for word in words if word != UNIX)
        return cls(networks, UNIX in words)

    def trusts(self, address: str) -> bool:
        """Return whether a peer is one of them; the peer of a Unix socket has the empty address."""
        if not address:
            return self.unix
        parsed = parse(address)
        return parsed is not None and any(parsed in network for network in self.networks)


def parse(text: str) -> Address | None:
    """Read an address in any form that proxies write: bare, in brackets, with a port, quoted; None if it is none."""
    text = text.strip().strip('"')
    if match := _PORTED.fullmatch(text):
        text = match[1] if match[1] is not None else match[2]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

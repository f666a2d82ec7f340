"""Addresses of clients behind proxies, from headers or the PROXY protocol. Pure.

Rules:
- Only trusted proxies are believed. Addresses reported by others are ignored.
- Each proxy appends the address of its peer to a list. So a list is read from its end, through trusted proxies only;
  the part before them may be forged.
- A proxy writes `X-Forwarded-For` or `Forwarded`, and may pass on the other one from the client. If both are present
  and disagree, neither is believed.
- An address that cannot be parsed ends the search, and is reported as a fault.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from relay.config.proxies import Proxies, parse

LONGEST_HEADER_BYTES: Final = 4096
"""Maximum size of a header of the PROXY protocol; a usual one has less than 300 bytes."""

V1: Final = b"PROXY "
V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first bytes of a header of the PROXY protocol, in its two versions."""

_V1_MOST: Final = 107
_V2_FIXED: Final = 16
_V2_FAMILIES: Final = {0x11: (12, 4), 0x21: (36, 16)}
"""The size of both addresses and ports together, and of one address, by family and transport."""

_PAIR: Final = re.compile(r'\s*([\w!#$%&\'*+.^`|~-]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*([;,]|$)', re.ASCII)
"""A parameter of `Forwarded`, and what follows it."""


_DISAGREE: Final = "X-Forwarded-For and Forwarded do not agree: have the proxy remove the one it does not write"


class BadProxyHeader(Exception):
    """A header of the PROXY protocol cannot be read. The text says why."""


class Source(NamedTuple):
    """The address of a client, as far as it is known, and the text of a proxy that could not be read, if any."""

    address: str
    fault: str | None = None


def source(peer: str, forwarded: Sequence[str], standard: Sequence[str], proxies: Proxies) -> Source:
    """Find the address of a client from the values of `X-Forwarded-For` and `Forwarded`."""
    if not proxies.trusts(peer):
        return Source(peer)
    hops = [hop for value in forwarded for hop in value.split(",")]
    found = [_last(peer, hops, proxies)] if hops else []
    if standard:
        try:
            found.append(_last(peer, [hop for value in standard for hop in _standard_hops(value)], proxies))
        except ValueError:
            return Source(peer, "Forwarded: " + ", ".join(standard))
    if len({each.address for each in found}) > 1:
        return Source(peer, _DISAGREE)
    return found[0] if found else Source(peer)


def _last(peer: str, hops: list[str], proxies: Proxies) -> Source:
    address = peer
    while hops and proxies.trusts(address):
        hop = hops.pop().strip()
        if (parsed := parse(hop)) is None:
            return Source(address, hop) if hop else Source(address)
        address = str(parsed)
    return Source(address)


def _standard_hops(value: str) -> list[str]:
    """Return the `for` of each element of a `Forwarded`, `unknown` if it has none. Raises ValueError."""
    hops, at, hop = [], 0, "unknown"
    while at < len(value):
        if not (match := _PAIR.match(value, at)):
            raise ValueError
        name, text, separator = match.groups()
        if name.lower() == "for":
            hop = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        if separator != ";":
            hops.append(hop)
            hop = "unknown"
        at = match.end()
    return hops


def rate_key(address: str) -> str:
    """Return the key by which connections are counted: an IPv4 address, or the /64 of an IPv6 one."""
    parsed = parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or address)


class ProxyHeader(NamedTuple):
    """A header of the PROXY protocol: its length, and the client's address; None if the proxy itself connects."""

    length: int
    address: str | None


def proxy_header(data: bytes) -> ProxyHeader | None:
    """Parse the header at the beginning of a connection; return None if there is none. Raises BadProxyHeader.

    The protocol requires that the header is sent at once, so an incomplete one is bad.
    """
    if data.startswith(V1):
        return _version_1(data)
    if data.startswith(V2):
        return _version_2(data)
    return None


def _version_1(data: bytes) -> ProxyHeader:
    line, end, _ = data[:_V1_MOST].partition(b"\r\n")
    if not end:
        raise BadProxyHeader("it does not end")
    length = len(line) + len(end)
    words = line.decode("ascii", "replace").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return ProxyHeader(length, None)
    address = parse(words[2]) if len(words) == 6 and words[1] in {"TCP4", "TCP6"} else None
    if address is None:
        raise BadProxyHeader("it has no address")
    return ProxyHeader(length, str(address))


def _version_2(data: bytes) -> ProxyHeader:
    if len(data) < _V2_FIXED:
        raise BadProxyHeader("it does not end")
    version_and_command, family, rest = struct.unpack_from("!BBH", data, len(V2))
    length = _V2_FIXED + rest
    if len(data) < length:
        raise BadProxyHeader("it does not end")
    if version_and_command == 0x20:  # LOCAL: the proxy's own health check
        return ProxyHeader(length, None)
    if version_and_command != 0x21:
        raise BadProxyHeader("it has an unknown version or command")
    if family not in _V2_FAMILIES:
        return ProxyHeader(length, None)
    needed, size = _V2_FAMILIES[family]
    if rest < needed:
        raise BadProxyHeader("it has no address")
    return ProxyHeader(length, str(parse(str(ipaddress.ip_address(data[_V2_FIXED : _V2_FIXED + size])))))

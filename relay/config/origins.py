"""Origins: which web pages may connect. Pure.

A browser states in `Origin` which page a connection is from, and a page cannot change that. Other programs state
nothing, or whatever they like, so an origin is no credential.

Rules:
- Origins are compared by scheme, host and port, where the scheme's usual port is the same as none.
- In a pattern, `*` stands for any part of a host or port, but not for what parts them: `https://*.example.com` is
  every host below example.com, and not example.com itself.
- A page that was loaded from the same host and port that it connects to is not a foreign one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

ANY: Final = "*"
_BARE: Final = frozenset({"null", "file://"})
"""What browsers send for pages that have no host."""

_PORTS: Final = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.*]+\]|[^\s/?#@:\[\]]+)(?::(?P<port>[0-9]+|\*))?/?", re.ASCII
)


def _normal(text: str) -> str | None:
    """Return an origin, or a pattern, in the form that is compared; None if it is neither."""
    text = text.lower()
    if text.rstrip("/") == "file:":
        return "file://"
    if text in _BARE:
        return text
    if not (match := _ORIGIN.fullmatch(text)):
        return None
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in {None, _PORTS.get(scheme)} else f"{scheme}://{host}:{port}"


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins whose pages may connect. `any_page` admits all."""

    exact: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()
    any_page: bool = False

    @classmethod
    def of(cls, texts: Iterable[str]) -> Origins:
        """Read origins and patterns, or `*`. Raises ValueError."""
        exact: set[str] = set()
        patterns: list[re.Pattern[str]] = []
        any_page = False
        for text in texts:
            if text == ANY:
                any_page = True
            elif (origin := _normal(text)) is None:
                raise ValueError(text)
            elif "*" in origin:
                patterns.append(re.compile("[^/:]+".join(map(re.escape, origin.split("*")))))
            else:
                exact.add(origin)
        return cls(frozenset(exact), tuple(patterns), any_page)

    def allow(self, origin: str, host: str | None = None) -> bool:
        """Return whether a page may connect to `host`, the value of the request's `Host`."""
        if self.any_page:
            return True
        normal = _normal(origin)
        if normal is None:
            return False
        if normal in self.exact or any(pattern.fullmatch(normal) for pattern in self.patterns):
            return True
        return host is not None and normal not in _BARE and normal == _normal(f"{urlsplit(normal).scheme}://{host}")

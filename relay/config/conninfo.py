"""Explains what is wrong with a connection string, in words that never repeat a secret. Pure.

libpq's own messages repeat what it found, the password too, so they are not used. Strings for Prisma, SQLAlchemy and
JDBC are similar, but have schemes and parameters that libpq does not know.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

_SCHEMES: Final = ("postgresql", "postgres")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+:-]{1,40}", re.ASCII)
"""The form of a scheme or a parameter: all else might be a part of a password."""

_ESCAPE: Final = "in the user and the password, write # as %23, / as %2F, : as %3A, ? as %3F, @ as %40"


def fault(text: str) -> str | None:
    """Return what is wrong with a connection string; None if libpq accepts it; empty if no more is known."""
    try:
        found = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        return _quoted(text) or _scheme(text) or _spaced(text) or _parameter(text) or ""
    ports = str(found.get("port") or "")
    if re.search("[@#/]", _hosts(found.get("host"))) or not re.fullmatch("[0-9,]*", ports):
        return _ESCAPE
    return _spaced(text)


def _hosts(value: object) -> str:
    """Return the hosts that are names; a path is that of a Unix socket."""
    return ",".join(host for host in str(value or "").split(",") if not host.startswith(("/", "@")))


def _quoted(text: str) -> str | None:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return "it is in quotes: expected none (docker --env-file keeps those of a file)"
    return None


def _spaced(text: str) -> str | None:
    if text.lstrip().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)) and re.search(r"\s", text):
        return "it has a space or a line break: expected none around it, and in the user and the password %20"
    return None


def _scheme(text: str) -> str | None:
    scheme, colon, _ = text.partition("://")
    if not colon or scheme in _SCHEMES or not _NAME.fullmatch(scheme):
        return None
    return f"it begins with {scheme}://: expected postgresql://"


def _parameter(text: str) -> str | None:
    """Name a parameter that libpq does not know."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {"ssl", "requiressl"}
    if text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        try:
            names = [name for name, _ in parse_qsl(urlsplit(text).query, keep_blank_values=True)]
        except ValueError:
            return _ESCAPE
        if re.search("%(?![0-9A-Fa-f]{2})", text):
            return "a % has to be escaped: write it as %25"
    else:
        names = re.findall(r"(?:^|\s)(\w+)\s*=", re.sub(r"'(?:[^'\\]|\\.)*'", "''", text))
    for name in names:
        if name not in known and _NAME.fullmatch(name):
            return f"it has a parameter {name}, which libpq does not know: remove it"
    return None

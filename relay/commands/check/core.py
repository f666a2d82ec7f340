"""The core of `relay check`: runs checks and judges their results.

It connects like the daemon, with two connections and the daemon's settings and rights, and changes nothing. If the
daemon serves clients from NATS, it examines NATS instead of the database.

Rules:
- Each check queries, and a pure function judges the answer. Every check has exactly one finding, even if it fails
  with an unexpected error.
- A check that depends on something broken is skipped, so the first failure shown is the first to act on.
- What the daemon's role may not see itself, it reads through narrow functions of the installation: relay.altered,
  relay.vitals, relay.vacuum_holders and relay.widest.
- Nothing is delayed: checks wait for no lock, read no table whole, and have a timeout. Until a transaction pooler is
  ruled out, they neither set anything nor listen, because both would stay in a connection that others use.
- No secret is shown: neither the connection string nor a credential.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import psycopg

from relay.config import Settings
from relay.postgres.connection import Connection
from relay.postgres.faults import FeedError
from relay.text import error_line

if TYPE_CHECKING:
    from relay.nats.jetstream import Stream

ANSWER_SECONDS: Final = 5.0
"""Timeout of each check."""

Level = Literal["ok", "warning", "failed", "skipped"]


class Verdict(NamedTuple):
    """A status, what was found, and what to do about it, each in one line."""

    status: Level
    found: str
    hint: str | None = None


class Finding(NamedTuple):
    """The verdict of a check, with its name."""

    check: str
    status: Level
    found: str
    hint: str | None


def ok(found: str) -> Verdict:
    """There is no problem."""
    return Verdict("ok", found)


def warning(found: str, hint: str) -> Verdict:
    """There is a problem, but changes flow."""
    return Verdict("warning", found, hint)


def failed(found: str, hint: str) -> Verdict:
    """Clients are not served as they should be, or soon will not be."""
    return Verdict("failed", found, hint)


@dataclass
class Place:
    """The objects of the checks: the settings, and the two connections or the stream, once they are open."""

    settings: Settings
    lifetime: AsyncExitStack
    links: Sequence[Connection] = ()
    stream: Stream | None = None

    @property
    def link(self) -> Connection:
        return self.links[0]

    @property
    def lost(self) -> bool:
        return any(link.closed for link in self.links)


class Check(NamedTuple):
    """A check."""

    name: str
    examine: Callable[[Place], Awaitable[Verdict]]
    about: str
    """What it examines, for the documentation."""
    advice: str
    """What to do in general, for the documentation."""
    gate: bool = False
    """Whether all later checks of the same kind depend on it."""


async def run(settings: Settings, here: Iterable[Check], there: Iterable[Check]) -> AsyncIterator[Finding]:
    """Run the checks of this machine, then those of the database or stream, which depend on each other."""
    async with AsyncExitStack() as lifetime:
        place = Place(settings, lifetime)
        for check in here:
            yield Finding(check.name, *await _judged(check, place))
        broken: str | None = None
        for check in there:
            if broken:
                yield Finding(check.name, "skipped", f"cannot be checked while {broken} fails", None)
                continue
            verdict = await _judged(check, place)
            yield Finding(check.name, *verdict)
            if verdict.status == "failed" and (check.gate or place.lost):
                broken = check.name


async def _judged(check: Check, place: Place) -> Verdict:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await check.examine(place)
    except TimeoutError:
        return failed(
            f"no answer within {ANSWER_SECONDS:.0f} seconds",
            "see that the server, and a pooler if there is one, has connections and time to spare",
        )
    except (psycopg.Error, FeedError) as ex:
        found, hint = advised(error_line(ex))
        return failed(found, hint or _hint(ex))
    except Exception as ex:  # noqa: BLE001  # whatever fails here, the other checks go on
        found = f"this could not be checked: {type(ex).__name__}: {error_line(ex)}"
        return failed(found, "run relay sql install, and report it if it is found again")


def _hint(ex: Exception) -> str:
    """Return what to do about the error of a query that uses only objects of the relay, or public ones."""
    if isinstance(ex, _NOT_THERE):
        return "run relay sql install, then relay sql roles"
    if isinstance(ex, psycopg.errors.InsufficientPrivilege):
        return "run relay sql roles, and connect as relay_daemon"
    return "see to what Postgres says here, and check again"


_NOT_THERE: Final = (
    FeedError,  # no row where there is always one
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
)


def listed(names: Iterable[str]) -> str:
    """List names, the first three of them."""
    given = list(names)
    more = f" and {len(given) - 3} more" if len(given) > 3 else ""
    return ", ".join(given[:3]) + more


def advised(line: str) -> tuple[str, str | None]:
    """Split a line that ends with a command to run into what was found and that advice."""
    if advice := re.search(r": ((?:run|have) .*)", line):
        return line[: advice.start()], advice[1]
    return line, None


def halves(problem: str) -> tuple[str, str]:
    """Split a line into what was found and what to do, at its last colon."""
    found, _, hint = problem.rpartition(": ")
    return found, hint

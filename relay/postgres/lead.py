"""The lead among publishers with the same name, role and database: their oldest session has it.

If the leading process dies, freezes or is cut off, Postgres ends its session, and so its lead. An advisory lock would
not do, because any role can take one and keep it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, LiteralString, Self

import psycopg
from psycopg.conninfo import make_conninfo

from relay.postgres.connection import Connection, connect
from relay.postgres.faults import FeedError
from relay.text import error_line

LEAD_SECONDS: Final = 3.0
"""Idle time after which Postgres ends the leading session, and another may lead."""

_LEADS: Final[LiteralString] = """
    select not exists (
        select from pg_catalog.pg_stat_activity other
        where (other.datid, other.usesysid, other.application_name) = (me.datid, me.usesysid, me.application_name)
          and (other.backend_start, other.pid) < (me.backend_start, me.pid))
    from pg_catalog.pg_stat_activity me
    where me.pid = pg_catalog.pg_backend_pid()
"""


class Lead:
    """A session that may lead."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, name: str) -> AsyncIterator[Self]:
        """Connect, as a candidate for the lead. All methods raise FeedError if Postgres does not answer."""
        # Postgres truncates names, so the part that distinguishes this one comes first.
        label = f"relay {hashlib.sha256(name.encode()).hexdigest()[:16]} {name}"
        with _one_line():
            async with await connect(make_conninfo(conninfo, application_name=label)) as connection:
                await connection.execute(f"set idle_session_timeout = {LEAD_SECONDS * 1000:.0f}".encode())
                yield cls(connection)

    async def has(self) -> bool:
        """Whether this session leads; if it does, it leads until it ends."""
        with _one_line():
            async with asyncio.timeout(LEAD_SECONDS / 2):
                return bool((await self._connection.row(_LEADS))[0])

    async def keep(self) -> None:
        """Keep the lead. Raises FeedError when it is lost."""
        while True:
            if not await self.has():
                raise FeedError("another session, which began before this one, leads")
            await asyncio.sleep(LEAD_SECONDS / 6)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors into a FeedError of one line."""
    try:
        yield
    except TimeoutError:
        raise FeedError("Postgres does not answer: reconnecting") from None
    except (psycopg.Error, OSError) as ex:
        raise FeedError(error_line(ex)) from None

"""The state of the database: the journal, and the server's notification queue."""

from __future__ import annotations

from typing import Final, LiteralString, NamedTuple

from relay.model.status import Journal
from relay.postgres.connection import Connection

_VITALS: Final[LiteralString] = """
    select journal_rows, journal_bytes, oldest_seconds, overdue_seconds, keep_bytes, stop_bytes, paused, queue_usage
    from relay.vitals()
"""


class Vitals(NamedTuple):
    """The state of the journal, and the share of the notification queue that is in use."""

    journal: Journal
    queue_usage: float


async def read_vitals(connection: Connection) -> Vitals:
    """Read the state of the journal."""
    row = await connection.row(_VITALS)
    names = ("rows", "bytes", "age_seconds", "overdue_seconds", "keep_bytes", "stop_bytes", "paused")
    return Vitals(Journal(**dict(zip(names, row[:-1], strict=True))), row[-1])

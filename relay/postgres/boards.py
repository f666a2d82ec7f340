"""Boards: how one is read, exactly as of one snapshot.

Rules:
- A board is read in one transaction that first locks the tables against DDL, and by one statement, with a snapshot
  from after that: an older one, from before a TRUNCATE or an ALTER TABLE that rewrites rows, would show no row.
- A row that cannot be shown is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, LiteralString

import psycopg
from psycopg.rows import TupleRow

from relay.model.snapshot import Snapshot
from relay.postgres.connection import Connection, readable
from relay.postgres.decode import board_data
from relay.postgres.faults import FeedError
from relay.postgres.watches import Watches

LARGE_BOARD_TASKS: Final = 1_000
"""Above it, a board is encoded in a thread, so that the others' changes go on meanwhile."""

_BOARD: Final[LiteralString] = """
    select pg_catalog.pg_current_snapshot()::text, b.watch, /**/b.task/**/
    from (values (0)) one
    left join relay.board(%s, %s) b on true
"""


class Boards:
    """Reads boards, as many side by side as there are connections."""

    def __init__(self, watches: Watches, *readers: Connection) -> None:
        self._watches = watches
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for each in readers:
            self._free.put_nowait(each)

    async def read(self, name: str) -> tuple[Snapshot, bytes]:
        """Read a board: the snapshot, and the data of its `board.sync`."""
        async with self._reader() as reader, reader.in_turn:
            found = await _rows(reader, name)
        snapshot = Snapshot.parse(found[0][0])
        rows = [(number, image) for _, number, image in found if number is not None]
        if any(number not in self._watches.by_id for number, _ in rows):
            await self._watches.load()
        watches = self._watches.by_id
        if any(number not in watches for number, _ in rows):
            raise FeedError("the watched tables changed while a board was read: reading again")
        if len(rows) > LARGE_BOARD_TASKS:
            return snapshot, await asyncio.to_thread(board_data, rows, watches)
        return snapshot, board_data(rows, watches)

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Connection]:
        reader = await self._free.get()
        try:
            yield reader
        finally:
            self._free.put_nowait(reader)


async def _rows(reader: Connection, name: str) -> list[TupleRow]:
    board = readable(_BOARD, reader)
    await reader.rows("begin read only")
    await reader.rows("select relay.hold_tables()")
    await reader.rows("savepoint quick")
    try:
        rows = await reader.rows(board, name, False)
    except psycopg.errors.UntranslatableCharacter:
        # The database's encoding has no such character, so no board is called that.
        await reader.rows("rollback")
        return await reader.rows("select pg_catalog.pg_current_snapshot()::text, null, null")
    except (psycopg.DataError, psycopg.ProgrammingError, psycopg.InternalError, psycopg.IntegrityError):
        # Some row cannot be shown: find out which, at a price.
        await reader.rows("rollback to savepoint quick")
        rows = await reader.rows(board, name, True)
    await reader.rows("commit")
    return rows

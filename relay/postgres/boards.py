"""Boards: how one is read, exactly as of one snapshot.

Rules:
- A board is read in one transaction, which first locks its tables against DDL and then reads with one statement. Its
  snapshot is taken after the locks, because one from before a TRUNCATE or a rewriting ALTER TABLE would see no rows.
- The server materializes the result, and the transaction ends before it is sent. So no lock and no snapshot is held
  for a relay that reads slowly, is frozen, or is cut off.
- A lock timeout or a slow read is an error of this board only. The relay does not wait for a table that had no row on
  the board at the last read and has had no change since, according to the journal. So a lock on that table does not
  affect boards whose tasks are all in other tables.
- A row that cannot be shown is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, LiteralString, NamedTuple

import psycopg

from relay.model.snapshot import Snapshot
from relay.postgres.connection import Connection, in_time, readable
from relay.postgres.decode import board_data
from relay.postgres.faults import Scope, WatchOutdated, scope_of
from relay.postgres.unshown import LeftOut, Unshown
from relay.postgres.watches import Watches

SIDE_BY_SIDE: Final = 4
"""Maximum number of boards that are read at once, each over a connection of its own. One connection is for slow
boards: the others abort a read that takes long, and leave it to that one."""

READ_SECONDS: Final = 30.0
"""Timeout of the read of a board, without the time to send it."""

LOCK_SECONDS: Final = 2.0
"""Timeout of the lock on each table of a board."""

LARGE_BOARD_TASKS: Final = 1_000
"""Number of tasks above which a board is encoded in a thread, so that changes of other boards do not wait."""

FETCH_TASKS: Final = 2_000
"""Number of tasks fetched at once."""

REMEMBERED_BOARDS: Final = 10_000
"""Maximum number of boards for which the tables without rows on them are remembered."""

# It also sets the timeout of the next statement.
_HOLD: Final[LiteralString] = """
    select h.watch, h.held, pg_catalog.set_config('statement_timeout', %s, true) from relay.hold_tables(%s, %s) h
"""

# One statement, and so one snapshot. The first row has the snapshot and the number of rows that follow. So when it
# arrives, everything has been read within the statement's timeout, which does not apply to the commit.
_BOARD: Final[LiteralString] = """
    declare board no scroll cursor with hold for
    with board as materialized (select b.watch, /**/b.task/**/ as task from relay.board(%s, %s, %s) b)
    select pg_catalog.pg_current_snapshot()::text, count(*)::integer, null from board
    union all
    select null, watch, task from board
"""


class _Found(NamedTuple):
    """The rows of a board, each with its watch, as of a snapshot; the watches `left_out` were not read."""

    snapshot: Snapshot
    rows: list[tuple[int | None, str]]
    left_out: frozenset[int] = frozenset()


class _Absent(NamedTuple):
    """The watches that had no row on a board, as of a snapshot."""

    snapshot: Snapshot
    watches: frozenset[int]


Asked = Callable[[Connection, str, Snapshot, str, Collection[int]], Awaitable[bool]]
"""See relay.postgres.journal.says_nothing."""


class Boards:
    """Reads up to `SIDE_BY_SIDE` boards at once, each over a connection of its own, which is opened when needed."""

    def __init__(
        self,
        watches: Watches,
        connect: Callable[[], Awaitable[Connection]],
        says_nothing: Asked,
        unshown: Unshown,
    ) -> None:
        self._unshown = unshown
        self.connections: list[Connection] = []
        self._watches = watches
        self._connect = connect
        self._says_nothing = says_nothing
        self._opening = 0
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._shape: str | None = None
        self._absent: dict[str, _Absent] = {}

    def note_shape(self, shape: str) -> None:
        """Note the shape of the tables. If it has changed, forget which tables have no rows on which boards."""
        if shape != self._shape:
            self._shape = shape
            self._absent.clear()

    async def read(self, name: str, seconds: float) -> tuple[Snapshot, bytes]:
        """Read a board within so many seconds, locks not counted: the snapshot, and the data of its `board.sync`."""
        shape = self._shape
        async with self._reader() as reader:
            found = await self._found(reader, name, seconds)
        numbers = {number for number, _ in found.rows if number is not None}
        if not numbers <= self._watches.by_id.keys():
            await self._watches.load()
        watches = self._watches.by_id
        if not numbers <= watches.keys():
            raise WatchOutdated("the watched tables changed while a board was read")
        if shape == self._shape:  # otherwise a rewrite may have added rows since, which the journal does not record
            self._remember(name, found, numbers)
        left_out: list[LeftOut] = []
        if len(found.rows) > LARGE_BOARD_TASKS:
            data = await asyncio.to_thread(board_data, name, found.rows, watches, left_out)
        else:
            data = board_data(name, found.rows, watches, left_out)
        self._unshown.has_read(name, left_out)
        return found.snapshot, data

    async def _found(self, reader: Connection, name: str, seconds: float) -> _Found:
        """Read a board, without tables that cannot be locked if they certainly have nothing on it."""
        absent = self._absent.get(name)
        if absent is None or self._shape is None:
            return await _rows(reader, name, seconds, [])
        found = await _rows(reader, name, seconds, list(absent.watches))
        if not found.left_out or await self._says_nothing(reader, self._shape, absent.snapshot, name, found.left_out):
            return found
        return await _rows(reader, name, seconds, [])

    def _remember(self, name: str, found: _Found, numbers: Collection[int]) -> None:
        has_lanes = any(number is None and rows not in {"[]", ""} for number, rows in found.rows)
        absent = frozenset(
            number
            for number, watch in self._watches.by_id.items()
            if number not in numbers and not (watch.lanes and (has_lanes or watch.board_column is not None))
        )
        self._absent.pop(name, None)
        if len(self._watches.by_id) > 1:  # a single table is never left out
            self._absent[name] = _Absent(found.snapshot, absent)
        if len(self._absent) > REMEMBERED_BOARDS:
            del self._absent[next(iter(self._absent))]

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Connection]:
        if self._free.empty() and len(self.connections) + self._opening < SIDE_BY_SIDE:
            await self._open()
        reader = await self._free.get()
        try:
            yield reader
        finally:
            self._free.put_nowait(reader)

    async def _open(self) -> None:
        self._opening += 1
        try:
            async with in_time():
                reader = await self._connect()
                await reader.rows(f"set lock_timeout = {LOCK_SECONDS * 1000:.0f}".encode())
                await reader.rows(f"set statement_timeout = {READ_SECONDS * 1000:.0f}".encode())
        except psycopg.OperationalError:
            if not self.connections:
                raise
            return  # the server has no connection left: make do with those that are open
        finally:
            self._opening -= 1
        self.connections.append(reader)
        self._free.put_nowait(reader)


async def _rows(reader: Connection, name: str, seconds: float, absent: Sequence[int]) -> _Found:
    try:
        return await _read(reader, name, seconds, absent, careful=False)
    except psycopg.errors.UntranslatableCharacter:
        # The name has a character that the database's encoding lacks, so there is no such board.
        return _Found(Snapshot.parse((await reader.row("select pg_catalog.pg_current_snapshot()::text"))[0]), [])
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        raise
    except psycopg.Error as ex:
        if scope_of(ex, reading_board=True) is not Scope.BOARD:
            raise
        # Some row cannot be shown: read again and check each row, which is slower.
        return await _read(reader, name, seconds, absent, careful=True)


async def _read(reader: Connection, name: str, seconds: float, absent: Sequence[int], *, careful: bool) -> _Found:
    try:
        await reader.rows("begin read only")
        tables = await reader.rows(_HOLD, f"{seconds * 1000:.0f}", name, absent)
        left_out = [watch for watch, held, _ in tables if not held]
        await reader.rows(readable(_BOARD, reader), name, careful, left_out)
        snapshot, count, _ = await reader.row("fetch 1 from board")
        await reader.rows("commit")
    except psycopg.Error:
        if not reader.closed:
            await reader.rows("rollback")
        raise
    found: list[tuple[int | None, str]] = []
    while len(found) < count:
        rows = await reader.rows(f"fetch {FETCH_TASKS} from board".encode())
        found += [(watch, task) for _, watch, task in rows]
    await reader.rows("close board")
    return _Found(Snapshot.parse(snapshot), found, frozenset(left_out))

"""The feed: all that the daemon has to do with Postgres.

Two connections. One listens to the doorbell and reads the journal; the other reads boards, so that a large board
holds up nobody's changes, and prunes the journal. What the feed finds goes to the hub: batches of transactions,
each with the position it brings the feed to, and boards, each with the snapshot it was read in.

Rules:
- LISTEN is committed before the first read, so that nothing falls between the two. The doorbell is a hint:
  the journal is read at least every `LOOK_SECONDS` in any case.
- The position is a snapshot. "What is new since" and the next position come out of one statement; so no
  transaction is skipped and none read twice, however long it was open.
- The position lives as long as the epoch does (see sql/install.sql) and the journal holds what follows it. After
  that, continuity is broken: everybody is sent their boards anew.
- Postgres never waits for a client: the hub takes everything at once.
- A fault of either connection ends both; the feed connects again, with back-off and jitter, for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, LiteralString, Self

import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from relay import protocol
from relay.changes import Change, Side, Transaction, UnreadableRow, Version, Watch, WatchOutdated
from relay.hub import Hub
from relay.protocol import Message, Row
from relay.snapshot import Snapshot

log = structlog.get_logger()

LOOK_SECONDS: Final = 1.0
"""How long the feed waits for the doorbell before it looks by itself."""

INSPECT_SECONDS: Final = 10.0
"""How often the feed makes sure that the triggers are still in place."""

PRUNE_SECONDS: Final = 60.0
PRUNE_ROWS: Final = 50_000

FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 10.0

LARGE_BOARD_TASKS: Final = 1_000
"""Above it, a board is encoded in a thread, so that the others' changes go on meanwhile."""

# What goes wrong on a connection, the feed reports itself.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


class FeedError(Exception):
    """Why the feed cannot run, in one line that says what to do."""


class Connection(AsyncConnection[TupleRow]):
    """A connection that ends at once when what runs on it is cancelled.

    psycopg would ask the server to cancel its query too, and wait up to ten seconds for one that is silent, while the
    relay is to stop or to connect again.
    """

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ARG002, ASYNC109  # psycopg's signature
        self.pgconn.finish()


def conninfo(database_url: str) -> str:
    """Complete a connection string, where neither it nor libpq's environment says otherwise.

    The keep-alives and the user timeout notice a half-dead link within seconds. Raises psycopg.ProgrammingError.
    """
    defaults = {
        "application_name": ("relay", "PGAPPNAME"),
        "connect_timeout": ("5", "PGCONNECT_TIMEOUT"),
        "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
        "keepalives_idle": ("5", None),
        "keepalives_interval": ("2", None),
        "keepalives_count": ("3", None),
        "tcp_user_timeout": ("5000", None),
    }
    given = conninfo_to_dict(database_url)
    missing = {
        name: value
        for name, (value, variable) in defaults.items()
        if name not in given and (variable is None or variable not in os.environ)
    }
    return make_conninfo(database_url, **missing)


@dataclass(slots=True)
class _Retry:
    """Back-off: doubling from the first to the longest, each time somewhere in its upper half."""

    seconds: float = FIRST_RETRY_SECONDS

    def next(self) -> float:
        delay = self.seconds * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        self.seconds = min(self.seconds * 2, LONGEST_RETRY_SECONDS)
        return delay


class Feed:
    """Follows the journal of one database and reads its boards.

    `problem` says in one line why the feed is not running, and is None while it is.
    """

    def __init__(self, database_url: str) -> None:
        self._conninfo = conninfo(database_url)
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._position: Snapshot | None = None
        self._epoch: str | None = None
        self.problem: str | None = "not connected yet"

    def ask(self, board: str) -> None:
        """Have a board read, for the hub."""
        self._wanted.put_nowait(board)

    async def run(self, hub: Hub) -> None:
        """Feed the hub until cancelled."""
        retry = _Retry()
        while True:
            try:
                async with _Session.open(self._conninfo) as session:
                    await self._resume(session, hub)
                    retry = _Retry()
                    await self._follow(session, hub)
            except* (psycopg.Error, OSError, FeedError, WatchOutdated) as group:
                self._report(_one_line(_first(group)))
            await asyncio.sleep(retry.next())

    def _report(self, problem: str | None) -> None:
        """Log what changed about the feed, once."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)

    async def _resume(self, session: _Session, hub: Hub) -> None:
        """Go on from the position, if what follows it is still there; else from now, and say so."""
        epoch = await session.epoch()
        if self._position is None or epoch != self._epoch or not await session.holds(self._position):
            if self._position is not None:
                log.warning("feed.continuity_lost", position=str(self._position))
            self._position, self._epoch = await session.now(), epoch
            hub.resync(self._position)
        self._report(session.unwatched())

    async def _follow(self, session: _Session, hub: Hub) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_journal(session, hub))
            tasks.create_task(self._read_boards(session, hub))
            tasks.create_task(_inspect(session))
            tasks.create_task(_prune(session))

    async def _read_journal(self, session: _Session, hub: Hub) -> None:
        while True:
            assert self._position is not None, "a session begins with a position"
            batch = await session.since(self._position)
            if not batch.continuous:
                raise FeedError("the journal no longer holds what follows the relay's position")
            self._position = batch.position
            hub.publish(batch.transactions, batch.position)
            self._report(session.unwatched())
            await session.bell()

    async def _read_boards(self, session: _Session, hub: Hub) -> None:
        while True:
            name = await self._wanted.get()
            if not hub.begin_read(name):
                continue
            try:
                snapshot, sync = await session.board(name)
            except BaseException:
                hub.abandon_read(name)
                raise
            hub.synced(name, snapshot, sync)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What became visible between two positions. Not `continuous`: some of it may be missing."""

    position: Snapshot
    transactions: list[Transaction]
    continuous: bool


# The left join returns the snapshot even when nothing is new.
_SINCE: Final[LiteralString] = """
    select pg_catalog.pg_current_snapshot()::text, h.pruned_below::text::bigint,
           j.seq, j.xid::text::bigint, j.watch, j.op::text, j.old_board, j.new_board,
           j.part, j.old_tid::text, j.new_tid::text, j.old_here, j.depth,
           j.old_row::text, j.new_row::text, j.reason
    from relay.horizon h
    left join relay.journal j on j.xid >= %s::text::xid8 or j.xid = any (%s::text[]::xid8[])
    order by j.seq
"""

_BOARD: Final[LiteralString] = """
    select pg_catalog.pg_current_snapshot()::text, b.watch, b.task::text
    from (values (0)) one
    left join relay.board(%s) b on true
"""


class _Session:
    """The two connections while both are well."""

    def __init__(self, listener: Connection, reader: Connection) -> None:
        self._listener = listener
        self._reader = reader
        self._watches: dict[int, Watch] = {}
        self._incomplete: list[str] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str) -> AsyncIterator[Self]:
        """Connect, listen, and check that the install is there. Raises FeedError or psycopg.Error."""
        async with await _connect(conninfo) as listener, await _connect(conninfo) as reader:
            await _require_install(listener)
            # The journal is read by its index alone: with statistics that lag behind, as they do for a table
            # that grows at one end, the planner may think that a third of it is new.
            await listener.execute("set enable_seqscan = off")
            await listener.execute("listen relay")
            session = cls(listener, reader)
            await session.load_watches()
            yield session

    def unwatched(self) -> str | None:
        """Say in one line what keeps changes from being journalled, if anything does."""
        if not self._watches:
            return "nothing is watched: run relay sql watch with the name of the tasks table"
        if self._incomplete:
            table = self._incomplete[0]
            return f"triggers of {table} are missing or disabled: run relay sql watch {table}"
        return None

    async def epoch(self) -> str:
        """Tell the server's epoch. Raises FeedError if the two connections reached different servers."""
        first = await _fetch_one(self._listener, "select relay.epoch()::text")
        second = await _fetch_one(self._reader, "select relay.epoch()::text")
        if first != second:
            raise FeedError("the two connections reached different servers: expected one primary")
        return str(first[0])

    async def now(self) -> Snapshot:
        row = await _fetch_one(self._listener, "select pg_catalog.pg_current_snapshot()::text")
        return Snapshot.parse(row[0])

    async def holds(self, position: Snapshot) -> bool:
        """Whether the journal holds all that follows a position."""
        row = await _fetch_one(
            self._listener,
            "select pg_catalog.pg_current_snapshot()::text, h.pruned_below::text::bigint from relay.horizon h",
        )
        return _continuous(position, Snapshot.parse(row[0]), row[1])

    async def since(self, position: Snapshot) -> _Batch:
        """Read what became visible since a position."""
        parameters = (str(position.xmax), [str(xid) for xid in position.xip])
        rows = await (await self._listener.execute(_SINCE, parameters)).fetchall()
        if not rows:
            raise FeedError("table relay.horizon is empty: run relay sql install")
        now = Snapshot.parse(rows[0][0])
        entries = [_Entry(*row[2:]) for row in rows if row[2] is not None]
        if any(entry.op == "S" or entry.watch not in self._watches for entry in entries):
            await self.load_watches()
        return _Batch(now, self._transactions(entries), _continuous(position, now, rows[0][1]))

    async def bell(self) -> None:
        """Wait for the doorbell, or until it is time to look anyway."""
        async for _ in self._listener.notifies(timeout=LOOK_SECONDS, stop_after=1):
            pass

    async def board(self, name: str) -> tuple[Snapshot, Message]:
        """Read a board."""
        rows = await self._board_rows(name)
        if any(watch is not None and watch not in self._watches for _, watch, _ in rows):
            await self.load_watches()
        if len(rows) > LARGE_BOARD_TASKS:
            sync = await asyncio.to_thread(self._sync, rows)
        else:
            sync = self._sync(rows)
        return Snapshot.parse(rows[0][0]), sync

    async def prune(self) -> int:
        """Delete old changes; returns how many."""
        row = await _fetch_one(self._reader, "select relay.prune(most => %s)", PRUNE_ROWS)
        return int(row[0])

    async def _board_rows(self, name: str) -> list[TupleRow]:
        try:
            return await (await self._reader.execute(_BOARD, [name])).fetchall()
        except psycopg.errors.UntranslatableCharacter:
            # The database's encoding has no such character, so no board is called that.
            row = await _fetch_one(self._reader, "select pg_catalog.pg_current_snapshot()::text, null, null")
            return [row]

    def _sync(self, rows: Iterable[TupleRow]) -> Message:
        tasks: list[Row] = []
        for _, watch, image in rows:
            if watch is None:
                continue
            try:
                tasks.append(self._watch(watch).read(image))
            except UnreadableRow as ex:
                log.error("feed.unreadable_row", problem=str(ex))  # noqa: TRY400  # the line says it all
        return protocol.board_sync(tasks)

    def _transactions(self, entries: Iterable[_Entry]) -> list[Transaction]:
        """Gather entries into transactions, in the order of their last entry.

        Between transactions, this order respects every row's history: who changed a row after another did so
        when that other had made all its entries.
        """
        found: dict[int, Transaction] = {}
        for entry in entries:
            transaction = found.pop(entry.xid, None) or Transaction(entry.xid)
            found[entry.xid] = transaction
            if entry.op == "S":
                transaction.sync = entry.reason or "unknown"
                log.info("feed.sync", reason=entry.reason)
            elif entry.watch in self._watches:
                self._add_change(transaction, entry)
            # Else it was made under a watch that is no more; the transaction that ended it asks for a sync.
        return list(found.values())

    def _add_change(self, transaction: Transaction, entry: _Entry) -> None:
        watch = self._watches[entry.watch]
        try:
            transaction.changes.append(
                Change(
                    watch.id,
                    _side(watch, entry.part, entry.old_tid, entry.old_board, entry.old_row),
                    _side(watch, entry.part, entry.new_tid, entry.new_board, entry.new_row),
                    entry.old_here,
                    entry.depth,
                )
            )
        except UnreadableRow as ex:
            transaction.sync = "unreadable row"
            log.error("feed.unreadable_row", problem=str(ex))  # noqa: TRY400  # the line says it all

    def _watch(self, number: int) -> Watch:
        try:
            return self._watches[number]
        except KeyError:
            raise FeedError("the watched tables changed while a board was read: reading again") from None

    async def load_watches(self) -> None:
        """Read what is watched, and whether its triggers are in place."""
        cursor = await self._reader.execute(
            "select id, pg_catalog.format('%I.%I', schema_name, table_name), id_column, board_column, lane_column, "
            "hidden, triggers_complete from relay.watched",
            prepare=False,
        )
        rows = await cursor.fetchall()
        self._watches = {
            number: Watch(number, table, id_column, board, lane, frozenset(hidden))
            for number, table, id_column, board, lane, hidden, _ in rows
        }
        self._incomplete = [row[1] for row in rows if not row[6]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One row of the journal."""

    seq: int
    xid: int
    watch: int
    op: str
    old_board: str | None
    new_board: str | None
    part: int
    old_tid: str | None
    new_tid: str | None
    old_here: bool
    depth: int
    old_row: str | None
    new_row: str | None
    reason: str | None


def _side(watch: Watch, part: int, tid: str | None, board: str | None, image: str | None) -> Side | None:
    if image is None or tid is None:
        return None
    return Side(watch.read(image), board, Version(part, tid))


def _continuous(position: Snapshot, now: Snapshot, pruned_below: int) -> bool:
    # A server that knows less than was seen already has lost transactions.
    return pruned_below <= position.xmin and now.covers(position)


async def _connect(conninfo: str) -> Connection:
    connection = await Connection.connect(conninfo, autocommit=True)
    # A policy that filters rows would leave boards silently empty; this makes it an error.
    await connection.execute("set row_security = off")
    await connection.execute("set search_path = ''")
    return connection


async def _require_install(connection: Connection) -> None:
    row = await _fetch_one(
        connection, "select pg_catalog.current_database(), pg_catalog.to_regclass('relay.watched') is not null"
    )
    if not row[1]:
        raise FeedError(f"database {row[0]!r} lacks the relay's tables and triggers: run relay sql install")


async def _fetch_one(connection: Connection, query: LiteralString, *parameters: object) -> TupleRow:
    cursor: AsyncCursor[TupleRow] = await connection.execute(query, parameters or None)
    row = await cursor.fetchone()
    if row is None:
        raise FeedError(f"no row from: {query}: run relay sql install")
    return row


async def _inspect(session: _Session) -> None:
    while True:
        await asyncio.sleep(INSPECT_SECONDS)
        await session.load_watches()


async def _prune(session: _Session) -> None:
    while True:
        while await session.prune() == PRUNE_ROWS:
            pass
        await asyncio.sleep(PRUNE_SECONDS)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _one_line(ex: BaseException) -> str:
    text = " ".join(str(ex).split())
    return text or type(ex).__name__

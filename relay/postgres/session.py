"""A session: the connections to Postgres while all is well, and everything that is asked over them.

Two connections. One listens for notifications and reads the journal; the other reads boards and what resuming clients
missed, so that a large board holds up nobody's changes, and prunes the journal.

Rules:
- The daemon's role needs the rights of sql/roles.sql and no more: it reads boards through relay.board.
- LISTEN is committed before the first read, so that nothing falls between the two.
- What is read comes with the snapshot that it was read in, out of the same statement. The journal is pruned by
  DELETE, so a snapshot shows all that was there when it was taken, however many statements read from it.
- The journal tells what it was when it was written: an entry that another server wrote, and a restore put there, is
  younger as a row than as a transaction, and is not read.
- A board is read in one transaction that first locks the tables against DDL, and by one statement, with a snapshot
  from after that: an older one, from before a TRUNCATE or an ALTER TABLE that rewrites rows, would show no row.
- A row that cannot be shown counts as absent, in boards and changes alike, and is reported.
- A connection that is silent while Postgres is not at work for it is dead, whatever TCP thinks of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString, NamedTuple, Self, cast, get_args

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from relay.model import messages as protocol
from relay.model.changes import Entry, Image, Transaction, UnreadableRow, Watch, cancelled
from relay.model.cursor import Era, Reason
from relay.model.snapshot import Snapshot
from relay.model.status import Journal

log = structlog.get_logger()

SILENT_SECONDS: Final = 1.5
"""How long a connection may be silent before Postgres is asked, over another, whether it is at work for it."""

START_SECONDS: Final = 10.0
"""How long it may take, once connected, until a session goes on: its links are watched only from then on."""

PROBE_SECONDS: Final = 1.0
"""How long that question may take."""

LEAD_SECONDS: Final = 3.0
"""How long Postgres hears nothing of what leads until another may."""

RESUME_CHANGES: Final = 20_000
"""So many changes are read for those who resume; if there are more, a `board.sync` costs everybody less."""

PART_CHANGES: Final = 2_000
"""So many changes are held in memory at once, about; a larger batch is read in parts."""

BATCH_TRANSACTIONS: Final = 100_000
"""Of so many transactions at once, which may have gathered in an hour without the relay, it makes one batch; if there
are more, a `board.sync` costs everybody less."""

MAY_READ_TIMEOUT: Final = "2s"
"""How long relay.may_read may think about what is asked at once."""

LARGE_BOARD_TASKS: Final = 1_000
"""Above it, a board is encoded in a thread, so that the others' changes go on meanwhile."""

# What goes wrong on a connection, the feed reports itself.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


NO_ENCODING: Final = (
    "the database has encoding SQL_ASCII, which does not say what its text means: "
    "expected UTF8, or another that says: restore a dump into a database with one"
)


class FeedError(Exception):
    """Why the feed cannot run, in one line that says what to do."""


class Connection(AsyncConnection[TupleRow]):
    """A connection that ends at once when what runs on it is cancelled.

    psycopg would ask the server to cancel its query too, and wait up to ten seconds for one that is silent, while the
    relay is to stop or to connect again.
    """

    waiting_since: float | None = None
    """Since when an answer is awaited, on the event loop's clock."""

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ARG002, ASYNC109  # psycopg's signature
        self.pgconn.finish()

    async def rows(self, query: bytes | LiteralString, *parameters: object) -> list[TupleRow]:
        """Run a query and return all its rows. A text `/**/t/**/` in it is one that may have no form in UTF-8."""
        if isinstance(query, str) and "/**/" in query and self.info.parameter_status("server_encoding") != "UTF8":
            query = _READABLE.sub(r"relay.readable(\1)", query).encode()
        self.waiting_since = asyncio.get_running_loop().time()
        try:
            cursor = await self.execute(query, parameters or None)
            result = cursor.pgresult  # cheaper to ask than `cursor.description`
            return await cursor.fetchall() if result and result.nfields else []
        finally:
            self.waiting_since = None

    async def row(self, query: LiteralString, *parameters: object) -> TupleRow:
        """Run a query that has one row. Raises FeedError if there is none."""
        rows = await self.rows(query, *parameters)
        if not rows:
            raise FeedError(f"no row from: {query}: run relay sql install")
        return rows[0]


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Do what begins a session. Raises FeedError if an answer does not come, for a link may have died in silence."""
    try:
        async with asyncio.timeout(START_SECONDS):
            yield
    except TimeoutError:
        raise FeedError("Postgres was reached and then did not answer: connecting again") from None


def conninfo(database_url: str) -> str:
    """Complete a connection string, where neither it nor libpq's environment says otherwise.

    The keep-alives and the user timeout notice a half-dead link within seconds. Raises psycopg.ProgrammingError.
    """
    defaults = {
        "application_name": ("relay", "PGAPPNAME"),
        "connect_timeout": ("5", "PGCONNECT_TIMEOUT"),
        "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
        "keepalives_idle": ("2", None),
        "keepalives_interval": ("1", None),
        "keepalives_count": ("2", None),
        "tcp_user_timeout": ("3000", None),
    }
    given = conninfo_to_dict(database_url)
    missing = {
        name: value
        for name, (value, variable) in defaults.items()
        if name not in given and (variable is None or variable not in os.environ)
    }
    return make_conninfo(database_url, **missing)


@dataclass(frozen=True, slots=True)
class Batch:
    """What became visible between two snapshots, the later of which is `now`; None if there is too much of it.

    The journal holds all that follows `horizon`. With `more`, it is a part of a large batch, and the next one goes on
    where it ends, even in the midst of a transaction. With `paused`, some of it was not journalled.

    `committed` counts its transactions, also those that concern nobody. For `polled` more seconds, the triggers do
    not notify.
    """

    now: Snapshot
    transactions: list[Transaction] | None
    horizon: Snapshot
    more: bool = False
    committed: int = 0
    polled: float = 0.0
    paused: bool = False


# The journal since a snapshot. An entry in another transaction's name (see relay.resume) stays unread until that one
# is over. Of the transactions that were running, only those are looked up that no longer are: so the entries of one
# that stays open are not looked through again and again. The snapshot is a row of its own, the first, and of the
# same statement: there even when nothing is new, and not sent along with each entry.
_HEAD: Final[LiteralString] = """
    select pg_catalog.pg_current_snapshot()::text, h.seen::text, h.pauses <> relay.pauses(), relay.polled_for()
"""
_READABLE: Final = re.compile(r"/\*\*/([\w.]+)/\*\*/")
_HORIZON: Final[LiteralString] = "from relay.horizon h where h.place = relay.place()"
_ENTRY: Final[LiteralString] = """
           j.xid::text::bigint, j.watch, j.op::text, /**/j.key/**/, /**/j.old_key/**/, /**/j.old_board/**/,
           /**/j.new_board/**/, /**/j.old_row/**/, /**/j.new_row/**/, /**/j.reason/**/
"""
# A row that this server's triggers wrote has the id of its transaction, or a later one where a savepoint was set;
# but relay.resume makes entries in the name of others.
_OURS: Final[LiteralString] = """
    (j.reason = 'journalling_paused' or ((j.xmin::text::bigint - j.xid::text::bigint) & 4294967295) < 2147483648)
"""
_NEW: Final[LiteralString] = (
    """
    from relay.entries j
    where (j.xid >= %s::text::xid8
           or j.xid = any (array(
               select x from pg_catalog.unnest(%s::text[]::xid8[]) x
               where pg_catalog.pg_visible_in_snapshot(x, pg_catalog.pg_current_snapshot()))))
      and pg_catalog.pg_visible_in_snapshot(j.xid, pg_catalog.pg_current_snapshot())
      and """
    + _OURS
)
_FIRST: Final[LiteralString] = (
    _HEAD
    + ", null::pg_lsn, null::tid, null::bigint, null::integer, null, null, null, null, null, null, null, null "
    + _HORIZON
    + " union all (select null, null, null, null, j.lsn, j.ctid,"
    + _ENTRY
)
_SINCE: Final[LiteralString] = _FIRST + _NEW + "order by j.lsn, j.ctid limit %s) order by 5 nulls first, 6"
_MISSED: Final[LiteralString] = (
    _FIRST + _NEW + "and (j.op = 'S' or j.old_board = any (%s) or j.new_board = any (%s)) limit %s) "
    "order by 5 nulls first, 6"
)

# A large batch: its transactions in the order of their latest entries, each with how many it has, and the reason if
# it asks for the boards to be read again.
_OUTLINE: Final[LiteralString] = (
    "select j.xid::text, count(*), max(j.reason) filter (where j.op = 'S')" + _NEW + "group by j.xid "
    "order by max(j.lsn), j.xid limit %s"
)
# All rows of one statement have one position. Where they stand is then about the order in which they were written,
# which matters to nobody but a client that shows tasks in the order in which they come.
_IN_ORDER: Final[LiteralString] = "order by j.lsn, j.ctid"
_WHOLE: Final[LiteralString] = (
    "select" + _ENTRY + "from relay.entries j where j.xid = any (%s::text[]::xid8[]) and " + _OURS + _IN_ORDER
)
# A large transaction, row by row: an entry that changed a key comes once for each of the two. Only keys are sorted.
_BY_KEY: Final[LiteralString] = (
    "declare part no scroll cursor for select /**/s.key/**/, e.* from (select j.ctid as at, k.key "
    "from relay.entries j "
    "cross join lateral (select j.key union all select j.old_key where j.old_key is not null) k (key) "
    "where j.xid = %s::text::xid8 and j.op = 'R' and "
    + _OURS
    + ' order by j.watch, k.key collate "C", j.lsn, j.ctid offset 0) s '
    "cross join lateral (select" + _ENTRY + "from relay.entries j where j.ctid = s.at offset 0) e"
)

_BOARD: Final[LiteralString] = """
    select pg_catalog.pg_current_snapshot()::text, b.watch, /**/b.task/**/
    from (values (0)) one
    left join relay.board(%s, %s) b on true
"""


_VITALS: Final[LiteralString] = """
    select journal_rows, journal_bytes, oldest_seconds, overdue_seconds, keep_bytes, stop_bytes, paused, queue_usage
    from relay.vitals()
"""

_MAY_READ: Final[LiteralString] = """
    select coalesce(relay.may_read(q.claims::jsonb, q.board), false)
    from unnest(%s::text[], %s::text[]) with ordinality q (claims, board, n)
    order by q.n
"""


class Session:
    """The two connections while both are well.

    `silent`: the triggers never notify here, for transactions may be prepared.
    """

    def __init__(
        self,
        conninfo: str,
        followed: Container[str | None],
        listener: Connection,
        reader: Connection,
        board_readers: Sequence[Connection] = (),
        *,
        silent: bool,
    ) -> None:
        self.silent = silent
        self._conninfo = conninfo
        self._followed = followed
        self._listener = listener
        self._reader = reader
        self._reading = asyncio.Lock()
        self._board_readers = board_readers
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for each in board_readers:
            self._free.put_nowait(each)
        self._watches: dict[int, Watch] = {}
        self._problems: list[str] = []
        self._arrived: list[str] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, followed: Container[str | None], side_by_side: int = 1) -> AsyncIterator[Self]:
        """Connect, listen, and check that the install is there. Raises FeedError or psycopg.Error.

        So many boards can be read side by side; if several, each over a connection of its own.

        Of live changes, only transactions that concern a board in `followed` are decoded. A board that comes there
        later is read later, and shows them.
        """
        async with (
            await _connected(conninfo) as listener,
            await _connected(conninfo) as reader,
            AsyncExitStack() as more,
        ):
            board_readers = [
                await more.enter_async_context(await _connected(conninfo))
                for _ in range(side_by_side if side_by_side > 1 else 0)
            ]
            async with in_time():
                await _require_install(listener)
                # The journal is read by its index alone: with statistics that lag behind, as they do for a table
                # that grows at one end, the planner may think that a third of it is new.
                await listener.rows("set enable_seqscan = off")
                await listener.rows("listen relay")
                silent = await listener.row("select pg_catalog.current_setting('max_prepared_transactions') <> '0'")
                session = cls(conninfo, followed, listener, reader, board_readers, silent=silent[0])
                await session.load_watches()
            yield session

    def unwatched(self) -> str | None:
        """Say in one line what keeps changes from being journalled, if anything does."""
        if not self._watches and not self._problems:
            return "nothing is watched: run relay sql watch with the name of the tasks table"
        return self._problems[0] if self._problems else None

    async def era(self) -> Era:
        """Tell which cursors are good. Raises FeedError if the two connections reached different servers."""
        first = await self._listener.rows("select run, key from relay.epoch()")
        async with self._reading:
            second = await self._reader.rows("select run, key from relay.epoch()")
        if first[0] != second[0]:
            raise FeedError("the two connections reached different servers: expected one primary")
        return Era(run=first[0][0], keys=dict(first), shape=await self.shape())

    async def shape(self) -> str:
        """Tell the shape of the watched tables."""
        return cast(str, (await self._listener.row("select relay.shape()"))[0])

    async def end_pause(self) -> bool:
        """Have journalling go on if it was paused, and there is room; returns whether it goes on."""
        return bool((await self._listener.row("select relay.resume()"))[0])

    async def is_paused(self) -> bool:
        """Tell whether journalling is paused, or was since a relay last saw to it."""
        return bool((await self._listener.row("select h.pauses <> relay.pauses() " + _HORIZON))[0])

    async def holders(self) -> str:
        """Name whose transactions keep the journal from being vacuumed."""
        return str(
            (await self._listener.row("select relay.vacuum_holders()"))[0] or "no transaction: is autovacuum on?"
        )

    async def poll_for(self, seconds: float) -> None:
        """Promise to read the journal without being notified, so long."""
        await self._listener.rows("select relay.poll_for(%s)", round(seconds * 1000))

    async def refresh(self) -> None:
        """Have the trigger functions fit the tables as they are now."""
        async with self._reading:
            await self._reader.rows("select relay.refresh()")

    async def now(self) -> tuple[Snapshot, Snapshot]:
        """Tell what is visible now, and the journal's horizon."""
        row = await self._listener.row("select pg_catalog.pg_current_snapshot()::text, h.seen::text " + _HORIZON)
        return Snapshot.parse(row[0]), Snapshot.parse(row[1])

    async def since(self, position: Snapshot) -> AsyncGenerator[Batch, None]:
        """Read what became visible since a position."""
        new = (str(position.xmax), _running(position))
        rows = await self._listener.rows(_SINCE, *new, PART_CHANGES + 1)
        if len(rows) <= 1 + PART_CHANGES:
            yield await self._batch(rows, self._followed)
            return
        del rows  # a part too many, and large
        await self._listener.rows("begin isolation level repeatable read, read only")
        whole = await self._batch(await self._listener.rows(_HEAD + _HORIZON))
        outline = await self._listener.rows(_OUTLINE, *new, BATCH_TRANSACTIONS + 1)
        whole = replace(whole, committed=len(outline))
        if len(outline) > BATCH_TRANSACTIONS:
            whole = replace(whole, transactions=None)
        else:
            async for transactions in self._parts(outline):
                yield replace(whole, transactions=transactions, more=True)
        await self._listener.rows("commit")
        yield whole

    async def _parts(self, outline: Iterable[TupleRow]) -> AsyncIterator[list[Transaction]]:
        """Read transactions in parts: many small ones are a part, and a large one is many."""
        small: list[str] = []
        room = PART_CHANGES
        for xid, count, reason in outline:
            if count > room and small:
                yield await self._read_entries(await self._whole(small), self._followed)
                small, room = [], PART_CHANGES
            if reason is not None:
                yield [_sync(int(xid), reason)]
            elif count > PART_CHANGES:
                async for part in self._by_key(xid):
                    yield [part]
            else:
                small.append(xid)
                room -= count
        if small:
            yield await self._read_entries(await self._whole(small), self._followed)

    async def _by_key(self, xid: str) -> AsyncIterator[Transaction]:
        """Read a large transaction row by row; held is a part at the most, and of one row what did not cancel out."""
        await self._listener.rows(_BY_KEY, xid)
        images: list[Image] = []
        while rows := await self._listener.rows(f"fetch {PART_CHANGES} from part".encode()):
            for key, *columns in rows:
                entry = Entry(*columns)
                images += [image for image in await self._images(entry, self._followed) if image.key == key]
            last = (rows[-1][2], rows[-1][0])
            done = [image for image in images if (image.watch.id, image.key) != last]
            images = cancelled(image for image in images if (image.watch.id, image.key) == last)
            if done:
                yield Transaction(int(xid), done)
        if images:
            yield Transaction(int(xid), images)
        await self._listener.rows("close part")

    async def _whole(self, xids: list[str]) -> list[Entry]:
        return [Entry(*row) for row in await self._listener.rows(_WHOLE, xids)]

    async def missed(self, oldest: Snapshot, boards: Collection[str]) -> Batch:
        """Read what became visible since a snapshot and concerns some of the boards. Raises as `since` does."""
        names = list(boards)
        parameters = (str(oldest.xmax), _running(oldest), names, names, RESUME_CHANGES + 1)
        async with self._reading:
            await self._reader.rows("begin")
            await self._reader.rows("set local enable_seqscan = off")  # see open
            rows = await self._reader.rows(_MISSED, *parameters)
            await self._reader.rows("commit")
        if len(rows) > 1 + RESUME_CHANGES:
            return replace(await self._batch(rows[:1]), transactions=None)
        return await self._batch(rows, boards)

    async def notified(self, seconds: float) -> list[str | None]:
        """Wait for a notification, so long at most; return for each that came which probe it is of, if one."""
        notifications = self._listener.notifies(timeout=seconds, stop_after=1)
        return [_probe_of(notify.payload) async for notify in notifications]

    def probes(self) -> list[str]:
        """Return the probes that were read since the last time."""
        arrived, self._arrived = self._arrived, []
        return arrived

    async def write_probe(self, label: Callable[[], str]) -> tuple[str, bool]:
        """Write a probe and say whether it notified; its label is asked for in the moment of writing."""
        async with self._reading:
            written = label()
            return written, bool((await self._reader.row("select relay.probe(%s)", written))[0])

    async def vitals(self) -> Vitals:
        """Ask how the journal is."""
        async with self._reading:
            return await read_vitals(self._reader)

    async def board(self, name: str) -> tuple[Snapshot, bytes]:
        """Read a board: the snapshot, and the data of its `board.sync`."""
        async with self._board_reader() as reader:
            rows = await _board_rows(reader, name)
        if any(watch is not None and watch not in self._watches for _, watch, _ in rows):
            await self.load_watches()
        if len(rows) > LARGE_BOARD_TASKS:
            data = await asyncio.to_thread(self._board_data, rows)
        else:
            data = self._board_data(rows)
        return Snapshot.parse(rows[0][0]), data

    async def prune(self) -> bool:
        """Let old changes go, a number of them at the most; returns whether there may be more."""
        async with self._reading:
            return bool((await self._reader.row("select relay.prune() > 0"))[0])

    async def may_read(self, questions: Sequence[tuple[Mapping[str, Any], str]]) -> list[bool]:
        """Ask relay.may_read about each claims and board; a question that it fails at is answered with no."""
        return await self._answered([(json.dumps(claims), board) for claims, board in questions])

    async def _answered(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        """Answer; if that fails, each half by itself, until those are alone that it fails at.

        The connection is free between two statements: boards are read and the journal is pruned meanwhile.
        """
        try:
            async with self._reading:
                return await self._answers(questions)
        except psycopg.Error as ex:
            if ex.sqlstate is None or self._reader.closed:
                raise
            if len(questions) == 1:
                log.error("access.may_read_failed", problem=_line_of(ex))  # noqa: TRY400  # the line says it all
                return [False]
        half = len(questions) // 2
        return await self._answered(questions[:half]) + await self._answered(questions[half:])

    async def _answers(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        await self._reader.rows("begin")
        try:
            await self._reader.rows("select pg_catalog.set_config('statement_timeout', %s, true)", MAY_READ_TIMEOUT)
            rows = await self._reader.rows(_MAY_READ, *map(list, zip(*questions, strict=True)))
        finally:
            if not self._reader.closed:
                await self._reader.rows("rollback")
        return [may for (may,) in rows]

    async def load_watches(self) -> None:
        """Read what is watched, and whether its triggers are in place."""
        async with self._reading:
            rows = await self._reader.rows(
                "select id, pg_catalog.format('%I.%I', schema_name, table_name), id_column, board_column, "
                "lane_column, hidden, triggers_complete, problem from relay.watched order by id"
            )
        self._watches = {
            number: Watch(number, table, id_column, board, lane, frozenset(hidden))
            for number, table, id_column, board, lane, hidden, _, problem in rows
            if problem is None
        }
        self._problems = [
            f"{table} {problem}, and is not shown: run relay sql watch {table} with the columns as they are now"
            for _, table, *_, problem in rows
            if problem is not None
        ] + [
            f"triggers of {table} are missing or disabled: run relay sql watch {table}"
            for _, table, *_, complete, problem in rows
            if problem is None and not complete
        ]

    async def require_links(self) -> None:
        """Make sure that a connection which has been silent for long is not dead. Raises FeedError if it is."""
        now = asyncio.get_running_loop().time()
        for connection in (self._listener, self._reader, *self._board_readers):
            since = connection.waiting_since
            if since is not None and now - since > SILENT_SECONDS:
                state = await _state_of(connection, self._conninfo)
                if connection.waiting_since != since:
                    continue  # it has answered meanwhile
                if state != "active":
                    raise FeedError(f"a connection is silent and Postgres says that it is {state}: connecting again")
                connection.waiting_since = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _board_reader(self) -> AsyncIterator[Connection]:
        """Have a connection that nobody else uses now."""
        if not self._board_readers:
            async with self._reading:
                yield self._reader
            return
        reader = await self._free.get()
        try:
            yield reader
        finally:
            self._free.put_nowait(reader)

    def _board_data(self, rows: Iterable[TupleRow]) -> bytes:
        tasks = []
        for _, number, image in rows:
            if number is not None:
                watch = self._watch(number)
                try:
                    tasks.append(watch.task(watch.columns(image)))
                except UnreadableRow as ex:
                    log.error("feed.unreadable_row", problem=str(ex))  # noqa: TRY400  # the line says it all
        return protocol.board_data(tasks)

    async def _batch(self, rows: Sequence[TupleRow], followed: Container[str | None] = ()) -> Batch:
        if not rows or rows[0][0] is None:
            raise FeedError("relay.horizon has no row of this installation: connecting again, which makes one")
        now, horizon, paused, polled = rows[0][:4]
        entries = [Entry(*row[6:]) for row in rows[1:]]
        return Batch(
            Snapshot.parse(now),
            await self._read_entries(entries, followed),
            Snapshot.parse(horizon),
            committed=len({entry.xid for entry in entries}),
            polled=polled / 1000,
            paused=paused,
        )

    async def _read_entries(self, entries: Iterable[Entry], followed: Container[str | None]) -> list[Transaction]:
        """Gather entries into transactions, in the order of their last entry.

        Between transactions, this order respects every row's history: a transaction that changes a row which another
        one changed has waited for its commit.
        """
        found: dict[int, Transaction] = {}
        for entry in entries:
            if entry.op == "P":
                self._arrived.append(entry.reason or "")
                continue
            if entry.op != "S" and not entry.concerns(followed):
                continue
            transaction = found.pop(entry.xid, None) or Transaction(entry.xid)
            if entry.op == "S":
                transaction.sync = _reason(entry.reason)
                log.info("feed.sync", reason=entry.reason)
                await self.load_watches()
            else:
                transaction.images += await self._images(entry, followed)
            found[entry.xid] = transaction
        return list(found.values())

    async def _images(self, entry: Entry, followed: Container[str | None]) -> list[Image]:
        if entry.watch not in self._watches:
            await self.load_watches()
        if (watch := self._watches.get(entry.watch)) is None:
            return []  # made under a watch that is no more; the transaction that ended it asks for a sync
        images, problems = entry.images(watch, followed)
        for problem in problems:
            log.error("feed.unreadable_row", problem=problem)
        return images

    def _watch(self, number: int) -> Watch:
        try:
            return self._watches[number]
        except KeyError:
            raise FeedError("the watched tables changed while a board was read: reading again") from None


async def _board_rows(reader: Connection, name: str) -> list[TupleRow]:
    await reader.rows("begin read only")
    await reader.rows("select relay.hold_tables()")
    await reader.rows("savepoint quick")
    try:
        rows = await reader.rows(_BOARD, name, False)
    except psycopg.errors.UntranslatableCharacter:
        # The database's encoding has no such character, so no board is called that.
        await reader.rows("rollback")
        return await reader.rows("select pg_catalog.pg_current_snapshot()::text, null, null")
    except (psycopg.DataError, psycopg.ProgrammingError, psycopg.InternalError, psycopg.IntegrityError):
        # Some row cannot be shown: find out which, at a price.
        await reader.rows("rollback to savepoint quick")
        rows = await reader.rows(_BOARD, name, True)
    await reader.rows("commit")
    return rows


_LEADS: Final[LiteralString] = """
    select not exists (
        select from pg_catalog.pg_stat_activity other
        where (other.datid, other.usesysid, other.application_name) = (me.datid, me.usesysid, me.application_name)
          and (other.backend_start, other.pid) < (me.backend_start, me.pid))
    from pg_catalog.pg_stat_activity me
    where me.pid = pg_catalog.pg_backend_pid()
"""


class Lead:
    """The lead among several of one name and one role, on one database: the oldest of their sessions has it.

    Postgres ends the session, and with it the lead, of a process that is gone, stands still or is cut off. It is no
    advisory lock, for any role may take one and keep it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, name: str) -> AsyncIterator[Self]:
        """Connect, and be one of those that may lead. All methods raise FeedError if Postgres does not answer."""
        # Postgres cuts names: what makes this one unlike others comes first.
        label = f"relay {hashlib.sha256(name.encode()).hexdigest()[:16]} {name}"
        with _one_line():
            async with await _connected(make_conninfo(conninfo, application_name=label)) as connection:
                await connection.execute(f"set idle_session_timeout = {LEAD_SECONDS * 1000:.0f}".encode())
                yield cls(connection)

    async def has(self) -> bool:
        """Whether this one leads; once it does, it does until its session ends."""
        with _one_line():
            async with asyncio.timeout(LEAD_SECONDS / 2):
                return bool((await self._connection.row(_LEADS))[0])

    async def keep(self) -> None:
        """Keep it; raises FeedError when it is lost."""
        while True:
            if not await self.has():
                raise FeedError("another session leads, which began before this one")
            await asyncio.sleep(LEAD_SECONDS / 6)


@contextmanager
def _one_line() -> Iterator[None]:
    """Say in one line what goes wrong with the lead."""
    try:
        yield
    except TimeoutError:
        raise FeedError("Postgres does not answer: connecting again") from None
    except (psycopg.Error, OSError) as ex:
        raise FeedError(_line_of(ex) if isinstance(ex, psycopg.Error) else str(ex)) from None


class Vitals(NamedTuple):
    """How the journal is, and what share of the notification queue is in use."""

    journal: Journal
    queue_usage: float


async def read_vitals(connection: Connection) -> Vitals:
    """Ask how the journal is."""
    row = await connection.row(_VITALS)
    names = ("rows", "bytes", "age_seconds", "overdue_seconds", "keep_bytes", "stop_bytes", "paused")
    return Vitals(Journal(**dict(zip(names, row[:-1], strict=True))), row[-1])


def _sync(xid: int, reason: str) -> Transaction:
    log.info("feed.sync", reason=reason)
    return Transaction(xid, sync=_reason(reason))


def _reason(text: str | None) -> Reason:
    """Take the first word of what the database gave as a reason, if it is one that clients know."""
    word = (text or "").partition(":")[0]
    return cast(Reason, word) if word in get_args(Reason) else "resync"


def _probe_of(payload: str) -> str | None:
    """Take the probe out of a notification's payload; anybody may notify, and say anything."""
    found = re.fullmatch(r'\{"probe" : "([\w-]+)"\}', payload)
    return found and found[1]


def _line_of(ex: psycopg.Error) -> str:
    return ex.diag.message_primary or " ".join(str(ex).split())


def _running(snapshot: Snapshot) -> list[str]:
    return [str(xid) for xid in snapshot.xip]


async def _connected(conninfo: str) -> Connection:
    connection = await Connection.connect(conninfo, autocommit=True)
    try:
        await set_up(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def set_up(connection: Connection) -> None:
    """Make the settings of a session. Raises FeedError for a database whose text has no encoding."""
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise FeedError(NO_ENCODING)
    # Whatever the role or the database has as a default, each statement sees what was committed before it.
    await connection.execute("set default_transaction_isolation = 'read committed'")
    await connection.execute("set client_encoding = 'UTF8'")
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        await connection.execute(f"set {limit} = 0".encode())
    await connection.execute("set standard_conforming_strings = on")
    # A policy that filters rows would leave boards silently empty; this makes it an error.
    await connection.execute("set row_security = off")
    await connection.execute("set search_path = ''")
    # The planner knows nothing of how little is new, and would compile code for the millions of rows that it expects.
    await connection.execute("set jit = off")


async def _require_install(connection: Connection) -> None:
    row = await connection.row(
        "select pg_catalog.current_database(), pg_catalog.to_regprocedure('relay.version()') is not null"
    )
    if not row[1]:
        raise FeedError(
            f"database {row[0]!r} lacks the relay's tables and triggers, or has those of an older version: "
            f"run relay sql install"
        )


async def _state_of(connection: Connection, conninfo: str) -> str:
    """Ask Postgres, over a new connection, what a connection's backend is doing.

    A server that refuses the new one is at least there, so the old one has the benefit of the doubt.
    """
    try:
        async with asyncio.timeout(PROBE_SECONDS), await Connection.connect(conninfo, autocommit=True) as probe:
            rows = await probe.rows(
                "select state from pg_catalog.pg_stat_activity where pid = %s", connection.info.backend_pid
            )
    except TimeoutError:
        return "not to be reached"
    except psycopg.OperationalError as ex:
        if ex.sqlstate is None:
            raise
        return "active"
    return str(rows[0][0]) if rows else "gone"

"""The journal: the queries that read it, and the batches that they yield.

Rules:
- One statement returns the changes since a position and the snapshot in which it read them, which is the next
  position. So no transaction is skipped or read twice, however long it was open.
- Entries that a restore copied from another server are not read: their rows are younger than the transactions that
  they name.
- A batch has a stamp of the catalog rows that determine how images are made, in its own snapshot. If it differs from
  the stamp of the last batch, the shape of the tables is compared before the batch is passed on. So no batch shows
  half of an ALTER TABLE.
- If a task is on the board of its lane, which is a row of another table, that board is read when the entries are
  read, in their snapshot: see places.py. A change of a lane causes its boards to be read again. So whatever order
  writers committed in, and although none of them locked the other's row, changes are consistent with any read of a
  board. The same goes for extras, see extras.py.
- Memory is bounded: a large batch is read in parts, and a large transaction row by row.

Pruning, and the horizon. Pruning deletes entries and, in the same transaction, records up to where in `horizon`. A
statement sees either both or neither. So a reader can continue from a position if, in the snapshot that it reads
under, its position covers the horizon: it has then already read everything that was deleted. A batch that is read by
several statements is read under one snapshot, which is not affected by later deletions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, LiteralString

import structlog
from psycopg.rows import TupleRow

from relay.model.snapshot import Snapshot
from relay.model.transaction import Image, Transaction, cancelled
from relay.postgres.connection import Connection, readable
from relay.postgres.decode import Entry, images_of, sync_of, transactions_of
from relay.postgres.extras import Extras, appeared, touches_in, touches_of
from relay.postgres.faults import FeedError
from relay.postgres.places import Places
from relay.postgres.unshown import Unshown
from relay.postgres.watches import Watches
from relay.text import one_line

log = structlog.get_logger()

RESUME_CHANGES: Final = 20_000
"""Maximum number of changes read for clients that resume. Beyond it, a `board.sync` is cheaper for everybody."""

PART_CHANGES: Final = 2_000
"""Approximate maximum number of changes in memory at once. A larger batch is read in parts."""

BATCH_TRANSACTIONS: Final = 100_000
"""Maximum number of transactions in a batch, which can hold an hour without a relay. Beyond it, a `board.sync` is
cheaper for everybody."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The transactions that became visible between two snapshots, the later of which is `now`; None if too many.

    The journal contains everything after `horizon`. With `more`, this is a part of a large batch, and the next part
    continues where it ends, even within a transaction. With `paused`, some changes were not journalled.

    `committed` is the number of transactions, also of those that concern nobody. For `polled` more seconds, the
    triggers do not notify. `stamp` differs from that of another batch if the tables may have another shape as of
    `now`.
    """

    now: Snapshot
    transactions: list[Transaction] | None
    horizon: Snapshot
    stamp: str
    more: bool = False
    committed: int = 0
    polled: float = 0.0
    paused: bool = False


# The journal since a snapshot. An entry that names another transaction (see relay.resume) is not read until that one
# has ended. Of the transactions that were running then, only those that have ended are searched for, so that entries
# of one that stays open are not read again and again. The snapshot is the first row of the same statement: it is
# there even if nothing is new, and is not repeated with each entry.
# A second horizon was restored from a dump, and so perhaps were entries. Then the journal counts as empty; see
# relay.forget_others.
_KEPT: Final[LiteralString] = """
    case when (select pg_catalog.count(*) from relay.horizon) > 1
         then pg_catalog.pg_current_snapshot() else h.seen end::text, h.pauses <> relay.pauses()
"""
# A catalog row that changes gets a new xmin, later than any other, so the sum changes.
_STAMP: Final[LiteralString] = """
    (select pg_catalog.concat_ws(' ', pg_catalog.count(*), pg_catalog.sum(s.xmin::text::bigint)) from (
        select a.xmin from pg_catalog.pg_attribute a where a.attrelid = any (%s::oid[]) and a.attnum > 0
        union all
        select t.xmin from pg_catalog.pg_trigger t where t.tgrelid = any (%s::oid[])
        union all
        select i.xmin from pg_catalog.pg_inherits i where i.inhparent = any (%s::oid[])
        union all
        select e.xmin from pg_catalog.pg_enum e where e.enumtypid = any (%s::oid[])
        union all
        select c.xmin from pg_catalog.pg_cast c where c.castsource = any (%s::oid[])
        union all
        select p.xmin from pg_catalog.pg_proc p where p.oid = any (%s::oid[])) s)
"""
_HEAD: Final[LiteralString] = (
    "select pg_catalog.pg_current_snapshot()::text," + _KEPT + ", relay.polled_for()," + _STAMP
)
_HORIZON: Final[LiteralString] = "from (select * from relay.horizon o where o.place = relay.place() limit 1) h"
_ENTRY: Final[LiteralString] = """
           j.xid::text::bigint, j.watch, j.op::text, /**/j.key/**/, /**/j.old_key/**/, /**/j.old_board/**/,
           /**/j.new_board/**/, /**/j.old_row/**/, /**/j.new_row/**/, /**/j.reason/**/
"""
# The xmin of a row that this server's triggers wrote is the id of its transaction, or a later one within a savepoint.
# Only relay.resume writes entries that name other transactions.
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
    + " union all (select null, null, null, null, null, j.lsn, j.ctid,"
    + _ENTRY
)
_SINCE: Final[LiteralString] = _FIRST + _NEW + "order by j.lsn, j.ctid limit %s) order by 6 nulls first, 7"
_MISSED: Final[LiteralString] = (
    _FIRST + _NEW + "and (j.op = 'S' or j.old_board = any (%s) or j.new_board = any (%s) or j.watch = any (%s)) "
    "limit %s) order by 6 nulls first, 7"
)

# A large batch: its transactions in the order of their latest entries, each with its number of entries, and the
# reason if it requires all boards to be read again.
_OUTLINE: Final[LiteralString] = (
    "select j.xid::text, count(*), max(j.reason) filter (where j.op = 'S')" + _NEW + "group by j.xid "
    "order by max(j.lsn), j.xid limit %s"
)
# All rows of one statement have the same lsn. Their ctid is then about the order in which they were written, which
# only matters to clients that show tasks in the order of arrival.
_IN_ORDER: Final[LiteralString] = "order by j.lsn, j.ctid"
_WHOLE: Final[LiteralString] = (
    "select" + _ENTRY + "from relay.entries j where j.xid = any (%s::text[]::xid8[]) and " + _OURS + _IN_ORDER
)
_LANES: Final[LiteralString] = (
    "select" + _ENTRY + "from relay.entries j where j.xid = %s::text::xid8 and j.op = 'L' and " + _OURS
)
# A large transaction, row by row: an entry that changed a key is returned once for each key. Only keys are sorted.
_BY_KEY: Final[LiteralString] = (
    "declare part no scroll cursor for select /**/s.key/**/, e.* from (select j.ctid as at, k.key "
    "from relay.entries j "
    "cross join lateral (select j.key union all select j.old_key where j.old_key is not null) k (key) "
    "where j.xid = %s::text::xid8 and j.op = 'R' and "
    + _OURS
    + ' order by j.watch, k.key collate "C", j.lsn, j.ctid offset 0) s '
    "cross join lateral (select" + _ENTRY + "from relay.entries j where j.ctid = s.at offset 0) e"
)

# The extras that were touched: the extra, N or F, the key, and the transaction if it was only one.
_TOUCHES: Final[LiteralString] = (
    "select s.watch, s.op::text, /**/k.key/**/, "
    "case when min(s.xid::text::bigint) = max(s.xid::text::bigint) then min(s.xid::text::bigint) end from (select j.*"
    + _NEW
    + "and j.op in ('N', 'F')) s cross join lateral (select s.old_key union select s.key) k (key) "
    "where k.key is not null group by 1, 2, 3 order by min(s.lsn), 1, 2, 3"
)

_ONE_SNAPSHOT: Final[LiteralString] = "begin isolation level repeatable read, read only"
_UNREADABLE: Final = "row_unreadable: "

# Whether the journal is complete since a snapshot and has no entry that concerns a board and some watches, or that
# requires the board to be read again. It runs after the read that it is about, so it can only see more.
_SAYS_NOTHING: Final[LiteralString] = (
    "select relay.shape(),"
    + _KEPT
    + ", exists (select"
    + _NEW
    + "and (j.op = 'S' or (j.op = 'L' or j.watch = any (%s)) and %s in (j.old_board, j.new_board))) "
    + _HORIZON
)


async def says_nothing(link: Connection, shape: str, since: Snapshot, board: str, watches: Collection[int]) -> bool:
    """Whether these watches, which had no row on a board as of a snapshot, certainly have none now.

    `shape` is that of the tables as of the snapshot.
    """
    await link.rows("begin read only")
    try:
        await link.rows("set local enable_seqscan = off")  # see Session.open
        rows = await link.rows(_SAYS_NOTHING, str(since.xmax), _running(since), list(watches), board)
    finally:
        if not link.closed:
            await link.rows("rollback")
    return any(
        is_now == shape and since.covers(Snapshot.parse(horizon)) and not paused and not changed
        for is_now, horizon, paused, changed in rows
    )


class Journal:
    """The journal, read over one connection. Only changes of boards in `followed` are decoded.

    A board that is followed later is read later, and so contains them. Rows that cannot be shown are noted in
    `unshown`.
    """

    def __init__(
        self, link: Connection, watches: Watches, followed: Container[str | None], unshown: Unshown | None = None
    ) -> None:
        self._unshown = unshown
        self._link = link
        self._watches = watches
        self._followed = followed
        self._places = Places(self._rows, watches)
        self._extras = Extras(self._rows, watches)
        self._probes: list[str] = []

    async def head(self) -> tuple[Snapshot, Snapshot, bool]:
        """Return what is visible now, the journal's horizon, and whether something since then was not journalled."""
        found = await self._head()
        return found.now, found.horizon, found.paused

    async def _head(self) -> Batch:
        return _batch(await self._rows(_HEAD + _HORIZON, *self._watches.closure))

    async def since(self, position: Snapshot) -> AsyncGenerator[Batch, None]:
        """Read what became visible since a position."""
        new = (str(position.xmax), _running(position))
        in_one_snapshot = self._watches.depend_on_other_tables
        if in_one_snapshot:
            await self._rows(_ONE_SNAPSHOT)
        rows = await self._rows(_SINCE, *self._watches.closure, *new, PART_CHANGES + 1)
        if len(rows) <= 1 + PART_CHANGES:
            entries = [Entry(*row[7:]) for row in rows[1:]]
            batch = _batch(rows, entries)
            self._places.begin(None if batch.paused else batch.stamp, entries)
            if not in_one_snapshot:  # if an extra was declared just now, that causes a sync
                yield replace(batch, transactions=await self._transactions(entries))
                return
            async for transactions, more in self._at_once(entries, batch.now):
                if not more:
                    await self._rows("commit")
                yield replace(batch, transactions=transactions, more=more)
            return
        del rows  # large, and not needed: they are read again in parts
        if not in_one_snapshot:
            await self._rows(_ONE_SNAPSHOT)
        async for batch in self._in_parts(new):
            if not batch.more:
                await self._rows("commit")
            yield batch

    async def _at_once(
        self, entries: Sequence[Entry], now: Snapshot
    ) -> AsyncIterator[tuple[list[Transaction], bool]]:
        """Turn the entries of a batch into transactions; in parts, if an extra of many tasks was touched."""
        transactions = await self._transactions(entries)
        await self._extras.attach(transactions)
        sent = appeared(transactions)
        async for touched in self._extras.touched(touches_in(entries), now, self._followed, sent):
            if _touches(transactions) > PART_CHANGES:
                yield transactions, True
                transactions = []
            transactions.append(touched)
        yield transactions, False

    async def _in_parts(self, new: tuple[str, list[str]]) -> AsyncIterator[Batch]:
        """Read a large batch in the snapshot of this transaction."""
        whole = await self._head()
        self._places.forget()
        if whole.paused:  # the follower ends the pause, for which it must be able to write, and sends all boards
            yield whole
            return
        outline = await self._rows(_OUTLINE, *new, BATCH_TRANSACTIONS + 1)
        whole = replace(whole, committed=len(outline))
        if len(outline) > BATCH_TRANSACTIONS:
            whole = replace(whole, transactions=None)
        else:
            for parts in (self._parts(outline), self._touched_parts(whole.now, *new)):
                async for transactions in parts:
                    yield replace(whole, transactions=transactions, more=True)
        yield whole

    async def missed(self, oldest: Snapshot, boards: Collection[str]) -> Batch:
        """Read what became visible since a snapshot and concerns some of the boards. Raises as `since` does."""
        batch, entries = await self._missed(oldest, boards)
        if any(map(self._watches.is_unknown, entries)):
            await self._watches.load()
            batch, _ = await self._missed(oldest, boards)
        return batch

    async def _missed(self, oldest: Snapshot, boards: Collection[str]) -> tuple[Batch, Sequence[Entry]]:
        names = list(boards)
        new = (str(oldest.xmax), _running(oldest))
        # All changes of tasks that are found through lanes: which boards they are on is only known afterwards.
        all_of = self._watches.found_through_lanes
        parameters = (*self._watches.closure, *new, names, names, all_of, RESUME_CHANGES + 1)
        async with self._link.in_turn:
            await self._rows(_ONE_SNAPSHOT)
            await self._rows("set local enable_seqscan = off")  # see Session.open
            rows = await self._rows(_MISSED, *parameters)
            touched_keys = await self._rows(_TOUCHES + " limit %s", *new, RESUME_CHANGES + 1)
            too_much = len(rows) > 1 + RESUME_CHANGES or len(touched_keys) > RESUME_CHANGES
            self._places.forget()
            entries = await self._places.resolved([Entry(*row[7:]) for row in rows[1:] if not too_much])
            found = transactions_of(entries, self._watches.by_id, boards)
            await self._extras.attach(found)
            batch = _batch(rows, entries)
            touches = touches_of([] if too_much else map(tuple, touched_keys))
            async for touched in self._extras.touched(touches, batch.now, boards, appeared(found)):
                if _touches(found) < RESUME_CHANGES:
                    found.append(touched)
                else:
                    too_much = True
            await self._rows("commit")
        return replace(batch, transactions=None if too_much else found), entries

    def probes(self) -> list[str]:
        """Return the labels of the probes that were read since the last call."""
        arrived, self._probes = self._probes, []
        return arrived

    async def _parts(self, outline: Iterable[TupleRow]) -> AsyncIterator[list[Transaction]]:
        """Read transactions in parts: a part is several small transactions, or a piece of a large one."""
        small: list[str] = []
        room = PART_CHANGES
        for xid, count, reason in outline:
            if count > room and small:
                yield await self._whole(small)
                small, room = [], PART_CHANGES
            if reason is not None:
                self._note_unrecorded(None, reason)
                yield [sync_of(int(xid), reason)]
            elif count > PART_CHANGES:
                async for part in self._by_key(xid):
                    yield [part]
            else:
                small.append(xid)
                room -= count
        if small:
            yield await self._whole(small)

    async def _whole(self, xids: list[str]) -> list[Transaction]:
        entries = [Entry(*row) for row in await self._rows(_WHOLE, xids)]
        found = await self._transactions(entries)
        await self._extras.attach(found)
        return found

    async def _by_key(self, xid: str) -> AsyncIterator[Transaction]:
        """Read a large transaction row by row, with at most a part and the net images of one row in memory."""
        lanes = [Entry(*row) for row in await self._rows(_LANES, xid)]
        for transaction in transactions_of(lanes, self._watches.by_id, self._followed):
            yield transaction
        await self._rows(_BY_KEY, xid)
        images: list[Image] = []
        while rows := await self._rows(f"fetch {PART_CHANGES} from part".encode()):
            found = [Entry(*columns) for _, *columns in rows]
            await self._watches.load_for(found)
            entries = await self._places.resolved(found)
            again = [entry for entry in entries if entry.op != "R"]
            for transaction in transactions_of(again, self._watches.by_id, self._followed):
                yield transaction
            for (key, *_), entry in zip(rows, entries, strict=True):
                of_entry = self._images(entry) if entry.op == "R" else []
                images += [image for image in of_entry if image.key == key]
            last = (rows[-1][2], rows[-1][0])
            done = [image for image in images if (image.table.id, image.key) != last]
            images = cancelled(image for image in images if (image.table.id, image.key) == last)
            if done:
                yield await self._complete(Transaction(int(xid), done))
        if images:
            yield await self._complete(Transaction(int(xid), images))
        await self._rows("close part")

    async def _complete(self, transaction: Transaction) -> Transaction:
        await self._extras.attach([transaction])
        return transaction

    async def _touched_parts(self, now: Snapshot, *new: object) -> AsyncIterator[list[Transaction]]:
        """Read the tasks whose extras were touched in a large batch, some keys at a time."""
        await self._rows("declare touches no scroll cursor for " + _TOUCHES, *new)
        while rows := await self._rows(f"fetch {PART_CHANGES} from touches".encode()):
            async for touched in self._extras.touched(touches_of(rows), now, self._followed):
                yield [touched]
        await self._rows("close touches")

    async def _transactions(self, entries: Sequence[Entry]) -> list[Transaction]:
        self._probes += [entry.reason or "" for entry in entries if entry.op == "P"]
        await self._watches.load_for(entries)
        for entry in entries:
            if entry.op == "S":
                self._note_unrecorded(entry.watch, entry.reason)
            elif entry.op in {"L", "N", "F"} and (entry.reason or "").startswith(_UNREADABLE):
                log.error("feed.unreadable_row", problem=one_line((entry.reason or "").removeprefix(_UNREADABLE)))
        resolved = await self._places.resolved(entries)
        return transactions_of(resolved, self._watches.by_id, self._followed, self._unshown)

    def _images(self, entry: Entry) -> list[Image]:
        return images_of(entry, self._watches.by_id, self._followed, self._unshown)

    def _note_unrecorded(self, number: int | None, reason: str | None) -> None:
        if self._unshown is not None and (reason or "").startswith(_UNREADABLE):
            watch = self._watches.by_id.get(number) if number is not None else None
            self._unshown.unrecorded(watch.table if watch else "a watched table")

    async def _rows(self, query: bytes | LiteralString, *parameters: object) -> list[TupleRow]:
        return await self._link.rows(readable(query, self._link), *parameters)


def _batch(rows: Sequence[TupleRow], entries: Sequence[Entry] = ()) -> Batch:
    """Make a batch without its transactions, given its first row."""
    now, horizon, paused, polled, stamp = rows[0][:5] if rows and rows[0][0] is not None else _no_horizon()
    return Batch(
        Snapshot.parse(now),
        [],
        Snapshot.parse(horizon),
        stamp,
        committed=len({entry.xid for entry in entries}),
        polled=polled / 1000,
        paused=paused,
    )


def _touches(transactions: Iterable[Transaction]) -> int:
    return sum(len(transaction.touches) for transaction in transactions)


def _no_horizon() -> TupleRow:
    raise FeedError("relay.horizon has no row of this installation: reconnecting, which creates one")


def _running(snapshot: Snapshot) -> list[str]:
    return [str(xid) for xid in snapshot.xip]

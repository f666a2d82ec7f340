"""The journal: the queries that read it, and the batches that they yield.

Rules:
- Changes come with the snapshot in which they were read, from the same statement: "what is new since" and the next
  position. So no transaction is skipped and none is read twice, however long it was open.
- An entry that another server wrote, and that a restore put there, is younger as a row than as a transaction. It is
  not read.
- A batch comes with a stamp of the catalog rows that images are made by, in its own snapshot. Where that of the last
  one was another, the shape of the tables is to be compared before the batch is passed on. So no batch has half of
  what an ALTER TABLE did.
- Where a task's board is that of its lane, which is a row of another table, it is resolved when the entries are
  read, in their snapshot: see places.py. A lane that changed asks for its boards to be read again. So in whatever
  order writers committed, and though none of them locked the other's row, what is sent fits what any read of a board
  shows. So it is with what other tables say about tasks, see extras.py.
- Memory is bounded: a large batch is read in parts, and of a large transaction one row after the other.

Pruning, and the horizon. The journal is pruned by DELETE, below a floor: `horizon`, which is written in the same
transaction. A statement sees either both or neither. So a reader may go on from a position if, in the very snapshot
that it reads under, its position covers the horizon: then whatever was deleted, it has read before. A batch that is
read in several statements is read under one snapshot, which shows all that was there when it was taken, whatever is
deleted meanwhile.
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
"""Maximum number of changes read for those who resume; if there are more, a `board.sync` costs everybody less."""

PART_CHANGES: Final = 2_000
"""Number of changes held in memory at once, about; a larger batch is read in parts."""

BATCH_TRANSACTIONS: Final = 100_000
"""Maximum number of transactions in a batch, which may have gathered in an hour without the relay; if there are more,
a `board.sync` costs everybody less."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What became visible between two snapshots, the later of which is `now`; None if there is too much of it.

    The journal holds all that follows `horizon`. With `more`, it is a part of a large batch, and the next one goes on
    where it ends, even in the midst of a transaction. With `paused`, some of it was not journalled.

    `committed` counts its transactions, also those that concern nobody. For `polled` more seconds, the triggers do
    not notify. `stamp` is another one whenever the tables may have another shape as of `now`.
    """

    now: Snapshot
    transactions: list[Transaction] | None
    horizon: Snapshot
    stamp: str
    more: bool = False
    committed: int = 0
    polled: float = 0.0
    paused: bool = False


# The journal since a snapshot. An entry in another transaction's name (see relay.resume) stays unread until that one
# is over. Of the transactions that were running, only those are searched for that no longer are: so the entries of
# one that stays open are not read again and again. The snapshot is a row of its own, the first, and of the
# same statement: there even when nothing is new, and not sent along with each entry.
# A row of another place came with a dump, and so perhaps did entries: then nothing counts as kept; see relay.epoch.
_KEPT: Final[LiteralString] = """
    case when exists (select from relay.horizon f where f.place <> h.place)
         then pg_catalog.pg_current_snapshot() else h.seen end::text, h.pauses <> relay.pauses()
"""
# A catalog row that changes has another xmin, later than that of any other: so the sum is another.
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
    + " union all (select null, null, null, null, null, j.lsn, j.ctid,"
    + _ENTRY
)
_SINCE: Final[LiteralString] = _FIRST + _NEW + "order by j.lsn, j.ctid limit %s) order by 6 nulls first, 7"
_MISSED: Final[LiteralString] = (
    _FIRST + _NEW + "and (j.op = 'S' or j.old_board = any (%s) or j.new_board = any (%s) or j.watch = any (%s)) "
    "limit %s) order by 6 nulls first, 7"
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
_LANES: Final[LiteralString] = (
    "select" + _ENTRY + "from relay.entries j where j.xid = %s::text::xid8 and j.op = 'L' and " + _OURS
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

# What was touched of extras: the extra, N or F, the key, and the transaction that did if it was one.
_TOUCHES: Final[LiteralString] = (
    "select s.watch, s.op::text, /**/k.key/**/, "
    "case when min(s.xid::text::bigint) = max(s.xid::text::bigint) then min(s.xid::text::bigint) end from (select j.*"
    + _NEW
    + "and j.op in ('N', 'F')) s cross join lateral (select s.old_key union select s.key) k (key) "
    "where k.key is not null group by 1, 2, 3 order by min(s.lsn), 1, 2, 3"
)

_ONE_SNAPSHOT: Final[LiteralString] = "begin isolation level repeatable read, read only"
_UNREADABLE: Final = "row_unreadable: "

# Whether the journal is whole since a snapshot, and has nothing about some watches on a board, nor anything that asks
# for it to be read again. It is asked later than what it is asked about, and so says no less.
_SAYS_NOTHING: Final[LiteralString] = (
    "select relay.shape(),"
    + _KEPT
    + ", exists (select"
    + _NEW
    + "and (j.op = 'S' or (j.op = 'L' or j.watch = any (%s)) and %s in (j.old_board, j.new_board))) "
    + _HORIZON
)


async def says_nothing(link: Connection, shape: str, since: Snapshot, board: str, watches: Collection[int]) -> bool:
    """Whether these watches surely had no row come to a board since a snapshot, where none was on it.

    `shape` is that of the tables then.
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
    """The journal, read over one connection. Of live changes, only those of boards in `followed` are decoded.

    A board that is followed later is read later, and shows them. `unshown` notes what of them cannot be shown.
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
            if not in_one_snapshot:  # an extra that was declared just now asks for a sync
                yield replace(batch, transactions=await self._transactions(entries))
                return
            async for transactions, more in self._at_once(entries, batch.now):
                if not more:
                    await self._rows("commit")
                yield replace(batch, transactions=transactions, more=more)
            return
        del rows  # more than a part, and large
        if not in_one_snapshot:
            await self._rows(_ONE_SNAPSHOT)
        async for batch in self._in_parts(new):
            if not batch.more:
                await self._rows("commit")
            yield batch

    async def _at_once(
        self, entries: Sequence[Entry], now: Snapshot
    ) -> AsyncIterator[tuple[list[Transaction], bool]]:
        """Turn the entries of a batch into transactions; in parts, if one label is that of many tasks."""
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
        if whole.paused:  # what follows writes, to end the pause, and sends all boards
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
        # Of what is found through lanes, all: on which boards it is, only they say.
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
        """Return the probes that were read since the last time."""
        arrived, self._probes = self._probes, []
        return arrived

    async def _parts(self, outline: Iterable[TupleRow]) -> AsyncIterator[list[Transaction]]:
        """Read transactions in parts: many small ones are a part, and a large one is many."""
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
        """Read a large transaction row by row; at most a part is held, and of one row what did not cancel out."""
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
                its = self._images(entry) if entry.op == "R" else []
                images += [image for image in its if image.key == key]
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
        """Read what touched extras in a large batch, some keys after the others."""
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
    raise FeedError("relay.horizon has no row of this installation: connecting again, which makes one")


def _running(snapshot: Snapshot) -> list[str]:
    return [str(xid) for xid in snapshot.xip]

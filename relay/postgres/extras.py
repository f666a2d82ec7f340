"""Extras: data of other tables about tasks, such as labels or a count of comments, as far as the journal is
concerned.

A journal entry of an extra's near or far table names only a key. The tasks and the values are read in the snapshot in
which the journal is read.

Rules:
- The values of a batch are as of its snapshot: whichever of its transactions touched an extra, its value is sent
  once, after all rows of the batch. Clients that hold a board as of that snapshot or a later one skip it; those with
  an older one may get a value that they already have.
- A task that appears, or whose keys or lane have changed, is sent with its extras.
- The relay waits only a moment for tables that are locked or altered, and for reads that are slow, for example
  without an index. After that, boards are read again, each within its own limits: those of the tasks in question, or
  all if these are unknown.
- Very many tasks can have the same label. If so, they are counted by board first. Tasks of boards that nobody follows
  are not read, and if there are too many, their boards are read again instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from types import MappingProxyType
from typing import Final, LiteralString, NamedTuple, cast

import msgspec
import psycopg
import structlog
from psycopg.rows import TupleRow

from relay.model.snapshot import Snapshot
from relay.model.transaction import Image, Touch, Transaction, cancelled
from relay.postgres.decode import Entry, Extra, Watch, sync_of
from relay.postgres.faults import UnreadableRow
from relay.postgres.watches import Watches

log = structlog.get_logger()

FETCH_TASKS: Final = 2_000
"""Number of tasks whose extras are read at once."""

TOUCHED_TASKS: Final = 20_000
"""Maximum number of tasks read for the keys of a part. Beyond it, a `board.sync` is cheaper for everybody."""

READ_SECONDS: Final = 3.0
"""Timeout of a read of extras, for which all boards wait."""

# The locks of a read are released right after it, because sending may take long.
_BEGIN: Final = "savepoint extras; set local statement_timeout = {:.0f}"
_END: Final = b"rollback to savepoint extras; release savepoint extras"
_VALUES: Final[LiteralString] = "select v.key, /**/v.value/**/ from relay.extra_values(%s, %s::text[]) v"
_TOUCHED: Final[LiteralString] = (
    "declare touched no scroll cursor for "
    "select /**/t.key/**/, t.watch, /**/t.board/**/, /**/t.task/**/, t.tasks "
    "from relay.touched(%s, %s, %s::text[], %s::text[]) t"
)
_UNREAD: Final = "extras_changed: tasks changed whose extras cannot be read now"


class Touched(NamedTuple):
    """An extra, and whether its far table touched it or the near one."""

    extra: int
    far: bool


class _Read(NamedTuple):
    """A task that a key refers to, or how many tasks of a board. Without a board, something cannot be read."""

    key: str | None = None
    watch: int | None = None
    board: str | None = None
    task: str | None = None
    tasks: int | None = None


Touches = Mapping[Touched, Mapping[str, int | None]]
"""The keys that were touched, each with the transaction that touched it, or None if several did."""

Appeared = Mapping[tuple[object, ...], int]
"""The tasks that are sent whole, by watch, board and id, each with its transaction."""

_NOTHING: Final[Appeared] = MappingProxyType({})


def touches_of(found: Iterable[tuple[int, str, str | None, int | None]]) -> Touches:
    """Gather touches, each given by the extra, N or F, the key, and the transaction, or None if they are several."""
    touches: defaultdict[Touched, dict[str, int | None]] = defaultdict(dict)
    for extra, op, key, xid in found:
        if key is not None:
            keys = touches[Touched(extra, op == "F")]
            keys[key] = xid if keys.setdefault(key, xid) == xid else None
    return touches


def touches_in(entries: Iterable[Entry]) -> Touches:
    """Gather the touches among the entries of a batch."""
    return touches_of(
        (entry.watch, entry.op, key, entry.xid)
        for entry in entries
        if entry.op in {"N", "F"}
        for key in (entry.old_key, entry.key)
    )


class Extras:
    """Reads extras by a query that runs in the journal's snapshot."""

    def __init__(self, rows: Callable[..., Awaitable[list[TupleRow]]], watches: Watches) -> None:
        self._rows = rows
        self._watches = watches

    async def attach(self, transactions: Iterable[Transaction]) -> None:
        """Add extras to the images that need them."""
        lacking = [(transaction, list(_lacking(transaction.images))) for transaction in transactions]
        keys: defaultdict[int, dict[str | None, None]] = defaultdict(dict)
        for transaction, places in lacking:
            for extra, key in (each for place in places for each in _keys_of(transaction.images[place])):
                keys[extra.id][key] = None
        values: dict[tuple[int, str | None], msgspec.Raw] = {}
        for number, keys_of_extra in keys.items():
            await self._rows(_BEGIN.format(READ_SECONDS * 1000).encode())
            with suppress(psycopg.errors.QueryCanceled):
                found = await self._rows(_VALUES, number, list(keys_of_extra))
                values |= {(number, key): msgspec.Raw((value or "null").encode()) for key, value in found}
            await self._rows(_END)
        for transaction, places in lacking:
            for place in places:
                image = transaction.images[place]
                try:
                    extras = {extra.name: values[extra.id, key] for extra, key in _keys_of(image)}
                except KeyError:
                    transaction.again[image.board] = "extras_changed"
                    continue
                transaction.images[place] = image._replace(extras=extras)

    async def touched(
        self, touches: Touches, at: Snapshot, followed: Container[str | None], sent: Appeared = _NOTHING
    ) -> AsyncIterator[Transaction]:
        """Read the tasks whose extras were touched, in parts, except those that were sent with them (`sent`)."""
        for (extra, far), keys in touches.items():
            which = extra, far, list(keys)
            tasks_on: dict[str | None, int] = {}
            async for rows in self._read_touched(*which, None):
                here = [row for row in rows if row.board is None or row.board in followed]
                tasks_on |= {row.board: row.tasks for row in here if row.tasks is not None}
                yield self._part(extra, here, keys, at, sent)
            if sum(tasks_on.values()) > TOUCHED_TASKS:
                yield Transaction(0, again={board: "extras_changed" for board in tasks_on if board}, at=at)
            elif tasks_on:
                async for rows in self._read_touched(*which, list(tasks_on)):
                    yield self._part(extra, rows, keys, at, sent)

    async def _read_touched(self, *which: object) -> AsyncIterator[list[_Read]]:
        """Read the tasks of an extra, in parts. A row without a board means that not all could be read."""
        slow = False
        await self._rows(_BEGIN.format(READ_SECONDS * 1000).encode())
        try:
            await self._rows(_TOUCHED, *which)
            while rows := await self._rows(f"fetch {FETCH_TASKS} from touched".encode()):
                yield [_Read(*row) for row in rows]
        except psycopg.errors.QueryCanceled:
            slow = True
        await self._rows(_END)
        if slow:
            yield [_Read()]

    def _part(
        self, extra: int, rows: Iterable[_Read], keys: Mapping[str, int | None], at: Snapshot, sent: Appeared
    ) -> Transaction:
        part = Transaction(0, at=at)
        for key, watch, board, task, _ in rows:
            if board is None:
                part.sync = sync_of(0, _UNREAD).sync
            elif touch := self._touch(extra, watch, board, task):
                by = keys.get(key or "")
                # If one transaction both touched it and made the task appear, the task was sent with it.
                if by is None or by != sent.get((watch, board, bytes(touch.id))):
                    part.touches.append(touch)
        return part

    def _touch(self, number: int, watch_id: int | None, board: str, task: str | None) -> Touch | None:
        """Return the new value of an extra, given the task's image; None if it is not shown, or only counted."""
        watch = self._watches.by_id.get(watch_id) if watch_id is not None else None
        extra = next((each for each in watch.extras if each.id == number), None) if watch else None
        if watch is None or extra is None or task is None:
            return None  # it was declared or dropped meanwhile, which causes a sync
        try:
            columns = watch.columns(task)
        except UnreadableRow as ex:
            log.error("feed.unreadable_row", problem=str(ex))  # noqa: TRY400  # the line says it all
            return None
        whole = watch.task(columns, board)
        return Touch(board, whole["id"], whole["lane"], {extra.name: watch.value_of(extra, columns)})


def appeared(transactions: Iterable[Transaction]) -> Appeared:
    """Return the tasks that are sent whole, with their extras."""
    return {
        (image.table.id, image.board, bytes(image.task["id"])): transaction.xid
        for transaction in transactions
        for _, before, after in _net(transaction.images)
        for image in after
        if not before
    }


def _lacking(images: Sequence[Image]) -> Iterator[int]:
    """Find the images of tasks that appear, or whose lane or keys of extras change."""
    for places, before, after in _net(images):
        old, new = ({_watch(image).lane_and_keys(image.columns) for image in side} for side in (before, after))
        if not new <= old:
            yield from (place for place in places if images[place].sign > 0)


def _net(images: Sequence[Image]) -> Iterator[tuple[list[int], list[Image], list[Image]]]:
    """Yield, for each row that has extras, the indices of its images, and its net images before and after."""
    rows: defaultdict[tuple[str, int, str], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        if _watch(image).extras:
            rows[image.board, image.table.id, image.key].append(place)
    for places in rows.values():
        net = cancelled(images[place] for place in places)
        yield places, [image for image in net if image.sign < 0], [image for image in net if image.sign > 0]


def _keys_of(image: Image) -> Iterator[tuple[Extra, str | None]]:
    for extra in _watch(image).extras:
        # An image with a former name of the column is outdated anyway.
        value = msgspec.json.decode(image.columns.get(extra.task_column, b"null"))
        yield extra, None if value is None else str(value)


def _watch(image: Image) -> Watch:
    return cast(Watch, image.table)

"""Turns what Postgres returns into what clients may see: the journal's entries, and the rows of boards.

Only this module parses JSON that Postgres wrote and gives columns the names that clients know. It does no I/O except
logging.

Rules:
- Values stay as Postgres wrote them.
- A task that is found through its lane is on the board of its lane, according to `relay.resolve`.
- The id, the board and the lane have the keys `id`, `boardId` and `lane`, whatever their columns are called. If they
  are computed by expressions, an image has their values under the empty key, which no column can have. Extras, if an
  image has any, are there, too.
- A row that cannot be shown counts as absent, in boards and changes alike, and is reported.
- Entries for boards that nobody follows are not parsed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Final, NamedTuple, cast, get_args

import msgspec
import structlog

from relay.model import messages
from relay.model.cursor import Reason
from relay.model.messages import Row
from relay.model.transaction import Image, Transaction
from relay.order import OrderKey
from relay.postgres.faults import BoardMisnamed, IdsClash, UnreadableRow, WatchOutdated
from relay.postgres.unshown import LeftOut, Unshown
from relay.text import one_line

log = structlog.get_logger()

MAX_TASK_BYTES: Final = 4 * 1024 * 1024
"""Maximum size of a task as JSON; a larger row is not shown. Images in the journal can be a few times this size."""

MAX_TASK_DEPTH: Final = 500
"""Maximum depth of arrays and objects in a task, because many parsers refuse deeper ones."""

_ROLES: Final = ("id", "boardId", "lane")

_COMPUTED: Final = ""
"""Key under which an image has the values of expressions on its row, and extras."""

_decode_row: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_unreadable: Final = msgspec.json.Decoder(tuple[str, str]).decode
_decode_unreadable_lane: Final = msgspec.json.Decoder(tuple[str, str, str]).decode
_lanes_or_name: Final[msgspec.json.Decoder[list[tuple[str, str | None]] | str]] = msgspec.json.Decoder(
    list[tuple[str, str | None]] | str
)

_FORMS: Final = {"bigint": re.compile("-?[0-9]+"), "uuid": re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")}
"""The forms of board names that are not arbitrary text."""


class Extra(NamedTuple):
    """Data of other tables about a task, under a name; `task_column` has the key by which they refer to the task."""

    id: int
    name: str
    task_column: str


@dataclass(frozen=True)
class Watch:
    """A watched table, as far as its changes are concerned.

    `hidden` columns are in no task. If `shown` is not None, only its columns are.
    """

    id: int
    table: str
    id_column: str | None
    board_column: str | None
    lane_column: str | None
    hidden: frozenset[str]
    shown: frozenset[str] | None = None
    order: tuple[OrderKey, ...] = ()
    """The order of its tasks, by columns."""
    visible: tuple[str, ...] = ()
    """The columns that are in tasks."""
    lanes: bool = False
    """Whether its tasks are found through lanes that are rows of another table."""
    board_kind: str = "text"
    """The kind of its boards' names: bigint, uuid or text."""
    extras: tuple[Extra, ...] = ()
    """The extras of its tasks."""
    in_doubt: bool = False
    """Whether changes may be of rows that no board shows, because a partition is being detached."""

    def shows(self, column: str) -> bool:
        """Whether a column is in tasks."""
        return column not in self.hidden and (self.shown is None or column in self.shown)

    def may_have(self, board: str) -> bool:
        """Whether a board of this name may have tasks of this table."""
        form = _FORMS.get(self.board_kind)
        return form is None or form.fullmatch(board) is not None

    def columns(self, image: str) -> dict[str, msgspec.Raw]:
        """Parse a row's JSON, under the columns' own names. Raises UnreadableRow."""
        if image.startswith("!"):
            key, problem = _of_unreadable(image)
            raise UnreadableRow(f"a row of {self.table} cannot be shown: {one_line(problem)}", key)
        if image.count("[") + image.count("{") > MAX_TASK_DEPTH and _depth(image) > MAX_TASK_DEPTH:
            problem = f"a row of {self.table} has JSON nested deeper than {MAX_TASK_DEPTH}"
            raise UnreadableRow(problem, self._id_in(image))
        try:
            columns = _decode_row(image)
            _decode_row(columns.get(_COMPUTED, b"{}"))
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as ex:
            problem = f"a row of {self.table} cannot be shown: {ex}: {image!a:.200}"
            raise UnreadableRow(problem, self._id_in(image)) from None
        if 4 * len(image) > MAX_TASK_BYTES:  # a character has up to four bytes
            # Count only the row's own columns: an image may or may not have extras, and nulls for hidden columns.
            size = sum(len(bytes(value)) for name, value in columns.items() if name != _COMPUTED and self.shows(name))
            if size > MAX_TASK_BYTES:
                problem = f"a row of {self.table} has {size} bytes: expected {MAX_TASK_BYTES} at most"
                raise UnreadableRow(problem, self._id_in(image))
        return columns

    def _id_in(self, image: str) -> str | None:
        """Return the id in an image that cannot be shown, if Python's own parser, which accepts more, finds it."""
        try:
            columns = json.loads(image)
            found = columns.get(_COMPUTED, {}).get("id", columns.get(self.id_column))
        except (ValueError, AttributeError, RecursionError):  # AttributeError: not an object
            return None
        return None if found is None else str(found)

    def task(self, columns: Row, board: str) -> Row:
        """Turn a row into a task of a board as clients see it.

        Raises WatchOutdated if it lacks the columns that make it one.
        """
        keys = _keys(self, tuple(columns))
        task = {keys[column]: value for column, value in columns.items() if column in keys}
        if computed := columns.get(_COMPUTED):
            values = _decode_row(computed)
            task = {**{key: values[key] for key in _ROLES if key in values}, **task, **values}
        if self.lanes and "boardId" not in task:
            task = {"boardId": msgspec.Raw(msgspec.json.encode(board)), **task}
        if missing := set(_ROLES) - task.keys():
            raise WatchOutdated(
                f"rows of {self.table} have no {', '.join(sorted(missing))} any more: run relay sql watch again and "
                f"name the columns as they are now"
            )
        return task

    def value_of(self, extra: Extra, columns: Row) -> msgspec.Raw:
        """Return the value of an extra that an image has."""
        return _decode_row(columns[_COMPUTED])[extra.name]

    def extras_that_differ(self, before: Row, after: Row) -> Collection[str]:
        """Name the extras whose key in the row has changed."""
        columns = ((extra.name, extra.task_column) for extra in self.extras)
        return {name for name, column in columns if before.get(column) != after.get(column)}

    def lane_and_keys(self, columns: Row) -> tuple[bytes, ...]:
        """Return the values that determine the lane of a task, and the keys of its extras."""
        deciding = {_COMPUTED, self.lane_column, *(extra.task_column for extra in self.extras)}
        return tuple(bytes(value) for name, value in columns.items() if name in deciding)

    def keys(self, columns: Iterable[str]) -> Mapping[str, str]:
        """Return the keys of columns in tasks; columns that are in no task are left out."""
        return _keys(self, tuple(columns))

    @cached_property
    def order_by(self) -> tuple[OrderKey, ...]:
        """The order of its tasks, by the keys of tasks."""
        keys = _keys(self, self.visible)
        return tuple(by._replace(key=keys[by.key]) for by in self.order if by.key in keys)

    @cached_property
    def _hash(self) -> int:
        return hash(
            (
                *(self.id, self.table, self.id_column, self.board_column, self.lane_column),
                *(self.hidden, self.shown, self.lanes, self.extras),
            )
        )

    def __hash__(self) -> int:
        # Watches are keys of a cache that is used for each task, so the hash must not be computed each time.
        return self._hash


@lru_cache(maxsize=1024)
def _keys(watch: Watch, columns: tuple[str, ...]) -> Mapping[str, str]:
    """Return the keys of columns in tasks: camelCase, or the columns' own names if two would share a key."""
    columns_of = {"id": watch.id_column, "boardId": watch.board_column, "lane": watch.lane_column}
    roles = {column: role for role, column in columns_of.items() if column is not None}
    computed = [role for role, column in columns_of.items() if column is None]
    computed += [extra.name for extra in watch.extras]
    visible = [column for column in columns if watch.shows(column) and column != _COMPUTED]
    wanted = {column: roles.get(column) or camel_case(column) for column in visible}
    names = [*computed, *wanted.values()]
    keys = {column: name if column in roles or names.count(name) == 1 else column for column, name in wanted.items()}
    for column in visible:
        # For example a column called "id" next to another that is the task's id.
        while column not in roles and [*computed, *keys.values()].count(keys[column]) > 1:
            keys[column] += "_"
    return keys


def _of_unreadable(image: str) -> tuple[str | None, str]:
    """Return the id of a row that has no image, and why it has none. The id may be unreadable, too."""
    try:
        key, problem = _decode_unreadable(image[1:])
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None, image[1:]
    return key, problem


_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS: Final = re.compile(r"[^][{}]+")


def _depth(image: str) -> int:
    brackets = _NO_BRACKETS.sub("", _STRING.sub("", image))
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def camel_case(column: str) -> str:
    """Name a column as clients know it."""
    return re.sub(r"(?<=[^_])_+([a-z0-9])", lambda match: match[1].upper(), column)


class Entry(NamedTuple):
    """One row of the journal. A tuple, because thousands are made per second.

    `op` is R for a change of a row, L for a change of the two boards' lanes, N or F for a change in the near or far
    table of an extra that concerns a key, S if all boards must be read again, and P for a probe. `old_key` is the
    row's key before the change, if the change was to the key.
    """

    xid: int
    watch: int
    op: str
    key: str
    old_key: str | None
    old_board: str | None
    new_board: str | None
    old_row: str | None
    new_row: str | None
    reason: str | None

    @property
    def key_before(self) -> str:
        """The row's key before the change. It may be the empty text."""
        return self.key if self.old_key is None else self.old_key

    def concerns(self, boards: Container[str | None]) -> bool:
        """Whether it concerns one of the boards."""
        return self.new_board in boards or self.old_board in boards

    def images(self, watch: Watch, boards: Container[str | None]) -> tuple[list[Image], list[str]]:
        """Return the images that it adds to or removes from the boards, and why others cannot be shown."""
        problems = [f"a row of {watch.table} cannot be shown: {one_line(self.reason)}"] if self.reason else []
        found = []
        if self.old_board is not None and self.old_board in boards:
            old = self._columns(watch, self.old_row, problems)
            if old is not None:
                found.append(Image(watch, self.key_before, self.old_board, old, -1))
        if self.new_board is not None and self.new_board in boards:
            new = self._columns(watch, self.new_row, problems)
            if new is not None:
                found.append(Image(watch, self.key, self.new_board, new, +1))
        return found, problems

    def _columns(self, watch: Watch, image: str | None, problems: list[str]) -> dict[str, msgspec.Raw] | None:
        try:
            return None if image is None else watch.columns(image)
        except UnreadableRow as ex:
            problems.append(str(ex))
            return None


def images_of(
    entry: Entry, watches: Mapping[int, Watch], followed: Container[str | None], unshown: Unshown | None = None
) -> list[Image]:
    """Return the images that an entry adds to or removes from followed boards; report those that cannot be shown."""
    if (watch := watches.get(entry.watch)) is None:
        return []  # its watch no longer exists, and the transaction that ended it causes a sync
    images, problems = entry.images(watch, followed)
    for problem in problems:
        log.error("feed.unreadable_row", problem=problem)
    if unshown is not None and problems and entry.old_board is None and entry.new_board is None:
        unshown.unrecorded(watch.table)
    elif unshown is not None and (problems or unshown.has_rows):
        places = (entry.old_board, entry.key_before), (entry.new_board, entry.key)
        unshown.note(watch.table, *places, images)
    return images


def transactions_of(
    entries: Iterable[Entry],
    watches: Mapping[int, Watch],
    followed: Container[str | None],
    unshown: Unshown | None = None,
) -> list[Transaction]:
    """Gather entries into transactions, in the order of their last entry.

    This order respects the history of each row: a transaction that changes a row which another one has changed has
    waited for that one's commit.
    """
    found: dict[int, Transaction] = {}
    for entry in entries:
        if entry.op in {"P", "N", "F"} or (
            entry.op != "S" and not entry.concerns(followed) and (entry.op == "L" or not entry.reason)
        ):
            continue
        transaction = found.pop(entry.xid, None) or Transaction(entry.xid)
        if entry.op == "S":
            transaction.sync = transaction.sync or sync_of(entry.xid, entry.reason).sync
        elif entry.op == "L":
            for board in (entry.old_board, entry.new_board):
                if board is not None:
                    transaction.again[board] = "lanes_changed"
        else:
            transaction.images += images_of(entry, watches, followed, unshown)
        found[entry.xid] = transaction
    return list(found.values())


def sync_of(xid: int, text: str | None) -> Transaction:
    """Return a transaction after which all boards are read again. `text` begins with a reason that clients know."""
    log.info("feed.sync", reason=one_line(text or ""))
    word = (text or "").partition(":")[0]
    return Transaction(xid, sync=cast(Reason, word) if word in get_args(Reason) else "resync")


def board_data(
    name: str,
    rows: Iterable[tuple[int | None, str]],
    watches: Mapping[int, Watch],
    left_out: list[LeftOut] | None = None,
) -> bytes:
    """Encode the data of a `board.sync`, given the rows, each with its watch; a row without a watch is about lanes.

    Rows that cannot be shown are added to `left_out`. Raises WatchOutdated, IdsClash, or BoardMisnamed.
    """
    tasks = []
    left_out = [] if left_out is None else left_out
    lanes: list[tuple[str, str | None]] | None = None
    table_of: dict[bytes, str] = {}
    for number, image in rows:
        if number is None and image.startswith("!"):
            left_out.append(_unreadable_lane(image))
            continue
        if number is None:
            lanes = _lanes(name, image)
            continue
        watch = watches[number]
        try:
            task = watch.task(watch.columns(image), name)
        except UnreadableRow as ex:
            log.error("feed.unreadable_row", problem=str(ex))  # noqa: TRY400  # the line says it all
            left_out.append((watch.table, ex.key))
            continue
        tasks.append(task)
        if len(watches) > 1:
            _require_distinct(task["id"], watch.table, table_of)
    orders = {watch.order_by for watch in watches.values() if watch.may_have(name)}
    # If tables are ordered differently, the board has no order, and clients put new tasks at the end.
    return messages.board_data(tasks, lanes, orders.pop() or None if len(orders) == 1 else None)


def _unreadable_lane(image: str) -> LeftOut:
    """Report a lane that cannot be shown; return its table and its id."""
    try:
        table, key, problem = _decode_unreadable_lane(image[1:])
    except (msgspec.MsgspecError, UnicodeEncodeError) as ex:  # its characters do not exist in UTF-8
        table, key, problem = "lanes", "?", str(ex)
    log.error("feed.unreadable_row", problem=f"a row of {table} cannot be shown: {one_line(problem)}")
    return table, key


def _lanes(name: str, image: str) -> list[tuple[str, str | None]]:
    """Return a board's lanes. Raises BoardMisnamed if the database returned the name as it writes it instead."""
    found = _lanes_or_name.decode(image)
    if isinstance(found, str):
        raise BoardMisnamed(
            f"boardId is {name!a:.100}, found no such board: expected {found!a:.100}, as it is written"
        )
    return found


def _require_distinct(task_id: msgspec.Raw, table: str, table_of: dict[bytes, str]) -> None:
    """Note which table a task is from. Raises IdsClash if a task of another table has its id.

    A number counts as equal to its text, because many clients use both as the same key.
    """
    text = bytes(task_id).strip(b'"')
    if (other := table_of.setdefault(text, table)) != table:
        word = table.rpartition(".")[2].strip('"')
        command = shlex.join(["relay", "sql", "watch", table, "--id-prefix", f"{word}-"])
        raise IdsClash(f"tasks of {other} and {table} on this board have the same id, {text.decode()}: run {command}")

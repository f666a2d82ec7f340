"""Turns what Postgres returns into what clients may see: the journal's entries, and the rows of boards.

This is the one place where JSON that Postgres wrote is parsed, and where columns get the names that clients know. It
does no I/O but the log's.

Rules:
- Values stay as Postgres wrote them.
- A task that is found through its lane is on the board that its lane has, as `relay.resolve` says.
- The id, the board and the lane appear under the guide's names whatever their columns are called. Where expressions
  give them, an image has their values under the empty name, which no column can have. So it has extras, if it comes
  with them.
- A row that cannot be shown counts as absent, in boards and changes alike, and is reported.
- No entry is parsed for a board that nobody follows.
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
"""Maximum size of a task as JSON; a larger row is not shown. The journal keeps images up to some times this size."""

MAX_TASK_DEPTH: Final = 500
"""Maximum depth of the arrays and objects of a task; many parsers refuse deeper ones."""

_ROLES: Final = ("id", "boardId", "lane")

_SAID: Final = ""
"""Key under which an image has the values of expressions on its row."""

_decode_row: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_unreadable: Final = msgspec.json.Decoder(tuple[str, str]).decode
_decode_unreadable_lane: Final = msgspec.json.Decoder(tuple[str, str, str]).decode
_lanes_or_name: Final[msgspec.json.Decoder[list[tuple[str, str | None]] | str]] = msgspec.json.Decoder(
    list[tuple[str, str | None]] | str
)

_FORMS: Final = {"bigint": re.compile("-?[0-9]+"), "uuid": re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")}
"""How names of boards are written that are not just any text."""


class Extra(NamedTuple):
    """What other tables say about tasks, under a name; `task_column` has the key by which they say it."""

    id: int
    name: str
    task_column: str


@dataclass(frozen=True)
class Watch:
    """A watched table, as far as its changes are concerned.

    `hidden` columns are in no task; nor is any but those of `shown`, if that is not None.
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
    """Its columns that are in tasks."""
    lanes: bool = False
    """Whether its tasks are found through lanes that are rows of another table."""
    board_kind: str = "text"
    """Of what kind the names of its boards are: bigint, uuid or text."""
    extras: tuple[Extra, ...] = ()
    """What other tables say about its tasks."""
    in_doubt: bool = False
    """Whether changes may be of rows that no board shows: of a partition that is being detached."""

    def shows(self, column: str) -> bool:
        """Whether a column is in tasks."""
        return column not in self.hidden and (self.shown is None or column in self.shown)

    def may_have(self, board: str) -> bool:
        """Whether a board of this name may have tasks of it."""
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
            _decode_row(columns.get(_SAID, b"{}"))
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as ex:
            problem = f"a row of {self.table} cannot be shown: {ex}: {image!a:.200}"
            raise UnreadableRow(problem, self._id_in(image)) from None
        if len(image) > MAX_TASK_BYTES:
            # Without what is not the row's own: an image may come with its extras or without.
            size = sum(len(bytes(value)) for name, value in columns.items() if name != _SAID and self.shows(name))
            if size > MAX_TASK_BYTES:
                problem = f"a row of {self.table} has {size} bytes: expected {MAX_TASK_BYTES} at most"
                raise UnreadableRow(problem, self._id_in(image))
        return columns

    def _id_in(self, image: str) -> str | None:
        """Return the id in an image that cannot be shown, if Python's own reader, which takes more, finds it."""
        try:
            columns = json.loads(image)
            said = columns.get(_SAID, {}).get("id", columns.get(self.id_column))
        except (ValueError, AttributeError, RecursionError):  # what is no object has no attribute either
            return None
        return None if said is None else str(said)

    def task(self, columns: Row, board: str) -> Row:
        """Turn a row into a task of a board as clients see it.

        Raises WatchOutdated if it lacks the columns that make it one.
        """
        keys = _keys(self, tuple(columns))
        task = {keys[column]: value for column, value in columns.items() if column in keys}
        if said := columns.get(_SAID):
            its = _decode_row(said)
            task = {**{key: its[key] for key in _ROLES if key in its}, **task, **its}
        if self.lanes and "boardId" not in task:
            task = {"boardId": msgspec.Raw(msgspec.json.encode(board)), **task}
        if missing := set(_ROLES) - task.keys():
            raise WatchOutdated(
                f"rows of {self.table} have no {', '.join(sorted(missing))} any more: run relay sql watch again and "
                f"name the columns as they are now"
            )
        return task

    def value_of(self, extra: Extra, columns: Row) -> msgspec.Raw:
        """Return what an image says that an extra is that it comes with."""
        return _decode_row(columns[_SAID])[extra.name]

    def extras_that_differ(self, before: Row, after: Row) -> Collection[str]:
        """Name the extras that are found by other keys after a change of the row than before."""
        columns = ((extra.name, extra.task_column) for extra in self.extras)
        return {name for name, column in columns if before.get(column) != after.get(column)}

    def is_at(self, columns: Row) -> tuple[bytes, ...]:
        """Return what decides in which lane a task is, and by which keys other tables speak of it."""
        deciding = {_SAID, self.lane_column, *(extra.task_column for extra in self.extras)}
        return tuple(bytes(value) for name, value in columns.items() if name in deciding)

    def keys(self, columns: Iterable[str]) -> Mapping[str, str]:
        """Name columns for clients; those that are in no task are left out."""
        return _keys(self, tuple(columns))

    @cached_property
    def order_by(self) -> tuple[OrderKey, ...]:
        """The order of its tasks, by the keys that clients know."""
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
        # A key of a cache, for each task: a frozen set would be hashed each time.
        return self._hash


@lru_cache(maxsize=1024)
def _keys(watch: Watch, columns: tuple[str, ...]) -> Mapping[str, str]:
    """Name the columns for clients: camelCase, but two that would share a name both keep their own."""
    columns_of = {"id": watch.id_column, "boardId": watch.board_column, "lane": watch.lane_column}
    roles = {column: role for role, column in columns_of.items() if column is not None}
    said = [role for role, column in columns_of.items() if column is None]
    said += [extra.name for extra in watch.extras]
    visible = [column for column in columns if watch.shows(column) and column != _SAID]
    wanted = {column: roles.get(column) or camel_case(column) for column in visible}
    names = [*said, *wanted.values()]
    keys = {column: name if column in roles or names.count(name) == 1 else column for column, name in wanted.items()}
    for column in visible:
        # A column called "id" beside another that is the task's id.
        while column not in roles and [*said, *keys.values()].count(keys[column]) > 1:
            keys[column] += "_"
    return keys


def _of_unreadable(image: str) -> tuple[str | None, str]:
    """Return the id of a row of which a board has no image, and why; its id may be unreadable itself."""
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
    """One row of the journal. A tuple, for thousands are made a second.

    `op` is R for a change of a row, L for one of the two boards' lanes, N and F for one of what the near or the far
    table of an extra says about a key, S where all boards must be read again, P for a probe. `old_key` is the row's
    key before the change, if that changed it.
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
        """Return the images that it moves on or off one of the boards, and why others cannot be shown."""
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
    """Return the images that an entry moves on or off the followed boards, and report those that cannot be shown."""
    if (watch := watches.get(entry.watch)) is None:
        return []  # made under a watch that is no more; the transaction that ended it asks for a sync
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

    Between transactions, this order respects every row's history: a transaction that changes a row which another
    one changed has waited for its commit.
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
    """Return a transaction after which boards are read again: the reason begins with a word that clients know."""
    log.info("feed.sync", reason=one_line(text or ""))
    word = (text or "").partition(":")[0]
    return Transaction(xid, sync=cast(Reason, word) if word in get_args(Reason) else "resync")


def board_data(
    name: str,
    rows: Iterable[tuple[int | None, str]],
    watches: Mapping[int, Watch],
    left_out: list[LeftOut] | None = None,
) -> bytes:
    """Encode the data of a `board.sync`: rows as they are read, each with its watch; one without is about lanes.

    `left_out` gets the rows that cannot be shown. Raises WatchOutdated, IdsClash, and BoardMisnamed.
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
    # Tables that are ordered differently have no order in common. Without one, clients put new tasks at the end.
    return messages.board_data(tasks, lanes, orders.pop() or None if len(orders) == 1 else None)


def _unreadable_lane(image: str) -> LeftOut:
    """Report a row of lanes that cannot be shown; return its table and its id."""
    try:
        table, key, problem = _decode_unreadable_lane(image[1:])
    except (msgspec.MsgspecError, UnicodeEncodeError) as ex:  # its characters do not exist in UTF-8
        table, key, problem = "lanes", "?", str(ex)
    log.error("feed.unreadable_row", problem=f"a row of {table} cannot be shown: {one_line(problem)}")
    return table, key


def _lanes(name: str, image: str) -> list[tuple[str, str | None]]:
    """Return a board's lanes. Raises BoardMisnamed if the database says how it writes that name."""
    found = _lanes_or_name.decode(image)
    if isinstance(found, str):
        raise BoardMisnamed(
            f"boardId is {name!a:.100}, found no such board: expected {found!a:.100}, as it is written"
        )
    return found


def _require_distinct(task_id: msgspec.Raw, table: str, table_of: dict[bytes, str]) -> None:
    """Note of which table a task is. Raises IdsClash if one of another table has its id.

    A number is the same as its text, for many clients have both under one key.
    """
    text = bytes(task_id).strip(b'"')
    if (other := table_of.setdefault(text, table)) != table:
        word = table.rpartition(".")[2].strip('"')
        command = shlex.join(["relay", "sql", "watch", table, "--id-prefix", f"{word}-"])
        raise IdsClash(f"tasks of {other} and {table} on this board have the same id, {text.decode()}: run {command}")

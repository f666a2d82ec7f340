"""What Postgres says: the journal's entries, and how they become messages. Pure.

An *entry* says which image of a row left, and which came; either may be absent. A *transaction* is all that became
visible together, and is told by its net effect: count each image +1 where it came and -1 where it left. What cancels
out was never committed, and nobody is told of it. What remains is, for each row of a board, at most one image that
was there before and at most one that is there after: that pair is the message.

Rules:
- The order of entries inside a transaction has no meaning: nested triggers, functions, savepoints and no-op updates
  are all the same arithmetic.
- Row images stay as Postgres wrote them. Columns are compared by their JSON text: all images were made under the same
  settings, so equal text is equal value.
- An image that cannot be shown counts as absent, here and in boards.
- Two images before or two after are what no history can produce: triggers were off for a while. Then, and only
  then, the board is to be read again.
- Work is linear in the entries, and no entry is looked at for a board that nobody follows.
- The id, the board and the lane appear under the guide's names whatever their columns are called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from relay.model import messages as protocol
from relay.model.cursor import Reason
from relay.model.messages import Message, Row

MAX_TASK_BYTES: Final = 4 * 1024 * 1024
"""Maximum size of a task as JSON; a larger row is not shown. The journal keeps images up to some times this size."""

MAX_TASK_DEPTH: Final = 500
"""How deep arrays and objects of a task may be nested; of what is deeper, no parser reads all."""

_decode_row: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class UnreadableRow(Exception):
    """A row that cannot be shown: too large, too deep, with what is no Unicode text, or a type's own code failed."""


class WatchOutdated(Exception):
    """A watch whose columns are no longer there."""


@dataclass(frozen=True)
class Watch:
    """A watched table, as far as its changes are concerned. `hidden` columns are in no task."""

    id: int
    table: str
    id_column: str
    board_column: str
    lane_column: str
    hidden: frozenset[str]

    def columns(self, image: str) -> dict[str, msgspec.Raw]:
        """Take a row's JSON apart, under the columns' own names. Raises UnreadableRow."""
        if image.startswith("!"):
            raise UnreadableRow(f"a row of {self.table} cannot be shown: {image[1:]}")
        if image.count("[") + image.count("{") > MAX_TASK_DEPTH and _depth(image) > MAX_TASK_DEPTH:
            raise UnreadableRow(f"a row of {self.table} has JSON nested deeper than {MAX_TASK_DEPTH}")
        try:
            columns = _decode_row(image)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as ex:
            raise UnreadableRow(f"a row of {self.table} cannot be shown: {ex}: {image!a:.200}") from None
        if len(image) > MAX_TASK_BYTES:
            size = sum(len(bytes(value)) for name, value in columns.items() if name not in self.hidden)
            if size > MAX_TASK_BYTES:
                raise UnreadableRow(f"a row of {self.table} has {size} bytes: expected {MAX_TASK_BYTES} at most")
        return columns

    def task(self, columns: Row) -> Row:
        """Turn a row into a task as clients see it. Raises WatchOutdated if it lacks the columns that make it one."""
        keys = _keys(self, tuple(columns))
        task = {keys[column]: value for column, value in columns.items() if column in keys}
        if missing := {"id", "boardId", "lane"} - task.keys():
            raise WatchOutdated(
                f"rows of {self.table} have no {', '.join(sorted(missing))} any more: run relay sql watch again and "
                f"name the columns as they are now"
            )
        return task

    @cached_property
    def _hash(self) -> int:
        return hash((self.id, self.table, self.id_column, self.board_column, self.lane_column, self.hidden))

    def __hash__(self) -> int:
        # Looked up for each task: a frozen set would be hashed each time.
        return self._hash


@lru_cache(maxsize=1024)
def _keys(watch: Watch, columns: tuple[str, ...]) -> Mapping[str, str]:
    """Name the columns for clients: camelCase, but two that would share a name both keep their own."""
    roles = {watch.id_column: "id", watch.board_column: "boardId", watch.lane_column: "lane"}
    visible = [column for column in columns if column not in watch.hidden]
    wanted = {column: roles.get(column) or _camel_case(column) for column in visible}
    names = list(wanted.values())
    keys = {column: name if column in roles or names.count(name) == 1 else column for column, name in wanted.items()}
    for column in visible:
        # A column called "id" beside another that is the task's id.
        while column not in roles and list(keys.values()).count(keys[column]) > 1:
            keys[column] += "_"
    return keys


_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS: Final = re.compile(r"[^][{}]+")


def _depth(image: str) -> int:
    brackets = _NO_BRACKETS.sub("", _STRING.sub("", image))
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def _camel_case(column: str) -> str:
    return re.sub(r"(?<=[^_])_+([a-z0-9])", lambda match: match[1].upper(), column)


class Image(NamedTuple):
    """An image of the row `key` on a board that left (`sign` is -1) or came (+1)."""

    watch: Watch
    key: str
    board: str
    columns: Row
    sign: int

    @property
    def task(self) -> Row:
        return self.watch.task(self.columns)


class Entry(NamedTuple):
    """One row of the journal. A tuple, for thousands of them are made in a second.

    `op` is R for a change of a row, S where boards must be read again, P for a probe. `old_key` is the row's key
    before the change, if that changed it.
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

    def concerns(self, boards: Container[str | None]) -> bool:
        """Whether it is about one of the boards."""
        return self.new_board in boards or self.old_board in boards

    def images(self, watch: Watch, boards: Container[str | None]) -> tuple[list[Image], list[str]]:
        """Return the images that it moves on or off one of the boards, and why others cannot be shown."""
        problems = [f"a row of {watch.table} cannot be shown: {self.reason}"] if self.reason else []
        found = []
        if self.old_board is not None and self.old_board in boards:
            old = self._columns(watch, self.old_row, problems)
            if old is not None:
                found.append(Image(watch, self.old_key or self.key, self.old_board, old, -1))
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


@dataclass(slots=True)
class Transaction:
    """The images that one transaction moved, in any order.

    With `sync`, the transaction did what only reading the boards again can show, such as TRUNCATE: the reason. A
    large transaction may come as several, each with all images of the rows that it is about.
    """

    xid: int
    images: list[Image] = field(default_factory=list)
    sync: Reason | None = None

    def messages(self, boards: Container[str | None]) -> dict[str, list[Message] | None]:
        """Give each of `boards` that it touches the messages for its subscribers, by row in order of appearance.

        None instead of messages: the board must be read again. Those of other boards are not even encoded.
        """
        rows: defaultdict[tuple[str, int, str], list[Image]] = defaultdict(list)
        for image in self.images:
            if image.board in boards:
                rows[image.board, image.watch.id, image.key].append(image)
        found: dict[str, list[Message] | None] = {}
        for (board, _, _), images in rows.items():
            messages = found.setdefault(board, [])
            if messages is None:
                continue
            if (pair := _before_and_after(images)) is None:
                found[board] = None
            else:
                messages += _messages(*pair)
        return {board: messages for board, messages in found.items() if messages is None or messages}


def cancelled(images: Iterable[Image]) -> list[Image]:
    """Leave out the images that came as often as they left. Those that remain keep their order."""
    kept: dict[tuple[object, ...], list[Image]] = {}
    for image in images:
        same = kept.setdefault((image.watch.id, image.key, image.board, *image.columns, _text(image.columns)), [])
        if same and same[-1].sign != image.sign:
            same.pop()
        else:
            same.append(image)
    return [image for same in kept.values() for image in same]


def _text(columns: Row) -> bytes:
    return b"\0".join(columns.values())


def _before_and_after(images: list[Image]) -> tuple[Image | None, Image | None] | None:
    """Return what is there before and after, of one row on one board; None if no history can produce these images."""
    if len(images) > 1:
        images = cancelled(images)
    before = [image for image in images if image.sign < 0]
    after = [image for image in images if image.sign > 0]
    if len(before) > 1 or len(after) > 1:
        return None
    return (before[0] if before else None), (after[0] if after else None)


def _messages(before: Image | None, after: Image | None) -> Iterator[Message]:
    if before and after:
        yield from _update_messages(before.task, after.task)
    elif before:
        yield protocol.task_deleted(before.task["id"])
    elif after:
        yield protocol.task_created(after.task)


def _update_messages(old: Row, new: Row) -> Iterator[Message]:
    changes = {key: value for key, value in new.items() if value != old.get(key)}
    moved = "lane" in changes
    if moved:
        yield protocol.task_moved(new["id"], old["lane"], new["lane"])
    if len(changes) > moved:
        yield protocol.task_updated(new["id"], changes)

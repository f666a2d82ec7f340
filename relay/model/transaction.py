"""A transaction and its net effect. Pure.

A transaction is everything that became visible together. Each of its entries in the journal has the image of a row
that left, the one that came, or both. An image counts -1 when it leaves and +1 when it comes. Images that cancel out
were never visible to others, and no message mentions them. For each row of a board, at most one image from before and
at most one from after remain: that pair is the message.

For example, one transaction that moves a task from `todo` to `doing`, back, and then to `done`:

    entry                  todo   doing   done
    1  todo  -> doing       -1     +1
    2  doing -> todo        +1     -1
    3  todo  -> done        -1             +1
    sum                     -1      0      +1      task.moved, from todo to done

Rules:
- The order of entries inside a transaction has no meaning, because sums have none: nested triggers, functions,
  savepoints and no-op updates are all the same arithmetic.
- Columns are compared by their JSON text: all images were made under the same settings, so equal text is equal value.
- An image that cannot be shown counts as absent, here and in boards.
- Two images before, or two after, cannot result from any history: triggers were off for a while. Then, and only then,
  the board must be read again.
- The sums need images of one shape. If a row comes and leaves while an enum's label is renamed, its images do not
  cancel out, and resemble an update. So the reader of the journal compares shapes first, and marks transactions as
  `outdated`.
- Work is linear in the entries, and nothing is encoded for boards that nobody follows.
- Data of other tables about a task, its *extras*, has no images: its value is that at the end of the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import msgspec

from relay.model import messages
from relay.model.cursor import Reason
from relay.model.messages import Meaning, Message, Row
from relay.model.snapshot import Snapshot

_NO_EXTRAS: Final[Row] = MappingProxyType({})


class Table(Protocol):
    """A watched table, which turns rows into tasks."""

    @property
    def id(self) -> int: ...

    @property
    def in_doubt(self) -> bool:
        """Whether its images do not say what boards show."""

    def task(self, columns: Row, board: str) -> Row:
        """Turn a row, keyed by the names of its columns, into a task as clients see it."""

    def extras_that_differ(self, before: Row, after: Row) -> Collection[str]:
        """Return the extras whose key columns in the row changed."""


class Image(NamedTuple):
    """An image of row `key` on a board that left (`sign` -1) or came (+1); with extras, if they are needed."""

    table: Table
    key: str
    board: str
    columns: Row
    sign: int
    extras: Row = _NO_EXTRAS

    @property
    def task(self) -> Row:
        return self.table.task(self.columns, self.board)

    @property
    def whole(self) -> Row:
        return {**self.task, **self.extras}


class Touch(NamedTuple):
    """Extras that changed of a task whose row did not."""

    board: str
    id: msgspec.Raw
    lane: msgspec.Raw
    extras: Row


@dataclass(slots=True)
class Transaction:
    """The images of one transaction, in any order. A large transaction may be split, by rows.

    `sync`: the reason why all boards must be read again, for example TRUNCATE. `again`: boards that must be read
    again too, each with its reason, such as changed lanes. `outdated`: the images may have an earlier shape of the
    tables, so the boards that they touch must be read again.

    Changed extras come separately: `touches` belong to no transaction, but to the snapshot `at`.
    """

    xid: int
    images: list[Image] = field(default_factory=list)
    sync: Reason | None = None
    again: dict[str, Reason] = field(default_factory=dict)
    touches: list[Touch] = field(default_factory=list)
    at: Snapshot | None = None
    outdated: bool = False

    def messages(self, boards: Container[str | None]) -> dict[str, Meaning]:
        """Return the messages for each of `boards` that it touches, by row in order of appearance.

        A reason instead of messages means that the board must be read again. Nothing is encoded for other boards.
        """
        rows: defaultdict[tuple[str, int, str], list[Image]] = defaultdict(list)
        for image in self.images:
            if image.board in boards:
                rows[image.board, image.table.id, image.key].append(image)
        found: dict[str, Meaning] = {board: reason for board, reason in self.again.items() if board in boards}
        for (board, _, _), images in rows.items():
            its = found.setdefault(board, [])
            if isinstance(its, str):
                continue
            if self.outdated or images[0].table.in_doubt:
                found[board] = "schema_changed"
            elif (pair := _before_and_after(images)) is None:
                found[board] = "changes_missing"
            else:
                its += _messages(*pair)
        for touch in self.touches:
            if touch.board in boards and not isinstance(its := found.setdefault(touch.board, []), str):
                its.append(messages.task_updated(touch.id, touch.extras, (touch.lane, touch.lane)))
        return {board: its for board, its in found.items() if its}


def cancelled(images: Iterable[Image]) -> list[Image]:
    """Return the images without those that cancel out, in their order."""
    kept: dict[tuple[object, ...], list[Image]] = {}
    for image in images:
        same = kept.setdefault((image.table.id, image.key, image.board, *image.columns, _text(image.columns)), [])
        if same and same[-1].sign != image.sign:
            same.pop()
        else:
            same.append(image)
    return [image for same in kept.values() for image in same]


def _text(columns: Row) -> bytes:
    return b"\0".join(columns.values())


def _before_and_after(images: list[Image]) -> tuple[Image | None, Image | None] | None:
    """Return the row's image before and after on one board; None if no history can produce these images."""
    if len(images) > 1:
        images = cancelled(images)
    before = [image for image in images if image.sign < 0]
    after = [image for image in images if image.sign > 0]
    if len(before) > 1 or len(after) > 1:
        return None
    return (before[0] if before else None), (after[0] if after else None)


def _messages(before: Image | None, after: Image | None) -> Iterator[Message]:
    if before and after:
        yield from _update_messages(before, after)
    elif before:
        task = before.task
        yield messages.task_deleted(task["id"], task["lane"])
    elif after:
        yield messages.task_created(after.whole)


def _update_messages(before: Image, after: Image) -> Iterator[Message]:
    old, new = before.task, after.task
    changes = {key: value for key, value in new.items() if value != old.get(key)}
    if after.extras:
        differ = after.table.extras_that_differ(before.columns, after.columns)
        changes |= {key: value for key, value in after.extras.items() if key in differ}
    moved = "lane" in changes
    if moved:
        yield messages.task_moved(new["id"], old["lane"], new["lane"], after.whole)
    if len(changes) > moved:
        lane = new["lane"]
        yield messages.task_updated(new["id"], changes, (old["lane"] if moved else lane, lane))

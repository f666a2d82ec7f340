"""A transaction and its net effect. Pure.

A transaction is all that became visible together. Each of its entries in the journal says which image of a row left,
and which came. Each image counts +1 where it came and -1 where it left. An image that cancels out was never visible
to others, and no message mentions it. What remains is, for each row of a board, at most one image that was there
before and at most one that is there after: that pair is the message.

For example, one transaction that moves a task from `todo` to `doing`, back, and then to `done`:

    entry                  todo   doing   done
    1  todo  -> doing       -1     +1
    2  doing -> todo        +1     -1
    3  todo  -> done        -1             +1
    sum                     -1      0      +1      task.moved, from todo to done

Rules:
- The order of entries inside a transaction has no meaning, for sums have none: nested triggers, functions, savepoints
  and no-op updates are all the same arithmetic.
- Columns are compared by their JSON text: all images were made under the same settings, so equal text is equal value.
- An image that cannot be shown counts as absent, here and in boards.
- Two images before or two after are what no history can produce: triggers were off for a while. Then, and only
  then, the board is to be read again.
- The sums need images of one shape. A row that came and left while one of its labels was renamed does not cancel out,
  and resembles an update. Where a row seems to have come first, `is_doubtful` says so: shapes are to be compared.
- Work is linear in the entries, and nothing is encoded for a board that nobody follows.
- What other tables say about a task, its *extras*, has no images: it comes as it is at the end of the batch.
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
    """A watched table, as far as its rows become tasks."""

    @property
    def id(self) -> int: ...

    def task(self, columns: Row, board: str) -> Row:
        """Turn a row, by the columns' own names, into a task of a board as clients see it."""

    def extras_that_differ(self, before: Row, after: Row) -> Collection[str]:
        """Name the extras that are found by other keys after a change of the row than before."""


class Image(NamedTuple):
    """An image of the row `key` on a board that left (`sign` is -1) or came (+1); with extras if needed."""

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
    """What became of the extras of a task whose row did not change."""

    board: str
    id: msgspec.Raw
    lane: msgspec.Raw
    extras: Row


@dataclass(slots=True)
class Transaction:
    """The images that one transaction moved, in any order.

    With `sync`, the transaction did what only reading the boards again can show, such as TRUNCATE: the reason. The
    boards in `again` are read again, each for a reason: it changed their lanes, which are sent with a board. With
    `outdated`, its images may be of a shape that the tables had before: the boards that it touches are read again. A
    large transaction may come as several, each with all images of the rows that it is about.

    What other tables say about tasks comes by itself: `touches` are no transaction's, but as of the snapshot `at`.
    """

    xid: int
    images: list[Image] = field(default_factory=list)
    sync: Reason | None = None
    again: dict[str, Reason] = field(default_factory=dict)
    touches: list[Touch] = field(default_factory=list)
    at: Snapshot | None = None
    outdated: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether a row seems to have come before the one left whose place it takes.

        So it is where triggers write the table again; and where a row came and left, and does not cancel out, for its
        images are of different shapes.
        """
        came: set[tuple[str, int, str]] = set()
        left: set[tuple[str, int, str]] = set()
        for image in self.images:
            place = image.board, image.table.id, image.key
            if image.sign > 0:
                came.add(place)
            elif place in came:
                left.add(place)
        return any(_came_first(self._at(place)) for place in left)

    def _at(self, place: tuple[str, int, str]) -> list[Image]:
        return [image for image in self.images if (image.board, image.table.id, image.key) == place]

    def messages(self, boards: Container[str | None]) -> dict[str, Meaning]:
        """Give each of `boards` that it touches the messages for its subscribers, by row in order of appearance.

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
            if self.outdated:
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
    """Drop the images that came as often as they left; the others keep their order."""
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
    """Return what is there before and after, of one row on one board; None if no history can produce these images."""
    if len(images) > 1:
        images = cancelled(images)
    before = [image for image in images if image.sign < 0]
    after = [image for image in images if image.sign > 0]
    if len(before) > 1 or len(after) > 1:
        return None
    return (before[0] if before else None), (after[0] if after else None)


def _came_first(images: list[Image]) -> bool:
    return [image.sign for image in cancelled(images)] == [1, -1]


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

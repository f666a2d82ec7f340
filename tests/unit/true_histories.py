"""What one transaction really did to a table whose triggers write it again, and the journal it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from hypothesis import strategies as st

from relay.changes import Change, Side
from tests.unit import tasks
from tests.unit.tasks import Tasks

DEEPEST: Final = 3


@dataclass(frozen=True)
class Row:
    """One version of a row, at a place of its own."""

    place: int
    key: int
    board: str | None
    lane: str
    title: str

    def side(self) -> Side:
        return tasks.side(self.place, key=self.key, board=self.board, lane=self.lane, title=self.title)


@dataclass(frozen=True)
class History:
    """The boards before a transaction and after it, and the journal it left."""

    before: dict[str, Tasks]
    journal: list[Change]
    after: dict[str, Tasks]

    def __repr__(self) -> str:
        """Name each row version by its key, its board and its place."""
        journal = "; ".join(f"{_name(change.old)} -> {_name(change.new)}" for change in self.journal)
        return f"<{self.before} | {journal} | {self.after}>"


def _name(side: Side | None) -> str:
    return f"{bytes(side.key).decode()} {side.board} {side.version.tid}" if side else "none"


@st.composite
def histories(draw: st.DrawFn, *, touched: bool = False) -> History:
    """Draw a transaction of a few statements, each of which may fire triggers that make statements again.

    With `touched`, of a table whose journal lacks some versions.
    """
    table = _TouchedTable(draw) if touched else _Table(draw)
    before = table.boards()
    for _ in range(draw(st.integers(1, 3))):
        table.statement()
    table.keep_one_of_each_key()
    return History(before, table.journal, table.boards())


class _Table:
    """A table with a deferred unique key. AFTER triggers of its users fire before the one that journals."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._places = 0
        keys = draw(st.lists(st.integers(1, 3), unique=True, max_size=3))
        self._rows = [self._version(Row(0, key, "b", "todo", "x")) for key in keys]
        self._places_before = self._places
        self.journal: list[Change] = []

    def boards(self) -> dict[str, Tasks]:
        return tasks.held(*(row.side() for row in self._rows))

    def statement(self, depth: int = 0) -> None:
        """Change some rows, then fire their triggers in the same order."""
        targets = self._draw(st.lists(st.sampled_from(self._rows), unique=True, max_size=3)) if self._rows else []
        if not targets:
            self._fire([self._insert()], depth)
        elif self._draw(st.booleans()):
            self._fire([self._update(row) for row in targets], depth)
        else:
            self._fire([self._delete(row) for row in targets], depth)

    def keep_one_of_each_key(self) -> None:
        """Satisfy the constraint."""
        taken: set[int] = set()
        for row in list(self._rows):
            if row.key in taken:
                self._fire([self._delete(row)], DEEPEST)
            taken.add(row.key)

    def _fire(self, fired: Sequence[Change], depth: int) -> None:
        for change in fired:
            if depth < DEEPEST and self._draw(st.integers(0, 2)) == 0:
                self.statement(depth + 1)
            self.journal.append(replace(change, depth=depth + 1))

    def _insert(self) -> Change:
        row = self._version(Row(0, self._draw(st.integers(1, 4)), self._draw(_BOARDS), "todo", "x"))
        self._rows.append(row)
        return tasks.inserted(row.side())

    def _update(self, row: Row) -> Change:
        old, new = row, self._version(self._changed(row))
        self._rows[self._rows.index(old)] = new
        return tasks.updated(old.side(), new.side(), here=self._made_here(old))

    def _made_here(self, row: Row) -> bool:
        return row.place > self._places_before

    def _changed(self, row: Row) -> Row:
        match self._draw(st.sampled_from(["key", "board", "lane", "title"])):
            case "key":
                return replace(row, key=self._draw(st.integers(1, 4)))
            case "board":
                return replace(row, board=self._draw(_BOARDS), title="on the way")
            case "lane":
                return replace(row, lane=self._draw(st.sampled_from(["todo", "done"])))
            case _:
                return replace(row, title=self._draw(st.sampled_from("xyz")))

    def _delete(self, row: Row) -> Change:
        self._rows.remove(row)
        return tasks.deleted(row.side(), here=self._made_here(row))

    def _version(self, row: Row) -> Row:
        self._places += 1
        return replace(row, place=self._places)


class _TouchedTable(_Table):
    """A table with an immediate unique key, whose rows are also touched: a new version, and no entry."""

    def statement(self, depth: int = 0) -> None:
        if self._rows and len(self._rows) < _MOST_ROWS and self._draw(st.integers(0, 2)) == 0:
            row = self._draw(st.sampled_from(self._rows))
            self._rows[self._rows.index(row)] = self._version(row)
        else:
            super().statement(depth)

    def _insert(self) -> Change:
        free = [key for key in range(1, 60) if key not in {row.key for row in self._rows}]
        key = self._draw(st.sampled_from(free[:_MOST_ROWS]))
        row = self._version(Row(0, key, self._draw(_BOARDS), "todo", self._draw(st.sampled_from("xyz"))))
        self._rows.append(row)
        return tasks.inserted(row.side())

    def _changed(self, row: Row) -> Row:
        new = super()._changed(row)
        return replace(new, key=row.key) if any(other.key == new.key for other in self._rows) else new


_MOST_ROWS: Final = 4

_BOARDS: Final = st.sampled_from(["b", "c", None])

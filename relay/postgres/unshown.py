"""What cannot be shown, for health: rows that subscribers lack, and changes that were not recorded.

Rules:
- A row counts while somebody follows its board: from the change or the read that found it, until a change or a read
  shows or removes it.
- After a change that was not recorded, all boards are read again, because nobody knows which board lacks what. A few
  are normal while a column is renamed. Health reports them if they continue for `REPEATED_SECONDS`, until there has
  been none for `UNRECORDED_SECONDS`.
- A row whose id cannot be read counts without it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

from relay.model.transaction import Image

REPEATED_SECONDS: Final = 5.0
"""Time for which changes must have failed to be recorded before health reports it."""

UNRECORDED_SECONDS: Final = 60.0
"""Time for which health reports it after the last such change."""

KNOWN_ROWS: Final = 1_000
"""Maximum number of rows per board whose ids are kept; others are only counted."""

LeftOut = tuple[str, str | None]
"""The table and the id of a row."""

Place = tuple[str | None, str]
"""The board and the id of a row."""


class Unshown:
    """The rows that are left out, by board, and the changes that were not recorded, by table."""

    def __init__(self) -> None:
        self._followed: Container[str | None] = ()
        self._boards: dict[str, Counter[LeftOut]] = {}
        self._unrecorded: dict[str, tuple[int, float, float]] = {}

    def begin(self, followed: Container[str | None]) -> None:
        """Count the rows of these boards."""
        self._followed = followed

    def has_read(self, board: str, rows: Iterable[LeftOut]) -> None:
        """Note the rows that were left out when a board was read."""
        self._boards.pop(board, None)
        for table, key in rows:
            self._add(board, table, key)

    def note(self, table: str, old_place: Place, new_place: Place, images: Sequence[Image]) -> None:
        """Note a change of a row from one place to another, and those of its images that can be shown."""
        (old, old_key), (new, key) = old_place, new_place
        if old is not None and old in self._boards:
            self._remove(old, table, old_key, unshown=all(image.sign > 0 for image in images))
        if new is not None and new in self._followed and all(image.sign < 0 for image in images):
            self._add(new, table, key)

    def unrecorded(self, table: str) -> None:
        """Note that a change of a table was not recorded."""
        now = time.monotonic()
        count, first, last = self._unrecorded.get(table, (0, now, now))
        if now - last > UNRECORDED_SECONDS:
            count, first = 0, now
        self._unrecorded[table] = count + 1, first, now

    @property
    def problems(self) -> Mapping[str, str]:
        """Say in one line for each table what cannot be shown."""
        self._boards = {board: rows for board, rows in self._boards.items() if board in self._followed}
        found: dict[str, str] = {}
        rows = Counter[LeftOut]()
        for of_board in self._boards.values():
            rows.update(+of_board)
        for table in {table for table, _ in rows}:
            keys = [key for of, key in rows if of == table and key is not None]
            count = sum(times for (of, _), times in rows.items() if of == table)
            found[table] = _unshown(table, count, keys)
        for table, (count, first, last) in self._unrecorded.items():
            if last - first >= REPEATED_SECONDS and time.monotonic() - last < UNRECORDED_SECONDS:
                found[table] = "; ".join(filter(None, [found.get(table), _unrecorded(table, count)]))
        return found

    @property
    def has_rows(self) -> bool:
        """Whether there is any such row."""
        return bool(self._boards)

    def _add(self, board: str, table: str, key: str | None) -> None:
        rows = self._boards.setdefault(board, Counter())
        rows[table, key if len(rows) < KNOWN_ROWS else None] += 1

    def _remove(self, board: str, table: str, key: str, *, unshown: bool) -> None:
        rows = self._boards[board]
        if (table, key) in rows:
            del rows[table, key]
        elif unshown and rows[table, None]:
            rows[table, None] -= 1
        if not +rows:
            del self._boards[board]


def _unshown(table: str, count: int, keys: Sequence[str]) -> str:
    rows = "1 row" if count == 1 else f"{count} rows"
    example = f", such as that with id {keys[0]!a:.100}" if keys else ""
    return f"{rows} of {table} cannot be shown{example}: the log says why (feed.unreadable_row)"


def _unrecorded(table: str, count: int) -> str:
    changes = "1 change" if count == 1 else f"{count} changes"
    return f"{changes} of {table} could not be recorded of late: the log says why (feed.unreadable_row, feed.sync)"

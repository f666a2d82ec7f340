"""Places: finds the boards of tasks whose lanes are rows of another table.

Rules:
- A place is a lane, and a board unless only the lane determines it. Places are resolved by the table of lanes, in the
  snapshot in which the journal is read.
- A result is kept until lanes change, according to the journal, or the shape of the tables does. So while that table
  is locked or altered, changes of tasks in known lanes continue.
- If a place cannot be resolved, its board is read again, or all boards are if only the lane determines it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, LiteralString, NamedTuple

from psycopg.rows import TupleRow

from relay.postgres.decode import Entry
from relay.postgres.watches import Watches

KNOWN_PLACES: Final = 100_000
"""Maximum number of places whose boards are known."""

_RESOLVED: Final[LiteralString] = (
    "select r.watch, /**/r.place/**/, /**/r.board/**/ from relay.resolve(%s::integer[], %s::text[]) r"
)
_UNPLACED: Final = "lanes_changed: tasks changed whose lanes cannot be read now"


class Place(NamedTuple):
    """The place of a task as an entry has it, which is JSON, and the watch of its table."""

    watch: int
    text: str

    @property
    def own_board(self) -> str | None:
        """The board, unless only the lane determines it."""
        board: str | None = json.loads(self.text)[0]
        return board


class Places:
    """Resolves places by a query that runs in the journal's snapshot."""

    def __init__(self, rows: Callable[..., Awaitable[list[TupleRow]]], watches: Watches) -> None:
        self._rows = rows
        self._watches = watches
        self._known: dict[Place, str | None] = {}
        self._stamp: str | None = None

    def begin(self, stamp: str | None, entries: Iterable[Entry]) -> None:
        """Begin a batch, and forget what may have changed. `stamp` is None if not everything was journalled."""
        if stamp != self._stamp or any(entry.op in {"L", "S"} for entry in entries):
            self.forget()
        self._stamp = stamp

    def forget(self) -> None:
        """Forget all boards of places."""
        self._known.clear()

    async def resolved(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries with the boards of their tasks in this snapshot, where lanes determine them."""
        joined = self._watches.found_through_lanes
        places = {place for entry in (entries if joined else ()) for place in _places(entry, joined) if place}
        if not places:
            return entries
        await self._resolve(places - self._known.keys())
        return [self._placed(entry, *_places(entry, joined)) for entry in entries]

    async def _resolve(self, places: set[Place]) -> None:
        if not places:
            return
        if len(self._known) > KNOWN_PLACES:
            self.forget()
        found = await self._rows(_RESOLVED, *map(list, zip(*places, strict=True)))
        failed = {watch for watch, text, _ in found if text is None}
        self._known |= {place: None for place in places if place.watch not in failed}
        self._known |= {Place(watch, text): board for watch, text, board in found if watch not in failed}

    def _placed(self, entry: Entry, old: Place | None, new: Place | None) -> Entry:
        places = [place for place in (old, new) if place]
        if all(place in self._known for place in places):
            old_board, new_board = (self._known[place] if place else None for place in (old, new))
            return entry._replace(old_board=old_board, new_board=new_board) if places else entry
        if any(place.own_board is None for place in places):
            return entry._replace(op="S", reason=_UNPLACED)
        old_board, new_board = (place.own_board if place else None for place in (old, new))
        return entry._replace(op="L", old_board=old_board, new_board=new_board)


def _places(entry: Entry, joined: Sequence[int]) -> tuple[Place | None, Place | None]:
    if entry.op != "R" or entry.watch not in joined:
        return None, None
    old, new = (None if text is None else Place(entry.watch, text) for text in (entry.old_board, entry.new_board))
    return old, new

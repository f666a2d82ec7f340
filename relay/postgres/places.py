"""Places: on which boards tasks are that are found through their lanes, which are rows of another table.

Rules:
- A place is a board or null, and a lane. Its board is what the table of lanes says in the snapshot of the journal.
- What was resolved once holds until the journal says that lanes changed, or the shape of the tables did. So while
  somebody locks or alters that table, tasks in lanes that are known go on.
- Of a place that cannot be resolved, a board that it names itself is read again; where only its lane names one, all
  boards are.
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
    """What an entry says of where a task is, and under which watch."""

    watch: int
    said: str

    @property
    def own_board(self) -> str | None:
        """The board that it names itself."""
        board: str | None = json.loads(self.said)[0]
        return board


class Places:
    """Resolves places by a query that runs in the journal's snapshot."""

    def __init__(self, rows: Callable[..., Awaitable[list[TupleRow]]], watches: Watches) -> None:
        self._rows = rows
        self._watches = watches
        self._known: dict[Place, str | None] = {}
        self._stamp: str | None = None

    def begin(self, stamp: str | None, entries: Iterable[Entry]) -> None:
        """Begin a batch: keep what is known, unless that may be different now. None if not all was journalled."""
        if stamp != self._stamp or any(entry.op in {"L", "S"} for entry in entries):
            self.forget()
        self._stamp = stamp

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()

    async def resolved(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Give the entries of tasks that are found through lanes the boards that these have in this snapshot."""
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
        failed = {watch for watch, said, _ in found if said is None}
        self._known |= {place: None for place in places if place.watch not in failed}
        self._known |= {Place(watch, said): board for watch, said, board in found if watch not in failed}

    def _placed(self, entry: Entry, old: Place | None, new: Place | None) -> Entry:
        places = [place for place in (old, new) if place]
        if all(place in self._known for place in places):
            was, stands = (self._known[place] if place else None for place in (old, new))
            return entry._replace(old_board=was, new_board=stands) if places else entry
        if any(place.own_board is None for place in places):
            return entry._replace(op="S", reason=_UNPLACED)
        was, stands = (place.own_board if place else None for place in (old, new))
        return entry._replace(op="L", old_board=was, new_board=stands)


def _places(entry: Entry, joined: Sequence[int]) -> tuple[Place | None, Place | None]:
    if entry.op != "R" or entry.watch not in joined:
        return None, None
    old, new = (None if said is None else Place(entry.watch, said) for said in (entry.old_board, entry.new_board))
    return old, new

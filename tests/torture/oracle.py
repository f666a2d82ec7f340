"""The oracle: what clients must have received, from an audit of the table that the relay has no part in.

The audit is a table that triggers of the test's own fill in the writer's transaction, one entry per change, with
the *stamp* that every row version gets from a sequence. So it tells, of every committed version, which it was, where
it stood and what came before it; what was rolled back is not in it.

Rules:
- A client that says "I held stamp 7 of task t on board a and now hold 9" is right only if the committed history of t
  on a goes from 7 to 9 in one step. So nothing is lost, doubled, reordered, or of a rolled-back transaction.
- A client that says "I am at cursor c" holds exactly the fold of the audit's entries whose transactions c sees. So
  no cursor lies, and no batch tears a transaction.
- A crash ends an *era*: ids of transactions that it undid may be given out again. A cursor sees all of earlier eras
  and nothing of later ones.
- A task that came and went within one transaction was never to be seen, and need not be told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

State = int | None
"""The stamp of a task on a board, None while it is not there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change: where a task stood before and after, and as which version."""

    number: int
    era: int
    xid: int
    old_id: str | None
    new_id: str | None
    old_board: str | None
    new_board: str | None
    stamp: int | None

    def states(self) -> list[tuple[str, str, State]]:
        """Tell what each board and task concerned has become, in order."""
        found: list[tuple[str, str, State]] = []
        if self.old_id is not None and self.old_board is not None:
            found.append((self.old_board, self.old_id, None))
        if self.new_id is not None and self.new_board is not None:
            if found and found[0][:2] == (self.new_board, self.new_id):
                found.clear()
            found.append((self.new_board, self.new_id, self.stamp))
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """A client's word: on a board, a task went from one state to the next."""

    board: str
    task: str
    old: State
    new: State


class Audit:
    """What was committed."""

    def __init__(self, entries: Iterable[Entry], eras: Mapping[str, int]) -> None:
        """`eras` tells in which era the runs were that cursors name."""
        self._eras = eras
        self.entries = sorted(entries, key=lambda entry: entry.number)
        histories: defaultdict[tuple[str, str], list[tuple[State, int]]] = defaultdict(list)
        for entry in self.entries:
            for board, task, state in entry.states():
                histories[board, task].append((state, entry.xid))
        self._steps = {
            Step(board, task, old, new)
            for (board, task), history in histories.items()
            for (old, _), (new, _) in pairwise([(None, 0), *history])
        }
        self._visits = {stamp for history in histories.values() for stamp in _visits(history)}

    def is_step(self, step: Step) -> bool:
        """Whether the history of the task on the board has this step."""
        return step in self._steps

    def at(self, board: str, cursor: str) -> Mapping[str, int]:
        """Return the board as of a cursor: the stamps of its tasks."""
        held: dict[str, int] = {}
        for entry in self.entries:
            for its_board, task, state in entry.states() if self._sees(cursor, entry) else ():
                if its_board == board and state is None:
                    held.pop(task, None)
                elif its_board == board and state is not None:
                    held[task] = state
        return held

    def between(self, board: str, first: str, last: str) -> set[int]:
        """Return the stamps that lead a board from one cursor to another, but for those that need not be told."""
        return {
            state
            for entry in self.entries
            if self._sees(last, entry) and not self._sees(first, entry)
            for its_board, _, state in entry.states()
            if its_board == board and state is not None
        } - self._visits

    def told(self, stamps: Iterable[int]) -> list[int]:
        """Leave out what need not be told."""
        return [stamp for stamp in stamps if stamp not in self._visits]

    def knows(self, cursor: str) -> bool:
        """Whether it is known to which era a cursor belongs."""
        return cursor.split(".", maxsplit=1)[0] in self._eras

    def _sees(self, cursor: str, entry: Entry) -> bool:
        """Whether an entry is within a cursor, whose third part is a snapshot as Postgres writes it."""
        run, _, snapshot, _ = cursor.split(".")
        if entry.era != self._eras[run]:
            return entry.era < self._eras[run]
        _, xmax, running = snapshot.split(":")
        return entry.xid < int(xmax) and str(entry.xid) not in running.split(",")


def _visits(history: list[tuple[State, int]]) -> Iterable[int]:
    """Give the stamps of visits: a task came and went within one transaction."""
    visit: list[tuple[int, int]] = []
    for state, xid in history:
        if state is not None:
            visit.append((state, xid))
            continue
        if {its_xid for _, its_xid in visit} == {xid}:
            yield from (stamp for stamp, _ in visit)
        visit = []

"""The oracle: what clients must have received, from an audit of the tables that the relay has no part in.

The audit is a table that triggers of the test's own fill in the writer's transaction: where each task that the
transaction touched stands in the end, and as which *stamp*. Two images of a task have the same stamp only if they are
the same, and were so within one transaction or from one to the next. So the audit tells the net effect of every
committed transaction, and nothing of what it did on the way; what was rolled back is not in it.

Rules:
- A client that says "I held stamp 7 of task t on board a and now hold 9" is right only if one transaction took t on a
  from 7 to 9. So nothing is lost, doubled, reordered, or of a rolled-back transaction, and no image is sent that only
  the transaction itself ever saw.
- A client that says "I am at cursor c" holds exactly what the transactions that c sees have left. So no cursor lies,
  and no batch tears a transaction.
- A client led from one cursor to another was sent each net change between them once, and nothing else.
- A crash ends an *epoch*: ids of transactions that it undid may be given out again. A cursor sees all of earlier
  epochs and nothing of later ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

State = int | None
"""The stamp of a task on a board, None while it is not there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a task stands after a transaction: its board and its stamp, both None if it is gone.

    The numbers of those of one task are in the order of the transactions.
    """

    number: int
    epoch: int
    xid: int
    task: str
    board: str | None
    stamp: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """A client's word: on a board, a task went from one state to the next."""

    board: str
    task: str
    old: State
    new: State


class Audit:
    """What was committed."""

    def __init__(self, entries: Iterable[Entry], epochs: Mapping[str, int]) -> None:
        """`epochs` tells in which epoch the runs were that cursors name."""
        self._epochs = epochs
        self.entries = sorted(entries, key=lambda entry: entry.number)
        last: dict[str, Entry] = {}
        self._steps: defaultdict[Step, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            for step in _steps(last.get(entry.task), entry):
                self._steps[step].append(entry)
            last[entry.task] = entry

    def is_step(self, step: Step) -> bool:
        """Whether a transaction did this to the task on the board."""
        return step in self._steps

    def at(self, board: str, cursor: str) -> Mapping[str, int]:
        """Return the board as of a cursor: the stamps of its tasks."""
        last = {entry.task: entry for entry in self.entries if self._sees(cursor, entry)}
        return {task: entry.stamp for task, entry in last.items() if entry.board == board and entry.stamp is not None}

    def between(self, board: str, first: str, last: str) -> Counter[Step]:
        """Return the steps that lead a board from one cursor to another."""
        return Counter(
            step
            for step, entries in self._steps.items()
            if step.board == board
            for entry in entries
            if self._sees(last, entry) and not self._sees(first, entry)
        )

    def knows(self, cursor: str) -> bool:
        """Whether it is known to which epoch a cursor belongs."""
        return cursor.split(".", maxsplit=1)[0] in self._epochs

    def _sees(self, cursor: str, entry: Entry) -> bool:
        """Whether an entry is within a cursor, whose third part is a snapshot as Postgres writes it."""
        run, _, snapshot, _ = cursor.split(".")
        if entry.epoch != self._epochs[run]:
            return entry.epoch < self._epochs[run]
        _, xmax, running = snapshot.split(":")
        return entry.xid < int(xmax) and str(entry.xid) not in running.split(",")


def _steps(before: Entry | None, after: Entry) -> Iterator[Step]:
    """Give what a transaction did to a task, to the board that it left and to the one that it came to."""
    old = (before.board, before.stamp) if before else (None, None)
    new = (after.board, after.stamp)
    if old == new:
        return
    if old[0] == new[0] and new[0] is not None:
        yield Step(new[0], after.task, old[1], new[1])
        return
    if old[0] is not None:
        yield Step(old[0], after.task, old[1], None)
    if new[0] is not None:
        yield Step(new[0], after.task, None, new[1])

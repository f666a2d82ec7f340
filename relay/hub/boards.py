"""The boards and selections that are followed, by name, and what a transaction means to each. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from relay.hub.board import Board, Step
from relay.hub.ports import Committed, Subscriber
from relay.hub.shares import Shares
from relay.model.cursor import Reason
from relay.model.messages import Meaning
from relay.model.selection import Changed, board_of, is_selection, selection_of

MAX_SELECTIONS: Final = 1000
"""Maximum number of different selections followed at once: each costs work for each change of its board."""


class Boards(Mapping[str, Board[Subscriber]]):
    """Boards and selections by name.

    `selections` has the names that are followed of each board, in their turn, `shares` the selections that each
    subscriber follows.
    """

    def __init__(self) -> None:
        self.selections: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._of: dict[str, Board[Subscriber]] = {}
        self.shares: Shares[str] = Shares()
        # Number of selections, without whole boards.
        self._narrow = 0

    def __getitem__(self, name: str) -> Board[Subscriber]:
        return self._of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def add(self, name: str, by: Subscriber) -> Board[Subscriber]:
        """Return the board or selection of this name, for a subscriber that will follow it; make it if it is new."""
        if name not in self._of:
            self._of[name] = Board()
            self.selections[board_of(name)][name] = None
            self._narrow += is_selection(name)
        if is_selection(name):
            self.shares.add(by, name)
        return self._of[name]

    def leave(self, name: str, by: Subscriber) -> None:
        """Remove a subscriber, and the board or selection too if nobody else follows it."""
        self._of[name].leave(by)
        if is_selection(name):
            self.shares.remove(by, name)
        if not self._of[name]:
            self._remove(name)

    def _remove(self, name: str) -> None:
        del self._of[name]
        self._narrow -= is_selection(name)
        its = self.selections[board_of(name)]
        del its[name]
        if not its:
            del self.selections[board_of(name)]

    def of(self, board: str) -> list[tuple[str, Board[Subscriber]]]:
        """Return the board and its selections, as far as they are followed."""
        return [(name, self._of[name]) for name in self.selections.get(board, ())]

    def put_last(self, name: str) -> None:
        """Have a selection of a board come after the others."""
        its = self.selections[board_of(name)]
        its[name] = its.pop(name)

    def has_room_for(self, name: str) -> bool:
        """Return whether a board or selection may be followed, given the limit of selections."""
        return name in self._of or not is_selection(name) or self._narrow < MAX_SELECTIONS


def steps(transactions: Iterable[Committed], selections: Mapping[str, Iterable[str]]) -> dict[str, list[Step]]:
    """Return the steps of each board and selection, given the names followed of each board."""
    found: defaultdict[str, list[Step]] = defaultdict(list)
    for transaction in transactions:
        if transaction.sync is not None:
            for name in chain.from_iterable(selections.values()):
                found[name].append(Step(transaction.xid, (), transaction.sync, transaction.at))
            continue
        for board, meaning in transaction.messages(selections).items():
            changed = meaning if isinstance(meaning, str) else Changed(meaning)
            for name in selections[board]:
                if step := _step(transaction, name, changed):
                    found[name].append(step)
    return found


def _step(transaction: Committed, name: str, changed: Changed | Reason) -> Step | None:
    """Return what a transaction means to a board or selection, given its meaning to the board; None if nothing."""
    meaning: Meaning = changed if isinstance(changed, str) else changed.messages
    if is_selection(name) and not isinstance(changed, str):
        meaning = selection_of(name).messages(changed)
    if isinstance(meaning, str):
        return Step(transaction.xid, (), meaning, transaction.at)
    return Step(transaction.xid, meaning, at=transaction.at) if meaning else None

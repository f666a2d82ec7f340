"""The sequences of positions in the stream, for clients that resume. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

from relay.model.snapshot import Snapshot
from relay.nats.stream import State

RESUME_ENTRIES: Final = 100_000
"""Maximum number of entries read for clients that resume. For more, a `board.sync` costs everybody less."""


class Mark(NamedTuple):
    """The sequence, position and stream of a state."""

    sequence: int
    position: Snapshot
    stream: str


class Marks:
    """The states of the stream from which all later entries continue."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []

    def __bool__(self) -> bool:
        return bool(self._marks)

    def add(self, sequence: int, state: State) -> None:
        """Note a state. If continuity is broken there, forget those before, from which nobody can resume."""
        if self._marks and (state.lost or state.stream != self._marks[-1].stream):
            self._marks = []
        self._marks.append(Mark(sequence, Snapshot.parse(state.position), state.stream))

    def clear(self) -> None:
        """Forget all."""
        self._marks = []

    def forget_before(self, first: int) -> None:
        """Forget the states that the stream no longer has, except the last one."""
        self._marks = [mark for mark in self._marks if mark.sequence >= first] or self._marks[-1:]

    def before(self, cursor: Snapshot, last: int) -> Mark:
        """Return the last state that this cursor covers, or a later one if that is too far before `last`."""
        after = bisect_left(self._marks, True, key=lambda mark: not cursor.covers(mark.position))
        near = bisect_left(self._marks, last - RESUME_ENTRIES, key=lambda mark: mark.sequence)
        return self._marks[min(max(after - 1, near), len(self._marks) - 1)]

"""Assembles batches from the stream's entries, and notices inconsistent ones. Pure.

Rules:
- A batch counts from its commit on. What an interrupted publisher left of one is dropped at the next state.
- Steps are numbered, and each continues from the position of the one before. A stream that was restored, lost entries
  or was written to by others raises StreamBroken.
- A reader may get the parts of some boards only. Parts of other boards are ignored, and each commit is compared with
  the parts of the boards that are read. So it does not matter how or whether NATS filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.model.cursor import Epoch, Reason
from relay.model.messages import Meaning
from relay.model.snapshot import Snapshot
from relay.nats.stream import Commit, Effect, End, Entry, Part, State, StreamBroken, message_of

GATHER_BYTES: Final = 4 * 1024 * 1024
"""Maximum size gathered of one batch. A larger batch is passed on in parts."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The effect of a transaction on one board, or with `sync` on all boards; see `ports.Committed`."""

    xid: int
    board: str | None
    sync: Reason | None
    effect: Effect
    at: Snapshot | None

    def messages(self, boards: Container[str | None]) -> Mapping[str, Meaning]:
        """Return the board's messages, if it is one of `boards`, or the reason why it must be read again."""
        if self.board is None or self.board not in boards:
            return {}
        messages = self.effect.messages
        return {self.board: self.effect.reason if messages is None else [*map(message_of, messages)]}


@dataclass(frozen=True, slots=True)
class Batch:
    """Transactions, and the position to which they lead; None if more of the same batch follows."""

    transactions: Sequence[Committed]
    position: Snapshot | None


@dataclass(frozen=True, slots=True)
class Begin:
    """Continue from a position with these cursors. `lost` is the reason if continuity is broken."""

    epoch: Epoch
    position: Snapshot
    lost: Reason | None


def _all_boards(_: str) -> bool:
    return True


class Assembly:
    """Takes entries in order, from a state on, and yields what they result in.

    `reads` returns whether the parts of a board are read. Its answers may change only between batches. With `whole`,
    nothing of a batch is passed on before its commit, however large it is.
    """

    def __init__(self, state: State, reads: Callable[[str], bool] = _all_boards, *, whole: bool = False) -> None:
        self.state = state
        self.step = state.step
        self.position = _position(state.position)
        self._reads_board = reads
        self._whole = whole
        self._within = False
        self._parts: Counter[str | None] = Counter()
        self._gathered: list[Committed] = []
        self._bytes = 0
        self._passed_on = False

    @property
    def between_batches(self) -> bool:
        """Whether no batch is unfinished, counting ignored parts too."""
        return not self._within

    def take(self, entry: Entry) -> Iterator[Batch | Begin]:
        """Take the next entry; yield what it results in. Raises StreamBroken."""
        match entry:
            case Part():
                yield from self._take_part(entry)
            case Commit():
                yield from self._take_commit(entry)
            case State():
                yield self._take_state(entry)

    def _take_part(self, part: Part) -> Iterator[Batch]:
        self._require_next_step(part)
        self._within = True
        if not self._reads(part.board):
            return
        self._parts[part.board] += 1
        self._gathered += [_committed(part, effect) for effect in part.effects]
        self._bytes += _size(part.effects)
        if self._bytes > GATHER_BYTES and not self._whole:
            self._passed_on = True
            yield Batch(self._take_gathered(), None)

    def _take_commit(self, commit: Commit) -> Iterator[Batch]:
        self._require_next_step(commit)
        self._within = True
        for board, count in commit.parts.items():
            if self._reads(board):
                self._require_parts(commit, board, count)
        if commit.end:
            self._require_parts(commit, None, commit.common)
            yield self._end(commit.end)

    def _end(self, end: End) -> Batch:
        if end.after != str(self.position):
            raise StreamBroken(f"a batch goes on from {end.after}: expected {self.position}")
        self.step, self.position = self.step + 1, _position(end.position)
        return Batch(self._end_step(), self.position)

    def _take_state(self, state: State) -> Batch | Begin:
        before, self.state = self.state, state
        if self._within and state.publisher == before.publisher:
            raise StreamBroken("a state stands within a batch")
        another = state.stream != before.stream
        lost: Reason | None = state.lost or ("journal_pruned" if another else None)
        position = _position(state.position)
        if not another and state.step != self.step + 1:
            raise StreamBroken(f"a state is step {state.step}: expected {self.step + 1}")
        if not lost and (state.after != str(self.position) or not position.covers(self.position)):
            raise StreamBroken(
                f"a state goes from {state.after} to {state.position}: expected on from {self.position}"
            )
        lost = lost or ("batch_cut_short" if self._passed_on else None)
        self.step, self.position = state.step, position
        self._end_step()
        if lost or state.epoch != before.epoch:
            return Begin(state.epoch, position, lost)
        return Batch((), position)

    def _reads(self, board: str | None) -> bool:
        return board is None or self._reads_board(board)

    def _require_next_step(self, entry: Part | Commit) -> None:
        if (entry.publisher, entry.step) != (self.state.publisher, self.step + 1):
            raise StreamBroken(
                f"an entry is of step {entry.step} by {entry.publisher}: "
                f"expected {self.step + 1} by {self.state.publisher}"
            )

    def _require_parts(self, commit: Commit, board: str | None, count: int) -> None:
        if (found := self._parts[board]) != count:
            of = "all boards" if board is None else f"board {board[:100]!r}"
            raise StreamBroken(f"step {commit.step} has {found} parts for {of}: expected {count}")

    def _end_step(self) -> Sequence[Committed]:
        self._within = self._passed_on = False
        self._parts.clear()
        return self._take_gathered()

    def _take_gathered(self) -> Sequence[Committed]:
        gathered, self._gathered, self._bytes = self._gathered, [], 0
        return gathered


def _committed(part: Part, effect: Effect) -> Committed:
    at = None if effect.at is None else _position(effect.at)
    return Committed(effect.xid, part.board, part.sync, effect, at)


def _size(effects: Iterable[Effect]) -> int:
    return sum(len(raw) for effect in effects for raw in effect.messages or ())


def _position(text: str) -> Snapshot:
    try:
        return Snapshot.parse(text)
    except ValueError as ex:
        raise StreamBroken(str(ex)) from None

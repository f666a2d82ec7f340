"""A turn of the active publisher: appends what the feed finds, and answers edges.

A turn is the feed's sink, in place of a hub. The only state is the end of the stream, which has the feed's position:
a new turn reads it, and its feed continues from there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import structlog

from relay.config.settings import Settings
from relay.hub.ports import Committed, Sink
from relay.model.cursor import Epoch, Reason
from relay.model.messages import Meaning, Message
from relay.model.snapshot import Snapshot
from relay.model.status import Counts
from relay.nats.answers import Answers
from relay.nats.assembly import Assembly
from relay.nats.jetstream import Stream
from relay.nats.stream import (
    Effect,
    Encoded,
    End,
    Part,
    State,
    StreamBroken,
    can_name,
    commits,
    decode,
    decode_state,
    extended,
    fitted,
)
from relay.nats.writer import Writer
from relay.postgres.feed import Feed

log = structlog.get_logger()

STATE_SECONDS: Final = 1.0
"""Maximum interval between states."""

PROBLEM_LETTERS: Final = 1000
"""Maximum length of a problem in a state."""


class Left(Exception):
    """The publisher has stopped publishing, as `leave` asked."""


class Turn(Sink):
    """Publishes from the end of the stream on.

    The publisher's name is new for each turn and after each interrupted batch. So parts of a batch without a commit
    are never mistaken for those of another batch with the same step.
    """

    def __init__(self, stream: Stream, settings: Settings, before: Assembly | None, last: int) -> None:
        self._stream = stream
        self._place = self._name = secrets.token_hex(6)
        self._id = before.state.stream if before else secrets.token_hex(6)
        # The stream's state after everything that is written or queued.
        self._step = before.step if before else 0
        self._epoch = before.state.epoch if before else None
        self._position = before.position if before else None
        # The number of entries of the current batch, by board; None is for all boards.
        self._parts: Counter[str | None] = Counter()
        self._state_due = 0.0
        self._left = asyncio.Event()
        self._refused = False
        self.feed = Feed(settings.DATABASE_URL, self._epoch, self._position)
        self.answers = Answers(self.feed)
        self.writer = Writer(stream, self.feed, last)

    @classmethod
    async def take(cls, stream: Stream, settings: Settings, *, begin_again: bool) -> Turn:
        """Continue from the end of the stream; with `begin_again`, start over instead."""
        bounds, found = await stream.bounds(), await stream.last_state()
        if begin_again:
            log.warning("publisher.begins_again", problem="a batch could not be written, twice")
        if found is None or begin_again:
            return cls(stream, settings, None, bounds.last)
        try:
            before = await _assembled(stream, *found, bounds.last)
        except StreamBroken as ex:
            log.warning("publisher.begins_again", problem=str(ex))
            before = None
        return cls(stream, settings, before, bounds.last)

    async def run(self) -> None:
        """Publish until another publisher does, or the stream fails. Raises Left at the end of `leave`."""
        questions = self._stream.questions
        async with (
            questions.answering(self._place, "board", self.answers.board),
            questions.answering(self._place, "may_read", self.answers.may_read),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self.feed.run(self))
            tasks.create_task(self.writer.run())
            tasks.create_task(self._keep_stating())
            tasks.create_task(self._stream.ended())
            tasks.create_task(self._end())

    async def _end(self) -> None:
        await self._left.wait()
        raise Left

    async def leave(self) -> None:
        """Publish everything committed until now, then end."""
        await self.feed.catch_up()
        await self.writer.until_written()
        self._left.set()

    @property
    def counts(self) -> Counts:
        """The counts of this turn."""
        return self.feed.counts + Counts(entries=self.writer.entries)

    @property
    def refused(self) -> bool:
        """Whether the turn ended because a batch itself was refused."""
        return self._refused or self.writer.refused

    # The sink: changes

    def __contains__(self, board: object) -> bool:
        return isinstance(board, str) and can_name(board, self._stream.room)

    def begin(self, epoch: Epoch, position: Snapshot, lost: Reason | None) -> None:
        """Append a state with the valid cursors, and whether continuity is broken."""
        if self._position is None:
            lost = lost or "journal_pruned"
        if self._parts:
            self._parts.clear()
            self._name = secrets.token_hex(6)
        self._epoch = epoch
        self._state(position, lost)

    def publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        """Append a batch or a part of one. A position alone waits for the next state."""
        try:
            self._publish(transactions, position)
        except Exception:
            self._refused = True
            raise

    def _publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        for part in self._parts_of(transactions):
            entries = [*fitted(part, self._stream.room)]
            self._parts[part.board] += len(entries)
            self.writer.queue(entries)
        if position is None:
            return
        if self._parts:
            self._commit(position)
        if time.monotonic() >= self._state_due:
            self._state(position)

    def _commit(self, position: Snapshot) -> None:
        end = End(str(self._position), str(position))
        self._step += 1
        self.writer.queue(commits(self._name, self._step, self._parts, end, self._stream.room))
        self._parts.clear()
        self._position = position

    def _parts_of(self, transactions: Iterable[Committed]) -> Iterator[Part]:
        """Gather the effects of transactions by board."""
        effects: defaultdict[str, list[Effect]] = defaultdict(list)
        for transaction in transactions:
            if transaction.sync:
                yield Part(
                    self._name, self._step + 1, [_effect(transaction, transaction.sync)], sync=transaction.sync
                )
                continue
            for board, meaning in transaction.messages(self).items():
                effects[board].append(_effect(transaction, meaning))
        for board, its_effects in effects.items():
            yield Part(self._name, self._step + 1, its_effects, board)

    # The sink: boards, which edges requested

    def begin_read(self, name: str) -> bool:
        return self.answers.begin_read(name)

    def abandon_read(self, name: str) -> None:
        self.answers.abandon_read(name)

    def synced(self, name: str, snapshot: Snapshot, data: bytes) -> None:
        assert self._epoch is not None, "the feed has begun before it reads a board"
        self.answers.synced(name, self._epoch.run, snapshot, data)

    def fail_read(self, name: str, error: Message) -> None:
        self.answers.refuse(name, error, final=False)  # edges ask again

    def refuse(self, name: str, error: Message) -> None:
        self.answers.refuse(name, error, final=True)

    # States

    def _state(self, position: Snapshot, lost: Reason | None = None) -> None:
        """Append a state with this position: everything visible there has been appended."""
        assert self._epoch is not None, "the feed has begun"
        self._state_due = time.monotonic() + STATE_SECONDS
        self._step += 1
        state = State(
            stream=self._id,
            publisher=self._name,
            step=self._step,
            after=str(self._position),
            position=str(position),
            run=self._epoch.run,
            keys=dict(self._epoch.keys),
            shape=self._epoch.shape,
            asked_at=self._place,
            lost=lost,
            problem=self.feed.problem and self.feed.problem[:PROBLEM_LETTERS],
            lag=self.feed.lag,
        )
        self._position = position
        self.writer.queue([Encoded.of(state)])

    async def _keep_stating(self) -> None:
        """Append states even while nothing comes from Postgres."""
        while True:
            await asyncio.sleep(STATE_SECONDS / 4)
            if self._position and not self._parts and time.monotonic() >= self._state_due + STATE_SECONDS / 2:
                self._state(self._position)


def _effect(transaction: Committed, meaning: Meaning) -> Effect:
    at = None if transaction.at is None else str(transaction.at)
    if isinstance(meaning, str):
        return Effect(transaction.xid, reason=meaning, at=at)
    return Effect(transaction.xid, [*map(extended, meaning)], at=at)


async def _assembled(stream: Stream, sequence: int, data: bytes, last: int) -> Assembly:
    """Read from a state to the end of the stream. Raises StreamBroken if the entries are inconsistent."""
    assembly = Assembly(decode_state(data), whole=True)
    async for each in stream.read(sequence + 1, last):
        for _ in assembly.take(decode(each.data)):
            pass  # only edges need the changes
    return assembly

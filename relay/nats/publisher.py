"""The publisher: tells edges through NATS JetStream what the feed of a database finds.

It takes the place of the hub: the feed hands it batches, and it appends them to the stream (stream.py, jetstream.py).
Where the stream ends is the feed's position; nothing is kept here. So whatever goes wrong, it looks where the stream
ends, and has the feed go on from there.

Rules:
- One publisher leads, and writes a state every second; others of the same stream stand by. The one with the oldest
  session in the database leads, so one that is gone, stands still or has no Postgres loses the lead in seconds. Of
  two that believe that they lead, JetStream lets only one append, for the other is wrong about the stream's end; that
  one begins again.
- The feed waits until JetStream has stored a batch, and meanwhile the next one gathers in the journal. While NATS is
  away, the journal keeps what is to come, as it does for a relay that is.
- It answers for the database: edges ask it for boards, and those who ask for the same one share a read.
- All boards are published, whether an edge follows them or not: it does not know. Only one whose name fits into no
  entry is not; edges refuse it.
- What could not be written twice, for what it is, is not written a third time: the stream begins again, and everybody
  is sent their boards.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog

from relay import logs
from relay.backoff import Backoff
from relay.config import Settings
from relay.hub.ports import Committed, Sink
from relay.model.cursor import Era, Reason
from relay.model.messages import Message, error
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, Status, StreamStatus
from relay.nats.jetstream import Refused, Stream, StreamError
from relay.nats.stream import (
    Assembly,
    BoardHead,
    BoardRefused,
    Encoded,
    End,
    Part,
    State,
    StreamBroken,
    Told,
    can_name,
    decode,
    fitted,
)
from relay.postgres.connection import complete
from relay.postgres.faults import FeedError, first_of
from relay.postgres.feed import UNAVAILABLE, Feed
from relay.postgres.lead import Lead

log = structlog.get_logger()

STATE_SECONDS: Final = 1.0
"""How often a state is written, at least."""

STAND_BY_SECONDS: Final = 0.25
"""How often a publisher that stands by asks whether it leads."""

FAILED_SECONDS: Final = 1.0
"""How long an edge waits for a board that could not be read the last time."""

PROBLEM_LETTERS: Final = 1000
"""So much of a problem is told to edges."""

LEAVE_SECONDS: Final = 5.0
"""How long a publisher that leaves waits for JetStream."""

_decode_questions: Final = msgspec.json.Decoder(list[tuple[dict[str, Any], str]]).decode


_Answer = asyncio.Future[tuple[bytes, bytes]]


class _Left(Exception):
    """The publisher has left the stream to others."""


class Publisher:
    """Publishes the feed of one database, in turn with other publishers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn: _Turn | None = None
        self._standing_by = False
        self._problem: str | None = "not connected yet"
        self._backoff = Backoff()
        # The batch that the last turn could not write, for what it is.
        self._refused: tuple[str, int] | None = None
        self._gives_up = False
        self._stopping = False
        self._before = Counts()

    async def run(self) -> None:
        """Publish until cancelled, or until it has left."""
        left = False
        while not left:
            pause = 0.0
            self._backoff.begin(time.monotonic())
            try:
                async with (
                    Stream.open(self._settings, self._settings.PUBLISH_TO, "publisher") as stream,
                    Lead.open(
                        complete(self._settings.DATABASE_URL), f"publisher of {self._settings.NATS_STREAM}"
                    ) as lead,
                ):
                    await self._take_part(stream, lead)
            except* _Left:
                left = True
            except* (StreamError, FeedError) as group:
                pause = self._failed(str(first_of(group)))
            except* Exception as group:
                fault = first_of(group)
                log.error("publisher.fault", exc_info=fault)  # noqa: TRY400  # of the group, its first
                pause = self._failed(f"{type(fault).__name__}: {fault}")
            finally:
                self._standing_by = False
            await asyncio.sleep(pause)

    async def _take_part(self, stream: Stream, lead: Lead) -> None:
        settings = self._settings
        await stream.make(settings.NATS_KEEP, settings.NATS_KEEP_BYTES, settings.NATS_REPLICAS)
        while not await lead.has():
            self._standing_by = True
            self._report(None)
            await asyncio.sleep(STAND_BY_SECONDS)
            await stream.bounds()  # it must be there when this one takes over
        self._standing_by = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lead.keep())
            tasks.create_task(self._lead(stream))

    async def _lead(self, stream: Stream) -> None:
        self._turn = await _Turn.take(stream, self._settings, begin_again=self._gives_up)
        self._report(None)
        log.info("publisher.active", stream=self._settings.NATS_STREAM)
        try:
            await self._turn.run()
        finally:
            self._before += self._turn.counts
            self._refused, refused = self._turn.refused, self._refused
            self._gives_up = self._refused is not None and self._refused == refused
            self._turn = None

    def _failed(self, fault: str) -> float:
        """Report why a turn has ended; return how many seconds to wait before the next."""
        self._report(fault)
        return self._backoff.fail(time.monotonic(), fault)

    def _report(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.error("publisher.problem", problem=problem)

    async def leave(self) -> None:
        """Publish what was committed until now, and leave the stream to others."""
        self._stopping = True
        if self._turn:
            await self._turn.leave()

    async def status(self) -> Status:
        """Tell how it is."""
        turn = self._turn
        budget = self._settings.HEALTH_BUDGET / 1000
        problem = (
            self._problem
            or self._backoff.recurring(time.monotonic())
            or (turn.feed.trouble(budget) if turn else None)
        )
        if self._stopping:
            problem = "the publisher is stopping"
        return Status(
            running=False,
            port=self._settings.WS_PORT,
            feed_up=problem is None,
            problem=problem,
            unready=problem
            or (None if self._standing_by or (turn and turn.feed.proven) else "nothing is proven yet"),
            lag_seconds=turn.feed.lag if turn else 0.0,
            database=turn.feed.database if turn else None,
            failing=turn.feed.failing if turn else {},
            stream=StreamStatus(
                connected=self._problem is None, active=turn is not None, entry=turn.last if turn else None
            ),
            counts=self._before
            + (turn.counts if turn else Counts())
            + Counts(entries=0, suppressed=logs.suppressed(), dropped=logs.dropped()),
        )


class _Turn(Sink):
    """What a publisher does while it is the active one: what the feed follows, and what edges ask.

    `last` is the stream's last entry. The publisher's name is new each time: parts of one turn are never taken for
    those of another. `refused` names the batch that could not be written, for what it is, if that ended the turn.
    """

    def __init__(self, stream: Stream, settings: Settings, before: Assembly | None, last: int) -> None:
        self.last = last
        self.entries = 0
        self.refused: tuple[str, int] | None = None
        self._stream = stream
        self._place = self._name = secrets.token_hex(6)
        self._id = before.state.stream if before else secrets.token_hex(6)
        # Where the stream is with all that is written, and that is queued to be.
        self._batch = before.batch if before else 0
        self._era = before.state.era if before else None
        self._position = before.position if before else None
        self._in_batch = False
        self._queued: list[Encoded] = []
        self._queue_filled = asyncio.Event()
        self._all_written = asyncio.Event()
        self._state_due = 0.0
        self._left = asyncio.Event()
        self._asked: dict[str, list[_Answer]] = {}
        self._reading: dict[str, list[_Answer]] = {}
        self.feed = Feed(settings.DATABASE_URL, self._era, self._position)

    @classmethod
    async def take(cls, stream: Stream, settings: Settings, *, begin_again: bool) -> _Turn:
        """Look where the stream ends, to go on from there, unless it is to begin again."""
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
        """Publish, until another publisher does or the stream cannot be used."""
        async with (
            self._stream.answering(self._place, "board", self._answer_board),
            self._stream.answering(self._place, "may_read", self._answer_may_read),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self.feed.run(self))
            tasks.create_task(self._write())
            tasks.create_task(self._keep_saying())
            tasks.create_task(self._stream.ended())
            tasks.create_task(self._end())

    async def _end(self) -> None:
        await self._left.wait()
        raise _Left

    @property
    def counts(self) -> Counts:
        """What has happened since it became active."""
        return self.feed.counts + Counts(entries=self.entries)

    async def leave(self) -> None:
        """Catch up, and end."""
        await self.feed.catch_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._all_written.wait()
        self._left.set()

    # What the feed says

    def __contains__(self, board: object) -> bool:
        return isinstance(board, str) and can_name(board, self._stream.room)

    def begin(self, era: Era, position: Snapshot, lost: Reason | None) -> None:
        """Say which cursors are good, and whether the stream goes on from where it was."""
        if self._position is None:
            lost = lost or "journal_pruned"
        if self._in_batch:
            # A batch without an end counts for nothing, as soon as another name shows that it will have none.
            self._in_batch = False
            self._name = secrets.token_hex(6)
        self._era = era
        self._say(position, lost)

    def publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        """Append a batch, or a part of one. A position alone waits for the next state."""
        try:
            self._publish(transactions, position)
        except Exception:
            self.refused = (self._id, self._batch + 1)
            raise

    def _publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        parts = list(self._parts(transactions, position))
        if position is None:
            self._in_batch = self._in_batch or bool(parts)
            self._queue_parts(parts)
            return
        if parts or self._in_batch:
            last = parts.pop() if parts else Part(self._name, self._batch + 1)
            end = End(str(self._position), str(position))
            self._queue_parts([*parts, msgspec.structs.replace(last, end=end)])
            self._batch += 1
            self._in_batch = False
            self._position = position
        if time.monotonic() >= self._state_due:
            self._say(position)

    def begin_read(self, name: str) -> bool:
        """Note that the feed begins to read a board, for all who have asked until now."""
        if name in self._reading or name not in self._asked:
            return False  # a read under way began before they asked
        self._reading[name] = self._asked.pop(name)
        return True

    def abandon_read(self, name: str) -> None:
        """Have it read again."""
        self._asked[name] = self._reading.pop(name, []) + self._asked.get(name, [])
        self.feed.ask(name)

    def synced(self, name: str, snapshot: Snapshot, data: bytes) -> None:
        """Answer who has asked for a board before it was read."""
        assert self._era is not None, "the feed has begun before it reads a board"
        head = msgspec.json.encode(BoardHead(self._era.run, str(snapshot)))
        for answer in self._reading.pop(name, []):
            if not answer.done():
                answer.set_result((head, data))
        if name in self._asked:
            self.feed.ask(name)

    def fail_read(self, name: str, error: Message) -> None:
        """Answer who has asked for a board that it cannot be read; they ask again."""
        self.refuse(name, error)

    def refuse(self, name: str, error: Message) -> None:
        """Answer who has asked for a board that it cannot be had."""
        for answer in self._reading.pop(name, []) + self._asked.pop(name, []):
            if not answer.done():
                answer.set_result((msgspec.json.encode(BoardRefused()), error.json))

    # What edges ask

    async def _answer_board(self, question: bytes) -> tuple[bytes, bytes] | None:
        name = question.decode(errors="replace")
        answer: _Answer = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        self.feed.ask(name)
        if name in self.feed.failing:
            # It is read again after a pause, for which no edge should wait.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAILED_SECONDS):
                    return await answer
            return msgspec.json.encode(BoardRefused()), error("board_unavailable", UNAVAILABLE, name).json
        return await answer

    async def _answer_may_read(self, question: bytes) -> tuple[bytes, bytes] | None:
        try:
            asked = _decode_questions(question)
        except msgspec.MsgspecError:
            return None
        return msgspec.json.encode(await self.feed.may_read(asked)), b""

    # Writing

    def _say(self, position: Snapshot, lost: Reason | None = None) -> None:
        """Append a state: all that is visible at this position has been appended."""
        assert self._era is not None, "the feed has begun"
        self._state_due = time.monotonic() + STATE_SECONDS
        state = State(
            stream=self._id,
            publisher=self._name,
            batch=self._batch,
            after=str(self._position),
            position=str(position),
            run=self._era.run,
            keys=dict(self._era.keys),
            shape=self._era.shape,
            asked_at=self._place,
            lost=lost,
            problem=self.feed.problem and self.feed.problem[:PROBLEM_LETTERS],
            lag=self.feed.lag,
        )
        self._position = position
        self._queue([Encoded.of(state)])

    async def _keep_saying(self) -> None:
        """See that there is a state every second, also while nothing comes from Postgres."""
        while True:
            await asyncio.sleep(STATE_SECONDS / 4)
            if self._position and not self._in_batch and time.monotonic() >= self._state_due + STATE_SECONDS / 2:
                self._say(self._position)

    def _queue_parts(self, parts: Iterable[Part]) -> None:
        self._queue(entry for part in parts for entry in fitted(part, self._stream.room))

    def _queue(self, entries: Iterable[Encoded]) -> None:
        self._queued.extend(entries)
        if self._queued:
            self._all_written.clear()
            self.feed.pause()
            self._queue_filled.set()

    async def _write(self) -> None:
        """Append what is queued; what is queued meanwhile goes with the next."""
        while True:
            await self._queue_filled.wait()
            entries, self._queued = self._queued, []
            try:
                self.last = await self._stream.append(entries, self.last)
            except Exception as ex:
                batches = [each.entry.batch for each in entries if isinstance(each.entry, Part)]
                if batches and (isinstance(ex, Refused) or not isinstance(ex, StreamError)):
                    self.refused = (self._id, batches[0])
                raise
            self.entries += len(entries)
            if not self._queued:
                self._queue_filled.clear()
                self._all_written.set()
                self.feed.go_on()

    def _parts(self, transactions: Iterable[Committed], position: Snapshot | None) -> Iterator[Part]:
        """Gather what transactions mean to each board."""
        told: defaultdict[str, list[Told]] = defaultdict(list)
        for transaction in transactions:
            if transaction.sync:
                yield Part(self._name, self._batch + 1, told=[Told(transaction.xid)], sync=transaction.sync)
                continue
            for board, messages in transaction.messages(self).items():
                if isinstance(messages, str):
                    told[board].append(Told(transaction.xid, reason=messages))
                else:
                    told[board].append(Told(transaction.xid, [msgspec.Raw(message.json) for message in messages]))
        for board, its in told.items():
            cursor = self._era.seal(board, position) if self._era and position else None
            yield Part(self._name, self._batch + 1, board, its, cursor=cursor)


async def _assembled(stream: Stream, sequence: int, data: bytes, last: int) -> Assembly:
    """Read from a state on. Raises StreamBroken if the entries do not follow each other."""
    state = decode(data)
    if not isinstance(state, State):
        raise StreamBroken("the last state is none")
    assembly = Assembly(state, whole=True)
    async for _, entry in stream.read(sequence + 1, last):
        for _ in assembly.take(decode(entry)):
            pass  # what it means is for edges
    return assembly

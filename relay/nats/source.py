"""The source of an edge: follows the stream of NATS JetStream, as `postgres.feed` follows a database.

What it finds goes to the hub: batches, each with the position that it leads to; and boards, and what resuming clients
missed. Boards it asks the publisher for; for those who resume it reads the stream again.

Rules:
- The stream is read whole and without a gap, from the last state that there is, or from where it was read to before.
  Where it does not go on from there, continuity is broken: everybody is sent their boards anew, and told why.
- A cursor is good while the stream holds what follows it. Each state marks a position in the stream: `_marks`. Who
  resumes is served with others, by reading from the last mark that the oldest of their cursors covers.
- A cursor may be ahead of what is read, for a client may come from a relay that is: it waits until it is not.
- Questions go to the publisher that wrote the last state. If it is silent, they are asked again, of whichever wrote
  the last one then. What cannot be asked is refused to those who want it, and holds up nobody else.
- Of the database it knows only what the publisher tells. It connects to NATS alone.
- A fault of the connection ends it; the edge connects again, with back-off and jitter, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Container, Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from relay.backoff import Backoff
from relay.config import Settings
from relay.hub.ports import Authorizer, Question, Resuming, Sink, Source, SourceStatus
from relay.model import messages as protocol
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, StreamStatus
from relay.nats.jetstream import Gap, Refused, Stream, StreamError
from relay.nats.stream import (
    Assembly,
    Batch,
    Begin,
    BoardHead,
    BoardRefused,
    Committed,
    Part,
    State,
    StreamBroken,
    can_name,
    decode,
)
from relay.postgres.faults import first_of
from relay.postgres.journal import RESUME_CHANGES
from relay.postgres.requests import Asked

log = structlog.get_logger()

SILENT_SECONDS: Final = 5.0
"""So long after the last entry, the publisher is missed."""

WANTED_SECONDS: Final = 10.0
"""A board or an answer that has been wanted for longer and is not here is a problem."""

ASK_AGAIN_SECONDS: Final = 0.25
"""How long after no publisher answered it is asked again."""

FAILED_SECONDS: Final = 1.0
"""How long after the publisher could not read a board it is asked for it again."""

ASKED_AT_ONCE: Final = 8
"""So many boards are asked for at once; never one of them twice."""

GATHER_SECONDS: Final = 0.05
"""How long after one read for resuming clients the next begins: meanwhile more of them gather."""

AHEAD_SECONDS: Final = 5.0
"""How long a cursor may be ahead of the stream, before it is taken for one of another database."""

RESUME_ENTRIES: Final = 100_000
"""So many entries are read for those who resume; if there are more, a `board.sync` costs everybody less."""

FORGET_SECONDS: Final = 60.0
"""How often the stream's beginning is looked at."""

CATCH_UP_SECONDS: Final = 5.0
"""How long an edge that is to stop may take to pass on what is in the stream."""


class _Mark(NamedTuple):
    """Where in the stream a state stands, the position that it is of, and the name of all that goes on from it."""

    sequence: int
    position: Snapshot
    stream: str


_decode_head: Final = msgspec.json.Decoder(BoardHead | BoardRefused).decode
_decode_answers: Final = msgspec.json.Decoder(list[bool]).decode


def _encode_questions(asked: Sequence[Question]) -> bytes:
    # A name that is no text names no board: any other that does not either has the same answer.
    return msgspec.json.encode([(claims, name.encode(errors="replace").decode()) for claims, name in asked])


class NatsSource(Source, Authorizer):
    """Follows the stream, and asks the publisher for boards."""

    def __init__(self, settings: Settings) -> None:
        self.problem: str | None = "not connected yet"
        self.transactions = self.sessions = self.entries = 0
        self.continuity_lost: Counter[str] = Counter()
        self._settings = settings
        self._backoff = Backoff()
        # Since when boards are wanted, and an answer, that are not here.
        self._wanted_since: dict[str, float] = {}
        # When boards are asked for again that could not be read.
        self._again_at: dict[str, float] = {}
        self._asked_since: float | None = None
        # Each board has its place in one of these: two reads of the same never cross.
        self._wanted: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in range(ASKED_AT_ONCE)]
        self._resuming: Resuming | None = None
        self._changes_wanted = asyncio.Event()
        self._questions: asyncio.Queue[Asked] = asyncio.Queue()
        self._assembly: Assembly | None = None
        self._last = 0
        self._marks: list[_Mark] = []
        self._last_heard = time.monotonic()
        self._began = False
        self._proven = False
        self._moved = asyncio.Condition()
        # While a batch is passed on in parts, nothing else is handed over.
        self._in_parts = False
        self._stream: Stream | None = None

    # What the hub, the server and the monitor ask, as of a feed

    def ask(self, board: str) -> None:
        """Have a board read, for the hub."""
        loop = asyncio.get_running_loop()
        if (again_at := self._again_at.pop(board, 0.0)) > loop.time():
            loop.call_at(again_at, self.ask, board)
            return
        self._wanted_since.setdefault(board, time.monotonic())
        self._wanted[hash(board) % ASKED_AT_ONCE].put_nowait(board)

    def ask_changes(self, resuming: Resuming) -> None:
        """Have the stream read for those who resume, for the hub."""
        self._resuming = resuming
        self._changes_wanted.set()

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Ask the publisher whether who has these claims may read this board, as soon as it is there."""
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(Asked(questions, answer))
        return await answer

    def trouble(self, budget: float) -> str | None:
        """Say in one line why changes do not come through, where a publisher has so many seconds to write."""
        now = time.monotonic()
        if problem := self.problem or self._backoff.recurring(now):
            return problem
        if (silent := now - self._last_heard) > max(budget, SILENT_SECONDS):
            return f"nothing has come from a publisher for {silent:.0f} seconds: does one run, and reach Postgres?"
        if said := self._assembly.state.problem if self._assembly else None:
            return f"the publisher says: {said}"
        return self._overdue(now)

    def _overdue(self, now: float) -> str | None:
        """Say in one line what has been wanted for too long."""
        since = min([*self._wanted_since.values(), self._asked_since or now])
        if now - since <= WANTED_SECONDS:
            return None
        wanted = len(self._wanted_since)
        return (
            f"{wanted} boards are wanted and not here, for up to {now - since:.0f} seconds: the publisher is too slow"
        )

    @property
    def proven(self) -> bool:
        """Whether an entry has come since the start."""
        return self._proven

    @property
    def lag(self) -> float:
        """All that was committed so many seconds ago has been passed on, but for what is on its way here."""
        return time.monotonic() - self._last_heard + (self._assembly.state.lag if self._assembly else 0.0)

    def status(self, budget: float) -> SourceStatus:
        """Tell how it is, where a publisher has so many seconds to write."""
        problem = self.trouble(budget)
        return SourceStatus(
            up=self.problem is None,
            problem=problem,
            unready=problem or (None if self.proven else "nothing has come from a publisher yet"),
            lag_seconds=self.lag,
            counts=Counts(
                reconnects=max(0, self.sessions - 1),
                continuity_lost=self.continuity_lost,
                transactions=self.transactions,
                entries=self.entries,
            ),
            stream=StreamStatus(connected=self._stream is not None, entry=self._last or None),
        )

    async def catch_up(self) -> bool:
        """Wait until all is passed on that is in the stream now; false if it cannot be read or takes too long."""
        if self.problem or self._stream is None:
            return False
        with contextlib.suppress(TimeoutError, StreamError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                last = (await self._stream.bounds()).last
                async with self._moved:
                    await self._moved.wait_for(lambda: self._last >= last)
                return True
        return False

    # Running

    async def run(self, hub: Sink) -> None:
        """Feed the hub until cancelled."""
        while True:
            pause = 0.0
            self._backoff.begin(time.monotonic())
            try:
                async with Stream.open(self._settings, self._settings.SERVE_FROM, "edge") as self._stream:
                    self.sessions += 1
                    await self._begin(self._stream, hub)
                    await self._follow(self._stream, hub)
            except* (StreamError, StreamBroken) as group:
                first = first_of(group)
                if isinstance(first, StreamBroken | Gap):
                    self._assembly = None
                self._report(str(first))
                pause = self._backoff.fail(time.monotonic(), str(first))
            except* Exception as group:
                fault = first_of(group)
                log.error("feed.fault", exc_info=fault)  # noqa: TRY400  # of the group, its first
                self._assembly = None
                self._report(f"{type(fault).__name__}: {fault}")
                pause = self._backoff.fail(time.monotonic(), str(fault))
            finally:
                self._stream = None
            await asyncio.sleep(pause)

    def _report(self, problem: str | None) -> None:
        """Log what changed, once."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)

    async def _begin(self, stream: Stream, hub: Sink) -> None:
        """Go on from where the stream was read to, if what follows is there; else from its last state."""
        bounds = await stream.bounds()
        self._marks = [mark for mark in self._marks if mark.sequence >= bounds.first]
        if self._assembly and bounds.first - 1 <= self._last <= bounds.last:
            return
        self._marks = []
        state = None
        for sequence, data in await stream.states():
            try:
                state = _state(data)
            except StreamBroken:  # a stranger's, which nobody resumes from before
                state, self._marks = None, []
            else:
                self._mark(sequence, state)
        if state is None:
            raise StreamError(f"stream {self._settings.NATS_STREAM} is empty: is relay publish running?")
        self._last = self._marks[-1].sequence
        self._assembly = Assembly(state)
        self._in_parts = False
        self._tell_break(hub, Begin(state.era, self._assembly.position, "journal_pruned" if self._began else None))
        self._began = True

    def _tell_break(self, hub: Sink, begin: Begin) -> None:
        if begin.lost:
            self.continuity_lost[begin.lost] += 1
            log.warning("feed.continuity_lost", reason=begin.lost)
        hub.begin(begin.era, begin.position, begin.lost)

    def _mark(self, sequence: int, state: State) -> None:
        """Note where in the stream a position is; nobody resumes from before one that it does not go on from."""
        if self._marks and (state.lost or state.stream != self._marks[-1].stream):
            self._marks = []
        self._marks.append(_Mark(sequence, Snapshot.parse(state.position), state.stream))

    async def _follow(self, stream: Stream, hub: Sink) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stream, hub))
            for wanted in self._wanted:
                tasks.create_task(self._read_boards(stream, hub, wanted))
            tasks.create_task(self._read_missed(stream, hub))
            tasks.create_task(self._answer(stream))
            tasks.create_task(self._forget_marks(stream))
            tasks.create_task(self._watch(stream))
            tasks.create_task(stream.ended())

    # The stream

    async def _read(self, stream: Stream, hub: Sink) -> None:
        self._report(None)
        async for entries in stream.follow(self._last + 1):
            self._pass_on(hub, entries)
            self._last_heard = time.monotonic()
            self._proven = True
            async with self._moved:
                self._moved.notify_all()

    def _pass_on(self, hub: Sink, entries: Sequence[tuple[int, bytes]]) -> None:
        """Tell the hub what came together: as one batch, unless a batch is so large that it comes in parts."""
        assert self._assembly, "it has begun"
        gathered: list[Committed] = []
        for sequence, data in entries:
            entry = decode(data)
            for found in self._assembly.take(entry):
                if isinstance(found, Batch) and found.position and not self._in_parts:
                    gathered += found.transactions
                    position = found.position
                    continue
                if gathered:
                    hub.publish(gathered, position)
                    gathered = []
                self._pass_on_alone(hub, found)
            if isinstance(entry, State):
                self._mark(sequence, entry)
            self._last = sequence
        self.entries += len(entries)
        if not self._in_parts:
            self.transactions += len({one.xid for one in gathered})
            hub.publish(gathered, self._assembly.position)

    def _pass_on_alone(self, hub: Sink, found: Batch | Begin) -> None:
        if isinstance(found, Begin):
            self._in_parts = False
            self._tell_break(hub, found)
        else:
            self._in_parts = found.position is None
            hub.publish(found.transactions, found.position)

    @contextlib.asynccontextmanager
    async def _between_batches(self) -> AsyncIterator[None]:
        async with self._moved:
            await self._moved.wait_for(lambda: not self._in_parts)
            yield

    async def _watch(self, stream: Stream) -> None:
        """See that the stream is not one from before, where nothing comes for long."""
        while True:
            await asyncio.sleep(SILENT_SECONDS / 2)
            if time.monotonic() - self._last_heard > SILENT_SECONDS and (await stream.bounds()).last < self._last:
                raise StreamBroken(f"stream {self._settings.NATS_STREAM} ends before what was read of it")

    # Boards, and what was missed

    async def _read_boards(self, stream: Stream, hub: Sink, wanted: asyncio.Queue[str]) -> None:
        """Read boards, one after another: an answer to who has left must not be taken for that to who came since."""
        while True:
            name = await wanted.get()
            if not hub.begin_read(name):
                self._wanted_since.pop(name, None)
                continue
            try:
                if await self._read_board(stream, hub, name):
                    self._wanted_since.pop(name, None)
                else:
                    await asyncio.sleep(ASK_AGAIN_SECONDS)
                    self._abandon(hub, name)
            except BaseException:
                self._abandon(hub, name)
                raise

    async def _read_board(self, stream: Stream, hub: Sink, name: str) -> bool:
        """Hand over a board, or why it cannot be had; false if it must be asked for again."""
        if not can_name(name, stream.room):
            hub.refuse(name, _too_long(name))
            return True
        if (answer := await self._ask_board(stream, name)) is None:
            return False
        if isinstance(answer, protocol.Message):
            self._again_at[name] = asyncio.get_running_loop().time() + FAILED_SECONDS
            hub.fail_read(name, answer)
            return True
        async with self._between_batches():
            hub.synced(name, *answer)
        return True

    def _abandon(self, hub: Sink, name: str) -> None:
        """Have a board asked for again, if anybody wants it still."""
        since = self._wanted_since.pop(name, time.monotonic())
        hub.abandon_read(name)
        if name in self._wanted_since:
            self._wanted_since[name] = since

    async def _ask_board(self, stream: Stream, name: str) -> tuple[Snapshot, bytes] | protocol.Message | None:
        """Ask the publisher for a board: the board or an error; None if there is no answer that is of use here."""
        assert self._assembly, "it has begun"
        if not (answer := await stream.ask(self._assembly.state.asked_at, "board", name.encode())):
            return None
        head, body = _decode_head(answer[0]), answer[1]
        if isinstance(head, BoardRefused):
            return protocol.Message("error", body)
        if head.run != self._assembly.state.run:
            return None  # of another run of the server
        return Snapshot.parse(head.snapshot), body

    async def _read_missed(self, stream: Stream, hub: Sink) -> None:
        while True:
            await self._changes_wanted.wait()
            self._changes_wanted.clear()
            if self._resuming is None or (resume := self._resuming.begin_resume()) is None:
                continue
            try:
                await self._until_at(resume.newest)
                async with self._between_batches():
                    now, last = self._position, self._last
                first = self._mark_before(resume.oldest, last)
                for name in resume.boards:
                    if not can_name(name, stream.room):
                        hub.refuse(name, _too_long(name))
                transactions = await self._missed(stream, first, last, resume.boards)
                async with self._between_batches():
                    self._resuming.resumed(now, transactions, first.position)
            except BaseException:
                self._resuming.abandon_resume()
                raise
            await asyncio.sleep(GATHER_SECONDS)

    @property
    def _position(self) -> Snapshot:
        assert self._assembly, "it has begun"
        return self._assembly.position

    async def _until_at(self, cursor: Snapshot) -> None:
        """Wait until a cursor is not ahead of the stream, for some time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AHEAD_SECONDS), self._moved:
                await self._moved.wait_for(lambda: self._position.covers(cursor))

    def _mark_before(self, cursor: Snapshot, last: int) -> _Mark:
        """Choose where to read from: the last mark that this cursor covers, unless that is too far."""
        after = bisect_left(self._marks, True, key=lambda mark: not cursor.covers(mark.position))
        near = bisect_left(self._marks, last - RESUME_ENTRIES, key=lambda mark: mark.sequence)
        return self._marks[min(max(after - 1, near), len(self._marks) - 1)]

    async def _missed(
        self, stream: Stream, first: _Mark, last: int, boards: Container[str]
    ) -> Sequence[Committed] | None:
        """Read what these boards were told since a mark; None if it is too much, or no longer there."""
        assembly: Assembly | None = None
        missed: list[Committed] = []
        try:
            async for _, data in stream.read(first.sequence, last):
                entry = decode(data)
                if assembly is None:
                    assembly = Assembly(_state(data), whole=True)
                    continue
                if isinstance(entry, Part) and entry.board is not None and entry.board not in boards:
                    entry = msgspec.structs.replace(entry, told=[])
                for found in assembly.take(entry):
                    if isinstance(found, Batch):
                        missed += found.transactions
                if len(missed) > RESUME_CHANGES:
                    return None
        except (Gap, StreamBroken):
            return None
        return missed

    async def _answer(self, stream: Stream) -> None:
        while True:
            asked = await self._questions.get()
            self._asked_since = self._asked_since or time.monotonic()
            try:
                answers = await self._ask_may_read(stream, asked.questions)
            except BaseException:
                self._questions.put_nowait(asked)
                raise
            if answers is None:
                await asyncio.sleep(ASK_AGAIN_SECONDS)
                self._questions.put_nowait(asked)
                continue
            self._asked_since = None
            if not asked.answer.done():
                asked.answer.set_result(answers)

    async def _ask_may_read(self, stream: Stream, asked: Sequence[Question]) -> Sequence[bool] | None:
        """Ask the publisher, in questions that NATS takes; what is too long to be asked may not be read."""
        assert self._assembly, "it has begun"
        try:
            found = await stream.ask(self._assembly.state.asked_at, "may_read", _encode_questions(asked))
        except Refused as ex:
            if len(asked) == 1:
                log.warning("access.may_read_failed", problem=str(ex))
                return [False]
        else:
            return _decode_answers(found[0]) if found else None
        half = len(asked) // 2
        first = await self._ask_may_read(stream, asked[:half])
        second = first and await self._ask_may_read(stream, asked[half:])
        return [*first, *second] if first and second else None

    async def _forget_marks(self, stream: Stream) -> None:
        """Forget where positions were of which the stream no longer has what follows."""
        while True:
            await asyncio.sleep(FORGET_SECONDS)
            first = (await stream.bounds()).first
            self._marks = [mark for mark in self._marks if mark.sequence >= first] or self._marks[-1:]


def _too_long(name: str) -> protocol.Message:
    return protocol.error(
        "invalid_board_id", f"boardId has {len(name)} letters, of which NATS takes fewer, or is no text"
    )


def _state(data: bytes) -> State:
    state = decode(data)
    if not isinstance(state, State):
        raise StreamBroken("an entry is no state: expected one")
    return state

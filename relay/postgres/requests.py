"""What a sink requests from its feed: boards, what resuming clients missed, and who may read what.

Rules:
- Requests outlive sessions: if one session ends before it answers, the next one answers.
- Clients that resume are served together: by one read of the journal from the oldest of their cursors, and then a
  pause in which more gather. So ten thousand clients that return at once cost Postgres a handful of queries.
- A board that cannot be read is read again later, with back-off; faults.py decides what ends the session instead.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog

from relay.backoff import Backoff
from relay.hub.ports import Question, Resuming, Sink
from relay.model import messages
from relay.postgres.boards import READ_SECONDS, SIDE_BY_SIDE
from relay.postgres.faults import BoardMisnamed, Scope, scope_of
from relay.postgres.journal import Batch
from relay.postgres.position import Position
from relay.postgres.session import Session
from relay.postgres.turns import Turns
from relay.text import error_line

log = structlog.get_logger()

UNAVAILABLE: Final = "this board cannot be read at present: it comes as soon as it can"
"""The error that subscribers get for a board that cannot be read. The log has the details."""

GATHER_SECONDS: Final = 0.25
"""Maximum pause between two reads of one board, and the pause between two reads of the journal for resuming clients.
Meanwhile more clients gather, whom the next read serves."""

GATHER_SHARE: Final = 4
"""Length of the pause between two reads of one board, as a multiple of the time that the read took."""

SLOW_SECONDS: Final = 1.0
"""If the read of a board takes longer, it is read as a slow one, this time and the next time."""

SLOW_BOARDS: Final = 10_000
"""Maximum number of slow boards that are remembered."""

LONGEST_RETRY_SECONDS: Final = 30.0
"""Maximum pause until a board that could not be read is read again."""


class BoardQueue:
    """The boards to read, each not before its pause is over.

    Boards that failed or were slow the last time have a queue of their own, so that they do not delay others. A board
    is never read twice at once. If it is requested while it is being read, it is read again afterwards, because the
    current read may lack what was committed since it began.
    """

    def __init__(self) -> None:
        self._due: Mapping[bool, Turns] = {False: Turns(), True: Turns()}
        self._paused_until: dict[str, float] = {}
        # The boards that are being read, and those of them that must be read again afterwards.
        self._reading: set[str] = set()
        self._again: dict[str, object] = {}
        self._slow: dict[str, None] = {}
        self._failed: dict[str, tuple[str, Backoff]] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """The boards that cannot be read, and why not, in one line."""
        return {board: problem for board, (problem, _) in self._failed.items()}

    def put(self, board: str, by: object = None) -> None:
        """Have a board read; boards of different `by` take turns."""
        if board in self._reading:
            self._again[board] = by
            return
        queue = self._due[board in self._failed or board in self._slow]
        if board in self._paused_until:
            asyncio.get_running_loop().call_at(self._paused_until[board], queue.put, board, by)
        else:
            queue.put(board, by)

    async def get(self, *, slow: bool = False) -> str:
        """Wait for a board that is due, from the slow ones or the others. The caller must call `done` afterwards."""
        while (board := await self._due[slow].get()) in self._reading:
            self._again[board] = None
        self._reading.add(board)
        return board

    def done(self, board: str) -> None:
        """Note that a board is not being read any more."""
        self._reading.discard(board)
        if board in self._again:
            self.put(board, self._again.pop(board))

    def forget(self, board: str) -> None:
        """Note that nobody wants a board any more."""
        self._failed.pop(board, None)

    def has_read(self, board: str, seconds: float) -> None:
        """Note that a board has been read, and how many seconds that took."""
        self._failed.pop(board, None)
        self._slow.pop(board, None)
        if seconds > SLOW_SECONDS:
            self.is_slow(board)
        self._pause(board, min(GATHER_SHARE * seconds, GATHER_SECONDS))

    def is_slow(self, board: str) -> None:
        """Note that reading a board takes long."""
        self._slow[board] = None
        if len(self._slow) > SLOW_BOARDS:
            del self._slow[next(iter(self._slow))]

    def has_failed(self, board: str, problem: str) -> bool:
        """Note that a board could not be read, and why; return whether this is a new problem."""
        known, backoff = self._failed.get(board, (None, Backoff(longest=LONGEST_RETRY_SECONDS)))
        self._failed[board] = problem, backoff
        self._pause(board, backoff.fail(-math.inf, problem))
        return problem != known

    def _pause(self, board: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._paused_until[board] = until = loop.time() + seconds
        loop.call_at(until, self._end_pause, board, until)

    def _end_pause(self, board: str, until: float) -> None:
        if self._paused_until.get(board) == until:
            del self._paused_until[board]


class BoardReader:
    """Reads boards when asked, up to `SIDE_BY_SIDE` at once."""

    def __init__(self) -> None:
        self._queue = BoardQueue()

    @property
    def failing(self) -> Mapping[str, str]:
        """The boards that cannot be read, and why not, in one line."""
        return self._queue.failing

    def ask(self, board: str, by: object = None) -> None:
        """Have a board read; boards of different `by` take turns."""
        self._queue.put(board, by)

    async def run(self, session: Session, sink: Sink, between_batches: asyncio.Lock) -> None:
        """Read boards for one session, and hand each over between two batches."""
        reads = BoardReads(self._queue, session, sink, between_batches)
        async with asyncio.TaskGroup() as tasks:
            for number in range(SIDE_BY_SIDE):
                tasks.create_task(reads.run(slow=number == 0))


@dataclass(frozen=True, slots=True)
class BoardReads:
    """The reads of boards in one session."""

    queue: BoardQueue
    session: Session
    sink: Sink
    between_batches: asyncio.Lock

    async def run(self, *, slow: bool) -> None:
        """Read boards one after another: slow ones, or the others."""
        while True:
            name = await self.queue.get(slow=slow)
            try:
                if self.sink.begin_read(name):
                    await self._read(name, slow=slow)
                else:
                    self.queue.forget(name)
            finally:
                self.queue.done(name)

    async def _read(self, name: str, *, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            snapshot, data = await self.session.boards.read(name, READ_SECONDS if slow else SLOW_SECONDS)
            self.queue.has_read(name, loop.time() - began)
            async with self.between_batches:
                self.sink.synced(name, snapshot, data)
        except BoardMisnamed as ex:
            self.queue.has_read(name, loop.time() - began)
            self.sink.refuse(name, messages.error("invalid_board_id", str(ex), name))
        except BaseException as ex:
            if not self._retry_after(ex, name, slow=slow):
                raise

    def _retry_after(self, ex: BaseException, name: str, *, slow: bool) -> bool:
        """Have a board that could not be read read again later; return false if the fault is not the board's."""
        if isinstance(ex, psycopg.errors.QueryCanceled) and not slow:
            self.queue.is_slow(name)
            self.sink.abandon_read(name)
            return True
        if scope_of(ex, reading_board=True) is not Scope.BOARD:
            self.sink.abandon_read(name)
            return False
        problem = error_line(ex)
        if self.queue.has_failed(name, problem):
            log.error("feed.board_failed", board=name[:100], problem=problem)
        # Even if nobody follows it any more: the next attempt finds that out, and forgets the failure.
        self.queue.put(name)
        self.sink.fail_read(name, messages.error("board_unavailable", UNAVAILABLE, name))
        return True


class MissedReader:
    """Reads what resuming clients missed."""

    def __init__(self, position: Position) -> None:
        self._position = position
        self._resuming: Resuming | None = None
        self._asked = asyncio.Event()

    def ask(self, resuming: Resuming) -> None:
        """Have the journal read for those who resume."""
        self._resuming = resuming
        self._asked.set()

    async def run(self, session: Session, between_batches: asyncio.Lock) -> None:
        """Read for one session, and hand over what is found between two batches."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._resuming is None or (resume := self._resuming.begin_resume()) is None:
                continue
            try:
                batch = await session.journal_of_missed.missed(resume.oldest, resume.boards)
                async with between_batches:
                    self._hand_over(self._resuming, batch)
            except BaseException:
                self._resuming.abandon_resume()
                raise
            await asyncio.sleep(GATHER_SECONDS)

    def _hand_over(self, resuming: Resuming, batch: Batch) -> None:
        if batch.paused:
            resuming.resumed(batch.now, None, batch.horizon)
        elif batch.stamp != self._position.stamp:
            resuming.abandon_resume()  # the follower will compare the shape
        else:
            self._position.mark_outdated(batch.transactions or ())
            resuming.resumed(batch.now, batch.transactions, batch.horizon)


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions asked together, and the future for their answers."""

    questions: Sequence[Question]
    answer: asyncio.Future[Sequence[bool]]


class Permissions:
    """Asks the database who may read what."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Asked] = asyncio.Queue()

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Answer as soon as the database is there."""
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait(Asked(questions, answer))
        return await answer

    async def run(self, session: Session) -> None:
        """Answer for one session."""
        while True:
            asked = await self._asked.get()
            try:
                answers = await session.may_read(asked.questions)
            except BaseException:
                self._asked.put_nowait(asked)
                raise
            if not asked.answer.done():
                asked.answer.set_result(answers)

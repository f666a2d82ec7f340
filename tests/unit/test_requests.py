"""The boards that a feed is to read: when, and how many at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from relay.hub.ports import Resume, Resuming, Sink
from relay.model.snapshot import Snapshot
from relay.postgres import boards as board_module
from relay.postgres import requests
from relay.postgres.boards import Boards
from relay.postgres.faults import IdsClash
from relay.postgres.journal import Batch
from relay.postgres.position import Position
from relay.postgres.requests import BoardQueue, BoardReads, MissedReader
from relay.postgres.session import Session
from relay.postgres.unshown import Unshown
from relay.postgres.watches import Watches
from tests.unit import tasks as tasks_unit


async def test_a_board_is_not_read_twice_at_once() -> None:
    """It is read again when the first read is over, for clients that have come since."""
    queue = BoardQueue()
    queue.put("a")
    assert await queue.get(slow=False) == "a"
    queue.put("a")
    queue.put("b")
    assert await queue.get(slow=False) == "b"
    again = asyncio.create_task(queue.get(slow=False))
    await asyncio.sleep(0)
    assert not again.done()
    queue.done("b")
    queue.done("a")
    assert await again == "a"


async def test_a_board_that_failed_waits_for_longer_and_longer_in_a_queue_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.05)
    queue = BoardQueue()
    assert queue.has_failed("a", "locked")
    assert not queue.has_failed("a", "locked")
    assert queue.failing == {"a": "locked"}
    queue.put("a")
    queue.put("b")
    assert await queue.get(slow=False) == "b"
    assert await queue.get(slow=True) == "a"
    queue.has_read("a", 0.0)
    queue.done("a")
    assert queue.failing == {}
    queue.put("a")
    assert await queue.get(slow=False) == "a"


async def test_a_board_that_took_long_waits_with_those_that_do_until_it_is_quick() -> None:
    queue = BoardQueue()
    queue.has_read("a", requests.SLOW_SECONDS * 1.1)
    queue.put("a")
    assert await queue.get(slow=True) == "a"
    queue.has_read("a", 0.0)
    queue.done("a")
    queue.put("a")
    assert await queue.get(slow=False) == "a"


async def test_all_that_want_boards_take_turns() -> None:
    """Whoever comes after another that wants many waits for one of them."""
    queue = BoardQueue()
    for board in "abc":
        queue.put(board, "one")
    queue.put("x", "two")
    queue.put("y", "two")
    assert [await queue.get(slow=False) for _ in range(5)] == ["a", "x", "b", "y", "c"]


class _Failing:
    """A session in which no board can be read, and a sink that wants a board once."""

    def __init__(self) -> None:
        self.boards = self
        self.wanted = True
        self.given_up = asyncio.Event()

    async def read(self, name: str, seconds: float) -> Any:  # noqa: ARG002
        raise IdsClash("two have one id")

    def begin_read(self, name: str) -> bool:  # noqa: ARG002
        if not self.wanted:
            self.given_up.set()
        return self.wanted

    def fail_read(self, name: str, error: object) -> None:  # noqa: ARG002
        self.wanted = False


async def test_a_board_that_failed_and_that_all_have_left_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no problem any more, and takes no memory."""
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.05)
    failing = _Failing()
    queue = BoardQueue()
    reads = BoardReads(queue, cast(Session, failing), cast(Sink, failing), asyncio.Lock())
    tasks = [asyncio.create_task(reads.run(slow=slow)) for slow in (False, True)]
    queue.put("a")
    await failing.given_up.wait()
    await asyncio.sleep(0)
    assert queue.failing == {}
    for task in tasks:
        task.cancel()


async def test_which_tables_have_no_row_on_a_board_is_not_known_if_their_shape_changed_during_the_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rewrite of a table is in no journal."""

    class Two:
        by_id = {1: tasks_unit.WATCH, 2: tasks_unit.WATCH}  # noqa: RUF012

    async def connect() -> Any:
        return _Silent()

    async def read(*_: object) -> Any:
        boards.note_shape(shapes.pop())
        return board_module._Found(Snapshot.parse("10:10:"), [])  # noqa: SLF001

    boards = Boards(cast(Watches, Two()), connect, cast(Any, None), Unshown())
    shapes = ["old", "old", "new"]
    boards.note_shape("old")
    monkeypatch.setattr(board_module, "_rows", read)
    await boards.read("a", 1.0)
    assert boards._absent == {}  # noqa: SLF001
    boards.note_shape("old")
    await boards.read("a", 1.0)
    assert boards._absent.keys() == {"a"}  # noqa: SLF001


class _Silent:
    async def rows(self, *_: object) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("stamp", "paused", "handed_over"), [("1", False, True), ("2", False, False), ("2", True, True)]
)
async def test_what_was_missed_is_handed_over_in_the_shape_that_the_feed_knows(
    stamp: str, paused: bool, handed_over: bool
) -> None:
    """Of another shape, it is asked for again; where changes were not journalled, the shape is no matter."""
    now = Snapshot.parse("10:10:")

    class Reader:
        journal_of_missed = property(lambda self: self)

        async def missed(self, *_: object) -> Batch:
            return Batch(now, [], now, stamp, paused=paused)

    class Returning:
        def __init__(self) -> None:
            self.calls: list[str] = []
            self.called = asyncio.Event()

        def begin_resume(self) -> Resume:
            return Resume(now, now, frozenset("b"))

        def resumed(self, *_: object) -> None:
            self.calls.append("resumed")
            self.called.set()

        def abandon_resume(self) -> None:
            self.calls.append("abandoned")
            self.called.set()

    position, returning = Position(), Returning()
    position.stamp = "1"
    reader = MissedReader(position)
    reader.ask(cast(Resuming, returning))
    reading = asyncio.create_task(reader.run(cast(Session, Reader()), asyncio.Lock()))
    await returning.called.wait()
    reading.cancel()
    assert returning.calls == ["resumed" if handed_over else "abandoned"]

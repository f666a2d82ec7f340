"""The boards that a feed is to read: when, and how many at once."""

from __future__ import annotations

import asyncio

import pytest

from relay.postgres import requests
from relay.postgres.requests import BoardQueue


async def test_a_board_is_not_read_twice_at_once() -> None:
    """It is read again when the first read is over, for those who have come since."""
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

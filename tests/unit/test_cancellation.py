"""A cancellation is kept, whatever a library makes of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relay.cancellation import kept_cancellation


async def test_a_cancellation_that_meets_the_end_of_a_wait_is_kept() -> None:
    """The task ends, although what it waited for came at the same moment."""
    awaited = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        with kept_cancellation():
            await asyncio.wait_for(awaited, 10)
        pytest.fail("the task went on")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    awaited.set_result(None)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_before_does_not_end_the_block() -> None:
    """A task that cleans up after its own cancellation may wait for what that takes."""

    async def wait() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        with kept_cancellation():
            await asyncio.sleep(0)
        return "cleaned up"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    assert await task == "cleaned up"

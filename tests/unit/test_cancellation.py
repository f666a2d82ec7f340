"""A cancellation is kept, whatever a library makes of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relay.cancellation import in_own_task, kept_cancellation


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


async def test_a_cancellation_that_meets_the_fault_of_a_task_is_kept() -> None:
    """A task group that already ends for a fault of its own would report that alone."""
    ending, end = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        raise ValueError

    async def take_time_to_end() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ending.set()
            await end.wait()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(take_time_to_end())
            tasks.create_task(fail())

    task = asyncio.create_task(in_own_task(run()))
    await ending.wait()
    task.cancel()
    await asyncio.sleep(0)
    end.set()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_fault_of_a_task_alone_is_not_a_cancellation() -> None:
    """The next group of the same task is run."""

    async def fail() -> None:
        raise ValueError

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    for _ in range(2):
        with pytest.raises(ExceptionGroup):
            await in_own_task(run())

"""Keeps cancellations that asyncio would lose.

Up to Python 3.11, `asyncio.wait_for`, which psycopg and nats-py use, loses a cancellation that coincides with the end
of what it waits for. Up to Python 3.12, `asyncio.TaskGroup` loses one that coincides with the failure of one of its
tasks. A task cancelled at such a moment would continue forever, and so would the task group that cancelled it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def kept_cancellation() -> Iterator[None]:
    """Raise CancelledError after this block if the current task was cancelled within it, even if that was lost.

    Cancellations before the block, by surrounding task groups and timeouts, do not count.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


async def in_own_task(work: Coroutine[object, object, T]) -> T:
    """Await work that opens a task group, and raise CancelledError if the current task was cancelled meanwhile.

    The work runs in its own task, because a failing task group marks its task as cancelled, and up to Python 3.12
    does not undo that.
    """
    with kept_cancellation():
        return await asyncio.create_task(work)

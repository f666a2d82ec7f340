"""Keeps cancellations that libraries lose. Usable by all rooms.

Up to Python 3.11, `asyncio.wait_for` loses a cancellation that meets the end of what it waits for. psycopg and
nats-py wait with it. Up to Python 3.12, `asyncio.TaskGroup` loses one that meets the fault of a task of its own. A
task that is cancelled at such a moment would go on forever, and the task group that cancelled it would wait forever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def kept_cancellation() -> Iterator[None]:
    """End the current task after this block if it was cancelled within, even if the block lost that.

    Counts from the beginning of the block: task groups and timeouts around it may have cancelled before.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


async def in_own_task(work: Coroutine[object, object, T]) -> T:
    """Await work that opens a task group, and end the current task if it was cancelled meanwhile.

    A task of its own does the work, for a task group marks the task that it is in as cancelled when it ends for a
    fault, and up to Python 3.12 leaves it so.
    """
    with kept_cancellation():
        return await asyncio.create_task(work)

"""The end of a connection, which is aborted when it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

CLOSE_SECONDS: Final = 3.0
"""Timeout since the client last took some of its backlog."""

LAST_SECONDS: Final = 8.0
"""Timeout for the whole backlog and the close."""


class Ending:
    """Aborts a connection that does not end in time."""

    __slots__ = ("_abort", "_last_moment", "_timer")

    def __init__(self, abort: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._abort = abort
        self._last_moment = loop.time() + LAST_SECONDS
        self._timer = loop.call_later(CLOSE_SECONDS, abort)

    def moved(self) -> None:
        """Restart the timeout, because the client took some of its backlog."""
        self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(CLOSE_SECONDS, self._last_moment - loop.time()), self._abort)

    def cancel(self) -> None:
        """Stop: the connection has ended."""
        self._timer.cancel()

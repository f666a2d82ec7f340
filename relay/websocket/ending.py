"""The end of a connection: cut off when it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

CLOSE_SECONDS: Final = 3.0
"""Timeout of the end of a connection, from when the client last took some of what waits for it."""

LAST_SECONDS: Final = 8.0
"""Timeout for all that waits for a client whose connection is to end."""


class Ending:
    """The end of a connection: cuts it off when it takes too long. The client has some seconds for each step."""

    __slots__ = ("_abort", "_last_moment", "_timer")

    def __init__(self, abort: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._abort = abort
        self._last_moment = loop.time() + LAST_SECONDS
        self._timer = loop.call_later(CLOSE_SECONDS, abort)

    def moved(self) -> None:
        """Give the client time again, for it took some of what waits for it."""
        self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(CLOSE_SECONDS, self._last_moment - loop.time()), self._abort)

    def cancel(self) -> None:
        """Cut nothing off: the connection has ended."""
        self._timer.cancel()

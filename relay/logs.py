"""The log: to standard error, one JSON object a line for machines, readable text for a terminal.

Rules:
- A line is one thing that happened; its `event` says what, in two words, the first of which is the part of the relay.
- Levels: `error` is for what somebody must see to, `warning` for what may become that or cost clients something,
  `info` for everything else.
- Of one event, no more than `BURST` lines at once and `LINES_A_SECOND` after that: whoever floods the relay shall not
  fill the disk as well. The next line of that event says how many were `suppressed` before it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from typing import Final

import structlog
from structlog.typing import EventDict, Processor

BURST: Final = 500
LINES_A_SECOND: Final = 50

_NAMES: Final = {"websocket": "WebSocket"}
"""What parts are called in the guide, whose users look for these words in the log."""


class Flood:
    """Lets so many lines of each event through, and no more."""

    def __init__(self) -> None:
        self.suppressed = 0
        self._left: defaultdict[str, float] = defaultdict(lambda: float(BURST))
        self._counted: dict[str, float] = {}
        self._since: defaultdict[str, int] = defaultdict(int)

    def __call__(self, _logger: object, _method: str, line: EventDict) -> EventDict:
        """Pass a line on, or drop it: a processor of structlog's."""
        # What libraries log is counted by library: their texts are without end.
        event, now = line.get("logger") or line["event"], time.monotonic()
        more = (now - self._counted.get(event, now)) * LINES_A_SECOND
        self._counted[event] = now
        self._left[event] = min(BURST, self._left[event] + more)
        if self._left[event] < 1:
            self.suppressed += 1
            self._since[event] += 1
            raise structlog.DropEvent
        self._left[event] -= 1
        if before := self._since.pop(event, 0):
            line["suppressed"] = before
        return line


_flood = Flood()


def suppressed() -> int:
    """Return how many lines this process has not logged, for there were too many of their kind."""
    return _flood.suppressed


def start(level: str = "info", **fields: object) -> None:
    """Log from now on what has this level at least; each line has these fields too."""
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )

    def add_fields(_logger: object, _method: str, line: EventDict) -> EventDict:
        part = str(line["event"]).partition(".")[0]
        if part in _NAMES:
            line["logger"] = _NAMES[part]
        line.update(fields)
        return line

    structlog.configure(
        processors=[
            _flood,
            add_fields,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What the libraries log takes the same way out.
    logging.basicConfig(handlers=[_LibraryLog()], level=logging.WARNING)


class _LibraryLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        exc_info = record.exc_info or None
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=exc_info)

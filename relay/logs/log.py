"""The log on standard error: one JSON object per line for machines, readable text for a terminal.

Rules:
- A line reports one `event`, named by a part of the relay and one word, such as `feed.problem`.
- Levels: `error` needs an operator, `warning` may come to need one or affects clients, `info` is everything else at a
  low rate, and `debug` is for what would be too much.
- Logging never blocks and never fails; see sink.py.
- Any field may contain text of strangers. Control characters are escaped in the last step, because terminals obey
  them.
- Each event is limited to `LINES_A_SECOND`, and `BURST` at once, so that a flood of clients cannot fill the disk. The
  next line of the event has the number of `suppressed` ones.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from relay.logs.sink import Sink
from relay.text import harmless

BURST: Final = 500
LINES_A_SECOND: Final = 50

_NAMES: Final = {"websocket": "WebSocket"}
"""The guide's names of parts, which its readers search for in the log."""


class Flood:
    """Limits the lines of each event."""

    def __init__(self) -> None:
        self.suppressed = 0
        self._left: defaultdict[str, float] = defaultdict(lambda: float(BURST))
        self._counted: dict[str, float] = {}
        self._since: defaultdict[str, int] = defaultdict(int)

    def __call__(self, _logger: object, _method: str, line: EventDict) -> EventDict:
        """Pass a line on, or drop it, as a processor of structlog."""
        # Lines of libraries are counted by library, because there is no limit to their texts.
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
_sink: Sink | None = None


def suppressed() -> int:
    """Return the number of lines that this process has suppressed because of the limits."""
    return _flood.suppressed


def dropped() -> int:
    """Return the number of lines of this process that could not be written."""
    return _sink.dropped if _sink else 0


def start(level: str = "info", **fields: object) -> None:
    """Start to log lines of at least this level, each with these additional fields."""
    global _sink  # noqa: PLW0603  # a process has one log
    render = _for_terminals() if sys.stderr and sys.stderr.isatty() else _for_machines
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def add_fields(_logger: object, _method: str, line: EventDict) -> EventDict:
        return _with_fields(line, fields)

    def note(count: int) -> str:
        line: EventDict = {"event": "log.dropped", "lines": count, "level": "warning"}
        return str(render(None, "", stamp(None, "", add_fields(None, "", line)))) + "\n"

    if _sink:
        _sink.close()
    _sink = Sink(_descriptor(), note)
    structlog.configure(
        processors=[
            _flood,
            add_fields,
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _sink)),
        cache_logger_on_first_use=True,
    )
    # Write lines of libraries in the same way.
    logging.basicConfig(handlers=[_LibraryLog()], level=logging.WARNING)


def _with_fields(line: EventDict, fields: Mapping[str, object]) -> EventDict:
    """Add the fields of this process, and the guide's name of the part."""
    part = str(line["event"]).partition(".")[0]
    if part in _NAMES:
        line["logger"] = _NAMES[part]
    line.update(fields)
    return line


def _descriptor() -> int:
    """Return the descriptor of standard error, even where this process has replaced `sys.stderr`."""
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        return sys.stderr.fileno()
    return 2


def _for_machines(_logger: object, _method: str, line: EventDict) -> str:
    """Render a line as JSON, in which escaped characters keep their meaning."""
    return harmless(str(structlog.processors.JSONRenderer()(None, "", line)))


def _for_terminals() -> Processor:
    """Render lines for people, in colours. No other control sequences remain."""
    console = structlog.dev.ConsoleRenderer()

    def render(_logger: object, _method: str, line: EventDict) -> str:
        shown = {harmless(name): _shown(value) for name, value in line.items()}
        if "exception" in line:
            shown["exception"] = "\n".join(map(harmless, str(line["exception"]).split("\n")))
        return str(console(None, "", shown))

    return render


def _shown(value: object) -> object:
    return value if isinstance(value, int | float) else harmless(str(value))


class _LibraryLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        exc_info = record.exc_info or None
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=exc_info)

"""The log: to standard error, one JSON object a line for machines, readable text for a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


def start(level: int = logging.INFO, **fields: object) -> None:
    """Log from now on; each line has these fields too."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )

    def add_fields(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line.update(fields)
        return line

    structlog.configure(
        processors=[
            *([add_fields] if fields else []),
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

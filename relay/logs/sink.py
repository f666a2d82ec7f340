"""The sink of log lines: a thread writes them, so that nothing waits for a disk, a pipe or a terminal.

Rules:
- `write` never waits and never raises. While the reader stalls, lines wait, up to `WAITING_BYTES`. A line that does
  not fit, or that cannot be written, is dropped and counted.
- Every line is tried. When a full disk has room again, or a pipe has a reader, the log continues, and a line reports
  how many were dropped.
- A line that was written in part is terminated before the next.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

WAITING_BYTES: Final = 1024 * 1024
"""Maximum size of the lines that wait to be written."""

END_SECONDS: Final = 1.0
"""Timeout for writing the last lines when the process ends."""


class Sink:
    """A text file that writes lines to a descriptor, from a thread.

    `note` makes the line that reports the number of dropped lines.
    """

    def __init__(self, descriptor: int, note: Callable[[int], str]) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._note = note
        self._noted = 0
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._cut = False
        self._ends = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Queue a line, which the thread writes."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._waiting + len(line) > WAITING_BYTES:
                self.dropped += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def flush(self) -> None:
        """Do nothing: logging does not wait."""

    def close(self) -> None:
        """Wait until all lines are written, up to `END_SECONDS`."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        if self._thread:
            self._thread.join(END_SECONDS)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while (line := self._next()) is not None:
            if self._put(line) and self.dropped > self._noted:
                more = self.dropped - self._noted
                if self._put(self._note(more).encode()):
                    self._noted += more

    def _next(self) -> bytes | None:
        """Wait for a line; return None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ends)
            if not self._lines:
                return None
            line = self._lines.popleft()
            self._waiting -= len(line)
            return line

    def _put(self, line: bytes) -> bool:
        """Write a line; return False if that failed."""
        rest = b"\n" + line if self._cut else line
        length = len(rest)
        try:
            while rest:
                rest = rest[self._some(rest) :]
        except OSError:
            self._cut |= len(rest) < length
            self.dropped += 1
            return False
        self._cut = False
        return True

    def _some(self, data: bytes) -> int:
        """Write as much as the descriptor takes, which another program may have made non-blocking."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.write(self._descriptor, data)
            select.select([], [self._descriptor], [])

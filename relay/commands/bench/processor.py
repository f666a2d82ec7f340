"""Processor time of processes on this machine, which only Linux reports precisely enough.

Rule: what cannot be known is None, never a guess: the process has ended, is hidden by `hidepid`, or is elsewhere.
"""

from __future__ import annotations

from pathlib import Path


def seconds(pid: int) -> float | None:
    """Return the processor time of a process so far, all its threads together."""
    try:
        threads = [thread.read_text().split() for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        return None
    return sum(int(thread[0]) for thread in threads) / 1e9 if threads else None


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        children = [
            int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:
        children = []
    return [pid, *(one for child in children for one in family(child))]


def is_titled(pid: int, words: str) -> bool:
    """Return whether a process of this machine has these words in its command line."""
    try:
        return words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

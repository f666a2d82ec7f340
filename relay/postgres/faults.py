"""Faults of the feed. Pure."""

from __future__ import annotations


class FeedError(Exception):
    """Why the feed cannot run, in one line that says what to do."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of what went wrong together."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first

"""Faults of the feed, and how far each of them reaches. Pure.

A fault affects no more than its scope, which is decided in `scope_of` and nowhere else:

- row: the row counts as absent, and is reported;
- board: its subscribers get an `error`, it is read again with back-off, and health reports it;
- session: all connections of the feed end, and it reconnects with back-off;
- process: not a fault, such as cancellation.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import psycopg


class FeedError(Exception):
    """The feed cannot run. The text says why and what to do, in one line."""


class UnreadableRow(Exception):
    """A row that cannot be shown: too large, too deep, not Unicode text, or a type's own code failed.

    `key` is its id, if that can be read.
    """

    def __init__(self, problem: str, key: str | None = None) -> None:
        super().__init__(problem)
        self.key = key


class WatchOutdated(Exception):
    """A watch whose columns are no longer there."""


class IdsClash(Exception):
    """Two tasks on one board, from two tables, have the same id, so that messages could not distinguish them."""


class BoardMisnamed(Exception):
    """A board's name is not written as the database writes it, such as a uuid in capitals."""


class Scope(Enum):
    """How far a fault reaches."""

    ROW = "row"
    BOARD = "board"
    SESSION = "session"
    PROCESS = "process"


# SQLSTATEs about the server, a connection, or what all boards depend on: classes, and single codes.
_OF_SESSION: Final = (
    "08",  # the connection
    "25P",  # a transaction that has failed, or was ended by a timeout
    "28",  # authorization
    "3D",  # the database
    "3F000",  # schema relay
    "42P17",  # a function of schema relay that was altered after the installation
    "53300",  # no connection left
    "57P",  # the server is stopping, crashed, or ended the session
    "58P",  # its files
)


def scope_of(ex: BaseException, *, reading_board: bool = False) -> Scope:
    """Return the scope of a fault; `reading_board` if it was raised by nothing but the read of a board."""
    if isinstance(ex, UnreadableRow):
        return Scope.ROW
    if not isinstance(ex, Exception):
        return Scope.PROCESS
    if reading_board and (isinstance(ex, (WatchOutdated, IdsClash)) or is_refusal(ex)):
        return Scope.BOARD
    return Scope.SESSION  # also of unforeseen exceptions


def is_refusal(ex: Exception) -> bool:
    """Whether Postgres refused a statement, but the session is still usable."""
    if not isinstance(ex, psycopg.Error) or ex.sqlstate is None or ex.sqlstate.startswith(_OF_SESSION):
        return False
    # Outside all functions, a missing relation, function or right is one that the installation creates.
    return not ex.sqlstate.startswith("42") or bool(ex.diag.context)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of a group."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first

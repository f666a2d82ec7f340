"""Faults of the feed, and whose fault each of them is. Pure.

A fault stays where it is. It has one of four scopes, decided in `scope_of` and nowhere else:

- a row's: the row counts as absent, and is reported;
- a board's: a read of it fails; its subscribers get an `error`, it is read again with back-off, and health says so;
- a session's: all connections of the feed end, and it connects again with back-off;
- the process's: what is not a fault, such as cancellation.
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
    """Two tasks of one id on one board, from two tables: messages could not distinguish them."""


class BoardMisnamed(Exception):
    """A board's name that the database writes otherwise, such as a uuid in capitals."""


class Scope(Enum):
    """Whose fault something is."""

    ROW = "row"
    BOARD = "board"
    SESSION = "session"
    PROCESS = "process"


# SQLSTATEs about the server, a connection, or what all boards depend on: classes, and single codes.
_OF_SESSION: Final = (
    "08",  # the connection
    "25P",  # a transaction in a state in which it cannot go on, or one that was ended for its time limit
    "28",  # authorization
    "3D",  # the database
    "3F000",  # schema relay
    "42P17",  # a function of schema relay that is not as the install made it
    "53300",  # no connection left
    "57P",  # the server stops, crashed, or ended the session
    "58P",  # its files
)


def scope_of(ex: BaseException, *, reading_board: bool = False) -> Scope:
    """Tell whose fault this is; `reading_board` while a board was read, and nothing else."""
    if isinstance(ex, UnreadableRow):
        return Scope.ROW
    if not isinstance(ex, Exception):
        return Scope.PROCESS
    if reading_board and (isinstance(ex, (WatchOutdated, IdsClash)) or is_refusal(ex)):
        return Scope.BOARD
    return Scope.SESSION  # also what nobody foresaw


def is_refusal(ex: Exception) -> bool:
    """Whether Postgres refused what was asked, but the session goes on."""
    if not isinstance(ex, psycopg.Error) or ex.sqlstate is None or ex.sqlstate.startswith(_OF_SESSION):
        return False
    # A relation, a function or a right that is missing outside all functions is one that the install makes.
    return not ex.sqlstate.startswith("42") or bool(ex.diag.context)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of a group."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first

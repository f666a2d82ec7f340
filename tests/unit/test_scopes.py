"""Whose fault something is, as a table."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest

from relay.postgres.faults import FeedError, Scope, UnreadableRow, WatchOutdated, scope_of


def of_postgres(sqlstate: str | None, context: str | None = None) -> psycopg.Error:
    """Return what psycopg raises for an error of Postgres, or without a code for a connection that is lost."""
    if sqlstate is None:
        return psycopg.OperationalError("server closed the connection unexpectedly")
    made = type("Made", (psycopg.errors.lookup(sqlstate),), {"diag": SimpleNamespace(context=context)})
    found = made("what Postgres says")
    assert isinstance(found, psycopg.Error)
    return found


IN_BOARD = "PL/pgSQL function relay.board(text,boolean) line 70 at RETURN QUERY"

TABLE = [
    # what, whose while a board is read, whose at any other time
    (UnreadableRow("too deep"), Scope.ROW, Scope.ROW),
    (WatchOutdated("no lane any more"), Scope.BOARD, Scope.SESSION),
    (of_postgres("57014", IN_BOARD), Scope.BOARD, Scope.SESSION),  # statement_timeout
    (of_postgres("55P03", IN_BOARD), Scope.BOARD, Scope.SESSION),  # lock_timeout
    (of_postgres("40P01", IN_BOARD), Scope.BOARD, Scope.SESSION),  # deadlock
    (of_postgres("42501", IN_BOARD), Scope.BOARD, Scope.SESSION),  # no right on the user's table
    (of_postgres("42883", IN_BOARD), Scope.BOARD, Scope.SESSION),  # no operator for the user's type
    (of_postgres("23514", IN_BOARD), Scope.BOARD, Scope.SESSION),  # a domain's check
    (of_postgres("P0001", IN_BOARD), Scope.BOARD, Scope.SESSION),  # raised by a user's function
    (of_postgres("53200"), Scope.BOARD, Scope.SESSION),  # out of memory
    (of_postgres("53400"), Scope.BOARD, Scope.SESSION),  # temp_file_limit
    (of_postgres("54001"), Scope.BOARD, Scope.SESSION),  # stack depth
    (of_postgres("XX001"), Scope.BOARD, Scope.SESSION),  # a damaged page
    (of_postgres("42501"), Scope.SESSION, Scope.SESSION),  # no right on relay.board
    (of_postgres("42883"), Scope.SESSION, Scope.SESSION),  # no relay.board
    (of_postgres("42P17", IN_BOARD), Scope.SESSION, Scope.SESSION),  # relay.board belongs to somebody else
    (of_postgres("3F000"), Scope.SESSION, Scope.SESSION),  # no schema relay
    (of_postgres("25P03"), Scope.SESSION, Scope.SESSION),  # idle in a transaction for too long
    (of_postgres("25P04"), Scope.SESSION, Scope.SESSION),  # transaction_timeout
    (of_postgres("53300"), Scope.SESSION, Scope.SESSION),  # too many connections
    (of_postgres("57P01"), Scope.SESSION, Scope.SESSION),  # the server stops
    (of_postgres("57P02"), Scope.SESSION, Scope.SESSION),  # and crashes
    (of_postgres("08006"), Scope.SESSION, Scope.SESSION),
    (of_postgres(None), Scope.SESSION, Scope.SESSION),
    (OSError("no route to host"), Scope.SESSION, Scope.SESSION),
    (FeedError("run relay sql install"), Scope.SESSION, Scope.SESSION),
    (ZeroDivisionError(), Scope.SESSION, Scope.SESSION),  # nobody foresaw it
    (MemoryError(), Scope.SESSION, Scope.SESSION),
    (asyncio.CancelledError(), Scope.PROCESS, Scope.PROCESS),
    (KeyboardInterrupt(), Scope.PROCESS, Scope.PROCESS),
]


@pytest.mark.parametrize(
    ("ex", "of_board", "otherwise"),
    TABLE,
    ids=[repr(row[0]) for row in TABLE],
)
def test_each_fault_has_one_scope(ex: BaseException, of_board: Scope, otherwise: Scope) -> None:
    assert scope_of(ex, reading_board=True) is of_board
    assert scope_of(ex) is otherwise

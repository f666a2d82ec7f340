"""Runs the SQL of `sql/` on a database, as plain `psql -f` would.

Rules:
- The files are the truth: nothing here knows what they do, and a DBA may run them by hand instead.
- They bring their own BEGIN and COMMIT, so each is done whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import psycopg

from relay.session import conninfo

FILES: Final = ("tasks", "install", "uninstall")


class InstallError(Exception):
    """Why the database did not do what it was asked, in one line."""


def text(name: str) -> str:
    """Return one of FILES: from the package, or in a checkout from beside it."""
    packaged = Path(str(resources.files("relay"))) / "sql" / f"{name}.sql"
    beside = Path(str(resources.files("relay"))).parent / "sql" / f"{name}.sql"
    return (packaged if packaged.exists() else beside).read_text()


def run(database_url: str, name: str) -> None:
    """Run one of FILES. Raises InstallError."""
    _execute(database_url, text(name).encode())


def watch(
    database_url: str,
    table: str,
    *,
    id_column: str,
    board: str,
    lane: str,
    hidden: Sequence[str],
    order_by: Sequence[str],
) -> None:
    """Start feeding a table; `order_by` empty leaves the order to `relay.watch`. Raises InstallError."""
    _execute(
        database_url,
        b"select relay.watch(%s::text::regclass, %s, %s, %s, %s::name[], %s::text[])",
        (table, id_column, board, lane, list(hidden), list(order_by) or None),
    )


def unwatch(database_url: str, table: str) -> None:
    """Stop feeding a table. Raises InstallError."""
    _execute(database_url, b"select relay.unwatch(%s::text::regclass)", (table,))


def _execute(database_url: str, query: bytes, parameters: Sequence[object] | None = None) -> None:
    try:
        with psycopg.connect(conninfo(database_url), autocommit=True) as connection:
            connection.execute(query, parameters)
    except psycopg.errors.LockNotAvailable as ex:
        raise InstallError(f"{_first_line(ex)}: somebody holds the table; nothing was changed, try again") from ex
    except psycopg.errors.InvalidSchemaName as ex:
        raise InstallError(f"{_first_line(ex)}: run relay sql install first") from ex
    except psycopg.Error as ex:
        raise InstallError(_first_line(ex)) from ex


def _first_line(ex: psycopg.Error) -> str:
    return ex.diag.message_primary or " ".join(str(ex).split())

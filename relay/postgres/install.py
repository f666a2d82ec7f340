"""Runs the SQL of `sql/` on a database, as plain `psql -f` would.

Rules:
- The files are authoritative: nothing here knows what they do, and a DBA may run them by hand instead.
- Each is run in one transaction: wholly or not at all.
- What an install would change is found out without touching one: see `diff`.
"""

from __future__ import annotations

import difflib
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from relay.postgres.connection import TAKES_NO_WRITES, YOUNG, complete, is_read_only, why_read_only
from relay.text import error_line

FILES: Final = ("tasks", "install", "roles", "uninstall")


PATIENCE: Final = timedelta(seconds=30)
"""Default timeout of the table's lock for relay.watch and relay.unwatch."""


USERS_OWN: Final = ("function relay.may_read(jsonb,text)", "function relay.configured()")
"""Functions that users may replace; the install leaves them alone once they exist."""


class InstallError(Exception):
    """The database refused; the text says why, in one line."""


_INCLUDED: Final = re.compile(r"^\\ir (\S+)\n", re.MULTILINE)
"""How a file of SQL includes another, which psql does by itself."""


def text(name: str) -> str:
    """Return one of FILES, whole: from the package, or in a checkout from beside it."""
    packaged = Path(str(resources.files("relay"))) / "sql"
    folder = packaged if packaged.exists() else packaged.parents[1] / "sql"
    return _INCLUDED.sub(lambda found: (folder / found[1]).read_text() + "\n", (folder / f"{name}.sql").read_text())


_OTHER_EDITION: Final = (
    "schema relay holds functions of another edition: run relay sql uninstall, then install and watch your tables "
    "again"
)


def run(database_url: str, name: str) -> None:
    """Run one of FILES. Raises InstallError."""
    with _connection(database_url) as connection, connection.transaction():
        connection.execute(
            "set local lock_timeout = '3s'; set local statement_timeout = 0; set local client_min_messages = warning"
        )
        # Of a schema that is somebody else's, install.sql says more.
        if name != "install" and (lacking := connection.execute(_NOT_OURS, {"of": ""}).fetchone()):
            raise InstallError(lacking[0])
        try:
            connection.execute(text(name).encode())
        # What a function returns, and a view's columns, cannot be replaced.
        except (psycopg.errors.InvalidFunctionDefinition, psycopg.errors.InvalidTableDefinition) as ex:
            raise InstallError(f"{_OTHER_EDITION} ({error_line(ex)})") from ex


WATCH_SETTINGS: Final = {
    "id_column": "name",
    "key_columns": "name[]",
    "id_prefix": "text",
    "as_text": "boolean",
    "distinct_ids": "boolean",
    "board_column": "name",
    "board_as": "text",
    "lane_column": "name",
    "lane_as": "text",
    "lanes": "text::regclass",
    "filter": "text",
    "hidden": "name[]",
    "shown": "name[]",
    "order_by": "text[]",
}
"""Parameters of `relay.watch`, with their types."""

LANES_SETTINGS: Final = {
    "id_column": "name",
    "board_column": "name",
    "name_column": "name",
    "filter": "text",
    "order_by": "text[]",
}
"""Parameters of `relay.lanes`, with their types."""

EXTRA_SETTINGS: Final = {
    "name": "text",
    "related": "text::regclass",
    "shown": "name[]",
    "key_column": "name",
    "task_column": "name",
    "through": "text::regclass",
    "link_column": "name",
    "order_by": "text[]",
    "filter": "text",
    "link_filter": "text",
}
"""Parameters of `relay.extra`, with their types."""


def watch(
    database_url: str, table: str, patience: timedelta = PATIENCE, **settings: str | Sequence[str] | bool | None
) -> None:
    """Start feeding a table, with some of WATCH_SETTINGS. Raises InstallError.

    A setting that is None or empty stays as it is, or has the default of `relay.watch`.
    """
    _declare(database_url, "watch", WATCH_SETTINGS, table, patience, settings)


def lanes(
    database_url: str, table: str, patience: timedelta = PATIENCE, **settings: str | Sequence[str] | bool | None
) -> None:
    """Declare that the rows of a table are lanes, with some of LANES_SETTINGS, as `watch` does."""
    _declare(database_url, "lanes", LANES_SETTINGS, table, patience, settings)


def show_extra(
    database_url: str, table: str, patience: timedelta = PATIENCE, **settings: str | Sequence[str] | bool | None
) -> None:
    """Show data of another table on the tasks of a table, with some of EXTRA_SETTINGS. Raises InstallError."""
    _declare(database_url, "extra", EXTRA_SETTINGS, table, patience, settings)


def drop_extra(database_url: str, table: str, name: str, patience: timedelta = PATIENCE) -> None:
    """Show an extra no more. Raises InstallError."""
    _declare(database_url, "drop_extra", EXTRA_SETTINGS, table, patience, {"name": name})


def _declare(
    database_url: str,
    function: str,
    types: Mapping[str, str],
    table: str,
    patience: timedelta,
    settings: Mapping[str, str | Sequence[str] | bool | None],
) -> None:
    given = {name: value for name, value in settings.items() if value is not None and value not in ((), [])}
    named = "".join(f", {name} => %({name})s::{types[name]}" for name in given)
    values = {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in given.items()}
    with _connection(database_url) as connection, connection.transaction():
        connection.execute("set local statement_timeout = 0")
        for name in (table, *(values[name] for name in given if types[name] == "text::regclass")):
            _require_table(connection, str(name))
        connection.execute(
            f"select relay.{function}(%(table)s::text::regclass, patience => %(patience)s{named})".encode(),
            {"table": table, "patience": patience, **values},
        )


# One whose name differs in case or quotes alone.
_ALIKE: Final = b"""
    select pg_catalog.format('%%I.%%I', n.nspname, c.relname)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and pg_catalog.replace(pg_catalog.lower(%(table)s), '"', '')
        in (pg_catalog.lower(c.relname), pg_catalog.lower(pg_catalog.concat(n.nspname, '.', c.relname)))
    limit 1
"""

# Without the right to use a schema, Postgres says no more than that. The operator is named with its schema, because
# Postgres has none for exactly these types: anybody may have made one in schema public.
_UNSEEN: Final = b"""
    select pg_catalog.format('%%I.%%I belongs to %%s, and only its owner may change its triggers: have %%s',
        n.nspname, c.relname, c.relowner::regrole, case when r.rolsuper then 'a superuser run this'
        else pg_catalog.format('an administrator run: grant %%s to %%I', c.relowner::regrole, current_user) end)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) c.relowner
    where array[n.nspname, c.relname]::text[] operator(pg_catalog.=) pg_catalog.parse_ident(%(table)s)
      and not pg_catalog.has_schema_privilege(n.oid, 'usage')
"""
_NOT_OURS: Final = b"""
    select pg_catalog.format('schema relay belongs to %%s, and %%I may not use it: run this as %%1$s%%3$s',
        n.nspowner::regrole, current_user, %(of)s::text)
    from pg_catalog.pg_namespace n
    where n.nspname = 'relay' and not pg_catalog.has_schema_privilege(n.oid, 'usage')
"""


def _require_table(connection: psycopg.Connection, table: str) -> None:
    """Raise an error if there is no such table, or if the role lacks a right to change how it is fed."""
    of_table = ", as a member of the role that owns the table"
    if lacking := connection.execute(_NOT_OURS, {"of": of_table}).fetchone():
        raise InstallError(lacking[0])
    try:
        with connection.transaction():
            connection.execute("select %s::text::regclass", [table])
    except psycopg.errors.InsufficientPrivilege as ex:
        lacking = connection.execute(_UNSEEN, {"table": table}).fetchone()
        raise InstallError(lacking[0] if lacking else error_line(ex)) from ex
    except _NO_TABLE as ex:
        alike = connection.execute(_ALIKE, {"table": table}).fetchone()
        expected = (
            f"without double quotes, names are in lower case: expected {shlex.quote(alike[0])}"
            if alike
            else f"expected SCHEMA.TABLE, of database {connection.info.dbname}"
        )
        raise InstallError(f"there is no table {shlex.quote(table)}: {expected}") from ex


_NO_TABLE: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InvalidName,  # quotes or dots that fit no name
    psycopg.errors.SyntaxError,  # too many dots
    psycopg.errors.FeatureNotSupported,  # three parts, of which the first is no database
)


def unwatch(database_url: str, table: str, patience: timedelta = PATIENCE) -> None:
    """Stop feeding a table. Raises InstallError."""
    with _connection(database_url) as connection:
        _require_table(connection, table)
        connection.execute("select relay.unwatch(%s::text::regclass, %s)", (table, patience))


def diff(database_url: str) -> list[str]:
    """Return what `relay sql install` would change, as the lines of a unified diff; no line if nothing.

    The file is run under another schema's name, beside the installed one, and rolled back: so this locks nothing that
    anybody uses. Raises InstallError.
    """
    with _connection(database_url) as connection, connection.transaction(force_rollback=True):
        installed = _objects(connection, "relay")
        scratch = f"relay_{secrets.token_hex(4)}"
        connection.execute("set local client_min_messages = warning")
        # The part before this checks whether this may be installed here at all.
        judgement, comment, rest = text("install").partition("comment on schema relay")
        made = f"create schema {scratch}; " + re.sub(r"\brelay\b", scratch, comment + rest)
        connection.execute((judgement + made).encode())
        for view, make in _MADE.items():
            if f"view relay.{view}" in installed:
                connection.execute(_TRIGGER_FUNCTIONS.format(view, make).replace("scratch", scratch).encode())
        wanted = _objects(connection, scratch)
    wanted |= {name: installed[name] for name in USERS_OWN if name in installed}
    before = [line for name, lines in installed.items() if name in wanted for line in lines]
    after = [line for lines in wanted.values() for line in lines]
    return list(difflib.unified_diff(before, after, "installed", "sql/install.sql", lineterm=""))


_MADE: Final = {"watches": "make_functions", "lane_tables": "make_lane_functions", "extras": "make_extra_functions"}
"""The views of what is declared, each with the function that makes its trigger functions."""

# By the names of columns, because the installed views may have other columns.
_TRIGGER_FUNCTIONS: Final = """
    select scratch.{1}(pg_catalog.jsonb_populate_record(null::scratch.{0}, pg_catalog.to_jsonb(d)))
    from relay.{0} d where d.problem is null
"""

_OBJECTS: Final = """
    select 'function ' || f.oid::regprocedure, pg_catalog.pg_get_functiondef(f.oid)
    from pg_catalog.pg_proc f where f.pronamespace = %(schema)s::regnamespace
    union all
    select 'constraint ' || r.conname || ' of ' || r.conrelid::regclass, pg_catalog.pg_get_constraintdef(r.oid)
    from pg_catalog.pg_constraint r where r.connamespace = %(schema)s::regnamespace and r.conparentid = 0
    union all
    select case c.relkind when 'S' then 'sequence ' when 'v' then 'view ' when 'i' then 'index '
           when 'I' then 'index ' else 'table ' end || c.oid::regclass,
           case c.relkind when 'v' then pg_catalog.pg_get_viewdef(c.oid) else '' end
    from pg_catalog.pg_class c where c.relnamespace = %(schema)s::regnamespace
"""


def _objects(connection: psycopg.Connection, schema: str) -> dict[str, list[str]]:
    """Describe what is in a schema, under the name of "relay"."""
    connection.execute("set local search_path = ''")
    row = connection.execute("select pg_catalog.to_regnamespace(%s) is null", [schema]).fetchone()
    if row and row[0]:
        return {}
    rows = connection.execute(_OBJECTS.encode(), {"schema": schema}).fetchall()
    described = ((name.replace(schema, "relay"), body.replace(schema, "relay")) for name, body in rows)
    return {name: [name, *("  " + line for line in body.splitlines())] for name, body in sorted(described)}


@contextmanager
def _connection(database_url: str) -> Iterator[psycopg.Connection]:
    try:
        with psycopg.connect(complete(database_url), autocommit=True) as connection:
            connection.execute(YOUNG)
            yield connection
    except psycopg.errors.LockNotAvailable as ex:
        said = error_line(ex)
        advice = (
            ""
            if re.search("nothing was (changed|removed)", said)
            else ": somebody holds the table; nothing was changed, try again"
        )
        raise InstallError(said + advice) from ex
    except psycopg.Error as ex:
        said = (is_read_only(ex) and _why_read_only(database_url)) or error_line(ex)
        advice = ": run relay sql install first" if _NOT_INSTALLED.search(said) else ""
        raise InstallError(said + advice) from ex


_NOT_INSTALLED: Final = re.compile(r'^(schema "relay"|\w+ "?relay\..*) does not exist$')
"""What Postgres says where nothing is installed, or somebody has dropped a part of it."""


def _why_read_only(database_url: str) -> str | None:
    conninfo = make_conninfo(complete(database_url), target_session_attrs="any")
    with suppress(psycopg.Error), psycopg.connect(conninfo, autocommit=True) as connection:
        found = connection.execute(TAKES_NO_WRITES).fetchone()
        return why_read_only(connection.info, found) if found else None
    return None

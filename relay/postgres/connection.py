"""A connection to Postgres: how it is opened, with which settings, and how a dead one is noticed.

Rules:
- A session of the relay sets whatever it depends on, whatever a role or a database presets.
- The server itself ends a session whose relay is frozen.
- A connection that is silent while Postgres does not work on it is dead, whatever TCP says.
- Cancelling a query or leaving a connection ends it at once, because the relay is about to stop or to connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Final, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from relay.cancellation import kept_cancellation
from relay.postgres.faults import FeedError
from relay.text import error_line

SILENT_SECONDS: Final = 1.5
"""Timeout of an answer, after which Postgres is asked over another connection whether it still works on it."""

STATE_SECONDS: Final = 1.0
"""Timeout of that question."""

FROZEN_SECONDS: Final = 10.0
"""Maximum time for which a frozen relay keeps a lock or a snapshot."""

START_SECONDS: Final = 10.0
"""Timeout of what begins a session: its connections are watched only from then on."""

NO_ENCODING: Final = (
    "the database has encoding SQL_ASCII, which does not say what its text means: "
    "expected UTF8, or another that says: restore a dump into a database with one"
)

STANDBY: Final = (
    "{host}:{port} is a standby, which takes no writes: expected the primary: "
    "name it in DATABASE_URL, or promote this one"
)

TAKES_NO_WRITES: Final[LiteralString] = (
    "select pg_catalog.pg_is_in_recovery(), "
    "pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on'"
)
"""Asks whether the server is a standby, and whether the session may not write."""

READ_ONLY: Final = (
    "sessions are read-only here, because default_transaction_read_only is on: expected a role that may write: "
    "run alter role {user} in database {database} set default_transaction_read_only = off"
)

# What goes wrong on a connection, the feed reports itself.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


class Connection(AsyncConnection[TupleRow]):
    """A connection that ends at once when a query on it is cancelled, and when it is left.

    psycopg would also ask the server to cancel the query, and wait up to ten seconds for a silent one.
    `waiting_since` is when an answer began to be awaited, on the event loop's clock. Tasks that share the connection
    hold `in_turn` while they use it.
    """

    waiting_since: float | None = None

    @cached_property
    def in_turn(self) -> asyncio.Lock:
        return asyncio.Lock()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ARG002, ASYNC109  # psycopg's signature
        self.pgconn.finish()

    async def __aexit__(self, *_: object) -> None:
        """Close. psycopg would roll back first, and wait forever for a server that does not answer."""
        await self.close()

    async def rows(self, query: bytes | LiteralString, *parameters: object) -> list[TupleRow]:
        """Run a query and return all its rows."""
        self.waiting_since = asyncio.get_running_loop().time()
        try:
            cursor = await self.execute(query, parameters or None)
            result = cursor.pgresult  # cheaper to ask than `cursor.description`
            return await cursor.fetchall() if result and result.nfields else []
        finally:
            self.waiting_since = None

    async def row(self, query: bytes | LiteralString, *parameters: object) -> TupleRow:
        """Run a query that has one row. Raises FeedError if there is none."""
        rows = await self.rows(query, *parameters)
        if not rows:
            raise FeedError(f"no row from: {query!s}: run relay sql install")
        return rows[0]


def readable(query: bytes | LiteralString, connection: Connection) -> bytes:
    """Convert each expression that a query marks as `/**/name/**/` to text that exists in UTF-8."""
    text = query if isinstance(query, bytes) else query.encode()
    if b"/**/" not in text or connection.info.parameter_status("server_encoding") == "UTF8":
        return text
    return _MARKED.sub(rb"relay.readable(\1)", text)


_MARKED: Final = re.compile(rb"/\*\*/([\w.]+)/\*\*/")


def complete(database_url: str) -> str:
    """Complete a connection string, where neither it nor libpq's environment says otherwise.

    The keep-alives and the user timeout notice a half-dead link within seconds. Raises psycopg.ProgrammingError.
    """
    defaults = {
        "application_name": ("relay", "PGAPPNAME"),
        "connect_timeout": ("5", "PGCONNECT_TIMEOUT"),
        "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
        "keepalives_idle": ("2", None),
        "keepalives_interval": ("1", None),
        "keepalives_count": ("2", None),
        "tcp_user_timeout": ("3000", None),
    }
    given = conninfo_to_dict(database_url)
    missing = {
        name: value
        for name, (value, variable) in defaults.items()
        if name not in given and (variable is None or variable not in os.environ)
    }
    return make_conninfo(database_url, **missing)


async def connect(conninfo: str) -> Connection:
    """Connect, with the settings of a session. Raises FeedError or psycopg.Error."""
    connection: Connection | None = None
    try:
        with kept_cancellation():
            connection = await Connection.connect(conninfo, autocommit=True)
        async with in_time():
            await set_up(connection)
    except BaseException as ex:
        if connection:
            await connection.close()
        if is_read_only(ex):
            raise FeedError(await _why_read_only(conninfo) or error_line(ex)) from None
        raise
    return connection


def is_read_only(ex: BaseException) -> bool:
    """Return whether libpq reached a server and refused it, because it was to find one that takes writes."""
    refused = re.search("session is read-only|server is in hot standby mode", str(ex))
    return isinstance(ex, psycopg.OperationalError) and refused is not None


async def _why_read_only(conninfo: str) -> str | None:
    any_server = make_conninfo(conninfo, target_session_attrs="any")
    async with in_time(), await Connection.connect(any_server, autocommit=True) as connection:
        return why_read_only(connection.info, await connection.row(TAKES_NO_WRITES))


def why_read_only(info: psycopg.ConnectionInfo, found: TupleRow) -> str | None:
    """Say why a server takes no writes, given the row of TAKES_NO_WRITES, and what to do; None if it takes them."""
    standby, read_only = found
    if standby:
        return STANDBY.format(host=info.host, port=info.port)
    if read_only:
        return READ_ONLY.format(user=_quoted(info.user), database=_quoted(info.dbname))
    return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def set_up(connection: Connection) -> None:
    """Make the settings of a session. Raises FeedError for a database whose text has no encoding."""
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise FeedError(NO_ENCODING)
    # These come first: a transaction_timeout that somebody presets counts from the beginning of this.
    await connection.execute(YOUNG + "; ".join(f"set {name} = {value}" for name, value in SETTINGS.items()).encode())
    with contextlib.suppress(psycopg.errors.InvalidParameterValue):  # servers on Windows do not have it
        await connection.execute("set client_connection_check_interval = '2s'")


SETTINGS: Final[Mapping[str, str]] = {
    # Each statement sees what was committed before it.
    "default_transaction_isolation": "'read committed'",
    "default_transaction_deferrable": "off",
    "client_encoding": "'UTF8'",
    "standard_conforming_strings": "on",
    "search_path": "''",
    # What is made of names and numbers is compared, and read.
    "quote_all_identifiers": "off",
    "extra_float_digits": "1",
    # A policy that filters rows would leave boards silently empty; this makes it an error.
    "row_security": "off",
    # All that the relay writes is in unlogged tables: there is nothing to wait for.
    "synchronous_commit": "off",
    # No setting of a role or a database ends what works.
    "exit_on_error": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    # A relay that is frozen, or cut off, keeps a lock or a snapshot no longer than this: in a transaction in which it
    # does nothing, or while it does not take what it is sent.
    "idle_in_transaction_session_timeout": f"'{FROZEN_SECONDS:.0f}s'",
    "tcp_user_timeout": f"'{FROZEN_SECONDS:.0f}s'",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "2",
    # What is read at once is sorted in memory: a role may be allowed no file for it, or few.
    "work_mem": "'8MB'",
    # The planner does not know how little is new, and would compile code for the millions of rows that it expects.
    "jit": "off",
    **{f"enable_{way}": "on" for way in ("seqscan", "indexscan", "indexonlyscan", "bitmapscan", "tidscan", "sort")},
    **{f"enable_{way}": "on" for way in ("nestloop", "hashjoin", "mergejoin", "hashagg", "material")},
    "plan_cache_mode": "auto",
}
"""Settings of a session, whatever a role or a database presets."""

PINNED_PATH: Final = "set search_path = pg_catalog, pg_temp"
"""Has commands of people find nothing but Postgres's own operators and functions; see sql/install/path.sql."""

YOUNG_SETTINGS: Final[Mapping[str, str]] = {"transaction_timeout": "0", "restrict_nonsystem_relation_kind": ""}
"""Settings that Postgres has since version 17, and one of them also since some minor versions of those before."""

YOUNG: Final = "".join(
    f"select pg_catalog.set_config('{name}', '{value}', false) "
    f"where pg_catalog.current_setting('{name}', true) is not null; "
    for name, value in YOUNG_SETTINGS.items()
).encode()
"""Makes those that the server has."""


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Limit the time of what begins a session. Raises FeedError if Postgres does not answer, as over a dead link."""
    try:
        async with asyncio.timeout(START_SECONDS):
            yield
    except TimeoutError:
        raise FeedError("Postgres was reached and then did not answer: reconnecting") from None


async def require_answer(connection: Connection, conninfo: str) -> None:
    """Check a connection that has been silent for long. Raises FeedError if it is dead."""
    loop = asyncio.get_running_loop()
    since = connection.waiting_since
    if since is None or loop.time() - since <= SILENT_SECONDS:
        return
    state = await _state_of(connection, conninfo)
    if connection.waiting_since != since:
        return  # it has answered meanwhile
    if state != "active":
        raise FeedError(f"a connection is silent and Postgres says that it is {state}: reconnecting")
    connection.waiting_since = loop.time()


async def _state_of(connection: Connection, conninfo: str) -> str:
    """Ask Postgres, over a new connection, what a connection's backend is doing.

    A server that refuses the new connection is at least running, so the old one has the benefit of the doubt.
    """
    try:
        async with asyncio.timeout(STATE_SECONDS), await Connection.connect(conninfo, autocommit=True) as other:
            rows = await other.rows(
                "select state from pg_catalog.pg_stat_activity where pid = %s", connection.info.backend_pid
            )
    except TimeoutError:
        return "not to be reached"
    except psycopg.OperationalError as ex:
        if ex.sqlstate is None:
            raise
        return "active"
    return str(rows[0][0]) if rows else "gone"

"""A watched table and its unwatched twin: everything that a writer can observe while the same script runs on both.

The twins are two databases that differ in `relay.watch` only. A script runs in a fresh session of an ordinary role,
statement by statement; after each one the session is asked for all that a trigger could have left behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from tests.servers import Database

Copy = tuple[str, bytes]
"""A COPY FROM STDIN, and its data."""

Statement = str | Copy

Observed = dict[str, Any]

_ERROR_FIELDS: Final = (
    pq.DiagnosticField.SEVERITY_NONLOCALIZED,
    pq.DiagnosticField.SQLSTATE,
    pq.DiagnosticField.MESSAGE_PRIMARY,
    pq.DiagnosticField.MESSAGE_DETAIL,
    pq.DiagnosticField.MESSAGE_HINT,
    pq.DiagnosticField.STATEMENT_POSITION,
    pq.DiagnosticField.CONTEXT,
    pq.DiagnosticField.SCHEMA_NAME,
    pq.DiagnosticField.TABLE_NAME,
    pq.DiagnosticField.COLUMN_NAME,
    pq.DiagnosticField.DATATYPE_NAME,
    pq.DiagnosticField.CONSTRAINT_NAME,
)

# A session that goes idle flushes what it counted when it did so this long ago.
_FLUSH_SECONDS: Final = 1.0

# The number of the first type that is not Postgres's own; what follows depends on what else was made.
_FIRST_OF_USERS: Final = 16_384

_LOCKS: Final = """
    select pg_catalog.concat_ws(' ', l.locktype, l.mode, l.granted, l.classid::regclass,
        case when l.locktype = 'advisory' then l.objid end,
        case when l.relation is not null then coalesce(owner.oid, c.oid)::regclass || ' ' || c.relkind::text end)
    from pg_catalog.pg_locks l
    left join pg_catalog.pg_class c on c.oid = l.relation
    left join pg_catalog.pg_index i on i.indexrelid = c.oid
    left join pg_catalog.pg_class owner
        on c.relnamespace = 'pg_toast'::regnamespace and owner.reltoastrelid in (c.oid, i.indrelid)
    where l.pid = pg_catalog.pg_backend_pid()
      and coalesce(owner.relnamespace, c.relnamespace)::regnamespace::text is distinct from 'relay'
"""

_STATE: Final = {
    # The one trace of a block in which a transaction was read-only (relay.entry_body) is the source of that setting.
    "settings": "select name, setting, case name when 'transaction_read_only' then '' else source end "
    "from pg_catalog.pg_settings",
    "who": "select current_user, session_user, pg_catalog.regexp_replace("
    "pg_catalog.current_schemas(true)::text, 'pg_temp_[0-9]+', 'pg_temp')",
    "locks": _LOCKS,
    "prepared": "select name, generic_plans, custom_plans from pg_catalog.pg_prepared_statements",
    "cursors": "select name, is_holdable, is_scrollable from pg_catalog.pg_cursors",
    "temporary": "select pg_catalog.count(*) from pg_catalog.pg_class "
    "where relnamespace = pg_catalog.pg_my_temp_schema()",
    "channels": "select * from pg_catalog.pg_listening_channels()",
    "has_xid": "select pg_catalog.pg_current_xact_id_if_assigned() is not null",
}

# The server keeps these per session; both came with the version named.
_STATE_SINCE: Final = {
    150_000: {
        "counted": "select relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch, n_tup_ins, n_tup_upd, "
        "n_tup_del, n_tup_hot_upd from pg_catalog.pg_stat_xact_user_tables where schemaname <> 'relay' "
        "and pg_catalog.to_jsonb(pg_stat_xact_user_tables) - '{relid,relname,schemaname}'::text[] "
        "@? '$.* ? (@ > 0)'",
    },
    160_000: {
        "subtransactions": "select (pg_catalog.pg_stat_get_backend_subxact(id)).* "
        "from pg_catalog.pg_stat_get_backend_idset() id "
        "where pg_catalog.pg_stat_get_backend_pid(id) = pg_catalog.pg_backend_pid()",
    },
}


class Difference(NamedTuple):
    """What a writer observes of one statement, and how it differs."""

    statement: Statement
    of: str
    watched: object
    unwatched: object


@dataclass(frozen=True)
class Twins:
    """Two databases with the same tables, watched in the first and not in the second."""

    watched: Database
    unwatched: Database
    writer: str | None
    """The role that writes; None: the one that owns the tables."""

    def compare(self, script: Sequence[Statement], reset: str = "") -> list[Difference]:
        """Run a script on both, after the owner's `reset`, and return what the writers did not observe alike."""
        settings = self._settings()
        runs = []
        for database in (self.watched, self.unwatched):
            if reset:
                database.execute(reset)
            with self.session(database) as session:
                runs.append(session.run(script, settings))
        return differences(*runs)

    @contextmanager
    def session(self, database: Database) -> Iterator[Session]:
        """Open a session of the writer's."""
        role = {"user": self.writer, "password": "secret"} if self.writer else {}
        with psycopg.connect(make_conninfo(database.dsn, **role), autocommit=True) as connection:
            yield Session(connection)

    def _settings(self) -> list[str]:
        """Name what the relay's functions might set: whatever they quote that has the form of a setting's name."""
        rows = self.watched.fetch(
            "select distinct m[1] from pg_proc p, regexp_matches(prosrc, '''(\\w+\\.\\w+)''', 'g') m "
            "where pronamespace = 'relay'::regnamespace order by 1"
        )
        return [name for (name,) in rows]


class Session:
    """One session of a writer's, through libpq itself, so that nothing is done to what the server sends."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._libpq = connection.pgconn
        self._said: list[tuple[str | None, ...]] = []
        self._version = connection.info.server_version
        connection.add_notice_handler(
            lambda d: self._said.append((d.severity, d.sqlstate, d.message_primary, d.message_detail, d.context))
        )
        state = dict(_STATE)
        for since, more in _STATE_SINCE.items():
            if self._version >= since:
                state |= more
        columns = (
            f"(select string_agg(r::text, E'\\n') from ({query}) r) as {name}" for name, query in state.items()
        )
        self._state = f"select {', '.join(columns)}".encode()

    def run(self, script: Sequence[Statement], settings: Sequence[str] = ()) -> list[Observed]:
        """Run a script, and return what the writer sees of each statement, and what is left in the end."""
        self.execute("do 'begin end'")  # loads PL/pgSQL, and its settings
        self.execute("select setseed(0.25)")
        self._flush()
        seen = []
        for statement in script:
            observed = self.execute(statement) | {"statement": statement}
            if observed["status"] != pq.TransactionStatus.INERROR:
                observed |= self._left_behind()
            seen.append(observed)
        end = {query: self.execute(query) for query in ("select lastval()", "select random()")}
        end |= {name: self.execute(f"select current_setting('{name}', true)") for name in settings}
        return [*seen, end]

    def execute(self, statement: Statement) -> Observed:
        """Run one statement, and return all that the server says."""
        command, data = (statement, b"") if isinstance(statement, str) else statement
        result = self._libpq.exec_(command.encode())
        copied = []
        if result.status == pq.ExecStatus.COPY_IN:
            self._libpq.put_copy_data(data)
            self._libpq.put_copy_end()
        elif result.status == pq.ExecStatus.COPY_OUT:
            while (line := self._libpq.get_copy_data(0))[0] > 0:
                copied.append(bytes(line[1]))
        else:
            return self._observed(result)
        return self.take() | {"copied": copied}

    def send(self, statement: str) -> None:
        """Begin a statement that may wait for another session; `take` returns what it came to."""
        self._libpq.send_query(statement.encode())

    def take(self) -> Observed:
        """Wait for what was sent."""
        results = []
        while result := self._libpq.get_result():
            results.append(result)
        return self._observed(results[-1])

    @property
    def pid(self) -> int:
        return self._libpq.backend_pid

    def _observed(self, result: pq.abc.PGresult) -> Observed:
        said, self._said[:] = list(self._said), []
        notified = []
        while notification := self._libpq.notifies():
            notified.append((notification.relname, notification.extra))
        return {
            "tag": result.command_status,
            "columns": [(result.fname(n), min(result.ftype(n), _FIRST_OF_USERS)) for n in range(result.nfields)],
            "rows": [[result.get_value(r, n) for n in range(result.nfields)] for r in range(result.ntuples)],
            "error": [result.error_field(field) for field in _ERROR_FIELDS],
            "notices": said,
            "notifications": notified,
            "status": self._libpq.transaction_status,
        }

    def _left_behind(self) -> Observed:
        if self._version >= 150_000:
            self._libpq.exec_(b"select pg_stat_clear_snapshot()")
        result = self._libpq.exec_(self._state)
        assert result.status == pq.ExecStatus.TUPLES_OK, result.get_error_message()
        found = {}
        for n in range(result.nfields):
            name, rows = result.fname(n), result.get_value(0, n)
            found[(name or b"").decode()] = sorted((rows or b"").decode().split("\n"))
        idle = self._libpq.transaction_status == pq.TransactionStatus.IDLE
        if idle and time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            found.pop("counted", None)  # the server may have flushed it by itself
        self._flush()
        return found

    def _flush(self) -> None:
        """Begin to count afresh what `counted` shows, if no transaction is open."""
        if self._libpq.transaction_status == pq.TransactionStatus.IDLE:
            self._flushed = time.monotonic()
            if self._version >= 150_000:
                self._libpq.exec_(b"select pg_stat_force_next_flush()")


def differences(watched: Sequence[Observed], unwatched: Sequence[Observed]) -> list[Difference]:
    """Return what is not the same."""
    return [
        Difference(ours.get("statement", "the end"), key, *_only(ours.get(key), theirs.get(key)))
        for ours, theirs in zip(watched, unwatched, strict=True)
        for key in sorted((ours.keys() | theirs.keys()) - ({"counted"} - (ours.keys() & theirs.keys())))
        if ours.get(key) != theirs.get(key)
    ]


def _only(watched: object, unwatched: object) -> tuple[object, object]:
    """Of two lists, leave what the other does not have, if that tells them apart."""
    if not (isinstance(watched, list) and isinstance(unwatched, list)):
        return watched, unwatched
    ours = [each for each in watched if each not in unwatched]
    theirs = [each for each in unwatched if each not in watched]
    return (ours, theirs) if ours or theirs else (watched, unwatched)

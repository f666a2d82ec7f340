"""Servers of several versions, copies of them that follow or stand alone, and what tools do to them.

Rules:
- What a tool would do by its own programs is done by them: pg_dump, pg_restore, pg_basebackup, psql.
- Client programs are those of the embedded server, which is as new as any server here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from relay.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.servers import PROGRAMS, Database, Postgres, Server, do_without, install, temporary_database

SYSTEM_PROGRAMS: Final = Path("/usr/lib/postgresql/15/bin")
"""Where Debian and Ubuntu put an older Postgres."""

_PROGRAM_SECONDS: Final = 30.0
_SETTINGS: Final = {
    "wal_level": "logical",
    # A hot standby's queries are cancelled by what is vacuumed on its primary. Tests that want to see the relay's
    # part in this must be alone with it.
    "autovacuum": "off",
    "wal_retrieve_retry_interval": "100ms",
    "max_standby_streaming_delay": "1s",
    "max_worker_processes": "12",
}


class Cluster(Postgres):
    """A server, fresh or copied from a running one."""

    def __init__(
        self,
        *,
        programs: Path | None = PROGRAMS,
        copy_of: Cluster | None = None,
        standby: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            settings={**_SETTINGS, **(settings or {})},
            programs=copy_of._programs if copy_of else programs,  # noqa: SLF001 - its own class
        )
        self._copy_of = copy_of
        self._standby = standby

    def promote(self) -> None:
        """Make a standby a primary of its own, and return once it takes writes."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            assert connection.execute("select pg_promote()").fetchall() == [(True,)]

    def _create_cluster(self) -> None:
        if self._copy_of:
            self._copy(self._copy_of, follow=self._standby)
        else:
            super()._create_cluster()


@contextmanager
def empty(cluster: Cluster) -> Iterator[Database]:
    """Yield a database with nothing in it."""
    with temporary_database(Server(cluster.dsn, "a cluster", 0)) as dsn, Database(dsn) as database:
        yield database


@contextmanager
def fed(cluster: Cluster) -> Iterator[Database]:
    """Yield a database with the tasks table, fed by the relay."""
    with empty(cluster) as database:
        install(database.dsn)
        yield database


def elsewhere(dsn: str, cluster: Cluster) -> str:
    """Return the conninfo of a database's copy on another cluster."""
    return make_conninfo(dsn, port=cluster.port)


def client_program(name: str) -> Path:
    """Find one of Postgres's client programs, of the version of the servers if possible."""
    if PROGRAMS and (PROGRAMS / name).exists():
        return PROGRAMS / name
    if PROGRAMS and name.startswith(("pg_dump", "pg_restore")):
        do_without(f"{PROGRAMS} has no {name}, and what a newer one writes may be too new for its server")
    try:
        return EmbeddedPostgres().bin / name
    except EmbeddedPostgresError as error:
        do_without(str(error))


def run(name: str, *arguments: str, given: str = "", complaints: str = "(?!)", status: int = 0) -> str:
    """Run one of Postgres's client programs and return what it prints.

    It ends as expected, and on its standard error there is nothing but lines that hold `complaints`, a regular
    expression.
    """
    finished = subprocess.run(
        [client_program(name), *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=_PROGRAM_SECONDS,
        check=False,
    )
    unexpected = [line for line in finished.stderr.splitlines() if not re.search(complaints, line)]
    assert (unexpected, finished.returncode) == ([], status), f"{name}: {unexpected}, exit {finished.returncode}"
    return finished.stdout


def psql(dsn: str, *arguments: str, given: str = "", complaints: str = "(?!)") -> str:
    """Run psql until the first error, which there must not be."""
    return run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", *arguments, dsn, given=given, complaints=complaints)


@contextmanager
def locks_of_a_dump(dsn: str) -> Iterator[psycopg.Connection]:
    """Hold what pg_dump holds from its start to its end: a snapshot, and a lock on every ordinary table."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        tables = connection.execute(
            "select string_agg(oid::regclass::text, ', ') from pg_class "
            "where relkind in ('r', 'p') and relnamespace <> all ('{pg_catalog,information_schema}'::regnamespace[])"
        ).fetchone()
        assert tables is not None
        connection.execute(f"lock table {tables[0]} in access share mode".encode())
        yield connection


def next_xid(cluster: Cluster) -> int:
    """Return the transaction id that a cluster gives out next."""
    with psycopg.connect(cluster.dsn) as connection:
        row = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def outrun(cluster: Cluster, other: Cluster) -> None:
    """Spend a cluster's transaction ids until they are well above those that another has given out."""
    missing = next_xid(other) + 500 - next_xid(cluster)
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute(
            "do $$ begin for i in 1..{} loop perform pg_current_xact_id(); commit; end loop; end $$".replace(
                "{}", str(max(missing, 0))
            ).encode()
        )

"""`relay bench writers`: what the triggers cost whoever writes, on the user's own server.

Its place is beside `bench`, whose rules it keeps: a scratch database, and nothing left of it afterwards.

Rules:
- Three tables: one without triggers, one that is watched while a relay reads, one with the plain trigger that sends
  each row through pg_notify. They are written in turns, so that whatever else the server does hits all alike; what
  counts is the median.
- The writers loop inside the server and commit each change: no round trip of a client hides what a commit costs.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import psycopg

from relay import bench, install

TABLES: Final = ("none", "relay", "notify")
"""`none` comes first: the others are compared with it."""

ROWS: Final = 10_000
"""Rows that single writers update at random."""

BULK_ROWS: Final = 100_000
"""Rows of one statement, if nothing else is said."""

_TABLE: Final = """
    create table public."{0}" (
        id text primary key, board_id text not null, title text not null, description text, lane text not null,
        status text, priority text, estimated_hours numeric, created_at timestamptz default now(),
        updated_at timestamptz default now()
    );
    insert into public."{0}" (id, board_id, title, description, lane)
    select 'task-' || i, 'board-' || i % 10, 'A title', repeat('Some words of description. ', 8), 'todo'
    from generate_series(1, {1}) i;

    create procedure public.write_{0}(seconds double precision, inout commits bigint) language plpgsql as $$
    declare
        until constant timestamptz := clock_timestamp() + make_interval(secs => seconds);
        task  text;
    begin
        while clock_timestamp() < until loop
            -- Not within the condition: what is volatile there is asked of each row, and no index helps.
            task := 'task-' || 1 + floor(random() * {1})::integer;
            update public."{0}" set estimated_hours = commits where id = task;
            commits := commits + 1;
            commit;
        end loop;
    end $$
"""
_NOTIFY: Final = """
    create function public.notify() returns trigger language plpgsql as $$
    begin perform pg_notify('plain', row_to_json(new)::text); return null; end $$;
    create trigger notify after insert or update on public.notify for each row execute function public.notify()
"""
_UPDATE: Final = "update public.\"{0}\" set lane = 'done'"
Runs = dict[str, list[float]]
"""What each table's runs found."""


@dataclass(frozen=True)
class Tax:
    """All that a run found; seconds, commits a second and bytes of each run, by table."""

    machine: Mapping[str, str]
    commits: Mapping[int, Runs]
    """Commits a second of single-row updates, by the number of writers."""

    rows: int
    copy: Runs
    update: Runs
    """Seconds of one statement over `rows` rows."""

    update_wal: Runs
    """Bytes of WAL for each row of that update."""

    journal_bytes: float
    """Bytes of the journal's entries for each row of that update."""


def run(
    database_url: str, writers: Sequence[int], seconds: float, rounds: int, rows: int, tell: Callable[[str], None]
) -> Tax:
    """Measure, with runs of so many seconds, and tell what.

    Raises BenchError, InstallError, and KeyboardInterrupt when told to stop.
    """
    with bench.interrupted_once(), bench.scratch(database_url) as dsn:
        install.run(dsn, "install")
        prepare(dsn)
        with bench.running_relay(dsn, 1), psycopg.connect(dsn, autocommit=True) as connection:
            commits = {}
            for count in writers:
                tell(f"single-row updates, {count} at once ...")
                commits[count] = alternating(rounds, partial(_commits, dsn, count, seconds))
            tell(f"one statement over {rows:,} rows ...")
            copied: Runs = {table: [] for table in TABLES}
            updated: Runs = {table: [] for table in TABLES}
            wal: Runs = {table: [] for table in TABLES}
            journal = []
            for table in _turns(rounds):
                found = bulk(connection, table, rows)
                copied[table].append(found.copy)
                updated[table].append(found.update)
                wal[table].append(found.update_wal)
                if table == "relay":
                    journal.append(found.journal_bytes)
            return Tax(bench.machine(connection), commits, rows, copied, updated, wal, statistics.median(journal))


def prepare(dsn: str) -> None:
    """Make the three tables, where the relay is installed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in TABLES:
            make_table(connection, table)
        connection.execute("select relay.watch('public.relay')")
        connection.execute(_NOTIFY)
        connection.execute("vacuum analyze")


def make_table(connection: psycopg.Connection, table: str) -> None:
    """Make a table with rows, and the procedure that writes it."""
    connection.execute(_TABLE.format(table, ROWS).encode())


def _turns(rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from TABLES


def alternating(rounds: int, measure: Callable[[str], float]) -> Runs:
    """Measure each table so many times, in turns."""
    found: Runs = {table: [] for table in TABLES}
    for table in _turns(rounds):
        found[table].append(measure(table))
    return found


def _commits(dsn: str, writers: int, seconds: float, table: str) -> float:
    def write(_: int) -> int:
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute(f"call public.write_{table}(%s, 0)".encode(), [seconds]).fetchone()
            assert row
            return int(row[0])

    with ThreadPoolExecutor(writers) as pool:
        return sum(pool.map(write, range(writers))) / seconds


@dataclass(frozen=True)
class Bulk:
    """What one COPY and one UPDATE of many rows took: seconds, and bytes a row."""

    copy: float
    update: float
    update_wal: float
    journal_bytes: float


def bulk(connection: psycopg.Connection, table: str, rows: int = BULK_ROWS) -> Bulk:
    """Write many rows by one statement, in and over, into a table that is emptied first."""
    connection.execute(f'truncate public."{table}"'.encode())
    data = b"".join(b"task-%d\tboard-1\tA title\ttodo\n" % number for number in range(rows))
    into = f'copy public."{table}" (id, board_id, title, lane) from stdin'.encode()
    with _seconds() as copied, connection.cursor() as cursor, cursor.copy(into) as copy:
        copy.write(data)
    before = _wal_bytes(connection)
    with _seconds() as updated, connection.transaction():
        connection.execute(_UPDATE.format(table).encode())
        transaction = connection.execute("select pg_current_xact_id()::xid").fetchone()
    wal = _wal_bytes(connection) - before
    assert transaction
    return Bulk(copied[0], updated[0], wal / rows, _entry_bytes(connection, transaction[0]) / rows)


@contextmanager
def _seconds() -> Iterator[list[float]]:
    taken: list[float] = []
    began = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - began)


def _wal_bytes(connection: psycopg.Connection) -> int:
    """Return how many bytes of WAL there were ever."""
    row = connection.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row
    return int(row[0])


def _entry_bytes(connection: psycopg.Connection, transaction: int) -> int:
    """Return the size of a transaction's entries; the journal's file says less, for it may have room for them."""
    query = "select coalesce(sum(pg_column_size(j)), 0) from relay.journal j where j.xmin = %s::text::xid"
    row = connection.execute(query, [transaction]).fetchone()
    assert row
    return int(row[0])


def table(tax: Tax) -> str:
    """Return the result as text for people."""
    lines = [f"{name:24}{value}" for name, value in tax.machine.items()]
    lines += ["", "median, lowest to highest, and how it compares with the table without triggers"]
    lines += ["", _line("commits a second", TABLES)]
    lines += [_line(f"{count} writers", _cells(runs, "{:,.0f}")) for count, runs in tax.commits.items()]
    lines += ["", _line(f"{tax.rows:,} rows", TABLES)]
    lines += [_line("COPY, seconds", _cells(tax.copy, "{:.2f}"))]
    lines += [_line("UPDATE, seconds", _cells(tax.update, "{:.2f}"))]
    lines += [_line("UPDATE, WAL a row", _cells(tax.update_wal, "{:,.0f}"))]
    return "\n".join([*lines, "", f"The journal took {tax.journal_bytes:,.0f} bytes for each row of the UPDATE."])


def _line(head: str, cells: Sequence[str]) -> str:
    return f"{head:20}" + "".join(f"{cell:>30}" for cell in cells)


def _cells(runs: Runs, form: str) -> list[str]:
    base = statistics.median(runs[TABLES[0]])
    return [
        f"{form.format(statistics.median(its))} ({form.format(min(its))}-{form.format(max(its))})"
        f"{statistics.median(its) / base:7.2f}"
        for its in runs.values()
    ]


def as_json(tax: Tax) -> str:
    """Return the result as JSON for programs."""
    return json.dumps(asdict(tax))

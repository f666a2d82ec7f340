"""The setup of `relay bench writers`: tables that differ in their trigger, writers, a relay, and its client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Self

import psycopg

from relay.commands.bench import run as bench
from relay.commands.bench.costs import TABLES, Cost, Latency
from relay.commands.bench.meter import Meter
from relay.commands.bench.subscribers import BOARD

ROWS: Final = 10_000
"""Number of rows that single writers update at random."""

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
            -- Not within the condition: a volatile function there is evaluated for each row, and no index is used.
            task := 'task-' || 1 + floor(random() * {1})::integer;
            update public."{0}" set estimated_hours = coalesce(estimated_hours, 0) + 1 where id = task;
            commits := commits + 1;
            commit;
        end loop;
    end $$;

    -- The rows one by one, far apart, in one transaction.
    create function public.write_{0}_in_one(updates integer) returns void language plpgsql as $$
    declare
        task text;
    begin
        for i in 1..updates loop
            task := 'task-' || 1 + (i * 7919::bigint) % {1};
            update public."{0}" set estimated_hours = coalesce(estimated_hours, 0) + 1 where id = task;
        end loop;
    end $$
"""
_UPDATE: Final = "update public.\"{0}\" set lane = 'done'"
_TRIGGERS: Final = {
    "plain": """
        create table public.entries (old_row json, new_row json);
        create function public.journal() returns trigger language plpgsql as $$
        begin
            insert into public.entries (old_row, new_row) values (row_to_json(old), row_to_json(new));
            return null;
        end $$;
        create trigger journal after insert or update or delete on public.plain
            for each row execute function public.journal()
    """,
    "relay": "select relay.watch('public.relay', distinct_ids => true)",
    "notify": """
        create function public.notify() returns trigger language plpgsql as $$
        begin perform pg_notify('plain', row_to_json(new)::text); return null; end $$;
        create trigger notify after insert or update on public.notify for each row execute function public.notify()
    """,
}
_PROBE: Final = f"""
    create table public.probe (id text primary key, board_id text not null, title text not null, lane text not null);
    insert into public.probe values ('{BOARD}', '{BOARD}', 'T', 'todo');
    select relay.watch('public.probe', distinct_ids => true)
"""  # a constant of ours


def prepare(dsn: str) -> None:
    """Create the tables; the relay must be installed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(_TABLE.format(table, ROWS).encode())
            if table in _TRIGGERS:
                connection.execute(_TRIGGERS[table].encode())
        connection.execute("vacuum analyze")


class Lab:
    """The writers, a relay with one client, and the session that observes them."""

    def __init__(
        self,
        watcher: psycopg.Connection,
        writers: Sequence[psycopg.Connection],
        pool: ThreadPoolExecutor,
        meter: Meter,
    ) -> None:
        self._watcher, self._writers, self._pool, self.meter = watcher, writers, pool, meter

    @classmethod
    @contextmanager
    def open(cls, dsn: str, writers: int) -> Iterator[Self]:
        """Start and connect all."""
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            watcher, *others = (enter(psycopg.connect(dsn, autocommit=True)) for _ in range(writers + 1))
            watcher.execute(_PROBE)
            relay, port = enter(bench.running_relay(dsn, 1))
            backends = {writer.info.backend_pid for writer in others}
            meter = Meter(watcher, backends, relay, enter(bench.Subscribers(port, 1)))
            yield cls(watcher, others, enter(ThreadPoolExecutor(writers)), meter)

    def machine(self) -> dict[str, str]:
        """Describe the machine."""
        return bench.machine(self._watcher)

    # Writing

    def single(self, table: str, count: int, seconds: float) -> Cost:
        """Let `count` writers update rows, each row in its own transaction."""
        self._make_ready(table)

        def write() -> int:
            with self._writing(table, count, seconds) as commits:
                return sum(commit.result() for commit in commits)

        return self.meter.measured(write)

    def in_one(self, table: str, updates: int) -> Cost:
        """Update rows one by one in one transaction."""
        self._make_ready(table)

        def write() -> int:
            self._writers[0].execute(f"select public.write_{table}_in_one(%s)".encode(), [updates])
            return updates

        return self.meter.measured(write)

    def copy(self, table: str, rows: int) -> Cost:
        """Write many rows by one COPY, into a table that is emptied first."""
        self._watcher.execute(f'truncate public."{table}"'.encode())
        self._make_ready(table)
        data = b"".join(b"task-%d\tboard-1\tA title\ttodo\n" % number for number in range(rows))
        into = f'copy public."{table}" (id, board_id, title, lane) from stdin'.encode()

        def write() -> int:
            with self._writers[0].cursor() as cursor, cursor.copy(into) as copy:
                copy.write(data)
            return rows

        return self.meter.measured(write)

    def update(self, table: str, rows: int) -> tuple[Cost, int]:
        """Update all rows by one UPDATE; return its transaction too."""
        writer, transactions = self._writers[0], []

        def write() -> int:
            with writer.transaction():
                writer.execute(_UPDATE.format(table).encode())
                transactions.extend(writer.execute("select pg_current_xact_id()::xid").fetchall())
            return rows

        return self.meter.measured(write), transactions[0][0]

    def entry_bytes(self, transaction: int) -> int:
        """Return the size of a transaction's entries, because the journal's file need not have grown."""
        query = "select coalesce(sum(pg_column_size(j)), 0) from relay.journal j where j.xmin = %s::text::xid"
        return self.meter.number(query, transaction)

    def prune(self) -> Cost:
        """Prune everything committed from the journal, as the relay does later. Raises BenchError."""
        # First vacuum what the relay has already deleted, which is not part of this.
        self._writers[0].execute("vacuum relay.journal")
        self.meter.settle()
        horizon = self.meter.number("select pg_snapshot_xmin(pg_current_snapshot())::xid")
        count = "select count(*) from relay.journal j where age(j.xmin) > age(%s::text::xid)"
        entries = self.meter.number(count, horizon)
        self._watcher.execute("update relay.settings set keep_age = '0'")

        def write() -> int:
            until = time.monotonic() + bench.PATIENCE_SECONDS
            while left := self.meter.number(count, horizon):
                if time.monotonic() > until:
                    raise bench.BenchError(
                        f"{left:,} entries were not pruned: expected none; end the transactions that hold them"
                    )
                self._writers[0].execute("select relay.prune()")
            self._writers[0].execute("vacuum relay.journal")
            return max(entries, 1)

        return self.meter.measured(write)

    @contextmanager
    def _writing(self, table: str, count: int, seconds: float) -> Iterator[list[Future[int]]]:
        """Let `count` writers commit in the background, for `seconds` or until the end of the block."""

        def write(writer: psycopg.Connection) -> int:
            row = writer.execute(f"call public.write_{table}(%s, 0)".encode(), [seconds]).fetchone()
            assert row
            return int(row[0])

        commits = [self._pool.submit(write, writer) for writer in self._writers[:count]]
        try:
            yield commits
        finally:
            for writer, commit in zip(self._writers, commits, strict=False):
                if not commit.done():
                    writer.cancel_safe()

    def _make_ready(self, table: str) -> None:
        """Bring the table to the same state before each run."""
        self._watcher.execute("truncate public.entries")
        self._watcher.execute(f'vacuum public."{table}"'.encode())
        self.meter.settle()

    def busy_latency(self, writers: int, seconds: float) -> Latency:
        """Measure the latency while writers write the watched table."""
        self._make_ready("relay")
        with self._writing("relay", writers, 2 * seconds + bench.PATIENCE_SECONDS) as commits:
            latency = self.meter.latency(seconds)
        for commit in commits:
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                commit.result()
        self.meter.settle()
        return latency

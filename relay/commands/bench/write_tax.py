"""`relay bench writers`: what the triggers cost the writers, on the user's own server.

Its place is beside `bench`, whose rules it keeps: a scratch database, and nothing left of it afterwards.

Rules:
- Tables that differ in their trigger only: none; the plainest that journals; the relay's, while a relay reads; and
  the one that sends each row through pg_notify. They are written in turns, so that whatever else the server does hits
  all alike; what counts is the median.
- The writers loop inside the server: no round trip of a client hides what a commit costs.
- A run ends when the relay has passed on all that was written, so that its work is counted where it belongs.
- Processor time is counted by process. Where Postgres runs elsewhere, it is left out.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import psycopg

from relay.commands import terminal
from relay.commands.bench import processor
from relay.commands.bench import run as bench
from relay.commands.bench.subscribers import BOARD, stamped
from relay.postgres import install

TABLES: Final = ("none", "plain", "relay", "notify")
"""`none` comes first: the others are compared with it."""

ROWS: Final = 10_000
"""Rows that single writers update at random."""

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
    "relay": "select relay.watch('public.relay')",
    "notify": """
        create function public.notify() returns trigger language plpgsql as $$
        begin perform pg_notify('plain', row_to_json(new)::text); return null; end $$;
        create trigger notify after insert or update on public.notify for each row execute function public.notify()
    """,
}
_PROBE: Final = f"""
    create table public.probe (id text primary key, board_id text not null, title text not null, lane text not null);
    insert into public.probe values ('{BOARD}', '{BOARD}', 'T', 'todo');
    select relay.watch('public.probe')
"""  # a constant of ours


@dataclass(frozen=True)
class Processor:
    """Processor time by where it went, in seconds."""

    writers: float
    """Of the backends that wrote."""

    sessions: float
    """Of the backends that the relay has."""

    background: float
    """Of Postgres's own processes: the WAL writer, the checkpointer, autovacuum unless it ended meanwhile."""

    relay: float
    """Of the relay itself."""


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    changes: int
    seconds: float
    """Until the writers were done."""

    wal: int
    """Bytes, of all that the server did meanwhile."""

    processor: Processor | None
    """Until the relay was done, too; None where Postgres does not run on this machine."""


@dataclass(frozen=True)
class Latency:
    """From just before the statement that commits a change to a client, in milliseconds."""

    p50: float | None
    p99: float | None
    max: float | None


Runs = dict[str, list[Cost]]
"""What each table's runs took."""


@dataclass(frozen=True)
class Tax:
    """All that was found."""

    machine: Mapping[str, str]
    single: Mapping[int, Runs]
    """Single-row updates, each a transaction, by the number of writers."""

    in_one: Runs
    """Single-row updates, all in one transaction."""

    copy: Runs
    update: Runs
    """One statement over many rows."""

    journal_bytes: float
    """Bytes of the journal's entries for each row of that UPDATE."""

    prune: Cost
    """What it takes later, that these entries go: to delete them and to vacuum. The writers' part is this work."""

    idle: Latency
    busy: Mapping[int, Latency]
    """By the number of writers, while they write."""


def run(
    database_url: str, writers: Sequence[int], seconds: float, rounds: int, rows: int, tell: Callable[[str], None]
) -> Tax:
    """Measure, with runs of so many seconds, and report what.

    Raises BenchError, InstallError, and KeyboardInterrupt at a signal.
    """
    with terminal.interrupted_once(), bench.scratch(database_url) as dsn:
        install.run(dsn, "install")
        prepare(dsn)
        with _Lab.open(dsn, max(writers)) as lab:
            tell("from commit to client ...")  # first, for after a load the relay polls for a while
            idle = lab.latency(seconds * rounds)
            single = {}
            for count in writers:
                tell(f"single-row updates, {count} at once ...")
                single[count] = _alternating(rounds, partial(lab.single, count=count, seconds=seconds))
            tell("the same in one transaction ...")
            in_one = _alternating(rounds, partial(lab.in_one, updates=max(rows // 5, 1)))
            tell("from commit to client, beside writers ...")
            busy = {count: lab.busy_latency(count, seconds * rounds) for count in writers}
            tell(f"one statement over {rows:,} rows ...")
            copy, update, entries = _bulk(lab, rounds, rows)
            tell("pruning ...")
            return Tax(lab.machine(), single, in_one, copy, update, entries, lab.prune(), idle, busy)


def prepare(dsn: str) -> None:
    """Make the tables, where the relay is installed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(_TABLE.format(table, ROWS).encode())
            if table in _TRIGGERS:
                connection.execute(_TRIGGERS[table].encode())
        connection.execute("vacuum analyze")


def _turns(rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from TABLES


def _alternating(rounds: int, measure: Callable[[str], Cost]) -> Runs:
    found: Runs = {table: [] for table in TABLES}
    for table in _turns(rounds):
        found[table].append(measure(table))
    return found


def _bulk(lab: _Lab, rounds: int, rows: int) -> tuple[Runs, Runs, float]:
    """Measure COPY and UPDATE, and the bytes of the journal's entries for each row of the latter."""
    copied: Runs = {table: [] for table in TABLES}
    updated: Runs = {table: [] for table in TABLES}
    entries = []
    for table in _turns(rounds):
        copied[table].append(lab.copy(table, rows))
        cost, transaction = lab.update(table, rows)
        updated[table].append(cost)
        if table == "relay":
            entries.append(lab.entry_bytes(transaction) / rows)
    return copied, updated, statistics.median(entries)


class _Lab:
    """The writers, a relay with one client, and the session that watches them all."""

    def __init__(
        self,
        watcher: psycopg.Connection,
        writers: Sequence[psycopg.Connection],
        pool: ThreadPoolExecutor,
        relay: int,
        client: bench.Subscribers,
    ) -> None:
        self._watcher, self._writers, self._pool = watcher, writers, pool
        self._relay, self._client = relay, client
        self._probes = 0
        self._is_local = processor.is_titled(watcher.info.backend_pid, watcher.info.dbname)

    @classmethod
    @contextmanager
    def open(cls, dsn: str, writers: int) -> Iterator[Self]:
        """Start and connect all."""
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            watcher, *others = (enter(psycopg.connect(dsn, autocommit=True)) for _ in range(writers + 1))
            watcher.execute(_PROBE)
            relay, port = enter(bench.running_relay(dsn, 1))
            yield cls(watcher, others, enter(ThreadPoolExecutor(writers)), relay, enter(bench.Subscribers(port, 1)))

    def machine(self) -> dict[str, str]:
        """Say on what was measured."""
        return bench.machine(self._watcher)

    # What is written

    def single(self, table: str, count: int, seconds: float) -> Cost:
        """Let so many writers update rows, each in its own transaction."""
        self._make_ready(table)

        def write() -> int:
            with self._writing(table, count, seconds) as commits:
                return sum(commit.result() for commit in commits)

        return self._measured(write)

    def in_one(self, table: str, updates: int) -> Cost:
        """Update rows one by one in one transaction."""
        self._make_ready(table)

        def write() -> int:
            self._writers[0].execute(f"select public.write_{table}_in_one(%s)".encode(), [updates])
            return updates

        return self._measured(write)

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

        return self._measured(write)

    def update(self, table: str, rows: int) -> tuple[Cost, int]:
        """Write all of them by one UPDATE; return its transaction, too."""
        writer, transactions = self._writers[0], []

        def write() -> int:
            with writer.transaction():
                writer.execute(_UPDATE.format(table).encode())
                transactions.extend(writer.execute("select pg_current_xact_id()::xid").fetchall())
            return rows

        return self._measured(write), transactions[0][0]

    def entry_bytes(self, transaction: int) -> int:
        """Return the size of a transaction's entries; the journal's file says less, for it may have room for them."""
        query = "select coalesce(sum(pg_column_size(j)), 0) from relay.journal j where j.xmin = %s::text::xid"
        return self._number(query, transaction)

    def prune(self) -> Cost:
        """Let all that was committed go from the journal, as the relay does in time. Raises BenchError."""
        self._settle()
        horizon = self._number("select pg_snapshot_xmin(pg_current_snapshot())::xid")
        count = "select count(*) from relay.journal j where age(j.xmin) > age(%s::text::xid)"
        entries = self._number(count, horizon)
        self._watcher.execute("update relay.settings set keep_age = '0'")

        def write() -> int:
            until = time.monotonic() + bench.PATIENCE_SECONDS
            while left := self._number(count, horizon):
                if time.monotonic() > until:
                    raise bench.BenchError(
                        f"{left:,} entries were not pruned: expected none; end the transactions that hold them"
                    )
                self._writers[0].execute("select relay.prune()")
            self._writers[0].execute("vacuum relay.journal")
            return max(entries, 1)

        return self._measured(write)

    @contextmanager
    def _writing(self, table: str, count: int, seconds: float) -> Iterator[list[Future[int]]]:
        """Let so many writers commit, for so long or until the end of the block."""

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
        self._settle()

    # What it took

    def _measured(self, write: Callable[[], int]) -> Cost:
        """Measure what is written, and what the relay makes of it."""
        wal, before = self._wal(), self._readings()
        began = time.perf_counter()
        changes = write()
        seconds = time.perf_counter() - began
        self._settle()
        used = {
            kind: sum(time - before.get(kind, {}).get(pid, 0) for pid, time in readings.items())
            for kind, readings in self._readings().items()
        }
        return Cost(changes, seconds, self._wal() - wal, Processor(**used) if self._is_local else None)

    def _readings(self) -> dict[str, dict[int, float]]:
        """Return the processor time so far of each process, by the kind of its work."""
        writers = {writer.info.backend_pid for writer in self._writers}
        pids: dict[str, list[int]] = {"writers": [], "sessions": [], "background": []}
        # Only sessions have a user. In the scratch database, all but ours are the relay's.
        query = (
            "select pid, usesysid is not null from pg_stat_activity"
            " where (datname = current_database() or datid is null) and pid <> pg_backend_pid()"
        )
        for pid, is_session in self._watcher.execute(query):
            pids["writers" if pid in writers else "sessions" if is_session else "background"].append(pid)
        pids["relay"] = processor.family(self._relay)
        return {kind: {pid: processor.seconds(pid) or 0.0 for pid in its} for kind, its in pids.items()}

    def _wal(self) -> int:
        """Return how many bytes of WAL there were ever."""
        return self._number("select (pg_current_wal_insert_lsn() - '0/0')::bigint")

    def _number(self, query: str, *parameters: object) -> int:
        row = self._watcher.execute(query.encode(), parameters).fetchone()
        assert row
        return int(row[0])

    # The client

    def _settle(self) -> None:
        """Wait until the relay has passed on all that was committed. Raises BenchError."""
        self._probe()
        self._client.wait(1)
        self._client.report()

    def latency(self, seconds: float) -> Latency:
        """Commit a change now and then, and measure how long each took to the client. Raises BenchError."""
        count = max(int(bench.RATE * seconds), 1)
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(began + number / bench.RATE - time.monotonic(), 0))
            self._probe()
        self._client.wait(count)
        report = self._client.report()
        return Latency(report.p50, report.p99, report.max)

    def busy_latency(self, writers: int, seconds: float) -> Latency:
        """Do so beside writers of the watched table."""
        self._make_ready("relay")
        with self._writing("relay", writers, 2 * seconds + bench.PATIENCE_SECONDS) as commits:
            latency = self.latency(seconds)
        for commit in commits:
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                commit.result()
        self._settle()
        return latency

    def _probe(self) -> None:
        self._watcher.execute("update public.probe set title = %s", [stamped(self._probes)])
        self._probes += 1

"""What the triggers cost the writers: pgbench on an embedded Postgres, with and without them, side by side.

    python benchmarks/writers.py            # about six minutes
    python benchmarks/writers.py --seconds 1 --rounds 1

The tables are those of `relay bench writers`: `none` has no trigger, `relay` is watched and a relay reads its
journal, `notify` has the plain row trigger that pg_notify()s the row, which many applications use. Rounds alternate
between them; medians are printed. Then: how long a change takes to a client, when little is written and meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from websockets.sync.client import connect

from relay import bench, install, write_tax
from relay.embedded import EmbeddedPostgres

WRITERS = (1, 8, 32)

STEPS = {
    "empty": "",
    "insert": "insert into public.entries (seq) values (nextval('public.entries_seq'));",
    "images": "insert into public.entries (seq, old_row, new_row) "
    "values (nextval('public.entries_seq'), row_to_json(old), row_to_json(new));",
}
"""What triggers do that show the floor: nothing; one row into a table with an index on the transaction; the images of
the row before and after, too. No journal that row triggers write can cost less."""

PROBES_A_SECOND = 20


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=int, default=3, help="length of one pgbench run")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with EmbeddedPostgres(settings={"fsync": "on", "synchronous_commit": "on"}) as server:
        install.run(server.dsn, "install")
        write_tax.prepare(server.dsn)
        with (
            bench.running_relay(server.dsn, 10) as (_, port),
            psycopg.connect(server.dsn, autocommit=True) as watcher,
        ):
            print(
                f"{platform.platform()}, {os.cpu_count()} cores, Postgres {watcher.info.server_version}, fsync on\n"
            )
            print_commits(server, watcher, given.seconds, given.rounds)
            print_bulk(watcher, given.rounds)
            print_latency(server, port, given.seconds * given.rounds)
            print_floor(server, watcher, given.seconds, given.rounds)


def print_commits(server: EmbeddedPostgres, watcher: psycopg.Connection, seconds: int, rounds: int) -> None:
    """Print commits a second of single-row updates, and bytes of WAL for each."""
    print("single-row updates, commits a second (median, and lowest to highest; share of none; bytes of WAL each)")
    print(f"{'writers':>8}" + "".join(f"{table:>36}" for table in write_tax.TABLES))
    for writers in WRITERS:
        wal: dict[str, list[float]] = {table: [] for table in write_tax.TABLES}

        def measure(table: str, writers: int = writers, wal: dict[str, list[float]] = wal) -> float:
            before = wal_bytes(watcher)
            commits = pgbench(server, table, writers, seconds)
            wal[table].append((wal_bytes(watcher) - before) / (commits * seconds))
            return commits

        found = write_tax.alternating(rounds, measure)
        base = statistics.median(found["none"])
        cells = [
            f"{statistics.median(its):8.0f} ({min(its):.0f}-{max(its):.0f}) {statistics.median(its) / base:5.2f}"
            f"{statistics.median(wal[table]):7.0f}"
            for table, its in found.items()
        ]
        print(f"{writers:>8}" + "".join(f"{cell:>36}" for cell in cells), flush=True)


def wal_bytes(watcher: psycopg.Connection) -> int:
    """Return how many bytes of WAL there were ever."""
    row = watcher.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row
    return int(row[0])


def pgbench(server: EmbeddedPostgres, table: str, writers: int, seconds: int) -> float:
    """Run pgbench once and return its commits a second."""
    with pgbench_running(server, table, writers, seconds) as running:
        printed = running.communicate()[0]
    match = re.search(r"tps = ([\d.]+)", printed)
    assert match, printed
    return float(match[1])


@contextmanager
def pgbench_running(
    server: EmbeddedPostgres, table: str, writers: int, seconds: int
) -> Iterator[subprocess.Popen[str]]:
    """Run pgbench until it ends."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(
            f"\\set id random(1, {write_tax.ROWS})\n\\set hours random(1, 1000)\n"
            f"update public.\"{table}\" set estimated_hours = :hours where id = 'task-' || :id;\n"
        )
        script.flush()
        command = [str(server.bin / "pgbench"), "-n", "-M", "prepared", "-f", script.name, "-T", str(seconds)]
        command += ["-c", str(writers), "-j", str(min(writers, 2)), server.dsn]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
            yield running


def print_bulk(watcher: psycopg.Connection, rounds: int) -> None:
    """Print the seconds of one COPY and one UPDATE of many rows, and what the update wrote."""
    found = [(table, write_tax.bulk(watcher, table)) for _ in range(rounds) for table in write_tax.TABLES]
    print(f"\none statement over {write_tax.BULK_ROWS} rows (median; multiple of none)")
    print(f"{'':>24}" + "".join(f"{table:>20}" for table in write_tax.TABLES))
    for name in ("copy", "update", "update_wal", "journal_bytes"):
        medians = [
            statistics.median(getattr(bulk, name) for its, bulk in found if its == table)
            for table in write_tax.TABLES
        ]
        head = {"copy": "copy, s", "update": "update, s", "update_wal": "WAL, bytes a row"}
        cells = [f"{value:.2f}" + (f" ({value / medians[0]:.1f} x)" if medians[0] else "") for value in medians]
        print(f"{head.get(name, 'journal, bytes a row'):>24}" + "".join(f"{cell:>20}" for cell in cells))


def print_latency(server: EmbeddedPostgres, port: int, seconds: int) -> None:
    """Print how long a change takes, from the statement that commits it to a client."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("truncate public.relay")
        connection.execute(
            "insert into public.relay (id, board_id, title, lane) "
            f"select 'task-' || i, 'board-' || i % 10, 'T', 'todo' from generate_series(1, {write_tax.ROWS}) i"
        )
        connection.execute(
            "insert into public.relay (id, board_id, title, lane) values ('probe', 'probe', '0', 'todo')"
        )
    print("\nfrom a statement that commits one change to a client, ms")
    print_percentiles("little is written", probe(server.dsn, port, seconds))
    for writers in WRITERS:
        with pgbench_running(server, "relay", writers, seconds + 3):
            print_percentiles(f"{writers} writers at once", probe(server.dsn, port, seconds))


def print_percentiles(head: str, times: list[float]) -> None:
    """Print the median, the 99th percentile and the longest."""
    cuts = statistics.quantiles(times, n=100)
    print(f"{head:>24}  p50 {cuts[49]:6.1f}  p99 {cuts[98]:6.1f}  max {max(times):6.1f}", flush=True)


def probe(dsn: str, port: int, seconds: int) -> list[float]:
    """Change one task now and then, and return how long a client waited for each change, in milliseconds."""
    times: list[float] = []
    count = seconds * PROBES_A_SECOND
    with connect(f"ws://127.0.0.1:{port}") as client, psycopg.connect(dsn, autocommit=True) as writer:
        client.send(json.dumps({"type": "subscribe", "boardId": "probe"}))
        client.recv(timeout=10)

        def receive() -> None:
            while len(times) < count:
                message = json.loads(client.recv(timeout=10))
                times.append((time.monotonic_ns() - int(message["data"]["changes"]["title"])) / 1e6)

        receiver = threading.Thread(target=receive)
        receiver.start()
        for _ in range(count):
            time.sleep(1 / PROBES_A_SECOND)
            writer.execute("update public.relay set title = %s where id = 'probe'", [str(time.monotonic_ns())])
        receiver.join()
    return times


def print_floor(server: EmbeddedPostgres, watcher: psycopg.Connection, seconds: int, rounds: int) -> None:
    """Print what triggers cost that do less and less of what is needed, one row at a time."""
    watcher.execute(
        "create sequence public.entries_seq; create table public.entries "
        "(seq bigint, xid xid8 default pg_current_xact_id(), old_row json, new_row json); "
        "create index on public.entries (xid)"
    )
    for table, step in STEPS.items():
        write_tax.make_table(watcher, table)
        watcher.execute(
            f"create function public.{table}_step() returns trigger language plpgsql as $$ "
            f"begin {step} return null; end $$; "
            f"create trigger step after update on public.{table} for each row execute function public.{table}_step()"
        )
    tables = ("none", *STEPS, "relay")
    in_one: dict[str, list[float]] = {table: [] for table in tables}
    at_once: dict[str, list[float]] = {table: [] for table in tables}
    for _ in range(rounds):
        for table in tables:
            in_one[table].append(row_seconds(watcher, table))
            at_once[table].append(pgbench(server, table, WRITERS[-1], seconds))
    print(f"\nthe floor: µs of one row's update in a long transaction; commits a second of {WRITERS[-1]} writers")
    for table in tables:
        tps = statistics.median(at_once[table])
        print(
            f"{table:>24}{statistics.median(in_one[table]) * 1e6:8.1f}{tps:10.0f}"
            f"{tps / statistics.median(at_once['none']):6.2f}"
        )


def row_seconds(watcher: psycopg.Connection, table: str, count: int = 5000) -> float:
    """Return what the update of one row takes, in a transaction of many."""
    loop = (
        f"do $$ begin for i in 1..{count} loop update public.{table} set estimated_hours = i "
        "where id = 'task-' || 1 + i % 1000; end loop; end $$"
    )
    watcher.execute("select relay.stay_awake(2000)")
    watcher.execute(loop)
    began = time.perf_counter()
    watcher.execute(loop)
    return (time.perf_counter() - began) / count


if __name__ == "__main__":
    main()

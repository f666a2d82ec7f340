"""What the triggers cost the writers: pgbench on an embedded Postgres, with and without them, side by side.

    python benchmarks/writers.py            # about three minutes
    python benchmarks/writers.py --seconds 1 --rounds 1

Three tables: `none` has no trigger, `relay` is watched and a relay reads its journal, `notify` has the plain row
trigger that pg_notify()s the row, which many applications use. Rounds alternate between them; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from relay import install
from relay.embedded import EmbeddedPostgres

TABLES = ("none", "relay", "notify")
WRITERS = (1, 8, 32)
ROWS = 10_000
BULK_ROWS = 100_000

COLUMNS = """
    id text primary key, board_id text not null, title text not null, description text, lane text not null,
    status text, priority text, estimated_hours numeric, created_at timestamptz default now(),
    updated_at timestamptz default now()
"""

NOTIFY = """
    create function notify() returns trigger language plpgsql as $$
    begin perform pg_notify('naive', row_to_json(new)::text); return null; end $$;
    create trigger notify after insert or update on "notify" for each row execute function notify()
"""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=int, default=5, help="length of one pgbench run")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with EmbeddedPostgres(settings={"fsync": "on", "synchronous_commit": "on"}) as server, relay_on(server.dsn):
        print(f"{platform.platform()}, {os.cpu_count()} cores, Postgres {version(server.dsn)}, fsync on\n")
        print_commits(server, given.seconds, given.rounds)
        print_bulk(server.dsn, given.rounds)


@contextmanager
def relay_on(dsn: str) -> Iterator[None]:
    """Prepare the tables and let a relay read the journal meanwhile."""
    install.run(dsn, "install")
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f'create table "{table}" ({COLUMNS})')
            connection.execute(
                f"insert into \"{table}\" select 'task-' || i, 'board-' || i % 10, 'A title', "
                f"repeat('Some words of description. ', 8), 'todo' from generate_series(1, {ROWS}) i"
            )
        connection.execute("select relay.watch('public.relay')")
        connection.execute(NOTIFY)
    daemon = subprocess.Popen(
        [Path(sys.executable).parent / "relay", "serve", "--ws-port", "0", "--health-port", "0"],
        env=os.environ | {"DATABASE_URL": dsn},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def print_commits(server: EmbeddedPostgres, seconds: int, rounds: int) -> None:
    """Print commits a second of single-row updates."""
    print("single-row updates, commits a second (median, and lowest to highest; share of none)")
    print(f"{'writers':>8}" + "".join(f"{table:>32}" for table in TABLES))
    for writers in WRITERS:
        found: dict[str, list[float]] = {table: [] for table in TABLES}
        for _ in range(rounds):
            for table in TABLES:
                found[table].append(pgbench(server, table, writers, seconds))
        base = statistics.median(found["none"])
        cells = [
            f"{statistics.median(runs):8.0f} ({min(runs):.0f}-{max(runs):.0f}) {statistics.median(runs) / base:5.2f}"
            for runs in found.values()
        ]
        print(f"{writers:>8}" + "".join(f"{cell:>32}" for cell in cells), flush=True)


def pgbench(server: EmbeddedPostgres, table: str, writers: int, seconds: int) -> float:
    """Run pgbench once and return its commits a second."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(
            f"\\set id random(1, {ROWS})\n\\set hours random(1, 1000)\n"
            f"update \"{table}\" set estimated_hours = :hours where id = 'task-' || :id;\n"
        )
        script.flush()
        command = [str(server.bin / "pgbench"), "-n", "-M", "prepared", "-f", script.name, "-T", str(seconds)]
        command += ["-c", str(writers), "-j", str(min(writers, 2)), server.dsn]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"tps = ([\d.]+)", printed)
    assert match, printed
    return float(match[1])


def print_bulk(dsn: str, rounds: int) -> None:
    """Print the seconds of one UPDATE and one COPY of many rows."""
    print(f"\none statement over {BULK_ROWS} rows, seconds (median; multiple of none)")
    print(f"{'':>8}" + "".join(f"{table:>20}" for table in TABLES))
    found: dict[str, dict[str, list[float]]] = {"copy": {}, "update": {}}
    for _ in range(rounds):
        for table in TABLES:
            for kind, seconds in bulk(dsn, table).items():
                found[kind].setdefault(table, []).append(seconds)
    for kind, by_table in found.items():
        base = statistics.median(by_table["none"])
        cells = [
            f"{statistics.median(runs):.2f} ({statistics.median(runs) / base:.1f} x)" for runs in by_table.values()
        ]
        print(f"{kind:>8}" + "".join(f"{cell:>20}" for cell in cells))


def bulk(dsn: str, table: str) -> dict[str, float]:
    """Time one COPY in and one UPDATE."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'delete from "{table}"')
        connection.execute(f'vacuum "{table}"')
        connection.execute("checkpoint")
        began = time.perf_counter()
        with connection.cursor().copy(f'copy "{table}" (id, board_id, title, lane) from stdin') as copy:
            for number in range(BULK_ROWS):
                copy.write_row((f"task-{number}", "board-1", "A title", "todo"))
        copied = time.perf_counter()
        connection.execute(f"update \"{table}\" set lane = 'done'")
        return {"copy": copied - began, "update": time.perf_counter() - copied}


def version(dsn: str) -> str:
    """Return the server's version."""
    with psycopg.connect(dsn) as connection:
        return connection.info.parameter_status("server_version") or "?"


if __name__ == "__main__":
    main()

"""How large the journal becomes under sustained writes, and what a row costs while journalling is paused.

    python benchmarks/journal.py --seconds 60

Writers update rows as fast as they can while `relay.prune` runs every second, as often as it takes to see what a
small `keep_bytes` does; autovacuum makes what was pruned free for new entries, once a minute. Everything runs on this
machine, on an embedded Postgres that never waits for a disk.
"""

from __future__ import annotations

import statistics
import threading
import time

import click
import psycopg

from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.install import run

ROWS = 1000
MEGABYTE = 1024 * 1024


@click.command()
@click.option("--seconds", default=60, show_default=True, help="how long to write")
@click.option("--keep-mb", default=32, show_default=True, help="keep_bytes, in megabytes")
@click.option("--rounds", default=9, show_default=True, help="rounds in which a row's cost is measured")
def main(seconds: int, keep_mb: int, rounds: int) -> None:
    """Print the journal's size over time, and the cost of a row in three states."""
    with EmbeddedPostgres() as server:
        for name in ("tasks", "install"):
            run(server.dsn, name)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(
                "insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, %s) i", [ROWS]
            )
            connection.execute("select relay.epoch()")
            cost(connection, rounds)
            connection.execute("update relay.settings set keep_bytes = %s", [keep_mb * MEGABYTE])
            sustained(server.dsn, connection, seconds)


def cost(connection: psycopg.Connection, rounds: int) -> None:
    """Measure an update of all rows in turns: not watched, paused, journalled."""
    states = {
        "not watched": ("select relay.unwatch('public.tasks')",),
        "paused": (
            "select relay.watch('public.tasks')",
            "select relay.set_control(true, relay.pauses() + 1, 0)",
        ),
        "journalled": ("select relay.watch('public.tasks')", "select relay.resume()"),
    }
    found: dict[str, list[float]] = {state: [] for state in states}
    for _ in range(rounds):
        for state, statements in states.items():
            for statement in statements:
                connection.execute(statement)
            connection.execute("vacuum tasks")
            begun = time.perf_counter()
            connection.execute("update tasks set title = 'T' || random()")
            found[state].append((time.perf_counter() - begun) / ROWS * 1e6)
    print("update of 1,000 rows, µs a row (median)")
    for state, costs in found.items():
        print(f"  {state:<12} {statistics.median(costs):6.1f}")


def sustained(dsn: str, connection: psycopg.Connection, seconds: int) -> None:
    """Write from four threads, prune every second, and print what the journal takes."""
    end = threading.Event()
    written = [0, 0, 0, 0]

    def write(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as mine:
            while not end.is_set():
                mine.execute("update tasks set title = 'T' || random() where id = 't' || (1 + random() * 999)::int")
                written[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    print("sustained single-row updates by 4 writers\n  second   changes  journal MB")
    for second in range(1, seconds + 1):
        time.sleep(1)
        while (connection.execute("select relay.prune()").fetchone() or [0])[0]:
            pass
        if second % 10 == 0:
            row = connection.execute("select pg_total_relation_size('relay.journal')")
            print(f"  {second:6} {sum(written):9} {int((row.fetchone() or [0])[0]) / MEGABYTE:11.1f}", flush=True)
    end.set()
    for thread in threads:
        thread.join()


main()

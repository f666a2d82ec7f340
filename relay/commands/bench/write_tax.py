"""`relay bench writers`: measures what the triggers cost writers, on the user's own server.

Like `relay bench`, it uses a scratch database that is removed afterwards.

Rules:
- The tables differ only in their trigger: none; the simplest one that journals; the relay's, while a relay reads; and
  one that sends each row through pg_notify. They are written in turns, so that other load affects all alike, and the
  median counts.
- The writers loop inside the server, so that no round trip to a client hides the cost of a commit.
- A run ends when the relay has passed on everything written, so that its work is included.
- Processor time is counted by process. If Postgres runs elsewhere, it is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from relay.commands import terminal
from relay.commands.bench import run as bench
from relay.commands.bench.costs import TABLES, Cost, Runs, Tax
from relay.commands.bench.lab import Lab, prepare
from relay.postgres import install


def run(
    database_url: str, writers: Sequence[int], seconds: float, rounds: int, rows: int, tell: Callable[[str], None]
) -> Tax:
    """Measure, with runs of `seconds`, and report each step.

    Raises BenchError, InstallError, and KeyboardInterrupt at a signal.
    """
    with terminal.interrupted_once(), bench.scratch(database_url) as dsn:
        install.run(dsn, "install")
        prepare(dsn)
        with Lab.open(dsn, max(writers)) as lab:
            tell("from commit to client ...")  # first, because after a load the relay polls for a while
            idle = lab.meter.latency(seconds * rounds)
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


def _turns(rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from TABLES


def _alternating(rounds: int, measure: Callable[[str], Cost]) -> Runs:
    found: Runs = {table: [] for table in TABLES}
    for table in _turns(rounds):
        found[table].append(measure(table))
    return found


def _bulk(lab: Lab, rounds: int, rows: int) -> tuple[Runs, Runs, float]:
    """Measure COPY and UPDATE, and the bytes of the journal's entries per row of the UPDATE."""
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

"""Measures runs of `relay bench writers`: time, WAL, processor time by process, and latency from commit to client."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import psycopg

from relay.commands.bench import processor
from relay.commands.bench import run as bench
from relay.commands.bench.costs import Cost, Latency, Processor
from relay.commands.bench.subscribers import stamped


class Meter:
    """Measures writers together with a relay that has one client."""

    def __init__(
        self, watcher: psycopg.Connection, writers: Collection[int], relay: int, client: bench.Subscribers
    ) -> None:
        """Observe over `watcher`; `writers` are the backends that write, `relay` is the relay's process id."""
        self._watcher, self._writers = watcher, writers
        self._relay, self._client = relay, client
        self._probes = 0
        self._is_local = processor.is_titled(watcher.info.backend_pid, watcher.info.dbname)

    def measured(self, write: Callable[[], int]) -> Cost:
        """Measure `write`, which returns the number of changes, until the relay has passed them on."""
        wal, before = self._wal(), self._readings()
        began = time.perf_counter()
        changes = write()
        seconds = time.perf_counter() - began
        self.settle()
        used = {
            kind: sum(time - before.get(kind, {}).get(pid, 0) for pid, time in readings.items())
            for kind, readings in self._readings().items()
        }
        return Cost(changes, seconds, self._wal() - wal, Processor(**used) if self._is_local else None)

    def latency(self, seconds: float) -> Latency:
        """Commit changes at RATE, and measure how long each took to the client. Raises BenchError."""
        count = max(int(bench.RATE * seconds), 1)
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(began + number / bench.RATE - time.monotonic(), 0))
            self._probe()
        self._client.wait(count)
        report = self._client.report()
        return Latency(report.p50, report.p99, report.max)

    def settle(self) -> None:
        """Wait until the relay has passed on everything committed so far. Raises BenchError."""
        self._probe()
        self._client.wait(1)
        self._client.report()

    def number(self, query: str, *parameters: object) -> int:
        """Run a query that returns an integer."""
        row = self._watcher.execute(query.encode(), parameters).fetchone()
        assert row
        return int(row[0])

    def _readings(self) -> dict[str, dict[int, float]]:
        """Return the processor time of each process so far, by kind."""
        pids: dict[str, list[int]] = {"writers": [], "sessions": [], "background": []}
        # Only sessions have a user. In the scratch database, all but ours are the relay's.
        query = (
            "select pid, usesysid is not null from pg_stat_activity"
            " where (datname = current_database() or datid is null) and pid <> pg_backend_pid()"
        )
        for pid, is_session in self._watcher.execute(query):
            pids["writers" if pid in self._writers else "sessions" if is_session else "background"].append(pid)
        pids["relay"] = processor.family(self._relay)
        return {kind: {pid: processor.seconds(pid) or 0.0 for pid in its} for kind, its in pids.items()}

    def _wal(self) -> int:
        """Return the total bytes of WAL ever written."""
        return self.number("select (pg_current_wal_insert_lsn() - '0/0')::bigint")

    def _probe(self) -> None:
        self._watcher.execute("update public.probe set title = %s", [stamped(self._probes)])
        self._probes += 1

"""The results of `relay bench writers`: the cost of each run, and the tables compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TABLES: Final = ("none", "plain", "relay", "notify")
"""`none` comes first; the others are compared with it."""


@dataclass(frozen=True)
class Processor:
    """Processor time in seconds, by process."""

    writers: float
    """The backends that wrote."""

    sessions: float
    """The relay's backends."""

    background: float
    """Postgres's own processes: the WAL writer, the checkpointer, and autovacuum unless it ended meanwhile."""

    relay: float
    """The relay itself."""


@dataclass(frozen=True)
class Cost:
    """The cost of one run."""

    changes: int
    seconds: float
    """Until the writers were done."""

    wal: int
    """Bytes of WAL that the server wrote meanwhile."""

    processor: Processor | None
    """Until the relay was done too; None if Postgres does not run on this machine."""


@dataclass(frozen=True)
class Latency:
    """The time from just before the statement that commits a change until a client has it, in milliseconds."""

    p50: float | None
    p99: float | None
    max: float | None


Runs = dict[str, list[Cost]]
"""The costs of each table's runs."""


@dataclass(frozen=True)
class Tax:
    """All results."""

    machine: Mapping[str, str]
    single: Mapping[int, Runs]
    """Single-row updates, each a transaction, by the number of writers."""

    in_one: Runs
    """Single-row updates, all in one transaction."""

    copy: Runs
    update: Runs
    """One statement over many rows."""

    journal_bytes: float
    """Bytes of the journal's entries per row of that UPDATE."""

    prune: Cost
    """The cost of deleting these entries and of the vacuum, in the part `writers`."""

    idle: Latency
    busy: Mapping[int, Latency]
    """While this number of writers write."""

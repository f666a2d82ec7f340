"""What `relay bench writers` finds: what each run took, and the tables that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TABLES: Final = ("none", "plain", "relay", "notify")
"""`none` comes first: the others are compared with it."""


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

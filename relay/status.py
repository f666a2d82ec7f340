"""What a relay tells of itself for its operator, be it one process or several together."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, in seconds; beyond the last there is one more."""

OVERDUE_SECONDS: Final = 300.0
"""So long after its time, a part of the journal that was not pruned is worth a warning."""

QUEUE_USAGE: Final = 0.5
"""From this share on, the doorbell is silent, lest a full notification queue fail commits."""

FULL_SHARE: Final = 0.75
"""From this share of `stop_bytes` on, a journal is nearly full."""


CROWDED: Final = (
    "strangers hold connections to WS_PORT, and others were crowded out before they were let in: "
    "the log has their addresses (websocket.refused)"
)


class Histogram(BaseModel):
    """How often something took how long."""

    model_config = ConfigDict(frozen=True)

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BUCKETS) + 1)
    """For each of LATENCY_BUCKETS how many were up to it and above the one before; then those beyond the last."""
    seconds: float = 0.0
    """All together."""

    def observe(self, seconds: float) -> Histogram:
        """Count one more."""
        counts = list(self.counts)
        counts[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        return Histogram(counts=tuple(counts), seconds=self.seconds + seconds)

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Histogram(counts=counts, seconds=self.seconds + other.seconds)


class Counts(BaseModel):
    """What has happened since the start; none of it ever becomes less."""

    model_config = ConfigDict(frozen=True)

    messages: Mapping[str, int] = {}
    """By type, each as often as it was sent."""
    bytes: int = 0
    fell_behind: int = 0
    """How often a subscriber could take no more."""
    refused: Mapping[str, int] = {}
    """Connections and tokens that were refused, by reason."""
    opened: int = 0
    """Connections that clients made, and those that ended, by close code."""
    closed: Mapping[str, int] = {}
    commit_to_socket: Histogram = Histogram()
    """Of canaries."""
    reconnects: int = 0
    """How often the feed connected to Postgres again."""
    continuity_lost: Mapping[str, int] = {}
    """How often all boards were sent anew because of a break, by reason."""
    transactions: int = 0
    """Those that the feed found in the journal."""
    rung: int = 0
    """Doorbells that the feed heard."""
    skipped: int = 0
    """About how many transactions did not ring."""
    entries: int = 0
    """Entries of the stream, written or read."""
    suppressed: int = 0
    """Lines that were not logged, for there were too many of their kind."""
    dropped: int = 0
    """Lines of the log that could not be written."""

    def __add__(self, other: Counts) -> Counts:
        one, another = dict(self), dict(other)
        by_label = {name: Counter(one[name]) + Counter(another[name]) for name in _BY_LABEL}
        return Counts.model_validate({name: one[name] + another[name] for name in _NUMBERS} | by_label)


_BY_LABEL: Final = tuple(name for name, field in Counts.model_fields.items() if isinstance(field.default, dict))
_NUMBERS: Final = tuple(name for name in Counts.model_fields if name not in _BY_LABEL)


class Journal(BaseModel):
    """How the journal is; see relay.vitals in sql/install.sql."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    rows: int
    bytes: int
    """About how many are in use: of entries that are kept, and of those that wait to be vacuumed."""
    age_seconds: float
    """How old the oldest change is at most."""
    overdue_seconds: float
    """For how long a part of it should have been pruned."""
    keep_bytes: int
    stop_bytes: int
    paused: bool


class Database(BaseModel):
    """The database's side, as a feed that is connected sees it."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    journal: Journal
    queue_usage: float
    """The share of the server's notification queue that is in use."""
    canary_seconds: float | None
    """How long the last canary took that came back."""
    lag_seconds: float
    """All that was committed so long ago has been passed on."""


class StreamStatus(BaseModel):
    """The stream of NATS JetStream, as a publisher or an edge sees it."""

    model_config = ConfigDict(frozen=True)

    connected: bool
    active: bool | None = None
    """Whether this publisher is the active one; None for an edge."""
    entry: int | None = None
    """The sequence of the last entry that was written, or read."""


class Status(BaseModel):
    """How it is at a moment."""

    model_config = ConfigDict(frozen=True)

    running: bool
    """Whether clients can connect."""
    port: int
    connections: int = 0
    max_connections: int = 0
    arrivals: int = 0
    """Connections that are not let in yet."""
    crowded: bool = False
    """Whether some of those were crowded out a short while ago."""
    subscriptions: int = 0
    behind: int = 0
    """Clients that have not read what they were sent."""
    backlog: int = 0
    """Bytes that wait for clients."""
    feed_up: bool = False
    """Whether changes flow, to all."""
    problem: str | None = None
    """Why clients are not served as they should be, in one line."""
    unready: str | None = None
    """Why no client should be sent here, in one line."""
    lag_seconds: float = 0.0
    """All that was committed so long ago has been passed on."""
    database: Database | None = None
    """None while the feed is not connected, or is not one of a database."""
    stream: StreamStatus | None = None
    """None where clients are served from the database."""
    counts: Counts = Counts()
    workers: int = 1
    """How many processes serve clients; `of` so many."""
    of: int = 1

    @property
    def warnings(self) -> list[str]:
        """Say what does no harm yet, a line each."""
        of_clients = [CROWDED] if self.crowded else []
        return [*of_clients, *(_warnings(self.database) if self.database else ())]


def _warnings(database: Database) -> Iterable[str]:
    journal = database.journal
    if journal.paused:
        yield (
            "journalling is paused, for the journal is full: clients are sent whole boards every few seconds: "
            "end the transaction that keeps it from being vacuumed, which relay check names"
        )
    if journal.overdue_seconds > OVERDUE_SECONDS:
        yield (
            f"the journal is not pruned: a part of it has been due for {journal.overdue_seconds:.0f} seconds: "
            "end the transaction, or the session with a lock on it, that holds it"
        )
    if journal.bytes > FULL_SHARE * journal.stop_bytes:
        yield (
            f"the journal is nearly full: it has {journal.bytes} bytes, and stops at {journal.stop_bytes}: "
            "see that it is pruned, or raise stop_bytes in relay.settings"
        )
    if database.queue_usage >= QUEUE_USAGE:
        yield (
            f"the notification queue is {database.queue_usage:.0%} full: the doorbell is silent, and changes come up "
            "to a second later: end the session that listens in a long transaction"
        )

"""The state of a relay, for its operator: health, `/status`, and metrics, of one process or of several. Pure.

Rules:
- Each figure is defined once, as a field here: its name as a metric, its type, its meaning and how the figures of
  several processes are combined. Metrics, sums over processes, `/status` and docs/reference.md derive from that.
- None means unknown or not applicable; there is then no metric.
- In JSON, keys are camelCase, times are in seconds and sizes in bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Final, Literal, NamedTuple, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, in seconds. One more bucket has what is above the last."""

OVERDUE_SECONDS: Final = 300.0
"""Seconds by which pruning may be late before there is a warning."""

QUEUE_USAGE: Final = 0.5
"""Share of the notification queue above which triggers do not notify, because a full queue fails commits."""

FULL_SHARE: Final = 0.75
"""Share of `stop_bytes` above which the journal is nearly full."""

FAILING_BOARDS: Final = 3
"""Maximum number of boards that warnings name."""

CROWDED: Final = (
    "strangers hold connections to WS_PORT, and others were crowded out before they were let in: "
    "the log has their addresses (websocket.refused)"
)
CROWDED_HEALTH: Final = (
    "strangers hold connections to HEALTH_PORT, and others were crowded out: the log has their addresses "
    "(health.refused); keep the port inside"
)

# What a figure is ------------------------------------------------------------------------------------------

Kind = Literal["gauge", "counter", "histogram", "info"]
"""The type of a metric. An info is a gauge of 1 whose label is the figure."""

Merge = Literal["sum", "max", "any", "all", "own"]
"""How the figures of several processes are combined; `own` ones are set by the process that starts the others."""


class Metric(NamedTuple):
    """A figure as a metric."""

    name: str
    kind: Kind
    meaning: str
    label: str = ""
    """If set, there is a figure for each value of this label."""
    merge: Merge = "sum"


def _metric(metric: Metric) -> Any:
    return Field(description=metric.meaning, json_schema_extra={"metric": cast(Any, metric._asdict())})


def _gauge(name: str, meaning: str, merge: Merge = "sum") -> Any:
    return _metric(Metric(name, "gauge", meaning, merge=merge))


def _part(name: str, meaning: str) -> Any:
    """Define a figure of a part that is taken from one process for all."""
    return _gauge(name, meaning, "own")


def _counter(name: str, meaning: str, label: str = "") -> Any:
    return _metric(Metric(name, "counter", meaning, label))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Histogram(_Model):
    """A histogram of durations."""

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BUCKETS) + 1)
    """The number of durations in each bucket (not cumulative); the last one is above all LATENCY_BUCKETS."""
    seconds: float = 0.0
    """Sum of all durations."""

    def observe(self, seconds: float) -> Histogram:
        """Return the histogram with one more duration."""
        counts = list(self.counts)
        counts[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        return Histogram(counts=tuple(counts), seconds=self.seconds + seconds)

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Histogram(counts=counts, seconds=self.seconds + other.seconds)

    def __sub__(self, other: Histogram) -> Histogram:
        counts = tuple(one - another for one, another in zip(self.counts, other.counts, strict=True))
        return Histogram(counts=counts, seconds=self.seconds - other.seconds)


# The figures -----------------------------------------------------------------------------------------------

_ByLabel = Mapping[str, int]


class Counts(_Model):
    """What has happened since the start; no figure ever decreases."""

    opened: Annotated[int, _counter("relay_connections_opened", "connections that clients made")] = 0
    closed: Annotated[
        _ByLabel,
        _counter(
            "relay_connections_closed",
            "connections that ended, by close `code`; codes of neither the protocol nor the relay are `other`",
            "code",
        ),
    ] = {}
    refused: Annotated[
        _ByLabel, _counter("relay_refused", "connections and tokens that were refused, by `reason`", "reason")
    ] = {}
    health_refused: Annotated[
        _ByLabel,
        _counter("relay_health_refused", "connections to `HEALTH_PORT` that were refused, by `reason`", "reason"),
    ] = {}
    messages: Annotated[
        _ByLabel,
        _counter("relay_messages_sent", "messages sent, counted once per client, by `type`", "type"),
    ] = {}
    bytes: Annotated[int, _counter("relay_sent_bytes", "bytes of these messages, without TCP's and TLS's")] = 0
    fell_behind: Annotated[
        int,
        _counter("relay_fell_behind", "how often a client had read too slowly to be sent more"),
    ] = 0
    reconnects: Annotated[
        int, _counter("relay_feed_reconnects", "how often the feed reconnected to Postgres, all workers together")
    ] = 0
    continuity_lost: Annotated[
        _ByLabel,
        _counter(
            "relay_continuity_lost", "how often all boards were sent again after a break, by `reason`", "reason"
        ),
    ] = {}
    transactions: Annotated[
        int,
        _counter("relay_transactions_read", "transactions that the feed found in the journal, including its probes"),
    ] = 0
    notifications: Annotated[
        _ByLabel,
        _counter(
            "relay_notifications",
            '`state="received"`: notifications received; `state="skipped"`: transactions that did not notify because '
            "relays were polling, approximately",
            "state",
        ),
    ] = {}
    entries: Annotated[
        int | None,
        _counter("relay_stream_entries", "entries of the stream, written by publishers or read by edges"),
    ] = None
    suppressed: Annotated[int, _counter("relay_log_lines_suppressed", "lines above the limits of their event")] = 0
    dropped: Annotated[
        int,
        _counter(
            "relay_log_lines_dropped", "lines that could not be written: the disk is full, or nobody reads them"
        ),
    ] = 0
    commit_to_socket: Annotated[
        Histogram,
        _metric(
            Metric(
                "relay_commit_to_socket_seconds",
                "histogram",
                "from just before a commit until its changes were written to the sockets, measured by probes: one "
                "every two seconds per worker, which queue behind all other changes",
            )
        ),
    ] = Histogram()

    def __add__(self, other: Counts) -> Counts:
        return Counts.model_validate({name: _sum(getattr(self, name), getattr(other, name)) for name in _COUNTS})


_COUNTS: Final = tuple(Counts.model_fields)


class Journal(_Model):
    """The state of the journal; see relay.vitals in sql/install.sql."""

    rows: Annotated[
        int,
        _part(
            "relay_journal_rows",
            "changes in the journal, from Postgres's statistics: a second late, and too few after a crash",
        ),
    ]
    bytes: Annotated[
        int, _part("relay_journal_bytes", "bytes of the journal in use, approximately: kept, or waiting for VACUUM")
    ]
    age_seconds: Annotated[float, _part("relay_journal_age_seconds", "maximum age of the oldest change kept")]
    overdue_seconds: Annotated[float, _part("relay_journal_overdue_seconds", "how late pruning is")]
    keep_bytes: Annotated[int, _part("relay_journal_keep_bytes", "`keep_bytes` of `relay.settings`")]
    stop_bytes: Annotated[int, _part("relay_journal_stop_bytes", "`stop_bytes` of `relay.settings`")]
    paused: Annotated[bool, _part("relay_journal_paused", "1 while journalling is paused, because it was full")]


class Database(_Model):
    """The state of the database, as seen by a connected feed."""

    journal: Journal
    queue_usage: Annotated[
        float,
        _part(
            "relay_notification_queue_usage_ratio",
            "share of Postgres's notification queue in use; from 0.5, triggers do not notify",
        ),
    ]
    probe_seconds: float | None
    """How long the last probe that came back took."""
    lag_seconds: float
    """Seconds since the last read; everything committed before it has been passed on."""


class StreamStatus(_Model):
    """The stream of NATS JetStream, as a publisher or an edge sees it."""

    connected: Annotated[
        bool, _part("relay_stream_connected", "1 while NATS is connected; publishers and edges only")
    ]
    active: Annotated[
        bool | None, _part("relay_publisher_active", "1 while this publisher is the active one; publishers only")
    ] = None
    entry: Annotated[
        int | None,
        _part(
            "relay_stream_last_entry",
            "sequence of the last entry, written by a publisher or read by an edge",
        ),
    ] = None


class Process(_Model):
    """The process that answers."""

    started: float
    """Seconds since the epoch."""
    resident_bytes: int
    open_files: int
    max_files: int


class Status(_Model):
    """The state at a moment."""

    version: Annotated[
        str | None, _metric(Metric("relay_build_info", "info", "1; the `version` is its label", "version", "own"))
    ] = None
    running: bool
    """Whether clients can connect."""
    port: int
    connections: Annotated[int, _gauge("relay_connections", "clients that are connected")] = 0
    arrivals: Annotated[
        int,
        _gauge("relay_arrivals", "pending connections: accepted, and not admitted yet"),
    ] = 0
    max_connections: Annotated[
        int, _gauge("relay_max_connections", "the limit of connected clients: `WS_MAX_CONNECTIONS`", "max")
    ] = 0
    crowded: Annotated[bool, Field(json_schema_extra={"merge": "any"})] = False
    """Whether connections to WS_PORT were crowded out recently."""
    health_crowded: bool = False
    """Whether connections to HEALTH_PORT were."""
    subscriptions: Annotated[
        int,
        _gauge("relay_subscriptions", "subscriptions: a board with ten subscribers counts ten"),
    ] = 0
    behind: Annotated[
        int,
        _gauge(
            "relay_clients_behind",
            "clients that read too slowly: they get their boards once they have read what was sent",
        ),
    ] = 0
    backlog: Annotated[
        int, _gauge("relay_backlog_bytes", "bytes that wait for clients, without those in the kernel")
    ] = 0
    feed_up: Annotated[
        bool, _gauge("relay_feed_up", "1 while changes flow from Postgres to all workers, else 0", "all")
    ] = False
    lag_seconds: Annotated[
        float,
        _gauge(
            "relay_feed_lag_seconds",
            "seconds since the last read: everything committed before it has been passed on; up to 1 while idle",
            "max",
        ),
    ] = 0.0
    problem: str | None = None
    """Why clients are not served as they should be, in one line."""
    unready: str | None = None
    """Why no new client should be sent here, in one line."""
    failing: Annotated[Mapping[str, str], Field(json_schema_extra={"merge": "join"})] = {}
    """The boards that cannot be read, each with the reason in one line."""
    incomplete: Annotated[Mapping[str, str], Field(json_schema_extra={"merge": "join"})] = {}
    """The tables that are not shown as they should be, each with the reason in one line."""
    database: Database | None = None
    """None while the feed is not connected, and on edges."""
    stream: StreamStatus | None = None
    """None where clients are served from the database."""
    workers: Annotated[int, _gauge("relay_workers", "processes that serve clients and answer", "own")] = 1
    workers_configured: Annotated[
        int, _gauge("relay_workers_configured", "processes that should serve clients", "own")
    ] = 1
    counts: Counts = Counts()
    process: Process | None = None
    """Set by the process that answers `/status`."""

    @computed_field(  # type: ignore[prop-decorator]  # mypy knows no decorated properties
        description="1 while `/ready` is a 200",
        json_schema_extra={
            "metric": cast(Any, Metric("relay_ready", "gauge", "1 while `/ready` is a 200", merge="own")._asdict())
        },
    )
    @property
    def ready(self) -> bool:
        return self.unready is None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def warnings(self) -> list[str]:
        """Conditions that do no harm yet, one line each."""
        crowded = [CROWDED] * self.crowded + [CROWDED_HEALTH] * self.health_crowded
        database = _warnings(self.database) if self.database else ()
        return [*crowded, *_failing(self.failing), *self.incomplete.values(), *database]

    @property
    def health(self) -> Literal["healthy", "degraded", "unhealthy"]:
        """Whether clients are served: all of them, all except on some boards or tables, or none."""
        return "unhealthy" if self.problem else "degraded" if self.failing or self.incomplete else "healthy"


def _failing(boards: Mapping[str, str]) -> Iterable[str]:
    for board, problem in islice(boards.items(), FAILING_BOARDS):
        yield f"board {board[:100]!r} cannot be read: {problem}"
    if len(boards) > FAILING_BOARDS:
        yield f"{len(boards) - FAILING_BOARDS} more boards cannot be read"


def _warnings(database: Database) -> Iterable[str]:
    journal = database.journal
    if journal.paused:
        yield (
            "journalling is paused, because the journal is full: clients are sent whole boards every few seconds: "
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
            f"the notification queue is {database.queue_usage:.0%} full: triggers do not notify, and changes come up "
            "to a second later: end the session that listens in a long transaction"
        )


# What follows from the definitions -------------------------------------------------------------------------


def merged(statuses: Sequence[Status]) -> dict[str, Any]:
    """Combine the figures of several processes, by name, as their definitions say."""
    found: dict[str, Any] = {}
    for name, field in Status.model_fields.items():
        about = field.json_schema_extra
        if not isinstance(about, dict):
            continue
        values = [getattr(status, name) for status in statuses]
        match cast(Any, about).get("metric", about)["merge"]:
            case "sum":
                found[name] = sum(values)
            case "max":
                found[name] = max(values, default=0)
            case "any":
                found[name] = any(values)
            case "all":
                found[name] = bool(values) and all(values)
            case "join":
                found[name] = {key: value for each in values for key, value in each.items()}
    return found


def metrics(model: type[BaseModel] = Status) -> Iterator[Metric]:
    """Yield every metric that is defined."""
    for about in _abouts(model).values():
        if isinstance(about, Metric):
            yield about
        else:
            yield from metrics(about)


def figures(model: BaseModel) -> Iterator[tuple[Metric, Any]]:
    """Yield every metric that has a figure, with the figure."""
    for name, about in _abouts(type(model)).items():
        value = getattr(model, name)
        if value is None:
            continue
        if isinstance(about, Metric):
            yield about, value
        else:
            yield from figures(value)


def _abouts(model: type[BaseModel]) -> dict[str, Metric | type[BaseModel]]:
    """Return the fields that are metrics, or models that contain some."""
    found: dict[str, Metric | type[BaseModel]] = {}
    fields: dict[str, Any] = {**model.model_fields, **model.model_computed_fields}
    for name, field in fields.items():
        about = field.json_schema_extra
        if isinstance(about, dict) and "metric" in about:
            found[name] = Metric(**cast(Any, about["metric"]))
            continue
        annotation = getattr(field, "annotation", None)
        for each in (annotation, *get_args(annotation)):
            if isinstance(each, type) and issubclass(each, BaseModel):
                found[name] = each
    return found


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, Mapping):
        return {label: one.get(label, 0) + other.get(label, 0) for label in one | other}
    return one + other

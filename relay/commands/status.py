"""`relay status`: one screen of a running relay, from what it answers over HTTP.

It knows the relay by /health, /ready and /metrics alone. `Sample` is what was answered at a moment; `overview` makes
the figures of one, or of two for what happens a second; `screen` shows them. Only `ask` and `watch` do I/O.

Rules:
- What an older relay does not tell is None, and shown as a dash: nothing is guessed, nothing fails.
- A counter that went back began anew with its relay, so there is no rate.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import click
from prometheus_client.parser import text_string_to_metric_families

from relay.commands import terminal
from relay.commands.options import one_line_errors
from relay.text import error_line, harmless, one_line

ANSWER_SECONDS: Final = 5.0
"""A relay that takes longer does not answer."""

HEALTHY, UNHEALTHY, NO_ANSWER = 0, 1, 2
"""Exit codes."""

_LABEL_WIDTH: Final = 12
_DASH: Final = "-"

Labels = frozenset[tuple[str, str]]


class NoAnswer(Exception):
    """Why there is nothing to show, in one line."""


class AddressError(Exception):
    """Where no relay can be, in one line."""


# What was answered -----------------------------------------------------------------------------------------


class Metrics:
    """The samples of a page of metrics; a page that is not there has none."""

    def __init__(self, page: str = "") -> None:
        """Read a page. Raises ValueError if it is none."""
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(page):
            if family.type == "counter":  # one that is by label is known before it has counted anything
                self._samples[f"{family.name}_total"] = {}
            for sample in family.samples:
                self._samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """Return a sample's value, None if there is none."""
        return self._samples.get(name, {}).get(frozenset(labels.items()))

    def by(self, label: str, name: str) -> dict[str, float] | None:
        """Return the values by a label; None if the metric is not known at all."""
        samples = self._samples.get(name)
        if samples is None:
            return None
        return {dict(labels)[label]: value for labels, value in sorted(samples.items(), key=str) if dict(labels)}

    def label(self, label: str, name: str) -> str | None:
        """Return the value of a label of the metric's only sample."""
        return next((dict(labels).get(label) for labels in self._samples.get(name, {})), None)

    def buckets(self, name: str) -> dict[float, float]:
        """Return a histogram's buckets: how many were up to each bound."""
        return {float(bound): value for bound, value in (self.by("le", f"{name}_bucket") or {}).items()}


@dataclass(frozen=True)
class Sample:
    """What a relay answered."""

    at: float
    """Seconds since the epoch."""
    health: Mapping[str, Any]
    ready: Mapping[str, Any] | None = None
    metrics: Metrics = field(default_factory=Metrics)


# The figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """What is shown. Times are seconds, sizes bytes; None is not known."""

    healthy: bool
    ready: bool | None
    problem: str | None
    warnings: Sequence[str]
    version: str | None
    uptime: float | None
    connections: float | None
    max_connections: float | None
    subscriptions: float | None
    clients_behind: float | None
    backlog: float | None
    messages: Mapping[str, float] | None
    """By type, since the start."""
    message_rates: Mapping[str, float] | None
    """By type, a second."""
    sent: float | None
    sent_rate: float | None
    fell_behind: float | None
    refused: Mapping[str, float] | None
    """By reason."""
    commit_to_socket_p50: float | None
    commit_to_socket_p99: float | None
    feed_up: bool | None
    feed_lag: float | None
    feed_reconnects: float | None
    continuity_lost: Mapping[str, float] | None
    """By reason."""
    transactions: float | None
    transaction_rate: float | None
    doorbells_rung: float | None
    doorbells_skipped: float | None
    journal_rows: float | None
    journal_bytes: float | None
    journal_keep: float | None
    journal_stop: float | None
    journal_age: float | None
    journal_overdue: float | None
    journal_paused: bool | None
    notification_queue: float | None
    """The used share of it, from 0 to 1."""
    stream_connected: bool | None
    """Whether NATS is; None where clients are served from the database, as all about a stream."""
    stream_entry: float | None
    publisher_active: bool | None
    workers: float | None
    workers_configured: float | None
    memory: float | None
    open_files: float | None
    max_files: float | None

    @property
    def exit_code(self) -> int:
        """HEALTHY if clients are served as they should be, and more may come."""
        return HEALTHY if self.healthy and self.ready is not False else UNHEALTHY


def overview(now: Sample, before: Sample | None = None) -> Overview:
    """Return the figures of a moment; with an earlier one also those of the time between."""
    metrics, ready = now.metrics, (now.ready or {}).get("ready")
    websocket, database = _part(now.health, "websocket"), _part(now.health, "database")
    stream = _part(now.health, "stream")
    journal, value = _part(database, "journal"), metrics.value
    started = value("process_start_time_seconds")
    latency = _since(metrics.buckets("relay_commit_to_socket_seconds"), before)
    return Overview(
        healthy=now.health.get("status") == "healthy",
        ready=ready if isinstance(ready, bool) else None,
        problem=_string(now.health.get("problem")) or _string((now.ready or {}).get("problem")),
        warnings=[str(warning) for warning in now.health.get("warnings") or ()],
        version=metrics.label("version", "relay_build_info"),
        uptime=None if started is None else max(now.at - started, 0.0),
        connections=_first(value("relay_connections"), websocket.get("connections")),
        max_connections=value("relay_max_connections"),
        subscriptions=value("relay_subscriptions"),
        clients_behind=value("relay_clients_behind"),
        backlog=value("relay_backlog_bytes"),
        messages=metrics.by("type", "relay_messages_sent_total"),
        message_rates=_rates(now, before, "type", "relay_messages_sent_total"),
        sent=value("relay_sent_bytes_total"),
        sent_rate=_rate(now, before, "relay_sent_bytes_total"),
        fell_behind=value("relay_fell_behind_total"),
        refused=metrics.by("reason", "relay_refused_total"),
        commit_to_socket_p50=quantile(latency, 0.5),
        commit_to_socket_p99=quantile(latency, 0.99),
        feed_up=_flag(value("relay_feed_up")),
        feed_lag=_first(value("relay_feed_lag_seconds"), database.get("lagSeconds")),
        feed_reconnects=value("relay_feed_reconnects_total"),
        continuity_lost=metrics.by("reason", "relay_continuity_lost_total"),
        transactions=value("relay_transactions_read_total"),
        transaction_rate=_rate(now, before, "relay_transactions_read_total"),
        doorbells_rung=value("relay_doorbells_total", state="rung"),
        doorbells_skipped=value("relay_doorbells_total", state="skipped"),
        journal_rows=_first(value("relay_journal_rows"), journal.get("rows")),
        journal_bytes=_first(value("relay_journal_bytes"), journal.get("bytes")),
        journal_keep=_first(value("relay_journal_keep_bytes"), journal.get("keepBytes")),
        journal_stop=_first(value("relay_journal_stop_bytes"), journal.get("stopBytes")),
        journal_age=_first(value("relay_journal_age_seconds"), journal.get("ageSeconds")),
        journal_overdue=_first(value("relay_journal_overdue_seconds"), journal.get("overdueSeconds")),
        journal_paused=_flag(_first(value("relay_journal_paused"), journal.get("paused"))),
        notification_queue=_first(value("relay_notification_queue_usage_ratio"), database.get("queueUsage")),
        stream_connected=_flag(_first(value("relay_stream_connected"), stream.get("connected"))),
        stream_entry=_first(value("relay_stream_last_entry"), stream.get("entry")),
        publisher_active=_flag(_first(value("relay_publisher_active"), stream.get("active"))),
        workers=_first(value("relay_workers"), now.health.get("workers")),
        workers_configured=value("relay_workers_configured"),
        memory=value("process_resident_memory_bytes"),
        open_files=value("process_open_fds"),
        max_files=value("process_max_fds"),
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile of a histogram as Prometheus does: evenly within a bucket.

    What is beyond the last bound is taken for that bound; with nothing in it there is no quantile.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower


def _since(buckets: Mapping[float, float], before: Sample | None) -> Mapping[float, float]:
    """Give the buckets of the time between, if anything happened then and the relay is the same; else all."""
    earlier = before.metrics.buckets("relay_commit_to_socket_seconds") if before else {}
    between = {bound: count - earlier.get(bound, 0.0) for bound, count in buckets.items()}
    happened = earlier and all(count >= 0 for count in between.values()) and any(between.values())
    return between if happened else buckets


def _rate(now: Sample, before: Sample | None, name: str) -> float | None:
    if before is None:
        return None
    return _per_second(now.metrics.value(name), before.metrics.value(name), now.at - before.at)


def _rates(now: Sample, before: Sample | None, label: str, name: str) -> dict[str, float] | None:
    """Return rates by a label; one that was not there before began at 0."""
    counts, earlier = now.metrics.by(label, name), before.metrics.by(label, name) if before else None
    if counts is None or earlier is None or before is None:
        return None
    rates = {key: _per_second(count, earlier.get(key, 0.0), now.at - before.at) for key, count in counts.items()}
    return {key: rate for key, rate in rates.items() if rate is not None}


def _per_second(count: float | None, earlier: float | None, seconds: float) -> float | None:
    if count is None or earlier is None or count < earlier or seconds <= 0:
        return None
    return (count - earlier) / seconds


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def _first(value: float | None, other: object) -> float | None:
    """Prefer the metric to what health tells of the same."""
    return value if value is not None else float(other) if isinstance(other, int | float) else None


def _flag(value: float | None) -> bool | None:
    return None if value is None else bool(value)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


# The screen ------------------------------------------------------------------------------------------------


def screen(figures: Overview, url: str, at: str, *, colours: bool) -> list[str]:
    """Show figures in lines of their own."""
    head = "healthy" if figures.healthy else "unhealthy"
    head += {True: ", ready", False: ", not ready", None: ""}[figures.ready]
    colour = "green" if figures.exit_code == HEALTHY else "red"
    lines = [
        f"{_style('relay status', colours, bold=True)}  {harmless(url)}  {at}",
        "",
        _row("status", _style(head, colours, fg=colour, bold=True), colours=colours),
    ]
    if figures.problem:
        lines.append(_row("problem", _style(_line(figures.problem), colours, fg="red"), colours=colours))
    warnings = [_style(_line(warning), colours, fg="yellow") for warning in figures.warnings]
    lines += [_row("warning", warning, colours=colours) for warning in warnings]
    return lines + [_row(label, harmless(text), colours=colours) for label, text in _rows(figures)]


def _rows(figures: Overview) -> Iterator[tuple[str, str]]:
    yield "version", f"{figures.version or _DASH}, up {_span(figures.uptime)}"
    yield "workers", _of(figures.workers, figures.workers_configured)
    yield "process", f"memory {_size(figures.memory)}, open files {_of(figures.open_files, figures.max_files)}"
    yield "", ""
    yield from _clients(figures)
    yield "", ""
    yield from _database(figures)


def _clients(figures: Overview) -> Iterator[tuple[str, str]]:
    connections = _of(figures.connections, figures.max_connections)
    yield "clients", f"connections {connections}, subscriptions {_count(figures.subscriptions)}"
    yield "refused", _by_name(figures.refused)
    waiting = f"clients {_count(figures.clients_behind)}, waiting {_size(figures.backlog)}"
    yield "behind", f"{waiting}, fell behind {_count(figures.fell_behind)} times"
    yield from _messages(figures)
    yield "bytes", f"{_size(figures.sent)}{_rate_of(figures.sent_rate, _size)}"
    p50, p99 = _short(figures.commit_to_socket_p50), _short(figures.commit_to_socket_p99)
    yield "latency", f"p50 {p50}, p99 {p99} from commit to socket"


def _database(figures: Overview) -> Iterator[tuple[str, str]]:
    up = {True: "up", False: "down", None: _DASH}[figures.feed_up]
    yield "feed", f"{up}, lag {_short(figures.feed_lag)}, reconnects {_count(figures.feed_reconnects)}"
    yield "continuity", f"lost: {_by_name(figures.continuity_lost)}"
    yield "transactions", f"read {_count(figures.transactions)}{_rate_of(figures.transaction_rate, _decimal)}"
    yield "doorbells", f"rung {_count(figures.doorbells_rung)}, skipped {_count(figures.doorbells_skipped)}"
    bounds = f"pruned from {_size(figures.journal_keep)}, stops at {_size(figures.journal_stop)}"
    paused = ", PAUSED" if figures.journal_paused else ""
    yield "journal", f"rows {_count(figures.journal_rows)}, {_size(figures.journal_bytes)}, {bounds}{paused}"
    yield "", f"oldest {_span(figures.journal_age)}, overdue {_span(figures.journal_overdue)}"
    yield "notify queue", _DASH if figures.notification_queue is None else f"{figures.notification_queue:.1%} used"
    if figures.stream_connected is not None:
        connected = "connected" if figures.stream_connected else "not connected"
        active = {True: ", publishes", False: ", stands by", None: ""}[figures.publisher_active]
        yield "stream", f"{connected}, last entry {_count(figures.stream_entry)}{active}"


def _messages(figures: Overview) -> Iterator[tuple[str, str]]:
    label, rates = "messages", figures.message_rates or {}
    if not figures.messages:
        yield label, _by_name(figures.messages)
    for kind, count in (figures.messages or {}).items():
        yield label, f"{kind:12}  {_count(count):>12}{_rate_of(rates.get(kind), _decimal)}"
        label = ""


def _row(label: str, text: str, *, colours: bool) -> str:
    return f"{_style(f'{label:{_LABEL_WIDTH}}', colours, dim=True)}  {text}" if text else ""


def _style(text: str, colours: bool, **styles: str | bool) -> str:
    return click.style(text, **styles) if colours else text  # type: ignore[arg-type]


def _line(text: str) -> str:
    return harmless(one_line(text))


def _count(value: float | None) -> str:
    return _DASH if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return _DASH if value is None else f"{value:,.1f}"


def _of(value: float | None, most: float | None) -> str:
    return f"{_count(value)} of {_count(most)}"


def _by_name(values: Mapping[str, float] | None) -> str:
    if values is None:
        return _DASH
    return ", ".join(f"{name} {_count(value)}" for name, value in values.items()) or "none"


def _rate_of(rate: float | None, show: Callable[[float | None], str]) -> str:
    return "" if rate is None else f", {show(rate)} a second"


def _size(value: float | None) -> str:
    """Give bytes as Postgres's pg_size_pretty does, with the units of 1024."""
    if value is None:
        return _DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TB"


def _short(seconds: float | None) -> str:
    """Give a time that should be milliseconds."""
    if seconds is None:
        return _DASH
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _span(seconds: float | None) -> str:
    """Give a time that may be days, by its two largest units."""
    if seconds is None:
        return _DASH
    rest, parts = int(seconds), []
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        amount, rest = divmod(rest, unit)
        if amount:
            parts.append(f"{amount} {name}")
    return " ".join(parts[:2]) or "0 s"


# The relay -------------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Raise AddressError for what is no address of a relay's health."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise AddressError(f"{url!r} is no address of a relay's health: expected one like http://localhost:4001")


async def ask(url: str) -> Sample:
    """Ask a relay how it is. Raises NoAnswer."""
    where = url.rstrip("/")
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session:
            (_, health), (ready_status, ready), (metrics_status, page) = await asyncio.gather(
                *(_get(session, f"{where}/{page}") for page in ("health", "ready", "metrics"))
            )
    except TimeoutError:
        raise NoAnswer(f"no answer from {harmless(where)} within {ANSWER_SECONDS:.0f} seconds") from None
    except (aiohttp.ClientError, OSError, UnicodeDecodeError) as ex:
        raise NoAnswer(
            f"no answer from {harmless(where)}: {harmless(error_line(ex))}: "
            "is the daemon running, with this HEALTH_PORT?"
        ) from None
    known = _object(health)
    if known is None or "status" not in known:
        raise NoAnswer(f"{harmless(where)} answered something else than a relay: check --url")
    return Sample(
        at=time.time(),
        health=known,
        ready=_object(ready) if ready_status in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE} else None,
        metrics=_metrics(page) if metrics_status == HTTPStatus.OK else Metrics(),
    )


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with session.get(url) as response:
        return response.status, await response.text()


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _metrics(page: str) -> Metrics:
    try:
        return Metrics(page)
    except (ValueError, IndexError, KeyError):  # the parser's own, for a page that is none
        return Metrics()


async def watch_relay(url: str, every: float | None, show: Callable[[Overview | NoAnswer], None]) -> int:
    """Show a relay once, or every so many seconds for ever; return the exit code. Raises AddressError."""
    check_url(url)
    terminal.cancel_when_reader_leaves()
    before: Sample | None = None
    while True:
        try:
            now = await ask(url)
        except NoAnswer as ex:
            show(ex)
            code = NO_ANSWER
        else:
            figures = overview(now, before)
            show(figures)
            before, code = now, figures.exit_code
        if every is None:
            return code
        await asyncio.sleep(every)


def figures_as_json(figures: Overview) -> str:
    """Give the figures as one JSON object in one line, with keys in camelCase."""
    return json.dumps({_camel(name): value for name, value in asdict(figures).items()})


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


# The command -----------------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--url",
    default="http://localhost:4001",
    envvar="RELAY_HEALTH_URL",
    show_envvar=True,
    show_default=True,
    help="where the relay's HEALTH_PORT is",
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as one JSON object in a line")
@click.option(
    "--watch", type=click.FloatRange(0.1, 86_400), metavar="SECONDS", help="show them again and again, with rates"
)
@click.pass_context
def status(context: click.Context, /, url: str, as_json: bool, watch: float | None) -> None:
    """Show how a running relay is. Exit code 0 if healthy and ready, 1 if not, 2 if there is no answer."""
    colours = terminal.has_colours(sys.stdout)
    full_screen = watch is not None and not as_json and sys.stdout.isatty()
    code = 0
    with (
        one_line_errors(AddressError),
        terminal.interrupted_once(),
        terminal.quiet_end(),
        terminal.pages(full_screen=full_screen) as show_page,
    ):

        def show(found: Overview | NoAnswer) -> None:
            if isinstance(found, NoAnswer) and not full_screen:
                click.echo(f"Error: {found}", err=True)
            elif isinstance(found, NoAnswer):
                show_page([str(found)])
            elif as_json:
                click.echo(figures_as_json(found))
            else:
                show_page(screen(found, url, f"{datetime.now().astimezone():%H:%M:%S}", colours=colours))

        code = asyncio.run(watch_relay(url, watch, show))
    context.exit(code)

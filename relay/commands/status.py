"""`relay status`: one screen of a running relay, from its answer at `/status`.

A `Sample` is an answer and its time, `rates` are the rates between two samples, and `screen` shows them. Only `ask`
and `watch` do I/O.

Rules:
- A counter that has decreased was reset by a restart, so it has no rate.
- Control characters in answers are escaped, because an answer may contain text of strangers.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import click
from pydantic import ValidationError
from rich.text import Text

from relay.commands import terminal
from relay.commands.options import one_line_errors
from relay.model.status import LATENCY_BUCKETS, Counts, Database, Histogram, Status
from relay.text import error_line, harmless, one_line

ANSWER_SECONDS: Final = 5.0
"""Timeout of an answer."""

HEALTHY, UNHEALTHY, NO_ANSWER = 0, 1, 2
"""Exit codes."""

_LABEL_WIDTH: Final = 14
_DASH: Final = "-"


class NoAnswer(Exception):
    """There is no usable answer. The text says why, in one line."""


class AddressError(Exception):
    """The address cannot be a relay's. The text says why, in one line."""


@dataclass(frozen=True)
class Sample:
    """A relay's answer."""

    at: float
    """Seconds since the Unix epoch."""
    status: Status

    @property
    def exit_code(self) -> int:
        """HEALTHY if clients are served, and new ones can be."""
        return UNHEALTHY if self.status.problem or self.status.unready else HEALTHY


# The figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Rates per second between two samples; None, or without the type, if unknown."""

    messages: Mapping[str, float] = field(default_factory=dict)
    """By type."""
    bytes: float | None = None
    transactions: float | None = None


def rates(now: Sample, before: Sample | None) -> Rates:
    """Return the rates between two samples; with only one, none is known."""
    if before is None or now.at <= before.at:
        return Rates()
    seconds, counts, earlier = now.at - before.at, now.status.counts, before.status.counts

    def a_second(count: int, past: int) -> float | None:
        return (count - past) / seconds if count >= past else None

    by_type = {kind: a_second(count, earlier.messages.get(kind, 0)) for kind, count in counts.messages.items()}
    return Rates(
        messages={kind: rate for kind, rate in by_type.items() if rate is not None},
        bytes=a_second(counts.bytes, earlier.bytes),
        transactions=a_second(counts.transactions, earlier.transactions),
    )


def latency(now: Sample, before: Sample | None) -> Histogram:
    """Return the latencies between two samples, if there were any and the relay did not restart; otherwise all."""
    since_start = now.status.counts.commit_to_socket
    if before is None:
        return since_start
    between = since_start - before.status.counts.commit_to_socket
    return between if any(between.counts) and min(between.counts) >= 0 else since_start


def quantile(histogram: Histogram, share: float) -> float | None:
    """Estimate a quantile as Prometheus does, by linear interpolation within a bucket, in seconds.

    A value above the last bound counts as that bound; without values there is no quantile.
    """
    rank = share * sum(histogram.counts)
    if not rank:
        return None
    lower, below = 0.0, 0
    for bound, count in zip((*LATENCY_BUCKETS, math.inf), histogram.counts, strict=True):
        if below + count >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / count
        lower, below = bound, below + count
    return lower


def as_json(now: Sample, before: Sample | None) -> str:
    """Return the answer, with quantiles and rates, as a JSON object in one line."""
    found = latency(now, before)
    figures: dict[str, Any] = now.status.model_dump(mode="json", by_alias=True)
    figures["commitToSocketP50"], figures["commitToSocketP99"] = quantile(found, 0.5), quantile(found, 0.99)
    figures["rates"] = asdict(rates(now, before)) if before else None
    return json.dumps(figures)


# The screen ------------------------------------------------------------------------------------------------


def screen(now: Sample, before: Sample | None, url: str) -> list[Text]:
    """Show a sample, a line for each figure."""
    at = datetime.fromtimestamp(now.at).astimezone()
    status = now.status
    well = now.exit_code == HEALTHY
    head = f"{status.health}, {'ready' if status.ready else 'not ready'}"
    lines = [
        Text.assemble(("relay status", "bold"), f"  {harmless(url)}  {at:%H:%M:%S}"),
        Text(),
        _line("status", head, "bold green" if well else "bold red"),
    ]
    if problem := status.problem or status.unready:
        lines.append(_line("problem", one_line(problem), "red"))
    lines += [_line("warning", one_line(warning), "yellow") for warning in status.warnings]
    return lines + [_line(label, text) for label, text in _rows(now, before)]


def _line(label: str, text: str, style: str = "") -> Text:
    if not text:
        return Text()
    return Text.assemble((f"{label:{_LABEL_WIDTH}}", "dim"), (harmless(text), style))


def _rows(now: Sample, before: Sample | None) -> Iterator[tuple[str, str]]:
    status, process = now.status, now.status.process
    yield "version", f"{status.version}, up {_span(max(now.at - process.started, 0.0) if process else None)}"
    yield "workers", f"{status.workers} of {status.workers_configured}"
    if process:
        files = f"open files {process.open_files:,} of {process.max_files:,}"
        yield "process", f"memory {_size(process.resident_bytes)}, {files}"
    yield "", ""
    yield from _clients(now, before)
    yield "", ""
    yield from _feed(status, rates(now, before))
    if status.database:
        yield from _journal(status.database)
    if status.stream:
        connected = "connected" if status.stream.connected else "not connected"
        active = {True: ", publishes", False: ", stands by", None: ""}[status.stream.active]
        yield "stream", f"{connected}, last entry {_count(status.stream.entry)}{active}"


def _clients(now: Sample, before: Sample | None) -> Iterator[tuple[str, str]]:
    status, counts, between = now.status, now.status.counts, rates(now, before)
    connections = f"connections {status.connections:,} of {status.max_connections:,}"
    yield "clients", f"{connections}, subscriptions {status.subscriptions:,}"
    yield "refused", _by_name(counts.refused)
    waiting = f"clients {status.behind:,}, waiting {_size(status.backlog)}"
    yield "behind", f"{waiting}, fell behind {counts.fell_behind:,} times"
    yield from _messages(counts, between)
    yield "bytes", f"{_size(counts.bytes)}{_a_second(between.bytes, _size)}"
    found = latency(now, before)
    p50, p99 = _short(quantile(found, 0.5)), _short(quantile(found, 0.99))
    yield "latency", f"p50 {p50}, p99 {p99} from commit to socket"


def _messages(counts: Counts, between: Rates) -> Iterator[tuple[str, str]]:
    if not counts.messages:
        yield "messages", "none"
    label = "messages"
    for kind, count in sorted(counts.messages.items()):
        yield label, f"{kind:12}  {count:>12,}{_a_second(between.messages.get(kind), _decimal)}"
        label = " "


def _feed(status: Status, between: Rates) -> Iterator[tuple[str, str]]:
    counts = status.counts
    up = "up" if status.feed_up else "down"
    yield "feed", f"{up}, lag {_short(status.lag_seconds)}, reconnects {counts.reconnects:,}"
    yield "continuity", f"lost: {_by_name(counts.continuity_lost)}"
    yield (
        "transactions",
        f"read {counts.transactions:,}{_a_second(between.transactions, _decimal)}",
    )
    yield "notifications", _by_name(counts.notifications)


def _journal(database: Database) -> Iterator[tuple[str, str]]:
    journal = database.journal
    bounds = f"pruned from {_size(journal.keep_bytes)}, stops at {_size(journal.stop_bytes)}"
    paused = ", PAUSED" if journal.paused else ""
    yield "journal", f"rows {journal.rows:,}, {_size(journal.bytes)}, {bounds}{paused}"
    yield " ", f"oldest {_span(journal.age_seconds)}, overdue {_span(journal.overdue_seconds)}"
    yield "notify queue", f"{database.queue_usage:.1%} used"


def _count(value: int | None) -> str:
    return _DASH if value is None else f"{value:,}"


def _decimal(value: float) -> str:
    return f"{value:,.1f}"


def _by_name(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(values.items())) or "none"


def _a_second(rate: float | None, show: Callable[[float], str]) -> str:
    return "" if rate is None else f", {show(rate)} a second"


def _size(value: float) -> str:
    """Format bytes as Postgres's pg_size_pretty does, with units of 1024."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TB"


def _short(seconds: float | None) -> str:
    """Format a duration that is usually milliseconds."""
    if seconds is None:
        return _DASH
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _span(seconds: float | None) -> str:
    """Format a duration by its two largest units."""
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
    """Check that this can be the address of a relay's health. Raises AddressError."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise AddressError(f"{url!r} is no address of a relay's health: expected one like http://localhost:4001")


async def ask(url: str) -> Sample:
    """Ask a relay for its status. Raises NoAnswer."""
    where = url.rstrip("/")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session,
            session.get(f"{where}/status") as response,
        ):
            return Sample(time.time(), Status.model_validate_json(await response.text()))
    except TimeoutError:
        raise NoAnswer(f"no answer from {harmless(where)} within {ANSWER_SECONDS:.0f} seconds") from None
    except (aiohttp.ClientError, OSError) as ex:
        why = harmless(error_line(ex))
        raise NoAnswer(
            f"no answer from {harmless(where)}: {why}: is the daemon running, with this HEALTH_PORT?"
        ) from None
    except (ValidationError, UnicodeDecodeError):
        raise NoAnswer(f"{harmless(where)} answered something else than a relay: check --url") from None


async def watch(url: str, every: float | None, show: Callable[[Sample | NoAnswer, Sample | None], None]) -> int:
    """Show a relay once, or every `every` seconds, compared with the previous sample; return the exit code.

    Raises AddressError.
    """
    check_url(url)
    terminal.cancel_when_reader_leaves()
    before: Sample | None = None
    while True:
        try:
            now = await ask(url)
        except NoAnswer as ex:
            show(ex, None)
            code = NO_ANSWER
        else:
            show(now, before)
            before, code = now, now.exit_code
        if every is None:
            return code
        await asyncio.sleep(every)


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
@click.option("--json", "in_json", is_flag=True, help="print the figures as one JSON object in a line")
@click.option(
    "--watch",
    "every",
    type=click.FloatRange(0.1, 86_400),
    metavar="SECONDS",
    help="show them again and again, with rates",
)
@click.pass_context
def status(context: click.Context, /, url: str, in_json: bool, every: float | None) -> None:
    """Show how a running relay is. Exit code 0 if healthy and ready, 1 if not, 2 if there is no answer."""
    console = terminal.console()
    full_screen = every is not None and not in_json and console.is_terminal
    code = 0
    with (
        one_line_errors(AddressError),
        terminal.interrupted_once(),
        terminal.quiet_end(),
        terminal.pages(console, full_screen=full_screen) as show_page,
    ):

        def show(found: Sample | NoAnswer, before: Sample | None) -> None:
            if isinstance(found, NoAnswer):
                if full_screen:
                    show_page([Text(str(found))])
                else:
                    click.echo(f"Error: {found}", err=True)
            elif in_json:
                click.echo(as_json(found, before))
            else:
                show_page(screen(found, before, url))

        code = asyncio.run(watch(url, every, show))
    context.exit(code)

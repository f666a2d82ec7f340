"""What an operator sees of the daemon, over HTTP: health, readiness and liveness, and metrics for Prometheus.

It knows the relay by its `Status` alone, so one process and several look the same. Browsers find the JavaScript
client here too, of the same version as the relay; what else the port answers, the board page above all, is given.
"""

from __future__ import annotations

import hashlib
import http
import itertools
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay.listening import NO_FILE, TOO_SLOW, Listener, bind
from relay.refusals import CROWDED_OUT, Refusals
from relay.status import LATENCY_BUCKETS, Counts, Database, Histogram, Status, StreamStatus

_VERSION = version("pg-relay")

_STATIC: Final = Path(__file__).parent / "static"

CLIENT_FILES: Final[Mapping[str, str]] = {"client.js": "text/javascript", "client.d.ts": "text/plain"}
"""The JavaScript client: a module and its types, each with its content type."""


CROWDED_HEALTH: Final = (
    "strangers hold connections to HEALTH_PORT, and others were crowded out: the log has their addresses "
    "(health.refused); keep the port inside"
)

CONNECTIONS: Final = 64
"""So many may be connected to it at once; then the oldest of the fullest address goes."""

REQUEST_SECONDS: Final = 10.0
"""How long a connection may take to make its first request."""

KEPT_SECONDS: Final = 75.0
"""How long a connection is kept after an answer, for another request."""


MOST_HEADERS: Final = 64
"""How many headers a request may have."""

BODY_BYTES: Final = 64 * 1024
"""So much of a request's body is kept, until it is read."""


class Monitor:
    """Answers GET /health, /ready, /live and /metrics, and GET /client.js and /client.d.ts, the JavaScript client.

    Health is the guide's JSON and the database's side, 200 while clients are served and 503 if not. Ready is the same
    answer for load balancers, in few bytes, once a canary has come through. Live is 200 while anything is answered.
    `routes` are answered too.
    """

    def __init__(self, status: Callable[[], Awaitable[Status]], routes: Iterable[web.RouteDef] = ()) -> None:
        self._status = status
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/live", _live)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_routes([_file(name, content_type) for name, content_type in CLIENT_FILES.items()])
        app.router.add_routes(routes)
        app.middlewares.append(self._heard)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            keepalive_timeout=KEPT_SECONDS,
            max_headers=MOST_HEADERS,
            read_bufsize=BODY_BYTES,
        )
        self._refusals = Refusals("health.refused")
        self._listener = Listener(self._refusals, lambda: REQUEST_SECONDS, most=CONNECTIONS)

    async def open(self, host: str, port: int, sockets: Sequence[socket.socket] = ()) -> int:
        """Begin to listen, on sockets that are bound if there are any, and return the port.

        Raises OSError if the address is taken.
        """
        await self._runner.setup()
        server = self._runner.server
        assert server, "it was set up"
        self._listener.open(sockets or await bind(host, port), lambda _: server())
        return self._listener.port or 0

    async def close(self) -> None:
        await self._listener.close()
        await self._runner.cleanup()

    @web.middleware
    async def _heard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Give the connection of a request all the time it wants: it has said what it is there for."""
        for arrival in self._listener.arrivals:
            if arrival.protocol is request.protocol:
                arrival.heard()
        return await handler(request)

    async def _health(self, _request: web.Request) -> web.Response:
        status = await self._status()
        body: dict[str, Any] = {
            "status": "unhealthy" if status.problem else "healthy",
            "websocket": {"running": status.running, "connections": status.connections, "port": status.port},
        }
        if status.database or not _is_edge(status):
            body["database"] = _database(status.database)
        if status.stream:
            body["stream"] = status.stream.model_dump(exclude_none=True)
        if status.of > 1:
            body["workers"] = status.workers
        if status.problem:
            body["problem"] = status.problem
        warnings = [*status.warnings, *([CROWDED_HEALTH] if self._listener.crowded else [])]
        if warnings:
            body["warnings"] = warnings
        return _answer(body, ok=not status.problem)

    async def _ready(self, _request: web.Request) -> web.Response:
        unready = (await self._status()).unready
        return _answer({"ready": False, "problem": unready} if unready else {"ready": True}, ok=not unready)

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_Metrics(await self._status(), self._refusals.counts))
        ProcessCollector(registry=registry)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _live(_request: web.Request) -> web.Response:
    return _answer({"live": True}, ok=True)


def _file(name: str, content_type: str) -> web.RouteDef:
    """Serve a file, that browsers ask for anew each time and fetch when it has changed.

    Pages of any origin may load it, for there is no secret in it: it is who connects that is asked for one.
    """
    body = (_STATIC / name).read_bytes()
    etag = hashlib.sha256(body).hexdigest()
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Access-Control-Allow-Origin": "*"}

    async def serve(request: web.Request) -> web.Response:
        if any(known.value in {etag, "*"} for known in request.if_none_match or ()):
            response = web.Response(status=http.HTTPStatus.NOT_MODIFIED, headers=headers)
        else:
            response = web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)
        response.etag = etag
        return response

    return web.get(f"/{name}", serve)


def _is_edge(status: Status) -> bool:
    """Whether it serves clients from NATS, and knows nothing of the database."""
    return status.stream is not None and status.stream.active is None


def _answer(body: Mapping[str, Any], *, ok: bool) -> web.Response:
    return web.json_response(body, status=http.HTTPStatus.OK if ok else http.HTTPStatus.SERVICE_UNAVAILABLE)


def _database(database: Database | None) -> dict[str, Any]:
    return {"connected": True} | database.model_dump(by_alias=True) if database else {"connected": False}


class _Metrics(Collector):
    """What Prometheus is told of a status."""

    def __init__(self, status: Status, health_refused: Mapping[str, int]) -> None:
        self._status = status
        self._health_refused = dict.fromkeys((CROWDED_OUT, NO_FILE, TOO_SLOW), 0) | dict(health_refused)

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield from _gauges(status)
        if status.database:
            yield from _journal(status.database)
        if status.stream:
            yield from _stream(status.stream, status.counts)
        yield from _counters(status.counts)
        yield _by_label("relay_health_refused", "Connections to HEALTH_PORT refused.", "reason", self._health_refused)
        yield _histogram(
            "relay_commit_to_socket_seconds",
            "From a commit to the sockets, of canaries.",
            status.counts.commit_to_socket,
        )


def _gauges(status: Status) -> Iterator[Metric]:
    build = GaugeMetricFamily("relay_build_info", "1; the version is its label.", labels=["version"])
    build.add_metric([_VERSION], 1)
    yield build
    yield GaugeMetricFamily("relay_connections", "Clients that are connected.", status.connections)
    yield GaugeMetricFamily("relay_arrivals", "Connections that are not let in yet.", status.arrivals)
    yield GaugeMetricFamily("relay_max_connections", "Clients that may be connected.", status.max_connections)
    yield GaugeMetricFamily("relay_subscriptions", "Boards that clients follow, over all.", status.subscriptions)
    yield GaugeMetricFamily("relay_clients_behind", "Clients that have not read what they were sent.", status.behind)
    yield GaugeMetricFamily("relay_backlog_bytes", "Bytes that wait for clients.", status.backlog)
    yield GaugeMetricFamily("relay_feed_up", "1 while changes flow from Postgres to all.", status.feed_up)
    yield GaugeMetricFamily(
        "relay_feed_lag_seconds", "All that was committed so long ago has been passed on.", status.lag_seconds
    )
    yield GaugeMetricFamily("relay_ready", "1 while canaries come through in time.", not status.unready)
    yield GaugeMetricFamily("relay_workers", "Processes that serve clients and answer.", status.workers)
    yield GaugeMetricFamily("relay_workers_configured", "Processes that should.", status.of)


def _journal(database: Database) -> Iterator[Metric]:
    journal = database.journal
    for name, meaning, value in (
        ("relay_journal_rows", "Changes in the journal, about.", journal.rows),
        ("relay_journal_bytes", "Bytes of the journal in use, about.", journal.bytes),
        ("relay_journal_keep_bytes", "From this size on, it is pruned whatever its age.", journal.keep_bytes),
        ("relay_journal_stop_bytes", "At this size, journalling stops.", journal.stop_bytes),
        ("relay_journal_age_seconds", "Age of the oldest change in the journal, at most.", journal.age_seconds),
        ("relay_journal_overdue_seconds", "For how long a part should have been pruned.", journal.overdue_seconds),
        ("relay_journal_paused", "1 while nothing is journalled, for the journal was full.", journal.paused),
        ("relay_notification_queue_usage_ratio", "Used share of Postgres's queue.", database.queue_usage),
    ):
        yield GaugeMetricFamily(name, meaning, value)


def _stream(stream: StreamStatus, counts: Counts) -> Iterator[Metric]:
    yield GaugeMetricFamily("relay_stream_connected", "1 while NATS is connected.", stream.connected)
    if stream.active is not None:
        yield GaugeMetricFamily("relay_publisher_active", "1 while this publisher is the active one.", stream.active)
    if stream.entry is not None:
        yield GaugeMetricFamily("relay_stream_last_entry", "Sequence of the last entry.", stream.entry)
    yield CounterMetricFamily("relay_stream_entries", "Entries of the stream, written or read.", counts.entries)


def _counters(counts: Counts) -> Iterator[Metric]:
    yield CounterMetricFamily("relay_connections_opened", "Connections that clients made.", counts.opened)
    yield _by_label("relay_connections_closed", "Connections that ended.", "code", counts.closed)
    yield _by_label("relay_refused", "Connections and tokens refused.", "reason", counts.refused)
    yield _by_label("relay_messages_sent", "Messages sent, to each client.", "type", counts.messages)
    yield CounterMetricFamily("relay_sent_bytes", "Bytes of these messages, as framed.", counts.bytes)
    yield CounterMetricFamily(
        "relay_fell_behind", "Times that a client read too slowly and missed something.", counts.fell_behind
    )
    yield CounterMetricFamily("relay_feed_reconnects", "Times that the feed connected again.", counts.reconnects)
    yield _by_label(
        "relay_continuity_lost", "Times that all were sent their boards anew.", "reason", counts.continuity_lost
    )
    yield CounterMetricFamily("relay_transactions_read", "Transactions in the journal.", counts.transactions)
    yield _by_label(
        "relay_doorbells",
        "Doorbells heard, and transactions that did not ring, about.",
        "state",
        {"rung": counts.rung, "skipped": counts.skipped},
    )
    yield CounterMetricFamily("relay_log_lines_suppressed", "Lines not logged, in a flood.", counts.suppressed)
    yield CounterMetricFamily("relay_log_lines_dropped", "Lines that could not be written.", counts.dropped)


def _by_label(name: str, meaning: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _histogram(name: str, meaning: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = map(floatToGoString, (*LATENCY_BUCKETS, math.inf))
    upto = itertools.accumulate(histogram.counts)
    return HistogramMetricFamily(name, meaning, list(zip(bounds, upto, strict=True)), histogram.seconds)

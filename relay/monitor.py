"""What an operator sees of the daemon, over HTTP: health, and metrics for Prometheus.

It knows the relay by its `Status` alone, so one process and several look the same.
"""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.status import Status


class Monitor:
    """Answers GET /health with the guide's JSON, 200 while clients are served and 503 if not; and GET /metrics."""

    def __init__(self, status: Callable[[], Awaitable[Status]]) -> None:
        self._status = status
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def open(self, host: str, port: int) -> int:
        """Begin to listen and return the port. Raises OSError if the address is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        status = await self._status()
        body: dict[str, object] = {
            "status": "unhealthy" if status.problem else "healthy",
            "websocket": {"running": status.running, "connections": status.connections, "port": status.port},
        }
        if status.of > 1:
            body["workers"] = status.workers
        if status.problem:
            body["problem"] = status.problem
        code = http.HTTPStatus.SERVICE_UNAVAILABLE if status.problem else http.HTTPStatus.OK
        return web.json_response(body, status=code)

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_Metrics(await self._status()))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Metrics(Collector):
    """What Prometheus is told of a status."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status, counts = self._status, self._status.counts
        yield GaugeMetricFamily("relay_connections", "Clients that are connected.", status.connections)
        yield GaugeMetricFamily("relay_subscriptions", "Boards that clients follow, over all.", status.subscriptions)
        messages = CounterMetricFamily("relay_messages_sent", "Messages sent, to each client.", labels=["type"])
        for kind, count in sorted(counts.messages.items()):
            messages.add_metric([kind], count)
        yield messages
        yield CounterMetricFamily("relay_sent_bytes", "Bytes of these messages, as framed.", counts.bytes)
        yield CounterMetricFamily(
            "relay_fell_behind", "Times that a client read too slowly and missed something.", counts.fell_behind
        )
        refused = CounterMetricFamily("relay_refused", "Connections and tokens refused.", labels=["reason"])
        for reason, count in sorted(counts.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield GaugeMetricFamily("relay_feed_up", "1 while changes flow from Postgres to all.", status.feed_up)
        yield GaugeMetricFamily("relay_workers", "Processes that serve clients and answer.", status.workers)

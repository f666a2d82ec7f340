"""The HTTP side for operators: health, readiness and liveness, and metrics for Prometheus.

It knows only the relay's `Status`, so one process and several are the same. It also serves the JavaScript client of
the relay's version, and additional routes, such as the board page.
"""

from __future__ import annotations

import hashlib
import http
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from relay import __version__
from relay.http import metrics
from relay.model.status import Database, Status
from relay.websocket.listener import NO_FILE, TOO_SLOW, Listener
from relay.websocket.refusals import CROWDED_OUT, Refusals
from relay.websocket.sockets import bind

_STATIC: Final = Path(__file__).parents[1] / "client" / "js"

CLIENT_FILES: Final[Mapping[str, str]] = {"client.js": "text/javascript", "client.d.ts": "text/plain"}
"""The files of the JavaScript client, with their content types."""


CONNECTIONS: Final = 64
"""Maximum number of connections; above it, the oldest one of the address with the most is closed."""

REQUEST_SECONDS: Final = 10.0
"""Timeout of the first request on a connection."""

KEPT_SECONDS: Final = 75.0
"""Timeout for the next request after a response."""


MOST_HEADERS: Final = 64
"""Maximum number of headers of a request."""

BODY_BYTES: Final = 64 * 1024
"""Maximum size of a request's body that is kept until it is read."""


class Monitor:
    """Answers GET /health, /ready, /live, /status and /metrics, and the JavaScript client.

    Health is the guide's JSON with the state of the database, 200 while clients are served and 503 otherwise. Ready
    is a short answer for load balancers, 200 once a probe has come through. Live is always 200. Status is everything
    that is known, as JSON; metrics are the same for Prometheus. `routes` are served too.
    """

    def __init__(self, status: Callable[[], Awaitable[Status]], routes: Iterable[web.RouteDef] = ()) -> None:
        self._status = status
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/live", _live)
        app.router.add_get("/status", self._full_status)
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
        self._listener = Listener(self._refusals, REQUEST_SECONDS, most=CONNECTIONS)

    async def open(self, host: str, port: int, sockets: Sequence[socket.socket] = ()) -> int:
        """Listen on the given sockets, or else on a host and port, and return the port. Raises OSError."""
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
        """Stop the timer of a connection that has made a request."""
        for arrival in self._listener.arrivals:
            if arrival.protocol is request.protocol:
                arrival.heard()
        return await handler(request)

    async def _health(self, _request: web.Request) -> web.Response:
        status = await self._complete()
        body: dict[str, Any] = {
            "status": status.health,
            "websocket": {"running": status.running, "connections": status.connections, "port": status.port},
        }
        if status.database or not _is_edge(status):
            body["database"] = _database(status.database)
        if status.stream:
            body["stream"] = status.stream.model_dump(exclude_none=True, by_alias=True)
        if status.workers_configured > 1:
            body["workers"] = status.workers
        if status.problem:
            body["problem"] = status.problem
        if status.warnings:
            body["warnings"] = status.warnings
        return _answer(body, ok=not status.problem)

    async def _ready(self, _request: web.Request) -> web.Response:
        unready = (await self._status()).unready
        return _answer({"ready": False, "problem": unready} if unready else {"ready": True}, ok=not unready)

    async def _full_status(self, _request: web.Request) -> web.Response:
        body = (await self._complete()).model_dump_json(by_alias=True)
        return web.Response(text=body, content_type="application/json")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=metrics.page(await self._complete()), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _complete(self) -> Status:
        """Add the figures of this port and this process to the status."""
        status = await self._status()
        refused = dict.fromkeys((CROWDED_OUT, NO_FILE, TOO_SLOW), 0) | self._refusals.counts
        return status.model_copy(
            update={
                "version": __version__,
                "health_crowded": self._listener.crowded,
                "counts": status.counts.model_copy(update={"health_refused": refused}),
                "process": metrics.process(),
            }
        )


async def _live(_request: web.Request) -> web.Response:
    return _answer({"live": True}, ok=True)


def _file(name: str, content_type: str) -> web.RouteDef:
    """Serve a file that browsers revalidate each time.

    Pages of any origin may load it: it contains no secret, and clients that connect must present a credential.
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
    """Return whether this is an edge, which has no state of the database."""
    return status.stream is not None and status.stream.active is None


def _answer(body: Mapping[str, Any], *, ok: bool) -> web.Response:
    return web.json_response(body, status=http.HTTPStatus.OK if ok else http.HTTPStatus.SERVICE_UNAVAILABLE)


def _database(database: Database | None) -> dict[str, Any]:
    return {"connected": True} | database.model_dump(by_alias=True) if database else {"connected": False}

"""What an operator sees of the daemon: health, over HTTP."""

from __future__ import annotations

import http

from aiohttp import web

from relay.feed import Feed
from relay.server import Endpoint


class Monitor:
    """Answers GET /health with the guide's JSON: 200 while clients are served, 503 and the problem if not."""

    def __init__(self, endpoint: Endpoint | None, feed: Feed, ws_port: int) -> None:
        self._endpoint = endpoint
        self._feed = feed
        self._ws_port = ws_port
        app = web.Application()
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def open(self, host: str, port: int) -> int:
        """Begin to listen and return the port. Raises OSError if the address is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        running = self._endpoint is not None and self._endpoint.port is not None
        problem = self._feed.problem if running else None
        body: dict[str, object] = {
            "status": "unhealthy" if problem else "healthy",
            "websocket": {
                "running": running,
                "connections": self._endpoint.connections if self._endpoint else 0,
                "port": (self._endpoint and self._endpoint.port) or self._ws_port,
            },
        }
        if problem:
            body["problem"] = problem
        status = http.HTTPStatus.SERVICE_UNAVAILABLE if problem else http.HTTPStatus.OK
        return web.json_response(body, status=status)

"""The board page: its files (in client/js), and the data for its script. Served by the monitor.

Rules:
- The page may load and reach nothing but this relay, which its Content-Security-Policy enforces. Its WebSocket is on
  another port, which the policy names with the host that the browser asked for.
- The page gets no more than any client: everything it shows was sent over WebSocket, with the reader's own token.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from relay import __version__
from relay.config import Settings
from relay.model.status import Status

_STATIC: Final = Path(__file__).parents[1] / "client" / "js"

FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html"),
    "/board.css": ("board.css", "text/css"),
    "/board.js": ("board.js", "text/javascript"),
}
"""The only files served from the folder, besides the client, which the monitor serves."""

_HOST: Final = re.compile(r"([A-Za-z0-9_.-]+)(?::\d+)?", re.ASCII)
"""A host that a policy may name, which excludes IPv6 addresses. The client sends it, so nothing else may pass."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' {socket}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page:
    """Answers GET for each of FILES, and GET /page.json.

    `writer` is the path for writing tasks over HTTP, which only the demo has.
    """

    def __init__(
        self, settings: Settings, status: Callable[[], Awaitable[Status]], writer: str | None = None
    ) -> None:
        self._settings = settings
        self._status = status
        self._writer = writer
        self._files = {path: (_STATIC / name).read_bytes() for path, (name, _) in FILES.items()}

    def routes(self) -> list[web.RouteDef]:
        """Return its routes."""
        return [web.get(path, self._file) for path in FILES] + [web.get("/page.json", self._about)]

    async def _file(self, request: web.Request) -> web.Response:
        path = request.path
        headers = dict(_HEADERS)
        if path == "/":
            headers["Content-Security-Policy"] = policy(request.host, (await self._status()).port)
        return web.Response(body=self._files[path], content_type=FILES[path][1], charset="utf-8", headers=headers)

    async def _about(self, _request: web.Request) -> web.Response:
        status = await self._status()
        about = {
            "version": __version__,
            "websocket": {"running": status.running, "port": status.port, "tls": bool(self._settings.WS_TLS_CERT)},
            "token": not self._settings.is_open,
            "writer": self._writer,
        }
        return web.json_response(about, headers=_HEADERS)


def policy(host: str, port: int) -> str:
    """Return the page's Content-Security-Policy, for a browser that asked this host. `ws:` covers `wss:` too."""
    named = _HOST.fullmatch(host)
    return _POLICY.format(socket=f"ws://{named[1]}:{port}" if named else "ws:")

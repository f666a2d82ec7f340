"""Health over HTTP, as operators and load balancers ask for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from relay.feed import Feed
from relay.monitor import Monitor
from relay.server import Endpoint
from tests.integration.client import Client
from tests.integration.conftest import Relay

_DEADLINE = 15.0
_NOBODY = "postgresql://relay@127.0.0.1:1/relay"


@contextlib.asynccontextmanager
async def monitoring(endpoint: Endpoint | None, feed: Feed) -> AsyncIterator[str]:
    """Yield the URL of a monitor that would say 8080 for an endpoint that does not listen."""
    monitor = Monitor(endpoint, feed, 8080)
    port = await monitor.open("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await monitor.close()


async def get(url: str) -> tuple[int, Any]:
    """Return status and JSON."""
    async with ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def test_health_of_a_running_relay(relay: Relay, client: Client) -> None:
    """While clients are served, health is the guide's JSON, with as many connections as there are."""
    assert client.tasks == {}
    async with monitoring(relay.endpoint, relay.feed) as url, Client.to(relay.url):
        assert await get(f"{url}/health?verbose=1") == (
            200,
            {
                "status": "healthy",
                "websocket": {"running": True, "connections": 2, "port": relay.endpoint.port},
            },
        )


@pytest.mark.parametrize("path", ["", "/", "/health/", "/metrics"])
async def test_other_paths_are_not_found(path: str) -> None:
    """The monitor has one page."""
    async with (
        monitoring(None, Feed(_NOBODY)) as url,
        ClientSession() as session,
        session.get(url + path) as response,
    ):
        assert response.status == 404


async def test_health_of_a_relay_without_websocket() -> None:
    """A relay told to serve no clients is healthy without a database."""
    async with monitoring(None, Feed(_NOBODY)) as url:
        assert await get(f"{url}/health") == (
            200,
            {"status": "healthy", "websocket": {"running": False, "connections": 0, "port": 8080}},
        )


async def test_health_before_the_feed_has_connected_names_the_problem() -> None:
    """Without its database the relay is unhealthy, at first because it is early and then for the actual reason."""
    relay = Relay(_NOBODY)
    await relay.endpoint.open("127.0.0.1", 0)
    expected: dict[str, object] = {
        "status": "unhealthy",
        "websocket": {"running": True, "connections": 0, "port": relay.endpoint.port},
    }
    try:
        async with monitoring(relay.endpoint, relay.feed) as url:
            assert await get(f"{url}/health") == (503, {**expected, "problem": "not connected yet"})

            feed = asyncio.create_task(relay.feed.run(relay.hub))
            async with asyncio.timeout(_DEADLINE):
                while relay.feed.problem == "not connected yet":  # noqa: ASYNC110 - the feed tells nobody
                    await asyncio.sleep(0.01)
            status, answer = await get(f"{url}/health")
            feed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feed
            problem = answer.pop("problem")
            assert (status, answer) == (503, expected)
            assert "127.0.0.1" in problem
            assert "\n" not in problem
    finally:
        await relay.endpoint.close()

"""Health and metrics over HTTP, as operators, load balancers and Prometheus ask for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from relay import config
from relay.monitor import Monitor
from relay.status import Counts, Status
from relay.worker import Worker
from tests.integration.client import Client
from tests.servers import Database

_DEADLINE = 15.0
_NOBODY = "postgresql://relay@127.0.0.1:1/relay"


@contextlib.asynccontextmanager
async def monitoring(status: Callable[[], Awaitable[Status]]) -> AsyncIterator[str]:
    """Yield the URL of a monitor that answers with this status."""
    monitor = Monitor(status)
    port = await monitor.open("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await monitor.close()


@contextlib.asynccontextmanager
async def serving(database_url: str, **settings: str) -> AsyncIterator[Worker]:
    """Yield a relay that listens; its feed is not started."""
    worker = Worker(config.load({"DATABASE_URL": database_url, "WS_HOST": "127.0.0.1", "WS_PORT": "0"} | settings))
    await worker.open()
    try:
        yield worker
    finally:
        await worker.close()


@contextlib.asynccontextmanager
async def feeding(worker: Worker) -> AsyncIterator[None]:
    """Run the relay's feed."""
    feed = await worker.start()
    try:
        yield
    finally:
        feed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feed


async def get(url: str) -> tuple[int, Any]:
    """Return status and JSON."""
    async with ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def get_metrics(url: str) -> dict[str, float]:
    """Return the value of each sample, by its name and labels."""
    async with ClientSession() as session, session.get(f"{url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(await response.text())
    samples = [sample for family in families for sample in family.samples]
    return {" ".join((sample.name, *sample.labels.values())): sample.value for sample in samples}


async def test_health_of_a_running_relay(database: Database) -> None:
    """While clients are served, health is the guide's JSON, with as many connections as there are."""
    async with serving(database.dsn) as worker, feeding(worker), monitoring(worker.status) as url:
        address = f"ws://127.0.0.1:{worker.port}"
        async with Client.to(address) as client, Client.to(address):
            await client.subscribe("default")
            assert await get(f"{url}/health?verbose=1") == (
                200,
                {
                    "status": "healthy",
                    "websocket": {"running": True, "connections": 2, "port": worker.port},
                },
            )


async def test_metrics_of_a_running_relay(database: Database) -> None:
    """Prometheus is told how many are connected and follow boards, and what was sent."""
    async with serving(database.dsn) as worker, feeding(worker), monitoring(worker.status) as url:
        address = f"ws://127.0.0.1:{worker.port}"
        async with Client.to(address) as one, Client.to(address) as other, Client.to(address):
            for client in (one, other):
                await client.subscribe("default")
            database.execute("insert into tasks (id, title) values ('a', 'A'), ('b', 'B')")
            for client in (one, other):
                assert [kind for kind, _ in (await client.receive(), await client.receive())] == ["task.created"] * 2
            metrics = await get_metrics(url)
    bytes_sent = metrics.pop("relay_sent_bytes_total")

    assert metrics == {
        "relay_connections": 3,
        "relay_subscriptions": 2,
        "relay_messages_sent_total board.sync": 2,
        "relay_messages_sent_total task.created": 4,
        "relay_fell_behind_total": 0,
        "relay_feed_up": 1,
        "relay_workers": 1,
    }
    assert bytes_sent > 0


async def test_metrics_of_several_workers_are_those_of_their_status() -> None:
    """Names, types and label are as documented; nothing else stands there."""

    async def status() -> Status:
        counts = Counts(messages={"board.sync": 3, "task.moved": 70}, bytes=5_000_000_000, fell_behind=4)
        counts = counts.model_copy(update={"refused": {"no credential": 2}})
        return Status(running=True, port=1, connections=5, subscriptions=6, counts=counts, workers=1, of=2)

    async with monitoring(status) as url, ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    lines = [line for line in text.splitlines() if not line.startswith("# HELP")]

    assert lines == [
        "# TYPE relay_connections gauge",
        "relay_connections 5.0",
        "# TYPE relay_subscriptions gauge",
        "relay_subscriptions 6.0",
        "# TYPE relay_messages_sent_total counter",
        'relay_messages_sent_total{type="board.sync"} 3.0',
        'relay_messages_sent_total{type="task.moved"} 70.0',
        "# TYPE relay_sent_bytes_total counter",
        "relay_sent_bytes_total 5e+09",
        "# TYPE relay_fell_behind_total counter",
        "relay_fell_behind_total 4.0",
        "# TYPE relay_refused_total counter",
        'relay_refused_total{reason="no credential"} 2.0',
        "# TYPE relay_feed_up gauge",
        "relay_feed_up 0.0",
        "# TYPE relay_workers gauge",
        "relay_workers 1.0",
    ]


@pytest.mark.parametrize("path", ["", "/", "/health/", "/metrics/"])
async def test_other_paths_are_not_found(path: str) -> None:
    """The monitor has two pages."""
    async with (
        monitoring(Worker(config.load({})).status) as url,
        ClientSession() as session,
        session.get(url + path) as response,
    ):
        assert response.status == 404


async def test_health_of_a_relay_without_websocket() -> None:
    """A relay told to serve no clients is healthy without a database, and says that nothing flows."""
    async with (
        serving(_NOBODY, WS_ENABLED="false", WS_PORT="8080") as worker,
        feeding(worker),
        monitoring(worker.status) as url,
    ):
        assert await get(f"{url}/health") == (
            200,
            {"status": "healthy", "websocket": {"running": False, "connections": 0, "port": 8080}},
        )
        assert (await get_metrics(url))["relay_feed_up"] == 0


async def test_health_before_the_feed_has_connected_names_the_problem() -> None:
    """Without its database the relay is unhealthy, at first because it is early and then for the actual reason."""
    async with serving(_NOBODY) as worker, monitoring(worker.status) as url:
        expected: dict[str, object] = {
            "status": "unhealthy",
            "websocket": {"running": True, "connections": 0, "port": worker.port},
        }
        assert await get(f"{url}/health") == (503, {**expected, "problem": "not connected yet"})

        async with feeding(worker), asyncio.timeout(_DEADLINE):
            while (await worker.status()).problem == "not connected yet":  # noqa: ASYNC110 - the feed tells nobody
                await asyncio.sleep(0.01)
            status, answer = await get(f"{url}/health")
            assert (await get_metrics(url))["relay_feed_up"] == 0
        problem = answer.pop("problem")
        assert (status, answer) == (503, expected)
        assert "127.0.0.1" in problem
        assert "\n" not in problem

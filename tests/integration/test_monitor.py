"""Health and metrics over HTTP, as operators, load balancers and Prometheus ask for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from relay import config
from relay.daemon.worker import Worker
from relay.http.app import Monitor
from relay.model.status import Counts, Histogram, Status
from relay.postgres import boards, housekeeping, progress, requests
from tests.integration.client import Client
from tests.servers import Database, install

STATIC = Path(__file__).parents[2] / "relay" / "client" / "js"

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
    """While clients are served, health is the guide's JSON, with as many connections as there are, and more."""
    async with serving(database.dsn) as worker, feeding(worker), monitoring(worker.status) as url:
        address = f"ws://127.0.0.1:{worker.port}"
        async with Client.to(address) as client, Client.to(address):
            await client.subscribe("default")
            await until_ready(url)
            status, answer = await get(f"{url}/health?verbose=1")
            port = worker.port
    side = answer.pop("database")

    assert status == 200
    assert answer == {"status": "healthy", "websocket": {"running": True, "connections": 2, "port": port}}
    assert side.keys() == {"connected", "journal", "queueUsage", "probeSeconds", "lagSeconds"}
    assert side["connected"] is True
    assert 0 < side["probeSeconds"] < 20
    assert side["journal"].keys() == {
        "rows", "bytes", "ageSeconds", "overdueSeconds", "keepBytes", "stopBytes", "paused",
    }  # fmt: skip
    assert (side["journal"]["keepBytes"], side["journal"]["stopBytes"]) == (512 * 1024**2, 2 * 1024**3)


async def until_ready(url: str) -> None:
    async with asyncio.timeout(_DEADLINE):
        while (await get(f"{url}/ready"))[0] != 200:  # noqa: ASYNC110 - nothing else shows when a probe is back
            await asyncio.sleep(0.01)


async def test_client_is_served_to_any_page_and_asked_for_again() -> None:
    """Browsers get the JavaScript client and its types as files of their kind, and again only when they changed."""

    async def stopped() -> Status:
        return Status(running=False, port=0)

    async with monitoring(stopped) as url, ClientSession() as session:
        for name, kind in (("client.js", "text/javascript"), ("client.d.ts", "text/plain")):
            async with session.get(f"{url}/{name}") as response:
                assert response.status == 200
                assert await response.read() == (STATIC / name).read_bytes()
                assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
                assert response.headers["Cache-Control"] == "no-cache"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                etag = response.headers["ETag"]
            for known, status in ((etag, 304), ('"another"', 200)):
                async with session.get(f"{url}/{name}", headers={"If-None-Match": known}) as response:
                    assert (response.status, response.headers["ETag"]) == (status, etag)
        async with session.get(f"{url}/package.json") as response:
            assert response.status == 404


async def test_metrics_of_a_running_relay(database: Database) -> None:
    """Prometheus learns how many are connected and follow boards, what was sent, and how the journal is."""
    async with serving(database.dsn) as worker, feeding(worker), monitoring(worker.status) as url:
        address = f"ws://127.0.0.1:{worker.port}"
        async with Client.to(address) as one, Client.to(address) as other, Client.to(address):
            for client in (one, other):
                await client.subscribe("default")
            database.execute("insert into tasks (id, title) values ('a', 'A'), ('b', 'B')")
            for client in (one, other):
                assert [kind for kind, _ in (await client.receive(), await client.receive())] == ["task.created"] * 2
            await until_ready(url)
            metrics = await get_metrics(url)

    expected = {
        "relay_connections": 3,
        "relay_max_connections": 100,
        "relay_subscriptions": 2,
        "relay_clients_behind": 0,
        "relay_backlog_bytes": 0,
        "relay_connections_opened_total": 3,
        "relay_messages_sent_total board.sync": 2,
        "relay_messages_sent_total task.created": 4,
        "relay_fell_behind_total": 0,
        "relay_feed_up": 1,
        "relay_ready": 1,
        "relay_feed_reconnects_total": 0,
        "relay_journal_paused": 0,
        "relay_journal_stop_bytes": 2 * 1024**3,
        "relay_notification_queue_usage_ratio": 0,
        "relay_workers": 1,
        "relay_workers_configured": 1,
    }
    assert {name: metrics.get(name) for name in expected} == expected
    assert metrics["relay_sent_bytes_total"] > 0
    assert metrics["relay_journal_bytes"] > 0
    assert metrics["relay_commit_to_socket_seconds_count"] >= 1
    assert metrics["relay_commit_to_socket_seconds_bucket +Inf"] == metrics["relay_commit_to_socket_seconds_count"]
    assert 0 < metrics["relay_commit_to_socket_seconds_sum"] < metrics["relay_commit_to_socket_seconds_count"] * 20
    # The probe's transaction and the one with the tasks.
    assert metrics["relay_transactions_read_total"] >= 2
    assert metrics["relay_notifications_total received"] + metrics["relay_notifications_total skipped"] >= 2
    assert 0 <= metrics["relay_feed_lag_seconds"] < 20


async def test_metrics_of_several_workers_are_those_of_their_status() -> None:
    """Labels, buckets and large numbers are as Prometheus reads them."""

    async def status() -> Status:
        latency = Histogram().observe(0.001).observe(0.002).observe(60.0)
        counts = Counts(messages={"board.sync": 3, "task.moved": 70}, bytes=5_000_000_000, fell_behind=4)
        counts = counts.model_copy(update={"refused": {"no credential": 2}, "commit_to_socket": latency})
        return Status(
            running=True, port=1, connections=5, subscriptions=6, counts=counts, workers=1, workers_configured=2
        )

    async with monitoring(status) as url, ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()

    assert "relay_journal_" not in text  # no database is connected
    for line in (
        "relay_connections 5.0",
        'relay_messages_sent_total{type="board.sync"} 3.0',
        "relay_sent_bytes_total 5e+09",
        'relay_refused_total{reason="no credential"} 2.0',
        'relay_commit_to_socket_seconds_bucket{le="0.001"} 1.0',
        'relay_commit_to_socket_seconds_bucket{le="0.0025"} 2.0',
        'relay_commit_to_socket_seconds_bucket{le="10.0"} 2.0',
        'relay_commit_to_socket_seconds_bucket{le="+Inf"} 3.0',
        "relay_workers 1.0",
        "relay_workers_configured 2.0",
    ):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize("path", ["", "/", "/health/", "/metrics/"])
async def test_other_paths_are_not_found(path: str) -> None:
    """The monitor has four pages."""
    async with (
        monitoring(Worker(config.load({})).status) as url,
        ClientSession() as session,
        session.get(url + path) as response,
    ):
        assert response.status == 404


async def test_health_of_a_relay_without_websocket() -> None:
    """A relay that is to serve no clients is healthy without a database, and says that nothing flows."""
    async with (
        serving(_NOBODY, WS_ENABLED="false", WS_PORT="8080") as worker,
        feeding(worker),
        monitoring(worker.status) as url,
    ):
        assert await get(f"{url}/health") == (
            200,
            {
                "status": "healthy",
                "websocket": {"running": False, "connections": 0, "port": 8080},
                "database": {"connected": False},
            },
        )
        assert await get(f"{url}/ready") == (200, {"ready": True})
        assert (await get_metrics(url))["relay_feed_up"] == 0


async def test_health_before_the_feed_has_connected_names_the_problem() -> None:
    """Without its database the relay is unhealthy, at first because it is early and then for the actual reason."""
    async with serving(_NOBODY) as worker, monitoring(worker.status) as url:
        expected: dict[str, object] = {
            "status": "unhealthy",
            "websocket": {"running": True, "connections": 0, "port": worker.port},
            "database": {"connected": False},
        }
        assert await get(f"{url}/health") == (503, {**expected, "problem": "not connected yet"})
        assert await get(f"{url}/live") == (200, {"live": True})

        async with feeding(worker), asyncio.timeout(_DEADLINE):
            while (await worker.status()).problem == "not connected yet":  # noqa: ASYNC110 - the feed tells nobody
                await asyncio.sleep(0.01)
            status, answer = await get(f"{url}/health")
            assert (await get_metrics(url))["relay_feed_up"] == 0
        problem = answer.pop("problem")
        assert (status, answer) == (503, expected)
        assert "127.0.0.1" in problem
        assert "\n" not in problem


# What other relays are silent about


async def until_reported(worker: Worker, words: str, *, part: str = "problem") -> None:
    """Wait until the relay says something of this kind about itself."""
    async with asyncio.timeout(_DEADLINE):
        while words not in str(getattr(await worker.status(), part)):  # noqa: ASYNC110 - the feed tells nobody
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def relay_on(database_url: str, **settings: str) -> AsyncIterator[Worker]:
    """Yield a relay that is ready, with a small budget."""
    async with serving(database_url, HEALTH_BUDGET="300", **settings) as worker, feeding(worker):
        await until_reported(worker, "None", part="unready")
        yield worker


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have probes and readings of the vitals follow one another soon."""
    for name in ("PRUNE_SECONDS", "INSPECT_SECONDS"):
        monkeypatch.setattr(housekeeping, name, 0.05)
    for name in ("PROBE_SECONDS", "IDLE_PROBE_SECONDS"):
        monkeypatch.setattr(progress, name, 0.05)


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "insert into relay.journal (op, reason) values ('P', label)",
            "no notification comes",
        ),
        ("perform pg_notify('relay', json_build_object('probe', label)::text)", "the journal is not read in time"),
    ],
)
async def test_relay_that_half_of_the_probe_reaches_is_not_ready(database: Database, body: str, words: str) -> None:
    """All connections seem well, but changes do not come through: the answer says which way is broken."""
    async with relay_on(database.dsn) as worker, monitoring(worker.status) as url:
        database.execute(
            "create or replace function relay.probe(label text) returns boolean language plpgsql security definer "
            f"as $$ begin {body}; return true; end $$"
        )
        await until_reported(worker, words)
        assert await get(f"{url}/ready") == (503, {"ready": False, "problem": (await worker.status()).unready})
        assert (await get(f"{url}/health"))[0] == 503
        assert (await get_metrics(url))["relay_ready"] == 0

        install(database.dsn)
        await until_ready(url)


@pytest.mark.usefixtures("quick_probes")
async def test_relay_that_cannot_read_a_board_is_ready_and_says_which(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody locks its table, its subscribers know; all others are served."""
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    locker = database.connect()
    async with (
        relay_on(database.dsn) as worker,
        monitoring(worker.status) as url,
        Client.to(f"ws://127.0.0.1:{worker.port}") as client,
    ):
        with locker.transaction():
            locker.execute("lock table tasks in access exclusive mode")
            await client.send({"type": "subscribe", "boardId": "default"})
            assert (await client.receive())[1]["code"] == "board_unavailable"
            code, health = await get(f"{url}/health")
            assert (code, health["status"]) == (200, "degraded")
            assert health["warnings"][0].startswith(
                "board 'default' cannot be read: public.tasks is locked by process"
            )
            assert await get(f"{url}/ready") == (200, {"ready": True})
        assert (await client.receive())[0] == "board.sync"
        assert (await get(f"{url}/health"))[1]["status"] == "healthy"


@pytest.mark.usefixtures("quick_probes")
async def test_relay_reports_a_missing_trigger(database: Database) -> None:
    """A probe comes through, but no change of the table would."""
    async with relay_on(database.dsn) as worker:
        ((trigger,),) = database.fetch(
            "select tgname from pg_trigger where tgrelid = 'tasks'::regclass and tgname like 'relay%%' limit 1"
        )
        database.execute(f"drop trigger {trigger} on tasks")
        await until_reported(worker, "triggers of public.tasks are missing or disabled", part="unready")
        database.execute("select relay.watch('tasks')")
        await until_reported(worker, "None", part="unready")


@pytest.mark.usefixtures("quick_probes")
async def test_journal_that_is_not_pruned_is_a_warning(database: Database) -> None:
    """Somebody's prune that does not end keeps others from it: clients are served, and health says what is wrong."""
    database.execute("select relay.epoch(); insert into tasks (id, title) values ('a', 'A')")
    database.execute("select relay.tick(relay.place()); update relay.ticks set at = at - interval '2 hours'")
    holder = database.connect()
    with holder.transaction(force_rollback=True):
        holder.execute("select relay.prune()")
        async with relay_on(database.dsn) as worker, monitoring(worker.status) as url:
            await until_reported(worker, "the journal is not pruned", part="warnings")
            status, answer = await get(f"{url}/health")
            assert (status, answer["status"]) == (200, "healthy")
            assert "has been due for 36" in answer["warnings"][0]
            assert (await get_metrics(url))["relay_journal_overdue_seconds"] >= 3600
            holder.execute("rollback")
            await until_reported(worker, "[]", part="warnings")


async def test_read_only_database_is_refused(database: Database) -> None:
    """A session that may not write, as on a standby, is refused, and the relay says so."""
    ((name,),) = database.fetch("select current_database()")
    database.execute(f"alter database {name} set default_transaction_read_only = on")
    async with serving(database.dsn) as worker, feeding(worker):
        await until_reported(worker, "sessions are read-only here", part="unready")
        database.execute(str((await worker.status()).unready).partition(": run ")[2])
        await until_reported(worker, "None", part="unready")

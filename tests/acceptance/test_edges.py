"""`relay publish` and `relay serve --from`, as processes, with NATS between them."""

from __future__ import annotations

import contextlib
import http
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.support import RELAY, Client, Daemon, Program, Relays, mistake, run_relay, until
from tests.nats import NatsServer
from tests.servers import Database


class PublisherDaemon(Daemon):
    """`relay publish`."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        Program.__init__(self, [RELAY, "publish"], folder, {"WS_HOST": "127.0.0.1", "HEALTH_PORT": "0"} | settings)
        self.ws_port = self.health_port = 0

    async def runs(self) -> PublisherDaemon:
        """Wait for the line that tells its port."""
        self.health_port = (await self.logged("publisher.running"))["health"]
        return self

    def status(self) -> Any:
        """Say what it does."""
        return self.health()[1]


@pytest.fixture
def stream(tmp_path: Path) -> dict[str, str]:
    """Return the settings of a stream of this test's own."""
    return {"NATS_STREAM": tmp_path.name[-40:].replace(".", "_"), "NATS_KEEP_BYTES": str(64 * 1024**2)}


@contextlib.asynccontextmanager
async def publisher(
    nats: NatsServer, database: Database, folder: Path, stream: dict[str, str]
) -> AsyncIterator[PublisherDaemon]:
    """Run one, which ends with the context by force, if it has not ended."""
    one = PublisherDaemon(folder, {"PUBLISH_TO": nats.url, "DATABASE_URL": database.dsn, **stream})
    try:
        yield await one.runs()
    finally:
        if one.exit_code is None:
            one.end()


async def test_a_publisher_is_killed_and_another_goes_on(
    database: Database, relay: Relays, nats_server: NatsServer, tmp_path: Path, stream: dict[str, str]
) -> None:
    """Clients of an edge get each row once and no board; the one that stands by is ready, and then active."""
    async with (
        publisher(nats_server, database, tmp_path, stream) as one,
        publisher(nats_server, database, tmp_path, stream) as other,
    ):
        await until(lambda: one.status()["status"] == other.status()["status"] == "healthy", "healthy publishers")
        active, standing_by = (one, other) if one.status()["stream"]["active"] else (other, one)
        assert not standing_by.status()["stream"]["active"]
        assert standing_by.ask("/ready")[0] == http.HTTPStatus.OK
        edge = await relay("", "--from", nats_server.url, "--nats-stream", stream["NATS_STREAM"])
        async with Client.to(edge) as client:
            await client.subscribe()
            for number in range(3):
                database.execute("insert into tasks (id, title) values (%s, 'T')", f"before-{number}")
            assert [message["data"]["id"] for message in await client.receive_until(id="before-2")] == [
                f"before-{number}" for number in range(3)
            ]
            active.signal(signal.SIGKILL)
            database.execute("insert into tasks (id, title) values ('after', 'T')")
            assert (await client.receive())["data"]["id"] == "after"
        await until(lambda: standing_by.status()["stream"]["active"], "the other publisher")
        assert edge.metrics()["relay_stream_connected"] == standing_by.metrics()["relay_publisher_active"] == 1
        assert edge.health()[1]["stream"]["connected"]
        assert "database" not in edge.health()[1]
        assert await standing_by.stop() == 0


async def test_a_check_covers_where_clients_are_served_from(
    database: Database, nats_server: NatsServer, tmp_path: Path, stream: dict[str, str]
) -> None:
    """Without NATS, without a stream and without a publisher, it says what to start; and that all is well."""
    settings = {"WS_HOST": "127.0.0.1", "WS_PORT": "0", "HEALTH_PORT": "0", **stream}
    nothing = run_relay("check", "--from", "nats://127.0.0.1:1", cwd=tmp_path, **settings)
    no_stream = run_relay("check", "--from", nats_server.url, cwd=tmp_path, **settings)
    async with publisher(nats_server, database, tmp_path, stream) as one:
        await until(lambda: one.status()["status"] == "healthy", "a healthy publisher")
        well = run_relay("check", "--from", nats_server.url, cwd=tmp_path, **settings)
    alone = run_relay("check", "--from", nats_server.url, cwd=tmp_path, **settings)

    assert "cannot connect to NATS at 127.0.0.1:1" in nothing.stdout
    assert "has no stream" in no_stream.stdout
    assert [each.returncode for each in (nothing, no_stream, well, alone)] == [1, 1, 0, 1]
    assert "no publisher answers" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "--from", "http://a"], "SERVE_FROM: its value is not allowed: expected addresses like nats://"),
        (["publish", "--to", "nats://a/b"], "PUBLISH_TO: its value is not allowed: expected addresses like nats://"),
        (["publish", "--nats-stream", "a.b"], "NATS_STREAM: 'a.b' is not allowed: expected up to 64 letters"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """It says what is allowed."""
    assert expected in mistake(run_relay(*arguments, cwd=tmp_path))


@pytest.mark.parametrize("arguments", [["serve", "--from", "nats://127.0.0.1:1"], ["publish"]])
def test_without_the_extra_both_say_how_to_install_it(tmp_path: Path, arguments: list[str]) -> None:
    """Most relays do without nats-py."""
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "__init__.py").write_text("raise ModuleNotFoundError('No module named nats', name='nats')")
    finished = run_relay(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path), WS_PORT="0", HEALTH_PORT="0")
    assert mistake(finished).endswith("nats-py is not installed: run pip install 'pg-change-relay[nats]'")

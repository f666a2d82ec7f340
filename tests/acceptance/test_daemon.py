"""The daemon as its operator and its clients meet it: starting, running, losing the database, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from relay.postgres.embedded import HOST, free_port
from tests.acceptance.support import Client, Daemon, Relays, mistake, run_relay, task_ids, until
from tests.proxy import Proxy
from tests.servers import Database, install

# Health


async def test_health_is_the_guides_json_and_counts_clients_up_to_the_limit(
    database: Database, relay: Relays
) -> None:
    """A client that would exceed WS_MAX_CONNECTIONS is refused with HTTP 503, and admitted once another has left."""
    daemon = await relay(database.dsn, WS_MAX_CONNECTIONS="2")
    code, answer = daemon.health()
    assert answer.pop("database")["connected"] is True
    assert (code, answer) == (200, healthy_json(daemon, connections=0))

    async with Client.to(daemon):
        async with Client.to(daemon):
            assert daemon.guides_health() == (200, healthy_json(daemon, connections=2))
            with pytest.raises(InvalidStatus) as refused:
                async with Client.to(daemon):
                    pass
            assert refused.value.response.status_code == 503
        await until(
            lambda: daemon.guides_health() == (200, healthy_json(daemon, connections=1)), "the second to be gone"
        )
        async with Client.to(daemon) as client:
            assert (await client.subscribe())["type"] == "board.sync"


async def test_disabled_endpoint_is_shut(database: Database, relay: Relays) -> None:
    """With WS_ENABLED=false nobody can connect, and the daemon is healthy and says that it does not run."""
    port = free_port()
    daemon = await relay(database.dsn, ws_port=port, WS_ENABLED="false")

    with pytest.raises(ConnectionRefusedError):
        async with Client.to(daemon):
            pass
    status = {"running": False, "connections": 0, "port": port}
    assert daemon.guides_health() == (200, {"status": "healthy", "websocket": status})


def healthy_json(daemon: Daemon, connections: int) -> dict[str, Any]:
    return {
        "status": "healthy",
        "websocket": {"running": True, "connections": connections, "port": daemon.ws_port},
    }


# A database that is not ready


async def test_starts_before_the_database(database: Database, proxy: Proxy, relay: Relays) -> None:
    """Started while the database cannot be reached, the daemon takes clients, and serves them once it can be."""
    await proxy.cut()
    daemon = await relay(proxy.through(database.dsn), healthy=False)
    problem = (await daemon.logged("feed.problem"))["problem"]
    assert "Connection refused" in problem
    assert_unhealthy(daemon, problem)

    async with Client.to(daemon) as client:
        await client.send_subscribe()
        await proxy.restore()
        assert (await client.receive())["type"] == "board.sync"
    await daemon.healthy()


async def test_asks_for_the_install_and_recovers(empty_database: Database, relay: Relays) -> None:
    """On a database without the install, one line says to run `relay sql install`; after it, the daemon serves."""
    daemon = await relay(empty_database.dsn, healthy=False)
    problem = (await daemon.logged("feed.problem"))["problem"]
    assert "run relay sql install" in problem
    assert_unhealthy(daemon, problem)

    install(empty_database.dsn)
    await daemon.healthy()

    assert [line["problem"] for line in daemon.log("feed.problem")].count(problem) == 1


async def test_asks_for_a_watch_and_recovers(database: Database, relay: Relays) -> None:
    """While nothing is watched, one line says to run `relay sql watch`; after it, subscribers get the board."""
    database.execute("select relay.unwatch('public.tasks')")
    database.execute("insert into public.tasks (id, title) values ('a', 'A')")
    daemon = await relay(database.dsn, healthy=False)
    problem = (await daemon.logged("feed.problem"))["problem"]
    assert "run relay sql watch" in problem
    assert_unhealthy(daemon, problem)

    async with Client.to(daemon) as client:
        assert task_ids(await client.subscribe()) == []
        database.execute("select relay.watch('public.tasks')")
        assert task_ids(await client.receive()) == ["a"]
    await daemon.healthy()

    assert len(daemon.log("feed.problem")) == 1


def assert_unhealthy(daemon: Daemon, problem: str) -> None:
    """Check that health is 503 and says what the log said."""
    expected = healthy_json(daemon, connections=0) | {"status": "unhealthy", "problem": problem}
    assert daemon.guides_health() == (503, expected)
    assert daemon.ask("/ready") == (503, {"ready": False, "problem": problem})
    assert daemon.ask("/live") == (200, {"live": True})


# Clients


async def test_log_has_connections_and_broadcasts(database: Database, relay: Relays) -> None:
    """The log has the guide's lines: each connection, how many there are, and, if asked, what went to how many."""
    daemon = await relay(database.dsn, LOG_LEVEL="debug")
    async with Client.to(daemon) as one, Client.to(daemon) as other:
        await one.subscribe()
        await other.subscribe()
        database.execute("insert into public.tasks (id, title) values ('a', 'A')")
        await one.receive_until(id="a")
        await daemon.logged("websocket.broadcast", type="task.created", recipients=2)

    # The guide's users find them with `grep WebSocket`, and with `grep -i websocket`.
    for line in daemon.output.splitlines():
        assert ('"event": "websocket.' in line) == ("WebSocket" in line)
    connected = daemon.log("websocket.connection")
    assert [line["connections"] for line in connected] == [1, 2]
    assert len({line["clientId"] for line in connected}) == 2
    for record in connected:
        await daemon.logged("websocket.close", clientId=record["clientId"], code=1000)


async def test_signals_that_come_while_it_ends_change_nothing(database: Database, relay: Relays) -> None:
    """As when an operator asks it to read credentials again while systemd stops it: it has stopped in order."""
    daemon = await relay(database.dsn)
    daemon.signal(signal.SIGTERM)
    while daemon.exit_code is None:
        daemon.signal(signal.SIGHUP)
        await asyncio.sleep(0)

    assert daemon.exit_code == 0
    assert daemon.log("relay.stopped") != []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_stopping_tells_the_clients(database: Database, relay: Relays, signum: signal.Signals) -> None:
    """SIGTERM and SIGINT end the daemon with exit code 0, and its clients' connections with code 1012."""
    daemon = await relay(database.dsn)
    async with Client.to(daemon) as subscriber, Client.to(daemon) as idler:
        await subscriber.subscribe()
        assert await daemon.stop(signum) == 0
        assert [await subscriber.closed(), await idler.closed()] == [1012, 1012]
    assert daemon.log()[-1]["event"] == "relay.stopped"


async def test_stops_while_the_database_is_away(database: Database, proxy: Proxy, relay: Relays) -> None:
    """A daemon that is still trying to reach the database ends as promptly as any."""
    proxy.freeze()
    daemon = await relay(proxy.through(database.dsn), healthy=False)
    assert await daemon.stop() == 0


async def test_stops_while_the_database_is_silent(database: Database, proxy: Proxy, relay: Relays) -> None:
    """A daemon that waits for an answer of the database ends within seconds, and says nothing but its log."""
    daemon = await relay(proxy.through(database.dsn))
    async with Client.to(daemon) as client:
        proxy.freeze()
        await client.send_subscribe()
        await daemon.logged("websocket.subscribe")
        async with asyncio.timeout(5):
            assert await daemon.stop() == 0
    assert daemon.log()[-1]["event"] == "relay.stopped"


# The log


async def test_log_level_leaves_out_what_is_below_it(database: Database, tmp_path: Path) -> None:
    """With LOG_LEVEL=warning, a daemon on which nothing goes wrong says what there is to see to, and no more."""
    settings = {"WS_PORT": "0", "HEALTH_PORT": "0", "DATABASE_URL": database.dsn, "LOG_LEVEL": "warning"}
    daemon = Daemon([], tmp_path, settings)
    try:
        await daemon.logged("access.open")
        assert await daemon.stop() == 0
        assert [line["event"] for line in daemon.log()] == ["access.open"]
    finally:
        daemon.end()


# Settings


def test_bad_setting_is_one_line(tmp_path: Path) -> None:
    """A setting that cannot be used ends the start with one line: its name, its value and what is allowed."""
    said = mistake(run_relay("serve", cwd=tmp_path, WS_HEARTBEAT="30s"))
    assert said == "Error: WS_HEARTBEAT: '30s' is not allowed: expected milliseconds from 100 to 3600000"


def test_bad_option_is_one_line(tmp_path: Path) -> None:
    """An option that cannot be used is reported like the variable that it stands for."""
    for option, name in (("--ws-heartbeat", "WS_HEARTBEAT"), ("--workers", "WS_WORKERS")):
        said = mistake(run_relay("serve", option, "soon", cwd=tmp_path))
        assert name in said
        assert "'soon'" in said


def test_bad_database_url_is_not_repeated(tmp_path: Path) -> None:
    """A connection string that cannot be used is not shown in the error, because it may contain a password."""
    said = mistake(run_relay("serve", cwd=tmp_path, DATABASE_URL="postgresql//me:tellnobody@here/db"))
    assert "DATABASE_URL" in said
    assert "postgresql://user@host/database" in said
    assert "tellnobody" not in said


@pytest.mark.parametrize(
    ("content", "mode", "found"),
    [("WS_PORT=1\n".encode("utf-16"), 0o600, "it is not UTF-8"), (b"WS_PORT=1\n", 0, "Permission denied")],
)
def test_dotenv_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, mode: int, found: str) -> None:
    """In another encoding, or somebody else's."""
    (tmp_path / ".env").write_bytes(content)
    (tmp_path / ".env").chmod(mode)
    if not mode and os.geteuid() == 0:
        pytest.skip("root can read every file")
    assert f".env: {found}: expected a file" in mistake(run_relay("serve", cwd=tmp_path))


def test_dotenv_of_a_parent_folder_is_left_alone(tmp_path: Path) -> None:
    """Only that of the working folder counts; one that is a folder is none."""
    (tmp_path / ".env").write_text("WS_PORT=nonsense\n")
    below = tmp_path / "below"
    (below / ".env").mkdir(parents=True)
    assert "WS_HEARTBEAT" in mistake(run_relay("serve", "--ws-heartbeat", "soon", cwd=below))


def test_address_of_another_machine_is_one_line(tmp_path: Path) -> None:
    """An address that is none of this machine's ends the start with one line that names WS_HOST."""
    arguments = ("--ws-port", "0", "--health-port", "0")
    assert "WS_HOST" in mistake(run_relay("serve", *arguments, cwd=tmp_path, WS_HOST="192.0.2.1"))


@pytest.mark.parametrize("name", ["WS_PORT", "HEALTH_PORT"])
def test_taken_port_is_one_line(name: str, taken_port: int, tmp_path: Path) -> None:
    """A port that another program has ends the start with exit code 1 and one line naming port and setting."""
    ports = {"WS_PORT": "0", "HEALTH_PORT": "0", name: str(taken_port)}
    finished = run_relay("serve", cwd=tmp_path, WS_HOST=HOST, **ports)
    said = mistake(finished)
    assert finished.returncode == 1
    assert name in said
    assert str(taken_port) in said


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Yield a port that somebody listens on."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


async def test_option_wins_over_environment_and_this_over_dotenv(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Settings come from options, then the environment, then `.env`; one that is misspelt is a warning."""
    ws, health = free_port(), free_port()
    (tmp_path / ".env").write_text(
        "WS_HOST=127.0.0.1\nWS_PORT=nonsense\nHEALTH_PORT=nonsense\nWS_HEARTBEAT=nonsense\n"
    )
    options = ("--ws-port", str(ws))
    daemon = await relay(
        database.dsn,
        *options,
        WS_PORT="nonsense",
        HEALTH_PORT=str(health),
        WS_HEARTBEAT="500",
        WS_MAX_CONECTIONS="5",
    )

    line = await daemon.logged("websocket.listening")
    assert (line["host"], line["port"], line["health"]) == ("127.0.0.1", ws, health)
    misspelt = await daemon.logged("relay.unknown_setting", setting="WS_MAX_CONECTIONS")
    assert misspelt["problem"] == "WS_MAX_CONECTIONS is no setting: did you mean WS_MAX_CONNECTIONS?"


def test_help_names_every_setting(tmp_path: Path) -> None:
    """`relay serve --help` names each setting's option, variable and default."""
    shown = " ".join(run_relay("serve", "--help", cwd=tmp_path).stdout.replace(",", " ").split())
    assert "--ws-workers --workers " in shown
    for name in (
        "WS_PORT",
        "WS_HOST",
        "WS_ENABLED",
        "WS_HEARTBEAT",
        "WS_MAX_CONNECTIONS",
        "WS_WORKERS",
        "HEALTH_PORT",
        "DATABASE_URL",
    ):
        assert f"--{name.lower().replace('_', '-')} " in shown
        assert f"env var: {name}" in shown
    for default in ("4002", "0.0.0.0", "true", "30000", "100", "4001"):
        assert f"default: {default}" in shown

"""`relay serve --workers N`: several processes on one port, which are one from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.exceptions import InvalidStatus

from relay.postgres.embedded import HOST
from tests.acceptance.support import Client, Daemon, Relays, clients_of, mistake, run_relay, until
from tests.proxy import Proxy
from tests.servers import Database

MANY = 24
"""So many connections that each of two workers has some: that all go to one happens once in eight million times."""


async def workers_of(daemon: Daemon, clients: Sequence[Client]) -> list[int]:
    """Subscribe each client to a board of its own, by which the log tells whose it is."""
    found = []
    for client in clients:
        board = f"of {id(client)}"
        await client.subscribe(board)
        found.append((await daemon.logged("websocket.subscribe", board=board))["worker"])
    return found


def pid_of(daemon: Daemon, worker: int) -> int:
    """Return the process of a worker that runs now."""
    return int([line["pid"] for line in daemon.log("worker.running") if line["worker"] == worker][-1])


def exists(pid: int) -> bool:
    """Whether there is such a process; a zombie that its new parent has not reaped yet does not count."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def healthy_json(daemon: Daemon, connections: int, workers: int = 2) -> dict[str, Any]:
    return {
        "status": "healthy",
        "websocket": {"running": True, "connections": connections, "port": daemon.ws_port},
        "workers": workers,
    }


def problem_of(daemon: Daemon) -> str | None:
    """Return why it is unhealthy, if it is."""
    status, answer = daemon.health()
    assert (status == 503) == ("problem" in answer)
    problem: str | None = answer.get("problem")
    return problem


# Serving


async def test_workers_serve_as_one(database: Database, relay: Relays) -> None:
    """Each client gets each change, once and in order; health, metrics and the limit of connections are of all.

    Any worker refuses a client that would exceed WS_MAX_CONNECTIONS; a place that one gave back, any may give.
    """
    daemon = await relay(database.dsn, "--workers", "2", WS_PORT="0", WS_MAX_CONNECTIONS=str(MANY))
    async with clients_of(daemon, MANY) as clients:
        assert set(await workers_of(daemon, clients)) == {1, 2}
        for client in clients:
            await client.subscribe()
        for number in range(20):
            database.execute("insert into tasks (id, title) values (%s, 'T')", str(number))
        database.execute("delete from tasks")
        for client in clients:
            created = await client.receive_until(id="19")
            deleted = [await client.receive() for _ in range(20)]
            assert [message["data"]["id"] for message in created] == [str(number) for number in range(20)]
            assert {message["type"] for message in created} == {"task.created"}
            assert {message["type"] for message in deleted} == {"task.deleted"}
            assert {message["data"]["id"] for message in deleted} == {str(number) for number in range(20)}

        assert daemon.guides_health() == (200, healthy_json(daemon, MANY))
        metrics = daemon.metrics()
        assert metrics["relay_sent_bytes_total"] > 42 * MANY
        expected = {
            "relay_connections": MANY,
            "relay_connections_opened_total": MANY,
            "relay_subscriptions": 2 * MANY,
            "relay_messages_sent_total board.sync": 2 * MANY,
            "relay_messages_sent_total task.created": 20 * MANY,
            "relay_messages_sent_total task.deleted": 20 * MANY,
            "relay_fell_behind_total": 0,
            "relay_feed_up": 1,
            "relay_workers": 2,
            "relay_workers_configured": 2,
        }
        assert {name: metrics[name] for name in expected} == expected

        for _ in range(MANY):
            assert await refused(daemon)
        assert {line["worker"] for line in daemon.log("websocket.refused")} == {1, 2}
    await until(lambda: daemon.guides_health() == (200, healthy_json(daemon, 0)), "all to be gone")

    async def stay(connecting: contextlib.AsyncExitStack) -> bool:
        try:
            await connecting.enter_async_context(Client.to(daemon))
        except InvalidStatus:
            return False
        return True

    async with contextlib.AsyncExitStack() as stack:
        # All at once, so that both workers give the last places at the same time.
        assert sum(await asyncio.gather(*(stay(stack) for _ in range(3 * MANY)))) == MANY


async def refused(daemon: Daemon) -> bool:
    try:
        async with Client.to(daemon):
            return False
    except InvalidStatus as ex:
        return ex.response.status_code == 503


async def test_workers_that_have_lost_the_database_say_so_once(
    database: Database, proxy: Proxy, relay: Relays
) -> None:
    """While no worker reaches the database, health gives the one reason, as of one process."""
    daemon = await relay(proxy.through(database.dsn), WS_WORKERS="2")
    await proxy.cut()
    await until(
        lambda: (problem := problem_of(daemon)) and "Connection refused" in problem and "worker" not in problem,
        "the reason of both",
    )
    assert daemon.metrics()["relay_feed_up"] == 0
    await proxy.restore()
    await daemon.healthy()
    assert daemon.metrics()["relay_feed_up"] == 1


# Workers that die


async def test_worker_that_is_killed_is_started_again(database: Database, relay: Relays) -> None:
    """After kill -9 of a worker health names it, its clients come back, the others go on, and no count goes back."""
    daemon = await relay(database.dsn, WS_WORKERS="2", WS_MAX_CONNECTIONS=str(MANY))
    async with clients_of(daemon, MANY) as clients:
        workers = await workers_of(daemon, clients)
        before = daemon.metrics()
        os.kill(pid_of(daemon, 2), signal.SIGKILL)
        for client in (client for client, worker in zip(clients, workers, strict=True) if worker == 2):
            assert await client.closed() == 1006
        answer = await until(lambda: problem_of(daemon), "health to tell")
        after = daemon.metrics()
        died = await daemon.logged("worker.died", worker=2)

        # It may have begun to come back: whatever is wrong, is wrong with it.
        assert answer
        assert answer.startswith("worker 2")
        assert died["reason"] == "was killed by signal 9"
        assert after["relay_connections"] == workers.count(1)
        counters = [name for name in before if name.startswith("relay_") and "_total" in name]
        assert [name for name in counters if after[name] < before[name]] == []
        sent = [name for name in counters if "_sent_" in name or "_opened_" in name]
        assert {name: after[name] for name in sent} == {name: before[name] for name in sent}

        await until(lambda: daemon.guides_health() == (200, healthy_json(daemon, workers.count(1))), "it to be back")
        async with clients_of(daemon, workers.count(2)) as again:
            assert await refused(daemon)
            for client in again:
                await client.subscribe()
            for client in (client for client, worker in zip(clients, workers, strict=True) if worker == 1):
                await client.subscribe()
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            for client in (client for client, worker in zip(clients, workers, strict=True) if worker == 1):
                assert (await client.receive())["data"]["id"] == "a"
            for client in again:
                assert (await client.receive())["data"]["id"] == "a"
            assert daemon.metrics()["relay_messages_sent_total board.sync"] == 2 * MANY


async def test_worker_that_is_stuck_is_reported_and_ends_at_a_second_signal(
    database: Database, relay: Relays
) -> None:
    """Health names it, and recovers with it. It holds up the end of the daemon; a second signal does not wait."""
    daemon = await relay(database.dsn, WS_WORKERS="2")
    pid = pid_of(daemon, 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert daemon.guides_health() == (
            503,
            healthy_json(daemon, 0, workers=1) | {"status": "unhealthy", "problem": "worker 1 does not answer"},
        )
        metrics = daemon.metrics()
        assert (metrics["relay_workers"], metrics["relay_feed_up"]) == (1, 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    await daemon.healthy()
    assert daemon.log("worker.died") == []

    os.kill(pid, signal.SIGSTOP)
    daemon.signal(signal.SIGTERM)
    await daemon.logged("relay.stopping")
    assert await daemon.stop() == 1
    assert not exists(pid)
    assert len(daemon.log("relay.cut_short")) == 1


# Stopping


async def test_stopping_tells_the_clients_of_all_workers(database: Database, relay: Relays) -> None:
    """SIGTERM ends the daemon with exit code 0, all connections with 1012, and leaves no process."""
    daemon = await relay(database.dsn, WS_WORKERS="2")
    pids = [pid_of(daemon, worker) for worker in (1, 2)]
    async with clients_of(daemon, MANY) as clients:
        assert set(await workers_of(daemon, clients)) == {1, 2}
        assert await daemon.stop() == 0
        assert {await client.closed() for client in clients} == {1012}
    assert [pid for pid in pids if exists(pid)] == []
    assert daemon.log()[-1]["event"] == "relay.stopped"
    assert daemon.log("worker.died") == []


async def test_signal_to_all_processes_stops_them_once(database: Database, relay: Relays) -> None:
    """Signals that go to the workers too, as Ctrl-C in a terminal does, are no death of theirs."""
    daemon = await relay(database.dsn, WS_WORKERS="2")
    async with clients_of(daemon, MANY) as clients:
        for pid in (pid_of(daemon, 1), pid_of(daemon, 2), daemon.pid):
            os.kill(pid, signal.SIGINT)
        assert {await client.closed() for client in clients} == {1012}
        await until(lambda: daemon.exit_code is not None, "its end")
    assert daemon.exit_code == 0
    assert daemon.log("worker.died") == []
    assert daemon.log()[-1]["event"] == "relay.stopped"


async def test_no_worker_outlives_a_daemon_that_was_killed(database: Database, relay: Relays) -> None:
    """After kill -9 of the daemon its workers tell their clients, and end."""
    daemon = await relay(database.dsn, WS_WORKERS="2")
    pids = [pid_of(daemon, worker) for worker in (1, 2)]
    async with clients_of(daemon, MANY) as clients:
        await daemon.stop(signal.SIGKILL)
        assert {await client.closed() for client in clients} == {1012}
    await until(lambda: not any(map(exists, pids)), "the end of the workers")


# Starting


async def test_start_beside_another_daemon_is_one_line_and_starts_no_worker(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """A port is not shared with another daemon, although its workers share it with each other.

    Workers run the code of the daemon, also where the working directory has a package of the same name.
    """
    (tmp_path / "relay").mkdir()
    (tmp_path / "relay" / "__init__.py").write_text("raise SystemExit('the wrong relay')")
    daemon = await relay(database.dsn, WS_WORKERS="2")
    async with Client.to(daemon) as client:
        assert (await client.subscribe())["type"] == "board.sync"

    for taken in ({"WS_PORT": str(daemon.ws_port)}, {"HEALTH_PORT": str(daemon.health_port)}):
        settings = {"WS_PORT": "0", "HEALTH_PORT": "0", "WS_HOST": HOST, "DATABASE_URL": database.dsn, **taken}
        said = mistake(run_relay("serve", cwd=tmp_path, WS_WORKERS="2", **settings))
        ((name, port),) = taken.items()
        assert name in said
        assert port in said

"""Stopping a daemon without a loss: what was committed is delivered, clients leave one by one and find another."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from relay.postgres.embedded import HOST, free_port
from tests.acceptance.support import SECONDS, Client, Daemon, Program, Relays, clients_of, until
from tests.contract import checked
from tests.servers import Database, do_without

HAPROXY = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_was_committed_before_the_signal_is_delivered(
    database: Database, relay: Relays, workers: str
) -> None:
    """A daemon that had no time to read the journal yet reads it, and then disconnects its clients with 1012."""
    daemon = await relay(database.dsn, WS_WORKERS=workers, WS_DRAIN="0")
    async with clients_of(daemon, 3) as clients:
        for client in clients:
            await client.subscribe()
        pids = [daemon.pid, *(line["pid"] for line in daemon.log("worker.running"))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        database.execute("insert into tasks (id, title) select i::text, 'T' from generate_series(1, 300) i")
        daemon.signal(signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            assert len(await client.receive_until(id="300")) == 300
            assert await client.closed() == 1012
    await until(lambda: daemon.exit_code is not None, "its end")
    assert daemon.exit_code == 0


async def test_clients_are_disconnected_one_after_the_other(database: Database, relay: Relays) -> None:
    """Meanwhile no other client is admitted, readiness says so, and those that are left are served."""
    daemon = await relay(database.dsn, WS_DRAIN="600000")
    async with clients_of(daemon, 20) as clients:
        for client in clients:
            await client.subscribe()
        daemon.signal(signal.SIGTERM)
        assert await clients[0].closed() == 1012
        first = time.monotonic()
        assert daemon.ask("/ready") == (503, {"ready": False, "problem": "the relay is stopping"})
        assert daemon.health()[1]["problem"] == "the relay is stopping"
        with pytest.raises(OSError, match="Connect call failed"):
            async with Client.to(daemon):
                pass
        database.execute("insert into tasks (id, title) values ('late', 'T')")
        assert [message["type"] for message in await clients[-1].receive_until(id="late")] == ["task.created"]
        assert {await client.closed() for client in clients} == {1012}
        # Nineteen more, 50 ms apart.
        assert time.monotonic() - first > 0.5
    await until(lambda: daemon.exit_code is not None, "its end")
    assert daemon.exit_code == 0
    assert daemon.log()[-1]["event"] == "relay.stopped"


async def test_second_signal_ends_at_once(database: Database, relay: Relays) -> None:
    """Clients that were not disconnected in time are cut off, and the exit code says so."""
    daemon = await relay(database.dsn, WS_DRAIN="600000")
    async with clients_of(daemon, 30) as clients:
        daemon.signal(signal.SIGTERM)
        assert await clients[0].closed() == 1012
        assert await daemon.stop(signal.SIGINT) == 1
        codes = [await client.closed() for client in clients]
    assert 1006 in codes
    assert len(daemon.log("relay.cut_short")) == 1
    assert daemon.log()[-1]["event"] == "relay.stopped"


# Rolling restart


class Follower:
    """A resumable client of a board, that comes back whenever its connection ends."""

    def __init__(self, url: str) -> None:
        self.seen: list[str] = []
        """The ids of the tasks that it was sent, in order, beginning with those of its board."""
        self.syncs = 0
        self.attempts = 0
        """How often it tried to connect."""
        self.codes: list[int | None] = []
        self._url = url
        self._cursor: str | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self.attempts += 1
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                async with connect(self._url, proxy=None, max_size=None, open_timeout=SECONDS) as connection:
                    subscribe = {"type": "subscribe", "boardId": "default", "cursor": self._cursor}
                    await connection.send(json.dumps(subscribe))
                    try:
                        async for text in connection:
                            self._take(checked(text))
                    except ConnectionClosed:
                        pass
                    self.codes.append(connection.close_code)
            await asyncio.sleep(0.02)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "board.sync":
            self.syncs += 1
            self.seen = sorted((task["id"] for task in message["data"]["lanes"].get("todo", ())), key=int)
        else:
            assert message["type"] == "batch"
            for each in message["data"]:
                assert each["type"] == "task.created"
                self.seen.append(each["data"]["id"])
        self._cursor = message.get("cursor", self._cursor)


async def test_rolling_restart_behind_a_proxy_loses_nothing(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Two relays behind HAProxy are restarted in turn while rows are written: each client is sent each, once."""
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        do_without("HAProxy is not installed: on Debian and Ubuntu, apt install haproxy")
    ports = free_ports()
    daemons = {name: await start(relay, database, ports, name) for name in ("A", "B")}
    proxy = Program([haproxy, "-db", "-f", HAPROXY], tmp_path, ports)
    followers = [Follower(f"ws://{HOST}:{ports['FRONT']}") for _ in range(6)]
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    writing = asyncio.create_task(write(database))
    try:
        await until(lambda: all(len(follower.seen) > 10 for follower in followers), "all to follow")
        for name in ("A", "B"):
            assert await daemons[name].stop() == 0
            assert len(daemons[name].log("websocket.connection")) > 0
            daemons[name] = await start(relay, database, ports, name)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        expected = [row[0] for row in database.fetch("select id from tasks order by id::int")]
        await until(lambda: all(len(follower.seen) >= len(expected) for follower in followers), "all to catch up")
    finally:
        for task in (*tasks, writing):
            task.cancel()
        await asyncio.gather(*tasks, writing, return_exceptions=True)
        proxy.end()

    for follower in followers:
        assert follower.seen == expected
        assert follower.syncs == 1
        assert set(follower.codes) <= {1012, None}
        assert 1012 in follower.codes


def free_ports() -> dict[str, str]:
    names = ("FRONT", "WS_A", "WS_B", "HEALTH_A", "HEALTH_B")
    found: set[int] = set()
    while len(found) < len(names):  # free_port may choose one twice, while nobody listens there
        found.add(free_port())
    return dict(zip(names, map(str, found), strict=True))


async def start(relay: Relays, database: Database, ports: dict[str, str], name: str) -> Daemon:
    """Start one of the two where the proxy expects it, and wait until clients should be sent there."""
    daemon = await relay(
        database.dsn, ws_port=int(ports[f"WS_{name}"]), HEALTH_PORT=ports[f"HEALTH_{name}"], WS_DRAIN="200"
    )
    await until(lambda: daemon.ask("/ready")[0] == 200, "a relay that is ready")
    return daemon


async def write(database: Database) -> None:
    for number in itertools.count(1):
        database.execute("insert into tasks (id, title, lane) values (%s, 'T', 'todo')", str(number))
        await asyncio.sleep(0.01)

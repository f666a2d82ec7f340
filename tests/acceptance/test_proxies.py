"""Several relays behind a proxy, as deploy/ sets it up: any of them resumes any client, and knows who it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from relay.postgres.embedded import HOST
from tests.acceptance.support import SECONDS, Daemon, Message, Program, Relays, until
from tests.acceptance.test_drain import HAPROXY, Follower, free_ports, start, write
from tests.contract import checked
from tests.servers import Database, do_without

NGINX = HAPROXY.with_name("nginx.conf")

Ports = Mapping[str, str]
Proxy = Callable[[Path, Ports], Program]

AROUND = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/relay.conf;
}}
"""
"""What a distribution has around files for /etc/nginx/conf.d, with all that is written kept in the test's folder."""


def installed(name: str, package: str) -> str:
    """Find a program, also where only root has it on the PATH."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found or do_without(f"{name} is not installed: on Debian and Ubuntu, apt install {package}")


def haproxy(folder: Path, ports: Ports) -> Program:
    return Program([installed("haproxy", "haproxy"), "-db", "-f", HAPROXY], folder, ports)


def nginx(folder: Path, ports: Ports) -> Program:
    program = installed("nginx", "nginx-light")
    text = NGINX.read_text()
    for printed, name in {":4000": "FRONT", ":4002": "WS_A", ":4012": "WS_B"}.items():
        assert text.count(printed) == 1
        text = text.replace(printed, f":{ports[name]}")
    (folder / "relay.conf").write_text(text)
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder))
    return Program([program, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"], folder, {})


PROXIES = pytest.mark.parametrize("proxy", [haproxy, nginx])


@contextlib.asynccontextmanager
async def running(proxy: Proxy, folder: Path, ports: Ports) -> AsyncIterator[str]:
    """Run a proxy; yield the address that clients connect to."""
    program = proxy(folder, ports)
    try:
        await until(lambda: listens(int(ports["FRONT"])) or program.exit_code is not None, "a proxy that listens")
        assert program.exit_code is None, program.output
        yield f"ws://{HOST}:{ports['FRONT']}"
    finally:
        program.end()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@PROXIES
async def test_clients_of_a_relay_that_is_killed_resume_at_the_other(
    proxy: Proxy, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """While rows are written, each client is sent each row once, and connects again at most once."""
    ports = free_ports()
    survivor, victim = [await start(relay, database, ports, name) for name in ("A", "B")]
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(running(proxy, tmp_path, ports))
        followers = [Follower(url) for _ in range(6)]
        tasks = [asyncio.create_task(follower.run()) for follower in followers]
        writing = asyncio.create_task(write(database))
        stack.push_async_callback(ended, *tasks, writing)
        await until(lambda: all(len(follower.seen) > 10 for follower in followers), "all to follow")
        theirs = len(victim.log("websocket.connection"))

        victim.signal(signal.SIGKILL)
        await until(lambda: sum(len(follower.codes) for follower in followers) == theirs, "the end of connections")
        after = database.fetch("select count(*) from tasks")[0][0] + 10
        await until(lambda: all(len(follower.seen) > after for follower in followers), "all to go on")
        await ended(writing)
        expected = [row[0] for row in database.fetch("select id from tasks order by id::int")]
        await until(lambda: all(len(follower.seen) >= len(expected) for follower in followers), "all to catch up")

    assert 0 < theirs < len(followers)
    assert sorted(len(follower.codes) for follower in followers) == [0] * (len(followers) - theirs) + [1] * theirs
    assert len(survivor.log("websocket.connection")) == len(followers)
    for follower in followers:
        assert follower.seen == expected
        assert follower.syncs == 1
        assert follower.attempts == 1 + len(follower.codes)


async def ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@PROXIES
async def test_a_relay_counts_the_clients_of_a_proxy_one_by_one(
    proxy: Proxy, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """It believes the proxy that it is set to trust, and no address that a client claims before it."""
    if sys.platform != "linux":
        do_without("clients of several addresses need those of 127.0.0.0/8, which Linux has")
    daemon = await relay(database.dsn, WS_RATE_LIMIT_PER_CLIENT="1", WS_TRUSTED_PROXIES=HOST)
    both = dict.fromkeys(("WS_A", "WS_B"), str(daemon.ws_port))
    ports = {**free_ports(), **both, **dict.fromkeys(("HEALTH_A", "HEALTH_B"), str(daemon.health_port))}
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(running(proxy, tmp_path, ports))

        async def come(address: str, **headers: str) -> None:
            await stack.enter_async_context(
                connect(url, proxy=None, local_addr=(address, 0), additional_headers=headers)
            )

        await come("127.0.0.2")
        await come("127.0.0.3")
        with pytest.raises(InvalidStatus, match="429"):
            await come("127.0.0.2", **{"X-Forwarded-For": "192.0.2.1"})


async def event(response: aiohttp.ClientResponse) -> tuple[str | None, Message]:
    """Return the id and the message of the next event."""
    cursor = None
    async for line in response.content:
        name, _, value = line.decode().strip().partition(": ")
        if name == "id":
            cursor = value
        elif name == "data":
            return cursor, checked(value)
    raise EOFError


@PROXIES
async def test_events_come_at_once_and_go_on_at_the_other_relay(
    proxy: Proxy, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """No change is made before the last one has come, so none is held back; none is lost with a relay that is killed.

    They are those of a part of the board, which the address names.
    """
    ports = free_ports()
    daemons = [await start(relay, database, ports, name) for name in ("A", "B")]
    cursor: str | None = None
    timeout = aiohttp.ClientTimeout(sock_read=SECONDS)
    async with running(proxy, tmp_path, ports) as url, aiohttp.ClientSession(timeout=timeout) as session:
        for first in (0, 10):
            database.execute("insert into tasks (id, title) values (%s, 'T')", str(first))
            headers = {"Last-Event-ID": cursor} if cursor else {}
            address = url.replace("ws:", "http:") + "/boards/default/events?lane=backlog&column=title"
            async with session.get(address, headers=headers) as response:
                assert (response.status, response.content_type) == (200, "text/event-stream")
                cursor, message = await event(response)
                assert message["type"] == ("batch" if headers else "board.sync")
                if headers:
                    assert created(message) == [part(first)]
                for number in range(first + 1, first + 5):
                    database.execute("insert into tasks (id, title) values (%s, 'T')", str(number))
                    cursor, message = await event(response)
                    assert created(message) == [part(number)]
                [its] = [daemon for daemon in daemons if daemon.exit_code is None and connected(daemon)]
                its.signal(signal.SIGKILL)
                with pytest.raises((EOFError, aiohttp.ClientError)):
                    await event(response)
            await until(lambda: its.exit_code is not None, "the end of the relay")  # noqa: B023  # awaited at once


def created(batch: dict[str, Any]) -> list[Any]:
    return [change["data"] for change in batch["data"]]


def part(number: int) -> dict[str, str]:
    """Return what is selected of a task."""
    return {"id": str(number), "boardId": "default", "lane": "backlog", "title": "T"}


def connected(daemon: Daemon) -> bool:
    return bool(daemon.log("websocket.connection"))

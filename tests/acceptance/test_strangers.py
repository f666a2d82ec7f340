"""A daemon that strangers and broken machinery surround: it serves, and says what is the matter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect, unix_connect

from tests.acceptance.support import RELAY, Client, Relays, environment, mistake, run_relay, until
from tests.acceptance.test_drain import free_ports
from tests.servers import Database


class Bare:
    """`relay serve` with a standard error that nobody reads: its ports are chosen for it."""

    def __init__(self, dsn: str, folder: Path, stderr: int) -> None:
        ports = free_ports()
        self.ws_port, self.health_port = ports["WS_A"], ports["HEALTH_A"]
        settings = {"WS_PORT": self.ws_port, "HEALTH_PORT": self.health_port, "WS_HOST": "127.0.0.1"}
        self.process = subprocess.Popen(
            [RELAY, "serve"],
            cwd=folder,
            env=environment({"DATABASE_URL": dsn, "LOG_LEVEL": "debug", **settings}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def ask(self, path: str) -> str:
        """Return an answer, an empty one if there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""


@contextlib.contextmanager
def bare(dsn: str, folder: Path, stderr: int) -> Iterator[Bare]:
    daemon = Bare(dsn, folder, stderr)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()


@pytest.fixture(params=["stalled", "full", "gone"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    """Yield a descriptor that takes nothing: a pipe that nobody reads, or has left, or a full disk."""
    if request.param == "full":
        full = os.open("/dev/full", os.O_WRONLY)
        yield full, False
        os.close(full)
        return
    reader, writer = os.pipe()
    if request.param == "gone":
        os.close(reader)
    else:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n" * 65536)
        os.set_blocking(writer, True)
    yield writer, request.param == "stalled"
    os.close(writer)
    if request.param != "gone":
        os.close(reader)


async def test_a_log_that_cannot_be_written_stops_nothing(
    database: Database, tmp_path: Path, unwritable: tuple[int, bool]
) -> None:
    """It starts, serves, answers for its health, and stops as usual; lines that are not written are counted."""
    descriptor, reader_may_come_back = unwritable
    with bare(database.dsn, tmp_path, descriptor) as daemon:
        await until(lambda: daemon.ask("/ready"), "a daemon that is ready")
        async with connect(f"ws://127.0.0.1:{daemon.ws_port}", proxy=None) as connection, asyncio.timeout(15):
            for number in range(30):  # more than a pipe holds, with what each of them is answered
                await connection.send(json.dumps({"type": "subscribe", "boardId": f"{number}" + "b" * 300}))
                await connection.recv()
            await connection.send('{"type":"subscribe","boardId":"default"}')
            await connection.recv()
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert json.loads(await connection.recv())["type"] == "task.created"
        lost = re.search(r"^relay_log_lines_dropped_total (.+)$", daemon.ask("/metrics"), re.MULTILINE)
        assert lost
        # What waits for a reader that may come back is not lost yet.
        assert (float(lost[1]) > 60) is not reader_may_come_back
        daemon.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.process.wait, 15) == 0


async def test_silent_strangers_take_no_file_from_postgres_and_no_place_from_clients(
    database: Database, relay: Relays
) -> None:
    """With few files, and silent connections to both ports, the link to Postgres comes back, and clients come in."""
    program = ("sh", "-c", 'ulimit -n 200; exec "$0" "$@"', str(RELAY))
    daemon = await relay(database.dsn, "--ws-handshake-timeout", "60000", program=program)
    async with Client.to(daemon) as client:
        await client.subscribe()
        with contextlib.ExitStack() as stack:
            for port in (daemon.ws_port, daemon.health_port):
                for _ in range(300):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert (await client.receive_until(id="a"))[-1]["type"] == "task.created"
            async with Client.to(daemon) as other:
                assert (await other.subscribe())["type"] == "board.sync"
            _, health = daemon.health()
            assert len(health["warnings"]) == 2
            assert daemon.metrics()["relay_refused_total no file left but the reserve"] > 0
            assert not [line for line in daemon.log() if "Too many open files" in str(line)]


PASS_SOCKETS = """
import os, socket, sys
for number in (3, 4):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    os.dup2(sock.fileno(), number, inheritable=True) if sock.fileno() != number else os.set_inheritable(number, True)
    sock.detach()
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "clients:health"}
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Does what systemd does for a unit with sockets."""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_serves_on_sockets_that_systemd_opened(database: Database, relay: Relays, workers: str) -> None:
    """One named health is for health, any other for clients; several workers share it."""
    program = (sys.executable, "-c", PASS_SOCKETS, str(RELAY))
    daemon = await relay(database.dsn, program=program, ws_port=1, HEALTH_PORT="1", WS_WORKERS=workers)
    assert daemon.ws_port > 1
    for _ in range(4):
        async with Client.to(daemon) as client:
            assert (await client.subscribe())["type"] == "board.sync"
    if workers == "2":
        assert daemon.health()[1]["workers"] == 2


async def test_it_serves_on_a_unix_socket(database: Database, relay: Relays, tmp_path: Path) -> None:
    """In place of a port; the next daemon, which has several workers, takes the path again."""
    path = str(tmp_path / "ws")
    for workers in ("1", "2"):
        daemon = await relay(database.dsn, WS_SOCKET=path, WS_WORKERS=workers)
        async with unix_connect(path, "ws://relay/") as connection, asyncio.timeout(15):
            await connection.send('{"type":"subscribe","boardId":"default"}')
            assert json.loads(await connection.recv())["type"] == "board.sync"
        assert await daemon.stop() == 0


def test_a_path_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    long = str(tmp_path / ("x" * 200))
    assert "WS_SOCKET" in mistake(run_relay("serve", cwd=tmp_path, WS_SOCKET=long, HEALTH_PORT="0"))
    assert "WS_SOCKET" in mistake(run_relay("serve", cwd=tmp_path, WS_SOCKET=str(tmp_path), HEALTH_PORT="0"))

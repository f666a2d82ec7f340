"""What a flood of refused connections does to those who are there: their latency without it and with it, in turns.

    python benchmarks/flood.py            # about a minute
    python benchmarks/flood.py --rate 2000 --seconds 3

A relay with a token; subscribers of one board, and a task that is changed twenty times a second. The flood comes from
a process of its own, from one address, as fast as it is asked to or as the machine lets it: TCP connections that ask
for an upgrade, read the answer and come again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter

import psycopg
from websockets.asyncio.client import connect

from relay.commands.bench import run as bench
from relay.postgres import install
from relay.postgres.embedded import EmbeddedPostgres

TOKEN = "a-token-that-is-good"
SUBSCRIBERS = 50
CHANGES_A_SECOND = 20
AT_ONCE = 64
REQUEST = (
    b"GET /?token=wrong HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def main() -> None:
    """Measure and print; or be the flood."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=5, help="length of one phase")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rate", type=int, default=10_000, help="connections a second that the flood tries")
    options.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.flood:
        flood(given.flood, given.rate, given.seconds)
        return
    with EmbeddedPostgres() as server:
        install.run(server.dsn, "tasks")
        install.run(server.dsn, "install")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("select relay.watch('public.tasks')")
        # Those who are to measure come at once; the flood is over any limit.
        settings = {"WS_TOKENS": TOKEN, "WS_RATE_LIMIT_PER_CLIENT": str(2 * SUBSCRIBERS)}
        with bench.running_relay(server.dsn, 2 * SUBSCRIBERS, **settings) as (_, port):
            asyncio.run(measure(server.dsn, port, given.rate, given.seconds, given.rounds))


async def measure(dsn: str, port: int, rate: int, seconds: float, rounds: int) -> None:
    """Print the latencies."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, {SUBSCRIBERS} subscribers\n")
    async with contextlib.AsyncExitStack() as stack:
        times: list[float] = []
        for _ in range(SUBSCRIBERS):
            client = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}?token={TOKEN}"))
            await client.send('{"type":"subscribe","boardId":"default"}')
            await client.recv()
            stack.enter_context(contextlib.closing(Reader(client, times)))
        await compare(dsn, port, rate, seconds, rounds, times)


class Reader:
    """Reads one subscriber's messages, and notes how long they took."""

    def __init__(self, client: object, times: list[float]) -> None:
        self._task = asyncio.create_task(self._read(client, times))

    async def _read(self, client: object, times: list[float]) -> None:
        async for message in client:  # type: ignore[attr-defined]
            data = json.loads(message)["data"]
            sent = data["title"] if "title" in data else data["changes"]["title"]
            times.append((time.monotonic_ns() - int(sent)) / 1e6)

    def close(self) -> None:
        """Read no more."""
        self._task.cancel()


async def compare(dsn: str, port: int, rate: int, seconds: float, rounds: int, times: list[float]) -> None:
    """Measure without the flood and with it, in turns."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    refused = []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
        await writer.execute("insert into tasks (id, title) values ('t', %s)", [str(time.monotonic_ns())])
        for _ in range(rounds):
            for phase, its in found.items():
                flooding = await start_flood(port, rate, seconds) if phase == "with" else None
                times.clear()
                await write(writer, seconds)
                its.extend(times)
                if flooding:
                    refused.append(json.loads((await flooding.communicate())[0]))
    for phase, its in found.items():
        cuts = statistics.quantiles(its, n=100)
        print(f"{phase:>8} a flood: p50 {cuts[49]:6.1f} ms  p99 {cuts[98]:6.1f} ms  max {max(its):6.1f} ms")
    print(
        f"refused a second: {statistics.median(each['refused'] for each in refused) / seconds:,.0f}; answers: "
        f"{dict(sum((Counter(each['answers']) for each in refused), Counter()))}"
    )


async def start_flood(port: int, rate: int, seconds: float) -> asyncio.subprocess.Process:
    """Start the flood, in a process of its own."""
    options = ["--flood", str(port), "--rate", str(rate), "--seconds", str(seconds)]
    return await asyncio.create_subprocess_exec(sys.executable, __file__, *options, stdout=subprocess.PIPE)


async def write(writer: psycopg.AsyncConnection, seconds: float) -> None:
    """Change the task now and then."""
    for _ in range(round(seconds * CHANGES_A_SECOND)):
        await asyncio.sleep(1 / CHANGES_A_SECOND)
        await writer.execute("update tasks set title = %s where id = 't'", [str(time.monotonic_ns())])


def flood(port: int, rate: int, seconds: float) -> None:
    """Connect many times at once, be refused, and again; print what was answered."""
    answers: Counter[str] = Counter()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if answers.total() > passed * rate:
            time.sleep(0.001)
            continue
        peers = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(AT_ONCE)]
        for peer in peers:
            # Gone at once when it is closed: else there would soon be no ports left.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.send(REQUEST)
        for peer in peers:
            with peer:
                answers[peer.recv(100)[9:12].decode() or "none"] += 1
    print(json.dumps({"refused": answers.total(), "answers": answers}))


if __name__ == "__main__":
    main()

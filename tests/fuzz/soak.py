"""A long soak: strangers and clients come and go, and memory and open files are watched: `make soak MINUTES=60`.

Strangers send what fuzzing sends, and drip, flood and stall; hostile ones take as much as they are let (hostile.py).
Clients follow boards, resume, present fresh tokens and leave, and an operator asks for health. The figures go into a
JSON file and a picture; exit code 1 if a client or the operator was not served, if a file stayed open, or if the
relay took more memory than docs/security.md says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import click
import jwt
import psycopg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from relay.commands.bench import run as bench
from relay.postgres import install
from relay.postgres.embedded import EmbeddedPostgres, free_port
from tests.contract import checked
from tests.fuzz import hostile
from tests.fuzz.targets import SECRET, SEEDS

BOARDS: Final = 20
CHANGES_A_SECOND: Final = 40
STRANGERS_A_SECOND: Final = 60
CLIENTS: Final = 30
SAMPLE_SECONDS: Final = 10.0
MOST_MB: Final = 590
"""Maximum memory of the relay under any load: docs/security.md says what it consists of."""

HEALTH_SECONDS: Final = 1.0
"""How long an answer about health may take."""

WARM_SHARE: Final = 0.25
"""Share of the run that is left out where growth is measured: caches and pools fill then."""


def main() -> None:
    """Soak, and tell."""
    options = argparse.ArgumentParser()
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--figures", type=Path, default=Path("docs/soak"), help="where .json and .svg go")
    given = options.parse_args()
    with EmbeddedPostgres() as server:
        install.run(server.dsn, "tasks")
        install.run(server.dsn, "install")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("select relay.watch('public.tasks')")
        settings = {"WS_JWT_SECRET": SECRET, "WS_HEARTBEAT": "2000", "WS_HANDSHAKE_TIMEOUT": "2000"}
        settings |= {"WS_IDLE_TIMEOUT": "5000", "WS_MESSAGE_RATE": "50"}
        health_port = free_port()
        settings |= {"HEALTH_PORT": str(health_port)}
        with bench.running_relay(server.dsn, 100, **settings) as (pid, port):
            soak = Soak(server.dsn, pid, port, health_port)
            asyncio.run(soak.run(given.minutes * 60))
    soak.write(given.figures)
    sys.exit(soak.verdict())


class Soak:
    """The participants, and what is found."""

    def __init__(self, dsn: str, pid: int, port: int, health_port: int) -> None:
        self._dsn, self._port, self._health_port = dsn, port, health_port
        self._proc = Path(f"/proc/{pid}")
        self._url = f"ws://127.0.0.1:{port}"
        self._chance = random.Random(1)
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[float, float, int]] = []

    async def run(self, seconds: float) -> None:
        """Let them come for so long, and then go."""
        self._sample(0)
        before = self.samples.pop()
        began = time.monotonic()
        crowd = [asyncio.create_task(self._write())]
        crowd += [asyncio.create_task(self._strangers())]
        crowd += [asyncio.create_task(self._operator())]
        target = hostile.Target(self._port, self._health_port, self._token, self.counts)
        crowd += [asyncio.create_task(stranger) for stranger in hostile.crowd(target)]
        crowd += [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        while (passed := time.monotonic() - began) < seconds:
            await asyncio.sleep(min(SAMPLE_SECONDS, seconds - passed))
            self._sample(time.monotonic() - began)
        for task in crowd:
            task.cancel()
        for outcome in await asyncio.gather(*crowd, return_exceptions=True):
            if isinstance(outcome, Exception):
                self.counts["faults"] += 1
                click.echo(repr(outcome), err=True)
        await asyncio.sleep(10)  # until the relay has dropped who stalled
        self._sample(time.monotonic() - began)
        self.counts["files left open"] = max(0, self.samples[-1][2] - before[2] - 2)

    def _sample(self, at: float) -> None:
        status = (self._proc / "status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        self.samples.append((round(at, 1), resident / 1024, len(list((self._proc / "fd").iterdir()))))

    async def _write(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as writer:
            for number in range(1, sys.maxsize):
                await asyncio.sleep(1 / CHANGES_A_SECOND)
                await writer.execute(
                    "insert into tasks (id, board_id, title) values (%s, %s, %s) "
                    "on conflict (id) do update set title = excluded.title",
                    [f"t{number % 1000}", f"b{number % BOARDS}", str(number)],
                )
                self.counts["changes"] += 1

    async def _operator(self) -> None:
        """Ask for health all the time, whichever process holds the port."""
        while True:
            async with asyncio.timeout(HEALTH_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._health_port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:1000]
            self.counts["health asked for"] += 1
            await asyncio.sleep(1)

    async def _strangers(self) -> None:
        async with asyncio.TaskGroup() as crowd:
            while True:
                await asyncio.sleep(1 / STRANGERS_A_SECOND)
                crowd.create_task(self._stranger())

    async def _stranger(self) -> None:
        """Come in some way, send something, stay for a moment, and go in some way."""
        self.counts["strangers"] += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(OSError):
            data = self._spoilt(self._chance.choice(SEEDS["connection"])[2:])
            kind = self._chance.choice(("at once", "dripping", "silent", "reading nothing"))
            if kind == "dripping":
                for byte in data[:20]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.1)
            elif kind != "silent":
                writer.write(data)
            if kind == "at once":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await reader.read()
            else:
                await asyncio.sleep(self._chance.uniform(0, 4))
        if self._chance.random() < 0.5:
            writer.close()
        else:
            writer.transport.abort()

    def _spoilt(self, data: bytes) -> bytes:
        for _ in range(self._chance.randrange(4)):
            start = self._chance.randrange(len(data) + 1)
            end = self._chance.randrange(start, len(data) + 1)
            data = data[:start] + self._chance.randbytes(self._chance.randrange(8)) + data[end:]
        return data

    async def _client(self, number: int) -> None:
        """Follow a board again and again, for a while each time; resume if it can."""
        cursor: str | None = None
        while True:
            token = self._token() if self._chance.random() < 0.9 else "wrong"
            try:
                async with connect(f"{self._url}?token={token}", proxy=None, max_size=None) as connection:
                    cursor = await self._follow(connection, f"b{number % BOARDS}", cursor)
            except InvalidStatus as ex:
                self.counts[f"refused with {ex.response.status_code}"] += 1
            except (WebSocketException, OSError) as ex:
                self.counts[f"ended: {type(ex).__name__}"] += 1
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def _follow(self, connection: ClientConnection, board: str, cursor: str | None) -> str | None:
        await connection.send(json.dumps({"type": "subscribe", "boardId": board, "cursor": cursor}))
        until = time.monotonic() + self._chance.uniform(0, 10)
        while time.monotonic() < until:
            async with asyncio.timeout(30):  # changes come all the time: silence is a fault
                message = checked(await connection.recv())
            self.counts[f"received: {message['type']}"] += 1
            cursor = message.get("cursor", cursor)
            if self._chance.random() < 0.02:
                await connection.send(json.dumps({"type": "authenticate", "token": self._token()}))
        return cursor

    def _token(self) -> str:
        return jwt.encode({"exp": time.time() + 60, "boards": ["b*"]}, SECRET, "HS256")

    def growth(self) -> float:
        """Return by how many MB an hour memory grows, as a straight line through the samples, but for the first."""
        warm = [(at, memory) for at, memory, _ in self.samples if at >= WARM_SHARE * self.samples[-1][0]]
        if len(warm) < 2:
            return 0.0
        mean_at = sum(at for at, _ in warm) / len(warm)
        mean = sum(memory for _, memory in warm) / len(warm)
        slope = sum((at - mean_at) * (memory - mean) for at, memory in warm)
        return slope / sum((at - mean_at) ** 2 for at, _ in warm) * 3600

    def write(self, figures: Path) -> None:
        """Write the figures, and their picture."""
        figures.with_suffix(".json").write_text(
            json.dumps({"counts": dict(sorted(self.counts.items())), "seconds_mb_files": self.samples})
        )
        picture(self.samples, figures.with_suffix(".svg"))

    def verdict(self) -> int:
        """Print what was found; 1 if something is wrong."""
        minutes = self.samples[-1][0] / 60
        memory = [mb for _, mb, _ in self.samples]
        click.echo(f"{minutes:.1f} minutes; memory {memory[0]:.1f} to {memory[-1]:.1f} MB, at most {max(memory):.1f}")
        click.echo(f"growth after the first quarter: {self.growth():+.2f} MB an hour")
        for name, count in sorted(self.counts.items()):
            click.echo(f"{count:>10,}  {name}")
        too_much = max(memory) > MOST_MB
        return int(self.counts["faults"] > 0 or self.counts["files left open"] > 0 or too_much)


def picture(samples: list[tuple[float, float, int]], path: Path) -> None:
    """Draw memory over time."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and needed at the end only

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "relay"
    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot([at / 60 for at, _, _ in samples], [mb for _, mb, _ in samples], color="#2f6fed")
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

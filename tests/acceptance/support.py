"""What the acceptance tests share: programs that run beside the test, the daemon above all, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect

from relay.commands.bench.run import NO_LIMITS
from tests.contract import checked

RELAY: Final = Path(sys.executable).parent / "relay"
"""The console script, as an operator starts it."""

SECONDS: Final = 15.0
"""How long anything that a test waits for may take."""

_POLL_SECONDS: Final = 0.01

Message = dict[str, Any]
_T = TypeVar("_T")


async def until(condition: Callable[[], _T], what: str) -> _T:
    """Return the condition's value as soon as it is true; fail if it stays false."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {SECONDS:.0f} seconds in vain for {what}")
        await asyncio.sleep(_POLL_SECONDS)
    return value


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a program: what is needed to find others, the settings, and nothing of ours.

    It trusts none of the machine's authorities: no test needs them, and each start would read them all, twice.
    """
    ours = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**ours, "SSL_CERT_FILE": os.devnull, **settings}


def run_relay(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the relay that ends by itself."""
    return subprocess.run(
        [RELAY, *arguments],
        cwd=cwd,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def mistake(finished: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a command has to say about a user's mistake."""
    assert finished.returncode in {1, 2}
    assert finished.stdout == ""
    assert finished.stderr.startswith("Error: ")
    assert finished.stderr.count("\n") == 1
    return finished.stderr.strip()


class Program:
    """A program that runs beside the test. What it prints goes into a file."""

    def __init__(self, command: Sequence[str | Path], folder: Path, settings: Mapping[str, str]) -> None:
        self._output = folder / f"output-of-{len(list(folder.glob('output-of-*')))}"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """All whole lines that it has printed."""
        lines = self._output.read_bytes()
        return lines[: lines.rfind(b"\n") + 1].decode()

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def end(self) -> None:
        """End it if it runs, at the latest by force."""
        self._process.terminate()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Daemon(Program):
    """`relay serve` on a database."""

    def __init__(
        self,
        options: Sequence[str],
        folder: Path,
        settings: Mapping[str, str],
        program: Sequence[str | Path] = (RELAY,),
    ) -> None:
        super().__init__([*program, "serve", *options], folder, settings)
        self.ws_port = 0
        self.health_port = 0

    async def listens(self) -> None:
        """Wait for the line that names the ports; only workers have something to say before."""

        def ports() -> list[dict[str, Any]]:
            return [line for line in self.log() if "health" in line]

        await until(lambda: ports() or self.exit_code is not None, "the daemon's ports")
        assert self.exit_code is None, self.output
        self.ws_port, self.health_port = ports()[0]["port"], ports()[0]["health"]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}"

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the lines it has logged, or those of one event."""
        lines = [json.loads(line) for line in self.output.splitlines()]
        return [line for line in lines if event in {None, line["event"]}]

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for a line of an event that has these fields, and return the first."""
        found = await until(
            lambda: [line for line in self.log(event) if fields.items() <= line.items()], f"{event} with {fields}"
        )
        return found[0]

    def health(self) -> tuple[int, Any]:
        """Ask for its health: the HTTP status, and the JSON."""
        return self.ask("/health")

    def guides_health(self) -> tuple[int, Any]:
        """Ask for its health, and leave the database's side out, which the guide does not know."""
        code, answer = self.health()
        return code, {name: value for name, value in answer.items() if name != "database"}

    def ask(self, path: str) -> tuple[int, Any]:
        """Ask for something that it answers with JSON: the HTTP status, and that."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=SECONDS)) as link:
            link.request("GET", path)
            response = link.getresponse()
            return response.status, json.load(response)

    def metrics(self) -> dict[str, float]:
        """Ask for its metrics: the value of each sample, by its name and labels."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=SECONDS)) as link:
            link.request("GET", "/metrics")
            families = text_string_to_metric_families(link.getresponse().read().decode())
            samples = [sample for family in families for sample in family.samples]
        return {" ".join((sample.name, *sample.labels.values())): sample.value for sample in samples}

    async def healthy(self) -> None:
        """Wait until it says that it is healthy."""
        await until(lambda: self.health()[0] == http.HTTPStatus.OK, "a healthy daemon")

    async def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop, and return its exit code."""
        self.signal(signum)
        await until(lambda: self.exit_code is not None, f"the end of the daemon after {signum.name}")
        return self._process.returncode

    async def end_and_show(self, output: IO[str]) -> None:
        """End it and print its log, which pytest shows if the test failed; it must be all JSON, without a fault.

        Waits without blocking, for the daemon's way to the database may lead through the test's own loop.
        """
        try:
            if self.exit_code is None:
                await self.stop()
        finally:
            self.end()
            output.write(self.output)
        assert [line for line in self.log() if "exception" in line] == []


class Relays:
    """Starts daemons for a test, each in the test's folder; `afterwards` closes when they have ended."""

    def __init__(self, folder: Path, afterwards: contextlib.AsyncExitStack) -> None:
        self._folder = folder
        self.afterwards = afterwards
        self.started: list[Daemon] = []

    async def __call__(
        self,
        dsn: str,
        *options: str,
        ws_port: int = 0,
        healthy: bool = True,
        program: Sequence[str | Path] = (RELAY,),
        **settings: str,
    ) -> Daemon:
        """Start one on a database; it listens, on free ports and healthy unless the test wants something else."""
        ports = {"WS_PORT": str(ws_port), "HEALTH_PORT": "0"}
        daemon = Daemon(options, self._folder, {"DATABASE_URL": dsn, **ports, **NO_LIMITS, **settings}, program)
        self.started.append(daemon)
        await daemon.listens()
        if healthy:
            await daemon.healthy()
        return daemon


class Client:
    """One raw connection to a daemon."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, daemon: Daemon) -> AsyncIterator[Client]:
        """Connect for as long as the context lasts."""
        async with connect(daemon.url, proxy=None, max_size=None, open_timeout=SECONDS) as connection:
            yield cls(connection)

    async def subscribe(self, board: str = "default") -> Message:
        """Subscribe to a board and return the first message."""
        await self.send_subscribe(board)
        return await self.receive()

    async def send_subscribe(self, board: str = "default") -> None:
        """Subscribe, for a test that waits for nothing."""
        await self._connection.send(json.dumps({"type": "subscribe", "boardId": board}))

    async def receive(self) -> Message:
        """Return the next message."""
        async with asyncio.timeout(SECONDS):
            message: Message = checked(await self._connection.recv())
        return message

    async def receive_until(self, **data: object) -> list[Message]:
        """Return all messages up to the one whose data has these fields."""
        messages = [await self.receive()]
        while not data.items() <= messages[-1]["data"].items():
            messages.append(await self.receive())
        return messages

    async def closed(self) -> int | None:
        """Wait for the end of the connection and return its close code."""
        async with asyncio.timeout(SECONDS):
            await self._connection.wait_closed()
        return self._connection.close_code


@contextlib.asynccontextmanager
async def clients_of(daemon: Daemon, count: int) -> AsyncIterator[list[Client]]:
    """Connect so many clients for as long as the context lasts."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client.to(daemon)) for _ in range(count)]


def task_ids(sync: Message) -> list[Any]:
    """Return the ids of the tasks on a board that was sent whole."""
    assert sync["type"] == "board.sync"
    return [task["id"] for lane in sync["data"]["lanes"].values() for task in lane]

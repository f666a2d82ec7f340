"""`relay tail` as people and scripts use it: against a real daemon, whatever happens to that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.commands.tail.follow import Target, follow
from relay.postgres.embedded import HOST
from tests.acceptance.support import (
    RELAY,
    SECONDS,
    Daemon,
    Message,
    Program,
    Relays,
    mistake,
    run_relay,
    until,
)
from tests.proxy import Proxy
from tests.servers import Database


class Tail(Program):
    """`relay tail default` beside the test."""

    def __init__(self, daemon: Daemon, options: tuple[str, ...], folder: Path, settings: dict[str, str]) -> None:
        super().__init__([RELAY, "tail", "default", *options], folder, {"RELAY_URL": daemon.url, **settings})

    @property
    def messages(self) -> list[Message]:
        """What it has printed with --json."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def states(self) -> list[str]:
        """What it has printed of its connection."""
        return re.findall(r"^relay tail: (.*)$", self.output, re.MULTILINE)

    async def live(self) -> None:
        await until(lambda: "live" in self.states or self.exit_code is not None, "a live tail")

    async def ended(self) -> int | None:
        await until(lambda: self.exit_code is not None, "the end of the tail")
        return self.exit_code


Start = Callable[..., Tail]


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Start]:
    """Yield what starts a tail of a daemon; it ends with the test."""
    started: list[Tail] = []

    def start(daemon: Daemon, *options: str, **settings: str) -> Tail:
        started.append(Tail(daemon, options, tmp_path, settings))
        return started[-1]

    yield start
    for each in started:
        each.end()


def insert(database: Database, *numbers: int) -> None:
    for number in numbers:
        database.execute("insert into tasks (id, title) values (%s, 'x')", str(number))


def created(tail: Tail) -> list[str]:
    return [message["data"]["id"] for message in tail.messages if message["type"] == "task.created"]


def names_with(word: str, folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if word in path.name]


async def has_created(tail: Tail, number: int) -> None:
    await until(lambda: str(number) in created(tail), f"task {number}")


async def test_each_change_is_one_line(database: Database, relay: Relays, tail: Start) -> None:
    """For people: time, type, task, lanes, columns; a board by its lanes, however large; nothing a terminal obeys."""
    database.execute(
        "insert into tasks (id, title) select 'task-' || n, repeat('x', 1000) from generate_series(1, 2000) n"
    )
    daemon = await relay(database.dsn)
    running = tail(daemon, "--count", "5")
    await running.live()
    database.execute("insert into tasks (id, title, priority) values ('new', e'\\x1b[2J\\u009b2J\\u202e', 'high')")
    database.execute("update tasks set lane = 'todo' where id = 'new'")
    database.execute("delete from tasks where id = 'new'")
    assert await running.ended() == 0
    lines = [line for line in running.output.splitlines() if not line.startswith("relay tail: ")]

    assert [re.sub(r"^\d\d:\d\d:\d\d\.\d{3}  ", "", line).partition("=")[0] for line in lines] == [
        "board.sync    2000 tasks  backlog 2000  todo 0  in_progress 0  done 0  recovery 0",
        "task.created  new  backlog  title",
        "task.moved    new  backlog → todo",
        "task.updated  new  todo  lane",
        "task.deleted  new  todo",
    ]
    assert r'title="\u001b[2J\u009b2J\u202e"' in lines[1]
    assert 'priority="high"' in lines[1]
    assert running.states == [f"connecting: {daemon.url}", "live"]


async def test_a_killed_daemon_costs_no_change(database: Database, relay: Relays, tail: Start) -> None:
    """Killed and started again while changes come, all of them are printed, once, in order, with one board."""
    daemon = await relay(database.dsn)
    running = tail(daemon, "--json")
    await running.live()
    insert(database, *range(20))
    await daemon.stop(signal.SIGKILL)
    insert(database, *range(20, 40))
    daemon = await relay(database.dsn, ws_port=daemon.ws_port)
    await has_created(running, 39)
    insert(database, 40)
    await has_created(running, 40)

    assert created(running) == [str(number) for number in range(41)]
    assert [message["type"] for message in running.messages].count("board.sync") == 1
    assert [state.partition(":")[0] for state in running.states].count("offline") >= 1
    assert running.states[-2:] == ["catching up", "live"]


async def test_a_link_that_fell_silent_is_given_up(database: Database, relay: Relays) -> None:
    """No packet and no end: no answer to a ping comes, and what was missed comes over a new link."""
    daemon = await relay(database.dsn)
    states: list[str] = []
    async with asyncio.timeout(SECONDS), Proxy(HOST, daemon.ws_port) as between:
        target = Target(f"ws://{HOST}:{between.port}", "default", ping_seconds=0.2)
        following = follow(target, None, lambda state, _: states.append(state))
        async with contextlib.aclosing(following) as deliveries:
            assert b"board.sync" in (await anext(deliveries)).messages[0]
            between.strand()
            insert(database, 1)
            [change] = (await anext(deliveries)).messages

    assert json.loads(change)["data"]["id"] == "1"
    assert states == ["connecting", "live", "offline", "connecting", "catching up"]


async def test_the_next_run_goes_on_from_the_cursor_file(
    database: Database, relay: Relays, tail: Start, tmp_path: Path
) -> None:
    """What came between is printed once, by the next run; a run that is cut short within a batch repeats it.

    If the file has no good cursor, the board comes, also with --no-sync, and standard error says why.
    """
    daemon = await relay(database.dsn)
    options = ("--json", "--cursor-file", "cursor")
    assert await tail(daemon, *options, "--count", "1").ended() == 0
    insert(database, 1)
    database.execute("insert into tasks (id, title) values ('2', 'x'), ('3', 'x')")
    second = tail(daemon, *options, "--count", "3")
    assert await second.ended() == 0
    assert created(second) == ["1", "2", "3"]

    database.execute("insert into tasks (id, title) values ('4', 'x'), ('5', 'x')")
    cut_short = tail(daemon, *options, "--count", "1")
    assert await cut_short.ended() == 0
    assert created(cut_short) == ["4"]
    again = tail(daemon, *options, "--count", "2")
    assert await again.ended() == 0
    assert created(again) == ["4", "5"]
    assert "board.sync" not in second.output + cut_short.output + again.output
    assert names_with("cursor", tmp_path) == ["cursor"]

    (tmp_path / "cursor").write_text("nonsense\n")
    refused = tail(daemon, "--no-sync", "--cursor-file", "cursor", "--count", "1")
    assert await refused.ended() == 0
    assert "board.sync    5 tasks" in refused.output
    assert "catching up: cannot go on from the cursor (cursor_invalid), here is the board" in refused.states
    assert (tmp_path / "cursor").read_text() != "nonsense\n"


async def test_a_token_lets_it_in_or_not(database: Database, relay: Relays, tail: Start, tmp_path: Path) -> None:
    """From the environment or a file; one that is not good, or for other boards, ends it with one line."""
    daemon = await relay(database.dsn, WS_TOKENS="good other:elsewhere")
    (tmp_path / "token").write_text("good\n")
    tails = {
        "environment": tail(daemon, "--count", "1", RELAY_TOKEN="good"),
        "file": tail(daemon, "--count", "1", "--token-file", "token", RELAY_TOKEN="bad"),
        "bad": tail(daemon, RELAY_TOKEN="bad"),
        "none": tail(daemon),
        "other": tail(daemon, RELAY_TOKEN="other"),
    }
    assert {name: await each.ended() for name, each in tails.items()} == {
        "environment": 0,
        "file": 0,
        "bad": 1,
        "none": 1,
        "other": 1,
    }
    for name, said in (("bad", "(HTTP 401)"), ("none", "(HTTP 401)"), ("other", "(not_allowed)")):
        assert tails[name].output.splitlines()[-1].startswith("Error: the relay refused")
        assert said in tails[name].output.splitlines()[-1]


async def test_signals_end_it_and_so_does_a_reader_that_leaves(
    database: Database, relay: Relays, tail: Start, tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and `| head`, though nothing more is to be printed: exit code 0, and not a word."""
    daemon = await relay(database.dsn)
    both = tail(daemon), tail(daemon)
    for running, signum in zip(both, (signal.SIGINT, signal.SIGTERM), strict=True):
        await running.live()
        running.signal(signum)
    assert [await running.ended() for running in both] == [0, 0]
    assert all(running.output.count("\n") == 3 for running in both)

    pipe = Program(
        ["bash", "-o", "pipefail", "-c", f"{RELAY} tail default --url {daemon.url} | head -1"], tmp_path, {}
    )
    try:
        await until(lambda: pipe.exit_code is not None, "the end of the pipe")
    finally:
        pipe.end()
    assert pipe.exit_code == 0
    assert len([line for line in pipe.output.splitlines() if not line.startswith("relay tail: ")]) == 1


async def test_what_cannot_be_repaired_is_one_line(database: Database, relay: Relays, tmp_path: Path) -> None:
    """An address of nothing, or of something else; a token or a cursor that cannot be read."""
    daemon = await relay(database.dsn)
    health = f"ws://127.0.0.1:{daemon.health_port}"
    cases = {
        ("--url", "http://localhost:4002"): "expected one like ws://localhost:4002",
        ("--url", f"{daemon.url}?token=secret", "--token-file", "missing"): "cannot read missing: No such file",
    }
    for options, said in cases.items():
        assert said in mistake(run_relay("tail", "default", *options, cwd=tmp_path))
    elsewhere = run_relay("tail", "default", "--url", health, cwd=tmp_path)
    assert elsewhere.returncode == 1
    assert elsewhere.stderr.splitlines() == [
        f"relay tail: connecting: {health}",
        "Error: HTTP 200 was answered: expected the WebSocket endpoint of a relay, so check --url",
    ]

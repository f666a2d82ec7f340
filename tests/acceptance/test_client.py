"""The Python client as programs use it: against a real daemon, whatever happens to that."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path

import jwt
import pytest

from relay import client
from relay.client import Board, Change, RelayError, Task, TaskId
from relay.client.replica import BACKLOG_CHANGES
from relay.client.shell import Relay
from relay.postgres.embedded import HOST
from tests.acceptance.support import SECONDS, Daemon, Program, Relays, until
from tests.proxy import Proxy
from tests.servers import Database

SECRET = "s" * 32

WRITE = """
insert into tasks (id, title) values ('{0}-a', 'A'), ('{0}-b', 'B');
update tasks set lane = 'done', title = title || '{0}' where id = '{0}-a';
delete from tasks where id = '{0}-b'
"""


class Mirror:
    """What a program holds that reads the changes alone, each of which must fit it."""

    def __init__(self, board: Board) -> None:
        self.tasks: dict[TaskId, Task] = {}
        self.syncs: list[str | None] = []
        self._board = board
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for change in self._board:
            if change.type == "board.sync":
                self.syncs.append(change.reason)
                assert change.tasks is not None
                self.tasks = dict(change.tasks)
            else:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        assert change.id is not None
        assert self.tasks.get(change.id) == change.before, f"{change} was reported twice, or one before it never"
        if change.task is None:
            del self.tasks[change.id]
        else:
            self.tasks[change.id] = change.task

    async def equals(self, database: Database) -> None:
        """Wait until board and mirror are the table's."""
        table = {
            str(name): (title, lane) for name, title, lane in database.fetch("select id, title, lane from tasks")
        }

        def is_equal() -> bool:
            if self._following.done():
                self._following.result()
            held = [self.tasks, self._board.tasks]
            return all({key: (t["title"], t["lane"]) for key, t in tasks.items()} == table for tasks in held)

        await until(is_equal, "a board that equals the table")

    async def end(self) -> None:
        """See its loop end, for the board was left."""
        async with asyncio.timeout(SECONDS):
            await self._following


async def test_no_fault_costs_a_change(database: Database, relay: Relays) -> None:
    """A link that falls silent, a daemon killed and started again amid changes: each comes once, with no board."""
    daemon = await relay(database.dsn)
    async with (
        Proxy(HOST, daemon.ws_port) as between,
        Relay(f"ws://{HOST}:{between.port}", ping_seconds=0.5) as connection,
    ):
        board = await connection.subscribe("default")
        mirror = Mirror(board)
        between.strand()
        database.execute(WRITE.format("silent"))
        await mirror.equals(database)
        database.execute(WRITE.format("before"))
        await daemon.stop(signal.SIGKILL)
        database.execute(WRITE.format("while"))
        await until(lambda: board.state == "offline", "the end of the connection")
        daemon = await relay(database.dsn, ws_port=daemon.ws_port)
        database.execute(WRITE.format("after"))
        await mirror.equals(database)
        assert [task["id"] for task in board.lanes["done"]] == list(board.tasks)

    assert mirror.syncs == [None]
    await mirror.end()


async def test_a_large_board_and_a_slow_program(database: Database, relay: Relays) -> None:
    """Two megabytes come as they are; a program that reads nothing for long gets one board.sync, and then changes."""
    database.execute("insert into tasks (id, title) select n, repeat('x', 1000) from generate_series(1, 2000) n")
    daemon = await relay(database.dsn)
    async with client.connect(daemon.url) as connection:
        board = await connection.subscribe("default")
        assert sum(len(str(task["title"])) for task in board.tasks.values()) == 2_000_000
        first = await anext(board)
        titles = -(-BACKLOG_CHANGES // 2000) + 1
        for i in range(titles):
            database.execute("update tasks set title = %s", str(i))
        await until(lambda: {task["title"] for task in board.tasks.values()} == {str(titles - 1)}, "the last title")
        missed = await anext(board)
        database.execute("delete from tasks where id = '7'")
        after = await anext(board)

    assert (first.type, first.reason) == ("board.sync", None)
    assert (missed.type, missed.reason) == ("board.sync", "fell_behind")
    assert (after.type, after.id, after.task) == ("task.deleted", "7", None)
    assert [change async for change in board] == []


async def turned_away(daemon: Daemon) -> None:
    """A token that is not good, a board that is not allowed, and an address of something else are errors."""
    other = jwt.encode({"exp": time.time() + 60, "boards": ["other"]}, SECRET)
    cases = {
        (daemon.url, "bad"): ("closed", "the relay refused the connection (HTTP 401): give a good token"),
        (daemon.url, other): ("not_allowed", "the relay refused: "),
        (f"ws://{HOST}:{daemon.health_port}", None): ("closed", "HTTP 200 was answered: expected the WebSocket"),
    }
    for (url, token), (code, message) in cases.items():
        async with asyncio.timeout(SECONDS), client.connect(url, token=token) as connection:
            with pytest.raises(RelayError, match=f"^{re.escape(message)}") as refusal:
                await connection.subscribe("default")
            assert refusal.value.code == code


async def test_a_token_that_expires_is_renewed(database: Database, relay: Relays) -> None:
    """By the token function, which may be async, and no change is missed; what waiting does not cure is one line."""
    daemon = await relay(database.dsn, WS_JWT_SECRET=SECRET)
    await turned_away(daemon)
    given: list[str] = []

    async def token() -> str:
        lifetime = -4.0 if not given else 60.0  # clocks may differ by five seconds
        claims = {"exp": time.time() + lifetime, "boards": ["*"]}
        given.append(jwt.encode(claims, SECRET))
        await asyncio.sleep(0)
        return given[-1]

    async with client.connect(daemon.url, token=token) as connection:
        mirror = Mirror(await connection.subscribe("default"))
        await daemon.logged("websocket.dropped")
        database.execute(WRITE.format("renewed"))
        await mirror.equals(database)
        assert len(given) == 2
        await connection.authenticate(await token())
        with pytest.raises(RelayError) as refusal:
            await connection.authenticate("nonsense")

    assert refusal.value.code == "not_authenticated"
    assert mirror.syncs == [None]


SCRIPT = """
import json, sys
import relay.client

with relay.client.sync.connect(sys.argv[1]) as connection:
    board = connection.subscribe("default", timeout=10)
    for change in board:
        print(json.dumps([change.type, change.id]), flush=True)
        if change.type == "task.deleted":
            board.unsubscribe()
    try:
        again = connection.subscribe("default", timeout=10)
        print(json.dumps([again.next().type, list(again.tasks)]), flush=True)
        again.next(timeout=0.01)
    except TimeoutError as ex:
        print(json.dumps(str(ex)), flush=True)
print(json.dumps([board.state, sorted(m for m in sys.modules if m.split(".")[0] in ("psycopg", "relay"))]))
"""


async def test_scripts_without_asyncio(database: Database, relay: Relays, tmp_path: Path) -> None:
    """A plain loop sees each change; leaving the board, or Ctrl-C, ends it; nothing of the daemon is imported."""
    (tmp_path / "script.py").write_text(SCRIPT)
    daemon = await relay(database.dsn)
    scripts = [Program([sys.executable, "script.py", daemon.url], tmp_path, {}) for _ in range(2)]
    script, interrupted = scripts
    try:
        for each in scripts:
            await until(lambda: "board.sync" in each.output or each.exit_code, "a board")  # noqa: B023  # at once
        interrupted.signal(signal.SIGINT)
        await until(lambda: interrupted.exit_code is not None, "the end of the script after Ctrl-C")
        database.execute("insert into tasks (id, title) values ('a', 'A'), ('b', 'B')")
        database.execute("update tasks set lane = 'done' where id = 'a'")
        database.execute("delete from tasks where id = 'b'")
        await until(lambda: script.exit_code is not None, "the script's end")
    finally:
        for each in scripts:
            each.end()

    assert "KeyboardInterrupt" in interrupted.output
    assert script.exit_code == 0, script.output
    lines = [json.loads(line) for line in script.output.splitlines()]
    assert lines[:-2] == [
        ["board.sync", None],
        ["task.created", "a"],
        ["task.created", "b"],
        ["task.moved", "a"],
        ["task.updated", "a"],
        ["task.deleted", "b"],
        ["board.sync", ["a"]],
    ]
    parts = ("", ".core", ".effects", ".following", ".link", ".replica", ".shell", ".sync")
    modules = ["relay", *(f"relay.client{part}" for part in parts), "relay.order", "relay.text"]
    assert lines[-2:] == ["nothing came within 0.01 seconds", ["offline", modules]]


async def test_a_part_of_a_board_is_followed_through_a_kill(database: Database, relay: Relays) -> None:
    """Tasks that enter the lanes are created and those that leave are deleted, with the columns that are selected."""
    daemon = await relay(database.dsn)
    async with Relay(f"ws://{HOST}:{daemon.ws_port}", ping_seconds=0.5) as connection:
        board = await connection.subscribe("default", lanes=["todo"], columns=["title"])
        assert (await anext(board)).type == "board.sync"
        database.execute("insert into tasks (id, title, lane) values ('a', 'A', 'done'), ('b', 'B', 'todo')")
        await until(lambda: "b" in board.tasks, "the first task")
        await daemon.stop(signal.SIGKILL)
        database.execute("update tasks set lane = case id when 'a' then 'todo' else 'done' end, description = 'D'")
        await relay(database.dsn, ws_port=daemon.ws_port)
        await until(lambda: "a" in board.tasks, "what was missed")
        database.execute("update tasks set description = 'E'; update tasks set title = title || '!'")
        await until(lambda: board.tasks["a"]["title"] == "A!", "the last change")
        assert board.lanes == {"todo": [{"id": "a", "boardId": "default", "lane": "todo", "title": "A!"}]}

    changes = [(change.type, change.id, change.changes) async for change in board]
    assert changes[0] == ("task.created", "b", None)
    assert {change[:2] for change in changes[1:3]} == {("task.created", "a"), ("task.deleted", "b")}
    assert changes[3:] == [("task.updated", "a", {"title": "A!"})]

"""The guide's client programs, as they are printed in the guide, against the daemon.

The files in `guide/` that bear its clients' names are never edited; `board.js` and `browser.html` are the page that
the browser client needs around it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import http.server
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from unittest.mock import ANY

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.acceptance.support import Message, Program, environment, until
from tests.contract import checked
from tests.servers import Database, do_without, sole_use

PAGE_PORT: Final = 4000
GUIDE: Final = Path(__file__).parent / "guide"
TIME: Final = "2026-01-31T12:00:00+00:00"
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = pytest.mark.usefixtures("guide_relay", "board")


def task(number: str, title: str, lane: str, **fields: object) -> dict[str, Any]:
    """Make a task as clients see it."""
    rest = {"description": None, "status": None, "priority": "medium", "estimatedHours": None}
    place = {"id": number, "boardId": "default", "title": title, "lane": lane}
    return place | rest | {"createdAt": TIME, "updatedAt": TIME} | fields


SYNC: Final[Message] = {
    "type": "board.sync",
    "data": {
        "lanes": {
            "backlog": [task("task-1", "Prüfen ✓", "backlog", estimatedHours=2.5)],
            "todo": [task("task-2", "Second", "todo"), task("task-3", "Third", "todo")],
            "in_progress": [],
            "done": [],
            "recovery": [],
        }
    },
}
CHANGES: Final[list[Message]] = [
    {"type": "task.created", "data": task("task-123", "New Task", "backlog", estimatedHours=4)},
    {"type": "task.updated", "data": {"id": "task-123", "changes": {"priority": "high", "updatedAt": ANY}}},
    {"type": "task.moved", "data": {"id": "task-123", "fromLane": "backlog", "toLane": "in_progress"}},
    {"type": "task.updated", "data": {"id": "task-123", "changes": {"lane": "in_progress", "updatedAt": ANY}}},
    {"type": "task.deleted", "data": {"id": "task-123"}},
]


@pytest.fixture
def board(database: Database) -> None:
    """Put tasks on the board, and one on another."""
    for row in (
        ("task-1", "default", "Prüfen ✓", "backlog", 2.5),
        ("task-2", "default", "Second", "todo", None),
        ("task-3", "default", "Third", "todo", None),
        ("task-4", "other", "Elsewhere", "todo", None),
    ):
        database.execute(
            "insert into public.tasks (id, board_id, title, lane, estimated_hours, created_at, updated_at) "
            "values (%s, %s, %s, %s, %s, %s, %s)",
            *(*row, TIME, TIME),
        )


def insert(database: Database) -> None:
    database.execute(
        "insert into public.tasks (id, title, estimated_hours, created_at, updated_at) values (%s, %s, %s, %s, %s)",
        *("task-123", "New Task", 4, TIME, TIME),
    )


def update(database: Database) -> None:
    database.execute("update public.tasks set priority = 'high' where id in ('task-123', 'task-4')")


def move(database: Database) -> None:
    database.execute("update public.tasks set lane = 'in_progress' where id in ('task-123', 'task-4')")


def delete(database: Database) -> None:
    database.execute("delete from public.tasks where id in ('task-123', 'task-4')")


async def follow(messages: Callable[[], list[Message]], database: Database) -> list[Message]:
    """Write as soon as a client shows something, and return all that it shows up to the last write."""
    await until(messages, "the client's first message")
    for write in (insert, update, move, delete):
        write(database)
    return await until(
        lambda: messages() if messages()[-1]["type"] == CHANGES[-1]["type"] else [], "the last write's message"
    )


# Python


@pytest.fixture
def python_client(tmp_path: Path) -> Iterator[Program]:
    """Run the guide's Python client."""
    with closing_program([sys.executable, "-u", GUIDE / "client.py"], tmp_path) as program:
        yield program


async def test_python_client_shows_the_board_and_then_each_write(python_client: Program, database: Database) -> None:
    """The guide's Python client receives the whole board first, then every write, once and in order."""

    def messages() -> list[Message]:
        return [ast.literal_eval(line.removeprefix("Received: ")) for line in python_client.output.splitlines()]

    assert await follow(messages, database) == [SYNC, *CHANGES]


# Node.js


@pytest.fixture
def node_client(tmp_path: Path) -> Iterator[Program]:
    """Run the guide's Node.js client."""
    with closing_program([node(), npm_package("ws") and GUIDE / "client.mjs"], tmp_path) as program:
        yield program


async def test_node_client_shows_the_board_and_then_each_write(node_client: Program, database: Database) -> None:
    """The guide's Node.js client receives the whole board first, then every write, once and in order."""

    def messages() -> list[Message]:
        connected, *shown = node_client.output.split("Received: ")
        assert connected in {"", "Connected to Vibe Stack WebSocket\n"}
        return [json.loads(as_json(text)) for text in shown]

    # The client prints with console.log, which shows a list three levels down as [Array].
    sync = {lane: ["Array"] if tasks else [] for lane, tasks in SYNC["data"]["lanes"].items()}

    assert await follow(messages, database) == [{"type": "board.sync", "data": {"lanes": sync}}, *CHANGES]


def as_json(shown: str) -> str:
    """Turn what console.log shows of a message into JSON."""
    return re.sub(r"(\w+): ", r'"\1": ', shown.replace("[Array]", "['Array']")).replace("'", '"')


# wscat


async def test_wscat_shows_the_board_and_then_each_write(database: Database, tmp_path: Path) -> None:
    """Subscribed by hand in wscat, as the guide says, the board appears first, then every write."""
    with wscat(tmp_path) as terminal:
        await until(lambda: "Connected" in terminal.shown, "wscat to connect")
        terminal.type('{"type":"subscribe","boardId":"default"}')

        assert await follow(terminal.messages, database) == [SYNC, *CHANGES]


class Terminal:
    """What a user of wscat sees and types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = bytearray()

    @property
    def shown(self) -> str:
        return self._read.decode(errors="ignore")  # the last character may be half read

    def messages(self) -> list[Message]:
        """Return the messages shown, each after a "<" and before wscat changes the colour back."""
        return [checked(text) for text in re.findall(r"< ([^\x1b]*)\x1b", self.shown)]

    def type(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())

    def read(self) -> None:
        with contextlib.suppress(OSError):  # at its end, a terminal has an error to read
            self._read += os.read(self._descriptor, 65_536)


@contextlib.contextmanager
def wscat(folder: Path) -> Iterator[Terminal]:
    """Run wscat in a terminal, for as long as the context lasts."""
    command: list[str | Path] = [node(), npm_package("wscat") / "bin" / "wscat", "-c", "ws://localhost:4002"]
    ours, theirs = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, ours)
        with os.fdopen(theirs, "wb") as end:
            termios.tcsetwinsize(end, (24, 120))
            settings = environment({"TERM": "xterm"})
            program = subprocess.Popen(command, cwd=folder, env=settings, stdin=end, stdout=end, stderr=end)
        stack.callback(program.wait)
        stack.callback(program.kill)
        terminal = Terminal(ours)
        asyncio.get_running_loop().add_reader(ours, terminal.read)
        stack.callback(asyncio.get_running_loop().remove_reader, ours)
        yield terminal


# Browser


async def test_browser_client_keeps_the_page_like_the_board(page: Page, database: Database) -> None:
    """With the guide's browser client, a page shows the board and follows every write."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text.partition(":")[0]))
    await page.goto("/browser.html")

    await expect_board(page, backlog=["Prüfen ✓ (medium)"], todo=["Second (medium)", "Third (medium)"])
    insert(database)
    await expect_board(page, backlog=["Prüfen ✓ (medium)", "New Task (medium)"])
    update(database)
    await expect_board(page, backlog=["Prüfen ✓ (medium)", "New Task (high)"])
    move(database)
    await expect_board(page, backlog=["Prüfen ✓ (medium)"], in_progress=["New Task (high)"])
    delete(database)
    await expect_board(
        page, backlog=["Prüfen ✓ (medium)"], todo=["Second (medium)", "Third (medium)"], in_progress=[]
    )

    assert said == [
        "Connected to Vibe Stack WebSocket",
        *("Full board sync", "New task", "Task updated", "Task moved", "Task updated", "Task deleted"),
    ]


async def expect_board(page: Page, **lanes: list[str]) -> None:
    """Wait until the page shows these cards in these lanes, and the guide's lanes in the guide's order."""
    await expect(page.locator(".lane h2")).to_have_text(list(SYNC["data"]["lanes"]))
    for lane, cards in lanes.items():
        await expect(page.locator(f"[data-lane={lane}] .task")).to_have_text(cards)


@contextlib.asynccontextmanager
async def installed_browser() -> AsyncIterator[Browser]:
    """Run the browser that is installed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        do_without("no Chromium or Chrome is installed: on Debian and Ubuntu, apt install chromium")
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-component-update", *quiet]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def page(guide_server: str) -> AsyncIterator[Page]:
    """Yield a page of the browser that is installed; a fault in the page's scripts fails the test."""
    async with installed_browser() as browser:
        page = await browser.new_page(base_url=guide_server)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        yield page
    assert faults == []


@pytest.fixture
def guide_server() -> Iterator[str]:
    """Serve the guide's browser client with the page around it, from where the guide's pages come; yield the URL."""
    with sole_use(f"port-{PAGE_PORT}"):
        try:
            server = http.server.ThreadingHTTPServer(
                ("127.0.0.1", PAGE_PORT), functools.partial(QuietHandler, directory=GUIDE)
            )
        except OSError as ex:
            do_without(f"the guide's pages come from port {PAGE_PORT}, which another program has: stop it ({ex})")
        with server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://localhost:{PAGE_PORT}"
            server.shutdown()
            thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


# Programs


def node() -> str:
    """Find Node.js."""
    return shutil.which("node") or do_without("Node.js is not installed: https://nodejs.org, version 18 or later")


def npm_package(name: str) -> Path:
    """Find a package that package.json names."""
    package = GUIDE / "node_modules" / name
    if not package.exists():
        do_without(f"npm package {name} is not installed: npm install --prefix tests/acceptance/guide")
    return package


@contextlib.contextmanager
def closing_program(command: list[str | Path], folder: Path) -> Iterator[Program]:
    """Run a program for as long as the context lasts."""
    with ExitStack() as stack:
        program = Program(command, folder, {})
        stack.callback(program.end)
        yield program

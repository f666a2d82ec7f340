"""The JavaScript client: conformance, types, package; and in Node and Chromium against the daemon."""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Page, expect

import relay
from relay.postgres.embedded import free_port
from tests.acceptance.support import SECONDS, Message, Program, Relays, until
from tests.acceptance.test_docs import CLIENTS, examples
from tests.acceptance.test_guide import installed_browser, node, npm_package
from tests.servers import Database, do_without

ROOT: Final = Path(__file__).parents[2]
STATIC: Final = ROOT / "relay" / "client" / "js"
CONFORMANCE: Final = ROOT / "tests" / "conformance"
HERE: Final = Path(__file__).parent / "client"
STRICT: Final = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS * 2, check=False)


# The client alone


def test_client_conforms() -> None:
    """The client does what every case of the conformance suite asks for."""
    finished = run(node(), CONFORMANCE / "run.mjs")
    assert finished.returncode == 0, finished.stderr
    found: dict[str, str | None] = json.loads(finished.stdout)
    names = [case["name"] for case in json.loads((CONFORMANCE / "cases.json").read_text())]

    assert {name: problem for name, problem in found.items() if problem} == {}
    assert list(found) == names
    assert len(set(names)) == len(names)


def test_client_does_what_is_its_own() -> None:
    """Promises, listeners and tokens are kept as said, and a browser's network is heeded."""
    finished = run(node(), "--test", HERE / "client.test.mjs")

    assert finished.returncode == 0, finished.stdout


def test_types_are_strict(tmp_path: Path) -> None:
    """A program in strict TypeScript can use the client, and what is wrong does not compile."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        do_without("the TypeScript compiler is not installed: npm install --prefix tests/acceptance/client")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "pg-change-relay-client").symlink_to(STATIC)
    (tmp_path / "node_modules" / "@types").symlink_to(HERE / "node_modules" / "@types")
    shutil.copy(HERE / "types.mts", tmp_path)
    quick = ("--noEmit", "--skipDefaultLibCheck")
    finished = run(
        node(), compiler, *STRICT, *quick, "--target", "es2022", "--module", "nodenext", "types.mts", cwd=tmp_path
    )

    assert finished.stdout == ""
    assert finished.returncode == 0


def test_package_is_complete() -> None:
    """The npm package has the modules, their types, the licence and nothing else, and the version of the relay."""
    npm = shutil.which("npm") or do_without("npm is not installed: https://nodejs.org")
    finished = run(npm, "pack", "--dry-run", "--json", cwd=STATIC)
    assert finished.returncode == 0, finished.stderr
    [package] = json.loads(finished.stdout)

    modules = {"client.js", "client.d.ts", "react.js", "react.d.ts"}
    assert {file["path"] for file in package["files"]} == {*modules, "package.json", "README.md", "LICENSE"}
    assert (STATIC / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package["name"], package["version"]) == ("pg-change-relay-client", relay.__version__)


# Against the daemon


def table(database: Database) -> dict[str, str]:
    """Return the board as it is in the table: the lane of each task."""
    return dict(database.fetch("select id, lane from tasks where board_id = 'default'"))


def shown(lanes: dict[str, list[Message]]) -> dict[str, str]:
    """Return the board as it is shown: the lane of each task, if it stands there."""
    return {task["id"]: lane for lane, tasks in lanes.items() for task in tasks if task["lane"] == lane}


def write(database: Database, first: int) -> None:
    """Make changes of each kind to ten tasks, and one task more."""
    for number in range(first, first + 10):
        database.execute("insert into tasks (id, title) values (%s, 'T')", f"t{number}")
        database.execute("update tasks set title = %s where id = 'counter'", str(number))
        database.execute("update tasks set lane = 'done' where id = %s", f"t{number}")
        if number % 2:
            database.execute("delete from tasks where id = %s", f"t{number}")


async def test_node_follows_through_a_kill(database: Database, relay: Relays, tmp_path: Path) -> None:
    """Killed and started again while changes come, the relay costs the client none: each comes once, on one board."""
    npm_package("ws")
    database.execute("insert into tasks (id, title) values ('counter', 'T')")
    daemon = await relay(database.dsn)
    program = Program([node(), HERE / "follow.mjs", daemon.url], tmp_path, {})
    try:
        await until(lambda: '{"state":"live"}' in program.output, "the first board")
        written = asyncio.create_task(asyncio.to_thread(write, database, 0))
        await until(lambda: '"title":"3"' in program.output, "some of the changes")
        await daemon.stop(signal.SIGKILL)
        await written
        await asyncio.to_thread(write, database, 10)
        await relay(database.dsn, ws_port=daemon.ws_port)
        await asyncio.to_thread(write, database, 20)
        await until(lambda: '{"type":"task.deleted","id":"t29"}' in program.output, "the last change")
    finally:
        program.end()
    lines: list[dict[str, Any]] = [json.loads(line) for line in program.output.splitlines()]

    assert shown(lines[-1]["lanes"]) == table(database)
    for kind, step in (("task.created", 1), ("task.moved", 1), ("task.deleted", 2)):
        ids = [line["id"] for line in lines if line.get("type") == kind]
        assert ids == [f"t{number}" for number in range(step - 1, 30, step)]
    counted = [line["title"] for line in lines if line.get("type") == "task.updated" and line["id"] == "counter"]
    assert counted == [str(number) for number in range(30)]
    assert [line.get("type") for line in lines].count("board.sync") == 1
    states = [line["state"] for line in lines if "state" in line]
    assert states == ["catching up", "live", "offline", "catching up", "live", "offline"]


async def test_a_refusal_in_node_says_what_can_be_known_of_it(database: Database, relay: Relays) -> None:
    """A bad token ends ready, whichever WebSocket it is; of a limit, only the package ws gives the status."""
    npm_package("ws")
    daemon = await relay(database.dsn, WS_JWT_SECRET="s" * 32, WS_RATE_LIMIT_PER_CLIENT="2")

    def refused(*own: str) -> dict[str, str]:
        options = ("--experimental-websocket", "--no-warnings")
        finished = run(node(), *options, HERE / "refused.mjs", daemon.url, "bad", *own)
        assert finished.stderr == ""
        return dict(json.loads(finished.stdout))

    found = [await asyncio.to_thread(refused, *own) for own in ((), ("own",), ("own",), ())]

    for bad in found[:2]:
        assert (bad["code"], bad["ready"]) == ("closed", "closed")
        assert bad["message"] == "the relay refused the connection: give a good token, from an allowed origin (4003)"
    unknown, limited = found[2:]
    assert (unknown["code"], unknown["ready"]) == (limited["code"], limited["ready"]) == ("unreachable", "waiting")
    assert "HTTP 429: see WS_RATE_LIMIT_PER_CLIENT" in unknown["message"]
    assert "HTTP 429, more connections in a minute than the relay allows" in limited["message"]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Yield a page of the browser that is installed; a fault in the page's scripts fails the test."""
    async with installed_browser() as browser:
        page = await (await browser.new_context()).new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        yield page
    assert faults == []


async def show(page: Page, origin: str, html: str) -> None:
    """Show a page of an origin that answers: browsers guard this machine from pages that come from nowhere."""
    await page.goto(f"{origin}/live")
    await page.set_content(html)


async def test_browser_follows_through_a_kill(database: Database, relay: Relays, page: Page) -> None:
    """In Chromium, a page of the relay's own origin and that of the clients' guide of another keep up."""
    port = free_port()
    origin, elsewhere = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
    start = functools.partial(relay, database.dsn, HEALTH_PORT=str(port), WS_ORIGINS=f"{origin},{elsewhere}")
    daemon = await start()
    [example] = examples(CLIENTS, "html")
    there = example.replace("http://localhost:4001", origin).replace("ws://localhost:4002", daemon.url)
    assert there.count(str(port)) == there.count(str(daemon.ws_port)) == 1
    guide = await page.context.new_page()
    await show(guide, elsewhere, there)
    await show(page, origin, PAGE.replace("URL", daemon.url))
    await expect(page.locator("#states")).to_have_text("catching up, live")
    for title in ("First", "Second"):
        database.execute("insert into tasks (id, title, lane) values (%s, %s, 'todo')", title, title)
    await expect(guide.locator("#todo li")).to_have_text(["First", "Second"])

    await daemon.stop(signal.SIGKILL)
    await expect(page.locator("#states")).to_have_text("catching up, live, offline")
    database.execute("update tasks set lane = 'done' where id = 'First'")
    database.execute("insert into tasks (id, title, lane) values ('Third', 'Third', 'todo')")
    await start(ws_port=daemon.ws_port)
    for waiting in (page, guide):
        await waiting.evaluate("window.dispatchEvent(new Event('online'))")

    await expect(guide.locator("#todo li")).to_have_text(["Second", "Third"], timeout=SECONDS * 1000)
    await expect(page.locator("#states")).to_have_text("catching up, live, offline, catching up, live")
    changes = json.loads(await page.locator("#changes").inner_text())
    assert changes == [
        ["board.sync", None],
        *(["task.created", "First"], ["task.created", "Second"]),
        *(["task.moved", "First"], ["task.updated", "First"], ["task.created", "Third"]),
    ]
    assert shown(await page.evaluate("board.lanes")) == table(database)


PAGE: Final = """
<p id="states"></p>
<p id="changes"></p>
<script type="module">
  import { connect } from "/client.js";

  const states = [];
  const changes = [];
  globalThis.board = connect("URL").subscribe("default");
  board.on("state", (state) => (document.querySelector("#states").textContent = states.concat(state).join(", ")));
  board.on("state", (state) => states.push(state));
  board.on("change", ({ type, id }) => {
    changes.push([type, id ?? null]);
    document.querySelector("#changes").textContent = JSON.stringify(changes);
  });
</script>
"""

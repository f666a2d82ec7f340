"""The hooks for React, and the examples for React, Svelte and Vue: rendered by a server, and followed in Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Page, WebSocket, expect

from relay.postgres.embedded import free_port
from tests.acceptance.support import SECONDS, Relays, until
from tests.acceptance.test_docs import FRAMEWORKS, examples
from tests.acceptance.test_guide import installed_browser, node
from tests.servers import Database, do_without

STATIC: Final = Path(__file__).parents[2] / "relay" / "client" / "js"
HERE: Final = Path(__file__).parent / "client"
BUILD: Final = HERE / "build.mjs"


class Program:
    """A JavaScript program with the client as npm installs it, and what it is bundled with."""

    def __init__(self, folder: Path) -> None:
        if not (HERE / "node_modules" / "esbuild").exists():
            do_without("esbuild is not installed: npm install --prefix tests/acceptance/client")
        self.folder = folder
        self._packages = folder / "node_modules"
        package = json.loads((STATIC / "package.json").read_text())
        installed = self._packages / package["name"]
        installed.mkdir(parents=True)
        for name in [*package["files"], "package.json"]:
            shutil.copy(STATIC / name, installed)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("_", ".")).write_text(text)

    def run(self, *command: str | Path) -> str:
        """Run a program that must succeed, and return what it printed."""
        path = {"NODE_PATH": f"{self._packages}:{HERE / 'node_modules'}", "PATH": os.environ["PATH"]}
        finished = subprocess.run(
            [node(), *command],
            cwd=self.folder,
            env=path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def bundle(self, entry: str | Path, platform: str) -> Path:
        bundled = self.folder / f"{platform}.cjs"
        self.run(BUILD, self.folder / entry, bundled, platform)
        return bundled


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_hooks_follow_boards_as_in_react_native(program: Program) -> None:
    """Without window, document or DOM, each render shows whole batches, and only what is shown renders."""
    report = program.run("--test", "--test-reporter=tap", program.bundle(HERE / "react.test.mjs", "node"))

    assert re.findall(r"^# (?:pass|fail) (\d+)$", report, re.MULTILINE) == ["8", "0"]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Yield a page; anything that its console warns of fails the test, such as a hydration that does not fit."""
    async with installed_browser() as browser:
        page = await browser.new_page()
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type in {"warning", "error"} else None)
        yield page
    assert [line for line in said if "status of 404" not in line] == []  # of /favicon.ico


@contextlib.asynccontextmanager
async def sent(page: Page) -> AsyncIterator[list[str]]:
    """Yield the types of all messages that the page sends."""
    types: list[str] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framesent", lambda text: types.append(json.loads(text)["type"]))

    page.on("websocket", listen)
    yield types
    page.remove_listener("websocket", listen)


async def test_react_takes_over_what_the_server_rendered(
    database: Database, relay: Relays, page: Page, program: Program
) -> None:
    """Under StrictMode the page follows the board, then a part of it, each by one subscription that ends with it.

    It also takes over what is still as the server rendered it when the board is live, and changes come meanwhile.
    """
    port = free_port()
    daemon = await relay(database.dsn, HEALTH_PORT=str(port), WS_ORIGINS=f"http://localhost:{port}")
    [connection], [todo, title, lane] = examples(FRAMEWORKS, "javascript"), examples(FRAMEWORKS, "jsx")
    program.write(relay_js=connection.replace("ws://localhost:4002", daemon.url), todo_jsx=todo, title_jsx=title)
    program.write(lane_jsx=lane, app_jsx=APP, server_jsx=SERVER, browser_jsx=BROWSER)
    html = program.run(program.bundle("server.jsx", "node"))
    assert html == '<ul aria-busy="true"></ul><h1>…</h1>\n<ol></ol>\n<!--$--><ul aria-busy="true"></ul><!--/$-->\n'
    script = program.bundle("browser.jsx", "browser").read_text()

    async with sent(page) as types:
        await page.goto(f"http://localhost:{port}/live")
        whole, part, late = html.splitlines()
        await page.set_content(
            f'<div id="root">{whole}</div><div id="part">{part}</div><div id="late" hidden>{late}</div>'
        )
        await page.evaluate(script)
        await expect(page.locator("#root ul")).to_have_attribute("aria-busy", "false")
        database.execute("insert into tasks (id, title, lane) values ('a', 'First', 'todo'), ('b', 'Second', 'todo')")
        await expect(page.locator("li")).to_have_text(["First", "Second"])
        await expect(page.locator("h1")).to_have_text("First")
        title_renders = await page.evaluate("renders.title")
        database.execute("update tasks set title = 'Renamed' where id = 'b'")
        await expect(page.locator("li")).to_have_text(["First", "Renamed"])
        assert await page.evaluate("renders.title") == title_renders
        database.execute("update tasks set title = 'Moved', lane = 'done' where id = 'a'")
        await expect(page.locator("h1")).to_have_text("Moved")
        await expect(page.locator("li")).to_have_text(["Renamed"])

        taken_over = asyncio.create_task(page.evaluate("takeOverLate()"))
        number = 0
        while not taken_over.done():
            await asyncio.to_thread(database.execute, "update tasks set title = %s", str(number := number + 1))
        assert await taken_over == {"asServed": True, "itself": True}
        await expect(page.locator("li")).to_have_text([str(number)] * 2)
        database.execute("update tasks set title = 'Renamed'")
        await expect(page.locator("li")).to_have_text(["Renamed"] * 2)
        assert types == ["subscribe"]

        await page.evaluate("root.unmount(), late.unmount()")
        await until(lambda: types == ["subscribe", "unsubscribe"], "the end of the subscription")
        types.clear()
        await page.evaluate("hydratePart()")
        await expect(page.locator("li")).to_have_text(["Renamed"])
        database.execute("update tasks set title = lane")
        await expect(page.locator("li")).to_have_text(["todo"])
        await page.evaluate("choose('done')")
        await expect(page.locator("li")).to_have_text(["done"])
        await page.evaluate("choose('done')")
        database.execute("update tasks set title = 'Last'")
        await expect(page.locator("li")).to_have_text(["Last"])
        assert types == ["ping", "subscribe", "unsubscribe", "ping", "subscribe"]


APP: Final = """
import { Profiler, StrictMode, Suspense, lazy, useEffect, useState } from "react";
import { Lane } from "./lane.jsx";
import { Title } from "./title.jsx";
import { Todo } from "./todo.jsx";

export const renders = { title: 0 };
const count = (id) => (renders[id] += 1);
export const app = (
  <StrictMode>
    <Todo />
    <Profiler id="title" onRender={count}><Title id="a" /></Profiler>
  </StrictMode>
);

function Chosen() {
  const [chosen, choose] = useState({ name: "todo" });
  globalThis.choose = (name) => choose({ name });
  return <Lane name={chosen.name} />;
}
export const part = <StrictMode><Chosen /></StrictMode>;

/** The lane, in a place of its own, with more beside it than React renders at a stretch. */
export function late(Lane, onTakenOver) {
  const more = <><Slow /><Slow /><Slow /><TakenOver onTakenOver={onTakenOver} /></>;
  return <StrictMode><Suspense><Lane />{more}</Suspense></StrictMode>;
}
function Slow() {
  for (const end = performance.now() + 10; performance.now() < end; );
  return null;
}
function TakenOver({ onTakenOver }) {
  useEffect(() => onTakenOver?.(), []);
  return null;
}
export const Loaded = (when) => lazy(() => when.then(() => ({ default: Todo })));
export { Todo };
"""

SERVER: Final = """
import { renderToString } from "react-dom/server";
import { Todo, app, late, part } from "./app.jsx";

for (const each of [app, part, late(Todo)]) console.log(renderToString(each));
"""

BROWSER: Final = """
import { hydrateRoot } from "react-dom/client";
import { Loaded, app, late, part, renders } from "./app.jsx";
import { relay } from "./relay.js";

globalThis.renders = renders;
globalThis.root = hydrateRoot(document.querySelector("#root"), app);
globalThis.hydratePart = () => void hydrateRoot(document.querySelector("#part"), part);

/** Loads the code of a lane after three changes; returns whether its list was as served until then, and stayed. */
globalThis.takeOverLate = async () => {
  const place = document.querySelector("#late");
  const [served, html] = [place.querySelector("ul"), place.innerHTML];
  let asServed;
  const loaded = new Promise((load) => {
    let changes = 0;
    const board = relay.subscribe("default");
    board.on("change", () => {
      changes += 1;
      if (changes < 3) return;
      asServed = place.innerHTML === html;
      board.unsubscribe();
      load();
    });
  });
  await new Promise((takenOver) => {
    globalThis.late = hydrateRoot(place, late(Loaded(loaded), takenOver));
  });
  return { asServed, itself: served === place.querySelector("ul") };
};
"""


async def test_components_of_svelte_and_vue_follow_the_board(
    database: Database, relay: Relays, page: Page, program: Program
) -> None:
    """The documented components show the lane and each change to it, and end their subscriptions with themselves."""
    port = free_port()
    daemon = await relay(database.dsn, HEALTH_PORT=str(port), WS_ORIGINS=f"http://localhost:{port}")
    [connection], [svelte], [vue] = (examples(FRAMEWORKS, language) for language in ("javascript", "svelte", "vue"))
    program.write(relay_js=connection.replace("ws://localhost:4002", daemon.url), browser_js=MOUNTED)
    program.write(Todo_svelte=svelte, Todo_vue=vue)
    script = program.bundle("browser.js", "browser").read_text()

    async with sent(page) as types:
        await page.goto(f"http://localhost:{port}/live")
        await page.set_content("<main></main><aside></aside>")
        await page.evaluate(script)
        database.execute("insert into tasks (id, title, lane) values ('a', 'First', 'todo'), ('b', 'Second', 'todo')")
        for place in ("main", "aside"):
            await expect(page.locator(f"{place} li")).to_have_text(["First", "Second"])
        database.execute("update tasks set title = 'Renamed' where id = 'b'")
        database.execute("delete from tasks where id = 'a'")
        for place in ("main", "aside"):
            await expect(page.locator(f"{place} li")).to_have_text(["Renamed"])
        await page.evaluate("end()")
        await until(lambda: types == ["subscribe", "unsubscribe"], "the end of the subscription")


MOUNTED: Final = """
import { mount, unmount } from "svelte";
import { createApp } from "vue";
import SvelteTodo from "./Todo.svelte";
import VueTodo from "./Todo.vue";

const svelte = mount(SvelteTodo, { target: document.querySelector("main") });
const vue = createApp(VueTodo);
vue.mount("aside");
globalThis.end = () => {
  unmount(svelte);
  vue.unmount();
};
"""

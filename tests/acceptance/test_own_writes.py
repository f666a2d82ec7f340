"""Writers who wait for their own change: with the Python and the JavaScript client, as docs/own-writes.md says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psycopg
import pytest
from aiohttp import web

from relay import client
from relay.client import RelayError
from relay.postgres.embedded import HOST
from tests.acceptance.support import Program, Relays, until
from tests.acceptance.test_docs import OWN_WRITES, ROOT, examples
from tests.acceptance.test_guide import node, npm_package
from tests.proxy import Proxy
from tests.servers import Database


def written(database: Database, statement: str) -> int:
    """Write, and return the transaction's id."""
    with psycopg.connect(database.dsn) as session:
        session.execute(statement)
        [xid] = session.execute("select pg_current_xact_id()::text::bigint").fetchone() or ()
    return int(xid)


async def test_a_writer_waits_for_its_own_change(database: Database, relay: Relays, tmp_path: Path) -> None:
    """Every time it returns, the board has it; a wait outlives the connection, and ends with the board."""
    daemon = await relay(database.dsn)
    [insertion] = examples(OWN_WRITES, "sql")
    [[xid]] = database.fetch(insertion)
    assert int(xid) > 0
    database.execute("delete from tasks")
    [example] = examples(OWN_WRITES, "python")
    program = Program(
        [sys.executable, "-c", example.replace("ws://localhost:4002", daemon.url)],
        tmp_path,
        {"DATABASE_URL": database.dsn},
    )
    async with Proxy(HOST, daemon.ws_port) as between, client.connect(f"ws://{HOST}:{between.port}") as connection:
        board = await connection.subscribe("default")
        for number in range(20):
            await board.includes(written(database, f"insert into tasks (id, title) values ('t{number}', 'T')"))
            assert f"t{number}" in board.tasks
        await between.cut()
        await until(lambda: board.state == "offline", "the end of the connection")
        waiting = asyncio.create_task(board.includes(written(database, "delete from tasks where id = 't7'")))
        await between.restore()
        await asyncio.gather(waiting, board.includes(str(written(database, "select"))))
        assert "t7" not in board.tasks
        left = asyncio.create_task(board.includes(2**62))
        await asyncio.sleep(0)
        board.unsubscribe()
        with pytest.raises(RelayError, match="the board was left") as caught:
            await left
        assert caught.value.code == "unsubscribed"
        with pytest.raises(RelayError, match="the board was left"):
            await board.includes(1)
    await until(lambda: program.exit_code is not None, "the end of the example")
    assert "'title': 'Paint'" in program.output

    with client.sync.connect(daemon.url) as threaded:
        same = threaded.subscribe("default")
        same.includes(written(database, "update tasks set title = 'Last' where id = 't1'"), timeout=10)
        assert same.tasks["t1"]["title"] == "Last"


SCRIPT = """
import { connect } from "ROOT/relay/client/js/client.js";
import { change, shown } from "./optimistic.mjs";

const ws = "ROOT/tests/acceptance/guide/node_modules/ws/wrapper.mjs";
const WebSocket = globalThis.WebSocket ?? (await import(ws)).default;
const own = fetch;
globalThis.fetch = (path, options) => own(`HTTP${path}`, options);
const relay = connect("URL", { WebSocket });
const board = relay.subscribe("default", { columns: ["title"] });
await board.ready;
const columns = Object.keys(board.tasks.get("a")).sort();
const titles = [];
const render = () => titles.push(shown(board).get("a").title);
board.on("change", render);
for (let number = 1; number <= 20; number += 1) await change(board, "a", { title: String(number) }, render);
const failed = await change(board, "a", { title: "" }, render).catch((error) => error.message);
console.log(JSON.stringify({ columns, titles, failed }));
relay.close();
"""


async def test_an_optimistic_page_never_shows_an_old_state_again(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """The example of the documents, with a server of an application: each title is shown from the click on."""
    npm_package("ws")
    database.execute("insert into tasks (id, title) values ('a', '0')")
    daemon = await relay(database.dsn)

    async def patch(request: web.Request) -> web.Response:
        title = json.loads(await request.text())["title"]
        if not title:
            return web.Response(status=422, text="a title is required")
        return web.json_response(
            {"xid": str(written(database, f"update tasks set title = '{title}' where id = 'a'"))}
        )

    app = web.Application()
    app.router.add_patch("/tasks/{id}", patch)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    http = f"http://{HOST}:{runner.addresses[0][1]}"
    [example] = examples(OWN_WRITES, "javascript")
    (tmp_path / "optimistic.mjs").write_text(example)
    script = SCRIPT.replace("ROOT", str(ROOT)).replace("HTTP", http).replace("URL", daemon.url)
    (tmp_path / "page.mjs").write_text(script)
    program = Program([node(), tmp_path / "page.mjs"], tmp_path, {})
    try:
        await until(lambda: program.exit_code is not None, "the end of the program")
    finally:
        program.end()
        await runner.cleanup()
    found = json.loads(program.output)

    assert found["columns"] == ["boardId", "id", "lane", "title"]
    assert found["failed"] == "a title is required"
    assert found["titles"][-2:] == ["", "20"]
    shown = list(map(int, found["titles"][:-2]))
    assert shown == sorted(shown)
    assert set(shown) == set(range(1, 21))

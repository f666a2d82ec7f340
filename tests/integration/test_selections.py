"""Clients that follow some lanes and some columns of a board: at the database and at an edge, on real sockets."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import psycopg
import pytest

from relay.hub import boards
from tests.integration.client import Client, Tasks, until
from tests.integration.conftest import Relay
from tests.integration.test_edges import Feed, feed  # noqa: F401  # a fixture
from tests.integration.test_server import table
from tests.servers import Database

WRITES = (
    """
    insert into tasks (id, title, lane) select 't' || n, 'T', '{lane}' from generate_series({n}, {n} + 1) n
    on conflict (id) do update set lane = excluded.lane, title = tasks.title || '+'
    """,
    "update tasks set lane = '{lane}' where id = 't{n}'",
    "update tasks set title = title || '!', description = 'D' where id = 't{n}'",
    "update tasks set lane = '{lane}', description = description || '.' where id in ('t{n}', 't1')",
    "update tasks set board_id = case board_id when 'default' then 'other' else 'default' end where id = 't{n}'",
    "delete from tasks where id = 't{n}'",
    "update tasks set id = 'u{n}' where id = 't{n}' and not exists (select from tasks where id = 'u{n}')",
)
LANES = ("todo", "done", "review")
LANES_AND_COLUMNS: dict[str, Any] = {"lanes": ["done", "review"], "columns": ["title"]}
ONE_TASK: dict[str, Any] = {"tasks": ["t1"]}


def selected(database: Database, lanes: Any = LANES, columns: Any = None, tasks: Any = None) -> Tasks:
    """Return what is to be held."""
    return {
        key: {name: task[name] for name in task if columns is None or name in {"id", "boardId", "lane", *columns}}
        for key, task in table(database).items()
        if task["lane"] in lanes and (tasks is None or key in tasks) and task["boardId"] == "default"
    }


async def follow(client: Client, cursor: str | None, **selection: Any) -> list[tuple[str, Any]]:
    await client.send({"type": "subscribe", "boardId": "default", "cursor": cursor, **selection})
    return await client.receive_batch()


async def caught_up(client: Client, xid: str) -> None:
    """Read until the board includes a transaction."""
    await client.send({"type": "includes", "boardId": "default", "xid": xid})
    while True:
        message = await client.receive_any()
        if message["type"] == "included":
            return


@pytest.mark.parametrize(
    ("place", "selection"), [("database", LANES_AND_COLUMNS), ("edge", LANES_AND_COLUMNS), ("database", ONE_TASK)]
)
async def test_a_selection_is_followed_and_resumed_exactly(
    database: Database,
    request: pytest.FixtureRequest,
    place: str,
    selection: dict[str, Any],
) -> None:
    """Whatever random transactions do to tasks in it and beside it, each message fits what the client holds."""
    chance = random.Random(place)
    async with contextlib.AsyncExitStack() as stack:
        if place == "edge":
            stream: Feed = request.getfixturevalue("feed")
            await stack.enter_async_context(stream.published())
            relay = await stack.enter_async_context(stream.edge())
        else:
            relay = await stack.enter_async_context(Relay(database.dsn).running())
        with psycopg.connect(database.dsn) as session:
            held: Tasks = {}
            cursor: str | None = None
            for visit in range(4):
                client = await stack.enter_async_context(Client.to(relay.url))
                client.tasks = held
                found = await follow(client, cursor, **selection)
                assert [kind for kind, _ in found].count("board.sync") == (visit == 0)
                for _ in range(8):
                    for _ in range(chance.randint(1, 4)):
                        write = chance.choice(WRITES)
                        session.execute(write.format(n=chance.randrange(6), lane=chance.choice(LANES)))
                    row = session.execute("select pg_current_xact_id()::text").fetchone()
                    session.commit()
                assert row
                await caught_up(client, row[0])
                assert client.tasks == selected(database, **selection)
                held, cursor = client.tasks, client.cursor
                session.execute(WRITES[0].format(n=visit, lane="done"))
                session.commit()
        client = await stack.enter_async_context(Client.to(relay.url))
        await follow(client, cursor)
        assert client.reason == "cursor_invalid"
        assert client.tasks.keys() == {key for key, task in table(database).items() if task["boardId"] == "default"}


async def test_selections_have_limits(database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many different ones; those of other clients, and whole boards, cost nothing more."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 1)
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        await follow(one, None, lanes=["todo"])
        for code, selection in (
            ("too_many_selections", {"cursor": None, "lanes": ["done"]}),
            ("invalid_selection", {"lanes": ["todo"]}),
            ("invalid_selection", {"cursor": None, "lanes": ["x" * 2049]}),
            ("invalid_selection", {"cursor": None, "lanes": [""], "columns": [""] * 100}),
            ("invalid_selection", {"cursor": None, "tasks": ["x" * 2048, 7]}),
            ("invalid_selection", {"tasks": [7]}),
        ):
            await two.send({"type": "subscribe", "boardId": "default", **selection})
            kind, data = await two.receive()
            assert (kind, data["code"], data["boardId"]) == ("error", code, "default")
        await follow(two, None, lanes=["todo", "todo"])
        await follow(two, None)
        await follow(one, None, lanes=None, columns=None)
        await follow(two, None, columns=[])
        database.execute("insert into tasks (id, title, lane) values ('a', 'A', 'todo')")
        assert await two.receive_batch() == [("task.created", {"id": "a", "boardId": "default", "lane": "todo"})]
        assert (await one.receive_batch())[0][1]["title"] == "A"
        await two.send({"type": "unsubscribe", "boardId": "default"})
        await follow(one, None, lanes=["done"])
        assert relay.hub.subscriptions == 1


async def test_a_client_of_another_address_gets_its_share_of_selections(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of one address have taken all. One of them hears that it follows its selection no longer."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 2)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.to(relay.url, address))
            for address in ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2")
        ]
        found: list[str] = []
        for number, client in enumerate(clients):
            await client.send({"type": "subscribe", "boardId": "default", "cursor": None, "tasks": [number]})
            message = await client.receive_any()
            found.append(message["data"].get("code", message["type"]))
        assert found == ["board.sync", "board.sync", "too_many_selections", "board.sync"]
        kind, data = await clients[1].receive()
        assert (kind, data["code"], data["boardId"]) == ("error", "too_many_selections", "default")
        await until(lambda: relay.hub.subscriptions == 2)

"""A client that waits for a transaction: answered when its board includes that, whatever became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from relay.hub import hub
from relay.websocket import commands, server
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.integration.test_edges import Feed, feed  # noqa: F401  # a fixture
from tests.servers import Database

WRITE = "update tasks set title = 'New' where id = 'a'"


@pytest.fixture
def session(database: Database) -> Iterator[psycopg.Connection]:
    """Yield a session of a writer of its own, within a transaction."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    with psycopg.connect(database.dsn) as session:
        yield session


def current(session: psycopg.Connection) -> str:
    row = session.execute("select pg_current_xact_id()::text").fetchone()
    assert row
    return str(row[0])


async def ask(client: Client, xid: str, board: str = "default") -> None:
    await client.send({"type": "includes", "boardId": board, "xid": xid})


async def answer(client: Client) -> tuple[str, str]:
    """Return the next message: a transaction that is included, or the code of an error about one."""
    kind, data = await client.receive()
    assert kind in {"included", "error"}
    return data["xid"], data.get("code", kind)


async def test_a_transaction_is_included_after_what_it_changed_or_when_it_is_over(
    session: psycopg.Connection, client: Client
) -> None:
    """One that changes a task, one that changes nothing, one that is rolled back, and one that is long over."""
    changed = current(session)
    await ask(client, changed)
    session.execute(WRITE)
    await asyncio.to_thread(session.commit)
    assert (await client.receive())[0] == "task.updated"
    assert await answer(client) == (changed, "included")
    undone = current(session)
    session.execute("delete from tasks")
    await ask(client, undone)
    session.rollback()
    idle = current(session)
    await ask(client, idle)
    session.commit()
    assert sorted([await answer(client), await answer(client)]) == sorted([(undone, "included"), (idle, "included")])
    await ask(client, changed)
    assert await answer(client) == (changed, "included")


async def test_a_transaction_is_included_at_an_edge(
    feed: Feed,  # noqa: F811
    session: psycopg.Connection,
) -> None:
    async with feed.published(), feed.edge() as edge, Client.to(edge.url) as client:
        await client.resume("default", None)
        changed = current(session)
        session.execute(WRITE)
        session.commit()
        await ask(client, changed)
        assert [kind for kind, _ in await client.receive_batch()] == ["task.updated"]
        assert await answer(client) == (changed, "included")
        idle = current(session)
        session.commit()
        await ask(client, idle)
        assert await answer(client) == (idle, "included")


async def test_waiting_has_limits(
    session: psycopg.Connection, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one connection and on all, for so many transactions, of boards that are followed."""
    monkeypatch.setattr(commands, "MAX_WAITS", 1)
    monkeypatch.setattr(hub, "MAX_WAITS", 1)
    running = current(session)
    await ask(client, running, "other")
    assert await answer(client) == (running, "not_subscribed")
    await ask(client, running)
    await ask(client, "9" * 19)
    assert await answer(client) == ("9" * 19, "too_many_waits")
    async with Client.to(relay.url) as other:
        await other.subscribe("default")
        await ask(other, running)
        assert await answer(other) == (running, "too_many_waits")
    relay.hub.expire_waits()
    relay.hub.expire_waits()
    assert await answer(client) == (running, "not_included")
    await client.send({"type": "unsubscribe", "boardId": "default"})
    await ask(client, running)
    assert await answer(client) == (running, "not_subscribed")


async def test_a_transaction_that_does_not_end_in_time_is_refused(
    session: psycopg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WAIT_SECONDS", 0.1)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        running = current(session)
        await ask(client, running)
        assert await answer(client) == (running, "not_included")


async def test_a_wait_for_a_board_that_the_database_refuses_ends_with_it(
    session: psycopg.Connection, database: Database
) -> None:
    """Until it has decided, nothing is answered; a board that it allows answers after its board.sync."""
    decisions: asyncio.Queue[bool] = asyncio.Queue()

    class Judge:
        async def may_read(self, questions: Any) -> list[bool]:
            return [await decisions.get() for _ in questions]

    running = current(session)
    session.rollback()
    async with Relay(database.dsn, authorizer=Judge()).running() as relay, Client.to(relay.url) as client:
        for may in (False, True):
            await client.send({"type": "subscribe", "boardId": "default"})
            await ask(client, running)
            [connection] = relay.endpoint.clients
            await until(lambda: relay.hub.waits(connection.outbox) == 1)  # noqa: B023  # awaited at once
            decisions.put_nowait(may)
            kind, data = await client.receive()
            assert (kind, data.get("code")) == (("board.sync", None) if may else ("error", "not_allowed"))
            assert relay.hub.waits(connection.outbox) == 0
        assert await answer(client) == (running, "included")

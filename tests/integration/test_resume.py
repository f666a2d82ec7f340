"""Resumable subscriptions on a real Postgres: a client that comes back gets exactly what it missed, or the board."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from relay.postgres import journal, requests
from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.install import text as sql_text
from tests.integration.client import Client, Tasks, until
from tests.integration.conftest import Relay
from tests.integration.test_join import BOARDS, Writers
from tests.servers import PAUSE, Database, Server, install, temporary_database


async def start(relay: Relay, board: str = "default") -> tuple[str, Tasks]:
    """Follow a board from its beginning, leave at once, and return the cursor and what is held."""
    async with Client.to(relay.url) as client:
        assert [kind for kind, _ in await client.resume(board, None)] == ["board.sync"]
        assert client.reason is None
        assert client.cursor is not None
        return client.cursor, client.tasks


async def come_back(relay: Relay, cursor: object, tasks: Tasks | None = None) -> Client:
    """Resume board "default", leave at once, and return what the client then holds."""
    async with Client.to(relay.url) as client:
        await client.resume("default", cursor, tasks)
        return client


async def test_a_client_that_comes_back_gets_what_it_missed_and_then_what_follows(
    database: Database, relay: Relay
) -> None:
    """Between the cursor and now nothing is lost and nothing comes twice, and nothing else is sent."""
    database.execute("insert into tasks (id, title) values ('a', 'A'), ('b', 'B')")
    cursor, tasks = await start(relay)
    database.execute("update tasks set lane = 'todo', title = 'AA' where id = 'a'")
    database.execute("delete from tasks where id = 'b'")
    database.execute("insert into tasks (id, board_id, title) values ('x', 'other', 'X')")
    async with Client.to(relay.url) as client:
        assert [kind for kind, _ in await client.resume("default", cursor, tasks)] == [
            "task.moved",
            "task.updated",
            "task.deleted",
        ]
        database.execute("insert into tasks (id, title) values ('c', 'C')")
        assert [kind for kind, _ in await client.receive_batch()] == ["task.created"]
        assert {task["title"] for task in client.tasks.values()} == {"AA", "C"}


async def test_transactions_that_were_open_at_the_cursor_are_among_what_was_missed(
    database: Database, relay: Relay
) -> None:
    """A cursor is a snapshot: a transaction that was running then and has ended since was missed."""
    await until(lambda: relay.feed.problem is None)  # transactions older than its first session count as outdated
    writer = database.connect()
    writer.execute("begin; insert into tasks (id, title) values ('late', 'L')")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    cursor, tasks = await start(relay)
    assert set(tasks) == {"a"}
    writer.execute("commit")
    client = await come_back(relay, cursor, tasks)

    assert set(client.tasks) == {"a", "late"}
    assert client.reason is None


async def test_each_transaction_is_one_batch(database: Database, relay: Relay) -> None:
    """What was committed together arrives together."""
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 100) i")

        assert len(await client.receive_batch()) == 100


async def test_cursor_works_on_a_relay_that_was_started_since_and_on_another(
    database: Database, relay: Relay
) -> None:
    """A cursor belongs to the database, not to the relay that gave it."""
    cursor, tasks = await start(relay)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    async with Relay(database.dsn).running() as other:
        client = await come_back(other, cursor, tasks)

        assert (set(client.tasks), client.reason) == ({"a"}, None)


async def test_a_client_that_comes_before_the_relay_has_reached_postgres_resumes_when_it_has(
    database: Database, relay: Relay
) -> None:
    """Clients that come back to a relay that is just starting are not sent their boards for it."""
    cursor, tasks = await start(relay)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    late = Relay(database.dsn)
    await late.endpoint.open("127.0.0.1", 0)
    async with Client.to(late.url) as client:
        await client.send({"type": "subscribe", "boardId": "default", "cursor": cursor})
        client.tasks = tasks
        feed = asyncio.create_task(late.feed.run(late.hub))
        assert [kind for kind, _ in await client.receive_batch()] == ["task.created"]
    await late.endpoint.close()
    feed.cancel()
    await asyncio.gather(feed, return_exceptions=True)


async def test_cursor_outlives_a_clean_restart_of_postgres(
    own_server: EmbeddedPostgres, on_own_server: Relay
) -> None:
    """A fast stop and a start lose nothing, so a cursor from before goes on."""
    cursor, tasks = await start(on_own_server)
    with Database(own_server.dsn) as database:
        database.execute("insert into public.tasks (id, title) values ('a', 'A')")
    await asyncio.to_thread(own_server.stop, "fast")
    await asyncio.to_thread(own_server.start)
    client = await come_back(on_own_server, cursor, tasks)

    assert (set(client.tasks), client.reason) == ({"a"}, None)


async def test_cursor_from_before_a_crash_is_refused(own_server: EmbeddedPostgres, on_own_server: Relay) -> None:
    """Crash recovery may have lost what the client holds."""
    cursor, tasks = await start(on_own_server)
    await asyncio.to_thread(own_server.stop, "immediate")
    await asyncio.to_thread(own_server.start)
    client = await come_back(on_own_server, cursor, tasks)

    assert client.reason == "epoch_changed"


async def test_cursor_that_the_journal_no_longer_follows_is_refused(database: Database, relay: Relay) -> None:
    """What was pruned away cannot be sent, so the board is."""
    cursor, tasks = await start(relay)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("select relay.prune('0')")
    client = await come_back(relay, cursor, tasks)

    assert (set(client.tasks), client.reason) == ({"a"}, "journal_pruned")


async def test_cursor_from_before_a_pause_is_refused(database: Database, relay: Relay) -> None:
    """What was not journalled cannot be sent, so the board is."""
    cursor, tasks = await start(relay)
    database.execute(PAUSE)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await until(lambda: database.fetch("select relay.paused()") == [(False,)])
    client = await come_back(relay, cursor, tasks)

    assert set(client.tasks) == {"a"}
    assert client.reason in {"journal_pruned", "journalling_paused"}


async def test_cursor_from_before_a_reinstall_is_refused(database: Database, relay: Relay) -> None:
    """Another journal has other entries under the same transaction ids."""
    cursor, tasks = await start(relay)
    for name in ("uninstall", "install"):
        database.execute(sql_text(name))
    database.execute("select relay.watch('tasks')")
    async with Relay(database.dsn).running() as other:
        assert (await come_back(other, cursor, tasks)).reason == "epoch_changed"


async def test_cursor_of_another_database_is_refused(server: Server, relay: Relay) -> None:
    """What happens in one database says nothing of another."""
    cursor, tasks = await start(relay)
    with temporary_database(server) as dsn:
        install(dsn)
        async with Relay(dsn).running() as other:
            assert (await come_back(other, cursor, tasks)).reason == "epoch_changed"


async def test_a_client_that_comes_back_after_a_truncate_gets_the_board(database: Database, relay: Relay) -> None:
    """TRUNCATE has no changes to tell, so the board is, with the reason."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    cursor, tasks = await start(relay)
    database.execute("truncate tasks")
    client = await come_back(relay, cursor, tasks)

    assert (client.tasks, client.reason) == ({}, "truncate")


async def test_an_invalid_cursor_is_answered_with_the_board(database: Database, relay: Relay) -> None:
    """Neither an error nor silence: the client is where it would be without a cursor, and knows why."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    cursors: list[object] = ["", "x", 7, [], {"a": 1}, "0" * 12 + "." + "0" * 12 + ".3:3:." + "A" * 22]
    for cursor in cursors:
        client = await come_back(relay, cursor)
        assert (cursor, set(client.tasks)) == (cursor, {"a"})
        assert client.reason in {"cursor_invalid", "epoch_changed"}


async def test_a_client_that_missed_too_much_gets_the_board(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a limit the board is the shorter answer."""
    monkeypatch.setattr(journal, "RESUME_CHANGES", 10)
    cursor, tasks = await start(relay)
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 11) i")
    client = await come_back(relay, cursor, tasks)

    assert (len(client.tasks), client.reason) == (11, "too_much_missed")


async def test_many_that_come_back_at_once_cost_the_database_a_handful_of_queries(
    database: Database, relay: Relay
) -> None:
    """They are served together, whatever boards they follow and however old their cursors are."""
    reads = 0
    read = journal.Journal.missed

    async def counted(*args: Any) -> journal.Batch:
        nonlocal reads
        reads += 1
        return await read(*args)

    cursors = []
    for number in range(50):
        cursors.append(await start(relay, f"board-{number}"))
        database.execute("insert into tasks (board_id, title) values (%s, 'T')", f"board-{number}")

    async def back(number: int) -> None:
        async with Client.to(relay.url) as client:
            assert [kind for kind, _ in await client.resume(f"board-{number}", *cursors[number])] == ["task.created"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "missed", counted)
        patch.setattr(requests, "GATHER_SECONDS", 2.0)
        await asyncio.gather(*(back(number % 50) for number in range(300)))

    assert 0 < reads < 10


async def test_a_client_that_comes_and_goes_beside_busy_writers_ends_with_the_table(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every cursor a client goes on exactly where it was, on one relay or another."""
    monkeypatch.setattr(journal, "PART_CHANGES", 10)  # so that some transactions come in parts
    seed = 4
    chance = random.Random(seed)

    async def wander(relays: list[Relay], board: str) -> None:
        cursor: str | None = None
        tasks: Tasks = {}
        for _ in range(5):
            async with Client.to(chance.choice(relays).url) as client:
                first = await client.resume(board, cursor, tasks)
                assert cursor is None or not first or first[0][0] != "board.sync", client.reason
                for _ in range(chance.randint(0, 6)):
                    await client.receive_batch()
                cursor, tasks = client.cursor, client.tasks
        wandered.append((board, cursor, tasks))

    wandered: list[tuple[str, str | None, Tasks]] = []
    async with Relay(database.dsn).running() as other:
        with Writers(database.dsn, seed).busy(2):
            await asyncio.gather(*(wander([relay, other], board) for board in BOARDS for _ in range(3)))
        for board, cursor, tasks in wandered:
            async with Client.to(relay.url) as client, Client.to(relay.url) as fresh:
                await client.resume(board, cursor, tasks)
                await fresh.subscribe(board)

                assert client.tasks == fresh.tasks


async def test_quiet_board_gets_a_fresh_cursor(database: Database) -> None:
    """A cursor does not grow old while nothing happens on its board."""
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        first = client.cursor
        await until(lambda: relay.feed.proven)  # or its probe would be taken for the change
        read = relay.feed.status(10).counts.transactions
        database.execute("insert into tasks (board_id, title) values ('other', 'T')")
        await until(lambda: relay.feed.status(10).counts.transactions > read)
        for _ in range(2):
            relay.hub.refresh()
        assert await client.receive_batch() == []

        assert client.cursor != first


async def test_board_read_beside_a_rewrite_of_the_table_shows_its_rows(database: Database, relay: Relay) -> None:
    """A snapshot from before a rewriting ALTER TABLE would show an empty board; so it is taken after the lock."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await until(lambda: relay.feed.problem is None)
    migration = database.connect()
    migration.execute("begin; alter table tasks alter title type text using upper(title) || random()")
    async with Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: database.fetch("select from pg_locks where not granted") != [])
        migration.execute("commit")
        await client.receive()

        assert set(client.tasks) == {"a"}


@pytest.mark.parametrize(
    "others",
    [
        "insert into relay.horizon select 'elsewhere', seen, swept, pauses, ceiling from relay.horizon",
        "insert into relay.ticks values ('elsewhere', now(), pg_current_snapshot(), 1, 1); select relay.prune()",
    ],
    ids=["before them", "after them"],
)
async def test_entries_that_a_dump_brought_are_sent_to_nobody(database: Database, relay: Relay, others: str) -> None:
    """Not even those that pass for ours, where the watches are copies and transactions have the same numbers."""
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await client.receive_batch()
        cursor, tasks = client.cursor, client.tasks
    [(xid,)] = database.fetch("select pg_current_xact_id()::text")
    ghost = '{"id": "ghost", "board_id": "default", "lane": "todo"}'
    database.execute(
        "insert into relay.journal (xid, watch, entry) select %s::text::xid8, id, "
        "array[null, null, null, 'ghost', 'default', %s, null] from relay.watches",
        xid,
        ghost,
    )
    database.execute(others)
    async with Client.to(relay.url) as client:
        [(kind, _)] = await client.resume("default", cursor, tasks)
        assert (kind, client.reason, set(client.tasks)) == ("board.sync", "journal_pruned", {"a"})
        await until(lambda: relay.feed.problem is None)
        database.execute("insert into tasks (id, title) values ('b', 'B')")
        while "b" not in client.tasks:
            await client.receive_batch()
        assert client.tasks.keys() == {"a", "b"}

"""Changes of a watched table's shape, and rows that cannot be shown: what subscribers see, without anybody's doing.

Replica role, JSON that is no text, and writes straight to a partition are in test_messages.
"""

from __future__ import annotations

import asyncio

import pytest
import structlog

from relay.postgres import unshown
from tests.integration.client import Client, Message, until
from tests.integration.conftest import Relay
from tests.servers import Database


async def synced(client: Client) -> None:
    """Take the next message, which must be the board again."""
    assert (await client.receive())[0] == "board.sync"


def brief(messages: list[Message]) -> list[tuple[str, object]]:
    return [(kind, data["id"]) for kind, data in messages]


# Columns


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("alter table tasks add column owner text default 'nobody'", {"owner": "nobody"}),
        ("alter table tasks alter status type integer using length(status)", {"status": 4}),
        ("alter table tasks rename status to state", {"state": "open"}),
    ],
    ids=["added", "retyped", "renamed"],
)
async def test_changed_column_causes_a_sync(
    database: Database, relay: Relay, client: Client, statement: str, expected: dict[str, object]
) -> None:
    """A column that is added, retyped or renamed shows at once on every task, and changes go on in the new shape."""
    database.execute("insert into tasks (id, title, status) values ('a', 'A', 'open')")
    await client.receive()
    database.execute(statement)
    await synced(client)
    assert client.tasks["a"].items() >= expected.items()
    database.execute("update tasks set title = 'B'")

    assert brief(await client.until_last(database)) == [("task.updated", "a")]
    assert client.tasks["a"].items() >= expected.items() | {"title": "B"}.items()
    assert relay.feed.problem is None


async def test_dropped_column_causes_a_sync(database: Database, client: Client) -> None:
    """A column that is dropped is gone at once from every task."""
    database.execute("insert into tasks (id, title, status) values ('a', 'A', 'open')")
    await client.receive()
    database.execute("alter table tasks drop column status")
    await synced(client)
    assert "status" not in client.tasks["a"]
    database.execute("update tasks set title = 'B'")

    assert brief(await client.until_last(database)) == [("task.updated", "a")]


@pytest.mark.parametrize("column", ["id", "board_id", "lane"])
async def test_dropped_key_column_fails_no_writer_and_needs_another_to_be_named(
    database: Database, relay: Relay, client: Client, column: str
) -> None:
    """Without its key, board or lane column a table shows nothing, and health says so until another is named."""
    database.execute(f"alter table tasks drop column {column}")
    database.execute("insert into tasks (title) values ('A')")
    await until(lambda: "run relay sql watch" in str(relay.feed.problem))
    database.execute("alter table tasks add column fresh text not null default 'default' unique")
    if column == "id":
        database.execute("alter table tasks add primary key (fresh)")
    database.execute(f"select relay.watch('tasks', {column.replace('_id', '')}_column => 'fresh')")
    while [task["title"] for task in client.tasks.values()] != ["A"]:
        await synced(client)

    await until(lambda: relay.feed.problem is None)


async def test_migration_in_one_transaction_causes_a_sync(database: Database, client: Client) -> None:
    """A migration that changes shape and rows in one transaction leaves the board equal to the table."""
    with database.connect() as migration:
        migration.execute(
            "begin; insert into tasks (id, title) values ('a', 'A'); alter table tasks add column n integer; "
            "update tasks set n = 1; alter table tasks drop column status; update tasks set n = 2; commit"
        )
    while "a" not in client.tasks or "status" in client.tasks["a"]:
        await client.receive()
    await client.until_last(database)

    assert client.tasks["a"]["n"] == 2


# Tables


async def test_dropped_table_empties_its_boards(database: Database, relay: Relay, client: Client) -> None:
    """Boards of a dropped table are empty at once; made again and watched again, they fill."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    definition = "create table tasks (id text primary key, board_id text, lane text, title text)"
    database.execute("drop table tasks")
    await synced(client)
    assert client.tasks == {}
    database.execute(definition)
    database.execute("select relay.watch('tasks')")
    database.execute("insert into tasks values ('b', 'default', 'todo', 'B')")
    while set(client.tasks) != {"b"}:
        await client.receive()

    await until(lambda: relay.feed.problem is None)


async def test_table_recreated_in_one_transaction_causes_a_sync(database: Database, client: Client) -> None:
    """A table that is replaced by another of its name, and watched, is shown at once with what it holds."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    with database.connect() as migration, migration.transaction():
        migration.execute("create table fresh (like tasks including all)")
        migration.execute("insert into fresh select * from tasks")
        migration.execute("insert into fresh (id, title) values ('b', 'B')")
        migration.execute("drop table tasks")
        migration.execute("alter table fresh rename to tasks")
        migration.execute("select relay.watch('tasks')")
    while set(client.tasks) != {"a", "b"}:
        await synced(client)
    database.execute("delete from tasks where id = 'a'")
    await client.until_last(database)

    assert "a" not in client.tasks
    assert "b" in client.tasks


async def test_renamed_table_is_followed(database: Database, relay: Relay, client: Client) -> None:
    """A table under another name, or in another schema, is the same table: its changes go on."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    database.execute("alter table tasks rename to chores; create schema other; alter table chores set schema other")
    database.execute("insert into other.chores (id, title) values ('b', 'B')")
    while set(client.tasks) != {"a", "b"}:
        await client.receive()

    await until(lambda: relay.feed.problem is None)


# Partitions


async def test_attached_and_detached_partitions_cause_syncs(database: Database, relay: Relay) -> None:
    """Rows that come with a partition, or go with it, fire no trigger; boards are sent again all the same."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by range (id)")
    database.execute("create table p0 partition of p for values from (0) to (10)")
    database.execute("select relay.watch('p')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("create table p1 (like p including all)")
        database.execute("insert into p1 values (11, 'b', 'todo')")
        database.execute("alter table p attach partition p1 for values from (10) to (20)")
        await synced(client)
        assert set(client.tasks) == {11}
        database.execute("insert into p1 values (12, 'b', 'todo')")
        database.execute("insert into p values (1, 'b', 'todo')")
        while set(client.tasks) != {1, 11, 12}:
            await client.receive()
        database.execute("alter table p detach partition p1")
        while set(client.tasks) != {1}:
            await client.receive()


async def test_new_empty_partition_is_followed_at_once(database: Database, relay: Relay) -> None:
    """Rows written straight to a partition that was made a moment ago are announced."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by range (id)")
    database.execute("select relay.watch('p')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("create table p0 partition of p for values from (0) to (10)")
        database.execute("insert into p0 values (1, 'b', 'todo')")
        while 1 not in client.tasks:
            await client.receive()
        database.execute("delete from p0")
        while 1 in client.tasks:
            await client.receive()


async def test_new_partition_works_and_a_truncate_of_it_alone_is_a_sync(database: Database, relay: Relay) -> None:
    """Tools make one every month. Without its trigger on TRUNCATE, that is seen by the shape."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by range (id)")
    database.execute("select relay.watch('p')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute(
            "create table p0 partition of p for values from (0) to (10); insert into p0 values (1, 'b', 'x')"
        )
        while (await client.receive())[0] != "board.sync" or 1 not in client.tasks:
            pass
        database.execute("truncate p0")
        await synced(client)
        assert client.tasks == {}
        assert relay.feed.problem is None


async def test_partition_that_is_being_detached_no_longer_counts(database: Database, relay: Relay) -> None:
    """Readers see none of its rows, also not of those that are written straight into it before the end."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by range (id)")
    database.execute("create table p0 partition of p for values from (0) to (10); select relay.watch('p')")
    database.execute("insert into p values (1, 'b', 'x')")
    with database.connect() as reader, database.connect() as other:
        async with Client.to(relay.url) as client:
            await client.subscribe("b")
            reader.execute("begin; select from p")
            detaching = asyncio.create_task(
                asyncio.to_thread(other.execute, "alter table p detach partition p0 concurrently")
            )
            await synced(client)
            assert (client.tasks, detaching.done()) == ({}, False)
            database.execute("insert into p0 values (2, 'b', 'x'); update p0 set lane = 'y' where id = 1")
            await synced(client)
            assert client.tasks == {}
            assert "p0 is being detached from public.p" in relay.feed.status(10).incomplete["public.p"]
            reader.execute("commit")
            await detaching
            database.execute("insert into p0 values (3, 'b', 'x'); create table p1 partition of p default")
            while "public.p" in relay.feed.status(10).incomplete:
                await client.receive()
            database.execute("insert into p values (12, 'b', 'x')")
            while 12 not in client.tasks:
                await client.receive()
            assert client.tasks.keys() == {12}


# Rows that cannot be shown


@pytest.fixture
def with_json(database: Database) -> Database:
    """Return a database whose watched table has a column that can hold half a surrogate pair, which is no Unicode."""
    database.execute("create table t (id text primary key, board_id text, lane text default 'todo', j json)")
    database.execute("select relay.watch('t', distinct_ids => true)")
    return database


async def test_row_that_cannot_be_shown_is_left_out_and_reported(with_json: Database, relay: Relay) -> None:
    """Neither its own board nor another is sent again for it; the log names it, and the others' changes go on."""
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.subscribe("b")
        await other.subscribe("c")
        with structlog.testing.capture_logs() as logged:
            with_json.execute(r"""insert into t values ('bad', 'b', 'todo', '"\ud800"'), ('a', 'b', 'todo', '1')""")
            with_json.execute(r"""insert into t values ('bad2', 'c', 'todo', '"\ud800"')""")
            found = await client.until_last(with_json, "b")
            assert await other.until_last(with_json, "c") == []
        async with Client.to(relay.url) as late:
            await late.subscribe("b")
            assert "bad" not in late.tasks

    assert brief(found) == [("task.created", "a")]
    assert "feed.unreadable_row" in {line["event"] for line in logged}


async def test_row_that_becomes_unreadable_leaves_and_comes_back(with_json: Database, relay: Relay) -> None:
    """To clients it is deleted while it cannot be shown, and created when it can; no board is sent again."""
    with_json.execute("insert into t values ('a', 'b', 'todo', '1'), ('x', 'c', 'todo', '1')")
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.subscribe("b")
        await other.subscribe("c")
        with_json.execute(r"""update t set j = '"\ud800"' where id = 'a'""")
        with_json.execute(r"""update t set j = '"\udfff"' where id = 'a'""")
        with_json.execute("update t set j = '2' where id = 'a'")
        found = await client.until_last(with_json, "b")
        with_json.execute(r"""update t set j = '"\ud800"' where id = 'a'""")
        with_json.execute("delete from t where id = 'a'")
        found += await client.until_last(with_json, "b")
        others = await other.until_last(with_json, "c")

    assert brief(found) == [("task.deleted", "a"), ("task.created", "a"), ("task.deleted", "a")]
    assert others == []


async def test_rows_that_cannot_be_shown_are_named_by_health_while_a_board_lacks_them(
    with_json: Database, relay: Relay
) -> None:
    """Whether a change or a read of the board found them; with an id, if that can be read. The relay stays ready."""
    half, deep = r"""'"\ud800"'""", "'" + "[" * 3000 + "]" * 3000 + "'"
    one, other, both = (f"{rows} of public.t cannot be shown" for rows in ("1 row", "1 row", "2 rows"))
    steps = [
        (f"insert into t values ('a', 'b', 'todo', {half})", f"{one}, such as that with id 'a'"),
        (f"insert into t values ('a2', 'c', 'todo', {half})", f"{one}, such as that with id 'a'"),  # nobody is there
        (f"update t set j = {deep} where id = 'a'", f"{one}, such as that with id 'a'"),
        ("update t set id = 'a3' where id = 'a'", f"{one}, such as that with id 'a3'"),
        (f"insert into t values ('x', 'b', 'todo', {deep})", both),
        ("delete from t where id = 'a3'", f"{other}, such as that with id 'x'"),
        ("select relay.resync()", f"{other}: the log says why"),
        ("update t set j = '1' where id = 'x'", None),
        (
            f"update t set j = {half} where id = 'a2'; update t set board_id = 'b'",
            f"{one}, such as that with id 'a2'",
        ),
        ("select relay.resync()", f"{one}, such as that with id 'a2'"),
        ("update t set board_id = 'c' where id = 'a2'", None),
        (f"insert into t values ('y', 'b', 'todo', {half})", f"{one}, such as that with id 'y'"),
    ]

    def says(expected: str | None) -> bool:
        said = relay.feed.status(10).incomplete.get("public.t")
        return said is None if expected is None else expected in (said or "")

    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        for statement, expected in steps:
            await asyncio.to_thread(with_json.execute, statement)
            await client.until_last(with_json, "b")
            await until(lambda: says(expected))  # noqa: B023  # it is awaited here
            assert relay.feed.status(10).problem is None
    await until(lambda: says(None))


async def test_changes_that_cannot_be_recorded_are_named_by_health(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although each of them has all boards be read again, so that nobody lacks anything; if it goes on so."""
    ((function,),) = database.fetch("select 'relay.entry_' || id || '(text, record, record)' from relay.watched")
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        database.execute(f"alter function {function} owner to current_user")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        while "a" not in client.tasks:
            assert (await client.receive())[0] == "board.sync"
        assert relay.feed.status(10).incomplete == {}
        monkeypatch.setattr(unshown, "REPEATED_SECONDS", 0.0)
        said = relay.feed.status(10).incomplete["public.tasks"]
        assert said.startswith("1 change of public.tasks could not be recorded of late: the log says why")
        database.execute("select relay.refresh()")


async def test_json_that_is_nested_too_deeply_hides_its_row_alone(with_json: Database, relay: Relay) -> None:
    """Postgres takes lists in lists beyond what the relay's decoder does."""
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        deep = "[" * 3000 + "]" * 3000
        with_json.execute("insert into t values ('deep', 'b', 'todo', %s), ('a', 'b', 'todo', '1')", deep)
        assert brief(await client.until_last(with_json, "b")) == [("task.created", "a")]
        async with Client.to(relay.url) as late:
            await late.subscribe("b")
            assert late.tasks.keys() == client.tasks.keys()
    assert relay.feed.problem is None

"""What each kind of write becomes, from SQL to the socket: every row of the message table."""

from __future__ import annotations

from typing import Any

import pytest

from relay.model import messages as protocol
from relay.postgres.connection import NO_ENCODING
from tests.integration.client import Client, Message, until
from tests.integration.conftest import Relay
from tests.servers import Database, Server, install, temporary_database


def created(task_id: object, **values: object) -> Message:
    """Return task.created as `brief` shortens it."""
    return "task.created", {"id": task_id, **values}


def updated(task_id: object, **changes: object) -> Message:
    return "task.updated", {"id": task_id, "changes": changes}


def moved(task_id: object, from_lane: object, to_lane: object) -> Message:
    return "task.moved", {"id": task_id, "fromLane": from_lane, "toLane": to_lane}


def deleted(task_id: object) -> Message:
    return "task.deleted", {"id": task_id}


def brief(messages: list[Message], *columns: str) -> list[Message]:
    """Shorten messages: of a created task its id and some columns, of an update all but its time."""
    return [_brief(kind, data, columns) for kind, data in messages]


def _brief(kind: str, data: dict[str, Any], columns: tuple[str, ...]) -> Message:
    if kind == "task.created":
        return created(data["id"], **{column: data[column] for column in columns})
    if kind == "task.updated":
        return updated(data["id"], **{key: value for key, value in data["changes"].items() if key != "updatedAt"})
    return kind, data


async def test_insert_is_task_created_with_the_whole_task(database: Database, client: Client) -> None:
    """An inserted row is announced with every column, in camelCase, with the JSON types of Postgres."""
    database.execute("insert into tasks (id, title, estimated_hours) values ('a', 'New', 4)")

    [(kind, task)] = await client.until_last(database)

    assert kind == "task.created"
    times = {task.pop("createdAt"), task.pop("updatedAt")}
    assert len(times) == 1
    assert task == {
        "id": "a",
        "boardId": "default",
        "title": "New",
        "description": None,
        "lane": "backlog",
        "status": None,
        "priority": "medium",
        "estimatedHours": 4,
    }


async def test_update_is_task_updated_with_the_changed_columns_only(database: Database, client: Client) -> None:
    """An update names what changed, and the time that the database keeps."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    database.execute("update tasks set title = 'Newer', priority = 'medium' where id = 'a'")

    _, (kind, data) = await client.until_last(database)

    assert (kind, data["id"], set(data["changes"])) == ("task.updated", "a", {"title", "updatedAt"})


async def test_change_of_lane_is_moved_then_updated(database: Database, client: Client) -> None:
    """A task that changed lane and status is moved first; the update then holds both."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    database.execute("update tasks set lane = 'in_progress', status = 'working'")

    assert brief(await client.until_last(database))[1:] == [
        moved("a", "backlog", "in_progress"),
        updated("a", lane="in_progress", status="working"),
    ]


async def test_change_of_lane_alone_is_moved_alone(database: Database, relay: Relay) -> None:
    """Where no other column changed, there is no update."""
    database.execute("create table cards (id int primary key, board_id text, lane text)")
    database.execute("select relay.watch('cards')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("insert into cards values (1, 'b', 'todo')")
        database.execute("update cards set lane = 'done'")

        assert brief(await client.until_last(database, "b"))[1:] == [moved(1, "todo", "done")]


async def test_delete_is_task_deleted(database: Database, client: Client) -> None:
    """A deleted row is named by its id."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    database.execute("delete from tasks")

    assert brief(await client.until_last(database)) == [created("a"), deleted("a")]


@pytest.mark.parametrize(
    "statement",
    ["update tasks set title = title", "update tasks set lane = 'backlog'", "update tasks set title = 'New' || ''"],
)
async def test_update_that_changes_nothing_is_nothing(database: Database, client: Client, statement: str) -> None:
    """An update to the same values sends nothing."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    database.execute(statement)

    assert brief(await client.until_last(database)) == [created("a")]


async def test_move_to_another_board_is_deleted_there_and_created_here(database: Database, relay: Relay) -> None:
    """A task that changes board leaves one and appears whole on the other."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    async with Client.to(relay.url) as old, Client.to(relay.url) as new:
        await old.subscribe("default")
        await new.subscribe("other")
        database.execute("update tasks set board_id = 'other', lane = 'done'")

        assert brief(await old.until_last(database)) == [deleted("a")]
        assert brief(await new.until_last(database, "other"), "lane") == [created("a", lane="done")]


async def test_change_of_key_is_deleted_and_created(database: Database, client: Client) -> None:
    """A new primary key is a new task to clients, also in place of the empty text."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    database.execute("update tasks set id = ''")
    database.execute("update tasks set id = 'b'")

    expected = [deleted("a"), created(""), deleted(""), created("b")]
    assert brief(await client.until_last(database))[1:] == expected


async def test_truncate_is_a_sync_for_every_subscribed_board(database: Database, relay: Relay) -> None:
    """TRUNCATE empties all boards, and each subscriber is shown."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        await one.subscribe("default")
        await two.subscribe("other")
        database.execute("truncate tasks")

        empty: dict[str, list[object]] = {"backlog": [], "todo": [], "in_progress": [], "done": [], "recovery": []}
        assert await one.receive() == ("board.sync", {"lanes": empty})
        assert await two.receive() == ("board.sync", {"lanes": empty})


async def test_rows_written_after_truncate_are_in_the_sync_or_follow_it(database: Database, client: Client) -> None:
    """After TRUNCATE and new rows in one transaction, the board is just the new rows."""
    database.execute("insert into tasks (id, title) values ('a', 'New')")
    with database.connect() as other, other.transaction():
        other.execute("truncate tasks")
        other.execute("insert into tasks (id, title) values ('b', 'After')")
    await client.until_last(database)

    assert {"b"} == {task for task in client.tasks if not task.startswith("last")}


async def test_multi_row_statement_is_one_message_a_row(database: Database, client: Client) -> None:
    """A statement over many rows announces each."""
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 500) i")
    database.execute("update tasks set priority = 'high'")
    database.execute("delete from tasks")

    found = brief(await client.until_last(database))

    assert sorted(data["id"] for kind, data in found if kind == "task.created") == sorted(
        f"t{i}" for i in range(1, 501)
    )
    assert [kind for kind, _ in found] == 500 * ["task.created"] + 500 * ["task.updated"] + 500 * ["task.deleted"]


async def test_upsert_is_created_then_updated(database: Database, client: Client) -> None:
    """INSERT … ON CONFLICT announces what it did to each row."""
    for title in ("one", "two"):
        database.execute(
            "insert into tasks (id, title) values ('a', %s) on conflict (id) do update set title = excluded.title",
            title,
        )

    assert brief(await client.until_last(database), "title") == [created("a", title="one"), updated("a", title="two")]


async def test_merge_does_all_three(server: Server, database: Database, client: Client) -> None:
    """MERGE announces its inserts, updates and deletes."""
    if server.version_num < 150000:
        pytest.skip("MERGE came with Postgres 15")
    database.execute("insert into tasks (id, title) values ('a', 'A'), ('b', 'B')")
    database.execute(
        "merge into tasks t using (values ('a'), ('b'), ('c')) s (id) on t.id = s.id "
        "when matched and t.id = 'a' then delete when matched then update set title = 'BB' "
        "when not matched then insert (id, title) values (s.id, 'C')"
    )

    found = brief(await client.until_last(database))[2:]

    assert sorted(found, key=str) == sorted([deleted("a"), updated("b", title="BB"), created("c")], key=str)


async def test_copy_is_created_a_row(database: Database, client: Client) -> None:
    """COPY announces each row."""
    with database.connect() as writer, writer.cursor().copy("copy tasks (id, title) from stdin") as copy:
        for name in ("a", "b"):
            copy.write_row((name, "Copied"))

    assert brief(await client.until_last(database)) == [created("a"), created("b")]


async def test_cascade_is_deleted(database: Database, client: Client) -> None:
    """Rows that a foreign key deletes or changes are announced like any."""
    database.execute("create table boards (id text primary key)")
    database.execute("insert into boards values ('default')")
    database.execute(
        "alter table tasks add foreign key (board_id) references boards (id) on delete cascade on update cascade"
    )
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("delete from boards")
    database.execute("insert into boards values ('default')")

    assert brief(await client.until_last(database)) == [created("a"), deleted("a")]


async def test_rolled_back_transaction_reaches_nobody(database: Database, client: Client) -> None:
    """Neither a rollback nor a rolled-back savepoint is announced; what was kept is."""
    with database.connect() as writer:
        writer.execute("begin; insert into tasks (id, title) values ('a', 'A'); rollback")
        writer.execute(
            "begin; insert into tasks (id, title) values ('b', 'B'); savepoint s; "
            "update tasks set title = 'undone'; rollback to s; update tasks set title = 'kept'; commit"
        )

    assert brief(await client.until_last(database), "title") == [created("b", title="kept")]


async def test_changes_come_when_the_transaction_commits(database: Database, client: Client) -> None:
    """A transaction that began first and committed last is announced last, and is not forgotten."""
    slow = database.connect()
    slow.execute("begin")
    slow.execute("insert into tasks (id, title) values ('slow', 'Slow')")
    database.execute("insert into tasks (id, title) values ('quick', 'Quick')")
    assert brief(await client.until_last(database)) == [created("quick")]
    slow.execute("commit")

    assert brief(await client.until_last(database)) == [created("slow")]


async def test_description_of_a_megabyte_arrives_whole(database: Database, client: Client) -> None:
    """A row image may be of any size, and the writer does not notice."""
    database.execute("insert into tasks (id, title, description) values ('a', 'A', repeat('ab', 524288))")

    assert brief(await client.until_last(database), "description") == [created("a", description="ab" * 524288)]


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f469\u200d\U0001f4bb",
        "\u202eback\u202c",
        '"quoted" \\ \n\r\t\x01\x7f',
        "e\u0301 \u00e9",
        "\u2028",
        "</script>",
    ],
)
async def test_unusual_text_arrives_unchanged(database: Database, relay: Relay, text: str) -> None:
    """Ids, boards, lanes and titles may hold any text."""
    async with Client.to(relay.url) as client:
        await client.subscribe(text)
        database.execute("insert into tasks (id, board_id, title, lane) values (%s, %s, %s, %s)", *4 * [text])
        found = await client.until_last(database, text)
        again = await client.subscribe(text)

    assert brief(found, "boardId", "title", "lane") == [created(text, boardId=text, title=text, lane=text)]
    assert again[1]["lanes"][text][0]["id"] == text


async def test_board_of_the_longest_name_works_and_a_longer_one_fails_no_writer(
    database: Database, relay: Relay
) -> None:
    """A table may hold names that no client can ask for."""
    longest = "\u00e9" * protocol.MAX_BOARD_CHARACTERS
    async with Client.to(relay.url) as client:
        await client.subscribe(longest)
        for name, board in (("a", longest), ("b", longest * 100)):
            database.execute("insert into tasks (id, board_id, title) values (%s, %s, 'T')", name, board)

        assert brief(await client.until_last(database, longest)) == [created("a")]


async def test_null_becomes_null(database: Database, client: Client) -> None:
    """A column set to null is announced as null."""
    database.execute("insert into tasks (id, title, description) values ('a', 'A', 'text')")
    database.execute("update tasks set description = null")

    assert brief(await client.until_last(database))[1:] == [updated("a", description=None)]


async def test_numbers_keep_their_digits_and_types(database: Database, relay: Relay) -> None:
    """Numeric, bigint, boolean, array, jsonb and time columns are sent as Postgres writes them in JSON."""
    database.execute(
        "create table t (id bigint primary key, board_id int, lane text, n numeric, b bool, a int[], j jsonb, "
        "f float8, at timestamptz, i interval)"
    )
    database.execute("select relay.watch('t')")
    with database.connect() as writer:
        writer.execute(
            "set timezone = 'Asia/Kathmandu'; set extra_float_digits = -10; set intervalstyle = 'iso_8601'"
        )
        writer.execute(
            "insert into t values (9007199254740993, 7, 'todo', 1.10, true, '{1,2}', '{\"x\": 1}', "
            "0.1 + 0.2::float8, '2026-01-01 00:00+00', '1 day')"
        )
    async with Client.to(relay.url) as client:
        _, sync = await client.subscribe("7")
        [task] = sync["lanes"]["todo"]
        with database.connect() as writer:
            writer.execute("set timezone = 'Asia/Kathmandu'; set extra_float_digits = -10")
            writer.execute("update t set id = id + 1")
        _ = await client.receive()
        _, again = await client.receive()

    assert task == {
        "id": 9007199254740993,
        "boardId": 7,
        "lane": "todo",
        "n": 1.10,
        "b": True,
        "a": [1, 2],
        "j": {"x": 1},
        "f": 0.1 + 0.2,
        "at": "2026-01-01T00:00:00+00:00",
        "i": "1 day",
    }
    assert again == task | {"id": 9007199254740994}


async def test_extra_columns_are_sent_and_hidden_ones_never(database: Database, relay: Relay) -> None:
    """Every column is visible but those that were hidden; a change to a hidden one alone is no change."""
    database.execute("alter table tasks add column secret text, add column due_date date")
    database.execute("select relay.watch('tasks', hidden => '{secret}')")
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        database.execute("insert into tasks (id, title, secret, due_date) values ('a', 'A', 'hush', '2026-01-01')")
        # Its time would change with it, and is visible.
        database.execute("alter table tasks disable trigger tasks_set_updated_at")
        database.execute("update tasks set secret = 'other'")
        database.execute("update tasks set secret = 'third', due_date = null")
        found = await client.until_last(database)
        again = await client.subscribe("default")

    assert brief(found, "dueDate") == [created("a", dueDate="2026-01-01"), updated("a", dueDate=None)]
    assert "secret" not in str(found) + str(again)
    assert "hush" not in str(database.fetch("select j::text from relay.journal j"))


@pytest.mark.parametrize(
    ("kind", "value"), [("text", "x"), ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), ("int", 5)]
)
async def test_ids_keep_their_json_type(database: Database, relay: Relay, kind: str, value: object) -> None:
    """Text and uuid ids are strings, integers are numbers, in every message."""
    database.execute(f"create table t (key_of_it {kind} primary key, board text, column_of_it text)")
    database.execute(
        "select relay.watch('t', id_column => 'key_of_it', board_column => 'board', lane_column => 'column_of_it', "
        "distinct_ids => true)"
    )
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("insert into t values (%s, 'b', 'todo')", value)
        database.execute("update t set column_of_it = 'done'")
        database.execute("delete from t")

        assert brief(await client.until_last(database, "b"), "boardId", "lane") == [
            created(value, boardId="b", lane="todo"),
            moved(value, "todo", "done"),
            deleted(value),
        ]


async def test_partitioned_table_is_one_board(database: Database, relay: Relay) -> None:
    """Writes to the parent and straight to a partition are announced; a row that moves between partitions moved."""
    database.execute("create table p (id int, board_id text, lane text, n int) partition by hash (id)")
    database.execute("create table p0 partition of p for values with (modulus 2, remainder 0)")
    # A partition whose columns stand in another order.
    database.execute("create table p1 (n int, lane text, board_id text, id int)")
    database.execute("alter table p attach partition p1 for values with (modulus 2, remainder 1)")
    database.execute("create unique index on p (id)")
    database.execute("alter table p alter id set not null")
    database.execute("select relay.watch('p')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("insert into p select i, 'b', 'todo', 0 from generate_series(1, 4) i")
        for part in ("p0", "p1"):
            database.execute(f"update {part} set n = 1 where id in (1, 2, 3)")
        found = await client.until_last(database, "b")
        database.execute("truncate p0")
        sync = await client.receive()

    assert len(found) == 7
    assert sorted(brief(found[4:]), key=str) == [updated(1, n=1), updated(2, n=1), updated(3, n=1)]
    assert sync[0] == "board.sync"


async def test_key_that_leads_to_another_partition_is_deleted_and_created(database: Database, relay: Relay) -> None:
    """What Postgres does as a delete here and an insert there is what a change of key is anywhere."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by range (id)")
    database.execute("create table p1 partition of p for values from (0) to (10)")
    database.execute("create table p2 partition of p for values from (10) to (20)")
    database.execute("select relay.watch('p')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute("insert into p select i, 'b', 'todo' from generate_series(1, 2) i")
        database.execute("update p set id = id + 10")

        assert brief(await client.until_last(database, "b"))[2:] == [
            deleted(1),
            created(11),
            deleted(2),
            created(12),
        ]


_AGAIN = """
    create function again() returns trigger language plpgsql as $$
    begin {body} return null; end $$;
    create trigger {name} after insert or update or delete on tasks for each row execute function again()
"""

_NESTED = {
    "the same row": "if new.lane = 'l1' then update tasks set lane = 'l2' where id = new.id; end if;",
    "the same row twice": "if new.lane in ('l1', 'l2') then "
    "update tasks set lane = 'l' || (substr(new.lane, 2)::int + 1) where id = new.id; end if;",
    "a later row": "if new.id = 't1' and new.lane = 'l1' then update tasks set lane = 'l9' where id = 't3'; end if;",
    "every row": "if new.id = 't2' and new.lane = 'l1' then update tasks set lane = 'l9'; end if;",
    "delete a later row": "if new.id = 't1' and new.lane = 'l1' then delete from tasks where id = 't3'; end if;",
    "delete and insert": "if new.id = 't2' and new.lane = 'l1' then delete from tasks where id in ('t2', 't3'); "
    "insert into tasks (id, title, lane) values ('t3', 'again', 'l7'); end if;",
    "insert what was deleted": "if tg_op = 'DELETE' and old.title <> 'back' then "
    "insert into tasks (id, title) values (old.id, 'back'); end if;",
    "change of key": "if new.id = 't1' and new.lane = 'l1' then update tasks set id = 't9' where id = 't3'; end if;",
}


@pytest.mark.parametrize("name", ["a_first", "z_last"])
@pytest.mark.parametrize("nested", _NESTED)
async def test_a_users_trigger_that_writes_again_is_followed(
    database: Database, client: Client, nested: str, name: str
) -> None:
    """Whatever order nested triggers journal in, the client ends with the table."""
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 4) i")
    database.execute(_AGAIN.format(body=_NESTED[nested], name=name))
    database.execute("update tasks set lane = 'l1'")
    database.execute("delete from tasks where id = 't4'")
    await client.until_last(database)

    assert sorted(database.fetch("select id, lane, title from tasks")) == sorted(
        (task["id"], task["lane"], task["title"]) for task in client.tasks.values()
    )


@pytest.mark.parametrize("between", ["", "savepoint s; ", "savepoint s; savepoint t; release t; "])
async def test_a_transaction_is_one_change_of_each_row(database: Database, client: Client, between: str) -> None:
    """Whatever it does to a row on the way, with updates that change nothing and in savepoints, is not sent."""
    database.execute("insert into tasks (id, title) values ('gone', 'T')")
    touch = "update tasks set title = title; "
    database.execute(
        f"begin; {between}insert into tasks (id, title) values ('a', '1'); {touch}{between}"
        f"update tasks set title = '2' where id = 'a'; {touch}{between}update tasks set title = '3' where id = 'a'; "
        f"{touch}{between}delete from tasks where id = 'gone'; {touch}commit"
    )

    found = brief(await client.until_last(database), "title")
    assert found[0] == created("gone", title="T")
    assert sorted(found[1:]) == [created("a", title="3"), deleted("gone")]


async def test_row_that_came_and_went_in_one_transaction_was_never_there(database: Database, client: Client) -> None:
    """What no committed state ever held is not sent, whatever was done to it."""
    database.execute(
        "begin; insert into tasks (id, title) values ('a', '1'); update tasks set title = title; "
        "savepoint s; update tasks set title = '2'; delete from tasks; commit"
    )

    assert await client.until_last(database) == []


async def test_replica_role_and_disabled_triggers_of_others_leave_no_gap(database: Database, client: Client) -> None:
    """`session_replication_role = replica`, as logical replication has, silences other triggers but not these."""
    with database.connect() as writer:
        writer.execute("set session_replication_role = replica")
        writer.execute("insert into tasks (id, title) values ('a', 'A')")
        writer.execute("update tasks set title = 'B'")
        found = [await client.receive() for _ in range(2)]
        writer.execute("truncate tasks")

    assert brief(found) == [created("a"), updated("a", title="B")]
    assert (await client.receive())[0] == "board.sync"


async def test_json_that_is_not_valid_text_stops_nobody(database: Database, relay: Relay) -> None:
    r"""A json column may hold `\u0000`; its row is sent, and the writer is not failed."""
    database.execute("create table t (id int primary key, board_id text, lane text, j json)")
    database.execute("select relay.watch('t')")
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute(r"""insert into t values (1, 'b', 'todo', '{"x": "\u0000"}')""")

        assert brief(await client.until_last(database, "b"), "j") == [created(1, j={"x": "\0"})]


async def test_row_that_cannot_be_shown_is_absent_and_the_others_go_on(database: Database, relay: Relay) -> None:
    r"""A json column that holds half a surrogate pair is no Unicode: its row is absent until it is repaired."""
    database.execute("create table t (id int primary key, board_id text, lane text, j json)")
    database.execute("select relay.watch('t')")
    async with Client.to(relay.url) as client, Client.to(relay.url) as late:
        await client.subscribe("b")
        database.execute(r"""insert into t values (1, 'b', 'todo', '"\ud800"'), (2, 'b', 'todo', '"fine"')""")
        assert (await client.receive())[1]["id"] == 2
        await late.subscribe("b")
        assert set(late.tasks) == {2}
        database.execute("""update t set j = '"repaired"' where id = 1""")
        for each in (client, late):
            assert (await each.receive())[0] == "task.created"
        database.execute(r"""update t set j = '"\ud800"' where id = 2""")
        for each in (client, late):
            assert await each.receive() == ("task.deleted", {"id": 2})
            assert set(each.tasks) == {1}


async def test_database_without_an_encoding_is_refused_with_one_line(server: Server) -> None:
    with temporary_database(server, "template0", "encoding 'SQL_ASCII' locale 'C'") as dsn:
        install(dsn)
        async with Relay(dsn).running() as relay:
            await until(lambda: "SQL_ASCII" in str(relay.feed.problem))

            assert relay.feed.problem == NO_ENCODING


@pytest.mark.parametrize("column", ["id", "board_id", "lane"])
async def test_renamed_column_fails_no_writer_and_is_followed_under_its_new_name(
    database: Database, relay: Relay, client: Client, column: str
) -> None:
    """Rows that were written before the relay noticed are on the board, and then changes go on, all by itself."""
    database.execute(f"alter table tasks rename {column} to renamed")
    database.execute("insert into tasks (title) values ('A')")
    while [task["title"] for task in client.tasks.values()] != ["A"]:
        await client.receive()
    await until(lambda: not database.fetch("select relay.altered()"))
    database.execute("update tasks set title = 'B'")
    while [task["title"] for task in client.tasks.values()] != ["B"]:
        assert (await client.receive())[0] in {"task.updated", "board.sync"}
    database.execute("insert into tasks (title) values ('C')")

    assert (await client.receive())[0] == "task.created"
    assert relay.feed.problem is None

"""What migrations, restores and fixtures do to a watched table: triggers off and on, names that change hands."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import ANY

import pytest
from click.testing import CliRunner

from relay.commands.cli import cli
from relay.postgres import follower, housekeeping, requests, schedule
from relay.postgres.watches import Watches
from tests.acceptance.test_docs import MIGRATIONS, examples
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database


@pytest.fixture
def inspects_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a relay see soon what is watched."""
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.05)


@pytest.fixture
def compares_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a relay see soon that the shape has changed."""
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 0.05)


def run(database: Database, problem: str, word: str) -> None:
    """Run the command that a problem advises, the one with this word in it, as a shell would."""
    (command,) = [
        found
        for found in re.findall(r"run (relay .*?)(?=; |$)", problem.replace(" and relay", "; run relay"))
        if word in found
    ]
    arguments = shlex.split(command)[1:]
    done = CliRunner().invoke(cli, arguments, env={"DATABASE_URL": database.dsn}, catch_exceptions=False)
    assert done.exit_code == 0, done.output


# Triggers

OFF_AND_ON = {
    "at once": (
        "begin; alter table tasks disable trigger all; update tasks set title = 'unseen';"
        "alter table tasks enable trigger all; commit"
    ),
    "one after another": (
        "alter table tasks disable trigger all; update tasks set title = 'unseen';"
        "alter table tasks enable trigger all"
    ),
    "of users": (
        "alter table tasks disable trigger user; update tasks set title = 'unseen';"
        "alter table tasks enable trigger user"
    ),
    "dropped and made again": (
        "begin; drop trigger relay_change on tasks; update tasks set title = 'unseen';"
        "select relay.watch('tasks'); commit"
    ),
}


@pytest.mark.usefixtures("compares_often")
@pytest.mark.parametrize("way", OFF_AND_ON)
async def test_triggers_that_were_off_bring_every_board_current(
    database: Database, relay: Relay, client: Client, way: str
) -> None:
    """Also those that saw nothing, and those that come back later, whose cursors are refused."""
    async with Client.to(relay.url) as resumable:
        await resumable.resume("default", None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await client.receive()
        await resumable.receive_batch()
        cursor, tasks = resumable.cursor, resumable.tasks
        database.execute(OFF_AND_ON[way])
        while client.tasks["a"]["title"] != "unseen":
            assert (await client.receive())[0] == "board.sync"
        while resumable.tasks["a"]["title"] != "unseen":
            await resumable.receive_batch()
            assert resumable.reason in {"schema_changed", "watch_changed"}

    async with Client.to(relay.url) as back:
        await back.resume("default", cursor, tasks)
        assert (back.reason, back.tasks["a"]["title"]) == ("schema_changed", "unseen")
        await until(lambda: relay.feed.problem is None)


@pytest.mark.usefixtures("inspects_often")
async def test_triggers_that_are_off_are_a_problem_within_a_second(database: Database, relay: Relay) -> None:
    """And no problem when they are on again, even if for ordinary sessions only."""
    await until(lambda: relay.feed.problem is None)
    database.execute("alter table tasks disable trigger all")
    await until(lambda: "triggers of public.tasks are missing or disabled" in (relay.feed.problem or ""))
    database.execute("alter table tasks enable trigger all")
    await until(lambda: relay.feed.problem is None)


@pytest.mark.usefixtures("inspects_often")
@pytest.mark.parametrize(
    ("dropped", "word"), [("relay_truncate", " unwatch "), ("relay_change, relay_truncate", " watch ")]
)
async def test_triggers_that_somebody_drops_are_a_problem_until_somebody_decides(
    database: Database, relay: Relay, client: Client, dropped: str, word: str
) -> None:
    """Tools that compare schemas drop what they do not know. Relays that start afterwards know of it, too."""
    database.execute("create table notes (id int primary key, board_id text, lane text, salary int)")
    database.execute(
        "select relay.watch('notes', hidden => '{salary}', id_prefix => 'n');"
        "insert into notes values (1, 'default', 'x')"
    )
    while "n1" not in client.tasks:
        await client.receive()
    for trigger in dropped.split(", "):
        await asyncio.to_thread(database.execute, f"drop trigger {trigger} on notes")
    said = "triggers of public.notes are missing or disabled"
    await until(lambda: said in (relay.feed.problem or ""))
    async with Relay(database.dsn).running() as late:
        await until(lambda: said in (late.feed.problem or ""))
    await asyncio.to_thread(run, database, relay.feed.problem or "", word)
    await until(lambda: relay.feed.problem is None)
    while ("n1" in client.tasks) != (word == " watch "):
        await client.receive()
    if word == " watch ":
        assert (["salary"],) in database.fetch("select hidden from relay.watched")
    await asyncio.to_thread(database.execute, "select relay.unwatch('notes')")
    while "n1" in client.tasks:
        await client.receive()
    assert relay.feed.problem is None
    assert len(database.fetch("select from pg_proc where proname ~ '^journal_[0-9]+$'")) == 1


# Names

SWAPPED = """
    begin;
    create table tasks_shadow (like tasks including all);
    insert into tasks_shadow select * from tasks;
    alter table tasks rename to tasks_old;
    alter table tasks_shadow rename to tasks;
    commit
"""


@pytest.mark.usefixtures("inspects_often")
async def test_table_whose_name_another_one_took_is_a_problem_until_somebody_decides(
    database: Database, relay: Relay, client: Client
) -> None:
    """The renamed table is followed; the command to follow the other has all the options of the first."""
    database.execute("select relay.watch('tasks', order_by => '{title desc nulls last}', hidden => '{description}')")
    await until(lambda: relay.feed.problem is None)
    database.execute(SWAPPED)
    await until(lambda: "public.tasks_old is shown, which was watched as public.tasks" in (relay.feed.problem or ""))
    problem = relay.feed.problem or ""
    database.execute("insert into tasks_old (id, title) values ('old', 'O')")
    while "old" not in client.tasks:
        await client.receive()

    run(database, problem, "unwatch")
    run(database, problem, " watch public.tasks ")
    await until(lambda: relay.feed.problem is None)
    database.execute("insert into tasks (id, title) values ('new', 'N')")
    while "new" not in client.tasks:
        await client.receive()
    assert client.tasks.keys() == {"new"}
    assert database.fetch("select table_name, hidden, order_by from relay.watched") == [
        ("tasks", ["description"], ["title desc nulls last"])
    ]


@pytest.mark.usefixtures("inspects_often")
async def test_going_on_with_the_renamed_table_is_one_command(database: Database, relay: Relay) -> None:
    database.execute(SWAPPED)
    await until(lambda: "another table has that name" in (relay.feed.problem or ""))
    run(database, relay.feed.problem or "", " watch public.tasks_old")
    await until(lambda: relay.feed.problem is None)
    assert database.fetch("select watched_as from relay.watched") == [("public.tasks_old",)]


@pytest.mark.usefixtures("inspects_often")
async def test_table_that_was_dropped_for_another_of_its_name_is_a_problem(database: Database, relay: Relay) -> None:
    """As tools do that copy a table; one that is only dropped leaves nothing to show."""
    database.execute("create table other (id int primary key, board_id text not null, lane text not null)")
    database.execute("select relay.watch('other')")
    await until(lambda: relay.feed.problem is None)
    database.execute(SWAPPED.replace("commit", "drop table tasks_old; commit"))
    said = "public.tasks is another table than the one that was watched"
    await until(lambda: said in (relay.feed.problem or ""))
    database.execute("select relay.watch('other'); insert into tasks (id, title) values ('a', 'A')")
    async with Relay(database.dsn).running() as late, Client.to(late.url) as client:
        assert await client.subscribe("default") == ("board.sync", {"lanes": ANY})
        assert client.tasks == {}
        await until(lambda: said in (late.feed.problem or ""))
    run(database, relay.feed.problem or "", " watch public.tasks")
    await until(lambda: relay.feed.problem is None)
    orphans = "select proname from pg_proc where proname ~ '^(journal|entry)_[0-9]+$'"
    assert len(database.fetch(orphans)) == 2 * len(database.fetch("select from relay.watched"))


@pytest.mark.usefixtures("inspects_often")
@pytest.mark.parametrize("goes_on", [True, False], ids=["the renamed table", "the other"])
async def test_lanes_whose_name_another_table_took_are_a_problem_until_somebody_decides(
    database: Database, relay: Relay, goes_on: bool
) -> None:
    """Rows of the other table are no lanes, and tasks in them on no board, however many are written."""
    database.execute("create table lists (no int primary key, board text, label text, open bool default true)")
    database.execute("create table cards (id int primary key, list_id int); insert into lists values (1, 'b', 'One')")
    database.execute(
        "select relay.lanes('lists', 'no', 'board', 'label', '{label desc}', 'open');"
        "select relay.watch('cards', lane_column => 'list_id', lanes => 'lists', id_prefix => 'c')"
    )
    async with Client.to(relay.url) as client:
        await client.subscribe("b")
        database.execute(SWAPPED.replace("tasks", "lists"))
        database.execute("insert into lists values (2, 'b', 'Two'); insert into cards values (1, 1), (2, 2)")
        await until(lambda: "public.lists_old has the lanes, which was declared as" in (relay.feed.problem or ""))
        problem = relay.feed.problem or ""
        if goes_on:
            run(database, problem, "lanes public.lists_old")
        else:
            run(database, problem, "lanes public.lists ")
            run(database, problem, "watch public.cards")
        await until(lambda: relay.feed.problem is None)
        while client.tasks.keys() != ({"c1"} if goes_on else {"c1", "c2"}):
            await client.receive()


async def test_only_renamed_table_is_followed_without_a_word(
    database: Database, relay: Relay, client: Client
) -> None:
    database.execute("alter table tasks rename to jobs")
    database.execute("insert into jobs (id, title) values ('a', 'A')")
    while "a" not in client.tasks:
        await client.receive()
    assert relay.feed.problem is None


# Each kind of DDL, as docs/migrations.md has it

SYNCED = {
    "add column": "alter table tasks add column extra int default 1",
    "type": "alter table tasks alter column estimated_hours type double precision",
    "label": "alter type mood rename value 'good' to 'fine'",
    "new label": "alter type mood add value 'great'",
    "cast": "create function to_json(mood) returns json language sql as 'select null::json';"
    "create cast (mood as json) with function to_json(mood)",
    "default": "alter table tasks alter column status set default 'x'",
    "not null": "alter table tasks alter column status set not null",
    "rename column": "alter table tasks rename column status to state",
    "drop column": "alter table tasks drop column state",
    "trigger off": "alter table tasks disable trigger relay_change",
}
"""In this order."""

SILENT = {
    "index": "create index on tasks (title)",
    "check": "alter table tasks add check (title <> '')",
    "comment": "comment on column tasks.title is 'said of it'",
    "vacuum full": "vacuum full tasks",
    "cluster": "cluster tasks using tasks_pkey",
    "statistics": "alter table tasks set (fillfactor = 90)",
    "trigger of a user": "create function f() returns trigger language plpgsql as 'begin return new; end';"
    "create trigger f before insert on tasks for each row execute function f()",
    "rename": "alter table tasks rename to jobs",
}
"""In this order."""


@pytest.fixture
async def moody(database: Database) -> AsyncIterator[Client]:
    """Yield a client of a table that has an enum."""
    database.execute("create type mood as enum ('good'); alter table tasks add mood mood default 'good'")
    database.execute("vacuum full tasks")  # which changes the catalog once, after a default came
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        yield client


async def test_change_of_the_shape_is_a_sync(database: Database, moody: Client) -> None:
    """Within two seconds, with the reason, even if nobody writes."""
    database.execute(SYNCED["new label"])
    async with asyncio.timeout(2):
        assert [kind for kind, _ in await moody.receive_batch()] == ["board.sync"]
    assert moody.reason == "schema_changed"


@pytest.mark.usefixtures("moody")
def test_ddl_that_changes_what_clients_hold_changes_the_shape(database: Database) -> None:
    for case, statement in SYNCED.items():
        before = shape(database)
        database.execute(statement)
        assert shape(database) != before, case


def shape(database: Database) -> object:
    return database.fetch("select relay.shape()")


REWRITING = {
    "ids": "alter table tasks alter id type text using 'new-' || id",
    "values": "alter table tasks alter title type text using upper(title)",
    "renamed": "alter table tasks rename description to details",
    "default": "alter table tasks add weight int default 7",
    "generated": "alter table tasks add size int generated always as (length(title)) stored",
    "dropped": "alter table tasks drop weight, drop size",
    "label": "alter type mood rename value 'good' to 'fine'",
    "cast": "create function to_json(mood) returns json language sql as $$ select json '1' $$;"
    "create cast (mood as json) with function to_json(mood)",
    "its function": "create or replace function to_json(mood) returns json language sql as $$ select json '2' $$",
    "no triggers": "begin; alter table tasks disable trigger user; update tasks set status = 'unseen';"
    "alter table tasks enable trigger user; commit",
    "detached": "alter table parts detach partition part",
    "attached": "alter table parts attach partition part for values from (0) to (10)",
}
"""What changes rows and fires no trigger for them, in this order."""


async def test_no_batch_has_half_of_a_migration(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon a row is written after it, the board comes first; and so it does to those who come back."""
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 600.0)
    monkeypatch.setattr(requests, "GATHER_SECONDS", 0.01)
    database.execute(
        "create type mood as enum ('good'); alter table tasks add mood mood default 'good';"
        "insert into tasks (id, title) values ('a', 'A');"
        "create table parts (id int primary key, board_id text, lane text) partition by range (id);"
        "create table part partition of parts for values from (0) to (10);"
        "select relay.watch('parts', distinct_ids => true); insert into parts values (1, 'default', 'todo')"
    )
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        for case, statement in REWRITING.items():
            cursor, tasks = client.cursor, client.tasks
            database.execute(statement)
            database.execute("update tasks set title = title || '.'")
            assert (case, (await client.receive_batch())[0][0]) == (case, "board.sync")
            assert client.reason == "schema_changed"
            async with Client.to(relay.url) as fresh, Client.to(relay.url) as back:
                await back.resume("default", cursor, tasks)
                await fresh.resume("default", None)
                while client.tasks != fresh.tasks:
                    assert (case, {kind for kind, _ in await client.receive_batch()}) == (case, {"task.updated"})
                assert (case, back.reason, back.tasks) == (case, "schema_changed", fresh.tasks)


async def test_row_that_comes_and_leaves_while_a_label_is_renamed_causes_a_sync(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two images differ, by a label that no row of this transaction has changed."""
    database.execute("create type mood as enum ('good'); alter table tasks add mood mood default 'good'")
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 600.0)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        with database.connect() as writer:
            writer.execute("begin; insert into tasks (id, title) values ('a', 'A')")
            database.execute("alter type mood rename value 'good' to 'fine'")
            writer.execute("delete from tasks; commit")

        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert (client.reason, client.tasks) == ("schema_changed", {})


async def test_row_that_was_written_before_a_label_was_renamed_and_committed_after_it_has_the_new_one(
    database: Database, moody: Client
) -> None:
    """Its image in the journal has the old one."""
    with database.connect() as writer:
        writer.execute("begin; insert into tasks (id, title) values ('a', 'A')")
        database.execute("alter type mood rename value 'good' to 'fine'")
        assert [kind for kind, _ in await moody.receive_batch()] == ["board.sync"]
        writer.execute("commit")

    while "a" not in moody.tasks:
        await moody.receive_batch()
    assert (moody.tasks["a"]["mood"], moody.reason) == ("fine", "schema_changed")


EXCHANGED = {
    "board": (
        "alter table tasks add column new_board text default 'other'",
        "begin; alter table tasks rename board_id to old; alter table tasks rename new_board to board_id; commit",
    ),
    "filter": (
        (
            "alter table tasks add column is_open bool default true, add column is_new bool default false;"
            "select relay.watch('tasks', filter => 'is_open')"
        ),
        "begin; alter table tasks rename is_open to old; alter table tasks rename is_new to is_open; commit",
    ),
}
"""Columns that exchange their names. A watch goes on with the same column, whatever its name."""


@pytest.mark.parametrize("case", EXCHANGED)
async def test_row_that_is_written_while_columns_exchange_their_names_and_committed_later_arrives(
    database: Database, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The trigger function took the other column for the watched one, so its entry says nothing of this board."""
    monkeypatch.setattr(schedule, "READ_SECONDS", 0.3)
    before, exchange = EXCHANGED[case]
    database.execute(before)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        with database.connect() as writer:
            database.execute(exchange)
            writer.execute("begin; savepoint s; insert into tasks (id, title) values ('a', 'A')")
            assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
            writer.execute("commit")

        while "a" not in client.tasks:
            await client.receive_batch()


async def test_columns_that_exchange_their_names_while_functions_are_repaired_are_known(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the functions would be those of the first change, and the shape that is noted that of the second."""
    monkeypatch.setattr(schedule, "READ_SECONDS", 0.1)
    before, exchange = EXCHANGED["board"]
    database.execute(before)
    load = Watches.load

    async def exchange_meanwhile(watches: Watches) -> None:
        await load(watches)
        monkeypatch.setattr(Watches, "load", load)
        await asyncio.to_thread(database.execute, exchange)

    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        monkeypatch.setattr(Watches, "load", exchange_meanwhile)
        database.execute("alter table tasks add column added int")
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        database.execute("insert into tasks (id, title) values ('a', 'A')")

        while "a" not in client.tasks:
            await client.receive_batch()


def test_shape_is_younger_than_all_transactions_that_were_open_when_it_changed(database: Database) -> None:
    """Also than those that began after the one that changed it, and so have higher ids."""
    database.execute("create type mood as enum ('good'); alter table tasks add mood mood; select from relay.epoch()")
    database.execute("select from relay.note_shape()")
    with database.connect() as ddl, database.connect() as writer:
        ddl.execute("begin; create table unwatched ()")
        writer.execute("begin; insert into tasks (id, title, mood) values ('a', 'A', 'good')")
        ddl.execute("alter type mood rename value 'good' to 'fine'; commit")
        [(younger,)] = database.fetch(
            "select shaped > %s::text::xid8 from relay.note_shape()",
            *writer.execute("select pg_current_xact_id()::text").fetchone() or (),
        )

    assert younger


async def test_row_that_was_written_between_two_renames_of_a_label_has_the_present_one(
    database: Database, moody: Client
) -> None:
    """Although the label is what it was when the shape was last compared."""
    with database.connect() as writer:
        database.execute("alter type mood rename value 'good' to 'fine'")
        writer.execute("begin; insert into tasks (id, title, mood) values ('a', 'A', 'fine')")
        database.execute("alter type mood rename value 'fine' to 'good'")
        writer.execute("commit")

    while moody.tasks.get("a", {}).get("mood") != "good":
        await moody.receive_batch()


@pytest.mark.parametrize("comes_back", [False, True], ids=["follows", "comes back"])
async def test_relay_that_starts_after_a_label_was_renamed_knows_which_rows_are_older(
    database: Database, comes_back: bool
) -> None:
    """Whether its client follows when they are committed, or comes back later with a cursor."""
    database.execute("create type mood as enum ('good'); alter table tasks add mood mood default 'good'")
    with database.connect() as writer:
        async with Relay(database.dsn).running() as relay, Client.to(relay.url) as before:
            await before.resume("default", None)
            writer.execute("begin; insert into tasks (id, title) values ('a', 'A')")
            database.execute("alter type mood rename value 'good' to 'fine'")
            await before.receive_batch()
        async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
            if comes_back:
                writer.execute("commit")
            await client.resume("default", before.cursor if comes_back else None)
            if not comes_back:
                writer.execute("commit")
            while "a" not in client.tasks:
                await client.receive_batch()
    assert (client.tasks["a"]["mood"], client.reason) == ("fine", "schema_changed")


@pytest.mark.usefixtures("compares_often")
async def test_ddl_that_changes_nothing_for_clients_is_silent(database: Database, moody: Client) -> None:
    before = shape(database)
    for case, statement in SILENT.items():
        database.execute(statement)
        ((table,),) = database.fetch("select target::regclass::text from relay.watched")
        database.execute(f"insert into {table} (title) values (%s)", case)
        assert (case, [kind for kind, _ in await moody.receive_batch()]) == (case, ["task.created"])
        assert (case, shape(database)) == (case, before)


async def test_exchange_of_the_guide_is_one_sync(database: Database, relay: Relay) -> None:
    """Whoever watches the new table in the transaction that exchanges the names leaves no gap."""
    (exchange,) = examples(MIGRATIONS, "sql")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        database.execute(exchange)
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert (client.reason, set(client.tasks)) == ("watch_changed", {"a"})
        database.execute("insert into tasks (id, title) values ('b', 'B')")
        assert [kind for kind, _ in await client.receive_batch()] == ["task.created"]
        assert relay.feed.problem is None


RETYPED = {
    "tasks": (
        (
            "create table t (id int primary key, board_id int default 7, lane text default 'x', n int default 0);"
            "insert into t values (1); select relay.watch('t')"
        ),
        "alter table t alter column board_id type ",
    ),
    "lanes": (
        (
            "create table t (id int primary key, board_id int default 7, name text, n int default 0);"
            "insert into t values (1); select relay.lanes('t', order_by => '{n}')"
        ),
        "alter table t alter column name type ",
    ),
}


@pytest.mark.parametrize("kind", RETYPED)
def test_old_session_is_still_journalled_after_columns_are_retyped(database: Database, kind: str) -> None:
    """Its session has planned how to read the column as it was."""
    make, retype = RETYPED[kind]
    database.execute(make)
    writer = database.connect()
    for new_type in ("varchar(20)", "text", "varchar(30)", "text"):
        for _ in range(7):
            writer.execute("update t set n = n + 1")
        database.execute(retype + new_type)
        database.execute("select relay.refresh()")  # as the daemon does within a second
    writer.execute("update t set n = n + 1")
    unread = "select reason from relay.entries where reason ~ 'row_unreadable'"
    assert database.fetch(unread) == []


@pytest.mark.usefixtures("inspects_often")
async def test_database_that_forbids_ddl_leaves_its_boards_current(
    database: Database, relay: Relay, client: Client
) -> None:
    """The trigger functions do not fit the table then, and all boards are read again at each change of it."""
    database.execute(
        "create function closed() returns event_trigger language plpgsql as 'begin raise ''no DDL''; end'"
    )
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("alter table tasks rename board_id to board")
    database.execute(
        "create event trigger closed on ddl_command_start when tag in ('CREATE FUNCTION') execute function closed()"
    )
    await until(lambda: "no DDL" in relay.feed.status(10).incomplete.get("schema relay", ""))
    with database.connect() as writer:
        writer.execute("update tasks set title = 'B'")
    while client.tasks.get("a", {}).get("title") != "B":
        assert (await client.receive())[0] in {"task.created", "board.sync"}
    assert relay.feed.problem is None
    assert relay.feed.status(10).counts.reconnects == 0

    database.execute("drop event trigger closed")
    await until(lambda: "schema relay" not in relay.feed.status(10).incomplete)
    database.execute("update tasks set title = 'C'")
    while (await client.receive())[0] != "task.updated":
        pass


REVOKED = (
    "revoke usage on schema relay from relay_writer, relay_reader, relay_renderer",
    "revoke insert on relay.journal from relay_writer",
    "revoke all on sequence relay.control from relay_writer",
    "revoke execute on all functions in schema relay from relay_writer, relay_reader, relay_renderer",
    "revoke select on relay.watches from relay_reader",
    "reassign owned by relay_writer, relay_reader, relay_renderer to current_user",
)


_WRONG = "select object from relay.needed_rights() where missing union all select relay.altered()::text"


@pytest.mark.usefixtures("inspects_often")
async def test_rights_that_somebody_revokes_from_the_relays_roles_are_restored(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers of watched tables fail without them. So it is with what belongs to those roles."""
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 0.05)
    await until(lambda: relay.feed.problem is None)
    for number, statement in enumerate(REVOKED):
        await asyncio.to_thread(database.execute, statement)
        await until(lambda: database.fetch(_WRONG) == [])
        await asyncio.to_thread(database.execute, "insert into tasks (id, title) values (%s, 'A')", str(number))
        while str(number) not in client.tasks:
            await client.receive()
    assert relay.feed.status(10).counts.reconnects == 0


@pytest.mark.usefixtures("inspects_often")
async def test_right_to_read_that_is_lost_is_named_before_anybody_asks_for_a_board(
    database: Database, relay: Relay
) -> None:
    """With the statement that gives it."""
    for statement in (
        "revoke select on tasks from relay_reader",
        "create schema app; alter table tasks set schema app",
    ):
        database.execute(statement)
        await until(lambda: "is read by role relay_reader" in str(relay.feed.status(10).incomplete))
        [said] = relay.feed.status(10).incomplete.values()
        database.execute(said.partition(" run: ")[2])
        await until(lambda: relay.feed.status(10).incomplete == {})


def test_relays_that_repair_at_once_wait_for_each_other(database: Database) -> None:
    """Postgres lets one of two transactions fail that replace a function, or grant a right, at once."""
    one, other = database.connect(), database.connect()
    for change in ("alter table tasks rename status to state", "revoke insert on relay.journal from relay_writer"):
        database.execute(change)
        one.execute("begin; select relay.refresh()")
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(other.execute, "select relay.refresh()")
            until_waiting = "select from pg_locks where not granted and pid = %s"
            while not waiting.done() and not database.fetch(until_waiting, other.info.backend_pid):
                pass
            one.execute("commit")
            waiting.result()
    assert database.fetch(_WRONG) == []


# Columns that are shown


async def test_column_that_comes_later_is_private_until_it_is_shown(database: Database, relay: Relay) -> None:
    """Where it was said which columns are shown: also a renamed one keeps what it was."""
    database.execute("select relay.watch('tasks', shown => '{title}')")
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        database.execute(
            "begin; alter table tasks add column salary int default 7;"
            "insert into tasks (id, title) values ('a', 'A'); update tasks set salary = 8; commit"
        )
        while "a" not in client.tasks:
            await client.receive()
        assert client.tasks["a"].keys() == {"id", "boardId", "lane", "title"}
        database.execute("update tasks set salary = 9")
        assert {kind for kind, _ in await client.until_last(database)} <= {"board.sync"}
        assert "salary" not in str(database.fetch("select j::text from relay.journal j"))

        database.execute("alter table tasks rename title to heading")
        while "heading" not in client.tasks["a"]:
            await client.receive()
        database.execute("alter table tasks add column title text default 'secret'")
        async with Client.to(relay.url) as fresh:
            await fresh.subscribe("default")
            assert fresh.tasks["a"].keys() == {"id", "boardId", "lane", "heading"}

        database.execute("select relay.watch('tasks', hidden => '{salary}')")
        while "createdAt" not in client.tasks["a"]:
            await client.receive()
        assert "salary" not in client.tasks["a"]


def test_hidden_and_shown_are_one_or_the_other(database: Database) -> None:
    with pytest.raises(Exception, match="found both hidden and shown"):
        database.execute("select relay.watch('tasks', hidden => '{title}', shown => '{title}')")
    with pytest.raises(Exception, match="has no column 'nothing' to show"):
        database.execute("select relay.watch('tasks', shown => '{nothing}')")

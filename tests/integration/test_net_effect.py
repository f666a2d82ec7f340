"""A transaction is described by its net effect, whatever it did: functions, triggers, rewrites, savepoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests import writes
from tests.integration.client import Client, Message
from tests.integration.conftest import Relay
from tests.servers import Database, Server
from tests.writes import Script, Writes

BOARDS: Final = ("default", "other")
LANES: Final = ("backlog", "todo", "done")

LONGEST_SECONDS: Final = 1.0
"""How long the relay's loop may work for one thing; what it really takes is a fraction of it."""

Row = dict[str, Any]
Rows = dict[str, Row]
"""All rows of the watched tables by their ids, as clients see them."""

Effects = Mapping[str, Mapping[str, list[Message]]]
"""The messages of each task of each board, in order."""


class World:
    """The tables, a session that writes them, and a plain and a resumable client of each board."""

    def __init__(self, database: Database, relay: Relay, tables: Sequence[str]) -> None:
        self._tables = tables
        self.writer = writes.connect(database.dsn)
        self._side = writes.connect(database.dsn, autocommit=True, options="-c lock_timeout=1s")
        self._side.execute("set timezone = 'UTC'")
        self._relay = relay
        self._clients: list[tuple[str, bool, Client]] = []
        self._connections = contextlib.AsyncExitStack()
        self._marks = 0
        self._agree = False

    async def close(self) -> None:
        await self._connections.aclose()
        self.writer.close()
        self._side.close()

    def rows(self) -> Rows:
        """Read the tables, as clients should see them."""
        query = " union all ".join(f"select row_to_json(r)::text from {table} r" for table in self._tables)
        found = self._side.execute(query.encode())
        return {row["id"]: row for (text,) in found for row in [_as_seen(json.loads(text))]}

    async def follow(self) -> None:
        """Have clients that hold the tables, new ones if the last comparison failed."""
        if self._agree:
            return
        await self._connections.aclose()
        self._clients = []
        for board in BOARDS:
            for resumable in (False, True):
                client = await self._connections.enter_async_context(Client.to(self._relay.url))
                await (client.resume(board, None) if resumable else client.subscribe(board))
                self._clients.append((board, resumable, client))

    async def run(self, work: Script | str | Callable[[], None]) -> None:
        """Run a transaction, and hold all clients to the difference that it made."""
        self._agree = False
        before = self.rows()
        # In a thread, because it may need to lock a table that the relay reads.
        await asyncio.to_thread(self._transact, work)
        await self._compare(before, self.rows())
        self._agree = True

    def _transact(self, work: Script | str | Callable[[], None]) -> None:
        try:
            if isinstance(work, str):
                self.writer.execute(work.encode())
            elif isinstance(work, Script):
                with contextlib.suppress(*writes.TOLERATED), self.writer.transaction():
                    work.run(self.writer, self.elsewhere)
            else:
                work()
            self.writer.commit()
        finally:
            self.writer.rollback()

    def elsewhere(self, statement: str) -> None:
        """Run a statement in another session."""
        self._side.execute(statement.encode())

    async def _compare(self, before: Rows, after: Rows) -> None:
        self._marks += 1
        mark = f"mark-{self._marks}"
        await asyncio.to_thread(
            self._side.execute,
            "with gone as (delete from marks) "
            "insert into marks select board || %s, board, 'done' from unnest(%s::text[]) board",
            (mark, list(BOARDS)),
        )
        expected = difference(before, after)
        for board, resumable, client in self._clients:
            messages = []
            while board + mark not in client.tasks:
                messages += await client.receive_batch() if resumable else [await client.receive()]
            assert by_task(messages) == expected.get(board, {})
            assert tasks_of(client) == {key: row for key, row in after.items() if row["boardId"] == board}


def _as_seen(row: Row) -> Row:
    row.pop("secret", None)
    names = {
        "board_id": "boardId",
        "estimated_hours": "estimatedHours",
        "created_at": "createdAt",
        "updated_at": "updatedAt",
    }
    return {names.get(column, column): value for column, value in row.items()}


def tasks_of(client: Client) -> Rows:
    return {key: row for key, row in client.tasks.items() if "mark-" not in key}


def by_task(messages: Iterable[Message]) -> dict[str, list[Message]]:
    """Sort messages by the task that they are about, a board.sync for itself; the marks are left out."""
    found: dict[str, list[Message]] = defaultdict(list)
    for kind, data in messages:
        name = data.get("id", kind)
        if "mark-" not in name:
            found[name].append((kind, data))
    return dict(found)


def difference(before: Rows, after: Rows) -> Effects:
    """Derive the messages of a transaction from what the tables held before and hold after."""
    effects: dict[str, dict[str, list[Message]]] = defaultdict(dict)
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old and new and old["boardId"] == new["boardId"]:
            if messages := _updated(old, new):
                effects[new["boardId"]][key] = messages
            continue
        if old:
            effects[old["boardId"]][key] = [("task.deleted", {"id": key})]
        if new:
            effects[new["boardId"]][key] = [("task.created", new)]
    return effects


def _updated(old: Row, new: Row) -> list[Message]:
    changes = {column: value for column, value in new.items() if value != old[column]}
    moved = "lane" in changes
    messages = [("task.moved", {"id": new["id"], "fromLane": old["lane"], "toLane": new["lane"]})] if moved else []
    if len(changes) > moved:
        messages.append(("task.updated", {"id": new["id"], "changes": changes}))
    return messages


@contextlib.asynccontextmanager
async def _world(database: Database, relay: Relay, *tables: str) -> AsyncIterator[World]:
    database.execute("create table marks (id text primary key, board_id text, lane text)")
    database.execute("select relay.watch('marks', distinct_ids => true)")
    world = World(database, relay, tables)
    try:
        await world.follow()
        yield world
    finally:
        await world.close()


@pytest.fixture
async def world(database: Database, relay: Relay) -> AsyncIterator[World]:
    """Yield a world of the tasks table alone, which no trigger changes."""
    database.execute("drop trigger tasks_set_updated_at on tasks")
    async with _world(database, relay, "tasks") as world:
        yield world


@pytest.fixture
async def wild(database: Database, relay: Relay) -> AsyncIterator[World]:
    """Yield a world of two tables, with all that `writes` puts on them."""
    database.execute(writes.SCHEMA)
    async with _world(database, relay, *writes.TABLES) as world:
        yield world


class Busiest:
    """How long the loop worked for one thing before it came to the next, at most: seconds of CPU time.

    Not of the clock, which also counts what other programs do meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.thread_time()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Busiest]:
        task = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            task.cancel()
            self._note()  # what ended just now may have kept the task from its turn

    async def _watch(self) -> None:
        while True:
            self._note()
            await asyncio.sleep(0.01)

    def _note(self) -> None:
        now = time.thread_time()
        self.seconds, self._since = max(self.seconds, now - self._since), now


# Any transaction

_BEGINNING: Final = """
    select set_config('writes.plan', '', true);
    delete from steps;
    delete from tasks;
    insert into tasks (id, board_id, title) values
        ('t0', 'default', 'x'), ('t1', 'default', 'x'), ('t2', 'other', 'x'), ('t3', 'other', 'y');
    insert into steps (id, task, board_id, lane, title) values
        ('s0', 't0', 'default', 'todo', 'x'), ('s1', 't0', null, 'todo', 'x'), ('s3', 't2', 'other', null, null);
"""
"""What each random transaction begins with; that is a transaction of its own, held to the difference as well."""


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=False))
async def test_any_transaction_is_described_by_the_difference_that_it_made(
    server: Server, wild: World, chance: random.Random
) -> None:
    """Clients are sent what changed from before to after, each task once, and hold the tables."""
    await wild.follow()
    await wild.run(_BEGINNING)
    script = _writes(server, chance).script()
    note(script)
    await wild.run(script)


async def test_any_large_transaction_is_described_by_the_difference_that_it_made(server: Server, wild: World) -> None:
    """What is true of a few rows is true of thousands."""
    drawn = _writes(server, random.Random("large"))
    await wild.run(_BEGINNING + "insert into tasks (id, title) select 'm' || i, 'x' from generate_series(1, 1500) i")
    for _ in range(8):
        await wild.run(drawn.script())


def _writes(server: Server, chance: random.Random) -> Writes:
    return Writes(
        chance,
        version=server.version_num,
        tasks=5,
        boards=BOARDS,
        lanes=LANES,
        settings=["session_replication_role = replica"],
    )


# Transactions that were once described wrongly

_BUMP: Final = """
    create function bump(key text) returns text language plpgsql as $$
    begin
        update tasks set priority = 'inner' where id = key;
        return key;
    end $$
"""


async def test_function_in_returning_that_updates_the_same_rows_leaves_clients_with_the_table(
    database: Database, world: World
) -> None:
    """Of a row that a statement updated, and then a function which it called, the last value is sent, once."""
    await world.run("insert into tasks (id, title) select 'r' || i, 'x' from generate_series(1, 3000) i")
    database.execute(_BUMP)

    await world.run("update tasks set priority = 'outer' returning bump(id)")

    assert {row["priority"] for row in world.rows().values()} == {"inner"}


async def test_function_in_an_insert_that_updates_the_row_before_leaves_clients_with_the_table(
    database: Database, world: World
) -> None:
    """Rows that a function updated while others were yet to be inserted are created as they are in the end."""
    database.execute(_BUMP)

    await world.run(
        "insert into tasks (id, title, priority) select 'n' || i, 'x', bump('n' || (i - 1)) "
        "from generate_series(1, 3000) i"
    )

    assert [row["priority"] for row in world.rows().values()].count("inner") == 2999


_AGAIN: Final = """
    create function again(key text) returns text language plpgsql as $$
    begin
        update tasks set title = title where id = key;
        update tasks set priority = 'last' where id = key;
        return key;
    end $$
"""


async def test_updates_that_change_nothing_hide_nothing_of_those_that_do(database: Database, world: World) -> None:
    """Between two updates, and inside a function, a row may be updated to what it is."""
    await world.run("insert into tasks (id, title) values ('a', 'A')")
    database.execute(_AGAIN)

    await world.run(
        "update tasks set priority = 'first'; update tasks set title = title; "
        "update tasks set priority = 'second' returning again(id)"
    )

    assert world.rows()["a"]["priority"] == "last"


async def test_row_that_a_trigger_deletes_and_inserts_again_is_updated_once(database: Database, world: World) -> None:
    """A trigger that fires before the relay's may replace the row, with updates to what it is in between."""
    await world.run("insert into tasks (id, title) values ('a', 'A')")
    database.execute("""
        create function replace() returns trigger language plpgsql as $$
        begin
            update tasks set title = title where id = new.id;
            with gone as (delete from tasks where id = new.id returning *)
                insert into tasks select * from gone;
            update tasks set title = title where id = new.id;
            update tasks set priority = 'last' where id = new.id;
            return null;
        end $$;
        create trigger a_replace after update on tasks for each row
            when (old.priority <> new.priority and new.priority = 'first')
            execute function replace();
    """)

    await world.run("update tasks set priority = 'first'; update tasks set title = 'B'")

    assert world.rows()["a"]["priority"] == "last"


@pytest.mark.timeout(20)  # A relay that followed the places in a circle would take a hundred megabytes a second.
async def test_table_that_is_rewritten_until_versions_share_a_place_stops_nothing(
    database: Database, world: World
) -> None:
    """A version of a row may come to stand where an earlier one of the same transaction stood."""
    database.execute("drop index tasks_board")
    await world.run(
        "insert into tasks (id, title) values ('0', 'x'), ('dead', 'x'), ('dead2', 'x'), ('z', 'x'), ('zz', 'x')"
    )
    await world.run("delete from tasks where id like 'dead%'")

    def place() -> str:
        return str(world.writer.execute("select ctid from tasks where id = 'a'").fetchall())

    def cycle() -> None:
        world.writer.execute("insert into tasks (id, title) values ('a', '1')")
        first = place()
        world.elsewhere("vacuum (index_cleanup on) tasks")
        world.writer.execute("update tasks set title = '2' where id = 'a'")
        world.writer.execute("cluster tasks using tasks_pkey")
        while place() != first:
            world.writer.execute("update tasks set title = '3' where id = 'a'")
        world.writer.execute("update tasks set title = title where id = 'a'")
        world.writer.execute("update tasks set title = 'last' where id = 'a'")

    async with Busiest().watching() as busiest:
        await world.run(cycle)

    assert world.rows()["a"]["title"] == "last"
    assert busiest.seconds < LONGEST_SECONDS


async def test_table_that_is_rewritten_between_updates_leaves_clients_with_the_table(world: World) -> None:
    """A table may become unlogged and logged again in a transaction, and all rows stand elsewhere each time."""
    await world.run("insert into tasks (id, title) select 'r' || i, 'x' from generate_series(1, 20) i")

    async with Busiest().watching() as busiest:
        await world.run(
            "update tasks set title = '1'; alter table tasks set unlogged; update tasks set title = title; "
            "update tasks set title = '2' where id > 'r15'; delete from tasks where id = 'r1'; "
            "alter table tasks set logged; update tasks set title = title; update tasks set title = 'last'"
        )

    assert {row["title"] for row in world.rows().values()} == {"last"}
    assert busiest.seconds < LONGEST_SECONDS


async def test_many_updates_of_one_row_stop_nobody(database: Database, world: World) -> None:
    """Ten thousand updates of a row, half of them to what it is, cost the loop no long while."""
    await world.run("insert into tasks (id, title) values ('a', 'A'), ('p', 'P'), ('q', 'Q')")
    database.execute("""
        create function touch() returns trigger language plpgsql as $$
        begin
            update tasks set title = 'touched' where id = 'q';
            return null;
        end $$;
        create trigger touch after update on tasks for each row when (new.id = 'p') execute function touch();
    """)

    async with Busiest().watching() as busiest:
        await world.run("""
            do $$ begin
                for i in 1..5000 loop
                    update tasks set title = 'n' || i where id = 'a';
                    update tasks set title = title where id = 'a';
                end loop;
                update tasks set title = 'p2' where id = 'p';
            end $$
        """)

    assert world.rows()["a"]["title"] == "n5000"
    assert busiest.seconds < LONGEST_SECONDS


async def test_many_changes_of_a_key_stop_nobody(world: World) -> None:
    """A row that gets ten thousand ids, one after the other, leaves under the first and appears under the last."""
    await world.run("insert into tasks (id, title) values ('k0', 'K')")

    async with Busiest().watching() as busiest:
        await world.run("""
            do $$ begin
                for i in 1..10000 loop
                    update tasks set id = 'k' || i where id = 'k' || (i - 1);
                    update tasks set title = title where id = 'k' || i;
                end loop;
            end $$
        """)

    assert list(world.rows()) == ["k10000"]
    assert busiest.seconds < LONGEST_SECONDS

"""Boards that cannot be read, or only slowly: a fault of theirs, and of no other."""

from __future__ import annotations

import asyncio
from typing import LiteralString

import pytest
from psycopg.rows import TupleRow

from relay.model.snapshot import Snapshot
from relay.postgres import boards, connection, requests, session
from relay.postgres.connection import SETTINGS, YOUNG_SETTINGS, Connection
from relay.postgres.feed import Feed
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.proxy import Proxy
from tests.servers import Database

OTHER = """
    create table other (id int primary key, board_id int not null, lane text not null, title text);
    insert into other values (1, 7, 'todo', 'one');
    select relay.watch('other');
"""
"""Has boards of integers, which boards of names have no rows in."""

SLOW = """
    create type mood as enum ('good');
    create function to_json(mood) returns json language plpgsql as $$ begin
        perform pg_sleep(60); return to_json('good'::text); end $$;
    create cast (mood as json) with function to_json(mood);
    alter table other add column mood mood default 'good';
"""
"""Has their reads take a minute."""

QUICK = "create or replace function to_json(mood) returns json language sql as $$ select to_json('good'::text) $$"

SLEEPS = "select from pg_stat_activity where wait_event = 'PgSleep'"


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have boards that could not be read be read again soon."""
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.2)


def health(relay: Relay) -> tuple[str | None, dict[str, str]]:
    """Tell what a relay says of itself: its problem, and the boards that cannot be read."""
    status = relay.feed.status(10)
    return status.problem, dict(status.failing)


@pytest.mark.usefixtures("quick_retries")
async def test_board_whose_table_is_locked_fails_alone_and_comes_when_it_can(database: Database) -> None:
    """Its subscribers get an error, once, and then the board; health names the table and who holds it."""
    database.execute(OTHER)
    holder = database.connect()
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as one, Client.to(relay.url) as other:
        await other.subscribe("default")
        with holder.transaction():
            holder.execute("lock table other in access exclusive mode")
            await one.send({"type": "subscribe", "boardId": "7"})
            kind, data = await one.receive()
            assert (kind, data["code"], data["boardId"]) == ("error", "board_unavailable", "7")
            assert "process" not in data["message"]

            await until(lambda: bool(health(relay)[1]))
            problem, failing = health(relay)
            assert problem is None
            assert f"other is locked by process {holder.info.backend_pid}" in failing["7"]
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert (await other.receive())[0] == "task.created"
            async with Client.to(relay.url) as third:
                assert (await third.subscribe("default"))[0] == "board.sync"
        kind, data = await one.receive()
        assert (kind, [task["id"] for task in data["lanes"]["todo"]]) == ("board.sync", [1])
        assert health(relay) == (None, {})


NOTES = """
    create table notes (id int primary key, board_id text not null, lane text not null, title text);
    insert into notes values (1, 'noted', 'todo', 'one');
    select relay.watch('notes');
"""
"""Has boards of names, as the table of tasks has."""


@pytest.mark.usefixtures("quick_retries")
async def test_board_without_a_row_of_a_locked_table_is_read_while_its_journal_says_so(database: Database) -> None:
    """Only boards that may have one fail, also those of which nobody knows: those are read when the lock is gone."""
    database.execute(NOTES)
    holder = database.connect()
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as one, Client.to(relay.url) as other:
        await one.subscribe("default")
        with holder.transaction():
            holder.execute("lock table notes in access exclusive mode")
            await other.send({"type": "subscribe", "boardId": "noted"})
            assert (await other.receive())[1]["code"] == "board_unavailable"
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert (await one.receive())[0] == "task.created"
            async with Client.to(relay.url) as third:
                await third.subscribe("default")
                assert set(third.tasks) == {"a"}
            await one.send({"type": "subscribe", "boardId": "unknown"})
            assert (await one.receive())[1]["code"] == "board_unavailable"
            assert health(relay)[1].keys() == {"noted", "unknown"}
            holder.execute("insert into notes values (2, 'default', 'todo', 'two')")
        while not one.tasks.keys() >= {2, "a"}:
            await one.receive()
        assert (await other.receive())[0] == "board.sync"
        with holder.transaction():
            holder.execute("lock table notes in access exclusive mode")
            async with Client.to(relay.url) as late:
                await late.send({"type": "subscribe", "boardId": "default"})
                assert (await late.receive())[1]["code"] == "board_unavailable"


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("breaks", "repairs"),
    [
        ("revoke select on notes from relay_reader", "grant select on notes to relay_reader"),
        ("alter table notes enable row level security", "alter table notes disable row level security"),
    ],
)
async def test_board_without_a_row_of_a_table_that_may_not_be_read_goes_on(
    database: Database, breaks: str, repairs: str
) -> None:
    """As where that table is locked: one that may have a row there fails, and names the right."""
    database.execute(NOTES)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as one, Client.to(relay.url) as other:
        await one.subscribe("default")
        await other.subscribe("noted")
        await asyncio.to_thread(database.execute, breaks)
        database.execute("select relay.probe('later')")
        await other.send({"type": "subscribe", "boardId": "noted"})
        assert (await other.receive())[1]["code"] == "board_unavailable"
        async with Client.to(relay.url) as third:
            assert (await third.subscribe("default"))[0] == "board.sync"
        assert health(relay)[1].keys() == {"noted"}
        await asyncio.to_thread(database.execute, repairs)
        assert (await other.receive())[0] == "board.sync"


def test_lock_on_a_partition_does_not_block_the_view_of_all_tables(database: Database) -> None:
    """What is watched, and its shape."""
    database.execute("create table parted (id int primary key, board_id int, lane text) partition by range (id)")
    database.execute(
        "create table part partition of parted for values from (0) to (10); select relay.watch('parted')"
    )
    holder = database.connect()
    with holder.transaction():
        holder.execute("lock table part in access exclusive mode")
        database.execute("set lock_timeout = '100ms'; select from relay.watched; select relay.shape()")
        database.execute("select relay.altered(), relay.refresh()")


@pytest.mark.usefixtures("quick_retries")
async def test_lock_queue_is_named(database: Database) -> None:
    """The processes that wait in front, and for whom."""
    database.execute(OTHER)
    reader, changer = database.connect(), database.connect()
    reader.execute("begin; select from other")
    pids = reader.info.backend_pid, changer.info.backend_pid
    alter = asyncio.create_task(asyncio.to_thread(changer.execute, "alter table other add column x int"))
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and query like 'alter%%'"
        await until(lambda: bool(database.fetch(waits)))
        await client.send({"type": "subscribe", "boardId": "7"})
        assert (await client.receive())[1]["code"] == "board_unavailable"
        await until(lambda: "waits for" in health(relay)[1].get("7", ""))
        assert "locked by process {1} (postgres), which waits for process {0}".format(*pids) in health(relay)[1]["7"]
        reader.execute("rollback")
        assert (await client.receive())[0] == "board.sync"
    await alter


LACKS = {
    "select": (
        "revoke select on other from relay_reader",
        "grant select on public.other to relay_reader",
    ),
    "row security": (
        "alter table other enable row level security",
        "alter role relay_reader bypassrls",
    ),
}


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("lack", LACKS)
async def test_board_that_may_not_be_read_says_which_grant_is_missing(database: Database, lack: str) -> None:
    """Lost after the table was watched; what health says to run heals it."""
    breaks, fix = LACKS[lack]
    database.execute(OTHER)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        database.execute(breaks)
        await client.send({"type": "subscribe", "boardId": "7"})
        assert (await client.receive())[1]["code"] == "board_unavailable"
        await until(lambda: bool(health(relay)[1]))
        assert health(relay)[1]["7"].endswith(fix)

        database.execute(fix if lack == "select" else "alter table other disable row level security")
        assert (await client.receive())[0] == "board.sync"
        assert health(relay) == (None, {})


@pytest.mark.usefixtures("quick_retries")
async def test_board_that_takes_too_long_fails_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are read meanwhile, and it is read again."""
    monkeypatch.setattr(requests, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(requests, "READ_SECONDS", 0.5)
    database.execute(OTHER + SLOW)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as slow, Client.to(relay.url) as quick:
        await slow.send({"type": "subscribe", "boardId": "7"})
        await until(lambda: bool(database.fetch(SLEEPS)))
        assert (await quick.subscribe("default"))[0] == "board.sync"
        assert (await slow.receive())[1]["code"] == "board_unavailable"
        assert health(relay) == (None, {"7": "canceling statement due to statement timeout"})

        database.execute(QUICK)
        assert (await slow.receive())[0] == "board.sync"


async def test_boards_known_to_be_slow_leave_room_for_all_others(database: Database) -> None:
    """However many there are: they wait in a queue of their own."""
    database.execute(OTHER + "insert into other select n, n, 'todo' from generate_series(10, 39) n;" + SLOW)
    relay = Relay(database.dsn)
    assert isinstance(relay.feed, Feed)
    for number in range(10, 40):
        relay.feed._boards._queue.is_slow(str(number))  # noqa: SLF001  # as after a read that took long
    async with relay.running(), Client.to(relay.url) as slow, Client.to(relay.url) as quick:
        for number in range(10, 40):
            await slow.send({"type": "subscribe", "boardId": str(number)})
        await until(lambda: bool(database.fetch(SLEEPS)))
        assert (await quick.subscribe("default"))[0] == "board.sync"
        assert len(database.fetch(SLEEPS)) == 1


async def test_new_slow_boards_of_one_client_leave_room_for_the_board_of_another(database: Database) -> None:
    """However many there are: clients take turns, and what takes long is left to the one that reads slow boards."""
    database.execute(OTHER + "insert into other select n, n, 'todo' from generate_series(10, 99) n;" + SLOW)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as slow, Client.to(relay.url) as quick:
        for number in range(10, 100):
            await slow.send({"type": "subscribe", "boardId": str(number)})
        await until(lambda: len(database.fetch(SLEEPS)) >= boards.SIDE_BY_SIDE - 1)
        assert (await quick.subscribe("default"))[0] == "board.sync"  # one after another, it would take too long


PRESETS = {
    "statement_timeout": "'1ms'",
    "idle_session_timeout": "'50ms'",
    "idle_in_transaction_session_timeout": "'1ms'",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_deferrable": "on",
    "enable_indexscan": "off",
    "lock_timeout": "'1ms'",
    "search_path": "'pg_temp'",
    "row_security": "on",
    "transaction_timeout": "'10ms'",  # within which a session can be set up
    "restrict_nonsystem_relation_kind": "'view'",
}


async def test_what_a_database_presets_does_not_reach_the_relay(database: Database) -> None:
    """Nor does it when it is set while the relay runs, and the relay connects again."""
    assert PRESETS.keys() <= {*SETTINGS, *YOUNG_SETTINGS}
    ((own,),) = database.fetch("select current_database()")
    for name, value in PRESETS.items():
        if database.fetch("select current_setting(%s, true)", name) != [(None,)]:  # if this server has it
            database.execute(f'alter database "{own}" set {name} = {value}')
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        await asyncio.sleep(0.2)  # longer than all of these limits
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert (await client.receive())[0] == "task.created"
        assert (await client.subscribe("default"))[0] == "board.sync"
        assert relay.feed.status(10).counts.reconnects == 0


async def test_board_that_is_on_its_way_holds_nothing(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that takes nothing of a large board, because it is frozen or cut off, keeps no lock and no snapshot."""
    database.execute(
        "insert into tasks (id, title) select 't' || i, repeat('T', 1000) from generate_series(1, 5000) i"
    )
    plain = Connection.rows
    stranded = asyncio.Event()

    async def then_stranded(self: Connection, query: bytes | LiteralString, *parameters: object) -> list[TupleRow]:
        if str(query).startswith("b'fetch 2000") and not stranded.is_set():
            proxy.strand()
            stranded.set()
        return await plain(self, query, *parameters)

    monkeypatch.setattr(Connection, "rows", then_stranded)
    async with Relay(proxy.through(database.dsn)).running() as relay, Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "default"})
        await stranded.wait()
        relays = "select from pg_stat_activity where application_name = 'relay'"
        assert database.fetch(relays)
        assert database.fetch(f"{relays} and (backend_xmin is not null or state like 'idle in%%')") == []
        database.execute("set lock_timeout = '100ms'; alter table tasks add column x int")
        kind, data = await client.receive()
        assert (kind, sum(map(len, data["lanes"].values()))) == ("board.sync", 5000)


async def test_a_client_that_comes_while_a_board_is_read_for_others_that_left_lacks_nothing(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read that began before is not theirs: what was committed after it would be missing."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    plain = boards.Boards.read
    began: list[asyncio.Event] = []

    async def held_up(self: boards.Boards, name: str, seconds: float) -> tuple[Snapshot, bytes]:
        found = await plain(self, name, seconds)
        if name == "default":
            began.append(asyncio.Event())
            await began[-1].wait()
        return found

    monkeypatch.setattr(boards.Boards, "read", held_up)
    async with Client.to(relay.url) as other, Client.to(relay.url) as late:
        await other.subscribe("other")
        async with Client.to(relay.url) as first:
            await first.send({"type": "subscribe", "boardId": "default"})
            await until(lambda: len(began) == 1)
        await until(lambda: "default" not in relay.hub)
        database.execute("insert into tasks (id, title) values ('b', 'B')")
        await other.until_last(database, "other")
        await late.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: "default" in relay.hub)
        await asyncio.sleep(0.1)  # a second read would begin now
        began[0].set()
        await until(lambda: len(began) == 2)
        await asyncio.sleep(0.1)  # the first would be taken for it
        began[1].set()
        assert (await late.receive())[0] == "board.sync"
        assert set(late.tasks) == {"a", "b"}


async def test_link_that_dies_while_it_is_opened_to_read_a_board_is_noticed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of no use to any board, and watched by nobody yet: the relay connects again."""
    monkeypatch.setattr(connection, "START_SECONDS", 0.5)
    opened = 0

    async def third_is_dead(conninfo: str) -> Connection:
        nonlocal opened
        opened += 1
        if opened == 3:
            await asyncio.Event().wait()
        return await connection.connect(conninfo)

    monkeypatch.setattr(session, "connect", third_is_dead)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        assert (await client.subscribe("default"))[0] == "board.sync"
        assert relay.feed.status(10).counts.reconnects == 1

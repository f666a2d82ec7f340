"""The daemon through faults of its own machine: frozen, its clock set, and more at once than is usual."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.support import Client, Relays, task_ids, until
from tests.servers import Database

MANY = 30_000


def insert(database: Database, *names: str, board: str = "default") -> None:
    for name in names:
        database.execute("insert into tasks (id, board_id, title) values (%s, %s, 'T')", name, board)


def fill(database: Database) -> None:
    """Put many tasks on the board, which takes less time while nobody watches."""
    database.execute("select relay.unwatch('tasks')")
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, %s) i", MANY)
    database.execute("select relay.watch('tasks')")


async def test_set_clock_is_not_noticed(
    database: Database, relay: Relays, library_that_fakes_time: Path, tmp_path: Path
) -> None:
    """When the daemon's clock is set a month ahead and a year back, changes flow and no client is dropped."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    daemon = await relay(
        database.dsn,
        LD_PRELOAD=str(library_that_fakes_time),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        DONT_FAKE_MONOTONIC="1",
        WS_HEARTBEAT="100",
        LOG_LEVEL="debug",
    )
    async with Client.to(daemon) as client:
        await client.subscribe()
        for number, shift in enumerate(("+30d", "-365d", "+0")):
            clock.write_text(shift)
            insert(database, str(number))
            assert (await client.receive())["data"]["id"] == str(number)
            await daemon.healthy()
    await until(lambda: daemon.log("websocket.close"), "the end of the connection")

    times = [datetime.fromisoformat(line["timestamp"]) for line in daemon.log()]
    assert (max(times) - min(times)).days in {394, 395}
    assert daemon.log("websocket.dropped") == []
    assert daemon.log("feed.problem") == []


@pytest.mark.timeout(180)
async def test_board_and_transaction_of_many_tasks_arrive_whole(database: Database, relay: Relays) -> None:
    """A board of 30,000 tasks comes in one sync, others' changes come meanwhile, and one update of all follows."""
    fill(database)
    daemon = await relay(database.dsn)
    async with Client.to(daemon) as client, Client.to(daemon) as other:
        await other.subscribe("other")
        await client.send_subscribe()
        insert(database, "x", board="other")
        assert (await other.receive())["data"]["id"] == "x"
        sync = await client.receive()

        await asyncio.to_thread(database.execute, "update tasks set title = 'U' where board_id = 'default'")
        asyncio.get_running_loop().set_debug(False)  # or it would note where each of the many reads was made
        received = [await client.receive() for _ in range(MANY)]
        insert(database, "y", board="other")
        assert (await other.receive())["data"]["id"] == "y"

    names = {f"t{number + 1}" for number in range(MANY)}
    assert len(task_ids(sync)) == MANY
    assert set(task_ids(sync)) == names
    assert {message["type"] for message in received} == {"task.updated"}
    assert {message["data"]["id"] for message in received} == names
    assert daemon.log("websocket.dropped") == []


async def test_open_transaction_holds_up_nobody(database: Database, relay: Relays) -> None:
    """Beside a transaction that stays open writers' changes arrive at once; its own arrive when it commits, once."""
    daemon = await relay(database.dsn)
    with database.connect() as old:
        old.execute("begin")
        old.execute("insert into tasks (id, title) values ('old', 'T')")
        async with Client.to(daemon) as client:
            await client.subscribe()
            for batch in range(20):
                names = [f"{batch}-{number}" for number in range(25)]
                await asyncio.to_thread(insert, database, *names)
                received = await client.receive_until(id=names[-1])
                assert [message["data"]["id"] for message in received] == names
            old.execute("commit")
            message = await client.receive()
            assert (message["type"], message["data"]["id"]) == ("task.created", "old")
            insert(database, "last")

            assert (await client.receive())["data"]["id"] == "last"


async def test_an_old_open_transaction_does_not_slow_reading_down(database: Database, relay: Relays) -> None:
    """However long a transaction has been open, the daemon reads what is new and not all that came since it began."""
    daemon = await relay(database.dsn)
    batches, size = 40, 25
    with database.connect() as old:
        old.execute("begin")
        old.execute("insert into tasks (id, title) values ('old', 'T')")
        async with Client.to(daemon) as client:
            await client.subscribe()
            for batch in range(batches):
                names = [f"{batch}-{number}" for number in range(size)]
                await asyncio.to_thread(insert, database, *names)
                await client.receive_until(id=names[-1])
        await daemon.stop()
        await until(
            lambda: not sessions(database), "the end of the daemon's sessions, with which they tell statistics"
        )
        [(read,)] = database.fetch(
            "select (select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes "
            "        where schemaname = 'relay' and relname like 'journal%') "
            "     + (select coalesce(sum(seq_tup_read), 0) from pg_stat_user_tables "
            "        where schemaname = 'relay' and relname like 'journal%')"
        )

    # Each row once, and the open transaction's at every poll; reading all since it began would be twenty times that.
    assert batches * size <= read <= 4 * batches * size


def sessions(database: Database) -> list[tuple[Any, ...]]:
    return database.fetch(
        "select pid from pg_stat_activity where application_name = 'relay' and datname = current_database()"
    )


IMPATIENT = """
from relay.postgres import connection
frozen = f"'{connection.FROZEN_SECONDS:.0f}s'"
connection.SETTINGS = {name: "'1s'" if value == frozen else value for name, value in connection.SETTINGS.items()}
from relay.commands.cli import main
main()
"""
"""A relay whose sessions end after one second in which it does nothing, in place of ten."""


async def test_frozen_relay_lets_go_of_the_tables_that_it_reads(database: Database, relay: Relays) -> None:
    """A migration that waits for a relay which stands still goes on: Postgres itself ends the relay's transaction."""
    database.execute("""
        create type mood as enum ('good');
        create function to_json(mood) returns json language plpgsql as $$ begin
            perform pg_sleep(0.5); return to_json('good'::text); end $$;
        create cast (mood as json) with function to_json(mood);
        insert into tasks (id, title) values ('a', 'A');
        alter table tasks add column mood mood default 'good';
    """)
    daemon = await relay(database.dsn, program=[sys.executable, "-c", IMPATIENT])
    async with Client.to(daemon) as client:
        board = asyncio.create_task(client.subscribe())
        reads = "select from pg_stat_activity where wait_event = 'PgSleep' and application_name = 'relay'"
        await until(lambda: database.fetch(reads), "a board that is being read")
        daemon.signal(signal.SIGSTOP)
        try:
            locks = "select from pg_locks where relation = 'tasks'::regclass and mode = 'AccessShareLock'"
            assert database.fetch(locks)
            await asyncio.to_thread(database.execute, "set lock_timeout = '10s'; alter table tasks add column x int")
            held = "select from pg_stat_activity where application_name = 'relay' and backend_xmin is not null"
            await until(lambda: not database.fetch(held), "a relay that holds no snapshot")
        finally:
            daemon.signal(signal.SIGCONT)
        assert task_ids(await board) == ["a"]

"""Notifications: sent when changes are few, spared while relays poll, never where they could do harm."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from relay.postgres import schedule
from relay.postgres.embedded import EmbeddedPostgres
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import MUTE, PAUSE, UNMUTE, Database, Postgres, install


@pytest.fixture
def listener(database: Database) -> Iterator[psycopg.Connection]:
    """Yield a connection that is notified as a relay is."""
    with database.connect() as connection:
        connection.execute("listen relay")
        database.execute("select relay.poll_for(0)")
        yield connection


def notified(listener: psycopg.Connection, database: Database) -> list[str]:
    """Return the payloads that have come so far."""
    database.execute("select pg_notify('relay', 'end')")
    found: list[str] = []
    for notify in listener.notifies(timeout=20):
        if notify.payload == "end":
            return found
        found.append(notify.payload)
    pytest.fail("the end did not come")


def insert(database: Database, task: str) -> None:
    database.execute("insert into tasks (id, title) values (%s, 'T')", task)


POLLING = '{"polling": true}'


def test_triggers_do_not_notify_while_relays_poll(database: Database, listener: psycopg.Connection) -> None:
    """From the promise on they are silent, and they notify again when it is over."""
    insert(database, "a")
    assert notified(listener, database) == [""]
    database.execute("select relay.poll_for(2000)")
    insert(database, "b")
    database.execute("select relay.poll_for(2000)")  # because it may take a second to lock the table
    database.execute("truncate tasks; select relay.resync()")
    assert notified(listener, database) == [POLLING]
    database.execute(UNMUTE)
    insert(database, "c")
    database.execute("truncate tasks")
    assert notified(listener, database) == ["", ""]


def test_triggers_notify_nobody_if_no_relay_has_run_for_long(
    database: Database, listener: psycopg.Connection
) -> None:
    """Nobody would make them stop if commits wait for each other. A probe tells them that there is a relay."""
    for number, age_seconds in enumerate((100, 1000, 800)):
        database.execute("select relay.set_control(false, 0, %s)", -age_seconds * 1000)
        insert(database, f"t{number}")
        database.execute("select relay.resync()")
    assert notified(listener, database) == ["", "", "", ""]
    database.execute("select relay.set_control(false, 0, -1000000); select relay.probe('x')")
    insert(database, "last")
    assert notified(listener, database) == ['{"probe" : "x"}', ""]


def test_a_transaction_notifies_once(database: Database, listener: psycopg.Connection) -> None:
    """However many rows it wrote."""
    database.execute("insert into tasks (title) select 'T' from generate_series(1, 1000)")
    assert notified(listener, database) == [""]


def test_a_promise_that_goes_on_notifies_nobody(database: Database, listener: psycopg.Connection) -> None:
    """Only its beginning must be known to the other relays."""
    for _ in range(3):
        database.execute("select relay.poll_for(2000)")
    assert notified(listener, database) == [POLLING]


def test_a_promise_is_for_two_seconds_at_most_and_never_shortened(database: Database) -> None:
    """One that promises too much, or less than another, does no harm."""
    database.execute("select relay.poll_for(100000)")
    [(longest,)] = database.fetch("select relay.polled_for()")
    assert 0 < longest <= 2000
    before = database.fetch("select last_value from relay.control")
    database.execute("select relay.poll_for(1)")
    assert database.fetch("select last_value from relay.control") == before


def test_a_promise_to_poll_from_before_the_clock_was_set_back_does_not_count(
    database: Database, listener: psycopg.Connection
) -> None:
    """What lies further ahead than a relay may promise does not count."""
    database.execute("select relay.set_control(false, 0, 3600000)")
    assert database.fetch("select relay.polled_for()") == [(0,)]
    insert(database, "a")
    assert notified(listener, database) == [""]


def test_a_promise_to_poll_neither_ends_a_pause_nor_hides_the_number_of_pauses(database: Database) -> None:
    """One number says both."""
    database.execute(PAUSE)
    database.execute("select relay.poll_for(2000)")
    assert database.fetch("select relay.paused(), relay.pauses(), relay.polled_for()") == [(True, 1, 0)]
    database.execute("select relay.epoch()")
    assert database.fetch("select relay.resume()") == [(True,)]
    database.execute("select relay.poll_for(2000)")
    assert database.fetch("select relay.pauses(), relay.polled_for() > 0") == [(2, True)]


async def test_silent_changes_reach_the_clients_of_every_relay(database: Database) -> None:
    """Two relays, of which neither made the promise, poll while it lasts."""
    async with (
        Relay(database.dsn).running() as one,
        Relay(database.dsn).running() as other,
        Client.to(one.url) as first,
        Client.to(other.url) as second,
    ):
        await first.subscribe("default")
        await second.subscribe("default")
        database.execute("select relay.poll_for(2000)")
        for number in range(20):
            insert(database, f"t{number}")
        for client in (first, second):
            while len(client.tasks) < 20:
                assert (await client.receive())[0] == "task.created"


async def test_busy_relay_polls_and_loses_nothing(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small transactions have it promise to poll, and every change arrives once."""
    monkeypatch.setattr(schedule, "BUSY_TRANSACTIONS", 20)
    number = 0
    while database.fetch("select relay.polled_for()") == [(0,)]:
        insert(database, f"t{number}")
        number += 1
        await asyncio.sleep(0)  # the relay runs in this loop
    for more in range(50):
        insert(database, f"t{number + more}")

    await client.until_last(database)
    assert len(client.tasks) == number + 51
    assert relay.feed.problem is None


async def test_transaction_that_commits_after_the_promise_is_found(
    database: Database, relay: Relay, client: Client
) -> None:
    """It notified nobody, for relays polled when it wrote, and commits when they no longer do."""
    writer = database.connect()
    database.execute(MUTE)
    writer.execute("begin; insert into tasks (id, title) values ('late', 'T')")
    database.execute(UNMUTE)
    writer.execute("commit")

    assert (await client.receive())[1]["id"] == "late"
    assert relay.feed.problem is None


async def test_prepared_transactions_reach_clients() -> None:
    """Where two-phase commit is enabled triggers never notify, and what was prepared comes when it is committed.

    Even after a crash, which it outlives, but its entries in the journal do not.
    """
    with Postgres(settings={"max_prepared_transactions": "2"}) as server:
        install(server.dsn)
        with Database(server.dsn) as database:
            async with Relay(server.dsn).running() as relay, Client.to(relay.url) as client:
                await client.subscribe("default")
                database.execute("begin")
                insert(database, "prepared")
                database.execute("prepare transaction 'p'")
                insert(database, "other")
                assert (await client.receive())[1]["id"] == "other"
                database.execute("commit prepared 'p'")
                assert (await client.receive())[1]["id"] == "prepared"

                database.execute("begin")
                insert(database, "kept")
                database.execute("prepare transaction 'q'")
                database.close()
                await asyncio.to_thread(server.stop, "immediate")
                await asyncio.to_thread(server.start)
                assert (await client.receive())[0] == "board.sync"
                assert "kept" not in client.tasks
                database.execute("commit prepared 'q'")
                assert (await client.receive())[0] == "board.sync"
                assert "kept" in client.tasks


def fill_queue_and_write(database: Database) -> None:
    """Send notifications until the queue is full, and write tasks meanwhile."""
    for number in itertools.count():
        insert(database, f"t{number}")
        database.execute("select pg_notify('other', repeat(md5(random()::text), 200))")


def test_full_notification_queue_fails_no_writer(own_server: EmbeddedPostgres) -> None:
    """Long before the queue is full triggers are silent, and writers go on when others' notifications fail."""
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("the size of the queue can be set from Postgres 17 on")
        connection.execute("alter system set max_notify_queue_pages = 64")
    own_server.stop()
    own_server.start()
    install(own_server.dsn)
    with Database(own_server.dsn) as database, database.connect() as idle:
        database.execute("select relay.poll_for(0)")
        idle.execute("listen relay")
        idle.execute("begin; select 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            fill_queue_and_write(database)
        insert(database, "after")
        idle.execute("commit")
        received = [notify.payload for notify in idle.notifies(timeout=1)]

    assert 0 < len(received) < 64


def _insert_and_wait_for(synchronous_commit: str, dsn: str, task: str) -> None:
    with psycopg.connect(dsn, autocommit=True, application_name=task) as connection:
        connection.execute(f"set synchronous_commit = {synchronous_commit}".encode())
        connection.execute("insert into tasks (id, title) values (%s, 'T')", [task])


async def test_relay_polls_where_commits_that_notify_wait_for_each_other(own_server: EmbeddedPostgres) -> None:
    """One that waits, here for a standby, holds up no more than those that were about to commit."""
    dsn = own_server.dsn
    await asyncio.to_thread(install, dsn)
    with Database(dsn) as database, ThreadPoolExecutor() as threads:

        def waits(task: str, event: str) -> bool:
            return (
                database.fetch(
                    "select wait_event from pg_stat_activity where application_name = %s and wait_event = %s",
                    task,
                    event,
                )
                != []
            )

        async with Relay(dsn).running() as relay:
            await until(lambda: relay.feed.problem is None)
            database.execute("alter system set synchronous_standby_names = 'none'")
            database.execute("select pg_reload_conf()")
            try:
                await until(lambda: database.fetch("show synchronous_standby_names") == [("none",)])
                writes = [threads.submit(_insert_and_wait_for, "on", dsn, "first")]
                await until(lambda: waits("first", "SyncRep"))
                writes += [threads.submit(_insert_and_wait_for, "off", dsn, "second")]
                await until(lambda: waits("second", "object"))
                await until(lambda: database.fetch("select relay.polled_for() > 0") == [(True,)])
                await asyncio.to_thread(_insert_and_wait_for, "off", dsn, "third")

                assert [write.done() for write in writes] == [False, False]
            finally:
                database.execute("alter system reset synchronous_standby_names")
                database.execute("select pg_reload_conf()")


async def test_forged_notifications_do_nothing(database: Database, client: Client) -> None:
    """Whatever anybody sends on the channel, the relay reads the journal, and passes on what it finds."""
    for payload in ("", "x", "[]", '{"probe" : "x"}', '{"polling": true}', "\u0001" * 1000):
        database.execute("select pg_notify('relay', %s)", payload)

    assert await client.until_last(database) == []

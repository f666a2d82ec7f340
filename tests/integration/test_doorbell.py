"""The doorbell: rung when changes come seldom, spared when relays are awake, silent where it could hurt."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator

import psycopg
import pytest

from relay import feed
from relay.embedded import EmbeddedPostgres
from tests.integration.client import Client
from tests.integration.conftest import Relay
from tests.servers import Database, install


@pytest.fixture
def listener(database: Database) -> Iterator[psycopg.Connection]:
    """Yield a connection that hears the doorbell."""
    with database.connect() as connection:
        connection.execute("listen relay")
        yield connection


def rings(listener: psycopg.Connection, database: Database) -> list[object]:
    """Return what was heard so far."""
    database.execute("select pg_notify('relay', '\"end\"')")
    heard: list[object] = []
    for notify in listener.notifies(timeout=20):
        if (payload := json.loads(notify.payload)) == "end":
            return heard
        heard.append(payload)
    pytest.fail("the end was not heard")


def insert(database: Database, task: str) -> None:
    database.execute("insert into tasks (id, title) values (%s, 'T')", task)


def test_nobody_rings_while_relays_are_awake(database: Database, listener: psycopg.Connection) -> None:
    """From the promise on triggers are silent, and they ring again when it is over."""
    ring = {"board": "default", "table": "public.tasks"}
    insert(database, "a")
    assert rings(listener, database) == [ring]
    database.execute("select relay.stay_awake(2000)")
    insert(database, "b")
    assert rings(listener, database) == [{"awake": True}]
    database.execute("select setval('relay.awake', 0)")
    insert(database, "c")
    assert rings(listener, database) == [ring]


def test_a_promise_that_goes_on_rings_nobody(database: Database, listener: psycopg.Connection) -> None:
    """Only its beginning must be known to the others."""
    for _ in range(3):
        database.execute("select relay.stay_awake(2000)")
    assert rings(listener, database) == [{"awake": True}]


def test_a_promise_is_for_two_seconds_at_most_and_never_shortened(database: Database) -> None:
    """Whoever promises too much, or less than another, does no harm."""
    database.execute("select relay.stay_awake(100000)")
    [(longest,)] = database.fetch("select relay.awake_for()")
    assert 0 < longest <= 2000
    before = database.fetch("select last_value from relay.awake")
    database.execute("select relay.stay_awake(1)")
    assert database.fetch("select last_value from relay.awake") == before


def test_a_promise_from_before_the_clock_was_set_back_is_none(
    database: Database, listener: psycopg.Connection
) -> None:
    """What lies further ahead than anybody may promise is not believed."""
    database.execute("select setval('relay.awake', (extract(epoch from clock_timestamp()) * 1000)::bigint + 3600000)")
    assert database.fetch("select relay.awake_for()") == [(0,)]
    insert(database, "a")
    assert rings(listener, database) == [{"board": "default", "table": "public.tasks"}]


async def test_silent_changes_reach_the_clients_of_every_relay(database: Database) -> None:
    """Two relays, of which neither made the promise, look by themselves while it lasts."""
    async with (
        Relay(database.dsn).running() as one,
        Relay(database.dsn).running() as other,
        Client.to(one.url) as first,
        Client.to(other.url) as second,
    ):
        await first.subscribe("default")
        await second.subscribe("default")
        database.execute("select relay.stay_awake(2000)")
        for number in range(20):
            insert(database, f"t{number}")
        for client in (first, second):
            while len(client.tasks) < 20:
                assert (await client.receive())[0] == "task.created"


async def test_busy_relay_stays_awake_and_loses_nothing(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small transactions have it promise to look by itself, and every change arrives once."""
    monkeypatch.setattr(feed, "BUSY_TRANSACTIONS", 20)
    promised = "select 1 from relay.awake where last_value > 0"
    number = 0
    while not database.fetch(promised):
        insert(database, f"t{number}")
        number += 1
        await asyncio.sleep(0)  # the relay runs in this loop
    for more in range(50):
        insert(database, f"t{number + more}")

    await client.until_last(database)
    assert len(client.tasks) == number + 51
    assert relay.feed.problem is None


async def test_who_commits_after_the_promise_is_found(database: Database, relay: Relay, client: Client) -> None:
    """A transaction that was silent, for relays were awake, and commits when they no longer are."""
    writer = database.connect()
    database.execute("select relay.stay_awake(2000)")
    writer.execute("begin; insert into tasks (id, title) values ('late', 'T')")
    database.execute("select setval('relay.awake', 0)")
    writer.execute("commit")

    assert (await client.receive())[1]["id"] == "late"
    assert relay.feed.problem is None


async def test_prepared_transactions_reach_clients() -> None:
    """Where two-phase commit is enabled nobody rings, and what was prepared is told when it is committed."""
    with EmbeddedPostgres(settings={"max_prepared_transactions": "1"}) as server:
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


def fill_queue_and_write(database: Database) -> None:
    """Send notifications until the queue is full, and write tasks meanwhile."""
    for number in itertools.count():
        insert(database, f"t{number}")
        database.execute("select pg_notify('other', repeat(md5(random()::text), 200))")


def test_full_notification_queue_fails_no_writer(own_server: EmbeddedPostgres) -> None:
    """Long before the queue is full nobody rings any more, and writers go on when others' notifications fail."""
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("the size of the queue can be set from Postgres 17 on")
        connection.execute("alter system set max_notify_queue_pages = 64")
    own_server.stop()
    own_server.start()
    install(own_server.dsn)
    with Database(own_server.dsn) as database, database.connect() as idle:
        idle.execute("listen relay")
        idle.execute("begin; select 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            fill_queue_and_write(database)
        insert(database, "after")
        idle.execute("commit")
        heard = [notify.payload for notify in idle.notifies(timeout=1)]

    assert 0 < len(heard) < 64


async def test_forged_rings_do_nothing(database: Database, client: Client) -> None:
    """Whoever may connect may ring, with whatever words; the relay looks, and tells what it finds."""
    for payload in ("", "x", "[]", '{"board": "default"}', '{"awake": true}', "\u0001" * 1000):
        database.execute("select pg_notify('relay', %s)", payload)

    assert await client.until_last(database) == []

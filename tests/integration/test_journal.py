"""The journal's own promises: it stays small, it stops by itself, and nobody falls into the crack."""

from __future__ import annotations

import re

import psycopg
import pytest

from relay.session import _SINCE, PART_CHANGES
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database

SEVERAL = "insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 200) i"


def journalled(database: Database) -> int:
    """Count the journal's entries."""
    return int(database.fetch("select count(*) from relay.journal where op <> 'S'")[0][0])


def is_paused(database: Database) -> bool:
    return bool(database.fetch("select relay.paused()")[0][0])


def fill(database: Database) -> None:
    """Write until the journal is full and journalling has paused."""
    database.execute("update relay.settings set stop_bytes = 400000")
    while not is_paused(database):
        database.execute("update tasks set title = title || '.'")
    database.execute("update relay.settings set stop_bytes = 400000000")


def test_pruning_gives_the_space_back(database: Database) -> None:
    """What is old enough goes with the files that held it, not just row by row."""
    database.execute(SEVERAL)
    before = database.fetch("select sum(relay.slot_bytes(slot)) from relay.slots")[0][0]
    freed = database.fetch("select relay.prune('0')")[0][0]

    assert freed == before > 0
    assert journalled(database) == 0
    assert database.fetch("select sum(pg_table_size('relay.journal_' || slot)) from relay.slots")[0][0] <= 4 * 16384


def test_sustained_writes_leave_no_bloat(database: Database) -> None:
    """The journal stays below what is to be kept, give or take a slot, however much is written."""
    database.execute("update relay.settings set keep_bytes = 800000")
    database.execute(SEVERAL)
    for _ in range(30):
        database.execute("update tasks set title = title || '.'")
        database.execute("select relay.prune()")

        assert database.fetch("select sum(relay.slot_bytes(slot)) from relay.slots")[0][0] < 1_200_000


def test_age_keeps_what_is_younger(database: Database) -> None:
    """Changes that were committed a moment ago stay, whatever prunes."""
    database.execute(SEVERAL)
    for _ in range(3):
        database.execute("select relay.prune('1 hour')")

    assert journalled(database) == 200


def test_pruning_waits_for_no_writer(database: Database) -> None:
    """A slot that a running transaction has written to is left until that one ends."""
    database.execute(SEVERAL)
    writer = database.connect()
    writer.execute("begin; update tasks set title = 'W' where id = 't1'")
    database.execute("set statement_timeout = '5s'")
    assert database.fetch("select relay.prune('0')") == [(0,)]
    assert journalled(database) == 200
    writer.execute("update tasks set title = 'X' where id = 't2'; commit")
    database.execute("select relay.prune('0')")

    assert journalled(database) == 0


def test_writer_waits_for_no_pruning(database: Database) -> None:
    """While a prune is not yet committed, writers go on in another slot."""
    database.execute(SEVERAL)
    pruner = database.connect()
    pruner.execute("begin")
    pruner.execute("select relay.prune('0')")
    database.execute("set lock_timeout = '1s'")
    database.execute("update tasks set title = 'W' where id = 't1'")
    pruner.execute("rollback")

    assert journalled(database) == 201


def test_pruning_refuses_an_old_snapshot(database: Database) -> None:
    """In REPEATABLE READ the horizon would rise to a moment that is long over."""
    pruner = database.connect()
    pruner.execute("begin isolation level repeatable read")

    with pytest.raises(psycopg.Error, match="found isolation level repeatable read, expected read committed"):
        pruner.execute("select relay.prune()")


def test_horizon_lets_a_transaction_pass_that_is_still_running(database: Database) -> None:
    """A reader that has seen all but a running transaction goes on after a prune; one that has seen less does not."""
    database.execute(SEVERAL)
    early = database.fetch("select pg_current_snapshot()")[0][0]
    running = database.connect()
    running.execute("begin; select pg_current_xact_id()")
    database.execute("update tasks set title = 'U' where id = 't1'")
    late = database.fetch("select pg_current_snapshot()")[0][0]
    database.execute("select relay.prune('0')")
    covers = "select pg_visible_in_snapshot({}, %s) from relay.horizon".format(
        "(pg_snapshot_xmax(seen)::text::bigint - 1)::text::xid8"
    )

    assert journalled(database) == 0
    assert database.fetch(covers, early) == [(False,)]
    assert database.fetch(covers, late) == [(True,)]
    running.execute("rollback")


def test_full_journal_stops_growing(database: Database) -> None:
    """Past the limit nothing more is journalled, and writers go on."""
    database.execute(SEVERAL)
    fill(database)
    entries = journalled(database)
    database.execute("update tasks set title = 'U'")
    database.execute("truncate tasks")

    assert journalled(database) == entries
    assert database.fetch("select count(*) from tasks") == [(0,)]


async def test_pause_is_ended_by_a_relay_and_told(database: Database) -> None:
    """What was not journalled is in the board that everybody is sent, and changes flow again."""
    database.execute(SEVERAL)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        fill(database)
        database.execute("update tasks set title = 'unseen' where id = 't1'")
        kind = ""
        while kind != "board.sync" or client.tasks["t1"]["title"] != "unseen":
            kind, _ = await client.receive()
        database.execute("update tasks set title = 'seen' where id = 't1'")
        await client.until_last(database)

        assert client.tasks["t1"]["title"] == "seen"
        await until(lambda: relay.feed.problem is None)


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_transaction_across_the_end_of_a_pause_is_told(database: Database, level: str) -> None:
    """A transaction that skipped its entries during the pause, and commits after it, is told by a sync."""
    database.execute(SEVERAL)
    fill(database)
    writer = database.connect()
    writer.execute(f"begin isolation level {level}")
    writer.execute("update tasks set title = 'unseen' where id = 't1'")
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        assert client.tasks["t1"]["title"] != "unseen"
        writer.execute("update tasks set title = 'seen' where id = 't2'")
        writer.execute("commit")

        assert (await client.receive())[0] == "board.sync"
        assert (client.tasks["t1"]["title"], client.tasks["t2"]["title"]) == ("unseen", "seen")


async def test_old_snapshot_sees_the_pause_and_its_end(database: Database) -> None:
    """A REPEATABLE READ transaction from before the pause skips while it lasts and journals when it is over."""
    database.execute(SEVERAL)
    writer = database.connect()
    writer.execute("begin isolation level repeatable read; select from tasks limit 1")
    other = database.connect()
    other.execute("select nextval('relay.pauses')")
    assert is_paused(database)
    entries = journalled(database)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        writer.execute("update tasks set title = 'seen' where id = 't1'")
        writer.execute("commit")
        kind, data = await client.receive()

    assert entries == 200
    assert (kind, data["changes"]["title"]) == ("task.updated", "seen")


async def test_cut_short_end_of_a_pause_is_done_again(database: Database, relay: Relay, client: Client) -> None:
    """Journalling that goes on while nobody has been told of the pause is still a broken continuity."""
    database.execute(SEVERAL)
    await client.until_last(database)
    database.execute("select nextval('relay.pauses')")
    database.execute("update tasks set title = 'unseen' where id = 't1'")
    breaker = database.connect()
    breaker.execute("begin; select relay.resume(); rollback")
    kind = ""
    while kind != "board.sync":
        kind, _ = await client.receive()

    assert client.tasks["t1"]["title"] == "unseen"
    await until(lambda: relay.feed.problem is None)


async def test_long_transaction_costs_reading_nothing(database: Database, relay: Relay, client: Client) -> None:
    """The entries of a transaction that stays open are not looked through again with each batch."""
    long = database.connect()
    long.execute("begin; insert into tasks (id, title) select 'l' || i, 'L' from generate_series(1, 20000) i")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    position = relay.feed._position  # noqa: SLF001  # what the next batch is read from
    assert position is not None
    assert position.xip
    reader = database.connect()
    reader.execute("set enable_seqscan = off")
    parameters = [str(position.xmax), [str(xid) for xid in position.xip], PART_CHANGES + 1]
    rows = reader.execute(b"explain (analyze, timing off) " + _SINCE.encode(), parameters).fetchall()
    long.execute("rollback")
    found = [int(float(match[1])) for (line,) in rows if (match := re.search(r"Scan.*actual rows=([0-9.]+)", line))]

    assert found
    assert sum(found) < 100


def test_slot_that_nobody_wrote_in_counts_as_new(database: Database) -> None:
    """After days without a change, the first one is neither old nor overdue."""
    database.execute("select relay.prune('0', 1)")  # what relay.watch wrote
    database.execute("update relay.slots set opened_at = opened_at - interval '3 days'")
    database.execute("select relay.prune()")
    database.execute("insert into tasks (id, title) values ('a', 'A')")

    ((oldest, overdue),) = database.fetch("select oldest_seconds, overdue_seconds from relay.vitals()")
    assert 0 < oldest < 600
    assert overdue == 0

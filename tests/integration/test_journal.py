"""The journal's own promises: it stays small, it stops by itself, and no change falls into a crack."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable

import psycopg
import pytest

from relay.model.snapshot import Snapshot
from relay.postgres import follower, housekeeping, schedule
from relay.postgres.connection import Connection
from relay.postgres.feed import Feed
from relay.postgres.journal import _SINCE, PART_CHANGES, Batch
from relay.postgres.session import Session
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database, Postgres, install

SEVERAL = "insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 200) i"

WIDE = "update tasks set description = (select string_agg(md5(i::text), '') from generate_series(1, 200) i)"
"""Too wide for one block."""


@pytest.fixture
def database(database: Database) -> Database:
    """Return a database that a relay has been connected to."""
    database.execute("select relay.epoch()")
    return database


def journalled(database: Database) -> int:
    """Count the journal's entries."""
    return int(database.fetch("select count(*) from relay.journal where op = 'R'")[0][0])


def file_bytes(database: Database) -> int:
    return int(database.fetch("select pg_total_relation_size('relay.journal')")[0][0])


def is_paused(database: Database) -> bool:
    return bool(database.fetch("select relay.paused()")[0][0])


def snapshot(database: Database) -> Snapshot:
    return Snapshot.parse(database.fetch("select pg_current_snapshot()::text")[0][0])


def horizon(database: Database) -> Snapshot:
    return Snapshot.parse(database.fetch("select seen::text from relay.horizon")[0][0])


def prune(database: Database, arguments: str = "'0'") -> int:
    """Prune until nothing more goes; return how many entries went."""
    total = 0
    while gone := database.fetch(f"select relay.prune({arguments})")[0][0]:
        total += int(gone)
    return total


def vacuum(database: Database) -> None:
    """Vacuum until nothing deleted is left: another's snapshot, like that of autovacuum's analyze, may hold it up."""
    dead = True
    while dead:
        database.execute("vacuum relay.journal")
        dead = database.fetch("select pg_stat_get_dead_tuples('relay.journal'::regclass) > 0")[0][0]


def age(database: Database, interval: str) -> None:
    """Have everything that was committed by now be older."""
    database.execute("select relay.tick(relay.place())")
    database.execute("update relay.ticks set at = at - %s::interval", interval)


def pause(database: Database) -> None:
    """Have journalling pause, as when the file is full."""
    database.execute("select relay.set_control(true, relay.pauses() + 1, 0)")


def fill(database: Database, bytes_: int = 400_000) -> None:
    """Write until the journal is full and journalling has paused."""
    database.execute(f"update relay.settings set stop_bytes = {bytes_}")
    with database.connect() as writer:  # which tells its statistics when it ends
        while not is_paused(database):
            writer.execute("update tasks set title = md5(random()::text)")


# Pruning --------------------------------------------------------------------------------------------------------


def test_prune_deletes_what_is_old_and_keeps_what_is_younger(database: Database) -> None:
    """Entries go by the time when they were committed, to the last of them."""
    database.execute(SEVERAL)
    age(database, "2 hours")
    database.execute("update tasks set title = 'U' where id < 't2'")
    young = journalled(database) - 200
    assert prune(database, "'3 hours'") == 0
    assert prune(database, "'1 hour'") == 200

    assert journalled(database) == young > 0


def test_prune_of_many_entries_ends_only_with_the_last(database: Database) -> None:
    """Each call deletes a limited number; called until it returns 0, it has deleted all that are due."""
    database.execute("insert into tasks (id, title) select 'm' || i, 'T' from generate_series(1, 45000) i")
    age(database, "2 hours")
    database.execute(SEVERAL)
    database.execute("select relay.tick(relay.place())")

    assert prune(database, "'1 hour'") == 45000
    assert journalled(database) == 200


def test_prune_by_size_keeps_the_youngest(database: Database) -> None:
    """Whatever their age, the oldest entries go when there are more bytes of younger ones than are to be kept."""
    database.execute("update relay.settings set keep_bytes = 1")
    sizes = []
    for _ in range(6):
        database.execute("insert into tasks (title) select 'T' from generate_series(1, 100)")
        database.execute("select relay.tick(relay.place())")
        sizes.append(int(database.fetch("select bytes from relay.ticks order by at desc limit 1")[0][0]))
    prune(database, f"'1 hour', {sum(sizes[-2:]) + 1}")

    assert journalled(database) == 300


def test_prune_is_bounded_by_what_is_running(database: Database) -> None:
    """What an open transaction wrote, or was committed after it began, is never below the horizon."""
    database.execute(SEVERAL)
    writer = database.connect()
    writer.execute("begin; update tasks set title = 'W' where id = 't1'")
    database.execute("update tasks set title = 'U' where id = 't2'")
    database.execute("set statement_timeout = '5s'")  # it waits for nobody
    assert prune(database) == 200
    writer.execute("update tasks set title = 'X' where id = 't3'; commit")

    assert journalled(database) == 3
    assert prune(database) == 3


def test_nobody_waits_for_a_prune(database: Database) -> None:
    """While one is not yet committed, writers go on, readers see what there was, and another prune does nothing."""
    database.execute(SEVERAL)
    pruner = database.connect()
    pruner.execute("begin; select relay.prune('0')")
    database.execute("set statement_timeout = '2s'")
    database.execute("update tasks set title = 'W' where id = 't1'")
    assert prune(database) == 0
    assert journalled(database) == 201
    pruner.execute("commit")

    assert journalled(database) == 1


@pytest.mark.parametrize("function", ["prune", "resume"])
def test_old_snapshot_is_refused(database: Database, function: str) -> None:
    """In REPEATABLE READ the horizon would rise to a moment that is long over."""
    pruner = database.connect()
    pruner.execute("begin isolation level repeatable read")

    with pytest.raises(psycopg.Error, match="found isolation level repeatable read, expected read committed"):
        pruner.execute(f"select relay.{function}()".encode())


def test_horizon_lets_pass_only_positions_that_have_seen_all_that_went(database: Database) -> None:
    """Also one that is before a transaction which still runs; not one that is before what was pruned."""
    early = snapshot(database)
    database.execute(SEVERAL)
    running = database.connect()
    running.execute("begin; select pg_current_xact_id()")
    database.execute("update tasks set title = 'U' where id = 't1'")
    late = snapshot(database)
    assert late.xip
    assert prune(database) == 200

    assert late.covers(horizon(database))
    assert not early.covers(horizon(database))
    running.execute("rollback")


def test_pruned_and_vacuumed_file_stays_bounded(database: Database) -> None:
    """What is deleted makes room for what comes, wide rows included; the file neither grows on nor is cut short.

    To cut it short takes a lock that, on a standby, cancels who reads there.
    """
    database.execute(SEVERAL)
    sizes: list[int] = []
    for _ in range(12):
        database.execute(WIDE + " || random()")
        assert prune(database) == 200 + 200 * (not sizes)
        full = file_bytes(database)
        vacuum(database)
        sizes.append(file_bytes(database))
        assert sizes[-1] >= full

    assert sizes[-1] < 1.5 * sizes[2]


def test_truncate_of_the_journal_is_refused(database: Database) -> None:
    """Readers with an older snapshot would see an empty journal, and never learn what they missed."""
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="must not be truncated") as refused:
        database.execute("truncate relay.journal")
    database.execute(str(refused.value.diag.message_primary).rpartition("use ")[2])


def test_first_change_after_days_is_neither_old_nor_overdue(database: Database) -> None:
    """Although the journal was not pruned meanwhile, for there was nothing in it."""
    database.execute(SEVERAL)
    age(database, "3 days")
    vitals = "select oldest_seconds, overdue_seconds from relay.vitals()"
    ((oldest, overdue),) = database.fetch(vitals)
    assert (oldest, overdue) == (pytest.approx(3 * 86400, abs=600), pytest.approx(3 * 86400 - 3600, abs=600))
    prune(database, "")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("select relay.tick(relay.place())")

    ((oldest, overdue),) = database.fetch(vitals)
    assert 0 < oldest < 600
    assert overdue == 0


def test_prune_goes_on_where_the_clock_was_set_back(database: Database) -> None:
    """What was committed in a day that is still to come is no longer than that in the journal."""
    database.execute(SEVERAL)
    age(database, "2 hours")
    database.execute("update tasks set title = 'U' where id < 't2'")
    age(database, "-1 day")
    assert database.fetch("select oldest_seconds < 0 from relay.vitals()") == [(True,)]

    prune(database, "")
    assert journalled(database) < 200
    assert database.fetch("select max(at) <= clock_timestamp() from relay.ticks") == [(True,)]
    assert database.fetch("select oldest_seconds >= 0 from relay.vitals()") == [(True,)]


def test_present_run_of_the_server_is_the_first_whatever_the_clock_said(database: Database) -> None:
    """Cursors are sealed with its key; a copy of the server's files that is put back does not know it."""
    [present] = database.fetch("select run from relay.epoch()")
    database.execute("insert into relay.epochs (place, started) values (relay.place(), now() + interval '1 day')")

    runs = database.fetch("select run from relay.epoch()")
    assert (len(runs), runs[0]) == (2, present)


def test_nothing_waits_for_a_lock_that_anybody_may_take(database: Database) -> None:
    """An advisory lock needs no right: a role that held it would keep the journal from being paused and resumed."""
    calls = "select proname from pg_proc where pronamespace = 'relay'::regnamespace and prosrc ~ 'advisory'"
    assert database.fetch(calls) == []


@pytest.mark.parametrize(
    "setting",
    ["keep_age = '-1 second'", "keep_bytes = 0", "stop_bytes = -1", "stop_bytes = null", "keep_age = null"],
)
def test_settings_without_sense_are_refused(database: Database, setting: str) -> None:
    """What was set before stays."""
    before = database.fetch("select * from relay.settings")

    with pytest.raises(psycopg.errors.CheckViolation, match=r"^relay\.settings: found keep_age"):
        database.execute(f"update relay.settings set {setting}")
    assert database.fetch("select * from relay.settings") == before


def test_settings_outlive_the_server_and_another_install(database: Database) -> None:
    """They are no rows of a table, which a publication or a dump of data would have; a default comes back by name."""
    database.execute("update relay.settings set keep_age = '2 days', keep_bytes = 7, stop_bytes = 8")
    install(database.dsn)
    database.execute("update relay.settings set keep_bytes = default")
    age_and_bytes = "select keep_age::text, keep_bytes, stop_bytes from relay.settings"

    assert database.fetch(age_and_bytes) == [("2 days", 512 * 1024**2, 8)]


async def test_idle_database_stays_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round after round of polls, prunes and inspections takes no transaction id, and so writes no WAL."""
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "PRUNE_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.02)
    monkeypatch.setattr(schedule, "READ_SECONDS", 0.02)
    rounds = 0
    plain = Session.prune

    async def counted(self: Session) -> bool:
        nonlocal rounds
        rounds += 1
        return await plain(self)

    monkeypatch.setattr(Session, "prune", counted)
    with Postgres(settings={"autovacuum": "off"}) as server:
        install(server.dsn)
        with Database(server.dsn) as database:
            async with Relay(server.dsn).running() as relay, Client.to(relay.url) as client:
                await client.subscribe("default")
                await client.until_last(database)
                await until(lambda: relay.feed.proven)
                # The first of these has all that was written noted, so that nothing is left to do.
                for _ in range(2):
                    database.execute("update relay.ticks set at = at - interval '1 minute'")
                    await until_after(lambda: rounds, 3)
                before = database.fetch("select pg_snapshot_xmax(pg_current_snapshot())::text")
                await until_after(lambda: rounds, 10)

                assert database.fetch("select pg_snapshot_xmax(pg_current_snapshot())::text") == before


async def until_after(count: Callable[[], int], more: int) -> None:
    """Wait until something has been done so many times more."""
    wanted = count() + more
    await until(lambda: count() >= wanted)


# Reading while it is pruned -------------------------------------------------------------------------------------

MANY = f"insert into tasks (id, title) select 'm' || i, 'T' from generate_series(1, {2 * PART_CHANGES}) i"


def keys(batch: Batch) -> set[str]:
    return {image.key for transaction in batch.transactions or () for image in transaction.images}


@pytest.mark.parametrize("transactions", [1, 20])
async def test_prune_amid_a_large_batch_loses_nothing(database: Database, transactions: int) -> None:
    """A batch is read in parts, under one snapshot: what is deleted and vacuumed between two is still in it."""
    async with Session.open(database.dsn, {"default"}) as session:
        position, _, _ = await session.journal.head()
        for part in range(transactions):
            database.execute(
                MANY.replace("'m'", f"'m{part}-'").replace(str(2 * PART_CHANGES), str(5000 // transactions))
            )
        found: set[str] = set()
        parts = 0
        async for batch in session.journal.since(position):
            if not parts:
                assert prune(database) == 5000
                database.execute("vacuum relay.journal")
            parts += 1
            assert position.covers(batch.horizon)
            assert not found & keys(batch)
            found |= keys(batch)

    assert parts > 2
    assert len(found) == 5000
    assert not position.covers(horizon(database))


async def test_prune_before_a_large_batch_is_read_is_noticed(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune between the poll that finds too much for one part and the snapshot of the parts causes a sync."""
    plain = Connection.rows
    pruned = 0

    async def pruning_first(self: Connection, query: bytes | str, *parameters: object) -> list[tuple[object, ...]]:
        nonlocal pruned
        if query == b"begin isolation level repeatable read, read only":
            pruned = await asyncio.to_thread(prune, database)
        return await plain(self, query, *parameters)

    await client.until_last(database)
    monkeypatch.setattr(Connection, "rows", pruning_first)
    database.execute(MANY)
    assert (await client.receive())[0] == "board.sync"

    assert pruned >= 2 * PART_CHANGES
    assert relay.feed.status(10).counts.continuity_lost == {"journal_pruned": 1}
    assert len(client.tasks) == 2 * PART_CHANGES + 1


async def test_long_transaction_costs_reading_nothing(database: Database, relay: Relay, client: Client) -> None:
    """The entries of a transaction that stays open are not read again with each batch."""
    long = database.connect()
    long.execute("begin; insert into tasks (id, title) select 'l' || i, 'L' from generate_series(1, 20000) i")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    assert isinstance(relay.feed, Feed)
    position = relay.feed._position.snapshot  # noqa: SLF001  # what the next batch is read from
    assert position.xip
    reader = database.connect()
    reader.execute("set enable_seqscan = off")
    assert relay.feed._session  # noqa: SLF001
    closure = relay.feed._session.watches.closure  # noqa: SLF001
    parameters = [*closure, str(position.xmax), [str(xid) for xid in position.xip], PART_CHANGES + 1]
    rows = reader.execute(b"explain (analyze, timing off) " + _SINCE.encode(), parameters).fetchall()
    long.execute("rollback")
    found = [int(float(match[1])) for (line,) in rows if (match := re.search(r"Scan.*actual rows=([0-9.]+)", line))]

    assert found
    assert sum(found) < 100


@pytest.mark.parametrize("op", ["R", "S"])
async def test_entries_of_another_server_are_never_read(database: Database, client: Client, op: str) -> None:
    """A dump put them there: the transaction ids that they name come to be given out here, for other changes."""
    database.execute(
        "insert into relay.journal (xid, watch, op, entry, reason) "
        "select (pg_current_xact_id()::text::bigint + n)::text::xid8, w.id, %s, "
        "       array[null, null, null, 'ghost', 'default', row_to_json(t)::text], "
        "       case %s when 'S' then 'truncate' end "
        "from generate_series(1, 20) n, relay.watches w, "
        "     (select 'ghost' as id, 'default' as board_id, 'x' as lane) t",
        op,
        op,
    )
    messages = [message for _ in range(30) for message in await client.until_last(database)]

    assert messages == []
    assert "ghost" not in client.tasks


# A full journal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [True, False])
def test_full_journal_stops_growing(database: Database, many: bool) -> None:
    """Past the limit nothing more is journalled, by one large statement or many small ones, and writers go on."""
    stop = 2_000_000
    database.execute(f"update relay.settings set stop_bytes = {stop}")
    database.execute("insert into tasks (id, title) values ('a', repeat('x', 1000))")
    if many:
        database.execute("insert into tasks (title) select repeat('x', 1000) from generate_series(1, 4000) i")
    else:
        with database.connect() as writer, writer.transaction():
            for _ in range(2500):
                writer.execute("update tasks set title = %s where id = 'a'", [secrets.token_hex(400)])
    assert is_paused(database)
    assert file_bytes(database) < 3 * stop  # because only about one row in a hundred checks it
    entries = journalled(database)
    database.execute("update tasks set title = 'U'")
    database.execute("truncate tasks")

    assert journalled(database) == entries
    assert database.fetch("select count(*) from tasks") == [(0,)]


def test_pause_ends_when_the_file_was_vacuumed(database: Database) -> None:
    """A transaction that holds its entries keeps it paused; then the file's room is used again, and not much more."""
    stop = 2_000_000
    database.execute(SEVERAL)
    with database.connect() as holder, holder.transaction():
        holder.execute("set transaction isolation level repeatable read; select 1")
        fill(database, stop)
        database.execute("vacuum relay.journal")
        for _ in range(2):
            assert database.fetch("select relay.resume()") == [(False,)]
            database.execute("vacuum relay.journal")
        holders = str(database.fetch("select relay.vacuum_holders()")[0][0])
        assert f"process {holder.info.backend_pid} (" in holders
    assert is_paused(database)
    assert journalled(database) == 0
    # More than once, for what was deleted may be counted only after the vacuum.
    while database.fetch("select relay.resume()") == [(False,)]:
        database.execute("vacuum relay.journal")
    assert not is_paused(database)
    full = file_bytes(database)
    assert full > 0.75 * stop

    for _ in range(3):
        database.execute("update tasks set title = 'again' || title")
        assert not is_paused(database)
        prune(database)
        vacuum(database)
    fill(database, stop)
    assert file_bytes(database) < 2 * stop


def wait_for(database: Database, query: str) -> None:
    """Wait until a query says yes; what depends on statistics says so late, on Postgres 14 after a second."""
    while database.fetch(query) != [(True,)]:
        pass


def test_pause_ends_after_a_vacuum_of_what_was_deleted_whatever_the_statistics_say(database: Database) -> None:
    """It takes one of both tables that began when all was deleted; autovacuum has a reason to make it."""
    parts = "from relay.journal_parts() p"
    database.execute(SEVERAL)
    fill(database, 2_000_000)
    assert database.fetch("select relay.resume()") == [(False,)]  # deletes
    database.execute("vacuum relay.journal")
    with database.connect() as writer, writer.transaction():
        writer.execute("lock table relay.journal in row exclusive mode")  # as if there were entries not yet visible
        assert database.fetch("select relay.resume()") == [(False,)]
        database.execute("vacuum relay.journal")
    for _ in range(2):
        database.execute("select pg_stat_reset()")
        assert database.fetch("select relay.resume()") == [(False,)]
        wait_for(database, f"select sum(pg_stat_get_live_tuples(p)) = 0 {parts}")
    assert database.fetch("select emptied is not null from relay.horizon") == [(True,)]
    database.execute("vacuum (process_toast off) relay.journal")
    assert database.fetch("select relay.resume()") == [(False,)]
    database.execute("update relay.horizon set emptied = now() + interval '1 day'")  # the clock was set back since
    assert database.fetch("select relay.resume()") == [(False,)]
    database.execute("vacuum relay.journal")

    wait_for(database, "select relay.resume()")
    fill(database, 2_000_000)
    for _ in range(2):
        database.execute("select relay.resume()")
    # Autovacuum comes where more than 20 rows are dead.
    wait_for(database, f"select min(pg_stat_get_dead_tuples(p)) > 20 {parts}")


def test_what_is_free_in_the_file_is_not_in_use(database: Database) -> None:
    """The file never shrinks, so its size would have the journal nearly full for ever after one pause."""
    used = "select journal_bytes {} from relay.vitals()"
    database.execute(SEVERAL)
    fill(database, 2_000_000)
    # The statistics of a session come when it has ended, and count a little less.
    wait_for(
        database, "select pg_stat_get_live_tuples('relay.journal'::regclass) > 0.9 * count(*) from relay.journal"
    )
    database.execute("select relay.tick(relay.place())")
    wait_for(database, used.format("> 0.75 * 2000000"))
    assert database.fetch(used.format(""))[0][0] <= file_bytes(database)
    while database.fetch("select relay.resume()") == [(False,)]:
        database.execute("vacuum relay.journal")

    assert file_bytes(database) > 2_000_000
    wait_for(database, used.format("< 200000"))


def test_pause_has_room_for_more_after_the_limit_was_raised(database: Database) -> None:
    """Then nothing needs to be vacuumed."""
    database.execute(SEVERAL)
    with database.connect() as holder, holder.transaction():
        holder.execute("set transaction isolation level repeatable read; select 1")
        fill(database)
        database.execute("vacuum relay.journal")
        assert database.fetch("select relay.resume()") == [(False,)]
        database.execute("update relay.settings set stop_bytes = default")

        assert database.fetch("select relay.resume()") == [(True,)]
    database.execute("update tasks set title = 'seen'")
    assert journalled(database) == 200


async def test_pause_is_ended_by_a_relay_and_causes_a_sync(database: Database) -> None:
    """What was not journalled is in the board that everybody is sent, and changes flow again."""
    database.execute(SEVERAL)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        fill(database)
        database.execute("update relay.settings set stop_bytes = default")
        database.execute("update tasks set title = 'unseen' where id = 't1'")
        kind = ""
        while kind != "board.sync" or client.tasks["t1"]["title"] != "unseen":
            kind, _ = await client.receive()
        database.execute("update tasks set title = 'seen' where id = 't1'")
        await client.until_last(database)

        assert client.tasks["t1"]["title"] == "seen"
        await until(lambda: relay.feed.problem is None)


async def test_a_pause_can_be_ended_where_a_large_batch_is_read(database: Database) -> None:
    """Parts of a batch are read in a transaction that may not write."""
    async with Session.open(database.dsn, {"default"}) as session:
        position, _, _ = await session.journal.head()
        database.execute(MANY)
        pause(database)
        async for batch in session.journal.since(position):
            assert batch.paused
            assert await session.end_pause()
    assert not is_paused(database)


async def test_while_a_pause_cannot_end_boards_are_sent_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber stays current, later than usual, and gets single changes again when there is room."""
    monkeypatch.setattr(follower, "PAUSED_SECONDS", 0.05)
    database.execute(SEVERAL)
    holder = database.connect()
    holder.execute("begin isolation level repeatable read; select 1")
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        await asyncio.to_thread(fill, database)
        for title in ("first", "second"):
            database.execute("update tasks set title = %s where id = 't1'", title)
            while client.tasks["t1"]["title"] != title:
                kind, _ = await client.receive()
            assert kind == "board.sync"
        assert relay.feed.status(10).counts.continuity_lost.get("journalling_paused", 0) > 1
        holder.execute("commit")
        while is_paused(database):
            database.execute("vacuum relay.journal")
            await client.receive()
        database.execute("update tasks set title = 'third' where id = 't1'")
        while client.tasks["t1"]["title"] != "third":
            await client.receive()
        assert await client.until_last(database) == []


async def test_autovacuum_alone_lets_a_pause_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where few rows, wide ones, have filled the journal: nobody has to see to it."""
    monkeypatch.setattr(follower, "PAUSED_SECONDS", 0.2)
    with Postgres(settings={"autovacuum_naptime": "1s"}) as server:
        install(server.dsn)
        with Database(server.dsn) as database:
            database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 30) i")
            async with Relay(server.dsn).running() as relay, Client.to(relay.url) as client:
                await client.subscribe("default")
                database.execute("update relay.settings set stop_bytes = 2000000")
                with database.connect() as holder, holder.transaction(), database.connect() as writer:
                    holder.execute("set transaction isolation level repeatable read; select 1")
                    while not is_paused(database):
                        writer.execute(WIDE + " || random()")
                    database.execute("vacuum relay.journal")
                    await until_after(
                        lambda: relay.feed.status(10).counts.continuity_lost.get("journalling_paused", 0), 2
                    )
                    assert is_paused(database)
                await until(lambda: not is_paused(database))
                database.execute("update tasks set title = 'seen' where id = 't1'")
                while client.tasks["t1"]["title"] != "seen":
                    await client.receive()
                assert await client.until_last(database) == []


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("last", [True, False])
async def test_transaction_across_the_end_of_a_pause_causes_a_sync(
    database: Database, level: str, last: bool
) -> None:
    """One that skipped its entries during the pause, and commits after it, comes as a sync, whatever ran beside it.

    The last to have begun is above every snapshot's xmax, the others are among those that run.
    """
    database.execute(SEVERAL)
    pause(database)
    writer = database.connect()
    writer.execute(f"begin isolation level {level}")
    writer.execute("update tasks set title = 'unseen' where id = 't1'")
    if not last:
        database.execute("update tasks set title = 'before' where id = 't3'")
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        assert client.tasks["t1"]["title"] != "unseen"
        assert not is_paused(database)
        writer.execute("update tasks set title = 'seen' where id = 't2'")
        writer.execute("commit")

        assert (await client.receive())[0] == "board.sync"
        assert (client.tasks["t1"]["title"], client.tasks["t2"]["title"]) == ("unseen", "seen")
        assert await client.until_last(database) == []


async def test_old_snapshot_sees_the_pause_and_its_end(database: Database) -> None:
    """A REPEATABLE READ transaction from before the pause skips while it lasts and journals when it is over."""
    database.execute(SEVERAL)
    writers = [database.connect() for _ in range(2)]
    for writer in writers:
        writer.execute("begin isolation level repeatable read; select from tasks limit 1")
    pause(database)
    writers[0].execute("update tasks set title = 'unseen' where id = 't2'; commit")
    assert journalled(database) == 200
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        assert client.tasks["t2"]["title"] == "unseen"
        writers[1].execute("update tasks set title = 'seen' where id = 't1'")
        writers[1].execute("commit")
        kind, data = await client.receive()

    assert (kind, data["changes"]["title"]) == ("task.updated", "seen")


async def test_cut_short_end_of_a_pause_is_done_again(database: Database, client: Client) -> None:
    """Journalling that goes on before any relay has noticed the pause is still a broken continuity."""
    database.execute(SEVERAL)
    await client.until_last(database)
    breaker = database.connect()
    breaker.execute("begin; select from relay.horizon for update")  # which the relay waits for
    pause(database)
    database.execute("update tasks set title = 'unseen' where id = 't1'")
    breaker.execute("select relay.resume()")
    assert not is_paused(database)
    breaker.execute("rollback")
    kind = ""
    while kind != "board.sync":
        kind, _ = await client.receive()

    assert client.tasks["t1"]["title"] == "unseen"
    database.execute("update tasks set title = 'seen' where id = 't1'")
    assert [kind for kind, _ in await client.until_last(database)] == ["task.updated"]

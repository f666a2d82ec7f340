"""Backups, restores, replicas and logical replication of a database that the relay feeds from.

None of them loses, doubles or invents a change, and none fails or waits because of the relay.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.postgres.embedded import EmbeddedPostgresError
from tests.acceptance.support import Daemon, Relays, run_relay, until
from tests.acceptance.test_docs import BACKUPS, examples, run_examples
from tests.clusters import (
    SYSTEM_PROGRAMS,
    Cluster,
    elsewhere,
    empty,
    fed,
    locks_of_a_dump,
    outrun,
    psql,
    run,
)
from tests.integration.client import Client, Message, Tasks
from tests.servers import PROGRAMS, Database, do_without

KEEP_BYTES = 500_000
ROWS = 300

_MARKS = (f"mark {n}" for n in itertools.count())


# Servers: one of each kind for all tests, started when the first test needs it


@contextmanager
def running(cluster: Callable[[], Cluster]) -> Iterator[Cluster]:
    """Run a cluster, or skip the test where that is impossible."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(cluster())
        except EmbeddedPostgresError as error:
            do_without(str(error))
        yield started


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    """Yield a server of the newest version."""
    with running(Cluster) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def standby(primary: Cluster) -> Iterator[Cluster]:
    """Yield a hot standby of it."""
    with running(lambda: Cluster(copy_of=primary, standby=True)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def older() -> Iterator[Cluster]:
    """Yield another server, of an older version where the system has one."""
    programs = PROGRAMS or (SYSTEM_PROGRAMS if SYSTEM_PROGRAMS.exists() else None)
    with running(lambda: Cluster(programs=programs)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def older_standby(older: Cluster) -> Iterator[Cluster]:
    """Yield a hot standby of that one."""
    with running(lambda: Cluster(copy_of=older, standby=True)) as cluster:
        yield cluster


# What a subscriber is sent and holds, and what the tables hold


@asynccontextmanager
async def subscriber(daemon: Daemon) -> AsyncIterator[Client]:
    """Yield a client that follows the board and can resume."""
    async with Client.to(daemon.url) as client:
        assert [kind for kind, _ in await client.resume("default", None)] == ["board.sync"]
        yield client


async def news(client: Client, writer: Database) -> Counter[str]:
    """Count what the client is sent for all that was committed so far, by kind; a task made now marks the end."""
    mark = next(_MARKS)
    writer.execute("insert into public.tasks (id, title) values (%s, 'M')", mark)
    found: list[Message] = []
    while mark not in client.tasks:
        found += await client.receive_batch()
    return Counter(kind for kind, data in found if not str(data.get("id")).startswith("mark "))


def shown(client: Client) -> set[tuple[object, ...]]:
    """Return what a client holds, without the marks."""
    tasks = [task for task in client.tasks.values() if not task["id"].startswith("mark ")]
    return {(task["id"], task["title"], task["description"], task["lane"]) for task in tasks}


def stored(database: Database) -> set[tuple[object, ...]]:
    """Return what the table holds, in the same form."""
    return set(database.fetch("select id, title, description, lane from public.tasks where not id ^@ 'mark '"))


def relays_tables(database: Database) -> list[tuple[str, int]]:
    """Return the relay's tables, whatever they are called, with what each occupies on disk in bytes."""
    return [
        (name, size)
        for name, size in database.fetch(
            "select oid::regclass::text, pg_total_relation_size(oid) from pg_class "
            "where relnamespace = 'relay'::regnamespace and relkind = 'r'"
        )
    ]


def relays_bytes(database: Database) -> int:
    return sum(size for _, size in relays_tables(database))


def fill(database: Database) -> None:
    database.execute(
        "insert into public.tasks (id, title, description) "
        "select 't' || n, 'T', repeat('x', 900) from generate_series(1, %s) n",
        ROWS,
    )


def write(database: Database, n: int) -> None:
    """Change each row once, which is some 700 kB of changes."""
    database.execute("update public.tasks set description = repeat('x', 900) || %s::int where id ^@ 't'", n)


def keep(database: Database, stop_bytes: int) -> None:
    database.execute("update relay.settings set keep_bytes = %s, stop_bytes = %s", KEEP_BYTES, stop_bytes)


def relay_sql(database: Database, folder: Path, *arguments: str) -> None:
    """Run a `relay sql` that succeeds."""
    finished = run_relay("sql", *arguments, cwd=folder, DATABASE_URL=database.dsn)
    assert (finished.returncode, finished.stderr) == (0, "")


# A dump that takes its time


@pytest.mark.parametrize("name", ["primary", "older"])
async def test_slow_dump_costs_subscribers_no_change(
    name: str, request: pytest.FixtureRequest, relay: Relays, tmp_path: Path
) -> None:
    """While a dump holds its locks, many times `keep_bytes` are written: all arrives, and the dump is whole."""
    stop_bytes = 12_000_000
    with fed(request.getfixturevalue(name)) as database:
        keep(database, stop_bytes)
        fill(database)
        daemon = await relay(database.dsn)
        async with subscriber(daemon) as client:
            with locks_of_a_dump(database.dsn) as dump:
                whole = asyncio.create_task(
                    asyncio.to_thread(run, "pg_dump", "-Fc", f"--file={tmp_path / 'dump'}", database.dsn)
                )
                for n in range(9):
                    write(database, n)
                    assert (n, await news(client, database)) == (n, {"task.updated": ROWS})
                    database.execute("select relay.prune()")
                await whole
                assert dump.execute("select count(*) from public.tasks").fetchone() == (ROWS,)
                assert relays_bytes(database) <= stop_bytes
            assert shown(client) == stored(database)
        assert daemon.health()[0] == 200


@pytest.mark.parametrize("statements", [1, 12_000])
def test_journal_stays_within_its_bound_however_it_is_written(statements: int, primary: Cluster) -> None:
    """Three times `stop_bytes` in one transaction, with no relay: of one statement, or of a statement a row."""
    stop_bytes, rows = 4_000_000, 12_000
    with fed(primary) as database:
        keep(database, stop_bytes)
        insert = (
            "insert into public.tasks (id, title, description) "
            "select 't' || gen_random_uuid(), 'T', repeat('x', 900) from generate_series(1, {})"
        )
        database.execute(
            insert.format(rows)
            if statements == 1
            else f"do $$ begin for n in 1..{rows} loop {insert.format(1)}; end loop; end $$"
        )

        assert relays_bytes(database) <= stop_bytes + 1_000_000  # the size is asked for once in 64 kB


# A dump on a standby


@pytest.mark.parametrize(("name", "copy"), [("primary", "standby"), ("older", "older_standby")])
async def test_pruning_and_vacuum_cancel_nothing_on_a_standby(
    name: str, copy: str, request: pytest.FixtureRequest, relay: Relays, tmp_path: Path
) -> None:
    """A dump on a standby reads on, and the replay with it: a conflict would hold up the one and end the other."""
    standby: Cluster = request.getfixturevalue(copy)
    with fed(request.getfixturevalue(name)) as database, Database(elsewhere(database.dsn, standby)) as there:
        database.execute("update relay.settings set keep_bytes = 100000, keep_age = '0'")
        daemon = await relay(database.dsn)
        async with subscriber(daemon) as client:
            await replayed(database, standby)
            with locks_of_a_dump(there.dsn) as dump:
                for n in range(4):
                    # Inserts alone: a row that its user updates or deletes makes conflicts too, and none of ours.
                    database.execute(
                        "insert into public.tasks (id, title) select %s || n, 'T' from generate_series(1, 300) n",
                        f"{n}-",
                    )
                    assert await news(client, database) == {"task.created": 300}
                    database.execute("select relay.prune()")
                    for table, _ in relays_tables(database):
                        database.execute(f"vacuum {table}")
                    await replayed(database, standby)
                assert dump.execute("select count(*) from public.tasks").fetchone() == (0,)
                await asyncio.to_thread(run, "pg_dump", "-Fc", f"--file={tmp_path / 'dump'}", there.dsn)
                assert there.fetch(
                    "select confl_lock + confl_snapshot from pg_stat_database_conflicts "
                    "where datname = current_database()"
                ) == [(0,)]
            assert shown(client) == stored(database)


async def replayed(database: Database, standby: Cluster) -> None:
    """Wait until a standby has replayed all that was written on its primary."""
    database.execute("select pg_logical_emit_message(true, '', '')")  # its commit flushes what came before
    ((position,),) = database.fetch("select pg_current_wal_lsn()::text")
    with Database(standby.dsn) as there:
        await until(
            lambda: there.fetch("select pg_last_wal_replay_lsn() >= %s::pg_lsn", position) == [(True,)], "the replay"
        )


# Restores and copies


class Origin(NamedTuple):
    """A database that was fed, and what a client had of it when both the client and the relay left."""

    cluster: Cluster
    database: Database
    cursor: str | None
    tasks: Tasks


@pytest.fixture(scope="module")
def origin(older: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """Yield such a database of the other server."""
    with fed(older) as database:
        yield asyncio.run(left(older, database, tmp_path_factory.mktemp("origin")))


@pytest.fixture(scope="module")
def origin_on_primary(primary: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """Yield such a database of the server that has standbys."""
    with fed(primary) as database:
        yield asyncio.run(left(primary, database, tmp_path_factory.mktemp("origin")))


async def left(cluster: Cluster, database: Database, folder: Path) -> Origin:
    # A table that was watched and is gone: nothing of it may be left to restore.
    database.execute("create table public.gone (id text primary key, board_id text, lane text)")
    database.execute("select relay.watch('public.gone', distinct_ids => true)")
    database.execute("drop table public.gone")
    database.execute("insert into public.tasks (id, title) values ('a', 'A'), ('b', 'B')")
    async with AsyncExitStack() as stack:
        daemon = await Relays(folder, stack)(database.dsn)
        stack.push_async_callback(daemon.stop)
        client = await stack.enter_async_context(subscriber(daemon))
        return Origin(cluster, database, client.cursor, client.tasks)


def write_for_nobody(origin: Origin) -> None:
    """Leave in the origin's journal what no client was sent: a change, a task that is no more, and a sync."""
    origin.database.execute("update public.tasks set title = title || ' of the origin' where id = 'a'")
    origin.database.execute("insert into public.tasks (id, title) values ('ghost', 'G')")
    origin.database.execute("delete from public.tasks where id = 'ghost'")
    origin.database.execute("select relay.resync()")


def take_roles(origin: Cluster, target: Cluster) -> None:
    """Copy roles, which belong to the cluster, so that no dump of a database has them."""
    roles = run("pg_dumpall", "--roles-only", f"--dbname={origin.dsn}")
    run("psql", "-Xq", target.dsn, given=roles, complaints="already exists")


async def begins_afresh(origin: Origin, copy: Database, cluster: Cluster, daemon: Daemon) -> None:
    """See a relay on the copy refuse the origin's cursor, and send each change of the copy once, and no other."""
    async with Client.to(daemon.url) as client:
        found = await client.resume("default", origin.cursor, origin.tasks)
        assert ([kind for kind, _ in found], client.reason) == (["board.sync"], "epoch_changed")
        assert shown(client) == stored(copy)
        copy.execute("insert into public.tasks (id, title) values ('new', 'N')")
        copy.execute("update public.tasks set lane = 'done' where id = 'new'")
        assert await news(client, copy) == {"task.created": 1, "task.moved": 1, "task.updated": 1}
        # Entries of the origin have ids of transactions that this server may give out only now.
        outrun(cluster, origin.cluster)
        assert await news(client, copy) == {}
        assert shown(client) == stored(copy)
    assert daemon.health()[0] == 200


@pytest.mark.parametrize("options", [(), ("-Fc",), ("--schema-only",)], ids=["plain", "custom", "schema_only"])
async def test_restored_database_is_fed_from_with_nothing_else_to_do(
    options: tuple[str, ...], primary: Cluster, origin: Origin, relay: Relays, tmp_path: Path
) -> None:
    """The restore has no error, and a relay that is pointed at its database is well."""
    outrun(origin.cluster, primary)
    write_for_nobody(origin)
    take_roles(origin.cluster, primary)
    dump = str(tmp_path / "dump")
    run("pg_dump", *options, f"--file={dump}", origin.database.dsn)
    with empty(primary) as copy:
        if "-Fc" in options:
            run("pg_restore", "--exit-on-error", f"--dbname={copy.dsn}", dump)
        else:
            psql(copy.dsn, "-f", dump)
        await begins_afresh(origin, copy, primary, await relay(copy.dsn))


async def test_watched_table_restores_without_schema_relay_as_documented(
    primary: Cluster, origin: Origin, relay: Relays, tmp_path: Path
) -> None:
    """After `pg_dump -n public`: with the relay installed before, without the triggers, and watched after."""
    (recipe,) = [block for block in examples(BACKUPS, "bash") if "-n public" in block]
    with empty(primary) as copy:
        run_examples([recipe], tmp_path, DATABASE_URL=origin.database.dsn, TABLES_URL=copy.dsn)
        await begins_afresh(origin, copy, primary, await relay(copy.dsn))


async def test_schema_relay_restores_without_the_watched_table(
    primary: Cluster, origin: Origin, relay: Relays, tmp_path: Path
) -> None:
    """`pg_dump -n relay` restores where there is no table yet, and serves one that comes later."""
    outrun(origin.cluster, primary)
    write_for_nobody(origin)
    take_roles(origin.cluster, primary)
    dump = run("pg_dump", "-n", "relay", origin.database.dsn)
    with empty(primary) as copy:
        psql(copy.dsn, given=dump)
        for command in (["tasks"], ["watch", "public.tasks"]):
            relay_sql(copy, tmp_path, *command)
        await begins_afresh(origin, copy, primary, await relay(copy.dsn))


@pytest.mark.parametrize("ahead", ["origin", "target"])
async def test_loaded_data_arrives_without_the_changes_of_its_origin(
    ahead: str, primary: Cluster, origin: Origin, relay: Relays
) -> None:
    """`pg_dump --data-only` loads where the relay feeds: the origin's journal comes along, and ends continuity."""
    outrun(*((origin.cluster, primary) if ahead == "origin" else (primary, origin.cluster)))
    write_for_nobody(origin)
    dump = run("pg_dump", "--data-only", origin.database.dsn)
    with fed(primary) as copy:
        daemon = await relay(copy.dsn)
        async with subscriber(daemon) as client:
            psql(copy.dsn, given=dump)
            found = await news(client, copy)
            assert found.keys() <= {"task.created", "board.sync"}
            assert found["task.created"] in {0, len(origin.tasks)}
            assert shown(client) == stored(copy) == stored(origin.database)
        await begins_afresh(origin, copy, primary, daemon)


async def test_data_loaded_with_triggers_disabled_is_shown_by_the_documented_repair(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """After `--disable-triggers`, `watch` repairs the triggers, hides what it hid, and shows the new rows."""
    relay_sql(database, tmp_path, "watch", "public.tasks", "--hide", "priority")
    database.execute("insert into public.tasks (id, title) values ('a', 'A')")
    load = run("pg_dump", "--data-only", "--disable-triggers", "-t", "public.tasks", database.dsn)
    database.execute("delete from public.tasks")
    daemon = await relay(database.dsn)
    async with subscriber(daemon) as client:
        psql(database.dsn, given=load)
        relay_sql(database, tmp_path, "watch", "public.tasks")
        while shown(client) != stored(database):
            await client.receive_batch()
        assert [task for task in client.tasks.values() if "priority" in task] == []
    await daemon.healthy()


async def test_copy_of_the_servers_files_is_fed_from_with_nothing_else_to_do(
    primary: Cluster, origin_on_primary: Origin, relay: Relays
) -> None:
    """What `pg_basebackup` copied starts as a server of its own: it has the rows, and none of the changes."""
    origin = origin_on_primary
    write_for_nobody(origin)
    with (
        running(lambda: Cluster(copy_of=primary)) as cluster,
        Database(elsewhere(origin.database.dsn, cluster)) as copy,
    ):
        write_for_nobody(origin)  # elsewhere by now
        await begins_afresh(origin, copy, cluster, await relay(copy.dsn))


async def test_promoted_standby_is_fed_from_with_nothing_else_to_do(
    primary: Cluster, origin_on_primary: Origin, relay: Relays
) -> None:
    """A standby that was promoted has the rows, and none of the changes."""
    origin = origin_on_primary
    with (
        running(lambda: Cluster(copy_of=primary, standby=True)) as cluster,
        Database(elsewhere(origin.database.dsn, cluster)) as copy,
    ):
        write_for_nobody(origin)
        await replayed(origin.database, cluster)
        cluster.promote()
        await begins_afresh(origin, copy, cluster, await relay(copy.dsn))


# Logical replication


@pytest.mark.parametrize("blue", ["primary", "older"])
async def test_switch_from_blue_to_green_and_back_shows_each_change_once(
    blue: str, primary: Cluster, older: Cluster, relay: Relays
) -> None:
    """Publications are for all tables, and both databases are fed from: only the users' rows are replicated."""
    one, two = (primary, older) if blue == "primary" else (older, primary)
    outrun(one, two)
    with fed(one) as blues, fed(two) as greens:
        blues.execute("insert into public.tasks (id, title) values ('a', 'A'), ('b', 'B')")
        for database in (blues, greens):
            database.execute("update relay.settings set keep_age = '0'")
        old_relay, new_relay = await relay(blues.dsn), await relay(greens.dsn)
        async with subscriber(old_relay) as old, subscriber(new_relay) as new:
            async with replicated(blues, greens, copy_data=True):
                assert await news(new, blues) == {"task.created": 2}
                assert await news(old, blues) == {}
                blues.execute("update public.tasks set title = 'of blue' where id = 'a'")
                assert await news(new, blues) == await news(old, blues) == {"task.updated": 1}
                blues.execute("select relay.prune()")
                assert await news(new, blues) == {}
                assert shown(new) == stored(greens) == stored(blues)

            async with replicated(greens, blues, copy_data=False):
                greens.execute("update public.tasks set title = 'of green' where id = 'b'")
                assert await news(old, greens) == await news(new, greens) == {"task.updated": 1}
                greens.execute("select relay.prune()")
                outrun(two, one)
                outrun(one, two)
                assert await news(old, greens) == await news(new, greens) == {}
                assert shown(new) == shown(old) == stored(greens) == stored(blues)

            async with Client.to(new_relay.url) as moved:
                await moved.resume("default", old.cursor, old.tasks)
                assert (moved.reason, shown(moved)) == ("epoch_changed", stored(greens))


@asynccontextmanager
async def replicated(source: Database, target: Database, *, copy_data: bool) -> AsyncIterator[None]:
    """Replicate all tables for as long as the context lasts; it begins when the first copy is complete."""
    source.execute("create publication everything for all tables")
    target.execute(
        f"create subscription everything connection '{source.dsn}' publication everything "
        f"with (copy_data = {copy_data})"
    )
    try:
        complete = "select count(*) > 0 and bool_and(srsubstate = 'r') from pg_subscription_rel"
        await until(lambda: target.fetch(complete) == [(True,)], "the first copy of all tables")
        yield
    finally:
        target.execute("drop subscription everything")


# The document


def test_commands_of_the_document_run(
    primary: Cluster, older: Cluster, older_standby: Cluster, tmp_path: Path
) -> None:
    """One after the other, as printed."""
    with fed(older) as database, empty(primary) as new, empty(primary) as tables, empty(primary) as green:
        for block in examples(BACKUPS, "sql"):
            database.execute(block)
        printed = run_examples(
            examples(BACKUPS, "bash"),
            tmp_path,
            DATABASE_URL=database.dsn,
            STANDBY_URL=elsewhere(database.dsn, older_standby),
            NEW_URL=new.dsn,
            TABLES_URL=tables.dsn,
            GREEN_URL=green.dsn,
            IDLE_SECONDS="1",
        )
    assert re.search(r"bytes of WAL an hour\|transaction ids an hour\n\d+\|\d+\n", printed)

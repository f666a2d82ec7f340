"""Faults of Postgres and of the network, made for real: what subscribers see of each.

The clean stop, the crash by an immediate stop, the cut network and the lost notification are in test_feed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.postgres import connection as links
from relay.postgres.embedded import HOST, SUPERUSER, UNPRIVILEGED, EmbeddedPostgres
from relay.postgres.faults import FeedError
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.proxy import Proxy
from tests.servers import Database, Postgres, Standby, install


@asynccontextmanager
async def subscriber(dsn: str) -> AsyncIterator[tuple[Relay, Client]]:
    """Run a relay, and a client that has its board."""
    async with Relay(dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        await until(lambda: relay.feed.problem is None)
        yield relay, client


@pytest.fixture
async def installed_server(own_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Return a server of the test's own with a watched table."""
    await asyncio.to_thread(install, own_server.dsn)
    return own_server


def write(dsn: str, *ids: str) -> None:
    """Write tasks in a connection of their own, as a client that comes back after a fault."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for task_id in ids:
            connection.execute("insert into tasks (id, title) values (%s, 'T')", (task_id,))


def sessions(database: Database) -> list[int]:
    """Return the backends of the relay, the oldest first."""
    rows = database.fetch(
        "select pid from pg_stat_activity where application_name = 'relay' and datname = current_database() "
        "order by backend_start"
    )
    return [row[0] for row in rows]


# Sessions


@pytest.mark.parametrize("which", [0, 1])
async def test_one_terminated_session_costs_only_a_pause(
    database: Database, relay: Relay, client: Client, which: int
) -> None:
    """Whichever of its sessions is terminated alone, the one that listens or the other, subscribers miss nothing."""
    await until(lambda: relay.feed.problem is None)
    database.execute("select pg_terminate_backend(%s, 10000)", sessions(database)[which])
    database.execute("insert into tasks (id, title) values ('a', 'A')")

    assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.created", "a")]


async def test_session_killed_by_force_causes_a_sync(installed_server: EmbeddedPostgres) -> None:
    """SIGKILL of the relay's backend makes Postgres recover as from a crash: boards are sent again and then go on."""
    async with subscriber(installed_server.dsn) as (relay, client):
        with Database(installed_server.dsn) as database:
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            await client.receive()
            os.kill(sessions(database)[0], signal.SIGKILL)
        kind, _ = await client.receive()
        assert kind == "board.sync"
        assert set(client.tasks) == {"a"}
        await until(lambda: relay.feed.problem is None)
        await asyncio.to_thread(write, installed_server.dsn, "b")

        kind, data = await client.receive()
    assert (kind, data["id"]) == ("task.created", "b")


async def test_a_lack_of_connections_costs_only_a_pause() -> None:
    """While `max_connections` are taken health says so; when there is room again, what was missed arrives."""
    with Postgres(settings={"max_connections": "10"}) as server:
        await asyncio.to_thread(install, server.dsn)
        async with subscriber(server.dsn) as (relay, client):
            with Database(server.dsn) as database, ExitStack() as crowd:
                # In one go, for the relay runs in this loop: it cannot take back what it loses here.
                for pid in sessions(database):
                    database.execute("select pg_terminate_backend(%s, 10000)", pid)
                fill(server.dsn, crowd)
                await until(lambda: "too many clients" in str(relay.feed.problem))
                database.execute("insert into tasks (id, title) values ('a', 'A')")

            kind, data = await client.receive()
            await until(lambda: relay.feed.problem is None)
    assert (kind, data["id"]) == ("task.created", "a")


def fill(dsn: str, crowd: ExitStack) -> None:
    """Take all connections that the server gives."""
    for connection in iter(partial(connect_if_there_is_room, dsn), None):
        crowd.enter_context(connection)


def connect_if_there_is_room(dsn: str) -> psycopg.Connection | None:
    try:
        return psycopg.connect(dsn)
    except psycopg.OperationalError as error:
        assert "too many clients" in str(error)  # noqa: PT017 - the error is the end of the loop
        return None


# The server


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restart_during_a_bulk_write_shows_nothing_of_it(installed_server: EmbeddedPostgres, mode: str) -> None:
    """What a stop rolled back reaches nobody, and when the writer comes again it arrives once."""
    bulk = "insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, {}) i"
    async with subscriber(installed_server.dsn) as (_, client):
        with Database(installed_server.dsn) as database:
            writing = asyncio.create_task(asyncio.to_thread(execute, installed_server.dsn, bulk.format(10_000_000)))
            await until(lambda: database.fetch("select pg_relation_size('tasks') > 1000000") == [(True,)])
        await asyncio.to_thread(installed_server.stop, "fast" if mode == "fast" else "immediate")
        with pytest.raises(psycopg.OperationalError):
            await writing
        await asyncio.to_thread(installed_server.start)
        await asyncio.to_thread(execute, installed_server.dsn, bulk.format(3))

        found = []
        while set(client.tasks) != {"t1", "t2", "t3"}:
            found.append(await client.receive())
    kinds = [kind for kind, _ in found]
    if mode == "fast":
        assert kinds == ["task.created"] * 3
    else:
        assert kinds[0] == "board.sync"


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


async def test_promoted_standby_causes_a_sync(installed_server: EmbeddedPostgres) -> None:
    """When the primary is lost and its standby promoted, the relay finds it by itself and boards are sent again."""
    extra = "select relay.extra('tasks', 'notes', 'notes', key_column => 'task_id')"
    execute(installed_server.dsn, f"create table notes (task_id text); {extra}")
    with Standby(installed_server) as standby:
        both = make_conninfo(
            host=f"{HOST},{HOST}",
            port=f"{installed_server.port},{standby.port}",
            user=SUPERUSER,
            dbname="postgres",
            target_session_attrs="read-write",
        )
        async with subscriber(both) as (relay, client):
            await asyncio.to_thread(write, installed_server.dsn, "a")
            await client.receive()
            with Database(standby.dsn) as copy:
                await until(lambda: copy.fetch("select id from tasks") == [("a",)])
            await asyncio.to_thread(installed_server.stop, "immediate")
            await until(lambda: relay.feed.problem is not None)
            await asyncio.to_thread(standby.promote)

            kind, _ = await client.receive()
            assert kind == "board.sync"
            assert set(client.tasks) == {"a"}
            await asyncio.to_thread(write, standby.dsn, "b")
            kind, data = await client.receive()
            assert (kind, data["id"]) == ("task.created", "b")
            await asyncio.to_thread(execute, standby.dsn, "insert into notes values ('a')")
            kind, data = await client.receive()
            assert (kind, data["changes"]) == ("task.updated", {"notes": 1})


# Writers that fail


async def test_full_disk_fails_the_writer_and_nobody_else(own_server: EmbeddedPostgres) -> None:
    """A write that finds the disk full is an error to its writer; subscribers see nothing of it and go on."""
    with small_disk() as folder:
        execute(own_server.dsn, f"create tablespace small location '{folder}'")
        execute(own_server.dsn, "create database full_one tablespace small template template0")
        dsn = make_conninfo(own_server.dsn, dbname="full_one")
        await asyncio.to_thread(install, dsn)
        async with subscriber(dsn) as (relay, client):
            with Database(dsn) as database:
                with pytest.raises(psycopg.errors.DiskFull):
                    await asyncio.to_thread(
                        execute,
                        dsn,
                        "insert into tasks (title) select repeat('x', 1000) from generate_series(1, 200000)",
                    )
                database.execute("vacuum")
                database.execute("insert into tasks (id, title) values ('a', 'A')")

                found = await client.until_last(database)
                assert [(kind, data["id"]) for kind, data in found] == [("task.created", "a")]
                await until(lambda: relay.feed.problem is None)
        execute(own_server.dsn, "drop database full_one with (force)")
        execute(own_server.dsn, "drop tablespace small")


@contextmanager
def small_disk() -> Iterator[Path]:
    """Yield a folder on a disk of its own, of 64 megabytes, that the server may write."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o711)
        disk = place / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0777", "tmpfs", disk],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode != 0:
            pytest.skip(f"a disk that fills up needs root and the right to mount: {mounted.stderr.strip()}")
        try:
            space = disk / "space"
            space.mkdir()
            shutil.chown(space, UNPRIVILEGED)
            yield space
        finally:
            subprocess.run(["umount", disk], check=True)


async def test_statement_timeout_in_the_writer_shows_nothing_of_it(database: Database, client: Client) -> None:
    """A statement that is cancelled half-way, in a trigger of the relay as likely as not, reaches nobody."""
    with database.connect() as writer:
        writer.execute("set statement_timeout = '200ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            writer.execute("insert into tasks (title) select 'T' from generate_series(1, 10000000)")
        writer.execute("insert into tasks (id, title) values ('a', 'A')")

    assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.created", "a")]


# The network


async def test_frozen_network_is_noticed_and_costs_only_a_pause(database: Database, proxy: Proxy) -> None:
    """Where no packet comes and no connection ends, health tells; what was missed arrives when packets come again."""
    async with subscriber(proxy.through(database.dsn)) as (relay, client):
        proxy.freeze()
        await until(lambda: relay.feed.problem is not None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        proxy.thaw()

        assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.created", "a")]
        await until(lambda: relay.feed.problem is None)


async def test_half_open_link_is_repaired_by_another(database: Database, proxy: Proxy) -> None:
    """Where only the old connections are dead and say nothing, new ones are made and nothing is missed."""
    async with subscriber(proxy.through(database.dsn)) as (_, client):
        proxy.strand()
        database.execute("insert into tasks (id, title) values ('a', 'A')")

        assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.created", "a")]


async def test_a_connection_in_a_transaction_is_left_at_once_when_its_link_is_half_open(
    database: Database, proxy: Proxy
) -> None:
    """It does not wait for the answer to a rollback, with which a session would never end."""

    async def fail() -> None:
        async with await links.connect(links.complete(proxy.through(database.dsn))) as connection:
            await connection.rows("begin")
            proxy.strand()
            raise FeedError

    with pytest.raises(FeedError):
        await asyncio.wait_for(fail(), 5)


async def test_link_that_dies_before_a_connection_is_set_up_is_noticed(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the server's first answer and the next, nothing else limits the wait."""
    set_up = links.set_up

    async def set_up_too_late(connection: links.Connection) -> None:
        proxy.strand()
        await set_up(connection)

    monkeypatch.setattr(links, "START_SECONDS", 0.5)
    monkeypatch.setattr(links, "set_up", set_up_too_late)
    with pytest.raises(FeedError, match="did not answer"):
        await asyncio.wait_for(links.connect(links.complete(proxy.through(database.dsn))), 5)


async def test_link_that_dies_while_the_feed_begins_is_noticed(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres is reached, and then its answer never comes: the relay connects again."""
    monkeypatch.setattr(links, "START_SECONDS", 1.0)
    blocks = database.connect()
    blocks.execute("begin; lock table relay.horizon in access exclusive mode")
    async with Relay(proxy.through(database.dsn)).running() as relay:
        waiting = "select from pg_stat_activity where application_name = 'relay' and wait_event_type = 'Lock'"
        await until(lambda: bool(database.fetch(waiting)))
        proxy.strand()
        blocks.execute("commit")
        await until(lambda: "did not answer" in (relay.feed.problem or ""))
        await until(lambda: relay.feed.problem is None)


# Copies


@pytest.fixture
def dumped(installed_server: EmbeddedPostgres) -> Iterator[tuple[Database, Path]]:
    """Yield a database with a past, and a dump of it that can be restored over it."""
    with tempfile.TemporaryDirectory() as folder, Database(installed_server.dsn) as database:
        for number in range(300):  # transaction ids that another server has not reached yet
            database.execute("insert into tasks (title) values (%s)", str(number))
        database.execute("delete from tasks")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        dump = Path(folder) / "dump.sql"
        client_program(installed_server, "pg_dump", "--clean", "--if-exists", f"--file={dump}", installed_server.dsn)
        # A newer pg_dump sets what older servers do not have.
        dump.write_text(dump.read_text().replace("SET transaction_timeout = 0;\n", ""))
        yield database, dump


def client_program(server: EmbeddedPostgres, name: str, *arguments: str) -> None:
    subprocess.run([server.bin / name, *arguments], check=True, capture_output=True)


def restore(server: EmbeddedPostgres, dump: Path, dsn: str) -> None:
    client_program(server, "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={dump}", dsn)


def restore_roles(server: EmbeddedPostgres, roles: Path, dsn: str) -> None:
    """Restore roles; those that are there already are an error that ends nothing."""
    client_program(server, "psql", "--no-psqlrc", f"--file={roles}", dsn)


async def test_restore_into_the_same_database_causes_a_sync(
    installed_server: EmbeddedPostgres, dumped: tuple[Database, Path]
) -> None:
    """`pg_dump --clean` restored over a database that is watched: boards are sent again, and go on."""
    database, dump = dumped
    async with subscriber(installed_server.dsn) as (relay, client):
        database.execute("insert into tasks (id, title) values ('lost', 'not in the dump')")
        await client.receive()
        await asyncio.to_thread(restore, installed_server, dump, installed_server.dsn)
        while set(client.tasks) != {"a"}:
            assert (await client.receive())[0] == "board.sync"
        await until(lambda: relay.feed.problem is None)
        database.execute("insert into tasks (id, title) values ('b', 'B')")
        await client.until_last(database)

    assert "b" in client.tasks
    assert "lost" not in client.tasks


async def test_restore_into_a_fresh_database_is_a_feed_of_its_own(
    installed_server: EmbeddedPostgres, dumped: tuple[Database, Path]
) -> None:
    """A copy in another database of the server needs nothing but a relay: boards, then changes."""
    database, dump = dumped
    database.execute("create database copy template template0")
    dsn = make_conninfo(installed_server.dsn, dbname="copy")
    await asyncio.to_thread(restore, installed_server, dump, dsn)

    await expect_a_feed(dsn)


async def test_restore_into_another_server_is_a_feed_of_its_own(
    installed_server: EmbeddedPostgres, dumped: tuple[Database, Path]
) -> None:
    """A copy on a server whose transaction ids are younger than those in the dump is fed from its own beginning."""
    _, dump = dumped
    roles = dump.with_name("roles.sql")
    client_program(
        installed_server, "pg_dumpall", "--roles-only", f"--file={roles}", f"--dbname={installed_server.dsn}"
    )
    with Postgres() as other:
        await asyncio.to_thread(restore_roles, installed_server, roles, other.dsn)
        await asyncio.to_thread(restore, installed_server, dump, other.dsn)

        await expect_a_feed(other.dsn)


async def expect_a_feed(dsn: str) -> None:
    """See a board with the one task of the dump, and then each change once."""
    async with subscriber(dsn) as (relay, client):
        assert set(client.tasks) == {"a"}
        with Database(dsn) as database:
            database.execute("insert into tasks (id, title) values ('b', 'B')")
            database.execute("update tasks set lane = 'done' where id = 'a'")
            found = await client.until_last(database)
            found += await client.until_last(database)
        assert relay.feed.problem is None

    assert [(kind, data["id"]) for kind, data in found] == [
        ("task.created", "b"),
        ("task.moved", "a"),
        ("task.updated", "a"),
    ]


async def test_what_logical_replication_applies_is_announced() -> None:
    """Writes on a publisher reach the subscribers of a relay on the server that applies them."""
    logical = {"wal_level": "logical"}
    with Postgres(settings=logical) as publisher, Postgres(settings=logical) as applier:
        for server in (publisher, applier):
            await asyncio.to_thread(install, server.dsn)
            execute(server.dsn, "create table notes (id int primary key, task_id text, done boolean)")
        execute(publisher.dsn, "create publication p for table tasks, notes")
        execute(
            applier.dsn,
            "select relay.extra('tasks', 'notes', 'notes', key_column => 'task_id', filter => 'not done')",
        )
        way = conninfo_to_dict(publisher.dsn)
        source = make_conninfo(host=way["host"], port=way["port"], user=way["user"], dbname=way["dbname"])
        async with subscriber(applier.dsn) as (_, client):
            subscription = f"create subscription s connection '{source}' publication p with (copy_data = false)"
            await asyncio.to_thread(execute, applier.dsn, subscription)
            for statement in (
                "insert into tasks (id, title) values ('a', 'A')",
                "update tasks set lane = 'done'",
                "delete from tasks",
            ):
                await asyncio.to_thread(execute, publisher.dsn, statement)
            found = [await client.receive() for _ in range(4)]
            await asyncio.to_thread(execute, publisher.dsn, "insert into tasks (id, title) values ('b', 'B')")
            found.append(await client.receive())
            for notes, statement in (
                (2, "insert into notes values (1, 'b', false), (2, 'b', false), (3, 'b', true)"),
                (1, "update notes set done = true where id = 1"),
                (0, "truncate notes"),
            ):
                await asyncio.to_thread(execute, publisher.dsn, statement)
                while client.tasks["b"]["notes"] != notes:
                    await client.receive()
            await asyncio.to_thread(execute, applier.dsn, "drop subscription s")

    assert [(kind, data["id"]) for kind, data in found] == [
        ("task.created", "a"),
        ("task.moved", "a"),
        ("task.updated", "a"),
        ("task.deleted", "a"),
        ("task.created", "b"),
    ]

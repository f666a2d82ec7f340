"""Rights: writers need nothing, the daemon's role little, and nobody else gets anything."""

from __future__ import annotations

import asyncio
import re

import psycopg
import pytest

from relay.postgres.install import text
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.integration.test_edges import Feed, is_active
from tests.nats import NatsServer
from tests.servers import Database

MAY_READ = {"entries", "extras", "horizon", "control", "lane_tables", "watches", "watched"}


async def test_the_daemons_role_has_the_rights_that_it_needs(database: Database, daemon_dsn: str) -> None:
    """Boards, changes, resuming, pruning, polling and an ended pause: all of it."""
    database.execute(text("roles"))  # may be run again
    async with Relay(daemon_dsn).running() as relay, Client.to(relay.url) as client:
        await client.resume("default", None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert [kind for kind, _ in await client.receive_batch()] == ["task.created"]
        cursor = client.cursor
        database.execute("update tasks set title = 'B'")
        async with Client.to(relay.url) as returned:
            assert [kind for kind, _ in await returned.resume("default", cursor, client.tasks)] == ["task.updated"]
        await client.receive_batch()
        database.execute("select relay.set_control(true, relay.pauses() + 1, 0)")
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert client.reason == "journalling_paused"
    with psycopg.connect(daemon_dsn, autocommit=True) as connection:
        connection.execute("select relay.poll_for(1000), relay.prune()")


async def test_the_daemons_role_has_the_rights_that_a_publisher_needs(
    nats_server: NatsServer, database: Database, daemon_dsn: str
) -> None:
    """Of two with this role, one leads, and reads boards and changes for edges; the other takes over."""
    feed = Feed(nats_server, daemon_dsn)
    async with feed.published() as one:
        await until(lambda: is_active(one))
        async with feed.published() as other, feed.edge() as near, Client.to(near.url) as client:
            await until(lambda: other._standing_by)  # noqa: SLF001
            await client.resume("default", None)
            await one.leave()
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert [kind for kind, _ in await client.receive_batch()] == ["task.created"]
            assert is_active(other)


async def test_right_that_the_daemon_lacks_is_named_with_the_command(database: Database, daemon_dsn: str) -> None:
    async with Relay(daemon_dsn).running() as relay:
        await until(lambda: relay.feed.problem is None)
        await asyncio.to_thread(database.execute, "drop owned by relay_daemon")
        problem = "permission denied for schema relay: run relay sql roles, and connect as relay_daemon"
        await until(lambda: relay.feed.problem == problem)
        await asyncio.to_thread(database.execute, text("roles"))
        await until(lambda: relay.feed.problem is None)


async def test_function_that_somebody_dropped_is_named_with_the_command(database: Database, daemon_dsn: str) -> None:
    async with Relay(daemon_dsn).running() as relay, Client.to(relay.url) as client:
        await until(lambda: relay.feed.problem is None)
        await asyncio.to_thread(database.execute, "drop owned by relay_reader")
        await client.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: str(relay.feed.problem).endswith("does not exist: run relay sql install"))
        await asyncio.to_thread(database.execute, text("install") + text("roles"))
        await asyncio.to_thread(database.execute, "grant select on tasks to relay_reader")
        assert (await client.receive())[0] == "board.sync"


def test_daemon_may_do_nothing_else(daemon_dsn: str) -> None:
    """It owns nothing, writes nothing, reads no table of the users', and calls only what it must."""
    granted = set(re.findall(r"relay\.(\w+)\(", text("roles").partition("grant execute")[2]))
    with psycopg.connect(daemon_dsn, autocommit=True) as connection:
        tables = connection.execute(
            "select c.relname, has_table_privilege(c.oid, 'select'), "
            "has_table_privilege(c.oid, 'insert, update, delete, truncate, references, trigger') "
            "from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname in ('relay', 'public') and c.relkind in ('r', 'p', 'v', 'S')"
        ).fetchall()
        functions = connection.execute(
            "select p.proname from pg_proc p where pronamespace = 'relay'::regnamespace "
            "and has_function_privilege(p.oid, 'execute')"
        ).fetchall()
        [rights] = connection.execute(
            "select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls, "
            "has_schema_privilege('relay', 'create'), has_database_privilege(current_database(), 'create') "
            "from pg_roles where rolname = current_user"
        ).fetchall()

    assert {name for name, may_read, _ in tables if may_read} == MAY_READ
    assert not any(may_write for _, _, may_write in tables)
    assert {name for (name,) in functions} == granted
    assert rights == (False, False, False)


def test_daemon_sees_no_hidden_column(database: Database, daemon_dsn: str) -> None:
    """Neither in boards nor in the journal nor in the table, even of a row that was there before."""
    database.execute("alter table tasks add column secret text")
    database.execute("insert into tasks (id, title, secret) values ('a', 'A', 'hush')")
    database.execute("select relay.prune('0')")
    database.execute("select relay.watch('tasks', hidden => '{secret}')")
    database.execute("delete from relay.journal")
    database.execute("insert into tasks (id, title, secret) values ('b', 'B', 'hush')")
    database.execute("update tasks set title = 'C'")
    with psycopg.connect(daemon_dsn, autocommit=True) as connection:
        for query in ("select * from relay.entries", "select * from relay.board('default')"):
            rows = connection.execute(query).fetchall()
            assert rows
            assert "hush" not in str(rows)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select secret from tasks")


def test_nobody_else_reads_or_calls_anything(database: Database) -> None:
    """PUBLIC has no right on the schema, nor on anything in it."""
    rows = database.fetch(
        "select 'schema' from pg_namespace n, aclexplode(nspacl) a where nspname = 'relay' and a.grantee = 0 "
        "union all select c.relname from pg_class c, aclexplode(relacl) a "
        "where c.relnamespace = 'relay'::regnamespace and a.grantee = 0 "
        "union all select p.proname from pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a "
        "where p.pronamespace = 'relay'::regnamespace and a.grantee = 0"
    )
    assert rows == []


@pytest.mark.parametrize("name", ["text", "regclass", "xid8", "bigint", "json"])
def test_types_of_a_writers_own_are_not_taken_for_postgress(database: Database, name: str) -> None:
    """A temporary type called like a built-in one would run the writer's code with the relay's rights."""
    with database.connect() as writer:
        writer.execute(
            "create function pg_temp.gotcha() returns boolean language plpgsql as "
            "$$ begin raise exception 'called as %', current_user; end $$"
        )
        writer.execute(f'create domain pg_temp."{name}" as pg_catalog.int4 check (pg_temp.gotcha())')
        writer.execute("insert into tasks (id, title) values ('a', 'A')")
        writer.execute("update tasks set title = 'B'")
        writer.execute("truncate tasks")

    entries = "select op::text, reason from relay.entries where reason is distinct from 'watch_changed' order by lsn"
    assert database.fetch(entries) == [("R", None), ("R", None), ("S", "truncate")]


def test_what_a_security_definer_function_writes_is_journalled(database: Database) -> None:
    """Whoever's rights it runs with, and whatever search path it sets."""
    database.execute(
        "create function public.add_task() returns void language sql security definer set search_path = '' as "
        "$$ insert into public.tasks (id, title) values ('a', 'A') $$"
    )
    with database.connect() as connection:
        connection.execute("do $$ begin create role relay_test_caller; exception when duplicate_object then end $$")
        try:
            connection.execute("set role relay_test_caller")
            connection.execute("select public.add_task()")
        finally:
            connection.execute("reset role; drop role relay_test_caller")

    assert database.fetch("select new_row::json ->> 'id' from relay.entries where op = 'R'") == [("a",)]

"""Each finding of `relay check` with the thing truly broken, and all well again after what it says was done."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from relay import config
from relay.commands.check import checks
from relay.commands.check import database as database_module
from relay.commands.check.core import Finding
from relay.postgres import install
from relay.postgres.connection import Connection, complete, connect
from relay.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError, free_port
from relay.postgres.faults import FeedError
from tests.certificates import certificate
from tests.integration.client import until
from tests.servers import Database, Postgres, Server, Standby, do_without, sole_use, temporary_database
from tests.servers import install as install_all

LOCAL = {"WS_HOST": "127.0.0.1", "WS_PORT": "0", "HEALTH_PORT": "0"}


async def check(dsn: str, **settings: str) -> dict[str, Finding]:
    """Run the checks, and return the findings by name."""
    given = config.load({"DATABASE_URL": dsn} | LOCAL | settings)
    found = [finding async for finding in checks.run(given)]
    names = [finding.check for finding in found]
    assert len(set(names)) == len(names)
    for finding in found:
        assert "\n" not in finding.found
        assert bool(finding.hint) == (finding.status in {"warning", "failed"})
    return {finding.check: finding for finding in found}


def not_ok(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.status for name, finding in found.items() if finding.status != "ok"}


async def test_all_is_well_with_the_daemons_rights(database: Database, daemon_dsn: str) -> None:
    """Nothing to hint, rows checked, no password shown, and no session left."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    found = await check(daemon_dsn)

    assert not_ok(found) == {}
    assert "widest of 1 sampled rows of public.tasks" in found["rows"].found
    assert "hush" not in str(found)
    assert "relay_daemon on " in found["connection"].found
    await until(lambda: not database.fetch("select from pg_stat_activity where application_name = 'relay'"))


_OF_TITLE = (
    "create or replace trigger relay_change after insert or update of title or delete on tasks "
    "for each row execute function relay.journal_ID(); alter table tasks enable always trigger relay_change"
)
_ALTER = "do $$ begin execute replace(pg_get_functiondef('relay.{}_ID'::regproc), 'return old', 'return new'); end $$"


@pytest.mark.parametrize(
    ("broken", "name", "status", "found", "advice"),
    [
        (
            "drop schema relay cascade",
            "install",
            "failed",
            "schema relay is not installed",
            "run relay sql install",
        ),
        ("drop function relay.resync()", "install", "failed", "not there: relay.resync", "run relay sql install"),
        (
            "create or replace function relay.notify() returns void language sql as ''",
            "install",
            "failed",
            "not as this version makes them: relay.notify",
            "run relay sql install",
        ),
        (
            "alter function relay.board security invoker",
            "install",
            "failed",
            "relay.board",
            "run relay sql install",
        ),
        ("select relay.unwatch('tasks')", "watched", "failed", "nothing is watched", "run relay sql watch"),
        (
            "drop trigger relay_truncate on tasks",
            "triggers",
            "failed",
            "relay_truncate of public.tasks is missing",
            "run relay sql watch public.tasks",
        ),
        (
            "alter table tasks disable trigger relay_change",
            "triggers",
            "failed",
            "relay_change of public.tasks is disabled",
            "run relay sql watch public.tasks",
        ),
        (
            "alter table tasks enable trigger relay_change",
            "triggers",
            "warning",
            "relay_change of public.tasks is not enabled always: what replication applies here is not journalled",
            "run relay sql watch public.tasks",
        ),
        (
            "drop trigger relay_change on tasks",
            "triggers",
            "failed",
            "relay_change of public.tasks is missing",
            "run relay sql watch public.tasks",
        ),
        (
            _OF_TITLE,
            "triggers",
            "failed",
            "relay_change of public.tasks is not as relay.watch makes it",
            "run relay sql watch public.tasks",
        ),
        (
            _ALTER.format("journal"),
            "trigger functions",
            "failed",
            "that of public.tasks was altered",
            "run relay sql install",
        ),
        (
            "alter function relay.journal_ID() security invoker",
            "trigger functions",
            "failed",
            "that of public.tasks was altered",
            "run relay sql install",
        ),
        (
            "alter function relay.journal_ID() owner to current_user",
            "trigger functions",
            "failed",
            "that of public.tasks was altered",
            "run relay sql install",
        ),
        (
            "alter table tasks rename column board_id to project",
            "trigger functions",
            "failed",
            "that of public.tasks was altered, or a column of the table",
            "run relay sql install",
        ),
    ],
)
async def test_install_that_is_broken(
    database: Database, broken: str, name: str, status: str, found: str, advice: str
) -> None:
    """The finding says what is broken, its command repairs it, and what rests on it is skipped meanwhile."""
    ((watch,),) = database.fetch("select id from relay.watches")
    database.execute(broken.replace("ID", str(watch)))
    before = await check(database.dsn)

    assert before[name].status == status
    assert found in before[name].found
    assert str(before[name].hint).startswith(advice)
    statuses = [finding.status for finding in before.values()]
    gate = name in {"install", "watched"}
    assert set(statuses[list(before).index(name) + 1 :]) == ({"skipped"} if gate else {"ok"})

    if advice == "run relay sql install":
        install.run(database.dsn, "install")
    if name != "trigger functions":
        install.watch(database.dsn, "public.tasks")
    assert not_ok(await check(database.dsn)) == {}


async def test_partition_that_came_later(database: Database) -> None:
    """Row triggers come by themselves to a partition, that of TRUNCATE does not."""
    database.execute(
        "create table cards (id bigint not null primary key, board_id text, lane text) partition by range (id);"
        "create table cards_1 partition of cards for values from (0) to (10);"
        "select relay.watch('cards');"
    )
    assert not_ok(await check(database.dsn)) == {}
    database.execute("create table cards_2 partition of cards for values from (10) to (20)")

    triggers = (await check(database.dsn))["triggers"]
    assert triggers.status == "warning"
    assert triggers.found.startswith("relay_truncate of public.cards_2 is missing: ")
    assert triggers.hint == "run relay sql watch public.cards"
    database.execute("select relay.watch('cards')")
    assert not_ok(await check(database.dsn)) == {}


async def test_missing_column(database: Database) -> None:
    """The table is not shown until somebody says which column takes its place."""
    database.execute("alter table tasks drop column lane, add column stage text")
    columns = (await check(database.dsn))["columns"]

    assert columns.found == "public.tasks has no column lane any more, its lane, and is not shown"
    assert str(columns.hint).startswith("run relay sql watch public.tasks")
    database.execute("select relay.watch('tasks', lane_column => 'stage', order_by => '{priority}')")
    assert not_ok(await check(database.dsn)) == {}

    database.execute("alter table tasks drop priority")
    columns = (await check(database.dsn))["columns"]
    assert (columns.status, columns.found) == ("warning", "public.tasks cannot be ordered by 'priority' any more")
    assert str(columns.hint).startswith("run relay sql watch public.tasks --id id ")
    database.execute("select relay.watch('tasks', order_by => '{}')")

    database.execute("create table lists (id int primary key, name text); select relay.lanes('lists')")
    database.execute("create table cards (id int primary key, board_id text, lane int)")
    database.execute("select relay.watch('cards', lanes => 'lists', id_prefix => 'c', order_by => '{}')")
    assert not_ok(await check(database.dsn)) == {}
    database.execute("alter table lists rename to boxes; create table lists (id int primary key, name text)")
    columns = (await check(database.dsn))["columns"]
    assert columns.found.startswith("public.boxes has the lanes, which was declared as public.lists")
    assert str(columns.hint).startswith(
        "to use the other, run relay sql lanes public.lists --id id --board '' --name "
    )


async def test_right_that_was_revoked(database: Database, daemon_dsn: str) -> None:
    """It is named, and `relay sql roles` gives it back."""
    for revoked, named in {
        "execute on function relay.board": "relay.board()",
        "select on relay.entries": "relay.entries",
        "select on relay.control": "relay.control",
        "execute on function relay.pauses()": "relay.pauses()",
        "usage on schema relay": "schema relay",
    }.items():
        database.execute(f"revoke {revoked} from relay_daemon")
        grants = (await check(daemon_dsn))["grants"]
        assert (grants.status, grants.found) == ("failed", f"role relay_daemon has no right on {named}")
        assert grants.hint == "run relay sql roles"
        install.run(database.dsn, "roles")
    assert not_ok(await check(daemon_dsn)) == {}


_NO_LIMITS = """
    create or replace function relay.configured(out keep_age interval, out keep_bytes bigint, out stop_bytes bigint)
    language sql immutable as 'select null::interval, null::bigint, null::bigint'
"""

HOSTILE = [
    {"drop table relay.ticks cascade": ("install", "not there: relay.ticks")},
    {
        "revoke insert on relay.journal from relay_writer": (
            "grants",
            "role relay_writer has no right on relay.journal",
        )
    },
    {"drop view relay.watched; create view relay.watched as select 1": ("watched", "column w.schema_name does not")},
    {"drop trigger relay_truncate on tasks": ("triggers", "relay_truncate of public.tasks is missing")},
    {
        "drop trigger relay_extra_EXTRA on notes": (
            "triggers",
            "those for notes of public.tasks are missing, disabled",
        ),
        "drop function relay.extra_EXTRA(record)": ("trigger functions", "that of public.notes was altered"),
        "revoke select on notes from relay_reader": ("reading", "public.notes: boards are read by role relay_reader"),
    },
    {
        "alter table notes rename to notices; alter table notices drop note": (
            "columns",
            "notes of public.tasks is made of a table or column that is not there any more, and is not shown",
        ),
    },
    {
        _NO_LIMITS: ("journal", "this could not be checked: ValidationError"),
        "revoke select on tasks from relay_reader": ("reading", "public.tasks: boards are read by role relay_reader"),
        "drop trigger relay_lanes on lists": ("triggers", "those of public.lists, whose rows are lanes, are missing"),
        "drop function relay.lane_LANES": ("trigger functions", "that of public.lists, public.tasks was altered"),
        "revoke execute on function relay.entry_TASKS from relay_writer": (
            "trigger functions",
            "that of public.lists",
        ),
        "alter table cards drop column lane": ("columns", "public.cards has no column lane any more"),
    },
]
"""What can be wrong with parts of the schema, some of it together: the check that finds it, and how that begins."""


async def test_no_state_of_the_schema_ends_the_check(server: Server, database: Database) -> None:
    """Each is found by one of the checks, and all others are made or skipped."""
    database.execute("""
        create table lists (id int primary key, board_id int, name text);
        create table cards (id uuid primary key, lane int);
        create table notes (task_id text references tasks, note text);
        select relay.lanes('lists'); select relay.watch('cards', lanes => 'lists');
        select relay.extra('tasks', 'notes', 'notes', '{note}')
    """)
    all_of_them = list(await check(database.dsn))
    [(tasks,)] = database.fetch("select id::text from relay.watches where target = 'tasks'::regclass")
    [(lanes,)] = database.fetch("select id::text from relay.lane_tables")
    [(extra,)] = database.fetch("select id::text from relay.extras")
    name = str(psycopg.conninfo.conninfo_to_dict(database.dsn)["dbname"])
    database.close()
    for together in HOSTILE:
        with temporary_database(server, name) as dsn, Database(dsn) as broken:
            broken.execute("set client_min_messages = error")
            for statement in together:
                broken.execute(statement.replace("TASKS", tasks).replace("LANES", lanes).replace("EXTRA", extra))
            found = await check(dsn)
            assert list(found) == all_of_them
            for which, begins in together.values():
                assert (found[which].status, found[which].found[: len(begins)]) == ("failed", begins)


async def test_journal_that_is_full(database: Database, daemon_dsn: str) -> None:
    """A pause is a failure; before that, it is nearly full. Whose transaction keeps it so is named."""
    database.execute("select relay.epoch()")
    database.execute("update relay.settings set stop_bytes = 10000")
    with database.connect() as holder, holder.transaction():
        holder.execute("set transaction isolation level repeatable read; select 1")
        nearly = (await check(daemon_dsn))["journal"]
        assert (nearly.status, nearly.found.partition(":")[0]) == ("warning", "nearly full")
        assert f"is kept in the file by process {holder.info.backend_pid} (" in nearly.found

    database.execute("select relay.pause_if_full()")
    full = (await check(daemon_dsn))["journal"]
    assert (full.status, full.found.partition(",")[0]) == ("failed", "journalling is paused")
    database.execute("update relay.settings set stop_bytes = default; select relay.resume()")
    assert not_ok(await check(daemon_dsn)) == {}


async def test_journal_that_is_not_pruned(database: Database) -> None:
    """It takes a running daemon, or another that prunes."""
    database.execute("select relay.epoch(); insert into tasks (id, title) values ('a', 'A')")
    database.execute("select relay.tick(relay.place()); update relay.ticks set at = at - interval '3 hours'")
    journal = (await check(database.dsn))["journal"]
    assert journal.status == "warning"
    assert journal.found.startswith("not pruned: changes have been due for 72")
    assert "select relay.prune()" in str(journal.hint)

    database.execute("select relay.prune()")
    assert not_ok(await check(database.dsn)) == {}


async def test_published_table_without_identity(database: Database) -> None:
    """Postgres refuses to change its rows, and the finding says so before a writer does."""
    database.execute("alter table tasks replica identity nothing; set client_min_messages = error")
    database.execute("create publication relay_test_some for table tasks")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    replication = (await check(database.dsn))["replication"]

    assert replication.status == "failed"
    assert replication.found.startswith("publication relay_test_some has public.tasks, which has no replica identity")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("update tasks set title = 'B'")
    database.execute(str(replication.hint).rpartition("or ")[2])
    database.execute("update tasks set title = 'B'")
    assert not_ok(await check(database.dsn)) == {}


async def test_publication_for_all_tables(database: Database) -> None:
    """It has none of the relay's tables, which are not in the WAL."""
    database.execute("set client_min_messages = error; create publication relay_test_all for all tables")
    published = database.fetch("select schemaname, tablename from pg_publication_tables")

    assert published == [("public", "tasks")]
    assert not_ok(await check(database.dsn)) == {}


async def test_wide_rows(database: Database, daemon_dsn: str) -> None:
    """What clients are shown counts, unpacked where that costs nothing, and not what is hidden."""
    database.execute("alter table tasks add column notes text, add column secret bytea")
    database.execute("select relay.watch('tasks', hidden => '{secret}')")
    database.execute("insert into tasks (id, title) select 'a' || n, 'A' from generate_series(1, 1000) n")
    database.execute("update tasks set secret = convert_to(repeat('x', 2000000), 'UTF8') where id = 'a1000'")
    assert not_ok(await check(daemon_dsn)) == {}

    database.execute("update tasks set notes = repeat('x', 2000000) where id = 'a1'")
    rows = (await check(daemon_dsn))["rows"]
    assert rows.status == "warning"
    assert "sampled rows of public.tasks has about 2,000," in rows.found


async def test_rows_of_a_table_that_is_locked_are_not_waited_for(database: Database, daemon_dsn: str) -> None:
    """The check goes on without them, and names the process that has the lock."""
    with database.connect() as holder, holder.transaction():
        holder.execute("insert into tasks (id, title) values ('a', 'A'); lock table tasks")
        found = await check(daemon_dsn)
        assert not_ok(found) == {"reading": "warning"}
        assert f"public.tasks is locked by process {holder.info.backend_pid}" in found["reading"].found


@pytest.mark.parametrize(
    ("lost", "hint"),
    [
        (
            "revoke select on tasks from relay_reader",
            "have postgres run: grant select on public.tasks to relay_reader",
        ),
        (
            "alter table tasks enable row level security",
            "have a superuser run: alter role relay_reader bypassrls",
        ),
    ],
)
async def test_table_that_the_reader_may_not_read(database: Database, daemon_dsn: str, lost: str, hint: str) -> None:
    """As the daemon finds it, with the grant that is missing."""
    database.execute(lost)
    reading = (await check(daemon_dsn))["reading"]
    assert (reading.status, reading.hint) == ("failed", hint)


async def test_large_table_without_an_index_on_its_boards(database: Database, daemon_dsn: str) -> None:
    """Each board would read all of it; the hint can be pasted."""
    database.execute("""
        create table large (id uuid primary key default gen_random_uuid(), board_id text not null, lane text);
        insert into large (board_id, lane) select n % 100, 'x' from generate_series(1, 20000) n;
        analyze large; select relay.watch('large')
    """)
    reading = (await check(daemon_dsn))["reading"]
    assert reading.status == "warning"
    assert reading.found.startswith("public.large has 20,000 rows and no index that begins with board_id")
    database.execute(str(reading.hint).removeprefix("run "))
    database.execute("""
        create table notes (task_id uuid, done boolean);
        insert into notes select gen_random_uuid(), false from generate_series(1, 20000);
        create index on notes (task_id) where not done; analyze notes;
        select relay.extra('large', 'noteCount', 'notes', key_column => 'task_id', filter => 'not done')
    """)
    assert (await check(daemon_dsn))["reading"].status == "ok"
    database.execute("select relay.extra('large', 'noteCount', 'notes', key_column => 'task_id')")
    assert (await check(daemon_dsn))["reading"].found.startswith("public.notes has 20,000 rows and no index")


async def test_partitioned_table_without_an_index_on_its_boards(database: Database, daemon_dsn: str) -> None:
    """Postgres creates no index concurrently there: the partitions get theirs first, and the table adopts them."""
    large = "update pg_class set reltuples = 20000 where relname = 'large_0'"  # which creating an index corrects
    database.execute(f"""
        create table large (id uuid primary key, board_id text not null, lane text) partition by hash (id);
        create table large_0 partition of large for values with (modulus 1, remainder 0);
        {large}; select relay.watch('large')
    """)
    hint = str((await check(daemon_dsn))["reading"].hint)
    database.execute("create index concurrently on large_0 (board_id)")
    database.execute(f"{hint.partition('then run ')[2].partition(', which adopts them')[0]}; {large}")
    assert (await check(daemon_dsn))["reading"].status == "ok"
    assert database.fetch("select count(*) from pg_index where indrelid = 'large_0'::regclass") == [(2,)]


async def test_tables_whose_tasks_can_be_mistaken_for_one_another(database: Database, daemon_dsn: str) -> None:
    """Messages name a task by its id alone; relay.watch refuses such tables, but a column may change its type."""
    database.execute("create table one (id uuid primary key default gen_random_uuid(), board_id int, lane text)")
    database.execute("create table two (id int primary key, board_id int, lane text)")
    database.execute("select relay.watch('one'), relay.watch('two', order_by => '{lane}')")
    clashes = (await check(daemon_dsn))["clashes"]
    assert (clashes.status, "in different orders" in clashes.found) == ("warning", True)
    database.execute("alter table one alter id drop default, alter id type int using 1")
    clashes = (await check(daemon_dsn))["clashes"]
    assert (clashes.status, "may have the same id on the same board" in clashes.found) == ("failed", True)
    database.execute("select relay.watch('two', distinct_ids => true, order_by => '{}')")
    assert (await check(daemon_dsn))["clashes"].status == "ok"


async def test_numbers_that_javascript_would_round(database: Database, daemon_dsn: str) -> None:
    """Ids, boards and lanes; the command that is named has them sent as text."""
    database.execute("create table huge (id bigint primary key, board_id bigint, lane bigint, other bigint)")
    database.execute("insert into huge values (1, 2, 3, 1918031335180469264); select relay.watch('huge')")
    found = "select huge from relay.widest() where huge is not null order by sampled desc limit 1"
    for column in ("id", "board_id", "lane"):
        database.execute("update huge set id = 1, board_id = 2, lane = 3")
        for value, huge in (("1 - (1::bigint << 53)", 0), ("-1 * (1::bigint << 53)", 1)):
            database.execute(f"update huge set {column} = {value}")
            assert database.fetch(found) == [(huge,)]
    rows = (await check(daemon_dsn))["rows"]
    assert (rows.status, rows.hint) == ("warning", "run relay sql watch public.huge --as-text")
    assert rows.found.startswith("1 of 1 sampled rows of public.huge have an id, a board or a lane")
    database.execute("select relay.watch('huge', as_text => true)")
    assert database.fetch(found) == [(0,)]


async def test_tables_whose_board_is_an_expression_can_lack_an_index(database: Database, daemon_dsn: str) -> None:
    """Tasks whose board is that of their lane are found by the lane, and those of an expression by an index of it."""
    database.execute("""
        create table lists (id int primary key, board_id int, name text); select relay.lanes('lists');
        create table cards (id serial primary key, list_id int);
        create table said (id uuid primary key default gen_random_uuid(), n int, lane text);
        update pg_class set reltuples = 10000 where relname = 'cards';
        update pg_class set reltuples = 20000 where relname = 'said';
        select relay.watch('cards', lane_column => 'list_id', lanes => 'lists');
        select relay.watch('said', board_as => '(n % 9)::text');
        create table notes (said_id uuid); update pg_class set reltuples = 15000 where relname = 'notes';
        select relay.extra('said', 'notes', 'notes', key_column => 'said_id')
    """)
    found = await check(daemon_dsn)
    for missing in ("((((n % 9))::text))", "(said_id)", "(list_id)"):
        assert str(found["reading"].hint).endswith(missing)
        database.execute(str(found["reading"].hint).removeprefix("run ").replace("concurrently ", ""))
        found = await check(daemon_dsn)
    assert found["reading"].status == "ok"


async def test_limits_that_contradict_each_other(database: Database, daemon_dsn: str) -> None:
    database.execute("update relay.settings set keep_bytes = stop_bytes")
    journal = (await check(daemon_dsn))["journal"]
    assert (journal.status, "stop_bytes is not above keep_bytes" in journal.found) == ("warning", True)
    limits = (await check(daemon_dsn, WS_SEND_BUFFER="2000000", WS_BACKLOG_TOTAL="1500000"))["limits"]
    assert limits.found == "WS_SEND_BUFFER=2000000 is never reached, for WS_BACKLOG_TOTAL is 1500000"


async def test_table_whose_name_another_one_took(database: Database, daemon_dsn: str) -> None:
    """It fails, as long as nobody has decided which of the two is shown."""
    database.execute("alter table tasks rename to tasks_old; create table tasks (like tasks_old including all)")
    columns = (await check(daemon_dsn))["columns"]
    assert columns.status == "failed"
    assert "relay sql watch public.tasks --id id --board board_id --lane lane" in str(columns.hint)
    database.execute("select relay.watch('tasks_old')")
    assert (await check(daemon_dsn))["columns"].status == "ok"


async def test_event_trigger_that_enables_row_security(empty_database: Database) -> None:
    """As some hosts advise: the relay's own tables stay readable, and what the user's table needs is named."""
    empty_database.execute("""
        create function rls() returns event_trigger language plpgsql as $$ declare made record; begin
            for made in select object_identity as name, object_type from pg_event_trigger_ddl_commands()
            loop
                continue when made.object_type <> 'table';
                execute format('alter table %s enable row level security', made.name);
            end loop; end $$;
        create event trigger rls on ddl_command_end when tag in ('CREATE TABLE') execute function rls()
    """)
    with sole_use("role-relay_daemon"):
        for name in ("tasks", "install", "roles"):
            install.run(empty_database.dsn, name)
        with pytest.raises(install.InstallError, match="have a superuser run: alter role relay_reader bypassrls"):
            install.watch(empty_database.dsn, "public.tasks")
        empty_database.execute("alter table tasks disable row level security")
        install.watch(empty_database.dsn, "public.tasks")
        assert not_ok(await check(make_conninfo(empty_database.dsn, user="relay_daemon"))) == {}
        empty_database.execute("drop owned by relay_daemon cascade; drop role relay_daemon")


async def test_no_room_for_the_daemons_connections(database: Database) -> None:
    """The limit of the database counts, and what each worker needs."""
    name = psycopg.conninfo.conninfo_to_dict(database.dsn)["dbname"]
    database.execute(f"alter database {name} connection limit 2")  # superusers get in all the same
    connections = (await check(database.dsn))["connections"]
    assert connections.status == "failed"
    assert connections.found == "there is room for 1 more, and the daemon needs 3"

    database.execute(f"alter database {name} connection limit 9")
    assert not_ok(await check(database.dsn, WS_WORKERS="2")) == {}
    assert not_ok(await check(database.dsn, WS_WORKERS="3")) == {"connections": "failed"}


# The server -----------------------------------------------------------------------------------------------------


async def test_unreachable_server() -> None:
    """The first check says why, all that rest on it are skipped, and no password is shown."""
    found = await check(make_conninfo(host="127.0.0.1", port=free_port(), user="a", dbname="b", password="hush"))
    assert found["connection"].status == "failed"
    assert "Connection refused" in found["connection"].found
    names = list(found)
    assert {found[name].status for name in names[names.index("connection") + 1 :]} == {"skipped"}
    assert "hush" not in str(found)


async def test_database_that_is_read_only(database: Database) -> None:
    """Found although libpq, asked for a server that takes writes, does not connect."""
    name = psycopg.conninfo.conninfo_to_dict(database.dsn)["dbname"]
    database.execute(f"alter database {name} set default_transaction_read_only = on")
    found = await check(database.dsn)
    assert (found["connection"].status, found["primary"].status) == ("ok", "failed")
    assert "default_transaction_read_only" in found["primary"].found
    assert found["primary"].hint is not None
    with pytest.raises(install.InstallError, match=re.escape(found["primary"].hint)):
        install.run(database.dsn, "install")
    database.execute(found["primary"].hint.removeprefix("run "))
    assert (await check(database.dsn))["primary"].status == "ok"


async def test_database_without_an_encoding(server: Server) -> None:
    with temporary_database(server, "template0", "encoding 'SQL_ASCII' locale 'C'") as dsn:
        found = await check(dsn)
    assert (found["version"].status, found["encoding"].status, found["pooler"].status) == ("ok", "failed", "skipped")
    assert "SQL_ASCII" in found["encoding"].found


async def test_standby(own_server: EmbeddedPostgres) -> None:
    """It is distinguished from a server that does not answer."""
    with Standby(own_server) as standby:
        found = await check(standby.dsn)
        with pytest.raises(FeedError, match="is a standby, which takes no writes: expected the primary: name it"):
            await connect(complete(standby.dsn))
    assert (found["connection"].status, found["primary"].status) == ("ok", "failed")
    assert "is a standby" in found["primary"].found


async def test_triggers_that_do_not_notify(server: Server) -> None:
    """Where transactions may be prepared, and while the notification queue is half full."""
    if server.version_num < 170_000:
        pytest.skip("the size of the queue can be set from Postgres 17 on")
    settings = {"max_prepared_transactions": "1", "max_notify_queue_pages": "64"}
    try:
        own = Postgres(settings=settings)
    except EmbeddedPostgresError as error:
        do_without(str(error))
    with own, Database(own.dsn) as database:
        install_all(own.dsn)
        prepared = (await check(own.dsn))["notifications"]
        assert prepared.status == "ok"
        assert "50 ms" in prepared.found

        listener = database.connect()
        listener.execute("listen anything")
        listener.execute("begin")
        database.execute("select pg_notify('anything', repeat('x', 7000) || n) from generate_series(1, 50) n")
        queue = (await check(own.dsn))["notifications"]
    assert queue.status == "warning"
    assert "triggers do not notify" in queue.found


# What is in between ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pgbouncer(database: Database, folder: Path, mode: str) -> Iterator[str]:
    """Run PgBouncer in front of a database; yield the way through it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if not program:
        do_without("this needs PgBouncer: on Debian and Ubuntu, apt install pgbouncer")
    with psycopg.connect(database.dsn) as connection:
        info = connection.info
        host, server_port, name, user, password = info.hostaddr, info.port, info.dbname, info.user, info.password
    port = free_port()
    secret = f" password={password}" if password else ""
    settings = folder / f"{mode}.ini"
    settings.write_text(
        f"[databases]\n{name} = host={host} port={server_port} user={user}{secret}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
        # What libpq sends as it connects, of which PgBouncer knows only some.
        "ignore_startup_parameters = extra_float_digits\n"
    )
    # Started by root, it refuses to stay root.
    as_another = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *as_another, settings], stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until_listening(port)
        yield make_conninfo(host="127.0.0.1", port=port, dbname=name, user=user)
    finally:
        process.terminate()
        process.wait()


def wait_until_listening(port: int) -> None:
    """Return once something accepts connections there."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


async def test_transaction_pooler(database: Database, tmp_path: Path) -> None:
    """It is reported before anything is set or listened to, for that would stay in connections that others use."""
    with pgbouncer(database, tmp_path, "transaction") as dsn:
        found = await check(dsn)
        with psycopg.connect(dsn, autocommit=True) as other:
            kept = other.execute("select pg_listening_channels(), current_setting('search_path')").fetchall()
            path = other.execute("show search_path").fetchall()
    assert found["pooler"].status == "failed"
    assert "transaction pooler" in found["pooler"].found
    assert str(found["pooler"].hint).startswith("connect to Postgres itself")
    assert found["install"].status == "skipped"
    assert (kept, path) == ([], [('"$user", public',)])


async def test_session_pooler(database: Database, tmp_path: Path) -> None:
    """One that keeps sessions is all right: notifications come through."""
    with pgbouncer(database, tmp_path, "session") as dsn:
        assert not_ok(await check(dsn)) == {}


async def test_notification_that_does_not_come_through(
    database: Database, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two connections end in two places."""
    monkeypatch.setattr(database_module, "NOTIFICATION_SECONDS", 0.1)
    with temporary_database(server) as elsewhere:
        async with (
            await Connection.connect(database.dsn, autocommit=True) as one,
            await Connection.connect(elsewhere, autocommit=True) as other,
        ):
            assert await database_module.round_trip(one, other) is None
            assert await database_module.round_trip(one, one) is not None


# This machine ---------------------------------------------------------------------------------------------------


async def test_credentials_that_cannot_be_read(tmp_path: Path) -> None:
    """A file or an address that is not there, another certificate's key; and a relay that is open to all."""
    unreadable = {
        "WS_TOKENS_FILE: cannot read nowhere: No such file": {"WS_TOKENS_FILE": "nowhere"},
        "WS_JWT_KEYS: /dev/null: is no JWKS": {"WS_JWT_KEYS": "/dev/null"},
        "WS_JWT_KEYS: http://127.0.0.1:1/keys does not answer": {"WS_JWT_KEYS": "http://127.0.0.1:1/keys"},
        "WS_TLS_CERT": {"WS_TLS_CERT": "nowhere"},
    }
    for found, settings in unreadable.items():
        access = (await check("", **settings))["access"]
        assert access.status == "failed"
        assert access.found.startswith(found)

    other = tmp_path / "other"
    other.mkdir()
    cert, _ = certificate(tmp_path, "a")
    _, key = certificate(other, "b")
    wrong = await check("", WS_TOKENS="hush", WS_TLS_CERT=str(cert), WS_TLS_KEY=str(key))
    assert wrong["access"].status == "failed"
    assert wrong["access"].found.startswith("WS_TLS_CERT")
    assert "hush" not in str(wrong)

    assert (await check("", WS_HOST="0.0.0.0"))["access"].status == "warning"
    assert (await check("", WS_HOST="0.0.0.0", WS_TOKENS="hush"))["access"].status == "ok"


async def test_port_that_is_taken() -> None:
    """By a program that is no relay; and one port for two."""
    with socket.create_server(("127.0.0.1", 0)) as program:
        port = str(program.getsockname()[1])
        for setting in ("WS_PORT", "HEALTH_PORT"):
            ports = (await check("", **{setting: port}))["ports"]
            assert (ports.status, ports.hint) == ("failed", f"choose another with {setting}")
            assert ports.found == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert (await check("", WS_PORT=port, HEALTH_PORT=port))["ports"].status == "failed"
    assert (await check("", WS_PORT=port))["ports"].status == "ok"


async def test_more_clients_than_files() -> None:
    """The limit of this process is held against the setting."""
    files = (await check("", WS_MAX_CONNECTIONS="2000000000"))["files"]
    assert files.status == "failed"
    assert "needs 2000000128" in files.found


# What cannot be broken here -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(130022, "failed"), (140000, "ok"), (180006, "ok"), (190000, "warning")],
)
def test_versions(number: int, status: str) -> None:
    """Postgres 14 to 18 are known; a later one may work."""
    assert database_module.judge_version(number).status == status


def test_clocks_differ_by_what_the_round_trip_leaves_open() -> None:
    """The quickest of the readings counts, and its uncertainty is in favour of the clocks."""
    assert database_module.judge_clock([(100.0, 105.0, 110.0)]).status == "ok"
    assert database_module.judge_clock([(100.0, 107.0, 110.0)]).status == "ok"
    assert database_module.judge_clock([(100.0, 107.0, 110.0), (110.0, 112.0, 110.2)]).status == "warning"
    behind = database_module.judge_clock([(100.0, 97.9, 100.2)])
    assert behind.found.startswith("the server's clock is 2.2 s behind this machine's")


def test_the_internet_asks_for_tls() -> None:
    """Inside a private network nothing is advised."""
    assert database_module.judge_tls("", "93.184.216.34", tls=False).status == "warning"
    assert database_module.judge_tls("", "93.184.216.34", tls=True).status == "ok"
    assert database_module.judge_tls("", "10.1.2.3", tls=False).status == "ok"
    assert database_module.judge_tls("", "", tls=False).status == "ok"

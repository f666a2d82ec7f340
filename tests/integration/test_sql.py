"""What the SQL files do to a database: install, watch, journal, notify, leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.install import text
from relay.text import error_line
from tests.servers import Database, Postgres, install

SQL = Path(__file__).parents[2] / "sql"

Objects = list[tuple[object, ...]]


def run(database: Database, *names: str) -> None:
    """Run SQL files as they are."""
    for name in names:
        with database.connect() as connection:
            connection.execute(text(name).encode())


def objects(database: Database) -> Objects:
    """List everything that is not Postgres's own."""
    return database.fetch(
        "select 'class', n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname !~ '^pg_|information_schema' "
        "union all select 'proc', n.nspname, p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
        "where n.nspname !~ '^pg_|information_schema' "
        "union all select 'trigger', t.tgrelid::regclass::text, t.tgname from pg_trigger t "
        "union all select 'namespace', n.nspname, '' from pg_namespace n where n.nspname !~ '^pg_toast|^pg_temp' "
        "order by 1, 2, 3"
    )


def journalled(database: Database, column: str) -> list[object]:
    """Return a column of the rows that came, in the order of the journal."""
    rows = database.fetch(f"select new_row::json ->> '{column}' from relay.entries where op = 'R' order by lsn")
    return [value for (value,) in rows]


def operations(database: Database) -> str:
    """Return what the journal has entries of, since the table was watched: R a row, S a sync."""
    [(found,)] = database.fetch(
        "select string_agg(op::text, '' order by lsn) from relay.entries "
        "where reason is distinct from 'watch_changed'"
    )
    return str(found)


def test_files_are_safe_to_run_twice(empty_database: Database) -> None:
    """A second run of each file changes nothing and fails nowhere."""
    run(empty_database, "tasks", "install")
    empty_database.execute("select relay.watch('public.tasks')")
    once = objects(empty_database)
    run(empty_database, "tasks", "install")
    empty_database.execute("select relay.watch('public.tasks')")

    assert once == objects(empty_database)


def test_uninstall_leaves_nothing_behind_and_the_data_alone(empty_database: Database) -> None:
    """After uninstall the database is as before install, and the rows are there."""
    run(empty_database, "tasks")
    empty_database.execute("create table p (id int primary key, board_id text, lane text) partition by hash (id)")
    empty_database.execute("create table p0 partition of p for values with (modulus 1, remainder 0)")
    before = objects(empty_database)
    run(empty_database, "install")
    empty_database.execute("select relay.watch('public.tasks'), relay.watch('public.p')")
    empty_database.execute("insert into tasks (id, title) values ('a', 'A')")
    run(empty_database, "uninstall", "uninstall")

    assert before == objects(empty_database)
    assert empty_database.fetch("select id from tasks") == [("a",)]


def test_uninstall_stops_before_what_is_not_its_own(database: Database) -> None:
    """Somebody's view on the journal is not dropped with it: uninstall refuses, and changes nothing."""
    database.execute("create view mine as select * from relay.journal")
    before = objects(database)

    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        run(database, "uninstall")
    assert before == objects(database)


def test_error_line_says_what_the_server_needs_more_of(database: Database) -> None:
    """Postgres names the setting, such as max_locks_per_transaction, in the hint alone."""
    raised = "do $$ begin raise 'out of shared memory' using errcode = '{}', hint = 'Increase it.'; end $$"
    for code, line in (("53200", "out of shared memory: Increase it."), ("22000", "out of shared memory")):
        with pytest.raises(psycopg.Error) as error:
            database.execute(raised.format(code))
        assert error_line(error.value) == line


def test_second_install_keeps_the_journal_and_what_is_watched(database: Database) -> None:
    """What was journalled before is there after, as it was, and the next change joins it."""
    database.execute("insert into tasks (title) values ('before')")
    watched = database.fetch("select * from relay.watched")
    run(database, "install")
    database.execute("insert into tasks (title) values ('after')")

    assert journalled(database, "title") == ["before", "after"]
    assert database.fetch("select * from relay.watched") == watched


def test_tasks_table_has_the_guides_defaults(database: Database) -> None:
    """A task needs nothing but a title."""
    database.execute("insert into tasks (title) values ('New')")

    [(task_id, *rest)] = database.fetch(
        "select id, board_id, lane, status, priority, estimated_hours, created_at = updated_at from tasks"
    )
    assert task_id.startswith("task-")
    assert rest == ["default", "backlog", None, "medium", None, True]


def test_tasks_table_refuses_invalid_tasks(database: Database) -> None:
    """Constraints keep illegal tasks out."""
    database.execute("insert into tasks (title) values ('New')")

    for column, value in (
        *(("title", "''"), ("title", "null"), ("lane", "''"), ("lane", "null")),
        *(("estimated_hours", "-1"), ("board_id", "null")),
    ):
        with pytest.raises(psycopg.errors.IntegrityError, match=column):
            database.execute(f"update tasks set {column} = {value}")


def test_updated_at_is_kept_by_the_database(database: Database) -> None:
    """An update moves updated_at, one that changes nothing does not."""
    database.execute("insert into tasks (title, updated_at) values ('New', '2000-01-01')")
    database.execute("update tasks set title = 'New'")
    assert database.fetch("select updated_at < '2001-01-01' from tasks") == [(True,)]
    database.execute("update tasks set title = 'Newer'")

    assert database.fetch("select updated_at < '2001-01-01' from tasks") == [(False,)]


_REFUSED = {
    "create table t (id int, board_id text, lane text)": "id of public.t is not a key by itself (primary key: none)",
    "create table t (id int, board_id text, lane text, primary key (id, board_id))": "(primary key: (id, board_id))",
    "create table t (id int primary key deferrable, board_id text, lane text)": "own, not deferrable, and not null",
    "create table t (id int unique, board_id text, lane text)": "column id of public.t is not a key by itself",
    "create table t (board_id text primary key, lane text)": "has no column 'id': name the column with id_column",
    "create table t (id int primary key, board text, lane text)": "public.t has no column 'board_id'",
    "create table t (id float8 primary key, board_id text, lane text)": "is of type double precision: as id_column",
    "create table t (id int primary key, board_id json, lane text)": "is of type json: as board_column",
    "create view t as select 1 as id, '' as board_id, '' as lane": "public.t is not a permanent table",
    "create temp table t (id int primary key, board_id text, lane text)": "is not a permanent table",
    "create table q (id int primary key, board_id text, lane text) partition by hash (id); "
    "create table t partition of q for values with (modulus 1, remainder 0)": "public.t is a partition: watch",
}


def test_watch_refuses_what_cannot_be_fed_exactly(database: Database) -> None:
    """A table without a key of one column, or without the columns, is refused in one sentence that says why."""
    for table, reason in _REFUSED.items():
        with database.connect() as connection:
            connection.execute("begin")
            connection.execute(table.encode())
            with pytest.raises(psycopg.Error) as caught:
                connection.execute("select relay.watch('t')")
        assert reason in (caught.value.diag.message_primary or "")


def test_watch_refuses_wrong_columns(database: Database) -> None:
    """What is hidden or ordered by must be there, and what messages need cannot be hidden."""
    for arguments, expected in {
        "hidden => '{nothing}'": "has no column 'nothing' to hide",
        "hidden => '{lane}'": "column lane of public.tasks cannot be hidden",
        "order_by => '{nothing}'": "order_by has 'nothing': expected a column of public.tasks",
        "order_by => '{title; drop table tasks}'": "expected a column of public.tasks",
        "board_column => 'lane'": "must be three columns",
    }.items():
        with pytest.raises(psycopg.Error) as caught:
            database.execute(f"select relay.watch('tasks', {arguments})")
        assert expected in (caught.value.diag.message_primary or "")


def test_watch_and_unwatch_show_in_the_view(database: Database) -> None:
    """The view lists what is watched and how."""
    database.execute("select relay.watch('tasks', hidden => '{description}', order_by => '{priority desc, title}')")
    row = ("public", "tasks", "id", "board_id", "lane", ["description"], ["priority desc", "title"], True)
    columns = "schema_name, table_name, id_column, board_column, lane_column, hidden, order_by, triggers_complete"
    assert database.fetch(f"select {columns} from relay.watched") == [row]
    database.execute("select relay.unwatch('tasks'), relay.unwatch('tasks')")

    assert database.fetch("select * from relay.watched") == []
    assert database.fetch("select tgname from pg_trigger where tgname like 'relay%%'") == []


@pytest.mark.parametrize(
    ("harm", "complete"),
    [
        ("alter table tasks disable trigger relay_change", False),
        ("drop trigger relay_change on tasks", False),
        ("alter table tasks enable trigger relay_change", True),
    ],
)
def test_trigger_that_does_not_always_fire_shows_and_watch_restores_it(
    database: Database, harm: str, complete: bool
) -> None:
    """One that was disabled or dropped is missing; one for ordinary sessions only does not fire in replication."""
    triggers = "select triggers_complete, triggers_always from relay.watched"
    database.execute(harm)
    assert database.fetch(triggers) == [(complete, False)]
    database.execute("select relay.watch('tasks')")
    assert database.fetch(triggers) == [(True, True)]


def test_watch_is_kept_where_somebody_drops_the_triggers_and_goes_with_the_table(database: Database) -> None:
    """It is written in the trigger on TRUNCATE, and noted on the function of the other. After that it goes on."""
    watched = "select target::regclass::text, hidden, triggers_complete, problem from relay.watched"
    database.execute("select relay.watch('tasks', hidden => '{description}')")
    database.execute("drop trigger relay_change on tasks; drop trigger relay_truncate on tasks")
    assert database.fetch(watched) == [("tasks", ["description"], False, None)]
    database.execute("select relay.remove_orphans(); select relay.watch('tasks')")
    assert database.fetch(watched) == [("tasks", ["description"], True, None)]

    database.execute(
        "drop trigger relay_truncate on tasks; alter table tasks rename to jobs; create table tasks (id int)"
    )
    [(table, _, _, problem)] = database.fetch(watched)
    assert (table, problem) == ("tasks", "was restored, and a column that it hides is not there")
    database.execute("drop table tasks; create table tasks (id int primary key, board_id text, lane text)")
    database.execute("select relay.watch('tasks')")
    assert database.fetch(watched) == [("tasks", [], True, None)]
    database.execute("drop table tasks")
    assert database.fetch(watched) == []


def test_watch_id_is_never_used_again(database: Database) -> None:
    """A change names the watch that it was made under: a later watch of the same table is another."""
    first = database.fetch("select id from relay.watches")
    database.execute("select relay.watch('tasks', hidden => '{description}')")
    second = database.fetch("select id from relay.watches")
    database.execute("select relay.unwatch('tasks'); select relay.watch('tasks')")

    assert len({*first, *second, *database.fetch("select id from relay.watches")}) == 3
    assert len(database.fetch("select from pg_proc where proname ~ '^journal_[0-9]+$'")) == 1


def test_new_partition_is_covered_by_watching_again(database: Database) -> None:
    """A partition that came later has row triggers from its parent; TRUNCATE's comes with relay.watch."""
    database.execute("create table p (id int primary key, board_id text, lane text) partition by list (id)")
    database.execute("create table p1 partition of p for values in (1)")
    database.execute("select relay.watch('p')")
    database.execute("create table p2 partition of p for values in (2)")
    database.execute("insert into p values (2, 'b', 'todo')")
    assert database.fetch("select key, new_board from relay.entries where op = 'R'") == [("2", "b")]
    complete = "select triggers_complete from relay.watched where table_name = 'p'"
    assert database.fetch(complete) == [(True,)]
    database.execute("alter table p2 disable trigger relay_change")
    assert database.fetch(complete) == [(False,)]
    database.execute("select relay.watch('p')")
    database.execute("truncate p2")

    assert database.fetch("select reason from relay.entries order by lsn desc limit 1") == [("truncate",)]


def test_second_watch_with_the_same_settings_takes_no_lock(database: Database) -> None:
    """Watching what is watched waits for nobody, not even for a transaction that writes."""
    writer = database.connect()
    writer.execute("begin; insert into tasks (title) values ('open')")
    database.execute("select relay.watch('tasks')")
    writer.execute("rollback")


def test_transaction_notifies_once(database: Database) -> None:
    """However many rows and boards it changes, without a payload, which could be too long."""
    listener = database.connect()
    listener.execute("listen relay")
    database.execute("select relay.poll_for(0)")
    database.execute("insert into tasks (board_id, title) select b, 'T' from unnest('{x,x,y}'::text[]) b")
    [notify] = listener.notifies(timeout=5, stop_after=1)

    assert notify.payload == ""
    assert list(listener.notifies(timeout=0.1)) == []


def test_update_that_changes_nothing_notifies_nobody(database: Database) -> None:
    """No change, no notification, and no entry."""
    database.execute("insert into tasks (title) values ('T')")
    listener = database.connect()
    listener.execute("listen relay")
    database.execute("select relay.poll_for(0)")
    database.execute("update tasks set title = 'T'")

    assert list(listener.notifies(timeout=0.1)) == []
    assert operations(database) == "R"


def test_very_long_board_name_fails_no_writer(database: Database) -> None:
    """It is journalled whole."""
    # Without the index: a b-tree cannot hold such a value, with or without us.
    database.execute("drop index tasks_board")
    database.execute("insert into tasks (board_id, title) values (repeat('\"\\', 500000), 'T')")

    assert database.fetch("select length(new_board) from relay.entries where op = 'R'") == [(1_000_000,)]


def test_writer_needs_no_right_on_the_relay(database: Database) -> None:
    """Whoever may write the tasks may write them, and may read nothing of the journal."""
    with database.connect() as connection:
        connection.execute("do $$ begin create role relay_test_writer; exception when duplicate_object then end $$")
        connection.execute("grant select, insert, update, delete, truncate on tasks to relay_test_writer")
        try:
            connection.execute("set role relay_test_writer")
            connection.execute("insert into tasks (id, title) values ('a', 'A')")
            connection.execute("update tasks set title = 'B'")
            connection.execute("delete from tasks")
            connection.execute("truncate tasks")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select * from relay.journal")
        finally:
            connection.execute("reset role; drop owned by relay_test_writer; drop role relay_test_writer")

    assert operations(database) == "RRRS"


def test_hostile_search_path_changes_nothing(database: Database) -> None:
    """Functions of a writer's own that shadow the built-in ones are not called."""
    with database.connect() as writer:
        writer.execute("create schema evil")
        writer.execute(
            "create function evil.row_to_json(record) returns json language plpgsql as "
            "$$ begin raise exception 'called'; end $$"
        )
        writer.execute(
            "create function evil.pg_notify(text, text) returns void language plpgsql as "
            "$$ begin raise exception 'called'; end $$"
        )
        writer.execute("set search_path = evil, pg_catalog, public")
        writer.execute("insert into tasks (id, title) values ('a', 'A')")

    assert journalled(database, "title") == ["A"]


def test_prepared_transactions_are_not_failed() -> None:
    """Where two-phase commit is enabled nobody is notified, for PREPARE fails after a NOTIFY."""
    with Postgres(settings={"max_prepared_transactions": "1"}) as server:
        install(server.dsn)
        with Database(server.dsn) as database:
            database.execute("begin")
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            database.execute("prepare transaction 'p'")
            database.execute("commit prepared 'p'")

            assert journalled(database, "id") == ["a"]


def test_epoch_stays_until_the_database_is_another(database: Database) -> None:
    """It is kept from call to call, and another begins where its table was emptied, as after a crash."""
    [(first,)] = database.fetch("select relay.epoch()")
    assert database.fetch("select relay.epoch()") == [(first,)]
    database.execute("truncate relay.epochs, relay.horizon")

    assert database.fetch("select relay.epoch()") != [(first,)]


def test_copied_database_starts_with_an_empty_journal(database: Database) -> None:
    """What was journalled, counted and seen elsewhere is worthless here, and nothing of it is kept."""
    [(first,)] = database.fetch("select run from relay.epoch()")
    database.execute("insert into tasks (title) values ('T')")
    database.execute("update relay.epochs set place = 'elsewhere'")
    database.execute("update relay.horizon set place = 'elsewhere'")
    [(second,)] = database.fetch("select run from relay.epoch()")

    assert second != first
    assert database.fetch("select count(*) from relay.journal") == [(0,)]
    assert database.fetch("select place = relay.place() from relay.horizon") == [(True,)]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("int", "7", ["007", "abc", "99999999999"]),
        ("citext", "a", ["A"]),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ],
)
def test_board_is_found_only_by_its_exact_name(database: Database, kind: str, right: str, wrong: list[str]) -> None:
    """A board has one name, the text of its column; under others are no tasks."""
    if kind == "citext":
        if not database.fetch("select 1 from pg_available_extensions where name = 'citext'"):
            pytest.skip("this server has no citext")
        database.execute("create extension citext")
    database.execute(f"create table t (id int primary key, board_id {kind}, lane text)")
    database.execute("select relay.watch('t')")
    database.execute("insert into t values (1, %s, 'todo')", right)

    found = "select b from unnest(%s::text[]) b where exists (select from relay.board(b) where watch is not null)"
    assert database.fetch(found, [right, *wrong]) == [(right,)]
    assert database.fetch("select new_board from relay.entries where op = 'R'") == [(right,)]


def test_board_comes_in_its_order(database: Database) -> None:
    """Tasks come by created_at, or by what relay.watch was given; the id decides among equals."""
    database.execute(
        "insert into tasks (id, title, priority, created_at) values "
        "('c', 'C', 'x', '2020-01-01'), ('a', 'A', 'y', '2020-01-02'), ('b', 'B', 'y', '2020-01-02')"
    )
    order = "select array_agg(task::json ->> 'id') from relay.board('default')"
    assert database.fetch(order) == [(["c", "a", "b"],)]
    database.execute("select relay.watch('tasks', order_by => '{priority desc, title desc}')")

    assert database.fetch(order) == [(["b", "a", "c"],)]


def test_board_is_read_by_index(database: Database) -> None:
    """Reading one board of many does not read the table."""
    database.execute("insert into tasks (board_id, title) select i::text, 'T' from generate_series(1, 20000) i")
    database.execute("analyze tasks")
    with database.connect() as reader:
        reader.execute("begin")
        reader.execute("select count(*) from relay.board('7')")
        [scans] = reader.execute("select seq_scan, idx_scan from pg_stat_xact_all_tables where relname = 'tasks'")

    assert scans == (0, 1)


@pytest.mark.parametrize("kind", ["varchar(20)", "name", "citext", "slug", "bigint", "stage"])
def test_board_is_read_by_index_whatever_its_type(database: Database, kind: str) -> None:
    """Those of citext are found by citext's own operator, wherever the extension is."""
    extension = database.fetch("select 1 from pg_available_extensions where name = 'citext'")
    if not extension and kind in {"citext", "slug"}:
        pytest.skip("this server has no citext")
    if extension:
        database.execute("create schema ext; create extension citext schema ext; create domain slug as ext.citext")
    database.execute("create type stage as enum ('7', '8'); set search_path = public, ext")
    database.execute(f"create table t (id int primary key, board_id {kind}, lane text); create index on t (board_id)")
    database.execute(
        f"insert into t select n, (case n when 1 then '7' else '8' end)::{kind}, 'x' from generate_series(1, 2000) n"
    )
    database.execute("select relay.watch('t'); analyze t")
    with database.connect() as reader:
        reader.execute("begin")
        reader.execute("select count(*) from relay.board('7')")
        [scans] = reader.execute("select seq_scan, idx_scan from pg_stat_xact_all_tables where relname = 't'")

    assert scans == (0, 1)


def test_virtual_generated_columns_are_not_shown(own_server: EmbeddedPostgres) -> None:
    """Triggers do not see what is computed on reading, so no message shows it.

    Nor can they be what a task needs.
    """
    install(own_server.dsn)
    with Database(own_server.dsn) as database:
        if database.connect().info.server_version < 180_000:
            pytest.skip("virtual generated columns came with Postgres 18")
        database.execute("alter table tasks add column loud text generated always as (upper(title)) virtual")
        database.execute("insert into tasks (title) values ('T')")

        assert database.fetch("select task::json ->> 'loud', hidden from relay.board('default'), relay.watched") == [
            (None, ["loud"])
        ]
        for part in ("board_column => 'loud'", "lane_column => 'loud'", "id_column => 'loud'"):
            with pytest.raises(
                psycopg.Error, match=r"of type virtual text: .*, and stored, because triggers do not see it"
            ):
                database.execute(f"select relay.watch('tasks', {part})")
        with pytest.raises(psycopg.Error, match="order_by has 'loud', by which clients cannot sort"):
            database.execute("select relay.watch('tasks', order_by => '{loud}')")
        database.execute("create table notes (task_id text, loud text generated always as (task_id) virtual)")
        for columns in ("key_column => 'loud'", "shown => '{loud}', key_column => 'task_id'"):
            with pytest.raises(psycopg.Error, match="has no column 'loud'"):
                database.execute(f"select relay.extra('tasks', 'notes', 'notes', {columns})")


def test_row_security_of_the_tasks_table_hides_nothing_from_the_journal(database: Database) -> None:
    """Policies that filter a writer's rows do not filter what is journalled."""
    database.execute("alter table tasks enable row level security, force row level security")
    with database.connect() as connection:
        connection.execute("do $$ begin create role relay_test_filtered; exception when duplicate_object then end $$")
        connection.execute("grant select, insert on tasks to relay_test_filtered")
        connection.execute("create policy writing on tasks for insert with check (true)")
        try:
            connection.execute("set role relay_test_filtered")
            connection.execute("insert into tasks (id, title) values ('a', 'A')")
            assert connection.execute("select * from tasks").fetchall() == []
        finally:
            connection.execute("reset role; drop policy writing on tasks; drop owned by relay_test_filtered")
            connection.execute("drop role relay_test_filtered")

    assert journalled(database, "id") == ["a"]

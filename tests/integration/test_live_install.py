"""Installing, watching and removing while the table is in use: nobody waits, and no change is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
import pytest

from relay.postgres import install
from tests.integration.client import Client
from tests.integration.conftest import Relay
from tests.servers import Database

HASTE = "set statement_timeout = '2s'"
"""Far longer than an attempt to lock lets anybody wait, far shorter than what the attempts wait for."""


@pytest.fixture
def unwatched(database: Database) -> Database:
    database.execute("select relay.unwatch('tasks')")
    return database


@contextmanager
def in_background(database: Database, statement: str) -> Iterator[threading.Thread]:
    """Run a statement over a connection of its own, and see it end well."""
    failures: list[psycopg.Error] = []
    with database.connect() as connection:

        def run() -> None:
            try:
                connection.execute(statement.encode())
            except psycopg.Error as ex:
                failures.append(ex)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield thread
        finally:
            thread.join(30)
    assert not failures


def wait_for_attempts(database: Database, mode: str) -> None:
    """Wait until somebody has asked for the table's lock, and has given up again."""
    wanted = f"select 1 from pg_locks where relation = 'tasks'::regclass and mode = '{mode}' and not granted"
    for there in (True, False):
        while bool(database.fetch(wanted)) is not there:
            pass


READER = "begin; select * from tasks"
WRITER = "begin; insert into tasks (title) values ('open')"


@pytest.mark.parametrize("statement", ["select relay.watch('tasks')", "select relay.watch('tasks', 'id')"])
def test_watching_waits_for_no_reader(unwatched: Database, statement: str) -> None:
    """A transaction that has read the table, and stays open, does not matter."""
    with unwatched.connect() as reader:
        reader.execute(READER)
        unwatched.execute(statement)
        reader.execute("rollback")


def test_a_changed_watch_waits_for_no_reader(database: Database) -> None:
    """Neither does it when the triggers are replaced, of a partitioned table too."""
    database.execute("create table p (id int primary key, board_id text, lane text, x text) partition by hash (id)")
    database.execute("create table p0 partition of p for values with (modulus 1, remainder 0)")
    database.execute("select relay.watch('p')")
    with database.connect() as reader:
        reader.execute("begin; select * from tasks; select * from p")
        database.execute("select relay.watch('tasks', hidden => '{description}'), relay.watch('p', hidden => '{x}')")
        reader.execute("rollback")
    database.execute("insert into p values (1, 'b', 'todo', 'hush')")

    assert database.fetch("select bool_and(triggers_complete) from relay.watched") == [(True,)]
    assert database.fetch(
        "select new_row::json ->> 'x', new_row::json ->> 'id' from relay.entries where op = 'R'"
    ) == [(None, "1")]
    assert database.fetch("select count(*) from pg_proc where proname ~ '^(journal|entry)_[0-9]'") == [(4,)]


@pytest.mark.parametrize(
    ("holder", "statement", "mode"),
    [
        (WRITER, "select relay.watch('tasks', hidden => '{description}')", "ShareRowExclusiveLock"),
        (READER, "select relay.unwatch('tasks')", "AccessExclusiveLock"),
        (WRITER, "select relay.unwatch('tasks')", "AccessExclusiveLock"),
        (READER, install.text("uninstall"), "AccessExclusiveLock"),
    ],
    ids=["watch", "unwatch-reader", "unwatch-writer", "uninstall"],
)
def test_nobody_waits_behind_an_install_that_waits_for_the_table(
    database: Database, holder: str, statement: str, mode: str
) -> None:
    """While a long transaction holds the table, others read and write it; then the statement is done."""
    with database.connect() as long:
        long.execute(holder.encode())
        with in_background(database, statement) as waiting:
            wait_for_attempts(database, mode)
            with database.connect() as other:
                other.execute(HASTE)
                for number in range(20):
                    other.execute("insert into tasks (id, title) values (%s, 'T')", [f"t{number}"])
                    other.execute("select count(*) from tasks")
            assert waiting.is_alive()
            long.execute("commit")

    assert database.fetch("select count(*) from tasks where title = 'T'") == [(20,)]


@pytest.mark.parametrize(
    ("statement", "holder"),
    [
        ("select relay.watch('tasks', hidden => '{description}', patience => '0.3s')", WRITER),
        ("select relay.unwatch('tasks', '0.3s')", READER),
    ],
)
def test_lock_timeout_error_names_the_holder_of_the_table(database: Database, statement: str, holder: str) -> None:
    """And nothing was changed."""
    before = database.fetch("select * from relay.watches")
    with database.connect() as long:
        long.execute(holder.encode())
        holding = long.info.backend_pid
        with pytest.raises(psycopg.errors.LockNotAvailable) as failure:
            database.execute(statement)
        long.execute("rollback")

    assert f"process {holding} (" in str(failure.value)
    assert "nothing was changed" in str(failure.value)
    assert database.fetch("select * from relay.watches") == before


def test_unwatching_waits_for_a_change_of_the_watch(database: Database) -> None:
    """Two at once never leave a watch without its triggers."""
    with database.connect() as writer:
        writer.execute(WRITER)
        with in_background(database, "select relay.watch('tasks', hidden => '{description}')"):
            wait_for_attempts(database, "ShareRowExclusiveLock")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                database.execute("select relay.unwatch('tasks')")
            writer.execute("commit")

    assert database.fetch("select hidden, triggers_complete from relay.watched") == [(["description"], True)]


def test_existing_tasks_table_is_left_unchanged(empty_database: Database) -> None:
    """It gets no index, which would block writers while it is built, and no trigger; nobody is waited for."""
    empty_database.execute(
        "create table tasks (id text primary key, board_id text, lane text, created_at timestamptz)"
    )
    with empty_database.connect() as writer:
        writer.execute("begin; insert into tasks values ('a', 'b', 'todo')")
        empty_database.execute(install.text("tasks"))
        writer.execute("commit")

    assert empty_database.fetch("select count(*) from pg_index where indrelid = 'tasks'::regclass") == [(1,)]
    assert empty_database.fetch("select count(*) from pg_trigger where tgrelid = 'tasks'::regclass") == [(0,)]
    assert empty_database.fetch("select obj_description('tasks'::regclass)") == [(None,)]


def test_installing_again_waits_for_nobody(database: Database) -> None:
    """Not for an open transaction that has written tasks, found room for them, nor for one that reads the journal."""
    with database.connect() as writer, database.connect() as reader:
        writer.execute(WRITER)
        writer.execute("select relay.pause_if_full()")  # as about one row in a hundred does
        reader.execute("begin; select * from relay.journal")
        with database.connect() as connection:
            connection.execute("set statement_timeout = '20s'")
            for name in ("tasks", "install"):
                connection.execute(install.text(name).replace("'3s'", "'1ms'").encode())
        writer.execute("commit")
        reader.execute("commit")


def test_install_over_another_edition_refuses_and_changes_nothing(database: Database) -> None:
    """One sentence says what to do, and does."""
    database.execute("drop view relay.settings; create table relay.settings (one boolean, keep_age interval)")
    before = database.fetch("select oid from pg_class order by oid")
    with pytest.raises(install.InstallError) as refused:
        install.run(database.dsn, "install")

    assert str(refused.value) == (
        "schema relay holds tables of another edition, or somebody else's: run uninstall.sql first "
        "(relay sql uninstall), then install and watch your tables again"
    )
    assert database.fetch("select oid from pg_class order by oid") == before
    for name in ("uninstall", "install"):
        install.run(database.dsn, name)
    install.watch(database.dsn, "tasks")
    assert install.diff(database.dsn) == []


@pytest.mark.parametrize(
    "other",
    [
        "drop function relay.note_shape(); create function relay.note_shape() returns int language sql as 'select 1'",
        "create or replace view relay.watched as select w.*, null::text as another from relay.watched w",
    ],
    ids=["function", "view"],
)
def test_install_over_other_functions_says_what_to_do(database: Database, other: str) -> None:
    """What a function returns and a view's columns cannot be replaced, and Postgres's own hint does not help."""
    database.execute(other)
    with pytest.raises(install.InstallError, match="of another edition: run relay sql uninstall, then install and"):
        install.run(database.dsn, "install")
    for name in ("uninstall", "install"):
        install.run(database.dsn, name)


@pytest.mark.parametrize(
    "missing",
    [
        "drop table relay.ticks cascade",
        "drop view relay.settings cascade",
        "drop function relay.prune cascade; drop index relay.journal_xid",
        "drop view relay.watches cascade",
        "drop table relay.horizon, relay.epochs cascade; drop function relay.epoch cascade",
        "drop sequence relay.control",
        "drop table relay.journal cascade",
    ],
)
async def test_install_over_a_part_of_this_edition_ends_right(database: Database, missing: str) -> None:
    """What is not there is made, and what is there stays; then changes flow."""
    database.execute(missing)
    for _ in range(2):
        install.run(database.dsn, "install")
    assert install.diff(database.dsn) == []

    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        assert await client.until_last(database) == []
        assert relay.feed.problem is None


BESIDE: Final = """
    create table lists (id text primary key, board_id text, name text);
    create table tags (id int primary key, name text, archived boolean);
    create table task_tags (task_id text references tasks, tag_id int references tags);
    select relay.lanes('lists');
    select relay.extra('tasks', 'tags', 'tags', '{name}', through => 'task_tags', filter => 'not archived');
"""
"""A table of lanes, and those of an extra."""


def test_diff_is_empty_after_an_install(database: Database) -> None:
    """What the file would make is what is there, the trigger functions of all that is declared included."""
    database.execute("select relay.watch('tasks', hidden => '{description}', order_by => '{title desc}')")
    database.execute(BESIDE)
    assert install.diff(database.dsn) == []


def test_diff_shows_what_an_install_changes(database: Database) -> None:
    """What comes and changes, trigger functions included; and none of it has happened, nor waited for a writer."""
    database.execute(BESIDE)
    made = "select oid::regprocedure::text from pg_proc where proname ~ '^(journal|lanes?|extra)_[0-9]+(_far)?$'"
    functions = [name for (name,) in database.fetch(made)]
    assert len(functions) == 7
    database.execute("drop function relay.resync()")
    database.execute("".join(f"alter function {name} security invoker;" for name in functions))
    with database.connect() as writer:
        writer.execute(WRITER)
        lines = install.diff(database.dsn)
        writer.execute("commit")

    assert "+function relay.resync()" in lines
    shown = "\n".join(lines)
    assert [name for name in functions if f"FUNCTION {name.partition('(')[0]}(" not in shown] == []
    assert lines.count("+   SECURITY DEFINER") == 7
    assert database.fetch("select to_regprocedure('relay.resync()')") == [(None,)]
    assert database.fetch("select count(*) from pg_namespace where nspname ^@ 'relay'") == [(1,)]

    install.run(database.dsn, "install")
    assert install.diff(database.dsn) == []


def test_diff_leaves_out_what_is_not_the_relays(database: Database) -> None:
    """What a user made in the schema stays, so nothing is said of it; a function that was changed by hand is."""
    database.execute("create function relay.mine() returns int language sql as 'select 1'")
    assert install.diff(database.dsn) == []
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean "
        "language sql as 'select true'"
    )
    assert install.diff(database.dsn) == []
    database.execute(install.text("install"))
    assert database.fetch("select relay.may_read('{}', 'b')") == [(True,)]
    database.execute("create or replace function relay.paused() returns boolean language sql as 'select false'")
    assert any("select false" in line for line in install.diff(database.dsn))


def test_diff_of_an_empty_database_is_all_of_it(empty_database: Database) -> None:
    lines = install.diff(empty_database.dsn)
    assert "+table relay.journal" in lines
    assert empty_database.fetch("select count(*) from pg_namespace where nspname ^@ 'relay'") == [(0,)]

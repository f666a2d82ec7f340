"""Installing, watching, upgrading and removing while the table is in use: nobody waits, and no change is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from relay import install
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database

OLDER = Path(__file__).with_name("older_install.sql").read_text()

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
    assert database.fetch("select new_row ->> 'x', new_row ->> 'id' from relay.journal where op = 'I'") == [
        (None, "1")
    ]
    assert database.fetch("select count(*) from pg_proc where proname ~ '^journal_[0-9]'") == [(2,)]


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
def test_nobody_waits_behind_who_waits_for_the_table(
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
def test_whose_patience_ends_is_told_who_holds_the_table(database: Database, statement: str, holder: str) -> None:
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


def test_unwatching_waits_for_who_changes_the_watch(database: Database) -> None:
    """Two at once never leave a watch without its triggers."""
    with database.connect() as writer:
        writer.execute(WRITER)
        with in_background(database, "select relay.watch('tasks', hidden => '{description}')"):
            wait_for_attempts(database, "ShareRowExclusiveLock")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                database.execute("select relay.unwatch('tasks')")
            writer.execute("commit")

    assert database.fetch("select hidden, triggers_complete from relay.watched") == [(["description"], True)]


def test_tasks_table_that_is_there_is_left_as_it_is(empty_database: Database) -> None:
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
    """Not for an open transaction that has written tasks, nor for one that reads the journal."""
    with database.connect() as writer, database.connect() as reader:
        writer.execute(WRITER)
        reader.execute("begin; select * from relay.journal")
        with database.connect() as connection:
            connection.execute("set statement_timeout = '20s'")
            for name in ("tasks", "install"):
                connection.execute(install.text(name).replace("'3s'", "'1ms'").encode())
        writer.execute("commit")
        reader.execute("commit")


@pytest.fixture
def older(empty_database: Database) -> Database:
    """Return a database with the tasks table, fed by an earlier version's install."""
    for script in (install.text("tasks"), OLDER, "select relay.watch('public.tasks', hidden => '{description}')"):
        empty_database.execute(script)
    return empty_database


def test_upgrade_keeps_the_journal_and_the_watches(older: Database) -> None:
    """What was journalled before is there after, as it was, and the next change joins it."""
    older.execute("insert into tasks (id, title) values ('a', 'A')")
    before = older.fetch("select j::text from relay.journal j order by seq")
    older.execute(install.text("install"))
    older.execute("update tasks set title = 'B'")

    after = older.fetch("select j::text from relay.journal j order by seq")
    assert after[:-1] == before
    assert older.fetch("select bool_and(triggers_complete) from relay.watched") == [(True,)]
    older.execute("select relay.unwatch('tasks')")
    older.execute(install.text("uninstall"))


async def test_upgrade_under_writers_loses_no_change(older: Database) -> None:
    """Writers go on meanwhile, one stays open across it, and a relay that starts then tells what follows."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(older.dsn, autocommit=True) as connection:
            for number in range(10_000):
                connection.execute("insert into tasks (id, title) values (%s, 'T')", [f"t{number}"])
                if stop.is_set():
                    return

    with psycopg.connect(older.dsn) as open_writer:
        open_writer.execute("insert into tasks (id, title) values ('open', 'T')")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            with in_background(older, install.text("install")):
                wait_for_attempts_on_the_journal(older)
                open_writer.commit()
        finally:
            stop.set()
            writer.join()
    assert older.fetch("select count(*) from relay.journal where op = 'I'") == older.fetch(
        "select count(*) from tasks"
    )

    async with Relay(older.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        await until(lambda: relay.feed.problem is None)
        assert await client.until_last(older) == []


def wait_for_attempts_on_the_journal(database: Database) -> None:
    while not database.fetch("select 1 from pg_locks where mode = 'AccessExclusiveLock' and not granted"):
        pass


def test_diff_is_empty_after_an_install(database: Database) -> None:
    """What the file would make is what is there, the trigger functions of what is watched included."""
    database.execute("select relay.watch('tasks', hidden => '{description}', order_by => '{title desc}')")
    assert install.diff(database.dsn) == []


def test_diff_shows_what_an_upgrade_changes(older: Database) -> None:
    """Functions that come, change and go, and the constraint; and none of it has happened."""
    with older.connect() as writer:
        writer.execute(WRITER)
        lines = install.diff(older.dsn)
        writer.execute("commit")
    changed = {line for line in lines if line[0] in "+-"}

    assert "+sequence relay.awake" in changed
    assert "-function relay.watch(regclass,name,name,name,name[],text[])" in changed
    assert "+function relay.watch(regclass,name,name,name,name[],text[],interval)" in changed
    assert "-constraint journal_op of relay.journal" in changed
    assert any("relay.journal_1()" in line for line in lines)
    assert older.fetch("select to_regclass('relay.awake')") == [(None,)]
    assert older.fetch("select count(*) from pg_namespace where nspname ^@ 'relay'") == [(1,)]

    older.execute(install.text("install"))
    assert install.diff(older.dsn) == []


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


def test_older_install_over_this_one_feeds_on(database: Database) -> None:
    """Rolling back needs no uninstall: the older triggers journal, and this version may come again."""
    database.execute(OLDER)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute(install.text("install"))
    database.execute("insert into tasks (id, title) values ('b', 'B')")

    assert database.fetch("select new_row ->> 'id' from relay.journal where op = 'I' order by seq") == [
        ("a",),
        ("b",),
    ]
    assert database.fetch("select triggers_complete from relay.watched") == [(True,)]

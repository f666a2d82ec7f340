"""`relay sql`: what a DBA does with the relay, from the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import psycopg.conninfo
import pytest

from relay.postgres import install
from relay.postgres.embedded import free_port
from relay.postgres.install import text
from tests.acceptance.support import Client, Relays, mistake, run_relay
from tests.servers import Database, sole_use

SQL = Path(__file__).parents[2] / "sql"


@pytest.fixture
def installed(database: Database) -> Database:
    """Return a database with the tasks table and the install, where nothing is watched."""
    database.execute("select relay.unwatch('public.tasks')")
    return database


def succeed(database: Database, folder: Path, *arguments: str) -> str:
    """Run a command that works, and return the line that it says."""
    finished = run_relay("sql", *arguments, cwd=folder, DATABASE_URL=database.dsn)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"relay sql {arguments[0]}: ")
    assert finished.stdout.count("\n") == 1
    return finished.stdout


def fail(database: Database, folder: Path, *arguments: str) -> str:
    """Run a command that cannot work, and return the line that it says."""
    return mistake(run_relay("sql", *arguments, cwd=folder, DATABASE_URL=database.dsn))


def relations(database: Database) -> set[str]:
    """Name everything in schema relay."""
    rows = database.fetch(
        "select c.oid::regclass::text from pg_class c where relnamespace = to_regnamespace('relay')"
    )
    return {name for (name,) in rows}


def watched(database: Database) -> list[tuple[object, ...]]:
    return database.fetch("select schema_name || '.' || table_name, hidden, order_by from relay.watched")


def triggers(database: Database) -> list[tuple[object, ...]]:
    """Name the relay's triggers on the tasks table."""
    return database.fetch(
        "select tgname from pg_trigger where tgrelid = 'public.tasks'::regclass and tgname ^@ 'relay'"
    )


async def test_from_an_empty_database_to_a_fed_one(empty_database: Database, relay: Relays, tmp_path: Path) -> None:
    """`tasks`, `install` and `watch`, each said twice, make an empty database one that a daemon serves."""
    for command in (["tasks"], ["install"], ["watch", "public.tasks"]):
        assert succeed(empty_database, tmp_path, *command) == succeed(empty_database, tmp_path, *command)

    daemon = await relay(empty_database.dsn)
    async with Client.to(daemon) as client:
        await client.subscribe()
        empty_database.execute("insert into public.tasks (id, title) values ('a', 'A')")
        assert (await client.receive())["type"] == "task.created"


def test_unwatch_keeps_the_users_data(database: Database, tmp_path: Path) -> None:
    """`unwatch`, said twice, removes the triggers and nothing that is the user's."""
    database.execute("insert into public.tasks (id, title) values ('a', 'A')")

    assert succeed(database, tmp_path, "unwatch", "public.tasks") == succeed(
        database, tmp_path, "unwatch", "public.tasks"
    )
    assert (watched(database), triggers(database)) == ([], [])
    assert database.fetch("select id, title from public.tasks") == [("a", "A")]


def test_uninstall_keeps_the_users_data(database: Database, tmp_path: Path) -> None:
    """`uninstall`, said twice, removes all that is the relay's, watched tables or not, and nothing else."""
    database.execute("insert into public.tasks (id, title) values ('a', 'A')")

    assert succeed(database, tmp_path, "uninstall") == succeed(database, tmp_path, "uninstall")
    assert (relations(database), triggers(database)) == (set(), [])
    database.execute("update public.tasks set title = 'B'")
    assert database.fetch("select id, title from public.tasks") == [("a", "B")]


def test_watch_passes_on_its_options(installed: Database, tmp_path: Path) -> None:
    """A table of the user's own is watched under its own column names, in its own order, with columns hidden."""
    installed.execute("create table public.cards (no bigint primary key, wall text, col text, pin text, rank real)")
    columns = ("--id", "no", "--board", "wall", "--lane", "col")
    succeed(
        installed,
        tmp_path,
        *("watch", "public.cards", *columns, "--hide", "pin", "--order-by", "rank desc", "--order-by", "wall"),
    )

    assert watched(installed) == [("public.cards", ["pin"], ["rank desc", "wall"])]
    assert installed.fetch("select id_column, board_column, lane_column from relay.watched") == [
        ("no", "wall", "col")
    ]


@pytest.mark.parametrize("name", ["tasks", "install", "roles", "uninstall"])
def test_print_shows_the_file(name: str, tmp_path: Path) -> None:
    """`print` shows the SQL file, to the byte, without a database."""
    finished = run_relay("sql", "print", name, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, text(name))


@pytest.mark.parametrize("command", ["watch", "unwatch"])
def test_watching_without_the_install_is_one_line(command: str, empty_database: Database, tmp_path: Path) -> None:
    """Before the install, `watch` and `unwatch` say to run it."""
    empty_database.execute("create table public.tasks (id text primary key, board_id text, lane text)")
    assert "run relay sql install first" in fail(empty_database, tmp_path, command, "public.tasks")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["watch", "public.nothing"], "there is no table public.nothing: expected SCHEMA.TABLE, of database "),
        (["unwatch", "public.nothing"], "there is no table public.nothing: expected SCHEMA.TABLE, of database "),
        (["watch", "public.pairs"], "column id of public.pairs is not a key by itself (primary key: (id, board_id))"),
        (["watch", "public.tasks", "--lane", "column"], "public.tasks has no column 'column'"),
        (["watch", "public.tasks", "--hide", "secret"], "public.tasks has no column 'secret' to hide"),
        (["watch", "public.tasks", "--order-by", "whim"], "--order-by has 'whim'"),
    ],
)
def test_watchers_mistake_is_one_line(
    arguments: list[str], expected: str, installed: Database, tmp_path: Path
) -> None:
    """A table or column that cannot be watched is an error of one line, and nothing is watched."""
    installed.execute("create table public.pairs (id text, board_id text, lane text, primary key (id, board_id))")

    assert expected in fail(installed, tmp_path, *arguments)
    assert watched(installed) == []


def test_watching_a_held_table_is_one_line(installed: Database, tmp_path: Path) -> None:
    """`watch` gives up when its patience ends, and says which process holds the table."""
    holder = installed.connect()
    with holder.transaction():
        holder.execute("lock table public.tasks in row exclusive mode")
        said = fail(installed, tmp_path, "watch", "public.tasks", "--patience", "0.2")
    assert f"public.tasks is in use by process {holder.info.backend_pid} " in said
    assert "nothing was changed; try again" in said
    assert watched(installed) == []


async def test_daemon_runs_with_the_role_that_is_made_for_it(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """`roles`, said twice, makes a role whose rights are enough for `relay serve`."""
    with sole_use("role-relay_daemon"), database.connect() as connection:
        try:
            assert succeed(database, tmp_path, "roles") == succeed(database, tmp_path, "roles")
            connection.execute("alter role relay_daemon password 'secret'")
            url = psycopg.conninfo.make_conninfo(database.dsn, user="relay_daemon", password="secret")
            daemon = await relay(url)
            async with Client.to(daemon) as client:
                await client.subscribe()
                connection.execute("insert into tasks (id, title) values ('a', 'A')")
                assert (await client.receive())["type"] == "task.created"
            await daemon.stop()
        finally:
            connection.execute("drop owned by relay_daemon; drop role relay_daemon")


def test_diff_shows_what_an_install_would_change(database: Database, tmp_path: Path) -> None:
    """`diff` prints nothing and succeeds if it is nothing; else a unified diff, and the exit code is 1."""
    finished = run_relay("sql", "diff", cwd=tmp_path, DATABASE_URL=database.dsn)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")

    database.execute("drop function relay.resync()")
    finished = run_relay("sql", "diff", cwd=tmp_path, DATABASE_URL=database.dsn)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert finished.stdout.startswith("--- installed\n+++ sql/install.sql\n")
    assert "\n+function relay.resync()\n" in finished.stdout


@pytest.mark.parametrize("command", ["install", "watch"])
def test_unreachable_database_is_one_line(command: str, tmp_path: Path) -> None:
    """Every command says in one line that the database cannot be reached."""
    table = ["public.tasks"] if "watch" in command else []
    url = psycopg.conninfo.make_conninfo(host="127.0.0.1", port=free_port(), user="nobody", dbname="nothing")
    assert "Connection refused" in mistake(run_relay("sql", command, *table, cwd=tmp_path, DATABASE_URL=url))


def test_missing_database_is_one_line(empty_database: Database, tmp_path: Path) -> None:
    """A database that the server does not have is named."""
    url = psycopg.conninfo.make_conninfo(empty_database.dsn, dbname="relay_test_nowhere")
    said = mistake(run_relay("sql", "install", cwd=tmp_path, DATABASE_URL=url))
    assert 'database "relay_test_nowhere" does not exist' in said


def test_database_url_may_be_an_option(empty_database: Database, tmp_path: Path) -> None:
    """`--database-url` wins over DATABASE_URL."""
    url = ("--database-url", empty_database.dsn)
    finished = run_relay("sql", "install", *url, cwd=tmp_path, DATABASE_URL="host=nowhere.invalid")
    assert finished.returncode == 0
    assert "relay.journal" in relations(empty_database)


def test_names_with_capitals_are_watched_as_they_are_printed(empty_database: Database, tmp_path: Path) -> None:
    """Quotes are understood, and where they are missing, the name is printed with them."""
    install.run(empty_database.dsn, "install")
    empty_database.execute(
        'create table "Tasks" ("taskId" int primary key, board_id text, lane text, "createdAt" timestamptz)'
    )
    options = ["--id", "taskId", "--order-by", '"createdAt" desc']
    refused = run_relay("sql", "watch", "public.Tasks", *options, cwd=tmp_path, DATABASE_URL=empty_database.dsn)
    assert refused.returncode == 1
    [expected] = shlex.split(refused.stderr.partition("in lower case: expected ")[2])
    assert expected == 'public."Tasks"'
    done = run_relay("sql", "watch", expected, *options, cwd=tmp_path, DATABASE_URL=empty_database.dsn)
    assert (done.returncode, done.stderr) == (0, "")

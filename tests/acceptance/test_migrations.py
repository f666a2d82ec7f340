"""The SQL files inside other people's transactions: psql's, and those of migration tools."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from relay.postgres.install import FILES, text
from tests.acceptance.support import environment
from tests.acceptance.test_docs import MIGRATIONS, examples, role_of_the_daemon, run_examples
from tests.clusters import psql, run
from tests.servers import Database, do_without

SQL = Path(__file__).parents[2] / "sql"
SKIPPING = "NOTICE:.* skipping"
DBMATE = Path(__file__).parent / "migrations" / "node_modules" / ".bin"

ENV = """
import os

import psycopg
from alembic import context
from sqlalchemy import MetaData, create_engine

target_metadata = MetaData()
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["CONNINFO"]))
with engine.connect() as connection:
{configure}
    with context.begin_transaction():
        context.run_migrations()
"""


@pytest.fixture
def tasks(empty_database: Database) -> Database:
    """Return a database with the tasks table and no relay."""
    empty_database.execute(text("tasks"))
    return empty_database


def blocks(title: str, language: str = "bash") -> list[str]:
    """Return the examples below a heading of the document."""
    beginning = re.split(rf"^## {title}$", MIGRATIONS.read_text(), flags=re.MULTILINE)[1]
    return examples(re.split("^## ", beginning, flags=re.MULTILINE)[0], language)


def installed(database: Database) -> bool:
    return database.fetch("select to_regnamespace('relay') is not null") == [(True,)]


def watched(database: Database) -> list[tuple[str, ...]]:
    return database.fetch("select table_name::text from relay.watched")


@pytest.mark.parametrize("name", FILES)
def test_transaction_that_a_file_runs_in_is_left_to_its_owner(name: str, database: Database) -> None:
    """What came before the file is rolled back with it, and what the file did too."""
    state = (
        "select (select count(*) from pg_class), (select count(*) from pg_proc), (select count(*) from pg_trigger)"
    )
    before = database.fetch(state)
    with role_of_the_daemon(database):
        run(
            "psql",
            *("-Xq1", "-v", "ON_ERROR_STOP=1", database.dsn),
            *("-c", "create table before_it (x int)", "-f", str(SQL / f"{name}.sql"), "-c", "select 1 / 0"),
            complaints=f"division by zero|{SKIPPING}",
            status=1,
        )

    assert database.fetch("select to_regclass('before_it')") == [(None,)]
    assert database.fetch(state) == before


def test_files_run_in_one_transaction(empty_database: Database) -> None:
    """All of them, and twice, without a warning."""
    with role_of_the_daemon(empty_database):
        files = [part for name in ("tasks", "install", "roles") for part in ("-f", str(SQL / f"{name}.sql"))]
        psql(
            empty_database.dsn, "-1", *files, "-c", "select relay.watch('public.tasks')", *files, complaints=SKIPPING
        )

        assert watched(empty_database) == [("tasks",)]


def test_files_run_statement_by_statement(empty_database: Database) -> None:
    """Each twice, as `psql -f` does without an option, and without a warning."""
    with role_of_the_daemon(empty_database):
        for name in ("tasks", "install", "roles"):
            for _ in range(2):
                psql(empty_database.dsn, "-f", str(SQL / f"{name}.sql"), complaints=SKIPPING)
        empty_database.execute("select relay.watch('public.tasks')")
        for _ in range(2):
            psql(empty_database.dsn, "-f", str(SQL / "uninstall.sql"), complaints=SKIPPING)

    assert not installed(empty_database)


@pytest.mark.parametrize("name", FILES)
def test_file_leaves_the_settings_of_its_session_alone(name: str, database: Database) -> None:
    """A migration tool goes on in the same session."""
    settings = "select name, setting from pg_settings order by name"
    with role_of_the_daemon(database):
        database.execute("load 'plpgsql'")  # which brings settings of its own
        before = database.fetch(settings)
        database.execute(text(name))

        assert database.fetch(settings) == before


def test_example_for_psql_installs_and_uninstalls(tasks: Database, tmp_path: Path) -> None:
    *install, uninstall = "".join(blocks("psql")).splitlines(keepends=True)
    run_examples(install, tmp_path, DATABASE_URL=tasks.dsn)
    assert watched(tasks) == [("tasks",)]

    run_examples([uninstall], tmp_path, DATABASE_URL=tasks.dsn)
    assert not installed(tasks)


def test_example_for_alembic_goes_up_and_down(tasks: Database, tmp_path: Path) -> None:
    """The revision installs and uninstalls, and autogenerate takes no notice of schema relay."""
    if find_spec("alembic") is None:
        do_without("alembic is not installed: pip install -e '.[dev]'")
    revision, configure = blocks("Alembic", "python")
    run_examples(blocks("Alembic"), tmp_path)
    (tmp_path / "versions" / "relay.py").write_text(revision)
    (tmp_path / "env.py").write_text(ENV.format(configure=textwrap.indent(configure, "    ")))
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = .\npath_separator = os\n")

    assert alembic(tasks, tmp_path, "upgrade", "head").returncode == 0
    assert watched(tasks) == [("tasks",)]
    differences = alembic(tasks, tmp_path, "check").stdout
    assert "tasks" in differences
    assert "relay" not in differences
    assert alembic(tasks, tmp_path, "downgrade", "base").returncode == 0
    assert not installed(tasks)


def alembic(database: Database, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=folder,
        env=environment({"CONNINFO": database.dsn}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in finished.stderr, finished.stderr
    return finished


def test_example_for_flyway_migrates_in_a_transaction_a_file(tasks: Database, tmp_path: Path) -> None:
    """As Flyway does: in the order of the versions; and there is nothing that it would take for a placeholder."""
    run_examples(blocks("Flyway"), tmp_path)
    for migration in sorted((tmp_path / "flyway").iterdir()):
        assert re.fullmatch(r"V\d+__\w+\.sql", migration.name)
        assert "${" not in migration.read_text()
        psql(tasks.dsn, "-1", "-f", str(migration), complaints=SKIPPING)

    assert watched(tasks) == [("tasks",)]


def test_example_for_dbmate_goes_up_and_down(tasks: Database, tmp_path: Path) -> None:
    if not (DBMATE / "dbmate").exists():
        do_without("npm package dbmate is not installed: npm install --prefix tests/acceptance/migrations")
    url = uri(tasks)
    *make, up, down = "".join(blocks("dbmate")).splitlines(keepends=True)
    run_examples([*make, up], tmp_path, DBMATE, DATABASE_URL=url)
    assert watched(tasks) == [("tasks",)]

    run_examples([down], tmp_path, DBMATE, DATABASE_URL=url)
    assert watched(tasks) == []
    run_examples([down], tmp_path, DBMATE, DATABASE_URL=url)
    assert not installed(tasks)


def uri(database: Database) -> str:
    """Return a database's address in the one form that all tools know."""
    info = database.connect().info
    return f"postgresql://{info.user}:{info.password}@{info.host}:{info.port}/{info.dbname}?sslmode=disable"

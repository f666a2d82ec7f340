"""Installing as a superuser, and as a database's owner with and without createrole; and what is refused.

Roles belong to a whole cluster, so these tests have one of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from relay.commands.check.suggest import suggest
from relay.commands.schema import columns
from relay.postgres import install
from relay.postgres.embedded import EmbeddedPostgresError
from tests.clusters import psql
from tests.integration.client import Client
from tests.integration.conftest import Relay
from tests.servers import Database, Postgres, Server, do_without, temporary_database

NOT_OURS = "select rolname from pg_roles where rolname !~ '^pg_' and not (rolsuper and rolname = current_user)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """Yield a server whose roles are these tests' alone."""
    try:
        with Postgres() as own:
            yield Server(own.dsn, "its own", 0)
    except EmbeddedPostgresError as error:
        do_without(str(error))


@pytest.fixture
def fresh(cluster: Server) -> Iterator[Database]:
    """Yield an empty database in a cluster that has no role but the superuser's."""
    with temporary_database(cluster) as dsn, Database(dsn) as database:
        yield database
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        for (role,) in connection.execute(NOT_OURS).fetchall():
            connection.execute(f'drop owned by "{role}"; drop role "{role}"'.encode())


def _as(database: Database, role: str) -> str:
    return make_conninfo(database.dsn, user=role)


def _owned_by_dba(database: Database, options: str) -> str:
    """Give the database to a role with these attributes, and return how to connect as it."""
    database.execute(f"create role dba login {options}")
    database.execute("do $$ begin execute format('alter database %I owner to dba', current_database()); end $$")
    return _as(database, "dba")


def _advice(error: install.InstallError) -> str:
    """Return what an error's one line says to run."""
    found = re.search(r"have [^:\n]+ run: (.+?)(; then run this again)?$", str(error))
    assert found, error
    return found[1]


def _a_table_of_apps(database: Database) -> None:
    database.execute("create role app login; create schema app authorization app")
    with psycopg.connect(_as(database, "app"), autocommit=True) as app:
        app.execute("create table app.tasks (id text primary key, board_id text, lane text, title text)")


def _watch(dsn: str, table: str) -> None:
    install.watch(dsn, table)


async def _see_that_it_works(database: Database, dsn: str, table: str, writer: str) -> None:
    """See a change that an ordinary role makes arrive at a relay that runs as the installer."""
    async with Relay(dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("b")
        with psycopg.connect(_as(database, writer), autocommit=True) as connection:
            connection.execute(f"insert into {table} values ('a', 'b', 'todo', 'A')".encode())
        kind, task = await client.receive()

    assert (kind, task["title"]) == ("task.created", "A")


async def test_superuser_installs_and_watches_the_table_of_another(fresh: Database) -> None:
    """It takes no grant, and the table's owner gets no right."""
    _a_table_of_apps(fresh)
    install.run(fresh.dsn, "install")
    _watch(fresh.dsn, "app.tasks")

    await _see_that_it_works(fresh, fresh.dsn, "app.tasks", "app")
    assert fresh.fetch("select rolsuper from pg_roles where rolname = 'app'") == [(False,)]


async def test_owner_with_the_right_to_create_roles_installs(fresh: Database) -> None:
    """The roles of ours are made by the install, which names no superuser and needs none."""
    dsn = _owned_by_dba(fresh, "createrole")
    install.run(dsn, "install")
    install.run(dsn, "install")  # twice, as it may be
    with psycopg.connect(dsn, autocommit=True) as dba:
        dba.execute("create table tasks (id text primary key, board_id text, lane text, title text)")
    _watch(dsn, "public.tasks")

    await _see_that_it_works(fresh, dsn, "tasks", "dba")


async def test_owner_without_the_right_to_create_roles_learns_what_to_have_run(fresh: Database) -> None:
    """The install says in one line what somebody else must run; then it works. Some roles may be there already."""
    dsn = _owned_by_dba(fresh, "")
    fresh.execute("create role relay_reader")
    with pytest.raises(install.InstallError) as refused:
        install.run(dsn, "install")
    assert fresh.fetch("select to_regnamespace('relay')") == [(None,)]

    fresh.execute(_advice(refused.value))
    install.run(dsn, "install")
    install.run(dsn, "install")
    with psycopg.connect(dsn, autocommit=True) as dba:
        dba.execute("create table tasks (id text primary key, board_id text, lane text, title text)")
    _watch(dsn, "public.tasks")

    await _see_that_it_works(fresh, dsn, "tasks", "dba")


@pytest.mark.parametrize(("options", "sees"), [("createrole", False), ("", True)])
async def test_watching_the_table_of_another_names_the_grant_that_is_missing(
    fresh: Database, options: str, *, sees: bool
) -> None:
    """What the message says can be pasted, and then it works."""
    dsn = _owned_by_dba(fresh, options)
    _a_table_of_apps(fresh)
    if not options:
        roles = ("relay_writer", "relay_reader", "relay_renderer")
        fresh.execute("; ".join(f"create role {role}; grant {role} to dba" for role in roles))
    if sees:
        fresh.execute("grant usage on schema app to dba")
    install.run(dsn, "install")
    with pytest.raises(install.InstallError) as refused:
        _watch(dsn, "app.tasks")
    assert str(refused.value).startswith("app.tasks belongs to app, and only its owner may change its triggers")
    fresh.execute(_advice(refused.value))
    _watch(dsn, "app.tasks")

    await _see_that_it_works(fresh, dsn, "app.tasks", "app")


def test_advice_never_is_to_grant_the_rights_of_a_superuser(fresh: Database) -> None:
    """To feed a superuser's table, or to stop that, a superuser runs the command."""
    dsn = _owned_by_dba(fresh, "createrole")
    fresh.execute(
        "create schema app; create table app.tasks (id text primary key, board_id text, lane text); "
        "create table public.tasks (like app.tasks including all)"
    )
    install.run(dsn, "install")
    for table in ("app.tasks", "public.tasks"):
        with pytest.raises(install.InstallError, match=r"may change its triggers: have a superuser run this$"):
            _watch(dsn, table)
    _watch(fresh.dsn, "app.tasks")
    with pytest.raises(install.InstallError, match=r"may drop its triggers: have a superuser run this$"):
        install.run(dsn, "uninstall")


def test_uninstalling_from_the_table_of_another_names_the_grant_that_is_missing(fresh: Database) -> None:
    """A superuser may have watched it; the owner of the relay alone cannot drop its triggers."""
    dsn = _owned_by_dba(fresh, "createrole")
    _a_table_of_apps(fresh)
    install.run(dsn, "install")
    _watch(fresh.dsn, "app.tasks")
    with pytest.raises(install.InstallError, match=r"^nothing was removed: app\.tasks belongs to app") as refused:
        install.run(dsn, "uninstall")
    fresh.execute(_advice(refused.value))
    install.run(dsn, "uninstall")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.tasks", "My Tasks", "", "a.b.c.d", "a.b.c"])
def test_name_of_no_table_is_refused_in_words_that_say_so(fresh: Database, name: str) -> None:
    """Whatever Postgres calls it, and also where one that is alike needs its quotes."""
    install.run(fresh.dsn, "install")
    fresh.execute('create table "My Tasks" (id text primary key, board_id text, lane text)')
    expected = 'public."My Tasks"' if name == "My Tasks" else "SCHEMA.TABLE, of database "
    for run in (install.watch, install.unwatch):
        with pytest.raises(install.InstallError, match=f"^there is no table .*: expected '?{expected}"):
            run(fresh.dsn, name)


def test_rights_on_the_database_that_are_missing_are_named_or_given(fresh: Database) -> None:
    """To create schema relay, and a table; and the daemon's to connect, where that is reserved to some."""
    fresh.execute("create role dba login createrole")
    dsn = _as(fresh, "dba")
    for name in ("install", "tasks"):
        with pytest.raises(install.InstallError, match=r"^dba may not create a ") as refused:
            install.run(dsn, name)
        fresh.execute(_advice(refused.value))
        install.run(dsn, name)
    ((database,),) = fresh.fetch("select current_database()")
    connects = f"select has_database_privilege('relay_daemon', '{database}', 'connect')"
    fresh.execute(f"revoke connect on database {database} from public; grant connect on database {database} to dba")
    install.run(dsn, "roles")
    assert fresh.fetch(connects) == [(False,)]  # who may not give it does the rest all the same
    install.run(fresh.dsn, "roles")
    assert fresh.fetch(connects) == [(True,)]
    install.run(dsn, "uninstall")
    install.run(fresh.dsn, "install")
    install.run(fresh.dsn, "uninstall")
    assert fresh.fetch(connects) == [(False,)]


def test_part_that_somebody_dropped_comes_back_by_the_command_that_is_named(fresh: Database) -> None:
    for name in ("tasks", "install"):
        install.run(fresh.dsn, name)
    for part in ("function relay.watch", "sequence relay.control", "view relay.watches", "schema relay"):
        fresh.execute(f"drop {part} cascade")
        with pytest.raises(install.InstallError, match=r" does not exist: run relay sql install first$"):
            _watch(fresh.dsn, "public.tasks")
        install.run(fresh.dsn, "install")
    _watch(fresh.dsn, "public.tasks")


_FOREIGN = {
    "table settings": "create table relay.settings (id serial primary key, name text)",
    "table journal": "create table relay.journal (id int)",
    "table of another name": "create table relay.somethings (id int)",
    "view watched": "create view relay.watched as select 1 as id",
    "sequence": "create sequence relay.counter",
    "type": "create type relay.kind as enum ('x')",
    "domain": "create domain relay.name as text",
    "function watch": "create function relay.watch(regclass) returns void language sql as ''",
    "function board": "create function relay.board(text) returns setof json language sql as 'select null::json'",
    "aggregate": "create aggregate relay.total(int) (sfunc = int4pl, stype = int)",
    "operator": "create operator relay.=== (leftarg = int, rightarg = int, function = int4eq)",
}


def _refused(fresh: Database, dsn: str) -> str:
    """Return why the install refuses, in one line; nothing was changed."""
    objects = "select 'f', oid from pg_proc where pronamespace = to_regnamespace('relay') union all "
    objects += "select 'c', oid from pg_class where relnamespace = to_regnamespace('relay') union all "
    objects += "select 'r', oid from pg_roles order by 1, 2"
    before = fresh.fetch(objects)
    with pytest.raises(install.InstallError) as refused:
        install.run(dsn, "install")

    assert fresh.fetch(objects) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("options", ["superuser", "createrole"])
def test_schema_of_another_is_refused(fresh: Database, options: str) -> None:
    """Whoever owns a schema may replace what is in it: so one that somebody else made is not taken over."""
    dsn = _owned_by_dba(fresh, options)
    fresh.execute("create role stranger; create schema relay authorization stranger")
    message = _refused(fresh, dsn)

    assert "schema relay" in message
    assert "stranger" in message


def test_schema_that_another_makes_during_the_checks_is_not_taken_over(fresh: Database) -> None:
    """A role that may create schemas makes it and drops it, until an install checks at the wrong moment."""
    fresh.execute("create role stranger")
    fresh.execute("do $$ begin execute format('grant create on database %I to stranger', current_database()); end $$")
    installed = threading.Event()

    def make_and_drop(connection: psycopg.Connection) -> None:
        connection.execute("set role stranger")
        while not installed.is_set():
            with contextlib.suppress(psycopg.Error):  # as it is ours now, or not empty any more
                connection.execute("create schema relay")
                time.sleep(0.004)
                connection.execute("drop schema relay")

    stranger = threading.Thread(target=make_and_drop, args=[fresh.connect()])
    stranger.start()
    try:
        for _ in range(50):
            with contextlib.suppress(install.InstallError):
                install.run(fresh.dsn, "install")
                break
    finally:
        installed.set()
        stranger.join()

    [[made, owner]] = fresh.fetch(
        "select to_regprocedure('relay.version()') is not null, "
        "(select nspowner::regrole::text from pg_namespace where nspname = 'relay')"
    )
    assert not (made and owner == "stranger")


@pytest.mark.parametrize("kind", _FOREIGN)
def test_object_of_another_in_the_schema_is_refused(fresh: Database, kind: str) -> None:
    """Before the first install and after it, under a name of ours or any other: the message says what and whose."""
    fresh.execute("create role stranger; create schema relay; grant usage, create on schema relay to stranger")
    fresh.execute(f"set role stranger; {_FOREIGN[kind]}; reset role")
    message = _refused(fresh, fresh.dsn)
    [name] = re.findall(r"relay\.(\w+|===)", _FOREIGN[kind])

    assert f"relay.{name}" in message
    assert "stranger" in message


@pytest.mark.parametrize("kind", ["table of another name", "function board", "operator"])
def test_object_that_another_added_to_an_install_is_refused(fresh: Database, kind: str) -> None:
    """A later install takes nothing over that has come since."""
    statement = _FOREIGN[kind].replace("relay.board(text)", "relay.board(text, text)")
    install.run(fresh.dsn, "install")
    fresh.execute("create role stranger; grant usage, create on schema relay to stranger")
    fresh.execute(f"set role stranger; {statement}; reset role")

    assert "stranger" in _refused(fresh, fresh.dsn)


def test_trigger_that_another_role_put_on_a_table_of_the_relay_is_refused(fresh: Database) -> None:
    """It would run its maker's code with the rights of the role that installs next."""
    install.run(fresh.dsn, "install")
    fresh.execute("create role stranger; grant usage on schema relay to stranger")
    fresh.execute("grant create on schema public to stranger; grant trigger on relay.journal to stranger")
    fresh.execute(
        "set role stranger; "
        "create function evil() returns trigger language plpgsql as 'begin return new; end'; "
        "create trigger evil before insert or update on relay.journal for each row execute function evil(); "
        "reset role"
    )

    assert "evil" in _refused(fresh, fresh.dsn)


_ROLES = {
    "superuser": "create role relay_writer superuser",
    "may create roles": "create role relay_renderer createrole",
    "may create databases": "create role relay_reader createdb",
    "replication": "create role relay_reader replication",
    "may log in": "create role relay_writer login",
    "is a member of another": "create role relay_writer; grant pg_read_all_data to relay_writer",
    "has a member": "create role relay_reader; create role stranger; grant relay_reader to stranger",
    "owns something": "create role relay_writer; create table mine (id int); alter table mine owner to relay_writer",
    "has a right": "create role relay_renderer; create table pay (id int); grant select on pay to relay_renderer",
}


@pytest.mark.parametrize("kind", _ROLES)
def test_role_of_our_name_that_has_more_than_it_needs_is_refused(fresh: Database, kind: str) -> None:
    """The code of users runs as these roles: whatever they have, the owner of a watched table has."""
    fresh.execute(_ROLES[kind])
    [name] = set(re.findall(r"relay_\w+", _ROLES[kind]))

    assert name in _refused(fresh, fresh.dsn)


async def test_installing_does_not_call_operators_of_others(fresh: Database) -> None:
    """They would run with their rights, where Postgres has no operator of exactly these types."""
    fresh.execute("create role stranger; grant create, usage on schema public to stranger")
    fresh.execute("create table caught (types text); grant insert on caught to public; set role stranger")
    fresh.execute("set search_path = pg_catalog")
    types = (("oid", "regclass"), ("oid", "regnamespace"), ("oid", "int4"), ("numeric", "int4"))
    for number, (operator, (left, right)) in enumerate(itertools.product(("=", "<>", ">="), types)):
        fresh.execute(
            f"create function public.op_{number}({left}, {right}) returns boolean language plpgsql as $$ begin "
            f"insert into public.caught values ('{left} {right}'); return $1::text {operator} $2::text; end $$; "
            f"create operator public.{operator} (leftarg = {left}, rightarg = {right}, function = public.op_{number})"
        )
    fresh.execute("reset search_path; reset role")
    for name in ("tasks", "install", "roles"):
        install.run(fresh.dsn, name)
    _watch(fresh.dsn, "tasks")
    fresh.execute("insert into tasks (title, estimated_hours) values ('T', 1)")
    suggest(fresh.dsn, "tasks")
    await columns.read(fresh.dsn, "tasks")
    assert install.diff(fresh.dsn) == []
    install.unwatch(fresh.dsn, "tasks")
    files = (install.text(name) for name in ("uninstall", "install", "uninstall"))
    given = [
        "set client_min_messages = warning;",
        *files,
        "begin; set local search_path = x;" + install.text("install"),
    ]
    paths = psql(fresh.dsn, "-At", given="show search_path;\n".join([*given, "commit;", ""]))

    assert paths.split("\n") == [*4 * ['"$user", public'], "x", '"$user", public', ""]
    assert fresh.fetch("select distinct types from caught") == []


def test_function_of_the_tasks_table_that_another_made_is_refused(fresh: Database) -> None:
    """Its owner could run any code as the roles that write the table."""
    fresh.execute("create role stranger; grant create, usage on schema public to stranger; set role stranger")
    fresh.execute("create function public.tasks_set_updated_at() returns trigger language plpgsql as 'begin end'")
    fresh.execute("reset role")
    with pytest.raises(install.InstallError, match="belongs to stranger, expected"):
        install.run(fresh.dsn, "tasks")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("relay_reader", "role relay_reader has the member stranger, which could act as it: if stranger installed"),
        ("stranger", "role relay_reader is a member of stranger, whose rights it must not have"),
    ],
)
def test_membership_ends_by_what_the_refusal_prints(fresh: Database, given: str, said: str) -> None:
    """Also where another role than the one that runs it has granted it."""
    fresh.execute("create role relay_reader; create role giver; create role stranger")
    other = "stranger" if given == "relay_reader" else "relay_reader"
    fresh.execute(f"grant {given} to giver with admin option; set role giver; grant {given} to {other}")
    fresh.execute("reset role; alter role giver createrole")
    message = _refused(fresh, fresh.dsn)
    assert message.startswith(said)
    fresh.execute(message.rpartition(" run: ")[2])
    install.run(fresh.dsn, "install")


@pytest.mark.parametrize("role", ["relay_writer", "relay_reader", "relay_renderer"])
async def test_role_of_ours_that_was_renamed_is_named_with_the_command(fresh: Database, role: str) -> None:
    """Functions name it, so the relay cannot do without; the first installation alone creates one."""
    _a_table_of_apps(fresh)
    install.run(fresh.dsn, "install")
    _watch(fresh.dsn, "app.tasks")
    fresh.execute(f'alter role {role} rename to "Service Role"')
    with pytest.raises(install.InstallError) as refused:
        install.run(fresh.dsn, "install")
    assert str(refused.value).startswith(f"role {role} is missing, and Service Role owns its functions")
    fresh.execute(_advice(refused.value))
    install.run(fresh.dsn, "install")
    await _see_that_it_works(fresh, fresh.dsn, "app.tasks", "app")


def test_right_too_many_is_revoked_by_what_the_refusal_prints(fresh: Database) -> None:
    """It harms nothing of what the role owns: writers go on."""
    _a_table_of_apps(fresh)
    install.run(fresh.dsn, "install")
    _watch(fresh.dsn, "app.tasks")
    fresh.execute("create table pay (id int); grant select on pay to relay_renderer")
    message = _refused(fresh, fresh.dsn)
    fresh.execute(message.rpartition("expected nothing: ")[2])
    fresh.execute("insert into app.tasks values ('a', 'b', 'todo', 'A')")

    install.run(fresh.dsn, "install")
    assert fresh.fetch("select count(*) from relay.entries where op = 'R' and new_row is not null") == [(1,)]


def test_new_owner_of_a_partitioned_table_makes_partitions_once_it_is_watched_again(fresh: Database) -> None:
    """Postgres requires a right on the trigger's function from the role that makes one; others do not get it."""
    _a_table_of_apps(fresh)
    fresh.execute("create role heir login; grant usage, create on schema app to heir")
    fresh.execute(
        "create table app.parts (id int primary key, board_id text, lane text) partition by range (id); "
        "alter table app.parts owner to app"
    )
    install.run(fresh.dsn, "install")
    _watch(fresh.dsn, "app.parts")
    with psycopg.connect(_as(fresh, "app"), autocommit=True) as app:
        app.execute("create table app.low partition of app.parts for values from (0) to (9)")
    _watch(fresh.dsn, "app.parts")
    fresh.execute("alter table app.parts owner to heir")
    _watch(fresh.dsn, "app.parts")
    with psycopg.connect(_as(fresh, "heir"), autocommit=True) as heir:
        heir.execute("create table app.high partition of app.parts for values from (9) to (99)")

    callers = "select r.rolname from pg_proc f, pg_roles r where f.proname ~ '^journal_[0-9]' and not r.rolsuper "
    callers += "and has_function_privilege(r.oid, f.oid, 'execute') order by 1"
    assert fresh.fetch(callers) == [("heir",), ("relay_writer",)]


def test_install_works_where_reading_views_is_restricted(fresh: Database) -> None:
    """By `relay sql`; running the file otherwise names what to run first."""
    ((own,),) = fresh.fetch("select current_database()")
    fresh.execute(f'alter database "{own}" set restrict_nonsystem_relation_kind = view')
    with psycopg.connect(fresh.dsn, autocommit=True) as psql:
        with pytest.raises(psycopg.Error, match="run this first, in the same session: set ") as refused:
            psql.execute(install.text("install").encode())
        psql.execute(str(refused.value).partition("same session: ")[2].partition("\n")[0].encode())
        psql.execute(install.text("install").encode())
    for name in ("uninstall", "tasks", "install", "roles"):
        install.run(fresh.dsn, name)
    _watch(fresh.dsn, "tasks")
    assert install.diff(fresh.dsn) == []
    install.unwatch(fresh.dsn, "tasks")

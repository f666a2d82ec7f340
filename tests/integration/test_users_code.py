"""Whatever runs on a user's value runs as a role that has nothing worth having, or as the writer itself.

Every expression that Postgres can be made to run on a value is planted on watched tables by their owner, an
ordinary role: casts, domain checks, operators and functions under the names of Postgres's own. Each notes as which
role it runs.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
import pytest

from relay.postgres.faults import Scope, scope_of
from relay.postgres.install import text
from tests.integration.client import Client
from tests.integration.conftest import Relay
from tests.servers import Database

RENDERER = "relay_renderer"
"""The role as which the code of users runs."""

ROLES_OF_OURS = ("relay_writer", "relay_reader", RENDERER)

# A lock of the session's is the one trace that survives a rollback and a transaction that may not write.
_SPY = """
create function spy(plant int, forward text) returns text language plpgsql as $$ begin
    perform pg_catalog.pg_advisory_lock_shared(4200 + plant, r.oid::bigint::int)
    from pg_catalog.pg_roles r where r.rolname = current_user;
    begin
        execute 'alter role APP superuser';
    exception when others then
        null;
    end;
    return forward;
end $$;
"""

_SEEN = """
select distinct l.classid::bigint - 4200, r.rolname
from pg_locks l join pg_roles r on r.oid = l.objid
where l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())
  and l.classid::bigint between 4200 and 4299
"""

_TABLES = """
create type mood as enum ('x', 'y');
create type wall as enum ('default', 'other');
create type pair as (a mood, b mood);
create domain slug as text check (spy(1, value) = value);
create table moods (id text primary key, board_id text not null, lane text not null, m mood, p pair, a mood[]);
create table walls (id text primary key, board_id wall not null, lane mood not null, title text);
create table slugs (id slug primary key, board_id slug not null, lane slug not null, title slug);
"""

_CAST = "language plpgsql set search_path = public as $$ begin return"

# What each plant is; its number stands in what it does.
_PLANTS = {
    "check of a domain": "select",
    "cast to json": f"create function mood_json(mood) returns json {_CAST} to_json(spy(2, 'x')); end $$; "
    "create cast (mood as json) with function mood_json(mood) as implicit",
    "cast to jsonb": f"create function mood_jsonb(mood) returns jsonb {_CAST} to_jsonb(spy(3, 'x')); end $$; "
    "create cast (mood as jsonb) with function mood_jsonb(mood) as implicit",
    "cast of a board to text": f"create function wall_text(wall) returns text {_CAST} spy(4, 'default'); end $$; "
    "create cast (wall as text) with function wall_text(wall) as implicit",
    "cast of a lane to text": f"create function mood_text(mood) returns text {_CAST} spy(5, 'x'); end $$; "
    "create cast (mood as text) with function mood_text(mood) as implicit",
    "cast of text to a board": f"create function text_wall(text) returns wall {_CAST} "
    "(array['default', 'other'])[case spy(6, $1) when 'other' then 2 else 1 end]; end $$; "
    "create cast (text as wall) with function text_wall(text) as implicit",
    "cast of a board to json": f"create function wall_json(wall) returns json {_CAST} "
    "to_json(spy(7, 'default')); end $$; "
    "create cast (wall as json) with function wall_json(wall) as implicit",
    "cast of a composite to json": f"create function pair_json(pair) returns json {_CAST} "
    "to_json(spy(8, 'p')); end $$; "
    "create cast (pair as json) with function pair_json(pair) as implicit",
    "cast of an array to json": f"create function array_json(mood[]) returns json {_CAST} "
    "to_json(spy(9, 'a')); end $$; "
    "create cast (mood[] as json) with function array_json(mood[]) as implicit",
    "cast of a row to json": f"create function row_json(moods) returns json {_CAST} to_json(spy(10, 'r')); end $$; "
    "create cast (moods as json) with function row_json(moods) as implicit",
    "cast of a row to text": f"create function row_text(walls) returns text {_CAST} spy(11, 'r'); end $$; "
    "create cast (walls as text) with function row_text(walls) as implicit",
    "cast of a row to another": f"create function row_row(moods) returns walls {_CAST} row(spy(12, 'r')); end $$; "
    "create cast (moods as walls) with function row_row(moods) as implicit",
    "function called row_to_json": f"create function row_to_json(moods) returns json {_CAST} "
    "to_json(spy(13, 'r')); end $$",
    "function called to_json": f"create function to_json(walls) returns json {_CAST} to_json(spy(14, 'r')); end $$",
    "function called to_jsonb": f"create function to_jsonb(slugs) returns jsonb {_CAST} "
    "to_jsonb(spy(15, 'r')); end $$",
    "function called text": f"create function text(wall) returns text {_CAST} spy(16, 'default'); end $$",
    "function called like a column": f"create function board_id(moods) returns text {_CAST} "
    "spy(17, 'default'); end $$",
    "function called like a new column": f"create function secret(moods) returns text {_CAST} spy(18, 'x'); end $$",
    "operator =": f"create function wall_eq(wall, wall) returns boolean {_CAST} spy(19, 'x') = 'x'; end $$; "
    "create operator = (leftarg = wall, rightarg = wall, function = wall_eq)",
    "operator = of text": f"create function wall_is(wall, text) returns boolean {_CAST} spy(20, 'x') = 'x'; end $$; "
    "create operator = (leftarg = wall, rightarg = text, function = wall_is)",
    "operator <": f"create function mood_lt(mood, mood) returns boolean {_CAST} spy(21, 'x') = 'y'; end $$; "
    "create operator < (leftarg = mood, rightarg = mood, function = mood_lt)",
    "operator *=": f"create function moods_eq(moods, moods) returns boolean {_CAST} spy(22, 'x') = 'y'; end $$; "
    "create operator *= (leftarg = moods, rightarg = moods, function = moods_eq)",
    "expression of an index": f"create function indexed(text) returns text immutable {_CAST} spy(23, $1); end $$; "
    "create index on moods (indexed(board_id)); create index on moods (board_id) where indexed(lane) <> ''",
    "generated column": f"create function generated(text) returns text immutable {_CAST} spy(24, $1); end $$; "
    "alter table moods add column g text generated always as (generated(lane)) stored",
    "statistics of an expression": f"create function counted(text) returns text immutable {_CAST} "
    "spy(25, $1); end $$; "
    "create statistics s on (counted(board_id)), lane from moods",
}


@pytest.fixture
def app(database: Database) -> Iterator[str]:
    """Yield an ordinary role, which owns what it makes in schema public."""
    name = f"relay_test_{secrets.token_hex(4)}"
    database.execute(f"create role {name}; grant create, usage on schema public to {name}")
    yield name
    database.execute(f"drop owned by {name} cascade; drop role {name}")


def _as(database: Database, role: str, statements: str) -> None:
    with database.connect() as connection:
        connection.execute(f"set role {role}".encode())
        connection.execute(statements.encode())


_WRITES = """
insert into moods values ('a', 'default', 'todo', 'x', ('x', 'y'), '{x,y}');
insert into moods (id, board_id, lane, m) values ('b', 'default', 'todo', 'y');
insert into walls values ('c', 'default', 'x', 'T'), ('d', 'other', 'y', 'T');
insert into slugs values ('e', 'default', 'todo', 'T');
update moods set m = 'y', board_id = 'other' where id = 'b';
update walls set lane = 'y', board_id = 'default' where id = 'd';
update slugs set title = 'U', id = 'f';
delete from moods where id = 'b';
"""


async def test_users_code_runs_as_the_role_without_rights_or_as_the_writer(
    database: Database, daemon_dsn: str, app: str
) -> None:
    """Also where an administrator installed and watched, and even if it is planted afterwards."""
    _as(database, app, _SPY.replace("APP", app) + _TABLES)
    for table in ("moods", "walls", "slugs"):
        database.execute(f"select relay.watch('{table}', distinct_ids => true)")
    for plant in _PLANTS.values():
        _as(database, app, plant)
    with database.connect() as writer:
        writer.execute(f"set role {app}; {_WRITES}".encode())
        async with Relay(daemon_dsn).running() as relay, Client.to(relay.url) as client:
            await client.subscribe("default")
            writer.execute(
                "insert into slugs values ('g', 'default', 'todo', 'T'); delete from walls; truncate moods"
            )
            await client.receive()
            seen = database.fetch(_SEEN)

    plants = list(_PLANTS)
    ran = {(plants[n - 1], role) for n, role in seen}
    # Every writer runs the one, and who shows a row the other: so it can be seen.
    assert {("check of a domain", app), ("cast to json", RENDERER)} <= ran
    assert {(plant, role) for plant, role in ran if role not in {app, RENDERER}} == set()
    assert database.fetch("select rolsuper from pg_roles where rolname = %s", app) == [(False,)]


_GIVE_ALL = """
do $$
declare
    each regprocedure;
begin
    for each in select p.oid from pg_proc p where p.pronamespace = 'relay'::regnamespace loop
        execute format('alter function %s owner to current_user', each);
    end loop;
end $$
"""


async def test_restore_without_owners_runs_no_code_as_a_superuser(database: Database, app: str) -> None:
    """All functions are a superuser's then: they refuse, until a daemon gives them to the roles without rights."""
    _as(database, app, _SPY.replace("APP", app) + _TABLES)
    for table in ("moods", "walls", "slugs"):
        database.execute(f"select relay.watch('{table}', distinct_ids => true)")
    for plant in _PLANTS.values():
        _as(database, app, plant)
    database.execute(_GIVE_ALL)
    with database.connect() as session:
        session.execute(f"set role {app}; {_WRITES}; reset role".encode())
        for query in ("select * from relay.board('default')", "select * from relay.widest()"):
            with pytest.raises(psycopg.errors.InvalidObjectDefinition, match="run relay sql install"):
                session.execute(query.encode())
        image = "select distinct left(relay.image(row(m.*)), 16) from public.moods m"
        assert session.execute(image.encode()).fetchall() == [("!relay.image bel",)]
        ran = {role for _, role in database.fetch(_SEEN)}
        [[me]] = session.execute("select current_user").fetchall()
        assert me not in ran

        async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
            await client.subscribe("default")
            assert client.tasks.keys() >= {"a", "c", "f"}
            session.execute(f"set role {app}; update walls set title = 'U' where id = 'c'".encode())
            await client.receive()
            ran = {role for _, role in database.fetch(_SEEN)}

    assert client.tasks["c"]["title"] == "U"
    assert ran == {app, RENDERER}


_ATTEMPT = """
create table attempts (name text, statement text); grant select on attempts to public;
create function attempt() returns jsonb language plpgsql as $$
declare
    each record;
    outcomes jsonb := '{}';
begin
    for each in select * from public.attempts loop
        begin
            execute each.statement;
            outcomes := outcomes || pg_catalog.jsonb_build_object(each.name, 'done');
        exception when insufficient_privilege or read_only_sql_transaction or active_sql_transaction then
            null;
        when others then
            outcomes := outcomes || pg_catalog.jsonb_build_object(each.name, sqlerrm);
        end;
    end loop;
    return outcomes;
end $$;
create type mood as enum ('x');
create function mood_json(mood) returns json language sql as 'select public.attempt()::json';
create cast (mood as json) with function mood_json(mood);
create table moods (id text primary key, board_id text not null, lane text not null, m mood);
"""

_ATTEMPTS = {
    "make itself a superuser": "alter role APP superuser",
    "make a role": "create role relay_test_gained",
    "change settings": "update relay.settings set keep_age = '1 year'",
    "empty the journal": "delete from relay.journal",
    "truncate the journal": "truncate relay.journal",
    "change the journal": "update relay.journal set xid = xid",
    "prune": "select relay.prune()",
    "watch": "select relay.watch('public.moods', hidden => '{m}', distinct_ids => true)",
    "replace a function": "create or replace function relay.prune() returns int language sql as 'select 1'",
    "make an object": "create table relay.mine (id int)",
    "write after all": "set transaction read write",
    "drop what renders rows": "drop function relay.image(record)",
    "drop all that it owns": "drop owned by current_user cascade",
    "change what renders rows": "alter function relay.image(record) reset search_path",
    "give others a right": "grant execute on function relay.image(record) to public",
    "read an unwatched table": "select secret from private.unwatched",
    "read another's watched table": "select secret from private.watched",
    "forge an entry": "insert into relay.journal default values",
    "read a file": "select pg_read_file('/etc/passwd')",
    "end sessions": "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'relay' limit 1",
}


async def test_owner_of_a_watched_table_gains_nothing_by_code(database: Database, daemon_dsn: str, app: str) -> None:
    """What the owner may not do, its code may not do: neither when a row is written nor when a board is read."""
    database.execute(
        "create schema private; grant usage on schema private to public; "
        "create table private.unwatched (secret text); insert into private.unwatched values ('hush'); "
        "create table private.watched (id text primary key, board_id text, lane text, secret text); "
        "insert into private.watched values ('s', 'elsewhere', 'todo', 'hush'); "
        "select relay.watch('private.watched', hidden => '{secret}', distinct_ids => true)"
    )
    _as(database, app, _ATTEMPT)
    for name, statement in _ATTEMPTS.items():
        database.execute("insert into attempts values (%s, %s)", name, statement.replace("APP", app))
    database.execute("select relay.watch('moods', distinct_ids => true)")
    _as(database, app, "insert into moods values ('before', 'default', 'todo', 'x')")
    async with Relay(daemon_dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        _as(database, app, "insert into moods values ('after', 'default', 'todo', 'x')")
        while "after" not in client.tasks:
            await client.receive()

    assert [task["m"] for task in client.tasks.values()] == [{}, {}]


_RETYPES = {
    "a board of a domain": (
        "create domain odd as text check (attempt() is not null); create type pair as (o odd)",
        "alter table kept alter board_id type pair using row('x')::pair",
        "(x)",
    ),
    "a board that is an array": (
        "create domain odd as text check (attempt() is not null)",
        "alter table kept alter board_id type odd[] using '{x}'::odd[]",
        "{x}",
    ),
    "an id with a cast": (
        (
            "create type pair as (o text); create function pair_text(pair) returns text language sql as "
            "$$ select public.attempt()::text $$; "
            "create cast (pair as text) with function pair_text(pair) as implicit"
        ),
        "alter table kept alter id type pair using row(id)::pair",
        "default",
    ),
}


@pytest.mark.parametrize("retype", _RETYPES)
def test_owner_gains_nothing_by_another_type_of_a_column_that_was_checked(
    database: Database, app: str, retype: str
) -> None:
    """Its table is not shown, and says why."""
    types, alters, board = _RETYPES[retype]
    _as(
        database,
        app,
        "create table seen (name text); grant insert on seen to public; create function attempt() returns int "
        "language plpgsql as $$ begin insert into public.seen values (current_user); return 1; "
        "exception when insufficient_privilege or read_only_sql_transaction then return 1; end $$; "
        "create table kept (id text primary key, board_id text not null, lane text not null); "
        f"insert into kept values ('a', 'default', 'todo'); {types}",
    )
    database.execute("select relay.watch('kept', id_prefix => 'kept-')")
    _as(database, app, alters)
    _as(database, app, "truncate seen")

    database.execute("select * from relay.hold_tables(%s)", board)
    assert database.fetch("select * from relay.board(%s)", board) == []
    assert database.fetch("select * from relay.board(%s, true)", board) == []
    assert database.fetch("select name from seen") == []
    [[problem]] = database.fetch("select problem from relay.watches where target = 'kept'::regclass")
    assert "whose text a user's code may make" in problem


_EXPRESSIONS = {
    "an enum that has the name of a domain": (
        "create domain kind as text",
        "k <> 'b'",
        (
            "alter table kept alter k type text; drop domain kind; create type kind as enum ('a'); "
            "create function kind_text(kind) returns text language sql as $$ select public.spy(1, 'a') $$; "
            "create cast (kind as text) with function kind_text(kind); "
            "alter table kept alter k type kind using k::kind"
        ),
    ),
    "a column that has the name of a mark": (
        "create type kind as enum ('a', 'b')",
        "n > 0 and k <> 'b'",
        (
            "create function spy() returns boolean language sql as $$ select public.spy(1, 'a') is null $$; "
            """alter table kept rename n to "c'MARK:label 0'"; """
            """alter table kept add "c'" int default 1, add "'" int; """
            """alter type kind rename value 'b' to '" = 0 or public.spy() or row_of_table."'"""
        ),
    ),
}


@pytest.mark.parametrize("kind", _EXPRESSIONS)
def test_owner_gains_nothing_by_what_the_columns_of_an_expression_are_now(
    database: Database, app: str, kind: str
) -> None:
    """An expression was checked with the types and names of that time, and is read as a role that may read all."""
    types, expression, alters = _EXPRESSIONS[kind]
    _as(
        database,
        app,
        _SPY.replace("APP", app) + types + "; create table kept "
        "(id text primary key, board_id text not null, lane text not null, n int, k kind); "
        "insert into kept values ('a', 'default', 'todo', 1, 'a')",
    )
    database.execute("select relay.watch('kept', filter => %s, id_prefix => 'kept-')", expression)
    [[mark]] = database.fetch("select said -> 'filter' ->> 'mark' from relay.watches where target = 'kept'::regclass")
    _as(database, app, alters.replace("MARK", mark))

    for careful in (False, True):
        with contextlib.suppress(psycopg.errors.UndefinedColumn):  # until a daemon makes the functions again
            database.fetch("select * from relay.board('default', %s)", careful)
    assert {role for _, role in database.fetch(_SEEN)} <= {RENDERER}


@pytest.mark.parametrize("spot", ["cast", "predicate of an index"])
async def test_what_users_code_does_to_the_session_of_a_reader_ends_with_the_read(
    database: Database, app: str, spot: str
) -> None:
    """Boards of other tables are read in the same session, and the feed ends with it."""
    _as(
        database,
        app,
        "create type mood as enum ('x'); create table moods (id text primary key, board_id text, lane text, m mood); "
        "create function spoil() returns void language plpgsql as $$ begin perform set_config(name, value, false) "
        "from (values ('statement_timeout', '1ms'), ('idle_in_transaction_session_timeout', '1ms'), "
        "('client_encoding', 'LATIN1')) s (name, value); deallocate all; end $$; "
        "create function spoil(text) returns text immutable language plpgsql as $$ begin "
        "if current_user ~ '^relay_re' then perform public.spoil(); end if; return $1; end $$; "
        "create function mood_json(mood) returns json language sql as $$ select to_json(public.spoil('x')) $$; "
        + ("create cast (mood as json) with function mood_json(mood)" if spot == "cast" else "")
        + ("create index on moods (lane) where spoil('x') <> ''" if spot != "cast" else ""),
    )
    database.execute("select relay.watch('moods', distinct_ids => true)")
    _as(database, app, "insert into moods select i, 'own-' || i, 'todo', 'x' from generate_series(1, 8) i")
    database.execute("insert into tasks (id, title) values ('b', 'B')")
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        for number in range(1, 9):  # more often than it takes psycopg to prepare a statement
            await client.subscribe(f"own-{number}")
            assert client.tasks.keys() == {str(number)}
        await client.subscribe("default")
        assert client.tasks.keys() == {"b"}
        assert relay.feed.status(2.0).counts.reconnects == 0


def test_what_users_code_does_to_the_session_of_a_writer_is_undone(database: Database, app: str) -> None:
    """The owner of a type alone is not asked by Postgres where a row is written, and gains no say in it by us."""
    _as(
        database,
        app,
        "create type mood as enum ('x'); create function mood_json(mood) returns json language plpgsql as $$ begin "
        "perform set_config('search_path', 'public, pg_catalog', false); perform pg_notify('mine', ''); "
        "return '7'; end $$; create cast (mood as json) with function mood_json(mood)",
    )
    database.execute("create table moods (id text primary key, board_id text, lane text, m mood)")
    database.execute("select relay.watch('moods', distinct_ids => true)")
    with database.connect() as writer:
        writer.execute("listen mine; set search_path = public")
        writer.execute("insert into moods values ('a', 'b', 'todo', 'x')")

        assert writer.execute("show search_path").fetchall() == [("public",)]
        assert list(writer.notifies(timeout=0)) == []
    assert database.fetch("select new_row::json ->> 'm' from relay.entries where key = 'a'") == [("7",)]


@pytest.mark.parametrize("code", ["22P05", "57P01", "3F000", "08006", "42P17"])
def test_an_error_of_users_code_fails_its_board_alone_whatever_its_code(
    database: Database, app: str, code: str
) -> None:
    """As that Postgres ends, or that no board has this name: a function can raise any while a query is planned."""
    _as(
        database,
        app,
        "create table moods (id text primary key, board_id text, lane text); "
        "create function fail(text) returns text immutable language plpgsql as $$ begin "
        f"if current_user = 'relay_reader' then raise exception using errcode = '{code}'; end if; return $1; end $$; "
        "create index on moods (lane) where fail('x') <> ''",
    )
    database.execute("select relay.watch('moods', distinct_ids => true)")
    with pytest.raises(psycopg.Error) as raised:
        database.fetch("select * from relay.board('default')")

    assert scope_of(raised.value, reading_board=True) is Scope.BOARD
    assert not isinstance(raised.value, psycopg.errors.UntranslatableCharacter)


def test_code_of_a_type_that_a_column_has_got_since_can_drop_nothing(database: Database, app: str) -> None:
    """It runs as the owner of functions, before any daemon could make them again for this type."""
    _as(database, app, "create table plain (id text primary key, board_id text, lane text, m text)")
    database.execute("select relay.watch('plain', distinct_ids => true)")
    _as(
        database,
        app,
        "create type mood as enum ('x'); create function mood_json(mood) returns json language plpgsql as "
        "$$ begin drop function relay.image(record); return to_json(1); end $$; "
        "create cast (mood as json) with function mood_json(mood); alter table plain alter m type mood using 'x'; "
        "insert into plain values ('a', 'default', 'todo', 'x')",
    )

    assert database.fetch("select to_regprocedure('relay.image(record)') is not null") == [(True,)]
    [[reason]] = database.fetch("select reason from relay.entries where key = 'a'")
    assert "read-only transaction" in reason


def test_roles_have_no_right_but_their_work(database: Database) -> None:
    """One may insert into the journal, one read what is watched, one nothing; nobody may become any of them."""
    database.execute("create table private (id text)")
    database.execute("revoke create on schema public from public")  # which everybody has until Postgres 15
    attributes = database.fetch(
        "select rolname, rolsuper or rolcreaterole or rolcreatedb or rolcanlogin or rolreplication or rolbypassrls "
        "from pg_roles where rolname = any (%s)",
        list(ROLES_OF_OURS),
    )
    rights = database.fetch(
        "select r.rolname, c.oid::regclass::text, p from pg_roles r, pg_class c, "
        "unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p "
        "where r.rolname = any (%s) and c.relkind in ('r', 'p', 'v', 'm') "
        "and c.relnamespace in ('relay'::regnamespace, 'public'::regnamespace) "
        "and has_table_privilege(r.oid, c.oid, p)",
        list(ROLES_OF_OURS),
    )
    makes = database.fetch(
        "select rolname from pg_roles where rolname = any (%s) and (has_schema_privilege(oid, 'relay', 'create') "
        "or has_schema_privilege(oid, 'public', 'create') "
        "or has_database_privilege(oid, current_database(), 'create'))",
        list(ROLES_OF_OURS),
    )
    calls = database.fetch(
        "select r.rolname, f.oid::regprocedure::text from pg_roles r, pg_proc f where r.rolname = any (%s) "
        "and f.pronamespace = 'relay'::regnamespace and f.prosecdef and f.proowner <> r.oid "
        "and has_function_privilege(r.oid, f.oid, 'execute')",
        list(ROLES_OF_OURS),
    )
    members = database.fetch(
        "select m.roleid::regrole::text, m.member::regrole::text from pg_auth_members m "
        "where m.member::regrole::text = any (%s) or (m.roleid::regrole::text = any (%s) "
        "and m.member <> current_user::regrole)",
        list(ROLES_OF_OURS),
        list(ROLES_OF_OURS),
    )

    assert sorted(attributes) == [(name, False) for name in sorted(ROLES_OF_OURS)]
    assert [(table, right) for role, table, right in rights if role == "relay_writer"] == [
        ("relay.journal", "insert")
    ]
    assert [right for right in rights if right[0] == RENDERER] == []
    reads = {table for role, table, right in rights if role == "relay_reader"}
    assert {right for role, _, right in rights if role == "relay_reader"} == {"select"}
    assert "tasks" in reads
    assert "private" not in reads
    assert (makes, members) == ([], [])
    # The journal writers' helpers, and what renders with no right at all.
    assert {(role, name.split("(")[0].rstrip("0123456789")) for role, name in calls} == {
        ("relay_writer", "relay.entry_"),
        ("relay_writer", "relay.pause_if_full"),
        ("relay_reader", "relay.image"),
    }


def test_cursor_key_is_readable_by_nobody_but_its_owner(database: Database, daemon_dsn: str) -> None:
    """It stands in a column called key; neither the daemon's role nor those of the users' code may read that."""
    assert daemon_dsn
    readers = database.fetch(
        "select c.oid::regclass::text, r.rolname "
        "from pg_attribute a join pg_class c on c.oid = a.attrelid, pg_roles r "
        "where c.relnamespace = 'relay'::regnamespace and a.attname = 'key' and a.atttypid = 'bytea'::regtype "
        "and not r.rolsuper and r.oid <> c.relowner and r.rolname !~ '^pg_' "
        "and has_column_privilege(r.oid, c.oid, a.attnum, 'select')"
    )
    keys = database.fetch(
        "select count(*) from pg_attribute a join pg_class c on c.oid = a.attrelid "
        "where c.relnamespace = 'relay'::regnamespace and a.attname = 'key' and a.atttypid = 'bytea'::regtype"
    )

    assert readers == []
    assert keys == [(1,)]


def test_security_definer_functions_of_triggers_belong_to_the_powerless_role(database: Database) -> None:
    """Every function of ours that a trigger calls runs as the role that may insert into the journal."""
    owners = database.fetch(
        "select distinct f.proowner::regrole::text from pg_trigger t join pg_proc f on f.oid = t.tgfoid "
        "where t.tgrelid = 'tasks'::regclass and f.pronamespace = 'relay'::regnamespace and f.prosecdef"
    )

    assert owners == [("relay_writer",)]


def test_default_privileges_open_nothing(empty_database: Database) -> None:
    """What a database grants to everybody on new objects, it does not grant on ours."""
    name = f"relay_test_{secrets.token_hex(4)}"
    empty_database.execute(f"create role {name}")
    try:
        for kind in ("schemas", "tables", "sequences", "functions", "types"):
            for grantee in ("public", name):
                empty_database.execute(f"alter default privileges grant all on {kind} to {grantee}")
        for file in ("tasks", "install"):
            empty_database.execute(text(file))
        empty_database.execute("select relay.watch('public.tasks')")
        opened = empty_database.fetch(
            "select 'schema' from pg_namespace "
            "where nspname = 'relay' and has_schema_privilege(%s, oid, 'usage, create') "
            "union all select c.oid::regclass::text from pg_class c where relnamespace = 'relay'::regnamespace "
            "and relkind in ('r', 'p', 'v') and (has_table_privilege(%s, oid, 'select, insert, update, delete') "
            "or has_any_column_privilege(%s, oid, 'select, insert, update, references')) "
            "union all select c.oid::regclass::text from pg_class c where relnamespace = 'relay'::regnamespace "
            "and case when relkind = 'S' then has_sequence_privilege(%s, oid, 'usage, select, update') end "
            "union all select f.oid::regprocedure::text from pg_proc f where pronamespace = 'relay'::regnamespace "
            "and has_function_privilege(%s, oid, 'execute')",
            *5 * [name],
        )
    finally:
        empty_database.execute(f"drop owned by {name} cascade; drop role {name}")

    assert opened == []

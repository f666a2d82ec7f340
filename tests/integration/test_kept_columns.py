"""Columns that a watch or a table of lanes knows: what a migration may do to them, and what comes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from relay.postgres import follower, housekeeping
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.integration.test_migrations import run
from tests.servers import Database

TABLES = """
    create table t (
        id int primary key, board_id text not null default 'b', lane text not null default 'x',
        title text, rank int, secret text, gone boolean not null default false
    );
    create table k (a int, b int, board_id text default 'b', lane text default 'x', title text, primary key (a, b));
    create table e (id int primary key, project int default 1, state int default 2);
    create type stage as enum ('to do', 'it''s done', 'gone');
    create table s (id int primary key, board_id text default 'b', stage stage default 'to do');
    create table lists (id int primary key, board_id text default 'b', name text, rank int, gone bool default false);
    create table cards (id int primary key, list_id int);
    insert into t (id, rank) values (1, 1), (2, 2);
    insert into k values (1, 2); insert into e values (1);
    insert into lists values (1, 'b', 'First', 2), (2, 'b', 'Second', 1);
    insert into cards values (1, 1);
    select relay.watch('t', order_by => '{rank desc, title}', hidden => '{secret}', filter => 'not gone');
    select relay.watch('k', key_columns => '{a,b}', shown => '{title}', order_by => '{}');
    select relay.watch('e', id_prefix => 'e', order_by => '{""}',
        board_as => '''p'' || project', lane_as => 'state::text');
    select relay.watch('s', id_prefix => 's', filter => 'stage in (''to do'', ''it''''s done'')',
        lane_as => 'case stage when ''it''''s done'' then ''done'' else ''todo'' end');
    insert into s values (1);
    select relay.lanes('lists', order_by => '{rank}', filter => 'not gone');
    select relay.watch('cards', id_prefix => 'c', lane_column => 'list_id', lanes => 'lists');
"""

OF_T = {"order_by": ["rank desc", "title"], "lost_order": [], "hidden": ["secret"], "problem": None, "is_key": True}
OF_S: dict[str, Any] = {
    "filter": "(stage = ANY (ARRAY['to do'::public.stage, 'it''s done'::public.stage]))",
    "problem": None,
}
REPLACED = (
    "alter type stage rename to old; create type stage as enum ({});"
    "alter table s alter stage drop default, alter stage type stage using 'to do'"
)
OF_K = {"shown": ["a", "b", "board_id", "lane", "title"], "problem": None}
WATCHED: dict[str, tuple[str, dict[str, Any]]] = {
    # Of a watch
    "t rename id to x": ("t", OF_T | {"id_column": "x"}),
    "t drop id": ("t", {"problem": "has no column id any more, its id"}),
    "t alter id type bigint": ("t", OF_T),
    "t drop constraint t_pkey": ("t", OF_T | {"is_key": False}),
    "t drop constraint t_pkey, add primary key (id, lane)": ("t", OF_T | {"is_key": False}),
    "t drop constraint t_pkey, add primary key (id) deferrable": ("t", OF_T | {"is_key": False}),
    "t drop constraint t_pkey, add unique (id)": ("t", OF_T),
    "t rename board_id to x": ("t", OF_T | {"board_column": "x"}),
    "t drop board_id": ("t", {"problem": "has no column board_id any more, its board"}),
    "t alter board_id type varchar(9)": ("t", OF_T),
    "t rename lane to x": ("t", OF_T | {"lane_column": "x"}),
    "t drop lane": ("t", {"problem": "has no column lane any more, its lane"}),
    "t alter lane type varchar(9)": ("t", OF_T),
    "t rename secret to x": ("t", OF_T | {"hidden": ["x"]}),
    "t drop secret": ("t", OF_T | {"hidden": []}),
    "t alter secret type bytea using null": ("t", OF_T),
    "t rename rank to x": ("t", OF_T | {"order_by": ["x desc", "title"]}),
    't rename rank to "X y"': ("t", OF_T | {"order_by": ['"X y" desc', "title"]}),
    "t drop rank": ("t", OF_T | {"lost_order": ["rank desc"]}),
    "t drop rank, add rank text": ("t", OF_T),
    "t rename rank to x; alter table t add rank int": ("t", OF_T | {"order_by": ["x desc", "title"]}),
    "t alter rank type numeric": ("t", OF_T),
    "t alter rank type json using null": ("t", OF_T | {"lost_order": ["rank desc"]}),
    "t alter title type interval using null": ("t", OF_T | {"lost_order": ["title"]}),
    "t rename gone to x": ("t", OF_T | {"filter": "(NOT x)"}),
    "t drop gone": ("t", {"problem": "has no column gone any more, which its filter is made of"}),
    "t alter gone drop default, alter gone type text": (
        "t",
        {"problem": "has gone as text now, in place of boolean, which its filter is made of"},
    ),
    "k rename b to x": ("k", OF_K | {"key_columns": ["a", "x"], "shown": ["a", "x", "board_id", "lane", "title"]}),
    "k drop b": ("k", {"problem": "has no column b any more, its id"}),
    "k alter b type bigint": ("k", OF_K),
    "k rename title to x": ("k", OF_K | {"shown": ["a", "b", "board_id", "lane", "x"]}),
    "k drop title": ("k", OF_K | {"shown": ["a", "b", "board_id", "lane"]}),
    "k alter title type json using null": ("k", OF_K),
    "k drop title, add title int": ("k", OF_K | {"shown": ["a", "b", "board_id", "lane"], "hidden": ["title"]}),
    "e rename project to x": ("e", {"board_as": "('p'::text || x)", "problem": None}),
    "e drop project": ("e", {"problem": "has no column project any more, which its board is made of"}),
    "e drop state": ("e", {"problem": "has no column state any more, which its lane is made of"}),
    "alter type stage rename value 'gone' to 'x'": ("s", OF_S),
    "alter type stage rename value 'to do' to 'it''s'": (
        "s",
        {"filter": OF_S["filter"].replace("to do", "it''s"), "problem": None},
    ),
    "alter type stage rename to x": (
        "s",
        {"problem": "has stage as public.x now, in place of public.stage, which its lane is made of"},
    ),
    # As tools replace an enum by another
    REPLACED.format("'to do', 'it''s done'"): ("s", OF_S),
    REPLACED.format("'to do', 'done'"): (
        "s",
        {"problem": "has no label 'it''s done' of public.stage any more, which its lane is made of"},
    ),
    # Of the table of its lanes
    "lists rename id to x": ("cards", {"problem": None}),
    "lists drop id": ("cards", {"problem": "has its lanes in lists, which has no column id any more, its lanes' id"}),
    "lists alter id type text": ("cards", {"problem": "has lanes of another type than those in lists"}),
    "lists rename board_id to x": ("cards", {"problem": None}),
    "lists drop board_id": (
        "cards",
        {"problem": "has its lanes in lists, which has no column board_id any more, its lanes' board"},
    ),
    "lists drop name": (
        "cards",
        {"problem": "has its lanes in lists, which has no column name any more, its lanes' name"},
    ),
    "lists rename to boxes": ("cards", {"lanes": "boxes", "problem": None}),
    "cards rename list_id to x": ("cards", {"lane_column": "x", "problem": None}),
}

ORDERS = {
    "t rename rank to x": (["2", "1"], ["2", "1"]),
    "t drop rank": (["1", "2"], ["2", "1"]),
    "t drop rank, add rank int": (["1", "2"], ["2", "1"]),
    "t alter rank type json using null": (["1", "2"], ["2", "1"]),
    "t alter rank type text": (["2", "1"], ["2", "1"]),
    "lists rename rank to x": (["2", "1"], ["2", "1"]),
    "lists drop rank": (["2", "1"], ["1", "2"]),
    "lists alter rank type json using null": (["2", "1"], ["1", "2"]),
    "lists rename gone to x": (["2", "1"], ["2", "1"]),
    "lists rename name to x": (["2", "1"], ["2", "1"]),
    "lists rename id to x": (["2", "1"], ["2", "1"]),
    "alter type stage rename value 'to do' to 'x'": (["2", "1"], ["2", "1"]),
    REPLACED.format("'to do', 'it''s done'"): (["2", "1"], ["2", "1"]),
}
"""What orders of tasks and of lanes follow."""


def altered(connection: psycopg.Connection, change: str) -> None:
    connection.execute((change if change.startswith("alter ") else f"alter table {change}").encode())


def test_column_is_known_by_its_number_whatever_its_part(database: Database) -> None:
    """Renamed, it keeps its part; without it, a table is not shown, or is without an order that health names."""
    database.execute(TABLES)
    found: dict[str, Any] = {}
    with database.connect() as link:
        for change, (table, expected) in WATCHED.items():
            with link.transaction(force_rollback=True):
                altered(link, change)
                columns = ", ".join("lanes::text" if name == "lanes" else name for name in expected)
                row = link.execute(
                    f"select {columns} from relay.watched where target = %s::regclass".encode(), [table]
                ).fetchone()
                found[change] = table, dict(zip(expected, row or (), strict=True))
    assert found == WATCHED


def test_order_survives_a_rename_and_boards_survive_a_dropped_order_column(database: Database) -> None:
    database.execute(TABLES)
    found: dict[str, Any] = {}
    with database.connect() as link:
        for change in ORDERS:
            with link.transaction(force_rollback=True):
                altered(link, change)
                rows = link.execute("select watch, task::json from relay.board('b')").fetchall()
                watch = link.execute("select id from relay.watched where target = 't'::regclass").fetchone()
                (lanes,) = [said for number, said in rows if number is None]
                tasks = [str(task["id"]) for number, task in rows if watch and number == watch[0]]
                found[change] = tasks, [lane for lane, _ in lanes]
    assert found == ORDERS


NAMED = {
    "regclass": "alter table named rename to renamed",
    "regtype[]": "alter type mood rename to temper",
    "regprocedure": "alter function made(int) rename to remade",
    "regnamespace": "alter schema place rename to site",
    "regcollation": "alter collation way rename to path",
    "aclitem": 'alter role "{role}" rename to "{role}_"',
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_a_column_names_is_of_the_shape(database: Database, kind: str) -> None:
    """Its values show names, but none of temporary objects; other columns show no names."""
    ((role,),) = database.fetch("select 'r_' || current_database()")
    database.execute("create table named (); create type mood as enum (); create schema place")
    database.execute(
        "create function made(int) returns int language sql as 'select 1'; create collation way from \"C\""
    )
    rename = NAMED[kind].format(role=role)
    shape = "select relay.shape()"
    with database.connect() as link:
        link.execute("begin")
        link.execute(f'create role "{role}"'.encode())
        seen = [link.execute(shape).fetchone()]
        for statement in (f"alter table tasks add named {kind}", "create temporary table of_nobody ()", rename):
            link.execute(statement.encode())
            seen.append(link.execute(shape).fetchone())
        link.execute("rollback")
        link.execute(f'begin; create role "{role}"'.encode())
        before = link.execute(shape).fetchone()
        link.execute(rename.encode())
        after = link.execute(shape).fetchone()
        link.execute("rollback")
    assert seen[0] != seen[1] == seen[2] != seen[3]
    assert before == after


def test_usual_order_is_nobodys_wish(database: Database) -> None:
    """Without created_at, tasks come by their ids, and there is nothing to say about it, nor to refuse."""
    database.execute("alter table tasks rename created_at to since")
    asked = "select order_by, ordering, lost_order from relay.watched"
    assert database.fetch(asked) == [(["since"], None, [])]
    database.execute("alter table tasks drop since; select relay.watch('tasks')")
    assert database.fetch(asked) == [([], None, [])]


@pytest.fixture
def compares_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a relay see soon what is watched, and of what shape it is."""
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.05)
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 0.05)


@pytest.mark.usefixtures("compares_often")
async def test_a_dropped_order_column_is_reported_with_the_command_to_go_on_without_it(
    database: Database, relay: Relay, client: Client
) -> None:
    """Its subscribers have the tasks all the same, and the relay stays ready; of lanes it is the same."""
    database.execute("alter table tasks add rank int; select relay.watch('tasks', order_by => '{rank,title}')")
    database.execute("create table lists (id text primary key, name text, rank int)")
    database.execute("select relay.lanes('lists', order_by => '{rank}')")

    async def ordered_by(*keys: str) -> None:
        while [each["key"] for each in (await client.receive())[1].get("orderBy", [])] != list(keys):
            pass

    await ordered_by("rank", "title")
    await asyncio.to_thread(database.execute, "alter table tasks rename rank to place")
    await ordered_by("place", "title")
    assert relay.feed.status(10).incomplete == {}
    await asyncio.to_thread(database.execute, "alter table tasks drop place; alter table lists drop rank")
    await ordered_by("title")
    await until(lambda: relay.feed.status(10).incomplete.keys() == {"public.tasks", "public.lists"})
    assert relay.feed.problem is None
    for table, said in relay.feed.status(10).incomplete.items():
        assert said.startswith(f"{table} cannot be ordered by ")
        await asyncio.to_thread(run, database, said.partition(", or name")[0], table)
    await until(lambda: relay.feed.status(10).incomplete == {})
    await asyncio.to_thread(database.execute, "alter table tasks drop constraint tasks_pkey")
    await asyncio.to_thread(database.execute, "alter table lists drop constraint lists_pkey")
    await until(lambda: relay.feed.status(10).incomplete.keys() == {"public.tasks", "public.lists"})
    assert all(
        said.startswith(f"rows of {of} may share an id") for of, said in relay.feed.status(10).incomplete.items()
    )
    assert database.fetch("select order_by from relay.watched") == [(["title"],)]

"""Tables that are not the guide's: rows that an application hides, boards and lanes that an expression says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from relay.commands.check.suggest import suggest
from relay.commands.cli import cli
from relay.order import OrderKey
from relay.postgres import boards, install, requests
from relay.postgres.decode import Watch, board_data
from tests.acceptance.support import run_relay
from tests.acceptance.test_docs import SHAPES, commands, examples
from tests.clusters import run
from tests.integration.client import Client, Message, until
from tests.integration.conftest import Relay
from tests.integration.test_messages import brief, created, deleted, moved, updated
from tests.servers import Database, Server, temporary_database

DEFAULT: Final = "00000000-0000-0000-0000-000000000001"
OTHER: Final = "00000000-0000-0000-0000-000000000002"

_CARDS: Final = """
    create type public.state as enum ('open', 'done', 'archived');
    create table public.cards (
        id bigint primary key, board_id uuid, lane text, state public.state not null default 'open',
        deleted_at timestamptz, data jsonb, is_public boolean not null default false, tenant int, title text)
"""

BY_UUID: Final = f"case board_id when '{DEFAULT}' then 'default' else board_id::text end"


def watch(database: Database, **settings: object) -> None:
    """Watch the table."""
    named = "".join(f", {name} => %s" for name in settings)
    database.execute(f"select relay.watch('public.cards'{named})", *settings.values())


def refusal(database: Database, **settings: object) -> str:
    """Return why a watch is refused, in one line."""
    with pytest.raises(psycopg.Error) as caught:
        watch(database, **settings)
    said = caught.value.diag.message_primary or ""
    assert "\n" not in said
    return said


async def until_marked(client: Client, database: Database, statement: str, *args: object) -> list[Message]:
    """Run a statement that brings task 999; return all messages before it."""
    database.execute(statement, *args)
    found: list[Message] = []
    while True:
        kind, data = await client.receive()
        if kind == "task.created" and data["id"] == 999:
            return found
        found.append((kind, data))


@pytest.fixture
def cards(database: Database) -> Database:
    """Yield a database with a table of another shape."""
    database.execute(_CARDS)
    database.execute("create function public.evil(int) returns int language sql immutable as 'select 1'")
    database.execute("create domain public.checked as text check (value <> 'evil')")
    return database


_REFUSED: Final[list[tuple[dict[str, str], str]]] = [
    ({"filter": "now() > deleted_at"}, "it is not immutable"),
    ({"filter": "random() < 0.5"}, "it is not immutable"),
    ({"filter": "state::text = 'open'"}, "it is not immutable"),
    ({"filter": "public.evil(tenant) = 1"}, "it uses function public.evil(integer): expected nothing but"),
    ({"lane_as": "lane::public.checked"}, "it uses type public.checked: expected nothing but"),
    ({"filter": "exists (select from public.cards)"}, "cannot use subquery"),
    ({"filter": "count(*) > 1"}, "aggregate functions are not allowed"),
    ({"filter": "true) stored, add column x int --"}, "syntax error"),
    ({"filter": "true; drop table public.cards"}, "syntax error"),
    ({"filter": "tableoid = 1"}, ".tableoid: expected nothing but columns of the table"),
    ({"filter": "nothing is null"}, 'column "nothing" does not exist'),
    ({"filter": "deleted_at"}, "of type boolean"),
    ({"filter": r"title ~ '\d'"}, "has a backslash"),
    ({"board_as": "tenant", "board_column": "board_id"}, "expected board_column or board_as"),
]
"""Settings of relay.watch, and a part of what it says."""


def test_an_expression_that_cannot_be_used_is_refused(cards: Database) -> None:
    """Only what depends on the row alone, and runs no code of users, is taken; the refusal says why in one line."""
    for settings, reason in _REFUSED:
        assert reason in refusal(cards, **settings)
    assert cards.fetch("select from relay.watched where table_name = 'cards'") == []


def test_an_enum_with_an_implicit_cast_is_refused_even_if_it_gets_it_later(cards: Database) -> None:
    """The cast is code of the enum's owner, which would run where boards are read."""
    watch(cards, filter="state <> 'archived'")
    cards.execute("create cast (public.state as text) with inout as implicit")

    assert cards.fetch(
        "select problem like 'has state of type %% implicit casts%%' from relay.watched where table_name = 'cards'"
    ) == [(True,)]
    assert cards.fetch("select * from relay.board(%s)", DEFAULT) == []
    assert "it is not immutable" in refusal(cards, filter="state <> 'archived'")


async def test_a_row_that_stops_matching_the_filter_is_deleted_and_one_that_matches_again_created(
    cards: Database, relay: Relay
) -> None:
    """A row that does not match is as if it were not there, also where the columns of the filter are hidden."""
    watch(cards, filter="deleted_at is null and state <> 'archived'", hidden=["deleted_at"], board_as=BY_UUID)
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        cards.execute("insert into cards values (1, %s, 'todo', 'open')", DEFAULT)
        cards.execute("insert into cards values (2, %s, 'todo', 'archived')", DEFAULT)
        cards.execute("update cards set title = 'new'")
        cards.execute("update cards set deleted_at = now()")
        cards.execute("update cards set title = 'newer'")
        cards.execute("update cards set deleted_at = null, state = 'open' where id = 2")
        found = await until_marked(client, cards, "insert into cards (id, board_id) values (999, %s)", DEFAULT)

    assert brief(found) == [created(1), updated(1, title="new"), deleted(1), created(2)]
    assert cards.fetch("select count(*) from relay.entries where op = 'R' and key = '2'") == [(1,)]


@pytest.mark.parametrize(
    ("settings", "given", "meant"),
    [
        ("set datestyle = 'SQL, DMY'", "due >= '02/01/2024'::date", "due >= '2024-01-02'::date"),
        ("set datestyle = 'German'", "due >= '02.01.2024'::date", "due >= '2024-01-02'::date"),
        (
            "set intervalstyle = sql_standard",
            "took >= '-1 2:00:00'::interval",
            "took >= '-1 days -02:00:00'::interval",
        ),
    ],
)
def test_a_filter_means_what_it_means_in_the_session_that_gives_it(
    cards: Database, settings: str, given: str, meant: str
) -> None:
    """Its dates and intervals are evaluated in sessions with other settings, where the same text is another value."""
    cards.execute("alter table cards add column due date, add column took interval")
    with cards.connect() as session:
        session.execute(settings.encode())
        session.execute("select relay.watch('public.cards', filter => %s)", (given,))

    assert cards.fetch("select filter from relay.watched where table_name = 'cards'") == [(f"({meant})",)]


async def test_board_and_lane_that_an_expression_says_are_those_of_the_tasks(cards: Database, relay: Relay) -> None:
    """Tasks have them as `boardId` and `lane`, and the columns under their own names."""
    watch(cards, board_as=BY_UUID, lane_as="case when is_public then 'public' else data ->> 'lane' end")
    cards.execute("insert into cards (id, board_id, lane, data) values (1, %s, 'x', '{\"lane\": \"7\"}')", DEFAULT)
    async with Client.to(relay.url) as client:
        _, board = await client.subscribe("default")
        task = board["lanes"]["7"][0]
        assert (task["boardId"], task["lane"], task["board_id"], task["lane_"]) == ("default", "7", DEFAULT, "x")

        cards.execute("update cards set is_public = true")
        found = await until_marked(client, cards, "insert into cards (id, board_id) values (999, %s)", DEFAULT)
        assert brief(found) == [moved(1, "7", "public"), updated(1, lane="public", isPublic=True)]

        _, fresh = await client.subscribe("default")
        assert [each["id"] for each in fresh["lanes"]["public"]] == [1]


@pytest.mark.parametrize("setting", ["timezone = 'Asia/Tokyo'", "extra_float_digits = 0", "bytea_output = 'escape'"])
def test_what_an_expression_says_does_not_depend_on_the_writers_settings(cards: Database, setting: str) -> None:
    """It is evaluated under the settings in which boards are read."""
    cards.execute("alter table cards add ratio float8, add code bytea")
    watch(cards, board_as="ratio::text || encode(code, 'hex') || code::text")
    cards.execute(f"set {setting}")
    cards.execute("insert into cards (id, ratio, code) values (1, 0.1::float8 + 0.2::float8, 'a')")

    [(board,)] = cards.fetch("select new_board from relay.entries where op = 'R'")
    assert board == "0.3000000000000000461\\x61"
    assert len(cards.fetch("select * from relay.board(%s)", board)) == 1


async def test_a_row_at_which_an_expression_fails_is_left_out_alone(cards: Database, relay: Relay) -> None:
    """It harms no writer, no other row, and no board."""
    watch(cards, board_as="(data ->> 'board')::int + 0")
    cards.execute('insert into cards (id, data) values (1, \'{"board": 7}\'), (2, \'{"board": "?"}\')')
    async with Client.to(relay.url) as client:
        await client.subscribe("7")
        assert set(client.tasks) == {1}

        cards.execute("update cards set data = '{\"board\": 7}' where id = 2")
        cards.execute('update cards set data = \'{"board": "?"}\' where id = 1')
        found = await until_marked(client, cards, "insert into cards (id, data) values (999, '{\"board\": 7}')")
        assert brief(found) == [created(2), deleted(1)]


async def test_a_renamed_column_keeps_its_part_in_an_expression(cards: Database, relay: Relay) -> None:
    """Expressions know columns by their number, as the id, the board and the lane do."""
    watch(cards, filter="deleted_at is null", board_as=BY_UUID)
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        cards.execute("alter table cards rename deleted_at to gone_at")
        cards.execute("insert into cards (id, board_id) values (1, %s)", DEFAULT)
        cards.execute("insert into cards (id, board_id, gone_at) values (2, %s, now())", DEFAULT)
        while set(client.tasks) != {1}:
            await client.receive()

    assert cards.fetch("select filter, problem from relay.watched where table_name = 'cards'") == [
        ("(gone_at IS NULL)", None)
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("drop column deleted_at", "has no column deleted_at any more, which its filter is made of"),
        (
            "alter column deleted_at type date",
            "has deleted_at as date now, in place of timestamp with time zone, which its filter is made of",
        ),
    ],
)
async def test_a_table_whose_columns_no_longer_fit_its_expressions_is_not_shown(
    cards: Database, relay: Relay, change: str, problem: str
) -> None:
    """In doubt no row is shown; the relay says what is wrong, and what to do."""
    watch(cards, filter="deleted_at is null", board_as=BY_UUID)
    cards.execute("insert into cards (id, board_id) values (1, %s)", DEFAULT)
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        assert set(client.tasks) == {1}
        cards.execute(f"alter table cards {change}")
        while client.tasks:
            await client.receive()
        await until(lambda: relay.feed.problem is not None)

    assert relay.feed.problem == (
        f"public.cards {problem}, and is not shown: run relay sql watch public.cards with the columns as they are now"
    )
    watch(cards, filter="")
    assert cards.fetch("select problem from relay.watched where table_name = 'cards'") == [(None,)]


def test_watching_again_with_the_same_expressions_changes_nothing(cards: Database) -> None:
    """What is not given stays, and what is written otherwise but means the same is the same."""
    watch(cards, filter="deleted_at is null", board_as=BY_UUID)
    before = cards.fetch("select * from relay.watched")
    watch(cards)
    watch(cards, filter="( deleted_at  is null )")

    assert cards.fetch("select * from relay.watched") == before
    watch(cards, board_column="board_id", filter="")
    assert cards.fetch("select board_column, board_as, filter from relay.watched where table_name = 'cards'") == [
        ("board_id", None, None)
    ]


async def test_the_guides_clients_get_the_default_board_of_a_table_with_uuid_boards(
    database: Database, tmp_path: Path
) -> None:
    """As docs/shapes.md says, whose SQL and commands run as printed."""
    database.execute("select relay.unwatch('tasks'); drop table tasks")
    alone = "select relay.unwatch(target) from relay.watches"  # the examples are of several databases
    for block in examples(SHAPES, "sql"):
        if "relay.watch(" in block:
            database.execute(alone)
        database.execute(block)
    of_tasks = [command for command in commands(SHAPES) if "watch public.tasks" in command]
    for command in commands(SHAPES) + of_tasks:
        if " sql watch " in command:
            database.execute(alone)
        words = shlex.split(command)[1:]
        if "check" in words:  # which sets up the log of its process
            checked = run_relay(*words, cwd=tmp_path, DATABASE_URL=database.dsn)
            assert (checked.stderr, checked.returncode) == ("", 0)
            continue
        finished = await asyncio.to_thread(CliRunner().invoke, cli, words, env={"DATABASE_URL": database.dsn})
        assert (finished.stderr, finished.exit_code) == ("", 0)
    database.execute("insert into tasks (board_id, title) values (%s, 'a'), (%s, 'b')", DEFAULT, OTHER)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        assert [task["title"] for task in client.tasks.values()] == ["a"]
        await client.subscribe(OTHER)
        assert [task["title"] for task in client.tasks.values()] == ["b"]


_LISTS: Final = """
    select relay.unwatch('tasks');
    create table public.lists (
        id bigint primary key, board_id int, name text, position float8, closed_at timestamptz, note text);
    create table public.cards (id int primary key, list_id bigint, title text, position float8);
    insert into lists values (10, 1, 'Todo', 2), (11, 1, 'Doing', 1), (12, 1, 'Old', 3), (20, 2, 'Two', 1);
    update lists set closed_at = now() where id = 12;
    select relay.lanes('lists', order_by => '{position}', filter => 'closed_at is null');
    select relay.watch('cards', lane_column => 'list_id', lanes => 'lists');
"""


@pytest.fixture
def lists(database: Database) -> Database:
    """Yield a database whose lanes are rows, which know the board."""
    database.execute(_LISTS)
    return database


def lanes_in(data: dict[str, Any]) -> dict[str, list[int]]:
    """Return the ids of the tasks in each lane of a `board.sync`."""
    return {lane: [task["id"] for task in tasks] for lane, tasks in data["lanes"].items()}


async def test_a_board_lists_exactly_its_lanes_in_their_order_with_their_names(lists: Database, relay: Relay) -> None:
    """Empty ones included; cards in a lane that is none, or without one, are on no board."""
    lists.execute("insert into cards values (1, 10, 'a'), (2, 12, 'closed'), (3, null, 'nowhere'), (4, 20, 'other')")
    async with Client.to(relay.url) as client:
        _, board = await client.subscribe("1")
        assert list(lanes_in(board).items()) == [("11", []), ("10", [1])]
        assert list(board["laneNames"].items()) == [("11", "Doing"), ("10", "Todo")]
        assert board["lanes"]["10"][0]["boardId"] == "1"

        _, board = await client.subscribe("nothing")
        assert board == {"lanes": {}, "laneNames": {}, "laneOrder": []}


@pytest.mark.parametrize(
    ("change", "lanes"),
    [
        ("insert into lists values (13, 1, 'New', 0)", {"13": "New", "11": "Doing", "10": "Todo"}),
        ("update lists set name = 'Done' where id = 10", {"11": "Doing", "10": "Done"}),
        ("update lists set position = 0 where id = 10", {"10": "Todo", "11": "Doing"}),
        ("delete from lists where id = 11", {"10": "Todo"}),
        ("update lists set closed_at = now() where id = 11", {"10": "Todo"}),
        ("update lists set id = 15 where id = 11", {"15": "Doing", "10": "Todo"}),
        ("truncate lists", {}),
    ],
)
async def test_a_change_of_a_lane_sends_its_board_with_the_reason(
    lists: Database, relay: Relay, change: str, lanes: dict[str, str]
) -> None:
    """And no other board."""
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.resume("1", None)
        await other.resume("2", None)
        lists.execute(change)
        [(kind, board)] = await client.receive_batch()

        assert (kind, client.reason) == ("board.sync", "truncate" if "truncate" in change else "lanes_changed")
        assert list(board["laneNames"].items()) == list(lanes.items())
        if "truncate" not in change:
            lists.execute("insert into cards values (1, 20, 'there')")
            assert brief(await other.receive_batch()) == [created(1)]


def test_a_change_of_a_lane_that_no_board_shows_is_not_journalled(lists: Database) -> None:
    """Nor is one of a lane that the filter leaves out."""
    before = lists.fetch("select count(*) from relay.journal")
    lists.execute("update lists set note = 'x'; update lists set name = 'x' where closed_at is not null")

    assert lists.fetch("select count(*) from relay.journal") == before


async def test_a_card_follows_its_lane_from_board_to_board(lists: Database, relay: Relay) -> None:
    """A card that changes lane goes where that lane is; a lane that changes board takes its cards along."""
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        await one.resume("1", None)
        await two.resume("2", None)
        lists.execute("insert into cards values (1, 10, 'a')")
        assert brief(await one.receive_batch(), "boardId", "lane") == [created(1, boardId="1", lane=10)]
        lists.execute("update cards set list_id = 11")
        assert brief(await one.receive_batch()) == [moved(1, 10, 11), updated(1, lane=11)][:1]
        lists.execute("update cards set list_id = 20")
        assert brief(await one.receive_batch()) == [deleted(1)]
        assert brief(await two.receive_batch(), "boardId", "lane") == [created(1, boardId="2", lane=20)]
        lists.execute("update lists set board_id = 1 where id = 20")
        [(_, first)] = await one.receive_batch()
        [(_, second)] = await two.receive_batch()
        assert (lanes_in(first), lanes_in(second)) == ({"11": [], "20": [1], "10": []}, {})
        lists.execute("update cards set list_id = 12")
        assert brief(await one.receive_batch()) == [deleted(1)]


async def test_nobody_waits_for_a_list_and_no_race_leaves_a_card_on_the_wrong_board(
    lists: Database, relay: Relay
) -> None:
    """While one moves a card into a list, another moves that list to another board; neither sees the other."""
    lists.execute("insert into cards values (1, 10, 'a')")
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        await one.resume("1", None)
        await two.resume("2", None)
        mover = lists.connect()
        mover.autocommit = False
        mover.execute("set lock_timeout = '1s'")
        mover.execute("update cards set list_id = 11 where id = 1")
        lists.execute("set lock_timeout = '1s'; update lists set board_id = 2 where id = 11")
        await one.receive_batch()
        await two.receive_batch()
        assert (set(one.tasks), set(two.tasks)) == ({1}, set())
        mover.commit()

        assert brief(await one.receive_batch()) == [deleted(1)]
        assert brief(await two.receive_batch(), "boardId") == [created(1, boardId="2")]


async def test_what_was_missed_is_resolved_too(lists: Database, relay: Relay) -> None:
    """A client that comes back gets the cards of lanes that are as they were, and the board where one changed."""
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        cursor = client.cursor
    lists.execute("insert into cards values (1, 10, 'a'), (2, 20, 'b'); update cards set list_id = 11 where id = 2")
    async with Client.to(relay.url) as client:
        assert brief(await client.resume("1", cursor)) == [created(1), created(2)]
        cursor = client.cursor
    lists.execute("update lists set name = 'x' where id = 10")
    async with Client.to(relay.url) as client:
        assert lanes_in((await client.resume("1", cursor))[0][1]) == {"11": [2], "10": [1]}
        assert client.reason == "lanes_changed"


async def test_a_large_transaction_is_resolved_and_changes_lanes(lists: Database, relay: Relay) -> None:
    """More than a part of it is read at once; lanes are changed in the midst of it."""
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.resume("1", None)
        await other.resume("2", None)
        lists.execute("insert into cards select n, 20, 'many' from generate_series(1, 5000) n")
        while len(other.tasks) < 5000:
            await other.receive_batch()
        lists.execute("update cards set list_id = 10; update lists set board_id = 1 where id = 20")
        while len(client.tasks) < 5000 or other.tasks:
            await client.receive_batch()
            await other.receive_batch()


async def test_lanes_without_a_board_are_those_of_all_boards(database: Database, relay: Relay) -> None:
    """The rows name the board themselves."""
    database.execute("create table statuses (id int primary key, name text); insert into statuses values (1, 'New')")
    database.execute("create table issues (id int primary key, project_id int, status_id int)")
    database.execute("insert into issues values (1, 7, 1), (2, 7, 2), (3, 8, 1)")
    database.execute("select relay.lanes('statuses', board_column => '')")
    database.execute(
        "select relay.watch('issues', board_column => 'project_id', lane_column => 'status_id', lanes => 'statuses')"
    )
    async with Client.to(relay.url) as client:
        [(_, board)] = await client.resume("7", None)
        assert (lanes_in(board), board["laneNames"]) == ({"1": [1]}, {"1": "New"})
        database.execute("insert into statuses values (2, 'Done')")
        [(_, board)] = await client.receive_batch()
        assert (lanes_in(board), client.reason) == ({"1": [1], "2": [2]}, "lanes_changed")
        database.execute("update issues set project_id = 7 where id = 3")
        assert brief(await client.receive_batch()) == [created(3)]


def test_lanes_that_cannot_be_are_refused(lists: Database) -> None:
    """Each in one sentence."""
    refused = {
        "select relay.watch('tasks', lanes => 'cards')": "public.cards is not declared as a table of lanes",
        "select relay.watch('cards', board_column => 'title')": "the board of public.cards is that of its lane",
        "select relay.watch('cards', lane_column => 'title')": "are of different types",
        "select relay.lanes('cards', name_column => 'name')": "public.cards has no column 'name'",
        "select relay.lanes('lists', id_column => 'position')": "cannot be the id of lanes",
        "select relay.lanes('lists', id_column => 'board_id')": "is not a key by itself",
        "select relay.lanes('lists', order_by => '{nothing}')": "order_by has 'nothing'",
        "select relay.lanes('lists', filter => 'now() > closed_at')": "relay.lanes: filter of lists cannot be",
        "select relay.drop_lanes('lists')": "the lanes in public.lists are those of public.cards",
    }
    for statement, reason in refused.items():
        with pytest.raises(psycopg.Error) as caught:
            lists.execute(statement)
        assert reason.replace("lists cannot", "public.lists cannot") in (caught.value.diag.message_primary or "")


def test_lanes_of_a_board_are_found_by_an_index(database: Database) -> None:
    """However many there are of others."""
    database.execute("create table l (id int primary key, board_id int, name text); create index on l (board_id)")
    database.execute("create table c (id int primary key, lane int)")
    database.execute("insert into l select n, n / 5, 'L' from generate_series(1, 20000) n; analyze l")
    database.execute("select relay.lanes('l'), relay.watch('c', lanes => 'l', id_prefix => 'c')")
    with database.connect() as reader:
        reader.execute("begin")
        [[lanes]] = reader.execute("select task::json from relay.board('7') where watch is null").fetchall()
        [(scans, found)] = reader.execute(
            "select seq_scan, idx_scan from pg_stat_xact_all_tables where relname = 'l'"
        ).fetchall()
    assert [lane for lane, _ in lanes] == ["35", "36", "37", "38", "39"]
    assert (scans, found > 0) == (0, True)


def test_lanes_are_found_by_their_exact_ids_under_any_collation(database: Database) -> None:
    """Of two columns whose collations differ, or none where different texts may be equal."""
    database.execute('create table l (id text collate "C" primary key, board_id text, name text)')
    database.execute('create table c (id int primary key, list_id text collate "POSIX")')
    database.execute("insert into l values ('a', 'x', 'A'); insert into c values (1, 'a'), (2, 'b')")
    database.execute("select relay.lanes('l'), relay.watch('c', lane_column => 'list_id', lanes => 'l')")
    assert database.fetch("select task::json ->> 'id' from relay.board('x') where watch is not null") == [("1",)]

    # As those of ICU, which not every server has.
    database.execute('create collation loose from "C"')
    database.execute("update pg_collation set collisdeterministic = false where collname = 'loose'")
    database.execute("alter table c alter list_id type text collate loose")
    assert database.fetch("select problem from relay.watched where board_kind = 'text' and problem is not null") == [
        ("has lanes of another type than those in l",)
    ]
    with pytest.raises(psycopg.Error, match="text of collations that are deterministic"):
        database.execute("select relay.watch('c')")
    database.execute("create table m (id text collate loose primary key, name text)")
    with pytest.raises(psycopg.Error, match="text of a collation that is deterministic"):
        database.execute("select relay.lanes('m')")


async def test_lanes_that_lack_triggers_or_a_column_are_a_problem(lists: Database, relay: Relay) -> None:
    """Health says so, and the command that it names helps."""
    async with Client.to(relay.url) as client:
        await client.subscribe("1")
        lists.execute("alter table lists disable trigger relay_lanes; select relay.resync()")
        await until(lambda: "triggers of public.lists are missing" in (relay.feed.problem or ""))
        table = (relay.feed.problem or "").partition(": run relay sql lanes ")[2]
        await asyncio.to_thread(install.lanes, lists.dsn, table)
        await until(lambda: relay.feed.problem is None)
        lists.execute("alter table lists drop column name")
        await until(lambda: "has no column name any more, its lanes' name" in (relay.feed.problem or ""))


async def test_a_row_at_which_the_filter_of_lanes_fails_is_left_out_alone(lists: Database, relay: Relay) -> None:
    """Neither a board nor what is journalled; it is reported, and a lane as soon as the filter can be evaluated."""
    lists.execute("select relay.lanes('lists', filter => '1 / (position - 7) < 9')")
    lists.execute("insert into cards values (1, 10, 'a'); update lists set position = 7 where id = 12")
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await other.subscribe("2")
        with capture_logs() as logs:
            _, board = await client.subscribe("1")
        assert lanes_in(board) == {"11": [], "10": [1]}
        problems = [line["problem"] for line in logs if line["event"] == "feed.unreadable_row"]
        assert problems == ["a row of public.lists cannot be shown: 22012 division by zero"]
        assert "1 row of public.lists cannot be shown, such as that with id '12'" in str(
            relay.feed.status(10).incomplete
        )
        lists.execute("insert into cards values (2, 12, 'b'), (3, 10, 'c')")
        assert brief([await client.receive()]) == [created(3)]
        lists.execute("update cards set list_id = 12 where id = 1")
        assert brief([await client.receive()]) == [deleted(1)]
        lists.execute("update lists set name = 'x' where id = 12; update cards set list_id = 20 where id = 3")
        assert brief([await client.receive()]) == [deleted(3)]
        assert brief([await other.receive()]) == [created(3)]
        lists.execute("update lists set position = 3 where id = 12")
        assert lanes_in((await client.receive())[1]) == {"11": [], "10": [], "12": [1, 2]}
        assert relay.feed.status(10).counts.reconnects == 0
        assert relay.feed.status(10).incomplete == {}


@pytest.mark.parametrize(
    ("breaks", "repairs"),
    [
        ("begin; lock table lists in access exclusive mode", "rollback"),
        ("begin; alter table lists alter column note type varchar(9)", "commit"),
        ("revoke select on lists from relay_reader", "grant select on lists to relay_reader"),
        ("alter table lists enable row level security", "alter table lists disable row level security"),
    ],
)
async def test_lanes_that_cannot_be_read_are_a_fault_of_their_boards_alone(
    lists: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch, breaks: str, repairs: str
) -> None:
    """All other boards get their changes, and theirs are sent when they can be."""
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    lists.execute("insert into cards values (1, 10, 'a')")
    lists.execute("create table notes (id int primary key, board_id text, lane text); select relay.watch('notes')")
    breaker = lists.connect()
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.subscribe("1")
        await other.subscribe("other")
        # In a thread, because it may wait for a read of the relay.
        await asyncio.to_thread(breaker.execute, breaks.encode())
        lists.execute("update cards set title = 'b'; insert into notes values (2, 'other', 'todo')")
        assert (await client.receive())[1]["code"] == "board_unavailable"
        while 2 not in other.tasks:
            await other.receive()
        assert relay.feed.problem is None
        assert relay.feed.status(10).failing.keys() == {"1"}
        await asyncio.to_thread(breaker.execute, repairs.encode())
        while client.tasks[1]["title"] != "b":
            await client.receive()
        assert relay.feed.status(10).counts.reconnects == 0


async def test_tasks_in_lanes_that_are_known_go_on_while_the_table_of_lanes_is_locked(
    lists: Database, relay: Relay
) -> None:
    """What was resolved holds until a lane changes, which is in the journal."""
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        await one.subscribe("1")
        await two.subscribe("2")
        lists.execute("insert into cards values (1, 10, 'a'), (2, 11, 'b')")
        assert brief([await one.receive(), await one.receive()]) == [created(1), created(2)]
        with lists.connect() as holder, holder.transaction():
            await asyncio.to_thread(holder.execute, "lock table lists in access exclusive mode")
            lists.execute("update cards set title = 'c' where id = 2; update cards set list_id = 11 where id = 1")
            assert brief([await one.receive(), await one.receive()]) == [updated(2, title="c"), moved(1, 10, 11)]
        lists.execute("update lists set board_id = 2 where id = 11")
        assert lanes_in((await one.receive())[1]) == {"10": []}
        assert lanes_in((await two.receive())[1]) == {"11": [1, 2], "20": []}
        lists.execute("update cards set title = 'd' where id = 1")
        assert brief([await two.receive()]) == [updated(1, title="d")]


async def test_board_that_tasks_name_themselves_is_alone_concerned_while_their_lanes_cannot_be_read(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not sent again."""
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    database.execute(
        "create table statuses (id int primary key, name text); insert into statuses values (1, 'New');"
        "create table issues (id int primary key, project_id int, status_id int);"
        "insert into issues values (1, 7, 1), (2, 8, 1); select relay.lanes('statuses');"
        "select relay.watch('issues', board_column => 'project_id', lane_column => 'status_id', lanes => 'statuses')"
    )
    async with Client.to(relay.url) as seven, Client.to(relay.url) as eight:
        await seven.subscribe("7")
        await eight.subscribe("8")
        with database.connect() as holder, holder.transaction():
            await asyncio.to_thread(holder.execute, "lock table statuses in access exclusive mode")
            database.execute("insert into issues values (3, 7, 1)")
            assert (await seven.receive())[1]["code"] == "board_unavailable"
        assert lanes_in((await seven.receive())[1]) == {"1": [1, 3]}
        database.execute("insert into issues values (4, 8, 1)")
        assert brief([await eight.receive()]) == [created(4)]


@pytest.mark.parametrize(
    "change",
    [
        "alter table lists disable trigger all; update lists set name = 'good'; alter table lists enable trigger all",
        "alter type mood rename value 'fine' to 'good'",
    ],
    ids=["triggers off and on", "label"],
)
async def test_what_changes_lanes_without_a_trigger_is_a_sync(lists: Database, relay: Relay, change: str) -> None:
    """As it is where it changes tasks."""
    lists.execute("create type mood as enum ('fine', 'good_') ; alter table lists alter column name type text")
    if "mood" in change:
        lists.execute(
            "update lists set name = 'fine'; alter table lists alter column name type mood using name::mood"
        )
    async with Client.to(relay.url) as client:
        await client.subscribe("1")
        lists.execute(change)
        names: set[str] = set()
        while names != {"good"}:
            names = set((await client.receive())[1]["laneNames"].values())


def test_names_of_lanes_run_no_code_of_users(lists: Database) -> None:
    """A type whose text somebody's function makes is refused, and is a problem when it comes later."""
    lists.execute("create type pair as (a int, b int)")
    lists.execute("create function said(pair) returns text language sql as $$ select 'x' $$")
    lists.execute("create cast (pair as text) with function said(pair); alter table lists add both_of pair")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="cannot be the name of lanes"):
        lists.execute("select relay.lanes('lists', name_column => 'both_of')")
    lists.execute("alter table lists alter column name type pair using null")
    [(problem,)] = lists.fetch("select problem from relay.lane_tables")
    assert "a user's code makes" in problem


def test_lanes_whose_boards_become_those_of_another_table_are_refused(lists: Database) -> None:
    """As a watch is; nothing has changed then."""
    lists.execute("alter table lists add team uuid; select relay.lanes('lists', board_column => 'team')")
    lists.execute("create table notes (id int primary key, board_id int, lane text); select relay.watch('notes')")
    with pytest.raises(psycopg.Error, match=r"public\.cards and public\.notes may have the same id"):
        lists.execute("select relay.lanes('lists', board_column => 'board_id')")
    assert lists.fetch("select board_column::text, triggers_complete from relay.lane_tables") == [("team", True)]


def test_triggers_of_lanes_fire_always_again_when_they_are_declared_again(lists: Database) -> None:
    """As after a load with triggers disabled, which leaves them on for ordinary sessions only."""
    lists.execute("alter table lists disable trigger all; alter table lists enable trigger all")
    lists.execute("select relay.lanes('lists')")
    enabled = "select distinct tgenabled::text from pg_trigger where tgname ~ '^relay_lanes'"
    assert lists.fetch(enabled) == [("A",)]


def test_lanes_end_without_a_trace(lists: Database) -> None:
    """As a watch does."""
    lists.execute("select relay.unwatch('cards'); select relay.drop_lanes('lists')")

    assert lists.fetch("select tgname from pg_trigger where tgrelid in ('lists'::regclass, 'cards'::regclass)") == []
    assert lists.fetch("select proname from pg_proc where proname ~ '^(lanes?|place)_[0-9]'") == []


_APPLICATIONS: Final[list[tuple[str, str, dict[str, list[Any]], dict[str, str]]]] = [
    (
        """
        insert into planka_list values (1918031335180469264, 1918031335180469000, 2, 'Todo');
        insert into planka_list values (1918031335180469265, 1918031335180469000, 1, 'Doing');
        insert into planka_card values (1918031335180469270, null, 1918031335180469264, 1, 'a');
        insert into planka_card values (1918031335180469271, null, 1918031335180469264, 0.5, 'b');
        insert into planka_card values (1918031335180469272, null, 1918031335180469264, 0, 'c', true);
        """,
        "1918031335180469000",
        {"1918031335180469265": [], "1918031335180469264": ["1918031335180469271", "1918031335180469270"]},
        {"1918031335180469265": "Doing", "1918031335180469264": "Todo"},
    ),
    (
        """
        insert into deck_stacks values (1, 7, 'Todo', 2, 0), (2, 7, 'Gone', 0, 123), (3, 7, 'Doing', 1, 0);
        insert into deck_cards values (1, 1, 'a', 2), (2, 1, 'b', 1), (4, 2, 'd', 0);
        insert into deck_cards values (3, 1, 'c', 0, true);
        """,
        "7",
        {"3": [], "1": [2, 1]},
        {"3": "Doing", "1": "Todo"},
    ),
    (
        """
        insert into redmine_statuses values (1, 'New', 1), (5, 'Closed', 2);
        insert into redmine_issues values (1, 3, 1, 'a'), (2, 3, 1, 'b'), (4, 4, 5, 'd');
        insert into redmine_issues values (3, 3, 5, 'c', true);
        """,
        "3",
        {"1": [2, 1], "5": []},
        {"1": "New", "5": "Closed"},
    ),
    (
        """
        insert into blocks values ('a', 'b', 'card', 'z', '{"properties": {"status": "todo"}}');
        insert into blocks values ('c', 'b', 'card', 'y', '{"properties": {"status": "todo"}}');
        insert into blocks values ('v', 'b', 'view', 'x', '{"properties": {"status": "todo"}}');
        insert into blocks values ('d', 'b', 'card', 'x', '{}', 1234);
        """,
        "b",
        {"todo": ["c", "a"]},
        {},
    ),
    (
        """
        insert into stories values (7, 1, 0, 'a', null), (7, 2, 0, 'b', 2), (7, 3, 1, 'c', 3), (8, 1, 2, 'd', 1);
        """,
        "7",
        {"todo": ["7:2", "7:1"], "in_progress": ["7:3"]},
        {},
    ),
]
"""Of the applications of docs/shapes.md: rows, a board, and what it shows."""


@pytest.mark.parametrize("number", range(len(_APPLICATIONS)))
async def test_tables_of_known_applications_are_shown_as_the_application_does(
    database: Database, number: int
) -> None:
    """What the page says to run is run, and the board is read."""
    text = SHAPES.read_text().partition("## Shapes of known applications")[2]
    blocks = examples(text, "sql")
    assert len(blocks) == len(_APPLICATIONS)
    rows, name, lanes, names = _APPLICATIONS[number]
    database.execute("select relay.unwatch('tasks')")
    database.execute(blocks[number])
    database.execute(rows)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        _, board = await client.subscribe(name)
        found = lanes_in(board)
        assert {lane: ids for lane, ids in found.items() if ids or names} == lanes
        assert [lane for lane in found if lane in lanes] == list(lanes) if names else True
        assert board.get("laneNames", {}) == names


async def test_a_key_of_several_columns_is_one_id(database: Database, relay: Relay) -> None:
    """Its values are joined by colons, such that no two keys are one id."""
    database.execute("create table parts (a int, b text, board_id int, lane text, primary key (a, b))")
    database.execute("select relay.watch('parts', key_columns => '{a,b}')")
    database.execute("insert into parts values (1, '2:3', 1, 'todo'), (1, '2\\', 1, 'todo')")
    async with Client.to(relay.url) as client:
        await client.subscribe("1")
        assert set(client.tasks) == {"1:2\\:3", "1:2\\\\"}
        database.execute("update parts set b = '4' where b = '2:3'")
        assert brief([await client.receive(), await client.receive()]) == [deleted("1:2\\:3"), created("1:4")]
        database.execute("update parts set lane = 'done' where b = '4'")
        assert await client.receive() == moved("1:4", "todo", "done")


async def test_ids_of_two_tables_are_kept_apart_by_a_prefix(database: Database, relay: Relay) -> None:
    """Both are on one board, and neither hides the other."""
    for table in ("stories", "bugs"):
        database.execute(
            f"create table {table} (id serial primary key, board_id int not null, lane text, title text)"
        )
        database.execute(f"select relay.watch('{table}', id_prefix => '{table}-')")
        database.execute(f"insert into {table} (board_id, lane, title) values (1, 'todo', '{table}')")
    async with Client.to(relay.url) as client:
        await client.subscribe("1")
        assert set(client.tasks) == {"stories-1", "bugs-1"}
        database.execute("update bugs set title = 'x'")
        assert await client.receive() == updated("bugs-1", title="x")


_COUNTED: Final = "id serial primary key, board_id int, lane text"
_NAMED: Final = "id text primary key, board_id text, lane text"
_UUIDS: Final = "id uuid primary key, board_id uuid, lane text"


_PAIRS: Final = [
    (_COUNTED, _COUNTED, "", "id_prefix => 'cards-'"),
    (_COUNTED, _COUNTED.replace("serial", "bigint"), "", "id_prefix => 'cards-'"),
    (_COUNTED, _COUNTED, ", as_text => true", "id_prefix => 'cards-'"),
    (_COUNTED, _COUNTED, ", id_prefix => 'c-'", None),
    (_COUNTED, _COUNTED, ", distinct_ids => true", None),
    (_COUNTED, _COUNTED.replace("board_id int", "board_id uuid"), "", None),
    (_COUNTED, _NAMED, "", None),
    (_NAMED, _NAMED, "", "id_prefix => 'cards-'"),
    (_NAMED, _NAMED, ", board_as => $$board_id || '!'$$", "id_prefix => 'cards-'"),
    (_UUIDS, _UUIDS, "", None),
]
"""Columns of two tables, what is said of the second, and what keeps it apart from the first, if that is needed."""


def test_tables_that_may_have_one_id_on_one_board_are_refused_with_what_keeps_them_apart(database: Database) -> None:
    """Numbers and texts may be the same, uuids are not; what the refusal proposes is taken."""
    database.execute("select relay.unwatch('tasks')")
    for one, other, said, remedy in _PAIRS:
        database.execute(f"create table rows ({one}); create table cards ({other}); select relay.watch('rows')")
        if remedy is not None:
            with pytest.raises(psycopg.Error, match="may have the same id") as caught:
                database.execute(f"select relay.watch('cards'{said})")
            assert f": expected {remedy}; or distinct_ids => true," in (caught.value.diag.message_primary or "")
        database.execute(f"select relay.watch('cards'{said}{f', {remedy}' if remedy else ''})")
        database.execute("select relay.watch('cards')")  # what was said once stays
        database.execute("drop table rows, cards")


def test_schemas_of_tenants_are_kept_apart_by_boards_of_their_own(database: Database) -> None:
    """A prefix of ids alone would show each tenant the tasks of the others."""
    for tenant in ("north", "o'south", "west"):
        database.execute(f'create schema "{tenant}"; create table "{tenant}".cards ({_COUNTED})')
        database.execute(f"insert into \"{tenant}\".cards (board_id, lane) values (1, 'todo')")
    database.execute("select relay.watch('north.cards')")
    for tenant in ("o'south", "west"):
        watch_it = "select relay.watch(%s::text::regclass{})"
        table = f'"{tenant}".cards'
        with pytest.raises(psycopg.Error, match="may have the same id") as caught:
            database.execute(watch_it.format(""), table)
        said = caught.value.diag.message_primary or ""
        database.execute(watch_it.format(", " + said.partition("expected ")[2].partition("; or")[0]), table)

    for board in ("1", "o'south/1", "west/1"):
        assert len(database.fetch("select * from relay.board(%s)", board)) == 1


def test_the_command_line_refuses_in_its_own_options(database: Database) -> None:
    """What it proposes can be pasted behind the command."""
    for schema in ("one", "two", "three"):
        database.execute(f"create schema {schema}; create table {schema}.cards ({_COUNTED})")

    def refused(*words: str) -> str:
        arguments = ["sql", "watch", *words]
        done = CliRunner().invoke(cli, arguments, env={"DATABASE_URL": database.dsn}, catch_exceptions=False)
        return done.output if done.exit_code else ""

    assert refused("one.cards") == ""
    assert refused("two.cards", "--board-as", "'two/' || board_id::text") == ""
    said = refused("three.cards", "--board-as", "'three/' || board_id::text")
    assert " expected --board-as " in said
    assert said.rstrip().endswith("; or --distinct-ids, if you know that no two are the same")
    assert refused("three.cards", *shlex.split(said.partition(" expected ")[2].partition("; or")[0])) == ""
    assert "name the column with --board ..." in refused("one.cards", "--board", "nothing")
    assert "found both --id and --key: expected" in refused("one.cards", "--id", "id", "--key", "id")


async def test_two_tasks_of_one_id_are_an_error_of_their_board(database: Database, relay: Relay) -> None:
    """Where nobody could have known, or somebody was mistaken; health names the tables and what to do."""
    database.execute(f"create table notes ({_NAMED}); select relay.watch('notes', distinct_ids => true)")
    database.execute("insert into tasks (id, board_id, title) values ('a', 'x', 'A'), ('b', 'y', 'B')")
    database.execute("insert into notes values ('a', 'x', 'todo'), ('a2', 'y', 'todo')")
    async with Client.to(relay.url) as client:
        await client.subscribe("y")
        assert set(client.tasks) == {"b", "a2"}
        await client.send({"type": "subscribe", "boardId": "x"})
        assert (await client.receive())[1]["code"] == "board_unavailable"
        found, _, command = relay.feed.status(10).failing["x"].partition(": run ")
        assert re.fullmatch(r"tasks of public\.\w+ and public\.\w+ on this board have the same id, a", found)
        *_, table, _, prefix = shlex.split(command)
        await asyncio.to_thread(install.watch, database.dsn, table, id_prefix=prefix)
        while set(client.tasks) != {"a", f"{prefix}a"}:
            await client.receive()


def test_tables_without_a_common_board_keep_their_own_orders() -> None:
    """Only where they may share one is there none in common."""
    position, title = (OrderKey(key, descending=False, nulls_first=False) for key in ("position", "title"))
    watches = {
        number: Watch(
            *(number, f"t{number}", "id", "board_id", "lane", frozenset()),
            *(None, (key,), ("id", "board_id", "lane", "position", "title")),
            board_kind=kind,
        )
        for number, (kind, key) in enumerate([("bigint", position), ("uuid", title), ("uuid", title)])
    }
    assert b'"orderBy":[{"key":"position"' in board_data("7", [], watches)
    assert b'"orderBy":[{"key":"title"' in board_data(DEFAULT, [], watches)
    watches[3] = dataclasses.replace(watches[2], id=3, board_kind="text", order=())
    assert b'"orderBy"' not in board_data("7", [], watches)


_UUID: Final = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
_NAMES: Final = {
    _UUID.upper(): _UUID,
    f"{{{_UUID}}}": _UUID,
    _UUID.replace("-", ""): _UUID,
    "007": "7",
    " 7": "7",
    "abc": None,
    "99999999999999999999": None,
}
"""Names that boards are asked for by, each with how the database writes it, if otherwise."""


_OF_UUIDS: Final = {
    "column": "create table uuids (id int primary key, board_id uuid, lane text); select relay.watch('uuids')",
    "expression": """
        create table uuids (id int primary key, b uuid, lane text);
        select relay.watch('uuids', board_as => $$case b when '00000000-0000-0000-0000-000000000001' then 'default'
            else b::text end$$)
    """,
    "lanes": """
        create table lists (id int primary key, board_id uuid, name text);
        create table uuids (id int primary key, lane int);
        select relay.lanes('lists'); select relay.watch('uuids', lanes => 'lists')
    """,
}


def test_how_the_database_writes_a_name_is_known_wherever_boards_come_from(database: Database) -> None:
    """What is no value of the column's type is a board without tasks."""
    database.execute("select relay.unwatch('tasks')")
    database.execute(f"create table numbers ({_COUNTED}); select relay.watch('numbers', distinct_ids => true)")
    for source, tables in _OF_UUIDS.items():
        database.execute(tables)
        for name, written in _NAMES.items():
            found = [json.loads(task) for _, task in database.fetch("select * from relay.board(%s)", name)]
            assert (source, name, found) == (source, name, [] if written is None else [written])
        database.execute("drop table uuids")


async def test_a_board_that_the_database_writes_otherwise_is_refused_with_its_name(
    database: Database, relay: Relay
) -> None:
    """It would be empty for ever."""
    database.execute(
        f"select relay.unwatch('tasks'); create table numbers ({_COUNTED}); select relay.watch('numbers')"
    )
    async with Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "007"})
        kind, data = await client.receive()
        assert (kind, data["code"], data["boardId"]) == ("error", "invalid_board_id", "007")
        assert "expected '7'" in data["message"]
        assert (relay.hub.subscriptions, dict(relay.feed.status(10).failing)) == (0, {})
        assert (await client.subscribe("7"))[0] == "board.sync"


async def test_a_board_name_that_is_valid_for_another_table_is_not_refused(database: Database, relay: Relay) -> None:
    """A text may be spelled like a uuid, or like anything else, and its board may be empty for a while."""
    database.execute(f"create table uuids ({_UUIDS}); select relay.watch('uuids')")
    async with Client.to(relay.url) as client:
        assert (await client.subscribe(_UUID.upper()))[0] == "board.sync"
        database.execute("insert into tasks (id, board_id, title) values ('a', %s, 'A')", _UUID.upper())
        assert (await client.receive())[0] == "task.created"


def test_a_column_called_uuid_is_not_taken_for_one(database: Database) -> None:
    database.execute("select relay.unwatch('tasks'); create table teams (id int primary key, uuid text, lane text)")
    database.execute("select relay.watch('teams', board_as => $$coalesce(uuid, 'nobody')$$)")
    assert database.fetch("select * from relay.board(%s)", _UUID.upper()) == []


async def test_blanks_that_a_type_pads_with_are_refused_or_left_out(database: Database, relay: Relay) -> None:
    """Of the id, the board and the lane alike."""
    columns = {"id": "char(4) primary key", "board_id": "char(4)", "lane": "char(4)"}
    for name, kind in columns.items():
        its = ", ".join(
            f"{each} {kind if each == name else columns[each].replace('char(4)', 'text')}" for each in columns
        )
        database.execute(f"create table padded_{name} ({its})")
        with pytest.raises(psycopg.Error, match=f"column {name} of public.padded_{name} is padded with blanks"):
            database.execute(f"select relay.watch('padded_{name}', distinct_ids => true)")
    database.execute(f"create table padded ({', '.join(map(' '.join, columns.items()))})")
    database.execute("select relay.watch('padded', as_text => true, distinct_ids => true)")
    database.execute("insert into padded values ('a', 'b', 'todo')")
    async with Client.to(relay.url) as client:
        _, board = await client.subscribe("b")
        assert board["lanes"]["todo"] == [{"id": "a", "boardId": "b", "lane": "todo"}]
        database.execute("update padded set lane = 'done', id = 'c'")
        assert brief([await client.receive(), await client.receive()], "lane") == [
            deleted("a"),
            created("c", lane="done"),
        ]


async def test_numbers_that_javascript_cannot_hold_are_text_on_request(database: Database, relay: Relay) -> None:
    """The id, the board and the lane; a reader that rounds numbers mixes up none of them."""
    database.execute("create table huge (id bigint primary key, board_id bigint, lane bigint, other bigint)")
    database.execute("select relay.watch('huge', as_text => true)")
    database.execute("insert into huge values (9007199254740993, 9007199254740995, 9007199254740997, 1)")
    async with Client.to(relay.url) as client:
        _, board = await client.subscribe("9007199254740995")
        task = {"id": "9007199254740993", "boardId": "9007199254740995", "lane": "9007199254740997", "other": 1}
        assert board["lanes"]["9007199254740997"] == [task]
        database.execute("update huge set lane = lane + 1")
        assert await client.receive() == moved(task["id"], "9007199254740997", "9007199254740998")
    database.execute("select relay.watch('huge', as_text => false)")
    assert database.fetch("select as_text from relay.watched where table_name = 'huge'") == [(False,)]


def test_columns_that_are_not_a_key_are_refused(database: Database) -> None:
    """Each in one sentence."""
    database.execute("create table parts (a int, b text, c int, board_id int, lane text, primary key (a, b))")
    for settings, reason in {
        "key_columns => '{a,c}'": "column a, c of public.parts is not a key by itself (primary key: (a, b))",
        "key_columns => '{a}'": "is not a key by itself",
        "key_columns => '{a,b}', id_column => 'c'": "found both id_column and key_columns",
        "key_columns => '{a,b}', hidden => '{b}'": "cannot be hidden",
    }.items():
        with pytest.raises(psycopg.Error) as caught:
            database.execute(f"select relay.watch('parts', {settings})")
        assert reason in (caught.value.diag.message_primary or "")


_REFERENCES: Final = """
    alter table planka_card add foreign key (list_id) references planka_list;
    alter table deck_cards add foreign key (stack_id) references deck_stacks;
    alter table redmine_issues add foreign key (status_id) references redmine_statuses;
"""
_PEOPLE: Final = """
    create table people (id int primary key, name text not null, email text);
    alter table {0} add assignee_id int references people;
    insert into people values (7, 'Ann', 'ann@example.org');
"""
_OF_TASKS: Final = """
    create table labels (id int primary key, name text not null, color text);
    create table {0}_labels (task_id {1} references {0}, label_id int references labels);
    create table comments (id int primary key, task_id {1} references {0}, author int references people, body text);

    -- Of these, relay.extra would refuse every one.
    create table votes (task_id {1} references {0}) partition by hash (task_id);
    create table first_votes partition of votes for values with (modulus 1, remainder 0);
    create table phases (id int primary key, code int unique, name text);
    create table {0}_phases (task_id {1} references {0}, phase int references phases (code));
    create collation loose from "C";
    update pg_collation set collisdeterministic = false where collname = 'loose';
    create table kinds (id text collate loose primary key, name text);
    create table {0}_kinds (task_id {1} references {0}, kind_id text collate loose references kinds);
    create table sprints (id bigint primary key, name text);
    create table {0}_sprints (task_id {1} references {0}, sprint_id int references sprints);
    create table tags (id int primary key, name jsonb);
    create table {0}_tags (task_id {1} references {0}, tag_id int references tags);
"""
_SAY: Final = """
    insert into labels values (1, 'Soon', 'red');
    insert into {0}_labels select id, 1 from {0};
    insert into comments (id, task_id) select row_number() over (), id from {0}
"""
_OF_STORIES: Final = """
    create table comments (project_id int, number int, foreign key (project_id, number) references stories)
"""


@pytest.mark.parametrize(
    ("table", "key", "number"),
    [
        ("planka_card", "bigint", 0),
        ("deck_cards", "bigint", 1),
        ("redmine_issues", "int", 2),
        ("blocks", "varchar", 3),
        ("stories", None, 4),
    ],
    ids=str,
)
def test_what_is_suggested_for_a_table_fits_it(database: Database, table: str, key: str | None, number: int) -> None:
    """The commands are run as they are printed, and the board has the lanes and the tasks that it should.

    Lanes that an expression names are what nobody can guess.
    """
    text = SHAPES.read_text().partition("## Shapes of known applications")[2]
    blocks = [block.partition("select relay.") for block in examples(text, "sql")]
    database.execute("select relay.unwatch('tasks')")
    database.execute("".join(tables for tables, _, _ in blocks) + _REFERENCES + _PEOPLE.format(table))
    database.execute(_OF_TASKS.format(table, key) if key else _OF_STORIES)
    rows, name, lanes, names = _APPLICATIONS[number]
    suggested = suggest(database.dsn, table)
    if not names:
        database.execute("".join(blocks[number][1:]))
        suggested = [command for command in suggested if command.startswith("relay sql extra ")]
    for command in suggested:
        arguments = shlex.split(command)[1:]
        done = CliRunner().invoke(cli, arguments, env={"DATABASE_URL": database.dsn}, catch_exceptions=False)
        assert (command, done.exit_code) == (command, 0), done.output
    database.execute(rows)
    database.execute(f"update {table} set assignee_id = 7;" + (_SAY.format(table) if key else ""))

    board = [json.loads(row) for _, row in database.fetch("select * from relay.board(%s)", name)]
    if names:
        assert dict(board.pop(0)) == names
    board = [task | task.get("", {}) for task in board]
    assert {str(task["id"]) for task in board} == {str(each) for ids in lanes.values() for each in ids}
    of_key = {"labels": [{"name": "Soon", "color": "red"}], "commentCount": 1} if key else {}
    extras = {"assignee", "labels", "commentCount"}
    assert [{each: task[each] for each in extras & task.keys()} for task in board] == [
        {"assignee": "Ann", **of_key} for _ in board
    ]
    assert len(database.fetch("select from relay.extras")) == len(of_key) + 1


def test_what_a_filter_and_lanes_are_made_of_need_not_be_shown(lists: Database) -> None:
    """Columns that are not among those to show are in no image, neither in the journal nor on boards."""
    lists.execute("alter table cards add gone boolean not null default false")
    lists.execute("select relay.watch('cards', filter => 'not gone', shown => '{title}')")
    lists.execute(
        "insert into cards values (1, 10, 'a', 3), (2, 10, 'b', 4); update cards set gone = true where id = 2"
    )

    shown = [{"id": 1, "list_id": 10, "title": "a"}]
    assert [json.loads(task) for _, task in lists.fetch("select * from relay.board('1') offset 1")] == shown
    images = lists.fetch("select old_row, new_row from relay.entries where op = 'R' order by lsn, ctid")
    assert {tuple(json.loads(image)) for images_of in images for image in images_of if image} == {
        ("id", "list_id", "title")
    }


@pytest.mark.parametrize("options", [[], ["--no-owner"]], ids=["with owners", "without"])
def test_lanes_and_expressions_survive_a_dump_and_a_restore(
    server: Server, lists: Database, options: list[str]
) -> None:
    """There, tables have other oids and columns other numbers; functions get back to the roles that they run as."""
    for table, column in (("lists", "closed_at timestamptz"), ("cards", "title text")):
        lists.execute(f"alter table {table} drop {column.split()[0]} cascade; alter table {table} add {column}")
    lists.execute("select relay.lanes('lists', filter => 'closed_at is null')")
    lists.execute("select relay.watch('cards', filter => 'title is distinct from ''draft''')")
    lists.execute("insert into cards (id, list_id, title) values (1, 10, 'a'), (2, 10, 'draft'), (3, 20, 'c')")
    # An older server does not know all settings of the newest pg_dump.
    dump = run("pg_dump", *options, lists.dsn).replace("SET transaction_timeout = 0;", "")
    with temporary_database(server) as dsn, Database(dsn) as copy:
        run("psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--output=/dev/null", dsn, given=dump)
        copy.execute("select relay.epoch(), relay.refresh()")  # as the daemon does first
        said = "select lanes::text, filter, problem from relay.watches"

        assert copy.fetch(said) == lists.fetch(said)
        assert copy.fetch("select triggers_complete, problem from relay.lane_tables") == [(True, None)]
        [(_, lanes), (_, task)] = copy.fetch("select * from relay.board('1')")
        assert dict(json.loads(lanes)) == {"10": "Todo", "11": "Doing", "12": "Old"}
        assert json.loads(task)["id"] == 1
        copy.execute("update cards set list_id = 11 where id = 3; update lists set name = 'x' where id = 10")
        entries = "select op::text, old_board, new_board from relay.entries where op in ('R', 'L') order by op"
        assert copy.fetch(entries) == [("L", "1", "1"), ("R", '[null, "20"]', '[null, "11"]')]

"""Extras: what other tables say about tasks."""

from __future__ import annotations

import asyncio
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from relay.commands.cli import cli
from relay.postgres import boards, extras, housekeeping, journal, requests
from relay.postgres.feed import Feed
from tests.acceptance.support import run_relay
from tests.acceptance.test_docs import SHAPES, examples
from tests.clusters import run
from tests.integration.client import Client, Message, until
from tests.integration.conftest import Relay
from tests.integration.test_check import check
from tests.integration.test_messages import brief, created, deleted, moved, updated
from tests.servers import Database, Server, temporary_database

RELATED: Final = SHAPES.read_text().partition("## Data of other tables on a card")[2]

EXTRAS: Final = ("commentCount", "labels", "owner")


@pytest.fixture
def items(database: Database) -> Database:
    """Yield a database with the tables of docs/shapes.md, two cards, two labels and two people."""
    database.execute("select relay.unwatch('tasks')")
    database.execute(examples(RELATED, "sql")[0])
    database.execute(
        "insert into people values (7, 'Ann'), (8, 'Bob'); insert into labels (name) values ('a'), ('b'); "
        "insert into items (board_id, title, owner_id) values (1, 'one', 7), (1, 'two', null)"
    )
    return database


def label(*names: str) -> list[dict[str, Any]]:
    """Return the extra of a card with these labels."""
    return [{"name": name, "textColor": None} for name in names]


def extra(database: Database, name: str, related: str, **settings: object) -> None:
    """Declare an extra of the cards."""
    named = "".join(f", {setting} => %s" for setting in settings)
    database.execute(f"select relay.extra('items', %s, %s{named})", name, related, *settings.values())


async def test_a_board_and_a_new_card_come_with_what_other_tables_say(items: Database, relay: Relay) -> None:
    """As it is when the transaction is over, whichever statement came first; and nothing more about it."""
    items.execute(
        "insert into item_labels values (1, 2), (1, 1); insert into comments (item_id, body) values (1, 'x')"
    )
    async with Client.to(relay.url) as client:
        await client.subscribe("1")
        assert [{key: task[key] for key in EXTRAS} for task in client.tasks.values()] == [
            {"commentCount": 1, "labels": label("a", "b"), "owner": "Ann"},
            {"commentCount": 0, "labels": [], "owner": None},
        ]
        await client.resume("1", None)
        items.execute(
            "insert into items (board_id, title, owner_id) values (1, 'three', 8); "
            "insert into item_labels values (3, 1); update items set title = '3' where id = 3"
        )
        [(kind, data)] = await client.receive_batch()
        assert (kind, list(data)[-3:], data["labels"], data["owner"]) == (
            *("task.created", sorted(EXTRAS)),
            *(label("a"), "Bob"),
        )


_CHANGES: Final[list[tuple[str, list[Message]]]] = [
    ("insert into item_labels values (1, 1)", [updated(1, labels=label("a"))]),
    ("update item_labels set label_id = 2", [updated(1, labels=label("b"))]),
    ("update labels set name = 'c' where id = 2", [updated(1, labels=label("c"))]),
    ("update labels set name = 'd' where id = 1", []),
    ("update item_labels set item_id = 2", [updated(1, labels=[]), updated(2, labels=label("c"))]),
    ("delete from labels where id = 2", [updated(2, labels=[])]),
    ("insert into comments (item_id, body) values (1, 'x'), (1, 'y')", [updated(1, commentCount=2)]),
    ("update comments set body = 'z'", []),
    ("update items set owner_id = 8 where id = 1", [updated(1, ownerId=8, owner="Bob")]),
    ("update people set name = 'Bo' where id = 8", [updated(1, owner="Bo")]),
    ("update items set lane = 'done' where id = 1", [moved(1, "todo", "done")]),
    (
        "update items set lane = 'todo' where id = 1; delete from comments where id = 1",
        [moved(1, "done", "todo"), updated(1, commentCount=1)],
    ),
    ("update items set title = '1' where id = 1", [updated(1, title="1")]),
    ("update items set owner_id = null where id = 1", [updated(1, ownerId=None, owner=None)]),
    ("update items set board_id = 2 where id = 1; insert into item_labels values (1, 1)", [deleted(1)]),
    ("update items set board_id = 1 where id = 1", [created(1, labels=label("d"), commentCount=1)]),
    ("delete from items where id = 1", [deleted(1)]),
]
"""Statements, one after another, and what each is to the board's subscribers."""


async def test_a_change_of_another_table_is_an_update_of_the_card(items: Database, relay: Relay) -> None:
    """Of the cards that it is about and no other, and no update of the card repeats what stays the same."""
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        for statement, expected in _CHANGES:
            items.execute(statement)
            found: list[Message] = []
            while len(found) < len(expected):  # what comes too much is the next one's
                found += brief(await client.receive_batch(), "labels", "commentCount")
            assert (statement, found) == (statement, expected)


_FILTERED: Final[list[tuple[str, list[Message]]]] = [
    ("insert into comments (item_id, body, deleted_at) values (1, 'x', now())", []),
    ("update comments set deleted_at = null", [updated(1, commentCount=1)]),
    ("update comments set item_id = 2, deleted_at = now()", [updated(1, commentCount=0)]),
    ("update comments set item_id = 1", []),
    ("delete from comments", []),
    ("insert into item_labels values (1, 1), (1, 2)", [updated(1, labels=label("a", "b"))]),
    ("update labels set archived = true where id = 1", [updated(1, labels=label("b"))]),
    ("update labels set name = 'z' where id = 1", []),
    ("update item_labels set removed_at = now() where label_id = 2", [updated(1, labels=[])]),
    ("update labels set name = 'c' where id = 2", []),
    ("update labels set archived = false", [updated(1, labels=label("z"))]),
    ("update item_labels set removed_at = null", [updated(1, labels=label("c", "z"))]),
    (
        "insert into steps (item_id, done) values (1, false), (1, true)",
        [updated(1, stepCount=2), updated(1, stepsDone=1)],
    ),
    ("update steps set done = not done", []),
    ("update steps set done = true", [updated(1, stepsDone=2)]),
    (
        "insert into items (board_id, title) values (1, 'three'); insert into steps (item_id, done) values (3, true)",
        [created(3, stepsDone=1, stepCount=1, labels=[], commentCount=0)],
    ),
]
"""The same where rows have to match filters."""


@pytest.fixture
def filtered(items: Database) -> Database:
    """Yield the same database with the filters of docs/shapes.md."""
    items.execute(examples(RELATED, "sql")[1])
    return items


async def test_a_row_that_does_not_match_a_filter_is_as_if_it_were_not_there(
    filtered: Database, relay: Relay
) -> None:
    """Whatever happens to it; and where it stops to match, or starts, that is an update of the card."""
    keys = ("labels", "commentCount", "stepCount", "stepsDone")
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        for statement, expected in _FILTERED:
            filtered.execute(statement)
            found: list[Message] = []
            while len(found) < len(expected):
                found += brief(await client.receive_batch(), *keys)
            assert (statement, found) == (statement, expected)
        async with Client.to(relay.url) as fresh:
            await fresh.subscribe("1")
            assert client.tasks == fresh.tasks


async def test_a_row_at_which_a_filter_fails_is_left_out_alone(items: Database, relay: Relay) -> None:
    """No writer fails, the other rows count, in boards as well as in changes, and the log says so."""
    items.execute("alter table comments add column score text; alter table item_labels add column score text")
    shown = {"through": "item_labels", "shown": ["name"], "link_filter": "score::int > 0"}
    extra(items, "commentCount", "comments", filter="score::int > 0")
    extra(items, "labels", "labels", filter="name::int > 0", **shown)
    odd = "insert into comments (item_id, body, score) values (1, 'x', '?'), (1, 'x', '1')"
    links = (
        "insert into item_labels select i.id, l.id, case name when '2' then '?' else '9' end from items i, labels l"
    )
    items.execute(f"{odd}; update labels set name = id; insert into labels (name) values ('3'), ('?'); {links}")
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        assert [client.tasks[1][key] for key in ("commentCount", "labels")] == [1, ["1", "3"]]
        with capture_logs() as logs:
            items.execute(odd)
            assert brief(await client.receive_batch()) == [updated(1, commentCount=2)]
        [problem] = [line["problem"] for line in logs if line["event"] == "feed.unreadable_row"]
        assert problem.startswith(
            "a row of public.comments is left out, for a filter fails at it: 22P02 invalid input"
        )
        items.execute("update comments set score = '2' where score = '?'")
        assert brief(await client.receive_batch()) == [updated(1, commentCount=4)]
        items.execute("update labels set name = '5' where name = '3'")
        found = await client.receive_batch()
        assert {data["id"]: data["changes"]["labels"] for _, data in found} == {1: ["1", "5"], 2: ["1", "5"]}
        items.execute(f"insert into items (board_id, title) values (1, 'three'); {odd.replace('(1,', '(3,')}")
        assert brief(await client.receive_batch(), "commentCount") == [created(3, commentCount=1)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("drop column gone_at", "no column deleted_at any more"),
        ("alter column gone_at type date", "gone_at as date now, in place of timestamp with time zone"),
        (
            "alter column gone_at type public.date using null",
            "gone_at as public.date now, in place of timestamp with time zone",
        ),
    ],
)
def test_an_extra_is_not_shown_when_its_filter_has_lost_a_column(
    filtered: Database, change: str, problem: str
) -> None:
    """No row must be shown that may be one that is hidden; of columns that are renamed, each keeps its part."""
    filtered.execute(
        "create type public.date as (day int); create function evil(public.date) returns date immutable language sql "
        "as $$ select set_config('evil.as', user, false)::date $$; create cast (public.date as date) "
        "with function evil(public.date) as implicit"
    )
    shown = "select near_filter, problem from relay.extras where name = 'commentCount'"
    filtered.execute(
        "alter table comments add column old timestamptz; alter table comments rename deleted_at to gone_at; "
        "alter table comments rename old to deleted_at; select relay.refresh(); "
        "insert into comments (item_id, body, gone_at, deleted_at) values (1, '', now(), null), (1, '', null, now())"
    )
    assert filtered.fetch(shown) == [("(gone_at IS NULL)", None)]
    board = "select task::json -> '' ->> 'commentCount' from relay.board('1')"
    assert filtered.fetch(board) == [("1",), ("0",)]
    touches = "select key from relay.entries j join relay.extras e on e.id = j.watch where e.name = 'commentCount'"
    assert filtered.fetch(touches + " and op = 'N'") == [("1",)]

    filtered.execute(f"alter table comments {change}")
    assert filtered.fetch(shown)[0][1] == f"has a filter for rows of comments, which has {problem}"
    assert filtered.fetch(board) == [(None,), (None,)]
    filtered.execute("update comments set body = 'z'; delete from comments")
    assert filtered.fetch("select current_setting('evil.as', true)") == [(None,)]


def test_no_code_of_users_runs_where_a_filter_is_evaluated(items: Database) -> None:
    """Nor where its columns, their types or their casts have changed since the snapshot that is read."""
    items.execute(
        "create type tone as enum ('dark', 'light'); alter table labels add column tone tone default 'light'; "
        "create function evil(tone) returns text language sql as $$ select set_config('evil.as', user, false) $$; "
        "create type pair as (a int, b int); create function evil(pair) returns text language sql "
        "as $$ select set_config('evil.as', user, false) $$; insert into item_labels values (1, 1)"
    )
    extra(items, "labels", "labels", through="item_labels", shown=["name"], filter="tone <> 'dark' and name <> ''")
    [(number,)] = items.fetch("select id from relay.extras where name = 'labels'")
    casts = "create cast (tone as text) with function evil(tone) as implicit"
    columns = "alter table labels rename name to name_was; alter table labels add column name pair default row(1, 2)"
    for change in (f"{columns}; create cast (pair as text) with function evil(pair) as implicit", casts):
        with items.connect() as reader:
            reader.execute("begin isolation level repeatable read; select 1")
            items.execute(change)
            touched = reader.execute("select * from relay.touched(%s, true, '{1}')", [number]).fetchall()
            values = reader.execute("select * from relay.extra_values(%s, '{1}')", [number]).fetchall()
            assert reader.execute("select current_setting('evil.as', true)").fetchall() == [(None,)]
            assert (touched, values) == ([(None,) * 5], [])
    [(problem,)] = items.fetch("select problem from relay.extras where name = 'labels'")
    assert problem.endswith("which has tone of type public.tone, for which there are implicit casts now")
    items.execute("update labels set tone = 'dark'")
    assert items.fetch("select current_setting('evil.as', true)") == [(None,)]


async def test_what_was_missed_comes_with_what_other_tables_say(items: Database, relay: Relay) -> None:
    """Of cards that appeared, and of those that were touched alone."""
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        cursor, tasks = client.cursor, client.tasks
    items.execute("insert into item_labels values (2, 1); insert into items (board_id, title) values (1, 'three')")
    items.execute("insert into comments (item_id, body) values (1, 'x'), (3, 'x')")
    async with Client.to(relay.url) as client:
        assert brief(await client.resume("1", cursor, tasks), "commentCount") == [
            *(created(3, commentCount=1), updated(2, labels=label("a"))),
            *(updated(1, commentCount=1), updated(3, commentCount=1)),
        ]


async def test_a_large_batch_is_sent_with_what_other_tables_say(
    items: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts: one label may be that of very many cards."""
    for module, name in ((journal, "PART_CHANGES"), (extras, "FETCH_TASKS")):
        monkeypatch.setattr(module, name, 20)
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        items.execute(
            "insert into items (board_id, title) select 1, 'many' from generate_series(1, 200); "
            "insert into item_labels select id, 1 from items; insert into comments (item_id, body) values (1, 'x')"
        )
        await client.receive_batch()
        assert [task["labels"] for task in client.tasks.values()] == [label("a")] * 202
        items.execute("update labels set name = 'z' where id = 1")
        await client.receive_batch()
        assert [task["labels"] for task in client.tasks.values()] == [label("z")] * 202
        assert client.tasks[1]["commentCount"] == 1


async def test_what_touches_very_many_cards_is_read_for_boards_that_somebody_follows(
    items: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many are left to reads of their boards, and of no others."""
    read: list[str] = []
    touch = extras.Extras._touch  # noqa: SLF001  # what is read has no other sign

    def noted(self: extras.Extras, number: int, watch: int, board: str, task: str | None) -> object:
        read.extend([board] if task else [])
        return touch(self, number, watch, board, task)

    items.execute(
        "insert into items (board_id, title) select 1 + n % 3, 'many' from generate_series(1, 303) n; "
        "insert into item_labels select id, 1 from items; insert into items (board_id, title) values (4, 'one')"
    )
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.resume("1", None)
        await other.resume("4", None)
        monkeypatch.setattr(extras.Extras, "_touch", noted)
        items.execute("update labels set name = 'y' where id = 1")
        assert {kind for kind, _ in await client.receive_batch()} == {"task.updated"}
        assert (len(read), set(read)) == (103, {"1"})
        monkeypatch.setattr(extras, "TOUCHED_TASKS", 102)
        items.execute("update labels set name = 'z' where id = 1")
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert (client.reason, len(read)) == ("extras_changed", 103)
        assert [task["labels"] for task in client.tasks.values()] == [label("z")] * 103
        items.execute("update items set title = 'x' where board_id = 4")
        assert brief(await other.receive_batch()) == [updated(306, title="x")]


async def test_a_resuming_client_gets_often_touched_extras_once(
    items: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is how many keys were touched, on whichever board."""
    monkeypatch.setattr(journal, "RESUME_CHANGES", 4)
    items.execute("insert into item_labels values (1, 1), (2, 1)")
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        cursor, tasks = client.cursor, client.tasks
    for number in range(9):
        items.execute("update labels set name = %s where id = 1", f"name {number}")
    items.execute("insert into comments (item_id, body) values (1, 'x')")
    async with Client.to(relay.url) as client:
        assert brief(await client.resume("1", cursor, tasks)) == [
            *(updated(1, labels=label("name 8")), updated(2, labels=label("name 8")), updated(1, commentCount=1))
        ]
    items.execute("insert into people select n, 'of no task' from generate_series(10, 15) n")
    async with Client.to(relay.url) as client:
        await client.resume("1", cursor, tasks)
        assert client.reason == "too_much_missed"


async def test_what_many_transactions_touch_is_sent_once(items: Database, relay: Relay) -> None:
    """To each card that it is about, as it is in the end."""
    items.execute("insert into item_labels values (1, 1), (2, 1)")
    assert isinstance(relay.feed, Feed)
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        relay.feed.pause()
        items.execute("update items set title = 'x' where id = 1")
        await client.receive_batch()  # the read that had begun
        for number in range(9):
            items.execute("update labels set name = %s where id = 1", f"name {number}")
        relay.feed.go_on()
        assert brief(await client.receive_batch()) == [updated(n, labels=label("name 8")) for n in (1, 2)]


async def test_two_writers_that_change_the_extras_of_one_card_do_not_wait(items: Database, relay: Relay) -> None:
    """And the card shows both, in either order of commits."""
    first, second = items.connect(), items.connect()
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        first.execute("begin; insert into item_labels values (1, 1)")
        second.execute("begin; insert into item_labels values (1, 2); update labels set name = 'c' where id = 2")
        second.execute("commit")
        assert brief(await client.receive_batch()) == [updated(1, labels=label("c"))] * 2
        first.execute("commit")
        assert brief(await client.receive_batch()) == [updated(1, labels=label("a", "c"))]


@pytest.mark.parametrize(
    ("breaks", "repairs"),
    [
        ("begin; lock table comments in access exclusive mode", "rollback"),
        ("begin; alter table comments alter column body type varchar(9)", "commit"),
        ("revoke select on item_labels from relay_reader", "grant select on item_labels to relay_reader"),
    ],
)
async def test_tables_that_cannot_be_read_are_a_fault_of_the_boards_that_show_them(
    items: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch, breaks: str, repairs: str
) -> None:
    """All other boards get their changes, and theirs are sent when they can be."""
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    items.execute("create table notes (id int primary key, board_id text, lane text); select relay.watch('notes')")
    breaker = items.connect()
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await client.resume("1", None)
        await other.subscribe("other")
        await asyncio.to_thread(breaker.execute, breaks.encode())
        items.execute("insert into item_labels values (1, 1); insert into notes values (2, 'other', 'todo')")
        items.execute("insert into items (board_id, title) values (1, 'three')")
        async with asyncio.timeout(10):
            while (await client.receive_any())["type"] != "error":
                pass
            while 2 not in other.tasks:
                await other.receive()
        breaker.execute(repairs.encode())
        while 3 not in client.tasks:
            message = await client.receive_any()
            if message["type"] == "board.sync":
                tasks = [task for tasks in message["data"]["lanes"].values() for task in tasks]
                assert [task["labels"] for task in tasks] == [label("a"), [], []]
                break
        assert relay.feed.status(10).counts.reconnects == 0


async def test_a_read_of_extras_that_takes_long_is_left_to_the_reads_of_boards(
    items: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which take only their own boards with them: for this one, all others wait."""
    monkeypatch.setattr(extras, "READ_SECONDS", 0.02)
    monkeypatch.setattr(boards, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(requests, "LONGEST_RETRY_SECONDS", 0.1)
    with items.connect() as holder:
        async with Client.to(relay.url) as client:
            await client.resume("1", None)
            await asyncio.to_thread(
                holder.execute, b"begin; lock table comments, item_labels in access exclusive mode"
            )
            items.execute("insert into items (board_id, title) values (1, 'three'); update labels set name = 'z'")
            while (await client.receive_any())["type"] != "error":
                pass
            holder.execute("rollback")
            while client.reason != "extras_changed":
                await client.receive_batch()
            assert client.tasks[3]["commentCount"] == 0
            assert relay.feed.status(10).counts.reconnects == 0


@pytest.mark.parametrize(
    "change",
    [
        "truncate item_labels",
        "truncate labels cascade",
        "alter type tone rename value 'dark' to 'black'",
        "alter table labels disable trigger all; update labels set name = 'x'; alter table labels enable trigger all",
        "select relay.drop_extra('items', 'labels')",
        "drop table labels cascade",
    ],
)
async def test_what_changes_extras_without_a_trigger_is_a_sync(items: Database, relay: Relay, change: str) -> None:
    """Of the boards as they are then."""
    items.execute("create type tone as enum ('dark'); alter table labels add column tone tone default 'dark'")
    extra(items, "labels", "labels", through="item_labels", shown=["name", "tone"], filter="tone = 'dark'")
    items.execute("insert into item_labels values (1, 1)")
    async with Client.to(relay.url) as client, Client.to(relay.url) as fresh:
        await client.resume("1", None)
        assert client.tasks[1]["labels"] == [{"name": "a", "tone": "dark"}]
        await asyncio.to_thread(items.execute, change)
        items.execute("update items set title = 'x' where id = 1")
        while True:
            found = await client.receive_batch()
            if found[0][0] == "board.sync" and client.tasks[1]["title"] == "x":
                break
        await fresh.subscribe("1")
        assert client.tasks == fresh.tasks
        assert client.tasks[1].get("labels") != [{"name": "a", "tone": "dark"}]


_CASCADES: Final = [
    ("update crm.tags set name = 'c' where name = 'b'", 1, ["a blue", "c red"]),
    ("delete from crm.tags where name = 'a'", 1, ["c red"]),
    ("set session_replication_role = replica; update crm.tags set color = 'green'", 1, ["c green"]),
    ("insert into crm.tags values ('d', 'red'); insert into crm.item_tags values (2, 'd')", 2, ["d red"]),
    ("update crm.item_tags set item_id = 1", 1, ["c green", "d red"]),
    ("delete from crm.tags where name = 'c'", 1, ["d red"]),
    ("set session_replication_role = origin; update items set id = 5 where id = 1", 5, ["d red"]),
]
"""Statements on tables of another schema, and which tags a card has then."""


async def test_cascades_and_what_replication_applies_are_updates_too(items: Database, relay: Relay) -> None:
    """By whatever key the tables refer to one another, and in whatever schema they are."""
    items.execute(
        "alter table items alter id drop identity; create schema crm; "
        "create table crm.tags (name text primary key, color text); create table crm.item_tags ("
        "item_id bigint references items on update cascade, "
        "tag text references crm.tags on update cascade on delete cascade); "
        "insert into crm.tags values ('a', 'blue'), ('b', 'red'); insert into crm.item_tags values (1, 'a'), (1, 'b')"
    )
    extra(items, "tags", "crm.tags", through="crm.item_tags", shown=["name", "color"])
    async with Client.to(relay.url) as client, Client.to(relay.url) as fresh:
        await client.resume("1", None)
        for statement, item, tags in _CASCADES:
            items.execute(statement)
            async with asyncio.timeout(10):
                while (
                    item not in client.tasks or [" ".join(tag.values()) for tag in client.tasks[item]["tags"]] != tags
                ):
                    kinds = {kind for kind, _ in await client.receive_batch()}
                    assert kinds <= {"task.updated", "task.created", "task.deleted"}, statement
        await fresh.subscribe("1")
        assert client.tasks == fresh.tasks


async def test_an_extra_may_be_declared_and_touched_before_the_relay_reads_of_either(
    database: Database, relay: Relay
) -> None:
    """It then comes with the board, in the same session."""
    database.execute("create table notes (task_id text, note text); insert into tasks (id, title) values ('a', 'A')")
    assert isinstance(relay.feed, Feed)
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        relay.feed.pause()
        database.execute("update tasks set title = 'B'")
        await client.receive_batch()  # the read that had begun
        database.execute(
            "select relay.extra('tasks', 'notes', 'notes', '{note}', key_column => 'task_id'); "
            "insert into notes values ('a', 'x'); insert into tasks (id, title) values ('b', 'B')"
        )
        relay.feed.go_on()
        while "b" not in client.tasks:
            await client.receive_batch()
        assert {key: task.get("notes") for key, task in client.tasks.items()} == {"a": ["x"], "b": []}
        assert relay.feed.status(10).counts.reconnects == 0


async def test_renamed_columns_stay_in_use_and_a_missing_one_is_named_with_the_command(
    items: Database, relay: Relay
) -> None:
    """The tasks are shown without that extra, and health says so."""
    items.execute(
        "alter table item_labels rename column label_id to tag_id; alter table labels rename name to title; "
        "alter table items rename column owner_id to person_id; alter table people rename to persons"
    )
    items.execute("insert into item_labels values (1, 1)")
    async with Client.to(relay.url) as client:
        await client.resume("1", None)
        await until(lambda: client.cursor is not None)
        items.execute("insert into item_labels values (2, 2); update persons set name = 'An' where id = 7")
        while (client.tasks[1]["owner"], client.tasks[2]["labels"]) != ("An", [{"title": "b", "textColor": None}]):
            await client.receive_batch()
        await asyncio.to_thread(items.execute, "alter table labels drop column title")
        while "labels" in client.tasks[1]:
            await client.receive_batch()
        [(name, problem)] = relay.feed.status(10).incomplete.items()
        assert name == "public.items.labels"
        assert (
            "run relay sql extra public.items labels --of public.labels --through public.item_labels --show COLUMN "
            in problem
        )
        extra(items, "labels", "labels", through="item_labels", shown=["text_color"])
        while client.tasks[1].get("labels") != [None]:
            await client.receive_batch()
        assert relay.feed.status(10).incomplete == {}


_REFUSED: Final = [
    ("'tasks', 'n', 'comments'", "public.tasks is not watched: run select relay.watch('public.tasks') first"),
    ("'items', 'title', 'comments'", "'title' cannot be the name of an extra of public.items"),
    ("'items', 'boardId', 'comments'", "'boardId' cannot be the name of an extra of public.items"),
    ("'items', 'a b', 'comments'", "'a b' cannot be the name of an extra of public.items"),
    ("'items', 'n', 'items'", "public.items cannot be what an extra of public.items is made of"),
    (
        "'items', 'n', 'people'",
        "says which column of public.people to use, or several do: name it with key_column => '...'",
    ),
    ("'items', 'n', 'comments', key_column => 'body'", "are of different types: expected the same"),
    ("'items', 'n', 'comments', '{payload}'", "comments has no column 'payload' that an extra can show"),
    ("'items', 'n', 'comments', '{nope}'", "comments has no column 'nope' that an extra can show"),
    ("'items', 'n', 'comments', '{body}', order_by => '{payload}'", "by which clients cannot sort"),
    ("'items', 'n', 'comments', order_by => '{body}'", "found 0 columns to show of public.comments"),
    (
        "'items', 'n', 'comments', filter => 'now() is null'",
        "filter of public.comments cannot be 'now() is null': it is",
    ),
    (
        "'items', 'n', 'comments', filter => 'public.evil(body)'",
        "expected nothing but columns of the table, and functions",
    ),
    (
        "'items', 'n', 'comments', filter => 'body operator(public.===) body'",
        "it uses operator public.===(pg_catalog.text,",
    ),
    ("'items', 'n', 'comments', filter => 'id'", "is of type boolean but default expression is of type bigint"),
    ("'items', 'n', 'comments', filter => 'title <> body'", 'column "title" does not exist'),
    ("'items', 'n', 'comments', link_filter => 'true'", "found link_filter without through: expected filter"),
    (
        "'items', 'n', 'labels', '{name}', through => 'item_labels', link_filter => 'body is null'",
        "relay.extra: link_filter of public.item_labels cannot be 'body is null'",
    ),
    (
        "'items', 'n', 'parts'",
        "public.parts cannot be what an extra of public.items is made of: expected another",
    ),
    (
        "'items', 'n', 'labels', '{name}', through => 'labels'",
        "public.labels cannot be what an extra of public.items is made of",
    ),
    ("'items', 'n', 'people', '{name}', task_column => 'secret'", "column secret of public.items is hidden"),
    (
        "'items', 'n', 'links'",
        "says which column of public.links to use, or several do: name it with key_column => '...'",
    ),
]
"""Arguments of relay.extra, and a part of what it says."""


def test_an_extra_that_cannot_be_shown_exactly_is_refused(items: Database) -> None:
    """In one sentence, which says what was expected."""
    items.execute("alter table comments add column payload jsonb; alter table items add column secret int")
    items.execute(
        "create table links (one bigint references items, other bigint references items); "
        "create table parts (item_id bigint references items) partition by hash (item_id); "
        "create function evil(text) returns boolean immutable language sql as 'select true'; "
        "create function evil(text, text) returns boolean immutable language sql as 'select true'; "
        "create operator === (leftarg = text, rightarg = text, function = evil)"
    )
    items.execute("select relay.watch('items', hidden => '{secret}')")
    for arguments, reason in _REFUSED:
        with pytest.raises(psycopg.Error) as caught:
            items.execute(f"select relay.extra({arguments})")
        said = caught.value.diag.message_primary or ""
        assert reason in said
        assert "\n" not in said


def test_a_column_that_an_extra_is_found_by_cannot_be_hidden(items: Database) -> None:
    """For the images of cards would not say which extra is theirs."""
    for hiding in ("hidden => '{owner_id}'", "shown => '{title}'"):
        with pytest.raises(psycopg.Error, match=r"owner_id of public\.items is what an extra is found by"):
            items.execute(f"select relay.watch('items', {hiding})")
    items.execute("create table boards (id bigint primary key, name text)")
    extra(items, "boardName", "boards", shown=["name"], task_column="board_id")
    items.execute("select relay.watch('items', shown => '{title,owner_id}')")


def test_extras_run_no_code_of_users_where_they_are_read(items: Database) -> None:
    """Not the casts to JSON of an enum, whose owner may make them; and a column retyped to what may is not read."""
    items.execute(
        "create type tone as enum ('dark'); alter table labels add column tone tone default 'dark'; "
        "create function evil(tone) returns json language plpgsql as $$ begin raise 'evil'; end $$; "
        "create cast (tone as json) with function evil(tone); create domain sly as text check (value <> 'x')"
    )
    extra(items, "labels", "labels", through="item_labels", shown=["tone"])
    items.execute("insert into item_labels values (1, 1)")
    board = "select task::json -> '' ->> 'labels' from relay.board('1') where watch is not null"
    assert items.fetch(board) == [('["dark"]',), ("[]",)]
    items.execute("create type pair as (a int, b int); alter table labels alter tone drop default")
    items.execute("alter table labels alter tone type pair using null")
    assert items.fetch(board) == [(None,), (None,)]
    assert items.fetch("select problem from relay.extras where name = 'labels'") == [
        ("shows a column, or is ordered by one, that has another type now",)
    ]


def test_a_type_that_is_called_as_one_of_postgres_is_not_shown(items: Database) -> None:
    """Its owner may make casts of it, which would run where boards are read."""
    items.execute(
        "create type public.date as (day int); alter table labels add column day public.date; "
        "create function evil(public.date) returns json language sql as $$ select to_json(current_user) $$; "
        "create cast (public.date as json) with function evil(public.date)"
    )
    with pytest.raises(psycopg.Error, match="labels has no column 'day' that an extra can show"):
        extra(items, "labels", "labels", through="item_labels", shown=["day"])
    items.execute("alter table labels drop column name; alter table labels rename column day to name")
    with pytest.raises(psycopg.Error, match="order_by has 'name', by which clients cannot sort"):
        items.execute("select relay.lanes('labels', board_column => '', name_column => 'id', order_by => '{name}')")


def test_a_column_that_took_a_name_since_the_snapshot_is_not_read(items: Database) -> None:
    """Its type may be one whose casts are a user's code."""
    items.execute(
        "create type pair as (a int, b int); "
        "create function evil(pair) returns text language sql as $$ select set_config('evil.as', user, false) $$; "
        "create cast (pair as text) with function evil(pair); "
        "create table lists (id text primary key, board_id int, name text); insert into lists values ('l', 1, 'L'); "
        "create table cards (id uuid primary key, lane text); insert into item_labels values (1, 1)"
    )
    items.execute("select relay.lanes('lists'); select relay.watch('cards', lanes => 'lists')")
    [(label_extra,)] = items.fetch("select id from relay.extras where name = 'labels'")
    [(cards,)] = items.fetch("select id from relay.watches where target = 'cards'::regclass")
    with items.connect() as reader:
        reader.execute("begin isolation level repeatable read; select 1")
        for table, column in (("labels", "name"), ("lists", "id")):
            items.execute(
                f"alter table {table} rename column {column} to {column}_was; "
                f"alter table {table} add column {column} pair default row(1, 2)"
            )
        touched = reader.execute("select * from relay.touched(%s, false, '{1}')", [label_extra]).fetchall()
        values = reader.execute("select * from relay.extra_values(%s, '{1}')", [label_extra]).fetchall()
        places = reader.execute('select * from relay.resolve(%s, \'{"[null,\\"l\\"]"}\')', [[cards]]).fetchall()
        assert reader.execute("select current_setting('evil.as', true)").fetchall() == [(None,)]
        assert (touched, values, places) == ([(None,) * 5], [], [(cards, None, None)])


def test_what_decides_the_order_of_values_is_noticed_to_its_end(items: Database) -> None:
    """However long it is; and values that are equal, but not the same, have an order too."""
    items.execute("alter table comments add column score numeric")
    extra(items, "scores", "comments", shown=["score"], order_by=["body"])
    items.execute(
        "insert into comments (item_id, score, body) "
        "values (1, 1, repeat('x', 9000) || 'a'), (1, 2, repeat('x', 9000) || 'b')"
    )
    touches = (
        "select count(*) from relay.entries e join relay.extras x on x.id = e.watch "
        "where x.name = 'scores' and op = 'N'"
    )
    assert items.fetch(touches) == [(2,)]
    items.execute("update comments set body = repeat('x', 9000) || 'c' where score = 1")
    assert items.fetch(touches) == [(3,)]
    items.execute(
        "delete from comments; insert into comments (item_id, score, body) values (1, 1.0, ''), (1, 1.00, '')"
    )
    board = "select task::json -> '' ->> 'scores' from relay.board('1')"
    before = items.fetch(board)
    items.execute("delete from comments where score::text = '1.0'")
    items.execute("insert into comments (item_id, score, body) values (1, 1.0, '')")
    assert items.fetch(board) == before


def test_a_key_that_is_too_long_for_the_journal_is_a_sync(database: Database) -> None:
    """An array of two of them could be more than Postgres has room for, and the writer would fail."""
    database.execute("create table notes (task_id text, note text)")
    database.execute("select relay.extra('tasks', 'notes', 'notes', '{note}', key_column => 'task_id')")
    database.execute("insert into notes values (repeat('x', 8193)), (repeat('y', 8192))")
    entries = "select op::text, length(key), reason from relay.entries where op <> 'P' and reason is distinct from %s"
    assert database.fetch(entries, "watch_changed") == [
        ("S", None, "row_unreadable: a key is longer than 8 KiB"),
        ("N", 8192, None),
    ]


def test_waiting_for_one_table_does_not_block_another(items: Database) -> None:
    """For each attempt locks all of them, or none."""
    writer = items.connect()
    writer.execute("set lock_timeout = '250ms'")
    for statement in (
        "select relay.extra('items', 'n', 'labels', '{name}', through => 'item_labels', patience => '0.4s')",
        "select relay.drop_extra('items', 'labels', patience => '0.4s')",
        "select relay.unwatch('items', patience => '0.4s')",
    ):
        with items.connect() as holder, holder.transaction(), ThreadPoolExecutor() as pool:
            holder.execute("lock table item_labels in row exclusive mode")
            declared = pool.submit(items.execute, statement)
            while not declared.done():
                writer.execute("update labels set text_color = 'red' where id = 1")
            assert "item_labels is in use by" in str(declared.exception())


def test_triggers_that_were_off_are_enabled_as_before_by_the_same_declaration(items: Database) -> None:
    """Always: otherwise what replication applies would not be journalled."""
    items.execute("alter table comments disable trigger all; alter table comments enable trigger all")
    always = "select name, triggers_complete, triggers_always from relay.extras where name = 'commentCount'"
    assert items.fetch(always) == [("commentCount", True, False)]
    extra(items, "commentCount", "comments")
    assert items.fetch(always) == [("commentCount", True, True)]


def test_a_table_is_readable_for_as_long_as_something_shows_it(items: Database) -> None:
    """And no longer, whichever ends first."""
    readable = "select has_table_privilege('relay_reader', 'people', 'select')"
    items.execute("alter table people add column board_id text, add column lane text; select relay.watch('people')")
    items.execute("select relay.unwatch('people')")
    assert items.fetch(readable) == [(True,)]
    items.execute("select relay.drop_extra('items', 'owner')")
    assert items.fetch(readable) == [(False,)]


def test_the_collation_of_a_key_may_be_in_a_schema_of_its_own(database: Database) -> None:
    """Whoever reads boards is let into it."""
    database.execute(
        'create schema own; create collation own.c from "C"; create table notes (task_id text collate own.c); '
        "insert into tasks (id, title) values ('a', 'A')"
    )
    database.execute("select relay.extra('tasks', 'notes', 'notes', key_column => 'task_id')")
    assert database.fetch("select task::json -> '' ->> 'notes' from relay.board('default')") == [("0",)]


async def test_what_a_dropped_table_leaves_is_named_with_the_command_and_breaks_nothing(items: Database) -> None:
    """The table between two others takes along what says what the triggers on the other one are for."""
    items.execute("drop table item_labels")
    items.execute("select relay.watch('items', hidden => '{title}'); select relay.remove_orphans()")
    verdict = (await check(items.dsn))["columns"]
    assert (
        verdict.found == "public.labels has triggers of an extra whose other tables are gone: its writers pay for it"
    )
    assert verdict.hint is not None
    items.execute(verdict.hint.removeprefix("run "))
    items.execute("select relay.remove_orphans()")
    assert items.fetch("select count(*) from pg_proc where proname ~ '^extra_[0-9]+_far$'") == [(0,)]


def test_what_cannot_be_read_is_never_taken_for_what_is_empty(items: Database) -> None:
    """Not even for a card without a key: what it would be then is unknown."""
    with items.connect() as holder, holder.transaction():
        holder.execute("lock table people in access exclusive mode")
        owner = "select x.* from relay.extras e cross join lateral relay.{} x where e.name = 'owner'"
        assert items.fetch(owner.format("extra_values(e.id, '{null,7}')")) == []
        assert items.fetch(owner.format("touched(e.id, false, '{7}')")) == [(None,) * 5]
    assert items.fetch(owner.format("extra_values(e.id, '{null,7}')")) == [(None, None), ("7", '"Ann"')]


def test_an_extra_is_bounded(items: Database) -> None:
    """By the number of its values, by the size of each, and by its own."""
    extra(items, "bodies", "comments", shown=["body"], order_by=["id desc"])
    items.execute("insert into comments (item_id, body) select 1, n from generate_series(1, 1001) n")
    items.execute("insert into comments (item_id, body) values (2, repeat('x', 8193)), (2, repeat('x', 8192))")
    bodies = "select task::json -> '' -> 'bodies' from relay.board('1')"
    (first,), (second,) = items.fetch(bodies)
    assert first == [str(n) for n in range(1001, 1, -1)]
    assert second == ["x" * 8192, None]
    items.execute("insert into comments (item_id, body) select 2, repeat('y', 8192) from generate_series(1, 8)")
    assert items.fetch(bodies)[1] == (None,)
    items.execute("alter table comments add column sum numeric; update comments set sum = 10::numeric ^ 8200")
    extra(items, "bodies", "comments", shown=["sum"])
    assert items.fetch(bodies)[1] == ([None] * 10,)
    for n in range(16):
        extra(items, f"number{n}", "comments")
    with pytest.raises(psycopg.Error, match=r"relay\.extra: public\.items has 20 extras: expected no more"):
        extra(items, "oneMore", "comments")


def test_declaring_an_extra_again_changes_nothing_and_another_one_takes_its_place(items: Database) -> None:
    """Nor does either wait for a reader, or leave a function behind."""
    reader = items.connect()
    reader.execute("begin; select from comments")
    before = items.fetch("select * from relay.extras order by name")
    extra(items, "commentCount", "comments")
    assert items.fetch("select * from relay.extras order by name") == before
    reader.execute("commit")
    functions = "select count(*) from pg_proc where pronamespace = 'relay'::regnamespace"
    number = items.fetch(functions)
    extra(items, "commentCount", "item_labels")
    assert items.fetch("select near::text from relay.extras where name = 'commentCount'") == [("item_labels",)]
    assert items.fetch(functions) == number
    items.execute("select relay.unwatch('items')")
    assert items.fetch("select count(*) from relay.extras") == [(0,)]
    triggers = "select count(*) from pg_trigger where tgname like 'relay%' and tgrelid::regclass::text !~ '^relay'"
    assert items.fetch(triggers) == [(0,)]


def test_the_command_line_declares_and_drops_an_extra_and_refuses_in_its_own_options(
    items: Database, tmp_path: Path
) -> None:
    """What it advises names options, not parameters."""
    refused = run_relay(
        *("sql", "extra", "public.items", "n", "--of", "public.people"), cwd=tmp_path, DATABASE_URL=items.dsn
    )
    assert "name it with --key-column ..." in refused.stderr
    dropped = run_relay("sql", "drop-extra", "public.items", "owner", cwd=tmp_path, DATABASE_URL=items.dsn)
    assert dropped.stdout == "relay sql drop-extra: tasks of public.items have no owner\n"
    assert items.fetch("select name from relay.extras order by name") == [("commentCount",), ("labels",)]


def test_extras_survive_a_dump_and_a_restore(filtered: Database, server: Server) -> None:
    """Where tables and columns have other numbers, they are known by their names."""
    filtered.execute("insert into item_labels values (1, 1)")
    dump = run("pg_dump", filtered.dsn).replace("SET transaction_timeout = 0;", "")
    with temporary_database(server) as dsn, Database(dsn) as copy:
        copy.execute("create table public.filler (x int, y int)")
        run("psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--output=/dev/null", dsn, given=dump)
        copy.execute("select relay.epoch(), relay.refresh()")  # as the daemon does first
        (_, task), *_ = copy.fetch("select * from relay.board('1')")
        assert json.loads(task)[""]["labels"] == label("a")
        assert copy.fetch("select relay.altered()") == []
        copy.execute("insert into item_labels values (2, 1); insert into item_labels values (2, 2, now())")
        assert copy.fetch("select key from relay.entries where op = 'N'") == [("2",)]


@pytest.mark.parametrize(
    ("table", "name"), [("comments", "commentCount"), ("item_labels", "labels"), ("labels", "labels")]
)
async def test_a_table_whose_name_another_one_took_is_a_problem_until_somebody_decides(
    items: Database, monkeypatch: pytest.MonkeyPatch, table: str, name: str
) -> None:
    """As one of tasks or of lanes is; both commands help."""
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.05)
    async with Relay(items.dsn).running() as relay:
        for word in ("to use the other", "to go on"):
            items.execute(
                f"begin; create table {table}_2 (like {table} including all);"
                f"alter table {table} rename to {table}_{word[3]}; alter table {table}_2 rename to {table}; commit"
            )
            await until(lambda: f"{name} of public.items is made of a table whose name" in (relay.feed.problem or ""))
            [command] = [
                part.partition(", run ")[2]
                for part in (relay.feed.problem or "").partition(": ")[2].split("; ")
                if part.startswith(word)
            ]
            done = await asyncio.to_thread(
                CliRunner().invoke, cli, shlex.split(command)[1:], env={"DATABASE_URL": items.dsn}
            )
            assert done.exit_code == 0, done.output
            await until(lambda: relay.feed.problem is None)

"""Boards of another shape under random concurrent writers: whoever followed holds what a fresh client is sent."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import psycopg

import relay.client
from tests.acceptance.test_docs import SHAPES, examples
from tests.integration.client import until
from tests.integration.conftest import Relay
from tests.servers import Database

BOARDS: Final = ("1", "2", "3")
SECONDS: Final = 1.0
OPTIONS: Final = "-c deadlock_timeout=10ms -c lock_timeout=2s"

SCHEMA: Final = """
    select relay.unwatch('tasks');
    create type public.weight as enum ('light', 'middling', 'heavy');
    create table public.lists (
        id bigint primary key, board_id int, name text, position float8, closed_at timestamptz);
    create table public.cards (
        id int primary key, list_id bigint, title text, position numeric, weight public.weight,
        deleted_at timestamptz);
    create index on public.cards (list_id);
    insert into lists select n, 1 + n % 3, 'list ' || n, n from generate_series(1, 6) n;
    insert into cards select n, 1 + n % 6, 'card ' || n, n % 7 from generate_series(1, 40) n;
    select relay.lanes('lists', order_by => '{position desc}', filter => 'closed_at is null');
    select relay.watch('cards', lane_column => 'list_id', lanes => 'lists', filter => 'deleted_at is null',
        hidden => '{deleted_at}', order_by => '{weight desc, position nulls first}');
"""

WRITES: Final = (
    "update cards set position = {x}, title = title || '.' where id = {card}",
    "update cards set list_id = {list} where id = {card}",
    "update cards set list_id = {list} where id % 10 = {digit}",
    "update cards set weight = {weight} where id = {card}",
    "update cards set deleted_at = case when deleted_at is null then now() end where id = {card}",
    "delete from cards where id = {card}",
    "insert into cards values ({card}, {list}, 'new', {x}) on conflict (id) do update set position = null",
    "update lists set board_id = {board} where id = {list}",
    "update lists set position = {x}, name = 'list {x}' where id = {list}",
    "update lists set closed_at = case when closed_at is null then now() end where id = {list}",
    "delete from lists where id = {list}",
    "insert into lists values ({list}, {board}, 'again', {x}) on conflict do nothing",
)
"""Lanes change less often than cards, as it is."""


def statement(chance: random.Random, *, of_lanes: bool) -> str:
    """Return any write."""
    kind = chance.choice(WRITES[7:] if of_lanes and chance.random() < 0.15 else WRITES[:7])
    return kind.format(
        x=chance.choice([*range(9), 2.5, 1e10]),
        card=chance.randint(1, 50),
        digit=chance.randrange(10),
        list=chance.randint(1, 6),
        board=chance.randint(1, 3),
        weight=chance.choice(["null", "'light'", "'middling'", "'heavy'"]),
    )


TOLERATED: Final = (psycopg.errors.DeadlockDetected, psycopg.IntegrityError)
"""What happens to writers who do not know of each other."""


@contextmanager
def writing(
    dsn: str, seed: int, writers: int = 4, statement: Callable[..., str] = statement
) -> Iterator[threading.Event]:
    """Write at random from several threads: transactions of some statements, a part of which is rolled back.

    When the event is set, lanes stay as they are.
    """
    ended, calm = threading.Event(), threading.Event()

    def write(chance: random.Random) -> None:
        while not ended.is_set():
            # Those of the torture write to a server that comes and goes.
            with (
                suppress(psycopg.OperationalError, psycopg.Rollback),
                psycopg.connect(dsn, options=OPTIONS) as connection,
            ):
                while not ended.is_set():
                    with suppress(*TOLERATED), connection.transaction():
                        for _ in range(chance.choice([1, 1, 1, 2, 5])):
                            connection.execute(statement(chance, of_lanes=not calm.is_set()).encode())
                        if chance.random() < 0.1:
                            raise psycopg.Rollback
                    ended.wait(chance.random() / 50)  # relays that stood still are to catch up in bounded time

    threads = [threading.Thread(target=write, args=(random.Random(seed * 100 + n),)) for n in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield calm
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def held(board: relay.client.Board) -> tuple[Any, ...]:
    """Return all that a client holds of a board, in its order."""
    lanes = {lane: tasks for lane, tasks in board.lanes.items() if tasks or board.lane_names}
    return list(lanes.items()), board.lane_names and list(board.lane_names.items())


def shows(board: relay.client.Board, expected: list[tuple[str, list[int]]]) -> bool:
    """Tell whether a board has these lanes, and in them these tasks."""
    return [(lane, [task["id"] for task in tasks]) for lane, tasks in board.lanes.items()] == expected


def holds(board: relay.client.Board, expected: tuple[Any, ...]) -> bool:
    """Tell whether a board is what a fresh client got."""
    return held(board) == expected


async def fresh(url: str, name: str) -> tuple[Any, ...]:
    """Return what a client gets that comes now."""
    async with relay.client.connect(url) as connection:
        return held(await connection.subscribe(name))


EXPECTED: Final = """
    select l.id::text, l.name, array_agg(c.id order by c.weight desc, c.position nulls first, c.id)
        filter (where c.id is not null and c.deleted_at is null)
    from lists l left join cards c on c.list_id = l.id
    where l.board_id::text = %s and l.closed_at is null group by l.id order by l.position desc, l.id
"""


async def test_a_follower_holds_what_a_fresh_client_gets_and_that_is_the_table(database: Database) -> None:
    """The same tasks, in the same lanes, in the same order."""
    database.execute(SCHEMA)
    async with Relay(database.dsn).running() as running:
        for seed in (1, 2):
            async with relay.client.connect(running.url) as connection:
                boards = {name: await connection.subscribe(name) for name in BOARDS}
                with writing(database.dsn, seed) as calm:
                    await asyncio.sleep(SECONDS)
                    calm.set()  # or whatever was wrong before a lane changed would be put right by that
                    await asyncio.sleep(SECONDS)
                assert await running.feed.catch_up()
                for name, board in boards.items():
                    expected = database.fetch(EXPECTED, name)
                    await until(partial(shows, board, [(lane, cards or []) for lane, _, cards in expected]))
                    assert board.lane_names == {lane: title for lane, title, _ in expected}
                    await until(partial(holds, board, await fresh(running.url, name)))


RELATED_TABLES: Final = SHAPES.read_text().partition("## Data of other tables on a card")[2]
RELATED: Final = (
    "insert into item_labels values ({item}, {label}) on conflict do nothing",
    "delete from item_labels where item_id = {item}",
    "update item_labels set label_id = {label} where item_id = {item}",
    "update labels set name = 'label {x}' where id = {label}",
    "update items set title = 'title {x}' where id = {item}",
    "insert into comments (item_id, body) values ({item}, 'x')",
    "delete from comments where id in (select min(id) from comments)",
    "update comments set item_id = {item} where id in (select max(id) from comments)",
    "delete from items where id = {item}",
    "insert into items overriding system value values ({item}, 1, 'todo', 'new') on conflict do nothing",
)
SHOWN: Final = """
    select i.id, i.label_names, i.comment_count from items i where
        i.label_names <> array(select l.name from item_labels il join labels l on l.id = il.label_id
                               where il.item_id = i.id order by l.name, l.id)
        or i.comment_count <> (select count(*) from comments c where c.item_id = i.id)
"""
SHOWED: Final = """
    select bool_or(new_row::json -> 'label_names' ->> 1 is not null),
           bool_or((new_row::json ->> 'comment_count')::int > 1) from relay.entries where op = 'R'
"""


def related(chance: random.Random, *, of_lanes: bool) -> str:
    """Return any write to cards, labels, or what is between."""
    del of_lanes
    return chance.choice(RELATED).format(item=chance.randint(1, 4), label=chance.randint(1, 3), x=chance.randrange(9))


async def test_columns_that_triggers_keep_from_other_tables_are_exact(database: Database) -> None:
    """With the triggers that docs/shapes.md prints: each column is what it stands for, and clients hold it."""
    database.execute("select relay.unwatch('tasks')")
    database.execute(examples(RELATED_TABLES, "sql")[0])
    database.execute("insert into labels (name) values ('a'), ('b'), ('c')")
    database.execute("insert into items (board_id, title) select 1, 'old' from generate_series(1, 6)")
    async with Relay(database.dsn).running() as running, relay.client.connect(running.url) as connection:
        board = await connection.subscribe("1")
        with writing(database.dsn, 1, statement=related):
            await asyncio.sleep(SECONDS / 2)
            await until(lambda: database.fetch(SHOWED) == [(True, True)])
        assert await running.feed.catch_up()

        assert database.fetch(SHOWN) == []
        await until(partial(holds, board, await fresh(running.url, "1")))

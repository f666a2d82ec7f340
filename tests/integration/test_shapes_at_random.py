"""Boards of another shape under random concurrent writers: a follower holds what a fresh client is sent."""

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
from relay.postgres.feed import Feed
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
    create table public.tags (id int primary key, name text, archived boolean not null default false);
    create table public.card_tags (card_id int, tag_id int, removed boolean not null default false);
    create index on public.card_tags (card_id);
    create index on public.card_tags (tag_id);
    insert into tags select n, 'tag ' || n from generate_series(1, 4) n;
    select relay.extra('cards', 'tagCount', 'card_tags', key_column => 'card_id', filter => 'not removed');
    select relay.extra('cards', 'tags', 'tags', '{name}', through => 'card_tags', key_column => 'card_id',
        link_column => 'tag_id', filter => 'not archived', link_filter => 'not removed');
"""

OF_CARDS: Final = (
    "update cards set position = {x}, title = title || '.' where id = {card}",
    "update cards set list_id = {list} where id = {card}",
    "update cards set list_id = {list} where id % 10 = {digit}",
    "update cards set weight = {weight} where id = {card}",
    "update cards set deleted_at = case when deleted_at is null then now() end where id = {card}",
    "delete from cards where id = {card}",
    "insert into cards values ({card}, {list}, 'new', {x}) on conflict (id) do update set position = null",
    "insert into card_tags values ({card}, {tag})",
    "delete from card_tags where card_id = {card}",
    "update card_tags set card_id = {card} where tag_id = {tag} and card_id % 10 = {digit}",
    "update tags set name = 'tag {x}' where id = {tag}",
    "update card_tags set removed = not removed where card_id = {card}",
    "update tags set archived = not archived where id = {tag}",
    "update cards set title = 'both' where id = {card}; insert into card_tags values ({card}, {tag}), ({card}, 1)",
)

OF_LANES: Final = (
    "update lists set board_id = {board} where id = {list}",
    "update lists set position = {x}, name = 'list {x}' where id = {list}",
    "update lists set closed_at = case when closed_at is null then now() end where id = {list}",
    "delete from lists where id = {list}",
    "insert into lists values ({list}, {board}, 'again', {x}) on conflict do nothing",
)
"""Lanes change less often than cards, as it is."""


def statement(chance: random.Random, *, of_lanes: bool) -> str:
    """Return any write."""
    kind = chance.choice(OF_LANES if of_lanes and chance.random() < 0.15 else OF_CARDS)
    return kind.format(
        x=chance.choice([*range(9), 2.5, 1e10]),
        card=chance.randint(1, 50),
        digit=chance.randrange(10),
        list=chance.randint(1, 6),
        board=chance.randint(1, 3),
        tag=chance.randint(1, 4),
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
                assert await running.feed.catch_up(), (running.feed.problem, running.feed.lag)
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
    "update labels set name = 'label {x}', text_color = {color} where id = {label}",
    "update items set title = 'title {x}' where id = {item}",
    "update items set lane = {lane}, board_id = {board} where id = {item}",
    "update items set owner_id = {owner} where id = {item}",
    "update people set name = 'person {x}' where id = {owner}",
    "update people set id = {x} where id = {owner}",
    "insert into comments (item_id, body) values ({item}, 'x')",
    "delete from comments where id in (select min(id) from comments)",
    "update comments set item_id = {item} where id in (select max(id) from comments)",
    "delete from items where id = {item}",
    "update comments set deleted_at = case when deleted_at is null then now() end where item_id = {item}",
    "update labels set archived = not archived where id = {label}",
    "update item_labels set removed_at = case when removed_at is null then now() end where item_id = {item}",
    "insert into steps (item_id, done) values ({item}, {x} < 5)",
    "update steps set done = not done where item_id = {item}",
    "insert into items overriding system value values ({item}, {board}, {lane}, '', {owner}) on conflict do nothing",
    "with l as (delete from item_labels returning *) insert into comments (item_id, body) select item_id, '' from l",
    "insert into items (board_id, title, lane) values ({board}, 'x', {lane}); update items set title = 'y'",
)
SHOWN: Final = """
    select i.id, i.lane, i.title, i.owner_id,
           (select p.name from people p where p.id = i.owner_id),
           (select count(*) from comments c where c.item_id = i.id and c.deleted_at is null),
           (select count(*) from steps s where s.item_id = i.id),
           (select count(*) from steps s where s.item_id = i.id and s.done),
           coalesce((select json_agg(json_build_object('name', l.name, 'textColor', l.text_color)
                                     order by l.name, l.text_color)
                     from item_labels il join labels l on l.id = il.label_id
                     where il.item_id = i.id and not l.archived and il.removed_at is null), '[]')
    from items i where i.board_id::text = %s order by i.id
"""


def related(chance: random.Random, *, of_lanes: bool) -> str:
    """Return any write to cards, labels, or what is between."""
    del of_lanes
    return chance.choice(RELATED).format(
        item=chance.randint(1, 8),
        label=chance.randint(1, 4),
        x=chance.randrange(1, 9),
        color=chance.choice(["null", "'red'", "'blue'"]),
        lane=chance.choice(["'todo'", "'doing'"]),
        board=chance.randint(1, 2),
        owner=chance.choice(["null", *range(1, 9)]),
    )


def items(board: relay.client.Board) -> list[tuple[Any, ...]]:
    """Return what a client holds of the tasks, as the tables say it."""
    keys = ("id", "lane", "title", "ownerId", "owner", "commentCount", "stepCount", "stepsDone", "labels")
    tasks = [task for tasks in board.lanes.values() for task in tasks]
    return sorted(tuple(task[key] for key in keys) for task in tasks)


async def gathered(running: Relay, seconds: float) -> None:
    """Have changes gather for a while, so that one batch has many of them."""
    assert isinstance(running.feed, Feed)
    running.feed.pause()
    await asyncio.sleep(seconds)
    running.feed.go_on()


def says(board: relay.client.Board, expected: list[tuple[Any, ...]]) -> bool:
    """Tell whether a client holds what the tables say."""
    return items(board) == expected


async def test_what_other_tables_say_about_tasks_is_exact(database: Database) -> None:
    """Followers, fresh clients and clients that came back hold what the tables say."""
    database.execute("select relay.unwatch('tasks')")
    for block in examples(RELATED_TABLES, "sql")[:2]:
        database.execute(block)
    database.execute("insert into labels (name) select 'label ' || n from generate_series(1, 4) n")
    database.execute("insert into people select n, 'person ' || n from generate_series(1, 4) n")
    async with Relay(database.dsn).running() as running, relay.client.connect(running.url) as connection:
        boards = {name: await connection.subscribe(name) for name in ("1", "2")}
        for seed in (1, 2):
            with writing(database.dsn, seed, statement=related):
                await asyncio.sleep(SECONDS)
                await gathered(running, SECONDS / 4)
                await asyncio.sleep(SECONDS / 2)
            assert await running.feed.catch_up(), (running.feed.problem, running.feed.lag)
            for name, board in boards.items():
                expected = database.fetch(SHOWN, name)
                await until(partial(says, board, expected))
                async with relay.client.connect(running.url) as fresh_connection:
                    assert items(await fresh_connection.subscribe(name)) == expected

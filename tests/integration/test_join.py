"""A board's sync and its live messages join without gap or duplicate, while writers are busy."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from relay.postgres import journal
from tests.integration.client import Client
from tests.integration.conftest import Relay
from tests.servers import Database

BOARDS = ("default", "other")


class Writers:
    """Threads that write until asked to stop: savepoints, rollbacks, pauses, moves from board to board."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn = dsn
        self._seed = seed
        self._stop = threading.Event()
        self.failure: BaseException | None = None

    @contextmanager
    def busy(self, number: int) -> Iterator[None]:
        """Write while the context lasts."""
        threads = [threading.Thread(target=self._write, args=(self._seed + i,)) for i in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        assert self.failure is None

    def _write(self, seed: int) -> None:
        chance = random.Random(seed)
        try:
            with psycopg.connect(self._dsn, options="-c deadlock_timeout=5ms") as connection:
                while not self._stop.is_set():
                    self._transaction(connection, chance)
        except psycopg.Error as failure:
            self.failure = failure

    def _transaction(self, connection: psycopg.Connection, chance: random.Random) -> None:
        try:
            for _ in range(chance.randint(1, 4)):
                if chance.random() < 0.3:
                    with connection.transaction(force_rollback=chance.random() < 0.5):
                        self._statement(connection, chance)
                else:
                    self._statement(connection, chance)
                if chance.random() < 0.1:
                    self._stop.wait(chance.random() * 0.1)  # a long transaction beside the others
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            connection.rollback()
        if chance.random() < 0.2:
            connection.rollback()
        else:
            connection.commit()

    def _statement(self, connection: psycopg.Connection, chance: random.Random) -> None:
        one = f"t{chance.randrange(30)}"
        lane, board = chance.choice(["backlog", "todo", "done"]), chance.choice(BOARDS)
        match chance.randrange(6):
            case 0 | 1:
                connection.execute(
                    "insert into tasks (id, board_id, title) values (%s, %s, 'T') on conflict (id) do update "
                    "set board_id = excluded.board_id, title = tasks.title || '.'",
                    (one, board),
                )
            case 2:
                connection.execute("delete from tasks where id = %s", (one,))
            case 3:
                connection.execute("update tasks set lane = %s where id = %s", (lane, one))
            case 4:
                connection.execute("update tasks set estimated_hours = %s where board_id = %s", (len(one), board))
            case _:
                new = f"t{chance.randrange(30)}"
                connection.execute("update tasks set id = %s where id = %s", (new, one))


async def come_and_go(relay: Relay, chance: random.Random, *, rounds: int) -> None:
    """Connect, follow both boards for a while, subscribe again, leave; every message must fit (see Client)."""
    for _ in range(rounds):
        board = chance.choice(BOARDS)
        async with Client.to(relay.url) as client:
            await client.subscribe(board)
            for _ in range(chance.randint(1, 60)):
                await client.receive()
                if chance.random() < 0.1:
                    await client.send({"type": "subscribe", "boardId": board})


async def test_subscribers_equal_the_table_while_writers_are_busy(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that come and go under load get no change twice and miss none; those that stay end with the table."""
    monkeypatch.setattr(journal, "PART_CHANGES", 10)  # so that some transactions come in parts
    seed = 2
    chance = random.Random(seed)
    async with Client.to(relay.url) as one, Client.to(relay.url) as two:
        stayers = dict(zip(BOARDS, (one, two), strict=True))
        with Writers(database.dsn, seed).busy(4):
            for board, client in stayers.items():
                await client.subscribe(board)
            await asyncio.gather(*(come_and_go(relay, random.Random(chance.random()), rounds=3) for _ in range(8)))
        for board, client in stayers.items():
            await client.until_last(database, board)
            rows = database.fetch("select task from relay.board(%s)", board)

            assert {task["id"]: task for task in (json.loads(image) for (image,) in rows)} == {
                task["id"]: {_snake(key): value for key, value in task.items()} for task in client.tasks.values()
            }


def _snake(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


async def test_long_transaction_holds_up_nobody(database: Database, relay: Relay) -> None:
    """While a transaction stays open, others' changes flow and boards are synced; its own follow its commit."""
    long = database.connect()
    long.execute("begin; insert into tasks (id, title) values ('long', 'Long')")
    async with Client.to(relay.url) as early, Client.to(relay.url) as late:
        await early.subscribe("default")
        for number in range(20):
            database.execute("insert into tasks (id, title) values (%s, 'T')", f"t{number}")
        assert len(await early.until_last(database)) == 20
        await late.subscribe("default")
        long.execute("savepoint s; update tasks set title = 'undone'; rollback to s")
        long.execute("update tasks set title = 'Longer' where id = 'long'; commit")

        for client in (early, late):
            await client.until_last(database)
            assert client.tasks["long"]["title"] == "Longer"
            assert client.tasks["t7"]["title"] == "T"

"""A second world of the torture: lanes that are rows, boards found through them, a filter, an order, and extras.

The oracle is the table itself, asked in one statement when the writers rest: each client must come to hold these
lanes in this order, and in them these cards in theirs; and what a client holds that followed all along must be what
one is sent that comes then.

Rules:
- Lanes rest for the last part of a round. A lane that changes has its boards sent again, which would put right
  whatever had gone wrong with cards before.
- A client is cut off now and then, and comes back to any relay with its cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import psycopg

import relay.client
from tests.integration import test_shapes_at_random as shapes
from tests.torture.run import CATCH_UP_SECONDS, ROUND_SECONDS, Verdict
from tests.torture.world import World

REST_SECONDS: Final = 3.0
CLIENTS: Final = 3


class ShapesWorld(World):
    """The same Postgres, relays and faults, around other tables."""

    @contextlib.asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        await self.execute("select relay.unwatch('steps')")
        await self.execute(shapes.SCHEMA)
        yield

    async def lanes(self, name: str) -> list[tuple[str, str, list[int]]]:
        """Return a board's lanes as clients should hold them: key, name and cards."""
        return [(lane, title, cards or []) for lane, title, cards in await self.execute(shapes.EXPECTED, name)]

    async def empty_cards(self) -> None:
        """All cards are gone."""
        await self.execute("set lock_timeout = '2s'; truncate cards")

    async def empty_lists(self) -> None:
        """All lists are gone, and others come."""
        await self.execute(
            "set lock_timeout = '2s'; begin; truncate lists; "
            "insert into lists select n, 1 + n % 3, 'list ' || n, n from generate_series(1, 6) n; commit"
        )

    async def empty_tags(self) -> None:
        """No card has a tag any more."""
        await self.execute("set lock_timeout = '2s'; truncate card_tags")

    async def tag_many(self) -> None:
        """Thousands of cards have a tag, which is renamed and archived, and then none."""
        await self.execute(
            "insert into card_tags select n % 60, 1 + n % 4 from generate_series(1, 6000) n; "
            "update tags set name = name || '.'; update tags set archived = not archived; "
            "delete from card_tags where tag_id > 1"
        )

    async def move_many(self) -> None:
        """One transaction writes thousands of cards, and moves their list."""
        await self.execute(
            "begin; insert into cards select n, 1 + n % 6, 'many' from generate_series(1000, 4000) n "
            "on conflict (id) do update set list_id = excluded.list_id; "
            "update lists set board_id = 1 + id % 3 where id = 3; delete from cards where id > 1020; commit"
        )

    async def rewrite_all(self) -> None:
        """All tables are rewritten, or get a column more or less."""
        self._extra += 1
        change = "drop column if exists extra" if self._extra % 2 == 0 else "add column if not exists extra int"
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute("set lock_timeout = '2s'")
            for table in ("cards", "lists", "tags", "card_tags"):
                await connection.execute(f"alter table {table} {change}".encode())
                await connection.execute(f"vacuum full {table}".encode())

    faults_known: ClassVar = (
        *(World.restart, World.crash, World.kill_backend, World.terminate_sessions, World.kill_relay),
        *(World.freeze, World.strand, World.cut, World.prune, World.mute, World.pause_journal, World.suspend_relay),
        *(empty_cards, empty_lists, empty_tags, tag_many, move_many, rewrite_all),
    )


class Follower:
    """One client of the package, on all boards, over one connection after another."""

    def __init__(self, world: ShapesWorld, seed: str) -> None:
        self.boards: dict[str, relay.client.Board] = {}
        self.calm = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self._world = world
        self._chance = random.Random(seed)

    async def live(self) -> None:
        """Follow, for ever."""
        connecting = relay.client.connect("ws://relay.invalid", token=self._choose_relay)
        async with connecting as self._relay, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tear())
            for name in shapes.BOARDS:
                self.boards[name] = await self._relay.subscribe(name)
                tasks.create_task(self._count(self.boards[name]))

    async def _choose_relay(self) -> None:
        if urls := self._world.urls():
            self._relay._url = self._chance.choice(urls)  # noqa: SLF001  # that of a relay which runs

    async def _count(self, board: relay.client.Board) -> None:
        async for change in board:
            self.counts[f"sync: {change.reason}" if change.type == "board.sync" else change.type] += 1

    async def _tear(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / 4))
            link = self._relay._link  # noqa: SLF001  # a network has no public name either
            if link and link._connection and not self.calm.is_set():  # noqa: SLF001
                link._connection.transport.abort()  # noqa: SLF001
                self.counts["torn"] += 1


async def torture(seed: str, seconds: float, keep: Path, output: IO[str]) -> Verdict:
    """Torture relays with boards of another shape for a while; print what happens."""
    print(f"seed {seed}, shapes", file=output, flush=True)
    verdict = Verdict(seed)
    with tempfile.TemporaryDirectory() as scratch:
        world = ShapesWorld(Path(scratch), seed, None)
        async with world.running():
            followers = [Follower(world, f"{seed}/{n}") for n in range(CLIENTS)]
            lives = [asyncio.create_task(follower.live()) for follower in followers]
            started = time.monotonic()
            try:
                while not verdict.violations and time.monotonic() - started < seconds:
                    await _round(world, followers, verdict)
                    print(f"  round {verdict.rounds}", file=output, flush=True)
            finally:
                verdict.violations += [f"a client ended: {life.exception()!r}" for life in lives if life.done()]
                for life in lives:
                    life.cancel()
                await asyncio.gather(*lives, return_exceptions=True)
            if verdict.violations:
                await asyncio.to_thread(_leave, keep / seed, world)
            verdict.seconds, verdict.faults = time.monotonic() - started, world.faults
            for follower in followers:
                verdict.messages += follower.counts
    print(verdict, file=output, flush=True)
    return verdict


async def _round(world: ShapesWorld, followers: list[Follower], verdict: Verdict) -> None:
    verdict.rounds += 1
    chance = random.Random(f"{verdict.seed}/{verdict.rounds}")
    for follower in followers:
        follower.calm.clear()
    with shapes.writing(world.dsn, chance.randrange(10**6)) as calm:
        ends = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < ends:
            await asyncio.sleep(chance.random() * 2)
            await world.fault()
        calm.set()
        await asyncio.sleep(REST_SECONDS)
    for follower in followers:
        follower.calm.set()
    await _judge(world, followers, verdict)


async def _judge(world: ShapesWorld, followers: list[Follower], verdict: Verdict) -> None:
    """Have clients come to hold the tables' lanes and cards in time, and all that a client is sent that comes now."""
    expected = {name: await world.lanes(name) for name in shapes.BOARDS}
    deadline = time.monotonic() + CATCH_UP_SECONDS
    verdict.violations += await _until_none(lambda: _wrong(followers, expected), deadline)
    if not verdict.violations:
        fresh = {name: await shapes.fresh(world.urls()[0], name) for name in shapes.BOARDS}
        verdict.violations += await _until_none(lambda: _unlike(followers, fresh), deadline)


async def _until_none(faults: Callable[[], list[str]], deadline: float) -> list[str]:
    while found := faults():
        if time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)
    return []


def _wrong(followers: list[Follower], expected: Mapping[str, list[tuple[str, str, list[int]]]]) -> list[str]:
    return [
        f"client {n}, board {name}: {_difference(follower.boards.get(name), lanes)}"
        for n, follower in enumerate(followers)
        for name, lanes in expected.items()
        if name not in follower.boards or held(follower.boards[name]) != lanes
    ]


def _unlike(followers: list[Follower], fresh: Mapping[str, tuple[Any, ...]]) -> list[str]:
    return [
        f"client {n} holds board {name} otherwise than a fresh one"
        for n, follower in enumerate(followers)
        for name, board in fresh.items()
        if shapes.held(follower.boards[name]) != board
    ]


def held(board: relay.client.Board) -> list[tuple[str, str | None, list[Any]]]:
    """Return what a client holds, as the oracle does."""
    names = board.lane_names or {}
    return [(lane, names.get(lane), [task["id"] for task in tasks]) for lane, tasks in board.lanes.items()]


def _difference(board: relay.client.Board | None, lanes: list[tuple[str, str, list[int]]]) -> str:
    if board is None:
        return "it never came"
    found = [lane for lane in held(board) if lane not in lanes]
    return f"holds {found[:2]}, expected {[lane for lane in lanes if lane not in held(board)][:2]}"


def _leave(folder: Path, world: ShapesWorld) -> None:
    """Leave on disk what went wrong when, and what the relays said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.txt").write_text("\n".join(world.story))
    for log in world.folder.glob("output-of-*"):
        shutil.copy(log, folder / f"relay-{log.name}.log")

"""Edges that read what their clients follow: no more, where the server allows that, and never less."""

from __future__ import annotations

import asyncio
import contextlib
import random
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from relay.nats import deliveries, selection
from relay.nats.consumer import Consumer, Delivered
from relay.nats.deliveries import Deliveries
from relay.nats.follower import Follower
from relay.nats.jetstream import Stream
from relay.nats.questions import Answer, Questions
from relay.nats.stream import Encoded, Part, decode
from tests.integration.client import Client, Tasks, until
from tests.integration.conftest import Relay
from tests.integration.test_edges import Feed, follower_of, kinds
from tests.nats import NatsServer, each_nats_server
from tests.proxy import Proxy
from tests.servers import Database

BOARDS = [f"board-{number}" for number in range(10)]
VISITORS = 6
VISITS = 10

WRITE = """
    update public.tasks set title = (title::int + 1)::text
    where board_id in (select b from unnest(%s::text[]) b order by random() limit 1 + floor(random() * 4)::int)
"""
"""Counts one further on each of some boards."""


@pytest.fixture
def feed(nats_server: NatsServer, database: Database) -> Feed:
    """Return a stream for the test's database, in which each board has one task that counts."""
    database.execute("insert into tasks (id, board_id, title) select b, b, '0' from unnest(%s::text[]) b", BOARDS)
    return Feed(nats_server, database.dsn)


async def filters(nats: Any) -> bool:
    """Whether a server knows consumers with several subjects."""
    async with nats.jetstream() as jetstream:
        version = jetstream._nc.connected_server_version  # noqa: SLF001
        return bool((version.major, version.minor) >= (2, 10))


@each_nats_server
async def test_an_edge_has_only_those_boards_delivered_that_its_clients_follow(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of others cost it one entry for each batch; an old server delivers all the same."""
    pass_on = Follower._pass_on  # noqa: SLF001
    delivered: list[str | None] = []

    def record(self: Follower, hub: Any, entries: Sequence[Delivered]) -> None:
        found = [decode(each.data) for each in entries]
        delivered.extend(each.board for each in found if isinstance(each, Part))
        pass_on(self, hub, entries)

    monkeypatch.setattr(Follower, "_pass_on", record)
    expected = set(BOARDS[:2]) if await filters(feed.nats) else set(BOARDS)
    async with feed.published(), feed.edge() as near, Client.to(near.url) as one, Client.to(near.url) as other:
        await one.subscribe(BOARDS[0])
        await other.subscribe(BOARDS[1])
        for _ in range(3):
            database.execute("update tasks set title = title || '0'")
            assert kinds([await one.receive(), await other.receive()]) == ["task.updated"] * 2
        assert set(delivered) == expected


async def test_a_board_is_asked_for_only_once_its_changes_are_delivered(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed between the two would be missed; other boards need not wait."""
    select, ask = Deliveries._select, Questions.ask  # noqa: SLF001
    delivered, asked = asyncio.Event(), list[bytes]()

    async def wait(self: Deliveries, stream: Stream, last: int) -> None:
        await delivered.wait()
        await select(self, stream, last)

    async def note(self: Questions, place: str, what: str, question: bytes) -> Answer | None:
        asked.append(question)
        return await ask(self, place, what, question)

    async with feed.published(), feed.edge() as near, contextlib.AsyncExitStack() as stack:
        one, other, late = [await stack.enter_async_context(Client.to(near.url)) for _ in range(3)]
        await one.subscribe(BOARDS[0])
        monkeypatch.setattr(Deliveries, "_select", wait)
        monkeypatch.setattr(Questions, "ask", note)
        await late.send({"type": "subscribe", "boardId": BOARDS[1]})
        await until(lambda: BOARDS[1] in near.hub)
        await other.subscribe(BOARDS[0])
        assert asked == [BOARDS[0].encode()]
        delivered.set()
        assert (await late.receive())[0] == "board.sync"
        assert asked == [BOARDS[0].encode(), BOARDS[1].encode()]


def one_by_one(
    arrived: Callable[[Consumer], Awaitable[list[Delivered]]],
) -> Callable[[Consumer], Awaitable[list[Delivered]]]:
    """Have entries taken one at a time that arrived together."""
    waiting: weakref.WeakKeyDictionary[Consumer, list[Delivered]] = weakref.WeakKeyDictionary()

    async def one(self: Consumer) -> list[Delivered]:
        await asyncio.sleep(0)
        entries = waiting.get(self) or await arrived(self)
        waiting[self] = entries[1:]
        return entries[:1]

    return one


class Visitors:
    """Clients that come to boards, follow them for a while and go, and come back with their cursors."""

    def __init__(self, edges: Sequence[Relay], seed: int) -> None:
        self._edges = edges
        self._chance = random.Random(seed)
        self._held: defaultdict[int, dict[str, tuple[str, Tasks]]] = defaultdict(dict)

    async def visit_often(self, visitor: int) -> None:
        for _ in range(VISITS):
            board = self._chance.choice(BOARDS)
            async with Client.to(self._chance.choice(self._edges).url) as client:
                cursor, tasks = self._held[visitor].get(board, (None, {}))
                count = counter(tasks, board)
                found = await client.resume(board, cursor, tasks)
                if cursor is None:
                    assert kinds(found) == ["board.sync"]
                else:
                    check_counted(found, count)
                for _ in range(self._chance.randrange(4)):
                    count = counter(client.tasks, board)
                    check_counted(await client.receive_batch(), count)
                assert client.cursor
                self._held[visitor][board] = client.cursor, client.tasks


def counter(tasks: Tasks, board: str) -> int:
    """Return how far a board has counted, as far as a client knows."""
    return int(tasks[board]["title"]) if tasks else 0


def check_counted(found: Sequence[tuple[str, Any]], count: int) -> None:
    """Assert that each change after this count came, once and in order, and that the board was not sent again."""
    assert set(kinds([*found])) <= {"task.updated"}
    assert [int(data["changes"]["title"]) for _, data in found] == [*range(count + 1, count + 1 + len(found))]


@each_nats_server
async def test_clients_that_come_and_go_all_the_time_miss_nothing(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At two edges that select boards again and again, and go between some and all; each change comes once.

    Entries come one by one, so that a switch may be due at each of them.
    """
    monkeypatch.setattr(Consumer, "arrived", one_by_one(Consumer.arrived))
    monkeypatch.setattr(selection, "MAX_BOARDS", 5)
    monkeypatch.setattr(deliveries, "SWITCH_SECONDS", 0.0)
    monkeypatch.setattr(deliveries, "NARROW_SECONDS", 0.05)
    switches = 0
    switch = selection.Selection.switch

    def counted(self: selection.Selection) -> None:
        nonlocal switches
        switches += 1
        switch(self)

    monkeypatch.setattr(selection.Selection, "switch", counted)
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await asyncio.to_thread(database.execute, WRITE, BOARDS)

    async with feed.published(), feed.edge() as one, feed.edge() as other:
        await until(lambda: follower_of(one).proven and follower_of(other).proven)
        before = [edge.feed.status(10).counts.reconnects for edge in (one, other)]
        writing = asyncio.create_task(write())
        visitors = Visitors([one, other], seed=1)
        try:
            await asyncio.gather(*(visitors.visit_often(visitor) for visitor in range(VISITORS)))
        finally:
            done.set()
            await writing
        counts = [edge.feed.status(10).counts for edge in (one, other)]
        assert [each.reconnects for each in counts] == before
        assert [dict(each.continuity_lost) for each in counts] == [{}, {}]
        assert switches > (VISITS if await filters(feed.nats) else 0)


async def test_a_board_that_is_wanted_within_a_batch_is_delivered_from_the_next_on(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part of the batch has passed already, and the commit would miss it."""
    append = Stream.append
    go_on = asyncio.Event()

    async def in_two(self: Stream, entries: Sequence[Encoded], last: int) -> int:
        if sum(isinstance(each.entry, Part) for each in entries) < len(BOARDS):
            return await append(self, entries, last)
        # The followed board last, the others before it, and then the commit.
        parts = sorted(entries[: len(BOARDS)], key=lambda each: getattr(each.entry, "board", "") == BOARDS[0])
        last = await append(self, parts, last)
        await go_on.wait()
        return await append(self, entries[len(BOARDS) :], last)

    async with feed.published(), feed.edge() as near, Client.to(near.url) as one, Client.to(near.url) as other:
        await one.subscribe(BOARDS[0])
        its = follower_of(near).deliveries
        before = near.feed.status(10).counts.reconnects
        monkeypatch.setattr(Stream, "append", in_two)
        database.execute("update tasks set title = '1'")
        await until(lambda: not follower_of(near)._assembly.between_batches)  # type: ignore[union-attr]  # noqa: SLF001
        await other.send({"type": "subscribe", "boardId": BOARDS[1]})
        await until(lambda: its.switch_due or its.reads(BOARDS[1]))
        go_on.set()
        assert kinds([await one.receive(), await other.receive()]) == ["task.updated", "board.sync"]
        assert near.feed.status(10).counts.reconnects == before


async def test_a_part_that_the_stream_has_lost_is_noticed(feed: Feed, database: Database) -> None:
    """Though an edge that does not read all boards cannot see it in the sequences: the commit says so."""
    async with (
        feed.published(),
        Proxy("127.0.0.1", feed.nats.port) as proxy,
        feed.edge(SERVE_FROM=f"nats://127.0.0.1:{proxy.port}") as near,
        Client.to(near.url) as client,
    ):
        await client.resume(BOARDS[0], None)
        await proxy.cut()
        async with feed.nats.jetstream() as jetstream:
            before = (await jetstream.stream_info(feed.stream)).state.last_seq
            database.execute("update tasks set title = '1'")
            part = await found_after(jetstream, feed.stream, before, BOARDS[0])
            await jetstream.delete_msg(feed.stream, part)
        await proxy.restore()
        assert kinds(await client.receive_batch()) == ["board.sync"]
        assert client.reason == "journal_pruned"
        assert client.tasks[BOARDS[0]]["title"] == "1"


async def found_after(jetstream: Any, stream: str, before: int, board: str) -> int:
    """Wait for an entry of a board; return its sequence."""
    subject = f"{stream}.board.{board}"
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Exception):
                found = await jetstream.get_last_msg(stream, subject)
                if found.seq > before:
                    return int(found.seq)
            await asyncio.sleep(0.05)

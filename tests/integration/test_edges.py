"""The feed through NATS JetStream: publishers and edges on a real Postgres and a real NATS, in the test's own loop.

A client of an edge is sent what a relay on the database would send it, with the same cursors, whatever
happens to NATS, to publishers and to the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import psycopg
import pytest
import structlog
from nats.js import api

from relay import config
from relay.config import Settings
from relay.hub.ports import Sink
from relay.nats import assembly, boards, permissions, questions, source, turn
from relay.nats import stream as relay_stream
from relay.nats.answers import Answers
from relay.nats.connection import Refused, StreamError
from relay.nats.deliveries import Deliveries
from relay.nats.follower import Follower
from relay.nats.jetstream import Stream
from relay.nats.publisher import Publisher
from relay.nats.questions import Questions
from relay.nats.source import NatsSource
from relay.nats.stream import Commit, Encoded, Part, StreamBroken, decode, decode_state
from relay.postgres import lead
from relay.postgres.boards import Boards
from relay.postgres.lead import Lead
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.integration.test_resume import start
from tests.nats import NATS_SERVER, NO_SERVER, NatsCluster, NatsServer, each_nats_server
from tests.proxy import Proxy
from tests.servers import Database, Server, do_without, install, temporary_database


@dataclass
class Feed:
    """A stream of its own on a NATS server, and the database that is published there."""

    nats: NatsServer | NatsCluster
    dsn: str
    stream: str = field(default_factory=lambda: f"feed-{secrets.token_hex(4)}")

    def settings(self, **given: str) -> Settings:
        return config.load(
            {
                "DATABASE_URL": self.dsn,
                "SERVE_FROM": self.nats.url,
                "PUBLISH_TO": self.nats.url,
                "NATS_STREAM": self.stream,
                "NATS_KEEP_BYTES": str(64 * 1024**2),
                **given,
            }
        )

    @contextlib.asynccontextmanager
    async def published(self, **given: str) -> AsyncIterator[Publisher]:
        """Publish, and leave the stream to others at the end."""
        one = Publisher(self.settings(**given))
        task = asyncio.create_task(one.run())
        try:
            yield one
            await one.leave()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def edge(self, **given: str) -> contextlib.AbstractAsyncContextManager[Relay]:
        return Relay(NatsSource(self.settings(**given))).running()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Stream]:
        """Inspect the stream."""
        async with Stream.open(self.settings(), self.nats.url, "test") as stream:
            yield stream


@pytest.fixture
def feed(nats_server: NatsServer, database: Database) -> Feed:
    """Return a stream for the test's database."""
    return Feed(nats_server, database.dsn)


@pytest.fixture
def own_feed(own_nats: NatsServer, database: Database) -> Feed:
    """Return the same on a NATS server that can be stopped."""
    return Feed(own_nats, database.dsn)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have publishers say sooner that nothing has happened."""
    monkeypatch.setattr(turn, "STATE_SECONDS", 0.5)


@pytest.fixture
def notices_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections to NATS notice sooner that they are half open."""
    monkeypatch.setattr("relay.nats.connection.PING_SECONDS", 0.3)
    monkeypatch.setattr("relay.nats.consumer.BEAT_SECONDS", 0.3)


def follower_of(relay: Relay) -> Follower:
    assert isinstance(relay.feed, NatsSource)
    return relay.feed.follower


def is_active(one: Publisher) -> bool:
    return one._turn is not None and one._turn.feed.problem is None  # noqa: SLF001


def kinds(found: list[tuple[str, Any]]) -> list[str]:
    return [kind for kind, _ in found]


@each_nats_server
async def test_a_client_of_an_edge_is_sent_what_one_of_the_database_is(feed: Feed, database: Database) -> None:
    """The board first, and then each kind of message, of any writer, as the guide says."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    async with (
        feed.published(),
        feed.edge() as near,
        Relay(database.dsn).running() as far,
        Client.to(near.url) as one,
        Client.to(far.url) as other,
    ):
        assert await one.subscribe("default") == await other.subscribe("default")
        for statement, expected in (
            ("insert into tasks (id, title) values ('b', 'B'), ('c', 'C')", ["task.created", "task.created"]),
            ("update tasks set lane = 'todo', estimated_hours = 2.50 where id = 'b'", ["task.moved", "task.updated"]),
            ("update tasks set board_id = 'elsewhere' where id = 'c'", ["task.deleted"]),
            ("delete from tasks where id = 'a'", ["task.deleted"]),
            ("update tasks set id = 'd' where id = 'b'", ["task.deleted", "task.created"]),
            ("truncate tasks", ["board.sync"]),
        ):
            database.execute(statement)
            messages = [await one.receive() for _ in expected]
            assert kinds(messages) == expected
            assert messages == [await other.receive() for _ in expected]


@each_nats_server
async def test_a_client_goes_from_an_edge_to_the_database_and_back_with_its_cursor(
    feed: Feed, database: Database
) -> None:
    """Each time it is sent what it missed, once, and no board."""
    async with feed.published(), feed.edge() as near, Relay(database.dsn).running() as far:
        cursor, tasks = await start(near)
        for number, relay in enumerate((far, near, far, near, near)):
            database.execute("insert into tasks (id, title) values (%s, 'T')", f"t{number}")
            async with Client.to(relay.url) as client:
                found = await client.resume("default", cursor, tasks)
                while not found:  # an edge may hear of it later
                    found = await client.receive_batch()
                assert kinds(found) == ["task.created"]
                assert client.cursor is not None
                cursor, tasks = client.cursor, client.tasks
        assert tasks.keys() == {f"t{number}" for number in range(5)}


async def test_a_cursor_that_is_ahead_of_an_edge_waits_for_it(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may come from a relay that was faster; it is not sent the board for that."""
    held = asyncio.Event()
    pass_on = Follower._pass_on  # noqa: SLF001
    late: dict[int, Any] = {}

    def hold_back(self: Follower, hub: Any, entries: Any) -> None:
        if held.is_set():
            pass_on(self, hub, [*(late | {each.sequence: each for each in entries}).values()])
            late.clear()
        else:
            late.update({each.sequence: each for each in entries})

    async with (
        feed.published(),
        feed.edge() as near,
        Relay(database.dsn).running() as far,
        Client.to(near.url) as follower,  # or the edge would not be sent what is held back
    ):
        await follower.subscribe("default")
        cursor, tasks = await start(near)
        monkeypatch.setattr(Follower, "_pass_on", hold_back)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        async with Client.to(far.url) as client:
            await client.resume("default", cursor, tasks)
            assert client.cursor is not None
            cursor, tasks = client.cursor, client.tasks
        async with Client.to(near.url) as client:
            resuming = asyncio.create_task(client.resume("default", cursor, tasks))
            await until(lambda: bool(near.hub._resuming))  # noqa: SLF001  # it waits
            held.set()
            assert await resuming == []
            database.execute("insert into tasks (id, title) values ('b', 'B')")
            assert kinds(await client.receive_batch()) == ["task.created"]


async def test_of_two_publishers_one_stands_by_until_the_other_leaves(feed: Feed, database: Database) -> None:
    """Clients notice nothing: each row comes once, and no board."""
    async with feed.published() as one:
        await until(lambda: is_active(one))
        async with feed.published() as other, feed.edge() as near, Client.to(near.url) as client:
            await client.subscribe("default")
            assert await client.until_last(database) == []
            await until(lambda: other._standing_by)  # noqa: SLF001
            await one.leave()
            await until(lambda: is_active(other))
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert kinds(await client.until_last(database)) == ["task.created"]


@each_nats_server
async def test_of_two_publishers_that_are_active_at_once_one_is_refused(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetStream refuses a publisher that is wrong about the stream's end: nothing comes twice or reordered."""
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.subscribe("default")

        async def believe_so(_: Lead) -> bool:
            return True

        monkeypatch.setattr(Lead, "has", believe_so)
        with structlog.testing.capture_logs() as lines:
            async with feed.published() as other:
                await until(lambda: is_active(other))
                # Until both have wanted to append at once, which each change gives them a chance to.
                written: list[str] = []
                while not refused(lines) and len(written) < 500:
                    written.append(f"t{len(written)}")
                    await asyncio.to_thread(
                        database.execute, "insert into tasks (id, title) values (%s, 'T')", written[-1]
                    )
                found = await client.until_last(database)
        # Where both go on to believe so, the stream may begin again, with a board.sync.
        created = [task["id"] for kind, task in found if kind == "task.created"]
        assert created == [each for each in written if each in set(created)]
        assert {task for task in client.tasks if not task.startswith("last")} == set(written)
        assert refused(lines)


def refused(lines: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the stream has refused a publisher's entry."""
    return any("another publisher has appended" in line.get("problem", "") for line in lines)


async def test_a_publisher_that_stands_still_or_has_no_postgres_loses_the_lead(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres ends the session of one that says nothing; another goes on, and nothing comes twice."""
    monkeypatch.setattr(lead, "LEAD_SECONDS", 1.0)
    proxy_to = psycopg.conninfo.conninfo_to_dict(database.dsn)
    async with (
        Proxy("127.0.0.1", int(str(proxy_to["port"]))) as proxy,
        feed.published(DATABASE_URL=proxy.through(database.dsn)) as one,
        feed.edge() as near,
        Client.to(near.url) as client,
    ):
        await client.resume("default", None)
        proxy.freeze()  # to Postgres, one that is stopped is no different
        async with feed.published() as other:
            await until(lambda: is_active(other))
            database.execute("insert into tasks (title) values ('T')")
            assert kinds(await client.receive_batch()) == ["task.created"]
            await until(lambda: one._turn is None)  # noqa: SLF001
            assert (await one.status()).problem


@pytest.mark.parametrize("written", [0, 1, 3, 4])
async def test_a_batch_that_was_interrupted_is_published_again(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Wherever its publisher was stopped, each row comes once, also to a client that resumes."""
    append = Stream.append
    boards = ("a", "b", "c")

    async def be_interrupted(self: Stream, entries: Sequence[Encoded], last: int) -> int:
        if sum(isinstance(each.entry, Part) for each in entries) < len(boards):
            return await append(self, entries, last)
        monkeypatch.setattr(Stream, "append", append)
        await append(self, entries[:written], last)
        raise StreamError("interrupted by the test")

    async with feed.published(), feed.edge() as near, contextlib.AsyncExitStack() as stack:
        cursor, tasks = await start(near, "b")
        clients = {board: await stack.enter_async_context(Client.to(near.url)) for board in boards}
        for board, client in clients.items():
            await client.subscribe(board)
        monkeypatch.setattr(Stream, "append", be_interrupted)
        database.execute(
            "insert into tasks (id, board_id, title) select b, b, 'T' from unnest(%s::text[]) b", [*boards]
        )
        for board, client in clients.items():
            assert [task["id"] for _, task in await client.until_last(database, board)] == [board]
        async with Client.to(near.url) as late:
            assert kinds(await late.resume("b", cursor, tasks)) == ["task.created"] * 2


async def test_a_large_batch_that_was_interrupted_is_made_up_for_by_the_board(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has a part of it already is sent the board, and the reason."""
    append = Stream.append

    async def be_interrupted(self: Stream, entries: Sequence[Encoded], last: int) -> int:
        if not any(isinstance(each.entry, Part) for each in entries):
            return await append(self, entries, last)
        monkeypatch.setattr(Stream, "append", append)
        ends = next(number for number, (entry, _) in enumerate(entries) if isinstance(entry, Commit))
        await append(self, entries[:ends], last)
        await until(lambda: follower_of(near)._in_parts)  # noqa: SLF001
        raise StreamError("interrupted by the test")

    monkeypatch.setattr(assembly, "GATHER_BYTES", 1000)
    monkeypatch.setattr(relay_stream, "ENTRY_BYTES", 1000)
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        monkeypatch.setattr(Stream, "append", be_interrupted)
        database.execute("insert into tasks (title) select 'T' from generate_series(1, 30)")
        while client.reason is None:
            await client.receive_batch()
        assert (client.reason, len(client.tasks)) == ("batch_cut_short", 30)


@each_nats_server
async def test_a_batch_in_parts_comes_whole_and_once(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a thousand rows of one transaction come in order, to clients that follow and that resume."""
    monkeypatch.setattr(assembly, "GATHER_BYTES", 10_000)
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        cursor, tasks = await start(near)
        await client.subscribe("default")
        database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 1500) i")
        found = await client.until_last(database)
        assert [task["id"] for _, task in found] == [f"t{i}" for i in range(1, 1501)]
        async with Client.to(near.url) as late:
            assert len(await late.resume("default", cursor, tasks)) == 1501


async def test_nats_may_be_stopped_and_started(own_feed: Feed, database: Database) -> None:
    """What is committed meanwhile comes once, and no board."""
    feed = own_feed
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            feed.nats.stop(signum)
            database.execute("insert into tasks (title) values ('T')")
            await until(lambda: near.feed.problem is not None)
            feed.nats.start()
            assert kinds(await client.receive_batch()) == ["task.created"]
        await until(lambda: near.feed.problem is None)


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Yield three servers that this test alone uses."""
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    cluster = NatsCluster(tmp_path)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


async def test_a_cluster_may_lose_the_server_that_leads_the_stream(
    nats_cluster: NatsCluster, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others lead it after some seconds; what is committed meanwhile comes once, and no board."""
    monkeypatch.setattr("relay.nats.jetstream.ANSWER_SECONDS", 1.0)  # NATS drops what is asked while nobody leads
    feed = Feed(nats_cluster, database.dsn)
    async with feed.published(NATS_REPLICAS="3") as one, feed.edge() as near, Client.to(near.url) as client:
        await until(lambda: is_active(one))
        await client.resume("default", None)
        leader = await nats_cluster.leader(feed.stream)
        leader.stop(signal.SIGKILL)
        database.execute("insert into tasks (title) values ('T')")
        assert kinds(await client.receive_batch()) == ["task.created"]
        leader.start()
        database.execute("insert into tasks (title) values ('T')")
        assert kinds(await client.receive_batch()) == ["task.created"]


@pytest.mark.usefixtures("notices_silence")
async def test_an_edge_goes_on_when_its_link_was_half_open(feed: Feed, database: Database) -> None:
    """It notices the silence, connects again and misses nothing."""
    async with (
        feed.published(),
        Proxy("127.0.0.1", feed.nats.port) as proxy,
        feed.edge(SERVE_FROM=f"nats://127.0.0.1:{proxy.port}") as near,
        Client.to(near.url) as client,
    ):
        await client.resume("default", None)
        proxy.strand()
        database.execute("insert into tasks (title) values ('T')")
        assert kinds(await client.receive_batch()) == ["task.created"]


@pytest.mark.usefixtures("notices_silence")
@pytest.mark.parametrize("how", ["deleted", "written by a stranger"])
async def test_a_client_that_follows_a_stream_that_is_lost_is_sent_the_board_and_the_reason(
    feed: Feed, database: Database, how: str
) -> None:
    """Never is a client left with what nothing follows on."""
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        async with feed.nats.jetstream() as jetstream:
            if how == "deleted":
                await jetstream.delete_stream(feed.stream)
            else:
                await jetstream.publish(f"{feed.stream}.state", b"{}")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        while "a" not in client.tasks:
            await client.receive_batch()
        assert client.reason == "journal_pruned"
        database.execute("insert into tasks (id, title) values ('b', 'B')")
        while "b" not in client.tasks:
            assert "board.sync" not in kinds(await client.receive_batch())


async def test_an_entry_that_is_missing_is_never_passed_over(feed: Feed) -> None:
    """A reader that comes across it gets an error, and not what follows."""
    async with feed.published() as one, feed.opened() as stream, feed.nats.jetstream() as jetstream:
        await until(lambda: one._turn is not None and one._turn.writer.last >= 3)  # noqa: SLF001
        await jetstream.delete_msg(feed.stream, 2)
        first, *others = [each.data async for each in stream.read(1, 3)]
        reader = assembly.Assembly(decode_state(first))
        with pytest.raises(StreamBroken, match="step 3: expected 2"):
            assert [list(reader.take(decode(data))) for data in others] == []


@each_nats_server
async def test_a_full_stream_holds_up_no_writer_and_loses_nothing(feed: Feed, database: Database) -> None:
    """The journal keeps what JetStream does not take, the publisher says so, and then all of it comes."""
    async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        async with feed.nats.jetstream() as jetstream:
            info = (await jetstream.stream_info(feed.stream)).config
            await jetstream.update_stream(info, discard=api.DiscardPolicy.NEW, max_bytes=1024)
            await until(lambda: "JetStream refused" in str(one._problem))  # noqa: SLF001
            database.execute("insert into tasks (title) values ('T')")
            assert "JetStream refused" in str((await one.status()).problem)
            await jetstream.update_stream(info)
        assert kinds(await client.receive_batch()) == ["task.created"]
        assert client.reason is None


async def test_an_edge_sends_what_other_tables_say(feed: Feed, database: Database) -> None:
    """In its place among the other changes of a batch, and to clients that come back."""
    database.execute(
        "create table notes (task_id text references tasks on delete cascade, note text); "
        "select relay.extra('tasks', 'notes', 'notes', '{note}'); insert into tasks (id, title) values ('a', 'A')"
    )
    async with feed.published(), feed.edge() as edge:
        async with Client.to(edge.url) as client:
            await client.resume("default", None)
            database.execute("insert into notes values ('a', 'x'); update tasks set title = 'B' where id = 'a'")
            assert [data["changes"] for _, data in await client.receive_batch()][-1] == {"notes": ["x"]}
            cursor, held = client.cursor, client.tasks
        database.execute("insert into notes values ('a', 'y'); insert into tasks (id, title) values ('b', 'B')")
        async with Client.to(edge.url) as client:
            missed = await client.resume("default", cursor, held)
            while len(missed) < 2:
                missed += await client.receive_batch()
            assert {kind for kind, _ in missed} == {"task.created", "task.updated"}
            assert client.tasks["b"]["notes"] == []
            assert client.tasks["a"]["notes"] == ["x", "y"]


async def test_a_client_that_resumes_from_before_the_stream_is_sent_the_board_and_the_reason(
    feed: Feed, database: Database
) -> None:
    """The stream keeps what it is set to keep, and an edge that was away for longer notices."""
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        cursor, tasks = await start(near)
        await client.subscribe("default")
        database.execute("insert into tasks (title) values ('T')")
        await client.receive()
        async with feed.nats.jetstream() as jetstream:
            await jetstream.purge_stream(feed.stream, keep=1)
        await client.until_last(database)
        async with Client.to(near.url) as late:
            assert kinds(await late.resume("default", cursor, tasks)) == ["board.sync"]
            assert late.reason in {"journal_pruned", "too_much_missed"}


async def test_what_only_the_board_can_show_reaches_clients_of_an_edge(feed: Feed, database: Database) -> None:
    """TRUNCATE, resync and a new column send the board, with the reason, also to clients that resume across it."""
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        cursor, tasks = client.cursor, client.tasks
        for statement, reason in (
            ("truncate tasks", "truncate"),
            ("select relay.resync()", "resync"),
            ("alter table tasks add extra int default 7", "schema_changed"),
        ):
            database.execute(statement)
            assert kinds(await client.receive_batch()) == ["board.sync"]
            assert client.reason == reason
        async with Client.to(near.url) as late:
            assert kinds(await late.resume("default", cursor, tasks)) == ["board.sync"]
            assert late.reason == "schema_changed"


async def test_a_task_that_is_too_large_for_nats_is_shown_by_the_board(feed: Feed, database: Database) -> None:
    """NATS takes no message above a limit; a larger change makes the board be sent, in parts that it takes."""
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.subscribe("default")
        database.execute("insert into tasks (id, title) values ('a', repeat('x', 3000000))")
        assert kinds([await client.receive()]) == ["board.sync"]
        assert len(client.tasks["a"]["title"]) == 3_000_000


async def test_questions_that_are_too_long_together_are_asked_in_parts(feed: Feed, database: Database) -> None:
    """And answered in their order; one that is too long by itself is answered with no."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean language sql "
        "as $$ select board like 'yes%' $$"
    )
    names = [f"{'yes' if number % 3 else 'no'}{'x' * 100_000}" for number in range(20)]
    async with feed.published(), feed.edge() as near:
        await until(lambda: near.feed.proven)
        reconnects = near.feed.status(10).counts.reconnects
        async with asyncio.timeout(10):
            answers = await near.feed.may_read([({}, name) for name in [*names, "yes" * 400_000]])
        assert answers == [*(name.startswith("yes") for name in names), False]
        assert near.feed.status(10).counts.reconnects == reconnects


async def test_a_stream_that_takes_only_short_messages_has_short_entries(feed: Feed, database: Database) -> None:
    """Its administrator may have said so."""
    async with feed.nats.jetstream() as jetstream:
        subjects = [f"{feed.stream}.{kind}" for kind in ("board.*", "all", "state")]
        await jetstream.add_stream(name=feed.stream, subjects=subjects, max_msg_size=4096)
    async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
        await client.subscribe("default")
        database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 100) i")
        assert len(await client.until_last(database)) == 100
        database.execute("insert into tasks (id, title) values ('long', repeat('x', 5000))")
        assert kinds([await client.receive()]) == ["board.sync"]
        assert (await one.status()).problem is None


async def test_nats_may_take_only_short_messages(tmp_path: Path, database: Database) -> None:
    """Changes and boards come in as many as it takes."""
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    database.execute("insert into tasks (id, title) select 'm' || i, repeat('x', 1000) from generate_series(1, 50) i")
    nats = NatsServer(tmp_path, "max_payload: 8192").start()
    try:
        feed = Feed(nats, database.dsn)
        async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
            await client.subscribe("default")
            assert len(client.tasks) == 50
            database.execute("update tasks set title = title || 'y'")
            assert len(await client.until_last(database)) == 50
            assert (await one.status()).problem is None
    finally:
        nats.stop()


@pytest.mark.parametrize("fault", [Refused("this entry is not taken"), ValueError("nobody expected this")], ids=repr)
async def test_a_batch_that_is_refused_twice_is_not_written_a_third_time(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Health says so meanwhile, without a gap; then everybody is sent the board, and changes come again."""
    append = Stream.append
    refusals = 0

    async def refuse(self: Stream, entries: Sequence[Encoded], last: int) -> int:
        nonlocal refusals
        if any(b"poison" in data for _, data in entries):
            refusals += 1
            raise fault
        return await append(self, entries, last)

    async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        monkeypatch.setattr(Stream, "append", refuse)
        database.execute("insert into tasks (id, title) values ('poison', 'T')")
        assert kinds(await client.receive_batch()) == ["board.sync"]
        assert (client.reason, [*client.tasks], refusals) == ("journal_pruned", ["poison"], 2)
        unready = str((await one.status()).unready)
        assert "again and again: " in unready
        assert str(fault) in unready
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert kinds(await client.receive_batch()) == ["task.created"]


@pytest.mark.usefixtures("notices_silence")
async def test_a_publisher_that_is_cut_off_from_nats_costs_an_edge_no_question(feed: Feed) -> None:
    """Boards come from the one that took over, at once, while NATS still believes that the other listens."""
    async with (
        Proxy("127.0.0.1", feed.nats.port) as proxy,
        feed.published(PUBLISH_TO=f"nats://127.0.0.1:{proxy.port}") as one,
        feed.edge() as near,
    ):
        await until(lambda: is_active(one))
        async with feed.published() as other, Client.to(near.url) as waiting:
            await until(lambda: other._standing_by)  # noqa: SLF001
            proxy.freeze()
            await waiting.send({"type": "subscribe", "boardId": "default"})
            await until(lambda: is_active(other))
            async with asyncio.timeout(4):
                await waiting.receive()
                for number in range(16):
                    async with Client.to(near.url) as client:
                        await client.subscribe(f"board-{number}")
            proxy.thaw()


async def test_a_board_whose_clients_have_left_is_not_a_problem(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients left before any publisher answered."""
    monkeypatch.setattr(source, "WANTED_SECONDS", 0.2)
    asked = asyncio.Event()

    async def be_silent(*_: Any) -> None:
        asked.set()

    async with feed.published(), feed.edge() as near:
        await until(lambda: near.feed.proven)
        monkeypatch.setattr(Questions, "ask", be_silent)
        async with Client.to(near.url) as client:
            await client.send({"type": "subscribe", "boardId": "default"})
            await asked.wait()
            await until(lambda: "are wanted" in str(near.feed.trouble(10)))
        await until(lambda: near.feed.trouble(10) is None)


async def test_an_edge_goes_on_after_a_fault_that_nobody_expected(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins again at the stream's last state, and says so to all that follow a board."""
    pass_on = Follower._pass_on  # noqa: SLF001

    def fail(self: Follower, hub: Any, entries: Any) -> None:
        if any(b"poison" in data for _, data, _ in entries):
            monkeypatch.setattr(Follower, "_pass_on", pass_on)
            raise ValueError("nobody expected this")
        pass_on(self, hub, entries)

    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        await client.resume("default", None)
        monkeypatch.setattr(Follower, "_pass_on", fail)
        database.execute("insert into tasks (id, title) values ('poison', 'T')")
        while "poison" not in client.tasks:
            await client.receive_batch()
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        while "a" not in client.tasks:
            await client.receive_batch()
        assert client.reason == "journal_pruned"


async def test_a_slow_board_is_a_problem_of_the_edge_only_if_no_board_comes(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asked every edge for one slow board made all of them unready."""
    monkeypatch.setattr(questions, "WORKING_SECONDS", 0.05)
    monkeypatch.setattr(source, "WANTED_SECONDS", 0.2)
    monkeypatch.setattr(source, "SLOWEST_SECONDS", 0.6)
    begin_read = Answers.begin_read
    answers = asyncio.Event()

    def hold_back(self: Any, name: str) -> bool:
        return answers.is_set() and begin_read(self, name)

    monkeypatch.setattr(Answers, "begin_read", hold_back)
    async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
        await until(lambda: near.feed.proven)
        assert near.feed.trouble(10) is None
        await client.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: "default" in near.feed.status(10).failing)
        assert near.feed.status(10).unready is None
        await until(lambda: "1 boards are wanted and not here" in str(near.feed.trouble(10)))
        answers.set()
        assert one._turn  # noqa: SLF001
        one._turn.feed.ask("default")  # noqa: SLF001
        await client.receive()
        assert (near.feed.trouble(10), near.feed.status(10).failing) == (None, {})


async def test_a_board_that_the_publisher_cannot_read_is_an_error_of_its_subscribers(
    feed: Feed, database: Database
) -> None:
    """Those of an edge learn it as those of a relay do, once, and then get the board; others are served meanwhile."""
    database.execute("create table other (id int primary key, board_id int not null, lane text not null)")
    database.execute("insert into other values (1, 7, 'todo'); select relay.watch('other')")
    async with (
        feed.published() as one,
        feed.edge() as near,
        Client.to(near.url) as client,
        Client.to(near.url) as too,
    ):
        await until(lambda: near.feed.trouble(10) is None and near.feed.proven)
        database.execute("revoke select on other from relay_reader")
        await client.send({"type": "subscribe", "boardId": "7"})
        kind, data = await client.receive()
        assert (kind, data["code"], data["boardId"]) == ("error", "board_unavailable", "7")
        assert list((await one.status()).failing) == ["7"]
        assert (await too.subscribe("default"))[0] == "board.sync"
        database.execute("grant select on other to relay_reader")
        assert (await client.receive())[0] == "board.sync"
        assert (await one.status()).failing == {}


async def test_a_board_that_the_database_writes_otherwise_is_refused_at_an_edge(
    feed: Feed, database: Database
) -> None:
    """For good: it is not asked for again."""
    database.execute("select relay.unwatch('tasks')")
    database.execute("create table other (id int primary key, board_id int, lane text); select relay.watch('other')")
    async with feed.published() as one, feed.edge() as near, Client.to(near.url) as client:
        await until(lambda: near.feed.trouble(10) is None and near.feed.proven)
        await client.send({"type": "subscribe", "boardId": "007"})
        kind, data = await client.receive()
        assert (kind, data["code"], data["boardId"]) == ("error", "invalid_board_id", "007")
        assert "expected '7'" in data["message"]
        assert (near.hub.subscriptions, dict((await one.status()).failing)) == (0, {})
        assert isinstance(near.feed, NatsSource)
        assert near.feed.boards._again_at == {}  # noqa: SLF001  # anybody can invent such names


async def test_edges_share_the_reads_of_boards(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients come to however many edges at once, a board is read a few times."""
    reads: list[str] = []
    board = Boards.read

    async def counted(self: Boards, name: str, seconds: float) -> Any:
        reads.append(name)
        return await board(self, name, seconds)

    async def follow(relay: Relay) -> None:
        async with Client.to(relay.url) as client:
            await client.subscribe("default")

    monkeypatch.setattr(Boards, "read", counted)
    async with feed.published(), feed.edge() as one, feed.edge() as other:
        await until(lambda: one.feed.problem is None and other.feed.problem is None)
        await asyncio.gather(*(follow(relay) for relay in (one, other) for _ in range(20)))
        assert 1 <= len(reads) <= 4


async def test_a_board_that_is_read_for_long_holds_up_no_other(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher reads boards side by side; a question during the read of a board waits for another read of it."""
    board = Boards.read
    reads: list[str] = []
    go_on = asyncio.Event()

    async def take_long(self: Boards, name: str, seconds: float) -> Any:
        reads.append(name)
        first = reads == ["slow"]
        found = await board(self, name, seconds)
        if first:
            await go_on.wait()
        return found

    def asked(one: Publisher) -> int:
        assert one._turn  # noqa: SLF001
        return one._turn.answers.asking("slow")  # noqa: SLF001

    monkeypatch.setattr(Boards, "read", take_long)
    async with (
        feed.published() as one,
        feed.edge() as near,
        feed.edge() as other,
        contextlib.AsyncExitStack() as stack,
    ):
        await until(lambda: near.feed.proven and other.feed.proven)
        first, late, quick = [await stack.enter_async_context(Client.to(it.url)) for it in (near, other, other)]
        await first.send({"type": "subscribe", "boardId": "slow"})
        await until(lambda: reads == ["slow"])
        await quick.subscribe("quick")
        database.execute("insert into tasks (id, board_id, title) values ('a', 'slow', 'A'), ('b', 'quick', 'B')")
        await quick.receive()  # so this edge has passed both on
        await late.send({"type": "subscribe", "boardId": "slow"})
        await until(lambda: asked(one) == 2)
        go_on.set()
        assert kinds([await late.receive()]) == ["board.sync"]
        assert late.tasks.keys() == {"a"}
        assert reads.count("slow") == 2


async def test_boards_that_are_read_for_long_hold_up_no_other_at_an_edge(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are."""
    ask = Questions.ask
    waiting = 0

    async def take_long(self: Questions, place: str, what: str, question: bytes) -> tuple[bytes, bytes] | None:
        nonlocal waiting
        if question.startswith(b"slow"):
            waiting += 1
            await asyncio.Event().wait()
        return await ask(self, place, what, question)

    monkeypatch.setattr(Questions, "ask", take_long)
    monkeypatch.setattr(boards, "LONG_SECONDS", 0.05)
    async with feed.published(), feed.edge() as near, Client.to(near.url) as slow, Client.to(near.url) as quick:
        for number in range(3 * boards.ASKED_AT_ONCE):
            await slow.send({"type": "subscribe", "boardId": f"slow{number}"})
        await until(lambda: waiting == 3 * boards.ASKED_AT_ONCE)
        assert (await quick.subscribe("quick"))[0] == "board.sync"


async def test_a_late_answer_to_a_client_that_has_left_is_not_for_one_that_came_since(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is older than what has been passed on since: the new client would miss that."""
    ask = Questions.ask
    asked: list[bytes] = []
    answered, late = asyncio.Event(), asyncio.Event()

    async def be_late(self: Questions, place: str, what: str, question: bytes) -> tuple[bytes, bytes] | None:
        asked.append(question)
        answer = await ask(self, place, what, question)
        if asked == [b"default"]:
            answered.set()
            await late.wait()
        return answer

    async with feed.published(), feed.edge() as near, contextlib.AsyncExitStack() as stack:
        first, other, second = [await stack.enter_async_context(Client.to(near.url)) for _ in range(3)]
        await other.subscribe("other")
        monkeypatch.setattr(Questions, "ask", be_late)
        await first.send({"type": "subscribe", "boardId": "default"})
        await answered.wait()
        await first.send({"type": "unsubscribe", "boardId": "default"})
        await until(lambda: "default" not in near.hub)
        database.execute("insert into tasks (id, board_id, title) values ('a', 'default', 'A'), ('b', 'other', 'B')")
        await other.receive()  # so the edge has passed it on
        await second.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: "default" in near.hub)
        late.set()
        await second.receive()
        assert second.tasks.keys() == {"a"}


async def test_the_database_decides_which_clients_may_read_a_board_of_an_edge(feed: Feed, database: Database) -> None:
    """An edge asks relay.may_read through the publisher."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean language sql "
        "as $$ select claims->>'sub' = board $$"
    )
    async with feed.published(), feed.edge() as near:
        async with asyncio.timeout(10):
            assert await near.feed.may_read([({"sub": "a"}, "a"), ({"sub": "a"}, "b")]) == [True, False]


async def test_an_edge_says_what_keeps_changes_from_coming(feed: Feed) -> None:
    """No stream; no publisher; a publisher without Postgres: each in one line, and nothing once all is well."""
    async with feed.edge() as near:
        await until(lambda: "has no stream" in str(near.feed.trouble(0)))
        async with feed.published():
            await until(lambda: near.feed.trouble(10) is None and near.feed.proven)
        follower_of(near).last_heard -= 100  # as if so long had passed
        assert "nothing has come from a publisher for 1" in str(near.feed.trouble(10))
        without_install = psycopg.conninfo.make_conninfo(feed.dsn, dbname="postgres")
        async with feed.published(DATABASE_URL=without_install):
            await until(lambda: "the publisher says: " in str(near.feed.trouble(10)))


async def test_an_edge_that_stops_passes_on_what_is_in_the_stream(feed: Feed) -> None:
    """It reads to the stream's end before it disconnects its clients."""
    async with feed.published(), feed.edge() as near:
        await until(lambda: near.feed.proven)
        assert await near.feed.catch_up()


async def test_publishing_another_database_to_a_stream_breaks_its_continuity(
    feed: Feed, database: Database, server: Server
) -> None:
    """Clients are sent the boards of the other, with the reason, not a mixture."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    with temporary_database(server) as dsn:
        install(dsn)
        async with feed.edge() as near, Client.to(near.url) as client:
            async with feed.published():
                await client.resume("default", None)
                assert client.tasks.keys() == {"a"}
            async with feed.published(DATABASE_URL=dsn):
                assert kinds(await client.receive_batch()) == ["board.sync"]
                assert (client.reason, client.tasks) == ("epoch_changed", {})


async def test_a_board_that_was_wanted_when_the_connection_ended_comes_over_the_next(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its changes were not delivered yet, so that its read had not begun."""
    until_has, ended = Deliveries.until_has, False

    async def has(deliveries: Deliveries, boards: Iterable[str], hub: Sink) -> None:
        nonlocal ended
        if not ended:
            ended = True
            raise StreamError("the connection to NATS has ended")
        await until_has(deliveries, boards, hub)

    monkeypatch.setattr(Deliveries, "until_has", has)
    async with feed.published(), feed.edge() as near, Client.to(near.url) as client:
        assert (await client.subscribe("default"))[0] == "board.sync"
    assert ended


async def test_a_question_that_waits_to_be_asked_again_when_the_connection_ends_is_asked_over_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that waits for the answer is let in then."""
    monkeypatch.setattr(permissions, "ASK_AGAIN_SECONDS", 60.0)
    asked = permissions.Permissions(Mock(state=Mock(asked_at="place")))
    silent = Mock(questions=Mock(ask=AsyncMock(return_value=None)))
    answering = Mock(questions=Mock(ask=AsyncMock(return_value=(b"[true]", b""))))
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(asked.may_read([({}, "default")]))
        connection = tasks.create_task(asked.run(silent))
        await until(lambda: silent.questions.ask.await_count == 1)
        connection.cancel()
        connection = tasks.create_task(asked.run(answering))
        assert await answer == [True]
        connection.cancel()

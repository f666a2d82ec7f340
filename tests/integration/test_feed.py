"""The feed through faults of Postgres and of the way to it: what subscribers see of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Container, Iterable, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from relay.model.snapshot import Snapshot
from relay.model.transaction import Transaction
from relay.postgres import follower, housekeeping, journal, schedule, session
from relay.postgres.connection import Connection, connect
from relay.postgres.decode import Entry, Watch
from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.faults import FeedError
from relay.postgres.install import text
from relay.postgres.journal import Journal
from relay.postgres.session import Session
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.proxy import Proxy
from tests.servers import MUTE, Database, Server, temporary_database


@pytest.fixture
async def behind_proxy(database: Database, proxy: Proxy) -> AsyncIterator[Relay]:
    """Yield a relay whose way to Postgres can be cut."""
    async with Relay(proxy.through(database.dsn)).running() as relay:
        yield relay


def write(dsn: str, task_id: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into tasks (id, title) values (%s, 'T')", (task_id,))


async def test_killed_backend_costs_only_a_pause(database: Database, relay: Relay, client: Client) -> None:
    """When its sessions are killed the relay goes on after what it had read: no sync, no gap, no duplicate."""
    for number in range(5):
        database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'relay' and datname = current_database()"
        )
        database.execute("insert into tasks (id, title) values (%s, 'T')", f"t{number}")

    assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [
        ("task.created", f"t{number}") for number in range(5)
    ]
    assert relay.feed.problem is None


async def test_cut_network_costs_only_a_pause(database: Database, behind_proxy: Relay, proxy: Proxy) -> None:
    """What was committed while the way was cut arrives when it is restored, and health tells meanwhile."""
    async with Client.to(behind_proxy.url) as client:
        await client.subscribe("default")
        await proxy.cut()
        await until(lambda: behind_proxy.feed.problem is not None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await proxy.restore()

        assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.created", "a")]
        assert behind_proxy.feed.problem is None


async def test_relay_that_starts_first_waits_for_postgres(database: Database, proxy: Proxy) -> None:
    """A client that subscribes while Postgres is away gets its board when it is there."""
    await proxy.cut()
    async with Relay(proxy.through(database.dsn)).running() as relay, Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: relay.feed.problem not in {None, "not connected yet"})
        await proxy.restore()

        assert (await client.receive())[0] == "board.sync"


async def test_notification_brings_the_change(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that would read by itself only in ten minutes has the change when it is notified."""
    monkeypatch.setattr(schedule, "READ_SECONDS", 600.0)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        database.execute("insert into tasks (id, title) values ('a', 'A')")

        assert [data["id"] for _, data in await client.until_last(database)] == ["a"]


async def test_shape_is_compared_only_where_something_was_committed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle database stays idle; a changed column is noticed all the same."""
    monkeypatch.setattr(schedule, "READ_SECONDS", 0.01)
    monkeypatch.setattr(follower, "SHAPE_SECONDS", 0.0)
    shape, wait = Session.shape, schedule.PollSchedule.wait
    reads = 0

    async def compared(session: Session) -> str:
        nonlocal reads
        reads = 0
        return await shape(session)

    def read(it: schedule.PollSchedule, now: float) -> float:
        nonlocal reads
        reads += 1
        return wait(it, now)

    monkeypatch.setattr(Session, "shape", compared)
    monkeypatch.setattr(schedule.PollSchedule, "wait", read)
    async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        await until(lambda: reads > 20)
        database.execute("alter table tasks add extra text")

        assert (await client.receive())[0] == "board.sync"


async def test_feed_that_is_cancelled_as_its_session_ends_stops(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that loses the lead with its session must not go on to answer edges."""
    fails, ending, ends = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def fail(_: Session) -> None:
        await fails.wait()
        raise FeedError("the session has ended")

    async def take_time_to_end(_: Session) -> None:
        try:
            await fails.wait()
            await asyncio.sleep(60)
        finally:
            ending.set()
            await ends.wait()

    monkeypatch.setattr(housekeeping, "prune", fail)
    monkeypatch.setattr(housekeeping, "check_links", take_time_to_end)
    async with Relay(database.dsn).running():
        fails.set()
        await ending.wait()
        asyncio.get_running_loop().call_later(0.1, ends.set)


async def test_relay_prunes_the_journal(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed longer ago than the journal keeps goes, without anybody else's doing."""
    monkeypatch.setattr(housekeeping, "PRUNE_SECONDS", 0.05)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("update relay.settings set keep_age = '0'")
    async with Relay(database.dsn).running():
        await until(lambda: database.fetch("select from relay.journal where op = 'R'") == [])


async def test_lost_notification_costs_no_change(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of which the relay was not notified arrives all the same, when it reads by itself."""
    monkeypatch.setattr(schedule, "READ_SECONDS", 0.05)
    with database.connect() as listener:
        listener.execute("listen relay")
        database.execute(MUTE)
        database.execute("insert into tasks (id, title) values ('a', 'A')")

        assert (await client.receive())[1]["id"] == "a"
        assert [one.payload for one in listener.notifies(timeout=0) if "probe" not in one.payload] == []
    assert relay.feed.problem is None


async def test_clean_restart_of_postgres_costs_only_a_pause(
    own_server: EmbeddedPostgres, on_own_server: Relay
) -> None:
    """After a fast stop and a start the relay goes on where it was."""
    async with Client.to(on_own_server.url) as client:
        await client.subscribe("default")
        await asyncio.to_thread(own_server.stop, "fast")
        await until(lambda: on_own_server.feed.problem is not None)
        await asyncio.to_thread(own_server.start)
        await asyncio.to_thread(write, own_server.dsn, "a")

        kind, data = await client.receive()
    assert (kind, data["id"]) == ("task.created", "a")


async def test_crash_of_postgres_causes_a_sync(own_server: EmbeddedPostgres, on_own_server: Relay) -> None:
    """Crash recovery may lose what was seen already; so everybody is sent the board again."""
    async with Client.to(on_own_server.url) as client:
        await client.subscribe("default")
        await asyncio.to_thread(write, own_server.dsn, "a")
        await client.receive()
        await asyncio.to_thread(own_server.stop, "immediate")
        await asyncio.to_thread(own_server.start)

        kind, _ = await client.receive()
    assert kind == "board.sync"
    assert set(client.tasks) == {"a"}


async def test_position_that_was_pruned_away_causes_a_sync(
    database: Database, behind_proxy: Relay, proxy: Proxy
) -> None:
    """A relay that was away for longer than the journal is kept says so with a sync."""
    async with Client.to(behind_proxy.url) as client:
        await client.subscribe("default")
        await proxy.cut()
        await until(lambda: behind_proxy.feed.problem is not None)
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        database.execute("select relay.prune('0')")
        await proxy.restore()

        kind, _ = await client.receive()
    assert kind == "board.sync"
    assert set(client.tasks) == {"a"}


@pytest.mark.parametrize("trigger", ["relay_change", "relay_truncate"])
async def test_disabled_trigger_is_noticed(database: Database, monkeypatch: pytest.MonkeyPatch, trigger: str) -> None:
    """Health does not stay green while nothing is journalled."""
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.05)
    async with Relay(database.dsn).running() as relay:
        await until(lambda: relay.feed.problem is None)
        database.execute(f"alter table tasks disable trigger {trigger}")
        await until(lambda: "triggers of public.tasks are missing or disabled" in str(relay.feed.problem))
        database.execute("select relay.watch('tasks')")

        await until(lambda: relay.feed.problem is None)


async def test_health_says_that_what_replication_applies_is_not_shown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load with `--disable-triggers` leaves the triggers enabled for ordinary sessions only."""
    monkeypatch.setattr(housekeeping, "INSPECT_SECONDS", 0.05)
    async with Relay(database.dsn).running() as relay:
        await until(lambda: relay.feed.problem is None)
        database.execute("alter table tasks disable trigger all; alter table tasks enable trigger all")
        await until(lambda: "run relay sql watch public.tasks" in str(relay.feed.status(1).incomplete))
        database.execute("select relay.watch('tasks')")

        await until(lambda: not relay.feed.status(1).incomplete)


async def test_what_the_journal_lacks_is_noticed_when_the_rest_fits_no_history(
    database: Database, relay: Relay
) -> None:
    """Two tasks that were before a transaction where one can have been: the board comes, and says why."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        database.execute("""
            begin;
            update tasks set title = 'B';
            update tasks set title = 'C';
            delete from relay.journal where ctid = (select max(ctid) from relay.journal);
            update tasks set title = 'D';
            commit
        """)
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]

        assert (client.reason, client.tasks["a"]["title"]) == ("changes_missing", "D")


async def test_resync_sends_every_board_again(database: Database, client: Client) -> None:
    """What fired no trigger is shown after relay.resync()."""
    database.execute("alter table tasks disable trigger all")
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("alter table tasks enable trigger all")
    database.execute("select relay.resync()")

    assert (await client.receive())[0] == "board.sync"
    assert set(client.tasks) == {"a"}


async def test_unwatch_and_watch_cause_syncs(database: Database, relay: Relay, client: Client) -> None:
    """A board empties when its table is watched no more, and fills when it is again."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.receive()
    database.execute("select relay.unwatch('tasks')")
    assert (await client.receive())[0] == "board.sync"
    assert client.tasks == {}
    assert "relay sql watch" in str(relay.feed.problem)
    database.execute("select relay.watch('tasks')")

    assert (await client.receive())[0] == "board.sync"
    assert set(client.tasks) == {"a"}
    await until(lambda: relay.feed.problem is None)


async def test_changed_watch_causes_a_sync(database: Database, client: Client) -> None:
    """A column that is hidden from now on disappears from boards that were synced before."""
    database.execute("insert into tasks (id, title, description) values ('a', 'A', 'secret')")
    await client.receive()
    database.execute("select relay.watch('tasks', hidden => '{description}')")
    assert (await client.receive())[0] == "board.sync"

    assert "description" not in client.tasks["a"]


async def test_reinstall_causes_a_sync(database: Database, relay: Relay, client: Client) -> None:
    """After uninstall and install the old position means nothing, and the relay knows."""
    for name in ("uninstall", "install"):
        database.execute(text(name))
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("select relay.watch('tasks')")
    while "a" not in client.tasks:
        assert (await client.receive())[0] == "board.sync"

    await until(lambda: relay.feed.problem is None)


async def test_row_security_that_would_hide_rows_is_reported(database: Database, relay: Relay) -> None:
    """Where policies would filter a board, nobody is shown a part of it, until the reader is above them."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("alter table tasks enable row level security")
    try:
        async with Client.to(relay.url) as client:
            await client.send({"type": "subscribe", "boardId": "default"})
            assert (await client.receive())[0] == "error"
            database.execute("alter role relay_reader bypassrls")

            assert (await client.receive())[0] == "board.sync"
            assert set(client.tasks) == {"a"}
    finally:
        database.execute("alter role relay_reader nobypassrls")


async def test_large_board_holds_up_no_change(database: Database, relay: Relay) -> None:
    """A board of many tasks is sent whole, and joins the live changes like any."""
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 20000) i")
    async with Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "default"})
        database.execute("update tasks set title = 'U' where id = 't1'")
        await client.until_last(database)

        assert len(client.tasks) == 20001
        assert client.tasks["t1"]["title"] == "U"


async def test_transactions_of_boards_that_nobody_follows_are_not_decoded(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost the relay little; and a board that is followed later shows what they did."""
    decoded: list[str | None] = []
    images = Entry.images

    def noted(entry: Entry, watch: Watch, boards: Container[str | None]) -> Any:
        decoded.append(entry.new_board)
        return images(entry, watch, boards)

    monkeypatch.setattr(Entry, "images", noted)
    database.execute(
        "insert into tasks (id, board_id, title) select 'o' || i, 'other', 'T' from generate_series(1, 9) i"
    )
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    assert (await client.receive())[1]["id"] == "a"
    assert decoded == ["default"]
    async with Client.to(relay.url) as other:
        await other.subscribe("other")
        assert len(other.tasks) == 9


WANDERING = """
    create function wander() returns trigger language plpgsql as $$
    begin
        if pg_trigger_depth() = 1 and new.board_id = 'x' then
            foreach new.board_id in array '{y,default,x,z,default}'::text[] loop
                update tasks set board_id = new.board_id, title = title || '+' where id = new.id;
            end loop;
        end if;
        return null;
    end $$;
    create trigger a_wander after update on tasks for each row execute function wander()
"""
"""Its entries come before that of the statement that fires it, and lead over boards that nobody follows."""


async def test_way_over_boards_that_nobody_follows_is_one_update(database: Database, client: Client) -> None:
    """Of a row that left a board and came back to it in one transaction, only the difference is sent."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute(WANDERING)
    database.execute("update tasks set board_id = 'x' where id = 'a'")
    found = await client.until_last(database)

    assert [kind for kind, _ in found] == ["task.created", "task.updated"]
    assert client.tasks["a"]["title"] == "A+++++"


async def test_board_of_another_server_is_not_sent(
    database: Database,
    server: Server,
    _template: str,  # noqa: PT019  # its name is needed
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failover, a name may lead to another server, while the feed is still connected to the first."""
    opened: list[str] = []
    with temporary_database(server, _template) as elsewhere:
        write(elsewhere, "elsewhere")

        async def lead_elsewhere(conninfo: str) -> Connection:
            opened.append(conninfo)
            return await connect(elsewhere if len(opened) == 3 else conninfo)

        monkeypatch.setattr(session, "connect", lead_elsewhere)
        async with Relay(database.dsn).running() as relay, Client.to(relay.url) as client:
            await client.subscribe("default")

    assert client.tasks == {}
    assert len(opened) > 3


# Large batches


async def test_large_transaction_is_read_in_parts_and_is_one_resumable_batch(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than a part is in memory, yet the cursor stands at the end only."""
    monkeypatch.setattr(journal, "PART_CHANGES", 10)
    sizes: list[int] = []
    publish = relay.hub.publish

    def noted(transactions: Sequence[Transaction], position: Snapshot | None) -> None:
        sizes.append(sum(len(transaction.images) for transaction in transactions))
        publish(transactions, position)

    monkeypatch.setattr(relay.hub, "publish", noted)
    async with Client.to(relay.url) as resumable:
        await resumable.resume("default", None)
        database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 95) i")

        batch = await resumable.receive_batch()
        assert {data["id"] for _, data in batch} == {f"t{number}" for number in range(1, 96)}
        await client.until_last(database)
        assert client.tasks.keys() > resumable.tasks.keys()
        assert max(sizes) == 10


async def test_parts_of_a_large_transaction_have_all_that_it_did_to_their_rows(
    database: Database, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far apart the entries of a row are, and under whatever keys, one message says what came of it."""
    monkeypatch.setattr(journal, "PART_CHANGES", 3)
    database.execute("drop trigger tasks_set_updated_at on tasks")
    database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 20) i")
    await client.until_last(database)
    database.execute("""
        begin;
        update tasks set title = 'first';
        insert into tasks (id, title) select 'n' || i, 'N' from generate_series(1, 20) i;
        update tasks set id = 'x' || id;
        update tasks set title = 'second';
        update tasks set id = substr(id, 2);
        delete from tasks where id like 'n1%';
        update tasks set title = 'last', lane = 'done' where id in ('t1', 'n2');
        commit
    """)
    found = await client.until_last(database)

    kinds = Counter(kind for kind, data in found if "last-" not in data["id"])
    assert kinds == {"task.created": 9, "task.updated": 20, "task.moved": 1}
    assert client.tasks["t1"].items() >= {"title": "last", "lane": "done"}.items()
    assert {task["title"] for key, task in client.tasks.items() if key[0] == "t"} == {"second", "last"}
    assert "t1" not in {data["id"] for kind, data in found if kind == "task.created"}


async def test_batch_that_is_cut_short_causes_a_sync(
    database: Database, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Postgres is lost after a part of a batch, the board is sent: the part would come again."""
    monkeypatch.setattr(journal, "PART_CHANGES", 10)
    parts = Journal._parts  # noqa: SLF001

    async def cut_short(self: Journal, outline: Iterable[TupleRow]) -> AsyncIterator[Any]:
        monkeypatch.setattr(Journal, "_parts", parts)
        async for part in parts(self, outline):
            yield part
            raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(Journal, "_parts", cut_short)
    async with Client.to(relay.url) as resumable:
        await resumable.resume("default", None)
        database.execute("insert into tasks (id, title) select 't' || i, 'T' from generate_series(1, 35) i")
        kinds = [(await client.receive())[0]]
        while kinds[-1] == "task.created":
            kinds.append((await client.receive())[0])
        await resumable.receive_batch()

        assert kinds[-1] == "board.sync"
        assert 1 < len(kinds) <= 11
        assert resumable.reason == "batch_cut_short"
        assert len(client.tasks) == len(resumable.tasks) == 35
        assert await client.until_last(database) == []


async def test_a_batch_at_which_the_hub_fails_causes_a_sync(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever clients have got of it, nothing of it is missing afterwards."""
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        publish = relay.hub.publish

        def fail(transactions: Sequence[Transaction], position: Snapshot | None) -> None:
            if transactions:
                monkeypatch.setattr(relay.hub, "publish", publish)
                raise KeyError("unforeseen")
            publish(transactions, position)

        monkeypatch.setattr(relay.hub, "publish", fail)
        database.execute("insert into tasks (id, title) values ('a', 'A')")

        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert (client.reason, set(client.tasks)) == ("batch_cut_short", {"a"})


async def test_journal_that_a_dump_of_data_brings_a_second_time_causes_a_sync(
    database: Database, relay: Relay
) -> None:
    """As `pg_dump --data-only` of the whole database does, loaded where it was made."""
    async with Client.to(relay.url) as client:
        await client.resume("default", None)
        tables = ("journal", "horizon", "epochs", "ticks")
        database.execute("; ".join(f"insert into relay.{each} select * from relay.{each}" for each in tables))
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert [kind for kind, _ in await client.receive_batch()] == ["board.sync"]
        assert (client.reason, set(client.tasks)) == ("journal_pruned", {"a"})
        database.execute("select relay.prune(), relay.prune('0')")
        database.execute("update tasks set title = 'B'")

        assert [kind for kind, _ in await client.receive_batch()] == ["task.updated"]
        await until(lambda: relay.feed.problem is None)


async def test_more_transactions_than_fit_a_batch_cause_a_sync(
    database: Database, behind_proxy: Relay, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long time without Postgres the board is the shorter answer."""
    monkeypatch.setattr(journal, "PART_CHANGES", 5)
    monkeypatch.setattr(journal, "BATCH_TRANSACTIONS", 10)
    async with Client.to(behind_proxy.url) as client:
        await client.resume("default", None)
        await proxy.cut()
        await until(lambda: behind_proxy.feed.problem is not None)
        for number in range(11):
            database.execute("insert into tasks (id, title) values (%s, 'T')", str(number))
        await proxy.restore()
        kinds = [kind for kind, _ in await client.receive_batch()]

        assert (kinds, client.reason, len(client.tasks)) == (["board.sync"], "too_much_missed", 11)
        assert behind_proxy.feed.problem is None
        database.execute("insert into tasks (id, title) values ('after', 'T')")
        assert [data["id"] for _, data in await client.receive_batch()] == ["after"]

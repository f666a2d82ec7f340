"""The world of the torture: a Postgres with an audit, two relays, writers, and the faults that befall them.

Rules:
- Everything random comes from the seed; what threads and processes make of it does not, so a seed is a good start
  for looking, not a recording. The recording is what a failure leaves on disk.
- A fault ends by itself, or is ended before the writers pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import psycopg

from relay.bench import NO_LIMITS
from relay.embedded import EmbeddedPostgres
from tests.acceptance.support import Daemon
from tests.proxy import Proxy
from tests.servers import install
from tests.torture import mutants
from tests.torture.oracle import Audit, Entry

BOARDS: Final = ("default", "other", "third")
LANES: Final = ("backlog", "todo", "done")
TASKS: Final = 60

_AUDIT: Final = """
    create schema torture;
    create sequence torture.stamps;
    create table torture.audit (
        n bigserial primary key, era bigint not null, xid xid8 not null default pg_current_xact_id(),
        old_id text, new_id text, old_board text, new_board text, stamp bigint);
    -- Emptied by crash recovery, which may give transaction ids out again: each time an era ends.
    create unlogged table torture.era (singleton bool primary key default true, id bigint not null);
    create sequence torture.eras;
    create function torture.era() returns bigint language plpgsql as $$
    begin
        if not exists (select from torture.era) then
            insert into torture.era (id) values (nextval('torture.eras')) on conflict do nothing;
        end if;
        return (select id from torture.era);
    end $$;
    alter table public.tasks add stamp bigint;
    create function torture.set_stamp() returns trigger language plpgsql as $$
    begin
        new.stamp := nextval('torture.stamps');
        return new;
    end $$;
    create trigger a_stamp before insert or update on public.tasks
        for each row execute function torture.set_stamp();
    create function torture.note() returns trigger language plpgsql as $$
    begin
        insert into torture.audit (era, old_id, new_id, old_board, new_board, stamp)
        values (torture.era(), old.id, new.id, old.board_id, new.board_id, new.stamp);
        return null;
    end $$;
    create trigger zz_audit after insert or update or delete on public.tasks
        for each row execute function torture.note();
    create function torture.note_truncate() returns trigger language plpgsql as $$
    begin
        insert into torture.audit (era, old_id, old_board) select torture.era(), id, board_id from public.tasks;
        return null;
    end $$;
    create trigger zz_truncate before truncate on public.tasks
        for each statement execute function torture.note_truncate();
"""


class Writers:
    """Threads that write until told to pause: all kinds of statements, savepoints, rollbacks, pauses, deadlocks."""

    def __init__(self, dsn: str, seed: str, number: int) -> None:
        self._dsn = dsn
        self._go = threading.Event()
        self._end = threading.Event()
        self._idle = [threading.Event() for _ in range(number)]
        self.counts: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._live, args=(random.Random(f"{seed}/{i}"), idle), daemon=True)
            for i, idle in enumerate(self._idle)
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._go.set()
            for thread in self._threads:
                thread.join()

    def go(self) -> None:
        self._go.set()

    async def pause(self) -> None:
        """Return when all have ended their transactions."""
        self._go.clear()
        for idle in self._idle:
            await asyncio.to_thread(idle.wait)

    def _live(self, chance: random.Random, idle: threading.Event) -> None:
        while not self._end.is_set():
            if not self._go.is_set():
                idle.set()
                self._go.wait()
                idle.clear()
            try:
                with psycopg.connect(self._dsn, options="-c deadlock_timeout=5ms", connect_timeout=2) as connection:
                    while self._go.is_set() and not self._end.is_set():
                        self._transaction(connection, chance)
            except psycopg.OperationalError:
                self._end.wait(0.1)  # the server is away

    def _transaction(self, connection: psycopg.Connection, chance: random.Random) -> None:
        levels = psycopg.IsolationLevel
        connection.isolation_level = chance.choice([levels.READ_COMMITTED] * 3 + [levels.REPEATABLE_READ])
        try:
            for _ in range(chance.randint(1, 4)):
                if chance.random() < 0.3:
                    with connection.transaction(force_rollback=chance.random() < 0.5):
                        _statement(connection, chance)
                else:
                    _statement(connection, chance)
                if chance.random() < 0.1:
                    self._end.wait(chance.random() * chance.choice([0.01, 0.1, 1.0]))
            if chance.random() < 0.2:
                connection.rollback()
            else:
                connection.commit()
            self.counts["transactions"] += 1
        except (psycopg.errors.TransactionRollback, psycopg.errors.IntegrityError):
            connection.rollback()
            self.counts["failed"] += 1


def _statement(connection: psycopg.Connection, chance: random.Random) -> None:
    one, other = (f"t{chance.randrange(TASKS)}" for _ in range(2))
    lane, board = chance.choice(LANES), chance.choice(BOARDS)
    match chance.randrange(12):
        case 0 | 1 | 2:
            connection.execute(
                "insert into tasks (id, board_id, title) values (%s, %s, 'T') on conflict (id) do update "
                "set board_id = excluded.board_id, title = tasks.title || '.'",
                (one, board),
            )
        case 3:
            connection.execute("delete from tasks where id = %s", (one,))
        case 4 | 5:
            connection.execute("update tasks set lane = %s where id = %s", (lane, one))
        case 6:
            connection.execute("update tasks set title = %s where board_id = %s", (one, board))
        case 7:
            connection.execute("update tasks set board_id = %s where id in (%s, %s)", (board, one, other))
        case 8:
            connection.execute("update tasks set id = %s where id = %s", (other, one))
        case 9:
            with connection.cursor().copy("copy tasks (id, board_id, title) from stdin") as copy:
                for i in range(3):
                    copy.write_row((f"c{chance.randrange(10**9)}-{i}", board, "C"))
        case 10:
            connection.execute("delete from tasks where id like 'c%%' and board_id = %s", (board,))
        case _:
            connection.execute("update tasks set title = 'V' where id in (%s, %s) returning id", (one, other))


class World:
    """Everything but the clients. `forgiven` is what a fault may raise that comes upon another."""

    faults_known: ClassVar[tuple[Callable[[Any], Awaitable[None]], ...]] = ()
    forgiven: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, folder: Path, seed: str, mutant: str | None) -> None:
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self.story: list[str] = []
        """What went wrong and when, for who has to find out why."""
        self._chance = random.Random(f"{seed}/faults")
        self._mutant = mutant
        self._postgres: EmbeddedPostgres
        self._proxy: Proxy
        self._relays: list[Daemon | None] = [None, None]
        self._extra = 0
        self._eras: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with EmbeddedPostgres() as self._postgres:
            await asyncio.to_thread(install, self.dsn)
            await self.execute(_AUDIT)
            async with Proxy("127.0.0.1", self._postgres.port) as self._proxy, self._beside():
                try:
                    for number in range(len(self._relays)):
                        await self._start_relay(number)
                    yield
                finally:
                    for relay in self._relays:
                        if relay:  # nobody is to be seen off
                            relay.signal(signal.SIGKILL)
                            relay.end()

    @contextlib.asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        """Run what there is beside Postgres and the relays."""
        yield

    @property
    def dsn(self) -> str:
        return self._postgres.dsn

    def urls(self) -> list[str]:
        """Where the relays listen that run."""
        return [relay.url for relay in self._relays if relay and relay.ws_port]

    async def execute(self, query: str, *args: object) -> list[tuple[Any, ...]]:
        """Run a statement, in a connection of its own."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), args or None)
            return await cursor.fetchall() if cursor.description else []

    async def audit(self) -> Audit:
        rows = await self.execute(
            "select n, era, xid::text::bigint, old_id, new_id, old_board, new_board, stamp from torture.audit"
        )
        await self._note_runs()
        return Audit((Entry(*row) for row in rows), self._eras)

    async def board(self, board: str) -> dict[str, dict[str, Any]]:
        """Return a board as clients should hold it."""
        rows = await self.execute("select row_to_json(t) from tasks t where board_id = %s", board)
        return {row["id"]: {_camel_case(key): value for key, value in row.items()} for (row,) in rows}

    # Faults

    async def fault(self) -> None:
        """Have one thing go wrong, and mend it."""
        happens = self._chance.choice(self.faults_known or FAULTS)
        name = happens.__name__
        self.faults[name] += 1
        self.story.append(f"{time.time():.3f} {name} begins")
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.LockNotAvailable, *self.forgiven):
            await happens(self)
        self.story.append(f"{time.time():.3f} {name} is over")

    async def restart(self) -> None:
        """Postgres is stopped and started."""
        await asyncio.to_thread(self._postgres.stop, "fast")
        await asyncio.to_thread(self._postgres.start)

    async def crash(self) -> None:
        """Postgres ends at once, and recovers."""
        await self._note_runs()
        await asyncio.to_thread(self._postgres.stop, "immediate")
        await asyncio.to_thread(self._postgres.start)

    async def kill_backend(self) -> None:
        """One of the relays' backends is killed by force, whereupon Postgres recovers."""
        rows = await self.execute("select pid from pg_stat_activity where application_name = 'relay'")
        if rows:
            await self._note_runs()
            os.kill(self._chance.choice(rows)[0], signal.SIGKILL)
            await self._until_up()

    async def terminate_sessions(self) -> None:
        """The relays' sessions are terminated."""
        await self.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'relay'")

    async def kill_relay(self) -> None:
        """A relay is killed, and started again."""
        number = self._chance.randrange(len(self._relays))
        if relay := self._relays[number]:
            self._relays[number] = None
            relay.signal(signal.SIGKILL)
            relay.end()
        await self._start_relay(number)

    async def freeze(self) -> None:
        """The network between a relay and Postgres freezes, and thaws."""
        self._proxy.freeze()
        await asyncio.sleep(self._chance.choice([0.5, 4.0]))
        self._proxy.thaw()

    async def strand(self) -> None:
        """A relay's links to Postgres are half-open."""
        self._proxy.strand()

    async def cut(self) -> None:
        """The network between a relay and Postgres is cut, everything is pruned, and the network is restored."""
        await self._proxy.cut()
        await asyncio.sleep(self._chance.random())
        await self.prune()
        await self._proxy.restore()

    async def prune(self) -> None:
        """Everything that may go goes."""
        await self.execute("select relay.prune('0')")

    async def mute(self) -> None:
        """The doorbell is not rung for a while."""
        await self.execute(
            "alter function relay.ring(text, text) rename to muted; "
            "create function relay.ring(board text, target text) returns void language sql as ''"
        )
        await asyncio.sleep(2)
        await self.execute(
            "drop function relay.ring(text, text); alter function relay.muted(text, text) rename to ring"
        )

    async def pause_journal(self) -> None:
        """The journal is full, and journalling pauses until a relay comes."""
        await self.execute("select nextval('relay.pauses')")

    async def truncate(self) -> None:
        """The table is truncated."""
        await self.execute("set lock_timeout = '2s'; truncate tasks")

    async def bulk(self) -> None:
        """One transaction writes thousands of rows."""
        await self.execute(
            "insert into tasks (id, board_id, title) select 'b' || i || '-' || random(), 'third', 'B' "
            "from generate_series(1, 3000) i; delete from tasks where title = 'B' and random() < 0.9"
        )

    async def alter(self) -> None:
        """A column is added, or dropped."""
        self._extra += 1
        change = "drop extra" if self._extra % 2 == 0 else "add extra int default 7"
        await self.execute(f"set lock_timeout = '2s'; alter table tasks {change}")

    async def resync(self) -> None:
        """Somebody calls relay.resync()."""
        await self.execute("select relay.resync()")

    # Inside

    async def _note_runs(self) -> None:
        """Note to which era the runs belong that cursors name, before a crash makes them unknown."""
        for run, era in await self.execute("select run, torture.era() from relay.epochs"):
            self._eras[run] = era

    async def _start_relay(self, number: int) -> None:
        dsn = self._proxy.through(self.dsn) if number else self.dsn
        # The relay whose connections are cut has the smaller parts, so that some are cut between two of them.
        name = self._mutant or (mutants.in_parts.__name__ if number else None)
        settings = {"DATABASE_URL": dsn, "WS_PORT": "0", "HEALTH_PORT": "0", "WS_HOST": "127.0.0.1", **NO_LIMITS}
        relay = Daemon([], self.folder, settings, mutants.command(name))
        self._relays[number] = relay
        await relay.listens()

    async def _until_up(self) -> None:
        for _ in range(200):
            with contextlib.suppress(psycopg.OperationalError):
                await self.execute("select 1")
                return
            await asyncio.sleep(0.05)


FAULTS: Final[tuple[Callable[[World], Awaitable[None]], ...]] = (
    World.restart,
    World.crash,
    World.kill_backend,
    World.terminate_sessions,
    World.kill_relay,
    World.kill_relay,
    World.freeze,
    World.strand,
    World.cut,
    World.prune,
    World.mute,
    World.pause_journal,
    World.truncate,
    World.bulk,
    World.alter,
    World.resync,
)


def _camel_case(column: str) -> str:
    first, *rest = column.split("_")
    return first + "".join(word.capitalize() for word in rest)

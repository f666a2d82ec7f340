"""The world of the torture: a Postgres with an audit, two relays, writers, and the faults that befall them.

Rules:
- Everything random comes from the seed; what threads and processes make of it does not, so a seed is a good start
  for a search, not a recording. The recording is what a failure leaves on disk.
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
from psycopg.conninfo import make_conninfo

from relay.commands.bench.run import NO_LIMITS
from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.install import text
from tests import writes
from tests.acceptance.support import Daemon
from tests.proxy import Proxy
from tests.servers import MUTE, PAUSE, Postgres, install
from tests.torture import mutants
from tests.torture.oracle import Audit, Entry
from tests.writes import Script, Writes

BOARDS: Final = ("default", "other", "third")
LANES: Final = ("backlog", "todo", "done")
TASKS: Final = 60
_OPTIONS: Final = "-c deadlock_timeout=5ms -c lock_timeout=2s"
"""Lock timeout of writers."""

_IS_GOOD: Final = "select 1 from pg_enum where enumlabel = 'good' and enumtypid = 'mood'::regtype"

_PRESET: Final = (
    "statement_timeout = '1ms'",
    "idle_session_timeout = '10ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "default_transaction_isolation = 'serializable'",
    "enable_indexscan = off",
    "enable_seqscan = off",
    "datestyle = 'german'",
    "timezone = 'Asia/Kathmandu'",
    "search_path = 'torture'",
    "standard_conforming_strings = off",
    "client_encoding = 'LATIN1'",
)

_AUDIT: Final = (
    writes.SCHEMA
    + """
    create schema torture;
    alter table public.tasks add stamp bigint;
    alter table public.steps add stamp bigint;
    create type public.mood as enum ('good');
    -- In two steps, for the first rewrite after a default came with a column changes the shape once more.
    alter table public.tasks add mood public.mood;
    alter table public.tasks alter mood set default 'good';

    -- Emptied by crash recovery, which may give transaction ids out again: each time an epoch ends.
    create unlogged table torture.epoch (singleton bool primary key default true, id bigint not null);
    create sequence torture.epochs;
    create function torture.epoch() returns bigint language plpgsql as $$
    begin
        if not exists (select from torture.epoch) then
            insert into torture.epoch (id) values (nextval('torture.epochs')) on conflict do nothing;
        end if;
        return (select id from torture.epoch);
    end $$;

    create function torture.bump(task text) returns void language sql as $$
        update public.tasks set priority = 'inner' where id = task
    $$;

    -- Each image gets a stamp of its own, the last thing before it is stored. An image that comes back within a
    -- transaction comes back with the stamp that it had.
    create sequence torture.stamps;
    create unlogged table torture.images (xid xid8, image text, stamp bigint, primary key (xid, image));
    create function torture.set_stamp() returns trigger language plpgsql as $$
    declare
        stamp bigint;
    begin
        if tg_op <> 'INSERT' then
            stamp := old.stamp;
            old.stamp := null;
            insert into torture.images values (pg_current_xact_id(), md5(row_to_json(old)::text), stamp)
                on conflict do nothing;
        end if;
        if tg_op = 'DELETE' then
            return old;
        end if;
        new.stamp := null;
        select i.stamp into stamp from torture.images i
            where i.xid = pg_current_xact_id() and i.image = md5(row_to_json(new)::text);
        if stamp is null then
            stamp := nextval('torture.stamps');
            insert into torture.images values (pg_current_xact_id(), md5(row_to_json(new)::text), stamp);
        end if;
        new.stamp := stamp;
        return new;
    end $$;

    -- Where each task stands that a transaction touched, noted again after each change of it: the last note says
    -- where it stands in the end. Deferred, for only then has every statement around the change ended too.
    create table torture.audit (
        number bigserial, epoch bigint, xid xid8, task text, board text, stamp bigint,
        primary key (epoch, xid, task));
    create function torture.note(task text, board text, stamp bigint) returns void language sql as $$
        insert into torture.audit (epoch, xid, task, board, stamp)
        values (torture.epoch(), pg_current_xact_id(), task, board, stamp)
        on conflict (epoch, xid, task) do update
        set number = excluded.number, board = excluded.board, stamp = excluded.stamp
    $$;
    create function torture.audit() returns trigger language plpgsql as $$
    declare
        key text;
        board text;
        stamp bigint;
    begin
        foreach key in array array[old.id, new.id] loop
            continue when key is null;
            -- Of a version that this transaction made: under repeatable read, one of another transaction may be seen
            -- that is long gone.
            select r.board_id, r.stamp into board, stamp
            from (select id, board_id, t.stamp, t.xmin from public.tasks t where t.id = key
                  union all
                  select id, board_id, s.stamp, s.xmin from public.steps s where s.id = key) r
            where pg_xact_status(r.xmin::text::xid8) = 'in progress';
            perform torture.note(key, board, stamp);
        end loop;
        return null;
    end $$;
    create function torture.audit_truncate() returns trigger language plpgsql as $$
    begin
        execute format('select torture.note(id, null, null) from %s', tg_relid::regclass);
        return null;
    end $$;
    do $do$
    declare
        name text;
    begin
        foreach name in array array['tasks', 'steps'] loop
            execute format($triggers$
                create trigger zz_stamp before insert or update or delete on public.%1$s
                    for each row execute function torture.set_stamp();
                create constraint trigger zz_audit after insert or update or delete on public.%1$s
                    deferrable initially deferred for each row execute function torture.audit()
            $triggers$, name);
        end loop;
        foreach name in array array['tasks', 'steps', 'steps_low', 'steps_high', 'steps_highest'] loop
            execute format('create trigger zz_audit_truncate before truncate on public.%s '
                           'for each statement execute function torture.audit_truncate()', name);
        end loop;
    end $do$;
"""
)


class Writers:
    """Threads that write until asked to pause: all kinds of statements, savepoints, rollbacks, pauses, deadlocks."""

    def __init__(self, dsn: str, seed: str, number: int) -> None:
        self._dsn = dsn
        self._go = threading.Event()
        self._end = threading.Event()
        self._idle = [threading.Event() for _ in range(number)]
        self.counts: Counter[str] = Counter()
        self.mistakes: list[str] = []
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
        try:
            self._write(chance, idle)
        except Exception as ex:  # noqa: BLE001  # a thread has nobody to raise it to
            self.mistakes.append(f"a writer ended: {ex!r}")
        finally:
            idle.set()

    def _write(self, chance: random.Random, idle: threading.Event) -> None:
        while not self._end.is_set():
            if not self._go.is_set():
                idle.set()
                self._go.wait()
                idle.clear()
            try:
                with writes.connect(self._dsn, options=_OPTIONS, connect_timeout=2) as connection:
                    version = connection.info.server_version
                    drawn = Writes(chance, version=version, tasks=TASKS, boards=BOARDS, lanes=LANES, rewrites=0.01)
                    while self._go.is_set() and not self._end.is_set():
                        self._transaction(connection, chance, drawn.script())
            except psycopg.OperationalError:
                self._end.wait(0.1)  # the server is away

    def _transaction(self, connection: psycopg.Connection, chance: random.Random, script: Script) -> None:
        def pause() -> None:
            if chance.random() < 0.05:
                self._end.wait(chance.random() * chance.choice([0.01, 0.01, 0.01, 0.1, 0.1, 1.0]))

        levels = psycopg.IsolationLevel
        connection.isolation_level = chance.choice([levels.READ_COMMITTED] * 3 + [levels.REPEATABLE_READ])
        try:
            script.run(connection, self._elsewhere, pause)
            if chance.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
            self.counts["transactions"] += 1
        except writes.TOLERATED:
            connection.rollback()
            self.counts["failed"] += 1

    def _elsewhere(self, statement: str) -> None:
        with writes.connect(self._dsn, autocommit=True, options=_OPTIONS, connect_timeout=2) as connection:
            connection.execute(statement.encode())


class World:
    """Everything but the clients. `forgiven` is what a fault may raise that comes upon another."""

    faults_known: ClassVar[tuple[Callable[[Any], Awaitable[None]], ...]] = ()
    forgiven: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, folder: Path, seed: str, mutant: str | None) -> None:
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self.faults_lately: Counter[str] = Counter()
        """Those of the last round."""
        self.story: list[str] = []
        """What went wrong and when, to find out why."""
        self._chance = random.Random(f"{seed}/faults")
        self._mutant = mutant
        self._postgres: EmbeddedPostgres
        self._proxy: Proxy
        self._relays: list[Daemon | None] = [None, None]
        self._extra = 0
        self._epochs: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with Postgres() as self._postgres:
            await asyncio.to_thread(install, self.dsn)
            await self.execute(text("roles"))
            await self.execute(_AUDIT)
            async with Proxy("127.0.0.1", self._postgres.port) as self._proxy, self._beside():
                try:
                    for number in range(len(self._relays)):
                        await self._start_relay(number)
                    yield
                finally:
                    for relay in self._relays:
                        if relay:  # no client is to be disconnected in order
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
        rows = await self.execute("select number, epoch, xid::text::bigint, task, board, stamp from torture.audit")
        await self._note_runs()
        return Audit((Entry(*row) for row in rows), self._epochs)

    async def board(self, board: str) -> dict[str, dict[str, Any]]:
        """Return a board as clients should hold it."""
        rows = await self.execute(
            "select row_to_json(t) from tasks t where board_id = %s "
            "union all select row_to_json(s) from steps s where board_id = %s",
            board,
            board,
        )
        return {
            row["id"]: {_camel_case(key): value for key, value in row.items() if key != "secret"} for (row,) in rows
        }

    # Faults

    async def fault(self) -> None:
        """Have one thing go wrong, and repair it."""
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
            async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as witness:
                os.kill(self._chance.choice(rows)[0], signal.SIGKILL)
                with contextlib.suppress(psycopg.OperationalError):
                    while True:  # until Postgres has noticed, and ends all sessions
                        await witness.execute("select 1")
                        await asyncio.sleep(0.01)
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
        """The triggers do not notify for a while, and no relay is notified of that."""
        for _ in range(4):
            await self.execute(MUTE)
            await asyncio.sleep(0.5)

    async def pause_journal(self) -> None:
        """The journal is full, and journalling pauses until a relay finds room."""
        await self.execute(PAUSE)

    async def truncate(self) -> None:
        """A table is truncated, or a partition."""
        tables = self._chance.choice(["tasks, steps", "steps", "steps_low", "steps_high", "steps_highest"])
        await self.execute(f"set lock_timeout = '2s'; truncate {tables}")

    async def bulk(self) -> None:
        """One transaction writes thousands of rows, again and again, most of which are gone when it ends."""
        await self.execute(
            "select set_config('writes.plan', '', false); "
            "insert into tasks (id, board_id, title) select 'b' || i || '-' || random(), 'third', 'B' "
            "from generate_series(1, 3000) i; update tasks set priority = 'outer' where title = 'B' "
            "returning torture.bump(id); delete from tasks where title = 'B' and random() < 0.9"
        )

    async def rewrite(self) -> None:
        """Somebody rewrites a table, between the transactions of all others."""
        rewrite = self._chance.choice(
            ["vacuum full tasks", "vacuum full steps", "cluster tasks using tasks_pkey", "vacuum (freeze) tasks"]
        )
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute("set lock_timeout = '2s'")
            await connection.execute(rewrite.encode())

    async def alter(self) -> None:
        """A column is added, or dropped."""
        self._extra += 1
        change = (
            "drop column if exists extra" if self._extra % 2 == 0 else "add column if not exists extra int default 7"
        )
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute("set lock_timeout = '2s'")
            await connection.execute(f"alter table tasks {change}".encode())
            # The first rewrite after a default came changes the catalog once more, and resembles a change of type.
            await connection.execute("vacuum full tasks")

    async def rename_label(self) -> None:
        """A label of an enum is renamed, which changes rows that nobody writes."""
        labels = ("good", "fine") if await self.execute(_IS_GOOD) else ("fine", "good")
        await self.execute("alter type mood rename value '{}' to '{}'".format(*labels))

    async def switch_triggers(self) -> None:
        """All triggers are off for a moment, as they are for a restore, and rows are written meanwhile."""
        await self.execute(
            "set lock_timeout = '2s'; begin; alter table tasks disable trigger all;"
            "update tasks set priority = 'unseen' where random() < 0.3; alter table tasks enable trigger all; commit"
        )

    async def lock_table(self) -> None:
        """Somebody locks a table for longer than boards wait for it."""
        await self.execute(
            "set lock_timeout = '2s'; begin; lock table tasks in access exclusive mode; select pg_sleep(2.5); commit"
        )

    async def deny_reading(self) -> None:
        """Boards may not be read for a while."""
        await self.execute("revoke select on tasks from relay_reader")
        await asyncio.sleep(self._chance.random())
        await self.execute("grant select on tasks to relay_reader")

    async def preset_settings(self) -> None:
        """The relays' role gets settings that would be the end of them, and they connect again."""
        await self.execute("".join(f"alter role relay_daemon set {setting};" for setting in _PRESET))
        await self.terminate_sessions()
        await asyncio.sleep(1.0)
        await self.execute("alter role relay_daemon reset all")

    async def suspend_relay(self) -> None:
        """A relay stands still for a while."""
        relay = self._chance.choice(self._relays)
        if relay:
            relay.signal(signal.SIGSTOP)
            await asyncio.sleep(self._chance.choice([0.5, 4.0]))
            relay.signal(signal.SIGCONT)

    async def resync(self) -> None:
        """Somebody calls relay.resync()."""
        await self.execute("select relay.resync()")

    # Inside

    async def _note_runs(self) -> None:
        """Note to which epoch the runs belong that cursors name, before a crash makes them unknown."""
        for run, epoch in await self.execute("select run, torture.epoch() from relay.epochs"):
            self._epochs[run] = epoch

    async def _start_relay(self, number: int) -> None:
        dsn = make_conninfo(self._proxy.through(self.dsn) if number else self.dsn, user="relay_daemon")
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
    World.rewrite,
    World.alter,
    World.rename_label,
    World.switch_triggers,
    World.lock_table,
    World.deny_reading,
    World.preset_settings,
    World.suspend_relay,
    World.resync,
)


def _camel_case(column: str) -> str:
    first, *rest = column.split("_")
    return first + "".join(word.capitalize() for word in rest)

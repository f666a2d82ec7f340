"""A session: the connections to Postgres while all are well, and the queries over them.

One connection listens for notifications and reads the journal. Another runs all other short queries: watches, probes,
pruning, what resuming clients missed. Boards are read over connections of their own.

Rules:
- The daemon's role needs the rights of sql/roles.sql and no more: it reads boards through relay.board.
- LISTEN is committed before the first read, so that nothing falls between the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, LiteralString, Self

import psycopg
import structlog
from psycopg.rows import TupleRow

from relay.model.cursor import Epoch
from relay.postgres.boards import Boards
from relay.postgres.connection import Connection, connect, in_time, require_answer
from relay.postgres.faults import FeedError, is_refusal
from relay.postgres.journal import Journal, says_nothing
from relay.postgres.unshown import Unshown
from relay.postgres.vitals import Vitals, read_vitals
from relay.postgres.watches import Closure, Watches
from relay.text import error_line

log = structlog.get_logger()

MAY_READ_TIMEOUT: Final = "2s"
"""Timeout of relay.may_read, for all questions of one statement."""

FITTINGS: Final = 5
"""How often the trigger functions are fitted to tables that change meanwhile, before clients get their boards."""

_NOTE_SHAPE: Final[LiteralString] = """
    select shape, shaped::text::bigint, tables::bigint[], types::bigint[], functions::bigint[] from relay.note_shape()
"""
# The lock that a transaction takes when it commits, if it has notified, until its commit is complete.
_COMMITS_WAIT: Final[LiteralString] = """
    select exists (select from pg_catalog.pg_locks l where l.locktype = 'object' and l.database = 0
                   and l.classid = 'pg_catalog.pg_database'::regclass and l.objid = 0 and not l.granted)
"""
_MAY_READ: Final[LiteralString] = """
    select coalesce(relay.may_read(q.claims::jsonb, q.board), false)
    from unnest(%s::text[], %s::text[]) with ordinality q (claims, board, n)
    order by q.n
"""


class Session:
    """The connections while all are well.

    `silent`: the triggers never notify here, because transactions may be prepared. `vitals` are those last read, or
    None. `unfit` is why Postgres refuses to repair the trigger functions, or None.
    """

    def __init__(
        self,
        conninfo: str,
        followed: Container[str | None],
        listener: Connection,
        reader: Connection,
        boards: Callable[[Watches], Boards],
        *,
        silent: bool,
        unshown: Unshown,
    ) -> None:
        self.silent = silent
        self.unfit: str | None = None
        self.vitals: Vitals | None = None
        self.watches = Watches(reader)
        self.journal = Journal(listener, self.watches, followed, unshown)
        self.boards = boards(self.watches)
        self.journal_of_missed = Journal(reader, self.watches, followed)
        self._conninfo = conninfo
        self._listener = listener
        self._reader = reader
        self._run: str | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, conninfo: str, followed: Container[str | None], unshown: Unshown | None = None
    ) -> AsyncIterator[Self]:
        """Connect, listen, and check the install. Raises FeedError or psycopg.Error.

        What cannot be shown is noted in `unshown`.
        """
        unshown = Unshown() if unshown is None else unshown
        async with await connect(conninfo) as listener, await connect(conninfo) as reader, AsyncExitStack() as more:

            async def one_more() -> Connection:
                connection = await more.enter_async_context(await connect(conninfo))
                await session.require_same_server(connection)
                return connection

            async with in_time():
                await _require_install(listener)
                # Read the journal only by its index. The statistics of a table that grows at one end lag behind, so
                # the planner may believe that a third of it is new.
                await listener.rows("set enable_seqscan = off")
                # Make one plan only: it takes several times as long to make as to run.
                await listener.rows("set plan_cache_mode = force_generic_plan")
                await listener.rows("listen relay")
                silent = await listener.row("select pg_catalog.current_setting('max_prepared_transactions') <> '0'")
                boards = partial(Boards, connect=one_more, says_nothing=says_nothing, unshown=unshown)
                session = cls(conninfo, followed, listener, reader, boards, silent=silent[0], unshown=unshown)
                await session.watches.load()
            yield session

    async def epoch(self) -> tuple[Epoch, int]:
        """Return which cursors are valid, and below which id transactions may be older than the tables' shape.

        Raises FeedError if the connections reached different servers.
        """
        found = await self._listener.rows("select run, key from relay.epoch()")
        self._run = found[0][0]
        async with self._reader.in_turn:
            await self.require_same_server(self._reader)
        shape, shaped = await self.fit()
        return Epoch(run=found[0][0], keys=dict(found), shape=shape), shaped

    async def require_same_server(self, connection: Connection) -> None:
        """Check that another connection reached the same server and database. Raises FeedError."""
        run = (await connection.row("select run from relay.epoch() limit 1"))[0]
        if self._run not in {None, run}:
            raise FeedError("the connections reached different servers: expected one primary")

    async def shape(self) -> str:
        """Return the shape of the watched tables, also amid a batch in parts."""
        return str((await self._listener.row("select relay.shape()"))[0])

    async def fit(self) -> tuple[str, int]:
        """Fit the trigger functions and the watches to the tables, and note their shape.

        Return it, and below which id transactions may be older. Begins again if the tables change meanwhile, because
        functions of an earlier shape may take one column for another. If they go on changing, returns an earlier
        shape, so that the next comparison finds another one.
        """
        for _ in range(FITTINGS):
            async with self._reader.in_turn:
                (before,) = await self._reader.row("select relay.shape()")
            await self.refresh()
            await self.watches.load()
            shape, shaped = await self._note_shape()
            if shape == before:
                break
        return before, shaped

    async def _note_shape(self) -> tuple[str, int]:
        async with self._reader.in_turn:
            shape, shaped, tables, types, functions = await self._reader.row(_NOTE_SHAPE)
        self.watches.closure = Closure(tables, tables, tables, types, types, functions)
        self.boards.note_shape(shape)
        return shape, shaped

    async def end_pause(self) -> bool:
        """Resume journalling if it is paused and there is room; return whether it has resumed."""
        return bool((await self._listener.row("select relay.resume()"))[0])

    async def holders(self) -> str:
        """Name the transactions that keep the journal from being vacuumed."""
        found = (await self._listener.row("select relay.vacuum_holders()"))[0]
        return str(found or "no transaction: is autovacuum on?")

    async def commits_wait(self) -> bool:
        """Whether transactions that have notified wait for each other's commit."""
        return bool((await self._listener.row(_COMMITS_WAIT))[0])

    async def poll_for(self, seconds: float) -> None:
        """Promise to poll the journal for this many seconds, so that triggers need not notify.

        With 0, only say that there is a relay: without one, triggers do not notify either.
        """
        await self._listener.rows("select relay.poll_for(%s)", round(seconds * 1000))

    async def refresh(self) -> None:
        """Regenerate the trigger functions where the tables have changed.

        Postgres may refuse, for example because of an event trigger; `unfit` then says why, in one line. Everything
        else continues: changes that a function cannot record cause all boards to be read again.
        """
        if await self._repair("select relay.refresh()"):
            self.unfit = None

    async def restore_rights(self) -> None:
        """Restore the rights that the relay's roles need, without which writers of the tables fail."""
        for (roles,) in await self._repair("select relay.restore_rights()::text[]"):
            if roles:
                log.warning("feed.rights_restored", roles=roles)

    async def _repair(self, query: LiteralString) -> list[TupleRow]:
        try:
            async with self._reader.in_turn:
                return await self._reader.rows(query)
        except psycopg.Error as ex:
            if self._reader.closed or not is_refusal(ex):
                raise
            if (problem := error_line(ex)) != self.unfit:
                log.error("feed.not_refreshed", problem=problem)  # noqa: TRY400  # the line says it all
            self.unfit = problem
            return []

    async def notified(self, seconds: float) -> list[str | None]:
        """Wait up to `seconds` for notifications; return for each the label of its probe, or None."""
        notifications = self._listener.notifies(timeout=seconds, stop_after=1)
        return [_probe_of(notify.payload) async for notify in notifications]

    async def write_probe(self, label: Callable[[], str]) -> tuple[str, bool]:
        """Write a probe, and return its label and whether it notified. `label` is called when it is written."""
        async with self._reader.in_turn:
            written = label()
            return written, bool((await self._reader.row("select relay.probe(%s)", written))[0])

    async def read_vitals(self) -> None:
        """Read the state of the journal into `vitals`."""
        async with self._reader.in_turn:
            self.vitals = await read_vitals(self._reader)

    async def prune(self) -> bool:
        """Delete a bounded number of old changes; return whether there may be more."""
        async with self._reader.in_turn:
            return bool((await self._reader.row("select relay.prune() > 0"))[0])

    async def may_read(self, questions: Sequence[tuple[Mapping[str, Any], str]]) -> list[bool]:
        """Ask relay.may_read about each pair of claims and board. If it fails, the answer is no."""
        return await self._answered([(json.dumps(claims), board) for claims, board in questions])

    async def _answered(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        """Ask all at once; if that fails, ask each half by itself, until the failing questions are isolated.

        Between two statements, others may use the connection, for example to prune the journal.
        """
        try:
            async with self._reader.in_turn:
                return await self._answers(questions)
        except psycopg.Error as ex:
            if ex.sqlstate is None or self._reader.closed:
                raise
            if len(questions) == 1:
                log.error("access.may_read_failed", problem=error_line(ex))  # noqa: TRY400  # the line says it all
                return [False]
        half = len(questions) // 2
        return await self._answered(questions[:half]) + await self._answered(questions[half:])

    async def _answers(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        await self._reader.rows("begin")
        try:
            await self._reader.rows("select pg_catalog.set_config('statement_timeout', %s, true)", MAY_READ_TIMEOUT)
            rows = await self._reader.rows(_MAY_READ, *map(list, zip(*questions, strict=True)))
        finally:
            if not self._reader.closed:
                await self._reader.rows("rollback")
        return [may for (may,) in rows]

    async def require_answers(self) -> None:
        """Check all connections. Raises FeedError if one is dead."""
        for connection in (self._listener, self._reader, *self.boards.connections):
            await require_answer(connection, self._conninfo)


def _probe_of(payload: str) -> str | None:
    """Return the label of the probe in a notification's payload. Any role may notify, with any payload."""
    found = re.fullmatch(r'\{"probe" : "([\w-]+)"\}', payload)
    return found and found[1]


async def _require_install(connection: Connection) -> None:
    name, installed = await connection.row(
        "select pg_catalog.current_database(), pg_catalog.to_regprocedure('relay.version()') is not null"
    )
    if not installed:
        raise FeedError(
            f"database {name!r} lacks the relay's tables and triggers, or has those of an older version: "
            f"run relay sql install"
        )

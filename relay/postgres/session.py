"""A session: the connections to Postgres while all is well, and what is asked over them.

One connection listens for notifications and reads the journal. Another does all that is short: watches, probes,
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
from typing import Any, Final, LiteralString, Self, cast

import psycopg
import structlog

from relay.model.cursor import Epoch
from relay.postgres.boards import Boards
from relay.postgres.connection import Connection, connect, in_time, require_answer
from relay.postgres.faults import FeedError
from relay.postgres.journal import Journal
from relay.postgres.vitals import Vitals, read_vitals
from relay.postgres.watches import Watches
from relay.text import error_line

log = structlog.get_logger()

MAY_READ_TIMEOUT: Final = "2s"
"""Timeout of relay.may_read, for what is asked at once."""

_MAY_READ: Final[LiteralString] = """
    select coalesce(relay.may_read(q.claims::jsonb, q.board), false)
    from unnest(%s::text[], %s::text[]) with ordinality q (claims, board, n)
    order by q.n
"""


class Session:
    """The connections while all are well.

    `silent`: the triggers never notify here, for transactions may be prepared.
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
    ) -> None:
        self.silent = silent
        self.watches = Watches(reader)
        self.journal = Journal(listener, self.watches, followed)
        self.boards = boards(self.watches)
        self.journal_of_missed = Journal(reader, self.watches, followed)
        self._conninfo = conninfo
        self._listener = listener
        self._reader = reader

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, followed: Container[str | None], side_by_side: int = 1) -> AsyncIterator[Self]:
        """Connect, listen, and check that the install is there. Raises FeedError or psycopg.Error.

        So many boards can be read side by side.
        """
        async with await connect(conninfo) as listener, await connect(conninfo) as reader, AsyncExitStack() as more:

            async def one_more() -> Connection:
                return await more.enter_async_context(await connect(conninfo))

            async with in_time():
                await _require_install(listener)
                # The journal is read by its index alone: with statistics that lag behind, as they do for a table
                # that grows at one end, the planner may think that a third of it is new.
                await listener.rows("set enable_seqscan = off")
                await listener.rows("listen relay")
                silent = await listener.row("select pg_catalog.current_setting('max_prepared_transactions') <> '0'")
                boards = partial(Boards, connect=one_more, side_by_side=side_by_side)
                session = cls(conninfo, followed, listener, reader, boards, silent=silent[0])
                await session.watches.load()
            yield session

    async def epoch(self) -> Epoch:
        """Tell which cursors are good. Raises FeedError if the two connections reached different servers."""
        first = await self._listener.rows("select run, key from relay.epoch()")
        async with self._reader.in_turn:
            second = await self._reader.rows("select run, key from relay.epoch()")
        if first[0] != second[0]:
            raise FeedError("the two connections reached different servers: expected one primary")
        return Epoch(run=first[0][0], keys=dict(first), shape=await self.shape())

    async def shape(self) -> str:
        """Tell the shape of the watched tables."""
        return cast(str, (await self._listener.row("select relay.shape()"))[0])

    async def end_pause(self) -> bool:
        """Have journalling go on if it was paused, and there is room; returns whether it goes on."""
        return bool((await self._listener.row("select relay.resume()"))[0])

    async def holders(self) -> str:
        """Name whose transactions keep the journal from being vacuumed."""
        found = (await self._listener.row("select relay.vacuum_holders()"))[0]
        return str(found or "no transaction: is autovacuum on?")

    async def poll_for(self, seconds: float) -> None:
        """Promise to read the journal without being notified, so long."""
        await self._listener.rows("select relay.poll_for(%s)", round(seconds * 1000))

    async def refresh(self) -> None:
        """Have the trigger functions fit the tables as they are now."""
        async with self._reader.in_turn:
            await self._reader.rows("select relay.refresh()")

    async def notified(self, seconds: float) -> list[str | None]:
        """Wait for a notification, so long at most; return for each that came which probe it is of, if one."""
        notifications = self._listener.notifies(timeout=seconds, stop_after=1)
        return [_probe_of(notify.payload) async for notify in notifications]

    async def write_probe(self, label: Callable[[], str]) -> tuple[str, bool]:
        """Write a probe and say whether it notified; its label is asked for in the moment of writing."""
        async with self._reader.in_turn:
            written = label()
            return written, bool((await self._reader.row("select relay.probe(%s)", written))[0])

    async def vitals(self) -> Vitals:
        """Ask how the journal is."""
        async with self._reader.in_turn:
            return await read_vitals(self._reader)

    async def prune(self) -> bool:
        """Let old changes go, a number of them at the most; returns whether there may be more."""
        async with self._reader.in_turn:
            return bool((await self._reader.row("select relay.prune() > 0"))[0])

    async def may_read(self, questions: Sequence[tuple[Mapping[str, Any], str]]) -> list[bool]:
        """Ask relay.may_read about each claims and board; a question that it fails at is answered with no."""
        return await self._answered([(json.dumps(claims), board) for claims, board in questions])

    async def _answered(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        """Answer; if that fails, each half by itself, until those are alone that it fails at.

        The connection is free between two statements: boards are read and the journal is pruned meanwhile.
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
        """Make sure that no connection has died in silence. Raises FeedError if one has."""
        for connection in (self._listener, self._reader, *self.boards.connections):
            await require_answer(connection, self._conninfo)


def _probe_of(payload: str) -> str | None:
    """Take the probe out of a notification's payload; anybody may notify, and say anything."""
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

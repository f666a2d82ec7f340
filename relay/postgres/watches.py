"""What is watched, as it was read last, and what keeps its changes from being journalled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, LiteralString

from relay.postgres.connection import Connection
from relay.postgres.decode import Entry, Watch

_WATCHED: Final[LiteralString] = """
    select id, pg_catalog.format('%I.%I', schema_name, table_name), id_column, board_column, lane_column, hidden,
           triggers_complete, problem
    from relay.watched order by id
"""


class Watches:
    """The watches of a database, read over a connection that others use too."""

    def __init__(self, reader: Connection) -> None:
        self.by_id: dict[int, Watch] = {}
        self._reader = reader
        self._problems: list[str] = []

    @property
    def problem(self) -> str | None:
        """Say in one line what keeps changes from being journalled, if anything does."""
        if not self.by_id and not self._problems:
            return "nothing is watched: run relay sql watch with the name of the tasks table"
        return self._problems[0] if self._problems else None

    async def load(self) -> None:
        """Read what is watched, and whether its triggers are in place."""
        async with self._reader.in_turn:
            rows = await self._reader.rows(_WATCHED)
        self.by_id = {
            number: Watch(number, table, id_column, board, lane, frozenset(hidden))
            for number, table, id_column, board, lane, hidden, _, problem in rows
            if problem is None
        }
        self._problems = [
            f"{table} {problem}, and is not shown: run relay sql watch {table} with the columns as they are now"
            for _, table, *_, problem in rows
            if problem is not None
        ] + [
            f"triggers of {table} are missing or disabled: run relay sql watch {table}"
            for _, table, *_, complete, problem in rows
            if problem is None and not complete
        ]

    async def load_for(self, entries: Iterable[Entry]) -> None:
        """Read it again where entries say that it has changed."""
        if any(entry.op == "S" or (entry.op == "R" and entry.watch not in self.by_id) for entry in entries):
            await self.load()

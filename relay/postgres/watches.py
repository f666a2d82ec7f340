"""The watched tables as they were read last, and what keeps their changes from being shown."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple

from relay.order import OrderKey
from relay.postgres.connection import Connection
from relay.postgres.decode import Entry, Extra, Watch

_WATCHED: Final[LiteralString] = """
    select id, pg_catalog.format('%I.%I', schema_name, table_name) as table, id_column, board_column, lane_column,
           hidden, shown, order_by, triggers_complete, problem, watched_as, target, replaced, filter, board_as,
           lane_as, lanes, key_columns, id_prefix, as_text, columns, ordering, distinct_ids, id_kind, board_kind,
           lost_order, is_key, extras, detaching::text, missing_right, triggers_always
    from relay.watched order by id
"""
_LANES: Final[LiteralString] = """
    select l.target::text, l.id_column, l.board_column, l.name_column, l.filter, l.order_by, l.triggers_complete,
           l.declared_as,
           exists (select from pg_catalog.pg_class o join pg_catalog.pg_namespace p on p.oid = o.relnamespace
                   where o.oid <> l.target and o.relkind in ('r', 'p')
                     and array[p.nspname, o.relname]::text[] = pg_catalog.parse_ident(l.declared_as)) as replaced,
           relay.lost_order(l.target, l.order_by), relay.is_key(l.target, array[l.id_column]), l.triggers_always
    from relay.lane_tables l order by l.id
"""

_FAILING_EXTRAS: Final[LiteralString] = """
    select target::text, name, near::text, far::text, shown, order_by, task_column, key_column, link_column, problem,
           triggers_complete, triggers_always, near_as, far_as, replaced, near_filter, far_filter
    from relay.extras
    where target is not null and (problem is not null or not triggers_complete or not triggers_always or replaced)
"""


_ANOTHER: Final = "is another table than the one that was watched"


def _order_key(column: str, descending: bool, nulls_first: bool, values: list[str] | None) -> OrderKey:
    return OrderKey(column, descending, nulls_first, None if values is None else tuple(values))


@dataclass(frozen=True, slots=True)
class Declared:
    """A row of relay.extras."""

    table: str
    name: str
    near: str
    far: str | None
    shown: Sequence[str | None]
    order_by: Sequence[str]
    task_column: str | None
    key_column: str | None
    link_column: str | None
    problem: str | None
    triggers_complete: bool
    triggers_always: bool
    near_as: str
    far_as: str | None
    replaced: bool
    near_filter: str | None
    far_filter: str | None

    @property
    def command(self) -> str:
        """Return the command that declares it as it is now, with COLUMN for each column that was dropped."""
        return self._command(self.near, self.far or self.far_as)

    @property
    def fault(self) -> str | None:
        """Say in one line why what is shown may be wrong, and what to run."""
        if not self.problem and not self.triggers_complete:
            return f"triggers for {self.name} of {self.table} are missing or disabled: run {self.command}"
        if self.problem or not self.replaced:
            return None
        return (
            f"{self.name} of {self.table} is made of a table whose name another one has taken: to use the other, run "
            f"{self._command(self.near_as, self.far_as)}; to go on, run {self.command}"
        )

    def _command(self, near: str, far: str | None) -> str:
        options = {
            "--of": [far or near],
            "--through": [near] if far else [],
            "--show": [column or "COLUMN" for column in self.shown],
            "--order-by": self.order_by,
            "--task-column": [self.task_column],
            "--key-column": [self.key_column],
            "--link-column": [self.link_column],
            "--filter": [self.far_filter if far else self.near_filter],
            "--link-filter": [self.near_filter if far else None],
        }
        words = [word for name, values in options.items() for value in values if value for word in (name, value)]
        return shlex.join(["relay", "sql", "extra", self.table, self.name, *words])

    @property
    def shortcoming(self) -> str:
        """Say in one line why it is not shown."""
        return (
            f"{self.name} of {self.table} {self.problem}, and is not shown: run {self.command} with the columns as "
            f"they are now, or relay sql drop-extra {shlex.quote(self.table)} {self.name}"
        )


@dataclass(frozen=True, slots=True)
class Watched:
    """A row of relay.watched."""

    id: int
    table: str
    id_column: str | None
    board_column: str | None
    lane_column: str | None
    hidden: Sequence[str]
    shown: Sequence[str] | None
    order_by: Sequence[str]
    triggers_complete: bool
    problem: str | None
    watched_as: str
    target: int
    replaced: bool
    filter: str | None
    board_as: str | None
    lane_as: str | None
    lanes: str | None
    key_columns: Sequence[str]
    id_prefix: str | None
    as_text: bool
    columns: Sequence[str]
    ordering: Sequence[Mapping[str, Any]] | None
    distinct_ids: bool
    id_kind: str
    board_kind: str
    lost_order: Sequence[str]
    is_key: bool
    extras: Sequence[tuple[int, str, str]] | None
    detaching: str | None
    missing_right: str | None
    triggers_always: bool

    @property
    def watch(self) -> Watch:
        shown = None if self.shown is None else frozenset(self.shown)
        return Watch(
            *(self.id, self.table, self.id_column, self.board_column, self.lane_column),
            *(frozenset(self.hidden), shown),
            order=tuple(_order_key(**key) for key in self.ordering or ()),
            visible=tuple(self.columns),
            lanes=self.lanes is not None,
            board_kind=self.board_kind,
            extras=tuple(Extra(*each) for each in self.extras or ()),
            in_doubt=self.detaching is not None,
        )

    def command(self, table: str) -> str:
        """Return the shell command that watches a table with the options of this one."""
        given = {
            "--id": self.id_column,
            "--id-prefix": self.id_prefix,
            "--board": self.board_column,
            "--board-as": self.board_as,
            "--lane": self.lane_column,
            "--lane-as": self.lane_as,
            "--lanes": self.lanes,
            "--filter": self.filter,
        }
        options: dict[str, Sequence[str]] = {name: [value] for name, value in given.items() if value is not None}
        options |= {"--hide": self.hidden} if self.shown is None else {"--show": self.shown}
        options |= {"--order-by": _rest(self.order_by, self.lost_order)}
        options |= {} if self.id_column else {"--key": self.key_columns}
        words = ["relay", "sql", "watch", table]
        words += [word for name, values in options.items() for value in values for word in (name, value)]
        flags = {"--as-text": self.as_text, "--distinct-ids": self.distinct_ids}
        return shlex.join([*words, *(flag for flag, is_set in flags.items() if is_set)])

    def may_clash(self, other: Watched) -> bool:
        """Whether it and another table may have tasks with the same id on the same board, as far as is known."""
        alike = (self.id_kind, self.id_prefix, self.board_kind) == (other.id_kind, other.id_prefix, other.board_kind)
        return alike and self.id_kind != "uuid" and not (self.distinct_ids or other.distinct_ids)

    @property
    def repair(self) -> str:
        """Return the beginning of the command by which to name its columns again, or those of its lanes."""
        of_lanes = self.lanes is not None and (self.problem or "").startswith("has its lanes in")
        return shlex.join(["relay", "sql", *(["lanes", str(self.lanes)] if of_lanes else ["watch", self.table])])

    @property
    def fault(self) -> str | None:
        """Say in one line what keeps its changes from being shown, and what to run."""
        unwatch = shlex.join(["relay", "sql", "unwatch", self.table])
        if self.problem == _ANOTHER:
            return f"{self.table} {self.problem}: to show it, run {self.command(self.table)}; if not, run {unwatch}"
        if self.problem:
            return (
                f"{self.table} {self.problem}, and is not shown: run {self.repair} with the columns as they are now"
            )
        if not self.triggers_complete:
            return (
                f"triggers of {self.table} are missing or disabled: run {self.repair}; to give it up, run {unwatch}"
            )
        return self._replacement if self.replaced else None

    @property
    def shortcoming(self) -> str | None:
        """Say in one line what is not as it should be where its changes are shown, and what to run."""
        lost = _disorder(self.table, self.lost_order, self.command(self.table)) if self.lost_order else None
        doubled = None if self.is_key or self.problem else _no_key(self.table, self.key_columns)
        detaching = None if self.detaching is None else _being_detached(self.table, self.detaching)
        missing = self.missing_right and f"{self.table} is read by role relay_reader: {self.missing_right}"
        return "; ".join(filter(None, (missing, doubled, lost, detaching))) or None

    @property
    def _replacement(self) -> str:
        """Say that another table took its name, and what to run."""
        again, unwatch = (shlex.join(["relay", "sql", word, self.table]) for word in ("watch", "unwatch"))
        return (
            f"{self.table} is shown, which was watched as {self.watched_as}, and another table has that name: "
            f"to show the other, run {unwatch} and {self.command(self.watched_as)}; to go on, run {again}"
        )


def _rest(order_by: Sequence[str], lost: Collection[str]) -> Sequence[str]:
    """Return what is left of an order; an empty text says that nothing is."""
    return [entry for entry in order_by if entry not in lost] or [""]


def _disorder(table: str, lost: Sequence[str], command: str) -> str:
    return f"{table} cannot be ordered by {lost[0]!r} any more: run {command}, or name another column to order it by"


def _no_key(table: str, columns: Sequence[str]) -> str:
    return (
        f"rows of {table} may share an id, which is one task to clients, for ({', '.join(columns)}) has no unique "
        "index of its own any more, or may be null: restore its key, or have the table watched by another"
    )


def _not_always(table: str, command: str) -> str:
    return (
        f"what replication applies to {table} is not shown, nor what a session whose session_replication_role is "
        f"replica writes, because its triggers are not enabled always: run {command}"
    )


def _being_detached(table: str, part: str) -> str:
    return (
        f"{part} is being detached from {table}, and until that is over each change has its board read again: "
        f"if it was given up, run alter table {table} detach partition {part} finalize"
    )


@dataclass(frozen=True, slots=True)
class LaneTable:
    """A row of relay.lane_tables."""

    table: str
    id_column: str | None
    board_column: str | None
    name_column: str | None
    filter: str | None
    order_by: Sequence[str]
    triggers_complete: bool
    declared_as: str
    replaced: bool
    lost_order: Sequence[str]
    is_key: bool
    triggers_always: bool

    def command(self, table: str) -> str:
        """Return the shell command that declares a table with the options of this one."""
        given = {"--id": self.id_column, "--board": self.board_column or "", "--name": self.name_column}
        words = [word for name, value in given.items() if value is not None for word in (name, value)]
        words += [] if self.filter is None else ["--filter", self.filter]
        words += [word for entry in _rest(self.order_by, self.lost_order) for word in ("--order-by", entry)]
        return shlex.join(["relay", "sql", "lanes", table, *words])

    def fault(self, watched: Iterable[Watched]) -> str | None:
        """Say in one line why the lanes that are shown may be wrong, and what to run."""
        again = shlex.join(["relay", "sql", "lanes", self.table])
        if not self.triggers_complete:
            return f"triggers of {self.table} are missing or disabled: run {again}"
        commands = [
            shlex.join(["relay", "sql", "watch", each.table, "--lanes", self.declared_as])
            for each in watched
            if each.lanes == self.table
        ]
        if not (self.replaced and commands):
            return None
        commands.insert(0, self.command(self.declared_as))
        return (
            f"{self.table} has the lanes, which was declared as {self.declared_as}, and another table has that name: "
            f"to use the other, run {' and '.join(commands)}; to go on, run {again}"
        )

    @property
    def shortcoming(self) -> str | None:
        """Say in one line what is not as it should be with these lanes, and what to run."""
        lost = _disorder(self.table, self.lost_order, self.command(self.table)) if self.lost_order else None
        doubled = None if self.is_key or self.id_column is None else _no_key(self.table, [self.id_column])
        return "; ".join(filter(None, (doubled, lost))) or None


async def read_watched(connection: Connection) -> list[Watched]:
    """Read what is watched."""
    return [Watched(*row) for row in await connection.rows(_WATCHED)]


async def read_failing_extras(connection: Connection) -> list[Declared]:
    """Read which extras are not shown, or lack triggers, or have triggers that replication does not fire."""
    return [Declared(*row) for row in await connection.rows(_FAILING_EXTRAS)]


async def read_lanes(connection: Connection) -> list[LaneTable]:
    """Read which tables are declared as tables of lanes."""
    return [LaneTable(*row) for row in await connection.rows(_LANES)]


class Closure(NamedTuple):
    """The oids of everything that determines how images are made: one list for each parameter of the journal's stamp.

    Partitions without partitions of their own are not among the tables, because they can be many, and their columns
    are those of their table.
    """

    columns_of: list[int]
    triggers_of: list[int]
    partitions_of: list[int]
    labels_of: list[int]
    casts_of: list[int]
    functions: list[int]


class Watches:
    """The watches of a database, read over a connection that others use, too.

    `closure` is as of when the shape of the tables was last noted.
    """

    def __init__(self, reader: Connection) -> None:
        self.closure = Closure([], [], [], [], [], [])
        self.by_id: Mapping[int, Watch] = {}
        self._reader = reader
        self._known: dict[int, Watched] = {}
        self._lanes: list[LaneTable] = []
        self._extras: list[Declared] = []

    @property
    def problem(self) -> str | None:
        """Say in one line what keeps changes from being shown, if anything does."""
        faults = [fault for each in self._known.values() if (fault := each.fault)]
        faults += [fault for each in self._lanes if (fault := each.fault(self._known.values()))]
        faults += [fault for each in self._extras if (fault := each.fault)]
        if not self._known and not faults:
            return "nothing is watched: run relay sql watch with the name of the tasks table"
        return faults[0] if faults else None

    @property
    def shortcomings(self) -> Mapping[str, str]:
        """Say in one line each what is not as it should be in tables that are shown."""
        tables: list[Watched | LaneTable] = [*self._known.values(), *self._lanes]
        extras = {f"{each.table}.{each.name}": each.shortcoming for each in self._extras if each.problem}
        of_tables = {each.table: problem for each in tables if (problem := each.shortcoming)}
        return self._half_enabled() | of_tables | extras

    def _half_enabled(self) -> dict[str, str]:
        """Say the same of triggers that replication does not fire."""
        declared = {each.table: (each, each.repair) for each in self._known.values()}
        lanes = {each.table: (each, shlex.join(["relay", "sql", "lanes", each.table])) for each in self._lanes}
        extras = {f"{each.table}.{each.name}": (each, each.command) for each in self._extras}
        return {
            name: _not_always(name, command)
            for name, (each, command) in (extras | lanes | declared).items()
            if each.triggers_complete and not each.triggers_always
        }

    async def load(self) -> None:
        """Read what is watched, and whether its triggers are in place."""
        async with self._reader.in_turn:
            self._lanes = await read_lanes(self._reader)
            self._extras = await read_failing_extras(self._reader)
            found = await read_watched(self._reader)
        self._known = {each.id: each for each in found}
        self.by_id = {each.id: each.watch for each in found if each.problem is None}

    @property
    def found_through_lanes(self) -> list[int]:
        """The watches whose tasks are found through their lanes."""
        return [number for number, watch in self.by_id.items() if watch.lanes]

    @property
    def depend_on_other_tables(self) -> bool:
        """Whether tasks depend on tables other than their own."""
        return any(watch.lanes or watch.extras for watch in self.by_id.values())

    async def load_for(self, entries: Iterable[Entry]) -> None:
        """Read the watches again if entries show that they have changed."""
        if any(entry.op == "S" or self.is_unknown(entry) for entry in entries):
            await self.load()

    def is_unknown(self, entry: Entry) -> bool:
        """Whether an entry was made under a watch that was added since these were read, or that no longer exists."""
        return entry.op == "R" and entry.watch not in self.by_id

"""`relay check --suggest`: reads the keys and the columns of a table, and proposes how to watch it.

Rules:
- It proposes what a person would guess from the names, and no more. What it cannot tell it leaves out, so that the
  command says what is missing.
- What is printed can be pasted, and is to be read first.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg

from relay.postgres.install import InstallError
from relay.text import error_line

_LANE: Final = ("lane", "list", "column", "stack", "status", "state", "bucket", "stage")
_BOARD: Final = ("board", "project", "workspace", "space", "team")
_NAME: Final = ("name", "title", "label")
_POSITION: Final = ("position", "rank", "pos", "sort", "sort_order", "order", "order_index", "created_at")

_TABLE: Final[LiteralString] = """
    select pg_catalog.format('%%I.%%I', n.nspname, c.relname),
           array(select k.attname::text
                 from pg_catalog.pg_index i
                 cross join lateral unnest(i.indkey::smallint[]) with ordinality u (attnum, n)
                 join pg_catalog.pg_attribute k on k.attrelid = i.indrelid and k.attnum = u.attnum
                 where i.indrelid = c.oid and i.indisprimary order by u.n)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = %s::text::regclass
"""
_COLUMNS: Final[LiteralString] = """
    select a.attname::text, pg_catalog.format_type(a.atttypid, null),
           (select pg_catalog.format('%%I.%%I', n.nspname, r.relname)
            from pg_catalog.pg_constraint f
            join pg_catalog.pg_class r on r.oid = f.confrelid
            join pg_catalog.pg_namespace n on n.oid = r.relnamespace
            where f.conrelid = a.attrelid and f.contype = 'f' and f.conkey = array[a.attnum] limit 1)
    from pg_catalog.pg_attribute a
    where a.attrelid = %s::text::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""


@dataclass(frozen=True)
class Table:
    """A table: its key, the types of its columns, and to which table a column refers."""

    name: str
    key: Sequence[str]
    types: Mapping[str, str]
    refers: Mapping[str, str] = field(default_factory=dict)

    def first(self, words: Iterable[str], columns: Iterable[str] | None = None) -> str | None:
        """Return the first column that is called like the first of the words that one is called like."""
        among = list(self.types if columns is None else columns)
        return next((column for word in words for column in among if _is_called(column, word)), None)


def _is_called(column: str, word: str) -> bool:
    return re.fullmatch(rf"(.*_)?{word}(_id|Id)?", column, re.IGNORECASE) is not None


def suggest(database_url: str, table: str) -> list[str]:
    """Return the commands that watch a table, as a person would guess. Raises InstallError."""
    try:
        with psycopg.connect(database_url) as connection:
            card = _read(connection, table)
            referred = {name: _read(connection, name) for name in set(card.refers.values())}
    except psycopg.Error as ex:
        raise InstallError(error_line(ex)) from ex
    return commands(card, referred)


def _read(connection: psycopg.Connection, table: str) -> Table:
    [(name, key)] = connection.execute(_TABLE, [table]).fetchall()
    rows: list[Any] = connection.execute(_COLUMNS, [table]).fetchall()
    types = {column: its_type for column, its_type, _ in rows}
    return Table(name, key, types, {column: other for column, _, other in rows if other is not None})


def commands(card: Table, referred: Mapping[str, Table]) -> list[str]:
    """Return the commands, given the tables that it refers to. Pure."""
    lane = card.first(_LANE, card.refers)
    lanes = referred[card.refers[lane]] if lane is not None else None
    if lanes is not None and lanes.first(_NAME) is None:
        lane, lanes = None, None
    lane = lane or card.first(_LANE)
    watch = ["relay", "sql", "watch", card.name, *_key(card)]
    found = []
    board = None
    if lanes is not None:
        board = lanes.first(_BOARD)
        found.append(_lanes(lanes, board))
    if board is None:
        watch += _option("--board", card.first(_BOARD))
    watch += _option("--lane", lane)
    watch += ["--lanes", lanes.name] if lanes is not None else []
    watch += _option("--filter", _filter(card)) + _option("--order-by", card.first(_POSITION))
    return [*found, shlex.join(watch)]


def _lanes(lanes: Table, board: str | None) -> str:
    words = ["relay", "sql", "lanes", lanes.name, "--board", board or "", *_option("--name", lanes.first(_NAME))]
    words += _option("--id", lanes.key[0] if lanes.key else None) if lanes.key != ["id"] else []
    return shlex.join(words + _option("--filter", _filter(lanes)) + _option("--order-by", lanes.first(_POSITION)))


def _key(card: Table) -> list[str]:
    if len(card.key) == 1:
        big = ["--as-text"] if card.types[card.key[0]] == "bigint" else []
        return (["--id", card.key[0]] if card.key != ["id"] else []) + big
    return [word for column in card.key for word in ("--key", column)]


def _filter(table: Table) -> str | None:
    """Say which rows an application hides as a rule: deleted, archived and closed ones, and drafts."""
    conditions = []
    for column, its_type in table.types.items():
        name = f'"{column}"' if column != column.lower() else column
        if its_type == "boolean" and re.search(
            r"deleted|archived|draft|closed|hidden|private", column, re.IGNORECASE
        ):
            conditions.append(f"{name} is not true")
        elif re.fullmatch(r"(deleted|delete|archived|closed)_?at", column, re.IGNORECASE):
            conditions.append(f"{name} = 0" if its_type in {"integer", "bigint"} else f"{name} is null")
    return " and ".join(conditions) or None


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [name, value]

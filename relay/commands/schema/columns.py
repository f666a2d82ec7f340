"""The shape of a table's tasks: reads its visible columns from the catalog, and how Postgres renders their types.

Rules:
- The same logic as `row_to_json`: a domain is rendered as its base type, and a type with a user-defined cast to json
  may be anything.
- The results of expressions are text, and so are values sent as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg

from relay.commands.schema.languages import JsonType, Key, Kind, Shape
from relay.postgres.connection import PINNED_PATH, Connection, complete
from relay.postgres.decode import camel_case
from relay.postgres.install import InstallError
from relay.postgres.watches import Watched, read_watched
from relay.text import error_line

_FIND: Final[LiteralString] = "select pg_catalog.to_regclass(%s)::oid, relay.version() is not null"

# The types of all columns, recursively down to Postgres's own, with their components; and the table itself as oid 0.
_ATTRIBUTES: Final[LiteralString] = """
    with recursive
    attribute (relation, n, type, described) as not materialized (
        select a.attrelid, a.attnum, a.atttypid,
               pg_catalog.json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.attnotnull, a.attndims)
        from pg_catalog.pg_attribute a where a.attnum > 0 and not a.attisdropped
    ),
    made_of (oid) as (
        select a.type from attribute a where a.relation = %s
        union
        select inner_type.oid
        from made_of m
        join pg_catalog.pg_type t on t.oid = m.oid
        cross join lateral (
            select t.typbasetype
            union all
            select t.typelem
            union all
            select a.type from attribute a where a.relation = t.typrelid
        ) inner_type (oid)
        where inner_type.oid <> 0
    )
    select t.oid, t.typname::text, t.typtype::text, t.typbasetype, t.typtypmod, t.typnotnull,
           case when t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc then t.typelem else 0::oid end,
           array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = t.oid
                 order by e.enumsortorder),
           exists (select from pg_catalog.pg_cast c where c.castsource = t.oid and c.castmethod = 'f'
                   and t.oid >= 16384 and c.casttarget = 'pg_catalog.json'::regtype),
           array(select a.described from attribute a where a.relation = t.typrelid order by a.n)
    from made_of m join pg_catalog.pg_type t on t.oid = m.oid
    union all
    select 0::oid, '', 'c', 0::oid, -1, false, 0::oid, '{}', false,
           array(select a.described from attribute a where a.relation = %s order by a.n)
"""

# The shown columns of extras: name, type, and labels of an enum.
_EXTRAS: Final[LiteralString] = """
    select e.name, e.single, array(
        select pg_catalog.json_build_array(a.attname, t.typname,
                   array(select l.enumlabel from pg_catalog.pg_enum l where l.enumtypid = t.oid
                         order by l.enumsortorder))
        from pg_catalog.unnest(e.shown) with ordinality c (name, n)
        join pg_catalog.pg_attribute a on a.attrelid = coalesce(e.far, e.near) and a.attname = c.name
        cross join relay.base_type(a.atttypid) base
        join pg_catalog.pg_type t on t.oid = base
        order by c.n)
    from relay.extras e where e.target = %s and e.problem is null order by e.name
"""

_TABLE: Final = 0
"""The oid that stands for the table among the types."""

_KINDS: Final[Mapping[str, Kind]] = {
    "bool": "boolean",
    "int2": "integer",
    "int4": "integer",
    "int8": "bigint",
    "float4": "float",
    "float8": "float",
    "json": "any",
    "jsonb": "any",
}
"""Postgres's own types whose JSON is not text; numeric depends on its scale."""

_FIRST_OF_USERS: Final = 16384
"""The first oid of user-defined objects (FirstNormalObjectId)."""

_MODIFIER: Final = 4
"""The offset of the type modifier of a numeric (VARHDRSZ); below it, there is no precision or scale."""


@dataclass(frozen=True, slots=True)
class _Attribute:
    name: str
    type: int
    modifier: int
    not_null: bool
    dimensions: int


@dataclass(frozen=True, slots=True)
class _Type:
    oid: int
    name: str
    kind: str
    base: int
    modifier: int
    not_null: bool
    element: int
    labels: Sequence[str]
    has_cast: bool
    attributes: Sequence[_Attribute]


async def read(database_url: str, table: str) -> Shape:
    """Read what the tasks of a table are. Raises InstallError."""
    try:
        # With the settings of the session: a name may be found by its search path.
        connection = await Connection.connect(complete(database_url), autocommit=True)
        try:
            return await _read(connection, table)
        finally:
            await connection.close()
    except psycopg.errors.InvalidSchemaName as ex:
        raise InstallError(f"{error_line(ex)}: run relay sql install first") from ex
    except psycopg.Error as ex:
        raise InstallError(error_line(ex)) from ex


async def _read(connection: Connection, table: str) -> Shape:
    oid, _ = await connection.row(_FIND, table)
    if oid is None:
        raise InstallError(f"there is no table {table}: expected one that is watched, like public.tasks")
    await connection.rows(PINNED_PATH)
    watched = next((each for each in await read_watched(connection) if each.target == oid), None)
    if watched is None:
        raise InstallError(f"{table} is not watched: run relay sql watch {table} first")
    if watched.problem:
        raise InstallError(watched.fault or watched.problem)
    rows = await connection.rows(_ATTRIBUTES, oid, oid)
    types = {row[0]: _Type(*(*row[:9], [_Attribute(*each) for each in row[9]])) for row in rows}
    extras = [_extra(*row) for row in await connection.rows(_EXTRAS, oid)]
    return Shape(watched.table, [*_task(watched, types), *extras])


def _extra(name: str, single: bool, shown: Sequence[tuple[str, str, Sequence[str]]]) -> Key:
    """Return the key of an extra, which is null if it is too large, and so is each value."""
    keys = [
        Key(camel_case(column), JsonType("enum", labels=labels) if labels else _own(its_type, -1), nullable=True)
        for column, its_type, labels in shown
    ]
    if not keys:
        return Key(name, JsonType("bigint"), nullable=False)
    value = keys[0].type if len(keys) == 1 else JsonType("object", name=name, keys=keys)
    return Key(name, value if single else JsonType("array", item=value), nullable=True)


def _task(watched: Watched, types: Mapping[int, _Type]) -> list[Key]:
    """Return the keys of a task: those that are always text, then the columns in their order."""
    columns = {column.name: column for column in types[_TABLE].attributes}
    watch = watched.watch
    keys = {key: _key(key, columns[name], types) for name, key in watch.keys(watched.columns).items()}
    lane_may_be_null = watched.lanes is None
    made_text = {
        "id": watched.as_text or watched.id_prefix is not None or watched.id_column is None,
        "boardId": watched.as_text or watched.board_column is None,
        "lane": watched.as_text or watched.lane_column is None,
    }
    for key, is_text in made_text.items():
        known = keys.get(key)
        its_type = JsonType("string") if known is None or is_text else known.type
        nullable = key == "lane" and lane_may_be_null and (known is None or known.nullable)
        keys[key] = Key(key, its_type, nullable=nullable)
    first = [key for key, is_text in made_text.items() if is_text]
    return [keys[key] for key in dict.fromkeys([*first, *keys])]


def _key(key: str, column: _Attribute, types: Mapping[int, _Type]) -> Key:
    its_type = types[column.type]
    not_null = column.not_null
    while its_type.base:
        not_null |= its_type.not_null
        its_type = types[its_type.base]
    return Key(key, _json_type(column.type, column.modifier, column.dimensions, types), nullable=not not_null)


def _json_type(oid: int, modifier: int, dimensions: int, types: Mapping[int, _Type]) -> JsonType:
    """Return the JSON type of a value."""
    its_type = types[oid]
    while its_type.base:
        modifier = its_type.modifier if its_type.modifier >= 0 else modifier
        its_type = types[its_type.base]
    if its_type.element:
        item = _json_type(its_type.element, modifier, 0, types)
        for _ in range(max(1, dimensions)):
            item = JsonType("array", item=item)
        return item
    if its_type.kind == "c":
        keys = [_key(each.name, each, types) for each in its_type.attributes]
        # NOT NULL of a table applies to its rows, not to other values of its row type.
        return JsonType("object", name=its_type.name, keys=[Key(key.name, key.type, nullable=True) for key in keys])
    if its_type.kind == "e":
        return JsonType("enum", labels=its_type.labels)
    if its_type.has_cast:
        return JsonType("any")
    if its_type.oid < _FIRST_OF_USERS:
        return _own(its_type.name, modifier)
    return JsonType("string")


def _own(name: str, modifier: int) -> JsonType:
    if name != "numeric":
        return JsonType(_KINDS.get(name, "string"))
    if modifier < _MODIFIER:
        return JsonType("numeric")
    scale = ((modifier - _MODIFIER & 0x7FF) ^ 1024) - 1024
    return JsonType("decimal" if scale > 0 else "whole")

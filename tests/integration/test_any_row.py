"""No statement fails because of us, whatever a row holds: what a follower holds is a fresh board, to the byte.

What cannot be shown is left out and reported; neither its board nor another is sent again for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import msgspec
import psycopg
import pytest
import structlog
from psycopg import sql
from websockets.asyncio.client import ClientConnection, connect

from relay.postgres import install
from tests.integration.client import until
from tests.integration.conftest import Relay
from tests.servers import Database, Server, temporary_database
from tests.servers import install as install_all
from tests.twins import Twins

Task = dict[str, bytes]


_SECONDS = 10.0


class _Message(msgspec.Struct):
    type: str
    data: msgspec.Raw


class _Update(msgspec.Struct):
    id: msgspec.Raw
    changes: dict[str, msgspec.Raw]


class Follower:
    """A subscriber that holds the board as the bytes it was sent."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.tasks: dict[str, Task] = {}
        self.kinds: list[str] = []
        """The types of all messages since the board was first sent."""

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, relay: Relay, board: str) -> AsyncIterator[Follower]:
        """Follow a board, for as long as the context lasts."""
        async with connect(relay.url, max_size=None, max_queue=None) as connection:
            follower = cls(connection)
            await connection.send(msgspec.json.encode({"type": "subscribe", "boardId": board}), text=True)
            await follower.receive()
            follower.kinds.clear()
            yield follower

    async def until(self, task: str, column: str = "id", value: str | None = None) -> None:
        """Take messages until a task is there, and one of its columns has that text."""
        wanted = msgspec.json.encode(task if value is None else value)
        key = msgspec.json.encode(task).decode()
        while self.tasks.get(key, {}).get(column) not in {wanted, wanted.strip(b'"')}:
            await self.receive()

    async def receive(self) -> str:
        """Apply the next message, and return its type."""
        async with asyncio.timeout(_SECONDS):
            text = await self._connection.recv(decode=False)
        message = msgspec.json.decode(text, type=_Message)
        self._apply(message.type, message.data)
        self.kinds.append(message.type)
        return message.type

    def _apply(self, kind: str, data: msgspec.Raw) -> None:
        match kind:
            case "board.sync":
                board = msgspec.json.decode(data, type=dict[str, dict[str, list[dict[str, msgspec.Raw]]]])
                tasks = (_bytes(task) for lane in board["lanes"].values() for task in lane)
                self.tasks = {task["id"].decode(): task for task in tasks}
            case "task.created":
                task = _bytes(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
                self.tasks[task["id"].decode()] = task
            case "task.updated":
                update = msgspec.json.decode(data, type=_Update)
                self.tasks[bytes(update.id).decode()].update(_bytes(update.changes))
            case "task.moved":
                moved = _bytes(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
                self.tasks[moved["id"].decode()]["lane"] = moved["toLane"]
            case "task.deleted":
                del self.tasks[_bytes(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))["id"].decode()]
            case _:
                raise AssertionError(kind, data)


def _bytes(task: dict[str, msgspec.Raw]) -> Task:
    return {column: bytes(value) for column, value in task.items()}


async def differing(relay: Relay, follower: Follower, board: str) -> dict[tuple[str, str], object]:
    """Return which columns of which tasks a follower holds otherwise than a fresh board has them."""
    async with Follower.of(relay, board) as fresh:
        return {
            (task, column): (follower.tasks.get(task, {}).get(column), fresh.tasks.get(task, {}).get(column))
            for task in follower.tasks.keys() | fresh.tasks.keys()
            for column in follower.tasks.get(task, {}).keys() | fresh.tasks.get(task, {}).keys()
            if follower.tasks.get(task, {}).get(column) != fresh.tasks.get(task, {}).get(column)
        }


# Every type, under every setting

_SAMPLES = {
    "aclitem": "pg_monitor=r/pg_monitor",
    "bit": "1",
    "bool": "true",
    "box": "(3.3,4.4),(1.1,0.1)",
    "bpchar": "c  ",
    "bytea": "\\x00ff5c",
    "char": "x",
    "cid": "7",
    "cidr": "10.0.0.0/8",
    "circle": "<(0.1,0.2),0.3>",
    "date": "2026-03-04",
    "datemultirange": "{[2026-03-04,2026-03-09)}",
    "daterange": "[2026-03-04,2026-03-09)",
    "float4": "0.1",
    "float8": "0.30000000000000004",
    "inet": "10.0.0.1",
    "int2": "1",
    "int2vector": "1 2",
    "int4": "1",
    "int4multirange": "{[1,3)}",
    "int4range": "[1,3)",
    "int8": "9007199254740993",
    "int8multirange": "{[1,3)}",
    "int8range": "[1,3)",
    "interval": "1 year 2 days 03:04:05.6",
    "json": '{"b":1,  "a": 1.10}',
    "jsonb": '{"b": 1, "a": 1.10}',
    "jsonpath": "$.a",
    "line": "{1.1,2.2,3.3}",
    "lseg": "[(0.1,0.2),(0.3,0.4)]",
    "macaddr": "08:00:2b:01:02:03",
    "macaddr8": "08:00:2b:01:02:03:04:05",
    "money": "1234.5",
    "name": "Some name",
    "numeric": "1.10",
    "nummultirange": "{[1.10,2)}",
    "numrange": "[1.10,2)",
    "oid": "7",
    "oidvector": "1 2",
    "oid8": "7",
    "path": "((0.1,0.2),(0.3,0.4))",
    "pg_lsn": "16/B374D848",
    "pg_snapshot": "10:20:10,14",
    "point": "(0.1,0.2)",
    "polygon": "((0.1,0.2),(0.3,0.4))",
    "refcursor": "c",
    "regclass": "public.every",
    "regcollation": '"C"',
    "regconfig": "english",
    "regdatabase": "template1",
    "regdictionary": "simple",
    "regnamespace": "public",
    "regoper": "public.<%>",
    "regoperator": "public.<%>(integer,integer)",
    "regproc": "public.only_here",
    "regprocedure": "public.only_here(integer)",
    "regrole": "pg_monitor",
    "regtype": "public.feeling",
    "text": 'a "quoted" \\ line\nnext \u00e9 \u2028',
    "tid": "(1,2)",
    "time": "03:04:05.6",
    "timestamp": "2026-03-04 05:06:07.891",
    "timestamptz": "2026-03-04 05:06:07.891+02",
    "timetz": "03:04:05+02",
    "tsmultirange": "{[2026-03-04,2026-03-09)}",
    "tsquery": "cat & dog",
    "tsrange": "[2026-03-04,2026-03-09)",
    "tstzmultirange": "{[2026-03-04 00:00+02,2026-03-09 00:00+02)}",
    "tstzrange": "[2026-03-04 00:00+02,2026-03-09 00:00+02)",
    "tsvector": "cat:1 dog:2",
    "txid_snapshot": "10:20:10,14",
    "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "varbit": "101",
    "varchar": "v",
    "xid": "7",
    "xid8": "7",
    "xml": "<a>1</a>",
    # the user's own
    "feeling": 'it\'s "fine"',
    "slug": "a-b",
    "whole": '("2026-03-04 05:06:07+02","1 day",0.30000000000000004,"\\\\x00ff",1.50,public.every,"(x,""{1,2}"")")',
    "spans": "[2026-03-04 00:00+02,2026-03-09 00:00+02)",
}

_NO_INPUT = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}

_OWN_TYPES = r"""
create type feeling as enum ('it''s "fine"', 'so-so');
create domain slug as text check (value ~ '^[a-z-]+$');
create type part as (x text, y int[]);
create function only_here(int) returns int language sql as 'select $1';
create function only_here_too(int, int) returns boolean language sql as 'select true';
create operator <%> (leftarg = int, rightarg = int, function = only_here_too);
create table every (id text primary key, board_id text not null, lane text not null default 'todo', n int);
create type whole as (a timestamptz, b interval, c float8, d bytea, e money, f regclass, g part);
create type spans as range (subtype = timestamptz);
"""

_WRITERS = [
    "set timezone = 'Asia/Kathmandu'",
    "set datestyle = 'German'",
    "set datestyle = 'SQL, DMY'",
    "set intervalstyle = 'iso_8601'",
    "set intervalstyle = 'sql_standard'",
    "set extra_float_digits = -10",
    "set extra_float_digits = 0",
    "set bytea_output = 'escape'",
    "set xmlbinary = 'hex'",
    "set xmloption = 'document'",
    "set quote_all_identifiers = on",
    "set standard_conforming_strings = off; set escape_string_warning = off",
    "set search_path = ''",
    "set search_path = pg_catalog, public",
    "set search_path = public, pg_catalog, pg_temp",
    "set default_text_search_config = 'german'",
    "set client_encoding = 'LATIN1'",
    "set client_encoding = 'EUC_JP'",
    "set timezone_abbreviations = 'Australia'",
    "set array_nulls = off",
    "set backslash_quote = off",
    "set default_transaction_isolation = 'serializable'",
    "set row_security = off",
    "set session_replication_role = replica",
    "set plan_cache_mode = force_generic_plan",
    "set plan_cache_mode = force_custom_plan",
    "set jit = on; set jit_above_cost = 0",
    "set check_function_bodies = off",
    "set work_mem = '64kB'",
    "set lc_numeric = 'C'; set lc_time = 'C'; set lc_messages = 'C'",
    "set statement_timeout = '10s'; set lock_timeout = '1s'",
]


@pytest.fixture
def every(database: Database) -> Database:
    """Return a database with a watched table that has a column of each type, and one of its array."""
    database.execute(_OWN_TYPES)
    types = dict(
        database.fetch(
            "select t.typname, a.typname from pg_type t left join pg_type a on a.oid = t.typarray "
            "where t.typtype in ('b', 'r', 'm') and t.typcategory <> 'A' "
            "and t.typnamespace = 'pg_catalog'::regnamespace "
            "union all select t.typname, a.typname from pg_type t join pg_type a on a.oid = t.typarray "
            "where t.typnamespace = 'public'::regnamespace and t.typname in ('feeling', 'slug', 'whole', 'spans')"
        )
    )
    assert types.keys() - _SAMPLES.keys() - _NO_INPUT == set()
    xml = types.pop("xml")
    with contextlib.suppress(psycopg.errors.FeatureNotSupported):  # a server may be built without
        database.fetch("select '<a/>'::xml")
        types["xml"] = xml
    columns = [
        sql.SQL("add column {} {} default {}, add column {} {} default array[{}]::{}").format(
            sql.Identifier(f"c_{name}"),
            sql.Identifier(name),
            literal := sql.SQL("{}::text::{}").format(sql.Literal(_SAMPLES[name]), sql.Identifier(name)),
            sql.Identifier(f"a_{name}"),
            sql.Identifier(array),
            literal,
            sql.Identifier(array),
        )
        for name, array in sorted(types.items())
        if name in _SAMPLES and array
    ]
    with database.connect() as connection:
        connection.execute(sql.SQL("alter table every {}").format(sql.SQL(", ").join(columns)))
    database.execute("insert into every (id, board_id) values ('base', 'b')")
    database.execute("select relay.watch('every', distinct_ids => true)")
    return database


def _write(database: Database, number: int, settings: str) -> None:
    """Write as a session with these settings: a row of its own, and one that others wrote as well."""
    with database.connect() as writer:
        writer.execute(settings.encode())
        writer.execute("insert into public.every (id, board_id) values (%s, 'b')", [f"w{number}"])
        writer.execute(
            "update public.every set n = %s, c_timestamptz = c_timestamptz + '1 s', c_money = c_money + 1::money, "
            "c_float8 = c_float8 / 3, c_tstzrange = null, a_bytea = a_bytea || c_bytea where id in (%s, 'base')",
            [number, f"w{number}"],
        )
        writer.execute("update public.every set id = id || 'x', lane = 'done' where id = %s", [f"w{number}"])


async def test_settings_of_a_writer_change_nothing_that_is_shown(every: Database, relay: Relay) -> None:
    """A value of any type has one text, whatever the settings of the session that wrote it."""
    other = _other_locale(every)
    writers = [*_WRITERS, *([f"set lc_monetary = '{other}'"] if other else [])]
    async with Follower.of(relay, "b") as follower:
        for number, settings in enumerate(writers):
            _write(every, number, settings)
        every.execute("insert into every (id, board_id) values ('last', 'b')")
        await follower.until("last")
        wrong = await differing(relay, follower, "b")

    assert {(writers[int(task.strip('"wx'))] if "w" in task else task, column): both
            for (task, column), both in wrong.items()} == {}  # fmt: skip
    assert "board.sync" not in follower.kinds
    assert len(follower.tasks) == len(writers) + 2


def test_settings_that_a_type_depends_on_are_seen_for_each_type_alone(database: Database) -> None:
    """Where a table has few types, triggers compare few settings: all those that its rows depend on."""
    types = [
        name
        for (name,) in database.fetch(
            "select t.typname from pg_type t where t.typnamespace = 'pg_catalog'::regnamespace "
            "and t.typarray <> 0 and t.typname = any (%s) order by 1",
            [*(_SAMPLES.keys() - {"xml"})],
        )
    ]
    database.execute(_OWN_TYPES)  # what these name
    other = _other_locale(database)
    writers = [database.connect() for _ in range(12 + bool(other))]
    for writer, settings in zip(writers, ["reset all", *_WRITERS[:11], f"set lc_monetary = '{other}'"], strict=False):
        writer.execute(settings.encode())
    for name in types:
        database.execute(
            f'create table public.t (id text primary key, board_id text, lane text, v "{name}", a "{name}"[])'
        )
        value = sql.SQL("{}::text::{}").format(sql.Literal(_SAMPLES[name]), sql.Identifier(name)).as_string()
        database.execute(f"insert into public.t values ('0', 'b', 'todo', {value}, array[{value}])")
        database.execute("select relay.watch('public.t', distinct_ids => true)")
        for number, writer in enumerate(writers, 1):
            writer.execute("insert into t select %s, 'b', 'todo', v, a from t where id = '0'", [str(number)])
        images = database.fetch(
            "select (e.new_row::jsonb - 'id')::text, count(*) from relay.entries e "
            "join relay.watches w on w.id = e.watch where e.op = 'R' and w.target = 'public.t'::regclass group by 1"
        )
        assert (name, [count for _, count in images]) == (name, [len(writers)]), images
        database.execute("drop table public.t")


_DATABASE = {
    "timezone": "Asia/Kathmandu",
    "datestyle": "German",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "default_text_search_config": "german",
    "search_path": "",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
    "plan_cache_mode": "force_custom_plan",
    "statement_timeout": "9s",
}


def _begin_with(database: Database, settings: dict[str, str]) -> None:
    """Set what the database's sessions begin with from now on."""
    with database.connect() as owner:
        for name, value in settings.items():
            statement = sql.SQL("alter database {} set {} to {}")
            owner.execute(
                statement.format(
                    *map(sql.Identifier, (owner.info.dbname, name)),
                    sql.SQL(", ").join(map(sql.Literal, value.split(", "))),
                )
            )


async def test_settings_of_the_database_change_nothing_that_is_shown(every: Database) -> None:
    """Nor do those that the relay's own sessions begin with."""
    _begin_with(every, _DATABASE)
    async with Relay(every.dsn).running() as relay, Follower.of(relay, "b") as follower:
        _write(every, 0, "select")
        _write(every, 1, "reset all; set timezone = 'UTC'; set datestyle = 'ISO'; set bytea_output = 'hex'")
        with every.connect() as last:
            last.execute("insert into public.every (id, board_id) values ('last', 'b')")
        await follower.until("last")

        assert await differing(relay, follower, "b") == {}
        assert "board.sync" not in follower.kinds


def _other_locale(database: Database) -> str | None:
    """Return a locale that writes money otherwise than the database's, if the server has one."""
    with database.connect() as connection:
        [[usual]] = connection.execute("select 1234.5::money::text").fetchall()
        for name in ("de_DE.UTF-8", "de_DE.utf8", "en_US.UTF-8", "en_US.utf8", "C"):
            with contextlib.suppress(psycopg.errors.InvalidParameterValue):
                connection.execute(f"set lc_monetary = '{name}'".encode())
                if connection.execute("select 1234.5::money::text").fetchall() != [(usual,)]:
                    return name
    return None


# Names

_NAMES = (
    *("v", "t", "old", "new", "tg_op", "tg_relid", "tg_argv", "image", "images", "w", "b", "r", "n", "o", "i", "x"),
    *(
        "row",
        "record",
        "value",
        "key",
        "board",
        "target",
        "watch",
        "select",
        "user",
        "order",
        "table",
        "from",
        "case",
    ),
    *(
        "Mixed Case",
        "x y",
        'a"b',
        "$1",
        "a'b",
        "back\\slash",
        "%s",
        "%I",
        "\u00e9",
        "found",
        "lsn",
        "xid",
        "seq",
        "op",
    ),
    *("old_rows", "new_rows", "old_row", "new_row", "old_table", "new_table", "old_image", "new_image", "inserted"),
    *(
        "deleted",
        "before",
        "after",
        "entry",
        "entries",
        "count",
        "rows",
        "task",
        "lanes",
        "columns",
        "hidden",
        "json",
    ),
    *("text", "sqlerrm", "sqlstate", "current_user", "excluded", "reason", "part", "pg_catalog", "relay", "journal"),
    *("was", "stands", "old_place", "new_place", "quick", "problem", "of_row"),
)


@pytest.mark.parametrize("places", [False, True], ids=["columns", "an expression"])
@pytest.mark.parametrize("listed", [False, True], ids=["all but hidden ones", "only listed ones"])
async def test_columns_of_any_name_are_shown(database: Database, relay: Relay, listed: bool, places: bool) -> None:
    """Keywords, names that generated code uses, and such as need quotes are columns like any, generated ones too."""
    visible = [name for name in _NAMES if name not in {"old", "value"}] + ["num", "twice"]
    with database.connect() as owner:
        columns = sql.SQL(", ").join(sql.SQL("{} text default 'd'").format(sql.Identifier(name)) for name in _NAMES)
        owner.execute(
            sql.SQL(
                "create table odd (id text primary key, board_id text, lane text, {}, num int default 1, "
                "twice int generated always as (num * 2) stored)"
            ).format(columns)
        )
        owner.execute(
            "select relay.watch('odd', hidden => %s, shown => %s::name[], filter => %s, distinct_ids => true)",
            (None if listed else ["old", "value"], visible if listed else None, "num > 0" if places else None),
        )
        async with Follower.of(relay, "b") as follower:
            owner.execute("insert into odd (id, board_id, lane) values ('a', 'b', 'todo'), ('z', 'b', 'todo')")
            changes = sql.SQL(", ").join(sql.SQL("{} = 'e'").format(sql.Identifier(name)) for name in _NAMES)
            owner.execute(sql.SQL("update odd set {}, num = 2 where id = 'a'").format(changes))
            owner.execute("update odd set lane = 'done' where id = 'a'; delete from odd where id = 'z'")
            owner.execute("insert into odd (id, board_id, lane) values ('last', 'b', 'todo')")
            await follower.until("last")
            assert await differing(relay, follower, "b") == {}

    assert "board.sync" not in follower.kinds
    task = follower.tasks['"a"']
    assert task["twice"] == b"4"
    assert [value for value in task.values() if value == b'"d"'] == []
    assert len(task) == 3 + len(visible)


@pytest.mark.parametrize(
    ("key", "board", "lane"),
    [("tg_op", "new", "old"), ("v", "t", "w"), ("select", "user", "order"), ('a"b', "$1", "%s"), ("row", "r", "b")],
)
async def test_key_board_and_lane_of_any_name_are_shown(
    database: Database, relay: Relay, key: str, board: str, lane: str
) -> None:
    with database.connect() as owner:
        names = [sql.Identifier(name) for name in (key, board, lane)]
        owner.execute(sql.SQL("create table odd ({} int primary key, {} text, {} text, n int)").format(*names))
        owner.execute("select relay.watch('odd', %s, %s, %s)", [key, board, lane])
        async with Follower.of(relay, "b") as follower:
            owner.execute("insert into odd values (1, 'b', 'todo', 1), (2, 'b', 'todo', 1)")
            owner.execute(sql.SQL("update odd set {} = 3, n = 2 where {} = 1").format(names[0], names[0]))
            owner.execute(sql.SQL("update odd set {} = 'done' where {} = 2").format(names[2], names[0]))
            owner.execute(sql.SQL("update odd set {} = 'c' where {} = 2").format(names[1], names[0]))
            owner.execute("insert into odd values (9, 'b', 'todo', 1)")
            while b"9" not in {task["id"] for task in follower.tasks.values()}:
                await follower.receive()

            assert await differing(relay, follower, "b") == {}
    assert follower.tasks.keys() == {"3", "9"}
    assert "board.sync" not in follower.kinds


async def test_functions_and_operators_called_like_postgress_own_are_not_called(database: Database) -> None:
    """Those of a schema that the search path names before pg_catalog are only the user's."""
    trap = "language plpgsql as $$ begin raise exception 'called as %', current_user; end $$"
    with database.connect() as owner:
        for signature in (
            "row_to_json(record) returns json",
            "to_json(anyelement) returns json",
            "to_jsonb(anyelement) returns jsonb",
            "json_build_object(variadic text[]) returns json",
            "pg_notify(text, text) returns void",
            "pg_current_wal_insert_lsn() returns pg_lsn",
            "pg_current_xact_id() returns xid8",
            "pg_current_snapshot() returns pg_snapshot",
            "current_setting(text) returns text",
            "format(text, variadic text[]) returns text",
            "octet_length(text) returns int",
            "pg_column_size(text) returns int",
            "now() returns timestamptz",
            "clock_timestamp() returns timestamptz",
            "trap(text, text) returns boolean",
            "trap(anyelement) returns boolean",
        ):
            owner.execute(f"create function public.{signature} {trap}".encode())
        for operator in ("=", "<>", "*=", "*<>", "||", ">=", "<"):
            owner.execute(
                f"create operator public.{operator} (leftarg = text, rightarg = text, function = trap)".encode()
            )
    _begin_with(database, {"search_path": "public, pg_catalog"})
    async with Relay(database.dsn).running() as relay, Follower.of(relay, "default") as follower:
        with database.connect() as writer:
            writer.execute("drop trigger tasks_set_updated_at on tasks")
            writer.execute("insert into tasks (id, title) values ('a', 'A')")
            writer.execute("update tasks set title = 'B', lane = 'done'")
            writer.execute("insert into tasks (id, title) values ('last', 'L')")
        await follower.until("last")

        assert await differing(relay, follower, "default") == {}
    assert follower.tasks['"a"']["title"] == b'"B"'
    assert "board.sync" not in follower.kinds


# Tables of any shape

_SHAPES = {
    "children": (
        "",
        "create table THIS_child (extra text) inherits (THIS)",
        "insert into THIS_child values ('no', 'b', '', 1)",
    ),
    "dropped": (
        "gone text default 'd', wide text default repeat('w', 5000)",
        "alter table THIS drop gone, add late text default repeat('l', 3000)",
        "update THIS set wide = 'short'",
    ),
    "missing": ("", "insert into THIS values ('old', 'b', '', 1); alter table THIS add late text default 'l'", ""),
    "many": (", ".join(f"c{n} smallint default 1" for n in range(1595)), "", "update THIS set c7 = 2, c1500 = null"),
    "generated": (
        "g int generated always as (shape_twice(n)) stored, i int generated by default as identity",
        "",
        "",
    ),
    "arrays": (
        "a int[] default '[5:7]={1,2,3}', d int[] default '[0:1][-1:0]={{1,2},{3,4}}'",
        "",
        "update THIS set a = '[6:8]={1,2,3}'; update THIS set a[20] = 5",
    ),
    "domains": ("x shape_digits default '{1,2}', y shape_digits[] default array['{1}'::shape_digits]", "", ""),
    "composites": (
        "o shape_outer default row(row('x y', array['q\"r', null]::shape_enum[]), null)",
        "",
        "update THIS set o.i.e = 'q\"r'",
    ),
    "floats": (
        "f float8 default 'NaN', g float4 default 'infinity', h numeric default '-infinity', k numeric default 1.10",
        "",
        "update THIS set k = 1.100, f = '-infinity'",
    ),
    "dates": (
        (
            "d date default '0044-03-15 BC', e date default 'infinity', g time default '24:00', "
            "i interval default '-1 d'"
        ),
        "",
        "update THIS set g = '00:00', i = '-1 days +2 mons'",
    ),
    "json": (
        """j json default '{"a":1,"a": {"b":1,"b":2}}', k json default '[1e400, 1E+2, -0, 1.0]'""",
        "",
        """update THIS set j = '{"a":2,"a":3}'; update THIS set k = '"\\u0000"'; update THIS set k = 'null'""",
    ),
}

_SHAPE_TYPES = """
create function shape_twice(x int) returns int immutable language plpgsql as 'begin return x * 2; end';
create domain shape_digit as int check (value between 0 and 9);
create domain shape_digits as shape_digit[] check (array_length(value, 1) < 5);
create type shape_enum as enum ('x y', 'q"r');
create type shape_inner as (e shape_enum, es shape_enum[]);
create type shape_outer as (i shape_inner, "Odd Name" timestamptz);
"""


async def test_rows_of_tables_of_any_shape_are_shown(database: Database, relay: Relay) -> None:
    """Whatever a column's type, default or history: each change is sent as a change."""
    database.execute(_SHAPE_TYPES)
    for name, (columns, settled, _) in _SHAPES.items():
        base = "id text primary key, board_id text, lane text, n int"
        database.execute(f"create table {name} ({base}{', ' if columns else ''}{columns})")
        database.execute(settled.replace("THIS", name))
        database.execute(f"select relay.watch('{name}', distinct_ids => true)")
    async with Follower.of(relay, "b") as follower:
        for name, (*_, changes) in _SHAPES.items():
            database.execute(f"insert into {name} values ('{name}', 'b', 'todo', 1), ('z', 'b', 'todo', 1)")
            database.execute(f"delete from {name} where id = 'z'")
            database.execute(f"update {name} set n = n + 1; update {name} set lane = 'done'")
            database.execute(changes.replace("THIS", name))
        database.execute("insert into missing values ('last', 'b', 'todo', 1)")
        await follower.until("last")
        assert await differing(relay, follower, "b") == {}

    assert follower.tasks.keys() == {f'"{name}"' for name in (*_SHAPES, "old", "last")}
    assert "board.sync" not in follower.kinds


# Columns that are retyped while a session lives on

_RETYPED = {
    "board int to bigint": ("board_id", "int", "bigint", "1"),
    "board varchar to text": ("board_id", "varchar(20)", "text", "b2"),
    "board text to varchar": ("board_id", "text", "varchar(20)", "b3"),
    "board enum to text": ("board_id", "spot", "text", "b4"),
    "board text to domain": ("board_id", "text", "place", "b5"),
    "lane enum to text": ("lane", "spot", "text", "b6"),
    "lane varchar to text": ("lane", "varchar(9)", "text", "b7"),
    "id int to bigint": ("id", "int", "bigint", "b8"),
    "id varchar to text": ("id", "varchar(9)", "text", "b9"),
    "column text to int": ("extra", "text", "int", "b10"),
    "column int to numeric": ("extra", "int", "numeric(9,2)", "b11"),
    "column timestamp to timestamptz": ("extra", "timestamp", "timestamptz", "b12"),
}

_VALUES = {"board_id": "'{}'", "lane": "'b6'", "id": "'1'", "extra": "null"}


async def test_retyping_a_column_costs_one_board_even_with_old_sessions(database: Database, relay: Relay) -> None:
    """A pooled session that wrote before goes on, and its changes are sent as changes."""
    database.execute("create type spot as enum ('b4', 'b6'); create domain place as text")
    with database.connect() as pooled:
        for number, (column, before, _, board) in enumerate(_RETYPED.values()):
            types = {"id": "int", "board_id": "text", "lane": "text", "extra": "text"} | {column: before}
            columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
            database.execute(f"create table t{number} ({columns}, title text, primary key (id))")
            values = ", ".join(_VALUES[name].format(board) for name in types)
            database.execute(f"insert into t{number} values ({values}, 'one')")
            database.execute(f"select relay.watch('t{number}', distinct_ids => true)")
            pooled.execute(f"update t{number} set title = 'warm'".encode())
            pooled.execute(f"delete from t{number}; insert into t{number} values ({values}, 'warm')".encode())
        async with contextlib.AsyncExitStack() as stack:
            followers = {
                kind: await stack.enter_async_context(Follower.of(relay, board))
                for kind, (*_, board) in _RETYPED.items()
            }
            for number, (column, _, after, _) in enumerate(_RETYPED.values()):
                database.execute(f"alter table t{number} alter {column} type {after} using {column}::text::{after}")
            for number, follower in enumerate(followers.values()):
                [task] = follower.tasks
                while follower.kinds != [] and follower.kinds[-1] != "board.sync":
                    await follower.receive()
                database.execute(f"update t{number} set title = 'settled'")
                while follower.tasks[task]["title"] != b'"settled"' or "board.sync" not in follower.kinds:
                    await follower.receive()
                follower.kinds.clear()
            for number, follower in enumerate(followers.values()):
                for title in ("once", "twice"):
                    pooled.execute(f"update t{number} set title = '{title}'".encode())
                [task] = follower.tasks
                while follower.tasks[task]["title"] != b'"twice"':
                    await follower.receive()

    assert {kind: follower.kinds for kind, follower in followers.items()} == {
        kind: ["task.updated", "task.updated"] for kind in _RETYPED
    }


# Code of the user's that runs when a value is shown

_CASTS = {
    "raises": "raise exception 'no'",
    "asserts": "assert false",
    "divides by zero": "return to_json(1 / 0)",
    "recurs without end": "return public.mood_to_json(m)",
    "reads what is forbidden": "perform from public.forbidden; return '1'",
    "writes": "insert into public.moods values ('again', 'b', 'todo', null); return '1'",
    "returns null": "return null",
    "returns what is no unicode": "return '\"\\ud800\"'",
}

_HARMLESS = {
    "returns more than is sent": "return to_json(repeat('x', case m when 'y' then 60000000 else 1 end))",
    "sleeps": "perform pg_sleep(0.02); return to_json('x'::text)",
}


@pytest.fixture(scope="module")
def moods(server: Server) -> Iterator[Twins]:
    """Yield twins that have a type with a cast to json."""
    with (
        temporary_database(server) as one,
        temporary_database(server) as other,
        Database(one) as watched,
        Database(other) as unwatched,
    ):
        watched.execute(install.text("install"))
        for each in (watched, unwatched):
            each.execute("create table forbidden (id int)")
            _create_moods(each)
        watched.execute("select relay.watch('moods', distinct_ids => true)")
        yield Twins(watched, unwatched, None)


def _create_moods(database: Database, name: str = "mood") -> None:
    database.execute(
        f"create type {name} as enum ('x', 'y'); "
        f"create table {name}s (id text primary key, board_id text, lane text, m {name}); "
        f"create function public.{name}_to_json(m {name}) returns json language plpgsql as 'begin return null; end'; "
        f"create cast ({name} as json) with function public.{name}_to_json({name})"
    )


def _cast(body: str, name: str = "mood") -> str:
    return (
        f"create or replace function public.{name}_to_json(m {name}) returns json language plpgsql as "
        f"$$ begin {body.replace('mood', name)}; end $$"
    )


_MOODY = [
    "insert into moods values ('a', 'b', 'todo', null)",
    "insert into moods values ('bad', 'b', 'todo', 'x') returning *",
    "update moods set lane = 'done', m = 'y' where m is not null returning *",
    "begin",
    "update moods set lane = 'todo'",
    "commit",
]


@pytest.mark.parametrize("kind", [*_CASTS, *_HARMLESS])
def test_cast_of_the_users_own_is_nothing_to_the_writer(moods: Twins, kind: str) -> None:
    """Whatever becomes of the cast, the writer's statement does what it does without us."""
    assert moods.compare(_MOODY, "truncate moods; " + _cast((_CASTS | _HARMLESS)[kind])) == []
    assert moods.watched.fetch("select count(*) from moods") == [(2,)]


@pytest.mark.parametrize("full", [False, True])
def test_session_that_ends_at_any_error_or_is_shown_what_is_logged_notices_nothing(moods: Twins, full: bool) -> None:
    """An error that we catch is none to the writer, and what a pause of the journal logs is not for it."""
    wide = "insert into moods select 'w', string_agg(md5(i::text), ''), 'todo' from generate_series(1, 2000) i"
    moods.watched.execute(f"update relay.settings set stop_bytes = {1 if full else 10**9}")
    settings = ["set exit_on_error = on", "set client_min_messages = log"]
    script = [*settings, *_MOODY, wide, "reset exit_on_error"]
    try:
        assert moods.compare(script, "truncate moods; " + _cast(_CASTS["raises"])) == []
        assert moods.watched.fetch("select relay.paused()") == [(full,)]
    finally:
        moods.watched.execute("select relay.set_control(false, relay.pauses(), 0)")


async def test_rows_whose_casts_fail_are_left_out_and_reported(database: Database, relay: Relay) -> None:
    """The other rows of their board are shown, and go on; only those are missing, and the log names their tables."""
    database.execute("create table forbidden (id int)")
    kinds = [(f"mood{n}", body) for n, body in enumerate((*_CASTS.values(), _HARMLESS["sleeps"]))]
    for name, body in kinds:
        _create_moods(database, name)
        database.execute(_cast(body, name))
        database.execute(f"select relay.watch('{name}s', distinct_ids => true)")
    with structlog.testing.capture_logs() as logged:
        async with Follower.of(relay, "b") as follower:
            for name, _ in kinds:
                for statement in _MOODY:
                    database.execute(statement.replace("mood", name).replace("('", f"('{name}"))
                database.execute(f"update {name}s set lane = 'done' where m is null")
            database.execute("insert into mood0s values ('last', 'b', 'todo', null)")
            await follower.until("last")
            assert await differing(relay, follower, "b") == {}

    *failing, (slow, _) = kinds
    assert follower.tasks.keys() == {'"last"', f'"{slow}bad"'} | {f'"{name}a"' for name, _ in kinds}
    assert follower.tasks[f'"{slow}bad"']["m"] == b'"x"'
    assert {follower.tasks[f'"{name}a"']["lane"] for name, _ in kinds} == {b'"done"'}
    assert "board.sync" not in follower.kinds
    said = str([line for line in logged if line["log_level"] in {"warning", "error"}])
    assert [name for name, _ in failing if f"{name}s" not in said] == []
    assert f"{slow}s" not in said
    assert relay.feed.problem is None


# Sizes

_HUGE = {
    "text that is six times as large as JSON": [f"description = repeat(chr({n}), 8388500)" for n in (1, 2)],
    "text that is not compressed": ["title = repeat('x', 9000000)"],
    "many columns": [", ".join(f"c{n} = repeat(chr(1), 500000)" for n in range(20))],
}


@pytest.mark.parametrize("kind", _HUGE)
async def test_row_of_any_size_is_written_and_costs_other_boards_nothing(
    database: Database, relay: Relay, kind: str
) -> None:
    """A row that is too large for an image, for a message or for a tuple of ours fails nobody."""
    database.execute("drop trigger tasks_set_updated_at on tasks")
    # Not compressed but for the description: so both are tried, and the rest is quick.
    database.execute("alter table tasks alter title set storage external")
    for n in range(20):
        database.execute(f"alter table tasks add column c{n} text, alter column c{n} set storage external")
    async with Follower.of(relay, "default") as follower:
        database.execute("insert into tasks (id, board_id, title) values ('settled', 'default', 'S')")
        await follower.until("settled")
        follower.kinds.clear()
        database.execute("insert into tasks (id, board_id, title) values ('huge', 'other', 'H')")
        for values in _HUGE[kind]:
            database.execute(f"update tasks set {values} where id = 'huge'")
        database.execute("delete from tasks where id = 'huge'")
        database.execute("insert into tasks (id, title) values ('last', 'L')")
        await follower.until("last")

        assert follower.kinds == ["task.created"]
        assert relay.feed.problem is None


async def test_row_that_is_too_large_to_send_is_left_out(database: Database, relay: Relay) -> None:
    """It was not shown before a change of another column, so that it does not leave either."""
    database.execute("alter table tasks alter description set storage external")
    async with Follower.of(relay, "default") as follower:
        for statement in (
            "insert into tasks (id, title, description) values ('a', 'A', repeat('x', 5000000))",
            "update tasks set title = 'B'",
            "update tasks set description = 'short'",
            "update tasks set description = repeat('x', 5000000), priority = 'high'",
            "insert into tasks (id, title) values ('last', 'L')",
        ):
            database.execute(statement)
        await follower.until("last")

    assert follower.kinds == ["task.created", "task.deleted", "task.created"]


async def test_deeply_nested_json_costs_at_most_its_own_row(database: Database, relay: Relay) -> None:
    """The limit is the same for a board and for its changes; brackets in strings do not count."""
    database.execute("alter table tasks add deep json")
    async with Follower.of(relay, "default") as follower:
        for depth in (1, 499, 500, 900, 5000):
            deep = "[" * depth + "]" * depth
            database.execute(f"insert into tasks (id, title, deep) values ('d{depth}', %s, %s)", deep, deep)
            database.execute(f"update tasks set title = title || 'x' where id = 'd{depth}'")
            database.execute(f"insert into tasks (id, title, deep) values ('was{depth}', 'T', '[]')")
            database.execute(f"update tasks set deep = %s where id = 'was{depth}'", deep)
        database.execute("insert into tasks (id, title) values ('last', 'L')")
        await follower.until("last")
        assert await differing(relay, follower, "default") == {}

    assert follower.tasks.keys() == {f'"{name}"' for name in ("d1", "was1", "d499", "was499", "last")}
    assert relay.feed.problem is None


async def test_board_whose_column_is_a_domain_over_an_enum_is_shown(database: Database, relay: Relay) -> None:
    """Postgres has no operator that compares the two."""
    database.execute(
        "create type spot as enum ('b', 'c'); create domain place as spot check (value is not null); "
        "create table places (id text primary key, board_id place, lane place); "
        "select relay.watch('places', distinct_ids => true)"
    )
    async with Follower.of(relay, "b") as follower:
        database.execute("insert into places values ('a', 'b', 'b'), ('last', 'b', 'c')")
        await follower.until("last")

        assert await differing(relay, follower, "b") == {}


# Encodings

_ENCODINGS = {"WIN1252": "81", "EUC_JP": "a9a1", "LATIN1": "e9"}


@pytest.mark.parametrize("encoding", _ENCODINGS)
async def test_invalid_utf8_is_left_out_and_reported(server: Server, encoding: str) -> None:
    """A database may hold what has no UTF-8: its writers go on, and only the rows that have it are not shown."""
    options = f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"
    if server.version_num >= 150_000:
        options += " locale_provider 'libc'"
    byte = f"convert_from(decode('{_ENCODINGS[encoding]}', 'hex'), '{encoding}')"
    with temporary_database(server, options=options) as dsn, Database(dsn) as database:
        install_all(dsn)
        with structlog.testing.capture_logs() as logged:
            async with Relay(dsn).running() as relay, Follower.of(relay, "default") as follower:
                database.execute("insert into tasks (id, title) values ('a', 'A')")
                for column in ("id", "title", "lane", "board_id"):
                    values = {"id": f"'bad {column}'", "title": "'T'", "lane": "'todo'"} | {column: byte}
                    database.execute(f"insert into tasks ({', '.join(values)}) values ({', '.join(values.values())})")
                database.execute("update tasks set priority = 'high'")
                database.execute("insert into tasks (id, title) values ('last', 'L')")
                await follower.until("last")
                assert await differing(relay, follower, "default") == {}
                await until(lambda: relay.feed.problem is None)

    shown = {'"\u00e9"', '"bad title"', '"bad lane"'} if encoding == "LATIN1" else set()
    assert follower.tasks.keys() == {'"a"', '"last"'} | shown
    assert follower.tasks['"a"']["priority"] == b'"high"'
    assert "board.sync" not in follower.kinds
    if not shown:
        assert any("tasks" in str(line) for line in logged if line["log_level"] in {"warning", "error"})

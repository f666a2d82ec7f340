"""`relay schema --table`: what it prints is true of the tasks that clients are sent, and compiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from jsonschema_rs import Draft202012Validator, meta

from relay.commands.cli import cli
from relay.commands.schema import columns, languages
from relay.postgres.connection import connect
from relay.postgres.install import text
from relay.postgres.watches import read_watched
from tests.acceptance.support import run_relay
from tests.acceptance.test_client_js import HERE, STATIC, STRICT, run
from tests.acceptance.test_guide import node
from tests.servers import Database, do_without

ZOO = r"""
create type mood as enum ('fine', 'so "so"', 'it''s */ "" 😀');
create type size as (width integer, "depth-of" numeric, mood mood);
create type flat as (note text);
create domain positive as integer check (value > 0);
create domain needed as text not null;
create table public.zoo (
    id uuid primary key default '9c5b94b1-35ad-49bb-b118-8e8fc24abf80', board_id text, lane text,
    is_open boolean not null default true, small smallint, whole integer not null default 7, big bigint,
    count positive, price numeric(10, 2), exact numeric, round numeric(30, 0), ratio real, weight double precision,
    "class" text, note needed default '', born date, at timestamptz, extra jsonb, plain json, tags text[],
    grid integer[][], moods mood[], mood mood not null default 'fine', size size, sizes size[], flat flat,
    span int4range, bytes bytea, "two words" text, "line
break" text, secret text, mixed_case text, "mixedCase" text
);
select relay.watch('public.zoo', hidden => array['secret']);
create table public.labels (name text, price numeric, mood mood, zoo_id uuid unique, keeper_of uuid);
select relay.extra('zoo', 'labelCount', 'labels', key_column => 'zoo_id');
select relay.extra('zoo', 'names', 'labels', '{name}', key_column => 'keeper_of');
select relay.extra('zoo', 'labels', 'labels', '{name,price,mood,keeper_of}', key_column => 'keeper_of');
select relay.extra('zoo', 'label', 'labels', '{mood}', key_column => 'zoo_id');
insert into public.labels values
    ('n', 'NaN', 'fine', '9c5b94b1-35ad-49bb-b118-8e8fc24abf80', '9c5b94b1-35ad-49bb-b118-8e8fc24abf80'),
    (null, null, null, null, '9c5b94b1-35ad-49bb-b118-8e8fc24abf80');
insert into public.zoo default values;
update public.zoo set board_id = 'default';
insert into public.zoo values (
    gen_random_uuid(), 'default', 'todo', false, -1, 2, 9223372036854775807, 3, 1.50, 12345678901234567890,
    'NaN', 'Infinity', 'NaN', 'c', 'n', 'infinity', now(), '[1, {"a": null}]', 'null', '{a,null}',
    '{{1,null},{2,3}}', '{fine,null}', 'so "so"', row(1, 'NaN', null), array[row(null, 2, 'fine')::size, null],
    row('f'), '[1,2)', '\x00', 't', 'l', 's', 'm', 'M'
);
"""

EXPECTED = """\
/** A task of public.zoo, as the relay shows it. */
export interface Task {
  readonly id: string;
  readonly boardId: string;
  readonly lane: string | null;
  readonly isOpen: boolean;
  readonly small: number | null;
  readonly whole: number;
  readonly big: number | bigint | null;
  readonly count: number | null;
  readonly price: number | "NaN" | null;
  readonly exact: number | bigint | "NaN" | "Infinity" | "-Infinity" | null;
  readonly round: number | bigint | "NaN" | null;
  readonly ratio: number | "NaN" | "Infinity" | "-Infinity" | null;
  readonly weight: number | "NaN" | "Infinity" | "-Infinity" | null;
  readonly class: string | null;
  readonly note: string;
  readonly born: string | null;
  readonly at: string | null;
  readonly extra: unknown;
  readonly plain: unknown;
  readonly tags: readonly (string | null)[] | null;
  readonly grid: readonly (readonly (number | null)[])[] | null;
"""


async def tasks(database: Database, board: str = "default") -> list[dict[str, Any]]:
    """Return the board as clients are sent it."""
    connection = await connect(database.dsn)
    try:
        watches = {each.id: each.watch for each in await read_watched(connection)}
        rows = await connection.rows("select watch, task from relay.board(%s)", board)
        found = [watches[number].task(watches[number].columns(task), board) for number, task in rows]
    finally:
        await connection.close()
    return [json.loads(msgspec.json.encode(task)) for task in found]


async def test_types_are_those_of_the_tasks(database: Database, tmp_path: Path) -> None:
    """A board of odd columns fits the schema, the TypedDict and the interface, and nothing else does."""
    database.execute("select relay.unwatch('public.tasks')")
    database.execute(ZOO)
    board = await tasks(database)
    assert len(board) == 2

    def printed(its_format: str) -> str:
        finished = run_relay(
            *("schema", "--table", "zoo", "--format", its_format), cwd=tmp_path, DATABASE_URL=database.dsn
        )
        assert finished.stderr == ""
        return finished.stdout

    schema = json.loads(printed("json-schema"))
    meta.validate(schema)
    assert list(schema["properties"]) == schema["required"] == list(board[0]) == list(board[1])
    assert "secret" not in schema["properties"]
    for task in board:
        Draft202012Validator(schema).validate(task)
        for key, value in task.items():
            wrong = {**task, key: {"no": []}}
            assert Draft202012Validator(schema).is_valid(wrong) == (key in {"extra", "plain"}), (key, value)

    names: dict[str, Any] = {}
    exec(compile(printed("python"), "task.py", "exec", dont_inherit=True), names)  # what is tested
    for task in board:
        assert msgspec.convert(task, names["Task"]).keys() == task.keys()
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(board[0] | {"mood": "sad"}, names["Task"])

    interface = printed("typescript")
    assert interface.startswith(EXPECTED)
    compile_interface(interface, board, tmp_path)


def compile_interface(interface: str, board: list[dict[str, Any]], folder: Path) -> None:
    """Compile tasks as literals of the interface, and a subscription to such a board."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        do_without("the TypeScript compiler is not installed: npm install --prefix tests/acceptance/client")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "pg-change-relay-client").symlink_to(STATIC)
    (folder / "task.ts").write_text(interface)
    (folder / "program.mts").write_text(
        'import { connect } from "pg-change-relay-client";\n'
        'import type { Task } from "./task.js";\n'
        f"export const tasks: Task[] = {json.dumps(board)};\n"
        'const board = connect("ws://relay").subscribe<Task>("default");\n'
        "export const moods = [...board.tasks.values()].map((task) => task.mood);\n"
        "// @ts-expect-error there is no such mood\n"
        'moods.push("sad");\n'
    )
    quick = ("--noEmit", "--skipLibCheck")
    finished = run(
        *(node(), compiler, *STRICT, *quick, "--target", "es2022", "--module", "nodenext", "program.mts"), cwd=folder
    )
    assert finished.stdout == ""
    shutil.rmtree(folder / "node_modules")


AS_TEXT: dict[str, Any] = {"id": "string", "boardId": "string", "lane": "string", "n": "integer"}
WATCHES: dict[str, dict[str, Any]] = {
    "as_text => true": AS_TEXT,
    "id_prefix => 't-'": {"id": "string", "boardId": "integer", "lane": "integer", "n": "integer"},
    "key_columns => array['id', 'n'], board_as => 'board_id::text', lane_as => 'lane::text'": {
        **AS_TEXT,
        "id_": "integer",
        "board_id": "integer",
        "lane_": ["integer", "null"],
    },
}
"""How a table is watched, and the types of its tasks' keys."""


async def test_what_expressions_say_is_text(empty_database: Database) -> None:
    """Ids that are joined or prefixed, boards and lanes that are made of columns, and all of them as text."""
    database = empty_database
    database.execute(text("install"))
    for number, (watch, expected) in enumerate(WATCHES.items()):
        database.execute(
            f"create table t{number} (id bigint primary key, board_id int not null, lane int, "
            "n int not null, unique (id, n))"
        )
        database.execute(f"select relay.watch('t{number}', {watch})")
        database.execute(f"insert into t{number} values (1, {number}, 3, 4)")
        [task] = await tasks(database, str(number))
        schema = json.loads(languages.json_schema(await columns.read(database.dsn, f"t{number}")))
        Draft202012Validator(schema).validate(task)
        found = {key: its["type"] for key, its in schema["properties"].items()}
        assert found == expected | {"lane": [expected["lane"], "null"]}
        assert set(found) == set(task)


def test_mistakes_are_one_line(database: Database) -> None:
    """A table that is not there or not watched, and a format that does not fit."""
    database.execute("create table public.other (id text primary key)")
    for said, *arguments in (
        ("there is no table nowhere: expected one that is watched, like public.tasks", "--table", "nowhere"),
        ("other is not watched: run relay sql watch other first", "--table", "other"),
        ("asyncapi is not for tasks of a --table", "--table", "tasks", "--format", "asyncapi"),
        ("python is for tasks of a --table: expected json-schema or asyncapi", "--format", "python"),
    ):
        finished = CliRunner().invoke(cli, ["schema", "--database-url", database.dsn, *arguments])
        assert finished.exit_code in {1, 2}
        assert said in finished.stderr

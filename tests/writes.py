"""Transactions at random, as applications write them at their worst, on two watched tables with foreign keys.

Rules:
- A *script* is one transaction: statements, and a plan of further statements that functions and triggers run while
  those are under way: in RETURNING, in SELECT, before and after, per row and per statement, deferred, at any depth.
- Chance decides everything that a script does; the database decides what comes of it. What must be sent of it is
  never computed from the script, only from the table.
- A statement that cannot be is part of life: it ends its transaction, or its savepoint if it has one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors

_TRIGGERS: Final = ("before_row", "after_row", "before_statement", "after_statement", "deferred")
PLACES: Final = ("returning", "select", *(f"{first}_{kind}" for first in "az" for kind in _TRIGGERS))
"""Where statements are run from inside others: functions, and triggers whose names come before ours or after them."""

TABLES: Final = ("tasks", "steps")
PARTITIONS: Final = ("steps_low", "steps_high", "steps_highest")

SCHEMA: Final = """
    drop trigger tasks_set_updated_at on public.tasks;
    alter table public.tasks
        add parent text references public.tasks (id) on update cascade on delete set null,
        add secret int,
        -- What comes again is the same only if its times are.
        alter created_at set default '2026-01-01 12:00+02',
        alter updated_at set default '2026-01-01 12:00+02';
    create table public.steps (
        id text primary key,
        task text references public.tasks (id) on update cascade on delete cascade,
        board_id text, lane text, title text, weight float8 default 0.1 + 0.2
    ) partition by range (id);
    create table public.steps_low partition of public.steps for values from (minvalue) to ('s3');
    create table public.steps_high partition of public.steps for values from ('s3') to (maxvalue)
        partition by range (id);
    create table public.steps_highest partition of public.steps_high default;
    create index steps_task on public.steps (task);
    create index tasks_parent on public.tasks (parent);

    create schema writes;
    -- Runs the next statement that is planned for a place, if there is one; says what a trigger shall do to its row.
    create function writes.act(place text) returns text language plpgsql as $$
    declare
        plan jsonb := nullif(current_setting('writes.plan', true), '');
        entry jsonb;
        number int;
    begin
        select p.entry, p.number into entry, number
        from jsonb_array_elements(plan) with ordinality p (entry, number) where p.entry ->> 'at' = place limit 1;
        if number is null then
            return null;
        end if;
        perform set_config('writes.plan', (plan - (number - 1))::text, true);
        if not (entry ->> 'guarded')::boolean then
            execute entry ->> 'sql';
        else
            begin
                execute entry ->> 'sql';
            exception when others then null;
            end;
        end if;
        return entry ->> 'row';
    end $$;
    create function writes.fire() returns trigger language plpgsql as $$
    declare
        verdict text := writes.act(tg_name);
    begin
        if tg_level = 'STATEMENT' or tg_when = 'AFTER' or verdict = 'skip' then
            return null;
        end if;
        if tg_op = 'DELETE' then
            return old;
        end if;
        if verdict = 'touch' then
            new.title := left(new.title, 1) || '!';
        end if;
        return new;
    end $$;
    do $do$
    declare
        on_table text;
        first text;
    begin
        foreach on_table in array array['tasks', 'steps'] loop
            foreach first in array array['a', 'z'] loop
                execute format($triggers$
                    create trigger %1$s_before_row before insert or update or delete on public.%2$s
                        for each row execute function writes.fire();
                    create trigger %1$s_after_row after insert or update or delete on public.%2$s
                        for each row execute function writes.fire();
                    create trigger %1$s_before_statement before insert or update or delete on public.%2$s
                        execute function writes.fire();
                    create trigger %1$s_after_statement after insert or update or delete on public.%2$s
                        execute function writes.fire();
                    create constraint trigger %1$s_deferred after insert or update or delete on public.%2$s
                        deferrable initially deferred for each row execute function writes.fire()
                $triggers$, first, on_table);
            end loop;
        end loop;
    end $do$;
    select relay.watch('public.tasks', hidden => '{secret}');
    select relay.watch('public.steps', distinct_ids => true);
"""
"""What the tables, the functions and the triggers are, given the tasks table and the relay's install."""

TOLERATED: Final = (
    errors.IntegrityError,
    errors.TransactionRollback,
    errors.LockNotAvailable,
    errors.CardinalityViolation,
    errors.TriggeredDataChangeViolation,
    errors.ObjectInUse,
    errors.UniqueViolation,
    errors.RaiseException,
    # The table is referenced by another; a row was moved to another partition by a concurrent update.
    errors.FeatureNotSupported,
)
"""What ends a statement, and is no mistake of ours."""


@dataclass(frozen=True)
class Statement:
    """One statement of a script, at its top level."""

    sql: str
    savepoint: str = ""
    """`kept`, `rolled back`, or empty for none."""
    copy: Sequence[Sequence[object]] = ()
    elsewhere: bool = False
    """In another session, while the transaction is open."""

    def __repr__(self) -> str:
        notes = [note for note in (self.savepoint, "elsewhere" if self.elsewhere else "") if note]
        rows = f" {list(self.copy)}" if self.copy else ""
        return f"{self.sql}{rows}" + (f"  -- {', '.join(notes)}" if notes else "")


@dataclass(frozen=True)
class Script:
    """One transaction."""

    statements: Sequence[Statement]
    plan: Sequence[dict[str, Any]]

    def __repr__(self) -> str:
        """Write it so that it can be read, and all but run by hand."""
        plan = [f"  {entry}" for entry in self.plan]
        return "\n".join(["planned:", *plan, "begin;", *(f"  {each!r};" for each in self.statements), "commit;"])

    def run(
        self,
        connection: psycopg.Connection,
        elsewhere: Callable[[str], None],
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Run it in a transaction that is open, with pauses. Raises what Postgres does: the transaction is to end."""
        connection.execute("select set_config('writes.plan', %s, true)", (json.dumps(self.plan),))
        for statement in self.statements:
            pause()
            if statement.elsewhere:
                elsewhere(statement.sql)
            elif not statement.savepoint:
                _run(connection, statement)
            else:
                try:
                    with connection.transaction(force_rollback=statement.savepoint == "rolled back"):
                        _run(connection, statement)
                except TOLERATED:
                    if connection.broken:
                        raise


def _run(connection: psycopg.Connection, statement: Statement) -> None:
    if not statement.copy:
        connection.execute(statement.sql.encode())
        return
    with connection.cursor().copy(statement.sql.encode()) as copy:
        for row in statement.copy:
            copy.write_row(row)


def connect(dsn: str, **options: Any) -> psycopg.Connection:
    """Connect as a writer: a string of several statements, sent often, must not be prepared."""
    return psycopg.connect(dsn, prepare_threshold=None, **options)


def _quoted(value: str | None) -> str:
    return "null" if value is None else "'" + value.replace("'", "''") + "'"


class Writes:
    """Draws scripts."""

    def __init__(
        self,
        chance: random.Random,
        *,
        version: int,
        tasks: int,
        boards: Sequence[str],
        lanes: Sequence[str],
        settings: Sequence[str] = (),
        rewrites: float = 0.1,
    ) -> None:
        """`version`: of the server; `tasks`: how many ids there are of each table.

        `settings`: what writers may set, beside what any writer might. `rewrites`: how often, of all statements, one
        takes a whole table for itself.
        """
        self._chance = chance
        self._merges = version >= 150_000
        self._tasks = tasks
        self._boards = boards
        self._lanes = lanes
        self._settings = settings
        self._rewrites = rewrites

    def script(self) -> Script:
        """Draw a transaction."""
        statements = [self._top() for _ in range(self._chance.randint(1, 5))]
        return Script(statements, [self._planned() for _ in range(self._chance.randint(0, 5))])

    def _planned(self) -> dict[str, Any]:
        place = self._chance.choice(["returning", "select", *PLACES])
        entry: dict[str, Any] = {"at": place, "sql": self.statement(), "guarded": self._chance.random() < 0.7}
        if place.endswith("before_row"):
            entry["row"] = self._chance.choice(["keep", "touch", "skip"])
        return entry

    def _top(self) -> Statement:
        savepoint = self._chance.choice(["", "", "kept", "kept", "kept", "rolled back"])
        if self._chance.random() < self._rewrites:
            return self._rewrite(savepoint)
        kind = self._chance.random()
        if kind < 0.06:
            return self._copy(savepoint)
        if kind < 0.10:
            return Statement(self._setting())
        return Statement(self.statement(), savepoint)

    def _copy(self, savepoint: str) -> Statement:
        board, lane = self._chance.choice(self._boards), self._chance.choice(self._lanes)
        rows = [(f"c{self._chance.randrange(10**6)}-{number}", board, lane, "c") for number in range(3)]
        return Statement("copy tasks (id, board_id, lane, title) from stdin", savepoint, rows)

    def _rewrite(self, savepoint: str) -> Statement:
        """Give rows new places, or other rows theirs. Triggers that are due must fire before."""
        rewrite = self._chance.choice(
            [
                "vacuum (skip_locked) tasks",
                "vacuum (skip_locked, index_cleanup on) tasks",
                "vacuum (skip_locked, freeze) steps",
                "cluster tasks using tasks_pkey",
                "cluster steps_low using steps_low_pkey",
                "alter table steps_low set unlogged; alter table steps_low set logged",
                "alter table steps_highest set unlogged; alter table steps_highest set logged",
                "truncate tasks, steps",
            ]
        )
        if rewrite.startswith("vacuum"):
            return Statement(rewrite, elsewhere=True)
        return Statement(
            f"set constraints all immediate; {rewrite}; set constraints all deferred",
            "rolled back" if rewrite.startswith("truncate") else savepoint,
        )

    def _setting(self) -> str:
        return "set local " + self._chance.choice(
            [
                "timezone = 'Asia/Kolkata'",
                "datestyle = 'German'",
                "extra_float_digits = -3",
                *self._settings,
                "search_path = pg_temp, public",
                "standard_conforming_strings = off",
                "quote_all_identifiers = on",
            ]
        )

    # Statements

    def statement(self) -> str:
        """Draw a statement, or a few, that may as well be run from inside another."""
        return self._chance.choice(_KINDS)(self)

    def _task(self) -> str:
        return f"t{self._chance.randrange(self._tasks)}"

    def _there(self) -> str:
        """Choose a task that is there, if any is."""
        return f"(select max(id) from tasks where id <= '{self._task()}')"

    def _step(self) -> str:
        return f"s{self._chance.randrange(self._tasks)}"

    def _title(self) -> str:
        return _quoted(self._chance.choice(["x", "y", "z"]))

    def _board(self) -> str:
        return _quoted(self._chance.choice(self._boards))

    def _lane(self) -> str:
        return _quoted(self._chance.choice(self._lanes))

    def _where(self) -> str:
        """Choose some tasks."""
        return self._chance.choice(
            [
                f"where tasks.id = '{self._task()}'",
                f"where tasks.id in ('{self._task()}', '{self._task()}')",
                f"where tasks.board_id = {self._board()}",
                "where true" if self._tasks < 10 else f"where tasks.id like 't{self._chance.randrange(6)}%'",
            ]
        )

    def _row(self) -> str:
        return f"'{self._task()}', {self._board()}, {self._lane()}, {self._title()}"

    def insert(self) -> str:
        return f"insert into tasks (id, board_id, lane, title) values ({self._row()})"

    def insert_absent(self) -> str:
        return f"{self.insert()} on conflict do nothing"

    def upsert(self) -> str:
        return (
            f"insert into tasks (id, board_id, lane, title) values ({self._row()}) on conflict (id) do update "
            "set board_id = excluded.board_id, title = excluded.title"
        )

    def update(self) -> str:
        column, value = self._chance.choice(
            [
                ("title", self._title()),
                ("title", self._title()),
                ("priority", self._title()),
                ("lane", self._lane()),
                ("lane", self._lane()),
                ("board_id", self._board()),
                ("secret", "1"),
                # So wide that it is stored out of line, and not along with what left.
                (
                    "description",
                    f"(select string_agg(md5(i::text), '') from generate_series(1, 90) i) || {self._title()}",
                ),
                ("parent", self._there()),
                ("title", "title"),
            ]
        )
        return f"update tasks set {column} = {value} {self._where()}"

    def there_and_back(self) -> str:
        where = f"where id = '{self._task()}'"
        return (
            f"update tasks set title = 'x' || title {where}; update tasks set lane = lane {where}; "
            f"update tasks set title = substr(title, 2) {where}"
        )

    def delete(self) -> str:
        which = self._chance.choice([self._where(), self._where(), "where id like 'c%'"])
        return f"delete from tasks {which}"

    def reinsert(self) -> str:
        return f"with gone as (delete from tasks {self._where()} returning *) insert into tasks select * from gone"

    def change_key(self) -> str:
        new = self._task()
        return (
            f"update tasks set id = '{new}' where id = '{self._task()}' "
            f"and not exists (select from tasks t where t.id = '{new}')"
        )

    def swap_keys(self) -> str:
        one, other = self._task(), self._task()
        return (
            f"update tasks set id = 'between' where id = '{one}'; "
            f"update tasks set id = '{one}' where id = '{other}'; "
            f"update tasks set id = '{other}' where id = 'between'"
        )

    def many_updates(self) -> str:
        key = self._task()
        return (
            f"do $many$ begin for i in 1..{self._chance.randint(2, 30)} loop "
            f"update tasks set title = chr(120 + i % 3) where id = '{key}'; "
            f"update tasks set title = title where id = '{key}'; end loop; end $many$"
        )

    def caught(self) -> str:
        return (
            f"do $caught$ begin {self.update()}; begin {self.update()}; {self.delete()}; raise 'no'; "
            f"exception when others then {self.update()}; end; end $caught$"
        )

    def ctes(self) -> str:
        return (
            f"with updated as ({self.update()} returning tasks.id), "
            f"deleted as (delete from tasks where id = '{self._task()}' returning id), "
            f"inserted as ({self.insert_absent()} returning id) "
            f"insert into steps (id, task, board_id) "
            f"select '{self._step()}', id, {self._board()} from updated limit 1"
        )

    def merge(self) -> str:
        if not self._merges:
            return self.upsert()
        return (
            f"merge into tasks using (values ({self._row()}), ({self._row()})) v (id, board_id, lane, title) "
            "on tasks.id = v.id when matched and v.title = 'x' then delete "
            "when matched then update set title = v.title, lane = v.lane "
            "when not matched then insert (id, board_id, lane, title) values (v.id, v.board_id, v.lane, v.title)"
        )

    def act_in_returning(self) -> str:
        write = self._chance.choice(
            [
                f"update tasks set priority = {self._title()} {self._where()}",
                self.insert_absent(),
                self.delete(),
                self.upsert(),
            ]
        )
        return f"{write} returning writes.act('returning')"

    def act_in_select(self) -> str:
        return f"select writes.act('select') from tasks {self._where()}"

    def act_in_insert(self) -> str:
        first = self._chance.randrange(self._tasks)
        return (
            f"insert into tasks (id, board_id, title) select 't' || i, {self._board()}, "
            f"coalesce(writes.act('select'), 'x') from generate_series({first}, {min(first + 4, self._tasks)}) i "
            "on conflict (id) do update set title = excluded.title"
        )

    def join(self) -> str:
        return "update tasks set priority = coalesce(steps.title, 'x') from steps where steps.task = tasks.id"

    def row_by_row(self) -> str:
        return (
            f"do $rows$ declare r record; begin for r in select id from tasks {self._where()} order by id for update "
            f"loop update tasks set title = {self._title()} where id = r.id; end loop; end $rows$"
        )

    def insert_step(self) -> str:
        return (
            f"insert into steps (id, task, board_id, lane, title) values ('{self._step()}', {self._there()}, "
            f"{self._board()}, {self._lane()}, {self._title()}) on conflict (id) do update set task = excluded.task"
        )

    def update_step(self) -> str:
        column, value = self._chance.choice(
            [
                ("id", f"'{self._step()}'"),  # perhaps to another partition
                ("board_id", self._board()),
                ("board_id", "null"),
                ("lane", self._lane()),
                ("lane", "null"),
                ("title", self._title()),
                ("task", self._there()),
            ]
        )
        table = self._chance.choice(["steps", "steps", *PARTITIONS])
        return f"update {table} set {column} = {value} where id = '{self._step()}'"

    def update_steps(self) -> str:
        return f"update steps set lane = {self._lane()}, title = 'x' where board_id = {self._board()}"

    def insert_into_partition(self) -> str:
        step = self._step()
        table = "steps_low" if step < "s3" else self._chance.choice(["steps_high", "steps_highest"])
        return f"insert into {table} (id, board_id, title) values ('{step}', {self._board()}, {self._title()})"

    def delete_step(self) -> str:
        return f"delete from {self._chance.choice(['steps', *PARTITIONS])} where id >= '{self._step()}'"


_KINDS: Final[tuple[Callable[[Writes], str], ...]] = (
    Writes.insert,
    Writes.insert_absent,
    Writes.upsert,
    Writes.update,
    Writes.update,
    Writes.update,
    Writes.there_and_back,
    Writes.delete,
    Writes.reinsert,
    Writes.change_key,
    Writes.swap_keys,
    Writes.many_updates,
    Writes.caught,
    Writes.ctes,
    Writes.merge,
    Writes.act_in_returning,
    Writes.act_in_returning,
    Writes.act_in_select,
    Writes.act_in_insert,
    Writes.join,
    Writes.row_by_row,
    Writes.insert_step,
    Writes.insert_step,
    Writes.update_step,
    Writes.update_steps,
    Writes.insert_into_partition,
    Writes.delete_step,
)

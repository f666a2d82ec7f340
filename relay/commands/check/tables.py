"""Examines the watched tables."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final, LiteralString

import psycopg

from relay.commands.check.core import Check, Place, Verdict, advised, failed, listed, ok, warning
from relay.postgres.watches import LaneTable, Watched, read_failing_extras, read_lanes, read_watched
from relay.text import error_line

SLOW_SECONDS: Final = 1.0
"""Time for reading an empty board above which there is a warning; it usually takes milliseconds."""

WIDE_BYTES: Final = 1024 * 1024
"""Size of a row above which there is a warning, because many clients refuse larger messages."""

_TABLES: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name) from relay.watched w order by w.id
"""


async def _watched(place: Place) -> Verdict:
    tables = [name for (name,) in await place.link.rows(_TABLES)]
    if not tables:
        return failed("nothing is watched", "run relay sql watch with the name of the tasks table")
    return ok(listed(tables))


def judge_watched(each: Watched) -> Verdict | None:
    """Judge whether the columns and the name by which a table is watched exist; None if so."""
    if (fault := each.fault) and (each.problem or each.triggers_complete):
        return failed(*fault.split(": ", 1))
    return warning(*each.shortcoming.split(": ", 1)) if each.shortcoming else None


def judge_lanes(each: LaneTable, watched: Sequence[Watched]) -> Verdict | None:
    """Judge the same of a table of lanes."""
    if each.triggers_complete and (fault := each.fault(watched)):
        return failed(*fault.split(": ", 1))
    return warning(*each.shortcoming.split(": ", 1)) if each.shortcoming else None


async def _columns(place: Place) -> Verdict:
    watched = await read_watched(place.link)
    verdicts = [judge_watched(each) for each in watched]
    verdicts += [judge_lanes(each, watched) for each in await read_lanes(place.link)]
    if wrong := [verdict for verdict in verdicts if verdict]:
        return min(wrong, key=lambda verdict: verdict.status != "failed")
    for extra in await read_failing_extras(place.link):
        if extra.problem or (extra.fault and extra.triggers_complete):
            found, hint = (extra.fault or extra.shortcoming).split(": ", 1)
            return failed(found, hint)
    for table, command in await place.link.rows(_LEFT_EXTRAS):
        found = f"{table} has triggers of an extra whose other tables are gone: its writers pay for it"
        return warning(found, f"run {command}")
    return ok("the columns and names by which tables are watched are there")


# Triggers on one table of an extra remain when the other one was dropped together with its triggers.
_LEFT_EXTRAS: Final[LiteralString] = """
    select pg_catalog.min(t.tgrelid::regclass::text),
           pg_catalog.string_agg(distinct pg_catalog.format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass),
                                 '; ')
    from relay.statements('extra_truncate') s
    join pg_catalog.pg_trigger t on t.tgname ~ pg_catalog.format('^relay_extra_%s(_truncate)?$',
                                                                 coalesce(s.said ->> 'far_of', s.said ->> 'extra'))
    where not exists (select from relay.extras e where e.target is not null
                      and e.id::text = coalesce(s.said ->> 'far_of', s.said ->> 'extra'))
    group by coalesce(s.said ->> 'far_of', s.said ->> 'extra') order by 1
"""


async def _reading(place: Place) -> Verdict:
    """Read like the daemon, with its role: the journal, and a board that does not exist."""
    link = place.link
    for table, missing in await link.rows(_UNREADABLE):
        found, hint = advised(f"{table}: boards are read by role relay_reader: {missing}")
        return failed(found, str(hint))
    began = time.perf_counter()
    await link.rows("begin read only")
    try:
        await link.rows("set local lock_timeout = '1s'")
        await link.rows("select from relay.entries limit 1")
        await link.rows("select from relay.horizon limit 1")
        name = secrets.token_hex(8)
        await link.rows("select relay.hold_tables(%s)", name)
        await link.rows("select from relay.board(%s, false)", name)
    except psycopg.errors.LockNotAvailable as ex:
        return warning(error_line(ex), "end the process that is named, or wait until it is over")
    except psycopg.Error as ex:
        found, hint = advised(error_line(ex))
        return failed(found, hint or "correct what Postgres reports")
    finally:
        if not link.closed:
            await link.rows("rollback")
    return judge_reading(time.perf_counter() - began, await link.rows(_UNINDEXED))


def judge_reading(seconds: float, unindexed: Sequence[Any]) -> Verdict:
    """Judge whether boards are read quickly.

    `unindexed` has (table, whether it is partitioned, column, number of rows) of those that lack an index.
    """
    if unindexed:
        table, partitioned, column, rows = unindexed[0]
        found = f"{table} has {rows:,} rows and no index that begins with {column}: each board reads the whole table"
        hint = f"run create index concurrently on {table} ({column})"
        if partitioned:  # Postgres refuses `concurrently` there
            hint = (
                f"create an index on ({column}) concurrently on each partition, one by one; "
                f"then run create index on {table} ({column}), which adopts them and so is done in a moment"
            )
        return warning(found, hint)
    if seconds > SLOW_SECONDS:
        return warning(
            f"reading an empty board took {seconds:.1f} s", "see what keeps Postgres from reading it quickly"
        )
    return ok("journal and boards can be read")


_UNREADABLE: Final[LiteralString] = """
    select t.target::text, m.missing
    from (select w.target::regclass from relay.watched w union select w.lanes from relay.watched w
          union select e.near from relay.extras e union select e.far from relay.extras e) t
    cross join lateral relay.missing_right(t.target) m (missing)
    where m.missing is not null order by 1
"""

# Rows of a board are found by the column of the board, by that of the lane, or by an expression. Rows of an extra are
# found by the key in the task, and tasks by the key in the rows.
_UNINDEXED: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', n.nspname, o.relname), o.relkind = 'p',
           case when way.col is null then '(' || way.said || ')' else pg_catalog.quote_ident(way.col) end,
           size.rows
    from (
        select w.target::oid, case when w.board_as is null then coalesce(w.board_column, w.lane_column) end,
               coalesce(w.board_as, w.lane_as), null
        from relay.watched w
        union
        select t.target, t.col, null, t.filter
        from relay.extras e
        cross join lateral (values (e.near::oid, e.key_column, e.near_filter), (e.near, e.link_column, e.near_filter),
                                   (e.target, e.task_column, null)) t (target, col, filter)
        where t.col is not null
    ) way (target, col, said, filter)
    join pg_catalog.pg_class o on o.oid = way.target
    join pg_catalog.pg_namespace n on n.oid = o.relnamespace
    cross join lateral (
        select pg_catalog.sum(c.reltuples)::bigint as rows
        from relay.parts(way.target) p join pg_catalog.pg_class c on c.oid = p
        where c.relkind = 'r' and c.reltuples > 0
    ) size
    where size.rows >= 10000 and not exists (
        select from pg_catalog.pg_index i
        left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = way.target and i.indisvalid
          and (i.indpred is null or pg_catalog.pg_get_expr(i.indpred, i.indrelid) = way.filter)
          and case when way.col is null then i.indkey[0] = 0 else a.attname = way.col end)
    order by size.rows desc
"""


async def _clashes(place: Place) -> Verdict:
    return judge_clashes(await read_watched(place.link))


def judge_clashes(watched: Sequence[Watched]) -> Verdict:
    """Judge whether tables that may share boards have distinct ids there, and the same order."""
    shown = [each for each in watched if each.problem is None]
    pairs = [pair for pair in combinations(shown, 2) if pair[0].board_kind == pair[1].board_kind]
    for one, other in pairs:
        if one.may_clash(other):
            found = f"tasks of {one.table} and {other.table} may have the same id on the same board"
            word = other.table.rpartition(".")[2].strip('"')
            return failed(
                found, f"run {shlex.join(['relay', 'sql', 'watch', other.table, '--id-prefix', f'{word}-'])}"
            )
    for one, other in pairs:
        if one.watch.order_by != other.watch.order_by:
            found = f"{one.table} and {other.table} may have tasks on the same boards, in different orders"
            return warning(
                f"{found}: clients append what is new", "give both the same order: relay sql watch --order-by"
            )
    return ok("no two tables share ids on boards, or boards in different orders")


# The same conditions as in relay.triggers_enabled, which does not say which trigger is wrong.
_TRIGGERS: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name), part.name::text, wanted.name, t.tgenabled::text
    from relay.watched w
    join pg_catalog.pg_namespace n on n.nspname = w.schema_name
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.table_name
    cross join lateral relay.parts(c.oid) part (name)
    cross join (values ('relay_change', 29), ('relay_truncate', 32)) wanted (name, type)
    left join pg_catalog.pg_trigger t on t.tgrelid = part.name and t.tgname = wanted.name
    left join pg_catalog.pg_proc f on f.oid = t.tgfoid
    where (t.tgenabled = 'A' and t.tgtype = wanted.type and t.tgattr::text = '' and t.tgqual is null
           and f.proname in ('journal_' || w.id, 'journal_truncate')) is not true
    order by w.id, part.name::text, wanted.name
"""
_TRIGGERS_OF_LANES: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', n.nspname, c.relname), l.triggers_complete
    from relay.lane_tables l
    join pg_catalog.pg_class c on c.oid = l.target
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where not l.triggers_complete or exists (
        select from pg_catalog.pg_trigger t
        where t.tgrelid = l.target and t.tgname in ('relay_lanes', 'relay_lanes_truncate') and t.tgenabled <> 'A')
    order by 2, 1
"""


async def _triggers(place: Place) -> Verdict:
    wrong = await place.link.rows(_TRIGGERS)
    if not wrong:
        return await _other_triggers(place)
    return judge_triggers(wrong)


def judge_triggers(wrong: Sequence[Any]) -> Verdict:
    """Judge wrong triggers: (table, partition or table, name, `pg_trigger.tgenabled` or None if missing)."""
    how = {None: "missing", "D": "disabled", "A": "not as relay.watch makes it"}
    table = wrong[0][0]
    found = listed(
        f"{trigger} of {part} is {how.get(enabled, 'not enabled always')}" for _, part, trigger, enabled in wrong
    )
    hint = f"run relay sql watch {shlex.quote(table)}"
    if all(enabled == "O" for _, _, _, enabled in wrong):
        return warning(f"{found}: what replication applies here is not journalled", hint)
    if all(trigger == "relay_truncate" and enabled is None and part != of for of, part, trigger, enabled in wrong):
        return warning(f"{found}: that it is truncated by itself is noticed a second later", hint)
    return failed(found, hint)


async def _other_triggers(place: Place) -> Verdict:
    """Judge the triggers of lanes and extras."""
    for lanes, complete in await place.link.rows(_TRIGGERS_OF_LANES):
        found, hint = f"those of {lanes}, whose rows are lanes, are", f"run relay sql lanes {shlex.quote(lanes)}"
        if complete:
            return warning(f"{found} not enabled always: what replication applies there is not journalled", hint)
        return failed(f"{found} missing, disabled or not as relay.lanes makes them", hint)
    for extra in await read_failing_extras(place.link):
        found, hint = f"those for {extra.name} of {extra.table} are", f"run {extra.command}"
        if not extra.triggers_complete:
            return failed(f"{found} missing, disabled or not as relay.extra makes them", hint)
        if not extra.triggers_always:
            return warning(f"{found} not enabled always: what replication applies there is not journalled", hint)
    return ok("all are in place and enabled, on partitions too")


_ALTERED: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', n.nspname, c.relname)
    from (select w.id, w.target from relay.watched w union all select l.id, l.target from relay.lane_tables l
          union all select e.id, e.near from relay.extras e) t
    join pg_catalog.pg_class c on c.oid = t.target
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where t.id in (select relay.altered()) order by 1
"""


async def _trigger_functions(place: Place) -> Verdict:
    tables = await place.link.rows(_ALTERED)
    if tables:
        found = f"that of {listed(table for (table,) in tables)} was altered, or a column of the table"
        return failed(found, "run relay sql install, or start the daemon: both make it fit")
    return ok("are as this version makes them")


_UNIDENTIFIED: Final[LiteralString] = """
    with ours (root, part) as (
        select c.oid, part from relay.watched w
        join pg_catalog.pg_namespace n on n.nspname = w.schema_name
        join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.table_name
        cross join lateral relay.parts(c.oid) part
    )
    select distinct o.part::regclass::text, b.pubname::text
    from ours o
    join pg_catalog.pg_class c on c.oid = o.part and c.relkind = 'r'
    join pg_catalog.pg_class p on p.oid in (o.root, o.part)
    join pg_catalog.pg_namespace n on n.oid = p.relnamespace
    join pg_catalog.pg_publication_tables t on t.schemaname = n.nspname and t.tablename = p.relname
    join pg_catalog.pg_publication b on b.pubname = t.pubname and (b.pubupdate or b.pubdelete)
    where c.relreplident <> 'f'
      and not exists (
          select from pg_catalog.pg_index i
          where i.indrelid = c.oid and i.indisvalid
            and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end)
    order by 1
"""


async def _replication(place: Place) -> Verdict:
    for table, publication in await place.link.rows(_UNIDENTIFIED):
        found = f"publication {publication} has {table}, which has no replica identity: its rows cannot be changed"
        return failed(found, f"give it a primary key, or alter table {table} replica identity full")
    return ok("no publication keeps rows from being changed")


_WIDEST: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name), r.sampled, r.bytes, r.huge
    from relay.widest() r join relay.watched w on w.id = r.watch
    where r.bytes is not null order by r.bytes desc
"""


async def _rows(place: Place) -> Verdict:
    return judge_rows(await place.link.rows(_WIDEST))


def judge_rows(rows: Sequence[Any]) -> Verdict:
    """Judge whether rows fit into a message, and their ids into JavaScript's numbers.

    `rows` has (table, rows in the sample, bytes of the widest, rows with an id, a board or a lane beyond 2^53), the
    widest first.
    """
    if not rows:
        return ok("there are none yet")
    for table, sampled, _, huge in rows:
        if huge:
            found = f"{huge} of {sampled} sampled rows of {table} have an id, a board or a lane beyond 2^53"
            hint = f"run {shlex.join(['relay', 'sql', 'watch', table, '--as-text'])}"
            return warning(f"{found}: many readers of JSON round such numbers", hint)
    table, sampled, widest, _ = rows[0]
    found = f"the widest of {sampled} sampled rows of {table} has about {widest:,} bytes"
    if widest < WIDE_BYTES:
        return ok(found)
    hint = "hide wide columns (relay sql watch --hide), or let clients take messages over 1 MiB"
    return warning(f"{found}: many clients refuse messages over 1 MiB, and writers pay for each", hint)


CHECKS: Final = (
    Check("watched", _watched, "something is", "`relay sql watch`", gate=True),
    Check(
        "columns",
        _columns,
        "the columns that a table is watched by, or hides, are there; no other table took its name",
        "`relay sql watch` with the names as they are now",
    ),
    Check(
        "reading",
        _reading,
        "the daemon's role can read the journal and boards; boards of large tables have an index (warning)",
        "the grant, or the index, that is named",
    ),
    Check(
        "clashes",
        _clashes,
        "no two tables may have tasks of the same id on the same board, unless you say that they do not; "
        "those that share boards have one order (warning)",
        "`relay sql watch` with `--id-prefix`, `--distinct-ids` or `--order-by`",
    ),
    Check(
        "triggers",
        _triggers,
        "all in place and unchanged, on each partition; enabled always, not for ordinary sessions alone (warning)",
        "`relay sql watch`",
    ),
    Check(
        "trigger functions",
        _trigger_functions,
        "each is what this version would make for the columns as they are",
        "`relay sql install`, or start the daemon",
    ),
    Check(
        "replication",
        _replication,
        "no publication keeps rows of watched tables from being changed",
        "a primary key or `replica identity full`",
    ),
    Check(
        "rows",
        _rows,
        "the widest of about a thousand sampled rows of each table is below 1 MiB (warning); "
        "ids, boards and lanes beyond 2^53 are sent as text (warning)",
        "hide wide columns, writers pay for them too; `--as-text`",
    ),
)

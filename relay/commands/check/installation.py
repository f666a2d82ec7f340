"""Examines what `relay sql install` and `relay sql roles` made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, LiteralString, NamedTuple

from relay.commands.check.core import Check, Place, Verdict, failed, listed, ok
from relay.postgres import install


class _Function(NamedTuple):
    definer: bool
    body: str


def functions_of(script: str) -> dict[str, _Function]:
    """Read the functions that a script defines, by name."""
    found = re.finditer(
        r"^create or replace function relay\.(\w+)(.*?)^as (\$\w*\$)(.*?)\3", script, re.MULTILINE | re.DOTALL
    )
    return {name: _Function("security definer" in head, body) for name, head, _, body in (f.groups() for f in found)}


async def _install(place: Place) -> Verdict:
    rows = await place.link.rows(
        "select p.proname, p.prosecdef, p.prosrc from pg_catalog.pg_proc p "
        "join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = 'relay'"
    )
    return judge_install({name: _Function(definer, body) for name, definer, body in rows})


def judge_install(there: Mapping[str, _Function]) -> Verdict:
    """Whether all functions are there and as this version makes them; relay.may_read may be anything."""
    wanted = functions_of(install.text("install"))
    hint = "run relay sql install (relay sql diff shows what it changes)"
    if not there:
        return failed("schema relay is not installed in this database, or empty", "run relay sql install")
    if missing := [name for name in (*wanted, "may_read") if name not in there]:
        return failed(f"not there: {listed(f'relay.{name}' for name in missing)}", hint)
    if other := [name for name, function in wanted.items() if there[name] != function]:
        return failed(f"not as this version makes them: {listed(f'relay.{name}' for name in other)}", hint)
    return ok(f"all {len(wanted)} functions are as this version makes them")


class Rights(NamedTuple):
    """What sql/roles.sql grants in schema relay, by name."""

    relations: list[str]
    functions: list[str]


def rights_of(script: str) -> Rights:
    """Read what a script grants."""
    grants = re.findall(r"^grant (select|execute) on (.*?) to relay_daemon;", script, re.MULTILINE | re.DOTALL)
    return Rights(
        [name for right, objects in grants if right == "select" for name in re.findall(r"relay\.(\w+)", objects)],
        [name for right, objects in grants if right == "execute" for name in re.findall(r"relay\.(\w+)\(", objects)],
    )


_GRANTED: Final[LiteralString] = """
    select 'schema relay' from pg_catalog.pg_namespace n
    where n.nspname = 'relay' and pg_catalog.has_schema_privilege(n.oid, 'usage')
    union all
    select 'relay.' || c.relname from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'relay'
    where c.relname = any (%s::text[]) and pg_catalog.has_table_privilege(c.oid, 'select')
    union all
    select 'relay.' || p.proname || '()' from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'relay'
    where p.proname = any (%s::text[]) and pg_catalog.has_function_privilege(p.oid, 'execute')
"""


async def _grants(place: Place) -> Verdict:
    rights = rights_of(install.text("roles"))
    granted = {name for (name,) in await place.link.rows(_GRANTED, *rights)}
    wanted = ["schema relay", *(f"relay.{n}" for n in rights.relations), *(f"relay.{n}()" for n in rights.functions)]
    user = place.link.info.user
    if lacking := [name for name in wanted if name not in granted]:
        hint = "run relay sql roles" + (", and connect as relay_daemon" if user != "relay_daemon" else "")
        return failed(f"role {user} has no right on {listed(lacking)}", hint)
    return ok(f"role {user} has all {len(wanted)} rights that it needs")


CHECKS: Final = (
    Check(
        "install",
        _install,
        "each function is as this version makes it; `relay.may_read` is yours",
        "`relay sql install`",
        gate=True,
    ),
    Check(
        "grants",
        _grants,
        "all rights of `sql/roles.sql`",
        "`relay sql roles`, and connect as `relay_daemon`",
        gate=True,
    ),
)

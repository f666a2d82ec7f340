"""Examines the results of `relay sql install` and `relay sql roles`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, LiteralString, NamedTuple

from relay.commands.check.core import Check, Place, Verdict, failed, listed, ok
from relay.postgres import install


class _Function(NamedTuple):
    definer: bool
    body: str


def functions_of(script: str) -> dict[str, _Function]:
    """Return the functions that a script defines, by name."""
    found = re.finditer(
        r"^create or replace function relay\.(\w+)(.*?)^as (\$\w*\$)(.*?)\3", script, re.MULTILINE | re.DOTALL
    )
    return {name: _Function("security definer" in head, body) for name, head, _, body in (f.groups() for f in found)}


def relations_of(script: str) -> list[str]:
    """Return the names of the tables, views, sequences and indexes that a script defines."""
    made = re.findall(
        r"create (?:unlogged table|sequence|or replace view) (?:if not exists )?relay\.(\w+)|create index (\w+)",
        script,
    )
    return [relation or index for relation, index in made]


async def _install(place: Place) -> Verdict:
    rows = await place.link.rows(
        "select p.proname, p.prosecdef, p.prosrc from pg_catalog.pg_proc p "
        "join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = 'relay'"
    )
    relations = await place.link.rows(
        "select c.relname from pg_catalog.pg_class c "
        "join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'relay'"
    )
    there = {name: _Function(definer, body) for name, definer, body in rows}
    return judge_install(there, {name for (name,) in relations})


def judge_install(there: Mapping[str, _Function], relations: Collection[str]) -> Verdict:
    """Judge whether everything exists, with all functions as in this version, except for relay.may_read."""
    script = install.text("install")
    wanted = functions_of(script)
    hint = "run relay sql install (relay sql diff shows what it changes)"
    if not there:
        return failed("schema relay is not installed in this database, or empty", "run relay sql install")
    missing = [name for name in relations_of(script) if name not in relations]
    if missing := missing + [name for name in (*wanted, "may_read") if name not in there]:
        return failed(f"not there: {listed(f'relay.{name}' for name in missing)}", hint)
    if other := [name for name, function in wanted.items() if there[name] != function]:
        return failed(f"not as this version makes them: {listed(f'relay.{name}' for name in other)}", hint)
    return ok(f"all {len(wanted)} functions are as this version makes them")


class Grant(NamedTuple):
    """A right of a role on schema relay, or on a relation or function in it."""

    role: str
    right: str
    kind: str
    name: str

    def __str__(self) -> str:
        return {"schema": "schema relay", "function": f"relay.{self.name}()"}.get(self.kind, f"relay.{self.name}")


def grants_of(script: str) -> list[Grant]:
    """Return the rights that a script grants."""
    found = []
    for right, objects, roles in re.findall(
        r"^grant (select|insert|execute|usage) on (.*?) to ([\w, ]+);", script, re.MULTILINE | re.DOTALL
    ):
        kind = {"usage": "schema", "execute": "function"}.get(right, "relation")
        names = re.findall(r"relay\.(\w+)\(" if kind == "function" else r"relay\.(\w+)", objects) or ["relay"]
        found += [Grant(role, right, kind, name) for role in roles.split(", ") for name in names]
    return found


_LACKING: Final[LiteralString] = """
    select g.role, g.held, g.kind, g.name
    from unnest(%s::text[], %s::text[], %s::text[], %s::text[]) with ordinality g (role, held, kind, name, n)
    left join pg_catalog.pg_roles r on r.rolname = g.role
    where coalesce(case g.kind
        when 'schema' then (
            select pg_catalog.has_schema_privilege(r.oid, n.oid, g.held)
            from pg_catalog.pg_namespace n where n.nspname = g.name)
        when 'relation' then (
            select case c.relkind when 'S' then pg_catalog.has_sequence_privilege(r.oid, c.oid, g.held)
                   else pg_catalog.has_table_privilege(r.oid, c.oid, g.held) end
            from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'relay' and c.relname = g.name)
        else (
            select pg_catalog.bool_and(pg_catalog.has_function_privilege(r.oid, p.oid, g.held))
            from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where n.nspname = 'relay' and p.proname = g.name) end, false) is false
    order by g.n
"""


_LACKING_BESIDE: Final[LiteralString] = """
    select n.role, pg_catalog.array_agg(n.object order by n.object)
    from relay.needed_rights() n where n.missing group by n.role order by n.role
"""


async def _grants(place: Place) -> Verdict:
    user = place.link.info.user
    own = [grant._replace(role=user) for grant in grants_of(install.text("roles"))]
    lacking = [Grant(*row) for row in await place.link.rows(_LACKING, *map(list, zip(*own, strict=True)))]
    if lacking:
        found = f"role {user} has no right on {listed(map(str, lacking))}"
        beside = ", and connect as relay_daemon" if user != "relay_daemon" else ""
        return failed(found, f"run relay sql roles{beside}")
    for role, objects in await place.link.rows(_LACKING_BESIDE):
        return failed(f"role {role} has no right on {listed(objects)}", "run relay sql install, or start the daemon")
    return ok(f"role {user} has all {len(own)} rights that it needs, and so have the relay's own roles")


CHECKS: Final = (
    Check(
        "install",
        _install,
        "everything is there, and each function as this version makes it; `relay.may_read` is yours",
        "`relay sql install`",
        gate=True,
    ),
    Check(
        "grants",
        _grants,
        "all rights of `sql/roles.sql`, and those of the roles as which trigger functions run and boards are read",
        "`relay sql roles`, and connect as `relay_daemon`; `relay sql install`",
        gate=True,
    ),
)

"""The doctor: `relay check` looks at all that the daemon needs, and says of each thing how it is and how to mend it.

It connects as the daemon does, with its two connections, its settings and its rights, and changes nothing. Where the
daemon serves clients from NATS, it looks there, and knows nothing of the database.

Rules:
- Each check asks, and a verdict that is pure judges what came. There is always one finding for each check.
- What depends on something that is broken is skipped: the first thing to mend is the first that is shown as failed.
- What the daemon's role may not see by itself, narrow functions of sql/install.sql tell: relay.altered, relay.vitals,
  relay.vacuum_holders and relay.widest.
- Nobody is held up: no lock is waited for, no table is read whole, each answer has its deadline. Before a transaction
  pooler is ruled out, no setting is made and nothing listened to: both would stay in a connection that others use.
- No secret is shown: not the connection string, not a credential.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import resource
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, LiteralString, NamedTuple

import aiohttp
import psycopg
from psycopg.conninfo import make_conninfo

from relay.auth.keys import AccessError
from relay.auth.reload import Reloader
from relay.config import Settings
from relay.daemon.errors import StartError, listening_on, nats_installed
from relay.daemon.serve import open_to_all
from relay.model.status import FULL_SHARE, OVERDUE_SECONDS, QUEUE_USAGE
from relay.nats.stream import State, decode
from relay.postgres import install, session
from relay.postgres.session import Connection, FeedError, Vitals
from relay.text import error_line
from relay.websocket.sockets import bind

if TYPE_CHECKING:
    from relay.nats.jetstream import Stream

VERSIONS: Final = range(14, 19)
"""Major versions of Postgres that the relay is tested with."""

ANSWER_SECONDS: Final = 5.0
"""How long each check may take."""

DOORBELL_SECONDS: Final = 1.0
"""How long the doorbell may take from one connection to the other; between two that are well it is a millisecond."""

SKEW_SECONDS: Final = 1.0
"""By how much the clocks of this machine and of the server may differ."""

WIDE_BYTES: Final = 1024 * 1024
"""Many clients refuse messages that are larger."""

SPARE_FILES: Final = 128
"""Files that a process of the daemon needs beside its clients' connections."""

_CONNECTIONS: Final = 2
"""Those of the daemon, for each worker; and those of a check."""

LONGEST_RETURN_MINUTES: Final = 2.0
"""All clients should be able to come back within this time."""

Level = Literal["ok", "warning", "failed", "skipped"]


class Verdict(NamedTuple):
    """How a thing is, what was found, and what to do about it, each in one line."""

    status: Level
    found: str
    mend: str | None = None


class Finding(NamedTuple):
    """A verdict, and the name of the check."""

    check: str
    status: Level
    found: str
    mend: str | None


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict("ok", found)


def warning(found: str, mend: str) -> Verdict:
    """Changes flow all the same."""
    return Verdict("warning", found, mend)


def failed(found: str, mend: str) -> Verdict:
    """Clients are not served as they should be, or will not be."""
    return Verdict("failed", found, mend)


@dataclass
class Place:
    """Where the checks look: the settings, and the two connections, or the stream, once they are there."""

    settings: Settings
    lifetime: AsyncExitStack
    links: Sequence[Connection] = ()
    stream: Stream | None = None

    @property
    def link(self) -> Connection:
        return self.links[0]

    @property
    def lost(self) -> bool:
        return any(link.closed for link in self.links)


async def run(settings: Settings) -> AsyncIterator[Finding]:
    """Look at everything, in an order in which it can be mended."""
    async with AsyncExitStack() as lifetime:
        place = Place(settings, lifetime)
        for name, look in _HERE.items():
            yield Finding(name, *await _judged(look, place))
        broken: str | None = None
        there = _NATS if settings.SERVE_FROM else _THERE
        for name, look in there.items():
            if broken:
                yield Finding(name, "skipped", f"cannot be checked before {broken} is mended", None)
                continue
            verdict = await _judged(look, place)
            yield Finding(name, *verdict)
            if verdict.status == "failed" and (name in _GATES or place.lost):
                broken = name


async def _judged(look: Callable[[Place], Awaitable[Verdict]], place: Place) -> Verdict:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await look(place)
    except TimeoutError:
        return failed(
            f"no answer within {ANSWER_SECONDS:.0f} seconds",
            "see that the server, and a pooler if there is one, has connections and time to spare",
        )
    except (psycopg.Error, FeedError) as ex:
        return failed(error_line(ex), "mend what Postgres says here, and check again")


# This machine ---------------------------------------------------------------------------------------------------


async def _access(place: Place) -> Verdict:
    settings = place.settings
    if not settings.WS_ENABLED:
        return ok("no clients are served: WS_ENABLED is false")
    try:
        await Reloader(settings).open()
    except AccessError as ex:
        return failed(str(ex), "mend the setting that is named, or its file")
    if settings.is_open:
        found, mend = open_to_all(settings.WS_HOST)
        return warning(found, mend) if mend else ok(found)
    return ok(
        "credentials are asked for, and can be read" + (", as the certificate can" * bool(settings.WS_TLS_CERT))
    )


async def _ports(place: Place) -> Verdict:
    settings = place.settings
    ports = {"HEALTH_PORT": settings.HEALTH_PORT}
    if settings.WS_ENABLED and not settings.WS_SOCKET:
        ports = {"WS_PORT": settings.WS_PORT} | ports
    if len(set(ports.values())) < len(ports) and settings.HEALTH_PORT:
        return failed(f"WS_PORT and HEALTH_PORT are both {settings.HEALTH_PORT}", "choose two ports")
    problems = [problem for name, port in ports.items() if (problem := await _taken(name, settings.WS_HOST, port))]
    if not problems:
        return ok("free: " + ", ".join(f"{settings.WS_HOST}:{port or 'any'}" for port in ports.values()))
    return (await _running(settings)) or failed(*_halves(problems[0]))


async def _taken(setting: str, host: str, port: int) -> str | None:
    """Say why the daemon could not listen, by binding the address without listening."""
    try:
        with listening_on(setting, host, port):
            for sock in await bind(host, port):
                sock.close()
    except StartError as ex:
        return str(ex)
    return None


async def _running(settings: Settings) -> Verdict | None:
    """Say how the relay is that has these ports, if one has."""
    first = settings.WS_HOST.replace(",", " ").split()[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)  # noqa: S104  # compared
    address = f"http://[{host}]" if ":" in host else f"http://{host}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as client,
            client.get(f"{address}:{settings.HEALTH_PORT}/health") as response,
        ):
            health = await response.json()
            port, status = health["websocket"]["port"], health["status"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None
    if settings.WS_ENABLED and port != settings.WS_PORT:
        return None
    return ok(f"a relay is running here, and says that it is {status}")


async def _files(place: Place) -> Verdict:
    return judge_files(place.settings.WS_MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def judge_files(clients: int, limit: int) -> Verdict:
    """Whether a process may have so many clients."""
    if limit == resource.RLIM_INFINITY:
        return ok("a process may open any number of files")
    needed = clients + SPARE_FILES
    found = f"a process may open {limit} files here, and WS_MAX_CONNECTIONS={clients} needs {needed}"
    mend = f"raise the limit (ulimit -n {needed}, LimitNOFILE={needed}), or lower WS_MAX_CONNECTIONS"
    return ok(found) if needed <= limit else failed(found, mend)


async def _rates(place: Place) -> Verdict:
    settings = place.settings
    return judge_rates(settings.WS_MAX_CONNECTIONS, settings.WS_RATE_LIMIT_TOTAL)


def judge_rates(clients: int, a_minute: int) -> Verdict:
    """Whether so many clients come back soon after a restart."""
    if not a_minute:
        return ok("connections are not limited by the minute")
    minutes = clients / a_minute
    found = f"{clients} clients need {minutes:.0f} minutes to come back, at {a_minute} a minute"
    if minutes > LONGEST_RETURN_MINUTES:
        return warning(found, f"raise WS_RATE_LIMIT_TOTAL to {clients}: after a restart they all come at once")
    return ok(f"{clients} clients come back within {math.ceil(minutes)} minutes, at {a_minute} a minute")


# The way to the database ----------------------------------------------------------------------------------------


async def _connection(place: Place) -> Verdict:
    conninfo = session.conninfo(place.settings.DATABASE_URL)
    try:
        await _connect(place, conninfo)
    except psycopg.OperationalError as ex:
        if not re.search("session is read-only|hot standby", str(ex)):
            return failed(error_line(ex), "see that Postgres runs and lets this role in, and what DATABASE_URL says")
        await _connect(place, make_conninfo(conninfo, target_session_attrs="any"))
    info = place.link.info
    where = f"{info.user} on {info.host}:{info.port}, database {info.dbname}"
    return judge_tls(where, info.hostaddr, tls=place.link.pgconn.ssl_in_use)


async def _connect(place: Place, conninfo: str) -> None:
    links = [
        await place.lifetime.enter_async_context(await Connection.connect(conninfo, autocommit=True))
        for _ in range(_CONNECTIONS)
    ]
    place.links = links


def judge_tls(where: str, address: str, *, tls: bool) -> Verdict:
    """Whether strangers may read what is on its way."""
    if tls:
        return ok(f"{where}, with TLS")
    if address and ipaddress.ip_address(address).is_global:
        return warning(f"{where}, without TLS over the Internet", "add sslmode=verify-full to DATABASE_URL")
    return ok(f"{where}, without TLS")


async def _primary(place: Place) -> Verdict:
    return judge_primary(
        *await place.link.row(
            "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'"
        )
    )


def judge_primary(standby: bool, read_only: bool) -> Verdict:
    """Whether the server takes writes."""
    if standby:
        return failed("the server is a standby, which takes no writes", "name the primary in DATABASE_URL")
    if read_only:
        mend = "set default_transaction_read_only = off for the daemon's role (alter role … in database …)"
        return failed("sessions are read-only: default_transaction_read_only is on", mend)
    return ok("takes writes")


async def _version(place: Place) -> Verdict:
    return judge_version(place.link.info.server_version)


def judge_version(number: int) -> Verdict:
    """Whether the relay knows this Postgres."""
    major, tested = number // 10_000, f"{VERSIONS[0]} to {VERSIONS[-1]}"
    if major < VERSIONS[0]:
        return failed(
            f"Postgres {major}: the relay works with {tested}", f"upgrade to Postgres {VERSIONS[0]} or later"
        )
    if major > VERSIONS[-1]:
        mend = "use a later relay, if there is one"
        return warning(f"Postgres {major}: this relay is tested with {tested}", mend)
    return ok(f"Postgres {major}.{number % 10_000}")


async def _encoding(place: Place) -> Verdict:
    return judge_encoding(place.link.info.parameter_status("server_encoding") or "")


def judge_encoding(encoding: str) -> Verdict:
    """Whether the database's text can be read."""
    if encoding == "SQL_ASCII":
        return failed(
            "the database has encoding SQL_ASCII, which does not say what its text means",
            "restore a dump into a database with encoding UTF8, or another that says",
        )
    return ok(encoding)


_TRANSACTION_POOLER: Final = failed(
    "a transaction pooler is in between: two statements of one connection ran in different sessions",
    "connect to Postgres itself, or to a pool in session mode",
)
_PID: Final[LiteralString] = "select pg_catalog.pg_backend_pid()"


async def _pooler(place: Place) -> Verdict:
    one, other = place.links
    if await _changes_sessions(one, other):
        return _TRANSACTION_POOLER
    milliseconds = await ring(one, other)
    if milliseconds is None:
        return failed(
            f"a NOTIFY from one connection was not heard on another within {DOORBELL_SECONDS:.0f} s",
            "connect to Postgres itself, or to a pool in session mode, of one server",
        )
    for link in place.links:
        await session.set_up(link)
        await link.rows("select pg_catalog.set_config('statement_timeout', %s, false)", f"{ANSWER_SECONDS:.0f}s")
    return ok(f"none: sessions are kept, and the doorbell is heard after {milliseconds:.1f} ms")


async def _changes_sessions(one: Connection, other: Connection) -> bool:
    """Whether a connection is given another session, or one session to two connections.

    A pool gives out first what came back last: what `one` had a moment ago, `other` then has in its transaction.
    """
    first = await one.row(_PID)
    await other.rows("begin")
    try:
        # Asked in this order: a pool of one session has none left for `one` meanwhile.
        return await other.row(_PID) == first or await one.row(_PID) != first
    finally:
        if not other.closed:
            await other.rows("rollback")


async def ring(listener: Connection, other: Connection) -> float | None:
    """Ring a doorbell of our own: return the milliseconds until it was heard."""
    channel, token = "relay_check", secrets.token_hex(8)
    await listener.rows(f"listen {channel}".encode())
    try:
        rung = time.perf_counter()
        await other.rows("select pg_catalog.pg_notify(%s, %s)", channel, token)
        async for notify in listener.notifies(timeout=DOORBELL_SECONDS):
            if notify.payload == token:
                return (time.perf_counter() - rung) * 1000
    finally:
        if not listener.closed:
            await listener.rows(f"unlisten {channel}".encode())
    return None


# The install ----------------------------------------------------------------------------------------------------


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
    mend = "run relay sql install (relay sql diff shows what it changes)"
    if not there:
        return failed("schema relay is not installed in this database, or empty", "run relay sql install")
    if missing := [name for name in (*wanted, "may_read") if name not in there]:
        return failed(f"not there: {_listed(f'relay.{name}' for name in missing)}", mend)
    if other := [name for name, function in wanted.items() if there[name] != function]:
        return failed(f"not as this version makes them: {_listed(f'relay.{name}' for name in other)}", mend)
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
        mend = "run relay sql roles" + (", and connect as relay_daemon" if user != "relay_daemon" else "")
        return failed(f"role {user} has no right on {_listed(lacking)}", mend)
    return ok(f"role {user} has all {len(wanted)} rights that it needs")


# The server -----------------------------------------------------------------------------------------------------


async def _clock(place: Place) -> Verdict:
    return judge_clock([await _clocks(place.link) for _ in range(3)])


async def _clocks(link: Connection) -> tuple[float, float, float]:
    before = time.time()
    (there,) = await link.row("select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())")
    return before, there, time.time()


def judge_clock(readings: Iterable[tuple[float, float, float]]) -> Verdict:
    """Whether the server's clock, read between two readings of ours, is the same. The quickest reading counts."""
    before, there, after = min(readings, key=lambda reading: reading[2] - reading[0])
    ahead, give = there - (before + after) / 2, (after - before) / 2
    if abs(ahead) - give <= SKEW_SECONDS:
        return ok(f"differs from the server's by less than {abs(ahead) + give:.3f} s")
    found = f"the server's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    return warning(
        f"{found}: tokens may end too early or too late", "synchronize both clocks (chrony, systemd-timesyncd)"
    )


class Room(NamedTuple):
    """How many connections may be open and are: of the server, of the role and of the database, -1 is no limit."""

    most: int
    open: int
    most_of_role: int
    open_of_role: int
    most_of_database: int
    open_of_database: int
    relays: int


_ROOM: Final[LiteralString] = """
    select pg_catalog.current_setting('max_connections')::integer
               - pg_catalog.current_setting('superuser_reserved_connections')::integer
               - coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::integer,
           count(*),
           (select r.rolconnlimit from pg_catalog.pg_roles r where r.rolname = current_user),
           count(*) filter (where a.usename = current_user),
           (select d.datconnlimit from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()),
           count(*) filter (where a.datname = pg_catalog.current_database()),
           count(*) filter (where a.datname = pg_catalog.current_database() and a.usename = current_user
               and a.application_name = pg_catalog.current_setting('application_name'))
    from pg_catalog.pg_stat_activity a
    where a.datid is not null
"""


async def _connections(place: Place) -> Verdict:
    return judge_room(Room(*await place.link.row(_ROOM)), place.settings.WS_WORKERS)


def judge_room(room: Room, workers: int) -> Verdict:
    """Whether the daemon's connections find room, or have it already."""
    pairs = (room[0:2], room[2:4], room[4:6])
    free = min(most - taken for most, taken in pairs if most >= 0) + _CONNECTIONS  # those of this check
    theirs, needed = room.relays - _CONNECTIONS, _CONNECTIONS * workers
    found = f"there is room for {max(free, 0)} more, and the daemon needs {needed}"
    found += f"; {theirs} are a relay's" if theirs > 0 else ""
    if free + max(theirs, 0) >= needed:
        return ok(found)
    mend = "raise max_connections, or the connection limit of the role or the database, or lower WS_WORKERS"
    return failed(found, mend)


async def _notifications(place: Place) -> Verdict:
    (prepared,) = await place.link.row("select pg_catalog.current_setting('max_prepared_transactions')::integer")
    return judge_notifications((await session.read_vitals(place.link)).queue_usage, prepared)


def judge_notifications(usage: float, prepared: int) -> Verdict:
    """Whether the doorbell rings."""
    if usage >= QUEUE_USAGE:
        found = (
            f"the notification queue is {usage:.0%} full: the doorbell is silent, changes come up to a second later"
        )
        return warning(
            found, "end the session that listens in a long transaction (the server's log names its process)"
        )
    if prepared:
        return ok(f"max_prepared_transactions is {prepared}: the doorbell is silent, changes come up to 50 ms later")
    return ok(f"the queue is {usage:.0%} full")


async def _journal(place: Place) -> Verdict:
    vitals = await session.read_vitals(place.link)
    holders = (await place.link.row("select relay.vacuum_holders()"))[0]
    return judge_journal(vitals, holders)


def judge_journal(vitals: Vitals, holders: str | None) -> Verdict:
    """Whether the journal has room and is pruned; `holders` are transactions that keep it from being vacuumed."""
    journal = vitals.journal
    size = f"{journal.bytes:,} bytes; {journal.keep_bytes:,} are kept, journalling stops at {journal.stop_bytes:,}"
    held = f"; what was pruned is kept in the file by {holders}" if holders else ""
    if journal.paused:
        return failed(
            f"journalling is paused, for the journal was full: {size}{held}",
            "start the daemon: it then goes on; if one runs, end the longest transaction, or raise stop_bytes",
        )
    if journal.overdue_seconds > OVERDUE_SECONDS:
        found = f"not pruned: changes have been due for {journal.overdue_seconds:.0f} s"
        return warning(found, "start the daemon, which prunes, or let a schedule run select relay.prune()")
    if journal.bytes > FULL_SHARE * journal.stop_bytes:
        mend = "start the daemon, which prunes, end the longest transaction, or raise stop_bytes in relay.settings"
        return warning(f"nearly full: {size}{held}", mend)
    return ok(size)


# The watched tables ---------------------------------------------------------------------------------------------

_TABLES: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name) from relay.watched w order by w.id
"""


async def _watched(place: Place) -> Verdict:
    tables = [name for (name,) in await place.link.rows(_TABLES)]
    if not tables:
        return failed("nothing is watched", "run relay sql watch with the name of the tasks table")
    return ok(_listed(tables))


_PROBLEMS: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name), w.problem
    from relay.watched w where w.problem is not null order by w.id
"""


async def _columns(place: Place) -> Verdict:
    for table, problem in await place.link.rows(_PROBLEMS):
        mend = f"run relay sql watch {table} and name the columns as they are now"
        return failed(f"{table} {problem}: its rows are not shown", mend)
    return ok("the columns by which tables are watched are there")


# As relay.triggers_enabled has them, which says no more than that one is wrong.
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


async def _triggers(place: Place) -> Verdict:
    wrong = await place.link.rows(_TRIGGERS)
    if not wrong:
        return ok("all are in place and enabled, on partitions too")
    how = {None: "missing", "D": "disabled", "A": "not as relay.watch makes it"}
    table = wrong[0][0]
    found = _listed(
        f"{trigger} of {part} is {how.get(enabled, 'not enabled always')}" for _, part, trigger, enabled in wrong
    )
    mend = f"run relay sql watch {table}"
    if all(enabled == "O" for _, _, _, enabled in wrong):
        return warning(f"{found}: what replication applies here is not journalled", mend)
    return failed(found, mend)


_ALTERED: Final[LiteralString] = """
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name) from relay.watched w
    where w.id in (select relay.altered()) order by w.id
"""


async def _trigger_functions(place: Place) -> Verdict:
    tables = await place.link.rows(_ALTERED)
    if tables:
        found = f"that of {_listed(table for (table,) in tables)} was altered, or a column of the table"
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
    select pg_catalog.format('%I.%I', w.schema_name, w.table_name), r.sampled, r.bytes
    from relay.widest() r join relay.watched w on w.id = r.watch
    where r.bytes is not null order by r.bytes desc
"""


async def _rows(place: Place) -> Verdict:
    return judge_rows(await place.link.rows(_WIDEST))


def judge_rows(rows: Sequence[Any]) -> Verdict:
    """Whether rows fit into a message; they are (table, rows in the sample, bytes of the widest), widest first."""
    if not rows:
        return ok("there are none yet")
    table, sampled, widest = rows[0]
    found = f"the widest of {sampled} sampled rows of {table} has about {widest:,} bytes"
    if widest < WIDE_BYTES:
        return ok(found)
    mend = "hide wide columns (relay sql watch --hide), or let clients take messages over 1 MiB"
    return warning(f"{found}: many clients refuse messages over 1 MiB, and writers pay for each", mend)


# The way to NATS ------------------------------------------------------------------------------------------------


async def _nats(place: Place) -> Verdict:
    try:
        with nats_installed("SERVE_FROM"):
            from relay.nats.jetstream import Stream, StreamError  # noqa: PLC0415  # of an extra, which not everybody has
    except StartError as ex:
        return failed(*_halves(str(ex)))
    settings = place.settings
    try:
        place.stream = await place.lifetime.enter_async_context(Stream.open(settings, settings.SERVE_FROM, "check"))
        bounds, found = await place.stream.bounds(), await place.stream.last_state()
    except StreamError as ex:
        return failed(
            str(ex), "see that NATS runs and lets this user in, that relay publish runs, and what SERVE_FROM says"
        )
    if found is None:
        return failed(f"stream {settings.NATS_STREAM} is empty", "start relay publish")
    return ok(f"stream {settings.NATS_STREAM} has entries {bounds.first} to {bounds.last}")


async def _publisher(place: Place) -> Verdict:
    assert place.stream, "NATS was checked before"
    began = time.perf_counter()
    if await _publisher_answers(place.stream):
        return ok(f"one answers, after {(time.perf_counter() - began) * 1000:.1f} ms")
    mend = "start relay publish; let this user publish to, and that of the publisher subscribe to, NAME.ask.>"
    return failed("no publisher answers", mend)


async def _publisher_answers(stream: Stream) -> bool:
    found = await stream.last_state()
    state = found and decode(found[1])
    return isinstance(state, State) and bool(await stream.ask(state.asked_at, "may_read", b'[[{}, ""]]'))


_HERE: Final[Mapping[str, Callable[[Place], Awaitable[Verdict]]]] = {
    "access": _access,
    "ports": _ports,
    "files": _files,
    "rates": _rates,
}
"""Checks of this machine."""

_THERE: Final[Mapping[str, Callable[[Place], Awaitable[Verdict]]]] = {
    "connection": _connection,
    "primary": _primary,
    "version": _version,
    "encoding": _encoding,
    "pooler": _pooler,
    "install": _install,
    "grants": _grants,
    "clock": _clock,
    "connections": _connections,
    "notifications": _notifications,
    "journal": _journal,
    "watched": _watched,
    "columns": _columns,
    "triggers": _triggers,
    "trigger functions": _trigger_functions,
    "replication": _replication,
    "rows": _rows,
}
"""Checks of the database."""

_NATS: Final[Mapping[str, Callable[[Place], Awaitable[Verdict]]]] = {"nats": _nats, "publisher": _publisher}
"""Checks of the stream, where clients are served from there."""

_GATES: Final = frozenset(
    {"nats", "connection", "primary", "version", "encoding", "pooler", "install", "grants", "watched"}
)
"""Checks that all later ones of the database rest on."""


LONGEST_NAME: Final = max(map(len, (*_HERE, *_THERE, *_NATS)))
"""Characters of the longest name of a check."""


def _listed(names: Iterable[str], most: int = 3) -> str:
    """List names, but not all if they are many."""
    given = list(names)
    more = f" and {len(given) - most} more" if len(given) > most else ""
    return ", ".join(given[:most]) + more


def _halves(problem: str) -> tuple[str, str]:
    """Split a line of ours into what was found and what to do."""
    found, _, mend = problem.rpartition(": ")
    return found, mend

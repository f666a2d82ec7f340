"""Examines the database server: the connection to it, its version and settings, and its capacity."""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Iterable
from typing import Final, LiteralString, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from relay.commands.check.core import ANSWER_SECONDS, Check, Place, Verdict, failed, ok, warning
from relay.model.status import QUEUE_USAGE
from relay.postgres.connection import TAKES_NO_WRITES, Connection, complete, is_read_only, set_up, why_read_only
from relay.postgres.vitals import read_vitals
from relay.text import error_line

VERSIONS: Final = range(14, 19)
"""Major versions of Postgres that the relay is tested with."""

NOTIFICATION_SECONDS: Final = 1.0
"""Timeout of a notification from one connection to the other; it usually takes a millisecond."""

SKEW_SECONDS: Final = 1.0
"""Maximum difference between the clocks of this machine and of the server."""

_CONNECTIONS: Final = 2
"""Number of connections of a check."""

NEEDED_CONNECTIONS: Final = 3
"""Minimum number of connections of each worker. If there is room, it opens more to read several boards at once."""


async def _connection(place: Place) -> Verdict:
    conninfo = complete(place.settings.DATABASE_URL)
    try:
        await _connect(place, conninfo)
    except psycopg.OperationalError as ex:
        if not is_read_only(ex):
            return failed(error_line(ex), "see that Postgres runs and lets this role in, and what DATABASE_URL says")
        await _connect(place, make_conninfo(conninfo, target_session_attrs="any"))
    info = place.link.info
    where = f"{info.user} on {info.host}:{info.port}, database {info.dbname}"
    return judge_tls(where, info.hostaddr, tls=place.link.pgconn.ssl_in_use)


async def _connect(place: Place, conninfo: str) -> None:
    links = [await Connection.connect(conninfo, autocommit=True) for _ in range(_CONNECTIONS)]
    for link in links:
        place.lifetime.push_async_callback(link.close)  # its context manager would commit, which fails if it is dead
    place.links = links


def judge_tls(where: str, address: str, *, tls: bool) -> Verdict:
    """Judge whether strangers could read the connection."""
    if tls:
        return ok(f"{where}, with TLS")
    if address and ipaddress.ip_address(address).is_global:
        return warning(f"{where}, without TLS over the Internet", "add sslmode=verify-full to DATABASE_URL")
    return ok(f"{where}, without TLS")


async def _primary(place: Place) -> Verdict:
    return judge_primary(why_read_only(place.link.info, await place.link.row(TAKES_NO_WRITES)))


def judge_primary(fault: str | None) -> Verdict:
    """Judge whether the server accepts writes; `fault` says why it does not, and what to do."""
    if fault:
        found, _, hint = fault.rpartition(": ")
        return failed(found, hint)
    return ok("takes writes")


async def _version(place: Place) -> Verdict:
    return judge_version(place.link.info.server_version)


def judge_version(number: int) -> Verdict:
    """Judge whether the relay supports this version of Postgres."""
    major, tested = number // 10_000, f"{VERSIONS[0]} to {VERSIONS[-1]}"
    if major < VERSIONS[0]:
        return failed(
            f"Postgres {major}: the relay works with {tested}", f"upgrade to Postgres {VERSIONS[0]} or later"
        )
    if major > VERSIONS[-1]:
        hint = "use a later relay, if there is one"
        return warning(f"Postgres {major}: this relay is tested with {tested}", hint)
    return ok(f"Postgres {major}.{number % 10_000}")


async def _encoding(place: Place) -> Verdict:
    return judge_encoding(place.link.info.parameter_status("server_encoding") or "")


def judge_encoding(encoding: str) -> Verdict:
    """Judge whether the database's text can be decoded."""
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
    milliseconds = await round_trip(one, other)
    if milliseconds is None:
        return failed(
            f"a NOTIFY from one connection did not come to another within {NOTIFICATION_SECONDS:.0f} s",
            "connect to Postgres itself, or to a pool in session mode, of one server",
        )
    for link in place.links:
        await set_up(link)
        await link.rows("select pg_catalog.set_config('statement_timeout', %s, false)", f"{ANSWER_SECONDS:.0f}s")
    return ok(f"none: sessions are kept, and a notification comes after {milliseconds:.1f} ms")


async def _changes_sessions(one: Connection, other: Connection) -> bool:
    """Return whether a connection changes sessions, or shares one with another connection.

    A pool hands out first the session that was returned last, so the transaction of `other` gets that of `one`.
    """
    first = await one.row(_PID)
    await other.rows("begin")
    try:
        # In this order, because a pool of one session has none left for `one` meanwhile.
        return await other.row(_PID) == first or await one.row(_PID) != first
    finally:
        if not other.closed:
            await other.rows("rollback")


async def round_trip(listener: Connection, other: Connection) -> float | None:
    """Send a notification; return the milliseconds until it arrived, None if it did not."""
    channel, token = "relay_check", secrets.token_hex(8)
    await listener.rows(f"listen {channel}".encode())
    try:
        sent = time.perf_counter()
        await other.rows("select pg_catalog.pg_notify(%s, %s)", channel, token)
        async for notify in listener.notifies(timeout=NOTIFICATION_SECONDS):
            if notify.payload == token:
                return (time.perf_counter() - sent) * 1000
    finally:
        if not listener.closed:
            await listener.rows(f"unlisten {channel}".encode())
    return None


async def _clock(place: Place) -> Verdict:
    return judge_clock([await _clocks(place.link) for _ in range(3)])


async def _clocks(link: Connection) -> tuple[float, float, float]:
    before = time.time()
    (there,) = await link.row("select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())")
    return before, there, time.time()


def judge_clock(readings: Iterable[tuple[float, float, float]]) -> Verdict:
    """Judge the server's clock, each time read between two readings of ours. The quickest reading counts."""
    before, there, after = min(readings, key=lambda reading: reading[2] - reading[0])
    ahead, give = there - (before + after) / 2, (after - before) / 2
    if abs(ahead) - give <= SKEW_SECONDS:
        return ok(f"differs from the server's by less than {abs(ahead) + give:.3f} s")
    found = f"the server's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    return warning(
        f"{found}: tokens may end too early or too late", "synchronize both clocks (chrony, systemd-timesyncd)"
    )


class Room(NamedTuple):
    """The limits and current numbers of connections of the server, the role and the database; -1 means no limit."""

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
    """Judge whether there is room for the daemon's connections, or whether they are already open."""
    pairs = (room[0:2], room[2:4], room[4:6])
    free = min(most - taken for most, taken in pairs if most >= 0) + _CONNECTIONS  # this check's own
    theirs, needed = room.relays - _CONNECTIONS, NEEDED_CONNECTIONS * workers
    found = f"there is room for {max(free, 0)} more, and the daemon needs {needed}"
    found += f"; {theirs} are a relay's" if theirs > 0 else ""
    if free + max(theirs, 0) >= needed:
        return ok(found)
    hint = "raise max_connections, or the connection limit of the role or the database, or lower WS_WORKERS"
    return failed(found, hint)


async def _notifications(place: Place) -> Verdict:
    (prepared,) = await place.link.row("select pg_catalog.current_setting('max_prepared_transactions')::integer")
    return judge_notifications((await read_vitals(place.link)).queue_usage, prepared)


def judge_notifications(usage: float, prepared: int) -> Verdict:
    """Judge whether notifications arrive at once."""
    if usage >= QUEUE_USAGE:
        found = (
            f"the notification queue is {usage:.0%} full: triggers do not notify, changes come up to a second later"
        )
        return warning(
            found, "end the session that listens in a long transaction (the server's log names its process)"
        )
    if prepared:
        return ok(f"max_prepared_transactions is {prepared}: triggers do not notify, changes come up to 50 ms later")
    return ok(f"the queue is {usage:.0%} full")


CHECKS: Final = (
    Check(
        "connection",
        _connection,
        "Postgres lets the role in; whether with TLS (warning: without it, over the Internet)",
        "`DATABASE_URL`, `pg_hba.conf`; `sslmode=verify-full`",
        gate=True,
    ),
    Check(
        "primary",
        _primary,
        "the server takes writes",
        "name the primary; `default_transaction_read_only = off` for the role",
        gate=True,
    ),
    Check(
        "version",
        _version,
        "Postgres 14 to 18 (a later one: warning)",
        "upgrade Postgres, or the relay",
        gate=True,
    ),
    Check(
        "encoding",
        _encoding,
        "the database's encoding says what its text means: `SQL_ASCII` does not",
        "restore a dump into a database with encoding `UTF8`",
        gate=True,
    ),
    Check(
        "pooler",
        _pooler,
        "each connection keeps its session, and a `NOTIFY` comes through",
        "connect to Postgres itself, or to a pool in session mode",
        gate=True,
    ),
)
"""Checks of the connection to the database."""

SERVER_CHECKS: Final = (
    Check(
        "clock",
        _clock,
        "this machine's clock and the server's differ by a second at most (warning)",
        "synchronize both: tokens would end too early or too late",
    ),
    Check(
        "connections",
        _connections,
        "room for three connections a worker, on the server, for the role and in the database",
        "raise the limit, or lower `WS_WORKERS`",
    ),
    Check(
        "notifications",
        _notifications,
        "the queue is less than half full (warning); `max_prepared_transactions`",
        "end the session that listens in a long transaction",
    ),
)
"""Checks of the server's capacity."""

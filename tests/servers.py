"""The Postgres servers that integration tests run on, and the databases inside them.

Which server: the one RELAY_TEST_DSN names, else one of the programs in the folder RELAY_TEST_PROGRAMS, else a
container where a Docker engine answers, else the embedded one. The choice costs a few seconds at most and says why it
passed over what it passed over.
"""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
import tempfile
import time
import warnings
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, LiteralString, NoReturn, Self

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from relay.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from relay.postgres.install import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testcontainers.core.container import DockerContainer

PROGRAMS: Final = Path(_programs) if (_programs := os.environ.get("RELAY_TEST_PROGRAMS")) else None
"""Folder with the Postgres that all servers of this run are of, instead of the wheel's."""

IMAGE = "postgres:17"
_POSTGRES_PORT = 5432
_ENGINE_SECONDS = 5  # a Docker engine, or the registry behind it, that is silent for longer does not answer
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05

# What every version understands.
_INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")

_CONTROL: LiteralString = """
    do $$ begin
        lock table relay.horizon in share update exclusive mode;
        perform relay.set_control(%s);
    end $$
"""
PAUSE: LiteralString = _CONTROL.replace("%s", "true, relay.pauses() + (not relay.paused())::integer, 0")
"""Pauses journalling, as a writer does that finds the journal full: each pause has a number that no other had."""

MUTE: LiteralString = _CONTROL.replace("%s", "relay.paused(), relay.pauses(), 2000")
"""Has the triggers notify nobody for two seconds, as if a relay polled; no relay is notified of it."""

UNMUTE: LiteralString = _CONTROL.replace("%s", "relay.paused(), relay.pauses(), 0")
"""Has them notify again."""


class NoServerError(Exception):
    """A way to get a server does not work here; the message is one line."""


@dataclass(frozen=True)
class Server:
    """A server and its maintenance database, as superuser."""

    dsn: str
    label: str
    version_num: int


class Database:
    """One database of a test; it closes what it opened."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._opened = ExitStack()
        self._own: psycopg.Connection | None = None

    def connect(self) -> psycopg.Connection:
        """Open an autocommit connection that ends with the test, if the test does not close it earlier."""
        return self._opened.enter_context(closing(psycopg.connect(self.dsn, autocommit=True)))

    def execute(self, query: str, *args: object) -> None:
        self._connection().execute(query, args or None)

    def fetch(self, query: str, *args: object) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, args or None).fetchall()

    def close(self) -> None:
        """Close what was opened."""
        self._opened.close()
        self._own = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connection(self) -> psycopg.Connection:
        if self._own is None:
            self._own = self.connect()
        return self._own


class Postgres(EmbeddedPostgres):
    """A server of a test's own; of the run's programs, or of those given."""

    def __init__(self, *, settings: Mapping[str, str] | None = None, programs: Path | None = PROGRAMS) -> None:
        super().__init__(settings=settings)
        self._programs = programs
        if programs:
            self._initdb = _INITDB

    def _program(self, name: str) -> Path:
        """Find a program; packages of a server alone lack clients, and the wheel's work with older servers too."""
        given = self._programs / name if self._programs else None
        return given if given and given.exists() else super()._program(name)

    def _copy(self, server: EmbeddedPostgres, *, follow: bool) -> None:
        """Begin with the data of a running server, and perhaps follow it."""
        options = ["--checkpoint=fast", "--no-sync", f"--dbname={server.dsn}"]
        if follow:
            options.append("--write-recovery-conf")
            # Of what a newer pg_basebackup writes there, an older server does not understand all.
            self._settings["primary_conninfo"] = server.dsn
        status = self._spawn("pg_basebackup", *options).wait()
        self._guard.watch(None)
        if status != 0:
            raise EmbeddedPostgresError(f"pg_basebackup failed with exit status {status}: {self._log_tail()}")


class Standby(Postgres):
    """A copy of a running server, which follows it until it is promoted."""

    def __init__(self, primary: EmbeddedPostgres) -> None:
        super().__init__()
        self._primary = primary

    def promote(self) -> None:
        """Make it a primary of its own, and return once it takes writes."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            assert connection.execute("select pg_promote()").fetchall() == [(True,)]

    def _create_cluster(self) -> None:
        self._copy(self._primary, follow=True)


def do_without(reason: str) -> NoReturn:
    """Skip the test on a developer's machine; in CI, where nobody would notice, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextmanager
def sole_use(name: str) -> Iterator[None]:
    """Keep something that a machine has only once to this test, while other workers' tests wait for it."""
    with (Path(tempfile.gettempdir()) / f"pg-relay-tests-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(dsn: str) -> None:
    """Create the tasks table and feed it, as an operator does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in ("tasks", "install"):
            connection.execute(text(name).encode())
        connection.execute("select relay.watch('public.tasks')")


@contextmanager
def temporary_database(server: Server, template: str = "template0", options: LiteralString = "") -> Iterator[str]:
    """Create a database, yield its conninfo and drop it, even with open connections."""
    name = f"relay_test_{secrets.token_hex(6)}"
    _run(server, "create database {} template {} " + options, name, template)
    try:
        yield make_conninfo(server.dsn, dbname=name)
    finally:
        _run(server, "drop database {} with (force)", name)


def _run(server: Server, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def choose_server(lifetime: ExitStack) -> Server:
    """Return the first server that works, running until `lifetime` ends; raise NoServerError if none does."""
    if dsn := os.environ.get("RELAY_TEST_DSN"):
        return _named(dsn)
    reasons = []
    for start in (_embedded,) if PROGRAMS else (_container, _embedded):
        try:
            dsn, label = lifetime.enter_context(start())
        except NoServerError as error:
            reasons.append(str(error))
        else:
            return _described(dsn, f"{label} ({reasons[0]})" if reasons else label)
    raise NoServerError(f"no Postgres to test with: {'; '.join(reasons)}; set RELAY_TEST_DSN to a superuser's")


def _named(dsn: str) -> Server:
    try:
        return _described(dsn, "RELAY_TEST_DSN")
    except psycopg.Error as error:  # asked for by name, so that nothing else will do
        raise pytest.UsageError(f"RELAY_TEST_DSN names no server that lets us in: {_one_line(error)}") from error


def _described(dsn: str, label: str) -> Server:
    with psycopg.connect(dsn, connect_timeout=_ENGINE_SECONDS) as connection:
        return Server(dsn, label, connection.info.server_version)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _embedded() -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(Postgres())
        except EmbeddedPostgresError as error:
            raise NoServerError(f"no embedded Postgres: {error}") from error
        yield server.dsn, "RELAY_TEST_PROGRAMS" if PROGRAMS else "embedded Postgres"


@contextmanager
def _container() -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        reason = None
        with _forgiving_docker():
            try:
                _require_image()
                dsn = stack.enter_context(_running_container())
            except Exception as error:  # noqa: BLE001 - whatever it is, the label says why there is no container
                reason = _one_line(error)
        if reason is not None:
            raise NoServerError(f"no container: {reason}")
        yield dsn, f"container {IMAGE}"


@contextmanager
def _forgiving_docker() -> Iterator[None]:
    """Let Docker's client leave the socket open that found no engine; some test would fail for it later."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        yield
        gc.collect()


def _require_image() -> None:
    # Imported late, here and below: runs without integration tests need not wait for it.
    from docker.errors import ImageNotFound  # type: ignore[import-untyped]  # noqa: PLC0415
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415

    with closing(DockerClient(timeout=_ENGINE_SECONDS).client) as engine:
        engine.ping()
        try:
            engine.images.get(IMAGE)
        except ImageNotFound:
            engine.images.pull(IMAGE)


@contextmanager
def _running_container() -> Iterator[str]:
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    testcontainers_config.ryuk_disabled = True  # a second image to pull, to do what `with` does here
    password = secrets.token_hex()
    container = DockerContainer(IMAGE, command="postgres -c fsync=off")
    container.with_env("POSTGRES_PASSWORD", password).with_exposed_ports(_POSTGRES_PORT)
    with container:
        dsn = make_conninfo(
            host=container.get_container_host_ip(),
            port=container.get_exposed_port(_POSTGRES_PORT),
            user="postgres",
            password=password,
            dbname="postgres",
        )
        _wait_until_it_accepts(dsn, container)
        yield dsn


def _wait_until_it_accepts(dsn: str, container: DockerContainer) -> None:
    """Return once a connection succeeds: the image listens on TCP only when its set-up is over."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=_ENGINE_SECONDS).close()
        except psycopg.OperationalError:
            _require_running(container)
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _require_running(container: DockerContainer) -> None:
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    if wrapped.status != "running":
        raise NoServerError(f"{IMAGE} ended with {wrapped.logs(tail=1).decode()!r}")

"""What all tests share: a clean environment, a Postgres server where it is needed, a network to cut.

A run that collects no test with a database starts no server. Where pytest-xdist runs several workers, each has a
server of its own, and chooses ports that the others do not.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import psycopg
import pytest

from relay.postgres import embedded
from relay.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.nats import NATS_SERVER, NatsServer
from tests.proxy import Proxy
from tests.servers import (
    Database,
    NoServerError,
    Postgres,
    Server,
    choose_server,
    do_without,
    install,
    temporary_database,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# A property holds or not, however long it takes on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_CHOICE = pytest.StashKey[Server | NoServerError]()
_SENTENCES: pytest.StashKey[set[str]] = pytest.StashKey()

# The environment may name a database of the person who runs the tests: no test reads it, let alone writes to it.
for _name in list(os.environ):
    if _name.startswith(("WS_", "PG", "HEALTH_", "BOARD_", "DATABASE_URL", "SERVE_", "PUBLISH_", "NATS_")):
        del os.environ[_name]

# What is collected stays until the end: a garbage collector that searches it takes a fifth of each worker's start.
gc.disable()

# Servers that keep their files in memory copy a database in a seventh of the time. What pytest keeps stays on disk.
_MEMORY: Final = Path("/dev/shm")
_MEMORY_BYTES: Final = 4 * 2**30
"""Minimum of memory that is free for the servers of a run."""


def _holds_servers(folder: Path) -> bool:
    """Say whether a file system has room for servers, and lets programs run that are copied there."""
    return (
        folder.is_dir()
        and not os.statvfs(folder).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(folder).free >= _MEMORY_BYTES
    )


if "TMPDIR" not in os.environ and _holds_servers(_MEMORY):
    os.environ |= {"TMPDIR": str(_MEMORY), "PYTEST_DEBUG_TEMPROOT": tempfile.gettempdir()}
    tempfile.tempdir = None

# A port is free only until somebody takes it: two workers must not choose from the same ones.
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    embedded.PORTS = embedded.PORTS[int(_worker.removeprefix("gw")) % _workers :: _workers]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take long, or one of them would be what all other workers wait for in the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server before the first test, not within its time limit, and say which it is."""
    gc.freeze()
    gc.enable()
    needed = any("server" in getattr(item, "fixturenames", ()) for item in session.items)
    if not needed or session.config.option.collectonly:
        return
    choice = _choice(session.config)
    if hasattr(session.config, "workeroutput"):  # a worker has no terminal; it tells who has
        session.config.workeroutput["server"] = _sentence(choice)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"server: {_sentence(choice)}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Keep what a worker reported about its server."""
    if sentence := getattr(node, "workeroutput", {}).get("server"):
        node.config.stash.setdefault(_SENTENCES, set()).add(sentence)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which servers the workers had."""
    for sentence in sorted(config.stash.get(_SENTENCES, None) or ()):
        terminalreporter.write_line(f"server: {sentence}")


def _choice(config: pytest.Config) -> Server | NoServerError:
    """Choose the server once per run, or find once that there is none."""
    if _CHOICE not in config.stash:
        lifetime = ExitStack()
        config.add_cleanup(lifetime.close)
        try:
            config.stash[_CHOICE] = choose_server(lifetime)
        except NoServerError as error:
            config.stash[_CHOICE] = error
    return config.stash[_CHOICE]


def _sentence(choice: Server | NoServerError) -> str:
    if isinstance(choice, NoServerError):
        return str(choice)
    return f"Postgres {choice.version_num // 10_000}.{choice.version_num % 10_000}, {choice.label}"


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """Return the server of this run."""
    choice = _choice(pytestconfig)
    if isinstance(choice, NoServerError):
        do_without(str(choice))
    return choice


@pytest.fixture(scope="session")
def _template(server: Server) -> Iterator[str]:
    """Yield the name of a database with everything installed; copying it is faster than installing."""
    with temporary_database(server) as dsn:
        install(dsn)
        yield str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """Yield a fresh database with nothing in it."""
    with temporary_database(server) as dsn, Database(dsn) as database:
        yield database


@pytest.fixture
def database(server: Server, _template: str) -> Iterator[Database]:
    """Yield a fresh database with the tasks table, fed by the relay."""
    with temporary_database(server, _template) as dsn, Database(dsn) as database:
        yield database


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    """Yield a NATS server, of the version that the test is for; each test has a stream of its own there."""
    with _nats_server(tmp_path_factory.mktemp("nats"), getattr(request, "param", NATS_SERVER)) as nats:
        yield nats


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Yield a NATS server that this test alone uses, to stop and start it."""
    with _nats_server(tmp_path / "nats") as nats:
        yield nats


@contextmanager
def _nats_server(folder: Path, program: str | None = NATS_SERVER) -> Iterator[NatsServer]:
    try:
        nats = NatsServer(folder, program=program)
    except NoServerError as error:
        do_without(str(error))
    try:
        yield nats.start()
    finally:
        nats.stop()


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """Yield a running server that this test alone uses, to stop and start it."""
    with ExitStack() as stack:
        try:
            own = stack.enter_context(Postgres())
        except EmbeddedPostgresError as error:
            do_without(str(error))
        yield own


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """Yield a proxy in front of the server; `proxy.through(database.dsn)` leads through it."""
    with psycopg.connect(server.dsn) as connection:
        host, port = connection.info.hostaddr, connection.info.port
    if not host:
        do_without("RELAY_TEST_DSN leads to a Unix socket and this test needs TCP; give it a host")
    async with Proxy(host, port) as between:
        yield between

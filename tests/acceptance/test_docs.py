"""What the documents say is true: their commands and examples run, their tables are made of the code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jsonschema_rs import Draft202012Validator

from relay.model.schema import json_schema
from relay.postgres.install import text
from tests.acceptance.support import RELAY, Daemon, Program, Relays, environment, run_relay, until
from tests.acceptance.test_guide import node, npm_package
from tests.certificates import certificate
from tests.clusters import client_program
from tests.contract import checked
from tests.nats import NATS_SERVER, NO_SERVER, NatsServer
from tests.servers import Database, do_without, sole_use
from tools.reference import written

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DBA = ROOT / "docs" / "dba.md"
OPERATOR = ROOT / "docs" / "operations.md"
DEPLOYMENT = ROOT / "docs" / "deployment.md"
MONITORING = ROOT / "docs" / "monitoring.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
REFERENCE = ROOT / "docs" / "reference.md"
CLIENTS = ROOT / "docs" / "clients.md"
FRAMEWORKS = ROOT / "docs" / "frameworks.md"
KUBERNETES = ROOT / "docs" / "kubernetes.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
SECURITY = ROOT / "docs" / "security.md"
CONSISTENCY = ROOT / "docs" / "consistency.md"
OWN_WRITES = ROOT / "docs" / "own-writes.md"
EVENTS = ROOT / "docs" / "events.md"
SCALING = ROOT / "docs" / "scaling.md"
BACKUPS = ROOT / "docs" / "backups.md"
MIGRATIONS = ROOT / "docs" / "migrations.md"
SHAPES = ROOT / "docs" / "shapes.md"
DOCUMENTS = (
    README,
    DBA,
    SHAPES,
    BACKUPS,
    MIGRATIONS,
    OPERATOR,
    DEPLOYMENT,
    MONITORING,
    TROUBLESHOOTING,
    CONFIGURATION,
    REFERENCE,
    CLIENTS,
    FRAMEWORKS,
    KUBERNETES,
    CONSISTENCY,
    OWN_WRITES,
    EVENTS,
    PERFORMANCE,
    SCALING,
    SECURITY,
)


NEEDS_DAEMON = {"tail", "status"}
"""Commands that watch a running relay."""


def examples(document: Path | str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in a file or in a text."""
    printed = document.read_text() if isinstance(document, Path) else document
    return re.findall(rf"^```{language}\n(.*?)^```$", printed, re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """Return the lines of the shell blocks."""
    return [line for block in examples(document, "bash") for line in block.splitlines()]


def run_examples(blocks: list[str], folder: Path, *programs: Path, **settings: str) -> str:
    """Run shell blocks one after the other, until the first that fails, and return what they print."""
    client = client_program("pg_dump" if any("pg_dump" in block for block in blocks) else "psql")
    path = [RELAY.parent, client.parent, *programs, os.environ["PATH"]]
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks)],
        cwd=folder,
        env=environment({**settings, "PATH": os.pathsep.join(map(str, path))}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@contextmanager
def role_of_the_daemon(database: Database) -> Iterator[None]:
    """Let a test make the role that a server has only once, and drop it afterwards."""
    with sole_use("role-relay_daemon"):
        yield
        if database.fetch("select from pg_roles where rolname = 'relay_daemon'"):
            database.execute("drop owned by relay_daemon; drop role relay_daemon")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """A link to a file of ours finds it, and the heading in it, if it names one."""
    targets = [target.split("#") for target in re.findall(r"\]\((?!http)([^)]+)\)", document.read_text())]
    found = [(document.parent / name if name else document, *heading) for name, *heading in targets]

    assert [file for file, *_ in found if not file.exists()] == []
    assert [
        (file.name, heading) for file, *named in found for heading in named if heading not in headings(file)
    ] == []


def headings(document: Path) -> set[str]:
    """Return the headings of a document, as links name them."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", [README, DBA, OPERATOR, TROUBLESHOOTING], ids=lambda path: path.name)
def test_commands_run(document: Path, empty_database: Database, tmp_path: Path) -> None:
    """Every `relay` command that ends by itself runs as printed, in the order of the document."""
    tables = [block for block in examples(DBA, "sql") if "create table" in block]
    for block in (text("tasks"), text("install"), *tables):
        empty_database.execute(block)
    ran = 0
    with role_of_the_daemon(empty_database):
        for line in commands(document):
            program, *arguments = shlex.split(line, comments=True)
            if program == "relay" and arguments[0] not in NEEDS_DAEMON | {"serve", "publish", "bench"}:
                shorter = ["--ws-port", "0", "--health-port", "0"] if arguments[0] == "check" else []
                finished = run_relay(*arguments, *shorter, cwd=tmp_path, DATABASE_URL=empty_database.dsn)
                assert finished.returncode == 0, finished.stderr
                assert finished.stderr == "" or shorter
                ran += 1

    assert ran > 0


def test_commands_of_the_clients_guide_run(database: Database, tmp_path: Path) -> None:
    """They print JSON, but for those that print a program."""
    for line in commands(CLIENTS):
        finished = run_relay(*shlex.split(line)[1:], cwd=tmp_path, DATABASE_URL=database.dsn)
        assert finished.stderr == ""
        assert "class Task(" in finished.stdout or "interface Task " in finished.stdout or json.loads(finished.stdout)


def test_benchmarks_of_the_documents_are_those_that_are_tried() -> None:
    """They run in test_bench.py, with options that make them short."""
    lines = {line.partition("#")[0].strip() for document in DOCUMENTS for line in commands(document)}

    assert {line for line in lines if line.startswith("relay bench")} == {
        "relay bench",
        "relay bench --subscribers 1000",
        "relay bench writers",
    }


async def test_daemons_run(database: Database, relay: Relays) -> None:
    """Every `relay serve` starts as printed, and is healthy."""
    lines = [line for document in DOCUMENTS for line in commands(document) if line.startswith("relay serve")]
    served = {tuple(shlex.split(line, comments=True)[2:]) for line in lines if "--from" not in line}
    for options in served:
        daemon = await relay(database.dsn, *options)
        assert await daemon.stop() == 0

    assert len(served) > 3


@pytest.mark.parametrize("document", [DEPLOYMENT, SCALING], ids=lambda path: path.name)
async def test_publishers_and_edges_run(
    document: Path, database: Database, relay: Relays, nats_server: NatsServer, tmp_path: Path
) -> None:
    """`relay publish` and `relay serve --from` start as printed, and an edge is healthy."""
    here = [line.replace("nats://localhost:4222", nats_server.url) for line in commands(document)]
    (published,) = [shlex.split(line) for line in here if line.startswith("relay publish")]
    (served,) = [shlex.split(line) for line in here if line.startswith("relay serve --from")]
    stream = {"NATS_STREAM": document.stem, "NATS_KEEP_BYTES": str(64 * 1024**2)}
    settings = {"DATABASE_URL": database.dsn, "WS_HOST": "127.0.0.1", "HEALTH_PORT": "0", **stream}
    publisher = Program([RELAY, *published[1:]], tmp_path, settings)
    try:
        await relay("", *served[2:], "--nats-stream", stream["NATS_STREAM"])
    finally:
        publisher.end()


def test_nats_takes_the_configuration(tmp_path: Path) -> None:
    """As printed, with what is different at each from the environment."""
    cert, key = certificate(tmp_path, "nats")
    settings = {"NATS_LISTEN": "127.0.0.1:4222", "NATS_STORE": str(tmp_path), "NATS_TLS_CLIENTS": str(cert)}
    secrets = {"NATS_PUBLISHER_PASSWORD": "p123", "NATS_EDGE_PASSWORD": "e123"}
    files = {"NATS_TLS_CERT": str(cert), "NATS_TLS_KEY": str(key)}
    (line,) = [line for line in commands(DEPLOYMENT) if line.startswith("nats-server ")]
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    command = [NATS_SERVER, *shlex.split(line)[1:]]
    finished = subprocess.run(
        command, cwd=ROOT, env=settings | secrets | files, capture_output=True, text=True, check=False
    )

    assert (finished.returncode, "is valid" in finished.stderr) == (0, True), finished.stderr


async def test_watching_commands_run(database: Database, relay: Relays, tmp_path: Path) -> None:
    """Every `relay tail` and `relay status` shows something of a running relay, as printed."""
    daemon = await relay(database.dsn)
    settings = {"RELAY_URL": daemon.url, "RELAY_HEALTH_URL": f"http://127.0.0.1:{daemon.health_port}"}
    lines = [shlex.split(line, comments=True) for page in (MONITORING, TROUBLESHOOTING) for line in commands(page)]
    watching = {tuple(rest) for program, *rest in lines if program == "relay" and rest[0] in NEEDS_DAEMON}
    programs: list[Program] = []
    try:
        for arguments in watching:
            once = ("--count", "1") if arguments[0] == "tail" else ()
            program = Program([RELAY, *arguments, *once], tmp_path, settings)
            programs.append(program)
            sign = "live" if arguments[0] == "tail" else "healthy"
            await until(lambda: sign in program.output or program.exit_code is not None, sign)  # noqa: B023  # at once
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        database.execute("update tasks set lane = 'done'")
        for program, arguments in zip(programs, watching, strict=True):
            if "--watch" in arguments:
                program.signal(signal.SIGINT)
            await until(lambda: program.exit_code is not None, "its end")  # noqa: B023  # at once
            assert program.exit_code == 0, program.output
    finally:
        for program in programs:
            program.end()

    assert {arguments[0] for arguments in watching} == NEEDS_DAEMON


async def test_answers_of_the_daemon_come_where_the_documents_ask(database: Database, relay: Relays) -> None:
    """Each curl command finds something; one that goes on reading is run elsewhere."""
    daemon = await relay(database.dsn)
    curl = shutil.which("curl") or do_without("curl is not installed")
    asked = {line.split()[1] for document in DOCUMENTS for line in commands(document) if line.startswith("curl http")}
    for address in asked:
        here = address.replace("localhost:4001", f"127.0.0.1:{daemon.health_port}")
        program = await asyncio.create_subprocess_exec(curl, "--silent", "--fail", here, stdout=subprocess.DEVNULL)
        assert await program.wait() == 0, address
    assert len(asked) > 1


@pytest.mark.parametrize(("target", "document"), [("demo", README), ("test", README), ("bench", PERFORMANCE)])
def test_make_targets_exist(target: str, document: Path) -> None:
    """Each make command of the documents is there."""
    assert f"\nmake {target}\n" in document.read_text()
    finished = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)

    assert finished.returncode == 0


def test_sql_of_the_dbas_guide_runs_in_its_order(empty_database: Database) -> None:
    """A DBA may paste the examples one after the other."""
    for name in ("tasks", "install"):
        empty_database.execute(text(name))
    with role_of_the_daemon(empty_database), empty_database.connect() as connection:
        connection.execute(text("roles").encode())
        for block in examples(DBA, "sql"):
            connection.execute(block.encode())

    assert empty_database.fetch("select * from relay.watched") == []


def test_everything_that_is_made_is_in_the_dbas_guide(database: Database) -> None:
    """Each table, view and sequence; each function that is called from outside, by name, but not those of a table."""
    ours = "= 'relay'::regnamespace"
    made = f"select relname::text from pg_class where relnamespace {ours} and relkind in ('r', 'p', 'v', 'S')"
    called = (
        f"select proname::text from pg_proc where pronamespace {ours} and obj_description(oid) not like 'made for %'"
    )
    documented = set(re.findall(r"`(\w+)`", DBA.read_text().split("## Objects created")[1].split("\n## ")[0]))

    names = {name for (name,) in {*database.fetch(made), *database.fetch(called)}}
    assert len(names) > 20
    assert names <= documented


async def test_examples_in_python_come_back(
    guide_relay: Daemon, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """The first resumes, two use the client, with asyncio and without, and the last gets the board again."""
    programs = []
    for number, example in enumerate(examples(CLIENTS, "python")):
        (tmp_path / f"example_{number}.py").write_text(example)
        programs.append(Program([sys.executable, f"example_{number}.py"], tmp_path, {}))
    resuming, *ours, simple = programs

    async def print_this(of_resuming: str, of_ours: str, of_simple: str) -> None:
        for one, words in ((resuming, of_resuming), *((each, of_ours) for each in ours), (simple, of_simple)):
            await until(lambda: words in one.output or one.exit_code is not None, words)  # noqa: B023  # at once
            assert words in one.output, one.output

    try:
        await print_this("board.sync (None): 0 tasks", "board.sync None: 0 tasks\n", "board.sync: 0 tasks")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await print_this("1 changes: 1 tasks", "task.created a: 1 tasks\n", "task.created: 1 tasks")
        await guide_relay.stop()
        database.execute("insert into tasks (id, title) values ('b', 'B'), ('c', 'C')")
        await relay(database.dsn, ws_port=guide_relay.ws_port)
        await print_this("2 changes: 3 tasks", "task.created c: 3 tasks\n", "board.sync: 3 tasks")
        database.execute("delete from tasks where id = 'a'")
        await print_this("1 changes: 2 tasks", "task.deleted a: 2 tasks\n", "task.deleted: 2 tasks")
    finally:
        for program in programs:
            program.end()

    assert len(ours) == 2
    assert [program.output.count("board.sync") for program in programs] == [1, 1, 1, 2]


async def test_javascript_example_gets_what_it_missed(
    guide_relay: Daemon, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """The JavaScript program of the clients' guide holds the board, and comes back to a new relay by itself."""
    [example] = examples(CLIENTS, "javascript")
    (tmp_path / "example.mjs").write_text(example)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "ws").symlink_to(npm_package("ws"))
    (tmp_path / "node_modules" / "pg-change-relay-client").symlink_to(ROOT / "relay" / "client" / "js")
    program = Program([node(), "example.mjs"], tmp_path, {"TOKEN": "any"})
    try:
        await until(lambda: "'backlog'" in program.output, "its first board")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await until(lambda: "task.created: 1 tasks" in program.output, "the change")
        await guide_relay.stop()
        database.execute("insert into tasks (id, title) values ('b', 'B'), ('c', 'C')")
        await relay(database.dsn, ws_port=guide_relay.ws_port)
        await until(lambda: "task.created: 3 tasks\n" * 2 in program.output, "what it missed")
        database.execute("delete from tasks")
        await until(lambda: "task.deleted: 0 tasks" in program.output, "the last task's end")
    finally:
        program.end()
    states = [line for line in program.output.splitlines() if line in {"catching up", "live", "offline"}]

    assert states == ["catching up", "live", "offline", "catching up", "live"]
    assert program.output.count("board.sync") == 1


def test_messages_in_the_documents_are_of_the_protocol() -> None:
    """Each JSON example, and each line sent in a table or a dialogue, is a message of the schema."""
    lines = [line for block in examples(CLIENTS, "json") for line in block.splitlines()]
    text_of_guide = CLIENTS.read_text() + OWN_WRITES.read_text()
    sent = [
        *re.findall(r'`(\{"type":[^`]*)`', text_of_guide),
        *re.findall(r"^[<>] (.*)", text_of_guide, re.MULTILINE),
    ]
    schema = Draft202012Validator(json_schema())
    for line in lines:
        checked(line)
    for line in sent:
        schema.validate(json.loads(line))
    assert len(lines) > 5
    assert len(sent) > 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_that_the_code_defines(document: Path) -> None:
    """`make docs` writes them."""
    assert written(document.read_text()) == document.read_text()

"""`relay bench` measures a user's own server, and leaves nothing on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from relay.commands.bench.costs import TABLES
from relay.commands.bench.run import Phase, Result, table
from relay.commands.bench.subscribers import Report
from tests.acceptance.support import RELAY, Program, environment, mistake, run_relay, until
from tests.acceptance.test_docs import ROOT, SHAPES
from tests.servers import Database, sole_use

SHORT = ("--subscribers", "5", "--seconds", "0.3")


@pytest.fixture(autouse=True)
def _alone() -> object:
    """Keep other tests' scratch databases out of sight."""
    with sole_use("bench"):
        yield


def scratch_databases(database: Database) -> list[tuple[object, ...]]:
    return database.fetch("select datname from pg_database where datname ^@ 'relay_bench_'")


def test_every_phase_has_its_figures(empty_database: Database, tmp_path: Path) -> None:
    """The JSON has what was measured, for every delivery to every subscriber, and the database is gone.

    Without --json, people get a table of the same, a line for each phase under one of headings.
    """
    finished = run_relay("bench", "--json", *SHORT, cwd=tmp_path, DATABASE_URL=empty_database.dsn)

    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert [phase["name"] for phase in result["phases"]] == ["one at a time", "16 in flight", "one transaction"]
    for phase in result["phases"]:
        found = phase["subscribers"]
        assert found["deliveries"] == 5 * phase["changes"] > 0
        assert 0 < found["p50"] <= found["p99"] <= found["max"]
        assert phase["relay_cpu_us_per_delivery"] > 0
    assert result["phases"][-1]["changes"] == 1000
    assert scratch_databases(empty_database) == []

    phases = [Phase(**{**phase, "subscribers": Report(**phase["subscribers"])}) for phase in result["phases"]]
    head, *lines = table(Result(result["machine"], phases)).split("\n\n")[1].splitlines()
    assert "p99 ms" in head
    assert [line.split("  ")[0] for line in lines] == ["one at a time", "16 in flight", "one transaction"]


def test_writers_have_their_figures(empty_database: Database, tmp_path: Path) -> None:
    """The JSON has what every run of every table took, and the database is gone.

    Where Postgres runs here, each run says what its writers, the relay's sessions and the relay took.
    """
    options = ("writers", "--writers", "2", "--seconds", "0.2", "--rounds", "2", "--rows", "2000")
    finished = run_relay("bench", *options, "--json", cwd=tmp_path, DATABASE_URL=empty_database.dsn)

    assert finished.returncode == 0, finished.stderr
    tax = json.loads(finished.stdout)
    assert tax["single"].keys() == tax["busy"].keys() == {"2"}
    for runs in (*tax["single"].values(), tax["in_one"], tax["copy"], tax["update"]):
        assert {table: len(costs) for table, costs in runs.items()} == dict.fromkeys(TABLES, 2)
        assert all(cost[figure] > 0 for costs in runs.values() for cost in costs for figure in ("seconds", "wal"))
    assert {cost["changes"] for costs in tax["update"].values() for cost in costs} == {2000}
    assert tax["journal_bytes"] > 100
    assert tax["prune"]["changes"] >= 2 * 2 * 2000
    assert all(0 < latency["p50"] <= latency["p99"] for latency in (tax["idle"], *tax["busy"].values()))
    assert {target["name"] for target in tax["targets"]} >= {
        "COPY: time, of none's",
        "2 writers: commits, of plain's",
    }
    assert scratch_databases(empty_database) == []

    if not runs_here(empty_database):
        return
    for runs in (tax["single"]["2"], tax["update"]):
        for cost in (cost for costs in runs.values() for cost in costs):
            # Two writers, each on a core at most; what clocks and counters round is little.
            assert 0 < cost["processor"]["writers"] <= 2 * cost["seconds"] * 1.1
        watched, bare = runs["relay"][0]["processor"], runs["none"][0]["processor"]
        assert watched["sessions"] > bare["sessions"] > 0
        assert watched["relay"] > bare["relay"] > 0


def runs_here(database: Database) -> bool:
    """Whether the processes of Postgres can be seen from here."""
    title = Path(f"/proc/{database.fetch('select pg_backend_pid()')[0][0]}/cmdline")
    return title.exists() and b"postgres" in title.read_bytes()


@pytest.mark.parametrize(
    ("options", "first", "signum"),
    [
        (("--subscribers", "5"), "one at a time", signal.SIGTERM),
        (("writers", "--writers", "2"), "from commit to client", signal.SIGINT),
    ],
    ids=["commit to client", "writers"],
)
async def test_interrupted_it_leaves_nothing(
    empty_database: Database, tmp_path: Path, options: tuple[str, ...], first: str, signum: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end it soon, the database and all processes too, however often they come."""
    bench = Program([RELAY, "bench", *options, "--seconds", "600"], tmp_path, {"DATABASE_URL": empty_database.dsn})
    try:
        await until(lambda: first in bench.output, "the first phase")
        bench.signal(signum)
        bench.signal(signum)
        await until(lambda: bench.exit_code is not None, "its end")
    finally:
        bench.end()

    assert bench.exit_code == 1
    assert "Traceback" not in bench.output
    assert scratch_databases(empty_database) == []
    assert processes_of(bench.pid) == ""


def processes_of(pid: int) -> str:
    """List the processes that it has started."""
    return subprocess.run(["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False).stdout


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    """A wrong address is a user's mistake."""
    finished = run_relay("bench", *SHORT, cwd=tmp_path, DATABASE_URL="postgresql://127.0.0.1:1/nowhere")

    assert "expected a Postgres server; check DATABASE_URL" in mistake(finished)


def test_a_role_that_may_not_create_databases_is_one_line(database: Database, tmp_path: Path) -> None:
    """Where a scratch database cannot be had, the error says what is missing."""
    with sole_use("role-relay_poor"), database.connect() as connection:
        connection.execute("create role relay_poor login password 'secret'")
        try:
            dsn = make_conninfo(database.dsn, user="relay_poor", password="secret")
            finished = run_relay("bench", *SHORT, cwd=tmp_path, DATABASE_URL=dsn)
        finally:
            connection.execute("drop role relay_poor")

    assert "permission denied to create database: expected a role with createdb" in mistake(finished)


async def test_a_relay_that_fails_is_reported(empty_database: Database, tmp_path: Path) -> None:
    """When Postgres ends its sessions, the run says so and still removes its database."""
    bench = Program(
        [RELAY, "bench", "--subscribers", "5", "--seconds", "600"], tmp_path, {"DATABASE_URL": empty_database.dsn}
    )
    try:
        await until(lambda: "one at a time" in bench.output, "the first phase")
        empty_database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname ^@ 'relay_bench_'"
        )
        await until(lambda: bench.exit_code is not None, "its end")
    finally:
        bench.end()

    # Postgres's own word may be lost when a write meets the closed connection first.
    assert re.search("Error: .*(terminating connection|server closed the connection)", bench.output)
    assert scratch_databases(empty_database) == []


def test_more_subscribers_than_files_is_one_line(empty_database: Database, tmp_path: Path) -> None:
    """The limit of open files is checked before anything is made."""
    finished = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n 300; exec {RELAY} bench --subscribers 1000"],
        cwd=tmp_path,
        env=environment({"DATABASE_URL": empty_database.dsn}),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )

    assert "expected fewer --subscribers, or a higher limit (ulimit -n)" in mistake(finished)


def test_what_shapes_cost_has_its_figures() -> None:
    """In its smallest size: each line of the table in docs/shapes.md."""
    finished = subprocess.run(
        [sys.executable, "benchmarks/shapes.py", "--rounds", "1", "--writes", "10"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    printed = [re.split(r"\s{2,}", line)[0] for line in finished.stdout.splitlines()[1:]]
    assert printed == re.findall(r"^\| ([^|]*?) \| [\d.]+ \| [\d.]* ?\|$", SHAPES.read_text(), re.MULTILINE)

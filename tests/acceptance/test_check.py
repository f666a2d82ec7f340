"""`relay check`, as an operator runs it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import psycopg.conninfo
import pytest

from relay.postgres.embedded import free_port
from tests.acceptance.support import RELAY, SECONDS, Relays, environment, run_relay
from tests.servers import Database

QUIET = {"WS_HOST": "127.0.0.1", "WS_PORT": "0", "HEALTH_PORT": "0"}


def findings(folder: Path, dsn: str, *options: str, **settings: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run it for machines: the exit code, and what was found, by check."""
    finished = run_relay("check", "--json", *options, cwd=folder, DATABASE_URL=dsn, **QUIET | settings)
    assert finished.stderr == ""
    found = json.loads(finished.stdout)
    for finding in found:
        assert list(finding) == ["check", "status", "found", "hint"]
    return finished.returncode, {finding["check"]: finding for finding in found}


def test_healthy_database(database: Database, tmp_path: Path) -> None:
    """One aligned line a check, without colours for a pipe, and exit code 0."""
    finished = run_relay("check", cwd=tmp_path, DATABASE_URL=database.dsn, **QUIET)
    *lines, last = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert last == f"relay check: {len(lines)} ok"
    assert "\x1b" not in finished.stdout
    column = len("ok       trigger functions  ")
    assert {line[:9].strip() for line in lines} == {"ok"}
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_broken_database(database: Database, tmp_path: Path) -> None:
    """What is to do stands below what was found, and the exit code is 1; the same for machines."""
    database.execute("alter table tasks disable trigger relay_change")
    finished = run_relay("check", cwd=tmp_path, DATABASE_URL=database.dsn, **QUIET)
    lines = finished.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("failed"))

    assert (finished.returncode, finished.stderr) == (1, "")
    assert lines[at].endswith("relay_change of public.tasks is disabled")
    assert lines[at + 1].strip() == "hint: run relay sql watch public.tasks"
    assert lines[-1].startswith("relay check: ")
    assert "1 failed" in lines[-1]

    code, found = findings(tmp_path, database.dsn)
    assert code == 1
    assert found["triggers"] == {
        "check": "triggers",
        "status": "failed",
        "found": "relay_change of public.tasks is disabled",
        "hint": "run relay sql watch public.tasks",
    }


def test_warnings_do_not_fail_the_check(database: Database, tmp_path: Path) -> None:
    """Open doors are the operator's to judge."""
    code, found = findings(tmp_path, database.dsn, "--ws-host", "0.0.0.0")
    assert (code, found["access"]["status"]) == (0, "warning")


def test_colours_are_for_a_terminal(tmp_path: Path) -> None:
    """There, what failed is red."""
    ours, theirs = pty.openpty()
    try:
        url = psycopg.conninfo.make_conninfo(host="127.0.0.1", port=free_port(), user="a", dbname="b")
        subprocess.run(
            [RELAY, "check"],
            cwd=tmp_path,
            env=environment({"DATABASE_URL": url, "TERM": "xterm"} | QUIET),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            timeout=SECONDS,
            check=False,
        )
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"\x1b[31mfailed" in shown


@pytest.mark.parametrize("arguments", [["--ws-port", "none"], ["--unknown"], ["surplus"]])
def test_usage_and_settings_are_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    """Nothing is checked; the mistake is named without a traceback."""
    finished = run_relay("check", *arguments, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines()[-1].startswith("Error: ")


async def test_relay_that_runs_already(database: Database, relay: Relays, tmp_path: Path) -> None:
    """Its ports are taken by what should have them, and its connections are counted as its own."""
    daemon = await relay(database.dsn, WS_HOST="127.0.0.1")
    ports = {"WS_PORT": str(daemon.ws_port), "HEALTH_PORT": str(daemon.health_port)}
    code, found = findings(tmp_path, database.dsn, **ports)
    assert code == 0
    assert found["ports"]["found"] == "a relay is running here, and says that it is healthy"
    assert found["connections"]["found"].endswith("; 2 are a relay's")

    code, found = findings(tmp_path, database.dsn, **ports | {"WS_PORT": str(free_port())})
    assert (code, found["ports"]["status"]) == (1, "failed")  # another's health


def test_clock_that_is_wrong(database: Database, library_that_fakes_time: Path, tmp_path: Path) -> None:
    """Of a machine that is a minute ahead of the server it says so, and what to do."""
    fake = {"LD_PRELOAD": str(library_that_fakes_time), "FAKETIME": "+60", "DONT_FAKE_MONOTONIC": "1"}
    code, found = findings(tmp_path, database.dsn, **fake)
    assert (code, found["clock"]["status"]) == (0, "warning")
    assert "the server's clock is 60.0 s behind this machine's" in found["clock"]["found"]

"""The commands of docs/scaling.md run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.acceptance.test_docs import ROOT, SCALING, commands
from tests.nats import NATS_SERVER, NO_SERVER
from tests.servers import do_without

SHORTER = {
    "benchmarks/relays.py": "--relays 1 --seconds 0.1 --rounds 1 --settle 0 --clients 2 --others 1",
    "benchmarks.edges": "--edges 1 --clients 1 --seconds 0.1 --rounds 1 --moving",
    "haproxy": "",
    "nats-server": "--config <(echo 'port: 4222') -t",
}
"""Options for commands that take their time; programs that this file does not know are others' to try."""


def ours() -> dict[str, str]:
    """Return the commands to be run here, by the program."""
    return {name: line for line in commands(SCALING) for name in SHORTER if f"{name} " in f"{line} "}


def run(name: str) -> str:
    """Run a command of the document as printed, where it is long with less to do, and return what it printed."""
    shell = shutil.which("bash") or do_without("bash is not installed")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    finished = subprocess.run(
        [shell, "-c", f"{ours()[name]} {SHORTER[name]}"],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_haproxy_takes_the_example_with_the_ports_of_the_document() -> None:
    if shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        do_without("HAProxy is not installed: on Debian and Ubuntu, apt install haproxy")
    run("haproxy")


def test_benchmark_of_several_relays_has_its_tables() -> None:
    """In its smallest size: idle, paced, at full speed, and when a relay dies, resuming and not."""
    printed = run("benchmarks/relays.py")

    for words in ("idle", "commits a second", "at full speed", "2 resume", "2 begin again"):
        assert words in printed


def test_nats_starts_as_printed() -> None:
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    run("nats-server")


def test_benchmark_of_edges_has_its_tables() -> None:
    """In its smallest size, and without clients that move: each hop, and a number of edges."""
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    printed = run("benchmarks.edges")

    for words in ("NATS adds", "beyond idle", "memory", "each edge", "what a hop costs"):
        assert words in printed


def test_each_of_these_commands_is_in_the_document() -> None:
    """Else it would not be tried any more, unnoticed."""
    assert ours().keys() == SHORTER.keys()

"""The comparison behind docs/performance.md runs: its contenders, its subscribers, its figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import do_without

ROOT = Path(__file__).parents[2]


def figures_of(scenario: str) -> set[str]:
    """Run a scenario in its smallest size; return whom it has figures of."""
    if shutil.which("cc") is None or shutil.which("taskset") is None:
        do_without("the comparison needs a C compiler and taskset: install gcc and util-linux")
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.fanout", "--quick", "--only", scenario],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    if "built without OpenSSL" in finished.stderr:
        do_without("the comparison with TLS needs OpenSSL's headers: on Debian and Ubuntu, apt install libssl-dev")
    assert (finished.returncode, finished.stderr) == (0, "")
    figures = finished.stdout.split(f"[{scenario}]")[1]
    return {line[:32].strip() for line in figures.splitlines() if line.strip()}


def test_scenario_of_the_comparison_has_figures_of_each_contender() -> None:
    """A burst, in its smallest size, reaches all subscribers of the relay and of Python's broadcast."""
    assert {"relay", "Python websockets.broadcast"} <= figures_of("burst")


def test_tls_is_measured_on_each_event_loop() -> None:
    """Subscribers that speak TLS, a few of them, have their first board from the relay on each of the loops."""
    loops = ("asyncio", "uvloop", "aiofastnet")
    assert {f"relay, wss://, {loop}" for loop in loops} <= figures_of("wire-arrive")

"""The comparison behind docs/performance.md runs: its contenders, its subscribers, its figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import do_without

ROOT = Path(__file__).parents[2]


def test_scenario_of_the_comparison_has_figures_of_each_contender() -> None:
    """A burst, in its smallest size, reaches all subscribers of the relay and of Python's broadcast."""
    if shutil.which("cc") is None or shutil.which("taskset") is None:
        do_without("the comparison needs a C compiler and taskset: install gcc and util-linux")
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.fanout", "--quick", "--only", "burst"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    figures = finished.stdout.split("[burst]")[1]
    assert {"relay", "Python websockets.broadcast"} <= {line[:32].strip() for line in figures.splitlines()}

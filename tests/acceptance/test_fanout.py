"""The comparison behind docs/performance.md runs: its contenders, its subscribers, its figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import do_without

ROOT = Path(__file__).parents[2]


def test_comparison_has_figures_of_each_contender_and_of_each_event_loop() -> None:
    """In its smallest size: a burst reaches all subscribers, and those that speak TLS have their first board."""
    if shutil.which("cc") is None or shutil.which("taskset") is None:
        do_without("the comparison needs a C compiler and taskset: install gcc and util-linux")
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.fanout", "--quick", "--only", "burst", "--only", "wire-arrive"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    if "built without OpenSSL" in finished.stderr:
        do_without("the comparison with TLS needs OpenSSL's headers: on Debian and Ubuntu, apt install libssl-dev")
    assert (finished.returncode, finished.stderr) == (0, "")
    burst, arrive = (
        {line[:32].strip() for line in figures.split("\n\n")[0].splitlines()}
        for figures in (finished.stdout.split("[burst]")[1], finished.stdout.split("[wire-arrive]")[1])
    )
    assert {"relay", "Python websockets.broadcast"} <= burst
    assert {f"relay, wss://, {loop}" for loop in ("asyncio", "uvloop", "aiofastnet")} <= arrive

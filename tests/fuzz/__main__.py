"""Fuzz everything that strangers can send, for as long as you like: `make fuzz MINUTES=10`."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tests.fuzz.targets import SEEDS, TARGETS

LARGEST_INPUT = 4096
LARGEST_MEMORY_MB = 1024


def main() -> None:
    """Fuzz each target in its turn; exit with 1 if any crashed, and say where the input is."""
    options = argparse.ArgumentParser()
    options.add_argument("--minutes", type=float, default=1.0, help="how long in all")
    options.add_argument("--target", choices=TARGETS, action="append", help="what to fuzz, all if not said")
    given = options.parse_args()
    chosen = given.target or list(TARGETS)
    crashed = [name for name in chosen if not survived(name, round(given.minutes * 60 / len(chosen)))]
    sys.exit(f"crashed: {', '.join(crashed)}" if crashed else 0)


def survived(name: str, seconds: int) -> bool:
    """Fuzz one target so long, and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[name]):
            (Path(folder) / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-max_len={LARGEST_INPUT}", f"-rss_limit_mb={LARGEST_MEMORY_MB}"]
        command = [sys.executable, "-m", "tests.fuzz.one", name, *limits, "-timeout=10", "-print_final_stats=1"]
        finished = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    tried = re.search(r"number_of_executed_units: (\d+)", finished.stderr)
    reached = re.findall(r"cov: (\d+)", finished.stderr)
    memory = re.search(r"peak_rss_mb: +(\d+)", finished.stderr)
    click.echo(
        f"{name:12}{int(tried[1]) if tried else 0:>12,} inputs tried, {reached[-1] if reached else 0:>6} branches"
        f" reached, {memory[1] if memory else '?':>5} MB, {'no crash' if finished.returncode == 0 else 'CRASHED'}"
    )
    if finished.returncode != 0:
        click.echo(finished.stderr[-4000:], err=True)
    return finished.returncode == 0


if __name__ == "__main__":
    main()

"""Compare the relay's fan-out with what one would write first, and with nchan, side by side in one run.

    make bench                        about forty minutes; prints a table, writes docs/fanout.json and docs/fanout.svg
    make bench ARGS='--only burst'    a part of it; writes nothing
    make bench ARGS=--quick           see that all of it works

The contenders take turns in each scenario, so that whatever else the machine does meets all alike. Figures are
medians of the runs, with the least and the most.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
from pathlib import Path

import click
import psycopg

from benchmarks.fanout import picture
from benchmarks.fanout.contenders import BUILD, HERE, LOAD_CORE, Contender, contenders
from benchmarks.fanout.measure import QUICK, Bench, Numbers, Scenario, Size, scenarios
from relay.postgres.embedded import EmbeddedPostgres

DOCS = HERE.parent.parent / "docs"

UNITS = {
    "p50": ("p50 ms", 1), "p99": ("p99 ms", 1), "last_p50": ("last p50 ms", 1), "last_p99": ("last p99 ms", 1),
    "cpu_us_per_delivery": ("CPU µs/delivery", 2), "behind_s": ("behind s", 1), "dropped": ("dropped", 0),
    "deliveries_per_s": ("deliveries/s", 0), "seconds": ("s", 3), "writer_s": ("writer s", 3), "ratio": ("ratio", 2),
    "kb": ("KB each", 1), "idle_core": ("idle core", 4), "growth_mb": ("memory +MB", 1),
    "cpu_us_per_change": ("CPU µs/change", 0), "load_core": ("load's core", 2),
    "connections_per_s": ("connections/s", 0), "cpu_ms_per_connection": ("CPU ms/connection", 2),
}  # fmt: skip
"""How each figure is called, and its decimals."""

Results = dict[str, dict[str, list[Numbers]]]


@click.command()
@click.option("--runs", default=3, show_default=True, help="how often each scenario is run")
@click.option("--only", multiple=True, help="a scenario's name, or its beginning; may be repeated")
@click.option("--quick", is_flag=True, help="sizes just large enough to see that everything works")
def main(runs: int, only: tuple[str, ...], quick: bool) -> None:
    """Run the comparison."""
    size = QUICK if quick else Size()
    runs = 1 if quick else runs
    chosen = [it for it in scenarios(size) if not only or it.name.startswith(only)]
    if not chosen:
        raise click.ClickException(f"no scenario is called {only[0]!r}: expected one of {_names(size)}")
    build()
    found = contenders()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with EmbeddedPostgres() as server:
        facts = machine(server.dsn, found)
        for name, value in facts.items():
            click.echo(f"{name:12} {value}")
        results = run(Bench(server.dsn, size), chosen, found, runs)
    if not only and not quick:
        (DOCS / "fanout.json").write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
        picture.draw(results, {it.name: it.title for it in found}, DOCS / "fanout.svg")


def build() -> None:
    """Compile the subscribers, if their source is newer."""
    BUILD.mkdir(exist_ok=True)
    target, source = BUILD / "load", HERE / "load.c"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        compiler = ["cc", "-O2", "-Wall", "-o", str(target), str(source)]
        if subprocess.run([*compiler, "-lssl", "-lcrypto"], capture_output=True, check=False).returncode:
            subprocess.run([*compiler, "-DPLAIN"], check=True)


def machine(dsn: str, found: list[Contender]) -> dict[str, str]:
    """Say on what was measured."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("show server_version").fetchone()
    model = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().split("\n") if "model name" in line]
    ceiling = json.loads(subprocess.run([BUILD / "load", "ceiling"], capture_output=True, check=True).stdout)
    return {
        "machine": f"{len(model)} cores of {model[0] if model else platform.machine()}, Linux {platform.release()}",
        "postgres": f"{row[0] if row else '?'}, fsync off",
        **{it.name: it.version() for it in found},
        "loops": ", ".join(f"{it} {importlib.metadata.version(it)}" for it in ("uvloop", "aiofastnet")),
        "tls": ssl.OPENSSL_VERSION,
        "load": f"takes {ceiling['frames'] / 1e6:.0f} million frames a second; it shares its core with Postgres",
    }


def run(bench: Bench, chosen: list[Scenario], found: list[Contender], runs: int) -> Results:
    """Measure, and print each scenario's lines as soon as they are known."""
    results: Results = {}
    for scenario in chosen:
        click.echo(f"\n{scenario.title}  [{scenario.name}]")
        for _ in range(scenario.runs or runs):
            for contender in scenario.among or [it for it in found if scenario.suits(it)]:
                made = scenario.contender() if scenario.contender else contender
                try:
                    numbers = scenario.measure(bench, made)
                except (RuntimeError, TimeoutError, OSError) as ex:
                    print(f"  {contender.title}: {ex}", file=sys.stderr)
                    continue
                results.setdefault(scenario.name, {}).setdefault(contender.name, []).append(numbers)
        for contender in scenario.among or found:
            if measured := results.get(scenario.name, {}).get(contender.name):
                click.echo(f"  {contender.title:30} {_line(measured)}")
    return results


def _line(measured: list[Numbers]) -> str:
    parts = []
    for name, (title, digits) in UNITS.items():
        if values := [it[name] for it in measured if name in it]:
            spread = f" ({min(values):,.{digits}f} to {max(values):,.{digits}f})" if len(values) > 1 else ""
            parts.append(f"{title} {statistics.median(values):,.{digits}f}{spread}")
    return "  ".join(parts)


def _names(size: Size) -> str:
    return ", ".join(it.name for it in scenarios(size))


if __name__ == "__main__":
    main()

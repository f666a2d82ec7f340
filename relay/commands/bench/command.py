"""`relay bench` and `relay bench writers`."""

from __future__ import annotations

import click

from relay.commands.bench import run, write_report, write_tax
from relay.commands.options import one_line_errors, settings_options
from relay.config import read
from relay.postgres.install import InstallError


@click.group(invoke_without_command=True)
@settings_options("DATABASE_URL")
@click.option(
    "--subscribers", type=click.IntRange(1, 50_000), default=200, show_default=True, help="clients of one board"
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=5, show_default=True, help="length of each phase"
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
@click.pass_context
def bench(context: click.Context, /, subscribers: int, seconds: float, as_json: bool, **options: str | None) -> None:
    """Measure the time from commit to client on your own server, in a scratch database that is removed afterwards."""
    if context.invoked_subcommand:
        return
    with one_line_errors(run.BenchError, InstallError):
        url = read(options, ["DATABASE_URL"]).DATABASE_URL
        result = run.run(url, subscribers, seconds, lambda text: click.echo(text, err=True))
    click.echo(run.as_json(result) if as_json else run.table(result))


@bench.command("writers")
@settings_options("DATABASE_URL")
@click.option(
    "--writers",
    type=click.IntRange(1, 1000),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="how many write at once; may be repeated",
)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=2, show_default=True, help="length of each run")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="runs of each table")
@click.option(
    "--rows", type=click.IntRange(1, 1_000_000), default=100_000, show_default=True, help="rows of one statement"
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def bench_writers(
    writers: tuple[int, ...], seconds: float, rounds: int, rows: int, as_json: bool, **options: str | None
) -> None:
    """Measure what the triggers cost writers, in a scratch database on your server that is removed afterwards."""
    with one_line_errors(run.BenchError, InstallError):
        url = read(options, ["DATABASE_URL"]).DATABASE_URL
        tax = write_tax.run(url, writers, seconds, rounds, rows, lambda text: click.echo(text, err=True))
    click.echo(write_report.as_json(tax) if as_json else write_report.table(tax))
